package cluster

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// moves says which slots are moved under traffic. They are few, so that each is met in the middle
// of a move.
func moves(slot int) bool { return slot%256 == 0 }

// TestSlots moves the slots of a cluster that loses no node.
func TestSlots(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	n := start(t, calm)
	m := newMover(n)
	t.Run("all operations", func(t *testing.T) { operations(t, n, m) })
	t.Run("acknowledged ends", func(t *testing.T) { acknowledgedEnds(t, n, m) })
	t.Run("acknowledged ends at each stage", func(t *testing.T) { stages(t, n, m) })
	t.Run("sessions that are still here", func(t *testing.T) { stillHere(t, n, m) })
	t.Run("rotation", func(t *testing.T) { rotations(t, n, m) })
	t.Run("naive batch", func(t *testing.T) { naive(t, n, m) }) // kills a node
}

// operations uses sessions while their slots move from node to node all the time.
func operations(t *testing.T, n *redistest.Nodes, m *mover) {
	client := dial(t, n)
	s := newStore(t, client)
	cached := newStore(t, dialCached(t, n), tombstore.WithClientCache(hour))
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
	report, err := cached.Check(t.Context())
	require.NoError(t, err)
	require.True(t, report.Cached, "%v", report.Uncached)
	require.NoError(t, report.Scripted)
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
		workers.repeat(0, func() { readCached(t, count, s, cached, live[rand.IntN(len(live))]) })
		workers.repeat(0, func() {
			_, err := cached.Read(t.Context(), ended[rand.IntN(len(ended))])
			count.ended("cached read", err)
		})
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

// life plays a session from its first write to its end and checks every step. Nobody else knows its
// ids. ending is the store that moves and ends it.
func life(t *testing.T, count *tally, s, ending *tombstore.RedisStore) {
	ctx := t.Context()
	id, next, last := newID(moves), newID(moves), newID(moves)
	n := 0
	var held tombstore.Session
	write := func(opts ...tombstore.WriteOption) (ok bool) {
		written, err := s.Write(ctx, id, []byte(strconv.Itoa(n+1)), hour, opts...)
		if errors.Is(err, tombstore.ErrUnknownOutcome) && n > 0 {
			read, readErr := s.Read(ctx, id)
			if count.done("read", readErr) {
				counts := string(read.Data) == strconv.Itoa(n) || string(read.Data) == strconv.Itoa(n+1)
				count.check(counts, "a write of unknown outcome counts 0 or 1", err)
			}
		}
		if !count.done("write", err) {
			return false
		}
		n, held = n+1, written
		return true
	}
	if !write(tombstore.IfAbsent()) {
		return
	}
	for i := range 6 {
		condition := tombstore.IfVersion(held.Version)
		if i%2 == 0 {
			condition = tombstore.Replacing(held)
		}
		if !write(condition) {
			return
		}
	}
	if !write(tombstore.IfPresent()) || !write() {
		return
	}
	_, err := s.Write(ctx, id, nil, hour, tombstore.IfAbsent())
	if !count.broke(err) {
		count.check(errors.Is(err, tombstore.ErrConflict), "IfAbsent on a live session", err)
	}
	useLive(t, count, s, id)
	stored := func(id string) bool {
		held, err := s.Read(ctx, id, tombstore.Fresh())
		return count.done("read", err) && count.check(string(held.Data) == strconv.Itoa(n), "the count is exact", err)
	}
	if !stored(id) {
		return
	}

	_, err = ending.Rotate(ctx, id, next)
	if errors.Is(err, tombstore.ErrUnacknowledged) { // rotated all the same
		err = nil
	}
	if !count.done("rotate", err) || !stored(next) {
		return
	}
	r, err := ending.BeginRenewal(ctx, next, 0)
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		err = nil
	}
	if !count.done("begin a renewal", err) {
		return
	}
	useEnded(t, count, s, next)
	_, err = ending.FinishRenewal(ctx, r, last, []byte(strconv.Itoa(n)), hour)
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		err = nil
	}
	if !count.done("finish the renewal", err) || !stored(last) {
		return
	}
	useEnded(t, count, s, id)
	err = ending.Invalidate(ctx, id, tombstore.IfLive()) // which it has left twice
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		err = nil
	}
	if !count.done("end IfLive", err) {
		return
	}
	count.ended("end IfLive again", s.Invalidate(ctx, next, tombstore.IfLive()))
	count.done("end again", s.Invalidate(ctx, id))
	useEnded(t, count, s, last)
}

