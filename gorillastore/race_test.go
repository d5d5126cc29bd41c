package gorillastore_test

import (
	"io"
	"maps"
	"net/http"
	"os"
	"sync"
	"testing"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/gorillastore"
	"github.com/tombstore/tombstore/gorillastore/internal/racetest"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// page is a racetest.Session of gorilla.
type page struct {
	*sessions.Session
	w      http.ResponseWriter
	r      *http.Request
	logout func(page)
}

func (p page) User() string {
	user, _ := p.Values["user"].(string)
	return user
}

func (p page) Visit() error {
	p.Values["visited"] = true
	return p.Save()
}

func (p page) Save() error { return p.Session.Save(p.r, p.w) }

func (p page) Login(user string) error {
	p.Values["user"] = user
	p.ID = ""
	if store, ok := p.Store().(*gorillastore.Store); ok {
		store.Renew(p.Session)
	}
	return p.Save()
}

func (p page) Logout() error {
	p.logout(p)
	return p.Save()
}

func forget(p page) { p.Options.MaxAge = -1 }

func serve(store sessions.Store, logout func(page), do racetest.Page) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, racetest.CookieName)
		body := ""
		if err == nil {
			body, err = do(r, page{session, w, r, logout})
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, body)
	})
}

func site(t *testing.T, opts ...adapter.Option) racetest.Site {
	return racetest.OnMemory(t, func(store tombstore.Renewer, do racetest.Page) http.Handler {
		return serve(gorillastore.New(store, racetest.Key).With(opts...), forget, do)
	})
}

func TestRaces(t *testing.T) {
	t.Parallel()
	for _, cell := range racetest.Cells() {
		t.Run(cell.A+"/"+cell.B, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, cell.Want(false), cell.Play(t, site(t)))
			require.Equal(t, cell.Want(true), cell.Play(t, site(t, racetest.LateRequests())))
		})
	}
}

// logouts are the ways to log out, and how many sessions each leaves.
var logouts = map[string]struct {
	do   func(page)
	left int
}{
	"negative age": {forget, 0},
	"negative age, renewed": {func(p page) {
		p.ID = ""
		forget(p)
	}, 0},
	"cleared": {func(p page) { clear(p.Values) }, 0},
	"other values, flash": {func(p page) {
		p.Values = map[any]any{}
		p.AddFlash("good bye")
	}, 1},
	"cleared, renewed, language kept": {func(p page) {
		clear(p.Values)
		p.Values["language"] = "en"
		p.ID = ""
	}, 1},
}

func handler(logout func(page)) racetest.Handler {
	return func(store tombstore.Renewer, do racetest.Page) http.Handler {
		s := gorillastore.New(store, racetest.Key)
		s.EndWhenCleared = true
		return serve(s, logout, do)
	}
}

// A logout ends the session that a renewal has made of the one that it came with, whenever it
// comes.
func TestRenewal_LoggedOut(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	for name, logout := range logouts {
		for _, when := range racetest.Whens() {
			t.Run(name+"/"+string(when), func(t *testing.T) {
				t.Parallel()
				handler := handler(logout.do)
				if when != racetest.Between {
					when.Play(t, racetest.OnMemory(t, handler), logout.left)
					when.Play(t, racetest.OnServer(t, handler), logout.left)
				}
				when.Play(t, racetest.OnCluster(t, cluster, handler), logout.left)
			})
		}
		t.Run(name+"/at random", func(t *testing.T) {
			t.Parallel()
			racetest.RandomLogouts(t, 20, racetest.OnMemory(t, handler(logout.do)))
			racetest.RandomLogouts(t, 20, racetest.OnServer(t, handler(logout.do)))
		})
	}
}

// Of two logins at once the browser keeps one.
func TestRenewal_TwoLogins(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	for _, site := range []racetest.Site{
		racetest.OnMemory(t, handler(forget)),
		racetest.OnServer(t, handler(forget)),
		racetest.OnCluster(t, cluster, handler(forget)),
	} {
		racetest.TwoLogins(t, site)
		racetest.RandomLogins(t, 100, site)
	}
}

func TestBadCookies(t *testing.T) {
	t.Parallel()
	racetest.BadCookies(t, site(t))
}

// The same races against a store that does GET, SET and DEL, as the usual backends do, so that it
// is known that they can be lost.
func TestRaces_OfPlainStore(t *testing.T) {
	t.Parallel()
	back := racetest.Outcome{Status: 200, Body: "alice", Cookie: "old", Old: "alice", Next: "alice", Live: 1}
	for cell, want := range map[racetest.Cell]racetest.Outcome{
		{A: "logout", B: "visit"}:        back,
		{A: "logout", B: "save"}:         back,
		{A: "revoke", B: "visit"}:        back,
		{A: "logout", B: "renew"}:        {Status: 200, Body: "alice", Cookie: "new", Next: "alice", Live: 1},
		{A: "logout", B: racetest.First}: {Status: 200, Body: "alice", Cookie: "old", Old: "alice", Live: 1},
		{A: "login", B: "visit"}:         {Status: 200, Body: "alice", Cookie: "old", Old: "alice", Next: "alice", Live: 2},
	} {
		t.Run(cell.A+"/"+cell.B, func(t *testing.T) {
			t.Parallel()
			p := &plainStore{data: map[string]map[any]any{}, codecs: securecookie.CodecsFromPairs(racetest.Key)}
			got := cell.Play(t, racetest.Site{
				Handler: func(do racetest.Page) http.Handler { return serve(p, forget, do) },
				Live:    func() int { return len(p.data) },
				Revoke:  func() { clear(p.data) },
			})
			require.Equal(t, want, got)
			require.NotEqual(t, cell.Want(false), got)
		})
	}
}

type plainStore struct {
	mu     sync.Mutex
	data   map[string]map[any]any
	codecs []securecookie.Codec
}

func (p *plainStore) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(p, name)
}

func (p *plainStore) New(r *http.Request, name string) (*sessions.Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	session := sessions.NewSession(p, name)
	if cookie, err := r.Cookie(name); err == nil {
		err = securecookie.DecodeMulti(name, cookie.Value, &session.ID, p.codecs...)
		maps.Copy(session.Values, p.data[session.ID])
		return session, err
	}
	return session, nil
}

func (p *plainStore) Save(_ *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if session.Options.MaxAge < 0 {
		delete(p.data, session.ID)
		http.SetCookie(w, sessions.NewCookie(session.Name(), "", session.Options))
		return nil
	}
	if session.ID == "" {
		session.ID = tombstore.NewID()
	}
	p.data[session.ID] = maps.Clone(session.Values)
	cookie, err := securecookie.EncodeMulti(session.Name(), session.ID, p.codecs...)
	http.SetCookie(w, sessions.NewCookie(session.Name(), cookie, session.Options))
	return err
}
