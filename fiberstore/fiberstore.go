// Package fiberstore keeps the sessions of gofiber/fiber v3 in a tombstore.Store, so that a logout wins over requests
// that are still running. In an existing program the storage of the session middleware is all that changes:
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
// A request whose session was ended while it ran is answered with its own status and body, but without a session
// cookie, and nothing of it is saved. [adapter.WithOnRefused] tells about it.
//
// With [adapter.Conflict] the save of a lost update fails with tombstore.ErrConflict: Session.Save returns it, and the
// middleware hands it to ErrorHandler of its Config. What [adapter.Merge] gets is fiber's encoding, a map[any]any in gob.
package fiberstore

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"reflect"
	"strings"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// DefaultTTL is how long a session lives after its last use if it is saved with no expiration. The session middleware
// always gives one.
const DefaultTTL = 24 * time.Hour

// Storage is a fiber.Storage for the session middleware alone. Do not share it with csrf, limiter, cache or the like,
// which use a key again after they have deleted it: here a deleted key stays refused.
//
// A context that is a fiber.Ctx, or is derived from one, tells which request a call belongs to; the session middleware
// passes its fiber.Ctx. With any other context, such as that of fiber.Ctx.Context, and in the forms without one, a save
// is refused only if that very session was ended, and returns [adapter.ErrRefused], as there is no response to clean.
//
// It is safe for concurrent use, in so far as the fiber.Ctx is.
type Storage struct {
	adapter *adapter.Adapter
}

var _ fiber.Storage = (*Storage)(nil)

// New returns a Storage that keeps sessions in store.
func New(store tombstore.Store, opts ...adapter.Option) *Storage {
	return &Storage{adapter.New(store, opts...)}
}

// request is what one HTTP request knows of its sessions.
type request struct {
	c    fiber.Ctx
	held map[string]*held // by id
	next *held            // was not found or has been ended, so fiber will save under a new id
}

type held struct {
	adapter.Request
	data []byte // as loaded or saved last
}

// of returns what is held under id. If that is nothing, id is new and takes the place of next.
func (r *request) of(id string) *held {
	if r.held[id] == nil {
		if r.next == nil {
			r.next = &held{}
		}
		r.held[id], r.next = r.next, nil
	}
	return r.held[id]
}

type requestKey struct{ s *Storage }

// request returns the request that ctx belongs to, if any, and the context for the store. That is never a fiber.Ctx,
// since fiber uses those again for other requests while what a store or a hook has started may still hold its context.
// Like a fiber.Ctx it is never cancelled, so that a session is saved or ended even after a timeout of the handler; the
// store has its own timeout.
func (s *Storage) request(ctx context.Context) (context.Context, *request) {
	r, _ := ctx.Value(requestKey{s}).(*request)
	if c, ok := ctx.(fiber.Ctx); ok {
		if r == nil {
			r = &request{c: c, held: map[string]*held{}}
			c.Locals(requestKey{s}, r)
		}
		ctx = context.WithoutCancel(c.Context())
	}
	return ctx, r
}

// Get is GetWithContext without a request.
func (s *Storage) Get(key string) ([]byte, error) { return s.GetWithContext(context.Background(), key) }

// GetWithContext returns the data of a live session, and nil if there is none.
func (s *Storage) GetWithContext(ctx context.Context, key string) ([]byte, error) {
	ctx, r := s.request(ctx)
	if r == nil {
		data, _, err := s.adapter.Load(ctx, nil, key)
		return data, err
	}
	key = strings.Clone(key) // it may be a part of the request's header, which can be written over
	h := r.held[key]
	if h == nil {
		h = &held{}
		r.held[key] = h
	}
	data, found, err := s.adapter.Load(ctx, &h.Request, key)
	h.data = data
	if err == nil && !found && r.next == nil {
		r.next = h
	}
	return data, err
}

// Set is SetWithContext without a request.
func (s *Storage) Set(key string, val []byte, exp time.Duration) error {
	return s.SetWithContext(context.Background(), key, val, exp)
}

