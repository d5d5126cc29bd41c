package tombstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"hash/maphash"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// What Open sets so that a connection whose server is silent is given up. rueidis sends a PING every keepAlive and waits
// writeTimeout for the answer; a broken connection drops what was cached over it.
const (
	keepAlive    = 500 * time.Millisecond
	writeTimeout = 1500 * time.Millisecond
	lateTimers   = 500 * time.Millisecond // timers fire late on a busy machine
)

const (
	epochGroups   = 1 << 16 // a change makes the process forget what else it has cached of the group
	endSlots      = 8192
	canaryTTL     = 10 * time.Second
	canaryTimeout = time.Second // for a message to arrive
	canaryAgain   = time.Minute // a proof is good for that long, and so is its failure
	cleanTimeout  = 50 * time.Millisecond
)

// epochs count the changes that this process has attempted, in groups of keys. A group's number is a part of every cached
// command, so what was cached before a change cannot be found after it: the server's message may come later than its reply. They
// belong to the process and not to a store, since stores may share a client and with it its cache.
var (
	epochs    [epochGroups]atomic.Uint32
	epochSeed = maphash.MakeSeed()
)

func moveEpoch(key string) { epochs[maphash.String(epochSeed, key)%epochGroups].Add(1) }

// cache is what WithClientCache adds to a store.
type cache struct {
	maxAge time.Duration
	bound  time.Duration // of staleness, when messages cannot arrive
	suffix string        // of the names of cached commands: the age of an entry is counted from maxAge

	// ends remembers ended sessions, one of several with the same hash. An end is final, so it holds until this process changes
	// something in its group.
	ends [endSlots]atomic.Pointer[ended]

	mu     sync.Mutex // held by who asks the canary
	proven atomic.Bool
	cause  error        // why it is not proven; guarded by mu
	again  atomic.Int64 // when to ask again, Unix ms
}

type ended struct {
	key   string
	epoch uint32
	err   *InvalidatedError
}

func newCache(maxAge time.Duration) *cache {
	return &cache{maxAge: maxAge, bound: maxAge, suffix: "." + strconv.FormatInt(int64(maxAge), 36)}
}

// Staleness returns how old the answer of a cached Read may be at most when the server's messages cannot arrive, because the
// network is cut or the server hangs: the maxAge of WithClientCache, and for a store that Open returned no more than 3 seconds. It is
// 0 without a cache.
func (s *RedisStore) Staleness() time.Duration {
	if s.cache == nil {
		return 0
	}
	return s.cache.bound
}

// readCached answers from memory if it may. Whatever goes wrong, the caller is sent the plain way: the error may belong to
// another caller whose flight this one has joined. names is the key, with room to grow.
func (s *RedisStore) readCached(ctx context.Context, names []byte, slide int64) (Session, error) {
	const verb = "read"
	if _, ok := ctx.Deadline(); !ok { // one deadline for all that follows
		late := &lateDeadline{Context: ctx, at: time.Now().Add(s.timeout)}
		defer late.stop()
		ctx = late
	}
	size, hash := len(names), maphash.Bytes(epochSeed, names)
	epoch := epochs[hash%epochGroups].Load()
	both := string(append(strconv.AppendUint(names, uint64(epoch), 36), s.cache.suffix...)) // one allocation for key and name
	key, name := both[:size], both[size:]

	slot := &s.cache.ends[hash%endSlots]
	if end := slot.Load(); end != nil && end.key == key && end.epoch == epoch {
		again := *end.err // the caller's own
		return Session{}, wrap(verb, &again)
	}
	now := time.Now().UnixMilli() // a clock costs as much as a lookup
	if !s.cacheProven(ctx, now) {
		return s.readThrough(ctx, key, slide)
	}

	res := s.client.DoCache(ctx, s.cachedRead(key, name), s.cache.maxAge)
	value, ttl, err := valueAndTTL(res)
	switch {
	case rueidis.IsRedisNil(err):
		return Session{}, wrap(verb, ErrNotFound)
	case err != nil:
		moveEpoch(key)
		if isNoScript(err) {
			s.load(ctx, key)
		}
		return s.readThrough(ctx, key, slide)
	}
	left := int64(1<<63 - 1)
	if ttl != -1 {
		left = ttl - s.cache.age(res, now)
	}
	if left <= 0 || slide != 0 && !s.nearly(slide, left) && len(value) > 0 && value[0] == kindLive {
		return s.readThrough(ctx, key, slide)
	}
	session, err := decode(value)
	if err != nil {
		var end *InvalidatedError
		if errors.As(err, &end) && end.Reason != Rotated { // which may give way to another reason
			kept := *end
			slot.Store(&ended{strings.Clone(key), epoch, &kept})
		}
		return Session{}, wrap(verb, err)
	}
	session.Data = append(make([]byte, 0, len(session.Data)), session.Data...) // value belongs to rueidis' cache
	return session, nil
}

