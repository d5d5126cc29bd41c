package tombstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// watched counts the commands that are sent, the cached reads that have begun, and those that
// memory has answered.
type watched struct {
	rueidis.Client
	sent, begun, hits atomic.Int64
}

func (w *watched) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	w.sent.Add(1)
	return w.Client.Do(ctx, cmd)
}

func (w *watched) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	w.sent.Add(int64(len(multi)))
	return w.Client.DoMulti(ctx, multi...)
}

func (w *watched) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	w.begun.Add(1)
	res := w.Client.DoCache(ctx, cmd, ttl)
	if res.IsCacheHit() {
		w.hits.Add(1)
	} else {
		w.sent.Add(1)
	}
	return res
}

// sentBy returns how many commands do has sent.
func (w *watched) sentBy(do func()) int64 {
	before := w.sent.Load()
	do()
	return w.sent.Load() - before
}

func cachingClient(t testing.TB, url string, adjust ...func(*rueidis.ClientOption)) *watched {
	t.Helper()
	return &watched{Client: redistest.Dial(t, url, append([]func(*rueidis.ClientOption){redistest.WithCache}, adjust...)...)}
}

// cachedBed is a bed whose store has been seen to cache.
func cachedBed(t *testing.T, url string, opts ...Option) (*bed, *watched) {
	t.Helper()
	client := cachingClient(t, url)
	b := bedOn(t, client, append([]Option{WithClientCache(time.Hour)}, opts...)...)
	caching(b)
	return b, client
}

// caching waits until the store is seen to cache: on a busy machine a message may take longer than
// the canary waits.
func caching(b *bed) (report Report) {
	b.t.Helper()
	redistest.Until(b.t, "the store caches", func() bool {
		var err error
		report, err = b.Check(b.t.Context())
		require.NoError(b.t, err)
		return report.Cached
	})
	require.NoError(b.t, report.Uncached)
	return report
}

// fromMemory waits until do sends nothing when it was done just before: what was cached may soon be
// too old. Another test may change something in the same group of keys at any moment.
func (w *watched) fromMemory(t *testing.T, do func()) {
	t.Helper()
	redistest.Until(t, "memory answers", func() bool {
		do()
		return w.sentBy(do) == 0
	})
}

func (b *bed) reads(id, data string, opts ...ReadOption) {
	b.t.Helper()
	s, err := b.Read(b.t.Context(), id, opts...)
	require.NoError(b.t, err)
	require.Equal(b.t, data, string(s.Data))
}

func TestCache_AnswersFromMemory(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	live, absent, ended, rotated := NewID(), NewID(), NewID(), NewID()
	b.write(live, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), ended))
	require.NoError(t, b.Invalidate(t.Context(), rotated, WithReason(Rotated)))
	all := func() {
		b.reads(live, "x")
		_, err := b.Read(t.Context(), absent)
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.Read(t.Context(), ended)
		require.EqualError(t, err, "tombstore: read: session was ended: logout")
		_, err = b.Read(t.Context(), rotated)
		require.EqualError(t, err, "tombstore: read: session was ended: rotated")
	}
	client.fromMemory(t, all)
	require.EqualValues(t, 1, client.sentBy(func() { b.reads(live, "x", Fresh()) }))
	client.fromMemory(t, func() { b.reads(live, "x") })

}

func TestCache_DataIsACopy(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	id := NewID()
	b.write(id, "data", time.Hour)
	b.reads(id, "data")
	s, err := b.Read(t.Context(), id)
	require.NoError(t, err)
	copy(s.Data, "DATA")
	b.reads(id, "data")
}

// The answer to a write may overtake the message that it sends. ROUNDS sets the number of checks,
// 5,000 by default.
func TestCache_ReadYourWrites(t *testing.T) {
	t.Parallel()
	checks := rounds(t, 5000)
	for connections, multiplex := range map[int]int{1: -1, 2: 1, 4: 2} {
		t.Run(fmt.Sprintf("connections=%d", connections), func(t *testing.T) {
			t.Parallel()
			client := cachingClient(t, redistest.URL(t), func(o *rueidis.ClientOption) { o.PipelineMultiplex = multiplex })
			b := bedOn(t, client, WithClientCache(time.Hour), WithTimeout(time.Minute))
			caching(b)
			stale, twice := readYourWrites(t, b, checks/3+1)
			require.Zero(t, stale)
			require.Positive(t, twice)
			t.Logf("%d checks, %d of them read twice, %d answers from memory", checks/3+1, twice, client.hits.Load())
		})
	}
}

