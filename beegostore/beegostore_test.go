package beegostore

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"testing"
	"time"

	"github.com/beego/beego/v2/server/web/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/gobmap"
)

var ctx = context.Background()

func set(key, value any) action {
	return func(_ http.ResponseWriter, _ *http.Request, s session.Store) (string, error) {
		return "set", s.Set(ctx, key, value)
	}
}

// After a login there is one session, under the id of the one cookie that was set.
func TestRegenerate(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	visitor := b.visit("", set("cart", "lamp")).cookies[0].Value
	var id string
	a := b.visit(visitor, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
		require.Equal(t, visitor, s.SessionID(ctx))
		for range 2 { // a program may do it twice
			again, err := b.manager.SessionRegenerateID(w, r)
			require.NoError(t, err)
			require.Same(t, s, again)
		}
		id = s.SessionID(ctx)
		require.Equal(t, "lamp", s.Get(ctx, "cart"))
		return "hello", s.Set(ctx, "user", "alice")
	})
	require.Equal(t, 200, a.status)
	require.Len(t, a.cookies, 1)
	require.Equal(t, id, a.cookies[0].Value)
	require.Equal(t, 1, b.live())
	require.Equal(t, "alice", b.get("/", id).body)
	require.Equal(t, "<nil>", b.get("/", visitor).body)
}

// A login with the cookie of a session that is gone is one, and keeps what was set before it.
func TestRegenerate_OldCookie(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	old := b.login()
	require.NoError(t, b.store.Invalidate(ctx, old))
	a := b.visit(old, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
		require.NoError(t, s.Set(ctx, "user", "bob"))
		_, err := b.manager.SessionRegenerateID(w, r)
		return "hello", err
	})
	require.Len(t, a.cookies, 1)
	require.Equal(t, "bob", b.get("/", a.cookies[0].Value).body)
	require.Equal(t, 1, b.live())
	require.Empty(t, b.refused)
}

// A second SessionStart of a request has the session of the first one.
func TestStart_Twice(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	twice := func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
		again, err := b.manager.SessionStart(w, r)
		require.Same(t, s, again)
		return "seen", err
	}
	require.Len(t, b.visit("", twice).cookies, 1)
	require.Len(t, b.visit("unknown", twice).cookies, 1)
	cookie := b.login()
	require.Empty(t, b.visit(cookie, twice).cookies)
}

// An id that nobody was given begins no session, whoever asks about it.
func TestUnknownID(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.visit("chosen", set("user", "mallory"))
	require.Len(t, a.cookies, 1)
	require.NotEqual(t, "chosen", a.cookies[0].Value)
	require.Equal(t, "<nil>", b.get("/", "chosen").body)

	for _, page := range []action{
		func(http.ResponseWriter, *http.Request, session.Store) (string, error) {
			found, err := b.provider.SessionExist(ctx, "other")
			require.False(t, found)
			return "", err
		},
		func(w http.ResponseWriter, _ *http.Request, _ session.Store) (string, error) {
			s, err := b.manager.GetSessionStore("other")
			require.NoError(t, s.Set(ctx, "user", "mallory"))
			s.SessionRelease(ctx, w)
			s.SessionReleaseIfPresent(ctx, w)
			return "", err
		},
		func(http.ResponseWriter, *http.Request, session.Store) (string, error) {
			return "", b.provider.SessionDestroy(ctx, "other")
		},
	} {
		require.Equal(t, 200, b.visit("chosen", page).status)
		_, err := b.store.Read(ctx, "other")
		require.ErrorIs(t, err, tombstore.ErrNotFound)
	}
}

// A job, or an administrator's page, reads, changes and ends the sessions of others.
func TestGetSessionStore(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	s, err := b.manager.GetSessionStore(cookie)
	require.NoError(t, err)
	require.Equal(t, "alice", s.Get(ctx, "user"))
	require.NoError(t, s.Set(ctx, "user", "bob"))
	s.SessionReleaseIfPresent(ctx, nil)
	require.Equal(t, "bob", b.get("/", cookie).body)

	require.NoError(t, b.provider.SessionDestroy(ctx, cookie))
	_, err = b.store.Read(ctx, cookie)
	var ended *tombstore.InvalidatedError
	require.ErrorAs(t, err, &ended)
	require.Equal(t, tombstore.Revoked, ended.Reason)
	require.NoError(t, s.Set(ctx, "user", "carol"))
	s.SessionRelease(ctx, nil)
	require.Zero(t, b.live())
}

