// Package gorillastore is a store for gorilla/sessions whose ended sessions stay ended.
//
// In an existing program it replaces the call that makes the store:
//
//	backend, err := tombstore.Open("redis://127.0.0.1:6379")
//	…
//	store := gorillastore.New(backend, []byte(authenticationKey))
//
// With the key pairs that boj/redistore had, the browsers' cookies stay valid, and the sessions
// that they name with adapter.WithMigration; otherwise users log in once more. The README lists
// what else differs.
//
// A session that a request loaded is saved only if it is still live. If it was ended meanwhile, by
// a logout, a renewal in another request or an administrator, Save stores nothing, sets no cookie
// and returns nil, so that the request is answered as if it had been saved. [Store.Refused] and
// adapter.WithOnRefused report the refusal. A cookie that is malformed, forged, or that names no
// live session gives a new session and no error, and its id is never used again.
//
// A Save that has nothing to do sends nothing, and sets no cookie: see [Store.Save].
//
// What Save begins it carries out, even if the client has gone away or http.TimeoutHandler has
// given up: the session is saved, or ended. There is one exception. A renewal is not begun then,
// and Save returns the context's error, because the browser would not get the new cookie, and the
// old one would be dead: whoever clicks twice on a login's button would be logged out by the first
// click.
//
// [Store.Login] instead of a renewal says whose the session is, so that its owner can be logged out
// everywhere ([Store.LogoutEverywhere]).
//
// echo-contrib takes this store as it is. For gin-contrib/sessions there is package
// gorillastore/gin.
package gorillastore

import (
	"bytes"
	"cmp"
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
	"github.com/tombstore/tombstore/internal/cookieage"
	"github.com/tombstore/tombstore/internal/gobmap"
)

const month = 30 * 24 * 60 * 60 // seconds

// Store is a sessions.Store. It is safe for concurrent use once it is configured; a session is not,
// as with every store of gorilla/sessions.
//
// A session is ended by saving it with a negative Options.MaxAge, and that it was ended before is
// no error. If another request has renewed it meanwhile, the renewed session is ended.
//
// A session is renewed, which every login must do, by [Store.Renew] before the Save, or by setting
// its ID to "". A login by [Store.Login] makes it one of the user's, who can be logged out
// everywhere.
type Store struct {
	// Codecs sign the ids in cookies and, with two keys a pair, encrypt them. New makes them from
	// the key pairs, for cookies of any age: a cookie is worth as much as the session that it
	// names. To limit that age put codecs of your own here, and leave those of New as they are:
	// a Save that has nothing to do sets no cookie anew which New's first codec has signed.
	Codecs []securecookie.Codec
	// Options are what new sessions get, and sessions without Options of their own. The default,
	// and the meaning of nil, is Path "/", 30 days, HttpOnly and SameSite=Lax. Set Secure if the
	// site is only on HTTPS.
	Options *sessions.Options
	// DefaultTTL is how long a session is kept after its last save if its MaxAge is 0, so that its
	// cookie ends with the browser's session. The default is 20 minutes.
	DefaultTTL time.Duration
	// Serializer turns values into what is stored. The default is GobSerializer.
	Serializer Serializer
	// EndWhenCleared makes the Save of a session that has lost its values end it, for programs that
	// log out in that way. A session has lost its values
	//
	//   - if all of them were taken away at once, by clear(session.Values), by a loop, or by another
	//     map in their place, even if there were none, or
	//   - if none is left but flashes (lists, []any), and it was loaded or last saved with others.
	//
	// What was added since is saved as a new session under a new id: a flash that says goodbye. A
	// session that has shown its last flash is not ended. While this is set, Values of a session
	// that a cookie named or that was saved have a further entry, which is not stored; its absence
	// shows that everything was taken away. The default is false.
	EndWhenCleared bool
	// EndAtMaxAgeZero makes the Save of a session whose MaxAge is 0 end it, as a negative one does:
	// for programs that rely on what boj/redistore before v2 and gin-contrib/sessions/redis do.
	// Such programs cannot have cookies that end with the browser's session. The default is false.
	EndAtMaxAgeZero bool

	adapter *adapter.Adapter
	ageless securecookie.Codec // the first of New's
	records sync.Map           // weak.Pointer[sessions.Session] to *record
}

var _ sessions.Store = (*Store)(nil)

