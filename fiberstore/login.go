package fiberstore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"

	"github.com/tombstore/tombstore"
)

// Session is a *session.Middleware, which session.FromContext returns, or a *session.Session.
type Session interface {
	ID() string
	Keys() []any
	Get(key any) any
	Set(key, val any)
	RegenerateWithContext(ctx context.Context) error
}

var (
	_ Session = (*session.Middleware)(nil)
	_ Session = (*session.Session)(nil)
)

// Login logs a user in with the session of a request: it gives the session a new id, as Regenerate
// does, and makes it one of the sessions of login's owner. Call it in the handler, when the
// password is known to be right, and set what the session needs to know after it. The values so far
// stay.
//
// After an error nobody is logged in, and the session goes on as it was, under a new id:
// tombstore.ErrStaleLogin if the owner's sessions have been ended since BeginLogin, or if
// BeginLogin was more than an hour ago, so that the user has to give the password again,
// tombstore.ErrTooManySessions if the owner has as many as may be, tombstore.ErrTooLarge if a label
// has more than 1024 bytes (cut a User-Agent), and an adapter.ErrRefused if the request's session
// has been ended meanwhile. If the owner's sessions are ended after Login, nothing is saved, as of
// any session that was ended.
//
// The session needs a deadline: by tombstore.Until, by tombstore.LoginLifetime, whose absolute time
// takes the place of fiber's AbsoluteTimeout, by tombstore.WithAbsoluteTimeout, or by the
// AbsoluteTimeout of fiber's session, which begins anew at the login with the middleware, and not
// with a session of Store.Get, whose Reset also removes it. Otherwise the error is
// tombstore.ErrNoDeadline: an IdleTimeout is none.
//
// To begin with an empty session call Reset before Login. After Destroy the middleware saves
// nothing any more in the request, so Login fails.
//
// If the handler fails after Login, log out (Destroy), which gives up what Login has reserved. If
// it panics, that counts among the owner's sessions for ten minutes. The store must be a
// tombstore.Binder.
func (s *Storage) Login(
	c fiber.Ctx, sess Session, login tombstore.Login, opts ...tombstore.ReserveOption,
) error {
	h, err := s.renew(c, sess)
	if err != nil {
		return err
	}
	if _, ok := sess.(*session.Middleware); ok && h.destroyed {
		return errDestroyed
	}
	key, expires := expiration(sess)
	if !expires.IsZero() && lifetimeIn(opts).Absolute == 0 {
		opts = append([]tombstore.ReserveOption{tombstore.Until(expires)}, opts...)
	}
	ctx, _ := s.request(c)
	deadline, err := s.adapter.Login(ctx, &h.Request, h.id, login, opts...)
	if own, ok := sess.(*session.Session); ok && err != nil && h.live { // the handler may not save it
		return errors.Join(err, own.SaveWithContext(c))
	}
	if err == nil && key != nil && !deadline.IsZero() {
		sess.Set(key, deadline)
	}
	return err
}

// SetLifetime gives the session of a request a lifetime of its own, for "remember me" and for
// administrators, and a new id, since a session gets one with the other: call it instead of
// Regenerate when a user logs in, and with the zero Lifetime if it is to live as long as all
// others. With Login give that tombstore.LoginLifetime instead.
//
// The idle timeout takes the place of fiber's IdleTimeout, in whatever request the session is used,
// and the cookie lives as long. The absolute time takes the place of fiber's AbsoluteTimeout;
// without one that ends the session, however long its idle timeout is.
func (s *Storage) SetLifetime(c fiber.Ctx, sess Session, l tombstore.Lifetime) error {
	if l.Idle < 0 || l.Absolute < 0 { // before the session has another id
		return fmt.Errorf("tombstore: lifetime: %w", tombstore.ErrInvalidTTL)
	}
	h, err := s.renew(c, sess)
	if err != nil {
		return err
	}
	if key, _ := expiration(sess); key != nil && l.Absolute > 0 {
		sess.Set(key, time.Now().Add(l.Absolute))
	}
	return h.SetLifetime(l)
}

// lifetimeIn returns the lifetime of its own that a session is to have.
func lifetimeIn(opts []tombstore.ReserveOption) tombstore.Lifetime {
	var o tombstore.ReserveOptions
	for _, opt := range opts {
		opt(&o)
	}
	return o.Lifetime
}

// LogoutEverywhere ends all sessions of an owner but that of the request, which gets a new id, and
// returns how many: for a button "log out my other devices", and after a change of the password.
// Logins that were begun before are refused. If the request's session is not one of the owner's,
// all of them are ended. To log out here as well call Destroy after it.
//
// The error is an adapter.ErrRefused if the request's session has been ended meanwhile; then no
// other one was ended. After any other error call it again. With tombstore.ErrUnacknowledged all
// were ended. The store must be a tombstore.Binder. An administrator ends the sessions of somebody
// else by InvalidateOwner.
func (s *Storage) LogoutEverywhere(c fiber.Ctx, sess Session, owner string) (n int, err error) {
	ctx, r := s.request(c)
	h, err := s.session(ctx, r, strings.Clone(sess.ID()), false)
	if err != nil {
		return 0, err
	}
	n, err = s.adapter.EndOthers(ctx, &h.Request, owner)
	if err != nil && !errors.Is(err, tombstore.ErrUnacknowledged) || !h.Holds() {
		return n, err
	}
	if _, err := s.renew(c, sess); err != nil {
		return n, err
	}
	return n, err
}

var (
	errAnother   = errors.New("fiberstore: the session is not kept in this Storage")
	errDestroyed = errors.New("fiberstore: login: the session was destroyed in this request, after which fiber " +
		"saves nothing; for an empty one call Reset")
)

// renew gives a session a new id, and returns what the request holds under that.
func (s *Storage) renew(c fiber.Ctx, sess Session) (*held, error) {
	id := strings.Clone(sess.ID())
	if err := sess.RegenerateWithContext(c); err != nil {
		return nil, err
	}
	_, r := s.request(c)
	h := r.held[id]
	if h == nil {
		return nil, errAnother
	}
	r.take([]*held{h})
	r.hold(sess.ID(), h)
	return h, nil
}

// expiration returns the key under which a session keeps when it expires at the latest, nil if it
// does not, and when that is if it is logged in now, zero if there is no such time.
func expiration(sess Session) (key any, expires time.Time) {
	for _, k := range sess.Keys() {
		at, ok := sess.Get(k).(time.Time)
		if ok && reflect.TypeOf(k).PkgPath() == sessionPath {
			key, expires = k, at
		}
	}
	if m, ok := sess.(*session.Middleware); ok && m.Store().AbsoluteTimeout > 0 {
		expires = time.Now().Add(m.Store().AbsoluteTimeout)
	}
	return key, expires
}
