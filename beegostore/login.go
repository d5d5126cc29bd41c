package beegostore

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/tombstore/tombstore"
)

var errNoSession = errors.New("beegostore: no session was started in this request")

// Login logs a user in with the session of a request: it gives the session a new id, as
// SessionRegenerateID does, and makes it one of the sessions of login's owner. Call it in the
// handler once the password is known to be right, and set what the session needs to know after it.
// The values so far stay, unless Flush came before, which does not count as a logout then. The
// controller goes on with the same session.
//
// After an error nobody is logged in, and the session is as it was:
//
//   - tombstore.ErrStaleLogin: the owner's sessions have been ended since BeginLogin, or BeginLogin was
//     more than an hour ago. The user has to give the password again.
//   - tombstore.ErrTooManySessions: the owner has as many sessions as WithMaxSessions allows.
//   - tombstore.ErrNoDeadline: neither tombstore.Until nor tombstore.WithAbsoluteTimeout gives the
//     session a deadline. SessionGCMaxLifetime does not, since it begins anew with each use.
//   - tombstore.ErrTooLarge: a label has more than 1024 bytes. Cut a User-Agent.
//   - adapter.ErrRefused: the request's session has been ended, and that was noticed.
//
// If the owner's sessions are ended after Login, nothing is saved, as for any session that was
// ended.
//
// If the handler fails after Login, log out (DestroySession), which gives up what Login has
// reserved. A panic that beego does not recover does the same. The store must be a
// tombstore.Binder.
func (p *Provider) Login(r *http.Request, login tombstore.Login, opts ...tombstore.ReserveOption) error {
	q, s, err := p.sessionOf(r)
	if err != nil {
		return err
	}
	q.before = func(s *Store, id string) error {
		_, err := p.adapter.Login(q.r.Context(), s.request, id, login, opts...)
		s.request.RunHooks(false)
		return err
	}
	defer func() { q.before = nil }()
	if err := q.renew(r); err != nil {
		return err
	}
	s.forget()
	return nil
}

// LogoutEverywhere ends all sessions of an owner except that of the request, which gets a new id,
// and returns how many it has ended: for a button "log out my other devices", and after a change of
// the password. Logins that were begun before are refused. If the request's session is not one of
// the owner's, all of them are ended. To log out here as well call DestroySession after it.
//
// The error is an adapter.ErrRefused if the request's session has been ended meanwhile; then no
// other session was ended. After any other error call it again. With tombstore.ErrUnacknowledged
// all were ended. The store must be a tombstore.Binder. An administrator ends another user's
// sessions by InvalidateOwner.
func (p *Provider) LogoutEverywhere(r *http.Request, owner string) (n int, err error) {
	q, s, err := p.sessionOf(r)
	if err != nil {
		return 0, err
	}
	n, err = p.adapter.EndOthers(q.r.Context(), s.request, owner)
	s.request.RunHooks(false)
	if err != nil && !errors.Is(err, tombstore.ErrUnacknowledged) || !s.request.Holds() || s.renewed() {
		return n, err
	}
	if err := q.renew(r); err != nil {
		return n, err
	}
	return n, err
}

// sessionOf returns the session that was started in a request. The manager finds it by the same
// cookie.
func (p *Provider) sessionOf(r *http.Request) (*request, *Store, error) {
	q := p.requestOf(r)
	if q == nil {
		return nil, nil, errNotInstalled
	}
	c, err := r.Cookie(p.cookieName())
	if err != nil {
		return nil, nil, errNoSession
	}
	id, err := url.QueryUnescape(c.Value)
	if err != nil {
		return nil, nil, errNoSession
	}
	s := p.find(id)
	if s == nil || !s.isUsed() {
		return nil, nil, errNoSession
	}
	if s.q == nil {
		q.adopt(s)
	}
	return q, s, nil
}

// renewed reports whether the session is to be saved under a new id. If Login has chosen that id,
// no other one would do: the login was begun before.
func (s *Store) renewed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.next != ""
}

// forget makes what the session has lost so far no logout.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(s.data)
}