// age returns how long ago the server was asked for res, in milliseconds. rueidis counts an entry's time from before it asks.
func (c *cache) age(res rueidis.RedisResult, now int64) int64 {
	if !res.IsCacheHit() {
		return 0
	}
	return now - res.CachePXAT() + c.maxAge.Milliseconds() + 1 // all are cut to whole milliseconds
}

// nearly reports whether a TTL of left is so near to ttl that it is not set, as the scripts decide it.
func (s *RedisStore) nearly(ttl, left int64) bool {
	return float64(max(ttl-left, left-ttl)) < float64(ttl)*s.touchThreshold
}

// cachedRead returns the command that reads key into the cache under name. With a static TTL rueidis caches no error replies.
func (s *RedisStore) cachedRead(key, name string) rueidis.Cacheable {
	return s.client.B().EvalshaRo().Sha1(readScript.sha1).Numkeys(1).Key(key).Arg(name).Cache().ToStaticTTL()
}

// load makes the server that holds key know read.lua.
func (s *RedisStore) load(ctx context.Context, key string) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	_, _ = s.send(ctx, func() rueidis.Completed {
		return s.client.B().Eval().Script(readScript.source).Numkeys(1).Key(key).Arg("").Build()
	})
}

// cacheProven reports whether messages of the server were seen to arrive. One caller finds out; others do not wait for it.
func (s *RedisStore) cacheProven(ctx context.Context, now int64) bool {
	c := s.cache
	if now < c.again.Load() || !c.mu.TryLock() {
		return c.proven.Load()
	}
	defer c.mu.Unlock()
	if time.Now().UnixMilli() >= c.again.Load() {
		s.prove(ctx)
	}
	return c.proven.Load()
}

// prove asks the canary and keeps the result. The caller holds mu.
func (s *RedisStore) prove(ctx context.Context) {
	c := s.cache
	c.cause = s.canary(ctx)
	c.proven.Store(c.cause == nil)
	pause := canaryAgain
	if errors.Is(c.cause, context.DeadlineExceeded) || errors.Is(c.cause, context.Canceled) {
		pause = time.Second // the caller had no time: that says nothing of the server
	}
	c.again.Store(time.Now().Add(pause).UnixMilli())
}

var (
	errNoMessage = errors.New("the server's message about a changed key does not arrive")
	errNotKept   = errors.New("the client caches nothing")
)

