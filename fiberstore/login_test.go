package fiberstore

import (
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// What a login does, and a log out everywhere, in every library is in ../integration/login_test.go.

// members is an application whose users log in as owners.
type members struct {
	*bed
	store *tombstore.MemoryStore
	opts  []tombstore.ReserveOption
}

// act makes /step do something with the session.
func (m *members) act(do func(c fiber.Ctx, s Session) error) {
	m.step = func(c fiber.Ctx, s values) error { return do(c, s.(Session)) }
}

func (m *members) in(user string) func(c fiber.Ctx, s Session) error {
	return func(c fiber.Ctx, s Session) error {
		login, err := m.store.BeginLogin(c.Context(), user)
		if err != nil {
			return err
		}
		if err := m.storage.Login(c, s, login, append(m.opts, tombstore.Label("phone"))...); err != nil {
			return err
		}
		s.Set("user", user)
		if _, r := m.storage.request(c); len(r.renewed) > 0 {
			return errors.New("it is known under which id the session goes on")
		}
		return nil
	}
}

// tryLogin logs in with the session of an id.
func (m *members) tryLogin(user, id string) reply {
	m.act(m.in(user))
	return m.get("step", id)
}

func (m *members) login(user, id string) string {
	m.Helper()
	r := m.tryLogin(user, id)
	require.Equal(m, http.StatusAccepted, r.status, r.body)
	require.NotEmpty(m, r.id())
	return r.id()
}

func (m *members) everywhere(user, id string) reply {
	m.act(func(c fiber.Ctx, s Session) error {
		n, err := m.storage.LogoutEverywhere(c, s, user)
		c.Set("Ended", strconv.Itoa(n))
		return err
	})
	return m.get("step", id)
}

func (m *members) visitor() string { return m.get("modify", "").id() }

func (m *members) endAll(user string) {
	m.Helper()
	_, err := m.store.InvalidateOwner(m.Context(), user)
	require.NoError(m, err)
}

// owned requires that a user has exactly these sessions, and returns them.
func (m *members) owned(user string, ids ...string) []tombstore.OwnedSession {
	m.Helper()
	all, err := m.store.Sessions(m.Context(), user)
	require.NoError(m, err)
	refs, want := []string{}, []string{}
	for _, s := range all {
		require.Equal(m, "phone", s.Label)
		refs = append(refs, s.Ref)
	}
	for _, id := range ids {
		want = append(want, tombstore.Ref(id))
	}
	require.ElementsMatch(m, want, refs)
	return all
}

// holds requires the values of a live session.
func (m *members) holds(id string, want map[any]any) {
	m.Helper()
	s, err := m.store.Read(m.Context(), id)
	require.NoError(m, err)
	values, err := decode(s.Data)
	require.NoError(m, err)
	for key := range values {
		if _, text := key.(string); !text {
			delete(values, key)
		}
	}
	require.Equal(m, want, values)
}

func (m *members) dead(id string) {
	m.Helper()
	_, err := m.store.Read(m.Context(), id)
	require.True(m, tombstore.NoSession(err))
}

// eachMember runs a test in both modes.
func eachMember(
	t *testing.T, config session.Config, opts []tombstore.Option, test func(m *members, how mode),
) {
	t.Helper()
	each(t, func(t *testing.T, how mode) {
		store, err := tombstore.NewMemory(opts...)
		require.NoError(t, err)
		m := &members{bed: newBedOn(t, store, how, config), store: store}
		m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(24 * time.Hour))}
		test(m, how)
	})
}

// Fiber's absolute timeout is the deadline, or the deadline becomes fiber's absolute timeout.
func TestLogin_AbsoluteTimeout(t *testing.T) {
	config := session.Config{AbsoluteTimeout: 12 * time.Hour, IdleTimeout: time.Hour}
	eachMember(t, config, nil, func(m *members, _ mode) {
		visitor := m.visitor()
		m.opts = nil
		require.WithinDuration(m, time.Now().Add(12*time.Hour), m.owned("alice", m.login("alice", visitor))[0].Deadline, time.Minute)
		m.endAll("alice")

		for _, until := range []time.Duration{2 * time.Hour, 240 * time.Hour} {
			m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(until))}
			id := m.login("alice", m.visitor())
			deadline := m.owned("alice", id)[0].Deadline
			require.WithinDuration(m, time.Now().Add(until), deadline, time.Minute)
			var expires []time.Time
			m.act(func(_ fiber.Ctx, s Session) error {
				for _, key := range s.Keys() {
					if at, ok := s.Get(key).(time.Time); ok {
						expires = append(expires, at)
					}
				}
				return nil
			})
			m.get("step", id)
			require.Len(m, expires, 1)
			require.True(m, deadline.Equal(expires[0]))
			m.endAll("alice")
		}
	})
}

