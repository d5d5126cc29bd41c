package soak

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombstore/tombstore"
)

// Short TTLs let the server forget what was ended, so that its memory can be flat.
const (
	goroutines   = 32
	places       = 512  // live sessions
	graves       = 8192 // ended sessions that are still called on
	ttl          = 10 * time.Second
	tombstoneTTL = 10 * time.Second
	sureTTL      = ttl*9/10 - time.Second // the touch threshold, and a second for the clocks
	maxPadding   = 1000
)

// What may go wrong.
const (
	revived       = "an ended session is live"
	tombstoneLost = "a tombstone is lost"
	sessionLost   = "a live session is lost"
	stale         = "a read is older than a write before it"
	mixedUp       = "a read is of another session"
	inUse         = "a new id is in use"
	damaged       = "a session is damaged"
)

type phase int32

const (
	live   phase = iota
	ending       // an end is under way, or nobody knows how it went
	ended
)

// session is what is known of a session. The fields that change only grow.
type session struct {
	id     string
	number uint64 // in its data, which tells whose they are
	blind  bool   // written by IfPresent, where a repeated attempt may undo a later write; others by IfVersion

	phase   atomic.Int32
	lives   atomic.Int64  // until then at least, Unix ms
	stays   atomic.Int64  // the tombstone, until then at least, Unix ms
	written atomic.Uint64 // count of the last write that has returned
}

// known is a session's state before a call.
type known struct {
	phase        phase
	lives, stays int64
	written      uint64
}

func (s *session) known() known {
	return known{phase(s.phase.Load()), s.lives.Load(), s.stays.Load(), s.written.Load()}
}

func raise[T int64 | uint64](to T, load func() T, swap func(old, new T) bool) {
	for old := load(); old < to && !swap(old, to); old = load() {
	}
}

// touched notes that a call begun at this time has restarted the idle timeout.
func (s *session) touched(begun time.Time) {
	raise(begun.Add(sureTTL).UnixMilli(), s.lives.Load, s.lives.CompareAndSwap)
}

// data returns what the count-th write of a session stores.
func data(number, count uint64, padding int) []byte {
	b := make([]byte, 16, 16+padding)
	binary.BigEndian.PutUint64(b, number)
	binary.BigEndian.PutUint64(b[8:], count)
	return b[:16+padding]
}

// soak is what the crowd shares.
type soak struct {
	stores  []tombstore.Store
	places  [places]atomic.Pointer[session]
	graves  [graves]atomic.Pointer[session]
	buried  atomic.Uint64
	numbers atomic.Uint64

	calls, onEnded, onLive atomic.Int64 // the last two were checked

	mu         sync.Mutex
	violations map[string]int64
	replies    map[string]int64 // of the server, that were an error
}

func newSoak() *soak { return &soak{violations: map[string]int64{}, replies: map[string]int64{}} }

func (s *soak) violation(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations[what]++
}

func (s *soak) count(what ...string) (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range what {
		n += s.violations[w]
	}
	return n
}

// missing reports whether one of these was not found.
func (s *soak) missing(what []string) bool {
	return slices.ContainsFunc(what, func(w string) bool { return s.count(w) == 0 })
}

// run lets the crowd work until during returns.
func (s *soak) run(ctx context.Context, during func()) map[string]*tally {
	var stop atomic.Bool
	var group sync.WaitGroup
	workers := make([]*worker, goroutines)
	for g := range workers {
		w := &worker{soak: s, random: rand.New(rand.NewPCG(rand.Uint64(), uint64(g))), tallies: map[string]*tally{}}
		workers[g] = w
		group.Go(func() {
			for !stop.Load() {
				w.step(ctx)
			}
		})
	}
	func() {
		defer group.Wait()
		defer stop.Store(true) // also if during has failed the test
		during()
	}()
	all := map[string]*tally{}
	for _, w := range workers {
		for verb, t := range w.tallies {
			if all[verb] == nil {
				all[verb] = newTally()
			}
			all[verb].add(t)
		}
	}
	return all
}

// worker is one of the crowd.
type worker struct {
	*soak
	random  *rand.Rand
	tallies map[string]*tally
}

// call runs and counts one call.
func (w *worker) call(verb string, f func() error) error {
	t := w.tallies[verb]
	if t == nil {
		t = newTally()
		w.tallies[verb] = t
	}
	begun := time.Now()
	err := f()
	t.record(time.Since(begun), err)
	w.calls.Add(1)
	if class(err) == errorReply {
		w.mu.Lock()
		w.replies[err.Error()]++ // carries no id
		w.mu.Unlock()
	}
	if errors.Is(err, tombstore.ErrCorrupt) {
		w.violation(damaged)
	}
	return err
}

