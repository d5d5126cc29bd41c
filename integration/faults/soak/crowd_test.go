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

// session is one session, whatever its ids. An end by any of them ends it.
type session struct {
	number uint64 // in its data, which tells whose they are
	// blind: written by IfPresent and Replacing, where a repeated attempt may undo a later write;
	// others by IfVersion.
	blind bool
	phase atomic.Int32
	last  atomic.Pointer[id] // that it is known to have
}

// id is what is known of one id of a session. The fields that change only grow.
type id struct {
	*session
	text string

	left    atomic.Int32 // a phase: of a move to another id, or of an end
	lives   atomic.Int64 // until then at least, Unix ms
	stays   atomic.Int64 // the tombstone, until then at least, Unix ms; 0: nobody knows
	written atomic.Uint64
	held    atomic.Pointer[tombstore.Session] // as it was read or written by somebody, some time ago
}

func newID(of *session) *id { return &id{session: of, text: tombstore.NewID()} }

// known is an id's state before a call.
type known struct {
	phase        phase
	lives, stays int64
	written      uint64
}

func (s *id) now() phase { return max(phase(s.left.Load()), phase(s.phase.Load())) }

func (s *id) known() known {
	return known{s.now(), s.lives.Load(), s.stays.Load(), s.written.Load()}
}

func raise[T int64 | uint64](to T, load func() T, swap func(old, new T) bool) {
	for old := load(); old < to && !swap(old, to); old = load() {
	}
}

// touched notes that a call begun at this time has restarted the idle timeout.
func (s *id) touched(begun time.Time) {
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
	stores  []tombstore.Renewer
	places  [places]atomic.Pointer[id]
	graves  [graves]atomic.Pointer[id]
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

// judge compares the outcome of a call on an id with what was known before.
func (w *worker) judge(s *id, before known, err error) {
	switch {
	case before.phase == ended:
		gone, tells := means(err)
		if !tells {
			return
		}
		w.onEnded.Add(1)
		if !gone {
			w.violation(revived)
		} else if errors.Is(err, tombstore.ErrNotFound) && time.Now().UnixMilli() < before.stays {
			w.violation(tombstoneLost)
		}
	case before.phase == live && s.now() == live: // nobody has begun to end it
		w.judgeLive(before, err)
	}
}

// judgeLive is judge for a call on a session that nobody else has begun to end.
func (w *worker) judgeLive(before known, err error) {
	gone, tells := means(err)
	if !tells {
		return
	}
	w.onLive.Add(1)
	if gone && time.Now().UnixMilli() < before.lives {
		w.violation(sessionLost)
	}
}

// means reports whether err says that there is no live session, and whether it tells anything of
// that.
func means(err error) (gone, tells bool) {
	gone = tombstore.NoSession(err)
	return gone, err == nil || gone || errors.Is(err, tombstore.ErrConflict)
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
	case n < 94:
		w.rotate(ctx, store, place, s)
	case n < 96:
		w.renew(ctx, store, how, place, s)
	case n < 98:
		w.end(s, "Invalidate", func() error { return store.Invalidate(ctx, s.text) })
	default:
		w.end(s, "Invalidate IfLive", func() error { return store.Invalidate(ctx, s.text, tombstore.IfLive()) })
	}
	if gone { // it has expired
		place.CompareAndSwap(s, nil)
	}
}

// on makes a call on a session and judges it. gone reports that there is no live session.
func (w *worker) on(s *id, verb string, f func(before known) error) (gone bool, err error) {
	before := s.known()
	err = w.call(verb, func() error { return f(before) })
	w.judge(s, before, err)
	return tombstore.NoSession(err), err
}

// check compares what a read has returned with what was known before it.
func (w *worker) check(s *id, before known, got tombstore.Session) {
	switch {
	case len(got.Data) < 16 || binary.BigEndian.Uint64(got.Data) != s.number:
		w.violation(mixedUp)
	case !s.blind && binary.BigEndian.Uint64(got.Data[8:]) < before.written:
		w.violation(stale)
	}
}

func (w *worker) read(
	ctx context.Context, store tombstore.Renewer, how string, s *id,
) (got tombstore.Session, gone bool) {
	gone, err := w.on(s, "Read"+how, func(before known) (err error) {
		if got, err = store.Read(ctx, s.text); err == nil {
			w.check(s, before, got)
		}
		return err
	})
	if err != nil {
		return tombstore.Session{}, gone
	}
	s.held.Store(&got)
	return got, false
}

