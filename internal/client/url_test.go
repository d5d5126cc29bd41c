package client

import (
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

func TestOption_URL(t *testing.T) {
	t.Parallel()
	type want struct {
		addresses                  []string
		db                         int
		user, password, clientName string
		tls, skipVerify            bool
		sentinel                   rueidis.SentinelOption // without its settings for connections
		dialTimeout, writeTimeout  time.Duration
	}
	for url, w := range map[string]want{
		"redis://host:7000":                  {addresses: []string{"host:7000"}},
		"redis://host":                       {addresses: []string{"host:6379"}},
		"redis://host:6379/":                 {addresses: []string{"host:6379"}},
		"redis://host:6379/7":                {addresses: []string{"host:6379"}, db: 7},
		"valkey://host:6379/7/":              {addresses: []string{"host:6379"}, db: 7},
		"redis://host/?db=7":                 {addresses: []string{"host:6379"}, db: 7},
		"REDIS://[::1]:7000":                 {addresses: []string{"[::1]:7000"}},
		"redis://alice:p%40%2F%23%3F@host/1": {addresses: []string{"host:6379"}, user: "alice", password: "p@/#?", db: 1},
		"redis://:password@host":             {addresses: []string{"host:6379"}, password: "password"},
		"redis://host?addr=a:1&addr=b:2":     {addresses: []string{"host:6379", "a:1", "b:2"}},
		"rediss://host":                      {addresses: []string{"host:6379"}, tls: true},
		"valkeys://host?skip_verify=true":    {addresses: []string{"host:6379"}, tls: true, skipVerify: true},
		"redis://host?client_name=shop&dial_timeout=7s&write_timeout=9s&protocol=3&client_cache=1&max_retries=3": {
			addresses: []string{"host:6379"}, clientName: "shop", dialTimeout: 7 * time.Second, writeTimeout: 9 * time.Second,
		},
		"redis://alice:one@host:26379/2?master_set=shop&sentinel_username=bob&sentinel_password=t%26o": {
			addresses: []string{"host:26379"}, user: "alice", password: "one", db: 2,
			sentinel: rueidis.SentinelOption{MasterSet: "shop", Username: "bob", Password: "t&o"},
		},
		"unix:///run/redis.sock":                {addresses: []string{"/run/redis.sock"}},
		"unix://alice:one@/run/redis.sock?db=3": {addresses: []string{"/run/redis.sock"}, user: "alice", password: "one", db: 3},
	} {
		o, err := Option(url, false)
		require.NoError(t, err, url)
		if w.writeTimeout == 0 {
			w.writeTimeout = WriteTimeout
		}
		o.Sentinel.Dialer.Timeout, o.Sentinel.TopologyRefreshInterval = 0, 0
		require.Equal(t, w, want{
			o.InitAddress, o.SelectDB, o.Username, o.Password, o.ClientName, o.TLSConfig != nil,
			o.TLSConfig != nil && o.TLSConfig.InsecureSkipVerify, o.Sentinel, o.Dialer.Timeout, o.ConnWriteTimeout,
		}, url)
	}
	o, err := Option("rediss://host?master_set=shop", false)
	require.NoError(t, err)
	require.Same(t, o.TLSConfig, o.Sentinel.TLSConfig, "Sentinels are told a password, too")
	o, err = Option("redis://host?client_cache=0", true)
	require.NoError(t, err)
	require.True(t, o.DisableCache)
}

// An error says what is wrong, and shows nothing that could be a piece of a password.
func TestOption_BadURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"":                                                  "does not begin with redis://",
		"host:6379":                                         "does not begin with redis://",
		"127.0.0.1:6379":                                    "does not begin with redis://",
		"http://:secret@host":                               "does not begin with redis://",
		"secret@host:6379":                                  "does not begin with redis://",
		"redis://:secret@host:x":                            "the port is not a number",
		"redis://:secret@host:0":                            "the port is not a number",
		"redis://:secret@host:70000":                        "the port is not a number",
		"redis://:secret@host:1:2":                          "malformed URL",
		"redis://:se#secret@host:6379":                      "the port is not a number",
		"redis://:12#secret@host:6379":                      "malformed URL",
		"redis://:12/secret@host:6379":                      "malformed URL",
		"redis://:12?secret@host:6379":                      "malformed URL",
		"redis://:12?secret&x@host:6379":                    "malformed URL",
		"redis://:p@12?secret&x@host:6379":                  "malformed URL",
		"redis://:%secret@host":                             "malformed URL",
		"redis://:se cret@host":                             "malformed URL",
		"redis://:secret@host/x":                            "the database behind the host is not a number",
		"redis://:secret@host/-1":                           "the database behind the host is not a number",
		"redis://:secret@host/1/2":                          "the database behind the host is not a number",
		"redis://:secret@host?db=secret":                    "parameter db is not a number",
		"redis://host?passwrod=secret":                      `unknown parameter "passwrod"`,
		"redis://h?master_set=m&sentinel_password=a&secret": "unknown parameter; an & in sentinel_password",
		"redis://host?db=1&DB=secret":                       `unknown parameter "DB"`,
		"redis://host?dial_timeout=secret":                  "parameter dial_timeout is not a duration",
		"redis://host?dial_timeout=5":                       "parameter dial_timeout is not a duration",
		"redis://host?write_timeout=-1s":                    "parameter write_timeout is not a duration",
		"redis://host?protocol=secret":                      "parameter protocol is not 2 or 3",
		"redis://host?client_cache=secret":                  "parameter client_cache is not a number",
		"rediss://host?skip_verify=secret":                  "parameter skip_verify is not true or false",
		"redis://host?addr=secret":                          "parameter addr is not host:port",
		"redis://host?addr=a:1&addr=secret:x":               "parameter addr is not host:port",
		"redis://host?master_set=":                          "parameter master_set is not a name",
		"redis://host?sentinel_password=secret":             "parameter sentinel_password needs master_set",
		"redis://host?db=%zz":                               "malformed URL",
		"redis://host?db=1;secret=2":                        "malformed URL",
		"unix://run/secret":                                 "want unix:///path/to/socket",
		"unix://":                                           "want unix:///path/to/socket",
		"unix:///run/redis.sock?secrets=1":                  `unknown parameter "secrets"`,
	} {
		_, err := Option(url, false)
		require.ErrorContains(t, err, want, url)
		if url != "unix:///run/redis.sock?secrets=1" {
			require.NotContains(t, err.Error(), "secret", url)
		}
	}
}
