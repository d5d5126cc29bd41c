// Package cluster breaks a cluster of six nodes: slots move, primaries are lost, rotations stop
// half-way.
package cluster

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
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

const (
	hour     = time.Hour
	patience = 60 * time.Second
	prefix   = "tombstore:"
)

// crew are goroutines that do the same again and again.
type crew struct {
	stop chan struct{}
	once sync.Once
	sync.WaitGroup
}

// newCrew returns a crew that is dismissed when the test ends, at the latest.
func newCrew(t *testing.T) *crew {
	c := &crew{stop: make(chan struct{})}
	t.Cleanup(c.dismiss)
	return c
}

// repeat does work again and again, with pauses, from now on.
func (c *crew) repeat(pause time.Duration, work func()) {
	c.Go(func() {
		for {
			select {
			case <-c.stop:
				return
			case <-time.After(pause):
				work()
			}
		}
	})
}

func (c *crew) dismiss() {
	c.once.Do(func() { close(c.stop) })
	c.Wait()
}

// calm is the timeout of nodes that are not lost: none is to be taken for lost because the machine
// is busy.
const calm = 10 * time.Minute

func start(t *testing.T, timeout time.Duration) *redistest.Nodes {
	t.Helper()
	if redistest.InContainer() {
		t.Skip("the servers are containers, which do not reach each other")
	}
	return redistest.StartNodes(t, timeout)
}

func dial(t *testing.T, n *redistest.Nodes) rueidis.Client {
	t.Helper()
	return connect(t, n, rueidis.ClientOption{DisableCache: true, DisableRetry: true})
}

func dialCached(t *testing.T, n *redistest.Nodes) rueidis.Client {
	t.Helper()
	return connect(t, n, rueidis.ClientOption{DisableRetry: true})
}

