package tombstore

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// Watcher is a Store that tells when a session ends, for what goes on beyond a request: websockets,
// server-sent events, long downloads. Both stores of this package implement it. It is safe for
// concurrent use.
type Watcher interface {
	Store

	// Watch returns a context that ends when the live session of id does, or when ctx does. Its
	// cause ([context.Cause]) is an [*InvalidatedError] if the session was ended, wraps
	// [ErrNotFound] if it has expired, and is that of ctx if that has ended. A session that moves
	// to another id is followed, and one that is between two ids has not ended. A watch does not
	// keep its session alive. It takes memory until its context ends, so let ctx end when nobody
	// needs it any more.
	//
	// It must return an [*InvalidatedError] if the session has been ended, and an error wrapping
	// [ErrNotFound] if there is none.
	Watch(ctx context.Context, id string) (context.Context, error)

	// WatchOwner returns a context that ends when an InvalidateOwner of owner (see [Binder]) comes
	// after WatchOwner has returned, or when ctx ends: for what goes on in a user's name beyond any
	// one session, such as a job that a logout does not stop. A watch of an owner has no session of
	// its own, so [Except] does not spare it, and no end of a single session ends it. For one
	// session use Watch.
	//
	// Its cause ([context.Cause]) is an [*InvalidatedError] with reason and time of the last
	// InvalidateOwner, which may still be ending sessions, or that of ctx if that has ended. It
	// wraps [ErrNotFound] if the store has lost what it knew of the owner, so that an
	// InvalidateOwner may have been missed. It is not an error if nothing is known of the owner,
	// before the first login or when all sessions have long expired.
	//
	// An InvalidateOwner that came before is not told. So call WatchOwner first, and look then
	// whether the user is logged in: if a Read with [Fresh] finds a session of the owner live, the
	// InvalidateOwner that ends it is told. It must return an error wrapping [ErrInvalidID] if
	// owner is empty or longer than 1024 bytes.
	WatchOwner(ctx context.Context, owner string) (context.Context, error)
}

var (
	_ Watcher = (*RedisStore)(nil)
	_ Watcher = (*MemoryStore)(nil)
)

const (
	watchBatch    = 100                   // sessions that are looked at in one pipeline
	watchPause    = 50 * time.Millisecond // between two looks at what is due, so that they are few
	watchPace     = 50 * time.Microsecond // a session, when all are looked at after a gap
	pendingWatch  = 10 * time.Millisecond // until what is between two ids is looked at again; doubles
	failedWatch   = time.Second           // until what could not be looked at is; doubles
	subscribePace = time.Second           // between two attempts to subscribe
)

// sight is what was found under the key of a session, or of an owner.
type sight struct {
	err     error     // nil if it is live; ErrNotFound or an *InvalidatedError; or why that is not known
	pending bool      // it is between two ids
	next    string    // key of the id to which it has moved, or ""
	expires time.Time // of a live one, or of an owner's key, if that is known

	mark int64             // of an owner: the score of g, or 0 if there is no key
	end  *InvalidatedError // of an owner with an odd mark: the last one
}

// watch is a session, or an owner, that somebody watches. The mutex of its watches guards it.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	stop   func() bool // no longer waits for the end of the caller's context; or nil

	key  string // under which the session is, as far as is known
	next *watch // another one of the same key
	hops int    // moves since it was seen live

	state watchState
	again bool          // something may have changed since the look began
	due   time.Time     // to be looked at
	index int           // in watches.due
	pause time.Duration // before it was due, if it was not seen live
	since time.Time     // when it was first seen between two ids, if it is

	mark    int64     // of an owner, as it was seen
	expires time.Time // of the owner's key, as it was seen
}

type watchState byte

const (
	watchLooked watchState = iota // somebody looks
	watchDue                      // in watches.due
	watchHinted                   // in watches.hinted
	watchOver
)

