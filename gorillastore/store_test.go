package gorillastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

var key = []byte("0123456789abcdef0123456789abcdef")

// bed is a Store on memory.
type bed struct {
	*testing.T
	*Store
	memory *tombstore.MemoryStore
	events []tombstore.Event
}

func newBed(t *testing.T, opts ...adapter.Option) *bed {
	t.Helper()
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	b := &bed{T: t, memory: memory}
	hook := adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
		e.Err = nil
		b.events = append(b.events, e)
	})
	b.Store = New(memory, key).With(append(opts, hook)...)
	return b
}

// login returns the cookie of a new session of alice.
func (b *bed) login() *http.Cookie {
	b.Helper()
	q := b.request(nil)
	q.session.Values["user"] = "alice"
	cookies := q.save()
	require.Len(b, cookies, 1)
	return cookies[0]
}

// request is a request that has loaded its session.
type request struct {
	b       *bed
	r       *http.Request
	session *sessions.Session
	err     error
}

func (b *bed) request(cookie *http.Cookie) *request {
	b.Helper()
	r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/", nil)
	if cookie != nil {
		r.AddCookie(cookie)
	}
	session, err := b.Get(r, "s")
	require.NotNil(b, session)
	return &request{b, r, session, err}
}

func (q *request) user() any { return q.session.Values["user"] }

// save saves the session and returns the cookies that it sets.
func (q *request) save() []*http.Cookie {
	q.b.Helper()
	w := httptest.NewRecorder()
	require.NoError(q.b, q.session.Save(q.r, w))
	return w.Result().Cookies()
}

// live returns the live sessions.
func (b *bed) live() (live []tombstore.Entry) {
	b.Helper()
	for e, err := range b.memory.List(b.Context()) {
		require.NoError(b, err)
		live = append(live, e)
	}
	return live
}

func TestNew_Defaults(t *testing.T) {
	b := newBed(t)
	q := b.request(nil)
	require.NoError(t, q.err)
	require.True(t, q.session.IsNew)
	require.Empty(t, q.session.ID)
	cookie := q.save()[0]
	require.False(t, q.session.ID == "" || cookie.Value == q.session.ID)
	require.Equal(t, "/", cookie.Path)
	require.Equal(t, 30*24*60*60, cookie.MaxAge)
	require.True(t, cookie.HttpOnly)
	require.Equal(t, http.SameSiteLaxMode, cookie.SameSite)

	again := b.request(cookie)
	require.False(t, again.session.IsNew)
	require.Equal(t, q.session.ID, again.session.ID)
}

// The cookie of another store with the same keys is accepted.
func TestNew_CookieOfOthers(t *testing.T) {
	b := newBed(t)
	codecs := securecookie.CodecsFromPairs(key)
	other := tombstore.NewID()
	data, err := GobSerializer{}.Serialize(&sessions.Session{Values: map[any]any{"user": "carol"}})
	require.NoError(t, err)
	_, err = b.memory.Write(t.Context(), other, data, time.Hour)
	require.NoError(t, err)
	value, err := securecookie.EncodeMulti("s", other, codecs...)
	require.NoError(t, err)
	cookie := &http.Cookie{Name: "s", Value: value}
	require.Equal(t, "carol", b.request(cookie).user())
}

