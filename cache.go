package tombstore

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"math"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

const (
	epochGroups = 1 << 16                // a change forgets what is cached of the whole group
	lateTimers  = 500 * time.Millisecond // timers fire late on a busy machine
	maxMillis   = math.MaxInt64 / int64(time.Millisecond)
)

// epochs count the changes that this process has attempted, in groups of keys. A group's number is
// a part of every cached command, so what was cached before a change cannot be found after it: the
// server's message may come later than its reply. They belong to the process and not to a store,
// since stores may share a client and with it its cache.
var (
	epochs    [epochGroups]atomic.Uint32
	unused    [epochGroups]atomic.Uint32 // see pays; one more than an epoch, or 0
	epochSeed = maphash.MakeSeed()
)

func moveEpoch(key string) { epochs[maphash.String(epochSeed, key)%epochGroups].Add(1) }

// pays reports whether to ask for key in a way that caches the answer. That costs the server
// several times as much as a GET, and a message when the key changes. So where what was cached last
// had served nobody when this process changed the session, the first Read after a change is a GET:
// who changes a session in every request pays for no cache.
func pays(key string) bool {
	group := maphash.String(epochSeed, key) % epochGroups
	epoch := epochs[group].Load() + 1
	last := unused[group].Load()
	if last == 0 || last == epoch {
		return true
	}
	unused[group].Store(epoch)
	return false
}

// served notes whether memory has answered a Read of the group at an epoch.
func served(group uint64, epoch uint32, hit bool) {
	next := epoch + 1
	if hit {
		next = 0
	}
	if unused[group].Load() != next {
		unused[group].Store(next)
	}
}

// A cached Read is GETRANGE of the whole value, whose end is a number beyond any value's length.
// That tells entries of one key apart: those of two stores on one client, those of two spans of
// maxAge, and those before and after a change. The spans have so many bits because an entry may
// stay for half of the spans that can be told apart, and must outlive the key for its TTL to be
// known.
const (
	endBase     = 1 << 62
	storeBits   = 10
	bucketBits  = 24
	epochBits   = 28
	bucketShift = epochBits
	storeShift  = epochBits + bucketBits
)

var storeNumber atomic.Uint64

// cache is what WithClientCache adds to a store.
type cache struct {
	maxAge time.Duration
	bound  time.Duration // of staleness, when messages cannot arrive
	base   int64         // endBase and the store's number
	ask    time.Duration // how long rueidis may keep an entry that the server lets live
	proof  proof
}

func newCache(maxAge time.Duration) *cache {
	// An entry is never found in another span, so it may stay as long as the key, whose TTL is then
	// known. It must be gone before the numbers of spans repeat.
	ask := time.Duration(math.MaxInt64)
	if maxAge < ask>>bucketBits {
		ask = maxAge << (bucketBits - 1)
	}
	return &cache{
		maxAge: maxAge,
		bound:  maxAge,
		base:   endBase | int64(storeNumber.Add(1)%(1<<storeBits))<<storeShift,
		ask:    min(ask, 10*365*24*time.Hour),
	}
}

// limit sets the bound for connections on which a PING is sent every keepAlive and answered within
// timeout, or the connection is given up with all that was cached over it. Without either none is
// sent. The sum may be beyond any Duration.
func (c *cache) limit(keepAlive, timeout time.Duration) {
	bound := 2*float64(keepAlive) + float64(timeout) + float64(lateTimers)
	if keepAlive > 0 && timeout > 0 && bound < float64(c.maxAge) {
		c.bound = time.Duration(bound)
	}
}

// end returns the end of the GETRANGE of a key with this hash. Spans of maxAge begin at another
// time for each key, so that not all are asked for at once.
func (c *cache) end(hash uint64, epoch uint32, now time.Time) int64 {
	age := uint64(c.maxAge)
	bucket := (uint64(now.UnixNano()) + hash%age) / age
	return c.base | int64(bucket%(1<<bucketBits))<<bucketShift | int64(epoch%(1<<epochBits))
}

// Staleness returns how old the answer of a cached Read may be at most when the server's messages
// cannot arrive, because the network is cut or the server hangs: the maxAge of WithClientCache, and
// for a store that Open returned no more than 3 seconds. After OpenOption it is no more than half a
// second above 2 x Dialer.KeepAlive + ConnWriteTimeout, if neither is negative. It is 0 without a
// cache.
func (s *RedisStore) Staleness() time.Duration {
	if s.cache == nil {
		return 0
	}
	return s.cache.bound
}

