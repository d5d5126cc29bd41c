package storetest

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// begin begins a renewal, which must succeed.
func (c *check) begin(id string) tombstore.Renewal {
	r, err := c.renewer.BeginRenewal(c, id, 0)
	require.NoError(c, err)
	return r
}

// giveUp begins a renewal and gives it up.
func (c *check) giveUp(id string) tombstore.Renewal {
	r := c.begin(id)
	require.NoError(c, c.renewer.CancelRenewal(c, r))
	return r
}

// cannotBegin checks that a session cannot be renewed because it was ended.
func (c *check) cannotBegin(id string, reason tombstore.Reason) {
	_, err := c.renewer.BeginRenewal(c, id, 0)
	var ended *tombstore.InvalidatedError
	require.True(c, errors.As(err, &ended), "beginning got %v", err)
	require.Equal(c, reason, ended.Reason)
}

// finish finishes a renewal, which must succeed.
func (c *check) finish(r tombstore.Renewal, data string) (tombstore.Session, string) {
	id := tombstore.NewID()
	s, err := c.renewer.FinishRenewal(c, r, id, []byte(data), hour)
	require.NoError(c, err)
	require.Equal(c, data, string(s.Data))
	return s, id
}

// refused checks that a renewal cannot be finished because the session was ended.
func (c *check) refused(r tombstore.Renewal, reason tombstore.Reason) {
	id := tombstore.NewID()
	_, err := c.renewer.FinishRenewal(c, r, id, []byte("x"), hour)
	var ended *tombstore.InvalidatedError
	require.True(c, errors.As(err, &ended), "finishing got %v", err)
	require.Equal(c, reason, ended.Reason)
	c.out(id)
}

// renew is both halves of a renewal, as a racer.
func (c *check) renew(oldID, newID, data string) error {
	r, err := c.renewer.BeginRenewal(c, oldID, 0)
	if err == nil {
		_, err = c.renewer.FinishRenewal(c, r, newID, []byte(data), hour)
	}
	return err
}

// foreign returns a renewal of the same session that nobody has begun.
func foreign(r tombstore.Renewal) tombstore.Renewal {
	return tombstore.Renewal{Ref: r.Ref, Claim: r.Claim + 1}
}

