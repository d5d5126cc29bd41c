package chistore

import (
	"errors"
	"net/http"

	"gitea.com/go-chi/session"

	"github.com/tombstore/tombstore"
)

// Login is session.RegenerateSession at a login: it gives the session of the request a new id, and makes
// it one of the sessions of login's owner. Call it when the password is known to be right, and set what
// the session needs to know after it.
//
// The session needs a deadline, by tombstore.Until or by tombstore.WithAbsoluteTimeout, or the error is
// tombstore.ErrNoDeadline: Maxlifetime is none, since it begins anew with each use.
//
// After an error nobody is logged in, and the session is as it was: tombstore.ErrStaleLogin if the owner's
// sessions have been ended since BeginLogin, so that the user has to give the password again,
// tombstore.ErrTooManySessions if the owner has as many as may be, tombstore.ErrTooLarge if a label has
// more than 1024 bytes (cut a User-Agent), and an adapter.ErrRefused if an earlier save of the session
// was refused. If the owner's sessions are ended after Login, the save is refused.
//
// If the handler fails after Login, it calls Destroy. The store must be a tombstore.Binder.
func Login(
	w http.ResponseWriter, r *http.Request, l tombstore.Login, opts ...tombstore.ReserveOption,
) error {
	q, ok := r.Context().Value(requestKey{}).(*request)
	if !ok {
		return errNoRequest
	}
	q.login = &login{l, opts}
	defer func() { q.login = nil }()
	_, err := session.RegenerateSession(w, r)
	return err
}

// LogoutEverywhere ends all sessions of an owner but that of the request, which gets a new id, and returns
// how many: for a button "log out my other devices", and after a change of the password. Logins that were
// begun before are refused. If the request's session is not one of the owner's, all of them are ended. To
// log out here as well call Destroy after it.
//
// The error is an adapter.ErrRefused if the request's session has been ended meanwhile; then no other one
// was ended. After any other error call it again. With tombstore.ErrUnacknowledged all were ended. The
// store must be a tombstore.Binder. An administrator ends the sessions of somebody else by InvalidateOwner.
func LogoutEverywhere(w http.ResponseWriter, r *http.Request, owner string) (n int, err error) {
	q, ok := r.Context().Value(requestKey{}).(*request)
	if !ok || q.session == nil {
		return 0, errNoRequest
	}
	n, err = q.session.provider.adapter.EndOthers(q.ctx, &q.Request, owner)
	if err != nil && !errors.Is(err, tombstore.ErrUnacknowledged) || !q.Holds() {
		return n, err
	}
	if _, err := session.RegenerateSession(w, r); err != nil {
		return n, err
	}
	return n, err
}
