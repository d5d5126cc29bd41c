package tombstore

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// newWatchBench returns a store that watches, one that ends, and sessions.
func newWatchBench(b *testing.B, n int) (watcher, ender *RedisStore, ids []string) {
	b.Helper()
	url := redistest.Start(b).URL
	watcher, err := Open(url)
	require.NoError(b, err)
	b.Cleanup(watcher.Close)
	ender, err = Open(url, WithPublish())
	require.NoError(b, err)
	b.Cleanup(ender.Close)
	ids = make([]string, n)
	for i := range ids {
		ids[i] = NewID()
	}
	run(b, b.Context(), 64, n, func(ctx context.Context, i int) error {
		_, err := ender.Write(ctx, ids[i], nil, time.Hour)
		return err
	})
	return watcher, ender, ids
}

// reportLate reports how long after the return of Invalidate a watch has ended.
func reportLate(b *testing.B, late []time.Duration) {
	slices.Sort(late)
	b.ReportMetric(float64(late[len(late)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(late[len(late)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkWatch measures the time from the return of Invalidate, by another client, to the end of
// the watch.
func BenchmarkWatch(b *testing.B) {
	watcher, ender, ids := newWatchBench(b, b.N+1)
	_, err := watcher.Watch(b.Context(), ids[b.N])
	require.NoError(b, err)
	var late []time.Duration
	b.ResetTimer()
	for _, id := range ids[:b.N] {
		ctx, err := watcher.Watch(b.Context(), id)
		require.NoError(b, err)
		require.NoError(b, ender.Invalidate(b.Context(), id))
		returned := time.Now()
		<-ctx.Done()
		late = append(late, time.Since(returned))
	}
	reportLate(b, late)
}

// BenchmarkWatch_Many watches 100,000 sessions: what each takes, what the process uses while
// nothing ends, and while 1,000 a second end, of which the ends themselves are a part.
func BenchmarkWatch_Many(b *testing.B) {
	const n, rate, period = 100_000, 1000, 10 * time.Second
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc + m.StackInuse)
	}
	for b.Loop() {
		watcher, ender, ids := newWatchBench(b, n)
		watched := make([]context.Context, n)
		before := heap()
		run(b, b.Context(), 64, n, func(_ context.Context, i int) error {
			ctx, cancel := context.WithCancel(context.Background()) // as of a request
			b.Cleanup(cancel)
			var err error
			watched[i], err = watcher.Watch(ctx, ids[i])
			return err
		})
		b.ReportMetric((heap()-before)/n, "B/watcher")

		begun := redistest.ProcessorTime()
		time.Sleep(time.Minute) // in which each is looked at
		b.ReportMetric(100*(redistest.ProcessorTime()-begun).Seconds()/time.Minute.Seconds(), "idle-%cpu")

		begun = redistest.ProcessorTime()
		late := make([]time.Duration, rate*int(period/time.Second))
		tick := time.NewTicker(time.Second / rate)
		for i := range late {
			<-tick.C
			go func() {
				if ender.Invalidate(context.Background(), ids[i]) == nil {
					returned := time.Now()
					<-watched[i].Done()
					late[i] = time.Since(returned)
				}
			}()
		}
		tick.Stop()
		time.Sleep(time.Second)
		b.ReportMetric(100*(redistest.ProcessorTime()-begun).Seconds()/period.Seconds(), "ends-%cpu")
		reportLate(b, late)
	}
}
