package storetest

import (
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// begun begins a login, which must succeed.
func (c *check) begun(owner string) tombstore.Login {
	login, err := c.binder.BeginLogin(c, owner)
	require.NoError(c, err)
	return login
}

// reserve reserves a new id for a session of an owner until two hours from now.
func (c *check) reserve(owner string, opts ...tombstore.ReserveOption) (tombstore.Binding, string) {
	id := tombstore.NewID()
	opts = append([]tombstore.ReserveOption{tombstore.Until(time.Now().Add(2 * hour))}, opts...)
	b, err := c.binder.Reserve(c, id, c.begun(owner), opts...)
	require.NoError(c, err)
	return b, id
}

// bound writes a new session of an owner.
func (c *check) bound(owner string, opts ...tombstore.ReserveOption) (tombstore.Session, string) {
	b, id := c.reserve(owner, opts...)
	return c.write(id, "x", hour, tombstore.Bound(b)), id
}

// logIn is a whole login, as a racer.
func (c *check) logIn(id string, login tombstore.Login) error {
	b, err := c.binder.Reserve(c, id, login, tombstore.Until(time.Now().Add(2*hour)))
	if err == nil {
		_, err = c.store.Write(c, id, []byte("x"), hour, tombstore.Bound(b))
	}
	return err
}

// sessions returns the sessions of an owner.
func (c *check) sessions(owner string) []tombstore.OwnedSession {
	all, err := c.binder.Sessions(c, owner)
	require.NoError(c, err)
	return all
}

// endOwner ends the sessions of an owner, of which so many must be live.
func (c *check) endOwner(owner string, live int, opts ...tombstore.InvalidateOption) {
	n, err := c.binder.InvalidateOwner(c, owner, opts...)
	require.NoError(c, err)
	require.Equal(c, live, n)
}

// several returns the names of four owners, and options that make a session of the first one the
// others', too.
func (c *check) several() (names []string, others []tombstore.ReserveOption) {
	for range 4 {
		names = append(names, tombstore.NewID())
	}
	return names, []tombstore.ReserveOption{
		tombstore.Also(c.begun(names[1])), tombstore.Also(c.begun(names[2])), tombstore.AlsoFinal(names[3]),
	}
}

// refs returns the digests of owners.
func refs(owners []string) (digests []string) {
	for _, owner := range owners {
		digests = append(digests, tombstore.Ref(owner))
	}
	return digests
}

// inTime checks a time that the server's clock has given.
func (c *check) inTime(want, got time.Time) {
	require.WithinDuration(c, want, got, time.Minute)
}

var owners = []rule{
	{"Owner/a session is bound", func(c *check) {
		owner := tombstore.NewID()
		require.Empty(c, c.sessions(owner))
		b, id := c.reserve(owner, tombstore.Label("laptop"))
		require.Empty(c, c.sessions(owner), "it is not written yet")
		s := c.write(id, "x", 3*hour, tombstore.Bound(b))
		require.True(c, b.CreatedAt.Equal(s.CreatedAt))
		c.holds(id, "x")
		s = c.write(id, "y", 3*hour, tombstore.Replacing(s))
		require.Equal(c, []string{tombstore.Ref(owner)}, s.Owners())
		require.Equal(c, "laptop", s.Label())
		found := c.sessions(owner)
		require.Len(c, found, 1)
		require.Equal(c, b.Ref, found[0].Ref)
		require.Equal(c, "laptop", found[0].Label)
		require.True(c, s.CreatedAt.Equal(found[0].CreatedAt))
		require.WithinDuration(c, b.Deadline, found[0].Deadline, time.Millisecond)
		c.inTime(time.Now().Add(2*hour), found[0].Deadline)
		c.inTime(found[0].Deadline, found[0].ExpiresAt)
		require.Empty(c, c.sessions("nobody"))
	}},
	{"Owner/Bound is IfAbsent", func(c *check) {
		owner := tombstore.NewID()
		for _, order := range [][]tombstore.WriteOption{
			{}, {tombstore.IfAbsent()}, {tombstore.IfPresent()}, {tombstore.IfVersion(1)}, {tombstore.Replacing(tombstore.Session{})},
		} {
			b, id := c.reserve(owner)
			c.write(id, "x", hour, append([]tombstore.WriteOption{tombstore.Bound(b)}, order...)...)
			_, err := c.store.Write(c, id, []byte("y"), hour, append(order, tombstore.Bound(b))...)
			require.ErrorIs(c, err, tombstore.ErrConflict)
			c.holds(id, "x")
		}
		require.Len(c, c.sessions(owner), 5)

		b, id := c.reserve(owner)
		c.invalidate(id)
		_, err := c.store.Write(c, id, []byte("y"), hour, tombstore.Bound(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
	}},
	{"Owner/a binding is for one id", func(c *check) {
		b, id := c.reserve(tombstore.NewID())
		other, old := tombstore.NewID(), tombstore.NewID()
		_, err := c.store.Write(c, other, nil, hour, tombstore.Bound(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		c.write(old, "x", hour)
		_, err = c.store.Rotate(c, old, other, tombstore.WithBinding(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		c.absent(other)
		c.holds(old, "x")
		_, err = c.store.Write(c, id, nil, hour, tombstore.Bound(tombstore.Binding{Ref: b.Ref}))
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		b.Deadline = time.Now()
		_, err = c.store.Write(c, id, nil, hour, tombstore.Bound(b))
		require.ErrorIs(c, err, tombstore.ErrNoDeadline)
		made := tombstore.Binding{Ref: b.Ref, Owners: b.Owners, CreatedAt: b.CreatedAt, Deadline: time.Now().Add(hour)}
		_, err = c.store.Write(c, id, nil, hour, tombstore.Bound(made))
		require.ErrorIs(c, err, tombstore.ErrStaleLogin, "nobody knows how old it is")
		c.absent(id)
	}},
	{"Owner/a login by Rotate begins a new life", func(c *check) {
		owner, old := tombstore.NewID(), tombstore.NewID()
		before := c.write(old, "anonymous", hour)
		c.outlast()
		b, id := c.reserve(owner, tombstore.Label("phone"))
		s, err := c.store.Rotate(c, old, id, tombstore.WithBinding(b), tombstore.WithData([]byte("alice"), 3*hour))
		require.NoError(c, err)
		require.True(c, before.CreatedAt.Before(s.CreatedAt))
		require.True(c, b.CreatedAt.Equal(s.CreatedAt))
		found := c.sessions(owner) // before the session is read, which may slide
		require.Len(c, found, 1)
		require.Equal(c, "phone", found[0].Label)
		c.inTime(time.Now().Add(2*hour), found[0].ExpiresAt)
		c.holds(id, "alice")
		c.ended(old, tombstore.Rotated)
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
	}},
	{"Owner/a login by Rotate keeps the data", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "anonymous", hour)
		b, id := c.reserve(tombstore.NewID())
		s, err := c.store.Rotate(c, old, id, tombstore.WithBinding(b))
		require.NoError(c, err)
		require.Equal(c, "anonymous", string(s.Data))
		c.holds(id, "anonymous")
	}},
	{"Owner/Rotate keeps owner, label, creation time and deadline", func(c *check) {
		owner := tombstore.NewID()
		before, id := c.bound(owner, tombstore.Label("phone"))
		was := c.sessions(owner)
		for i := range 3 {
			c.outlast()
			opts := []tombstore.RotateOption{tombstore.WithData([]byte("x"), hour)}
			moved, next := c.rotate(id, opts[:i%2]...)
			require.True(c, before.CreatedAt.Equal(moved.CreatedAt))
			found := c.sessions(owner)
			require.Len(c, found, 1)
			require.NotEqual(c, was[0].Ref, found[0].Ref)
			was[0].Ref, was[0].ExpiresAt = found[0].Ref, found[0].ExpiresAt
			require.Equal(c, was, found)
			c.holds(next, "x")
			c.ended(id, tombstore.Rotated)
			id = next
		}
		c.endOwner(owner, 1)
		c.ended(id, tombstore.Revoked)
	}},
	{"Owner/another user logs in with the session", func(c *check) {
		alice, bob := tombstore.NewID(), tombstore.NewID()
		_, old := c.bound(alice)
		b, id := c.reserve(bob)
		_, err := c.store.Rotate(c, old, id, tombstore.WithBinding(b))
		require.NoError(c, err)
		require.Empty(c, c.sessions(alice))
		require.Len(c, c.sessions(bob), 1)
		c.endOwner(alice, 0)
		c.holds(id, "x")
		c.endOwner(bob, 1)
		c.ended(id, tombstore.Revoked)
	}},
	{"Owner/the same user logs in again with the session", func(c *check) {
		owner := tombstore.NewID()
		_, old := c.bound(owner)
		b, id := c.reserve(owner)
		_, err := c.store.Rotate(c, old, id, tombstore.WithBinding(b))
		require.NoError(c, err)
		require.Len(c, c.sessions(owner), 1)
		c.endOwner(owner, 0, tombstore.Except(id))
		c.holds(id, "x")
	}},
	{"Owner/a late attempt to reserve leads to nothing", func(c *check) {
		owner, id := tombstore.NewID(), tombstore.NewID()
		login, until := c.begun(owner), tombstore.Until(time.Now().Add(2*hour))
		b, err := c.binder.Reserve(c, id, login, until)
		require.NoError(c, err)
		c.write(id, "x", hour, tombstore.Bound(b))
		_, next := c.rotate(id)
		_, err = c.binder.Reserve(c, id, login, until)
		require.ErrorIs(c, err, tombstore.ErrConflict)
		require.Len(c, c.sessions(owner), 1)
		c.endOwner(owner, 0, tombstore.Except(next))
		c.holds(next, "x")
		c.endOwner(owner, 1)
		c.out(next)
	}},
	{"BeginLogin/errors", func(c *check) {
		for _, owner := range []string{"", strings.Repeat("a", 1025)} {
			_, err := c.binder.BeginLogin(c, owner)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
			_, err = c.binder.Sessions(c, owner)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
			_, err = c.binder.InvalidateOwner(c, owner)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
			require.ErrorIs(c, c.binder.InvalidateOwned(c, owner, tombstore.Ref("x")), tombstore.ErrInvalidID)
		}
		c.begun(strings.Repeat("a", 1024))
		gone := c.canceled()
		_, err := gone.binder.BeginLogin(gone, "alice")
		require.NotErrorIs(c, err, tombstore.ErrNotFound)
		require.ErrorContains(c, err, "canceled")
	}},
	{"BeginLogin/a login travels as text", func(c *check) {
		owner := tombstore.NewID()
		for range 2 { // of an owner of whom nothing is known, and of one with a session
			login := c.begun(owner)
			text, err := login.MarshalText()
			require.NoError(c, err)
			require.NotContains(c, string(text), owner)
			var read tombstore.Login
			require.NoError(c, read.UnmarshalText(text))
			require.NoError(c, c.logIn(tombstore.NewID(), read))
		}
	}},
	{"Reserve/errors", func(c *check) {
		owner, id := "the-owner-"+tombstore.NewID(), "the-id-of-"+tombstore.NewID()
		login, until := c.begun(owner), tombstore.Until(time.Now().Add(hour))
		for _, bad := range []struct {
			id    string
			login tombstore.Login
			opts  []tombstore.ReserveOption
			want  error
		}{
			{"", login, []tombstore.ReserveOption{until}, tombstore.ErrInvalidID},
			{id, tombstore.Login{}, []tombstore.ReserveOption{until}, tombstore.ErrStaleLogin},
			{id, tombstore.Login{Owner: owner, Generation: login.Generation, At: login.At}, []tombstore.ReserveOption{until},
				tombstore.ErrStaleLogin},
			{id, login, []tombstore.ReserveOption{tombstore.Until(time.Now())}, tombstore.ErrNoDeadline},
			{id, login, []tombstore.ReserveOption{until, tombstore.Label(strings.Repeat("a", 1025))}, tombstore.ErrTooLarge},
			{id, login, []tombstore.ReserveOption{until, tombstore.Also(tombstore.Login{})}, tombstore.ErrStaleLogin},
			{id, login, []tombstore.ReserveOption{until, tombstore.AlsoFinal("")}, tombstore.ErrInvalidID},
			{id, login, []tombstore.ReserveOption{until, tombstore.InPlaceOf("")}, tombstore.ErrInvalidID},
			{id, login, []tombstore.ReserveOption{until, tombstore.Also(login), tombstore.Also(login),
				tombstore.AlsoFinal(owner), tombstore.AlsoFinal("sid")}, tombstore.ErrTooLarge},
		} {
			b, err := c.binder.Reserve(c, bad.id, bad.login, bad.opts...)
			require.ErrorIs(c, err, bad.want)
			require.Zero(c, b)
			require.NotContains(c, err.Error(), owner)
			require.NotContains(c, err.Error(), id)
		}
		gone := c.canceled()
		_, err := gone.binder.Reserve(gone, id, login, until)
		require.ErrorContains(c, err, "canceled")
		b, err := c.binder.Reserve(c, id, login, until, tombstore.Label(strings.Repeat("a", 1024)))
		require.NoError(c, err)
		c.write(id, "x", hour, tombstore.Bound(b))
		require.Len(c, c.sessions(owner)[0].Label, 1024)
	}},
	{"Reserve/a login is good for an hour", func(c *check) {
		owner := tombstore.NewID()
		for range 2 { // of an owner of whom nothing is known, and of one with a session
			for age, want := range map[time.Duration]error{
				2 * hour: tombstore.ErrStaleLogin, hour / 2: nil, -2 * hour: tombstore.ErrStaleLogin,
			} {
				login := c.begun(owner)
				login.At = login.At.Add(-age)
				require.ErrorIs(c, c.logIn(tombstore.NewID(), login), want)
			}
		}
	}},
	{"Reserve/several owners", func(c *check) {
		for end := range 4 {
			names, owners := c.several()
			b, id := c.reserve(names[0], owners...)
			s := c.write(id, "x", hour, tombstore.Bound(b))
			require.Equal(c, refs(names), s.Owners())
			for _, name := range names {
				found := c.sessions(name)
				require.Len(c, found, 1)
				require.Equal(c, b.Ref, found[0].Ref)
			}
			require.NoError(c, c.binder.InvalidateOwned(c, names[end], b.Ref))
			c.ended(id, tombstore.Revoked)

			_, id = c.bound(names[0], owners...)
			c.endOwner(names[end], 1)
			c.ended(id, tombstore.Revoked)
			for i, name := range names {
				require.Empty(c, c.sessions(name))
				if i != end {
					c.endOwner(name, 0)
				}
			}
		}
	}},
	{"Reserve/several owners: all follow the session", func(c *check) {
		for end := range 4 {
			names, owners := c.several()
			_, id := c.bound(names[0], owners...)
			_, next := c.rotate(id)
			s, last := c.rotate(next)
			require.Equal(c, refs(names), s.Owners())
			require.Len(c, c.sessions(names[end]), 1)
			c.endOwner(names[end], 1)
			c.ended(last, tombstore.Revoked)
		}
	}},
	{"Reserve/several owners: another login leaves them all", func(c *check) {
		names, owners := c.several()
		_, id := c.bound(names[0], owners...)
		b, next := c.reserve(tombstore.NewID())
		s, err := c.store.Rotate(c, id, next, tombstore.WithBinding(b))
		require.NoError(c, err)
		require.Equal(c, b.Owners, s.Owners())
		for _, name := range names {
			require.Empty(c, c.sessions(name))
			c.endOwner(name, 0)
		}
		c.holds(next, "x")
	}},
	{"Reserve/several owners: each of them may refuse", func(c *check) {
		owner, tenant, id := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
		until := tombstore.Until(time.Now().Add(hour))
		login, stale := c.begun(owner), c.begun(tenant)
		c.endOwner(tenant, 0)
		_, err := c.binder.Reserve(c, id, login, until, tombstore.Also(stale))
		require.ErrorIs(c, err, tombstore.ErrStaleLogin)
		c.endOwner(owner, 0)
		_, err = c.binder.Reserve(c, id, login, until, tombstore.Also(c.begun(tenant)))
		require.ErrorIs(c, err, tombstore.ErrStaleLogin)
		c.write(id, "nobody's", hour)
		require.Empty(c, c.sessions(owner))
		require.Empty(c, c.sessions(tenant))
	}},
	{"Reserve/a final owner ends once and for all", func(c *check) {
		owner, sid, late := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
		_, id := c.bound(owner, tombstore.AlsoFinal(sid))
		_, id2 := c.bound(owner, tombstore.AlsoFinal(sid))
		c.endOwner(sid, 2)
		c.out(id)
		c.out(id2)
		c.endOwner(late, 0) // it overtakes its login
		for _, name := range []string{sid, late} {
			_, err := c.binder.Reserve(c, tombstore.NewID(), c.begun(owner), tombstore.Until(time.Now().Add(hour)),
				tombstore.AlsoFinal(name))
			require.ErrorIs(c, err, tombstore.ErrStaleLogin)
		}
	}},
	{"Reserve/InPlaceOf is for one session", func(c *check) {
		owner := tombstore.NewID()
		_, old := c.bound(owner)
		_, other := c.bound(owner)
		b, id := c.reserve(owner, tombstore.InPlaceOf(old))
		_, err := c.store.Write(c, id, nil, hour, tombstore.Bound(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		_, err = c.store.Rotate(c, other, id, tombstore.WithBinding(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		c.holds(other, "x")
		_, err = c.store.Rotate(c, old, id, tombstore.WithBinding(b))
		require.NoError(c, err)
		c.holds(id, "x")
		require.Len(c, c.sessions(owner), 2)
		c.endOwner(owner, 2)
	}},
	{"Adopt/several owners", func(c *check) {
		names, owners := c.several()
		id, until := tombstore.NewID(), tombstore.Until(time.Now().Add(2*hour))
		c.write(id, "x", hour)
		_, err := c.binder.Adopt(c, id, c.begun(names[0]), until, tombstore.Label("phone"), owners[0])
		require.NoError(c, err)
		for range 2 { // the others, and once more
			later := append(owners, tombstore.Until(time.Now().Add(hour)), tombstore.Label("other"))
			s, err := c.binder.Adopt(c, id, c.begun(names[0]), later...)
			require.NoError(c, err)
			require.Equal(c, refs(names), s.Owners())
			c.inTime(time.Now().Add(2*hour), s.Deadline())
			for _, name := range names {
				found := c.sessions(name)
				require.Len(c, found, 1)
				require.Equal(c, "phone", found[0].Label)
			}
		}
		_, err = c.binder.Adopt(c, id, c.begun(names[1]), until)
		require.ErrorIs(c, err, tombstore.ErrConflict)
		_, err = c.binder.Adopt(c, id, c.begun(names[0]), until, tombstore.AlsoFinal("a fifth"))
		require.ErrorIs(c, err, tombstore.ErrTooLarge)
		c.endOwner(names[3], 1)
		c.ended(id, tombstore.Revoked)
	}},
	{"Adopt/a session becomes the owner's", func(c *check) {
		owner, id := tombstore.NewID(), tombstore.NewID()
		before := c.write(id, "x", 3*hour)
		c.outlast()
		opts := []tombstore.ReserveOption{tombstore.Until(time.Now().Add(2 * hour)), tombstore.Label("phone")}
		s, err := c.binder.Adopt(c, id, c.begun(owner), opts...)
		require.NoError(c, err)
		require.Equal(c, before.Version, s.Version)
		require.Equal(c, "x", string(s.Data))
		require.True(c, before.CreatedAt.Equal(s.CreatedAt))
		found := c.sessions(owner)
		require.Len(c, found, 1)
		require.Equal(c, "phone", found[0].Label)
		require.True(c, before.CreatedAt.Equal(found[0].CreatedAt))
		c.inTime(time.Now().Add(2*hour), found[0].ExpiresAt)
		c.inTime(time.Now().Add(2*hour), found[0].Deadline)

		// Again, it changes nothing.
		again, err := c.binder.Adopt(c, id, c.begun(owner), tombstore.Until(time.Now().Add(hour)), tombstore.Label("other"))
		require.NoError(c, err)
		require.Equal(c, s.Version, again.Version)
		require.Equal(c, found[0].Deadline, c.sessions(owner)[0].Deadline)
		require.Equal(c, "phone", c.sessions(owner)[0].Label)

		// A request that has read it before may save it under its version, or finds out.
		_, err = c.store.Write(c, id, []byte("late"), hour, tombstore.Replacing(before))
		require.ErrorIs(c, err, tombstore.ErrConflict)
		c.holds(id, "x")
		s = c.write(id, "y", hour, tombstore.Replacing(s))
		c.write(id, "z", hour, tombstore.IfVersion(s.Version))
		_, next := c.rotate(id)
		require.Len(c, c.sessions(owner), 1)
		c.endOwner(owner, 1)
		c.ended(next, tombstore.Revoked)
	}},
	{"Adopt/errors", func(c *check) {
		owner, id := tombstore.NewID(), tombstore.NewID()
		login, until := c.begun(owner), tombstore.Until(time.Now().Add(2*hour))
		adopt := func(id string, login tombstore.Login, opts ...tombstore.ReserveOption) error {
			_, err := c.binder.Adopt(c, id, login, opts...)
			return err
		}
		require.ErrorIs(c, adopt(id, login, until), tombstore.ErrNotFound)
		c.absent(id)
		c.invalidate(id)
		require.ErrorIs(c, adopt(id, login, until), tombstore.ErrInvalidated)
		_, others := c.bound(tombstore.NewID())
		require.ErrorIs(c, adopt(others, login, until), tombstore.ErrConflict)
		id = tombstore.NewID()
		c.write(id, "x", hour)
		require.ErrorIs(c, adopt(id, login, tombstore.Until(time.Now().Add(-hour))), tombstore.ErrNoDeadline)
		require.ErrorIs(c, adopt(id, login, until, tombstore.Label(strings.Repeat("a", 1025))), tombstore.ErrTooLarge)
		require.ErrorIs(c, adopt(id, tombstore.Login{}, until), tombstore.ErrStaleLogin)
		require.ErrorIs(c, adopt("", login, until), tombstore.ErrInvalidID)
		require.Empty(c, c.sessions(owner))
		c.endOwner(owner, 0)
		require.ErrorIs(c, adopt(id, login, until), tombstore.ErrStaleLogin)
		c.holds(id, "x")
		gone := c.canceled()
		_, err := gone.binder.Adopt(gone, id, c.begun(owner), until)
		require.ErrorContains(c, err, "canceled")
		require.NotErrorIs(c, err, tombstore.ErrNotFound)
	}},
	{"Race/sessions are adopted, saved and rotated: an end reaches them", func(c *check) {
		for range c.rounds(20) {
			owner, ids := tombstore.NewID(), []string{tombstore.NewID(), tombstore.NewID()}
			before := c.write(ids[0], "x", hour)
			adopted := false
			login := c.begun(owner)
			together(3, func(i int) {
				switch i {
				case 0:
					_, err := c.binder.Adopt(c, ids[0], login, tombstore.Until(time.Now().Add(2*hour)))
					if adopted = err == nil; !adopted {
						assert.ErrorIs(c, err, tombstore.ErrInvalidated)
					}
				case 1:
					_, err := c.store.Write(c, ids[0], []byte("y"), hour, tombstore.Replacing(before))
					if err != nil && !errors.Is(err, tombstore.ErrConflict) {
						assert.ErrorIs(c, err, tombstore.ErrInvalidated)
					}
				case 2:
					_, err := c.store.Rotate(c, ids[0], ids[1])
					assert.NoError(c, err)
				}
			})
			require.Equal(c, ids[1:], c.live(ids))
			if n, err := c.binder.InvalidateOwner(c, owner); adopted {
				require.NoError(c, err)
				require.Equal(c, 1, n)
				require.Empty(c, c.live(ids))
			}
		}
	}},
	{"Release/before the session is written", func(c *check) {
		owner := tombstore.NewID()
		b, id := c.reserve(owner)
		require.NoError(c, c.binder.Release(c, b))
		_, err := c.store.Write(c, id, nil, hour, tombstore.Bound(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		require.NoError(c, c.binder.Release(c, b))
		require.ErrorIs(c, c.binder.Release(c, tombstore.Binding{}), tombstore.ErrInvalidID)
		require.Empty(c, c.sessions(owner))
	}},
	{"Release/after the session is written", func(c *check) {
		owner := tombstore.NewID()
		b, id := c.reserve(owner)
		c.write(id, "x", hour, tombstore.Bound(b))
		_, next := c.rotate(id)
		require.NoError(c, c.binder.Release(c, b))
		c.out(next)
		require.Empty(c, c.sessions(owner))
	}},
	{"Sessions/what is live", func(c *check) {
		owner := tombstore.NewID()
		var ids []string
		for range 4 {
			_, id := c.bound(owner)
			ids = append(ids, id)
		}
		c.bound(tombstore.NewID())
		require.Len(c, c.sessions(owner), 4)
		c.invalidate(ids[0])
		c.rotate(ids[1])
		c.write(ids[2], "x", instant)
		c.expires(ids[2])
		require.Len(c, c.sessions(owner), 2)
	}},
	{"InvalidateOwned/ends one session", func(c *check) {
		owner := tombstore.NewID()
		_, id := c.bound(owner)
		_, other := c.bound(owner)
		b, third := c.reserve(owner)
		c.write(third, "x", hour, tombstore.Bound(b))
		require.NoError(c, c.binder.InvalidateOwned(c, owner, b.Ref))
		c.ended(third, tombstore.Revoked)
		require.Len(c, c.sessions(owner), 2)
		require.NoError(c, c.binder.InvalidateOwned(c, owner, c.refOf(owner, id), tombstore.WithReason(tombstore.Logout)))
		c.ended(id, tombstore.Logout)
		c.holds(other, "x")
	}},
	{"InvalidateOwned/follows a session that has moved", func(c *check) {
		owner := tombstore.NewID()
		_, id := c.bound(owner)
		ref := c.sessions(owner)[0].Ref
		_, middle := c.rotate(id)
		_, last := c.rotate(middle)
		require.NoError(c, c.binder.InvalidateOwned(c, owner, ref))
		c.ended(last, tombstore.Revoked)
		require.Empty(c, c.sessions(owner))
	}},
	{"InvalidateOwned/only the owner's", func(c *check) {
		owner, mallory := tombstore.NewID(), tombstore.NewID()
		_, id := c.bound(owner)
		c.bound(mallory)
		ref := c.sessions(owner)[0].Ref
		require.ErrorIs(c, c.binder.InvalidateOwned(c, mallory, ref), tombstore.ErrNotFound)
		require.ErrorIs(c, c.binder.InvalidateOwned(c, "nobody", ref), tombstore.ErrNotFound)
		for _, none := range []string{"", "xxx", tombstore.NewID()} {
			require.ErrorIs(c, c.binder.InvalidateOwned(c, owner, none), tombstore.ErrNotFound)
		}
		c.holds(id, "x")
		_, next := c.rotate(id)
		require.ErrorIs(c, c.binder.InvalidateOwned(c, mallory, ref), tombstore.ErrNotFound)
		c.holds(next, "x")
		require.Len(c, c.sessions(mallory), 1)
	}},
	{"InvalidateOwner/ends all of the owner's", func(c *check) {
		owner, other := tombstore.NewID(), tombstore.NewID()
		var ids []string
		for range 5 {
			_, id := c.bound(owner)
			ids = append(ids, id)
		}
		_, bystander := c.bound(other)
		_, ids[1] = c.rotate(ids[1])
		c.invalidate(ids[2])
		c.endOwner(owner, 4)
		for i, id := range ids {
			if i == 2 {
				c.ended(id, tombstore.Logout)
			} else {
				c.ended(id, tombstore.Revoked)
			}
		}
		require.Empty(c, c.sessions(owner))
		c.holds(bystander, "x")
		c.endOwner(owner, 0)
		_, id := c.bound(owner)
		c.holds(id, "x")
		c.endOwner(owner, 1)
		c.ended(id, tombstore.Revoked)
	}},
	{"InvalidateOwner/reasons", func(c *check) {
		owner := tombstore.NewID()
		for reason, want := range map[tombstore.Reason]tombstore.Reason{
			0: tombstore.Revoked, tombstore.Logout: tombstore.Logout, tombstore.Rotated: tombstore.Revoked, 9: 9,
		} {
			_, id := c.bound(owner)
			_, next := c.rotate(id)
			c.endOwner(owner, 1, tombstore.WithReason(reason))
			c.ended(next, want)
		}
	}},
	{"InvalidateOwner/what is reserved and not written", func(c *check) {
		owner := tombstore.NewID()
		b, id := c.reserve(owner)
		b2, id2 := c.reserve(owner)
		old := tombstore.NewID()
		c.write(old, "x", hour)
		c.endOwner(owner, 0)
		_, err := c.store.Write(c, id, nil, hour, tombstore.Bound(b))
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		_, err = c.store.Rotate(c, old, id2, tombstore.WithBinding(b2))
		require.Error(c, err)
		c.out(id)
		c.out(id2)
	}},
	{"InvalidateOwner/a login that has begun", func(c *check) {
		owner := tombstore.NewID()
		nothing := c.begun(owner) // nothing is known of the owner
		c.endOwner(owner, 0)
		require.ErrorIs(c, c.logIn(tombstore.NewID(), nothing), tombstore.ErrStaleLogin)
		known := c.begun(owner)
		require.NoError(c, c.logIn(tombstore.NewID(), known))
		require.NoError(c, c.logIn(tombstore.NewID(), known), "a login ends none")
		c.endOwner(owner, 2)
		require.ErrorIs(c, c.logIn(tombstore.NewID(), known), tombstore.ErrStaleLogin)
		require.ErrorIs(c, c.logIn(tombstore.NewID(), nothing), tombstore.ErrStaleLogin)
		require.NoError(c, c.logIn(tombstore.NewID(), c.begun(owner)))

		other := tombstore.NewID()
		nothing = c.begun(other)
		c.bound(other)
		require.NoError(c, c.logIn(tombstore.NewID(), nothing), "another login has begun and ended meanwhile")
		c.endOwner(other, 2)
		require.ErrorIs(c, c.logIn(tombstore.NewID(), nothing), tombstore.ErrStaleLogin)
	}},
	{"InvalidateOwner/Except", func(c *check) {
		owner := tombstore.NewID()
		_, kept := c.bound(owner)
		_, id := c.bound(owner)
		c.endOwner(owner, 1, tombstore.Except(kept))
		c.holds(kept, "x")
		c.ended(id, tombstore.Revoked)
		require.Len(c, c.sessions(owner), 1)
		_, next := c.rotate(kept)
		c.endOwner(owner, 0, tombstore.Except(kept))
		c.holds(next, "x")
		require.Len(c, c.sessions(owner), 1)
		c.endOwner(owner, 1)
		c.ended(next, tombstore.Revoked)
	}},
	{"InvalidateOwner/Thorough", func(c *check) {
		owner, other := tombstore.NewID(), tombstore.NewID()
		_, id := c.bound(owner)
		_, kept := c.bound(owner)
		_, bystander := c.bound(other)
		c.endOwner(owner, 1, tombstore.Thorough(), tombstore.Except(kept))
		c.ended(id, tombstore.Revoked)
		c.holds(kept, "x")
		c.endOwner(owner, 1, tombstore.Thorough())
		c.ended(kept, tombstore.Revoked)
		c.holds(bystander, "x")
	}},
	{"InvalidateOwner/Except must be the owner's", func(c *check) {
		owner := tombstore.NewID()
		login := c.begun(owner)
		_, id := c.bound(owner)
		_, ended := c.bound(owner)
		c.invalidate(ended)
		_, other := c.bound(tombstore.NewID())
		anonymous := tombstore.NewID()
		c.write(anonymous, "x", hour)
		for _, bad := range []string{ended, other, anonymous, tombstore.NewID()} {
			_, err := c.binder.InvalidateOwner(c, owner, tombstore.Except(bad))
			require.ErrorIs(c, err, tombstore.ErrNotFound)
		}
		for _, none := range []string{"", strings.Repeat("a", 1025)} {
			_, err := c.binder.InvalidateOwner(c, owner, tombstore.Except(none))
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
		}
		c.holds(id, "x")
		require.NoError(c, c.logIn(tombstore.NewID(), login), "nothing was changed")
	}},
	{"Race/logins that have begun against InvalidateOwner: nobody is in", func(c *check) {
		for round := range c.rounds(20) {
			owner := tombstore.NewID()
			if round%2 == 1 {
				c.bound(owner)
			}
			ids, logins := make([]string, 8), make([]tombstore.Login, 8)
			for i := range ids {
				ids[i], logins[i] = tombstore.NewID(), c.begun(owner)
			}
			together(len(ids)+1, func(i int) {
				if i == len(ids) {
					for range round {
						runtime.Gosched()
					}
					_, err := c.binder.InvalidateOwner(c, owner)
					assert.NoError(c, err)
					return
				}
				if err := c.logIn(ids[i], logins[i]); err != nil && !errors.Is(err, tombstore.ErrStaleLogin) {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			require.Empty(c, c.live(ids))
			require.Empty(c, c.sessions(owner))
		}
	}},
	{"Race/all move against InvalidateOwner: all are out", func(c *check) {
		c.moveAndEnd(func(old, id string) error {
			_, err := c.store.Rotate(c, old, id)
			return err
		})
	}},
	{"Race/all move against InvalidateOwner Except: one is in", func(c *check) {
		c.moveAndKeep(func(old, id string) error {
			_, err := c.store.Rotate(c, old, id)
			return err
		})
	}},
	{"Race/many InvalidateOwner at once: each is ended once", func(c *check) {
		for range c.rounds(10) {
			owner := tombstore.NewID()
			for range 4 {
				c.bound(owner)
			}
			var ended atomic.Int64
			together(4, func(int) {
				n, err := c.binder.InvalidateOwner(c, owner)
				assert.NoError(c, err)
				ended.Add(int64(n))
			})
			require.EqualValues(c, 4, ended.Load())
		}
	}},
}

// refOf returns the ref of the session of an owner that is live under id, by ending nothing.
func (c *check) refOf(owner, id string) string {
	before := c.sessions(owner)
	s, err := c.store.Read(c, id)
	require.NoError(c, err)
	for _, found := range before {
		if found.CreatedAt.Equal(s.CreatedAt) && (found.Ref == tombstore.Ref(id) || found.Ref == id) {
			return found.Ref
		}
	}
	require.Fail(c, "it is not among the owner's sessions")
	return ""
}

// moveAndEnd has the sessions of an owner move again and again while InvalidateOwner ends them.
func (c *check) moveAndEnd(move func(old, id string) error) {
	const sessions, moves = 4, 4
	for round := range c.rounds(20) {
		owner := tombstore.NewID()
		ids := make([][]string, sessions)
		for i := range ids {
			_, id := c.bound(owner)
			ids[i] = []string{id}
			for range moves {
				ids[i] = append(ids[i], tombstore.NewID())
			}
		}
		together(sessions+1, func(i int) {
			if i == sessions {
				for range 4 * round {
					runtime.Gosched()
				}
				_, err := c.binder.InvalidateOwner(c, owner)
				assert.NoError(c, err)
				return
			}
			for n := range moves {
				if err := move(ids[i][n], ids[i][n+1]); err != nil {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
					return
				}
			}
		})
		for _, of := range ids {
			require.Empty(c, c.live(of))
		}
	}
}

// moveAndKeep is moveAndEnd, and one session goes on, by whichever id it had.
func (c *check) moveAndKeep(move func(old, id string) error) {
	const sessions, moves = 3, 4
	for round := range c.rounds(20) {
		owner := tombstore.NewID()
		ids := make([][]string, sessions)
		for i := range ids {
			_, id := c.bound(owner)
			ids[i] = []string{id}
			for range moves {
				ids[i] = append(ids[i], tombstore.NewID())
			}
		}
		together(sessions+1, func(i int) {
			if i == sessions {
				for range 4 * round {
					runtime.Gosched()
				}
				_, err := c.binder.InvalidateOwner(c, owner, tombstore.Except(ids[0][0]))
				assert.NoError(c, err)
				return
			}
			for n := range moves {
				err := move(ids[i][n], ids[i][n+1])
				if i == 0 {
					assert.NoError(c, err)
				} else if err != nil {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
					return
				}
			}
		})
		require.Equal(c, ids[0][moves:], c.live(ids[0]))
		for _, of := range ids[1:] {
			require.Empty(c, c.live(of))
		}
		require.Len(c, c.sessions(owner), 1)
	}
}

// ownersAndRenewals is for stores that are both a Binder and a Renewer.
var ownersAndRenewals = []rule{
	{"Reserve/several owners: all follow a renewal", func(c *check) {
		for end := range 4 {
			names, owners := c.several()
			_, id := c.bound(names[0], owners...)
			s, next := c.finish(c.begin(id), "y")
			require.Equal(c, refs(names), s.Owners())
			c.endOwner(names[end], 1)
			c.ended(next, tombstore.Revoked)
		}
	}},
	{"Reserve/InPlaceOf is for one renewal", func(c *check) {
		owner := tombstore.NewID()
		_, old := c.bound(owner)
		_, other := c.bound(owner)
		b, id := c.reserve(owner, tombstore.InPlaceOf(old))
		r, right := c.begin(other), c.begin(old)
		r.Binding, right.Binding = &b, &b
		_, err := c.renewer.FinishRenewal(c, r, id, []byte("y"), hour)
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		_, err = c.renewer.FinishRenewal(c, right, id, []byte("y"), hour)
		require.NoError(c, err)
		require.Len(c, c.sessions(owner), 1)
	}},
	{"Owner/a login by renewal begins a new life", func(c *check) {
		owner, old, id := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
		before := c.write(old, "anonymous", hour)
		c.outlast()
		r := c.begin(old)
		b, err := c.binder.Reserve(c, id, c.begun(owner), tombstore.Until(time.Now().Add(2*hour)), tombstore.Label("phone"))
		require.NoError(c, err)
		r.Binding = &b
		s, err := c.renewer.FinishRenewal(c, r, id, []byte("alice"), 3*hour)
		require.NoError(c, err)
		require.True(c, before.CreatedAt.Before(s.CreatedAt))
		require.True(c, b.CreatedAt.Equal(s.CreatedAt))
		found := c.sessions(owner)
		require.Len(c, found, 1)
		require.Equal(c, "phone", found[0].Label)
		c.inTime(time.Now().Add(2*hour), found[0].ExpiresAt)
		c.holds(id, "alice")
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
	}},
	{"Owner/a renewal keeps owner, label, creation time and deadline", func(c *check) {
		owner := tombstore.NewID()
		before, id := c.bound(owner, tombstore.Label("phone"))
		was := c.sessions(owner)
		for range 3 {
			c.outlast()
			r := c.begin(id)
			require.Empty(c, c.sessions(owner))
			moved, next := c.finish(r, "x")
			require.True(c, before.CreatedAt.Equal(moved.CreatedAt))
			found := c.sessions(owner)
			require.Len(c, found, 1)
			was[0].Ref, was[0].ExpiresAt = found[0].Ref, found[0].ExpiresAt
			require.Equal(c, was, found)
			id = next
		}
		c.endOwner(owner, 1)
		c.ended(id, tombstore.Revoked)
	}},
	{"Owner/another user logs in by a renewal", func(c *check) {
		alice, bob := tombstore.NewID(), tombstore.NewID()
		_, old := c.bound(alice)
		r := c.begin(old)
		b, id := c.reserve(bob)
		r.Binding = &b
		_, err := c.renewer.FinishRenewal(c, r, id, []byte("y"), hour)
		require.NoError(c, err)
		require.Empty(c, c.sessions(alice))
		c.endOwner(alice, 0)
		c.holds(id, "y")
		c.endOwner(bob, 1)
		c.ended(id, tombstore.Revoked)
	}},
	{"Owner/a login by renewal does not bring back what has expired", func(c *check) {
		r := c.beginBriefly()
		b, id := c.reserve(tombstore.NewID())
		c.outlast()
		r.Binding = &b
		_, err := c.renewer.FinishRenewal(c, r, id, nil, hour)
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.out(id)
	}},
	{"Owner/a binding is for one id, in a renewal too", func(c *check) {
		old, id := tombstore.NewID(), tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		b, reserved := c.reserve(tombstore.NewID())
		r.Binding = &b
		_, err := c.renewer.FinishRenewal(c, r, id, nil, hour)
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		c.absent(id)
		_, err = c.renewer.FinishRenewal(c, r, reserved, nil, hour)
		require.NoError(c, err)
	}},
	{"InvalidateOwner/between the halves of a renewal", func(c *check) {
		owner := tombstore.NewID()
		_, old := c.bound(owner)
		r := c.begin(old)
		c.endOwner(owner, 0)
		c.refused(r, tombstore.Revoked)
	}},
	{"InvalidateOwner/between the halves of a login", func(c *check) {
		owner, old := tombstore.NewID(), tombstore.NewID()
		c.write(old, "x", hour)
		r := c.begin(old)
		b, id := c.reserve(owner)
		c.endOwner(owner, 0)
		r.Binding = &b
		_, err := c.renewer.FinishRenewal(c, r, id, nil, hour)
		require.ErrorIs(c, err, tombstore.ErrConflict)
		c.out(id)
	}},
	{"InvalidateOwner/Except between the halves of a renewal", func(c *check) {
		owner := tombstore.NewID()
		_, old := c.bound(owner)
		_, other := c.bound(owner)
		r := c.begin(old)
		c.endOwner(owner, 1, tombstore.Except(old))
		_, id := c.finish(r, "y")
		c.endOwner(owner, 0, tombstore.Except(old))
		c.holds(id, "y")
		c.out(other)
		require.Len(c, c.sessions(owner), 1)
	}},
	{"Race/all are renewed against InvalidateOwner: all are out", func(c *check) {
		c.moveAndEnd(func(old, id string) error { return c.renew(old, id, "x") })
	}},
	{"Race/all are renewed against InvalidateOwner Except: one is in", func(c *check) {
		c.moveAndKeep(func(old, id string) error { return c.renew(old, id, "x") })
	}},
}
