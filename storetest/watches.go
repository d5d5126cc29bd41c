package storetest

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// watch watches a session that must be live.
func (c *check) watch(id string) context.Context {
	ctx, err := c.watcher.Watch(c, id)
	require.NoError(c, err)
	return ctx
}

// watchOwner watches an owner.
func (c *check) watchOwner(owner string) context.Context {
	ctx, err := c.watcher.WatchOwner(c, owner)
	require.NoError(c, err)
	return ctx
}

// told waits until a watch ends, and returns its cause.
func (c *check) told(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(c.patience):
		require.Fail(c, "the end is not told")
	}
	return context.Cause(ctx)
}

// toldEnd waits until a watch ends because the session was ended.
func (c *check) toldEnd(ctx context.Context, reason tombstore.Reason) {
	var ended *tombstore.InvalidatedError
	require.ErrorAs(c, c.told(ctx), &ended)
	require.Equal(c, reason, ended.Reason)
	require.ErrorIs(c, ctx.Err(), context.Canceled)
}

// untold checks that a watch goes on, when there was time for it to end: what has happened to
// another session later is told.
func (c *check) untold(ctx context.Context) {
	for range 3 {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		other := c.watch(id)
		c.invalidate(id)
		c.toldEnd(other, tombstore.Logout)
	}
	require.NoError(c, context.Cause(ctx))
}

var watchings = []rule{
	{"Watch/an end is told", func(c *check) {
		for _, reason := range []tombstore.Reason{tombstore.Logout, tombstore.Rotated, tombstore.Revoked, 77} {
			id, other := tombstore.NewID(), tombstore.NewID()
			c.write(id, "x", hour)
			c.write(other, "x", hour)
			first, second, goesOn := c.watch(id), c.watch(id), c.watch(other)
			c.invalidate(id, tombstore.WithReason(reason))
			c.toldEnd(first, reason)
			c.toldEnd(second, reason)
			c.untold(goesOn)
		}
	}},
	{"Watch/what is not live", func(c *check) {
		id := tombstore.NewID()
		_, err := c.watcher.Watch(c, id)
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.write(id, "x", hour)
		c.invalidate(id, tombstore.WithReason(tombstore.Revoked))
		_, err = c.watcher.Watch(c, id)
		var ended *tombstore.InvalidatedError
		require.ErrorAs(c, err, &ended)
		require.Equal(c, tombstore.Revoked, ended.Reason)
		_, id = c.briefly(func(tombstore.Session, string) error { return nil })
		c.outlast()
		_, err = c.watcher.Watch(c, id)
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		for _, id := range []string{"", strings.Repeat("x", 1025)} {
			_, err := c.watcher.Watch(c, id)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
		}
	}},
	{"Watch/an expiry is told", func(c *check) {
		var ctx context.Context
		c.briefly(func(_ tombstore.Session, id string) (err error) {
			ctx, err = c.watcher.Watch(c, id)
			return err
		})
		require.ErrorIs(c, c.told(ctx), tombstore.ErrNotFound)
	}},
	{"Watch/a Touch moves the expiry", func(c *check) {
		var ctx context.Context
		_, id := c.briefly(func(_ tombstore.Session, id string) (err error) {
			if ctx, err = c.watcher.Watch(c, id); err == nil {
				err = c.store.Touch(c, id, hour)
			}
			return err
		})
		c.outlast()
		c.untold(ctx)
		c.invalidate(id)
		c.toldEnd(ctx, tombstore.Logout)
	}},
	{"Watch/what is done in a session does not end it", func(c *check) {
		id := tombstore.NewID()
		s := c.write(id, "x", hour)
		ctx := c.watch(id)
		c.write(id, "y", hour)
		c.write(id, "z", hour, tombstore.Replacing(s))
		require.NoError(c, c.store.Touch(c, id, 2*hour))
		c.untold(ctx)
	}},
	{"Watch/follows a Rotate", func(c *check) {
		for _, byOldID := range []bool{false, true} {
			id := tombstore.NewID()
			c.write(id, "x", hour)
			ctx := c.watch(id)
			_, next := c.rotate(id)
			_, last := c.rotate(next, tombstore.WithData([]byte("y"), hour))
			c.untold(ctx)
			late := c.watch(id)
			end := last
			if byOldID {
				end = id
			}
			c.invalidate(end, tombstore.WithReason(tombstore.Revoked))
			c.toldEnd(ctx, tombstore.Revoked)
			c.toldEnd(late, tombstore.Revoked)
			_, err := c.watcher.Watch(c, id)
			require.ErrorIs(c, err, tombstore.ErrInvalidated)
		}
	}},
	{"Watch/goes on where Alone does not", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		ctx := c.watch(id)
		_, next := c.rotate(id)
		c.invalidate(id, tombstore.Alone())
		c.untold(ctx)
		c.invalidate(next)
		c.toldEnd(ctx, tombstore.Logout)
	}},
	{"Watch/the end of the caller's context", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		caller, cancel := context.WithCancelCause(c)
		ctx, err := c.watcher.Watch(caller, id)
		require.NoError(c, err)
		cancel(context.DeadlineExceeded)
		require.ErrorIs(c, c.told(ctx), context.DeadlineExceeded)
		_, err = c.watcher.Watch(caller, id)
		require.ErrorIs(c, err, context.Canceled)
		require.False(c, loggedOut(err))
		c.holds(id, "x")
	}},
	{"Race/Watch against Invalidate: whoever watches is told", func(c *check) {
		for range c.rounds(50) {
			id := tombstore.NewID()
			c.write(id, "x", hour)
			var ctx context.Context
			var err error
			together(2, func(i int) {
				if i == 0 {
					ctx, err = c.watcher.Watch(c, id)
				} else {
					assert.NoError(c, c.store.Invalidate(c, id))
				}
			})
			if err != nil {
				require.ErrorIs(c, err, tombstore.ErrInvalidated)
				continue
			}
			c.toldEnd(ctx, tombstore.Logout)
		}
	}},
	{"Race/Watch against Rotate and Invalidate: whoever watches is told", func(c *check) {
		for range c.rounds(30) {
			id, next := tombstore.NewID(), tombstore.NewID()
			c.write(id, "x", hour)
			var watched [4]context.Context
			var moved sync.WaitGroup
			moved.Add(1)
			together(len(watched)+1, func(i int) {
				if i < len(watched) {
					var err error
					if i%2 == 1 {
						moved.Wait()
					}
					watched[i], err = c.watcher.Watch(c, id)
					assert.True(c, err == nil || loggedOut(err), "%v", err)
					return
				}
				_, err := c.store.Rotate(c, id, next)
				assert.NoError(c, err)
				moved.Done()
				assert.NoError(c, c.store.Invalidate(c, next))
			})
			for _, ctx := range watched {
				if ctx != nil {
					c.toldEnd(ctx, tombstore.Logout)
				}
			}
		}
	}},
}

