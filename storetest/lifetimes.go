package storetest

import (
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

const day = 24 * hour

// lives checks how long a session has to live if it is not used, and if it is.
func (c *check) lives(id string, idle, until time.Duration) tombstore.Session {
	s, err := c.store.Read(c, id, tombstore.WithExpiry())
	require.NoError(c, err)
	c.inTime(time.Now().Add(idle), s.ExpiresAt)
	c.inTime(time.Now().Add(until), s.Deadline())
	return s
}

// remembered and short are lifetimes that are longer, and shorter, than those of all other sessions
// here.
var (
	remembered = tombstore.Lifetime{Idle: 30 * day, Absolute: 90 * day}
	short      = tombstore.Lifetime{Idle: 15 * time.Minute, Absolute: 45 * time.Minute}
)

// uses is all that others may do to a session without a thought of its lifetime.
var uses = map[string]func(c *check, id string, s tombstore.Session) (tombstore.Session, string, error){
	"Touch": func(c *check, id string, s tombstore.Session) (tombstore.Session, string, error) {
		return s, id, c.store.Touch(c, id, hour/2)
	},
	"Slide": func(c *check, id string, _ tombstore.Session) (tombstore.Session, string, error) {
		s, err := c.store.Read(c, id, tombstore.Slide(hour/2))
		return s, id, err
	},
	"Write": func(c *check, id string, _ tombstore.Session) (tombstore.Session, string, error) {
		s, err := c.store.Write(c, id, []byte("x"), hour/2)
		return s, id, err
	},
	"Write of another lifetime": func(c *check, id string, s tombstore.Session) (tombstore.Session, string, error) {
		s, err := c.store.Write(c, id, []byte("x"), hour/2, tombstore.IfVersion(s.Version),
			tombstore.Lasting(tombstore.Lifetime{Idle: time.Minute, Absolute: 2 * time.Minute}))
		return s, id, err
	},
	"Replacing": func(c *check, id string, s tombstore.Session) (tombstore.Session, string, error) {
		s, err := c.store.Write(c, id, []byte("x"), hour/2, tombstore.Replacing(s))
		return s, id, err
	},
	"Rotate": func(c *check, id string, _ tombstore.Session) (tombstore.Session, string, error) {
		s, next := c.rotate(id)
		return s, next, nil
	},
	"WithData": func(c *check, id string, _ tombstore.Session) (tombstore.Session, string, error) {
		s, next := c.rotate(id, tombstore.WithData([]byte("x"), hour/2))
		return s, next, nil
	},
}

// use does all that, and checks that the session lives as long as it did.
func (c *check) use(id string, l tombstore.Lifetime) string {
	for what, use := range uses {
		before := c.lives(id, l.Idle, l.Absolute)
		s, next, err := use(c, id, before)
		require.NoError(c, err, what)
		require.Equal(c, l.Idle, s.Idle(), what)
		id = next
	}
	c.lives(id, l.Idle, l.Absolute)
	return id
}

var lifetimes = []rule{
	{"Lifetime/of a Write stays whatever others do", func(c *check) {
		for _, l := range []tombstore.Lifetime{remembered, short} {
			for _, condition := range [][]tombstore.WriteOption{nil, {tombstore.IfAbsent()}} {
				id := tombstore.NewID()
				s := c.write(id, "x", hour/2, append(condition, tombstore.Lasting(l))...)
				require.Equal(c, l.Idle, s.Idle())
				id = c.use(id, l)
				c.invalidate(id)
				c.ended(id, tombstore.Logout)
			}
		}
	}},
	{"Lifetime/only one of the two", func(c *check) {
		id := tombstore.NewID()
		s := c.write(id, "x", hour/2, tombstore.Lasting(tombstore.Lifetime{Absolute: 45 * time.Minute}))
		require.Zero(c, s.Idle())
		c.lives(id, hour/2, 45*time.Minute)
		require.NoError(c, c.store.Touch(c, id, 40*time.Minute))
		c.lives(id, 40*time.Minute, 45*time.Minute)

		id = tombstore.NewID()
		usual := c.write(tombstore.NewID(), "x", hour/2).Deadline()
		s = c.write(id, "x", hour/2, tombstore.Lasting(tombstore.Lifetime{Idle: 15 * time.Minute}))
		require.Equal(c, usual.IsZero(), s.Deadline().IsZero())
		require.WithinDuration(c, usual, s.Deadline(), time.Minute)
		s, err := c.store.Read(c, id, tombstore.Slide(hour/2))
		require.NoError(c, err)
		c.inTime(time.Now().Add(15*time.Minute), s.ExpiresAt)
	}},
	{"Lifetime/none is as all others", func(c *check) {
		id := tombstore.NewID()
		s := c.write(id, "x", hour/2, tombstore.Lasting(tombstore.Lifetime{}))
		require.Equal(c, c.write(tombstore.NewID(), "x", hour).Deadline().IsZero(), s.Deadline().IsZero())
		require.Zero(c, s.Idle())
		require.NoError(c, c.store.Touch(c, id, hour/4))
		s, err := c.store.Read(c, id, tombstore.WithExpiry())
		require.NoError(c, err)
		c.inTime(time.Now().Add(hour/4), s.ExpiresAt)
	}},
	{"Lifetime/a session that is live keeps its own", func(c *check) {
		id := tombstore.NewID()
		before := c.write(id, "x", hour/2)
		s := c.write(id, "y", hour/4, tombstore.Lasting(remembered))
		require.Zero(c, s.Idle())
		require.Equal(c, before.Deadline(), s.Deadline())
		s, err := c.store.Read(c, id, tombstore.WithExpiry())
		require.NoError(c, err)
		c.inTime(time.Now().Add(hour/4), s.ExpiresAt)
	}},
	{"Lifetime/Rotate gives another one", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "x", hour/2)
		for i, l := range []tombstore.Lifetime{remembered, short, remembered} {
			opts := []tombstore.RotateOption{tombstore.WithLifetime(l)}
			if i > 0 {
				opts = append(opts, tombstore.WithData([]byte("x"), hour/2))
			}
			var s tombstore.Session
			s, id = c.rotate(id, opts...)
			require.Equal(c, l.Idle, s.Idle())
			require.Equal(c, first.CreatedAt, s.CreatedAt)
			id = c.use(id, l)
		}
		s, id := c.rotate(id, tombstore.WithLifetime(tombstore.Lifetime{}), tombstore.WithData([]byte("x"), hour/2))
		require.Zero(c, s.Idle())
		require.WithinDuration(c, first.Deadline(), s.Deadline(), time.Minute)
		s, err := c.store.Read(c, id, tombstore.WithExpiry())
		require.NoError(c, err)
		c.inTime(time.Now().Add(hour/2), s.ExpiresAt)
		c.holds(id, "x")
	}},
	{"Lifetime/another one begins with the move", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour, tombstore.Lasting(remembered))
		c.outlast() // as long as the next one takes
		s, id := c.rotate(id, tombstore.WithLifetime(tombstore.Lifetime{Absolute: hour}))
		require.Greater(c, s.Deadline().Sub(s.CreatedAt), hour+instant/2)
		c.inTime(time.Now().Add(hour), s.Deadline())
		c.holds(id, "x")
	}},
	{"Lifetime/expires after its own idle time", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour, tombstore.Lasting(tombstore.Lifetime{Idle: instant}))
		c.expires(id)
		id = tombstore.NewID()
		c.write(id, "x", hour, tombstore.Lasting(tombstore.Lifetime{Absolute: instant}))
		c.expires(id)
		c.absent(id)
	}},
	{"Lifetime/errors", func(c *check) {
		for _, l := range []tombstore.Lifetime{{Idle: -1}, {Absolute: -1}} {
			id := tombstore.NewID()
			_, err := c.store.Write(c, id, nil, hour, tombstore.Lasting(l))
			require.ErrorIs(c, err, tombstore.ErrInvalidTTL)
			c.absent(id)
			c.write(id, "x", hour)
			_, err = c.store.Rotate(c, id, tombstore.NewID(), tombstore.WithLifetime(l))
			require.ErrorIs(c, err, tombstore.ErrInvalidTTL)
			c.holds(id, "x")
		}
	}},
}

