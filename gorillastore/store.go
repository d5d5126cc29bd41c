// Package gorillastore is a store for gorilla/sessions whose ended sessions stay ended.
//
// In an existing program it replaces the call that makes the store:
//
//	backend, err := tombstore.Open("redis://127.0.0.1:6379")
//	…
//	store := gorillastore.New(backend, []byte(authenticationKey))
//
// With the key pairs that boj/redistore had, the browsers' cookies stay valid, but not the sessions that they name: those
// are in another format. So users log in once more.
//
// A session that a request loaded is saved only if it is still live. If it was ended meanwhile, by a logout, a renewal in
// another request or an administrator, Save stores nothing, sets no cookie and returns nil, so that the request is answered
// as if it had been saved. [Store.Refused] tells, and so does adapter.WithOnRefused. A cookie that is malformed, forged, too
// old, or that names no live session gives a new session and no error, and its id is never used again.
//
// echo-contrib takes this store as it is. For gin-contrib/sessions there is package gorillastore/gin.
package gorillastore

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

const month = 30 * 24 * 60 * 60 // seconds

// Store is a sessions.Store. It is safe for concurrent use once it is configured; a session is not, as with every store of
// gorilla/sessions.
//
// A session is ended by saving it with a negative Options.MaxAge, and that it was ended before is no error. If another
// request has renewed it meanwhile, the cookie is left alone, since the browser may have the new one by now.
//
// A session is renewed, which every login must do, by [Store.Renew] before the Save, or by setting its ID to "".
type Store struct {
	// Codecs sign the ids in cookies and, with two keys a pair, encrypt them. New makes them from the key pairs.
	Codecs []securecookie.Codec
	// Options are what new sessions get. The default is Path "/", 30 days, HttpOnly and SameSite=Lax. Set Secure if the site is
	// only on HTTPS, and use MaxAge to change the age.
	Options *sessions.Options
	// DefaultTTL is how long a session is kept after its last save if its MaxAge is 0, so that its cookie ends with the
	// browser's session. The default is 20 minutes.
	DefaultTTL time.Duration
	// Serializer turns values into what is stored. The default is GobSerializer.
	Serializer Serializer
	// EndWhenEmpty makes the Save of a session that has lost all its values end it, as a negative MaxAge does: for programs
	// that log out by clearing the values. The default is false.
	EndWhenEmpty bool

	adapter *adapter.Adapter
	records sync.Map // weak.Pointer[sessions.Session] to *record
}

var _ sessions.Store = (*Store)(nil)

// New returns a store that keeps sessions in store. The key pairs are those of sessions.NewCookieStore: an authentication
// key of 32 or 64 bytes, then optionally an encryption key of 16, 24 or 32 bytes; further pairs are older keys that are
// still accepted.
func New(store tombstore.Store, keyPairs ...[]byte) *Store {
	s := &Store{
		Codecs:     securecookie.CodecsFromPairs(keyPairs...),
		Options:    &sessions.Options{Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode},
		DefaultTTL: 20 * time.Minute,
		Serializer: GobSerializer{},
		adapter:    adapter.New(store),
	}
	s.MaxAge(month)
	return s
}

// With applies options of the adapter and returns s. adapter.WithLateRequests also refuses a login by a late request, unless
// the login calls Renew: nothing else tells it from another new session.
func (s *Store) With(opts ...adapter.Option) *Store {
	for _, opt := range opts {
		opt(s.adapter)
	}
	return s
}

// MaxAge sets how many seconds new sessions and their cookies live after the last save, and after how many a cookie is
// refused whatever its session. With 0 the cookie ends with the browser's session and is never too old.
func (s *Store) MaxAge(seconds int) {
	s.Options.MaxAge = seconds
	for _, codec := range s.Codecs {
		if c, ok := codec.(*securecookie.SecureCookie); ok {
			c.MaxAge(seconds)
		}
	}
}

// Get returns the session of this name that the request has, and always the same one.
func (s *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(s, name)
}

// New loads the session that the request's cookie names, or returns a new one. With an error the session is new too; if the
// error is that the sessions cannot be reached, saving it fails, since that would take the user's own session away.
func (s *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(s, name)
	options := *s.Options
	session.Options = &options
	session.IsNew = true
	cookie, err := r.Cookie(name)
	if err != nil {
		return session, nil
	}
	var id string
	if securecookie.DecodeMulti(name, cookie.Value, &id, s.Codecs...) != nil {
		return session, nil
	}
	rec := s.record(session)
	rec.id = id
	data, found, err := s.adapter.Load(r.Context(), &rec.request, id)
	if !found {
		if !errors.Is(err, tombstore.ErrCorrupt) { // that will not pass, so the session may be replaced
			rec.failed = err
		}
		return session, err
	}
	loaded := sessions.NewSession(s, name)
	if err := s.Serializer.Deserialize(data, loaded); err != nil {
		return session, err
	}
	session.ID, session.Values, session.IsNew = id, loaded.Values, false
	rec.saved(id, data, session)
	return session, nil
}

