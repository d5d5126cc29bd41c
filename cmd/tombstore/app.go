package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"time"

	"github.com/tombstore/tombstore"
)

const (
	cookieName     = "session"
	requestTimeout = 10 * time.Second
)

// app is a web shop on a loopback port. It is the same for every store.
type app struct {
	sessions
	*httptest.Server
	work func(context.Context) // what keeps a request busy between loading its session and saving it
}

func serve(s sessions, work func(context.Context)) *app {
	a := &app{sessions: s, work: work}
	mux := http.NewServeMux()
	handle := func(pattern string, handler func(http.ResponseWriter, *http.Request) (string, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, err := handler(w, r)
			switch {
			case tombstore.NoSession(err):
				body = "anonymous"
				w.WriteHeader(http.StatusUnauthorized)
			case err != nil:
				body = err.Error()
				w.WriteHeader(http.StatusInternalServerError)
			}
			_, _ = io.WriteString(w, body)
		})
	}
	handle("POST /login", a.login)
	handle("POST /cart", a.cart)
	handle("POST /logout", a.logout)
	handle("GET /whoami", a.whoami)
	a.Server = httptest.NewServer(mux)
	// With the default it would open new connections all the time.
	a.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = 2 * roundWorkers
	a.Client().Timeout = requestTimeout
	return a
}

func (a *app) login(w http.ResponseWriter, r *http.Request) (string, error) {
	id := tombstore.NewID()
	if err := a.create(r.Context(), id, "alice"); err != nil {
		return "", err
	}
	setCookie(w, id, 0)
	return "hello alice", nil
}

// cart takes a while and changes the session.
func (a *app) cart(w http.ResponseWriter, r *http.Request) (string, error) {
	id, loaded, err := a.session(r)
	if err != nil {
		return "", err
	}
	a.work(r.Context())
	switch err = a.save(r.Context(), id, loaded, string(loaded.Data)+", 1 item"); {
	case err == nil:
		setCookie(w, id, 0)
	case !tombstore.NoSession(err):
		return "", err
	} // without a session the user has logged out meanwhile: the answer stands, without a cookie
	return "item added", nil
}

func (a *app) logout(w http.ResponseWriter, r *http.Request) (string, error) {
	if c, err := r.Cookie(cookieName); err == nil {
		if err = a.delete(r.Context(), c.Value); err != nil {
			return "", err
		}
	}
	setCookie(w, "", -1)
	return "bye", nil
}

func (a *app) whoami(_ http.ResponseWriter, r *http.Request) (string, error) {
	_, s, err := a.session(r)
	return string(s.Data), err
}

func (a *app) session(r *http.Request) (id string, s tombstore.Session, err error) {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return "", s, tombstore.ErrNotFound
	}
	s, err = a.load(r.Context(), c.Value)
	return c.Value, s, err
}

func setCookie(w http.ResponseWriter, id string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: id, MaxAge: maxAge, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// browser sends requests to an app and keeps its cookies.
type browser struct {
	http.Client
	url *url.URL
}

// browser returns a new browser that holds the session cookie id, unless it is empty.
func (a *app) browser(id string) *browser {
	jar, _ := cookiejar.New(nil) // never fails
	b := &browser{*a.Client(), &url.URL{Scheme: "http", Host: a.Listener.Addr().String()}}
	b.Jar = jar
	if id != "" {
		jar.SetCookies(b.url, []*http.Cookie{{Name: cookieName, Value: id, Path: "/"}})
	}
	return b
}

// cookie returns the session cookie, or "".
func (b *browser) cookie() string {
	if cookies := b.Jar.Cookies(b.url); len(cookies) > 0 {
		return cookies[0].Value
	}
	return ""
}

type reply struct {
	status int
	body   string
	err    error
}

func (b *browser) send(ctx context.Context, method, path string) reply {
	req, err := http.NewRequestWithContext(ctx, method, b.url.JoinPath(path).String(), http.NoBody)
	if err != nil {
		return reply{err: err}
	}
	resp, err := b.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusInternalServerError {
		err = fmt.Errorf("%s %s: %s", method, path, body)
	}
	return reply{resp.StatusCode, string(body), err}
}
