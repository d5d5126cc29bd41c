// Package fiberstore keeps the sessions of gofiber/fiber v3 in a tombstore.Renewer, so that a
// logout wins over requests that are still running. In an existing program the storage of the
// session middleware is all that changes:
//
//	package main
//
//	import (
//		"log"
//
//		"github.com/gofiber/fiber/v3"
//		"github.com/gofiber/fiber/v3/middleware/session"
//		"github.com/tombstore/tombstore"
//		"github.com/tombstore/tombstore/fiberstore"
//	)
//
//	func main() {
//		store, err := tombstore.Open("redis://127.0.0.1:6379")
//		if err != nil {
//			log.Fatal(err)
//		}
//		app := fiber.New()
//		app.Use(session.New(session.Config{Storage: fiberstore.New(store)}))
//		log.Fatal(app.Listen(":3000"))
//	}
//
// A request whose session was ended while it ran is answered with its own status and body, but
// without a session cookie, and nothing of it is saved. [adapter.WithOnRefused] reports it. A
// logout ends the session under whatever id it has by then: one that another request is renewing,
// or has renewed, is out as well.
//
// [Storage.Login] instead of Regenerate says whose the session is, so that its owner can be logged
// out everywhere ([Storage.LogoutEverywhere]).
//
// Fiber saves the session of every request. If nothing was changed, and less than a tenth of the
// idle timeout has passed ([adapter.WithTouchThreshold]), nothing is sent, and the id is taken out
// of the response, from a cookie and from a header: nobody has asked whether the session was ended
// or renewed meanwhile, and the cookie might take the place of one that a login has set. A handler
// that puts the id elsewhere into the response, by itself, is an exception.
//
// With [adapter.Conflict] the save of a lost update fails with tombstore.ErrConflict: Session.Save
// returns it, and the middleware hands it to ErrorHandler of its Config. Regenerate, which is a
// change too, returns it as well. What [adapter.Merge] gets is fiber's encoding, a map[any]any in
// gob.
//
// # Limits
//
//   - A Storage keeps sessions and nothing else. What csrf, limiter, cache, idempotency or the
//     program itself would store in it is refused with an error: give those a Storage of their own.
//   - Regenerate must be told which request it belongs to, since the save under the new id comes
//     later. That is so for the sessions of the middleware and of Store.Get. For one of
//     Store.GetByID call RegenerateWithContext and SaveWithContext with the fiber.Ctx, or outside
//     of a request with a context of [Storage.NewContext]; Regenerate itself fails.
//   - Several session stores may share a Storage and a request, each with a cookie or header of its
//     own. Where nothing tells which of two renewed sessions is being saved, neither is: the save
//     fails.
//   - Fiber sets the cookie before it encodes the session. If a value cannot be encoded, Save fails
//     without asking the Storage, and the cookie stays in the response.
//   - The functions of [adapter.WithOnRefused] and [adapter.WithOnUnacknowledged] run while fiber
//     holds its lock of the session. They may read its values, by Get, but its ID, Fresh and Save
//     would wait for ever.
//   - A program whose functions have lost their names, as by obfuscation, cannot use this package:
//     New panics. Fiber's storages have one Delete, for a logout and a renewal alike, and by the
//     name of its caller the two are told apart.
package fiberstore

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/caller"
	"github.com/tombstore/tombstore/internal/fibersession"
	"github.com/tombstore/tombstore/internal/gobmap"
)

// DefaultTTL is how long a session lives after its last use if it is saved with no expiration. The
// session middleware always gives one.
const DefaultTTL = 24 * time.Hour

// Storage is a fiber.Storage for fiber's sessions alone.
//
// A context that is a fiber.Ctx, or is derived from one that the Storage has seen, tells which
// request a call belongs to; the session middleware passes its fiber.Ctx. With any other context,
// such as that of fiber.Ctx.Context, and in the forms without one, a save is refused only if that
// very session was ended, and returns [adapter.ErrRefused], as there is no response to clean.
//
// It is safe for concurrent use, in so far as the fiber.Ctx is.
type Storage struct {
	adapter *adapter.Adapter
}

var _ fiber.Storage = (*Storage)(nil)