func (w *worker) slide(ctx context.Context, store tombstore.Renewer, how string, s *id) (gone bool) {
	gone, _ = w.on(s, "Read Slide"+how, func(before known) error {
		begun := time.Now()
		got, err := store.Read(ctx, s.text, tombstore.Slide(ttl))
		if err == nil {
			w.check(s, before, got)
			s.touched(begun)
		}
		return err
	})
	return gone
}

func (w *worker) touch(ctx context.Context, store tombstore.Renewer, s *id) (gone bool) {
	gone, _ = w.on(s, "Touch", func(known) error {
		begun := time.Now()
		err := store.Touch(ctx, s.text, ttl)
		if err == nil {
			s.touched(begun)
		}
		return err
	})
	return gone
}

func (w *worker) exists(ctx context.Context, store tombstore.Renewer, s *id) (gone bool) {
	gone, _ = w.on(s, "Exists", func(known) error {
		there, err := store.Exists(ctx, s.text)
		if err == nil && !there {
			return tombstore.ErrInvalidated // or absent
		}
		return err
	})
	return gone
}

func (w *worker) padding() int { return w.random.IntN(maxPadding) }

// write reads a session and stores it with the next count.
func (w *worker) write(ctx context.Context, store tombstore.Renewer, how string, s *id) (gone bool) {
	got, gone := w.read(ctx, store, how, s)
	if len(got.Data) < 16 {
		return gone
	}
	verb, condition := "Write IfVersion", tombstore.IfVersion(got.Version)
	switch {
	case s.blind && w.random.IntN(4) == 0:
		verb, condition = "Write IfPresent", tombstore.IfPresent()
	case s.blind:
		verb, condition = "Write Replacing", tombstore.Replacing(got)
	}
	count := binary.BigEndian.Uint64(got.Data[8:]) + 1
	gone, _ = w.on(s, verb, func(known) error {
		begun := time.Now()
		_, err := store.Write(ctx, s.text, data(s.number, count, w.padding()), ttl, condition)
		if err == nil {
			s.touched(begun)
			raise(count, s.written.Load, s.written.CompareAndSwap)
		}
		if s.blind && errors.Is(err, tombstore.ErrConflict) {
			w.violation(mixedUp)
		}
		return err
	})
	return gone
}

// create puts a new session into a place. If its outcome is unknown the id is not used again.
func (w *worker) create(ctx context.Context, store tombstore.Renewer, place *atomic.Pointer[id]) {
	s := newID(&session{number: w.numbers.Add(1), blind: w.random.IntN(2) == 0})
	s.last.Store(s)
	begun := time.Now()
	err := w.call("Write IfAbsent", func() error {
		_, err := store.Write(ctx, s.text, data(s.number, 0, w.padding()), ttl, tombstore.IfAbsent())
		return err
	})
	switch {
	case err == nil:
		s.touched(begun)
		place.CompareAndSwap(nil, s)
	case errors.Is(err, tombstore.ErrConflict) || tombstore.NoSession(err):
		w.violation(inUse)
	}
}

// bury lets others call on an id that was ended.
func (w *worker) bury(s *id) { w.graves[(w.buried.Add(1)-1)%graves].Store(s) }

// end ends a session by one of its ids, if nobody else does.
func (w *worker) end(s *id, verb string, f func() error) {
	if !s.phase.CompareAndSwap(int32(live), int32(ending)) {
		return
	}
	old, last := phase(s.left.Load()) == ended, s.last.Load()
	still := phase(last.left.Load()) == live
	before := s.known()
	before.phase = live
	begun := time.Now()
	err := w.call(verb, f)
	if still && s.last.Load() == last && phase(last.left.Load()) == live { // nobody has moved it meanwhile
		w.judgeLive(before, err)
	}
	switch {
	case err == nil && old && time.Now().UnixMilli() >= s.stays.Load(): // the way to the new id may be lost
	case err == nil:
		if !old {
			s.stays.Store(begun.Add(tombstoneTTL - time.Second).UnixMilli())
		}
		s.phase.Store(int32(ended))
		w.bury(s)
		if last := s.last.Load(); last != s {
			w.bury(last)
		}
	case errors.Is(err, tombstore.ErrUnknownOutcome), tombstore.NoSession(err):
	default: // it was not applied, so the session must be live
		s.phase.CompareAndSwap(int32(ending), int32(live))
	}
}

var errChanged = errors.New("somebody has written since")

