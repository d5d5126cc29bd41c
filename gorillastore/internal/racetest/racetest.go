// Package racetest plays the races of two requests that came with one cookie against a web site,
// over HTTP and without sleeping: each request stops after it has loaded its session, and again
// after it has changed it, until it is told to go on.
package racetest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// CookieName is the name of the sessions of a site.
const CookieName = "session"

// Key signs the cookies of a site.
var Key = []byte("0123456789abcdef0123456789abcdef")

// Session is what a page does with the session of its request.
type Session interface {
	User() string            // "" if nobody is logged in
	Visit() error            // changes the session and saves it
	Save() error             // saves it as it is
	Login(user string) error // renews the id, too
	Logout() error
}

// Page does what a request asks for, and returns the body of the answer. With an error the status
// is 500.
type Page func(r *http.Request, s Session) (string, error)

// Site is a web site with sessions.
type Site struct {
	Handler func(Page) http.Handler
	Live    func() int // the number of live sessions
	Revoke  func()     // ends all sessions, as an administrator does
	// Between makes the next renewal stop between its two steps and call f. It is nil where a
	// renewal is one step.
	Between func(f func())
}

// Handler makes the handler of a site whose sessions are in store.
type Handler func(store tombstore.Renewer, page Page) http.Handler

// OnMemory returns a site whose sessions are in memory.
func OnMemory(t *testing.T, handler Handler) Site {
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	return on(t, store, handler)
}

// on returns a site whose sessions are in store.
func on(t *testing.T, store interface {
	tombstore.Renewer
	tombstore.Lister
}, handler Handler) Site {
	list := func() (live []tombstore.Entry) {
		for e, err := range store.List(t.Context()) {
			require.NoError(t, err)
			live = append(live, e)
		}
		return live
	}
	return Site{
		Handler: func(page Page) http.Handler { return handler(store, page) },
		Live:    func() int { return len(list()) },
		Revoke: func() {
			for _, e := range list() {
				require.NoError(t, store.InvalidateRef(t.Context(), e.Ref, tombstore.WithReason(tombstore.Revoked)))
			}
		},
	}
}

// Cell is a race: what A does while B, which both came with the cookie of alice, does something
// else.
type Cell struct{ A, B string }

// A is "logout", "login" (as bob, with a new id) or "revoke" (by an administrator). B is the path
// of a page, or one of these.
const (
	First = "first" // visits; is answered before A, though after A's change
	Late  = "late"  // visits; begins after A was answered
)

// Cells returns all races.
func Cells() (cells []Cell) {
	for _, a := range []string{"logout", "login", "revoke"} {
		for _, b := range []string{"visit", "read", "save", "renew", First, Late, "logout"} {
			cells = append(cells, Cell{a, b})
		}
	}
	return cells
}

// Outcome is how a race ended.
type Outcome struct {
	Status int    // of B
	Body   string // of B: the user that it saw
	Cookie string // that B's answer sets: "", "deleted", "old" or "new"
	Old    string // the user that the old cookie stands for afterwards
	Next   string // the user that the browser stands for afterwards
	Live   int    // the number of live sessions
}

// Want returns how a race must end. A must win: B gets its answer, but neither the session nor the
// cookie nor the user's values outlive A. suppressed says that the site uses
// adapter.WithLateRequests.
func (c Cell) Want(suppressed bool) Outcome {
	o := Outcome{Status: http.StatusOK, Body: "alice"}
	if c.A == "login" {
		o.Next, o.Live = "bob", 1
	}
	switch {
	case c.B == "logout": // it reaches the session that a login has made of its own
		o.Cookie, o.Next, o.Live = "deleted", "", 0
	case c.B == Late && suppressed && c.A != "revoke":
		o.Body = ""
	case c.B == Late: // an anonymous session, whose cookie replaces the other one
		o.Body, o.Cookie, o.Next = "", "new", ""
		o.Live++
	}
	return o
}

// Play plays a race on a fresh site.
func (c Cell) Play(t *testing.T, site Site) Outcome {
	b := newBrowser(t, site)
	old := b.visit("login?user=alice").cookie(t)
	path := c.B
	if c.B == First || c.B == Late {
		path = "visit"
	}
	var slow, quick *request
	if c.B != Late {
		slow = b.start(path, old)
		b.wait(slow.loaded)
	}
	switch c.A {
	case "revoke":
		site.Revoke()
	default:
		quick = b.start(strings.Replace(c.A, "login", "login?user=bob", 1), old)
		close(quick.act)
		b.wait(quick.acted)
		if c.B != First {
			b.finish(quick)
		}
	}
	if c.B == Late {
		slow = b.start(path, old)
	}
	close(slow.act)
	answer := b.finish(slow)
	if c.B == First && quick != nil {
		b.finish(quick)
	}

	o := Outcome{Status: answer.status, Body: answer.body, Cookie: answer.effect(old), Live: site.Live()}
	o.Next = b.visit("read").body
	b.jar = old
	o.Old = b.visit("read").body
	return o
}

