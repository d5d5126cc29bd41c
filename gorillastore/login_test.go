package gorillastore_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/gorillastore/internal/racetest"
)

// member is a browser whose user logs in as an owner. What is in between happens when the login has
// begun, and what is after it when Login has been called.
type member struct {
	*browser
	between, after func()
}

func (m *member) binder() tombstore.Binder { return m.backend.(tombstore.Binder) }

// another returns another browser of the same site.
func (m *member) another() *member {
	other := *m.browser
	other.cookie = ""
	return &member{browser: &other}
}

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

// everywhere returns a page that logs a user out everywhere but here.
func (m *member) everywhere(user string) pageFunc {
	return func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
		if _, err := m.store.LogoutEverywhere(r, s, user); err != nil {
			return err
		}
		return s.Save(r, w)
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

func TestLogin(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		visitor := m.cookie
		require.NoError(m, m.visit(m.in("alice")))
		first := m.cookie
		before := m.owned("alice", first)[0]
		require.WithinDuration(m, time.Now().Add(24*time.Hour), before.Deadline, time.Minute)
		require.Equal(m, "alice", m.values(first)["user"])
		if visitor != "" {
			require.Equal(m, "lamp", m.values(first)["cart"])
			require.Empty(m, m.values(visitor))
		}

		// A renewal is no login.
		require.NoError(m, m.visit(login("alice")))
		after := m.owned("alice", m.cookie)[0]
		require.Equal(m, before.Deadline, after.Deadline)
		require.Equal(m, before.CreatedAt, after.CreatedAt)

		// A logout by an older cookie ends the session and takes it out.
		renewed := m.cookie
		m.cookie = first
		require.NoError(m, m.visit(logout))
		require.Empty(m, m.values(renewed))
		m.owned("alice")
	})
}

// A login whose owner is logged out everywhere while the password is looked at is an error of Login, and
// the visitor stays one.
func TestLogin_Stale(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		visitor := m.cookie
		m.between = func() { m.endAll("alice") }
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			require.ErrorIs(m, m.in("alice")(w, r, s), tombstore.ErrStaleLogin)
			return set("flash", "again")(w, r, s)
		}))
		m.owned("alice")
		require.Equal(m, "again", m.values(m.cookie)["flash"])
		if visitor != "" {
			require.Equal(m, m.id(visitor), m.id(m.cookie))
		}
		m.between = nil
		require.NoError(m, m.visit(m.in("alice")))
		m.owned("alice", m.cookie)
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

// A second login in one request is the one that counts, before the Save and after it; and if it fails,
// the first one does.
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

func TestLogin_Refuse(t *testing.T) {
	onEachMember(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(m *member) {
		other, visitor := m.another(), m.cookie
		require.NoError(m, other.visit(other.in("alice")))
		require.ErrorIs(m, m.visit(m.in("alice")), tombstore.ErrTooManySessions)
		require.Equal(m, visitor, m.cookie)
		require.NoError(m, other.visit(other.in("alice")))
		m.owned("alice", other.cookie)
	})
}

func TestLogin_LabelTooLarge(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		visitor := m.cookie
		require.ErrorIs(m, m.visit(func(_ http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			login, err := m.binder().BeginLogin(r.Context(), "alice")
			require.NoError(m, err)
			tomorrow := tombstore.Until(time.Now().Add(24 * time.Hour))
			return m.store.Login(r, s, login, tomorrow, tombstore.Label(strings.Repeat("x", 1025)))
		}), tombstore.ErrTooLarge)
		require.Equal(m, visitor, m.cookie)
		m.owned("alice")
	})
}

func TestLogin_EvictOldest(t *testing.T) {
	onEachMember(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.EvictOldest)}, func(m *member) {
		other := m.another()
		require.NoError(m, other.visit(other.in("alice")))
		require.NoError(m, m.visit(m.in("alice")))
		require.Empty(m, m.values(other.cookie))
		require.NoError(m, m.visit(m.in("alice")))
		m.owned("alice", m.cookie)
	})
}