// readCached changes a live session now and then, and reads it from a cache.
func readCached(t *testing.T, count *tally, s, cached *tombstore.RedisStore, id string) {
	ctx := t.Context()
	held, err := cached.Read(ctx, id, tombstore.Shared())
	if !count.done("cached read", err) {
		return
	}
	_, err = cached.Read(ctx, id, tombstore.Slide(hour), tombstore.Shared())
	count.done("cached slide", err)
	again, err := cached.Read(ctx, id, tombstore.WithExpiry())
	if count.done("cached read with expiry", err) {
		left := time.Until(again.ExpiresAt)
		count.check(again.ExpiresAt.IsZero() || left > 0 && left < 5*hour, "the expiry is right", nil)
	}
	if rand.IntN(4) == 0 {
		_, err = s.Write(ctx, id, []byte("live"), hour, tombstore.Replacing(held))
		count.done("write", err)
		_, err = cached.Read(ctx, id)
		count.done("cached read after a write", err)
	}
}

func useLive(t *testing.T, count *tally, s *tombstore.RedisStore, id string) {
	ctx := t.Context()
	_, err := s.Read(ctx, id)
	count.done("read", err)
	_, err = s.Read(ctx, id, tombstore.Slide(hour+time.Duration(rand.IntN(3))*hour))
	count.done("slide", err)
	held, err := s.Read(ctx, id, tombstore.WithExpiry())
	if count.done("read with expiry", err) {
		left := time.Until(held.ExpiresAt)
		count.check(held.ExpiresAt.IsZero() || left > 0 && left < 5*hour, "the expiry is right", nil)
		_, err = s.Write(ctx, id, held.Data, hour, tombstore.Replacing(held))
		count.done("write Replacing", err)
	}
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

// stillHere ends and moves sessions whose slot is on its way to another node, and whose key has not
// gone ahead. There a key that is deleted belongs to the other node, so a session could vanish
// without a tombstone, and a late write bring it back.
func stillHere(t *testing.T, n *redistest.Nodes, m *mover) {
	client := dial(t, n)
	usual := newStore(t, client)
	for _, node := range n.All() {
		node.Do(t, "ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-restore")
	}
	limited := connect(t, n, rueidis.ClientOption{
		DisableCache: true, DisableRetry: true, Username: "limited", Password: "secret",
	})
	memory := func(t *testing.T, limit string) {
		for _, node := range n.Primaries {
			node.Do(t, "CONFIG", "SET", "maxmemory", limit)
		}
	}
	const remove = "redis.call('DEL', KEYS[1])\n"
	ends := "  local put = redis.pcall('RESTORE', KEYS[1], keep, ARGV[1], 'REPLACE')"
	moves := "local put = dump and redis.pcall('RESTORE', KEYS[1], keep, ARGV[5], 'REPLACE')"
	for _, c := range []struct {
		kind   faults.Kind
		fault  string
		client rueidis.Client
		full   bool
	}{
		{faults.Promised, "ends and moves of sessions that are still here", client, false},
		{faults.Promised, "full memory, sessions that are ended, or are refused a move", client, true},
		{faults.Promised, "RESTORE not permitted, sessions that are refused an end, or a move", limited, false},
		{faults.Seeded, "invalidate.lua deletes and then writes", faults.Edit("invalidate.lua",
			ends, remove+ends)(client), false},
		{faults.Seeded, "rotate.lua deletes and then writes", faults.Edit("rotate.lua",
			moves, remove+moves)(client), false},
	} {
		row := faults.Row{Kind: c.kind, Fault: "cluster, slot on its way: " + c.fault}
		timeout := 20 * time.Second
		if c.client != client || c.full { // where what is refused is tried again until its time is up
			timeout = 200 * time.Millisecond
		}
		s := newStore(t, c.client, tombstore.WithTimeout(timeout))
		for range 3 {
			slot := rand.IntN(redistest.Slots) | 1 // one that nobody else moves
			ours := func(other int) bool { return other == slot }
			ids := []string{newID(ours), newID(ours), newID(ours)}
			for _, id := range ids {
				_, err := usual.Write(t.Context(), id, []byte("live"), hour, tombstore.IfAbsent())
				require.NoError(t, err)
			}
			to := (m.from(slot) + 1) % 3
			m.begin(t, slot, to)
			if c.full {
				memory(t, "1")
			}
			_, rotation := s.Rotate(t.Context(), ids[1], tombstore.NewID())
			_, renewal := s.BeginRenewal(t.Context(), ids[2], 0)
			for i, err := range []error{s.Invalidate(t.Context(), ids[0]), rotation, renewal} {
				_, read := usual.Read(t.Context(), ids[i])
				row.Injected++
				row.Checked++
				if errors.Is(read, tombstore.ErrNotFound) || err == nil && read == nil || err != nil && read != nil {
					row.Violations++
					t.Logf("%v, and then: %v", err, read)
				}
				if c.client == client && (!c.full || i != 1) { // a move would take memory
					require.NoError(t, err)
				}
			}
			if c.full {
				memory(t, "0")
			}
			for len(m.migrate(t, slot, to, 100)) > 0 {
			}
			m.finish(t, to, slot)
			for _, id := range ids {
				require.NoError(t, usual.Invalidate(t.Context(), id))
			}
		}
		faults.Report(t, row)
	}
}
