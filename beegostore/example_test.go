package beegostore_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/beego/beego/v2/server/web/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/beegostore"
)

// A program that uses a manager of sessions without the rest of beego.
func Example() {
	store, err := tombstore.NewMemory() // tombstore.Open("redis://127.0.0.1:6379") in a program of several processes
	if err != nil {
		log.Fatal(err)
	}
	sessions := beegostore.Register("example", store)
	manager, err := session.NewManager("example", &session.ManagerConfig{
		CookieName: "visitor", EnableSetCookie: true, Gclifetime: 3600,
	})
	if err != nil {
		log.Fatal(err)
	}
	sessions.Manager, sessions.CookieName = manager, "visitor"
	handler := sessions.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		s, err := manager.SessionStart(w, r)
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		defer s.SessionRelease(ctx, w)
		if r.URL.Path == "/logout" {
			manager.SessionDestroy(w, r)
			_, _ = io.WriteString(w, "logged out")
			return
		}
		n, _ := s.Get(ctx, "visits").(int)
		_ = s.Set(ctx, "visits", n+1)
		fmt.Fprintf(w, "visit %d", n+1)
	}))

	cookie := ""
	for _, path := range []string{"/visits", "/visits", "/logout", "/visits"} {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
		r.Header.Set("Cookie", cookie)
		handler.ServeHTTP(w, r)
		if cookie == "" {
			cookie, _, _ = strings.Cut(w.Header().Get("Set-Cookie"), ";")
		}
		fmt.Printf("%s: %s\n", path, w.Body)
	}
	// Output:
	// /visits: visit 1
	// /visits: visit 2
	// /logout: logged out
	// /visits: visit 1
}
