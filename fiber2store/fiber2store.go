// Package fiber2store keeps the sessions of gofiber/fiber v2 in a tombstore.Renewer, so that a
// logout wins over requests that are still running. For fiber v3 there is package fiberstore. In an
// existing program the call that makes the session store is all that changes:
//
//	package main
//
//	import (
//		"log"
//
//		"github.com/gofiber/fiber/v2"
//		"github.com/gofiber/fiber/v2/middleware/session"
//		"github.com/tombstore/tombstore"
//		"github.com/tombstore/tombstore/fiber2store"
//	)
//
//	func main() {
//		backend, err := tombstore.Open("redis://127.0.0.1:6379")
//		if err != nil {
//			log.Fatal(err)
//		}
//		sessions := fiber2store.New(backend, session.Config{})
//		app := fiber.New()
//		app.Get("/", func(c *fiber.Ctx) error {
//			sess, err := sessions.Get(c)
//			if err != nil {
//				return err
//			}
//			sess.Set("visited", true)
//			return sess.Save()
//		})
//		log.Fatal(app.Listen(":3000"))
//	}
//
// The sessions that [Store.Get] returns are fiber's own. The storages of fiber v2 are not told
// which request calls them, so a Store gives each request a storage of its own.
//
// A request whose session was ended while it ran is answered with its own status and body, but
// without a session cookie, and nothing of it is saved. [adapter.WithOnRefused] reports it. A
// logout, by Destroy or Reset, ends the session under whatever id it has by then: one that another
// request is renewing with Regenerate, or has renewed, is out as well.
//
// [Store.Login] instead of Regenerate says whose the session is, so that its owner can be logged
// out everywhere ([Store.LogoutEverywhere]).
//
// A Save that changes nothing, before a tenth of the Expiration has passed
// ([adapter.WithTouchThreshold]), sends nothing, and takes the id out of the response: nobody has
// asked whether the session was ended or renewed meanwhile, and the cookie might take the place of
// one that a login has set. A handler that puts the id elsewhere into the response, by itself, is
// an exception.
//
// With [adapter.Conflict] the Save of a lost update returns tombstore.ErrConflict, and so does
// Regenerate, which is a change too. What [adapter.Merge] gets is fiber's encoding, a
// map[string]any in gob.
//
// # Limits
//
//   - Middleware that takes a session.Store of fiber, as csrf does in its Config, cannot have these
//     sessions. Give it a Storage, or a session.Store of its own.
//   - Fiber sets the cookie before it encodes the session. If a value cannot be encoded, Save fails
//     without asking the store, and the cookie stays in the response.
//   - After a Save that has failed, fiber keeps its lock of the session: of its methods only Get, Set,
//     Delete and Keys return. So also while the functions of [adapter.WithOnRefused] and
//     [adapter.WithOnUnacknowledged] run.
//   - A program whose functions have lost their names, as by obfuscation, cannot use this package:
//     New panics. Fiber's storages have one Delete, for a logout and a renewal alike, and by the
//     name of its caller the two are told apart.
package fiber2store

import (
	"context"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/fibersession"
	"github.com/tombstore/tombstore/internal/gobmap"
)

// Store has the methods of a session.Store. It is safe for concurrent use; a session is not, as
// ever.
type Store struct {
	adapter  *adapter.Adapter
	sessions session.Store
}

// New returns a Store that keeps sessions in store, and in all else does as config says, whose
// Storage is not used. The default of its KeyGenerator is tombstore.NewID, since fiber's makes ids
// of 122 bits. New panics in a program whose functions have lost their names.
func New(store tombstore.Renewer, config session.Config, opts ...adapter.Option) *Store {
	if !callersAreKnown(callers) {
		panic("fiber2store: the names of fiber's methods are not in this program, or are not those of " +
			"the fiber that this package was written for; build it without obfuscation")
	}
	opts = append([]adapter.Option{
		adapter.WithEqual(gobmap.Equal[string]), adapter.WithDecode(gobmap.Check[string]),
	}, opts...)
	if config.KeyGenerator == nil {
		config.KeyGenerator = tombstore.NewID
	}
	config.Storage = &request{} // each request has its own
	return &Store{adapter.New(store, opts...), *session.New(config)}
}

// Get returns the session of the request, or a new one.
func (s *Store) Get(c *fiber.Ctx) (*session.Session, error) { return s.request(c).sessions.Get(c) }

// RegisterType makes a type known to gob, so that sessions can have values of it.
func (s *Store) RegisterType(i any) { s.sessions.RegisterType(i) }

// Delete logs a session out by its id, whatever it has become. It is not an error if there is none.
func (s *Store) Delete(id string) error {
	if id == "" {
		return session.ErrEmptySessionID
	}
	return s.adapter.End(context.Background(), nil, id)
}

// Reset ends all live sessions of the store with the reason Revoked, one by one. Other keys and
// tombstones stay, so what requests that are still running save is refused. The store must be a
// tombstore.Lister, as those of package tombstore are.
func (s *Store) Reset() error { return fibersession.EndAll(context.Background(), s.adapter.Store()) }
