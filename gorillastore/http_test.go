package gorillastore_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/gorillastore"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

const cookieName = "session"

var key = []byte("0123456789abcdef0123456789abcdef")

// pageFunc is what a handler does with the session of its request.
type pageFunc func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error

// browser is a browser and the site that it visits.
type browser struct {
	*testing.T
	backend tombstore.Renewer
	store   *gorillastore.Store
	cookies []*http.Cookie // that the last answer has set
	cookie  string         // "name=value", or ""
}

// onEach runs a test on memory and on a server.
func onEach(t *testing.T, opts []tombstore.Option, test func(s *browser)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		memory, err := tombstore.NewMemory(opts...)
		require.NoError(t, err)
		test(newBrowser(t, memory))
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		client := redistest.Client(t)
		prefix := tombstore.WithKeyPrefix(redistest.Prefix(t, client))
		minute := tombstore.WithTimeout(time.Minute) // the machine may be busy
		store, err := tombstore.New(client, append(opts[:len(opts):len(opts)], prefix, minute)...)
		require.NoError(t, err)
		test(newBrowser(t, store))
	})
}

func newBrowser(t *testing.T, backend tombstore.Renewer) *browser {
	return &browser{T: t, backend: backend, store: gorillastore.New(backend, key)}
}

// serve lets the browser make a request, until ctx ends, and waits for the handler.
func (s *browser) serve(ctx context.Context, handler http.Handler) error {
	s.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, nil)
	require.NoError(s, err)
	if s.cookie != "" {
		r.Header.Set("Cookie", s.cookie)
	}
	res, err := server.Client().Do(r)
	if err != nil {
		return err
	}
	res.Body.Close()
	s.cookies = res.Cookies()
	for _, c := range s.cookies {
		s.cookie = c.Name + "=" + c.Value
		if c.MaxAge < 0 {
			s.cookie = ""
		}
	}
	return nil
}

// visit makes a request and returns the error of its page.
func (s *browser) visit(do pageFunc) (err error) {
	s.Helper()
	require.NoError(s, s.serve(s.Context(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var session *sessions.Session
		if session, err = s.store.Get(r, cookieName); err == nil {
			err = do(w, r, session)
		}
	})))
	return err
}

// set returns a page that saves a value.
func set(key string, value any) pageFunc {
	return func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
		s.Values[key] = value
		return s.Save(r, w)
	}
}

// login returns a page that logs in.
func login(user string) pageFunc {
	return func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
		s.ID = ""
		return set("user", user)(w, r, s)
	}
}

func logout(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
	s.Options.MaxAge = -1
	return s.Save(r, w)
}

// values returns what the session holds that a cookie names.
func (s *browser) values(cookie string) (values map[any]any) {
	s.Helper()
	copied := *s
	copied.cookie = cookie
	require.NoError(s, copied.visit(func(_ http.ResponseWriter, _ *http.Request, session *sessions.Session) error {
		values = session.Values
		return nil
	}))
	return values
}

// id returns the id that a cookie names.
func (s *browser) id(cookie string) (id string) {
	s.Helper()
	c, err := http.ParseCookie(cookie)
	require.NoError(s, err)
	require.NoError(s, securecookie.DecodeMulti(c[0].Name, c[0].Value, &id, s.store.Codecs...))
	return id
}

// What a page does when nobody waits for the answer is done all the same.
func TestSave_NobodyWaits(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		for name, do := range map[string]pageFunc{"save": set("order", "paid"), "logout": logout} {
			for way, wrap := range map[string]func(ctx context.Context, page http.Handler) error{
				"client gone": func(ctx context.Context, page http.Handler) error {
					ctx, leave := context.WithCancel(ctx)
					return s.serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = s.store.Get(r, cookieName)
						leave()
						page.ServeHTTP(w, r)
					}))
				},
				"client gone before the session is loaded": func(ctx context.Context, page http.Handler) error {
					ctx, leave := context.WithCancel(ctx)
					return s.serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						leave()
						<-r.Context().Done()
						page.ServeHTTP(w, r)
					}))
				},
				"time is up": func(ctx context.Context, page http.Handler) error {
					page = http.TimeoutHandler(page, time.Millisecond, "too late")
					return s.serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = s.store.Get(r, cookieName)
						page.ServeHTTP(w, r)
					}))
				},
			} {
				s.cookie = ""
				require.NoError(s, s.visit(login("alice")))
				cookie, done := s.cookie, make(chan error, 1)
				_ = wrap(s.Context(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					session, _ := s.store.Get(r, cookieName)
					<-r.Context().Done()
					done <- do(w, r, session)
				}))
				err := <-done
				switch {
				case name == "logout":
					require.NoError(s, err, way)
					require.Empty(s, s.values(cookie), way)
				case way == "client gone before the session is loaded": // there is nothing to save
					require.ErrorIs(s, err, context.Canceled)
					require.Len(s, s.values(cookie), 1)
				default:
					require.NoError(s, err, way)
					require.Equal(s, map[any]any{"user": "alice", "order": "paid"}, s.values(cookie), way)
				}
			}
		}
	})
}