// move moves a session, if nobody else does, to what f returns: nil if it has been ended instead.
func (w *worker) move(place *atomic.Pointer[id], s *id, f func() (*id, error)) {
	if s.now() != live || !s.left.CompareAndSwap(int32(live), int32(ending)) {
		return
	}
	before := s.known()
	before.phase = live
	begun := time.Now()
	next, err := f()
	if phase(s.phase.Load()) == live {
		w.judgeLive(before, err)
	}
	switch {
	case err == nil:
		s.stays.Store(begun.Add(tombstoneTTL - time.Second).UnixMilli())
		if next != nil {
			s.last.Store(next)
		}
		s.left.Store(int32(ended))
		place.CompareAndSwap(s, next)
		w.bury(s)
	case errors.Is(err, tombstore.ErrConflict):
		w.violation(inUse)
		s.left.Store(int32(live))
	case errors.Is(err, tombstore.ErrUnknownOutcome), tombstore.NoSession(err):
		s.phase.CompareAndSwap(int32(live), int32(ending))
		place.CompareAndSwap(s, nil)
	default: // it was not applied, so the session must be live
		s.left.Store(int32(live))
	}
}

func (w *worker) rotate(ctx context.Context, store tombstore.Renewer, place *atomic.Pointer[id], s *id) {
	w.move(place, s, func() (*id, error) {
		next := newID(s.session)
		err := w.call("Rotate", func() error {
			_, err := store.Rotate(ctx, s.text, next.text)
			return err
		})
		next.lives.Store(s.lives.Load())
		next.written.Store(s.written.Load())
		return next, err
	})
}

// renew moves a session in two halves. Sometimes it is given up, or ended, between them.
func (w *worker) renew(
	ctx context.Context, store tombstore.Renewer, how string, place *atomic.Pointer[id], s *id,
) {
	got, _ := w.read(ctx, store, how, s)
	if len(got.Data) < 16 {
		return
	}
	w.move(place, s, func() (*id, error) {
		var r tombstore.Renewal
		err := w.call("BeginRenewal", func() (err error) {
			r, err = store.BeginRenewal(ctx, s.text, got.Version)
			return err
		})
		if errors.Is(err, tombstore.ErrConflict) {
			return nil, errChanged
		}
		if err != nil {
			return nil, err
		}
		next := newID(s.session)
		finish := func() error {
			return w.call("FinishRenewal", func() error {
				begun := time.Now()
				_, err := store.FinishRenewal(ctx, r, next.text, got.Data, ttl)
				next.touched(begun)
				return err
			})
		}
		refused := func(what string, f func() error) error { // what keeps the renewal from being finished
			s.phase.CompareAndSwap(int32(live), int32(ending))
			if err := w.call(what, f); err != nil {
				return tombstore.ErrUnknownOutcome
			}
			s.phase.Store(int32(ended))
			if err := finish(); err == nil {
				w.violation(revived)
			}
			return nil
		}
		switch w.random.IntN(8) {
		case 0:
			return nil, refused("CancelRenewal", func() error { return store.CancelRenewal(ctx, r) })
		case 1:
			return nil, refused("Invalidate, renewal", func() error { return store.Invalidate(ctx, s.text) })
		}
		next.written.Store(s.written.Load())
		err = finish()
		if err != nil && !tombstore.NoSession(err) && !errors.Is(err, tombstore.ErrConflict) {
			err = tombstore.ErrUnknownOutcome // the first half has ended the old id
		}
		return next, err
	})
}

// knock calls on a session that was ended, in every way that could bring it back.
func (w *worker) knock(ctx context.Context, store tombstore.Renewer, how string, s *id) {
	b := data(s.number, 0, w.padding())
	change := func(verb string, f func() error) { _, _ = w.on(s, verb, func(known) error { return f() }) }
	write := func(verb string, opts ...tombstore.WriteOption) {
		change(verb, func() error {
			_, err := store.Write(ctx, s.text, b, ttl, opts...)
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
		if held := s.held.Load(); held != nil {
			write("Write Replacing", tombstore.Replacing(*held))
		}
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
			_, err := store.Rotate(ctx, s.text, tombstore.NewID())
			return err
		})
		change("FinishRenewal", func() error {
			r := tombstore.Renewal{Ref: tombstore.Ref(s.text), Claim: w.random.Uint64()}
			_, err := store.FinishRenewal(ctx, r, tombstore.NewID(), b, ttl)
			return err
		})
	case phase(s.phase.Load()) == live: // it has moved, and an end by this id must reach it
		if time.Now().Add(tombstoneTTL/2).UnixMilli() > s.stays.Load() {
			return
		}
		var opts []tombstore.InvalidateOption
		if w.random.IntN(2) == 0 {
			opts = append(opts, tombstore.IfLive())
		}
		w.end(s, "Invalidate, old id", func() error { return store.Invalidate(ctx, s.text, opts...) })
	case phase(s.phase.Load()) == ended:
		change("Invalidate IfLive", func() error { return store.Invalidate(ctx, s.text, tombstore.IfLive()) })
	}
}
