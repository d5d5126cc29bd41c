package scsstore

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/caller"
	"github.com/tombstore/tombstore/internal/cookieage"
	"github.com/tombstore/tombstore/internal/firstbyte"
)

// Install makes sm keep its sessions in store, and returns the middleware to use instead of
// sm.LoadAndSave. Call it once, when the fields of sm are set. It replaces Store, and Codec if that
// is scs.GobCodec by a faster one of the same format. It wraps ErrorFunc, which from then on does
// not see errors that are an adapter.ErrRefused, so that the response goes out as the handler wrote
// it, without a session cookie.
//
// The functions of adapter.WithOnRefused and adapter.WithOnUnacknowledged run before the first byte
// of the response, or at its end. They may use sm with their context.
//
// Install panics if it is called for one manager twice, which would leave the first middleware
// without effect, and in a program whose functions have lost their names, by which the store tells
// a logout from a renewal.
func Install(
	sm *scs.SessionManager, store tombstore.Renewer, opts ...adapter.Option,
) func(http.Handler) http.Handler {
	s := protected(sm, store, opts)
	return func(next http.Handler) http.Handler {
		return s.protect(sm.LoadAndSave(s.inner(next)))
	}
}

// Protect is Install for programs that call sm.Load and sm.Commit in a middleware of their own, for
// tokens that come in a header for example. The middleware that it returns goes around that one,
// and around sm.LoadAndSave if the program uses both. sm.Commit returns an adapter.ErrRefused if
// the session was ended meanwhile: then send the response without a token.
func Protect(
	sm *scs.SessionManager, store tombstore.Renewer, opts ...adapter.Option,
) func(http.Handler) http.Handler {
	return protected(sm, store, opts).protect
}

// protected returns the store that sm keeps its sessions in from here on.
func protected(sm *scs.SessionManager, store tombstore.Renewer, opts []adapter.Option) *Store {
	if s, ok := sm.Store.(*Store); ok && s.sm != nil {
		panic("scsstore: Install or Protect was called twice for one SessionManager")
	}
	requireCallers(newProbe(caller.Method, caller.Closure))
	s := &Store{sm: sm}
	defaults := []adapter.Option{adapter.WithEqual(s.equal), adapter.WithDecode(s.decode)}
	if sm.IdleTimeout == 0 { // scs saves a session only if the handler has changed it
		defaults = append(defaults, adapter.WithTouchThreshold(0))
	}
	s.adapter = adapter.New(store, append(defaults, opts...)...)
	sm.Store = s
	if _, ok := sm.Codec.(scs.GobCodec); ok {
		sm.Codec = gobCodec{}
	}
	failed := sm.ErrorFunc
	sm.ErrorFunc = func(w http.ResponseWriter, r *http.Request, err error) {
		if !errors.Is(err, adapter.ErrRefused) {
			failed(w, r, err)
		}
	}
	return s
}

func (s *Store) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if s.adapter.FromContext(ctx) != nil { // the middleware is there twice
			next.ServeHTTP(w, r)
			return
		}
		if _, ok := s.sm.Store.(scs.CtxStore); !ok {
			s.sm.ErrorFunc(w, r, errNoContext)
			return
		}
		ctx = s.adapter.NewContext(ctx)
		request := s.adapter.FromContext(ctx)
		request.DeferHooks()
		defer request.RunHooks(true)
		defer s.adapter.Release(ctx, request)
		outer := &outerWriter{
			store: s, request: request, cookie: s.sm.Cookie.Name, hashes: s.sm.HashTokenInStore,
		}
		outer.Writer = firstbyte.Writer{ResponseWriter: w, Begin: func(int) bool { outer.begin(); return true }}
		next.ServeHTTP(outer, r.WithContext(context.WithValue(ctx, outerKey{s.sm}, outer)))
		outer.begin()
	})
}

var errNoContext = errors.New("scsstore: a store that wraps this one must be an scs.CtxStore")

// requireCallers panics if p cannot tell who calls a store.
func requireCallers(p *probe) {
	if !p.works() {
		panic("scsstore: the names of scs' methods are not in this program; build it without obfuscation")
	}
}

// probe is a store that notes who calls it.
type probe struct {
	method      func(names ...string) string
	closure     func(method string) bool
	deletes     []string
	loadAndSave []bool // whether that was on the stack
}

func newProbe(method func(names ...string) string, closure func(method string) bool) *probe {
	return &probe{method: method, closure: closure}
}

func (p *probe) Find(string) ([]byte, bool, error) {
	p.loadAndSave = append(p.loadAndSave, p.closure(loadAndSave))
	b, err := scs.GobCodec{}.Encode(time.Now(), nil)
	return b, true, err
}

func (p *probe) Commit(string, []byte, time.Time) error {
	p.loadAndSave = append(p.loadAndSave, p.closure(loadAndSave))
	return nil
}

func (p *probe) Delete(string) error {
	p.deletes = append(p.deletes, p.method(destroy, renewToken, mergeSession))
	return nil
}