func connect(t *testing.T, n *redistest.Nodes, option rueidis.ClientOption) rueidis.Client {
	t.Helper()
	for _, node := range n.All() {
		option.InitAddress = append(option.InitAddress, node.Addr)
	}
	client, err := rueidis.NewClient(option)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func newStore(t *testing.T, client rueidis.Client, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	s, err := tombstore.New(client, append([]tombstore.Option{tombstore.WithTimeout(30 * time.Second)}, opts...)...)
	require.NoError(t, err)
	return s
}

func keyOf(id string) string { return prefix + tombstore.Ref(id) }

func slotOf(id string) int { return faults.Slot(keyOf(id)) }

// newID returns a new id whose slot is one of those wanted.
func newID(wanted func(slot int) bool) string {
	return faults.NewID(func(id string) bool { return wanted(slotOf(id)) })
}

// errorReplies counts the error replies of this kind that all nodes have given.
func errorReplies(t *testing.T, n *redistest.Nodes, kind string) (sum int64) {
	t.Helper()
	for _, node := range n.All() {
		_, rest, found := strings.Cut(node.Do(t, "INFO", "errorstats"), "errorstat_"+kind+":count=")
		if !found {
			continue
		}
		digits, _, _ := strings.Cut(rest, "\r\n")
		count, err := strconv.ParseInt(digits, 10, 64)
		require.NoError(t, err)
		sum += count
	}
	return sum
}

// redirections counts what the nodes redirect from its making on.
type redirections struct {
	*redistest.Nodes
	ask, moved int64 // before
}

func newRedirections(t *testing.T, n *redistest.Nodes) *redirections {
	t.Helper()
	return &redirections{n, errorReplies(t, n, "ASK"), errorReplies(t, n, "MOVED")}
}

func (r *redirections) count(t *testing.T) (ask, moved int64) {
	t.Helper()
	return errorReplies(t, r.Nodes, "ASK") - r.ask, errorReplies(t, r.Nodes, "MOVED") - r.moved
}

// missing reports whether one of the two has not come yet.
func (r *redirections) missing(t *testing.T) bool {
	t.Helper()
	ask, moved := r.count(t)
	return ask == 0 || moved == 0
}

// tally counts what is checked.
type tally struct {
	t                                    *testing.T
	checked, violations, unknown, failed atomic.Int64
}

// check counts one fact that must hold.
func (c *tally) check(ok bool, what string, err error) bool {
	c.checked.Add(1)
	if !ok {
		c.violations.Add(1)
		c.t.Logf("violation: %s: %v", what, err)
	}
	return ok
}

// broke reports whether err is neither nil nor one of the answers of a session, which is not what
// is checked here. It is counted.
func (c *tally) broke(err error) bool {
	switch {
	case err == nil, errors.Is(err, tombstore.ErrNotFound), errors.Is(err, tombstore.ErrInvalidated), errors.Is(err, tombstore.ErrConflict):
		return false
	case errors.Is(err, tombstore.ErrUnknownOutcome):
		c.unknown.Add(1)
	default:
		c.failed.Add(1)
		var reply *rueidis.RedisError
		_ = errors.As(err, &reply)
		c.t.Logf("failed: %v (%v)", err, reply)
	}
	return true
}

// done checks that an operation that nothing stands against has succeeded. It returns false if it
// has not, or broke.
func (c *tally) done(what string, err error) bool {
	return !c.broke(err) && c.check(err == nil, what, err)
}

// ended checks that an operation has found an ended session.
func (c *tally) ended(what string, err error) bool {
	return !c.broke(err) && c.check(errors.Is(err, tombstore.ErrInvalidated), what, err)
}

// mover moves slots with their keys from primary to primary.
type mover struct {
	*redistest.Nodes
	owner map[int]int // index of the primary of a slot, if it has been moved
}

func newMover(n *redistest.Nodes) *mover { return &mover{n, map[int]int{}} }

// from returns the primary that a slot is at.
func (m *mover) from(slot int) int {
	if i, moved := m.owner[slot]; moved {
		return i
	}
	for i := range m.Primaries {
		if slot < (i+1)*redistest.Slots/len(m.Primaries) {
			return i
		}
	}
	panic("no such slot")
}

// set sends CLUSTER SETSLOT, again while the replicas are too busy to confirm it, which Valkey
// waits for.
func (m *mover) set(t *testing.T, node, slot int, state string, other int) {
	t.Helper()
	var err error
	redistest.Until(t, "SETSLOT is taken", func() bool {
		err = m.Primaries[node].Try("CLUSTER", "SETSLOT", strconv.Itoa(slot), state, m.Primaries[other].ID)
		if err != nil {
			require.ErrorContains(t, err, "NOREPLICAS")
		}
		return err == nil
	})
}

// begin marks a slot as on its way to another primary.
func (m *mover) begin(t *testing.T, slot, to int) {
	t.Helper()
	from := m.from(slot)
	m.set(t, to, slot, "IMPORTING", from)
	m.set(t, from, slot, "MIGRATING", to)
}

// migrate moves up to n keys of a slot and returns them.
func (m *mover) migrate(t *testing.T, slot, to, n int) []string {
	t.Helper()
	from := m.Primaries[m.from(slot)]
	keys := keysIn(t, from, slot, n)
	if len(keys) > 0 {
		from.Do(t, append([]string{"MIGRATE", "127.0.0.1", m.Primaries[to].Port(), "", "0", "20000", "KEYS"}, keys...)...)
	}
	return keys
}

// finish makes to the owner of slots whose keys have all been moved, and waits until every node
// knows. Two that claim one slot at the same time, each with what it knew, would end with the loser
// deleting the slot's keys.
func (m *mover) finish(t *testing.T, to int, slots ...int) {
	t.Helper()
	for _, slot := range slots {
		from := m.from(slot)
		for _, i := range []int{to, from, 3 - to - from} {
			m.set(t, i, slot, "NODE", to)
		}
		m.owner[slot] = to
	}
	redistest.Until(t, "the nodes agree who owns the slots", func() bool {
		first := ""
		for _, node := range m.All() {
			view, sound := primariesAt(t, node)
			if first == "" {
				first = view
			}
			if !sound || view != first {
				return false
			}
		}
		return true
	})
}

// primariesAt returns which primaries a node knows, with their epochs and slots, and whether no two
// have the same epoch.
func primariesAt(t *testing.T, node *redistest.Node) (view string, sound bool) {
	t.Helper()
	var lines []string
	seen := map[string]bool{}
	text := strings.TrimPrefix(node.Do(t, "CLUSTER", "NODES"), "txt:") // of a RESP3 verbatim string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line) // id, address, flags, primary, ping, pong, epoch, link, slots
		if len(fields) < 8 || !strings.Contains(fields[2], "master") {
			continue
		}
		epoch := fields[6]
		sound, seen[epoch] = !seen[epoch] && (sound || len(seen) == 0), true
		slots := slices.DeleteFunc(fields[8:], func(s string) bool { return strings.HasPrefix(s, "[") }) // those on their way
		lines = append(lines, fields[0]+" "+epoch+" "+strings.Join(slots, " "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), sound
}

// move moves slots to one primary, except those that are there, and calls pause between two steps.
func (m *mover) move(t *testing.T, slots []int, pause func()) {
	t.Helper()
	to, half := (m.from(slots[0])+1+rand.IntN(2))%3, map[int]int{}
	slots = slices.DeleteFunc(slices.Clone(slots), func(slot int) bool { return m.from(slot) == to })
	for _, slot := range slots {
		m.begin(t, slot, to)
		half[slot] = max(1, len(keysIn(t, m.Primaries[m.from(slot)], slot, 100000))/2)
	}
	for left := slots; len(left) > 0; {
		pause()
		left = slices.DeleteFunc(slices.Clone(left), func(slot int) bool { return len(m.migrate(t, slot, to, half[slot])) == 0 })
	}
	m.finish(t, to, slots...)
	pause()
}

// keysIn returns up to n keys of a slot that a node holds, whoever owns the slot.
func keysIn(t *testing.T, node *redistest.Node, slot, n int) []string {
	t.Helper()
	command := node.Client.B().Arbitrary("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), strconv.Itoa(n)).Build()
	keys, err := node.Client.Do(t.Context(), command).AsStrSlice()
	require.NoError(t, err)
	return keys
}

func holds(t *testing.T, node *redistest.Node, slot int, id string) bool {
	t.Helper()
	return slices.Contains(keysIn(t, node, slot, 100000), keyOf(id))
}