// loggedOut reports whether err says that a session was ended by a logout, and has not moved.
func loggedOut(err error) bool {
	var ended *tombstore.InvalidatedError
	return errors.As(err, &ended) && ended.Reason == tombstore.Logout
}

var watchedRenewals = []rule{
	{"Watch/follows a renewal", func(c *check) {
		id, next := tombstore.NewID(), tombstore.NewID()
		c.write(id, "x", hour)
		ctx := c.watch(id)
		r, err := c.renewer.BeginRenewal(c, id, 0)
		require.NoError(c, err)
		between := c.watch(id)
		c.untold(ctx)
		_, err = c.renewer.FinishRenewal(c, r, next, []byte("y"), hour)
		require.NoError(c, err)
		c.untold(ctx)
		c.untold(between)
		c.invalidate(next)
		c.toldEnd(ctx, tombstore.Logout)
		c.toldEnd(between, tombstore.Logout)
	}},
	{"Watch/an end between the halves of a renewal is told", func(c *check) {
		for _, cancels := range []bool{false, true} {
			id := tombstore.NewID()
			c.write(id, "x", hour)
			ctx := c.watch(id)
			r, err := c.renewer.BeginRenewal(c, id, 0)
			require.NoError(c, err)
			if cancels {
				require.NoError(c, c.renewer.CancelRenewal(c, r))
			}
			c.untold(ctx)
			c.invalidate(id)
			c.toldEnd(ctx, tombstore.Logout)
		}
	}},
	{"Watch/a renewal that was given up and taken over is followed", func(c *check) {
		id, next := tombstore.NewID(), tombstore.NewID()
		c.write(id, "x", hour)
		ctx := c.watch(id)
		r, err := c.renewer.BeginRenewal(c, id, 0)
		require.NoError(c, err)
		require.NoError(c, c.renewer.CancelRenewal(c, r))
		r, err = c.renewer.BeginRenewal(c, id, 0)
		require.NoError(c, err)
		_, err = c.renewer.FinishRenewal(c, r, next, nil, hour)
		require.NoError(c, err)
		c.untold(ctx)
		c.invalidate(next)
		c.toldEnd(ctx, tombstore.Logout)
	}},
	{"Race/Watch against a renewal and Invalidate: whoever watches is told", func(c *check) {
		for range c.rounds(30) {
			id, next := tombstore.NewID(), tombstore.NewID()
			c.write(id, "x", hour)
			var ctx context.Context
			var err error
			together(2, func(i int) {
				if i == 0 {
					ctx, err = c.watcher.Watch(c, id)
					return
				}
				r, err := c.renewer.BeginRenewal(c, id, 0)
				assert.NoError(c, err)
				_, err = c.renewer.FinishRenewal(c, r, next, nil, hour)
				assert.NoError(c, err)
				assert.NoError(c, c.store.Invalidate(c, id))
			})
			if err != nil {
				require.True(c, loggedOut(err), "%v", err)
				continue
			}
			c.toldEnd(ctx, tombstore.Logout)
		}
	}},
}

