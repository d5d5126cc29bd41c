package scsstore

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/alexedwards/scs/v2"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// Install makes sm keep its sessions in store, and returns the middleware to use instead of sm.LoadAndSave. Call it once the
// fields of sm are set. It replaces Store, and Codec if that is scs.GobCodec by a faster one of the same format. It wraps
// ErrorFunc, which from then on does not see errors that are an adapter.ErrRefused, so that the response goes out as the
// handler wrote it, without a session cookie.
func Install(sm *scs.SessionManager, store tombstore.Store, opts ...adapter.Option) func(http.Handler) http.Handler {
	same := adapter.WithEqual(func(a, b []byte) bool { return equal(sm, a, b) })
	s := New(store, append([]adapter.Option{same}, opts...)...)
	s.sm, sm.Store = sm, s
	if _, ok := sm.Codec.(scs.GobCodec); ok {
		sm.Codec = gobCodec{}
	}
	failed := sm.ErrorFunc
	sm.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
		if !errors.Is(err, adapter.ErrRefused) {
			failed(w, r, err)
		}
	}
	return s.middleware
}

func (s *Store) middleware(next http.Handler) http.Handler {
	next = s.sm.LoadAndSave(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.adapter.FromContext(r.Context()) != nil { // it is there twice
			next.ServeHTTP(w, r)
			return
		}
		r = r.WithContext(s.adapter.NewContext(r.Context()))
		rw := &responseWriter{ResponseWriter: w, s: s, r: r}
		next.ServeHTTP(rw, r)
		rw.finish()
	})
}

// responseWriter finishes the request when scs has saved the session, which is before the first byte of the response.
type responseWriter struct {
	http.ResponseWriter
	s        *Store
	r        *http.Request
	finished bool
}

func (w *responseWriter) WriteHeader(code int) {
	w.finish()
	w.ResponseWriter.WriteHeader(code)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	w.finish()
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) finish() {
	if w.finished {
		return
	}
	w.finished = true
	ctx, a := w.r.Context(), w.s.adapter
	_ = a.Finish(ctx, a.FromContext(ctx)) // the session has ended, and that is what the user wants to know
	if a.FromContext(ctx).Gone() == nil {
		return
	}
	// scs deletes the cookie in a logout without asking the store, but the browser may have got that of a login meanwhile.
	h, own := w.Header(), w.s.sm.Cookie.Name+"="
	if cookies := h["Set-Cookie"]; len(cookies) > 0 {
		h["Set-Cookie"] = slices.DeleteFunc(cookies, func(c string) bool { return strings.HasPrefix(c, own) })
	}
}