func readYourWrites(t *testing.T, b *bed, checks int) (stale, twice int64) {
	const goroutines = 64
	ctx := t.Context()
	var shared [goroutines]atomic.Pointer[string]
	var left, old, again atomic.Int64
	left.Store(int64(checks))
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	for g := range goroutines {
		id := NewID()
		share := func(id string) { shared[g].Store(&id) }
		share(id)
		writers.Go(func() {
			data := make([]byte, 0, 20)
			for i := 0; left.Add(-1) >= 0; i++ {
				if i%16 == 15 {
					if !assert.NoError(t, b.Invalidate(ctx, id)) {
						return
					}
					if _, err := b.Read(ctx, id); !assert.ErrorIs(t, err, ErrInvalidated) {
						old.Add(1)
					}
					id = NewID()
					share(id)
					continue
				}
				data = strconv.AppendInt(data[:0], int64(i), 10)
				written, err := b.Write(ctx, id, data, time.Hour)
				if !assert.NoError(t, err) {
					return
				}
				for range 1 + 2*(i%4/3) { // the third one may be answered from memory
					read, err := b.Read(ctx, id)
					if !assert.NoError(t, err) || read.Version != written.Version || string(read.Data) != string(data) {
						old.Add(1)
					}
				}
				again.Add(int64(i % 4 / 3))
			}
		})
	}
	for r := range 8 {
		readers.Go(func() {
			for i := r; ; i++ {
				select {
				case <-stop:
					return
				default:
					_, _ = b.Read(ctx, *shared[i%goroutines].Load())
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	return old.Load(), again.Load()
}

// Every verb that changes something keeps the next Read of this process from finding what was
// cached before, under each id that it changes, also when nothing is heard of it. Whether the
// server's message arrives before that Read is chance, so this looks at the epochs.
func TestCache_EveryChangeIsSeen(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	b.proven()
	ctx := t.Context()
	other, err := New(redistest.Client(t), WithKeyPrefix(b.prefix))
	require.NoError(t, err)
	steps := bedOn(t, inSteps{client}, WithKeyPrefix(b.prefix), WithClientCache(time.Hour))
	for name, change := range map[string]func(s Session, id, next string) (func() error, []string){
		"Write": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { _, err := b.Write(ctx, id, nil, time.Hour); return err }, []string{id}
		},
		"Write Replacing": func(s Session, id, _ string) (func() error, []string) {
			return func() error { _, err := b.Write(ctx, id, nil, time.Hour, Replacing(s)); return err }, []string{id}
		},
		"Touch": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { return b.Touch(ctx, id, 2*time.Hour) }, []string{id}
		},
		"Read Slide": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { _, err := b.Read(ctx, id, Slide(2*time.Hour)); return err }, []string{id}
		},
		"Rotate": func(_ Session, id, next string) (func() error, []string) {
			return func() error { _, err := b.Rotate(ctx, id, next); return err }, []string{id, next}
		},
		"Rotate in steps": func(_ Session, id, next string) (func() error, []string) {
			return func() error { _, err := steps.Rotate(ctx, id, next); return err }, []string{id, next}
		},
		"BeginRenewal": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { _, err := b.BeginRenewal(ctx, id, 0); return err }, []string{id}
		},
		"FinishRenewal": func(_ Session, id, next string) (func() error, []string) {
			r, err := other.BeginRenewal(ctx, id, 0)
			require.NoError(t, err)
			return func() error {
				_, err := b.FinishRenewal(ctx, r, next, nil, time.Hour)
				return err
			}, []string{id, next}
		},
		"Invalidate": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { return b.Invalidate(ctx, id) }, []string{id}
		},
		"InvalidateRef": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { return b.InvalidateRef(ctx, Ref(id)) }, []string{id}
		},
		"Invalidate, moved": func(_ Session, id, next string) (func() error, []string) {
			_, err := other.Rotate(ctx, id, next)
			require.NoError(t, err)
			return func() error { return b.Invalidate(ctx, id) }, []string{id, next}
		},
		"Invalidate, lost": func(_ Session, id, _ string) (func() error, []string) {
			return func() error { _ = b.lost(id); return nil }, []string{id}
		},
	} {
		t.Run(name, func(t *testing.T) {
			id, next := NewID(), NewID()
			do, changed := change(b.write(id, "x", time.Hour), id, next)
			client.fromMemory(t, func() {
				_, _ = b.Read(ctx, id)
				_, _ = b.Read(ctx, next)
			})
			var before []uint32
			for _, id := range changed {
				before = append(before, b.epoch(id))
			}
			require.NoError(t, do())
			for i, id := range changed {
				require.NotEqual(t, before[i], b.epoch(id))
				require.Positive(t, client.sentBy(func() { _, _ = b.Read(ctx, id) }))
			}
		})
	}
}

// What is cached between the end and the wait for replicas, of a session that was lost and created
// again, must not last.
func TestCache_EndIsSeenAfterTheWait(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	id := NewID()
	require.NoError(t, b.Invalidate(t.Context(), id))
	before := b.epoch(id)
	_, _, err := b.runAndWait(t.Context(), &invalidateScript, b.keyOf(id), b.endArgs(t.Context(), Logout, ""))
	require.NoError(t, err)
	require.NotEqual(t, before, b.epoch(id))
}

// lost ends a session without hearing of it.
func (b *bed) lost(id string) error {
	ctx, cancel := context.WithCancel(b.t.Context())
	other := &RedisStore{client: &interruptible{b.client, cancel}, config: b.config, argTombstoneTTL: b.argTombstoneTTL}
	return other.Invalidate(ctx, id)
}

type interruptible struct {
	rueidis.Client
	cancel context.CancelFunc
}

func (i *interruptible) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	i.Client.Do(ctx, cmd)
	i.cancel()
	return i.Client.Do(ctx, i.Client.B().Ping().Build())
}

