package beegostore

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/beego/beego/v2/server/web/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// enter returns a page that logs alice in. What is in between happens when the login has begun.
func (b *bed) enter(between func()) action {
	return func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
		login, err := b.store.BeginLogin(r.Context(), "alice")
		require.NoError(b, err)
		if between != nil {
			between()
		}
		until := tombstore.Until(time.Now().Add(24 * time.Hour))
		if err := b.provider.Login(r, login, until, tombstore.Label("phone")); err != nil {
			return "", err
		}
		return "hello", s.Set(ctx, "user", "alice")
	}
}

// entered returns the cookie of a browser in which alice is logged in.
func (b *bed) entered(cookie string) string {
	b.Helper()
	a := b.visit(cookie, b.enter(nil))
	require.Equal(b, "hello", a.body)
	require.Len(b, a.cookies, 1)
	return a.cookies[0].Value
}

func (b *bed) endAll() {
	b.Helper()
	_, err := b.store.InvalidateOwner(ctx, "alice")
	require.NoError(b, err)
}

// owned requires that alice has exactly the sessions of these cookies.
func (b *bed) owned(cookies ...string) {
	b.Helper()
	all, err := b.store.Sessions(ctx, "alice")
	require.NoError(b, err)
	got, want := []string{}, []string{}
	for _, s := range all {
		require.Equal(b, "phone", s.Label)
		require.WithinDuration(b, time.Now().Add(24*time.Hour), s.Deadline, time.Minute)
		got = append(got, s.Ref)
	}
	for _, cookie := range cookies {
		want = append(want, tombstore.Ref(cookie))
	}
	require.ElementsMatch(b, want, got)
}

// onEachVisitor runs a test for one who has a cart, and for one who has nothing.
func onEachVisitor(t *testing.T, opts []tombstore.Option, test func(b *bed, cookie string)) {
	t.Parallel()
	for name, cookie := range map[string]bool{"cart": true, "nothing": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, opts...)
			if !cookie {
				test(b, "")
				return
			}
			test(b, b.visit("", set("cart", "lamp")).cookies[0].Value)
		})
	}
}

func TestLogin(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		cookie := b.entered(visitor)
		b.owned(cookie)
		require.Equal(b, "alice", b.get("/", cookie).body)
		if visitor != "" {
			s, err := b.manager.GetSessionStore(cookie)
			require.NoError(b, err)
			require.Equal(b, "lamp", s.Get(ctx, "cart"))
		}
		renewed := b.get("/login", cookie).cookies[0].Value
		b.owned(renewed)
		b.visit(cookie, func(w http.ResponseWriter, r *http.Request, _ session.Store) (string, error) {
			b.manager.SessionDestroy(w, r)
			return "bye", nil
		})
		b.owned()
		require.Equal(b, "<nil>", b.get("/", renewed).body)
	})
}

// A login whose owner is logged out everywhere while the password is looked at is an error, and the
// visitor stays one.
func TestLogin_Stale(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		a := b.visit(visitor, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
			id := s.SessionID(ctx)
			_, err := b.enter(b.endAll)(w, r, s)
			require.ErrorIs(b, err, tombstore.ErrStaleLogin)
			require.Equal(b, id, s.SessionID(ctx))
			return "again", s.Set(ctx, "cart", "chair")
		})
		require.Equal(b, "again", a.body)
		b.owned()
		if visitor == "" {
			visitor = a.cookies[0].Value
		} else {
			require.Empty(b, a.cookies)
		}
		s, err := b.manager.GetSessionStore(visitor)
		require.NoError(b, err)
		require.Equal(b, "chair", s.Get(ctx, "cart"))
		require.Nil(b, s.Get(ctx, "user"))
		require.Equal(b, 1, b.live())
	})
}

// One whose owner is logged out everywhere before the response begins is refused, and nobody is in.
func TestLogin_EndedBeforeSave(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		a := b.visit(visitor, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
			defer b.endAll()
			return b.enter(nil)(w, r, s)
		})
		require.Equal(b, "hello", a.body)
		require.Empty(b, a.cookies)
		b.owned()
		require.Len(b, b.refused, 1)
	})
}