// What logs out, and what is left then.
func TestLogout(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		userKeys []any
		do       func(b *bed, w http.ResponseWriter, r *http.Request, s session.Store)
		ends     bool
		left     any // the theme
	}{
		"SessionDestroy": {nil, func(b *bed, w http.ResponseWriter, r *http.Request, _ session.Store) {
			b.manager.SessionDestroy(w, r)
		}, true, nil},
		"SessionDestroy, Set": {nil, func(b *bed, w http.ResponseWriter, r *http.Request, s session.Store) {
			b.manager.SessionDestroy(w, r)
			_ = s.Set(ctx, "theme", "light")
		}, true, nil},
		"SessionDestroy, SessionRegenerateID, Set": {nil, func(b *bed, w http.ResponseWriter, r *http.Request, s session.Store) {
			b.manager.SessionDestroy(w, r)
			_, _ = b.manager.SessionRegenerateID(w, r)
			_ = s.Set(ctx, "theme", "light")
		}, true, "light"},
		"SessionDestroy of the Provider": {nil, func(b *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = b.provider.SessionDestroy(ctx, s.SessionID(ctx))
		}, true, nil},
		"Flush": {nil, func(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Flush(ctx)
		}, true, nil},
		"Flush, Set": {nil, func(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Flush(ctx)
			_ = s.Set(ctx, "theme", "light")
		}, true, "light"},
		"Flush, SessionRegenerateID, Set": {nil, func(b *bed, w http.ResponseWriter, r *http.Request, s session.Store) {
			_ = s.Flush(ctx)
			_, _ = b.manager.SessionRegenerateID(w, r)
			_ = s.Set(ctx, "theme", "light")
		}, true, "light"},
		"Delete of all": {nil, func(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Delete(ctx, "user")
			_ = s.Set(ctx, "theme", nil)
		}, true, nil},
		"Delete of one":   {nil, deleteUser, false, "dark"},
		"Delete of a key": {[]any{"name", "user"}, deleteUser, true, "dark"},
		"Set of a key": {[]any{"user"}, func(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Set(ctx, "user", "")
		}, true, "dark"},
		"Set of a key to another": {[]any{"user"}, func(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Delete(ctx, "user")
			_ = s.Set(ctx, "user", "bob")
		}, false, "dark"},
		"Delete of all but a key": {[]any{"user"}, func(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Delete(ctx, "theme")
		}, false, nil},
	} {
		for _, renewed := range []bool{false, true} { // by another request, meanwhile
			t.Run(fmt.Sprint(name, ", renewed: ", renewed), func(t *testing.T) {
				t.Parallel()
				b := newBed(t)
				b.provider.UserKeys = test.userKeys
				cookie := b.login()
				require.Equal(t, "set", b.visit(cookie, set("theme", "dark")).body)
				became := cookie
				a := b.visit(cookie, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
					if renewed {
						became = b.get("/login", cookie).cookies[0].Value
					}
					test.do(b, w, r, s)
					return "done", nil
				})
				require.Equal(t, "done", a.body)
				for id, ended := range map[string]bool{cookie: test.ends || renewed, became: test.ends} {
					live, err := b.store.Exists(ctx, id)
					require.NoError(t, err)
					require.NotEqual(t, ended, live)
				}
				if !test.ends {
					require.Empty(t, a.cookies)
					return
				}
				var left any
				for _, c := range a.cookies {
					if c.MaxAge >= 0 {
						s, err := b.manager.GetSessionStore(c.Value)
						require.NoError(t, err)
						require.NotEqual(t, cookie, c.Value)
						left = s.Get(ctx, "theme")
						require.NotEqual(t, "alice", s.Get(ctx, "user"))
					}
				}
				require.Equal(t, test.left, left)
			})
		}
	}
}

