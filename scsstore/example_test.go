package scsstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"

	"github.com/alexedwards/scs/v2"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/scsstore"
)

func Example() {
	store, err := tombstore.NewMemory() // on a server: tombstore.Open("redis://127.0.0.1:6379")
	if err != nil {
		log.Fatal(err)
	}
	sm := scs.New()
	loadAndSave := scsstore.Install(sm, store)
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(_ http.ResponseWriter, r *http.Request) {
		if err := sm.RenewToken(r.Context()); err != nil {
			log.Fatal(err)
		}
		sm.Put(r.Context(), "user", "alice")
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		// Somebody else ends the session meanwhile.
		if err := store.Invalidate(r.Context(), sm.Token(r.Context())); err != nil {
			log.Fatal(err)
		}
		sm.Put(r.Context(), "cart", 1)
		_, _ = io.WriteString(w, "added")
	})
	handler := loadAndSave(mux)

	login := httptest.NewRecorder()
	handler.ServeHTTP(login, httptest.NewRequest(http.MethodPost, "/login", nil))
	slow := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/slow", nil)
	r.AddCookie(login.Result().Cookies()[0])
	handler.ServeHTTP(slow, r)
	fmt.Println(slow.Code, slow.Body, len(slow.Result().Cookies()), "cookies")
	// Output: 200 added 0 cookies
}

// Logging a user out everywhere.
func ExampleStore_AllCtx() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	sm := scs.New()
	scsstore.Install(sm, store)
	for _, user := range []string{"alice", "bob", "alice"} {
		ctx, err := sm.Load(context.Background(), "")
		if err != nil {
			log.Fatal(err)
		}
		sm.Put(ctx, "user", user)
		if _, _, err := sm.Commit(ctx); err != nil {
			log.Fatal(err)
		}
	}

	ctx := context.Background()
	err = sm.Iterate(ctx, func(ctx context.Context) error {
		if sm.GetString(ctx, "user") == "alice" {
			return sm.Destroy(ctx)
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	err = sm.Iterate(ctx, func(ctx context.Context) error {
		fmt.Println(sm.GetString(ctx, "user"), "is logged in")
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: bob is logged in
}

func ExampleInstall() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	sm := scs.New()
	sm.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) { // never called for a refusal
		log.Print(err)
		http.Error(w, "sorry", http.StatusServiceUnavailable)
	}
	loadAndSave := scsstore.Install(sm, store, adapter.WithOnRefused(func(_ context.Context, e adapter.Event) {
		log.Printf("%s of session %s refused: %v", e.Verb, e.Ref, e.Reason)
	}))
	_ = http.Server{Handler: loadAndSave(http.NotFoundHandler())}
}

// Tokens that come in a header, by a middleware such as the README of scs links to. The response is
// kept back until the session is saved, as the token goes before it.
func ExampleProtect() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	sm := scs.New()
	protect := scsstore.Protect(sm, store)
	loadAndSaveHeader := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, err := sm.Load(r.Context(), r.Header.Get("X-Session"))
			if err != nil {
				http.Error(w, "sorry", http.StatusServiceUnavailable)
				return
			}
			kept := httptest.NewRecorder()
			next.ServeHTTP(kept, r.WithContext(ctx))
			if sm.Status(ctx) == scs.Modified {
				token, expiry, err := sm.Commit(ctx)
				switch {
				case errors.Is(err, adapter.ErrRefused): // the response goes out without a token
				case err != nil:
					http.Error(w, "sorry", http.StatusServiceUnavailable)
					return
				default:
					w.Header().Set("X-Session", token)
					w.Header().Set("X-Session-Expiry", expiry.Format(http.TimeFormat))
				}
			}
			maps.Copy(w.Header(), kept.Header())
			w.WriteHeader(kept.Code)
			_, _ = w.Write(kept.Body.Bytes())
		})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(_ http.ResponseWriter, r *http.Request) {
		if err := sm.RenewToken(r.Context()); err != nil {
			log.Fatal(err)
		}
		sm.Put(r.Context(), "user", "alice")
	})
	mux.HandleFunc("/logout", func(_ http.ResponseWriter, r *http.Request) {
		if err := sm.Destroy(r.Context()); err != nil {
			log.Fatal(err)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "user: "+sm.GetString(r.Context(), "user"))
	})
	handler := protect(loadAndSaveHeader(mux))

	get := func(path, token string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, path, nil)
		r.Header.Set("X-Session", token)
		handler.ServeHTTP(w, r)
		return w
	}
	first := get("/login", "").Header().Get("X-Session")
	second := get("/login", first).Header().Get("X-Session") // renews the token
	fmt.Println(get("/", second).Body)
	get("/logout", first) // is a logout of the same session
	fmt.Println(get("/", second).Body)
	// Output:
	// user: alice
	// user:
}
