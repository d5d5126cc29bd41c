package doctor

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

const prefix = "tombstore:"

// examine returns the level of each finding.
func examine(t *testing.T, url string, adjust ...func(*rueidis.ClientOption)) map[string]Level {
	t.Helper()
	return levelsOf(t, redistest.Dial(t, url, append([]func(*rueidis.ClientOption){redistest.WithCache}, adjust...)...))
}

func levelsOf(t *testing.T, client rueidis.Client) map[string]Level {
	t.Helper()
	levels := map[string]Level{}
	for _, f := range Examine(t.Context(), client, prefix) {
		require.NotEmpty(t, f.Text)
		levels[f.Name] = f.Level
	}
	return levels
}

func TestExamine(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	require.Equal(t, map[string]Level{
		"server": OK, "operations": OK, "saves": OK, "cache": OK, "memory": OK, "persistence": OK,
		"replication": OK, "rights": OK, "clock": OK, "latency": OK,
	}, examine(t, server.URL))
	admin := redistest.Dial(t, server.URL)
	require.Empty(t, redistest.Keys(t.Context(), admin, ""), "nothing is left behind")
	for _, c := range []struct {
		setting, value, name string
		want                 Level
	}{
		{"no-appendfsync-on-rewrite", "yes", "persistence", Warning},
		{"no-appendfsync-on-rewrite", "no", "persistence", OK},
		{"appendfsync", "everysec", "persistence", Warning},
		{"appendonly", "no", "persistence", Warning},
		{"save", "60 1", "persistence", Fail},
		{"maxmemory-policy", "allkeys-lru", "memory", Warning},
		{"maxmemory", "100mb", "memory", Fail},
		{"maxmemory-policy", "volatile-ttl", "memory", Warning},
		{"maxmemory-policy", "noeviction", "memory", OK},
		{"min-replicas-to-write", "1", "operations", Fail},
	} {
		config(t, admin, c.setting, c.value)
		require.Equal(t, c.want, examine(t, server.URL)[c.name], "%s %s", c.setting, c.value)
	}
}

func config(t *testing.T, admin rueidis.Client, name, value string) {
	t.Helper()
	set := admin.B().ConfigSet().ParameterValue().ParameterValue(name, value).Build()
	require.NoError(t, admin.Do(t.Context(), set).Error())
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
		"server": Unknown, "operations": OK, "saves": OK, "cache": OK, "memory": Unknown, "persistence": Unknown,
		"replication": Unknown, "rights": OK, "clock": OK, "latency": OK,
	}, as("managed", "-info", "-config"))
	require.Equal(t, Unknown, as("half", "-config")["persistence"])
	require.Equal(t, Warning, as("deaf", "-client|caching")["cache"])
	require.Equal(t, Warning, as("blind", "-scan")["rights"])
	require.Equal(t, Warning, as("lax", "-getex")["rights"])
	require.Equal(t, Fail, as("dumb", "-evalsha", "-eval")["operations"])
	require.Equal(t, Fail, as("stopped", "-hset")["rights"])
	seldom := as("seldom", "-pexpireat") // Check does not need it
	require.Equal(t, OK, seldom["operations"])
	require.Equal(t, Fail, seldom["rights"])
}

func TestExamine_KeyRights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	do(t, redistest.Dial(t, server.URL), "ACL", "SETUSER", "app", "on", ">password", "~other:*", "&*", "+@all")
	client := redistest.Dial(t, server.URL, asApp)
	for _, f := range Examine(t.Context(), client, prefix) {
		if f.Name == "rights" {
			require.Equal(t, Fail, f.Level)
			require.Equal(t, "ACL SETUSER <user> ~tombstore:*", f.Fix)
		}
	}
	require.False(t, Failed(Examine(t.Context(), client, "other:")))
}

// lenient is a client of a server that does not refuse a SET on a hash.
type lenient struct{ rueidis.Client }

func (l lenient) DoMulti(ctx context.Context, commands ...rueidis.Completed) []rueidis.RedisResult {
	results := l.Client.DoMulti(ctx, commands...)
	if len(results) == 6 { // the proof: HSET, PEXPIRE, SET, HGET, RESTORE, HGET
		results[2] = results[1]
	}
	return results
}