func deleteUser(_ *bed, _ http.ResponseWriter, _ *http.Request, s session.Store) {
	_ = s.Delete(ctx, "user")
}

// In a request that comes with the old cookie of a renewed session there is no user to take away.
// With UserKeys the attempt counts. Without them nothing tells it from the end of a captcha.
func TestLogout_OldCookie(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]any{nil, {"user"}} {
		b := newBed(t)
		b.provider.UserKeys = keys
		old := b.login()
		renewed := b.get("/login", old).cookies[0].Value
		b.visit(old, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
			deleteUser(b, w, r, s)
			return "bye", nil
		})
		live, err := b.store.Exists(ctx, renewed)
		require.NoError(t, err)
		require.Equal(t, keys == nil, live)
	}
}

type cart struct{ Items []string }

// What beego has encoded can be read here, and the other way round.
func TestEncoding(t *testing.T) {
	t.Parallel()
	gob.Register(cart{})
	for _, values := range []map[any]any{
		{}, {"user": "alice", "n": 1, "at": int64(2), "b": []byte{3}}, {1: "one"}, {"cart": cart{[]string{"lamp"}}},
		{"m": map[string]any{"a": "b"}},
	} {
		theirs, err := session.EncodeGob(values)
		require.NoError(t, err)
		read, err := decode(theirs)
		require.NoError(t, err)
		require.Equal(t, values, read)

		ours, err := encode(values)
		require.NoError(t, err)
		read, err = session.DecodeGob(ours)
		require.NoError(t, err)
		require.Equal(t, values, read)
		require.True(t, gobmap.Equal[any](ours, theirs))
	}
	_, err := encode(map[any]any{"f": func() {}})
	require.Error(t, err)
}

// That the server cannot be reached is no logout, and nothing is begun.
func TestServerDown(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	down := errors.New("connection refused")
	b.store.reads.Store(&down)
	a := b.get("/", cookie)
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Empty(t, a.cookies)
	_, err := b.manager.GetSessionStore(cookie)
	require.ErrorIs(t, err, down)
	_, err = b.provider.SessionExist(ctx, cookie)
	require.ErrorIs(t, err, down)
	b.store.reads.Store(nil)
	require.Equal(t, "alice", b.get("/", cookie).body)
}

// A logout that fails is answered with 500, and the browser keeps its cookie, to try again.
func TestLogout_Fails(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]action{
		"SessionDestroy": nil,
		"Flush": func(_ http.ResponseWriter, _ *http.Request, s session.Store) (string, error) {
			return "bye", s.Flush(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			if do == nil {
				do = func(w http.ResponseWriter, r *http.Request, _ session.Store) (string, error) {
					http.SetCookie(w, &http.Cookie{Name: "other", Value: "x"})
					b.manager.SessionDestroy(w, r)
					return "bye", nil
				}
			}
			cookie := b.login()
			for _, down := range []error{errors.New("connection refused"), tombstore.ErrUnacknowledged} {
				b.store.ends.Store(&down)
				a := b.visit(cookie, do)
				require.Equal(t, http.StatusInternalServerError, a.status)
				require.NotContains(t, a.body, "bye")
				for _, c := range a.cookies {
					require.Equal(t, "other", c.Name)
				}
			}
			b.store.ends.Store(nil)
			require.Equal(t, "alice", b.get("/", cookie).body)
			require.Equal(t, "bye", b.visit(cookie, do).body)
			require.Zero(t, b.live())
		})
	}
}