// judge compares the outcome of a call on a session with what was known before. mine says that the session is ending by this very call.
func (w *worker) judge(s *session, before known, mine bool, err error) {
	gone := errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated)
	if err != nil && !gone && !errors.Is(err, tombstore.ErrConflict) { // it tells nothing
		return
	}
	now := time.Now().UnixMilli()
	switch {
	case before.phase == ended:
		w.onEnded.Add(1)
		if !gone {
			w.violation(revived)
		} else if errors.Is(err, tombstore.ErrNotFound) && now < before.stays {
			w.violation(tombstoneLost)
		}
	case before.phase == live && (mine || phase(s.phase.Load()) == live): // nobody has begun to end it
		w.onLive.Add(1)
		if gone && now < before.lives {
			w.violation(sessionLost)
		}
	}
}

// step makes one call on a random session.
func (w *worker) step(ctx context.Context) {
	n := w.random.IntN(len(w.stores))
	store, how := w.stores[n], ""
	if n > 0 {
		how = ", client cache"
	}
	if n := min(w.buried.Load(), graves); n > 0 && w.random.IntN(5) == 0 {
		if s := w.graves[w.random.Uint64N(n)].Load(); s != nil {
			w.knock(ctx, store, how, s)
			return
		}
	}
	r := w.random.Float64()
	place := &w.places[int(places*r*r)] // some sessions are busier than others
	s := place.Load()
	if s == nil {
		w.create(ctx, store, place)
		return
	}
	var gone bool
	switch n := w.random.IntN(100); {
	case n < 55:
		_, gone = w.read(ctx, store, how, s)
	case n < 70:
		gone = w.slide(ctx, store, how, s)
	case n < 80:
		gone = w.write(ctx, store, how, s)
	case n < 90:
		gone = w.touch(ctx, store, s)
	case n < 92:
		gone = w.exists(ctx, store, s)
	case n < 95:
		w.rotate(ctx, store, place, s)
	case n < 98:
		w.end(ctx, place, s, "Invalidate", func() (*session, error) { return nil, store.Invalidate(ctx, s.id) })
	default:
		w.end(ctx, place, s, "Invalidate IfLive", func() (*session, error) { return nil, store.Invalidate(ctx, s.id, tombstore.IfLive()) })
	}
	if gone { // it has expired
		place.CompareAndSwap(s, nil)
	}
}

// on makes a call on a session and judges it. gone reports that there is no live session.
func (w *worker) on(s *session, verb string, f func(before known) error) (gone bool, err error) {
	before := s.known()
	err = w.call(verb, func() error { return f(before) })
	w.judge(s, before, false, err)
	return errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated), err
}

// check compares what a read has returned with what was known before it.
func (w *worker) check(s *session, before known, got tombstore.Session) {
	switch {
	case len(got.Data) < 16 || binary.BigEndian.Uint64(got.Data) != s.number:
		w.violation(mixedUp)
	case !s.blind && binary.BigEndian.Uint64(got.Data[8:]) < before.written:
		w.violation(stale)
	}
}

func (w *worker) read(ctx context.Context, store tombstore.Store, how string, s *session) (got tombstore.Session, gone bool) {
	gone, err := w.on(s, "Read"+how, func(before known) (err error) {
		if got, err = store.Read(ctx, s.id); err == nil {
			w.check(s, before, got)
		}
		return err
	})
	if err != nil {
		return tombstore.Session{}, gone
	}
	return got, false
}

func (w *worker) slide(ctx context.Context, store tombstore.Store, how string, s *session) (gone bool) {
	gone, _ = w.on(s, "Read Slide"+how, func(before known) error {
		begun := time.Now()
		got, err := store.Read(ctx, s.id, tombstore.Slide(ttl))
		if err == nil {
			w.check(s, before, got)
			s.touched(begun)
		}
		return err
	})
	return gone
}

func (w *worker) touch(ctx context.Context, store tombstore.Store, s *session) (gone bool) {
	gone, _ = w.on(s, "Touch", func(known) error {
		begun := time.Now()
		err := store.Touch(ctx, s.id, ttl)
		if err == nil {
			s.touched(begun)
		}
		return err
	})
	return gone
}

func (w *worker) exists(ctx context.Context, store tombstore.Store, s *session) (gone bool) {
	gone, _ = w.on(s, "Exists", func(known) error {
		there, err := store.Exists(ctx, s.id)
		if err == nil && !there {
			return tombstore.ErrInvalidated // or absent
		}
		return err
	})
	return gone
}

func (w *worker) padding() int { return w.random.IntN(maxPadding) }

