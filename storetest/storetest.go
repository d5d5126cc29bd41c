// Package storetest tests that an implementation of tombstore.Store keeps to its contract, races
// included.
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) tombstore.Store { return newMyStore(t) })
//	}
package storetest

import (
	"context"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// Run runs every rule of the contract as a parallel subtest on a store of its own. Those of
// tombstore.Renewer, tombstore.Lister, tombstore.Binder and tombstore.Watcher are run if the store
// implements them; a Watcher must tell of ends at once. newStore may return the same store each
// time, since the tests use ids that nobody else has; it ends what it starts with t.Cleanup. The
// store's tombstone TTL must be at least a minute, and its absolute timeout, if it has one, an
// hour. Under -short the races play a fifth of their rounds.
func Run(t *testing.T, newStore func(t *testing.T) tombstore.Store) {
	t.Helper()
	for _, r := range rulesFor(newStore(t)) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := newCheck(t, t.Context(), newStore(t))
			if testing.Short() {
				c.step = 5 // odd: many rounds change sides with each number
			}
			r.test(c)
		})
	}
}

// rule is one sentence of the contract.
type rule struct {
	name string
	test func(c *check)
}

// rulesFor returns the rules that s has to keep.
func rulesFor(s tombstore.Store) []rule {
	all := slices.Concat(rules, refusals(), races, lifetimes)
	_, renews := s.(tombstore.Renewer)
	_, lists := s.(tombstore.Lister)
	_, binds := s.(tombstore.Binder)
	_, watches := s.(tombstore.Watcher)
	if renews {
		all = slices.Concat(all, renewals, renewalEnds(false), lateSaves(), lifetimesAndRenewals)
	}
	if lists {
		all = slices.Concat(all, listings)
	}
	if renews && lists {
		all = slices.Concat(all, renewalsInLists, renewalEnds(true))
	}
	if binds {
		all = slices.Concat(all, owners, lifetimesOfOwners)
	}
	if binds && renews {
		all = slices.Concat(all, ownersAndRenewals)
	}
	switch grants := grantsGrace(s); {
	case !grants:
		all = append(all, noGrace)
	case binds:
		all = slices.Concat(all, gracesOfOwners)
		fallthrough
	default:
		all = slices.Concat(all, graces)
		if renews {
			all = slices.Concat(all, gracesAndRenewals)
		}
	}
	if watches {
		all = slices.Concat(all, watchings)
	}
	if watches && renews {
		all = slices.Concat(all, watchedRenewals)
	}
	if watches && binds {
		all = slices.Concat(all, watchedOwners)
	}
	return all
}

// check is the test of one rule on one store. It takes less than a testing.T so that the rules can
// be tested themselves.
type check struct {
	require.TestingT
	context.Context
	store   tombstore.Store
	renewer tombstore.Renewer // store, or nil
	lister  tombstore.Lister  // store, or nil
	binder  tombstore.Binder  // store, or nil
	watcher tombstore.Watcher // store, or nil

	patience time.Duration // for what must come at once, on a busy machine too
	step     int           // of a race's rounds, each step-th is played
}

func newCheck(t require.TestingT, ctx context.Context, s tombstore.Store) *check {
	renewer, _ := s.(tombstore.Renewer)
	lister, _ := s.(tombstore.Lister)
	binder, _ := s.(tombstore.Binder)
	watcher, _ := s.(tombstore.Watcher)
	return &check{
		TestingT: t, Context: ctx, store: s, renewer: renewer, lister: lister, binder: binder, watcher: watcher,
		patience: 10 * time.Second, step: 1,
	}
}

// rounds yields the rounds of a race that are played, of n.
func (c *check) rounds(n int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for round := 0; round < n; round += c.step {
			if !yield(round) {
				return
			}
		}
	}
}

const (
	hour    = time.Hour
	instant = 50 * time.Millisecond // a TTL that a test waits for
)