// early is a store that calls a function before it begins to renew a session.
type early struct {
	tombstore.Renewer
	begins func()
}

func (e *early) Rotate(
	ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
) (tombstore.Session, error) {
	e.begins()
	return e.Renewer.Rotate(ctx, oldID, newID, opts...)
}

// A renewal that has begun is carried out.
func TestRenewal_ClientGone(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		backend := &early{Renewer: s.backend}
		s.store = gorillastore.New(backend, key)
		require.NoError(s, s.visit(set("cart", "lamp")))
		ctx, leave := context.WithCancel(s.Context())
		done := make(chan string, 1)
		require.Error(s, s.serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			session, _ := s.store.Get(r, cookieName)
			backend.begins = func() {
				leave()
				<-r.Context().Done()
			}
			_ = login("alice")(w, r, session)
			done <- session.ID
		})))
		renewed, err := s.backend.Read(s.Context(), <-done)
		require.NoError(s, err)
		require.NotEmpty(s, renewed.Data)
	})
}

// However often a session is saved, its cookie is set once.
func TestSave_OneCookie(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		n := 0
		save := func(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
			n++ // what is as it was sets no cookie
			return set("x", n)(w, r, s)
		}
		for name, pages := range map[string][]pageFunc{
			"saved again": {save, save},
			"renewed":     {save, login("bob"), save},
			"logged out":  {save, logout},
			"logged in again": {save, logout, func(_ http.ResponseWriter, _ *http.Request, s *sessions.Session) error {
				s.Options.MaxAge = 60
				return nil
			}, login("alice")},
		} {
			require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				http.SetCookie(w, &http.Cookie{Name: "language", Value: "en"})
				for _, page := range pages {
					if err := page(w, r, session); err != nil {
						return err
					}
				}
				return nil
			}), name)
			require.Len(s, s.cookies, 2, name)
			require.Equal(s, cookieName, s.cookies[1].Name, name)
			require.Equal(s, name == "logged out", s.cookie == "", name)
		}
	})
}

// A request may come to hold its session twice: middleware that gives it another context hides the
// one from the other. Neither takes away what the other one has done.
func TestSave_TwoOfOne(t *testing.T) {
	type do func(*sessions.Session, pageFunc) error
	type load func() *sessions.Session
	type play struct {
		page    func(do do, a, b *sessions.Session, again load) error
		user    any
		cookies int
	}
	onEach(t, nil, func(s *browser) {
		for name, play := range map[string]play{
			"save after a login": {func(do do, a, b *sessions.Session, _ load) error {
				return cmp.Or(do(a, login("bob")), do(b, set("x", 1)))
			}, "bob", 1},
			"save before and after a login": {func(do do, a, b *sessions.Session, _ load) error {
				return cmp.Or(do(b, set("x", 1)), do(a, login("bob")), do(b, set("x", 2)))
			}, "bob", 1},
			"save after a logout": {func(do do, a, b *sessions.Session, _ load) error {
				return cmp.Or(do(a, logout), do(b, set("x", 1)))
			}, nil, 1},
			"logout after a login": {func(do do, a, b *sessions.Session, _ load) error {
				return cmp.Or(do(a, login("bob")), do(b, logout))
			}, nil, 2},
			"load and save after a login": {func(do do, a, _ *sessions.Session, again load) error {
				return cmp.Or(do(a, login("bob")), do(again(), set("x", 1)))
			}, "bob", 1},
			"login after a login": {func(do do, a, b *sessions.Session, _ load) error {
				return cmp.Or(do(a, login("bob")), do(b, login("carol")))
			}, "bob", 1},
			"load and log in after a login": {func(do do, a, _ *sessions.Session, again load) error {
				err := do(a, login("bob"))
				c := again()
				s.store.Renew(c)
				return cmp.Or(err, do(c, set("user", "carol")))
			}, "carol", 2},
			"load and save after a logout": {func(do do, a, _ *sessions.Session, again load) error {
				return cmp.Or(do(a, logout), do(again(), set("user", "carol")))
			}, "carol", 2},
		} {
			s.cookie = ""
			require.NoError(s, s.visit(login("alice")))
			require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, first *sessions.Session) error {
				again := func() *sessions.Session {
					session, err := s.store.New(r, cookieName)
					require.NoError(s, err)
					return session
				}
				do := func(session *sessions.Session, page pageFunc) error { return page(w, r, session) }
				return play.page(do, first, again(), again)
			}), name)
			require.Len(s, s.cookies, play.cookies, name)
			require.Equal(s, play.user, s.values(s.cookie)["user"], name)
		}
	})
}