// readCached answers from memory if it may. Whatever goes wrong, the caller is sent the plain way:
// the error may belong to another caller whose flight this one has joined.
func (s *RedisStore) readCached(
	ctx context.Context, id, key string, slide int64, o ReadOptions,
) (Session, error) {
	if _, ok := ctx.Deadline(); !ok { // one deadline for all that follows
		late := &lateDeadline{Context: ctx, at: time.Now().Add(s.timeout)}
		defer late.stop()
		ctx = late
	}
	s.leaveReplica(ctx)
	begun := time.Now()
	proven, now := s.cache.proof.holds(ctx, begun, s.tryMessage)
	if !proven {
		return s.readServer(ctx, id, key, slide, o.Expiry, begun)
	}
	session, hit, err := s.remembered(ctx, key, now, slide, o)
	if errors.Is(err, errNotRemembered) {
		return s.readServer(ctx, id, key, slide, o.Expiry, begun)
	}
	session, err = s.opened(id, key, session, err)
	switch {
	case !hit:
		ctx, op := s.beginKey(ctx, "read", key, begun)
		s.sends(ctx, false)
		return session, op.end(err)
	case s.hits != nil:
		s.hits.CacheHit(ctx)
	}
	return session, wrap("read", err)
}

var errNotRemembered = errors.New("the server must be asked")

// remembered answers by what is cached, and reports whether that was there before. It returns
// errNotRemembered if the answer is not there.
func (s *RedisStore) remembered(
	ctx context.Context, key string, now time.Time, slide int64, o ReadOptions,
) (session Session, hit bool, err error) {
	res, hit, err := s.cached(ctx, key, now)
	switch {
	case errors.Is(err, ErrInvalidated):
		if end, ok := errors.AsType[*InvalidatedError](err); ok && now.UnixMilli() < end.grace {
			return Session{}, hit, errNotRemembered // the server says for how long
		}
		return Session{}, hit, err
	case err != nil:
		if !errors.Is(err, rueidis.ErrDoCacheAborted) {
			moveEpoch(key)
		}
		return Session{}, hit, errNotRemembered
	}
	value, err := bytesOf(res)
	if err != nil || len(value) == 0 {
		return Session{}, hit, cmp.Or(err, ErrNotFound)
	}
	if session, err = parse(value); err != nil {
		return Session{}, hit, err
	}
	if slide != 0 || o.Expiry || session.deadline() != 0 {
		now = time.Now() // a trip may have taken a while
		if deadline := session.deadline(); deadline != 0 && deadline <= now.UnixMilli() {
			return Session{}, hit, ErrNotFound
		}
	}
	if slide != 0 || o.Expiry {
		left := s.cache.left(res, now)
		if left < 0 || slide != 0 && !s.nearly(slide, left, &session, now) {
			return Session{}, hit, errNotRemembered
		}
		session.expireIn(left, now)
	}
	if !o.Shared && !s.sealed { // value belongs to rueidis' cache; sealed data is opened elsewhere
		session.Data = append(make([]byte, 0, len(session.Data)), session.Data...)
	}
	return session, hit, nil
}

// cached returns the reply to GETRANGE of the whole value, which is "" if there is none, and
// whether memory had it. For a session that was ended the error is the *InvalidatedError that its
// tombstone tells.
func (s *RedisStore) cached(
	ctx context.Context, key string, now time.Time,
) (res rueidis.RedisResult, hit bool, err error) {
	hash := maphash.String(epochSeed, key)
	group := hash % epochGroups
	epoch := epochs[group].Load()
	end := s.cache.end(hash, epoch, now)
	res = s.client.DoCache(ctx, s.client.B().Getrange().Key(key).Start(0).End(end).Cache(), s.cache.ask)
	hit = res.IsCacheHit()
	if err = res.Error(); isWrongType(err) {
		name := "e" + decimal(end) // no tombstone has such a field
		fields := s.client.DoCache(ctx, s.client.B().Hmget().Key(key).Field("t", name).Cache(), s.cache.ask)
		hit, err = hit && fields.IsCacheHit(), endOf(fields)
	}
	if err == nil || errors.Is(err, ErrInvalidated) {
		served(group, epoch, res.IsCacheHit())
	}
	return res, hit, err
}

// left returns the key's TTL in milliseconds, or less than 0 if it is not known: while a slot
// moves, and when the key may outlive the entry.
func (c *cache) left(res rueidis.RedisResult, now time.Time) int64 {
	expires := res.CachePXAT()
	left := expires - now.UnixMilli()
	if expires <= 0 || left >= c.ask.Milliseconds()/2 {
		return -1
	}
	return max(left, 0)
}

// endOf returns the end that HMGET of a tombstone's field t tells, as an *InvalidatedError.
func endOf(res rueidis.RedisResult) error {
	reply, err := res.ToMessage()
	if err != nil {
		return err
	}
	if !reply.IsArray() {
		return errUnexpected
	}
	fields, err := reply.ToArray()
	if err != nil {
		return err
	}
	if len(fields) == 0 || !fields[0].IsString() {
		return errUnexpected
	}
	t, err := fields[0].ToString()
	if err != nil {
		return err
	}
	return parseEnd(t)
}
