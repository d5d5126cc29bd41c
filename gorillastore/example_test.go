package gorillastore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/gorillastore"
)

// The first lines of main are all that changes in an existing program; the handlers stay as they
// are.
func Example() {
	backend, err := tombstore.NewMemory() // or tombstore.Open("redis://127.0.0.1:6379")
	if err != nil {
		panic(err)
	}
	store := gorillastore.New(backend, []byte("an authentication key, 32 bytes."))

	handler := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		session.Values["user"] = "alice"
		session.ID = "" // a login gets a new id
		if err := session.Save(r, w); err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "welcome")
	}

	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest(http.MethodPost, "/login", nil))
	fmt.Println(w.Body, len(w.Result().Cookies()))
	// Output: welcome 1
}

// A login that can be ended: its owner can be logged out everywhere.
func ExampleStore_Login() {
	backend, err := tombstore.NewMemory()
	if err != nil {
		panic(err)
	}
	store := gorillastore.New(backend, []byte("an authentication key, 32 bytes."))
	handler := func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		login, err := backend.BeginLogin(r.Context(), r.FormValue("user")) // first of all
		if err == nil && r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		if err == nil {
			err = store.Login(r, session, login, tombstore.Until(time.Now().Add(12*time.Hour)))
		}
		switch {
		case errors.Is(err, tombstore.ErrStaleLogin):
			http.Error(w, "log in again", http.StatusForbidden)
			return
		case err != nil:
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		session.Values["user"] = r.FormValue("user")
		if err := session.Save(r, w); err != nil || store.Refused(session) {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "welcome")
	}

	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest(http.MethodPost, "/login?user=alice&password=secret", nil))
	fmt.Println(w.Body)
	fmt.Println(backend.InvalidateOwner(context.Background(), "alice"))
	// Output:
	// welcome
	// 1 <nil>
}

// A program that does not want to answer as if nothing had happened asks after each Save.
func ExampleStore_Refused() {
	backend, err := tombstore.NewMemory()
	if err != nil {
		panic(err)
	}
	store := gorillastore.New(backend, []byte("an authentication key, 32 bytes."))
	r, w := httptest.NewRequest(http.MethodPost, "/", nil), httptest.NewRecorder()
	session, _ := store.Get(r, "session")
	_ = session.Save(r, w)

	_ = backend.Invalidate(r.Context(), session.ID) // in another request
	session.Values["cart"] = "a lamp"
	fmt.Println(session.Save(r, w), store.Refused(session), len(w.Result().Cookies()))
	// Output: <nil> true 0
}
