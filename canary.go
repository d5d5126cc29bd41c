package tombstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

const (
	canaryTTL     = 10 * time.Second
	canaryTimeout = time.Second // for a message to arrive
	canaryAgain   = time.Minute // a proof is good for that long, and so is its failure
	cleanTimeout  = 50 * time.Millisecond
)

// proof is something that the server was seen to do, or not. One caller finds out; others do not
// wait for it. The zero value says that it was not seen.
type proof struct {
	mu    sync.Mutex // held while somebody finds out
	seen  atomic.Bool
	again atomic.Int64 // when to find out again, Unix ms
	cause error        // why it was not seen; guarded by mu
	final bool         // once seen it need not be seen again

	warn func(ctx context.Context, cause error) // called where the server is the cause; or nil
}

// holds reports whether it was seen, and has one caller find out if that is due. It returns the
// time after that.
func (p *proof) holds(
	ctx context.Context, now time.Time, try func(context.Context) error,
) (bool, time.Time) {
	if now.UnixMilli() < p.again.Load() || !p.mu.TryLock() {
		return p.seen.Load(), now
	}
	defer p.mu.Unlock()
	if time.Now().UnixMilli() >= p.again.Load() {
		p.find(ctx, try)
	}
	return p.seen.Load(), time.Now()
}

// find finds out and keeps the result. The caller holds mu.
func (p *proof) find(ctx context.Context, try func(context.Context) error) {
	p.cause = try(ctx)
	p.seen.Store(p.cause == nil)
	pause := canaryAgain
	switch {
	case p.cause == nil && p.final:
		p.again.Store(math.MaxInt64)
		return
	case errors.Is(p.cause, context.DeadlineExceeded), errors.Is(p.cause, context.Canceled):
		pause = time.Second // the caller had no time: that says nothing of the server
	case p.cause != nil && p.warn != nil:
		p.warn(ctx, p.cause)
	}
	p.again.Store(time.Now().Add(pause).UnixMilli())
}

var (
	errNoMessage  = errors.New("the server's message about a changed key does not arrive")
	errNotKept    = errors.New("the client caches nothing")
	errNotRefused = errors.New("the server does not refuse a SET with GET on a hash")
)

const (
	restoresWell  = 1
	restoresBadly = -1 // or not at all
)

// canaryEnd is field t of a tombstone for trying things out: whoever lists sessions passes over it.
func canaryEnd(reason Reason) string {
	return string([]byte{kindTombstone, 0, byte(reason), 5: 0, 8: 0})
}

// refusesByType reports whether the server was seen to refuse a native write to a tombstone.
func (s *RedisStore) refusesByType(ctx context.Context) bool {
	seen, _ := s.native.holds(ctx, time.Now(), s.tryRefusalInTime)
	return seen
}

// tryRefusalInTime leaves the caller most of its time: in a cluster the key of its own may be on a
// shard that does not answer, and that of the session on one that does.
func (s *RedisStore) tryRefusalInTime(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/4)
		defer cancel()
	}
	return s.tryRefusal(ctx)
}

// tryRefusal puts a tombstone under a key of its own, and tries to write over it. It also finds out
// whether RESTORE puts a tombstone there: servers that only look like Redis may take it for a
// string.
func (s *RedisStore) tryRefusal(ctx context.Context) error {
	key := s.prefix + "canary-" + rand.Text()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	defer s.remove(ctx, key)
	b, end, dump := s.client.B, canaryEnd(Logout), dumpOf(Revoked, time.UnixMilli(0))
	results, err := s.pipeline(ctx, s.client, func() []rueidis.Completed {
		return []rueidis.Completed{
			b().Hset().Key(key).FieldValue().FieldValue("t", end).Build(),
			b().Pexpire().Key(key).Milliseconds(canaryTTL.Milliseconds()).Build(),
			b().Set().Key(key).Value("").Xx().Get().Px(canaryTTL).Build(),
			b().Arbitrary("HGET").Keys(key).Args("t").Build(),
			b().Restore().Key(key).Ttl(canaryTTL.Milliseconds()).SerializedValue(dump).Replace().Build(),
			b().Arbitrary("HGET").Keys(key).Args("t").Build(),
		}
	})
	if err != nil {
		return explain(err)
	}
	for _, i := range []int{0, 1} {
		if err := results[i].Error(); err != nil {
			return explain(err)
		}
	}
	restored, err := bytesOf(results[5])
	reply, refused := rueidis.IsRedisErr(results[4].Error())
	switch {
	case refused && isUnknownCommand(reply):
		s.restores.Store(restoresBadly)
	case refused: // not permitted, or no memory
	case err == nil && string(restored) == dump[dumpHead:dumpHead+endSize]:
		s.restores.Store(restoresWell)
	default:
		s.restores.Store(restoresBadly)
	}
	refusal := results[2].Error()
	if refusal != nil && !rueidis.IsRedisNil(refusal) && !isWrongType(refusal) {
		return explain(refusal)
	}
	stands, err := bytesOf(results[3])
	if err == nil && isWrongType(refusal) && string(stands) == end {
		return nil
	}
	if err != nil && !rueidis.IsRedisNil(err) && !isWrongType(err) {
		return explain(err)
	}
	return errNotRefused
}

