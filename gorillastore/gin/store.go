// Package ginstore is a store for gin-contrib/sessions whose ended sessions stay ended. It is
// [gorillastore.Store] with what gin adds; the package is not called gin because whoever uses it
// imports that too.
//
// In an existing program it replaces the call that makes the store:
//
//	backend, err := tombstore.Open("redis://127.0.0.1:6379")
//	…
//	store := ginstore.New(backend, []byte(authenticationKey))
//	router.Use(sessions.Sessions("session", store))
//
// Clear and Save are a logout, whatever is put into the session in between; see EndWhenCleared of
// [gorillastore.Store], which New sets. So is the Save that follows the Delete of the last value
// that is not a flash. Showing a flash is not a logout. A request that comes with the old cookie of
// a session that another request has renewed sees a session without values: its Clear and Save end
// the renewed one, but its Delete and Save cannot be told from those of a visitor, and end nothing.
package ginstore

import (
	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/gorillastore"
	"github.com/tombstore/tombstore/gorillastore/internal/contrib"
)

// Store is a sessions.Store of gin-contrib.
type Store struct{ *gorillastore.Store }

var _ sessions.Store = (*Store)(nil)

// New returns a store that keeps sessions in store; see [gorillastore.New]. EndWhenCleared is set,
// since programs with gin log out by Clear and Save. Without it that leaves a live session, which a
// request that is under way would fill with what it had loaded.
func New(store tombstore.Renewer, keyPairs ...[]byte) *Store {
	s := &Store{gorillastore.New(store, keyPairs...)}
	s.EndWhenCleared = true
	return s
}

// With applies options of the adapter and returns s; see [gorillastore.Store.With].
func (s *Store) With(opts ...adapter.Option) *Store {
	s.Store.With(opts...)
	return s
}

// Options sets what new sessions get, and replaces the defaults as a whole: set HttpOnly and
// SameSite too. A MaxAge of 0 is a cookie that ends with the browser's session, not a logout; see
// EndAtMaxAgeZero.
func (s *Store) Options(options sessions.Options) {
	s.Store.Options = options.ToGorillaOptions()
}

// Renew makes the next Save of session give it a new id and end the old one. Every login must do
// that.
func (s *Store) Renew(session sessions.Session) { contrib.Renew(s.Store, session) }

// Login makes the next Save of session log a user in; see [gorillastore.Store.Login]. If the
// handler fails after it, log out by session.Options with a MaxAge of -1 and Save, which gives up
// what Login has reserved: after Login session.Clear is not a logout.
func (s *Store) Login(
	c *gin.Context, session sessions.Session, login tombstore.Login, opts ...tombstore.ReserveOption,
) error {
	return contrib.Login(s.Store, c.Request, session, login, opts...)
}

// LogoutEverywhere ends all sessions of an owner but this one, to which the next Save gives a new
// id; see [gorillastore.Store.LogoutEverywhere].
func (s *Store) LogoutEverywhere(
	c *gin.Context, session sessions.Session, owner string,
) (n int, err error) {
	return contrib.LogoutEverywhere(s.Store, c.Request, session, owner)
}

// Refused reports whether the last Save of session was refused, because the session had been ended
// by another request.
func (s *Store) Refused(session sessions.Session) bool {
	return s.Store.Refused(contrib.Underlying(session))
}

// Failed returns the error for which the session could not be looked for, or nil. The library logs
// that error, and the session seems to be a visitor's: ask before a request without a user is
// answered with 401, or sent to the login.
func (s *Store) Failed(session sessions.Session) error {
	return s.Store.Failed(contrib.Underlying(session))
}