func TestExamine_Saves(t *testing.T) {
	t.Parallel()
	client := lenient{redistest.Dial(t, redistest.Start(t).URL, redistest.WithCache)}
	findings := Examine(t.Context(), client, prefix)
	require.False(t, Failed(findings), "%v", findings)
	saves := slices.IndexFunc(findings, func(f Finding) bool { return f.Name == "saves" })
	require.Equal(t, Warning, findings[saves].Level)
	require.Contains(t, findings[saves].Text, "does not refuse a SET")
}

func TestExamine_Replicas(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, primary.Replicaof(t)...)
	admin := redistest.Dial(t, primary.URL)
	redistest.Until(t, "the replica is connected", func() bool {
		return redistest.Info(t, admin, "connected_slaves") == "1"
	})
	levels := examine(t, replica.URL)
	require.Equal(t, Fail, levels["replication"])
	require.Equal(t, OK, levels["replica memory"])
	evictByItself(t, redistest.Dial(t, replica.URL))
	require.Equal(t, Warning, examine(t, replica.URL)["replica memory"])

	levels = examine(t, primary.URL)
	require.Equal(t, Unknown, levels["replica memory"], "a client of one server knows no replicas")
	require.Equal(t, Warning, levels["replication"])
	require.Equal(t, Warning, levels["strict reads"])
	require.Equal(t, Warning, levels["stale replicas"])
	config(t, admin, "replica-serve-stale-data", "no")
	config(t, admin, "min-replicas-to-write", "1")
	levels = examine(t, primary.URL)
	require.NotContains(t, levels, "stale replicas")
	require.Equal(t, Unknown, levels["strict reads"], "Sentinel's settings are not known")
	config(t, admin, "min-replicas-max-lag", "29")
	require.Equal(t, Warning, examine(t, primary.URL)["strict reads"])
}

func evictByItself(t *testing.T, replica rueidis.Client) {
	t.Helper()
	config(t, replica, "maxmemory-policy", "allkeys-lru")
	config(t, replica, "maxmemory", "100mb")
	config(t, replica, "replica-ignore-maxmemory", "no")
}

// whole is a client that knows all nodes of a cluster. Others know a replica some seconds after it
// has begun to follow.
type whole struct {
	rueidis.Client
	cluster *redistest.Nodes
}

func (w whole) Nodes() map[string]rueidis.Client {
	nodes := map[string]rueidis.Client{}
	for _, node := range w.cluster.All() {
		nodes[node.Addr] = node.Client
	}
	return nodes
}

func TestExamine_Cluster(t *testing.T) {
	t.Parallel()
	primary := redistest.StartCluster(t)
	admin := redistest.Dial(t, primary.URL)
	if !redistest.InContainer() {
		n := redistest.StartNodes(t, time.Minute)
		for range 5 {
			levels := examine(t, n.Primaries[0].URL)
			require.Equal(t, OK, levels["operations"])
			require.Equal(t, OK, levels["topology"])
			require.Equal(t, Warning, levels["replication"], "a primary is looked at")
		}
		whole := whole{redistest.Dial(t, n.Primaries[0].URL, redistest.WithCache), n}
		require.Contains(t, Examine(t.Context(), whole, prefix),
			Finding{"replica memory", OK, "replicas evict nothing that the primary has kept", ""})
		evictByItself(t, n.Replicas[1].Client)
		require.Equal(t, Warning, levelsOf(t, whole)["replica memory"])
	}
	config(t, admin, "cluster-node-timeout", "5000")
	config(t, admin, "min-replicas-to-write", "1")
	for lag, want := range map[string]Level{"3": OK, "4": Warning} {
		config(t, admin, "min-replicas-max-lag", lag)
		e := &examination{ctx: t.Context(), node: admin, info: map[string]string{"cluster_enabled": "1"}}
		e.strictReads(0)
		require.Equal(t, want, e.findings[0].Level)
	}
}

func TestOlder(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"6.2.14": true, "7.0.0": false, "7.0": false, "10.1": false, "7": false, "x": true,
	} {
		require.Equal(t, want, older(version, "7.0"), version)
	}
}
