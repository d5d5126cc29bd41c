package storetest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// left moves a session so that its old id may still read, and returns both ids.
func (c *check) left(d time.Duration, opts ...tombstore.RotateOption) (old, id string) {
	old = tombstore.NewID()
	c.write(old, "x", hour)
	_, id = c.rotate(old, append(opts, tombstore.Grace(d))...)
	return old, id
}

// reads checks that an id that was left reads what the new one has.
func (c *check) reads(old, id string) {
	want, err := c.store.Read(c, id)
	require.NoError(c, err)
	got, err := c.store.Read(c, old)
	require.NoError(c, err)
	require.Equal(c, want, got)
}

// grantsGrace reports whether a store lets an old id read at all, which one that seals data does
// not.
func grantsGrace(s tombstore.Store) bool {
	ctx, id := context.Background(), tombstore.NewID()
	if _, err := s.Write(ctx, id, nil, time.Minute); err != nil {
		return true // which the rules will tell
	}
	_, err := s.Rotate(ctx, id, tombstore.NewID(), tombstore.Grace(time.Second))
	return !errors.Is(err, errors.ErrUnsupported)
}

var noGrace = rule{"Grace/is refused, and changes nothing", func(c *check) {
	old, id := tombstore.NewID(), tombstore.NewID()
	c.write(old, "x", hour)
	_, err := c.store.Rotate(c, old, id, tombstore.Grace(time.Minute))
	require.ErrorIs(c, err, errors.ErrUnsupported)
	c.holds(old, "x")
	c.absent(id)
}}

var graces = []rule{
	{"Grace/the old id reads what the new one has", func(c *check) {
		for _, opts := range [][]tombstore.RotateOption{nil, {tombstore.WithData([]byte("y"), hour)}} {
			old, id := c.left(time.Minute, opts...)
			for range 3 {
				c.reads(old, id)
			}
			c.write(id, "z", hour)
			c.reads(old, id)
			for _, opt := range []tombstore.ReadOption{tombstore.Fresh(), tombstore.Shared()} {
				s, err := c.store.Read(c, old, opt)
				require.NoError(c, err)
				require.Equal(c, "z", string(s.Data))
			}
		}
	}},
	{"Grace/not without it", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		c.rotate(old, tombstore.Grace(0))
		c.ended(old, tombstore.Rotated)
	}},
	{"Grace/the old id does nothing but read", func(c *check) {
		old, id := c.left(time.Minute)
		s, err := c.store.Read(c, old)
		require.NoError(c, err)
		for what, revive := range revivals {
			if what != "Read Slide" {
				require.ErrorIs(c, revive(c, old, s), tombstore.ErrInvalidated, what)
			}
		}
		_, err = c.store.Rotate(c, old, tombstore.NewID(), tombstore.Grace(time.Minute))
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		exists, err := c.store.Exists(c, old)
		require.NoError(c, err)
		require.False(c, exists)
		require.Equal(c, s, c.holds(id, "x"))
		c.reads(old, id)
	}},
	{"Grace/a Slide restarts nothing", func(c *check) {
		old, id := c.left(time.Minute)
		for _, opt := range []tombstore.ReadOption{tombstore.Slide(3 * hour), tombstore.WithExpiry()} {
			s, err := c.store.Read(c, old, opt)
			require.NoError(c, err)
			c.inTime(time.Now().Add(hour), s.ExpiresAt)
			s, err = c.store.Read(c, id, tombstore.WithExpiry())
			require.NoError(c, err)
			c.inTime(time.Now().Add(hour), s.ExpiresAt)
		}
	}},
	{"Grace/it is over after its time", func(c *check) {
		old, id := c.left(instant)
		require.Eventually(c, func() bool {
			_, err := c.store.Read(c, old)
			return errors.Is(err, tombstore.ErrInvalidated)
		}, 10*time.Second, instant/10)
		c.ended(old, tombstore.Rotated)
		c.holds(id, "x")
	}},
	{"Grace/an end ends it", func(c *check) {
		old, id := c.left(time.Minute)
		c.reads(old, id)
		c.invalidate(id)
		c.ended(id, tombstore.Logout)
		c.out(old)

		old, id = c.left(time.Minute)
		c.reads(old, id)
		c.invalidate(old, tombstore.IfLive(), tombstore.WithReason(tombstore.Revoked))
		c.ended(id, tombstore.Revoked)
		c.ended(old, tombstore.Revoked)

		// One that is a step of a renewal is no end.
		old, id = c.left(time.Minute)
		c.invalidate(old, tombstore.WithReason(tombstore.Rotated))
		c.reads(old, id)
	}},
	{"Grace/the session expires", func(c *check) {
		old, id := c.left(time.Minute, tombstore.WithData([]byte("y"), instant))
		c.expires(id)
		c.ended(old, tombstore.Rotated)
	}},
	{"Grace/of several moves", func(c *check) {
		first, second := c.left(time.Minute)
		_, third := c.rotate(second, tombstore.Grace(time.Minute))
		c.reads(first, third)
		c.reads(second, third)
		_, last := c.rotate(third) // such as a login
		for _, id := range []string{first, second, third} {
			c.ended(id, tombstore.Rotated)
		}
		c.holds(last, "x")
	}},
	{"Grace/errors", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		for _, d := range []time.Duration{-1, time.Minute + 1, hour} {
			_, err := c.store.Rotate(c, id, tombstore.NewID(), tombstore.Grace(d))
			require.ErrorIs(c, err, tombstore.ErrInvalidTTL)
		}
		_, err := c.store.Rotate(c, id, tombstore.NewID(), tombstore.Grace(1), tombstore.WithLifetime(tombstore.Lifetime{}))
		require.Error(c, err)
		require.NotErrorIs(c, err, tombstore.ErrInvalidTTL)
		c.holds(id, "x")
	}},
	{"Grace/nobody reads after an end", func(c *check) {
		for _, byOld := range []bool{false, true} {
			for range 5 {
				old, id := c.left(time.Minute)
				ends := id
				if byOld {
					ends = old
				}
				var over atomic.Bool
				together(4, func(i int) {
					if i == 0 {
						assert.NoError(c, c.store.Invalidate(c, ends))
						over.Store(true)
						return
					}
					for after := false; !after; {
						after = over.Load()
						s, err := c.store.Read(c, old)
						if err == nil && !after {
							assert.Equal(c, "x", string(s.Data))
						} else {
							assert.ErrorIs(c, err, tombstore.ErrInvalidated)
						}
					}
				})
				c.out(old)
			}
		}
	}},
}