// However a response begins, all is saved by then, and what is changed later when beego releases
// the session.
func TestResponse(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(w http.ResponseWriter) error{
		"nothing": func(http.ResponseWriter) error { return nil },
		"status":  func(w http.ResponseWriter) error { w.WriteHeader(http.StatusAccepted); return nil },
		"body":    func(w http.ResponseWriter) error { _, err := io.WriteString(w, "body"); return err },
		"flush":   func(w http.ResponseWriter) error { w.(http.Flusher).Flush(); return nil },
		"hints, body": func(w http.ResponseWriter) error {
			w.WriteHeader(http.StatusEarlyHints)
			_, err := io.WriteString(w, "body")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			visitor := b.visit("", set("cart", "lamp")).cookies[0].Value
			a := b.visit(visitor, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
				_, err := b.manager.SessionRegenerateID(w, r)
				require.NoError(t, err)
				require.NoError(t, s.Set(ctx, "user", "alice"))
				require.NoError(t, begin(w))
				if name != "nothing" {
					stored, err := b.store.Read(ctx, s.SessionID(ctx))
					require.NoError(t, err)
					require.Contains(t, string(stored.Data), "alice")
					_, err = b.manager.SessionRegenerateID(w, r)
					require.ErrorIs(t, err, errBegun)
				}
				return "", s.Set(ctx, "user", "carol")
			})
			require.Len(t, a.cookies, 1)
			require.Equal(t, "carol", b.get("/", a.cookies[0].Value).body)
			require.Equal(t, 1, b.live())
		})
	}
}

// An informational response is not the first byte, and carries no cookie.
func TestResponse_Informational(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	server := httptest.NewServer(b.provider.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := b.manager.SessionRegenerateID(w, r)
		w.WriteHeader(http.StatusEarlyHints)
		if err == nil {
			_, err = b.manager.SessionRegenerateID(w, r)
		}
		fmt.Fprint(w, err)
	})))
	t.Cleanup(server.Close)
	hints := 0
	hinted := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
			hints++
			require.Empty(t, header["Set-Cookie"])
			return nil
		},
	})
	q, err := http.NewRequestWithContext(hinted, http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	q.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	res, err := http.DefaultClient.Do(q)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, "<nil>", string(body))
	require.Equal(t, 1, hints)
	require.Len(t, res.Cookies(), 1)
	require.Equal(t, "alice", b.get("/", res.Cookies()[0].Value).body)
}

// What has been saved before the response is not saved again after it, or touched, and what has not
// changed not at all, unless the handler sends the cookie by itself.
func TestSave_Once(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	changes := func(page action) int64 {
		before := b.store.changes.Load()
		require.Equal(t, 200, b.visit(cookie, page).status)
		return b.store.changes.Load() - before
	}
	require.EqualValues(t, 1, changes(set("cart", "lamp")))
	require.EqualValues(t, 0, changes(set("cart", "lamp")))
	require.EqualValues(t, 1, changes(func(w http.ResponseWriter, _ *http.Request, s session.Store) (string, error) {
		http.SetCookie(w, &http.Cookie{Name: cookieName, Value: s.SessionID(ctx), MaxAge: 3600})
		return "", nil
	}))
}

// A refusal is told once, when the session may be read, and takes back a cookie that the handler
// has set.
func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	read := any(nil)
	a := b.visit(cookie, func(w http.ResponseWriter, _ *http.Request, s session.Store) (string, error) {
		b.refusal = func() { read = s.Get(ctx, "user") }
		http.SetCookie(w, &http.Cookie{Name: cookieName, Value: s.SessionID(ctx)})
		require.NoError(t, b.store.Invalidate(ctx, cookie, tombstore.WithReason(tombstore.Revoked)))
		return "set", s.Set(ctx, "user", "bob")
	})
	require.Equal(t, "set", a.body)
	require.Empty(t, a.cookies)
	require.Equal(t, []tombstore.Event{
		{Verb: "write", Outcome: tombstore.OutcomeRefused, Reason: tombstore.Revoked, Ref: tombstore.Ref(cookie)},
	}, b.refused)
	require.Equal(t, "bob", read)
}

// A handler that takes the connection has its session saved before.
func TestResponse_Hijack(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	a := b.visit(cookie, func(w http.ResponseWriter, _ *http.Request, s session.Store) (string, error) {
		require.NoError(t, s.Set(ctx, "user", "bob"))
		conn, _, err := w.(http.Hijacker).Hijack()
		require.NoError(t, err)
		defer conn.Close()
		stored, err := b.store.Read(ctx, cookie)
		require.NoError(t, err)
		require.Contains(t, string(stored.Data), "bob")
		_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		return "", err
	})
	require.Equal(t, "ok", a.body)
}

// A value that cannot be encoded is no silent loss.
func TestResponse_NotEncoded(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.visit("", set("f", func() {}))
	require.Equal(t, http.StatusInternalServerError, a.status)
	require.Empty(t, a.cookies)
}

