package scsstore

import (
	"context"
	"errors"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/tombstore/tombstore"
)

// Login logs a user in with the session of a request: it gives the session a new token, as
// sm.RenewToken does, and makes it one of the sessions of login's owner. Call it in the handler,
// when the password is known to be right, and put what the session needs to know after it. The
// values so far stay.
//
// After an error nobody is logged in, and the session goes on as it was, under a new token:
// tombstore.ErrStaleLogin if the owner's sessions have been ended since store.BeginLogin, or if
// BeginLogin was more than an hour ago, so that the user has to give the password again,
// tombstore.ErrTooManySessions if the owner has as many as may be, tombstore.ErrTooLarge if a label
// has more than 1024 bytes (cut a User-Agent), and an adapter.ErrRefused if the request's session
// has been ended meanwhile. If the owner's sessions are ended after Login, the request saves
// nothing, like any whose session was ended. If the handler fails after Login, log out
// (sm.Destroy), which gives up what Login has reserved.
//
// The session lives until sm.Lifetime from now, or until what tombstore.Until says, which may be
// later or sooner; a tombstore.LoginLifetime with an absolute time takes the place of sm.Lifetime.
// A later sm.RenewToken does not move that, but begins the deadline of scs anew: the session ends
// at the sooner one, and sm.Deadline and the cookie know only that of scs. To keep the two the
// same, give sm.SetDeadline after RenewToken what sm.Deadline was before, as LogoutEverywhere does.
//
// Once the response has begun Login fails, and the session stays what it is, since no cookie can be
// set. It works only within the middleware of Install or Protect, and the store must be a
// tombstore.Binder.
func Login(
	ctx context.Context, sm *scs.SessionManager, login tombstore.Login, opts ...tombstore.ReserveOption,
) error {
	outer, err := within(ctx, sm)
	if err != nil {
		return err
	}
	l, err := lifetimeIn(sm, opts)
	if err != nil {
		return err
	}
	if err := sm.RenewToken(ctx); err != nil {
		return err
	}
	token := sm.Token(ctx)
	if sm.HashTokenInStore {
		token = hashed(token)
	}
	if l.Absolute == 0 {
		opts = append([]tombstore.ReserveOption{tombstore.Until(sm.Deadline(ctx))}, opts...)
	}

	deadline, err := outer.store.adapter.Login(ctx, outer.request, token, login, opts...)
	if err == nil && !deadline.IsZero() {
		sm.SetDeadline(ctx, deadline.UTC())
	}
	return err
}

// LogoutEverywhere ends all sessions of an owner but that of the request, which gets a new token,
// and returns how many: for a button "log out my other devices", and after a change of the
// password. Logins that were begun before are refused. If the request's session is not one of the
// owner's, all of them are ended. To log out here as well call sm.Destroy after it.
//
// The error is an adapter.ErrRefused if the request's session has been ended meanwhile; then no
// other one was ended. After any other error call it again. With tombstore.ErrUnacknowledged all
// were ended.
//
// Once the response has begun it fails, and has ended nothing, since no cookie can be set. It works
// only within the middleware of Install or Protect, and the store must be a tombstore.Binder. An
// administrator ends the sessions of somebody else by store.InvalidateOwner.
func LogoutEverywhere(ctx context.Context, sm *scs.SessionManager, owner string) (n int, err error) {
	outer, err := within(ctx, sm)
	if err != nil {
		return 0, err
	}
	n, err = outer.store.adapter.EndOthers(ctx, outer.request, owner)
	if err != nil && !errors.Is(err, tombstore.ErrUnacknowledged) || !outer.request.Holds() {
		return n, err
	}
	deadline := sm.Deadline(ctx)
	if err := sm.RenewToken(ctx); err != nil {
		return n, err
	}
	sm.SetDeadline(ctx, deadline)
	return n, err
}

// SetLifetime gives the session of a request a lifetime of its own, for "remember me" and for
// administrators, and a new token, since a session gets one with the other: call it instead of
// sm.RenewToken when a user logs in, and with the zero Lifetime if it is to live as long as all
// others. With [Login] give that tombstore.LoginLifetime instead.
//
// The idle timeout takes the place of sm.IdleTimeout, in whatever request the session is used, and
// the cookie lives as long, if it is one that outlives the browser (Cookie.Persist, or
// sm.RememberMe). sm.IdleTimeout must be set, since scs touches no session without it. The absolute
// time takes the place of sm.Lifetime; without one the session ends after sm.Lifetime, however long
// its idle timeout is.
//
// It works only within the middleware of Install or Protect, and fails once the response has begun.
func SetLifetime(ctx context.Context, sm *scs.SessionManager, l tombstore.Lifetime) error {
	outer, err := within(ctx, sm)
	if err == nil {
		_, err = lifetimeIn(sm, []tombstore.ReserveOption{tombstore.LoginLifetime(l)})
	}
	if err != nil {
		return err
	}
	if err := outer.request.SetLifetime(l); err != nil {
		return err
	}
	if err := sm.RenewToken(ctx); err != nil {
		return err
	}
	if l.Absolute > 0 {
		sm.SetDeadline(ctx, time.Now().Add(l.Absolute).UTC())
	}
	return nil
}

var errNoIdleTimeout = errors.New("scsstore: lifetime: without an IdleTimeout of the SessionManager scs touches no session")

// lifetimeIn returns the lifetime of its own that a session is to have.
func lifetimeIn(sm *scs.SessionManager, opts []tombstore.ReserveOption) (tombstore.Lifetime, error) {
	var o tombstore.ReserveOptions
	for _, opt := range opts {
		opt(&o)
	}
	if o.Lifetime.Idle > 0 && sm.IdleTimeout == 0 {
		return o.Lifetime, errNoIdleTimeout
	}
	return o.Lifetime, nil
}

var errBegun = errors.New("scsstore: the response has begun, so it cannot set the cookie of a new token any more")

// within returns what the middleware has put around the request of ctx, whose response can still
// set a cookie.
func within(ctx context.Context, sm *scs.SessionManager) (*outerWriter, error) {
	outer, ok := ctx.Value(outerKey{sm}).(*outerWriter)
	switch {
	case !ok:
		return nil, errNoMiddleware
	case outer.begun.Load():
		return nil, errBegun
	}
	return outer, nil
}