// With the middleware a login begins fiber's absolute timeout anew, however old the visit is.
func TestLogin_NewLife(t *testing.T) {
	eachMember(t, session.Config{AbsoluteTimeout: time.Hour, IdleTimeout: time.Minute}, nil, func(m *members, how mode) {
		visitor := m.visitor()
		m.act(func(_ fiber.Ctx, s Session) error {
			key, _ := expiration(s)
			s.Set(key, time.Now().Add(10*time.Minute)) // 50 minutes later
			return nil
		})
		m.get("step", visitor)
		m.opts = nil
		want := time.Hour
		if how == storeMode {
			want = 10 * time.Minute
		}
		require.WithinDuration(m, time.Now().Add(want), m.owned("alice", m.login("alice", visitor))[0].Deadline, time.Minute)
	})
}

// Reset takes fiber's expiration away, but the middleware knows how long that is.
func TestLogin_AfterReset(t *testing.T) {
	config := session.Config{AbsoluteTimeout: 12 * time.Hour, IdleTimeout: time.Hour}
	eachMember(t, config, nil, func(m *members, how mode) {
		for _, x := range []string{m.visitor(), m.login("bob", "")} {
			m.act(func(c fiber.Ctx, s Session) error {
				return errors.Join(s.(values).Reset(), m.in("alice")(c, s))
			})
			m.opts = nil
			r := m.get("step", x)
			want := 12 * time.Hour
			if how == storeMode {
				require.Contains(m, r.body, tombstore.ErrNoDeadline.Error())
				want = 2 * time.Hour
				m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(want))}
				r = m.get("step", x)
			}
			require.Equal(m, http.StatusAccepted, r.status, r.body)
			require.WithinDuration(m, time.Now().Add(want), m.owned("alice", r.id())[0].Deadline, time.Minute)
			m.holds(r.id(), map[any]any{"user": "alice"})
			m.dead(x)

			again := m.login("alice", r.id()) // as before
			require.WithinDuration(m, time.Now().Add(want), m.owned("alice", again)[0].Deadline, time.Minute)
			m.endAll("alice")
			m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(want))}
		}
	})
}

// What the middleware has destroyed it does not save, so nobody would be in. The other one does.
func TestLogin_AfterDestroy(t *testing.T) {
	one := []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}
	eachMember(t, session.Config{}, one, func(m *members, how mode) {
		for _, then := range []func(s values) error{
			func(values) error { return nil }, values.Reset, values.Regenerate,
		} {
			for _, x := range []string{m.visitor(), m.login("bob", "")} {
				m.act(func(c fiber.Ctx, s Session) error {
					return errors.Join(s.(values).Destroy(), then(s.(values)), m.in("alice")(c, s))
				})
				r := m.get("step", x)
				m.dead(x)
				if how == middleware {
					require.Contains(m, r.body, errDestroyed.Error())
					m.owned("alice", m.login("alice", ""))
				} else {
					require.Equal(m, http.StatusAccepted, r.status, r.body)
					m.holds(r.id(), map[any]any{"user": "alice"})
					m.owned("alice", r.id())
				}
				m.endAll("alice")
			}
		}
	})
}

func TestLogin_NoDeadline(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		m.opts = nil
		require.Contains(m, m.tryLogin("alice", m.visitor()).body, tombstore.ErrNoDeadline.Error())
	})
}

// A session that is kept elsewhere cannot be logged in here.
func TestLogin_AnotherStorage(t *testing.T) {
	t.Parallel()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	b := newBedOn(t, store, middleware, session.Config{Storage: &mapStorage{data: map[string][]byte{}}})
	b.step = func(c fiber.Ctx, s values) error {
		return b.storage.Login(c, s.(Session), tombstore.Login{})
	}
	require.Contains(t, b.get("step", "").body, errAnother.Error())
}

// Only the session of the request goes on, and the others are counted.
func TestLogoutEverywhere(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		phone, laptop := m.login("alice", m.visitor()), m.login("alice", "")
		r := m.everywhere("alice", phone)
		require.Equal(m, "1", r.header.Get("Ended"), r.body)
		m.owned("alice", r.id())
		m.dead(phone)
		m.dead(laptop)
	})
}