// beginBriefly begins the renewal of a session whose deadline is an instant away.
func (c *check) beginBriefly() tombstore.Renewal {
	for { // until the machine was fast enough
		id := tombstore.NewID()
		c.write(id, "x", hour, tombstore.Lasting(tombstore.Lifetime{Absolute: instant}))
		r, err := c.renewer.BeginRenewal(c, id, 0)
		if err == nil {
			return r
		}
		require.ErrorIs(c, err, tombstore.ErrNotFound)
	}
}

var lifetimesAndRenewals = []rule{
	{"Lifetime/of a renewal", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "x", hour/2)
		renew := func(l *tombstore.Lifetime) tombstore.Session {
			r := c.begin(id)
			r.Lifetime = l
			s, next := c.finish(r, "x")
			id = next
			return s
		}
		for _, l := range []tombstore.Lifetime{remembered, short, remembered} {
			s := renew(&l)
			require.Equal(c, l.Idle, s.Idle())
			require.Equal(c, first.CreatedAt, s.CreatedAt)
			renew(nil)
			id = c.use(id, l)
		}
		c.outlast()
		s := renew(&tombstore.Lifetime{Absolute: hour})
		require.Greater(c, s.Deadline().Sub(s.CreatedAt), hour+instant/2)
		s = renew(&tombstore.Lifetime{})
		require.Zero(c, s.Idle())
		require.WithinDuration(c, first.Deadline(), s.Deadline(), time.Minute)

		r := c.begin(id)
		r.Lifetime = &tombstore.Lifetime{Idle: -1}
		_, err := c.renewer.FinishRenewal(c, r, tombstore.NewID(), nil, hour)
		require.ErrorIs(c, err, tombstore.ErrInvalidTTL)
		r.Lifetime = nil
		c.finish(r, "x")
	}},
	{"Lifetime/a longer one does not bring back what has expired", func(c *check) {
		r := c.beginBriefly()
		c.outlast()
		r.Lifetime = &remembered
		id := tombstore.NewID()
		_, err := c.renewer.FinishRenewal(c, r, id, nil, hour)
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.out(id)
	}},
}

