package chistore_test

import (
	"net/http"
	"testing"
	"time"

	"gitea.com/go-chi/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/chistore"
)

// What Login does under races is tested in module integration.

var hour = tombstore.Until(time.Now().Add(time.Hour))

func (s *site) begin() tombstore.Login {
	login, err := s.store.BeginLogin(s.Context(), "alice")
	require.NoError(s, err)
	return login
}

// enter logs alice in, as the owner of the session.
func (s *site) enter(cookie string) *http.Cookie {
	_, set := s.ask(cookie, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.NoError(s, chistore.Login(w, q, s.begin(), hour))
		require.NoError(s, store.Set("user", "alice"))
	})
	return set
}

func (s *site) owned() (refs []string) {
	all, err := s.store.Sessions(s.Context(), "alice")
	require.NoError(s, err)
	for _, one := range all {
		refs = append(refs, one.Ref)
	}
	return refs
}

// A login that is too late is an error, and the visitor stays one, with what the session holds.
func TestLogin_Stale(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, visitor := s.ask("", func(_ http.ResponseWriter, _ *http.Request, store session.Store) {
		require.NoError(t, store.Set("cart", 1))
	})
	login := s.begin()
	_, err := s.store.InvalidateOwner(t.Context(), "alice")
	require.NoError(t, err)
	_, cookie := s.ask(visitor.Value, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.ErrorIs(t, chistore.Login(w, q, login, hour), tombstore.ErrStaleLogin)
		require.ErrorIs(t, chistore.Login(w, q, s.begin()), tombstore.ErrNoDeadline)
		require.Equal(t, visitor.Value, store.ID())
	})
	require.Nil(t, cookie)
	require.Equal(t, 1, s.get(visitor.Value, "cart"))
	require.Empty(t, s.owned())
}

// What is not saved is given up.
func TestLogin_NotSaved(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w http.ResponseWriter, q *http.Request, s session.Store){
		"no value": func(http.ResponseWriter, *http.Request, session.Store) {},
		"Destroy":  func(w http.ResponseWriter, q *http.Request, s session.Store) { _ = s.Destroy(w, q) },
		"panic":    func(http.ResponseWriter, *http.Request, session.Store) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSiteOn(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)})
			func() {
				defer func() { _ = recover() }()
				s.ask("", func(w http.ResponseWriter, q *http.Request, store session.Store) {
					require.NoError(t, chistore.Login(w, q, s.begin(), hour))
					end(w, q, store)
				})
			}()
			require.Equal(t, "alice", s.get(s.enter("").Value, "user"))
		})
	}
}

// Nobody logs in with a session that was ended when it was saved.
func TestLogin_Refused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ask(s.login(), func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.NoError(t, s.store.Invalidate(q.Context(), store.ID()))
		require.NoError(t, store.Set("cart", 1))
		require.ErrorIs(t, chistore.Login(w, q, s.begin(), hour), adapter.ErrRefused)
	})
	require.Empty(t, s.owned())
}

// All others are out, and the session that is kept has another id.
func TestLogoutEverywhere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	phone, laptop := s.enter("").Value, s.enter("").Value
	_, kept := s.ask(laptop, func(w http.ResponseWriter, q *http.Request, _ session.Store) {
		n, err := chistore.LogoutEverywhere(w, q, "alice")
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
	require.NotEqual(t, laptop, kept.Value)
	require.Equal(t, []string{tombstore.Ref(kept.Value)}, s.owned())
	require.Nil(t, s.get(phone, "user"))
	require.Equal(t, "alice", s.get(kept.Value, "user"))
}