// watches are the sessions of a store that are watched. Each is looked at when it is due: when it
// would expire, soon if it was between two ids, and at least once in floor. The subject of a
// message is looked at at once, by a goroutine of its own: others may wait for a node that does not
// answer. Nothing but a look ends a watch.
type watches struct {
	floor time.Duration
	look  func(ctx context.Context, keys []string) []sight
	hear  func(ctx context.Context) // calls hint and lookAgain until ctx ends; or nil

	mu     sync.Mutex
	at     map[string]*watch // by key
	due    dueWatches
	hinted []*watch
	end    context.CancelFunc // of the goroutines; nil while nothing is watched

	wakeDue, wakeHinted chan struct{} // of the goroutines
}

func newWatches(
	floor time.Duration, look func(context.Context, []string) []sight, hear func(context.Context),
) *watches {
	return &watches{
		floor: floor, look: look, hear: hear, at: map[string]*watch{},
	}
}

// watch watches the session at key. first looks at it with the context of the operation, more than
// once if it has moved. It is entered before the look, so that whatever happens after the look is
// heard of.
func (ws *watches) watch(
	ctx, operation context.Context, key string, first func(ctx context.Context, key string) sight,
) (context.Context, error) {
	w := &watch{key: key}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	ws.mu.Lock()
	ws.enter(w)
	ws.mu.Unlock()
	for {
		s := first(operation, w.key)
		ws.mu.Lock()
		switch {
		case w.state == watchOver: // the store was closed
			s.err = errClosed
		case s.next != "" && w.hops < maxHops:
			ws.move(w, s.next)
			ws.mu.Unlock()
			continue
		case s.next != "":
			s.err = errTooManyHops
			ws.over(w, s.err)
		case s.err != nil && !NoSession(s.err):
			ws.over(w, s.err)
		default:
			w.mark = s.mark
			if ctx.Done() != nil {
				w.stop = context.AfterFunc(ctx, func() { ws.leave(w) })
			}
			if ws.note(w, s); w.state != watchOver && ws.end == nil { // not for an id without a session
				ws.start()
			}
		}
		over := w.state == watchOver
		ws.mu.Unlock()
		if over {
			return nil, s.err
		}
		return w.ctx, nil
	}
}

// leave ends a watch whose context has ended.
func (ws *watches) leave(w *watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.over(w, nil)
}

// close ends all watches, for a store that is closed: nobody will hear of an end.
func (ws *watches) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for len(ws.at) > 0 {
		for _, w := range ws.at {
			ws.over(w, errClosed)
		}
	}
}

// hint has the session at key looked at, about which there was a message.
func (ws *watches) hint(key string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := ws.at[key]; w != nil; w = w.next {
		switch w.state {
		case watchLooked:
			w.again = true
		case watchDue:
			heap.Remove(&ws.due, w.index)
			ws.push(w)
		}
	}
}

// lookAgain has all sessions looked at, before long: messages may have been missed.
func (ws *watches) lookAgain() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	due := time.Now()
	for _, w := range ws.due {
		if due = due.Add(watchPace); due.Before(w.due) {
			w.due = due
		}
	}
	heap.Init(&ws.due)
	for _, w := range ws.at {
		for ; w != nil; w = w.next {
			w.again = w.again || w.state == watchLooked
		}
	}
	wake(ws.wakeDue)
}

// What follows is called with mu held, but for work and lookAt.

func (ws *watches) start() {
	ctx, end := context.WithCancel(context.Background())
	ws.end = end
	// Those of goroutines that end would be taken by them.
	ws.wakeDue, ws.wakeHinted = make(chan struct{}, 1), make(chan struct{}, 1)
	go ws.work(ctx, ws.wakeDue, watchPause, ws.takeDue)
	go ws.work(ctx, ws.wakeHinted, 0, ws.takeHinted)
	if ws.hear != nil {
		go ws.hear(ctx)
	}
}

