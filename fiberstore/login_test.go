package fiberstore

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
)

// binder is what the stores of package tombstore implement.
type binder interface {
	backend
	tombstore.Binder
}

// members is an application whose users log in as owners.
type members struct {
	*bed
	store   binder
	between func() // what happens when a login has begun
	opts    []tombstore.ReserveOption
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
		if m.between != nil {
			m.between()
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

// eachMember runs a test on a MemoryStore, on a server and on a cluster, in both modes.
func eachMember(
	t *testing.T, config session.Config, opts []tombstore.Option, test func(m *members, how mode),
) {
	t.Helper()
	t.Parallel()
	cluster := redistest.ClusterURL(t)
	for name, open := range map[string]func(t *testing.T) binder{
		"memory": func(t *testing.T) binder {
			store, err := tombstore.NewMemory(opts...)
			require.NoError(t, err)
			return store
		},
		"server":  func(t *testing.T) binder { return openStore(t, redistest.URL(t), opts...) },
		"cluster": func(t *testing.T) binder { return openStore(t, cluster, opts...) },
	} {
		for _, how := range modes {
			t.Run(name+"/"+string(how), func(t *testing.T) {
				t.Parallel()
				store := open(t)
				m := &members{bed: newBedOn(t, store, how, config), store: store}
				m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(24 * time.Hour))}
				test(m, how)
			})
		}
	}
}

func TestLogin(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		for _, x := range []string{"", m.visitor()} {
			y := m.login("alice", x)
			before := m.owned("alice", y)[0]
			require.WithinDuration(m, time.Now().Add(24*time.Hour), before.Deadline, time.Minute)
			want := map[any]any{"user": "alice"}
			if x != "" {
				m.dead(x)
				want["cart"] = "book"
			}
			m.holds(y, want)

			// A renewal is no login.
			z := m.get("renew", y).id()
			after := m.owned("alice", z)[0]
			require.Equal(m, before.Deadline, after.Deadline)
			require.Equal(m, before.CreatedAt, after.CreatedAt)

			// A logout by an older id ends the session and takes it out.
			require.Equal(m, http.StatusAccepted, m.get("logout", y).status)
			m.owned("alice")
			m.dead(z)
		}
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

// A login whose owner is logged out everywhere while the password is looked at is an error in the handler,
// and the visitor stays one, with the cart.
func TestLogin_Stale(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, how mode) {
		m.between = func() { m.endAll("alice") }
		if how == storeMode { // the middleware saves whatever there is
			require.Nil(m, m.tryLogin("alice", "").cookie)
		}
		r := m.tryLogin("alice", m.visitor())
		require.Equal(m, http.StatusInternalServerError, r.status)
		require.Contains(m, r.body, tombstore.ErrStaleLogin.Error())
		m.holds(r.id(), map[any]any{"cart": "book"})
		m.owned("alice")
		m.between = nil
		m.owned("alice", m.login("alice", r.id()))
	})
}

// One whose owner is logged out everywhere before it is saved is refused, and nobody is in.
func TestLogin_EndedBeforeSave(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		for _, x := range []string{"", m.visitor()} {
			m.act(m.in("alice"))
			finish := m.start("step", x, "done")
			m.endAll("alice")
			r := finish()
			require.Equal(m, http.StatusAccepted, r.status)
			require.Nil(m, r.cookie)
			m.owned("alice")
			require.Zero(m, m.loggedIn())
		}
	})
}

// What is reserved is given up if the session is ended instead of saved.
func TestLogin_NotSaved(t *testing.T) {
	one := []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}
	eachMember(t, session.Config{}, one, func(m *members, how mode) {
		for _, x := range []string{"", m.visitor()} {
			for _, end := range []func(s values) error{values.Destroy, values.Reset} {
				m.step = func(c fiber.Ctx, s values) error {
					if err := m.in("alice")(c, s.(Session)); err != nil {
						return err
					}
					return end(s)
				}
				if r := m.get("step", x); how == middleware { // the other one then saves what was destroyed
					require.Equal(m, http.StatusAccepted, r.status, r.body)
				}
				m.owned("alice", m.login("alice", ""))
				m.endAll("alice")
			}
		}
	})
}

// What comes after a login takes it along, and a second one is the one that counts.
func TestLogin_ThenAgain(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		for _, x := range []string{"", m.visitor()} {
			m.act(func(c fiber.Ctx, s Session) error {
				if err := m.in("alice")(c, s); err != nil {
					return err
				}
				return s.RegenerateWithContext(c)
			})
			r := m.get("step", x)
			require.Equal(m, http.StatusAccepted, r.status, r.body)
			m.owned("alice", r.id())
			m.act(func(c fiber.Ctx, s Session) error {
				if err := m.in("alice")(c, s); err != nil {
					return err
				}
				return m.in("bob")(c, s)
			})
			r = m.get("step", r.id())
			require.Equal(m, http.StatusAccepted, r.status, r.body)
			m.owned("alice")
			m.owned("bob", r.id())
			m.endAll("bob")
		}
	})
}

// Bob logs in where alice was.
func TestLogin_OfAnotherUser(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		alices := m.login("alice", m.visitor())
		bobs := m.login("bob", alices)
		m.owned("alice")
		m.owned("bob", bobs)
		m.endAll("alice")
		m.dead(alices)
		m.holds(bobs, map[any]any{"user": "bob", "cart": "book"})
	})
}