var gracesAndRenewals = []rule{
	{"Grace/the old id does not begin a renewal", func(c *check) {
		old, id := c.left(time.Minute)
		c.cannotBegin(old, tombstore.Rotated)
		c.reads(old, id)
		_, next := c.finish(c.begin(id), "y") // such as a login
		c.ended(old, tombstore.Rotated)
		c.holds(next, "y")
	}},
	{"Grace/between the halves of a renewal nobody reads", func(c *check) {
		old, id := c.left(time.Minute)
		c.begin(id)
		c.ended(old, tombstore.Rotated)
	}},
}

var gracesOfOwners = []rule{
	{"Grace/of an owner's session", func(c *check) {
		owner := tombstore.NewID()
		_, old := c.bound(owner)
		_, id := c.rotate(old, tombstore.Grace(time.Minute))
		c.reads(old, id)
		require.Len(c, c.sessions(owner), 1)
		c.endOwner(owner, 1)
		c.ended(id, tombstore.Revoked)
		c.out(old)
	}},
	{"Grace/never at a login", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		b, id := c.reserve(tombstore.NewID())
		_, err := c.store.Rotate(c, old, id, tombstore.WithBinding(b), tombstore.Grace(time.Second))
		require.Error(c, err)
		c.holds(old, "x")
		c.absent(id)
		_, err = c.store.Rotate(c, old, id, tombstore.WithBinding(b))
		require.NoError(c, err)
		c.ended(old, tombstore.Rotated)
	}},
	{"Grace/a login ends it", func(c *check) {
		old, id := c.left(time.Minute)
		b, next := c.reserve(tombstore.NewID())
		_, err := c.store.Rotate(c, id, next, tombstore.WithBinding(b), tombstore.WithData([]byte("secret"), hour))
		require.NoError(c, err)
		c.ended(old, tombstore.Rotated)
		c.ended(id, tombstore.Rotated)
	}},
}