// The Middleware tells what is missing where it cannot know the session.
func TestNotInstalled(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	b.provider.CookieName = "another"
	a := b.get("/", cookie)
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Contains(t, a.body, "CookieName")
	require.Empty(t, a.cookies)
}

// A cookie that beego cannot decode is none, and one without a value neither.
func TestMiddleware_BadCookies(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	require.Equal(t, 200, b.get("/", "%zz").status)
	a := b.get("/login", `""`)
	require.Len(t, a.cookies, 1)
	require.Equal(t, "alice", b.get("/", a.cookies[0].Value).body)
}

// Whatever middleware there is between beego and this one, sessions are kept, and forgotten when
// their requests are over.
func TestMiddleware_Others(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(b *bed, next http.Handler) http.Handler{
		"itself": func(b *bed, next http.Handler) http.Handler { return b.provider.Middleware(next) },
		"one that uses another goroutine": func(_ *bed, next http.Handler) http.Handler {
			return http.TimeoutHandler(next, time.Minute, "")
		},
		"one that copies the request": func(_ *bed, next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r.Clone(ctx)) })
		},
		"one that wraps the response": func(_ *bed, next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
			})
		},
		"one that uses sessions": func(b *bed, next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, err := b.manager.SessionStart(w, r)
				require.NoError(t, err)
				next.ServeHTTP(w, r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			server := httptest.NewServer(b.provider.Middleware(other(b, http.HandlerFunc(b.serve))))
			t.Cleanup(server.Close)
			b.url = server.URL
			a := b.visit("", set("cart", "lamp"))
			require.Len(t, a.cookies, 1)
			cookie := b.get("/login", a.cookies[0].Value).cookies[0].Value
			require.Equal(t, "alice", b.get("/", cookie).body)
			require.Equal(t, 1, b.live())
			a = b.visit(cookie, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
				require.Equal(t, "lamp", s.Get(ctx, "cart"))
				b.manager.SessionDestroy(w, r)
				return "bye", nil
			})
			require.Equal(t, "bye", a.body)
			require.Zero(t, b.live())
			b.provider.stores.Range(func(key, _ any) bool {
				t.Errorf("of a request that is over: %v", key)
				return true
			})
		})
	}
}

// A session lives as long as beego's configuration says.
func TestLifetime(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	s, err := b.store.Read(ctx, cookie, tombstore.WithExpiry())
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), s.ExpiresAt, time.Minute)
	require.NoError(t, b.provider.SessionInit(ctx, 60, "ignored"))
	b.visit(cookie, set("cart", "lamp"))
	s, err = b.store.Read(ctx, cookie, tombstore.WithExpiry())
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Minute), s.ExpiresAt, 10*time.Second)
}

// A request that panics leaves no cookie behind of a session that is not stored, whoever answers
// for it, and nothing in memory.
func TestPanic(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cookie := b.login()
	handler := b.provider.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := b.manager.SessionStart(w, r)
		require.NoError(t, err)
		s, err := b.manager.SessionRegenerateID(w, r)
		require.NoError(t, err)
		require.NoError(t, s.Set(ctx, "user", "bob"))
		panic("out of order")
	}))
	for _, with := range []string{cookie, ""} {
		w, q := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
		if with != "" {
			q.AddCookie(&http.Cookie{Name: cookieName, Value: with})
		}
		require.Panics(t, func() { handler.ServeHTTP(w, q) })
		require.Empty(t, w.Header()["Set-Cookie"])
	}
	require.Equal(t, "alice", b.get("/", cookie).body)
	require.Equal(t, 1, b.live())
	b.provider.stores.Range(func(any, any) bool { t.Error("a request is not forgotten"); return false })
}

// A goroutine that outlives its request can log out.
func TestDestroy_AfterRequest(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var late *http.Request
	b.visit(b.login(), func(_ http.ResponseWriter, r *http.Request, _ session.Store) (string, error) {
		late = r
		return "", nil
	})
	b.manager.SessionDestroy(httptest.NewRecorder(), late)
	require.Zero(t, b.live())
}