// What another process changes is seen when the server's message arrives. Its stores would tell
// those of this process, so the commands are sent without one.
func TestCache_OtherProcess(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	other := bedOn(t, redistest.Client(t), WithKeyPrefix(b.prefix))
	record := string(newHeader(newVersion(), time.Now().UnixMilli(), 0))
	id := NewID()
	other.plant(id, record+"1", time.Hour)
	b.reads(id, "1")
	other.plant(id, record+"2", time.Hour)
	redistest.Until(t, "the write of another process is seen", func() bool {
		s, err := b.Read(t.Context(), id)
		return err == nil && string(s.Data) == "2"
	})
	other.do("DEL", other.keyOf(id))
	other.do("HSET", other.keyOf(id), "t", canaryEnd(Logout))
	redistest.Until(t, "the end by another process is seen", func() bool {
		_, err := b.Read(t.Context(), id)
		return assert.ObjectsAreEqual("tombstore: read: session was ended: logout", fmt.Sprint(err))
	})
}

// A server says late that a key has expired. A read that begins after the session's time must not
// be answered by it.
func TestCache_Expiry(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	const ttl = 300 * time.Millisecond
	id := NewID()
	b.write(id, "x", ttl)
	written := time.Now() // the server has counted from before
	slowest := time.Millisecond
	for {
		begun := time.Now()
		_, err := b.Read(t.Context(), id)
		if err != nil {
			require.ErrorIs(t, err, ErrNotFound)
			break
		}
		// What is left of a session's time is counted from when the answer has arrived.
		require.LessOrEqual(t, begun.Sub(written), ttl+slowest+time.Millisecond, "served past its expiry")
		slowest = max(slowest, time.Since(begun))
	}
	require.Positive(t, client.hits.Load())
}

func TestCache_AbsoluteDeadline(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	id := NewID()
	b.write(id, "x", time.Hour)
	value, _ := b.raw(id)
	past := []byte(value)
	copy(past[offsetDeadline:], []byte{0, 0, 0, 0, 0, 1})
	b.do("SET", b.keyOf(id), string(past), "PX", "3600000")
	redistest.Until(t, "a session past its deadline is not served", func() bool {
		_, err := b.Read(t.Context(), id)
		return err != nil
	})
	_, err := b.Read(t.Context(), id)
	require.ErrorIs(t, err, ErrNotFound)
}

// A Slide that would set nothing is answered from memory, and a Touch that sets nothing leaves what
// is cached alone.
func TestCache_Slide(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	id := NewID()
	b.write(id, "x", time.Hour)
	client.fromMemory(t, func() { b.reads(id, "x", Slide(time.Hour)) })
	redistest.Until(t, "a Touch that sets nothing leaves the cache alone", func() bool {
		client.fromMemory(t, func() { b.reads(id, "x") })
		require.NoError(t, b.Touch(t.Context(), id, time.Hour))
		return client.sentBy(func() { b.reads(id, "x") }) == 0
	})
	require.Positive(t, client.sentBy(func() { b.reads(id, "x", Slide(2*time.Hour)) }))
	_, ttl := b.raw(id)
	almost(t, 2*time.Hour, ttl)

	exact, _ := cachedBed(t, redistest.URL(t), WithKeyPrefix(b.prefix), WithTouchThreshold(0))
	exact.reads(id, "x", Slide(3*time.Hour))
	_, ttl = b.raw(id)
	almost(t, 3*time.Hour, ttl)
}

func TestCache_ErrorsAreNotCached(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b, client := cachedBed(t, server.URL)
	id := NewID()
	b.write(id, "x", time.Hour)
	b.do("SCRIPT", "FLUSH")
	b.reads(id, "x")
	client.fromMemory(t, func() { b.reads(id, "x") })
	b.do("SET", b.keyOf("foreign"), "foreign")
	_, err := b.Read(t.Context(), "foreign")
	require.ErrorIs(t, err, ErrCorrupt)
}

// Two callers wait for one reply. One of them gives up; the other must not be told so.
func TestCache_CancellationIsTheCallersOwn(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("a container cannot be paused")
	}
	server := redistest.Start(t)
	b, client := cachedBed(t, server.URL)
	hasty, giveUp := context.WithCancel(t.Context())
	patient, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ids := make([]string, 16)
	for i := range ids {
		ids[i] = NewID()
		b.write(ids[i], "x", time.Hour)
	}
	server.Pause(t)
	// Another test may change something in the same group of keys: then a Read is a GET.
	asking := func() int64 { return client.begun.Load() + client.sent.Load() }
	begin := func(ctx context.Context) chan error {
		before, result := asking(), make(chan error, len(ids))
		for _, id := range ids {
			go func() {
				_, err := b.Read(ctx, id)
				result <- err
			}()
		}
		redistest.Until(t, "all wait", func() bool { return asking() >= before+int64(len(ids)) })
		return result
	}
	first := begin(hasty)
	second := begin(patient)
	giveUp()
	for range ids {
		require.ErrorIs(t, <-first, context.Canceled)
	}
	server.Resume(t)
	for range ids {
		require.NoError(t, <-second)
	}
}

// A caller without a deadline waits for WithTimeout, once.
func TestCache_SilentServer(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("a container cannot be paused")
	}
	server := redistest.Start(t)
	b, _ := cachedBed(t, server.URL)
	b.timeout = 2 * time.Second
	deadlines := make(chan time.Time, 10)
	b.RedisStore.client = &deadlined{b.client, deadlines}
	server.Pause(t)
	defer server.Resume(t)
	begun := time.Now()
	_, err := b.Read(context.Background(), NewID())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrNotFound)
	close(deadlines)
	first, ok := <-deadlines
	require.True(t, ok)
	require.LessOrEqual(t, begun.Add(b.timeout).Sub(first).Abs(), b.timeout)
	for later := range deadlines {
		require.Equal(t, first, later, "one deadline for the whole read")
	}
}