// work looks at what take hands out, until ctx ends. It makes a pause unless that is a full batch.
func (ws *watches) work(
	ctx context.Context, waker chan struct{}, pause time.Duration, take func() ([]*watch, time.Duration),
) {
	for {
		ws.mu.Lock()
		if ctx.Err() != nil {
			ws.mu.Unlock()
			return
		}
		batch, wait := take()
		ws.mu.Unlock()
		switch len(batch) {
		case watchBatch:
			ws.lookAt(ctx, batch)
			continue
		case 0:
		default:
			ws.lookAt(ctx, batch)
			wait = pause
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-waker:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (ws *watches) lookAt(ctx context.Context, batch []*watch) {
	keys := make([]string, len(batch))
	for i, w := range batch {
		keys[i] = w.key // which nobody else changes during a look
	}
	sights := ws.look(ctx, keys)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for i, s := range sights {
		ws.note(batch[i], s)
	}
}

// note takes in what a look has found.
func (ws *watches) note(w *watch, s sight) {
	now := time.Now()
	switch {
	case w.state == watchOver:
		return
	case s.next != "":
		ws.move(w, s.next)
		if w.again = w.hops < maxHops; !w.again {
			w.hops, w.pause = 1, ws.floor
		}
	case s.err == nil:
		if err := w.endOfOwner(s, now); err != nil {
			ws.over(w, err)
			return
		}
		w.hops, w.pause, w.since = 0, 0, time.Time{}
		w.mark, w.expires = s.mark, s.expires
	case errors.Is(s.err, rueidis.ErrClosing):
		ws.over(w, s.err)
		return
	case !NoSession(s.err):
		w.pause = max(2*w.pause, failedWatch)
	case s.pending, w.hops > 0 && errors.Is(s.err, ErrNotFound): // it may yet be written under the new id
		if w.since.IsZero() {
			w.since = now
		}
		if now.Sub(w.since) > reservedFor {
			ws.over(w, s.err)
			return
		}
		w.pause = max(2*w.pause, pendingWatch)
	default:
		ws.over(w, s.err)
		return
	}
	w.due = now.Add(ws.floor - rand.N(ws.floor/4))
	if soon := now.Add(w.pause); w.pause > 0 && soon.Before(w.due) {
		w.due = soon
	}
	if !s.expires.IsZero() && s.expires.Before(w.due) {
		w.due = s.expires
	}
	if w.again {
		ws.push(w)
		return
	}
	w.state = watchDue
	heap.Push(&ws.due, w)
	if w.index == 0 {
		wake(ws.wakeDue)
	}
}

// endOfOwner returns why the watch of an owner ends, or nil. Each revoke leaves another mark, which
// is odd. A key with an even one was made by a login; if there was another key before, or there is
// none any more, although its time had not come, it was lost, and perhaps a revoke with it.
func (w *watch) endOfOwner(s sight, now time.Time) error {
	switch {
	case s.mark == w.mark:
		return nil
	case s.mark%2 != 0:
		return s.end
	case w.mark != 0 && (w.expires.IsZero() || now.Before(w.expires)):
		return ErrNotFound
	}
	return nil
}

// push adds to what is looked at at once.
func (ws *watches) push(w *watch) {
	w.state = watchHinted
	ws.hinted = append(ws.hinted, w)
	wake(ws.wakeHinted)
}

func (ws *watches) takeHinted() (batch []*watch, wait time.Duration) {
	for len(ws.hinted) > 0 && len(batch) < watchBatch {
		if w := ws.hinted[0]; w.state == watchHinted { // its context may have ended
			batch = append(batch, look(w))
		}
		ws.hinted[0] = nil
		ws.hinted = ws.hinted[1:]
	}
	return batch, ws.floor
}

// takeDue takes what is due, or says when that will be.
func (ws *watches) takeDue() (batch []*watch, wait time.Duration) {
	now := time.Now()
	for len(ws.due) > 0 && len(batch) < watchBatch {
		if wait = ws.due[0].due.Sub(now); wait > 0 {
			return batch, wait
		}
		batch = append(batch, look(heap.Pop(&ws.due).(*watch)))
	}
	return batch, ws.floor
}

func look(w *watch) *watch {
	w.state, w.again = watchLooked, false
	return w
}

// over ends a watch, with a cause unless the caller's context has ended.
func (ws *watches) over(w *watch, cause error) {
	switch w.state {
	case watchOver:
		return
	case watchDue:
		heap.Remove(&ws.due, w.index)
	}
	w.state = watchOver
	if w.stop != nil {
		w.stop()
	}
	if cause != nil { // or the end of the caller's context ends it, with that one's error
		w.cancel(wrap("watch", cause))
	}
	if ws.remove(w); len(ws.at) == 0 && ws.end != nil {
		ws.end()
		ws.end = nil
	}
}

func (ws *watches) move(w *watch, key string) {
	ws.remove(w)
	w.key, w.pause, w.since = key, 0, time.Time{}
	w.hops++
	ws.enter(w)
}

func (ws *watches) enter(w *watch) {
	w.next = ws.at[w.key]
	ws.at[w.key] = w
}

func (ws *watches) remove(w *watch) {
	if first := ws.at[w.key]; first != w {
		for first.next != w {
			first = first.next
		}
		first.next = w.next
	} else if w.next != nil {
		ws.at[w.key] = w.next
	} else {
		delete(ws.at, w.key)
	}
}

// wake wakes whoever waits for it, now or next time.
func wake(waker chan struct{}) {
	select {
	case waker <- struct{}{}:
	default:
	}
}

// dueWatches is a heap.
type dueWatches []*watch

func (h dueWatches) Len() int           { return len(h) }
func (h dueWatches) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueWatches) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueWatches) Push(w any) {
	w.(*watch).index = len(*h)
	*h = append(*h, w.(*watch))
}

func (h *dueWatches) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return w
}

