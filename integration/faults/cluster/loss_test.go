package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

const lossTimeout = 5 * time.Second // for a primary to answer; a shorter one would lose nodes of a busy machine by itself

// TestPrimaryLost kills one primary after another, each in the middle of traffic and at a step of a
// rotation. Its replica, which has just ceased to follow it, is promoted by the cluster.
func TestPrimaryLost(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	n := start(t, lossTimeout)
	l := &loss{Nodes: n, t: t, client: dial(t, n), mover: newMover(n), count: &tally{t: t}}
	l.store = newStore(t, l.client, tombstore.WithTimeout(patience))
	l.acked = newStore(t, l.client, tombstore.WithTimeout(patience), tombstore.WithReplicaAcks(1, time.Second))
	l.lists = faults.Row{Kind: faults.Promised, Fault: "cluster, primary lost: List is complete or fails"}
	l.ends = faults.Row{Kind: faults.Promised, Fault: "cluster, primary lost: ends and rotations acknowledged by its replica"}
	l.plain = faults.Row{Kind: faults.Unpromised, Fault: "cluster, primary lost: ends without acknowledgements"}

	until := time.Now().Add(faults.Duration(t, 0))
	for l.round(rand.IntN(8)); time.Now().Before(until); {
		l.Primaries[l.victim].Restart(t)
		l.Primaries[l.victim], l.Replicas[l.victim] = l.Replicas[l.victim], l.Primaries[l.victim]
		l.AwaitReady(t)
		l.round(rand.IntN(8))
	}
	l.listWithoutShard()

	t.Logf("%d operations of unknown outcome, %d failed; %d of %d lists failed", l.count.unknown.Load(), l.count.failed.Load(),
		l.listsFailed, l.lists.Checked)
	faults.Report(t, l.lists)
	faults.Report(t, l.ends)
	faults.Report(t, l.plain)
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "cluster, primary lost: live sessions that its replica had, and ended ones", Injected: l.ends.Injected,
		Checked: l.count.checked.Load(), Violations: l.count.violations.Load(),
	})
}

type loss struct {
	*redistest.Nodes
	t            *testing.T
	client       rueidis.Client
	mover        *mover
	store, acked *tombstore.RedisStore
	count        *tally
	victim       int // index of the primary that is killed
	live         []string
	lists        faults.Row
	listsFailed  int
	ends, plain  faults.Row
	acknowledged list // ended, and the call has returned nil
}

// list is a list of ids that goroutines share.
type list struct {
	mu  sync.Mutex
	ids []string
}

func (l *list) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = append(l.ids, id)
}

func (l *list) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[:len(l.ids):len(l.ids)]
}

// create stores sessions in the shard of one primary and waits until its replica has them.
func (l *loss) create(shard, n int) (ids []string) {
	l.t.Helper()
	for range n {
		ids = append(ids, l.newID(shard))
		_, err := l.store.Write(l.t.Context(), ids[len(ids)-1], []byte(mine), hour)
		require.NoError(l.t, err)
	}
	redistest.Until(l.t, "the replica has all", func() bool { return l.acked.Invalidate(l.t.Context(), l.newID(shard)) == nil })
	return ids
}

func (l *loss) newID(shard int) string {
	return newID(func(slot int) bool { return l.mover.from(slot) == shard })
}

// round kills a primary. kind says whether it is that of the old or of the new id of a rotation,
// and at which of four steps.
func (l *loss) round(kind int) {
	t, ctx := l.t, l.t.Context()
	l.victim = rand.IntN(len(l.Primaries))
	if role, err := l.Replicas[l.victim].Ask("INFO", "replication"); err == nil && strings.Contains(role, "role:master") { // promoted unasked
		l.Primaries[l.victim], l.Replicas[l.victim] = l.Replicas[l.victim], l.Primaries[l.victim]
	}
	primary, heir := l.Primaries[l.victim], l.Replicas[l.victim]
	l.acknowledged = list{}
	l.live = nil
	for shard := range l.Primaries {
		l.live = append(l.live, l.create(shard, 10)...)
	}
	unguarded := l.create(l.victim, 10)
	r := &rotation{store: l.store, old: l.create(l.victim, 1)[0], new: l.newID((l.victim + 1) % 3)}
	if kind%2 == 1 {
		r.old, r.new = l.create((l.victim+1)%3, 1)[0], l.newID(l.victim)
	}

	const pause = 5 * time.Millisecond // or the nodes have no time to find out about each other
	workers := newCrew(t)
	for range 2 {
		workers.repeat(pause, func() { useLive(t, l.count, l.store, l.live[rand.IntN(len(l.live))]) })
		workers.repeat(pause, func() { l.end() })
	}
	workers.repeat(pause, func() { l.rotate() })
	workers.repeat(pause, func() { l.late() })
	workers.repeat(pause, func() { l.list(l.live) })
	redistest.Until(l.t, "traffic", func() bool { return len(l.acknowledged.all()) >= 30 })

	kill := func() {
		heir.Pause(t)
		primary.Do(t, "CLIENT", "KILL", "TYPE", "replica") // what is ended from here on never reaches the heir
		for _, id := range unguarded {
			require.NoError(t, l.store.Invalidate(ctx, id))
		}
		primary.Kill(t)
		heir.Resume(t)
	}
	b := &breaker{Client: l.client, at: 1 + kind/2, meet: kill}
	dying, err := tombstore.New(b, tombstore.WithTimeout(patience), tombstore.WithReplicaAcks(1, time.Second))
	require.NoError(t, err)
	_, err = dying.Rotate(ctx, r.old, r.new)
	l.count.check(!errors.Is(err, tombstore.ErrNotFound), "the rotation that the primary was lost in", err)
	if err == nil {
		l.acknowledged.add(r.old)
	}
	t.Logf("kind %d, the rotation that the primary was lost in: %v", kind, err)
	redistest.Until(l.t, "the replica is promoted", func() bool {
		role, err := heir.Ask("INFO", "replication")
		return err == nil && strings.Contains(role, "role:master")
	})
	before := len(l.acknowledged.all())
	redistest.Until(l.t, "traffic after the loss", func() bool { return len(l.acknowledged.all()) >= before+5 })
	workers.dismiss()

	l.ends.Injected++
	l.lists.Injected++
	for _, id := range l.acknowledged.all() {
		l.ends.Checked++
		_, read := l.store.Read(ctx, id)
		_, write := l.store.Write(ctx, id, nil, hour, tombstore.IfPresent())
		if !errors.Is(read, tombstore.ErrInvalidated) || !errors.Is(write, tombstore.ErrInvalidated) {
			l.ends.Violations++
			t.Logf("violation: an acknowledged end is lost: %v, %v", read, write)
		}
	}
	l.plain.Injected++
	for _, id := range unguarded {
		l.plain.Checked++
		if _, err := l.store.Read(ctx, id); err == nil {
			l.plain.Violations++
		}
	}
	for _, id := range l.live {
		_, err := l.store.Read(ctx, id)
		l.count.done("read", err)
	}
}