// deadlined notes the deadlines that commands are given.
type deadlined struct {
	rueidis.Client
	deadlines chan<- time.Time
}

func (d *deadlined) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	d.note(ctx)
	return d.Client.Do(ctx, cmd)
}

func (d *deadlined) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	d.note(ctx)
	return d.Client.DoCache(ctx, cmd, ttl)
}

func (d *deadlined) note(ctx context.Context) {
	at, _ := ctx.Deadline()
	d.deadlines <- at
}

// A caller who has no time for the canary says nothing about the server.
func TestCache_HastyCanary(t *testing.T) {
	t.Parallel()
	client := cachingClient(t, redistest.URL(t))
	b := bedOn(t, client, WithClientCache(time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Read(ctx, NewID())
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, b.cache.proof.seen.Load())
	redistest.Until(t, "the canary is asked again", func() bool {
		_, _ = b.Read(t.Context(), NewID())
		return b.cache.proof.seen.Load()
	})
}

func TestCache_Canary(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	admin := redistest.Dial(t, primary.URL)
	do := func(command ...string) {
		require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary(command...).Build()).Error())
	}
	do("ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "&*", "+@all", "-client|caching")
	for name, c := range map[string]struct {
		adjust func(*rueidis.ClientOption)
		want   string
	}{
		"not permitted": {func(o *rueidis.ClientOption) { o.Username, o.Password = "deaf", "deaf" }, ""},
		"no cache":      {func(o *rueidis.ClientOption) { o.DisableCache = true }, errNotKept.Error()},
		"no message": {func(o *rueidis.ClientOption) {
			o.PipelineMultiplex, o.ClientTrackingOptions = -1, []string{"OPTIN", "NOLOOP"} // what the connection changes is not told
		}, errNoMessage.Error()},
		"RESP2": {func(o *rueidis.ClientOption) { o.DisableCache, o.AlwaysRESP2 = true, true }, errNotKept.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			client := cachingClient(t, primary.URL, c.adjust)
			s, err := New(client, WithKeyPrefix(redistest.Prefix(t, admin)), WithClientCache(time.Hour))
			require.NoError(t, err)
			b := &bed{s, t, admin}
			report, err := b.Check(t.Context())
			require.NoError(t, err)
			require.False(t, report.Cached)
			require.Zero(t, report.Staleness)
			require.ErrorContains(t, report.Uncached, c.want)
			require.Empty(t, redistest.Keys(t.Context(), admin, b.prefix), "nothing is left behind")

			id, hits := NewID(), client.hits.Load()
			other, err := New(admin, WithKeyPrefix(b.prefix))
			require.NoError(t, err)
			for _, data := range []string{"1", "2", "3"} {
				_, err := other.Write(t.Context(), id, []byte(data), time.Hour)
				require.NoError(t, err)
				b.reads(id, data)
				b.reads(id, data)
			}
			require.Equal(t, hits, client.hits.Load(), "nothing is answered from memory")
		})
	}
}

// Open takes a server that does not offer to send messages.
func TestCache_OpenWithoutTracking(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := bedOn(t, redistest.Dial(t, server.URL))
	b.do("ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "&*", "+@all", "-client|tracking")
	s, err := Open("redis://deaf:deaf@"+server.Addr, WithKeyPrefix(b.prefix), WithClientCache(time.Hour))
	require.NoError(t, err)
	defer s.Close()
	report, err := s.Check(t.Context())
	require.NoError(t, err)
	require.False(t, report.Cached)
	id := NewID()
	for _, data := range []string{"1", "2"} {
		b.write(id, data, time.Hour)
		read, err := s.Read(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, data, string(read.Data))
	}
}

func TestCache_Staleness(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	require.Zero(t, b.Staleness())
	for maxAge, want := range map[time.Duration]time.Duration{time.Hour: 3 * time.Second, time.Second: time.Second} {
		s, err := Open(redistest.URL(t), WithKeyPrefix(b.prefix), WithClientCache(maxAge))
		require.NoError(t, err)
		require.Equal(t, want, s.Staleness())
		require.Equal(t, Report{Cached: true, Staleness: want}, caching(&bed{s, t, b.client}))
		s.Close()
	}
	s, err := New(b.client, WithClientCache(time.Hour))
	require.NoError(t, err)
	require.Equal(t, time.Hour, s.Staleness(), "the client's settings are not known")
}

// The number at the end of a cached command tells apart all that must not be mistaken for each
// other.
func TestCache_End(t *testing.T) {
	t.Parallel()
	for _, maxAge := range []time.Duration{
		time.Millisecond, time.Second, time.Minute + 1, 2 * time.Hour, 3 * time.Hour, 1000 * time.Hour, 100_000 * time.Hour,
	} {
		t.Run(maxAge.String(), func(t *testing.T) {
			t.Parallel()
			c, other := newCache(maxAge), newCache(maxAge)
			require.Less(t, float64(c.ask), float64(maxAge)*(1<<bucketBits), "gone before the numbers of spans repeat")
			seen := map[int64]bool{}
			different := func(end int64) {
				if end < endBase || seen[end] {
					t.Fatalf("%d is within a value, or was there before", end)
				}
				seen[end] = true
			}
			const keys = 1000
			moved, now := 0, time.Now()
			for range keys {
				hash, epoch := rand.Uint64(), rand.Uint32()
				clear(seen)
				different(c.end(hash, epoch, now))
				different(other.end(hash, epoch, now))
				for bit := range epochBits {
					different(c.end(hash, epoch^1<<bit, now))
				}
				for _, spans := range []time.Duration{1, 2, 3, 1000} {
					if maxAge < 1000*time.Hour {
						different(c.end(hash, epoch, now.Add(spans*maxAge)))
					}
				}

				begins := now.Add(-(time.Duration(now.UnixNano())%maxAge + time.Duration(hash%uint64(maxAge))) % maxAge)
				require.Equal(t, c.end(hash, epoch, begins), c.end(hash, epoch, begins.Add(maxAge-1)), "one span")
				require.NotEqual(t, c.end(hash, epoch, begins.Add(-1)), c.end(hash, epoch, begins))
				require.NotEqual(t, c.end(hash, epoch, begins), c.end(hash, epoch, begins.Add(maxAge)))
				if c.end(hash, epoch, now) != c.end(hash, epoch, now.Add(maxAge/2)) {
					moved++
				}
			}
			require.InDelta(t, keys/2, moved, keys/8, "spans of many keys do not begin together")
		})
	}
	c := newCache(math.MaxInt64)
	require.Positive(t, c.end(math.MaxUint64, math.MaxUint32, time.Now()))
	require.Positive(t, c.ask)
}

// tapped calls meet ahead of each cached command. What it returns, unless that is nil, is the
// answer.
type tapped struct {
	rueidis.Client
	meet func(ctx context.Context, command []string) *rueidis.RedisResult
}

func (c *tapped) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	if res := c.meet(ctx, slices.Clone(cmd.Commands())); res != nil {
		return *res
	}
	return c.Client.DoCache(ctx, cmd, ttl)
}

