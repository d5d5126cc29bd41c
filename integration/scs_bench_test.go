package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

const (
	benchSessions = 1000
	benchClients  = 64
	benchBlock    = 4000 // requests
)

// BenchmarkHandler serves requests from this store and from scs' own for Redis in turns, on one
// server, so that both meet the same machine. ns/op, B/op and allocs/op are those of this store.
// x-goredisstore is its throughput as a multiple of the other's; writes/op and
// goredisstore-writes/op are the commands that change a key, as the server counts them.
func BenchmarkHandler(b *testing.B) {
	var n atomic.Int64
	b.Run("put", func(b *testing.B) {
		compare(b, 0, func(sm *scs.SessionManager, r *http.Request) { sm.Put(r.Context(), "n", n.Add(1)) })
	})
	b.Run("read only, idle timeout", func(b *testing.B) {
		compare(b, 20*time.Minute, func(sm *scs.SessionManager, r *http.Request) { sm.GetString(r.Context(), "user") })
	})
}

func compare(b *testing.B, idle time.Duration, handle func(sm *scs.SessionManager, r *http.Request)) {
	url := redistest.URL(b)
	admin := redistest.Client(b)
	store, err := tombstore.Open(url, tombstore.WithKeyPrefix(redistest.Prefix(b, admin)))
	require.NoError(b, err)
	b.Cleanup(store.Close)
	options, err := redis.ParseURL(url)
	require.NoError(b, err)
	theirs := redis.NewClient(options)
	b.Cleanup(func() { require.NoError(b, theirs.Close()) })

	ourSide := newSide(b, idle, handle, func(sm *scs.SessionManager) func(http.Handler) http.Handler {
		return scsstore.Install(sm, store)
	})
	theirSide := newSide(b, idle, handle, func(sm *scs.SessionManager) func(http.Handler) http.Handler {
		sm.Store = goredisstore.NewWithPrefix(theirs, redistest.Prefix(b, admin))
		return sm.LoadAndSave
	})
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= benchBlock {
		block := min(left, benchBlock)
		b.StopTimer()
		theirSide.run(b, admin, block)
		b.StartTimer()
		ourSide.run(b, admin, block)
	}
	b.ReportMetric(theirSide.time.Seconds()/ourSide.time.Seconds(), "x-goredisstore")
	b.ReportMetric(float64(theirSide.time.Nanoseconds())/float64(b.N), "goredisstore-ns/op")
	b.ReportMetric(ourSide.writes/float64(b.N), "writes/op")
	b.ReportMetric(theirSide.writes/float64(b.N), "goredisstore-writes/op")
}

// side is a server with logged-in clients.
type side struct {
	handler http.Handler
	cookies []string
	time    time.Duration
	writes  float64
}

func newSide(
	b *testing.B, idle time.Duration, handle func(*scs.SessionManager, *http.Request),
	install func(*scs.SessionManager) func(http.Handler) http.Handler,
) *side {
	sm := scs.New()
	sm.IdleTimeout = idle
	s := &side{}
	s.handler = install(sm)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			sm.Put(r.Context(), "user", "alice")
			sm.Put(r.Context(), "csrf", strings.Repeat("c", 43))
			sm.Put(r.Context(), "n", int64(0))
		} else {
			handle(sm, r)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	for range benchSessions {
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/login", nil))
		cookies := w.Result().Cookies()
		require.Len(b, cookies, 1)
		s.cookies = append(s.cookies, cookies[0].Name+"="+cookies[0].Value)
	}
	return s
}

// run serves n requests.
func (s *side) run(b *testing.B, admin rueidis.Client, n int) {
	before := writes(b, admin)
	var group sync.WaitGroup
	start := time.Now()
	for client := range benchClients {
		group.Go(func() {
			for i := client; i < n; i += benchClients {
				r, err := http.NewRequest(http.MethodGet, "/", nil)
				if err != nil {
					b.Error(err)
					return
				}
				r.Header.Set("Cookie", s.cookies[i%benchSessions])
				w := httptest.NewRecorder()
				if s.handler.ServeHTTP(w, r); w.Code != http.StatusNoContent {
					b.Errorf("status %d", w.Code)
				}
			}
		})
	}
	group.Wait()
	s.time += time.Since(start)
	s.writes += writes(b, admin) - before
}

// writes returns how many commands have changed keys.
func writes(b *testing.B, admin rueidis.Client) (sum float64) {
	text, err := admin.Do(b.Context(), admin.B().Info().Section("commandstats").Build()).ToString()
	require.NoError(b, err)
	for line := range strings.Lines(text) {
		var calls float64
		name, stats, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":")
		switch name {
		case "set", "setex", "psetex", "pexpire", "pexpireat", "expire", "del", "unlink":
			_, err := fmt.Sscanf(stats, "calls=%f", &calls)
			require.NoError(b, err)
		}
		sum += calls
	}
	return sum
}