// tryMessage caches a key, changes it by another command, and waits until the cached answer is
// gone.
func (s *RedisStore) tryMessage(ctx context.Context) error {
	key := s.prefix + "canary-" + rand.Text()
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	defer s.remove(ctx, key)
	set := func(reason Reason) []rueidis.Completed {
		return []rueidis.Completed{
			s.client.B().Hset().Key(key).FieldValue().FieldValue("t", canaryEnd(reason)).Build(),
			s.client.B().Pexpire().Key(key).Milliseconds(canaryTTL.Milliseconds()).Build(),
		}
	}
	get := func() (reason Reason, hit bool, err error) {
		res := s.client.DoCache(ctx, s.client.B().Hmget().Key(key).Field("t").Cache(), canaryTTL)
		err = endOf(res)
		end, ok := errors.AsType[*InvalidatedError](err)
		if !ok {
			return 0, false, err
		}
		return end.Reason, res.IsCacheHit(), nil
	}

	results, err := s.pipeline(ctx, s.client, func() []rueidis.Completed { return set(Logout) })
	if err = cmp.Or(err, firstError(results)); err != nil {
		return explain(err)
	}
	if _, _, err := get(); err != nil {
		return explain(err)
	}
	if _, hit, err := get(); err != nil || !hit {
		return cmp.Or(explain(err), errNotKept)
	}
	// Once: a connection that breaks now must not look like a message.
	if err := firstError(s.client.DoMulti(ctx, set(Rotated)...)); err != nil {
		return explain(err)
	}
	pause := firstPause
	for until := time.Now().Add(canaryTimeout); ; pause = min(2*pause, maxPause) {
		reason, _, err := get()
		if err != nil {
			return explain(err)
		}
		if reason == Rotated {
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

// firstError returns the first error in results.
func firstError(results []rueidis.RedisResult) error {
	for _, res := range results {
		if err := res.Error(); err != nil {
			return err
		}
	}
	return nil
}

// Report is what Check has found.
type Report struct {
	// Scripted is why Write with Replacing runs a script although it could be a SET: the server was
	// not seen to refuse a SET for a session that was ended. It is nil on the servers supported.
	Scripted  error
	Cached    bool          // Read answers from memory
	Uncached  error         // why it does not although WithClientCache asks for it
	Staleness time.Duration // as RedisStore.Staleness; 0 if Read does not answer from memory
}

// Check writes, reads, saves, touches, moves and ends a session of its own, finds out what Report
// says, and removes what it has stored. It returns an error if an operation fails. What Report says
// is not an error: the store then goes a slower way. Package doctor looks at the server's settings
// too.
func (s *RedisStore) Check(ctx context.Context) (Report, error) {
	report, err := s.examine(ctx)
	return report, wrap("check", err)
}

func (s *RedisStore) examine(ctx context.Context) (Report, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.tryVerbs(ctx); err != nil {
		return Report{}, err
	}
	report := Report{Scripted: s.native.findNow(ctx, s.tryRefusal)}
	if s.cache != nil {
		report.Uncached = s.cache.proof.findNow(ctx, s.tryMessage)
		if report.Cached = report.Uncached == nil; report.Cached {
			report.Staleness = s.Staleness()
		}
	}
	return report, nil
}

func (p *proof) findNow(ctx context.Context, try func(context.Context) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.find(ctx, try)
	return p.cause
}

// tryVerbs uses a session of its own.
func (s *RedisStore) tryVerbs(ctx context.Context) error {
	id, next := NewID(), NewID()
	key, nextKey, err := s.keyPair(id, next)
	if err != nil {
		return err
	}
	defer s.remove(ctx, key)
	defer s.remove(ctx, nextKey)
	session, err := s.write(ctx, id, nil, canaryTTL, WriteOptions{Absent: true})
	if err != nil {
		return err
	}
	if _, err := s.write(ctx, id, nil, canaryTTL, WriteOptions{Present: true, Replaced: session}); err != nil {
		return err
	}
	if err := s.touch(ctx, id, canaryTTL); err != nil {
		return err
	}
	if _, err := s.rotate(ctx, id, next, RotateOptions{}); err != nil {
		return err
	}
	if _, err := s.readThrough(ctx, nextKey, 0, false); err != nil {
		return err
	}
	if err := s.invalidate(ctx, id, InvalidateOptions{}); err != nil {
		return err
	}
	if _, err := s.readThrough(ctx, nextKey, 0, false); !errors.Is(err, ErrInvalidated) {
		return cmp.Or(err, errUnexpected)
	}
	return nil
}

// remove deletes a key that was used to try things out, even for a caller whose time is up.
func (s *RedisStore) remove(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	_ = s.client.Do(ctx, s.client.B().Arbitrary("DEL").Keys(key).Build()).Error()
	moveEpoch(key)
}
