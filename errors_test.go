package tombstore

import (
	"strings"
	"testing"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
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