// Save stores the session and sets its cookie, or ends it and deletes the cookie. It returns nil and sets no cookie if the
// session was ended meanwhile, and tombstore.ErrConflict if another request has changed it and adapter.Conflict is set.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	rec := s.record(session)
	age := session.Options.MaxAge
	switch {
	case age < 0, s.EndWhenEmpty && rec.values > 0 && len(session.Values) == 0:
		return s.end(r, w, session, rec)
	case rec.failed != nil:
		return rec.failed
	}
	data, err := s.serialize(session, rec)
	if err != nil {
		return err
	}
	id, save := session.ID, s.adapter.Save
	if id == "" { // new, or renewed
		id, save = tombstore.NewID(), s.adapter.Rotate
	}
	cookie, err := securecookie.EncodeMulti(session.Name(), id, s.Codecs...)
	if err != nil {
		return err
	}
	ttl := s.DefaultTTL
	if age > 0 {
		ttl = time.Duration(age) * time.Second
	}
	err = save(r.Context(), &rec.request, id, data, ttl)
	if rec.refused = errors.Is(err, adapter.ErrRefused); rec.refused {
		dropCookie(w, session.Name())
		return nil
	}
	if err != nil {
		return err
	}
	session.ID = id
	rec.saved(id, data, session)
	http.SetCookie(w, sessions.NewCookie(session.Name(), cookie, session.Options))
	return nil
}

// end ends the session that the request came with, even if it could not be loaded, and deletes the cookie.
func (s *Store) end(r *http.Request, w http.ResponseWriter, session *sessions.Session, rec *record) error {
	id := cmp.Or(session.ID, rec.id)
	if id != "" {
		if err := s.adapter.End(r.Context(), &rec.request, id, tombstore.Logout); err != nil {
			return err
		}
	}
	session.ID, rec.id = "", ""
	rec.data, rec.values, rec.failed, rec.refused = nil, 0, nil, false
	var ended *tombstore.InvalidatedError
	if errors.As(rec.request.Gone(), &ended) && ended.Reason == tombstore.Rotated {
		dropCookie(w, session.Name()) // the browser may have that of the renewed session by now
		return nil
	}
	options := *session.Options
	options.MaxAge = -1
	http.SetCookie(w, sessions.NewCookie(session.Name(), "", &options))
	return nil
}

// Renew makes the next Save of session give it a new id and end the old one.
func (s *Store) Renew(session *sessions.Session) {
	session.ID = ""
	_ = s.adapter.End(context.Background(), &s.record(session).request, "", tombstore.Rotated) // does nothing but note it
}

// Refused reports whether the last Save of session was refused, because the session had been ended by another request.
func (s *Store) Refused(session *sessions.Session) bool { return s.record(session).refused }

// serialize returns what to store. If the values are what they were, that is what was stored: encoding them again may give
// other bytes, as gob writes maps in random order, and would turn a touch into a write.
func (s *Store) serialize(session *sessions.Session, rec *record) ([]byte, error) {
	if rec.data != nil && rec.values == len(session.Values) {
		before := sessions.NewSession(s, session.Name())
		err := s.Serializer.Deserialize(rec.data, before)
		if err == nil && reflect.DeepEqual(before.Values, session.Values) {
			return rec.data, nil
		}
	}
	return s.Serializer.Serialize(session)
}

// record is what the store knows of a session for the length of a request.
type record struct {
	request adapter.Request
	id      string // of the cookie, or that the session was saved under
	data    []byte // as loaded or saved
	values  int    // how many data holds
	failed  error  // why the session could not be loaded
	refused bool
}

func (rec *record) saved(id string, data []byte, session *sessions.Session) {
	rec.id, rec.data, rec.values = id, data, len(session.Values)
}

// record returns the record of a session. It is found by the session itself, which is the only thing that is the same
// wherever a request loads and saves: its http.Request is copied by middleware, a context derived from an earlier one lacks
// what gorilla has put there, and Values and Options are replaced by programs. The pointer is weak, so the record goes with
// the session.
func (s *Store) record(session *sessions.Session) *record {
	key := weak.Make(session)
	if rec, ok := s.records.Load(key); ok {
		return rec.(*record)
	}
	rec := &record{}
	s.records.Store(key, rec)
	runtime.AddCleanup(session, func(key weak.Pointer[sessions.Session]) { s.records.Delete(key) }, key)
	return rec
}

// dropCookie takes back a cookie that an earlier Save of the same request has set.
func dropCookie(w http.ResponseWriter, name string) {
	const header = "Set-Cookie"
	kept := slices.DeleteFunc(w.Header()[header], func(c string) bool { return strings.HasPrefix(c, name+"=") })
	if len(kept) == 0 {
		w.Header().Del(header)
		return
	}
	w.Header()[header] = kept
}
