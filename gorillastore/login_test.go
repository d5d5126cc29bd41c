package gorillastore_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// What a login does, and a log out everywhere, in every library is in ../integration/login_test.go.

// member is a browser whose user logs in as an owner. What is in between happens when the login has
// begun, and what is after it when Login has been called.
type member struct {
	*browser
	between, after func()
}

func (m *member) binder() tombstore.Binder { return m.backend.(tombstore.Binder) }

// in returns a page that logs in.
func (m *member) in(user string) pageFunc {
	return func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
		if err := m.begin(user)(w, r, s); err != nil {
			return err
		}
		return set("user", user)(w, r, s)
	}
}

// begin is in without the Save.
func (m *member) begin(user string) pageFunc {
	return func(_ http.ResponseWriter, r *http.Request, s *sessions.Session) error {
		login, err := m.binder().BeginLogin(r.Context(), user)
		if err != nil {
			return err
		}
		if m.between != nil {
			m.between()
		}
		tomorrow := tombstore.Until(time.Now().Add(24 * time.Hour))
		if err := m.store.Login(r, s, login, tomorrow, tombstore.Label("phone")); err != nil {
			return err
		}
		if m.after != nil {
			m.after()
		}
		return nil
	}
}

func (m *member) endAll(user string) {
	m.Helper()
	_, err := m.binder().InvalidateOwner(m.Context(), user)
	require.NoError(m, err)
}

// owned requires that a user has exactly the sessions that these cookies name, and returns them.
func (m *member) owned(user string, cookies ...string) []tombstore.OwnedSession {
	m.Helper()
	all, err := m.binder().Sessions(m.Context(), user)
	require.NoError(m, err)
	refs, want := []string{}, []string{}
	for _, s := range all {
		require.Equal(m, "phone", s.Label)
		refs = append(refs, s.Ref)
	}
	for _, cookie := range cookies {
		want = append(want, tombstore.Ref(m.id(cookie)))
	}
	require.ElementsMatch(m, want, refs)
	return all
}

// onEachMember runs a test for a visitor who has a cart, and for one who has nothing.
func onEachMember(t *testing.T, opts []tombstore.Option, test func(m *member)) {
	onEach(t, opts, func(s *browser) {
		for _, cart := range []bool{true, false} {
			m := &member{browser: s}
			s.cookie = ""
			if cart {
				require.NoError(s, s.visit(set("cart", "lamp")))
			}
			test(m)
			m.endAll("alice")
			m.endAll("bob")
		}
	})
}

// One whose owner is logged out everywhere before the Save is refused, and nobody is in.
func TestLogin_EndedBeforeSave(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		visitor := m.cookie
		m.after = func() { m.endAll("alice") }
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			require.NoError(m, m.in("alice")(w, r, s))
			require.True(m, m.store.Refused(s))
			return m.store.Save(r, w, s)
		}))
		require.Empty(m, m.cookies)
		m.owned("alice")
		if visitor != "" {
			require.Equal(m, map[any]any{"cart": "lamp"}, m.values(visitor))
		}
	})
}

// What is reserved is given up if the session is ended instead of saved.
func TestLogin_NotSaved(t *testing.T) {
	onEachMember(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(m *member) {
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			if err := m.begin("alice")(w, r, s); err != nil {
				return err
			}
			if err := logout(w, r, s); err != nil {
				return err
			}
			s.Options.MaxAge = 60
			return set("flash", "bye")(w, r, s)
		}))
		require.Equal(m, "bye", m.values(m.cookie)["flash"])
		require.NoError(m, m.visit(m.in("alice")))
		m.owned("alice", m.cookie)
	})
}

// A second login in one request is the one that counts, before the Save and after it; and if it
// fails, the first one does.
func TestLogin_Twice(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			require.NoError(m, m.begin("alice")(w, r, s))
			require.NoError(m, m.begin("bob")(w, r, s))
			m.between = func() { m.endAll("carol") }
			require.ErrorIs(m, m.begin("carol")(w, r, s), tombstore.ErrStaleLogin)
			m.between = nil
			return s.Save(r, w)
		}))
		m.owned("alice")
		m.owned("bob", m.cookie)
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			require.NoError(m, m.in("alice")(w, r, s))
			return m.in("bob")(w, r, s)
		}))
		require.Len(m, m.cookies, 1)
		m.owned("alice")
		m.owned("bob", m.cookie)
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			require.NoError(m, m.in("alice")(w, r, s))
			m.store.Renew(s)
			return s.Save(r, w)
		}))
		m.owned("alice", m.cookie)
	})
}

// A login that first clears the session of whoever was there is no logout.
func TestLogin_Cleared(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		m.store.EndWhenCleared = true
		require.NoError(m, m.visit(m.in("bob")))
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			clear(s.Values)
			return m.in("alice")(w, r, s)
		}))
		m.owned("alice", m.cookie)
		m.owned("bob")
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			clear(s.Values)
			return s.Save(r, w)
		}))
		m.owned("alice")
	})
}

// A session of an owner has a deadline, and a cookie's age is none.
func TestLogin_NoDeadline(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		require.ErrorIs(m, m.visit(func(_ http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			login, err := m.binder().BeginLogin(r.Context(), "alice")
			require.NoError(m, err)
			return m.store.Login(r, s, login)
		}), tombstore.ErrNoDeadline)
	})
}

// A session that could not be loaded is not replaced.
func TestLogin_NotLoaded(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		require.NoError(m, m.visit(m.in("alice")))
		require.NoError(m, m.serve(m.Context(), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			gone, cancel := context.WithCancel(r.Context())
			cancel()
			s, err := m.store.Get(r.WithContext(gone), cookieName)
			require.ErrorIs(m, err, context.Canceled)
			login, err := m.binder().BeginLogin(r.Context(), "bob")
			require.NoError(m, err)
			require.ErrorIs(m, m.store.Login(r, s, login), context.Canceled)
			_, err = m.store.LogoutEverywhere(r, s, "alice")
			require.ErrorIs(m, err, context.Canceled)
		})))
		m.owned("alice", m.cookie)
	})
}

// A login reads MaxAge, and begins with that of the Store after a session that had its own.
func TestLogin_OwnMaxAge(t *testing.T) {
	onEachMember(t, []tombstore.Option{tombstore.WithAbsoluteTimeout(365 * 24 * time.Hour)}, func(m *member) {
		m.store.MaxAge(3600)
		in := func(age int, opts ...tombstore.ReserveOption) {
			require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
				if age > 0 {
					s.Options.MaxAge = age
				}
				login, err := m.binder().BeginLogin(r.Context(), "alice")
				require.NoError(m, err)
				require.NoError(m, m.store.Login(r, s, login, opts...))
				return s.Save(r, w)
			}))
		}
		lives := func(seconds int) {
			m.Helper()
			require.InDelta(m, seconds, m.cookies[0].MaxAge, 5)
			require.NoError(m, m.visit(set("x", tombstore.NewID())))
			require.InDelta(m, seconds, m.cookies[0].MaxAge, 5)
			all, err := m.binder().Sessions(m.Context(), "alice")
			require.NoError(m, err)
			require.Len(m, all, 1)
			require.WithinDuration(m, time.Now().Add(time.Duration(seconds)*time.Second), all[0].ExpiresAt, time.Minute)
		}
		const day = 24 * 60 * 60
		in(30 * day)
		lives(30 * day)
		in(0)
		lives(3600)
		in(15 * 60)
		lives(15 * 60)
		in(0, tombstore.LoginLifetime(tombstore.Lifetime{Idle: day * time.Second, Absolute: 2 * day * time.Second}))
		lives(day)
	})
}
