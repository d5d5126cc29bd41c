// Package redistest gives tests real Redis and Valkey servers.
//
// A server is, in this order: the one at the URL in TOMBSTORE_REDIS (not for Start); what the
// command line in TOMBSTORE_SERVER starts, where the word "container" asks for a container;
// redis-server or valkey-server from PATH; a container of redis:8-alpine or of the image in
// TOMBSTORE_TEST_IMAGE.
package redistest

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// testify prints times, when it compares, by reading what package time sets when it is first used:
// a data race between two tests.
func init() { _ = time.Now().String() }

// server and cluster are what the tests of a package share, each started by the first that needs
// it.
var server, cluster shared

type shared struct {
	once   sync.Once
	server *Server
	err    error
}

func (s *shared) url(t testing.TB, start func(args ...string) (*Server, error)) string {
	t.Helper()
	s.once.Do(func() { s.server, s.err = start() })
	require.NoError(t, s.err)
	return s.server.URL
}

// Main runs the tests of a package and stops the shared servers: os.Exit(redistest.Main(m)) in
// TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	for _, s := range []*shared{&server, &cluster} {
		if s.server == nil {
			continue
		}
		if err := s.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// URL returns the URL of the shared server.
func URL(t testing.TB) string {
	t.Helper()
	if url := os.Getenv("TOMBSTORE_REDIS"); url != "" {
		return url
	}
	return server.url(t, New)
}

// ClusterURL returns the URL of the shared cluster of one node. A cluster takes two seconds to
// start, so a test that does not change its server should share it.
func ClusterURL(t testing.TB) string {
	t.Helper()
	return cluster.url(t, NewCluster)
}

// Client returns a client of the shared server, closed when the test ends.
func Client(t testing.TB) rueidis.Client {
	t.Helper()
	return Dial(t, URL(t))
}

// Dial returns a client of the server at url, closed when the test ends. It has one connection, and
// no cache unless adjust gives it one.
func Dial(t testing.TB, url string, adjust ...func(*rueidis.ClientOption)) rueidis.Client {
	t.Helper()
	option, err := rueidis.ParseURL(url)
	require.NoError(t, err)
	option.DisableCache = true
	option.DisableRetry = true
	option.PipelineMultiplex = -1
	for _, f := range adjust {
		f(&option)
	}
	client, err := rueidis.NewClient(option)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// WithCache makes the client that Dial returns cache what it reads.
func WithCache(o *rueidis.ClientOption) { o.DisableCache = false }

// Prefix returns a key prefix that no other test uses. What is left under it on client's server is
// deleted when the test ends.
func Prefix(t testing.TB, client rueidis.Client) string {
	t.Helper()
	prefix := "test:" + rand.Text() + ":"
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for _, key := range Keys(ctx, client, prefix) {
			_ = client.Do(ctx, client.B().Unlink().Key(key).Build()).Error()
		}
	})
	return prefix
}

// Keys returns the keys under prefix.
func Keys(ctx context.Context, client rueidis.Client, prefix string) (keys []string) {
	for cursor := uint64(0); ; {
		page, err := client.Do(ctx, client.B().Scan().Cursor(cursor).Match(prefix+"*").Count(1000).Build()).AsScanEntry()
		if err != nil {
			return keys
		}
		keys = append(keys, page.Elements...)
		if cursor = page.Cursor; cursor == 0 {
			return keys
		}
	}
}

// Until waits for something that another process brings about, for a minute at most: the machine
// may be busy.
func Until(t testing.TB, what string, done func() bool) {
	t.Helper()
	begun, pause := time.Now(), time.Millisecond
	for !done() {
		require.True(t, time.Since(begun) < 3*patience, "not in time: "+what)
		time.Sleep(pause)
		pause = min(2*pause, 16*time.Millisecond) // most ask a server, and tests wait for seconds in all
	}
}

// Info returns one field of the INFO of client's server.
func Info(t testing.TB, client rueidis.Client, field string) string {
	t.Helper()
	text, err := client.Do(t.Context(), client.B().Info().Section("everything").Build()).ToString()
	require.NoError(t, err)
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name == field {
			return value
		}
	}
	require.Failf(t, "no such field", "INFO has no %q", field)
	return ""
}

// Commands returns how often each command on data was executed during do, by a script too, on a
// server that nobody else uses.
func Commands(t testing.TB, client rueidis.Client, do func()) map[string]int {
	t.Helper()
	before := executed(t, client)
	do()
	during := executed(t, client)
	for name, n := range before {
		if during[name] -= n; during[name] == 0 {
			delete(during, name)
		}
	}
	return during
}

// executed returns how often each command was executed, but for those of a client's own.
func executed(t testing.TB, client rueidis.Client) map[string]int {
	t.Helper()
	text, err := client.Do(t.Context(), client.B().Info().Section("commandstats").Build()).ToString()
	require.NoError(t, err)
	calls := map[string]int{}
	for line := range strings.Lines(text) {
		var n int
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		switch name, _, _ := strings.Cut(name, "|"); name {
		case "auth", "client", "cluster", "hello", "info", "ping", "select":
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d", &n); err == nil {
			calls[name] = n
		}
	}
	return calls
}

// InContainer reports whether Start starts containers, which cannot reach each other on the
// loopback of this machine.
func InContainer() bool { return serverCommand() == nil }