// Watch implements [Watcher]. The first watch of a store opens a connection, on which the server
// tells of ends (WithPublish), and the end of the last closes it. A message is a reason to look,
// and not believed: the session is read from the primary. Without messages, because the process
// that ends sessions sends none, the rights are missing or the connection is cut, an end is noticed
// within a minute. While the server does not answer, no end is noticed. A session that was between
// two ids for ten minutes has ended. When the store, or the client of one that New returned, is
// closed the cause wraps rueidis.ErrClosing.
func (s *RedisStore) Watch(ctx context.Context, id string) (context.Context, error) {
	seen, op := s.begin(ctx, "watch", id)
	key, err := s.key(id)
	if err == nil {
		ctx, err = s.watches.watch(ctx, seen, key, s.sightOf)
	}
	if err = op.end(err); err != nil {
		return nil, err
	}
	return ctx, nil
}

// WatchOwner implements [Watcher]. What Watch says about messages, delays and closing holds here,
// too. If an InvalidateOwner was broken off, it goes on with it first.
func (s *RedisStore) WatchOwner(ctx context.Context, owner string) (context.Context, error) {
	seen, op := s.begin(ctx, "watch owner", owner)
	digest, err := ownerOf(owner)
	if err == nil {
		ctx, err = s.watches.watch(ctx, seen, s.ownerKey(digest), s.firstSightOf)
	}
	if err = op.end(err); err != nil {
		return nil, err
	}
	return ctx, nil
}

// firstSightOf looks at an owner. A revoke that it finds may have sessions left to end, of which
// nothing would be told.
func (s *RedisStore) firstSightOf(ctx context.Context, key string) sight {
	seen := s.sightOf(ctx, key)
	if seen.err == nil && seen.end != nil {
		if _, err := s.endOlder(ctx, key, -seen.mark/2, seen.end.Reason); !errors.Is(err, ErrCorrupt) {
			seen.err = err
		}
	}
	return seen
}

// channel returns the channel to which keys of sessions are published that have ended or moved, and
// of owners whose sessions were closed.
func (c *config) channel() string { return c.prefix + "ended" }

