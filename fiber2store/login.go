package fiber2store

import (
	"errors"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"

	"github.com/tombstore/tombstore"
)

var errAnother = errors.New("fiber2store: the session is not one that this Store's Get has returned in this request")

// Login logs a user in with a session of the request: it gives the session a new id, as Regenerate
// does, and makes it one of the sessions of login's owner. Call it in the handler, when the
// password is known to be right, set what the session needs to know after it, and Save. The values
// so far stay.
//
// After an error nobody is logged in, and the session is as it was: tombstore.ErrStaleLogin if the
// owner's sessions have been ended since BeginLogin, or if BeginLogin was more than an hour ago, so
// that the user has to give the password again, tombstore.ErrTooManySessions if the owner has as
// many as may be, tombstore.ErrTooLarge if a label has more than 1024 bytes (cut a User-Agent), and
// an adapter.ErrRefused if an earlier Save or Regenerate of the request was refused. If the owner's
// sessions are ended after Login, nothing is saved, as of any session that was ended.
//
// The session needs a deadline, by tombstore.Until or by tombstore.WithAbsoluteTimeout, or the
// error is tombstore.ErrNoDeadline: fiber's Expiration is none, since it begins anew with each
// Save.
//
// To begin with an empty session call Reset before Login. If the handler fails after Login, log out
// (Destroy), which gives up what Login has reserved. Without that or a Save it counts among the
// owner's sessions for ten minutes. The store must be a tombstore.Binder.
func (s *Store) Login(
	c *fiber.Ctx, sess *session.Session, login tombstore.Login, opts ...tombstore.ReserveOption,
) error {
	r := s.request(c)
	h := r.held[sess.ID()]
	if h == nil {
		return errAnother
	}
	id := s.sessions.KeyGenerator()
	if _, err := s.adapter.Login(r.context(), &h.Request, id, login, opts...); err != nil {
		return err
	}
	r.reserved = id
	err := sess.Regenerate()
	r.reserved = "" // if that has not come to use it
	return err
}

// SetLifetime gives a session of the request a lifetime of its own, for "remember me" and for
// administrators, and a new id, since a session gets one with the other: call it instead of
// Regenerate when a user logs in, and with the zero Lifetime if it is to live as long as all
// others. With Login give that tombstore.LoginLifetime instead. The idle timeout takes the place of
// fiber's Expiration and of SetExpiry, in whatever request the session is used, and the cookie
// lives as long.
func (s *Store) SetLifetime(c *fiber.Ctx, sess *session.Session, l tombstore.Lifetime) error {
	h := s.request(c).held[sess.ID()]
	if h == nil {
		return errAnother
	}
	if err := h.SetLifetime(l); err != nil {
		return err
	}
	return sess.Regenerate()
}

// LogoutEverywhere ends all sessions of an owner but sess, a session of the request, which gets a
// new id, and returns how many. Save sess after it. It is for a button "log out my other devices",
// and after a change of the password. Logins that were begun before are refused. If sess is not one
// of the owner's, all of them are ended. To log out here as well call Destroy instead of Save.
//
// The error is an adapter.ErrRefused if sess has been ended meanwhile; then no other one was ended.
// After any other error call it again. With tombstore.ErrUnacknowledged all were ended. The store
// must be a tombstore.Binder. An administrator ends the sessions of somebody else by
// InvalidateOwner.
func (s *Store) LogoutEverywhere(c *fiber.Ctx, sess *session.Session, owner string) (n int, err error) {
	r := s.request(c)
	h := r.held[sess.ID()]
	if h == nil {
		return 0, errAnother
	}
	n, err = s.adapter.EndOthers(r.context(), &h.Request, owner)
	if (err == nil || errors.Is(err, tombstore.ErrUnacknowledged)) && h.Holds() {
		if err := sess.Regenerate(); err != nil {
			return n, err
		}
	}
	return n, err
}