// tap has meet see the cached commands that b's store sends for sessions from here on.
func (b *bed) tap(meet func(ctx context.Context, command []string) *rueidis.RedisResult) {
	b.RedisStore.client = &tapped{b.client, meet}
}

func (b *bed) epoch(id string) uint32 {
	return epochs[maphash.String(epochSeed, b.keyOf(id))%epochGroups].Load()
}

func TestCache_Commands(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	var sent [][]string
	b.tap(func(_ context.Context, command []string) *rueidis.RedisResult {
		sent = append(sent, command)
		return nil
	})
	live, ended := NewID(), NewID()
	b.write(live, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), ended))
	for id, opts := range map[string][]ReadOption{live: {WithExpiry(), Slide(time.Hour), Shared()}, ended: nil} {
		numbers := map[string]bool{}
		for range 3 { // a change each
			key := b.keyOf(id)
			hash := maphash.String(epochSeed, key)
			_, _ = b.Read(t.Context(), id) // the first one after a change may not be cached
			sent = nil
			epoch, before := b.epoch(id), time.Now()
			_, _ = b.Read(t.Context(), id, opts...)
			possible := map[string]bool{}
			for e := epoch; e != b.epoch(id)+1; e++ {
				for _, at := range []time.Time{before, time.Now()} {
					possible[decimal(b.cache.end(hash, e, at))] = true
				}
			}
			require.Len(t, sent[0], 4)
			require.Equal(t, []string{"GETRANGE", key, "0"}, sent[0][:3])
			number := sent[0][3]
			require.Contains(t, possible, number)
			require.NotContains(t, numbers, number)
			numbers[number] = true
			if id == live {
				require.Len(t, sent, 1)
				b.write(id, "x", time.Hour)
			} else {
				require.Equal(t, []string{"HMGET", key, "t", "e" + number}, sent[1])
				require.NoError(t, b.Invalidate(t.Context(), id))
			}
		}
	}
}

// Who changes a session in every request pays for no cache: the first Read after a change is a GET
// where what was cached last has served nobody. Another test may change something in the same group
// of keys at any moment.
func TestCache_Unused(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	redistest.Until(t, "each Read asks in its way", func() bool {
		id, asked := NewID(), ""
		for _, step := range "wr wr wr rr wr" {
			before := client.begun.Load()
			switch step {
			case 'w':
				b.write(id, "x", time.Hour)
			case 'r':
				b.reads(id, "x")
				asked += strconv.FormatInt(client.begun.Load()-before, 10)
			default:
				asked += " "
			}
		}
		return asked == "1 0 0 11 1"
	})
}

// Two stores that share a client, and with it what it has cached, do not share answers: those of
// the one may be older than the other allows.
func TestCache_TwoStores(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	live, ended := NewID(), NewID()
	b.write(live, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), ended))
	for _, maxAge := range []time.Duration{time.Minute, time.Hour} {
		other := bedOn(t, client, WithKeyPrefix(b.prefix), WithClientCache(maxAge))
		caching(other)
		for _, id := range []string{live, ended} {
			client.fromMemory(t, func() { _, _ = b.Read(t.Context(), id) })
			require.Positive(t, client.sentBy(func() { _, _ = other.Read(t.Context(), id) }))
			client.fromMemory(t, func() { _, _ = other.Read(t.Context(), id) })
		}
	}
}

// An answer is not found in the span that follows, although nothing has changed.
func TestCache_MaxAge(t *testing.T) {
	t.Parallel()
	client := cachingClient(t, redistest.URL(t))
	b := bedOn(t, client, WithClientCache(5*time.Millisecond))
	caching(b)
	live, ended := NewID(), NewID()
	b.write(live, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), ended))
	for _, id := range []string{live, ended} {
		for range 3 {
			client.fromMemory(t, func() { _, _ = b.Read(t.Context(), id) })
			redistest.Until(t, "the server is asked again", func() bool {
				return client.sentBy(func() { _, _ = b.Read(t.Context(), id) }) > 0
			})
		}
	}
}