var lifetimesOfOwners = []rule{
	{"Lifetime/of a login", func(c *check) {
		for _, l := range []tombstore.Lifetime{remembered, short} {
			owner, id := tombstore.NewID(), tombstore.NewID()
			reserve := func() tombstore.Binding {
				b, err := c.binder.Reserve(c, id, c.begun(owner), tombstore.LoginLifetime(l))
				require.NoError(c, err)
				return b
			}
			s := c.write(id, "x", hour/2, tombstore.Bound(reserve()), tombstore.Lasting(tombstore.Lifetime{Idle: 1}))
			require.Equal(c, l.Idle, s.Idle())
			c.use(id, l)

			for _, opts := range [][]tombstore.RotateOption{nil, {tombstore.WithData([]byte("x"), hour/2)}} {
				old := tombstore.NewID()
				c.write(old, "x", hour/2)
				id = tombstore.NewID()
				s, err := c.store.Rotate(c, old, id, append(opts, tombstore.WithBinding(reserve()))...)
				require.NoError(c, err)
				require.Equal(c, l.Idle, s.Idle())
				id = c.use(id, l)
			}

			found := c.sessions(owner)
			require.Len(c, found, 3)
			for _, s := range found {
				c.inTime(time.Now().Add(l.Idle), s.ExpiresAt)
				c.inTime(time.Now().Add(l.Absolute), s.Deadline)
			}
			c.endOwner(owner, 3)
			c.ended(id, tombstore.Revoked)
		}
	}},
	{"Lifetime/a session that is adopted keeps its own", func(c *check) {
		for _, l := range []tombstore.Lifetime{remembered, short} {
			id := tombstore.NewID()
			c.write(id, "x", hour/2, tombstore.Lasting(l))
			s, err := c.binder.Adopt(c, id, c.begun(tombstore.NewID()))
			require.NoError(c, err)
			require.Equal(c, l.Idle, s.Idle())
			c.use(id, l)
		}
	}},
	{"Lifetime/a login without one has none", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour/2, tombstore.Lasting(remembered))
		b, id := c.reserve(tombstore.NewID())
		s, err := c.store.Rotate(c, old, id, tombstore.WithBinding(b), tombstore.WithData([]byte("x"), hour/2))
		require.NoError(c, err)
		require.Zero(c, s.Idle())
		c.lives(id, hour/2, time.Until(b.Deadline))
	}},
	{"Lifetime/Until counts if it is sooner", func(c *check) {
		id := tombstore.NewID()
		b, err := c.binder.Reserve(c, id, c.begun(tombstore.NewID()), tombstore.LoginLifetime(remembered),
			tombstore.Until(time.Now().Add(60*day)))
		require.NoError(c, err)
		c.inTime(time.Now().Add(60*day), b.Deadline)
		b, err = c.binder.Reserve(c, tombstore.NewID(), c.begun(tombstore.NewID()), tombstore.LoginLifetime(short),
			tombstore.Until(time.Now().Add(60*day)))
		require.NoError(c, err)
		c.inTime(time.Now().Add(45*time.Minute), b.Deadline)
		_, err = c.binder.Reserve(c, id, c.begun(tombstore.NewID()), tombstore.LoginLifetime(tombstore.Lifetime{Idle: -1}))
		require.ErrorIs(c, err, tombstore.ErrInvalidTTL)
	}},
	{"Lifetime/a move brings the deadline of a login forward only", func(c *check) {
		owner := tombstore.NewID()
		s, id := c.bound(owner)
		moved, id := c.rotate(id, tombstore.WithLifetime(remembered))
		require.Equal(c, s.Deadline(), moved.Deadline())
		require.Equal(c, remembered.Idle, moved.Idle())
		require.Equal(c, s.Owners(), moved.Owners())
		_, id = c.rotate(id, tombstore.WithLifetime(short))
		c.lives(id, short.Idle, short.Absolute)
		c.endOwner(owner, 1)
		c.ended(id, tombstore.Revoked)
	}},
}