// SetWithContext saves a session, or only restarts its idle timeout if its data is as it was. If it was ended during the
// request of ctx, nothing is saved, its cookie is taken out of the response, and the error is nil.
func (s *Storage) SetWithContext(ctx context.Context, key string, val []byte, exp time.Duration) error {
	if key == "" || len(val) == 0 {
		return nil
	}
	if exp <= 0 {
		exp = DefaultTTL
	}
	ctx, r := s.request(ctx)
	if r == nil {
		return s.adapter.Save(ctx, nil, key, val, exp)
	}
	key = strings.Clone(key)
	h := r.of(key)
	if same(h.data, val) {
		val = h.data
	}
	err := s.adapter.Save(ctx, &h.Request, key, val, exp)
	if errors.Is(err, adapter.ErrRefused) { // an error would be a 500, and fiber has set the cookie already
		withdraw(r.c, key)
		return nil
	}
	if err == nil {
		h.data = val
	}
	return err
}

// Delete is DeleteWithContext without a request.
func (s *Storage) Delete(key string) error { return s.DeleteWithContext(context.Background(), key) }

// DeleteWithContext ends a session for good. It is no error if there is none. The reason is Rotated, for a logout too, since
// fiber does not say which of the two it is.
func (s *Storage) DeleteWithContext(ctx context.Context, key string) error {
	ctx, r := s.request(ctx)
	if r == nil {
		return s.adapter.End(ctx, nil, key, tombstore.Logout)
	}
	h := r.held[key]
	if h == nil {
		// Somebody else's session, or that of this request if it is new. That one was never saved, so it needs no tombstone.
		if _, err := s.adapter.Store().Read(ctx, key); !errors.Is(err, tombstore.ErrNotFound) {
			return s.adapter.End(ctx, &adapter.Request{}, key, tombstore.Revoked)
		}
		key = ""
		if h = r.next; h == nil {
			h = &held{}
		}
	}
	// Fiber does not say whether the session will go on under a new id.
	if err := s.adapter.End(ctx, &h.Request, key, tombstore.Rotated); err != nil {
		return err
	}
	r.next = h
	if h.Gone() == nil {
		return nil
	}
	return s.adapter.Finish(ctx, &h.Request) // it may be a logout, so a renewal of another request must not go on
}

// Reset is ResetWithContext without a request.
func (s *Storage) Reset() error { return s.ResetWithContext(context.Background()) }

// ResetWithContext ends all live sessions of the store with the reason Revoked, one by one. Other keys and tombstones
// stay, so what requests that are still running save is refused. The store must be a tombstore.Lister, as those of
// package tombstore are.
func (s *Storage) ResetWithContext(ctx context.Context) error {
	ctx, _ = s.request(ctx)
	lister, ok := s.adapter.Store().(tombstore.Lister)
	if !ok {
		return errors.New("tombstore: reset: the store is not a tombstore.Lister")
	}
	for entry, err := range lister.List(ctx) {
		if errors.Is(err, tombstore.ErrCorrupt) { // no session
			continue
		}
		if err == nil {
			err = lister.InvalidateRef(ctx, entry.Ref, tombstore.WithReason(tombstore.Revoked))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Close does nothing: the store belongs to who has made it, and may have other users.
func (s *Storage) Close() error { return nil }

// same reports whether a and b hold the same values. Fiber saves at the end of every request, in gob, which writes maps
// in random order and numbers types differently in each process. A request that only reads must not write, for the
// server's sake, and because it would undo what others have written meanwhile.
func same(a, b []byte) bool {
	if len(a) != len(b) || bytes.Equal(a, b) {
		return len(a) == len(b)
	}
	x, err := decode(a)
	y, err2 := decode(b)
	return err == nil && err2 == nil && reflect.DeepEqual(x, y)
}

func decode(data []byte) (values map[any]any, err error) {
	err = gob.NewDecoder(bytes.NewReader(data)).Decode(&values)
	return values, err
}

// withdraw takes every cookie and header with the value id out of the response.
func withdraw(c fiber.Ctx, id string) {
	header := &c.Response().Header
	var names, cookies []string
	for name, value := range header.All() {
		if string(value) == id {
			names = append(names, string(name))
		}
	}
	for _, cookie := range header.Cookies() {
		pair, _, _ := strings.Cut(string(cookie), ";")
		if _, value, _ := strings.Cut(pair, "="); value != id {
			cookies = append(cookies, string(cookie))
		}
	}
	for _, name := range names {
		header.Del(name)
	}
	header.DelAllCookies() // by name would take those of other paths too
	for _, cookie := range cookies {
		header.Add(fiber.HeaderSetCookie, cookie)
	}
}