// What this process has cached of one key is never found after a change of its own, by whatever id
// the change was asked for.
func TestCache_OwnChanges(t *testing.T) {
	t.Parallel()
	const rounds = 50
	b, _ := cachedBed(t, redistest.URL(t))
	ctx := t.Context()
	ended := func(t *testing.T, id, reason string) {
		t.Helper()
		for range 2 {
			_, err := b.Read(ctx, id)
			require.EqualError(t, err, "tombstore: read: session was ended: "+reason)
		}
	}
	for name, play := range map[string]func(t *testing.T, id, next string){
		"end by an old id": func(t *testing.T, id, next string) {
			_, err := b.Rotate(ctx, id, next)
			require.NoError(t, err)
			b.reads(next, "x")
			ended(t, id, "rotated")
			require.NoError(t, b.Invalidate(ctx, id))
			ended(t, next, "logout")
			ended(t, id, "logout")
		},
		"end of a renewal": func(t *testing.T, id, _ string) {
			require.NoError(t, b.Invalidate(ctx, id, WithReason(Rotated)))
			ended(t, id, "rotated")
			require.NoError(t, b.Invalidate(ctx, id, WithReason(Revoked)))
			ended(t, id, "revoked")
		},
		"new id of Rotate": func(t *testing.T, id, next string) {
			_, err := b.Read(ctx, next)
			require.ErrorIs(t, err, ErrNotFound)
			_, err = b.Rotate(ctx, id, next)
			require.NoError(t, err)
			b.reads(next, "x")
		},
		"renewal": func(t *testing.T, id, next string) {
			_, err := b.Read(ctx, next)
			require.ErrorIs(t, err, ErrNotFound)
			r, err := b.BeginRenewal(ctx, id, 0)
			require.NoError(t, err)
			ended(t, id, "rotated")
			_, err = b.FinishRenewal(ctx, r, next, []byte("y"), time.Hour)
			require.NoError(t, err)
			b.reads(next, "y")
		},
		"Write Replacing": func(t *testing.T, id, _ string) {
			s, err := b.Read(ctx, id)
			require.NoError(t, err)
			b.write(id, "y", time.Hour, Replacing(s))
			b.reads(id, "y")
		},
		"InvalidateRef": func(t *testing.T, id, _ string) {
			require.NoError(t, b.InvalidateRef(ctx, Ref(id)))
			ended(t, id, "logout")
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range rounds {
				id := NewID()
				b.write(id, "x", time.Hour)
				b.reads(id, "x")
				play(t, id, NewID())
			}
		})
	}
}

// What is remembered of an end, or of an absent session, goes with the server's message.
func TestCache_Begins(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	other := bedOn(t, redistest.Client(t), WithKeyPrefix(b.prefix))
	absent, ended := NewID(), NewID()
	require.NoError(t, b.Invalidate(t.Context(), ended, WithReason(Revoked)))
	client.fromMemory(t, func() {
		_, err := b.Read(t.Context(), absent)
		require.ErrorIs(t, err, ErrNotFound)
		_, err = b.Read(t.Context(), ended)
		require.EqualError(t, err, "tombstore: read: session was ended: revoked")
	})
	other.do("DEL", b.keyOf(ended))
	for _, id := range []string{absent, ended} {
		other.plant(id, string(newHeader(newVersion(), time.Now().UnixMilli(), 0))+"x", time.Hour)
		redistest.Until(t, "a session that another process begins is seen", func() bool {
			s, err := b.Read(t.Context(), id)
			return err == nil && string(s.Data) == "x"
		})
	}
}

// A tombstone is remembered for as long as it lives and no longer, although the server says late
// that it has expired.
func TestCache_EndExpires(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	const ttl = 300 * time.Millisecond
	id := NewID()
	key := b.keyOf(id)
	for _, res := range b.client.DoMulti(t.Context(),
		b.client.B().Hset().Key(key).FieldValue().FieldValue("t", canaryEnd(Logout)).Build(),
		b.client.B().Pexpire().Key(key).Milliseconds(ttl.Milliseconds()).Build(),
	) {
		require.NoError(t, res.Error())
	}
	written := time.Now() // the server has counted from before
	slowest := time.Millisecond
	for {
		begun := time.Now()
		_, err := b.Read(t.Context(), id)
		if !errors.Is(err, ErrInvalidated) {
			require.ErrorIs(t, err, ErrNotFound)
			break
		}
		require.LessOrEqual(t, begun.Sub(written), ttl+slowest+time.Millisecond, "remembered past its expiry")
		slowest = max(slowest, time.Since(begun))
	}
	require.Positive(t, client.hits.Load())
}