// BadCookies requires that a cookie that names no live session is no more than no cookie.
func BadCookies(t *testing.T, site Site) {
	b := newBrowser(t, site)
	b.visit("login?user=alice")
	dead := b.jar
	b.visit("logout")
	require.Zero(t, site.Live())
	sign := func(key []byte, value any) string {
		encoded, err := securecookie.EncodeMulti(CookieName, value, securecookie.CodecsFromPairs(key)...)
		require.NoError(t, err)
		return encoded
	}
	id := tombstore.NewID()
	for name, value := range map[string]string{
		"none":           "",
		"malformed":      "%%%",
		"truncated":      dead[:len(dead)/2],
		"changed":        dead[:len(dead)-4] + "AAAA",
		"replayed":       dead,
		"of 4 KiB":       strings.Repeat("A", 4096),
		"binary":         "\x80\xff\xfe\x81",
		"of another key": sign([]byte("another key of thirty-two bytes."), id),
		"unsigned id":    id,
		"unknown id":     sign(Key, id),
		"empty id":       sign(Key, ""),
		"oversize id":    sign(Key, strings.Repeat("A", 2000)),
		"not an id":      sign(Key, 1),
	} {
		for _, path := range []string{"read", "visit", "login?user=bob", "logout"} {
			b.jar = value
			answer := b.visit(path)
			require.Equal(t, http.StatusOK, answer.status, "%s, %s", name, path)
			require.Empty(t, answer.body, "%s, %s", name, path)
			switch path {
			case "read":
				require.Empty(t, answer.effect(value), name)
				require.Zero(t, site.Live(), name)
			case "logout":
				require.Zero(t, site.Live(), name)
			default:
				require.Equal(t, "new", answer.effect(value), name)
				require.NotEqual(t, decode(value), decode(b.jar), name)
				require.Equal(t, 1, site.Live(), name)
			}
			site.Revoke()
		}
	}
}

// decode returns the id in a cookie.
func decode(cookie string) (id string) {
	_ = securecookie.DecodeMulti(CookieName, cookie, &id, securecookie.CodecsFromPairs(Key)...)
	return id
}

// LateRequests is the window for sites that are to suppress the cookies of late requests.
func LateRequests() adapter.Option { return adapter.WithLateRequests(time.Hour) }

// browser applies the cookies of answers in the order in which they arrive.
type browser struct {
	*testing.T
	server  *httptest.Server
	jar     string // the cookie
	started chan *request
}

// request is a request that stops twice.
type request struct {
	loaded, act, acted, answer chan struct{}
	done                       chan answer
}

type answer struct {
	status  int
	body    string
	cookies []*http.Cookie
}

func newBrowser(t *testing.T, site Site) *browser {
	b := &browser{T: t, started: make(chan *request, 1)}
	b.server = httptest.NewServer(site.Handler(b.page))
	t.Cleanup(b.server.Close)
	return b
}

// page is the site's only page.
func (b *browser) page(r *http.Request, s Session) (string, error) {
	user := s.User()
	if r.Header.Get("Stop") == "" {
		return user, do(r, s)
	}
	stop := <-b.started
	close(stop.loaded)
	b.wait(stop.act)
	err := do(r, s)
	close(stop.acted)
	b.wait(stop.answer)
	return user, err
}

func do(r *http.Request, s Session) error {
	switch r.URL.Path {
	case "/visit":
		return s.Visit()
	case "/save":
		return s.Save()
	case "/renew":
		return s.Login(s.User())
	case "/login":
		return s.Login(r.FormValue("user"))
	case "/logout":
		return s.Logout()
	}
	return nil
}

// start begins a request with a cookie.
func (b *browser) start(path, cookie string) *request {
	r := &request{
		loaded: make(chan struct{}), act: make(chan struct{}), acted: make(chan struct{}), answer: make(chan struct{}),
		done: make(chan answer, 1),
	}
	b.started <- r
	go func() { r.done <- b.fetch(path, cookie, "yes") }()
	b.wait(r.loaded)
	return r
}

// finish lets a request that may act be answered.
func (b *browser) finish(r *request) answer {
	close(r.answer)
	select {
	case a := <-r.done:
		return b.apply(a)
	case <-time.After(time.Minute):
		b.Fatal("no answer")
		return answer{}
	}
}

func (b *browser) wait(ch <-chan struct{}) {
	select {
	case <-ch:
	case <-time.After(time.Minute):
		b.Error("a request does not go on")
	}
}

// visit makes a request with the cookie in the jar, without a stop.
func (b *browser) visit(path string) answer { return b.apply(b.fetch(path, b.jar, "")) }

func (b *browser) apply(a answer) answer {
	for _, c := range a.cookies {
		b.jar = c.Value
		if c.MaxAge < 0 {
			b.jar = ""
		}
	}
	return a
}

func (b *browser) fetch(path, cookie, stop string) answer {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, b.server.URL+"/"+path, nil)
	if err != nil {
		b.Error(err)
		return answer{}
	}
	if cookie != "" {
		r.Header.Set("Cookie", CookieName+"="+cookie)
	}
	r.Header.Set("Stop", stop)
	res, err := b.server.Client().Do(r)
	if err != nil {
		b.Error(err)
		return answer{}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.Error(err)
	}
	return answer{res.StatusCode, string(body), res.Cookies()}
}

// cookie returns the value of the cookie that the answer sets.
func (a answer) cookie(t *testing.T) string {
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Len(t, a.cookies, 1)
	return a.cookies[0].Value
}

// effect says what the answer does to the cookie of a browser that has old.
func (a answer) effect(old string) string {
	switch {
	case len(a.cookies) == 0:
		return ""
	case a.cookies[0].MaxAge < 0:
		return "deleted"
	case decode(a.cookies[0].Value) == decode(old):
		return "old"
	}
	return "new"
}
