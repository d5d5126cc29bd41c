package scsstore_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

// Without an IdleTimeout scs saves only what has changed, so nobody has to know when a session expires.
func TestUnchanged_NoIdleTimeout(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	store, err := tombstore.New(client, tombstore.WithTimeout(time.Minute))
	require.NoError(t, err)
	sm := newManager(0)
	s := newSite(t, sm, scsstore.Install(sm, store))
	token := s.get("/login", s.get("/put", "").token()).token()
	sent := redistest.Commands(t, client, func() { require.Empty(t, s.get("/read", token).cookies) })
	require.Equal(t, map[string]int{"get": 1}, sent)
}

// However the response begins, it is that of a session which scs was not to save, and what the handler
// has set itself stays.
func TestUnchanged_Response(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"nothing":     func(http.ResponseWriter, *http.Request) {},
		"status":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) },
		"body":        func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "body") },
		"Flush":       func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() },
		"Early Hints": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusEarlyHints) },
		"its own headers": func(w http.ResponseWriter, _ *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "theme", Value: "dark"})
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "by hand"})
			w.Header().Add("Cache-Control", "private")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var headers [2]http.Header
			for i, idle := range []time.Duration{0, time.Hour} {
				memory, err := tombstore.NewMemory()
				require.NoError(t, err)
				sm := newManager(idle)
				loadAndSave := scsstore.Install(sm, memory)
				put := func(_ http.ResponseWriter, r *http.Request) { sm.Put(r.Context(), "user", "alice") }
				token := serve(sm, loadAndSave, "", put).Cookies()[0].Value
				server := httptest.NewServer(loadAndSave(answer))
				t.Cleanup(server.Close)
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
				require.NoError(t, err)
				r.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: token})
				res, err := httpClient.Do(r)
				require.NoError(t, err)
				require.NoError(t, res.Body.Close())
				headers[i] = res.Header
				headers[i].Del("Date")
			}
			require.Equal(t, headers[0], headers[1])
			require.Equal(t, "Cookie", headers[1].Get("Vary"))
		})
	}
}

// A program that commits a session itself hands out the token itself, so it must hear of an end.
func TestUnchanged_OwnCommit(t *testing.T) {
	t.Parallel()
	for name, install := range map[string]func(sm *scs.SessionManager, store *counter) func(http.Handler) http.Handler{
		"Install": func(sm *scs.SessionManager, store *counter) func(http.Handler) http.Handler {
			return scsstore.Install(sm, store)
		},
		"Protect": func(sm *scs.SessionManager, store *counter) func(http.Handler) http.Handler {
			protect := scsstore.Protect(sm, store)
			return func(next http.Handler) http.Handler { return protect(sm.LoadAndSave(next)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newCounter(t)
			sm := newManager(time.Hour)
			s := newSite(t, sm, install(sm, store))
			s.actions["/token"] = func(w http.ResponseWriter, r *http.Request) error {
				token, _, err := sm.Commit(r.Context())
				w.Header().Set("X-Session", token)
				return err
			}
			token := s.get("/put", "").token()
			require.Empty(t, s.get("/read", token).cookies)
			require.Zero(t, store.touches.Load())
			require.Equal(t, token, s.get("/token", token).token())
			require.NotZero(t, store.touches.Load())

			b := s.gate("b")
			done := s.start("/token?gate=b", token)
			<-b.reached
			require.NoError(t, store.Invalidate(t.Context(), token))
			close(b.open)
			require.Contains(t, (<-done).body, adapter.ErrRefused.Error())
		})
	}
}

// Each manager's cookie is its own business.
func TestUnchanged_TwoManagers(t *testing.T) {
	t.Parallel()
	one, two := newManager(time.Hour), newManager(time.Hour)
	two.Cookie.Name = "other"
	var protect [2]func(http.Handler) http.Handler
	for i, sm := range []*scs.SessionManager{one, two} {
		memory, err := tombstore.NewMemory()
		require.NoError(t, err)
		protect[i] = scsstore.Protect(sm, memory)
	}
	both := func(next http.Handler) http.Handler {
		return protect[0](protect[1](one.LoadAndSave(two.LoadAndSave(next))))
	}
	cookies := func(cookie string, handler http.HandlerFunc) map[string]string {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Cookie", cookie)
		w := httptest.NewRecorder()
		both(handler).ServeHTTP(w, r)
		set := map[string]string{}
		for _, c := range w.Result().Cookies() {
			set[c.Name] = c.Value
		}
		return set
	}
	put := func(sms ...*scs.SessionManager) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			for _, sm := range sms {
				sm.Put(r.Context(), "n", sm.GetInt(r.Context(), "n")+1)
			}
		}
	}
	tokens := cookies("", put(one, two))
	require.Len(t, tokens, 2)
	came := "session=" + tokens["session"] + "; other=" + tokens["other"]
	require.Empty(t, cookies(came, put()))
	require.Equal(t, map[string]string{"session": tokens["session"]}, cookies(came, put(one)))
	require.Equal(t, map[string]string{"other": tokens["other"]}, cookies(came, put(two)))
}

// A part of a request runs as a request of its own, which changes nothing, and whose response is not
// the browser's. What the request does afterwards reaches the browser.
func TestUnchanged_RequestWithinRequest(t *testing.T) {
	t.Parallel()
	for name, hash := range map[string]bool{"plain": false, "HashTokenInStore": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory, err := tombstore.NewMemory()
			require.NoError(t, err)
			sm := newManager(time.Hour)
			sm.HashTokenInStore = hash
			loadAndSave := scsstore.Install(sm, memory)
			within := sm.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
			do := func(token string, then func(ctx context.Context) error) *http.Response {
				return serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
					within.ServeHTTP(httptest.NewRecorder(), r)
					require.NoError(t, then(r.Context()))
				})
			}
			token := serve(sm, loadAndSave, "", put(sm, "n", 1)).Cookies()[0].Value
			require.Empty(t, do(token, func(context.Context) error { return nil }).Cookies())

			login := do(token, sm.RenewToken).Cookies()
			require.Len(t, login, 1)
			require.NotEqual(t, token, login[0].Value)
			logout := do(login[0].Value, sm.Destroy).Cookies()
			require.Len(t, logout, 1)
			require.Empty(t, logout[0].Value)
		})
	}
}

// TimeoutHandler answers while the handler goes on, and saves.
func TestUnchanged_TimeoutHandler(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	sm := newManager(time.Hour)
	protect := scsstore.Protect(sm, memory)
	token := serve(sm, func(next http.Handler) http.Handler { return protect(sm.LoadAndSave(next)) }, "", put(sm, "n", 1)).Cookies()[0].Value
	ended := make(chan bool)
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		saved := false
		sm.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			w.WriteHeader(http.StatusOK)
			saved = true
		})).ServeHTTP(w, r)
		ended <- saved
	})
	for saved := false; !saved; { // time may be up before the session was loaded
		res := serve(sm, func(http.Handler) http.Handler {
			return protect(http.TimeoutHandler(slow, time.Millisecond, "late"))
		}, token, nil)
		require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
		saved = <-ended
	}
}