// No session is served past its expiry, or from an earlier span, because of a canary that took its
// time.
func TestCache_SlowCanary(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		for name, opts := range map[string][]ReadOption{
			"Read": nil, "Read WithExpiry": {WithExpiry()}, "Read Slide": {Slide(time.Hour)},
		} {
			t.Run(fmt.Sprintf("%s, again=%v", name, again), func(t *testing.T) {
				t.Parallel()
				const life = 200 * time.Millisecond
				b := bedOn(t, cachingClient(t, redistest.URL(t)), WithClientCache(time.Millisecond), WithTimeout(time.Minute))
				idle, absolute := NewID(), NewID()
				if again {
					caching(b)
				}
				entered, release := make(chan struct{}), make(chan struct{})
				var once sync.Once
				var mu sync.Mutex
				var sent []string
				b.tap(func(_ context.Context, command []string) *rueidis.RedisResult {
					if strings.Contains(command[1], "canary-") {
						once.Do(func() {
							close(entered)
							<-release
						})
						return nil
					}
					mu.Lock()
					defer mu.Unlock()
					sent = command
					return nil
				})
				for id, key := range map[string]string{idle: b.keyOf(idle), absolute: b.keyOf(absolute)} {
					deadline, ttl := time.Now().Add(life).UnixMilli(), time.Hour
					if id == idle {
						deadline, ttl = 0, life
					}
					record := string(newHeader(newVersion(), 1, deadline)) + "x"
					b.do("SET", key, record, "PX", decimal(ttl.Milliseconds()))
					_, _ = b.Read(t.Context(), id, Fresh())
					if again {
						_, _ = b.Read(t.Context(), id) // caches it
					}
				}
				written := time.Now()
				for _, id := range []string{absolute, idle} {
					once, entered, release = sync.Once{}, make(chan struct{}), make(chan struct{})
					result := make(chan error, 1)
					redistest.Until(t, "a canary", func() bool { // the one before may be under way
						b.cache.proof.again.Store(0)
						go func() {
							_, err := b.Read(t.Context(), id, opts...)
							result <- err
						}()
						select {
						case <-entered:
							return true
						case <-result:
							return false
						}
					})
					redistest.Until(t, "it has expired", func() bool { return time.Since(written) > life+2*time.Millisecond })
					released := time.Now()
					close(release)
					require.ErrorIs(t, <-result, ErrNotFound)
					if !b.cache.proof.seen.Load() { // on a busy machine the message may have come too late
						continue
					}
					require.Equal(t, b.keyOf(id), sent[1])
					number, err := strconv.ParseInt(sent[3], 10, 64)
					require.NoError(t, err)
					span := func(end int64) int64 { return end >> bucketShift }
					earliest := b.cache.end(maphash.String(epochSeed, b.keyOf(id)), 0, released)
					require.GreaterOrEqual(t, span(number), span(earliest), "an earlier span")
				}
			})
		}
	}
}

// Where the client does not know when a key expires, while a slot moves, the server is asked. It
// does not mean that the session has expired.
func TestCache_UnknownExpiry(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	id := NewID()
	b.write(id, "x", time.Hour)
	b.tap(func(ctx context.Context, command []string) *rueidis.RedisResult {
		res := client.Client.Do(ctx, client.B().Arbitrary(command...).Build())
		return &res
	})
	b.reads(id, "x")
	for name, opt := range map[string]ReadOption{"WithExpiry": WithExpiry(), "Slide": Slide(time.Hour)} {
		s, err := b.Read(t.Context(), id, opt)
		require.NoError(t, err, name)
		require.Equal(t, "x", string(s.Data), name)
		almost(t, time.Hour, time.Until(s.ExpiresAt))
	}
	s, err := b.Read(t.Context(), id, Slide(2*time.Hour))
	require.NoError(t, err)
	almost(t, 2*time.Hour, time.Until(s.ExpiresAt))
	_, ttl := b.raw(id)
	almost(t, 2*time.Hour, ttl)
}

// A read that goes the plain way leaves what is cached alone if it was only aborted, and makes sure
// that nothing is found again after any other error: the client may have cached it.
func TestCache_Errors(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	live, ended := NewID(), NewID()
	b.write(live, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), ended))
	for _, c := range []struct{ command, id string }{{"GETRANGE", live}, {"GETRANGE", ended}, {"HMGET", ended}} {
		read := func(cause error) (moved bool) {
			b.tap(func(_ context.Context, command []string) *rueidis.RedisResult {
				if command[0] != c.command {
					return nil
				}
				res := rueidis.NewErrorResult(cause)
				return &res
			})
			before := b.epoch(c.id)
			s, err := b.Read(t.Context(), c.id)
			if c.id == live {
				require.NoError(t, err)
				require.Equal(t, "x", string(s.Data))
			} else {
				require.EqualError(t, err, "tombstore: read: session was ended: logout")
			}
			return b.epoch(c.id) != before
		}
		redistest.Until(t, "a read that was aborted moves no epoch", func() bool { // another test may
			return !read(rueidis.ErrDoCacheAborted)
		})
		for _, cause := range []error{io.EOF, context.Canceled, errUnexpected, &net.OpError{Op: "dial", Err: io.EOF}} {
			require.True(t, read(cause), cause)
		}
	}
}

