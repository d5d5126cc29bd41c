// Package storetest tests that an implementation of tombstore.Store keeps to its contract, races included.
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) tombstore.Store { return newMyStore(t) })
//	}
package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// Run runs every rule of the contract as a parallel subtest on a store of its own. newStore may return the same store each
// time, since the tests use ids that nobody else has; it ends what it starts with t.Cleanup. The store's tombstone TTL must
// be at least a minute, and its absolute timeout, if it has one, an hour.
func Run(t *testing.T, newStore func(t *testing.T) tombstore.Store) {
	t.Helper()
	for _, r := range append(append(rules[:len(rules):len(rules)], refusals()...), races...) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.test(&check{TestingT: t, Context: t.Context(), store: newStore(t)})
		})
	}
}

// rule is one sentence of the contract.
type rule struct {
	name string
	test func(c *check)
}

// check is the test of one rule on one store. It takes less than a testing.T so that the rules can be tested themselves.
type check struct {
	require.TestingT
	context.Context
	store tombstore.Store
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

// briefly writes "x" for an instant and calls next before that is over: again, with another id, if a busy machine was too slow.
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

// expires waits until id is no longer live. It must not be read meanwhile, since a store may slide on every read.
func (c *check) expires(id string) {
	require.Eventually(c, func() bool {
		exists, err := c.store.Exists(c, id)
		return err == nil && !exists
	}, 10*time.Second, instant/10)
}

// outlast waits until a session written now with a TTL of an instant has expired: every other one has then, too.
func (c *check) outlast() {
	id := tombstore.NewID()
	c.write(id, "", instant)
	c.expires(id)
}