// New returns a store that keeps sessions in store. The key pairs are those of
// sessions.NewCookieStore: an authentication key of 32 or 64 bytes, then optionally an encryption
// key of 16, 24 or 32 bytes; further pairs are older keys that are still accepted.
func New(store tombstore.Renewer, keyPairs ...[]byte) *Store {
	codecs := securecookie.CodecsFromPairs(keyPairs...)
	for _, codec := range codecs {
		if c, ok := codec.(*securecookie.SecureCookie); ok {
			c.MaxAge(0) // else it is a second limit, for sessions that may live longer
			c.SetSerializer(cookieSerializer{})
		}
	}
	s := &Store{
		Codecs:     codecs,
		Options:    defaultOptions(),
		DefaultTTL: 20 * time.Minute,
		Serializer: GobSerializer{},
	}
	s.adapter = adapter.New(store, adapter.WithDecode(s.decode))
	if len(codecs) > 0 {
		s.ageless = codecs[0]
	}
	return s
}

func defaultOptions() *sessions.Options {
	return &sessions.Options{
		Path: "/", MaxAge: month, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// With applies options of the adapter and returns s. adapter.WithLateRequests also refuses a login
// by a late request, unless the login calls Renew: nothing else tells it from another new session.
func (s *Store) With(opts ...adapter.Option) *Store {
	for _, opt := range opts {
		opt(s.adapter)
	}
	return s
}

// MaxAge sets how many seconds new sessions and their cookies live after the last save. With 0 the
// cookie ends with the browser's session.
func (s *Store) MaxAge(seconds int) {
	if s.Options == nil {
		s.Options = defaultOptions()
	}
	s.Options.MaxAge = seconds
}

// Get returns the session of this name that the request has, and always the same one.
func (s *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(s, name)
}

// New loads the session that the request's cookie names, or returns a new one. With an error the
// session is new too; if the error is that the sessions cannot be reached, saving it fails, since
// that would take the user's own session away.
func (s *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	session := sessions.NewSession(s, name)
	session.Options = s.newOptions()
	session.IsNew = true
	cookie, err := r.Cookie(name)
	if err != nil {
		return session, nil
	}
	var id string
	current := len(s.Codecs) > 0 && s.Codecs[0] == s.ageless &&
		s.ageless.Decode(name, cookie.Value, &id) == nil
	if !current && securecookie.DecodeMulti(name, cookie.Value, &id, s.Codecs...) != nil {
		return session, nil
	}
	rec := s.record(session)
	rec.id = id
	if current {
		options := *session.Options
		rec.options = &options
	}
	defer s.mark(session, rec)
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
	rec.data = data
	if age := rec.request.CookieAge(); age > 0 {
		rec.maxAge = cookieage.Seconds(age)
		session.Options.MaxAge = rec.maxAge
		if rec.options != nil {
			rec.options.MaxAge = rec.maxAge
		}
	}
	return session, nil
}

// newOptions returns what a session gets.
func (s *Store) newOptions() *sessions.Options {
	if s.Options == nil {
		return defaultOptions()
	}
	options := *s.Options
	return &options
}

// Save stores the session and sets its cookie, or ends it and deletes the cookie. It returns nil
// and sets no cookie if the session was ended meanwhile, and tombstore.ErrConflict if another
// request has changed it and adapter.Conflict is set. With tombstore.ErrUnacknowledged from the
// renewal of a session the session was stored and the cookie set; from its end, the cookie is left
// for another try.
//
// A session whose values and Options are what they were when it was loaded, and which has used up
// less than a tenth of its time (adapter.WithTouchThreshold), is left alone: nothing is sent, and
// no cookie is set, since it might take the place of one that a login has set meanwhile. That the
// session was ended meanwhile is then not found out.
//
// A new session, and one that gets a new id, whose Options.MaxAge is not that of the Store's
// Options, has it as an idle timeout of its own from then on, for "remember me" and for
// administrators: Options have it again wherever the session is loaded, and under the same id no
// Save changes it, nor that of the cookie. A Renew leaves it as it is if the program does. Login
// reads it when it is called, and else begins with the Store's.
func (s *Store) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	rec := s.record(session)
	if session.Options == nil {
		session.Options = s.newOptions()
	}
	age := session.Options.MaxAge
	if age < 0 || age == 0 && s.EndAtMaxAgeZero {
		return s.end(r, w, session, rec)
	}
	if rec.next == "" && s.cleared(session, rec) {
		err := s.end(r, w, session, rec)
		if err != nil || len(session.Values) == 0 {
			return err
		}
	}
	return s.save(r, w, session, rec)
}

func (s *Store) save(r *http.Request, w http.ResponseWriter, session *sessions.Session, rec *record) error {
	if rec.failed != nil {
		return rec.failed
	}
	data, err := s.serialize(session, rec)
	if err != nil {
		return err
	}
	id, save := session.ID, s.adapter.Save
	if id == "" { // new, or renewed
		id, save = cmp.Or(rec.next, tombstore.NewID()), s.adapter.Rotate
		if rec.late(w, session.Name()) {
			rec.refused = true
			return nil
		}
	}
	if session.ID == "" && rec.next == "" {
		if l, another := s.lifetime(session, rec); another {
			if err := rec.request.SetLifetime(l); err != nil {
				return err
			}
		}
	}
	cookie, err := securecookie.EncodeMulti(session.Name(), id, s.Codecs...)
	if err != nil {
		return err
	}
	ttl := s.DefaultTTL
	if age := session.Options.MaxAge; age > 0 {
		ttl = time.Duration(age) * time.Second
	}
	due := true
	if id == session.ID && rec.options != nil && *rec.options == *session.Options {
		due, err = s.adapter.SaveIfDue(r.Context(), &rec.request, id, data, ttl)
	} else {
		err = save(r.Context(), &rec.request, id, data, ttl)
	}
	if rec.refused = errors.Is(err, adapter.ErrRefused); rec.refused {
		rec.dropCookie(w)
		return nil
	}
	if err != nil && !errors.Is(err, tombstore.ErrUnacknowledged) {
		return err
	}
	session.ID, rec.id, rec.next, rec.data = id, id, "", data
	s.mark(session, rec)
	if age := rec.request.CookieAge(); age > 0 {
		rec.maxAge = cookieage.Seconds(age)
		session.Options.MaxAge = rec.maxAge
	}
	if due {
		rec.setCookie(w, sessions.NewCookie(session.Name(), cookie, session.Options))
	}
	return err
}

// lifetime returns what a session is to have of its own when it gets an id, and whether that is
// something else than it has.
func (s *Store) lifetime(session *sessions.Session, rec *record) (l tombstore.Lifetime, another bool) {
	age, usual := session.Options.MaxAge, s.newOptions().MaxAge
	if age > 0 && age != usual {
		l.Idle = time.Duration(age) * time.Second
	}
	return l, age != cmp.Or(rec.maxAge, usual)
}

// end ends the session that the request came with, even if it could not be loaded, and deletes the
// cookie.
func (s *Store) end(r *http.Request, w http.ResponseWriter, session *sessions.Session, rec *record) error {
	if err := s.adapter.End(r.Context(), &rec.request, cmp.Or(session.ID, rec.id)); err != nil {
		return err
	}
	session.ID, rec.id, rec.next = "", "", ""
	rec.data, rec.values, rec.marked, rec.failed, rec.refused = nil, 0, false, nil, false
	delete(session.Values, marker{})
	if session.Options.MaxAge == rec.maxAge && rec.maxAge != 0 { // what follows is another session
		session.Options.MaxAge = s.newOptions().MaxAge
	}
	rec.maxAge = 0
	if errors.Is(rec.request.Gone(), tombstore.ErrInvalidated) { // the browser may have that of a later login
		rec.dropCookie(w)
		return nil
	}
	options := *session.Options
	options.MaxAge = -1
	rec.setCookie(w, sessions.NewCookie(session.Name(), "", &options))
	return nil
}

// Renew makes the next Save of session give it a new id and end the old one.
func (s *Store) Renew(session *sessions.Session) {
	session.ID = ""
	rec := s.record(session)
	rec.renews = true
	rec.request.Renew()
}

// RenewWithGrace gives session a new id and saves it, for a renewal that nobody has asked for, such
// as one every quarter of an hour: requests that are under way with the old cookie go on reading
// the session for d, at most a minute, while what they change is refused and a logout by them is
// one. It does nothing with a session that is new. It is never for a login, since whoever has
// stolen or planted the old cookie reads as well; that is why it saves at once, so that a login
// later in the request is a renewal of its own, and ends the grace. The error wraps
// [errors.ErrUnsupported] if the store seals its data, which the old cookie does not open: use
// Renew then.
func (s *Store) RenewWithGrace(
	r *http.Request, w http.ResponseWriter, session *sessions.Session, d time.Duration,
) error {
	rec := s.record(session)
	if !rec.request.Holds() {
		return rec.failed
	}
	s.Renew(session)
	rec.request.Grace(d)
	defer rec.request.Grace(0) // the next Save may be a login's
	return s.Save(r, w, session)
}

// Refused reports whether the last Save of session was refused, because the session had been ended
// by another request, or renewed by another Session of this one.
func (s *Store) Refused(session *sessions.Session) bool { return s.record(session).refused }

// Failed returns the error for which Get could not look for the session, or nil: for libraries that
// only log it, and show the handler a session without values, as that of a visitor.
func (s *Store) Failed(session *sessions.Session) error { return s.record(session).failed }

// marker is the key of an entry that Values have with EndWhenCleared. No program knows it, so it
// goes only with everything else.
type marker struct{}

// mark notes what the session's values are before the program changes them.
func (s *Store) mark(session *sessions.Session, rec *record) {
	if !s.EndWhenCleared {
		return
	}
	if session.Values == nil {
		session.Values = map[any]any{}
	}
	rec.values, rec.marked = countValues(session), true
	session.Values[marker{}] = true
}

// cleared reports whether the session has lost its values; see EndWhenCleared.
func (s *Store) cleared(session *sessions.Session, rec *record) bool {
	_, marked := session.Values[marker{}]
	return s.EndWhenCleared && rec.marked && (!marked || rec.values > 0 && countValues(session) == 0)
}

// countValues returns how many values of a session are not flashes.
func countValues(session *sessions.Session) (n int) {
	for key, value := range session.Values {
		if _, flashes := value.([]any); !flashes && key != any(marker{}) {
			n++
		}
	}
	return n
}

// serialize returns what to store. If the values are what they were, that is what was stored: other
// bytes would turn a touch into a write, and gob writes maps in random order.
func (s *Store) serialize(session *sessions.Session, rec *record) ([]byte, error) {
	if mark, marked := session.Values[marker{}]; marked {
		delete(session.Values, marker{})
		defer func() { session.Values[marker{}] = mark }()
	}
	if _, ok := s.Serializer.(GobSerializer); ok {
		if data, ok := gobmap.Encode(session.Values); ok { // the same values are the same bytes
			return data, nil
		}
	}
	data, err := s.Serializer.Serialize(session)
	if err != nil || rec.data == nil || bytes.Equal(data, rec.data) {
		return data, err
	}
	same, known := gobmap.Same(data, rec.data)
	if !known {
		before := sessions.NewSession(s, session.Name())
		err = s.Serializer.Deserialize(rec.data, before)
		same = err == nil && reflect.DeepEqual(before.Values, session.Values)
	}
	if same {
		return rec.data, nil
	}
	return data, nil
}

// decode returns an error if data is not a session of this Serializer's.
func (s *Store) decode(data []byte) error {
	return s.Serializer.Deserialize(data, sessions.NewSession(s, ""))
}

// record is what the store knows of a session for the length of a request.
type record struct {
	request adapter.Request
	id      string // of the cookie, or that the session was saved under
	next    string // that a login has reserved for the next Save
	data    []byte // as loaded or saved
	values  int    // with marked: how many were no flashes
	marked  bool   // the session was given a marker
	renews  bool   // Renew was called
	failed  error  // why the session could not be loaded
	refused bool
	maxAge  int               // that the session has of its own, or 0
	options *sessions.Options // as loaded, if Save would sign the id as the cookie is signed
	cookie  string            // "name=value" of the cookie that was set
}

// late reports whether a new session comes too late for this response: the request's own session
// has ended, and another Session of this request has set the cookie of what has become of it.
func (rec *record) late(w http.ResponseWriter, name string) bool {
	if rec.id == "" || rec.data != nil || rec.renews {
		return false
	}
	return slices.ContainsFunc(w.Header()[setCookie], func(line string) bool {
		value, ok := strings.CutPrefix(line, name+"=")
		return ok && value != "" && value[0] != ';' && !rec.hasSet(line)
	})
}

const setCookie = "Set-Cookie"

// setCookie sets a cookie in place of the one that an earlier Save of the session has set.
func (rec *record) setCookie(w http.ResponseWriter, cookie *http.Cookie) {
	rec.dropCookie(w)
	line := cookie.String()
	w.Header().Add(setCookie, line)
	rec.cookie, _, _ = strings.Cut(line, ";")
}

// dropCookie takes back the cookie that an earlier Save of the session has set. One of the same
// name that another Session of the request has set stays: it may be that of a login.
func (rec *record) dropCookie(w http.ResponseWriter) {
	lines := w.Header()[setCookie]
	for i, line := range slices.Backward(lines) {
		if !rec.hasSet(line) {
			continue
		}
		if lines = slices.Delete(lines, i, i+1); len(lines) == 0 {
			w.Header().Del(setCookie)
		} else {
			w.Header()[setCookie] = lines
		}
		break
	}
	rec.cookie = ""
}

// hasSet reports whether a Set-Cookie line is the session's own.
func (rec *record) hasSet(line string) bool {
	pair, _, _ := strings.Cut(line, ";")
	return rec.cookie != "" && pair == rec.cookie
}

// record returns the record of a session. It is found by the session itself, which is the only
// thing that is the same wherever a request loads and saves: its http.Request is copied by
// middleware, a context derived from an earlier one lacks what gorilla has put there, and Values
// and Options are replaced by programs. The pointer is weak, so the record goes with the session.
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
