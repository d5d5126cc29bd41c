package cluster

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// holder returns the index of the primary that holds the key of id, wherever its slot is on its way
// to, or -1.
func holder(t *testing.T, n *redistest.Nodes, slot int, id string) int {
	t.Helper()
	for i, node := range n.Primaries {
		if holds(t, node, slot, id) {
			return i
		}
	}
	return -1
}

// stages ends sessions at each stage of the move of a slot, which waits there. A session is absent
// at first, so that its key is that of the tombstone wherever it turns up.
func stages(t *testing.T, n *redistest.Nodes, m *mover) {
	row := faults.Row{Kind: faults.Promised, Fault: "cluster, acknowledged ends at each stage of a slot's move"}
	end := func(client rueidis.Client, slot int, id string, timeout time.Duration) error {
		s := newStore(t, client, tombstore.WithReplicaAcks(1, 20*time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		err := s.Invalidate(ctx, id)
		row.Injected++
		row.Checked++
		at := holder(t, n, slot, id)
		switch {
		case at < 0 && (err == nil || errors.Is(err, tombstore.ErrUnacknowledged)):
			row.Violations++
			t.Logf("violation: no node has the tombstone: %v", err)
		case err == nil && !holds(t, n.Replicas[at], slot, id):
			row.Violations++
			t.Log("violation: acknowledged, but the replica does not have the tombstone")
		}
		return err
	}
	in := func(slot int) func(int) bool { return func(other int) bool { return other == slot } }

	until := time.Now().Add(faults.Duration(t, 0))
	for first := true; first || time.Now().Before(until); first = false {
		slot := rand.IntN(redistest.Slots) | 1 // one that nobody else moves
		client := dial(t, n)                   // which does not know of any move
		gone, stays := newID(in(slot)), newID(in(slot))
		require.NoError(t, newStore(t, client).Invalidate(t.Context(), gone))
		to := (m.from(slot) + 1) % 3
		require.NoError(t, end(client, slot, newID(in(slot)), patience), "at rest")

		m.begin(t, slot, to)
		require.NoError(t, end(client, slot, gone, patience), "on its way, and the key is still here")
		m.migrate(t, slot, to, 100)
		// Nobody waits for replicas by ASK.
		require.Error(t, end(client, slot, gone, 500*time.Millisecond), "the key has gone ahead")
		require.Error(t, end(client, slot, stays, 500*time.Millisecond), "a key that is nowhere")
		m.migrate(t, slot, to, 100)
		m.finish(t, to, slot)
		stale := dial(t, n)
		require.NoError(t, end(client, slot, stays, patience), "the slot has arrived")

		// A client that learns of the move by MOVED alone.
		m.move(t, []int{slot}, func() {})
		require.NoError(t, end(stale, slot, newID(in(slot)), patience), "moved behind the client's back")
	}
	faults.Report(t, row)
}

// naive ends sessions by one batch of invalidate.lua and WAIT, as one would for a single server.
func naive(t *testing.T, n *redistest.Nodes, m *mover) {
	client := dial(t, n)
	source, err := os.ReadFile("../../../scripts/invalidate.lua")
	require.NoError(t, err)
	sum := sha1.Sum(source)
	for _, node := range n.Primaries {
		node.Do(t, "SCRIPT", "LOAD", string(source))
	}
	const tombstone = "\xc0\x00\x01\x00\x00\x00\x00\x00\x01" // its field t
	end := func(id string) (acks int64, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		script := client.B().Evalsha().Sha1(hex.EncodeToString(sum[:])).Numkeys(1).Key(keyOf(id)).Arg(tombstone, "60000").Build()
		wait := client.B().Wait().Numreplicas(1).Timeout(300).Build()
		results := client.DoMulti(t.Context(), script, wait.SetSlot(keyOf(id)))
		if err := results[0].Error(); err != nil {
			return 0, err
		}
		return results[1].AsInt64()
	}

	seeded := func(what string) faults.Row {
		return faults.Row{Kind: faults.Seeded, Fault: "cluster, EVALSHA and WAIT in one batch: " + what, Injected: 1, Checked: 1}
	}
	moved, asked := seeded("acknowledged by the wrong node's replica"), seeded("panic at ASK")
	slot := 1001
	id := newID(func(other int) bool { return other == slot })
	to := (m.from(slot) + 1) % 3
	m.begin(t, slot, to)
	if _, err = end(id); err != nil {
		require.ErrorContains(t, err, "panic: ")
		asked.Violations++
	}
	for len(m.migrate(t, slot, to, 100)) > 0 {
	}
	client = dial(t, n) // knows the old owner
	m.finish(t, to, slot)
	n.Replicas[to].Kill(t) // so it has nothing that comes from here on
	id = newID(func(other int) bool { return other == slot })
	acks, err := end(id)
	require.NoError(t, err)
	require.True(t, holds(t, n.Primaries[to], slot, id))
	moved.Violations = acks
	err = newStore(t, client, tombstore.WithReplicaAcks(1, 300*time.Millisecond)).Invalidate(t.Context(), id)
	require.ErrorIs(t, err, tombstore.ErrUnacknowledged)
	faults.Report(t, asked)
	faults.Report(t, moved)
}

// acknowledgedEnds ends sessions while their slots move. When a call has returned nil the move
// stands still, and the replica of the node that then holds the tombstone must have it.
func acknowledgedEnds(t *testing.T, n *redistest.Nodes, m *mover) {
	client := dial(t, n)
	const forReplicas = 500 * time.Millisecond
	s := newStore(t, client, tombstore.WithReplicaAcks(1, forReplicas), tombstore.WithTimeout(5*time.Second))
	count := &tally{t: t}
	var still sync.RWMutex // held by the mover except when it pauses
	var migrations atomic.Int64
	var unacknowledged, movedOn, late atomic.Int64
	var mu sync.Mutex
	var longest time.Duration

	workers := newCrew(t)
	for range 4 {
		workers.repeat(0, func() {
			id := newID(func(slot int) bool { return slot%1024 == 0 })
			slot := slotOf(id)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			before, begun := migrations.Load(), time.Now()
			err := s.Invalidate(ctx, id)
			took := time.Since(begun)
			cancel()
			mu.Lock()
			longest = max(longest, took)
			mu.Unlock()
			if took > forReplicas {
				late.Add(1)
			}
			if errors.Is(err, tombstore.ErrUnacknowledged) {
				unacknowledged.Add(1)
				return
			}
			if !count.done("end", err) {
				return
			}
			still.RLock()
			defer still.RUnlock()
			at := holder(t, n, slot, id)
			if count.check(at >= 0, "a node has the tombstone", nil) {
				held := holds(t, n.Replicas[at], slot, id)
				if !held && migrations.Load() != before { // it may have moved on since, and keys move without waiting for replicas
					movedOn.Add(1)
					for until := time.Now().Add(20 * time.Second); !held && time.Now().Before(until); {
						time.Sleep(time.Millisecond)
						held = holds(t, n.Replicas[at], slot, id)
					}
				}
				count.check(held, "the replica has the tombstone", nil)
			}
		})
	}
	r := newRedirections(t, n)
	for until := time.Now().Add(faults.Duration(t, 2*time.Second)); time.Now().Before(until) || r.missing(t); {
		func() {
			still.Lock()
			defer still.Unlock()
			m.move(t, []int{rand.IntN(16) * 1024}, func() {
				migrations.Add(1)
				still.Unlock()
				time.Sleep(10 * time.Millisecond)
				still.Lock()
			})
		}()
	}
	workers.dismiss()
	ask, moved := r.count(t)
	t.Logf("ASK %d, MOVED %d; %d calls were not acknowledged, %d tombstones moved on", ask, moved, unacknowledged.Load(), movedOn.Load())
	t.Logf("%d calls took longer than the %v for replicas, the longest %v of 5s", late.Load(), forReplicas, longest)
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "cluster, slots moving (ASK, MOVED): acknowledged ends", Injected: ask + moved,
		Checked: count.checked.Load(), Violations: count.violations.Load(),
	})
}
