// Package contrib is what the stores for gin-contrib/sessions and hertz-contrib/sessions have in
// common. The sessions of both wrap gorilla's, and are saved only if they were changed through
// methods of their own.
package contrib

import (
	"net/http"

	"github.com/gorilla/sessions"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/gorillastore"
)

// Session is a session of gin-contrib or of hertz-contrib.
type Session interface{ Delete(key any) }

// change makes the next Save of session save.
func change(session Session) { session.Delete(nil) }

// Underlying returns the session of gorilla that session wraps.
func Underlying(session Session) *sessions.Session {
	return session.(interface{ Session() *sessions.Session }).Session()
}

// Renew is that of gorillastore.
func Renew(store *gorillastore.Store, session Session) {
	store.Renew(Underlying(session))
	change(session)
}

// Login is that of gorillastore.
func Login(
	store *gorillastore.Store, r *http.Request, session Session, login tombstore.Login,
	opts ...tombstore.ReserveOption,
) error {
	if err := store.Login(r, Underlying(session), login, opts...); err != nil {
		return err
	}
	change(session)
	return nil
}

// LogoutEverywhere is that of gorillastore.
func LogoutEverywhere(
	store *gorillastore.Store, r *http.Request, session Session, owner string,
) (n int, err error) {
	own := Underlying(session)
	id := own.ID
	n, err = store.LogoutEverywhere(r, own, owner)
	if own.ID != id { // it has one to renew
		change(session)
	}
	return n, err
}