func TestLogin_Refuse(t *testing.T) {
	one := []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}
	eachMember(t, session.Config{}, one, func(m *members, _ mode) {
		first := m.login("alice", m.visitor())
		r := m.tryLogin("alice", m.visitor())
		require.Contains(m, r.body, tombstore.ErrTooManySessions.Error())
		m.holds(r.id(), map[any]any{"cart": "book"})
		m.owned("alice", m.login("alice", first))
	})
}

func TestLogin_LabelTooLarge(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		m.act(func(c fiber.Ctx, s Session) error {
			login, err := m.store.BeginLogin(c.Context(), "alice")
			if err != nil {
				return err
			}
			return m.storage.Login(c, s, login, append(m.opts, tombstore.Label(strings.Repeat("x", 1025)))...)
		})
		r := m.get("step", m.visitor())
		require.Contains(m, r.body, tombstore.ErrTooLarge.Error())
		m.holds(r.id(), map[any]any{"cart": "book"})
		m.owned("alice")
	})
}

func TestLogin_EvictOldest(t *testing.T) {
	one := []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.EvictOldest)}
	eachMember(t, session.Config{}, one, func(m *members, _ mode) {
		first := m.login("alice", m.visitor())
		second := m.login("alice", m.visitor())
		m.dead(first)
		m.owned("alice", m.login("alice", second))
	})
}

// Two logins at once in one browser leave it logged in, whatever comes first.
func TestLogin_Twins(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		m.act(m.in("alice"))
		for _, stage := range []string{"loaded", "done", "saved"} {
			x := m.visitor()
			second := m.start("step", x, "loaded")
			first := m.start("step", x, stage)
			if stage == "loaded" { // the second one goes first
				theirs := second()
				require.Nil(m, first().cookie)
				m.owned("alice", theirs.id())
			} else {
				require.Nil(m, second().cookie)
				m.owned("alice", first().id())
			}
			m.endAll("alice")
		}
		for range 10 {
			x := m.visitor()
			step := func() reply { return m.get("step", x) }
			order, _ := m.both(step, step)
			ids := []string{}
			for _, r := range order {
				require.Equal(m, http.StatusAccepted, r.status, r.body)
				if r.cookie != nil {
					ids = append(ids, r.id())
				}
			}
			require.NotEmpty(m, ids)
			m.owned("alice", ids...)
			m.endAll("alice")
		}
	})
}

// Only the session of the request goes on, as what it was, under a new id.
func TestLogoutEverywhere(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		phone := m.login("alice", m.visitor())
		before := m.owned("alice", phone)[0]
		laptop, bobs := m.login("alice", m.visitor()), m.login("bob", "")
		r := m.everywhere("alice", phone)
		require.Equal(m, http.StatusAccepted, r.status, r.body)
		require.Equal(m, "1", r.header.Get("Ended"))
		require.NotEqual(m, phone, r.id())
		after := m.owned("alice", r.id())[0]
		require.Equal(m, before.Deadline, after.Deadline)
		require.Equal(m, before.CreatedAt, after.CreatedAt)
		m.holds(r.id(), map[any]any{"user": "alice", "cart": "book"})
		m.dead(phone)
		m.dead(laptop)
		m.owned("bob", bobs)
	})
}

// Who has no session of the owner's keeps what he has.
func TestLogoutEverywhere_OfOthers(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		for _, id := range []string{m.visitor(), m.login("bob", "")} {
			m.login("alice", "")
			before := m.get("who", id).body
			r := m.everywhere("alice", id)
			require.Equal(m, http.StatusAccepted, r.status, r.body)
			m.owned("alice")
			require.Equal(m, before, m.get("who", r.id()).body)
		}
		m.login("alice", "")
		require.Equal(m, http.StatusAccepted, m.everywhere("alice", "").status)
		m.owned("alice")
	})
}

// To log out here as well takes a call more, and the cookie goes.
func TestLogoutEverywhere_HereToo(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, how mode) {
		m.login("alice", "")
		phone := m.login("alice", "")
		m.step = func(c fiber.Ctx, s values) error {
			_, err := m.storage.LogoutEverywhere(c, s.(Session), "alice")
			if err != nil {
				return err
			}
			return s.Destroy()
		}
		r := m.get("step", phone)
		m.owned("alice")
		m.dead(phone)
		if how == middleware { // the other one then saves what was destroyed
			require.NotNil(m, r.cookie)
			require.True(m, r.cookie.Expires.Before(time.Now()))
		}
	})
}

// A login that logs out all others is the one that stays, also if it is in the place of an earlier one.
func TestLogoutEverywhere_AtLogin(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		for _, id := range []string{m.login("alice", ""), "", m.visitor()} {
			m.login("alice", "")
			m.act(func(c fiber.Ctx, s Session) error {
				if err := m.in("alice")(c, s); err != nil {
					return err
				}
				_, err := m.storage.LogoutEverywhere(c, s, "alice")
				return err
			})
			r := m.get("step", id)
			require.Equal(m, http.StatusAccepted, r.status, r.body)
			m.owned("alice", r.id())
		}
	})
}

// Of two devices that log each other out one goes on.
func TestLogoutEverywhere_Twice(t *testing.T) {
	eachMember(t, session.Config{}, nil, func(m *members, _ mode) {
		phone, laptop := m.login("alice", ""), m.login("alice", "")
		m.act(func(c fiber.Ctx, s Session) error {
			_, err := m.storage.LogoutEverywhere(c, s, "alice")
			return err
		})
		finish := m.start("step", laptop, "loaded")
		kept := m.get("step", phone).id()
		r := finish()
		require.Equal(m, http.StatusInternalServerError, r.status)
		require.Contains(m, r.body, adapter.ErrRefused.Error())
		require.Nil(m, r.cookie)
		m.owned("alice", kept)
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
