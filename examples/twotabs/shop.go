package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/scsstore"
)

const (
	lifetime = time.Hour
	slowFor  = 20 * time.Second // at most; the visitor lets a slow request finish
	rows     = 30               // of a timeline
)

//go:embed page
var files embed.FS

var tabPage = template.Must(template.ParseFS(files, "page/tab.html"))

// newSite returns the handler of both shops, of the devices, and of the pages that show them.
func newSite(client rueidis.Client, prefix string) (http.Handler, error) {
	store, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix+"tombstore:"))
	if err != nil {
		return nil, err
	}
	usual := plainStore{client, prefix + "plain:"}
	mux := http.NewServeMux()

	plain := newShop("plain")
	plain.sessions.Store = usual
	plain.mount(mux, plain.sessions.LoadAndSave)
	plain.state = func(ctx context.Context, token string) string {
		_, live, err := usual.FindCtx(ctx, token)
		return state(live, false, err)
	}

	safe := newShop("tombstore")
	safe.mount(mux, scsstore.Install(safe.sessions, store))
	safe.state = func(ctx context.Context, token string) string {
		_, err := store.Read(ctx, token)
		ended := errors.Is(err, tombstore.ErrInvalidated)
		if ended || errors.Is(err, tombstore.ErrNotFound) {
			return state(false, ended, nil)
		}
		return state(err == nil, false, err)
	}

	if err := mountDevices(mux, client, prefix); err != nil {
		return nil, err
	}
	static, err := fs.Sub(files, "page")
	if err != nil {
		return nil, err
	}
	mux.Handle("GET /", http.FileServerFS(static))
	return mux, nil
}

func state(live, ended bool, err error) string {
	switch {
	case err != nil:
		return "unreachable"
	case live:
		return "live"
	case ended:
		return "tombstone"
	}
	return "nothing"
}

// plainStore is a usual session store.
type plainStore struct {
	client rueidis.Client
	prefix string
}

func (p plainStore) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, err := p.client.Do(ctx, p.client.B().Get().Key(p.prefix+token).Build()).AsBytes()
	if rueidis.IsRedisNil(err) {
		return nil, false, nil
	}
	return bytes.Clone(b), err == nil, err
}

func (p plainStore) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	ttl := time.Until(expiry)
	return p.client.Do(ctx, p.client.B().Set().Key(p.prefix+token).Value(string(b)).Px(ttl).Build()).Error()
}

func (p plainStore) DeleteCtx(ctx context.Context, token string) error {
	return p.client.Do(ctx, p.client.B().Del().Key(p.prefix+token).Build()).Error()
}

func (p plainStore) Find(token string) ([]byte, bool, error) {
	return p.FindCtx(context.Background(), token)
}

func (p plainStore) Commit(token string, b []byte, expiry time.Time) error {
	return p.CommitCtx(context.Background(), token, b, expiry)
}

func (p plainStore) Delete(token string) error { return p.DeleteCtx(context.Background(), token) }

// shop is one web application. It differs from the other one in its session store alone.
type shop struct {
	name     string
	sessions *scs.SessionManager
	state    func(ctx context.Context, token string) string

	mu      sync.Mutex
	tokens  []string // that were given out, in order: session A, B, …
	ended   map[string]bool
	log     []entry
	waiting chan struct{} // closed to let slow requests finish; nil if there is none
	changed chan struct{} // closed at the next change
}

// entry is a line of the timeline.
type entry struct {
	Who, What, Answer, Cookie string
}

// view is what the page shows of a shop.
type view struct {
	Log      []entry
	Sessions []shown
	Waiting  bool
}

type shown struct{ Name, State string }

func newShop(name string) *shop {
	s := &shop{name: name, sessions: scs.New(), ended: map[string]bool{}, changed: make(chan struct{})}
	s.sessions.Lifetime = lifetime
	s.sessions.Cookie.Name = name
	s.sessions.Cookie.SameSite = http.SameSiteStrictMode
	return s
}

func (s *shop) mount(mux *http.ServeMux, withSession func(http.Handler) http.Handler) {
	for action, handler := range map[string]http.HandlerFunc{
		"GET  tab": s.tab, "POST login": s.login, "POST logout": s.logout, "POST add": s.add, "POST slow": s.slow,
	} {
		method, path := strings.TrimSpace(action[:4]), action[5:]
		mux.Handle(method+" /"+s.name+"/"+path+"/{tab}", s.logged(withSession(handler)))
	}
	mux.HandleFunc("POST /"+s.name+"/finish", s.finish)
	mux.HandleFunc("GET /"+s.name+"/events", s.events)
}