// The age of a cookie is that of its session, not of the store.
func TestNew_OldCookie(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			session.Options.MaxAge = 365 * 24 * 60 * 60
			return login("alice")(w, r, session)
		}))
		s.store.MaxAge(60)
		require.Equal(s, "alice", s.values(antedate(s.cookie, 300*24*time.Hour))["user"])
	})
}

// antedate makes a cookie older.
func antedate(cookie string, age time.Duration) string {
	name, value, _ := bytes.Cut([]byte(cookie), []byte("="))
	raw, _ := base64.URLEncoding.DecodeString(string(value))
	parts := bytes.SplitN(raw, []byte("|"), 3) // time, id, signature
	text := fmt.Sprintf("%d|%s", time.Now().Add(-age).Unix(), parts[1])
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s|%s", name, text)
	return fmt.Sprintf("%s=%s", name, base64.URLEncoding.EncodeToString(fmt.Appendf(nil, "%s|%s", text, mac.Sum(nil))))
}

// A session whose MaxAge is another one than that of the Store keeps it wherever it is saved, and
// so does its cookie, until it is given another id with another one.
func TestSave_OwnMaxAge(t *testing.T) {
	onEach(t, []tombstore.Option{tombstore.WithAbsoluteTimeout(365 * 24 * time.Hour)}, func(s *browser) {
		s.store.MaxAge(3600)
		aged := func(age int, page pageFunc) pageFunc {
			return func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				session.Options.MaxAge = age
				return page(w, r, session)
			}
		}
		lives := func(seconds int) {
			s.Helper()
			require.InDelta(s, seconds, s.cookies[0].MaxAge, 5)
			got, err := s.backend.Read(s.Context(), s.id(s.cookie), tombstore.WithExpiry())
			require.NoError(s, err)
			require.WithinDuration(s, time.Now().Add(time.Duration(seconds)*time.Second), got.ExpiresAt, time.Minute)
		}
		const day, quarter = 24 * 60 * 60, 15 * 60
		for _, age := range []int{30 * day, quarter} {
			s.cookie = ""
			require.NoError(s, s.visit(aged(age, login("alice"))))
			lives(age)
			require.NoError(s, s.visit(set("x", 1)))
			lives(age)
			require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				require.InDelta(s, age, session.Options.MaxAge, 5)
				session.Options = &sessions.Options{Path: "/", MaxAge: 3600}
				return set("x", 2)(w, r, session)
			}))
			lives(age)
			require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				s.store.Renew(session)
				return session.Save(r, w)
			}))
			lives(age)
			require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				return session.Save(r, w)
			}))
			require.Empty(s, s.cookies, "nothing is due")
			require.NoError(s, s.visit(aged(3600, login("alice"))))
			lives(3600)
			require.NoError(s, s.visit(set("x", 3)))
			lives(3600)

			// A logout and a login of one request, as long as before and as long as others.
			for _, next := range []int{age, 3600} {
				require.NoError(s, s.visit(aged(age, login("alice"))))
				require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
					require.NoError(s, logout(w, r, session))
					return aged(next, login("bob"))(w, r, session)
				}))
				lives(next)
				require.NoError(s, s.visit(set("y", next)))
				lives(next)
			}
		}
	})
}

// A logout whose session another request has ended takes no cookie away: the browser may have got
// that of a later login since.
func TestSave_LateLogout(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		require.NoError(s, s.visit(login("alice")))
		late := *s
		require.NoError(s, late.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			require.NoError(s, s.visit(logout))
			require.NoError(s, s.visit(login("alice")))
			return logout(w, r, session)
		}))
		require.Empty(s, late.cookies)
		require.Equal(s, "alice", s.values(s.cookie)["user"])
	})
}

