package tombstore

import (
	"context"
	"fmt"
	"hash/maphash"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// watched counts the commands that are sent, the cached reads that have begun, and those that memory has answered.
type watched struct {
	rueidis.Client
	sent, begun, hits atomic.Int64
}

func (w *watched) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	w.sent.Add(1)
	return w.Client.Do(ctx, cmd)
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

// caching waits until the store is seen to cache: on a busy machine a message may take longer than the canary waits.
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

// fromMemory waits until do sends nothing. Another test may change something in the same group of keys at any moment.
func (w *watched) fromMemory(t *testing.T, do func()) {
	t.Helper()
	redistest.Until(t, "memory answers", func() bool { return w.sentBy(do) == 0 })
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

	before := client.hits.Load()
	_, err := b.Read(t.Context(), ended)
	require.ErrorIs(t, err, ErrInvalidated)
	require.Equal(t, before, client.hits.Load(), "an end is remembered without rueidis' cache")
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

// The answer to a write may overtake the message that it sends. CHECKS sets the number of checks, 5,000 by default.
func TestCache_ReadYourWrites(t *testing.T) {
	t.Parallel()
	checks := 5000
	if text := os.Getenv("CHECKS"); text != "" {
		var err error
		checks, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
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
				for range 1 + i%4/3 {
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

// Every verb that changes something is seen by the next Read of this process, also when it fails.
func TestCache_EveryChangeIsSeen(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	for name, change := range map[string]func(id string) error{
		"Write":      func(id string) error { _, err := b.Write(t.Context(), id, []byte("y"), time.Hour); return err },
		"Touch":      func(id string) error { return b.Touch(t.Context(), id, 2*time.Hour) },
		"Slide":      func(id string) error { _, err := b.Read(t.Context(), id, Slide(2*time.Hour)); return err },
		"Rotate":     func(id string) error { _, err := b.Rotate(t.Context(), id, NewID()); return err },
		"Invalidate": func(id string) error { return b.Invalidate(t.Context(), id) },
		"lost":       func(id string) error { return b.lost(id) },
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			b.write(id, "x", time.Hour)
			client.fromMemory(t, func() { b.reads(id, "x") })
			_ = change(id)
			require.Positive(t, client.sentBy(func() { _, _ = b.Read(t.Context(), id) }))
		})
	}
}

// What is cached between the end and the wait for replicas, of a session that was lost and created again, must not last.
func TestCache_EndIsSeenAfterTheWait(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	id := NewID()
	require.NoError(t, b.Invalidate(t.Context(), id))
	epoch := func() uint32 { return epochs[maphash.String(epochSeed, b.keyOf(id))%epochGroups].Load() }
	before := epoch()
	_, err := b.invalidateAndWait(t.Context(), b.keyOf(id), Logout)
	require.NoError(t, err)
	require.NotEqual(t, before, epoch())
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

func TestCache_OtherProcess(t *testing.T) {
	t.Parallel()
	b, _ := cachedBed(t, redistest.URL(t))
	other, err := New(redistest.Client(t), WithKeyPrefix(b.prefix))
	require.NoError(t, err)
	id := NewID()
	_, err = other.Write(t.Context(), id, []byte("1"), time.Hour)
	require.NoError(t, err)
	b.reads(id, "1")
	_, err = other.Write(t.Context(), id, []byte("2"), time.Hour)
	require.NoError(t, err)
	redistest.Until(t, "the write of another process is seen", func() bool {
		s, err := b.Read(t.Context(), id)
		return err == nil && string(s.Data) == "2"
	})
	require.NoError(t, other.Invalidate(t.Context(), id))
	redistest.Until(t, "the end by another process is seen", func() bool {
		_, err := b.Read(t.Context(), id)
		return assert.ObjectsAreEqual("tombstore: read: session was ended: logout", fmt.Sprint(err))
	})
}

// A server says late that a key has expired. A read that begins after the session's time must not be answered by it.
func TestCache_Expiry(t *testing.T) {
	t.Parallel()
	b, client := cachedBed(t, redistest.URL(t))
	const ttl = 300 * time.Millisecond
	id := NewID()
	b.write(id, "x", ttl)
	written := time.Now() // the server has counted from before
	for {
		begun := time.Now()
		_, err := b.Read(t.Context(), id)
		if err != nil {
			require.ErrorIs(t, err, ErrNotFound)
			break
		}
		require.LessOrEqual(t, begun.Sub(written), ttl+2*time.Millisecond, "served past its expiry")
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

// A Slide that would set nothing is answered from memory, and a Touch that sets nothing leaves what is cached alone.
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
	begin := func(ctx context.Context) chan error {
		before, result := client.begun.Load(), make(chan error, len(ids))
		for _, id := range ids {
			go func() {
				_, err := b.Read(ctx, id)
				result <- err
			}()
		}
		redistest.Until(t, "all wait", func() bool { return client.begun.Load() >= before+int64(len(ids)) })
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
	require.False(t, b.cache.proven.Load())
	redistest.Until(t, "the canary is asked again", func() bool {
		_, _ = b.Read(t.Context(), NewID())
		return b.cache.proven.Load()
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