// Two logins at once in one browser leave it logged in.
func TestLogin_Twins(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		for range 10 {
			m.cookie = ""
			require.NoError(m, m.visit(set("cart", "lamp")))
			var both sync.WaitGroup
			twins := []*member{{browser: new(browser)}, {browser: new(browser)}}
			for _, twin := range twins {
				*twin.browser = *m.browser
				both.Go(func() { require.NoError(m, twin.visit(twin.in("alice"))) })
			}
			both.Wait()
			cookies := []string{}
			for _, twin := range twins {
				if len(twin.cookies) > 0 {
					cookies = append(cookies, twin.cookie)
				}
			}
			require.NotEmpty(m, cookies)
			m.owned("alice", cookies...)
			m.endAll("alice")
		}
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

// Only this session goes on, as what it was, under a new id.
func TestLogoutEverywhere(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		other, bob := m.another(), m.another()
		require.NoError(m, m.visit(m.in("alice")))
		first := m.cookie
		before := m.owned("alice", first)[0]
		require.NoError(m, other.visit(other.in("alice")))
		require.NoError(m, bob.visit(bob.in("bob")))
		require.NoError(m, m.visit(m.everywhere("alice")))
		after := m.owned("alice", m.cookie)[0]
		require.Equal(m, before.Deadline, after.Deadline)
		require.Equal(m, before.CreatedAt, after.CreatedAt)
		require.Equal(m, "alice", m.values(m.cookie)["user"])
		require.Empty(m, m.values(first))
		require.Empty(m, m.values(other.cookie))
		m.owned("bob", bob.cookie)
	})
}

// Who has no session of the owner's keeps what he has.
func TestLogoutEverywhere_OfOthers(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		other := m.another()
		require.NoError(m, other.visit(other.in("alice")))
		visitor := m.values(m.cookie)
		require.NoError(m, m.visit(m.everywhere("alice")))
		m.owned("alice")
		require.Equal(m, visitor, m.values(m.cookie))
		require.NoError(m, other.visit(other.in("alice")))
		require.NoError(m, m.visit(m.in("bob")))
		require.NoError(m, m.visit(m.everywhere("alice")))
		m.owned("alice")
		m.owned("bob", m.cookie)
	})
}

// To log out here as well takes a line more, and the cookie goes.
func TestLogoutEverywhere_HereToo(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		other := m.another()
		require.NoError(m, other.visit(other.in("alice")))
		require.NoError(m, m.visit(m.in("alice")))
		require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			s.Options.MaxAge = -1
			return m.everywhere("alice")(w, r, s)
		}))
		require.Empty(m, m.cookie)
		m.owned("alice")
	})
}

// A login that logs out all others is the one that stays, also if it is in the place of an earlier one.
func TestLogoutEverywhere_AtLogin(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		for range 2 {
			other := m.another()
			require.NoError(m, other.visit(other.in("alice")))
			require.NoError(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
				require.NoError(m, m.begin("alice")(w, r, s))
				return m.everywhere("alice")(w, r, s)
			}))
			m.owned("alice", m.cookie)
		}
	})
}

// Of two devices that log each other out one goes on.
func TestLogoutEverywhere_Twice(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		other := m.another()
		require.NoError(m, other.visit(other.in("alice")))
		require.NoError(m, m.visit(m.in("alice")))
		require.ErrorIs(m, m.visit(func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			require.NoError(m, other.visit(other.everywhere("alice")))
			return m.everywhere("alice")(w, r, s)
		}), adapter.ErrRefused)
		m.owned("alice", other.cookie)
	})
}

// A session that could not be loaded is not replaced.
func TestLogin_NotLoaded(t *testing.T) {
	onEachMember(t, nil, func(m *member) {
		require.NoError(m, m.visit(m.in("alice")))
		require.NoError(m, m.serve(m.Context(), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			gone, cancel := context.WithCancel(r.Context())
			cancel()
			s, err := m.store.Get(r.WithContext(gone), racetest.CookieName)
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