// gob writes a map in random order; nevertheless unchanged values are not written again.
func TestSave_Unchanged(t *testing.T) {
	for name, play := range map[string]struct {
		serializer Serializer
		value      any
	}{
		"gob":       {GobSerializer{}, "x"},
		"int32":     {GobSerializer{}, int32(1)},
		"slow gob":  {GobSerializer{}, []any{"x"}},
		"JSON":      {JSONSerializer{}, []any{"x"}},
		"a pointer": {&struct{ Serializer }{GobSerializer{}}, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.Serializer = play.serializer
			q := b.request(nil)
			q.session.Values["value"] = play.value
			for _, key := range []string{"a", "b", "c", "d", "e", "f", "g"} {
				q.session.Values[key] = key
			}
			cookie := q.save()[0]
			before := b.live()
			q.save()
			q = b.request(cookie)
			q.session.Values["x"] = 1.0
			delete(q.session.Values, "x")
			require.Empty(t, q.save())
			require.Equal(t, before, b.live())

			const full = month * time.Second
			require.NoError(t, b.memory.Touch(t.Context(), q.session.ID, full*85/100))
			q = b.request(cookie)
			require.Equal(t, month, q.save()[0].MaxAge)
			s, err := b.memory.Read(t.Context(), q.session.ID, tombstore.WithExpiry())
			require.NoError(t, err)
			require.WithinDuration(t, time.Now().Add(full), s.ExpiresAt, time.Hour)
			require.Equal(t, before[0].Version, s.Version, "it was touched, not written")
			q.session.Values["x"] = 1.0
			q.save()
			require.NotEqual(t, before, b.live())
			require.Equal(t, q.session.Values, b.request(cookie).session.Values)
		})
	}
}

func TestSave_TTL(t *testing.T) {
	b := newBed(t)
	b.DefaultTTL = time.Nanosecond // rounded up where it is stored on a server
	q := b.request(b.login())
	q.session.Options.MaxAge = 0
	cookie := q.save()[0]
	require.Zero(t, cookie.MaxAge)
	require.True(t, cookie.Expires.IsZero())
	require.Empty(t, b.live())
}

func TestSave_Rotates(t *testing.T) {
	for name, renew := range map[string]func(*Store, *sessions.Session){
		"empty id": func(_ *Store, session *sessions.Session) { session.ID = "" },
		"Renew":    (*Store).Renew,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			old := b.login()
			q := b.request(old)
			was := q.session.ID
			renew(b.Store, q.session)
			cookie := q.save()[0]
			require.NotEqual(t, was, q.session.ID)
			require.Nil(t, b.request(old).user())
			require.Equal(t, "alice", b.request(cookie).user())
			require.Len(t, b.live(), 1)
			_, err := b.memory.Read(t.Context(), was)
			var ended *tombstore.InvalidatedError
			require.ErrorAs(t, err, &ended)
			require.Equal(t, tombstore.Rotated, ended.Reason)
		})
	}
}

// The request that saves need not be the one that loaded, nor have its context.
func TestSave_AnotherRequest(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	q, stranger := b.request(cookie), b.request(nil)
	id := q.session.ID
	require.NoError(t, b.memory.Invalidate(t.Context(), id))
	q.session.ID = ""
	q.r = stranger.r
	require.Empty(t, q.save())
	require.Empty(t, b.live())
	require.True(t, b.Refused(q.session))
	require.Equal(t, []tombstore.Event{
		{Verb: "rotate", Outcome: tombstore.OutcomeRefused, Reason: tombstore.Logout, Ref: tombstore.Ref(id)},
	}, b.events)
	text, err := json.Marshal(b.events)
	require.NoError(t, err)
	require.NotContains(t, string(text), id)
}

// A cookie that the request has set before it was refused is taken back; others stay.
func TestSave_RefusedTakesCookieBack(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	for _, other := range []string{"", "other=1"} {
		q := b.request(cookie)
		w := httptest.NewRecorder()
		if other != "" {
			w.Header().Set("Set-Cookie", other)
		}
		require.NoError(t, q.session.Save(q.r, w))
		require.False(t, b.Refused(q.session))
		require.NoError(t, b.memory.Invalidate(t.Context(), q.session.ID))
		q.session.Values["x"] = true
		require.NoError(t, sessions.Save(q.r, w))
		require.True(t, b.Refused(q.session))
		require.Equal(t, other, w.Header().Get("Set-Cookie"))
		cookie = b.login()
	}
}

