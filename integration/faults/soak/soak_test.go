// Package soak keeps two stores busy for as long as SOAK says, while faults happen at random, and
// checks what must hold at any time: what was ended stays ended, what is live is there as it was
// last written, and no memory grows.
package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

const (
	maxPause  = 400 * time.Millisecond // between two faults
	intervals = 12                     // lines of the table of memory
	growth    = 1.5                    // of the last third over the middle third
	noise     = 8 << 20                // bytes
)

// duration returns how long to run: SOAK, or as long as other fault tests.
func duration(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		return faults.Duration(t, 8*time.Second)
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

// bed is a server behind a proxy.
type bed struct {
	server *redistest.Server
	admin  rueidis.Client
	proxy  *redistest.Proxy
}

func newBed(t *testing.T, args ...string) *bed {
	t.Helper()
	server := redistest.Start(t, append([]string{
		"--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "1gb", "--maxmemory-policy", "noeviction",
	}, args...)...)
	return &bed{server, redistest.Dial(t, server.URL), redistest.NewProxy(t, server.Addr)}
}

// ask returns the answer to a command. The connection may have been broken by the last fault.
func (b *bed) ask(t *testing.T, words ...string) (answer rueidis.RedisResult) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if answer = b.admin.Do(t.Context(), b.admin.B().Arbitrary(words...).Build()); answer.Error() == nil {
			return answer
		}
	}
	require.NoError(t, answer.Error())
	return answer
}

type fault struct {
	name   string
	weight int // how often in a round of faults
	inject func(t *testing.T, b *bed)
}

func restart(t *testing.T, b *bed) {
	b.server.Kill(t)
	b.server.Restart(t)
}

func kinds() []fault {
	all := []fault{
		{"connections cut", 6, func(_ *testing.T, b *bed) { b.proxy.Cut() }},
		{"reply lost", 6, func(_ *testing.T, b *bed) { b.proxy.LoseReply() }},
		{"SCRIPT FLUSH", 3, func(t *testing.T, b *bed) { b.ask(t, "SCRIPT", "FLUSH") }},
		{"CLIENT KILL", 3, func(t *testing.T, b *bed) { b.ask(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }},
		{"restart after SIGKILL", 1, restart},
	}
	if redistest.InContainer() {
		return all
	}
	return append(all, fault{"server paused", 3, func(t *testing.T, b *bed) {
		b.server.Pause(t)
		time.Sleep(50*time.Millisecond + rand.N(150*time.Millisecond))
		b.server.Resume(t)
	}})
}

// breakThings injects faults in random order, each as often in a round as its weight says, and
// measures in between, until d has passed or the test is interrupted.
func (b *bed) breakThings(t *testing.T, s *soak, d time.Duration) (injected map[string]int64, samples []sample) {
	t.Helper()
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt) // to see what there is so far
	defer stop()
	var round []fault
	for _, f := range kinds() {
		for range f.weight {
			round = append(round, f)
		}
	}
	injected = map[string]int64{}
	every := max(d/120, 250*time.Millisecond)
	begun := time.Now()
	for n, due := 0, time.Duration(0); time.Since(begun) < d; n++ {
		select {
		case <-ctx.Done():
			return injected, samples
		case <-time.After(rand.N(maxPause)):
		}
		if n%len(round) == 0 {
			rand.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		}
		f := round[n%len(round)]
		f.inject(t, b)
		injected[f.name]++
		if time.Since(begun) >= due {
			due += every
			samples = append(samples, b.measure(t, s, time.Since(begun)))
		}
	}
	return injected, samples
}

// measure reads the memory of both sides.
func (b *bed) measure(t *testing.T, s *soak, at time.Duration) sample {
	t.Helper()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	keys, err := b.ask(t, "DBSIZE").AsInt64()
	require.NoError(t, err)
	text, err := b.ask(t, "INFO", "memory").ToString()
	require.NoError(t, err)
	var used int64
	for line := range strings.Lines(text) {
		if n, _ := fmt.Sscanf(line, "used_memory:%d", &used); n == 1 {
			break
		}
	}
	return sample{
		at: at, calls: s.calls.Load(), goroutines: int64(runtime.NumGoroutine()),
		heapAlloc: int64(m.HeapAlloc), heapInuse: int64(m.HeapInuse), used: used, keys: keys,
	}
}

