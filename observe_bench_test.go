package tombstore

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// counting is an Observer that does next to nothing: what it costs is the price of being observed.
type counting struct{ operations, nanoseconds, hits atomic.Int64 }

func (c *counting) Start(ctx context.Context, _ string, _ time.Time) context.Context { return ctx }

func (c *counting) End(_ context.Context, e Event) {
	c.operations.Add(1)
	c.nanoseconds.Add(int64(e.Duration))
}

func (c *counting) CacheHit(context.Context) { c.hits.Add(1) }

// BenchmarkObserver compares reads without an Observer, with one (x-observed), and as they are
// without a look whether there is one (x-bare). They take turns in short rounds, each round in
// another order, and what is reported is the median of the rounds' ratios, so that a busy machine
// does not matter much. nothing/ is what that look costs an operation, in nanoseconds.
func BenchmarkObserver(b *testing.B) {
	b.Run("nothing", func(b *testing.B) {
		b.ReportAllocs()
		c, err := newConfig(nil)
		require.NoError(b, err)
		ctx, id := b.Context(), NewID()
		for b.Loop() {
			_, op := c.begin(ctx, "read", id)
			_ = op.end(nil)
		}
	})
	url, prefix := redistest.URL(b), redistest.Prefix(b, redistest.Client(b))
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute) // as a request's with a time limit
	defer cancel()
	for name, c := range map[string]struct {
		goroutines, n int // reads in a round
		opts          []Option
	}{
		"uncached/goroutines=1":   {1, 50, nil},
		"uncached/goroutines=128": {128, 2560, nil},
		"cached":                  {1, 1000, []Option{WithClientCache(time.Hour)}},
	} {
		b.Run(name, func(b *testing.B) {
			seen, opts := &counting{}, append(c.opts, WithKeyPrefix(prefix))
			s, err := Open(url, opts...)
			require.NoError(b, err)
			b.Cleanup(s.Close)
			observed, err := New(s.client, append(opts, WithObserver(seen))...) // on the same connection
			require.NoError(b, err)
			ids := make([]string, 500)
			for i := range ids {
				ids[i] = NewID()
				_, err := s.Write(ctx, ids[i], make([]byte, benchData), time.Hour)
				require.NoError(b, err)
			}
			read := func(s *RedisStore) func(ctx context.Context, i int) error {
				return func(ctx context.Context, i int) error {
					_, err := s.Read(ctx, ids[i%len(ids)])
					return err
				}
			}
			variants := map[string]func(ctx context.Context, i int) error{"": read(s), "x-observed": read(observed)}
			if s.cache == nil {
				variants["x-bare"] = func(ctx context.Context, i int) error {
					_, err := bareRead(s, ctx, ids[i%len(ids)])
					return err
				}
			}
			for i := range 2 * len(ids) { // memory answers from then on
				for _, read := range variants {
					require.NoError(b, read(ctx, i))
				}
			}
			before := seen.hits.Load()
			compareRounds(b, ctx, c.goroutines, c.n, variants)
			require.Equal(b, s.cache != nil, seen.hits.Load() > before)
		})
	}
}

// bareRead is Read without a look whether there is an Observer.
func bareRead(
	s *RedisStore, ctx context.Context, id string, opts ...ReadOption,
) (Session, error) {
	session, err := bare(s, ctx, id, collect(opts))
	return session, wrap("read", err)
}

func bare(s *RedisStore, ctx context.Context, id string, o ReadOptions) (Session, error) {
	var buf [128]byte
	key, err := s.appendKey(buf[:0], id)
	if err != nil {
		return Session{}, err
	}
	var slide int64
	if o.Slide {
		if slide, err = millis(o.TTL); err != nil {
			return Session{}, err
		}
	}
	return s.readThrough(ctx, string(key), slide, o.Expiry)
}

// compareRounds runs variants in turns, n times a round, and reports how much longer than that
// without a name the others take.
func compareRounds(
	b *testing.B, ctx context.Context, goroutines, n int, variants map[string]func(ctx context.Context, i int) error,
) {
	ratios := map[string][]float64{}
	var total time.Duration
	rounds := max(1, b.N/n)
	for range rounds {
		took := map[string]time.Duration{}
		for name, variant := range variants { // in any order
			took[name] = run(b, ctx, goroutines, n, variant)
		}
		total += took[""]
		for name, t := range took {
			ratios[name] = append(ratios[name], t.Seconds()/took[""].Seconds())
		}
	}
	for name, of := range ratios {
		if slices.Sort(of); name != "" {
			b.ReportMetric(of[len(of)/2], name)
		}
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(rounds*n), "ns/op")
}
