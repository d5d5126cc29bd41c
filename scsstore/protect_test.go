package scsstore_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/scsstore"
)

// byHeader loads the session that a header names, and saves it when the handler is done.
func byHeader(sm *scs.SessionManager) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, err := sm.Load(r.Context(), r.Header.Get("X-Session"))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			kept := httptest.NewRecorder()
			next.ServeHTTP(kept, r.WithContext(ctx))
			if sm.Status(ctx) == scs.Modified {
				token, _, err := sm.Commit(ctx)
				if err != nil && !errors.Is(err, adapter.ErrRefused) {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
				http.SetCookie(w, &http.Cookie{Name: "header", Value: token}) // for the client of these tests
			}
			w.WriteHeader(kept.Code)
			_, _ = w.Write(kept.Body.Bytes())
		})
	}
}

// The promise holds for tokens in headers: each of the ways to log out, at each moment of a renewal.
func TestProtect_RenewalAgainstLogout(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		for _, moment := range []string{"b", "b-done", ""} {
			for _, way := range []string{"/logout", "/flash"} {
				t.Run(name+"/"+moment+way, func(t *testing.T) {
					t.Parallel()
					sm := scs.New()
					protect := scsstore.Protect(sm, newStore(t))
					s := newSite(t, sm, func(next http.Handler) http.Handler {
						return fromCookie(sm, protect(byHeader(sm)(next)))
					})
					s.actions["/flash"] = func(w http.ResponseWriter, r *http.Request) error { return destroyPut(sm, w, r) }
					x := s.get("/login", s.get("/put", "").token()).token()
					var renewed string
					if moment == "" {
						renewed = s.get("/renew", x).token()
						require.Equal(t, http.StatusAccepted, s.get(way, x).status)
					} else {
						b := s.gate(moment)
						done := s.start("/renew?gate=b", x)
						<-b.reached
						require.Equal(t, http.StatusAccepted, s.get(way, x).status)
						close(b.open)
						got := <-done
						require.Equal(t, http.StatusAccepted, got.status)
						require.Equal(t, "alice/1.", got.body)
						renewed = got.token()
					}
					for _, token := range []string{x, renewed} {
						require.Equal(t, "/0.", s.get("/read", token).body)
					}
					want := []string{}
					if way == "/flash" {
						want = append(want, "/0")
					}
					require.Equal(t, want, s.live())
				})
			}
		}
	}
}

// fromCookie makes a header of what a site sends as a cookie.
func fromCookie(sm *scs.SessionManager, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cookie, err := r.Cookie(sm.Cookie.Name); err == nil {
			r.Header.Set("X-Session", cookie.Value)
			r.Header.Del("Cookie")
		}
		next.ServeHTTP(w, r)
	})
}

// One program may have both, tokens in cookies and in headers.
func TestProtect_Both(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	protect := scsstore.Protect(sm, onMemory(t))
	mux := http.NewServeMux()
	mux.Handle("/cookie", protect(sm.LoadAndSave(put(sm, "user", "alice"))))
	mux.Handle("/header", protect(byHeader(sm)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(sm.GetString(r.Context(), "user")))
		require.NoError(t, sm.RenewToken(r.Context()))
	}))))
	server := httptest.NewServer(mux)
	defer server.Close()
	res, err := httpClient.Get(server.URL + "/cookie")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	token := res.Cookies()[0].Value
	r, err := http.NewRequest(http.MethodGet, server.URL+"/header", nil)
	require.NoError(t, err)
	r.Header.Set("X-Session", token)
	res, err = httpClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.NotEqual(t, token, res.Cookies()[0].Value)
	require.NotEmpty(t, res.Cookies()[0].Value)
}