func TestSave_SeveralSessions(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	q := b.request(cookie)
	second, err := b.Get(q.r, "t")
	require.NoError(t, err)
	second.Values["user"] = "bob"
	require.NoError(t, b.memory.Invalidate(t.Context(), q.session.ID))
	q.session.Values["x"] = true
	w := httptest.NewRecorder()
	require.NoError(t, sessions.Save(q.r, w))
	require.True(t, b.Refused(q.session))
	require.False(t, b.Refused(second))
	require.Len(t, w.Result().Cookies(), 1)
	require.Len(t, b.live(), 1)
}

// With WithLateRequests a login is served if it says that it is one.
func TestSave_LateLogin(t *testing.T) {
	b := newBed(t, adapter.WithLateRequests(time.Hour))
	cookie := b.login()
	q := b.request(cookie)
	q.session.Options.MaxAge = -1
	q.save()
	late := b.request(cookie)
	require.Empty(t, late.save())
	require.True(t, b.Refused(late.session))
	late = b.request(cookie)
	b.Renew(late.session)
	require.Len(t, late.save(), 1)
}

// What cannot be encoded is an error, and nothing is stored.
func TestSave_Unencodable(t *testing.T) {
	b := newBed(t)
	q := b.request(nil)
	q.session.Values["x"] = func() {}
	require.Error(t, q.session.Save(q.r, httptest.NewRecorder()))
	b.Serializer = JSONSerializer{}
	q.session.Values = map[any]any{1: 1}
	require.Error(t, q.session.Save(q.r, httptest.NewRecorder()))
	b.Codecs = nil
	q.session.Values = nil
	require.Error(t, q.session.Save(q.r, httptest.NewRecorder()))
	require.Empty(t, b.live())
}

// A session that is not what it should be is replaced by the next save.
func TestNew_Undecodable(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	b.Serializer = JSONSerializer{}
	q := b.request(cookie)
	require.Error(t, q.err)
	require.True(t, q.session.IsNew)
	require.Empty(t, q.session.ID)
	require.Len(t, q.save(), 1)
	require.Len(t, b.live(), 1)
	require.NoError(t, b.request(q.save()[0]).err)
}

// While the sessions cannot be reached, no new one takes the place of the user's.
func TestNew_Failure(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	down := errors.New("down")
	good := b.adapter
	b.adapter = adapter.New(failing{b.memory, down})
	q := b.request(cookie)
	require.ErrorIs(t, q.err, down)
	require.ErrorIs(t, b.Failed(q.session), down)
	require.True(t, q.session.IsNew)
	require.Empty(t, q.session.ID)
	b.adapter = good
	w := httptest.NewRecorder()
	require.ErrorIs(t, q.session.Save(q.r, w), down)
	require.Empty(t, w.Result().Cookies())
	require.Equal(t, "alice", b.request(cookie).user())
	q.session.Options.MaxAge = -1 // a logout needs no more than the id
	require.Equal(t, -1, q.save()[0].MaxAge)
	require.NoError(t, b.Failed(q.session))
	require.Empty(t, b.live())
}

// A record that nobody can read stays so; the user gets on with a new session.
func TestNew_Corrupt(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	good := b.adapter
	b.adapter = adapter.New(failing{b.memory, tombstore.ErrCorrupt})
	q := b.request(cookie)
	require.ErrorIs(t, q.err, tombstore.ErrCorrupt)
	b.adapter = good
	require.Len(t, q.save(), 1)
	require.NotEqual(t, cookie.Value, q.save()[0].Value)
}

// The cookie is deleted only once the session is ended.
func TestSave_EndFails(t *testing.T) {
	b := newBed(t)
	q := b.request(b.login())
	q.session.Options.MaxAge = -1
	w, good, down := httptest.NewRecorder(), b.adapter, errors.New("down")
	b.adapter = adapter.New(failing{b.memory, down})
	require.ErrorIs(t, q.session.Save(q.r, w), down)
	require.Empty(t, w.Result().Cookies())
	require.Len(t, b.live(), 1)
	b.adapter = good
	require.Len(t, q.save(), 1)
	require.Empty(t, b.live())
}

type failing struct {
	tombstore.Renewer
	err error
}