// works calls each method on a manager of its own, and reports whether the probe could tell.
func (p *probe) works() bool {
	sm := &scs.SessionManager{Store: p, Codec: scs.GobCodec{}} // New would start a goroutine
	sm.Cookie.Name = "session"
	handler := sm.LoadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = sm.RenewToken(r.Context())
	}))
	r := &http.Request{Header: http.Header{}}
	r.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: "own"})
	handler.ServeHTTP(nowhere{}, r)
	ctx, err := sm.Load(context.Background(), "own")
	if err != nil {
		return false
	}
	_ = sm.MergeSession(ctx, "other")
	_ = sm.Destroy(ctx)
	return slices.Equal(p.deletes, []string{renewToken, mergeSession, destroy}) &&
		slices.Equal(p.loadAndSave, []bool{true, true, false, false})
}

// nowhere is where the probe's response goes.
type nowhere http.Header

func (w nowhere) Header() http.Header       { return http.Header(w) }
func (nowhere) WriteHeader(int)             {}
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

type outerKey struct{ sm *scs.SessionManager }

// outerWriter is what scs wraps. When scs has saved the session, which is before the first byte of
// the response, it takes back the cookie of a session that somebody else has ended: scs deletes the
// cookie in a logout without asking the store, but the browser may have got that of a later login
// meanwhile. For the same reason it takes back that of a session that was left as it was.
type outerWriter struct {
	firstbyte.Writer
	store   *Store
	request *adapter.Request
	cookie  string // its name
	hashes  bool   // the store sees hashes of tokens
	begun   atomic.Bool

	mu   sync.Mutex     // requests within the request, and TimeoutHandler, run beside it
	left map[string]int // token to how often scs has saved a session that was left as it was
}

// leave notes that scs is about to set the cookie of a session that was left as it was.
func (w *outerWriter) leave(token string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left == nil {
		w.left = map[string]int{}
	}
	w.left[token]++
}

// saved notes that the cookie of a session is to go out.
func (w *outerWriter) saved(token string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.left, token)
}

// takeBack takes the cookies of sessions that were left as they were out of the response.
func (w *outerWriter) takeBack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.Header()
	for i, line := range slices.Backward(h["Set-Cookie"]) {
		pair, _, _ := strings.Cut(line, ";")
		token, ours := strings.CutPrefix(pair, w.cookie+"=")
		if ours && w.hashes {
			token = hashed(token)
		}
		if !ours || w.left[token] == 0 { // any other is the handler's, or that of a login or a logout
			continue
		}
		w.left[token]--
		h["Set-Cookie"] = slices.Delete(h["Set-Cookie"], i, i+1)
		dropLast(h, "Cache-Control", `no-cache="Set-Cookie"`)
	}
}

// age gives the cookie of a session with an idle timeout of its own the age of the session: scs
// goes by its IdleTimeout.
func (w *outerWriter) age() {
	age := w.request.CookieAge()
	if age == 0 {
		return
	}
	id, lines := w.request.ID(), w.Header()["Set-Cookie"]
	for i, line := range lines {
		pair, _, _ := strings.Cut(line, ";")
		token, ours := strings.CutPrefix(pair, w.cookie+"=")
		if ours && w.hashes {
			token = hashed(token)
		}
		if ours && token == id {
			lines[i] = cookieage.Set(line, age)
		}
	}
}

func (w *outerWriter) begin() {
	if w.begun.Swap(true) {
		return
	}
	w.takeBack()
	w.age()
	if h := w.Header(); len(h["Set-Cookie"]) > 0 && w.request.Gone() != nil {
		h["Set-Cookie"] = slices.DeleteFunc(h["Set-Cookie"], func(c string) bool {
			return strings.HasPrefix(c, w.cookie+"=")
		})
	}
	w.request.RunHooks(false)
}

// dropLast takes the last one of equal values out of a header: the one that scs has just added.
func dropLast(h http.Header, name, value string) {
	for i, v := range slices.Backward(h[name]) {
		if v == value {
			h[name] = slices.Delete(h[name], i, i+1)
			return
		}
	}
}

// inner stands between the handler and scs, which saves the session and sets the cookie before the
// first byte of the response. Without it a Flush before that would send the headers without the
// cookie, an informational response would be taken for the first byte, and a handler that takes
// over the connection would have its session saved when it is done with that.
func (s *Store) inner(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		outer, _ := r.Context().Value(outerKey{s.sm}).(*outerWriter)
		next.ServeHTTP(&responseWriter{ResponseWriter: w, outer: outer, sm: s.sm, ctx: r.Context()}, r)
	})
}

type responseWriter struct {
	http.ResponseWriter // of scs
	outer               *outerWriter
	sm                  *scs.SessionManager
	ctx                 context.Context
	begun               bool
}

func (w *responseWriter) WriteHeader(code int) {
	if firstbyte.Informational(code) {
		w.outer.WriteHeader(code)
		return
	}
	w.begun = true
	w.ResponseWriter.WriteHeader(code)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Flush implements http.Flusher.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is for http.ResponseController.
func (w *responseWriter) FlushError() error {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return w.outer.FlushError()
}

// Hijack implements http.Hijacker. The handler sends no cookie of scs, but what it has changed so
// far is saved, and a renewal is finished. A refusal is not an error here either.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.begun && w.sm.Status(w.ctx) == scs.Modified {
		if _, _, err := w.sm.Commit(w.ctx); err != nil && !errors.Is(err, adapter.ErrRefused) {
			return nil, nil, err
		}
		w.outer.request.RunHooks(false)
	}
	return w.outer.Hijack()
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