// Without Options there are the default ones.
func TestSave_NoOptions(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		s.store.Options = nil
		require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			session.Options = nil
			return login("alice")(w, r, session)
		}))
		require.Equal(s, "/", s.cookies[0].Path)
		require.Equal(s, 30*24*60*60, s.cookies[0].MaxAge)
		require.True(s, s.cookies[0].HttpOnly)
		s.store.MaxAge(60)
		require.NoError(s, s.visit(func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			session.Options = nil
			return session.Save(r, w)
		}))
		require.Equal(s, 60, s.cookies[0].MaxAge)
		require.True(s, s.cookies[0].HttpOnly)
		require.Equal(s, "alice", s.values(s.cookie)["user"])
	})
}

func TestSave_EndAtMaxAgeZero(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		zero := func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			session.Options.MaxAge = 0
			return session.Save(r, w)
		}
		require.NoError(s, s.visit(login("alice")))
		require.NoError(s, s.visit(zero))
		require.Zero(s, s.cookies[0].MaxAge)
		require.Equal(s, "alice", s.values(s.cookie)["user"])
		s.store.EndAtMaxAgeZero = true
		cookie := s.cookie
		require.NoError(s, s.visit(zero))
		require.Negative(s, s.cookies[0].MaxAge)
		require.Empty(s, s.values(cookie))
	})
}

// After a renewal with a grace a request with the old cookie reads, and logs out, and does nothing
// else.
func TestRenewWithGrace(t *testing.T) {
	onEach(t, nil, func(s *browser) {
		renew := func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			return s.store.RenewWithGrace(r, w, session, time.Minute)
		}
		var user any
		read := func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			user = session.Values["user"]
			return session.Save(r, w)
		}
		with := func(cookie string, page pageFunc, fails ...error) {
			s.Helper()
			s.cookie = cookie
			err := s.visit(page)
			if len(fails) == 0 {
				require.NoError(s, err)
			} else {
				require.ErrorIs(s, err, fails[0])
			}
		}
		require.NoError(s, s.visit(login("alice")))
		old := s.cookie
		with(old, renew)
		renewed := s.cookie
		require.NotEqual(s, old, renewed)

		s.cookie = ""
		require.NoError(s, s.visit(renew))
		require.Empty(s, s.cookies, "there is nothing to renew")
		with(renewed, func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
			return s.store.RenewWithGrace(r, w, session, time.Hour)
		}, tombstore.ErrInvalidTTL)

		with(old, read)
		require.Equal(s, "alice", user)
		require.Empty(s, s.cookies, "it would take the place of the new one")
		with(old, set("user", "mallory"))
		require.Empty(s, s.cookies)
		with(old, renew)
		require.Empty(s, s.cookies)
		require.Equal(s, "alice", s.values(renewed)["user"])

		with(old, logout)
		require.Empty(s, s.values(renewed))
		user = nil
		with(old, read)
		require.Nil(s, user)

		// A login in the same request has none, by whatever way.
		for _, again := range []pageFunc{
			login("alice"),
			func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				s.store.Renew(session)
				session.Options.MaxAge = 60
				return session.Save(r, w)
			},
			func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				binder := s.backend.(tombstore.Binder)
				begun, err := binder.BeginLogin(r.Context(), "alice")
				require.NoError(s, err)
				until := tombstore.Until(time.Now().Add(time.Hour))
				require.NoError(s, s.store.Login(r, session, begun, until))
				return session.Save(r, w)
			},
		} {
			with("", login("alice"))
			old = s.cookie
			with(old, func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				require.NoError(s, renew(w, r, session))
				return again(w, r, session)
			})
			require.NotEqual(s, old, s.cookie)
			user = nil
			with(old, read)
			require.Nil(s, user)

			// Nor after a renewal that has failed.
			with("", login("alice"))
			old = s.cookie
			with(old, func(w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
				failed := s.store.RenewWithGrace(r, w, session, 2*time.Minute)
				require.ErrorIs(s, failed, tombstore.ErrInvalidTTL)
				return again(w, r, session)
			})
			require.NotEqual(s, old, s.cookie)
			user = nil
			with(old, read)
			require.Nil(s, user)
		}
	})
}
