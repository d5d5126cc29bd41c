package storetest

import (
	"context"
	"runtime"
	"strings"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// list returns all that the store lists; much of it may be of other tests.
func (c *check) list() (all []tombstore.Entry) {
	for e, err := range c.lister.List(c) {
		require.NoError(c, err)
		all = append(all, e)
	}
	return all
}

// listed returns the entries of one version of a session.
func (c *check) listed(s tombstore.Session) (found []tombstore.Entry) {
	for _, e := range c.list() {
		if e.Version == s.Version && !e.Pending {
			found = append(found, e)
		}
	}
	return found
}

// ref returns the ref of a session that is live.
func (c *check) ref(s tombstore.Session) string {
	found := c.listed(s)
	require.NotEmpty(c, found)
	return found[0].Ref
}

// pending reports whether the list names ref as a session between two ids.
func (c *check) pending(ref string) bool {
	pending := false
	for _, e := range c.list() {
		if e.Ref == ref && e.Pending {
			require.Zero(c, e.Session)
			pending = true
		}
	}
	return pending
}

var listings = []rule{
	{"List/what is live", func(c *check) {
		ids := []string{tombstore.NewID(), tombstore.NewID(), tombstore.NewID()}
		var written []tombstore.Session
		for _, id := range ids {
			s := c.write(id, id[:5], hour)
			written = append(written, s)
			found := c.listed(s)
			require.NotEmpty(c, found)
			if found[0].Data == nil { // the store shows none
				s.Data = nil
			}
			require.Equal(c, s, found[0].Session)
		}
		c.invalidate(ids[0])
		require.Empty(c, c.listed(written[0]))
		moved, id := c.rotate(ids[1])
		require.Empty(c, c.listed(written[1]))
		require.NotEmpty(c, c.listed(moved))
		require.NotEqual(c, c.ref(moved), c.ref(written[2]))
		copy(c.listed(moved)[0].Data, "#####")
		c.holds(id, ids[1][:5])
	}},
	{"List/stops when it is told to, or its context has ended", func(c *check) {
		c.write(tombstore.NewID(), "x", hour)
		c.write(tombstore.NewID(), "x", hour)
		for range c.lister.List(c) {
			break
		}
		failures := 0
		for _, err := range c.lister.List(c.canceled()) {
			require.ErrorIs(c, err, context.Canceled)
			failures++
		}
		require.Equal(c, 1, failures)
	}},
	{"InvalidateRef", func(c *check) {
		id := tombstore.NewID()
		ref := c.ref(c.write(id, "x", hour))
		c.outlast()
		revoked := tombstore.WithReason(tombstore.Revoked)
		require.NoError(c, c.lister.InvalidateRef(c, ref, revoked, tombstore.IfLive()))
		c.ended(id, tombstore.Revoked)
		require.ErrorIs(c, c.lister.InvalidateRef(c, ref, tombstore.IfLive()), tombstore.ErrInvalidated)
		require.NoError(c, c.lister.InvalidateRef(c, ref))
		c.ended(id, tombstore.Revoked)
	}},
	{"InvalidateRef/follows a session that has moved", func(c *check) {
		old := tombstore.NewID()
		ref := c.ref(c.write(old, "x", hour))
		_, middle := c.rotate(old)
		_, id := c.rotate(middle)
		require.NoError(c, c.lister.InvalidateRef(c, ref, tombstore.Alone()))
		c.holds(id, "x")
		require.NoError(c, c.lister.InvalidateRef(c, ref, tombstore.WithReason(tombstore.Revoked)))
		c.ended(id, tombstore.Revoked)
	}},
	{"InvalidateRef/errors", func(c *check) {
		id := "the-id-of-" + tombstore.NewID()
		ref := c.ref(c.write(id, "x", hour))
		for _, bad := range []string{"", strings.Repeat("a", 1025)} {
			require.ErrorIs(c, c.lister.InvalidateRef(c, bad), tombstore.ErrInvalidID)
		}
		require.ErrorIs(c, c.lister.InvalidateRef(c.canceled(), ref), context.Canceled)
		c.holds(id, "x")
		c.invalidate(id)
		err := c.lister.InvalidateRef(c, ref, tombstore.IfLive())
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		require.NotContains(c, err.Error(), ref)
	}},
	{"Race/all are listed and ended while they rotate: all are out", func(c *check) {
		c.endAll(func(old, id, _ string) error {
			_, err := c.store.Rotate(c, old, id)
			return err
		})
	}},
}

// endAll lists sessions and ends them, while each of them moves once, and checks that all are out.
// Others may use the store too, so it ends only what it knows: each session's first ref, the refs
// that the stores of this project give, and what carries its data.
func (c *check) endAll(move func(old, id, data string) error) {
	const sessions = 16
	for round := range c.rounds(10) {
		data := tombstore.NewID()
		var ids []string
		refs := map[string]bool{}
		for range sessions {
			ids = append(ids, tombstore.NewID(), tombstore.NewID())
			c.write(ids[len(ids)-2], data, hour)
		}
		for _, id := range ids {
			refs[tombstore.Ref(id)], refs[id] = true, true
		}
		for _, e := range c.list() {
			refs[e.Ref] = refs[e.Ref] || string(e.Data) == data
		}
		ender := round % 2 * sessions
		together(sessions+1, func(i int) {
			if i == ender {
				for e, err := range c.lister.List(c) {
					if !assert.NoError(c, err) {
						return
					}
					if refs[e.Ref] || string(e.Data) == data {
						assert.NoError(c, c.lister.InvalidateRef(c, e.Ref))
					}
				}
				return
			}
			for range i * round / 4 { // some move before the walk, some during it
				runtime.Gosched()
			}
			next := i % sessions * 2 // the ender's number is 0 or the last one
			if err := move(ids[next], ids[next+1], data); err != nil {
				assert.ErrorIs(c, err, tombstore.ErrInvalidated)
			}
		})
		require.Empty(c, c.live(ids))
	}
}

// renewalsInLists is for stores that are both a Lister and a Renewer.
var renewalsInLists = []rule{
	{"List/names a session between two ids", func(c *check) {
		old := tombstore.NewID()
		written := c.write(old, "x", hour)
		ref := c.ref(written)
		r := c.begin(old)
		require.Equal(c, ref, r.Ref)
		require.True(c, c.pending(ref))
		require.Empty(c, c.listed(written))
		moved, id := c.finish(r, "y")
		require.False(c, c.pending(ref))
		require.NotEmpty(c, c.listed(moved))

		r = c.begin(id)
		require.True(c, c.pending(r.Ref))
		require.NoError(c, c.lister.InvalidateRef(c, r.Ref))
		c.refused(r, tombstore.Logout)
		require.False(c, c.pending(r.Ref))
	}},
	{"List/names a session whose renewal was given up", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		r := c.giveUp(old)
		require.True(c, c.pending(r.Ref))
		require.NoError(c, c.lister.InvalidateRef(c, r.Ref))
		require.False(c, c.pending(r.Ref))
		c.cannotBegin(old, tombstore.Logout)
	}},
	{"FinishRenewal/of what nothing is known", func(c *check) {
		expired, live, id := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
		refs := []string{c.ref(c.write(live, "x", hour)), c.ref(c.write(expired, "x", hour))}
		c.write(expired, "x", instant)
		c.expires(expired)
		for _, ref := range refs {
			r := tombstore.Renewal{Ref: ref, Claim: 1}
			_, err := c.renewer.FinishRenewal(c, r, id, []byte("y"), hour)
			require.ErrorIs(c, err, tombstore.ErrNotFound)
			require.NoError(c, c.renewer.CancelRenewal(c, r))
		}
		c.absent(id)
		c.absent(expired)
		c.holds(live, "x")
	}},
	{"Race/all are listed and ended while they are renewed: all are out", func(c *check) {
		c.endAll(c.renew)
	}},
	{"Race/all are listed and ended while others take them over: all are out", func(c *check) {
		c.endAll(func(old, id, data string) error {
			if r, err := c.renewer.BeginRenewal(c, old, 0); err == nil {
				assert.NoError(c, c.renewer.CancelRenewal(c, r))
			}
			runtime.Gosched()
			return c.renew(old, id, data)
		})
	}},
}
