package doctor

import (
	"os"
	"testing"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// examine returns the level of each finding.
func examine(t *testing.T, url string, adjust ...func(*rueidis.ClientOption)) map[string]Level {
	t.Helper()
	option, err := rueidis.ParseURL(url)
	require.NoError(t, err)
	option.DisableRetry = true
	for _, f := range adjust {
		f(&option)
	}
	client, err := rueidis.NewClient(option)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	levels := map[string]Level{}
	for _, f := range Examine(t.Context(), client) {
		require.NotEmpty(t, f.Text)
		levels[f.Name] = f.Level
	}
	return levels
}

func TestExamine(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	require.Equal(t, map[string]Level{
		"server": OK, "operations": OK, "cache": OK, "memory": OK, "persistence": OK, "replication": OK, "rights": OK, "clock": OK, "latency": OK,
	}, examine(t, server.URL))
	admin := redistest.Dial(t, server.URL)
	require.Empty(t, redistest.Keys(t.Context(), admin, ""), "nothing is left behind")
	set := func(name, value string) {
		require.NoError(t, admin.Do(t.Context(), admin.B().ConfigSet().ParameterValue().ParameterValue(name, value).Build()).Error())
	}

	set("appendfsync", "everysec")
	require.Equal(t, Warning, examine(t, server.URL)["persistence"])
	set("appendonly", "no")
	require.Equal(t, Warning, examine(t, server.URL)["persistence"])
	set("save", "60 1")
	require.Equal(t, Fail, examine(t, server.URL)["persistence"])

	set("maxmemory-policy", "allkeys-lru")
	require.Equal(t, Warning, examine(t, server.URL)["memory"])
	set("maxmemory", "100mb")
	require.Equal(t, Fail, examine(t, server.URL)["memory"])
	set("maxmemory-policy", "volatile-ttl")
	require.Equal(t, Warning, examine(t, server.URL)["memory"])
	set("maxmemory-policy", "noeviction")
	require.Equal(t, OK, examine(t, server.URL)["memory"])

	set("min-replicas-to-write", "1")
	require.Equal(t, Fail, examine(t, server.URL)["operations"])
}

func TestExamine_Rights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := redistest.Dial(t, server.URL)
	as := func(user string, rights ...string) map[string]Level {
		command := append([]string{"ACL", "SETUSER", user, "on", ">" + user, "~*", "&*", "+@all"}, rights...)
		require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary(command...).Build()).Error())
		return examine(t, server.URL, func(o *rueidis.ClientOption) { o.Username, o.Password = user, user })
	}
	require.Equal(t, map[string]Level{
		"server": Unknown, "operations": OK, "cache": OK, "memory": Unknown, "persistence": Unknown, "replication": Unknown, "rights": OK,
		"clock": OK, "latency": OK,
	}, as("managed", "-info", "-config"))
	require.Equal(t, Unknown, as("half", "-config")["persistence"])
	require.Equal(t, Warning, as("deaf", "-client|caching")["cache"])
	require.Equal(t, Warning, as("blind", "-scan")["rights"])
	require.Equal(t, Fail, as("dumb", "-evalsha", "-eval")["operations"])
}

func TestExamine_Replicas(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, primary.Replicaof(t)...)
	admin := redistest.Dial(t, primary.URL)
	for redistest.Info(t, admin, "connected_slaves") != "1" {
		require.NoError(t, t.Context().Err())
	}
	require.Equal(t, Fail, examine(t, replica.URL)["replication"])
	levels := examine(t, primary.URL)
	require.Equal(t, Warning, levels["replication"])
	require.Equal(t, Warning, levels["strict reads"])
	require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary("CONFIG", "SET", "min-replicas-to-write", "1").Build()).Error())
	require.Equal(t, OK, examine(t, primary.URL)["strict reads"])
	require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary("CONFIG", "SET", "min-replicas-max-lag", "60").Build()).Error())
	require.Equal(t, Warning, examine(t, primary.URL)["strict reads"])
}

func TestOlder(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"6.2.14": true, "7.0.0": false, "7.0": false, "10.1": false, "7": false, "x": true} {
		require.Equal(t, want, older(version, "7.0"), version)
	}
}