// New returns a Storage that keeps sessions in store. It panics in a program whose functions have
// lost their names.
func New(store tombstore.Renewer, opts ...adapter.Option) *Storage {
	if !callersAreKnown(callers) {
		panic("fiberstore: the names of fiber's methods are not in this program, or are not those of " +
			"the fiber that this package was written for; build it without obfuscation")
	}
	defaults := []adapter.Option{adapter.WithEqual(gobmap.Equal[any]), adapter.WithDecode(gobmap.Check[any])}
	return &Storage{adapter.New(store, append(defaults, opts...)...)}
}

type requestKey struct{ s *Storage }

// NewContext returns a context in which the calls of a job outside of a request belong together as
// those of a request do, for one goroutine. Sessions of Store.GetByID can be renewed with it:
//
//	ctx := storage.NewContext(context.Background())
//	s, err := sessions.GetByID(ctx, id)
//	…
//	err = s.RegenerateWithContext(ctx)
//	…
//	err = s.SaveWithContext(ctx)
func (s *Storage) NewContext(ctx context.Context) context.Context {
	if _, r := s.request(ctx); r != nil {
		return ctx
	}
	return context.WithValue(ctx, requestKey{s}, &request{held: map[string]*held{}})
}

// request returns the request that ctx belongs to, if any, and the context for the store. That is
// never a fiber.Ctx, since fiber uses those again for other requests while what a store or a hook
// has started may still hold its context.
func (s *Storage) request(ctx context.Context) (context.Context, *request) {
	r, _ := ctx.Value(requestKey{s}).(*request)
	if c, ok := ctx.(fiber.Ctx); ok {
		if r == nil {
			r = &request{c: c, held: map[string]*held{}}
			c.Locals(requestKey{s}, r)
		}
		ctx = c.Context()
	}
	return ctx, r
}

// carryOn returns a context for what is done to the end even after a timeout of the handler, as a
// fiber.Ctx is never cancelled; the store has its own timeout. Package adapter does so for itself.
func carryOn(ctx context.Context, r *request) context.Context {
	if r == nil {
		return ctx
	}
	return context.WithoutCancel(ctx)
}

// Get is GetWithContext without a request.
func (s *Storage) Get(key string) ([]byte, error) {
	return s.GetWithContext(context.Background(), key)
}

// GetWithContext returns the data of a live session, and nil if there is none. The data must not be
// changed.
func (s *Storage) GetWithContext(ctx context.Context, key string) ([]byte, error) {
	ctx, r := s.request(ctx)
	if r == nil {
		data, _, err := s.adapter.Load(ctx, nil, key)
		return bytes.Clone(data), err // the caller may be anybody
	}
	key = strings.Clone(key) // it may be a part of the request's header, which can be written over
	h := r.find(key)
	if h == nil {
		h = &held{}
	}
	data, found, err := s.adapter.Load(carryOn(ctx, r), &h.Request, key)
	switch {
	case err != nil:
		return nil, err
	case found:
		r.hold(key, h)
		h.live = true
	case caller.Method(getSession) != "":
		r.notFound(key, h)
	}
	return data, nil
}

// Set is SetWithContext without a request.
func (s *Storage) Set(key string, val []byte, exp time.Duration) error {
	return s.SetWithContext(context.Background(), key, val, exp)
}

var errNoSession = errors.New("fiberstore: this Storage keeps sessions only; give other middleware " +
	"(csrf, limiter, cache, idempotency) and other data a Storage of their own")

// SetWithContext saves a session, or only restarts its idle timeout if its data is as it was, or
// does nothing and takes its cookie out of the response if that has hardly run yet. If the session
// was ended during the request of ctx, nothing is saved, its cookie is taken out of the response,
// and the error is nil. That a renewal was not confirmed by enough replicas is not an error: the
// user would lose the session that was stored. It fails if the caller is not fiber's session.
func (s *Storage) SetWithContext(
	ctx context.Context, key string, val []byte, exp time.Duration,
) error {
	if key == "" || len(val) == 0 {
		return nil
	}
	if exp <= 0 {
		exp = DefaultTTL
	}
	ctx, r := s.request(ctx)
	var h *held
	if r != nil {
		h = r.held[key]
	}
	switch {
	case h == nil && caller.Method(saveSession) == "":
		return errNoSession
	case r == nil:
		return fibersession.Acknowledged(s.adapter.Save(ctx, nil, key, val, exp))
	}
	key = strings.Clone(key)
	h, err := s.session(ctx, r, key, true)
	ctx = carryOn(ctx, r) // a middleware within fiber's may have cancelled its own context by now
	var saved bool
	switch {
	case err != nil && r.c != nil:
		exchange(r.c).Withdraw(key) // fiber has set the cookie already
	case err != nil:
	case r.c == nil:
		err = fibersession.Acknowledged(s.adapter.Save(ctx, &h.Request, key, val, exp))
		saved = err == nil
	default:
		saved, err = exchange(r.c).Save(ctx, s.adapter, &h.Request, key, val, exp)
	}
	if saved {
		h.id, h.live = key, true
	}
	return err
}

