package gorillastore

import (
	"errors"
	"net/http"

	"github.com/gorilla/sessions"

	"github.com/tombstore/tombstore"
)

// Login makes the next Save of session log a user in: it gives the session a new id, as after
// Renew, and makes it one of the sessions of login's owner. Call it when the password is known to
// be right, and set what the session needs to know after it. That the Save finds values cleared is
// not a logout then.
//
// The session needs a deadline, by tombstore.Until or by tombstore.WithAbsoluteTimeout, or the
// error is tombstore.ErrNoDeadline: MaxAge is none, since it begins anew with each Save. For a
// session that lives longer or shorter than others set Options.MaxAge before, or give
// tombstore.LoginLifetime.
//
// After an error nobody is logged in, and the session is as it was: tombstore.ErrStaleLogin if the
// owner's sessions have been ended since BeginLogin, or if BeginLogin was more than an hour ago, so
// that the user has to give the password again, tombstore.ErrTooManySessions if the owner has as
// many as may be, tombstore.ErrTooLarge if a label has more than 1024 bytes (cut a User-Agent), and
// an adapter.ErrRefused if an earlier Save of session was refused. If the owner's sessions are
// ended after Login, the Save is refused.
//
// If the handler fails after Login, log out: a Save with a MaxAge of -1 in the session's Options
// gives up what Login has reserved, as does one that is refused. Without any Save that counts among
// the owner's sessions for ten minutes. The store must be a tombstore.Binder.
func (s *Store) Login(
	r *http.Request, session *sessions.Session, login tombstore.Login, opts ...tombstore.ReserveOption,
) error {
	rec := s.record(session)
	if rec.failed != nil {
		return rec.failed
	}
	rec.next = ""
	id := tombstore.NewID()
	if session.Options == nil {
		session.Options = s.newOptions()
	}
	if l, another := s.lifetime(session, rec); another {
		opts = append([]tombstore.ReserveOption{tombstore.LoginLifetime(l)}, opts...)
	}
	if _, err := s.adapter.Login(r.Context(), &rec.request, id, login, opts...); err != nil {
		return err
	}
	if session.Options.MaxAge == rec.maxAge { // that of the life before
		session.Options.MaxAge = s.newOptions().MaxAge
	}
	rec.maxAge = 0
	s.Renew(session)
	rec.next = id
	return nil
}

// LogoutEverywhere ends all sessions of an owner but this one, and returns how many. The next Save,
// which should come at once, gives this one a new id: for a button "log out my other devices", and
// after a change of the password. Logins that were begun before are refused. If session is not one
// of the owner's, all of them are ended. To log out here as well set Options.MaxAge to -1 before
// the Save.
//
// The error is an adapter.ErrRefused if session has been ended meanwhile; then no other one was
// ended. After any other error call it again. With tombstore.ErrUnacknowledged all were ended. The
// store must be a tombstore.Binder. An administrator ends the sessions of somebody else by
// InvalidateOwner.
func (s *Store) LogoutEverywhere(
	r *http.Request, session *sessions.Session, owner string,
) (n int, err error) {
	rec := s.record(session)
	if rec.failed != nil {
		return 0, rec.failed
	}
	n, err = s.adapter.EndOthers(r.Context(), &rec.request, owner)
	if err == nil || errors.Is(err, tombstore.ErrUnacknowledged) {
		s.Renew(session)
	}
	return n, err
}
