package gorillastore

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

var olderKey = []byte("fedcba9876543210fedcba9876543210")

// A cookie that would be another one than the browser has goes out, although nothing has changed.
func TestSave_UnchangedNeedsCookie(t *testing.T) {
	options := func(change func(o *sessions.Options)) func(b *bed, q *request) {
		return func(_ *bed, q *request) { change(q.session.Options) }
	}
	for name, change := range map[string]func(b *bed, q *request){
		"Path":     options(func(o *sessions.Options) { o.Path = "/shop" }),
		"Domain":   options(func(o *sessions.Options) { o.Domain = "example.com" }),
		"MaxAge":   options(func(o *sessions.Options) { o.MaxAge-- }),
		"Secure":   options(func(o *sessions.Options) { o.Secure = true }),
		"HttpOnly": options(func(o *sessions.Options) { o.HttpOnly = false }),
		"SameSite": options(func(o *sessions.Options) { o.SameSite = http.SameSiteStrictMode }),
		"other Options": func(_ *bed, q *request) {
			q.session.Options = &sessions.Options{Path: "/", MaxAge: month, HttpOnly: true}
		},
		"a second Save": func(_ *bed, q *request) {
			q.session.Values["user"] = "carol"
			q.save()
			q.session.Values["user"] = "alice"
			q.save()
		},
		"renewed before": func(b *bed, q *request) {
			b.Renew(q.session)
			q.save()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			cookie := b.login()
			require.Empty(t, b.request(cookie).save())
			q := b.request(cookie)
			change(b, q)
			require.Len(t, q.save(), 1)
		})
	}
}

// What an earlier Save of the request has set stays in its response.
func TestSave_UnchangedKeepsCookies(t *testing.T) {
	b := newBed(t)
	q, w := b.request(b.login()), httptest.NewRecorder()
	b.Renew(q.session)
	require.NoError(t, q.session.Save(q.r, w))
	require.NoError(t, q.session.Save(q.r, w))
	require.Len(t, w.Result().Cookies(), 1)
	require.Equal(t, "alice", b.request(w.Result().Cookies()[0]).user())

	other := b.request(b.login())
	w = httptest.NewRecorder()
	http.SetCookie(w, &http.Cookie{Name: "s", Value: "by hand"})
	require.NoError(t, other.session.Save(other.r, w))
	require.Len(t, w.Result().Cookies(), 1)
}

// A cookie that is signed by an older key, or by a codec that lets it age, is signed anew.
func TestSave_UnchangedSignsAnew(t *testing.T) {
	own := securecookie.New(key, nil)
	for name, change := range map[string]func(s *Store){
		"key": func(s *Store) {
			newer := New(s.adapter.Store(), olderKey, nil, key)
			s.Codecs, s.ageless = newer.Codecs, newer.ageless
		},
		"codec": func(s *Store) { s.Codecs = []securecookie.Codec{own} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			cookie := b.login()
			change(b.Store)
			q := b.request(cookie)
			require.Equal(t, "alice", q.user())
			anew := q.save()
			require.Len(t, anew, 1)
			var id string
			require.NoError(t, b.Codecs[0].Decode("s", anew[0].Value, &id))
			require.Equal(t, q.session.ID, id)
			if name == "key" {
				require.Empty(t, b.request(anew[0]).save())
			} else {
				require.Len(t, b.request(anew[0]).save(), 1)
			}
		})
	}
}

// A session that was ended meanwhile is found out by the request that sets its cookie, and only then.
func TestSave_UnchangedEnded(t *testing.T) {
	b := newBed(t)
	cookie := b.login()
	quiet, loud := b.request(cookie), b.request(cookie)
	require.NoError(t, b.memory.Invalidate(t.Context(), quiet.session.ID, tombstore.WithReason(tombstore.Revoked)))
	require.Empty(t, quiet.save())
	require.False(t, b.Refused(quiet.session))
	require.Empty(t, b.events)
	loud.session.Options.MaxAge = int(time.Hour / time.Second)
	require.Empty(t, loud.save())
	require.True(t, b.Refused(loud.session))
	require.Len(t, b.events, 1)
}
