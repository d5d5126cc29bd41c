package chistore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"gitea.com/go-chi/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/chistore"
)

// The first lines are all that changes in an existing program; the handlers stay as they are.
func Example() {
	store, err := tombstore.NewMemory() // on a server: tombstore.Open("redis://127.0.0.1:6379")
	if err != nil {
		log.Fatal(err)
	}
	withSession, err := chistore.Sessioner(store, session.Options{CookieName: "session"})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s, err := session.RegenerateSession(w, r)
		if err == nil {
			err = errors.Join(s.Set("user", "alice"), s.Release())
		}
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "welcome")
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		s := session.GetSession(r)
		if err := errors.Join(s.Flush(), s.Destroy(w, r)); err != nil {
			http.Error(w, "not logged out, try again", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "bye")
	})
	handler := withSession(mux)

	login, logout := httptest.NewRecorder(), httptest.NewRecorder()
	handler.ServeHTTP(login, httptest.NewRequest(http.MethodPost, "/login", nil))
	cookie := login.Result().Cookies()[0]
	r := httptest.NewRequest(http.MethodPost, "/logout", nil)
	r.AddCookie(cookie)
	handler.ServeHTTP(logout, r)
	_, err = store.Read(context.Background(), cookie.Value)
	fmt.Println(login.Body, logout.Body, errors.Is(err, tombstore.ErrInvalidated))
	// Output: welcome bye true
}

// A login that can be ended: its owner can be logged out everywhere.
func ExampleLogin() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	withSession, err := chistore.Sessioner(store, session.Options{CookieName: "session"})
	if err != nil {
		log.Fatal(err)
	}
	handler := withSession(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		login, err := store.BeginLogin(r.Context(), r.FormValue("user")) // first of all
		if err == nil && r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		if err == nil {
			err = chistore.Login(w, r, login, tombstore.Until(time.Now().Add(12*time.Hour)))
		}
		switch {
		case errors.Is(err, tombstore.ErrStaleLogin):
			http.Error(w, "log in again", http.StatusForbidden)
			return
		case err != nil:
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		_ = session.GetSession(r).Set("user", r.FormValue("user"))
		fmt.Fprint(w, "welcome")
	}))

	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/login?user=alice&password=secret", nil))
	fmt.Println(w.Body)
	fmt.Println(store.InvalidateOwner(context.Background(), "alice"))
	// Output:
	// welcome
	// 1 <nil>
}