// TestSoak is not parallel: it counts the goroutines and the memory of the process.
func TestSoak(t *testing.T) {
	faults.Long(t)
	d := duration(t)
	b := newBed(t)
	before := goleak.IgnoreCurrent()
	s := newSoak()
	var stores []*tombstore.RedisStore
	for _, opts := range [][]tombstore.Option{{}, {tombstore.WithClientCache(time.Minute)}} {
		store, err := tombstore.Open(b.proxy.URL, append(opts, tombstore.WithTombstoneTTL(tombstoneTTL))...)
		require.NoError(t, err)
		t.Cleanup(store.Close)
		stores = append(stores, store)
		s.stores = append(s.stores, store)
	}
	var injected map[string]int64
	var samples []sample
	begun := time.Now()
	tallies := s.run(t.Context(), func() { injected, samples = b.breakThings(t, s, d) })
	took := time.Since(begun).Round(time.Second)

	total := int64(0)
	for _, n := range injected {
		total += n
	}
	t.Logf("%v, %d goroutines, %d calls, %d faults: %s\n\n%s\n%s", took, goroutines, s.calls.Load(), total, list(injected),
		verbTable(tallies), memoryTable(samples))
	if len(s.replies) > 0 {
		t.Logf("error replies: %s", list(s.replies))
	}
	if len(s.violations) > 0 {
		t.Logf("violations: %s", list(s.violations))
	}
	if took >= time.Minute {
		requireFlat(t, "memory of the client", samples, func(s sample) int64 { return s.heapAlloc })
		requireFlat(t, "memory of the server", samples, func(s sample) int64 { return s.used })
	}
	requireNothingLeft(t, b, stores, before)
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "soak: calls on ended sessions", Injected: total, Checked: s.onEnded.Load(),
		Violations: s.count(revived, tombstoneLost),
	})
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "soak: calls on live sessions", Injected: total, Checked: s.onLive.Load(),
		Violations: s.count(sessionLost, stale, mixedUp, inUse, damaged),
	})
}

// requireNothingLeft closes the stores while their server runs, and looks for goroutines.
func requireNothingLeft(t *testing.T, b *bed, stores []*tombstore.RedisStore, before goleak.Option) {
	t.Helper()
	if redistest.InContainer() { // whose restarts leave connections to Docker
		return
	}
	for _, s := range stores {
		s.Close()
	}
	b.admin.Close() // it has connected again after each restart
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/tombstore/tombstore/internal/redistest.launch.func1"))
}

// TestSoak_SeededBugs takes guards out, which the checks must notice.
func TestSoak_SeededBugs(t *testing.T) {
	t.Parallel()
	for bug, c := range map[string]struct {
		args   []string // of the server
		wrap   func(rueidis.Client) rueidis.Client
		inject func(t *testing.T, b *bed)
		found  []string
	}{
		"write.lua without the tombstone check": {
			wrap: faults.Edit("write.lua", "if type(head) == 'table' then return refusal(head) end",
				"if type(head) == 'table' then redis.call('DEL', KEYS[1]) head = '' end"),
			inject: func(*testing.T, *bed) {}, // it is in from the beginning
			found:  []string{revived},
		},
		"rotate.lua does not write the successor": {
			wrap:   faults.Edit("rotate.lua", ", 's', ARGV[3] }", " }"),
			inject: func(*testing.T, *bed) {},
			found:  []string{revived},
		},
		"restart without persistence": {
			args:   []string{"--appendonly", "no"},
			wrap:   func(c rueidis.Client) rueidis.Client { return c },
			inject: restart,
			found:  []string{sessionLost, tombstoneLost},
		},
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, faults.Seeded)
			b := newBed(t, c.args...)
			s := newSoak()
			for range 2 {
				store, err := tombstore.New(c.wrap(redistest.Dial(t, b.proxy.URL)), tombstore.WithTombstoneTTL(tombstoneTTL))
				require.NoError(t, err)
				s.stores = append(s.stores, store)
			}
			s.run(t.Context(), func() {
				for until := time.Now().Add(time.Minute); s.missing(c.found) && time.Now().Before(until); {
					time.Sleep(rand.N(maxPause))
					c.inject(t, b)
				}
			})
			faults.Report(t, faults.Row{
				Kind: faults.Seeded, Fault: "soak: " + bug, Injected: 1, Checked: s.onEnded.Load() + s.onLive.Load(),
				Violations: s.count(c.found...),
			})
			require.False(t, s.missing(c.found), "found only: %s", list(s.violations))
		})
	}
}
