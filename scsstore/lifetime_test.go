package scsstore_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/scsstore"
)

const day = 24 * time.Hour

// A session with a lifetime of its own keeps it in requests that know nothing of it, and its cookie
// lives as long.
func TestSetLifetime(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]tombstore.Lifetime{
		"remembered": {Idle: 30 * day, Absolute: 90 * day},
		"short":      {Idle: 15 * time.Minute, Absolute: 45 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sm := newManager(time.Hour)
			s, store := installed(t, sm)
			s.actions["/remember"] = func(_ http.ResponseWriter, r *http.Request) error {
				if err := scsstore.SetLifetime(r.Context(), sm, l); err != nil {
					return err
				}
				sm.Put(r.Context(), "user", "alice")
				return nil
			}
			s.actions["/login"] = func(_ http.ResponseWriter, r *http.Request) error {
				login, err := store.BeginLogin(r.Context(), "alice")
				require.NoError(t, err)
				if err := scsstore.Login(r.Context(), sm, login, tombstore.LoginLifetime(l)); err != nil {
					return err
				}
				sm.Put(r.Context(), "user", "alice")
				return nil
			}
			s.actions["/forget"] = func(_ http.ResponseWriter, r *http.Request) error {
				return scsstore.SetLifetime(r.Context(), sm, tombstore.Lifetime{})
			}
			lives := func(res response, token string, idle time.Duration) {
				t.Helper()
				require.Less(t, res.status, 300, res.body)
				got, err := store.Read(t.Context(), token, tombstore.WithExpiry())
				require.NoError(t, err)
				require.WithinDuration(t, time.Now().Add(idle), got.ExpiresAt, time.Minute)
				require.Len(t, res.cookies, 1)
				require.InDelta(t, idle.Seconds(), res.cookies[0].MaxAge, 60)
			}
			for _, path := range []string{"/remember", "/login"} {
				for _, before := range []string{"", s.get("/put", "").token()} {
					res := s.get(path, before)
					token := res.token()
					lives(res, token, l.Idle)
					lives(s.get("/put", token), token, l.Idle)
					require.Empty(t, s.get("/read", token).cookies)
					res = s.get("/renew", token)
					lives(res, res.token(), l.Idle)
					require.Equal(t, http.StatusAccepted, s.get("/logout", res.token()).status)
					_, err := store.Read(t.Context(), token)
					require.ErrorIs(t, err, tombstore.ErrInvalidated)
				}
			}
			res := s.get("/forget", s.get("/remember", "").token())
			lives(res, res.token(), time.Hour)
		})
	}
}

// Without an IdleTimeout scs touches no session, so an idle timeout of its own would end it in use.
func TestSetLifetime_NoIdleTimeout(t *testing.T) {
	t.Parallel()
	sm := newManager(0)
	s, _ := installed(t, sm)
	var err error
	s.actions["/remember"] = func(_ http.ResponseWriter, r *http.Request) error {
		err = scsstore.SetLifetime(r.Context(), sm, tombstore.Lifetime{Idle: day})
		require.ErrorContains(t, err, "IdleTimeout")
		err = scsstore.SetLifetime(r.Context(), sm, tombstore.Lifetime{Absolute: 2 * day})
		sm.Put(r.Context(), "user", "alice")
		return err
	}
	res := s.get("/remember", "")
	require.NoError(t, err)
	require.InDelta(t, (2 * day).Seconds(), res.cookies[0].MaxAge, 60)
}

// scs' Lifetime ends a session whose own idle timeout is longer, whatever the request does.
func TestSetLifetime_LongerThanLifetime(t *testing.T) {
	t.Parallel()
	for name, later := range map[string]func(sm *scs.SessionManager) http.HandlerFunc{
		"reads":  func(*scs.SessionManager) http.HandlerFunc { return nothing },
		"writes": func(sm *scs.SessionManager) http.HandlerFunc { return put(sm, "a", "b") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newCounter(t)
			sm := newManager(time.Minute)
			loadAndSave := scsstore.Install(sm, store)
			var deadline time.Time
			token := serve(sm, loadAndSave, "", func(_ http.ResponseWriter, r *http.Request) {
				require.NoError(t, scsstore.SetLifetime(r.Context(), sm, tombstore.Lifetime{Idle: time.Hour}))
				deadline = time.Now().Add(time.Second)
				sm.SetDeadline(r.Context(), deadline)
				sm.Put(r.Context(), "user", "alice")
			}).Cookies()[0].Value
			<-time.After(time.Until(deadline))
			res := serve(sm, loadAndSave, token, func(w http.ResponseWriter, r *http.Request) {
				require.Empty(t, sm.GetString(r.Context(), "user"))
				later(sm)(w, r)
			})
			for _, c := range res.Cookies() {
				require.NotEqual(t, token, c.Value)
			}
			_, err := store.Read(t.Context(), token)
			require.ErrorIs(t, err, tombstore.ErrInvalidated)
		})
	}
}