var watchedOwners = []rule{
	{"Watch/InvalidateOwner is told to all", func(c *check) {
		owner := tombstore.NewID()
		var watched []context.Context
		for range 5 {
			_, id := c.bound(owner)
			watched = append(watched, c.watch(id))
			_, err := c.store.Rotate(c, id, tombstore.NewID())
			require.NoError(c, err)
		}
		_, kept := c.bound(owner)
		goesOn := c.watch(kept)
		c.endOwner(owner, 5, tombstore.Except(kept))
		for _, ctx := range watched {
			c.toldEnd(ctx, tombstore.Revoked)
		}
		c.untold(goesOn)
	}},
	{"WatchOwner/InvalidateOwner is told", func(c *check) {
		owner := tombstore.NewID()
		other := c.watchOwner(tombstore.NewID())
		for i, reason := range []tombstore.Reason{0, tombstore.Logout, 255} { // first, nothing is known of the owner
			first, second := c.watchOwner(owner), c.watchOwner(owner)
			before := time.Now().Truncate(time.Millisecond)
			_, kept := c.bound(owner)
			c.endOwner(owner, min(i, 1), tombstore.WithReason(reason), tombstore.Except(kept))
			for _, ctx := range []context.Context{first, second} {
				c.toldEnd(ctx, cmp.Or(reason, tombstore.Revoked))
				var ended *tombstore.InvalidatedError
				require.ErrorAs(c, context.Cause(ctx), &ended)
				require.WithinRange(c, ended.At, before, time.Now())
			}
		}
		c.untold(other)
		c.endOwner(owner, 1)
	}},
	{"WatchOwner/nothing else is told", func(c *check) {
		owner := tombstore.NewID()
		for range 2 { // of an owner of whom nothing is known, and of one who was ended before
			ctx := c.watchOwner(owner)
			_, id := c.bound(owner)
			c.rotate(id)
			require.NoError(c, c.binder.InvalidateOwned(c, owner, c.sessions(owner)[0].Ref))
			_, id = c.bound(owner)
			c.invalidate(id)
			b, _ := c.reserve(owner)
			require.NoError(c, c.binder.Release(c, b))
			require.Empty(c, c.sessions(owner))
			c.endOwner(tombstore.NewID(), 0)
			c.untold(ctx)
			c.endOwner(owner, 0)
			c.toldEnd(ctx, tombstore.Revoked)
		}
	}},
	{"WatchOwner/what was ended before is not told", func(c *check) {
		owner := tombstore.NewID()
		for range 2 {
			c.endOwner(owner, 0)
			c.untold(c.watchOwner(owner))
			_, id := c.bound(owner)
			c.untold(c.watchOwner(owner))
			c.invalidate(id)
		}
	}},
	{"WatchOwner/errors", func(c *check) {
		for _, owner := range []string{"", strings.Repeat("x", 1025)} {
			_, err := c.watcher.WatchOwner(c, owner)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
		}
		caller, cancel := context.WithCancelCause(c)
		ctx, err := c.watcher.WatchOwner(caller, tombstore.NewID())
		require.NoError(c, err)
		cancel(context.DeadlineExceeded)
		require.ErrorIs(c, c.told(ctx), context.DeadlineExceeded)
		_, err = c.watcher.WatchOwner(caller, tombstore.NewID())
		require.ErrorIs(c, err, context.Canceled)
	}},
	{"Race/WatchOwner against InvalidateOwner: whoever is found logged in is told", func(c *check) {
		for range c.rounds(50) {
			owner := tombstore.NewID()
			_, id := c.bound(owner)
			var ctx context.Context
			var found error
			together(2, func(i int) {
				if i == 0 {
					_, err := c.binder.InvalidateOwner(c, owner)
					assert.NoError(c, err)
					return
				}
				var err error
				ctx, err = c.watcher.WatchOwner(c, owner)
				assert.NoError(c, err)
				_, found = c.store.Read(c, id, tombstore.Fresh())
			})
			if found == nil {
				c.toldEnd(ctx, tombstore.Revoked)
			} else {
				require.ErrorIs(c, found, tombstore.ErrInvalidated)
			}
		}
	}},
}