// subscribe listens to messages until ctx ends. Whenever it begins to, those before may have been
// missed.
func (s *RedisStore) subscribe(ctx context.Context) {
	for pause := firstPause; ; pause = min(2*pause, subscribePace) {
		err := s.listen(ctx, func() { pause = firstPause })
		if reply, ok := rueidis.IsRedisErr(err); ok && strings.HasPrefix(reply.Error(), "NOPERM") {
			s.warn(ctx, warnSubscribe, explain(err))
			pause = s.watchFloor
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// listen subscribes on a connection of its own: the server closes one with a subscription when
// large replies pile up on it.
func (s *RedisStore) listen(ctx context.Context, begun func()) error {
	c, release := s.client.Dedicate()
	defer release()
	defer c.Close()
	ctx = rueidis.WithOnSubscriptionHook(ctx, func(rueidis.PubSubSubscription) {
		begun()
		s.watches.lookAgain()
	})
	return c.Receive(ctx, c.B().Subscribe().Channel(s.channel()).Build(), func(m rueidis.PubSubMessage) {
		s.watches.hint(m.Message)
	})
}

// sightOf looks at one session, and tries again as send does.
func (s *RedisStore) sightOf(ctx context.Context, key string) sight {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.sights([]string{key}, func(build func() []rueidis.Completed) ([]rueidis.RedisResult, error) {
		return s.pipeline(ctx, s.client, build)
	})[0]
}

// sightsOf looks at sessions once: some may be on a node that does not answer.
func (s *RedisStore) sightsOf(ctx context.Context, keys []string) []sight {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.sights(keys, func(build func() []rueidis.Completed) ([]rueidis.RedisResult, error) {
		if err := s.sendable(ctx); err != nil {
			return nil, err
		}
		begun := time.Now()
		results := s.client.DoMulti(ctx, build()...)
		for _, res := range results {
			if s.again(ctx, res.Error(), begun) { // it leaves a server that has become a replica
				break
			}
		}
		return results, nil
	})
}

// sights looks at sessions and owners in one pipeline, and in another one at sessions that are not
// live.
func (s *RedisStore) sights(
	keys []string, send func(build func() []rueidis.Completed) ([]rueidis.RedisResult, error),
) []sight {
	all := make([]sight, len(keys))
	command, args := "GETRANGE", []string{"0", strconv.Itoa(headerSize - 1)}
	if s.strict {
		command, args = s.readCommand(), nil
	}
	begun := time.Now()
	results, err := send(func() []rueidis.Completed {
		commands := make([]rueidis.Completed, 0, 2*len(keys))
		for _, key := range keys {
			command, args := command, args
			if _, ok := s.digestIn(key); ok {
				command, args = "ZMSCORE", []string{"g", "e"}
			}
			commands = append(commands,
				s.client.B().Arbitrary(command).Keys(key).Args(args...).Build(),
				s.client.B().Arbitrary("PTTL").Keys(key).Build())
		}
		return commands
	})
	now := time.Now()
	var ended []int
	for i := range keys {
		if err != nil {
			all[i].err = explain(err)
			continue
		}
		if _, ok := s.digestIn(keys[i]); ok {
			all[i] = ownerSight(results[2*i], results[2*i+1], begun)
			continue
		}
		head, err := bytesOf(results[2*i])
		left, err2 := intOf(results[2*i+1])
		switch err := cmp.Or(err, err2); {
		case isWrongType(err):
			ended = append(ended, i)
		case rueidis.IsRedisNil(err), err == nil && len(head) == 0:
			all[i].err = ErrNotFound
		case err != nil:
			all[i].err = explain(err)
		default:
			if all[i].err = alive(head, now); all[i].err == nil {
				session := Session{header: head}
				session.expireIn(left+1, now)
				all[i].expires = session.ExpiresAt
			}
		}
	}
	if len(ended) == 0 {
		return all
	}
	results, err = send(func() []rueidis.Completed {
		commands := make([]rueidis.Completed, len(ended))
		for n, i := range ended {
			commands[n] = s.client.B().Arbitrary("HMGET").Keys(keys[i]).Args("t", "s", "h").Build()
		}
		return commands
	})
	for n, i := range ended {
		if err != nil {
			all[i].err = explain(err)
			continue
		}
		all[i] = s.endSight(results[n])
	}
	return all
}

// endSight tells what the reply to HMGET t s h of a tombstone means.
func (s *RedisStore) endSight(res rueidis.RedisResult) (seen sight) {
	end, successor, renewable, err := tombstoneOf(res)
	switch {
	case err != nil:
		seen.err = explain(err)
	case end == nil:
		seen.err = ErrNotFound
	case successor != "":
		if seen.next, err = s.refKey(successor); err != nil {
			seen.err = ErrCorrupt
		}
	default:
		seen.err, seen.pending = end, renewable && end.Reason == Rotated
	}
	return seen
}

// ownerSight tells what the replies to ZMSCORE g e and PTTL of an owner's key mean, which were
// asked for at the moment begun.
func ownerSight(scores, ttl rueidis.RedisResult, begun time.Time) (seen sight) {
	parts, err := partsOf(scores, 2)
	left, err2 := intOf(ttl)
	if err := cmp.Or(err, err2); err != nil {
		return sight{err: explain(err)}
	}
	var found [2]int64
	for i, part := range parts {
		if part.IsNil() {
			continue
		}
		score, err := part.AsFloat64()
		if err != nil { // its text may quote the reply
			return sight{err: errUnexpected}
		}
		found[i] = int64(score)
	}
	if seen.mark = found[0]; seen.mark > 0 {
		return sight{err: ErrCorrupt}
	}
	if seen.mark%2 != 0 {
		seen.end = &InvalidatedError{
			Reason: Reason(-found[1] >> endShift), At: time.UnixMilli(-found[1] & (1<<endShift - 1)),
		}
	}
	if seen.mark != 0 && left != -1 { // it does not expire before
		seen.expires = begun.Add(time.Duration(min(max(left, 0), maxMillis)) * time.Millisecond)
	}
	return seen
}

// Watch implements [Watcher]. It starts goroutines, which end with the last watch.
func (m *MemoryStore) Watch(ctx context.Context, id string) (context.Context, error) {
	seen, op := m.begin(ctx, "watch", id)
	key, err := m.key(id)
	if err = cmp.Or(err, ctx.Err()); err == nil {
		ctx, err = m.watches.watch(ctx, seen, key, m.sightOf)
	}
	if err = op.end(err); err != nil {
		return nil, err
	}
	return ctx, nil
}

// WatchOwner implements [Watcher].
func (m *MemoryStore) WatchOwner(ctx context.Context, owner string) (context.Context, error) {
	seen, op := m.begin(ctx, "watch owner", owner)
	digest, err := ownerOf(owner)
	if err = cmp.Or(err, ctx.Err()); err == nil {
		ctx, err = m.watches.watch(ctx, seen, m.ownerKey(digest), m.sightOf)
	}
	if err = op.end(err); err != nil {
		return nil, err
	}
	return ctx, nil
}

func (m *MemoryStore) sightOf(ctx context.Context, key string) sight {
	return m.sightsOf(ctx, []string{key})[0]
}

func (m *MemoryStore) sightsOf(_ context.Context, keys []string) []sight {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]sight, len(keys))
	now := time.Now()
	for i, key := range keys {
		if digest, ok := m.digestIn(key); ok {
			all[i] = m.knownOwner(digest, now).sight()
			continue
		}
		e, err := m.live(key, now)
		switch {
		case err == nil:
			all[i].expires = e.expires
		case errors.Is(err, ErrNotFound):
			all[i].err = err
		default:
			t := m.entries[key]
			all[i] = sight{err: err, next: t.successor, pending: t.record != nil && t.ended.Reason == Rotated}
		}
	}
	return all
}
