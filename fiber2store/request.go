package fiber2store

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"
	"github.com/valyala/fasthttp"

	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/caller"
	"github.com/tombstore/tombstore/internal/fibersession"
)

// request is the storage of one request. Fiber makes an id for a session right after it has not found
// another one, or has deleted it: so the request knows which session goes on under the new id.
type request struct {
	c        *fiber.Ctx
	adapter  *adapter.Adapter
	sessions *session.Store // with this storage
	held     map[string]*held
	goesOn   *held  // under the id that is made next; nil if a session begins
	reserved string // the id that is made next, by Login
}

// held is a session of the request, by each of its ids.
type held struct {
	adapter.Request
	id   string // what fiber has it under
	made bool   // by fiber for this request, which has not saved it yet
	live bool   // it was loaded or saved, and the request has not ended it
}

type requestKey struct{ s *Store }

// request returns what the Store knows of a request.
func (s *Store) request(c *fiber.Ctx) *request {
	r, ok := c.Locals(requestKey{s}).(*request)
	if !ok {
		sessions := s.sessions
		r = &request{c: c, adapter: s.adapter, sessions: &sessions, held: map[string]*held{}}
		sessions.Storage, sessions.KeyGenerator = r, r.generate(s.sessions.KeyGenerator)
		c.Locals(requestKey{s}, r)
	}
	return r
}

// generate returns the KeyGenerator of the request.
func (r *request) generate(newID func() string) func() string {
	return func() string {
		id, h := r.reserved, r.goesOn
		r.reserved, r.goesOn = "", nil
		if id == "" {
			id = newID()
		}
		if h == nil {
			h = &held{made: true}
		}
		r.held[id], h.id = h, id
		return id
	}
}

// context returns a context for the store. It is not cancelled by the program, since what is begun is
// to be carried out; the store has its own timeout.
func (r *request) context() context.Context { return context.WithoutCancel(r.c.UserContext()) }

// Get returns the data of a live session, and nil if there is none: then fiber makes a new one.
func (r *request) Get(id string) ([]byte, error) {
	h, known := r.held[id]
	if !known {
		h = &held{id: id}
	}
	data, found, err := r.adapter.Load(r.context(), &h.Request, id)
	switch {
	case err != nil:
		return nil, err
	case found:
		r.held[id], h.live = h, true
	case h.made, h.live && h.Gone() == nil: // the request has left it itself
	default:
		r.held[id], r.goesOn = h, h
	}
	return data, nil
}

// Set saves a session.
func (r *request) Set(id string, data []byte, ttl time.Duration) error {
	h := r.held[id]
	saved, err := exchange(r.c).Save(r.context(), r.adapter, &h.Request, id, data, ttl)
	if saved {
		h.id, h.made, h.live = id, false, true
	}
	return err
}

// The functions of fiber's sessions that delete a session, and must be told apart.
const (
	destroy    = "session.(*Session).Destroy"
	regenerate = "session.(*Session).Regenerate"
	reset      = "session.(*Session).Reset"
)

var callers = []string{regenerate, reset, destroy}

var errTwice = errors.New("fiber2store: this request has renewed the session already")

// Delete ends a session: Regenerate leaves it to go on under another id, Destroy and Reset log out,
// whatever the session has become.
func (r *request) Delete(id string) (err error) {
	h, method := r.held[id], caller.Method(callers...)
	switch {
	case method != regenerate:
		if err = r.adapter.End(r.context(), &h.Request, ""); err == nil {
			h.live = false
		}
	case h.id != id:
		return errTwice
	default:
		err = r.adapter.Leave(r.context(), &h.Request, "")
	}
	if err == nil && method != destroy {
		r.goesOn = h
	}
	return err
}

// Reset is not called: a Store has its own.
func (r *request) Reset() error { return nil }

// Close does nothing. Fasthttp calls it when the request is over.
func (r *request) Close() error { return nil }

// exchange is made of the functions that fasthttp has had since fiber v2 began to use it.
func exchange(c *fiber.Ctx) fibersession.Exchange {
	request, response := &c.Request().Header, &c.Response().Header
	return fibersession.Exchange{
		Headers: each(request.VisitAll), Cookies: each(request.VisitAllCookie),
		SetHeaders: each(response.VisitAll), SetCookies: each(response.VisitAllCookie), Response: response,
	}
}

// each turns a visitor of fasthttp into a sequence, which is gone through to its end.
func each(visit func(f func(name, value []byte))) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		visit(func(name, value []byte) { yield(name, value) })
	}
}

// callersAreKnown uses a session of its own, and reports whether its storage could tell the callers.
func callersAreKnown(callers []string) bool {
	p := &probe{names: callers}
	app := fiber.New()
	c := app.AcquireCtx(&fasthttp.RequestCtx{})
	defer app.ReleaseCtx(c)
	s, err := session.New(session.Config{Storage: p}).Get(c)
	if err != nil {
		return false
	}
	for _, call := range []func() error{s.Regenerate, s.Reset, s.Destroy} {
		if call() != nil {
			return false
		}
	}
	return slices.Equal(p.seen, callers)
}

// probe is a storage that notes who calls.
type probe struct {
	fiber.Storage
	names, seen []string
}

func (p *probe) Delete(string) error {
	p.seen = append(p.seen, caller.Method(p.names...))
	return nil
}