var renewals = []rule{
	{"Renewal/moves the session", func(c *check) {
		old := tombstore.NewID()
		before := c.write(old, "x", hour)
		c.outlast()
		r := c.begin(old)
		c.ended(old, tombstore.Rotated)
		moved, id := c.finish(r, "y")
		require.NotEqual(c, before.Version, moved.Version)
		require.True(c, before.CreatedAt.Equal(moved.CreatedAt))
		require.Zero(c, moved.ExpiresAt)
		require.Equal(c, moved, c.holds(id, "y"))
		c.ended(old, tombstore.Rotated)
		written := c.write(id, "z", hour, tombstore.Replacing(moved))
		require.Equal(c, written, c.holds(id, "z"))
	}},
	{"Renewal/again and again", func(c *check) {
		first := tombstore.NewID()
		before := c.write(first, "x", hour)
		ids := []string{first}
		for range 3 {
			c.outlast()
			_, id := c.finish(c.begin(ids[len(ids)-1]), "y")
			moved, next := c.rotate(id)
			require.True(c, before.CreatedAt.Equal(moved.CreatedAt))
			ids = append(ids, id, next)
		}
		c.holds(ids[6], "y")
		c.invalidate(first, tombstore.WithReason(tombstore.Revoked))
		for _, id := range ids {
			c.out(id)
		}
		c.ended(ids[6], tombstore.Revoked)
	}},
	{"Renewal/sets the idle timeout", func(c *check) {
		var id string
		c.briefly(func(_ tombstore.Session, old string) error {
			r, err := c.renewer.BeginRenewal(c, old, 0)
			if err == nil {
				_, id = c.finish(r, "y")
			}
			return err
		})
		c.outlast()
		c.holds(id, "y")
		last := tombstore.NewID()
		_, err := c.renewer.FinishRenewal(c, c.begin(id), last, nil, instant)
		require.NoError(c, err)
		c.expires(last)
		c.absent(last)
	}},
	{"Renewal/data belongs to the caller", func(c *check) {
		old, id, data := tombstore.NewID(), tombstore.NewID(), []byte("mine")
		c.write(old, "x", hour)
		_, err := c.renewer.FinishRenewal(c, c.begin(old), id, data, hour)
		require.NoError(c, err)
		copy(data, "****")
		c.holds(id, "mine")
	}},
	{"Renewal/ended under its new id", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		_, id := c.finish(c.begin(old), "y")
		c.invalidate(id)
		c.ended(id, tombstore.Logout)
		c.ended(old, tombstore.Rotated)
		require.ErrorIs(c, c.store.Invalidate(c, old, tombstore.IfLive()), tombstore.ErrInvalidated)
		c.ended(id, tombstore.Logout)
	}},
	{"Renewal/ended between the halves under an earlier id", func(c *check) {
		for _, opts := range [][]tombstore.InvalidateOption{nil, {tombstore.IfLive()}} {
			first := tombstore.NewID()
			c.write(first, "x", hour)
			_, second := c.rotate(first)
			_, old := c.finish(c.begin(second), "y")
			r := c.begin(old)
			if err := c.store.Invalidate(c, first, opts...); len(opts) > 0 {
				require.ErrorIs(c, err, tombstore.ErrInvalidated)
			} else {
				require.NoError(c, err)
			}
			c.refused(r, tombstore.Logout)
			c.ended(old, tombstore.Logout)

			first = tombstore.NewID()
			c.write(first, "x", hour)
			_, old = c.rotate(first)
			c.giveUp(old)
			if err := c.store.Invalidate(c, first, opts...); len(opts) > 0 {
				require.ErrorIs(c, err, tombstore.ErrInvalidated)
			} else {
				require.NoError(c, err)
			}
			c.cannotBegin(old, tombstore.Logout)
		}
	}},
	{"Renewal/Alone ends it between the halves and not when it is finished", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		c.invalidate(old, tombstore.Alone())
		c.refused(r, tombstore.Logout)
		old = tombstore.NewID()
		c.write(old, "x", hour)
		c.giveUp(old)
		c.invalidate(old, tombstore.Alone())
		c.cannotBegin(old, tombstore.Logout)
		old = tombstore.NewID()
		c.write(old, "x", hour)
		moved, id := c.finish(c.begin(old), "y")
		c.invalidate(old, tombstore.Alone())
		c.ended(old, tombstore.Logout)
		require.Equal(c, moved, c.holds(id, "y"))
	}},
	{"Renewal/an end with the reason Rotated leaves it alone", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		rotated := tombstore.WithReason(tombstore.Rotated)
		end := func() {
			c.invalidate(old, rotated)
			c.invalidate(old, rotated, tombstore.Alone())
			err := c.store.Invalidate(c, old, rotated, tombstore.IfLive())
			require.ErrorIs(c, err, tombstore.ErrInvalidated)
			c.ended(old, tombstore.Rotated)
		}
		end()
		moved, id := c.finish(r, "y")
		end()
		require.Equal(c, moved, c.holds(id, "y"))
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
	}},
	{"Renewal/an end with the reason Rotated leaves what was given up alone", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		c.giveUp(old)
		c.invalidate(old, tombstore.WithReason(tombstore.Rotated))
		_, id := c.finish(c.begin(old), "y")
		c.holds(id, "y")
	}},
	{"Renewal/two at once, in every order of their halves: one is finished", func(c *check) {
		// The first time that a number occurs it begins, the second time it finishes.
		for _, order := range []string{"0011", "0101", "0110", "1100", "1010", "1001"} {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			var begun [2]*tombstore.Renewal
			var tried [2]bool
			var ids []string
			for _, who := range order {
				i := who - '0'
				if !tried[i] {
					tried[i] = true
					r, err := c.renewer.BeginRenewal(c, old, 0)
					if err == nil {
						begun[i] = &r
						continue
					}
					// Its library deletes the session all the same.
					require.ErrorIs(c, err, tombstore.ErrInvalidated)
					c.invalidate(old, tombstore.WithReason(tombstore.Rotated))
				} else if begun[i] != nil {
					_, id := c.finish(*begun[i], "y")
					ids = append(ids, id)
				}
			}
			require.Len(c, ids, 1, "order %s", order)
			c.holds(ids[0], "y")
			c.ended(old, tombstore.Rotated)
			c.invalidate(old)
			c.ended(ids[0], tombstore.Logout)
		}
	}},
	{"Renewal/given up and taken over", func(c *check) {
		old := tombstore.NewID()
		before := c.write(old, "x", hour)
		c.outlast()
		given := []tombstore.Renewal{c.giveUp(old), c.giveUp(old)}
		r := c.begin(old)
		for _, g := range given {
			require.NotEqual(c, g.Claim, r.Claim)
			c.refused(g, tombstore.Rotated)
			require.NoError(c, c.renewer.CancelRenewal(c, g))
		}
		c.cannotBegin(old, tombstore.Rotated)
		moved, id := c.finish(r, "y")
		require.NotEqual(c, before.Version, moved.Version)
		require.True(c, before.CreatedAt.Equal(moved.CreatedAt))
		require.Equal(c, moved, c.holds(id, "y"))
		c.cannotBegin(old, tombstore.Rotated)
		c.ended(old, tombstore.Rotated)
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
	}},
	{"Renewal/two at once, one of them is given up, in every order: the other is finished", func(c *check) {
		// A begins and gives up (a). B begins, and when it finishes (b) it begins again if it has been
		// refused. In the last order B is too early, and somebody else finishes.
		for _, order := range []string{"AaBb", "ABab", "BAab", "BAba", "BbAa", "ABba"} {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			begun := map[rune]tombstore.Renewal{}
			begin := func(who rune) {
				if r, err := c.renewer.BeginRenewal(c, old, 0); err == nil {
					begun[who] = r
				} else {
					require.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			}
			var ids []string
			for _, step := range order {
				switch step {
				case 'A', 'B':
					begin(step)
				case 'a':
					if r, ok := begun['A']; ok {
						require.NoError(c, c.renewer.CancelRenewal(c, r))
					}
				case 'b':
					if _, ok := begun['B']; !ok {
						begin('B')
					}
					if r, ok := begun['B']; ok {
						_, id := c.finish(r, "y")
						ids = append(ids, id)
					}
				}
			}
			if order == "ABba" {
				require.Empty(c, ids)
				_, id := c.finish(c.begin(old), "y")
				ids = append(ids, id)
			}
			require.Len(c, ids, 1, "order %s", order)
			c.holds(ids[0], "y")
			c.cannotBegin(old, tombstore.Rotated)
			c.invalidate(old)
			c.ended(ids[0], tombstore.Logout)
		}
	}},

	{"BeginRenewal/absent", func(c *check) {
		id := tombstore.NewID()
		_, err := c.renewer.BeginRenewal(c, id, 0)
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.absent(id)
	}},
	{"BeginRenewal/version", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", hour)
		second := c.write(id, "b", hour)
		_, err := c.renewer.BeginRenewal(c, id, first.Version)
		require.ErrorIs(c, err, tombstore.ErrConflict)
		require.Equal(c, second, c.holds(id, "b"))
		r, err := c.renewer.BeginRenewal(c, id, second.Version)
		require.NoError(c, err)
		c.ended(id, tombstore.Rotated)
		_, err = c.renewer.BeginRenewal(c, id, second.Version)
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		c.finish(r, "c")
	}},
	{"BeginRenewal/version of what was given up", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", hour)
		second := c.write(id, "b", hour)
		c.giveUp(id)
		_, err := c.renewer.BeginRenewal(c, id, first.Version)
		require.ErrorIs(c, err, tombstore.ErrConflict)
		c.ended(id, tombstore.Rotated)
		r, err := c.renewer.BeginRenewal(c, id, second.Version)
		require.NoError(c, err)
		c.finish(r, "c")
	}},
	{"BeginRenewal/of what was not given up", func(c *check) {
		rotated, ended := tombstore.NewID(), tombstore.NewID()
		c.write(rotated, "x", hour)
		_, id := c.rotate(rotated)
		c.cannotBegin(rotated, tombstore.Rotated)
		c.holds(id, "x")
		c.write(ended, "x", hour)
		c.invalidate(ended, tombstore.WithReason(tombstore.Rotated))
		c.cannotBegin(ended, tombstore.Rotated)
	}},
	{"BeginRenewal/of what was given up and has expired since", func(c *check) {
		_, id := c.briefly(func(_ tombstore.Session, id string) error {
			r, err := c.renewer.BeginRenewal(c, id, 0)
			if err == nil {
				require.NoError(c, c.renewer.CancelRenewal(c, r))
			}
			return err
		})
		c.outlast()
		c.cannotBegin(id, tombstore.Rotated)
		c.ended(id, tombstore.Rotated)
	}},
	{"BeginRenewal/outlives the session", func(c *check) {
		_, id := c.briefly(func(_ tombstore.Session, id string) error {
			_, err := c.renewer.BeginRenewal(c, id, 0)
			return err
		})
		c.outlast()
		c.ended(id, tombstore.Rotated)
	}},

	{"FinishRenewal/new id in use", func(c *check) {
		live, dead := tombstore.NewID(), tombstore.NewID()
		theirs := c.write(live, "theirs", hour)
		c.invalidate(dead, tombstore.WithReason(tombstore.Revoked))
		for _, id := range []string{live, dead} {
			old := tombstore.NewID()
			c.write(old, "mine", hour)
			_, err := c.renewer.FinishRenewal(c, c.begin(old), id, []byte("mine"), instant)
			require.ErrorIs(c, err, tombstore.ErrConflict)
			c.ended(old, tombstore.Rotated)
		}
		c.outlast()
		require.Equal(c, theirs, c.holds(live, "theirs"))
		c.ended(dead, tombstore.Revoked)
	}},
	{"FinishRenewal/arguments", func(c *check) {
		old, id := tombstore.NewID(), tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		finish := func(r tombstore.Renewal, id string, ttl time.Duration) error {
			_, err := c.renewer.FinishRenewal(c, r, id, []byte("y"), ttl)
			return err
		}
		for _, bad := range []string{old, "", strings.Repeat("a", 1025)} {
			require.ErrorIs(c, finish(r, bad, hour), tombstore.ErrInvalidID)
		}
		for _, ttl := range []time.Duration{0, -1, math.MinInt64} {
			require.ErrorIs(c, finish(r, id, ttl), tombstore.ErrInvalidTTL)
		}
		for _, ref := range []string{"", strings.Repeat("a", 1025)} {
			bad := tombstore.Renewal{Ref: ref, Claim: r.Claim}
			require.ErrorIs(c, finish(bad, id, hour), tombstore.ErrInvalidID)
			require.ErrorIs(c, c.renewer.CancelRenewal(c, bad), tombstore.ErrInvalidID)
			_, err := c.renewer.BeginRenewal(c, ref, 0)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
		}
		c.absent(id)
		c.finish(r, "y")
	}},
	{"FinishRenewal/needs the claim", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		c.refused(foreign(r), tombstore.Rotated)
		c.refused(tombstore.Renewal{Ref: r.Ref}, tombstore.Rotated)
		_, id := c.finish(r, "y")
		c.refused(tombstore.Renewal{Ref: r.Ref}, tombstore.Rotated)
		c.holds(id, "y")
	}},
	{"FinishRenewal/twice", func(c *check) {
		old, second := tombstore.NewID(), tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		moved, id := c.finish(r, "y")
		for _, again := range []string{second, id} {
			_, err := c.renewer.FinishRenewal(c, r, again, []byte("z"), hour)
			require.Error(c, err)
		}
		c.absent(second)
		require.Equal(c, moved, c.holds(id, "y"))
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
	}},

	{"CancelRenewal", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		for range 2 {
			require.NoError(c, c.renewer.CancelRenewal(c, r))
			c.refused(r, tombstore.Rotated)
			c.ended(old, tombstore.Rotated)
		}
	}},
	{"CancelRenewal/leaves that of another alone", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		require.NoError(c, c.renewer.CancelRenewal(c, foreign(r)))
		require.NoError(c, c.renewer.CancelRenewal(c, tombstore.Renewal{Ref: r.Ref}))
		_, id := c.finish(r, "y")
		c.holds(id, "y")
	}},
	{"CancelRenewal/when it is finished or ended", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		moved, id := c.finish(r, "y")
		require.NoError(c, c.renewer.CancelRenewal(c, r))
		require.Equal(c, moved, c.holds(id, "y"))
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
		require.NoError(c, c.renewer.CancelRenewal(c, r))
		c.ended(old, tombstore.Logout)
	}},

	{"Renewal/errors", func(c *check) {
		const data = "something private"
		gone, live := c.canceled(), "the-id-of-"+tombstore.NewID()
		c.write(live, data, hour)
		_, err := gone.renewer.BeginRenewal(gone, live, 0)
		require.ErrorIs(c, err, context.Canceled)
		require.False(c, tombstore.NoSession(err))
		c.holds(live, data)
		r := c.begin(live)
		_, err = gone.renewer.FinishRenewal(gone, r, tombstore.NewID(), nil, hour)
		require.ErrorIs(c, err, context.Canceled)
		require.False(c, tombstore.NoSession(err))
		require.ErrorIs(c, gone.renewer.CancelRenewal(gone, r), context.Canceled)
		_, used := c.finish(r, data)

		_, conflict := c.renewer.BeginRenewal(c, used, 1)
		_, again := c.renewer.BeginRenewal(c, live, 0)
		_, finished := c.renewer.FinishRenewal(c, r, live, []byte(data), hour)
		_, late := c.renewer.FinishRenewal(c, r, "the-id-of-"+tombstore.NewID(), []byte(data), hour)
		for _, err := range []error{conflict, again, finished, late} {
			require.Error(c, err)
			require.NotContains(c, err.Error(), "the-id-of-")
			require.NotContains(c, err.Error(), r.Ref)
			require.NotContains(c, err.Error(), data)
		}
	}},

	{"Race/many renewals of one session: one is finished", func(c *check) {
		for range c.rounds(20) {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			ids := make([]string, 8)
			var won atomic.Int64
			together(len(ids), func(i int) {
				ids[i] = tombstore.NewID()
				if err := c.renew(old, ids[i], "y"); err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
					assert.NoError(c, c.store.Invalidate(c, old, tombstore.WithReason(tombstore.Rotated)))
				}
			})
			require.EqualValues(c, 1, won.Load())
			require.Len(c, c.live(ids), 1)
			c.invalidate(old)
			require.Empty(c, c.live(ids))
		}
	}},
	{"Race/a renewal and a rotation of one session: one wins", func(c *check) {
		for round := range c.rounds(20) {
			old, ids := tombstore.NewID(), []string{tombstore.NewID(), tombstore.NewID()}
			c.write(old, "x", hour)
			together(2, func(i int) {
				var err error
				if i == round%2 {
					err = c.renew(old, ids[0], "y")
				} else {
					_, err = c.store.Rotate(c, old, ids[1])
				}
				if err != nil {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			require.Len(c, c.live(ids), 1)
			c.invalidate(old)
			require.Empty(c, c.live(ids))
		}
	}},
	{"Race/Renewal against Invalidate: the user is out", func(c *check) {
		for round := range c.rounds(50) {
			old, id := tombstore.NewID(), tombstore.NewID()
			c.write(old, "x", hour)
			opts := [][]tombstore.InvalidateOption{nil, {tombstore.IfLive()}}[round/2%2]
			together(2, func(i int) {
				var err error
				if i == round%2 {
					err = c.renew(old, id, "y")
				} else {
					err = c.store.Invalidate(c, old, opts...)
				}
				if err != nil { // IfLive finds nothing under an id that is still to be written
					assert.True(c, tombstore.NoSession(err), err)
				}
			})
			c.out(id)
			c.ended(old, tombstore.Logout)
		}
	}},
	{"Race/the second half against Invalidate: the user is out", func(c *check) {
		for round := range c.rounds(50) {
			old, id := tombstore.NewID(), tombstore.NewID()
			c.write(old, "x", hour)
			r := c.begin(old)
			together(2, func(i int) {
				if i != round%2 {
					assert.NoError(c, c.store.Invalidate(c, old))
				} else if _, err := c.renewer.FinishRenewal(c, r, id, []byte("y"), hour); err != nil {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			c.out(id)
			c.ended(old, tombstore.Logout)
		}
	}},
	{"Race/many renewals of what was given up: one is finished", func(c *check) {
		for range c.rounds(20) {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			c.giveUp(old)
			ids := make([]string, 8)
			var won atomic.Int64
			together(len(ids), func(i int) {
				ids[i] = tombstore.NewID()
				if err := c.renew(old, ids[i], "y"); err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			require.EqualValues(c, 1, won.Load())
			require.Len(c, c.live(ids), 1)
			c.invalidate(old)
			require.Empty(c, c.live(ids))
		}
	}},
	{"Race/Renewal of what was given up against Invalidate: the user is out", func(c *check) {
		for round := range c.rounds(50) {
			old, id := tombstore.NewID(), tombstore.NewID()
			c.write(old, "x", hour)
			c.giveUp(old)
			together(2, func(i int) {
				if i != round%2 {
					assert.NoError(c, c.store.Invalidate(c, old))
				} else if err := c.renew(old, id, "y"); err != nil {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			c.out(id)
			c.ended(old, tombstore.Logout)
			c.cannotBegin(old, tombstore.Logout)
		}
	}},
	{"Race/FinishRenewal against CancelRenewal", func(c *check) {
		for round := range c.rounds(20) {
			old, id := tombstore.NewID(), tombstore.NewID()
			c.write(old, "x", hour)
			r := c.begin(old)
			var finished error
			together(2, func(i int) {
				if i != round%2 {
					assert.NoError(c, c.renewer.CancelRenewal(c, r))
				} else {
					_, finished = c.renewer.FinishRenewal(c, r, id, []byte("y"), hour)
				}
			})
			if finished == nil {
				c.holds(id, "y")
			} else {
				require.ErrorIs(c, finished, tombstore.ErrInvalidated)
				c.out(id)
			}
			c.invalidate(old)
			c.out(id)
		}
	}},
}

// renewalEnds returns a rule for every way to end a session by its old id, or by the ref of that,
// at every moment of a renewal.
func renewalEnds(byRef bool) (all []rule) {
	type options = []tombstore.InvalidateOption
	verb := "Invalidate"
	if byRef {
		verb = "InvalidateRef"
	}
	for _, way := range []struct {
		name   string
		opts   options
		reason tombstore.Reason
		live   bool
	}{
		{"", nil, tombstore.Logout, false},
		{" for Revoked", options{tombstore.WithReason(tombstore.Revoked)}, tombstore.Revoked, false},
		{" for 9", options{tombstore.WithReason(9)}, 9, false},
		{" IfLive", options{tombstore.IfLive()}, tombstore.Logout, true},
	} {
		// start returns a session and what ends it.
		start := func(c *check) (id string, end func() error) {
			id = tombstore.NewID()
			s := c.write(id, "x", hour)
			if !byRef {
				return id, func() error { return c.store.Invalidate(c, id, way.opts...) }
			}
			ref := c.ref(s)
			return id, func() error { return c.lister.InvalidateRef(c, ref, way.opts...) }
		}
		name := "Renewal/" + verb + way.name
		all = append(all,
			rule{name + " before it begins", func(c *check) {
				old, end := start(c)
				require.NoError(c, end())
				_, err := c.renewer.BeginRenewal(c, old, 0)
				require.ErrorIs(c, err, tombstore.ErrInvalidated)
				c.ended(old, way.reason)
			}},
			rule{name + " between the halves", func(c *check) {
				old, end := start(c)
				r := c.begin(old)
				if err := end(); way.live {
					require.ErrorIs(c, err, tombstore.ErrInvalidated)
				} else {
					require.NoError(c, err)
				}
				c.refused(r, way.reason)
				c.ended(old, way.reason)
				require.NoError(c, c.renewer.CancelRenewal(c, r))
				c.ended(old, way.reason)
			}},
			rule{name + " after it was given up", func(c *check) {
				old, end := start(c)
				r := c.giveUp(old)
				if err := end(); way.live {
					require.ErrorIs(c, err, tombstore.ErrInvalidated)
				} else {
					require.NoError(c, err)
				}
				c.cannotBegin(old, way.reason)
				c.refused(r, way.reason)
				c.ended(old, way.reason)
			}},
			rule{name + " after it is finished", func(c *check) {
				old, end := start(c)
				r := c.begin(old)
				_, id := c.finish(r, "y")
				require.NoError(c, end())
				c.ended(id, way.reason)
				c.ended(old, way.reason)
				c.refused(r, way.reason)
			}},
		)
	}
	return all
}

// lateSaves returns a rule for every late request that still comes with the old id.
func lateSaves() (all []rule) {
	for late, revive := range revivals {
		name := "Race/read, BeginRenewal, " + late + ", FinishRenewal, " + late
		all = append(all, rule{name, func(c *check) {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			read := c.holds(old, "x")
			refused := func() {
				var ended *tombstore.InvalidatedError
				err := revive(c, old, read)
				require.True(c, errors.As(err, &ended), "late request got %v", err)
				require.Equal(c, tombstore.Rotated, ended.Reason)
				c.ended(old, tombstore.Rotated)
			}
			c.giveUp(old)
			refused()
			r := c.begin(old)
			refused()
			moved, id := c.finish(r, "y")
			refused()
			require.Equal(c, moved, c.holds(id, "y"))
		}})
	}
	return all
}
