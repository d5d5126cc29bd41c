package cluster

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// moves says which slots are moved under traffic. They are few, so that each is met in the middle of a move.
func moves(slot int) bool { return slot%256 == 0 }

// TestSlots moves the slots of a cluster that loses no node.
func TestSlots(t *testing.T) {
	t.Parallel()
	n := start(t, calm)
	m := newMover(n)
	t.Run("all operations", func(t *testing.T) { operations(t, n, m) })
	t.Run("acknowledged ends", func(t *testing.T) { acknowledgedEnds(t, n, m) })
	t.Run("acknowledged ends at each stage", func(t *testing.T) { stages(t, n, m) })
	t.Run("rotation", func(t *testing.T) { rotations(t, n, m) })
	t.Run("naive batch", func(t *testing.T) { naive(t, n, m) }) // kills a node
}

// operations uses sessions while their slots move from node to node all the time.
func operations(t *testing.T, n *redistest.Nodes, m *mover) {
	client := dial(t, n)
	s := newStore(t, client)
	acked := newStore(t, client, tombstore.WithReplicaAcks(1, 10*time.Second))
	count := &tally{t: t}

	var live, ended []string
	for range 64 {
		live = append(live, newID(moves))
		_, err := s.Write(t.Context(), live[len(live)-1], []byte("live"), hour)
		count.done("create", err)
		ended = append(ended, newID(moves))
		count.done("end", s.Invalidate(t.Context(), ended[len(ended)-1]))
	}
	workers := newCrew(t)
	for i := range 4 {
		ending := s
		if i%2 == 0 {
			ending = acked
		}
		workers.repeat(0, func() { life(t, count, s, ending) })
	}
	for range 2 {
		workers.repeat(0, func() { useLive(t, count, s, live[rand.IntN(len(live))]) })
		workers.repeat(0, func() { useEnded(t, count, s, ended[rand.IntN(len(ended))]) })
	}

	r := newRedirections(t, n)
	moved := 0
	for until := time.Now().Add(faults.Duration(t, 2*time.Second)); time.Now().Before(until) || r.missing(t); {
		var slots []int
		for _, i := range rand.Perm(64)[:8] {
			slots = append(slots, i*256)
		}
		m.move(t, slots, func() { time.Sleep(5 * time.Millisecond) })
		moved += len(slots)
	}
	workers.dismiss()
	ask, moves := r.count(t)
	t.Logf("%d slots moved: ASK %d, MOVED %d, TRYAGAIN %d; %d operations of unknown outcome, %d failed",
		moved, ask, moves, errorReplies(t, n, "TRYAGAIN"), count.unknown.Load(), count.failed.Load())
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "cluster, slots moving (ASK, MOVED): all operations", Injected: ask + moves,
		Checked: count.checked.Load(), Violations: count.violations.Load(),
	})
}

// life plays a session from its first write to its end and checks every step. Nobody else knows its ids. ending is the store that
// rotates and ends it.
func life(t *testing.T, count *tally, s, ending *tombstore.RedisStore) {
	ctx := t.Context()
	id, next := newID(moves), newID(moves)
	n := 0
	write := func(opts ...tombstore.WriteOption) (version tombstore.Version, ok bool) {
		held, err := s.Write(ctx, id, []byte(strconv.Itoa(n+1)), hour, opts...)
		if errors.Is(err, tombstore.ErrUnknownOutcome) && n > 0 {
			read, readErr := s.Read(ctx, id)
			if count.done("read", readErr) {
				counts := string(read.Data) == strconv.Itoa(n) || string(read.Data) == strconv.Itoa(n+1)
				count.check(counts, "a write of unknown outcome counts 0 or 1", err)
			}
		}
		if !count.done("write", err) {
			return 0, false
		}
		n++
		return held.Version, true
	}
	version, ok := write(tombstore.IfAbsent())
	for range 3 {
		if !ok {
			return
		}
		version, ok = write(tombstore.IfVersion(version))
	}
	if _, ok = write(tombstore.IfPresent()); !ok {
		return
	}
	if _, ok = write(); !ok {
		return
	}
	_, err := s.Write(ctx, id, nil, hour, tombstore.IfAbsent())
	if !count.broke(err) {
		count.check(errors.Is(err, tombstore.ErrConflict), "IfAbsent on a live session", err)
	}
	useLive(t, count, s, id)
	held, err := s.Read(ctx, id, tombstore.Fresh())
	if !count.done("read", err) || !count.check(string(held.Data) == strconv.Itoa(n), "the count is exact", err) {
		return
	}

	_, err = ending.Rotate(ctx, id, next)
	if errors.Is(err, tombstore.ErrUnacknowledged) { // rotated all the same
		err = nil
	}
	if !count.done("rotate", err) {
		return
	}
	held, err = s.Read(ctx, next)
	if count.done("read the new id", err) {
		count.check(string(held.Data) == strconv.Itoa(n), "the data goes along", err)
	}
	useEnded(t, count, s, id)
	err = ending.Invalidate(ctx, next, tombstore.IfLive())
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		err = nil
	}
	if !count.done("end IfLive", err) {
		return
	}
	count.ended("end IfLive again", s.Invalidate(ctx, next, tombstore.IfLive()))
	count.done("end again", s.Invalidate(ctx, next))
	useEnded(t, count, s, next)
}

func useLive(t *testing.T, count *tally, s *tombstore.RedisStore, id string) {
	ctx := t.Context()
	_, err := s.Read(ctx, id)
	count.done("read", err)
	_, err = s.Read(ctx, id, tombstore.Slide(hour+time.Duration(rand.IntN(3))*hour))
	count.done("slide", err)
	count.done("touch", s.Touch(ctx, id, hour+time.Duration(rand.IntN(3))*hour))
	exists, err := s.Exists(ctx, id)
	if count.done("exists", err) {
		count.check(exists, "a live session exists", nil)
	}
}

func useEnded(t *testing.T, count *tally, s *tombstore.RedisStore, id string) {
	ctx := t.Context()
	_, err := s.Read(ctx, id)
	count.ended("read", err)
	_, err = s.Read(ctx, id, tombstore.Slide(hour))
	count.ended("slide", err)
	_, err = s.Write(ctx, id, []byte("late"), hour)
	count.ended("write", err)
	_, err = s.Write(ctx, id, []byte("late"), hour, tombstore.IfAbsent())
	count.ended("write IfAbsent", err)
	_, err = s.Write(ctx, id, []byte("late"), hour, tombstore.IfPresent())
	count.ended("write IfPresent", err)
	count.ended("touch", s.Touch(ctx, id, hour))
	_, err = s.Rotate(ctx, id, newID(moves))
	count.ended("rotate", err)
	exists, err := s.Exists(ctx, id)
	if count.done("exists", err) {
		count.check(!exists, "an ended session does not exist", nil)
	}
}