// write writes data that must be accepted.
func (c *check) write(id, data string, ttl time.Duration, opts ...tombstore.WriteOption) tombstore.Session {
	s, err := c.store.Write(c, id, []byte(data), ttl, opts...)
	require.NoError(c, err)
	require.Equal(c, data, string(s.Data))
	require.NotZero(c, s.Version)
	return s
}

// briefly writes "x" for an instant and calls next before that is over: again, with another id, if
// a busy machine was too slow.
func (c *check) briefly(next func(s tombstore.Session, id string) error) (tombstore.Session, string) {
	for tries := 1; ; tries++ {
		id, begun := tombstore.NewID(), time.Now()
		s := c.write(id, "x", instant)
		if err := next(s, id); err == nil || time.Since(begun) < instant || tries == 50 {
			require.NoError(c, err)
			return s, id
		}
	}
}

// invalidate ends a session, which must succeed.
func (c *check) invalidate(id string, opts ...tombstore.InvalidateOption) {
	require.NoError(c, c.store.Invalidate(c, id, opts...))
}

// holds checks that id is live with this data.
func (c *check) holds(id, data string) tombstore.Session {
	s, err := c.store.Read(c, id)
	require.NoError(c, err)
	require.Equal(c, data, string(s.Data))
	exists, err := c.store.Exists(c, id)
	require.NoError(c, err)
	require.True(c, exists)
	return s
}

// ended checks that id was ended for a reason.
func (c *check) ended(id string, reason tombstore.Reason) *tombstore.InvalidatedError {
	_, err := c.store.Read(c, id)
	require.ErrorIs(c, err, tombstore.ErrInvalidated)
	require.NotErrorIs(c, err, tombstore.ErrNotFound)
	var ended *tombstore.InvalidatedError
	require.ErrorAs(c, err, &ended)
	require.Equal(c, reason, ended.Reason)
	require.WithinDuration(c, time.Now(), ended.At, hour) // the clocks may differ
	exists, err := c.store.Exists(c, id)
	require.NoError(c, err)
	require.False(c, exists)
	return ended
}

// absent checks that there is nothing at id.
func (c *check) absent(id string) {
	_, err := c.store.Read(c, id)
	require.ErrorIs(c, err, tombstore.ErrNotFound)
	require.NotErrorIs(c, err, tombstore.ErrInvalidated)
	exists, err := c.store.Exists(c, id)
	require.NoError(c, err)
	require.False(c, exists)
}

// out checks that nobody is let in with id.
func (c *check) out(id string) {
	_, err := c.store.Read(c, id)
	require.True(c, tombstore.NoSession(err), "reading got %v", err)
	exists, err := c.store.Exists(c, id)
	require.NoError(c, err)
	require.False(c, exists)
}

// live returns those of ids that are live.
func (c *check) live(ids []string) (live []string) {
	for _, id := range ids {
		exists, err := c.store.Exists(c, id)
		require.NoError(c, err)
		if exists {
			live = append(live, id)
		}
	}
	return live
}

// rotate moves a session to a new id, which must succeed.
func (c *check) rotate(oldID string, opts ...tombstore.RotateOption) (tombstore.Session, string) {
	id := tombstore.NewID()
	s, err := c.store.Rotate(c, oldID, id, opts...)
	require.NoError(c, err)
	return s, id
}

// canceled returns c with a context that has ended.
func (c *check) canceled() *check {
	gone := *c
	ctx, cancel := context.WithCancel(c.Context)
	cancel()
	gone.Context = ctx
	return &gone
}

// expires waits until id is no longer live. It must not be read meanwhile, since a store may slide
// on every read.
func (c *check) expires(id string) {
	require.Eventually(c, func() bool {
		exists, err := c.store.Exists(c, id)
		return err == nil && !exists
	}, c.patience, instant/10)
}

// outlast waits until a session written now with a TTL of an instant has expired: every other one
// has then, too.
func (c *check) outlast() {
	id := tombstore.NewID()
	c.write(id, "", instant)
	c.expires(id)
}