func (s *shop) tab(w http.ResponseWriter, r *http.Request) { s.show(w, r, "") }

func (s *shop) login(w http.ResponseWriter, r *http.Request) {
	if err := s.sessions.RenewToken(r.Context()); err != nil {
		http.Error(w, "no session store", http.StatusServiceUnavailable)
		return
	}
	s.sessions.Put(r.Context(), "user", "alice")
	s.show(w, r, "hello alice")
}

func (s *shop) logout(w http.ResponseWriter, r *http.Request) {
	s.note(func() {
		if token := s.sessions.Token(r.Context()); token != "" {
			s.ended[token] = true
		}
	})
	if err := s.sessions.Destroy(r.Context()); err != nil {
		http.Error(w, "no session store", http.StatusServiceUnavailable)
		return
	}
	s.show(w, r, "bye")
}

func (s *shop) add(w http.ResponseWriter, r *http.Request) {
	s.sessions.Put(r.Context(), "items", s.sessions.GetInt(r.Context(), "items")+1)
	s.show(w, r, "item added")
}

// slow has loaded the session, and changes it only when the visitor says so.
func (s *shop) slow(w http.ResponseWriter, r *http.Request) {
	var goOn chan struct{}
	s.note(func() {
		if s.waiting == nil {
			s.waiting = make(chan struct{})
		}
		goOn = s.waiting
		s.log = append(s.log, entry{Who: "tab " + r.PathValue("tab"), What: "POST slow loads the session …"})
	})
	select {
	case <-goOn:
	case <-time.After(slowFor):
	case <-r.Context().Done():
	}
	s.add(w, r)
}

func (s *shop) finish(http.ResponseWriter, *http.Request) {
	s.note(func() {
		if s.waiting != nil {
			close(s.waiting)
			s.waiting = nil
		}
	})
}

func (s *shop) show(w http.ResponseWriter, r *http.Request, message string) {
	user := s.sessions.GetString(r.Context(), "user")
	w.Header().Set("Cache-Control", "no-store")
	if err := tabPage.Execute(w, map[string]any{
		"Shop": s.name, "Tab": r.PathValue("tab"), "User": user, "Items": s.sessions.GetInt(r.Context(), "items"), "Message": message,
	}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// logged writes each request and the cookie of its answer into the timeline.
func (s *shop) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(status, r)
		action := strings.Split(r.URL.Path, "/")[2]
		e := entry{Who: "tab " + r.PathValue("tab"), What: r.Method + " " + action, Answer: fmt.Sprint(status.status), Cookie: "–"}
		if action == "slow" {
			e.What = "… POST slow saves the session"
		}
		s.note(func() {
			for _, line := range w.Header().Values("Set-Cookie") {
				c, err := http.ParseSetCookie(line)
				switch {
				case err != nil || c.Name != s.name:
				case c.MaxAge < 0:
					e.Cookie = "deleted"
				default:
					e.Cookie = "set to " + s.letter(c.Value)
				}
			}
			s.log = append(s.log, e)
			s.log = s.log[max(0, len(s.log)-rows):]
		})
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// letter names a session, because its token is nobody's business. s.mu is held.
func (s *shop) letter(token string) string {
	for i, t := range s.tokens {
		if t == token {
			return string(rune('A' + i%26))
		}
	}
	s.tokens = append(s.tokens, token)
	return string(rune('A' + (len(s.tokens)-1)%26))
}

// note changes something and tells the pages.
func (s *shop) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// events sends what the page shows, now and after each change.
func (s *shop) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for {
		v, changed := s.view(r.Context())
		b, err := json.Marshal(v)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "data: %s\n\n", b)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *shop) view(ctx context.Context) (view, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := view{Log: append([]entry{}, s.log...), Sessions: []shown{}, Waiting: s.waiting != nil}
	for i, token := range s.tokens[max(0, len(s.tokens)-4):] {
		state := s.state(ctx, token)
		if state == "live" && s.ended[token] {
			state = "live again"
		}
		v.Sessions = append(v.Sessions, shown{string(rune('A' + (max(0, len(s.tokens)-4)+i)%26)), state})
	}
	return v, s.changed
}
