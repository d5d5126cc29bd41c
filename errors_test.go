package tombstore

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// What a server answers is named by its code, since the rest may quote the user or what was sent.
func TestReplyError(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]string{
		"NOPERM User alice has no permissions to run the 'get' command": "NOPERM",
		"WRONGPASS invalid username-password pair or user is disabled.": "WRONGPASS",
		"MOVED 1 secret.example:6379":                                   "MOVED",
		"OOM command not allowed when used memory > 'maxmemory'.":       "OOM",
		"ERR DB index is out of range":                                  "ERR DB index is out of range",
		"ERR max number of clients reached":                             "ERR max number of clients reached",
		"ERR wrong number of arguments for 'secret' command":            "ERR",
		"ERR Protocol error: secret":                                    "ERR",
		"ERR":                                                           "ERR",
		"ERR SECRET is no code":                                         "an error",
		"HTTP/1.1 400 secret":                                           "ERR",
		"ERR unknown command 'secret'":                                  "",
		"ERR ACL failure in script: User alice has no permissions to run the 'hset' command": "ERR ACL failure in script",
	} {
		client := listen(t, func([]string) string { return "-" + reply + "\r\n" })
		s, err := New(client)
		require.NoError(t, err)
		_, err = s.Read(t.Context(), NewID())
		if want == "" {
			require.ErrorContains(t, err, "server lacks a command")
		} else if want == "MOVED" { // which a client of one server does not follow
			require.ErrorContains(t, err, "server answered MOVED")
		} else {
			require.EqualError(t, err, "tombstore: read: server answered "+want)
		}
		require.NotContains(t, strings.ToLower(err.Error()), "secret")
		require.NotContains(t, err.Error(), "alice")
		var whole *rueidis.RedisError
		require.ErrorAs(t, err, &whole)
	}
}

// A right that is missing within a script is named as such on every release, without the user.
func TestReplyError_MissingRight(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := bedOn(t, redistest.Dial(t, server.URL))
	id := NewID()
	admin.write(id, "x", time.Hour)
	admin.do("ACL", "SETUSER", "alice", "on", ">password", "~*", "&*", "+@all", "-hset", "-hdel", "-pexpire", "-restore")
	client := redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) { o.Username, o.Password = "alice", "password" })
	err := bedOn(t, client, WithKeyPrefix(admin.prefix)).Invalidate(t.Context(), id)
	require.ErrorIs(t, err, ErrNotInvalidated)
	require.Regexp(t, "^tombstore: invalidate: session was NOT ended: server answered ERR (ACL failure in script|"+
		"The user executing the script can't run this command or subcommand)$", err.Error())
}

// A server that is alone is told from a node of a cluster, and from a Sentinel.
func TestReplyError_OtherKindOfServer(t *testing.T) {
	t.Parallel()
	url := redistest.Start(t).URL
	host := strings.TrimPrefix(url, "redis://")
	_, err := Open(url + "?addr=" + host)
	require.EqualError(t, err, "tombstore: open: server answered ERR This instance has cluster support disabled")
	_, err = Open(url + "?master_set=shop")
	require.EqualError(t, err, "tombstore: open: server is not a Sentinel")
}