// write reads a session and stores it with the next count.
func (w *worker) write(ctx context.Context, store tombstore.Store, how string, s *session) (gone bool) {
	got, gone := w.read(ctx, store, how, s)
	if len(got.Data) < 16 {
		return gone
	}
	verb, condition := "Write IfVersion", tombstore.IfVersion(got.Version)
	if s.blind {
		verb, condition = "Write IfPresent", tombstore.IfPresent()
	}
	count := binary.BigEndian.Uint64(got.Data[8:]) + 1
	gone, _ = w.on(s, verb, func(known) error {
		begun := time.Now()
		_, err := store.Write(ctx, s.id, data(s.number, count, w.padding()), ttl, condition)
		if err == nil {
			s.touched(begun)
			raise(count, s.written.Load, s.written.CompareAndSwap)
		}
		return err
	})
	return gone
}

// create puts a new session into a place. If its outcome is unknown the id is not used again.
func (w *worker) create(ctx context.Context, store tombstore.Store, place *atomic.Pointer[session]) {
	s := &session{id: tombstore.NewID(), number: w.numbers.Add(1), blind: w.random.IntN(4) == 0}
	begun := time.Now()
	err := w.call("Write IfAbsent", func() error {
		_, err := store.Write(ctx, s.id, data(s.number, 0, w.padding()), ttl, tombstore.IfAbsent())
		return err
	})
	switch {
	case err == nil:
		s.touched(begun)
		place.CompareAndSwap(nil, s)
	case errors.Is(err, tombstore.ErrConflict) || errors.Is(err, tombstore.ErrInvalidated) || errors.Is(err, tombstore.ErrNotFound):
		w.violation(inUse)
	}
}

// end ends a session, if nobody else does, and puts what f returns in its place.
func (w *worker) end(ctx context.Context, place *atomic.Pointer[session], s *session, verb string, f func() (*session, error)) {
	if !s.phase.CompareAndSwap(int32(live), int32(ending)) {
		return
	}
	before := s.known()
	before.phase = live
	begun := time.Now()
	var next *session
	err := w.call(verb, func() (err error) {
		next, err = f()
		return err
	})
	w.judge(s, before, true, err)
	switch {
	case err == nil:
		s.stays.Store(begun.Add(tombstoneTTL - time.Second).UnixMilli())
		s.phase.Store(int32(ended))
		place.CompareAndSwap(s, next)
		w.graves[(w.buried.Add(1)-1)%graves].Store(s)
	case errors.Is(err, tombstore.ErrConflict):
		w.violation(inUse)
		s.phase.Store(int32(live))
	case errors.Is(err, tombstore.ErrUnknownOutcome), errors.Is(err, tombstore.ErrNotFound), errors.Is(err, tombstore.ErrInvalidated):
		place.CompareAndSwap(s, nil)
	default: // it was not applied, so the session must be live
		s.phase.Store(int32(live))
	}
}

func (w *worker) rotate(ctx context.Context, store tombstore.Store, place *atomic.Pointer[session], s *session) {
	w.end(ctx, place, s, "Rotate", func() (*session, error) {
		next := &session{id: tombstore.NewID(), number: s.number, blind: s.blind}
		if _, err := store.Rotate(ctx, s.id, next.id); err != nil {
			return nil, err
		}
		next.lives.Store(s.lives.Load())
		next.written.Store(s.written.Load())
		return next, nil
	})
}

// knock calls on a session that was ended, in every way that could bring it back.
func (w *worker) knock(ctx context.Context, store tombstore.Store, how string, s *session) {
	b := data(s.number, 0, w.padding())
	change := func(verb string, f func() error) { _, _ = w.on(s, verb, func(known) error { return f() }) }
	write := func(verb string, opts ...tombstore.WriteOption) {
		change(verb, func() error {
			_, err := store.Write(ctx, s.id, b, ttl, opts...)
			return err
		})
	}
	switch n := w.random.IntN(20); {
	case n < 8:
		w.read(ctx, store, how, s)
	case n < 10:
		w.slide(ctx, store, how, s)
	case n < 12:
		w.touch(ctx, store, s)
	case n < 13:
		w.exists(ctx, store, s)
	case n < 14:
		write("Write IfPresent", tombstore.IfPresent())
	case n < 15:
		write("Write IfVersion", tombstore.IfVersion(1))
	case n < 18: // makes a new session when the tombstone has expired
		if time.Now().Add(tombstoneTTL/2).UnixMilli() > s.stays.Load() {
			return
		}
		if n < 16 {
			write("Write IfAbsent", tombstore.IfAbsent())
		} else {
			write("Write")
		}
	case n < 19:
		change("Rotate", func() error {
			_, err := store.Rotate(ctx, s.id, tombstore.NewID())
			return err
		})
	default:
		change("Invalidate IfLive", func() error { return store.Invalidate(ctx, s.id, tombstore.IfLive()) })
	}
}