// WithExpiry from memory tells when the key expires, and not when the answer is too old.
func TestCache_WithExpiry(t *testing.T) {
	t.Parallel()
	client := cachingClient(t, redistest.URL(t))
	for _, maxAge := range []time.Duration{time.Second, time.Minute, 1000 * time.Hour} {
		t.Run(maxAge.String(), func(t *testing.T) {
			t.Parallel()
			b := bedOn(t, client, WithClientCache(maxAge))
			caching(b)
			expiry := func(id string, opts ...ReadOption) time.Time {
				t.Helper()
				s, err := b.Read(t.Context(), id, append(opts, WithExpiry())...)
				require.NoError(t, err)
				return s.ExpiresAt
			}
			id := NewID()
			b.write(id, "x", time.Hour)
			almost(t, time.Hour, time.Until(expiry(id)))
			client.fromMemory(t, func() { almost(t, time.Hour, time.Until(expiry(id))) })
			client.fromMemory(t, func() { almost(t, time.Hour, time.Until(expiry(id, Slide(time.Hour), Shared()))) })
			s, err := b.Read(t.Context(), id)
			require.NoError(t, err)
			require.Zero(t, s.ExpiresAt, "it was not asked for")

			b.write(id, "x", 30*24*time.Hour) // of a cookie
			almost(t, 30*24*time.Hour, time.Until(expiry(id)))
			client.fromMemory(t, func() { almost(t, 30*24*time.Hour, time.Until(expiry(id))) })

			const years = 20 * 365 * 24 * time.Hour
			b.write(id, "x", years)
			almost(t, years, time.Until(expiry(id)))
			almost(t, years, time.Until(expiry(id)))
			b.do("PERSIST", b.keyOf(id))
			moveEpoch(b.keyOf(id))
			require.Zero(t, expiry(id), "there is none")

			deadline := time.Now().Add(time.Minute).UnixMilli()
			b.do("SET", b.keyOf(id), string(newHeader(newVersion(), 1, deadline))+"x", "PX", "3600000")
			moveEpoch(b.keyOf(id))
			for range 2 {
				require.Equal(t, deadline, expiry(id).UnixMilli())
			}
		})
	}
}

// Shared saves the copy of what is cached.
func TestCache_Shared(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	id := NewID()
	b.write(id, "data", time.Hour)
	at := func(opts ...ReadOption) *byte {
		s, err := b.Read(t.Context(), id, opts...)
		require.NoError(t, err)
		require.Equal(t, "data", string(s.Data))
		require.Equal(t, len(s.Data), cap(s.Data[:len(s.Data):len(s.Data)]))
		return &s.Data[0]
	}
	var first, second *byte
	client.fromMemory(t, func() { first, second = at(Shared()), at(Shared()) })
	require.Same(t, first, second)
	client.fromMemory(t, func() { first, second = at(), at() })
	require.NotSame(t, first, second)
	require.NotSame(t, first, at(Shared()))
}

// A user who may not send what a cached Read takes is served the plain way, and Check says why.
func TestCache_Rights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := bedOn(t, redistest.Dial(t, server.URL))
	for _, right := range []string{"getrange", "hmget", "client|caching", "multi", "exec", "pttl"} {
		t.Run(right, func(t *testing.T) {
			t.Parallel()
			user := "without-" + strings.ReplaceAll(right, "|", "-")
			admin.do("ACL", "SETUSER", user, "on", ">password", "~*", "&*", "+@all", "-"+right)
			client := cachingClient(t, server.URL, func(o *rueidis.ClientOption) {
				o.Username, o.Password = user, "password"
			})
			s, err := New(client, WithKeyPrefix(admin.prefix), WithClientCache(time.Hour))
			require.NoError(t, err)
			b := &bed{s, t, admin.client}
			report, err := b.Check(t.Context())
			require.False(t, report.Cached)
			require.Error(t, cmp.Or(err, report.Uncached))

			for _, proven := range []bool{false, true} { // the right may be taken away after it was tried
				if proven && right == "client|caching" {
					continue // nothing tells that messages do not arrive, until the next canary
				}
				b.cache.proof.seen.Store(proven)
				b.cache.proof.again.Store(math.MaxInt64)
				id := NewID()
				for _, data := range []string{"1", "2", "3"} {
					_, err := admin.Write(t.Context(), id, []byte(data), time.Hour)
					require.NoError(t, err)
					b.reads(id, data)
					b.reads(id, data)
				}
				require.NoError(t, admin.Invalidate(t.Context(), id, WithReason(Revoked)))
				if right != "pttl" && right != "getrange" { // which read.lua takes, too
					for range 2 {
						_, err = b.Read(t.Context(), id)
						require.EqualError(t, err, "tombstore: read: session was ended: revoked")
					}
				}
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, opts := range [][]Option{nil, {WithStrictReads()}, {WithPlainIDs()}} {
		b := newBed(t, opts...)
		report, err := b.Check(t.Context())
		require.NoError(t, err)
		require.Equal(t, Report{}, report)
		require.Empty(t, redistest.Keys(t.Context(), b.client, b.prefix))
	}
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Check(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// A primary that has lost its replicas may have been replaced.
func TestStrictReads(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	b := bedOn(t, client, WithStrictReads())
	usual, err := New(client, WithKeyPrefix(b.prefix))
	require.NoError(t, err)
	id := NewID()
	b.write(id, "x", time.Hour)
	b.reads(id, "x")
	_, ttl := b.raw(id)
	almost(t, time.Hour, ttl)
	b.do("CONFIG", "SET", "min-replicas-to-write", "1")
	for _, id := range []string{id, NewID()} { // the second is absent here, and may be live at another primary
		for _, opts := range [][]ReadOption{nil, {Slide(time.Hour)}, {Slide(2 * time.Hour)}} {
			_, err = b.Read(t.Context(), id, opts...)
			require.ErrorContains(t, err, "server answered NOREPLICAS")
			require.NotErrorIs(t, err, ErrNotFound)
		}
	}
	_, err = b.Exists(t.Context(), id)
	require.ErrorContains(t, err, "server answered NOREPLICAS")
	_, err = usual.Read(t.Context(), id)
	require.NoError(t, err, "a GET is answered")
}