// canary caches a key, changes it by another command, and waits until the cached answer is gone.
func (s *RedisStore) canary(ctx context.Context) error {
	key := s.prefix + "canary-" + rand.Text()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	defer s.remove(ctx, key)
	set := func(reason byte) error { // a tombstone, so that who lists sessions is not surprised
		value := string([]byte{kindTombstone, reason, 0, 0, 0, 0, 0, 0})
		return s.client.Do(ctx, s.client.B().Set().Key(key).Value(value).Px(canaryTTL).Build()).Error()
	}
	get := func() (reason byte, hit bool, err error) {
		res := s.client.DoCache(ctx, s.cachedRead(key, "canary"), canaryTTL)
		value, _, err := valueAndTTL(res)
		if err != nil {
			return 0, false, err
		}
		if len(value) != tombstoneSize {
			return 0, false, errUnexpected
		}
		return value[1], res.IsCacheHit(), nil
	}

	if err := set(1); err != nil {
		return explain(err)
	}
	_, _, err := get()
	if isNoScript(err) {
		s.load(ctx, key)
		_, _, err = get()
	}
	if err != nil {
		return explain(err)
	}
	if _, hit, err := get(); err != nil || !hit {
		return cmp.Or(explain(err), errNotKept)
	}
	if err := set(2); err != nil {
		return explain(err)
	}
	pause := firstPause
	for until := time.Now().Add(canaryTimeout); ; pause = min(2*pause, maxPause) {
		reason, _, err := get()
		if err != nil {
			return explain(err)
		}
		if reason == 2 {
			return nil
		}
		if time.Now().After(until) {
			return errNoMessage
		}
		if !sleep(ctx, pause) {
			return context.DeadlineExceeded
		}
	}
}

// Report is what Check has found.
type Report struct {
	Cached    bool          // Read answers from memory
	Uncached  error         // why it does not although WithClientCache asks for it
	Staleness time.Duration // as RedisStore.Staleness; 0 if Read does not answer from memory
}

// Check writes, reads, touches and ends a session of its own, asks the canary of WithClientCache, and removes what it has
// stored. It returns an error if an operation fails; that messages do not arrive is no error, since Read then asks the server.
// Package doctor looks at the server's settings too.
func (s *RedisStore) Check(ctx context.Context) (Report, error) {
	const verb = "check"
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	id := NewID()
	key, err := s.key(id)
	if err != nil {
		return Report{}, wrap(verb, err)
	}
	defer s.remove(ctx, key)
	if _, err := s.Write(ctx, id, nil, canaryTTL, IfAbsent()); err != nil {
		return Report{}, wrap(verb, err)
	}
	if err := s.Touch(ctx, id, canaryTTL); err != nil {
		return Report{}, wrap(verb, err)
	}
	if _, err := s.Read(ctx, id, Fresh()); err != nil {
		return Report{}, wrap(verb, err)
	}
	if err := s.Invalidate(ctx, id); err != nil {
		return Report{}, wrap(verb, err)
	}
	if _, err := s.Read(ctx, id, Fresh()); !errors.Is(err, ErrInvalidated) {
		return Report{}, wrap(verb, errUnexpected)
	}
	if s.cache == nil {
		return Report{}, nil
	}
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	s.prove(ctx)
	if cause := s.cache.cause; cause != nil {
		return Report{Uncached: cause}, nil
	}
	return Report{Cached: true, Staleness: s.Staleness()}, nil
}

// remove deletes a key that was used to try things out, also for a caller whose time is up.
func (s *RedisStore) remove(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	_ = s.client.Do(ctx, s.client.B().Arbitrary("DEL").Keys(key).Build()).Error()
	moveEpoch(key)
}

// lateDeadline gives a context the deadline that it lacks, but starts no timer until somebody waits: a read that memory answers
// does not.
type lateDeadline struct {
	context.Context
	at     time.Time
	once   sync.Once
	timed  context.Context
	cancel context.CancelFunc
}

func (c *lateDeadline) started() context.Context {
	c.once.Do(func() { c.timed, c.cancel = context.WithDeadline(c.Context, c.at) })
	if c.timed == nil { // stopped before it was started
		return c.Context
	}
	return c.timed
}

func (c *lateDeadline) Deadline() (time.Time, bool) { return c.at, true }
func (c *lateDeadline) Done() <-chan struct{}       { return c.started().Done() }
func (c *lateDeadline) Err() error                  { return c.started().Err() }

func (c *lateDeadline) stop() {
	c.once.Do(func() {})
	if c.cancel != nil {
		c.cancel()
	}
}