// Delete is DeleteWithContext without a request.
func (s *Storage) Delete(key string) error { return s.DeleteWithContext(context.Background(), key) }

var (
	errNoRequest = errors.New("fiberstore: a session is renewed outside of a request: call " +
		"RegenerateWithContext and SaveWithContext with the fiber.Ctx, or with a context of NewContext")
	errTwice = errors.New("fiberstore: this request has renewed the session already")
)

// DeleteWithContext ends a session for good. It is not an error if there is none. What it does
// depends on who calls it: Regenerate leaves the session to go on under another id; Destroy and
// Reset log out, whatever the session has become; any other caller revokes the session, or logs out
// if it is one that the request holds.
func (s *Storage) DeleteWithContext(ctx context.Context, key string) error {
	ctx, r := s.request(ctx)
	key = strings.Clone(key)
	method := caller.Method(destroy, regenerate, reset)
	switch {
	case r == nil && method == regenerate:
		return errNoRequest
	case r == nil:
		return s.adapter.End(ctx, nil, key)
	case method == "":
		h := r.find(key)
		if h == nil {
			return s.adapter.End(ctx, &adapter.Request{}, key)
		}
		if h.live && h.id != key { // the request has left this id itself
			return nil
		}
		return s.end(ctx, h)
	}
	h, err := s.session(ctx, r, key, false)
	switch {
	case err != nil:
		return err
	case method != regenerate:
		h.destroyed = h.destroyed || method == destroy
		err = s.end(ctx, h)
	case h.id != key:
		return errTwice
	default:
		err = s.adapter.Leave(ctx, &h.Request, "")
	}
	if err == nil && method != destroy {
		r.renew(key, h)
	}
	return err
}

// end ends the session of h, whatever its id is.
func (s *Storage) end(ctx context.Context, h *held) error {
	err := s.adapter.End(ctx, &h.Request, "")
	if err == nil {
		h.live = false
	}
	return err
}

var errUnclear = errors.New("fiberstore: cannot tell which session goes on under a new id: several " +
	"were renewed in this request, or one twice; save each before the next is renewed")

// session returns what the request holds under key. If it has not seen key yet, that is the id of a
// session that was loaded outside of the request, or one that Regenerate or Reset has made.
func (s *Storage) session(ctx context.Context, r *request, key string, saving bool) (*held, error) {
	if h := r.find(key); h != nil {
		return h, nil
	}
	places := r.sent(key)
	could := r.savedIn(places)
	if len(could) == 0 {
		h := &held{}
		_, found, err := s.adapter.Load(carryOn(ctx, r), &h.Request, key)
		if err != nil {
			return nil, err
		}
		if h.live = found; found || len(r.renewed) == 0 {
			r.hold(key, h)
			return h, nil
		}
		if could = r.renewed; saving {
			could = r.savedElsewhere(places)
		}
	}
	h := r.take(could)
	if h == nil {
		return nil, errUnclear
	}
	r.hold(key, h)
	return h, nil
}

// Reset is ResetWithContext without a request.
func (s *Storage) Reset() error { return s.ResetWithContext(context.Background()) }

// ResetWithContext ends all live sessions of the store with the reason Revoked, one by one. Other
// keys and tombstones stay, so what requests that are still running save is refused. The store must
// be a tombstore.Lister, as those of package tombstore are.
func (s *Storage) ResetWithContext(ctx context.Context) error {
	ctx, r := s.request(ctx)
	return fibersession.EndAll(carryOn(ctx, r), s.adapter.Store())
}

// Close does nothing: the store belongs to whoever has made it, and may have other users.
func (s *Storage) Close() error { return nil }