// What is not saved is given up.
func TestLogin_NotSaved(t *testing.T) {
	for name, fails := range map[string]func(b *bed, w http.ResponseWriter, r *http.Request){
		"SessionDestroy": func(b *bed, w http.ResponseWriter, r *http.Request) { b.manager.SessionDestroy(w, r) },
		"panic":          func(*bed, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			onEachVisitor(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(b *bed, visitor string) {
				path := "/fails"
				b.pages[path] = func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
					_, err := b.enter(nil)(w, r, s)
					require.NoError(b, err)
					fails(b, w, r)
					return "sorry", nil
				}
				q, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+path, nil)
				require.NoError(b, err)
				if visitor != "" {
					q.AddCookie(&http.Cookie{Name: cookieName, Value: visitor})
				}
				if res, err := http.DefaultClient.Do(q); err == nil {
					res.Body.Close()
				}
				b.owned(b.entered(""))
			})
		})
	}
}

// A login may begin with an empty session: a Flush before it is no logout.
func TestLogin_Flush(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		a := b.visit(visitor, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
			require.NoError(b, s.Flush(ctx))
			return b.enter(nil)(w, r, s)
		})
		require.Len(b, a.cookies, 1)
		b.owned(a.cookies[0].Value)
		s, err := b.manager.GetSessionStore(a.cookies[0].Value)
		require.NoError(b, err)
		require.Nil(b, s.Get(ctx, "cart"))
		require.Equal(b, "alice", s.Get(ctx, "user"))
	})
}

func (b *bed) everywhere(w http.ResponseWriter, r *http.Request, _ session.Store) (string, error) {
	_, err := b.provider.LogoutEverywhere(r, "alice")
	return "others are out", err
}

// All others are out, and this one has a new id.
func TestLogoutEverywhere(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		phone, laptop := b.entered(visitor), b.entered("")
		b.owned(phone, laptop)
		a := b.visit(phone, b.everywhere)
		require.Len(b, a.cookies, 1)
		b.owned(a.cookies[0].Value)
		require.Equal(b, "alice", b.get("/", a.cookies[0].Value).body)

		// Somebody else's browser ends them all, and keeps what it has.
		a = b.visit(visitor, b.everywhere)
		require.Equal(b, "others are out", a.body)
		b.owned()
	})
}

// Of two devices that log each other out one goes on.
func TestLogoutEverywhere_Twice(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		phone, laptop := b.entered(visitor), b.entered("")
		var kept string
		b.visit(phone, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
			kept = b.visit(laptop, b.everywhere).cookies[0].Value
			_, err := b.everywhere(w, r, s)
			require.ErrorIs(b, err, adapter.ErrRefused)
			return "", nil
		})
		b.owned(kept)
	})
}

// A login that logs out all others goes on, in the place of an earlier one of the same user too.
func TestLogoutEverywhere_AtLogin(t *testing.T) {
	onEachVisitor(t, nil, func(b *bed, visitor string) {
		for range 2 {
			other := b.entered("")
			a := b.visit(visitor, func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
				if _, err := b.enter(nil)(w, r, s); err != nil {
					return "", err
				}
				return b.everywhere(w, r, s)
			})
			require.Equal(b, "others are out", a.body)
			require.Len(b, a.cookies, 1)
			visitor = a.cookies[0].Value
			b.owned(visitor)
			require.Equal(b, "alice", b.get("/", visitor).body)
			require.Equal(b, "<nil>", b.get("/", other).body)
		}
	})
}

// A user who has as many sessions as may be is told so, but not in the browser that has one of them.
func TestLogin_Refuse(t *testing.T) {
	onEachVisitor(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(b *bed, visitor string) {
		cookie := b.entered(visitor)
		b.visit("", func(w http.ResponseWriter, r *http.Request, s session.Store) (string, error) {
			_, err := b.enter(nil)(w, r, s)
			require.ErrorIs(b, err, tombstore.ErrTooManySessions)
			return "", nil
		})
		b.owned(cookie)
		b.owned(b.entered(cookie))
	})
}

// Outside of the Middleware, and where no session was started, nobody can log in.
func TestLogin_NoSession(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	login, err := b.store.BeginLogin(ctx, "alice")
	require.NoError(t, err)
	until := tombstore.Until(time.Now().Add(time.Hour))
	handler := func(want error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.ErrorIs(t, b.provider.Login(r, login, until), want)
			_, err := b.provider.LogoutEverywhere(r, "alice")
			require.ErrorIs(t, err, want)
		})
	}
	for _, h := range []http.Handler{handler(errNotInstalled), b.provider.Middleware(handler(errNoSession))} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		require.NoError(t, err)
		h.ServeHTTP(httptest.NewRecorder(), r)
		r.AddCookie(&http.Cookie{Name: cookieName, Value: "unknown"})
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	b.owned()
}