func (f failing) Read(context.Context, string, ...tombstore.ReadOption) (tombstore.Session, error) {
	return tombstore.Session{}, f.err
}

func (f failing) Invalidate(context.Context, string, ...tombstore.InvalidateOption) error {
	return f.err
}

// Without EndWhenCleared a session without values is one.
func TestSave_NotCleared(t *testing.T) {
	b := newBed(t)
	empty := b.request(b.login())
	require.Len(t, empty.session.Values, 1)
	clear(empty.session.Values)
	require.Positive(t, empty.save()[0].MaxAge)
	require.Len(t, b.live(), 1)
}

func TestSave_EndWhenCleared(t *testing.T) {
	const ended, kept, moved, same = "ended", "kept", "moved", "the same"
	flash := func(s *sessions.Session) { s.AddFlash("hello") }
	user := func(s *sessions.Session) { s.Values["user"] = "alice" }
	for name, play := range map[string]struct {
		before, do func(s *sessions.Session)
		want       string
	}{
		"cleared":                {user, func(s *sessions.Session) { clear(s.Values) }, ended},
		"no values":              {user, func(s *sessions.Session) { s.Values = nil }, ended},
		"cleared, with flash":    {user, func(s *sessions.Session) { clear(s.Values); flash(s) }, moved},
		"cleared, with new user": {user, func(s *sessions.Session) { clear(s.Values); user(s) }, moved},
		"cleared flashes":        {flash, func(s *sessions.Session) { clear(s.Values) }, ended},
		"cleared nothing":        {nil, func(s *sessions.Session) { clear(s.Values) }, ended},
		"last value gone":        {user, func(s *sessions.Session) { delete(s.Values, "user") }, ended},
		"last value, with flash": {user, func(s *sessions.Session) { delete(s.Values, "user"); flash(s) }, moved},
		"another value in place": {user, func(s *sessions.Session) {
			delete(s.Values, "user")
			s.Values["x"] = 1
		}, kept},
		"flash shown":             {flash, func(s *sessions.Session) { s.Flashes() }, kept},
		"flash shown, of a login": {flash, func(s *sessions.Session) { s.Flashes(); user(s) }, kept},
		"flash shown, of a user": {func(s *sessions.Session) {
			user(s)
			flash(s)
		}, func(s *sessions.Session) { s.Flashes() }, kept},
		"flash added":   {flash, flash, kept},
		"nothing":       {user, func(*sessions.Session) {}, same},
		"nothing in it": {nil, func(*sessions.Session) {}, same},
	} {
		for _, once := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, same request: %v", name, once), func(t *testing.T) {
				b := newBed(t)
				b.EndWhenCleared = true
				q := b.request(nil)
				if play.before != nil {
					play.before(q.session)
				}
				if cookie := q.save()[0]; !once {
					q = b.request(cookie)
				}
				id := q.session.ID
				play.do(q.session)
				cookies := q.save()
				if play.want == same && !once {
					require.Empty(t, cookies)
				} else {
					require.Len(t, cookies, 1)
				}
				_, err := b.memory.Read(t.Context(), id)
				if play.want == kept || play.want == same {
					require.NoError(t, err)
					require.Equal(t, id, q.session.ID)
					return
				}
				require.ErrorIs(t, err, tombstore.ErrInvalidated)
				if play.want == ended {
					require.Negative(t, cookies[0].MaxAge)
					require.Empty(t, b.live())
					return
				}
				again := b.request(cookies[0])
				require.False(t, again.session.IsNew)
				require.Equal(t, q.session.Values, again.session.Values)
				require.NotEqual(t, id, q.session.ID)
			})
		}
	}
}

func TestRecords_GoWithTheirSessions(t *testing.T) {
	b := newBed(t)
	for range 100 {
		b.request(b.login()).save()
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		left := 0
		b.records.Range(func(_, _ any) bool { left++; return true })
		return left == 0
	}, time.Minute, time.Millisecond)
}
