package beegostore

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	beecontext "github.com/beego/beego/v2/server/web/context"
	"github.com/beego/beego/v2/server/web/session"

	"github.com/tombstore/tombstore/internal/firstbyte"
)

// request is an HTTP request under way. Beego's manager tells its provider of the request nothing
// but a session id. So the Middleware gives the id in the cookie a suffix that no other request
// has, by which the Provider knows the session. The id of a new session is made by the manager,
// which puts it into the request's cookies as well: there it is found.
type request struct {
	provider *Provider
	w        http.ResponseWriter // below the Middleware's
	r        *http.Request
	before   func(s *Store, id string) error // is done before a session gets a new id

	first  sync.Once
	begun  atomic.Bool // the response, so that all is saved
	failed bool        // the answer is 500

	mu       sync.Mutex
	came     *Store // that the cookie names
	sessions []*Store
}

// Middleware is for web.RunWithMiddleWares, or goes around a handler that uses the manager. Of
// several it is the first, or at least around all that use sessions. It saves the sessions of a
// request before the first byte of the response. After a panic of the handler, nothing is saved
// unless beego has recovered and answers.
func (p *Provider) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.requestOf(r) != nil { // the Middleware is there twice
			next.ServeHTTP(w, r)
			return
		}
		q := &request{provider: p, w: w}
		q.r = r.WithContext(context.WithValue(r.Context(), requestKey{p}, q))
		q.tag()
		defer q.end()
		first := func(int) bool { return q.begin() }
		next.ServeHTTP(&responseWriter{firstbyte.Writer{ResponseWriter: w, Begin: first}, q}, q.r)
		q.begin()
	})
}

type requestKey struct{ p *Provider }

// requestOf returns what r is to the Provider, or nil if it has not come through the Middleware.
func (p *Provider) requestOf(r *http.Request) *request {
	q, _ := r.Context().Value(requestKey{p}).(*request)
	return q
}

// separator is between an id and its suffix.
const separator = "~"

// tag gives the id in the session cookie its suffix. A cookie that beego could not decode is taken
// out, since beego would answer 503, and one without a value, since SessionRegenerateID would take
// the session for another one than SessionStart.
func (q *request) tag() {
	name := q.provider.cookieName()
	if _, err := q.r.Cookie(name); err != nil {
		return
	}
	header := q.r.Header.Clone()
	cookies := q.r.Cookies()
	header.Del("Cookie")
	q.r.Header = header
	for _, c := range cookies {
		if c.Name == name && q.came == nil {
			id, err := url.QueryUnescape(c.Value)
			if err != nil || id == "" {
				continue
			}
			suffix := separator + strconv.FormatUint(q.provider.last.Add(1), 36)
			q.came = q.provider.newStore(id)
			q.came.q = q
			q.came.ids = append(q.came.ids, id+suffix)
			q.sessions = append(q.sessions, q.came)
			q.provider.stores.Store(id+suffix, q.came)
			c.Value += suffix
		}
		q.r.AddCookie(c)
	}
}

// pair finds the sessions that were begun in this request.
func (q *request) pair() {
	for _, c := range q.r.Cookies() {
		if id, err := url.QueryUnescape(c.Value); err == nil {
			v, _ := q.provider.stores.Load(id)
			if s, ok := v.(*Store); ok && s.q == nil {
				q.adopt(s)
			}
		}
	}
}

// adopt makes a session that was begun one of the request, which knows what it came with.
func (q *request) adopt(s *Store) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.q = q
	if q.came != nil && q.came.isGone() {
		s.request = q.came.request
	}
	q.sessions = append(q.sessions, s)
}

// begunSession returns the session that was begun in place of one that is gone, or nil.
func (q *request) begunSession(gone *Store) *Store {
	q.pair()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slices.Backward(q.sessions) {
		if s != gone && s.request == gone.request {
			return s
		}
	}
	return nil
}

// begin is called before the first byte of the response. It reports whether the handler's answer is
// to go out.
func (q *request) begin() bool {
	q.first.Do(func() {
		q.pair()
		for _, s := range q.sessions {
			if s.isUsed() {
				if err := s.commit(); err != nil {
					q.fail(err)
					break
				}
			}
		}
		q.begun.Store(true)
	})
	return !q.failed
}

// isUsed reports whether the request has a session here, and not only a cookie.
func (s *Store) isUsed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.loaded && !s.gone || s.closed || s.next != ""
}

// fail answers 500.
func (q *request) fail(err error) {
	q.failed = true
	session.SLogger.Println(err)
	q.keepCookies()
	http.Error(q.w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
}

// keepCookies makes the response set no session cookie, and take none away.
func (q *request) keepCookies() {
	var names []string
	for _, c := range q.r.Cookies() {
		id, err := url.QueryUnescape(c.Value)
		if err == nil && q.has(id) {
			names = append(names, c.Name)
		}
	}
	q.dropCookies(func(name, _ string) bool { return slices.Contains(names, name) })
}

func (q *request) has(id string) bool {
	return slices.ContainsFunc(q.sessions, func(s *Store) bool { return slices.Contains(s.ids, id) })
}

// withdraw takes the cookies of ids out of the response.
func (q *request) withdraw(ids []string) {
	q.dropCookies(func(_, value string) bool {
		return slices.ContainsFunc(ids, func(id string) bool { return value == url.QueryEscape(id) })
	})
}

// sets reports whether the response has a cookie of an id.
func (q *request) sets(id string) bool {
	for _, line := range q.w.Header()[setCookie] {
		if _, value := pairOf(line); value == url.QueryEscape(id) {
			return true
		}
	}
	return false
}

const setCookie = "Set-Cookie"

// pairOf returns the name and the value of the cookie that a line sets.
func pairOf(line string) (name, value string) {
	pair, _, _ := strings.Cut(line, ";")
	name, value, _ = strings.Cut(pair, "=")
	return name, value
}

func (q *request) dropCookies(drop func(name, value string) bool) {
	h := q.w.Header()
	h[setCookie] = slices.DeleteFunc(h[setCookie], func(line string) bool {
		return drop(pairOf(line))
	})
	if len(h[setCookie]) == 0 {
		h.Del(setCookie)
	}
}

// renew gives the session of the request a new id. r is the request as its handler has it.
func (q *request) renew(r *http.Request) error {
	m, err := q.provider.manager()
	if err == nil {
		_, err = m.SessionRegenerateID(q.w, r)
	}
	return err
}

// end forgets the request.
func (q *request) end() {
	q.pair()
	if !q.begun.Swap(true) { // the handler has panicked, and what recovers may answer
		q.keepCookies()
	}
	for _, s := range q.sessions {
		q.provider.adapter.Release(q.r.Context(), s.request)
		s.request.RunHooks(true)
		for _, id := range s.ids {
			q.provider.stores.Delete(id)
		}
	}
}

// writerOf returns the request that a ResponseWriter belongs to, or nil.
func writerOf(w http.ResponseWriter) *request {
	for {
		switch u := w.(type) {
		case *responseWriter:
			return u.q
		case *beecontext.Response:
			w = u.ResponseWriter
		case interface{ Unwrap() http.ResponseWriter }:
			w = u.Unwrap()
		default:
			return nil
		}
	}
}

type responseWriter struct {
	firstbyte.Writer
	q *request
}