// end ends a session. With a primary that has lost its replica, nothing is acknowledged: that is
// not counted.
func (l *loss) end() {
	id := tombstore.NewID()
	if _, err := l.store.Write(l.t.Context(), id, []byte(mine), hour); l.count.broke(err) {
		return
	}
	switch err := l.acked.Invalidate(l.t.Context(), id); {
	case err == nil:
		l.acknowledged.add(id)
	case !errors.Is(err, tombstore.ErrUnacknowledged):
		l.count.broke(err)
	}
}

func (l *loss) rotate() {
	old, next := tombstore.NewID(), tombstore.NewID()
	if _, err := l.store.Write(l.t.Context(), old, []byte(mine), hour); l.count.broke(err) {
		return
	}
	switch _, err := l.acked.Rotate(l.t.Context(), old, next); {
	case err == nil:
		l.acknowledged.add(old)
		if err := l.acked.Invalidate(l.t.Context(), old); err == nil { // it has left that id
			l.acknowledged.add(next)
		}
	case !errors.Is(err, tombstore.ErrUnacknowledged):
		l.count.broke(err)
	}
}

// late writes to an ended session.
func (l *loss) late() {
	ids := l.acknowledged.all()
	if len(ids) == 0 {
		time.Sleep(time.Millisecond)
		return
	}
	id := ids[rand.IntN(len(ids))]
	_, err := l.store.Write(l.t.Context(), id, []byte("late"), hour)
	l.count.ended("late write", err)
	r := tombstore.Renewal{Ref: tombstore.Ref(id), Claim: 1}
	_, err = l.store.FinishRenewal(l.t.Context(), r, tombstore.NewID(), nil, hour)
	l.count.ended("late renewal", err)
}

// list lists, and what it lists without an error must have all of want.
func (l *loss) list(want []string) {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Second)
	defer cancel()
	listed := map[string]bool{}
	l.lists.Checked++
	for entry, err := range l.store.List(ctx) {
		if err != nil {
			l.listsFailed++
			return
		}
		listed[entry.Ref] = true
	}
	for _, id := range want {
		if !listed[tombstore.Ref(id)] {
			l.lists.Violations++
			l.t.Log("violation: a list without error lacks a session")
			return
		}
	}
}

// listWithoutShard kills the promoted replica too, so that the shard is gone, and lists until the
// others and the client know.
func (l *loss) listWithoutShard() {
	heir := l.Replicas[l.victim]
	var others []*redistest.Node
	for i := range l.Primaries {
		if i != l.victim {
			others = append(others, l.Primaries[i])
		}
	}
	for _, node := range others { // those that are left go on without it
		node.Do(l.t, "CONFIG", "SET", "cluster-require-full-coverage", "no")
	}
	heir.Kill(l.t)
	l.lists.Injected++
	impatient := newStore(l.t, l.client, tombstore.WithTimeout(100*time.Millisecond))
	after := 0 // it is known
	redistest.Until(l.t, "the loss is known", func() bool {
		_, _ = impatient.Read(l.t.Context(), l.newID(l.victim)) // makes the client look at the cluster again
		l.list(l.live)
		if view, err := others[0].Ask("CLUSTER", "NODES"); err == nil && failed(view, heir.ID) {
			after++
		}
		return after == 20
	})
}

// failed reports whether CLUSTER NODES says that a node has failed.
func failed(view, id string) bool {
	for line := range strings.Lines(view) {
		if words := strings.Fields(line); strings.HasSuffix(words[0], id) {
			return strings.Contains(words[2], ",fail") && !strings.Contains(words[2], "fail?")
		}
	}
	return false
}
