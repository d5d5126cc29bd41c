package chistore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"

	"gitea.com/go-chi/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/firstbyte"
)

type requestKey struct{}

// outer goes around the library's middleware.
func (p *provider) outer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r := &request{}
		if id := session.GetCookie(q, p.options.CookieName); p.isID(id) {
			r.id = id
		}
		if p.request(r.id) != nil { // a handler has passed its request on to the program
			next.ServeHTTP(w, q)
			return
		}
		r.ctx = context.WithValue(q.Context(), requestKey{}, r)
		handle := p.newHandle()
		p.requests.Store(handle, r)
		defer p.requests.Delete(handle)
		defer p.adapter.Release(q.Context(), &r.Request)

		q = q.WithContext(r.ctx)
		q.Header = q.Header.Clone()
		first := (&http.Cookie{Name: p.options.CookieName, Value: handle}).String()
		for _, line := range q.Header["Cookie"] {
			first += "; " + line
		}
		q.Header.Set("Cookie", first)
		writer := &responseWriter{provider: p, request: r}
		writer.Writer = firstbyte.Writer{ResponseWriter: w, Begin: writer.first}
		defer func() {
			if !r.begun.Swap(true) { // the handler has panicked, and what recovers may answer
				writer.withdraw()
			}
		}()
		next.ServeHTTP(writer, q)
		writer.begin(http.StatusOK)
	})
}

// isID reports whether the library would take a cookie for an id. No other one is looked for: where sessions
// are migrated from keys without a prefix, it could name any key.
func (p *provider) isID(s string) bool {
	return len(s) == p.options.IDLength && strings.Trim(s, "0123456789abcdef") == ""
}

// newHandle returns what the library takes for an id.
func (p *provider) newHandle() string {
	b := make([]byte, p.options.IDLength/2)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b)
}

// inner goes between the library's middleware and the handler. If the request has come without a
// session, the library has made one that does not know the request.
func (p *provider) inner(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r, _ := q.Context().Value(requestKey{}).(*request)
		if s, ok := session.GetSession(q).Get(self{}).(*rawStore); ok && r.session == nil {
			s.request, r.session = r, s
		}
		next.ServeHTTP(w, q)
	})
}

// responseWriter saves the session before the first byte, and takes the cookies of sessions out of the
// response that are not stored.
type responseWriter struct {
	firstbyte.Writer
	provider *provider
	request  *request
	failed   bool // the session could not be saved, and the response says so
}

// first is called before the first byte, and before each later one. A handler that hijacks the connection
// sends no cookie, but what it has changed so far is saved.
func (w *responseWriter) first(code int) bool {
	if !w.request.begun.Load() {
		w.begin(code)
	}
	return !w.failed
}

// begin is called when the response is about to begin, and at the end of the request.
func (w *responseWriter) begin(code int) {
	err := w.commit()
	if w.request.begun.Swap(true) {
		return
	}
	w.withdraw()
	if err != nil && code < http.StatusInternalServerError {
		w.failed = true
		http.Error(w.ResponseWriter, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
	}
}

// commit saves the session, or ends it if all its values were taken out.
func (w *responseWriter) commit() error {
	r := w.request
	if r.session == nil { // it could not be loaded
		return nil
	}
	var err error
	if r.session.emptied() {
		err = w.provider.end(r)
	} else {
		err = r.session.Release()
	}
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		return nil
	}
	return err
}

// withdraw leaves the cookie of the session that the request holds in the response, and one that deletes
// it, unless somebody else has ended it: the browser may have got that of a later login since.
func (w *responseWriter) withdraw() {
	h := w.Header()
	gone := w.request.Gone() != nil
	h["Set-Cookie"] = slices.DeleteFunc(h["Set-Cookie"], func(line string) bool {
		c, err := http.ParseSetCookie(line)
		switch {
		case err != nil || c.Name != w.provider.options.CookieName:
			return false
		case c.MaxAge < 0:
			return gone
		}
		return !w.request.Holds() || c.Value != w.request.Request.ID()
	})
	if len(h["Set-Cookie"]) == 0 {
		delete(h, "Set-Cookie")
	}
}
