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
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/rueidis"

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

// Going through all sessions, to end those of a user that were begun without Login.
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

// A login that can be ended: the user is logged out everywhere, here or by an administrator, and a
// login whose password was looked at before that is refused.
func ExampleLogin() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	sm := scs.New()
	loadAndSave := scsstore.Install(sm, store)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		ctx, user := r.Context(), r.FormValue("user")
		login, err := store.BeginLogin(ctx, user) // first of all
		if err == nil && r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		if err == nil {
			err = scsstore.Login(ctx, sm, login, tombstore.Label(r.FormValue("device")))
		}
		switch {
		case errors.Is(err, tombstore.ErrStaleLogin):
			http.Error(w, "log in again", http.StatusForbidden)
		case errors.Is(err, tombstore.ErrTooManySessions):
			http.Error(w, "log out on another device first", http.StatusForbidden)
		case err != nil:
			http.Error(w, "try again later", http.StatusServiceUnavailable)
		default:
			sm.Put(ctx, "user", user)
			_, _ = io.WriteString(w, "hello")
		}
	})
	mux.HandleFunc("POST /logout/others", func(w http.ResponseWriter, r *http.Request) {
		n, err := scsstore.LogoutEverywhere(r.Context(), sm, sm.GetString(r.Context(), "user"))
		if err != nil {
			http.Error(w, "not logged out, try again", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, "%d other logged out", n)
	})
	handler := loadAndSave(mux)

	post := func(path string, cookies ...*http.Cookie) *http.Response {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, path, nil)
		for _, c := range cookies {
			r.AddCookie(c)
		}
		handler.ServeHTTP(w, r)
		fmt.Println(path, w.Code, w.Body)
		return w.Result()
	}
	post("/login?user=alice&password=secret&device=phone")
	laptop := post("/login?user=alice&password=secret&device=laptop")
	post("/logout/others", laptop.Cookies()...)
	devices, err := store.Sessions(context.Background(), "alice")
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range devices {
		fmt.Println(d.Label)
	}
	// Output:
	// /login?user=alice&password=secret&device=phone 200 hello
	// /login?user=alice&password=secret&device=laptop 200 hello
	// /logout/others 200 1 other logged out
	// laptop
}

// A login over two requests. What is known of it after the first one lies in the anonymous session,
// on the server. If the user is logged out everywhere in between, as after a new password, the
// second one fails.
func ExampleLogin_secondFactor() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	sm := scs.New()
	loadAndSave := scsstore.Install(sm, store)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /password", func(w http.ResponseWriter, r *http.Request) {
		ctx, user := r.Context(), r.FormValue("user")
		login, err := store.BeginLogin(ctx, user)
		if err == nil && r.FormValue("password") != "secret" {
			http.Error(w, "wrong password", http.StatusForbidden)
			return
		}
		if err == nil {
			err = sm.RenewToken(ctx) // half a login is a privilege, too
		}
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		text, _ := login.MarshalText() // never fails
		sm.Put(ctx, "login", string(text))
		sm.Put(ctx, "candidate", user)
		_, _ = io.WriteString(w, "code?")
	})
	mux.HandleFunc("POST /code", func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		var login tombstore.Login
		err := login.UnmarshalText([]byte(sm.GetString(ctx, "login"))) // ErrStaleLogin if there is none
		if err == nil && r.FormValue("code") != "123456" {             // count how often this happens
			http.Error(w, "wrong code", http.StatusForbidden)
			return
		}
		if err == nil {
			err = scsstore.Login(ctx, sm, login)
		}
		switch {
		case errors.Is(err, tombstore.ErrStaleLogin):
			sm.Remove(ctx, "login")
			http.Error(w, "log in again", http.StatusForbidden)
		case err != nil:
			http.Error(w, "try again later", http.StatusServiceUnavailable)
		default:
			sm.Remove(ctx, "login")
			sm.Put(ctx, "user", sm.PopString(ctx, "candidate"))
			_, _ = io.WriteString(w, "hello")
		}
	})
	handler := loadAndSave(mux)

	post := func(path string, cookies ...*http.Cookie) []*http.Cookie {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, path, nil)
		for _, c := range cookies {
			r.AddCookie(c)
		}
		handler.ServeHTTP(w, r)
		fmt.Println(path, w.Code, strings.TrimSpace(w.Body.String()))
		return w.Result().Cookies()
	}
	half := post("/password?user=alice&password=secret")
	post("/code?code=123456", half...)

	half = post("/password?user=alice&password=secret")
	if _, err := store.InvalidateOwner(context.Background(), "alice"); err != nil {
		log.Fatal(err)
	}
	post("/code?code=123456", half...)
	// Output:
	// /password?user=alice&password=secret 200 code?
	// /code?code=123456 200 hello
	// /password?user=alice&password=secret 200 code?
	// /code?code=123456 403 log in again
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
	loadAndSave := scsstore.Install(sm, store, adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
		log.Printf("%s of session %s refused: %v", e.Verb, e.Ref, e.Reason)
	}))
	_ = http.Server{Handler: loadAndSave(http.NotFoundHandler())}
}

// A program that has kept its sessions in goredisstore or redisstore: they are migrated when they
// are met. Take the option out when none of them can be live any more.
func ExampleInstall_migration() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithTombstoneTTL(48*time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	client, err := rueidis.NewClient(rueidis.MustParseURL("redis://127.0.0.1:6379"))
	if err != nil {
		log.Fatal(err)
	}
	old := adapter.NewOldKeys(client, "scs:session:")
	loadAndSave := scsstore.Install(scs.New(), store, adapter.WithMigration(old))
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
