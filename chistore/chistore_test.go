package chistore_test

import (
	"bufio"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"sync"
	"testing"
	"time"

	"gitea.com/go-chi/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/chistore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// The races are those of module integration.

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

const cookieName = "session"

// site is a program that keeps its sessions in a store. Each request runs the handler that it
// brings.
type site struct {
	testing.TB
	store *faulty
	http.Handler
	refusals []tombstore.Event
}

// faulty is a store in which everything fails while err is set.
type faulty struct {
	*tombstore.MemoryStore
	err error
}

func (f *faulty) Read(
	ctx context.Context, id string, opts ...tombstore.ReadOption,
) (tombstore.Session, error) {
	if f.err != nil {
		return tombstore.Session{}, f.err
	}
	return f.MemoryStore.Read(ctx, id, opts...)
}

func (f *faulty) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	if f.err != nil {
		return tombstore.Session{}, f.err
	}
	return f.MemoryStore.Write(ctx, id, data, ttl, opts...)
}

func (f *faulty) Touch(ctx context.Context, id string, ttl time.Duration) error {
	if f.err != nil {
		return f.err
	}
	return f.MemoryStore.Touch(ctx, id, ttl)
}

func (f *faulty) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if f.err != nil {
		return f.err
	}
	return f.MemoryStore.Invalidate(ctx, id, opts...)
}

type handlerKey struct{}

func newSite(t testing.TB, opts ...adapter.Option) *site { return newSiteOn(t, nil, opts...) }

func newSiteOn(t testing.TB, of []tombstore.Option, opts ...adapter.Option) *site {
	store, err := tombstore.NewMemory(of...)
	require.NoError(t, err)
	s := &site{TB: t, store: &faulty{MemoryStore: store}}
	opts = append(opts, adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
		e.Err = nil
		s.refusals = append(s.refusals, e)
	}))
	withSession, err := chistore.Sessioner(s.store, session.Options{CookieName: cookieName}, opts...)
	require.NoError(t, err)
	s.Handler = withSession(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q.Context().Value(handlerKey{}).(http.HandlerFunc)(w, q)
	}))
	return s
}

// ask sends a request with a cookie, if it is not "", and returns the answer and the cookie that it
// sets.
func (s *site) ask(cookie string, handler func(w http.ResponseWriter, q *http.Request, s session.Store)) (*http.Response, *http.Cookie) {
	w, q := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
	if cookie != "" {
		q.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	}
	f := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { handler(w, q, session.GetSession(q)) })
	s.ServeHTTP(w, q.WithContext(context.WithValue(q.Context(), handlerKey{}, f)))
	answer := w.Result()
	cookies := answer.Cookies()
	if len(cookies) == 0 {
		return answer, nil
	}
	return answer, cookies[len(cookies)-1]
}

// login returns the cookie of a session of alice.
func (s *site) login() string {
	_, cookie := s.ask("", func(w http.ResponseWriter, q *http.Request, _ session.Store) {
		renewed, err := session.RegenerateSession(w, q)
		require.NoError(s, err)
		require.NoError(s, renewed.Set("user", "alice"))
	})
	require.Equal(s, "alice", s.get(cookie.Value, "user"))
	return cookie.Value
}

func (s *site) get(cookie string, key any) (value any) {
	s.ask(cookie, func(_ http.ResponseWriter, _ *http.Request, s session.Store) { value = s.Get(key) })
	return value
}

// live returns the refs of the sessions that are stored.
func (s *site) live() (refs []string) {
	for entry, err := range s.store.List(context.Background()) {
		require.NoError(s, err)
		refs = append(refs, entry.Ref)
	}
	return refs
}

// A logout wins over a request that has loaded the session before, on a server.
func TestLogout(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	store, err := tombstore.New(client, tombstore.WithKeyPrefix(redistest.Prefix(t, client)))
	require.NoError(t, err)
	withSession, err := chistore.Sessioner(store, session.Options{CookieName: cookieName})
	require.NoError(t, err)
	var handler http.Handler
	ask := func(path, cookie string) *http.Response {
		w, q := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
		q.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
		handler.ServeHTTP(w, q)
		return w.Result()
	}
	handler = withSession(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s := session.GetSession(q)
		switch q.URL.Path {
		case "/login":
			require.NoError(t, s.Set("user", "alice"))
		case "/logout":
			require.NoError(t, s.Destroy(w, q))
		case "/slow":
			require.Equal(t, "alice", s.Get("user"))
			ask("/logout", s.ID())
			require.NoError(t, s.Set("cart", 1))
			require.NoError(t, s.Release())
		}
	}))
	cookie := ask("/login", "").Cookies()[0].Value
	require.Empty(t, ask("/slow", cookie).Cookies())
	_, err = store.Read(t.Context(), cookie)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
}

// An id that nobody was given is not used, and nothing is stored for a visitor of whom there is
// nothing to save.
func TestUnknownID(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, made := range []string{"", "0123456789abcdef", "no id"} {
		_, cookie := s.ask(made, func(http.ResponseWriter, *http.Request, session.Store) {})
		require.Nil(t, cookie)
		require.Empty(t, s.live())
		_, cookie = s.ask(made, func(_ http.ResponseWriter, _ *http.Request, s session.Store) {
			require.NotEqual(t, made, s.ID())
			require.NoError(t, s.Set("items", 1))
		})
		require.NotEqual(t, made, cookie.Value)
		require.Equal(t, []string{tombstore.Ref(cookie.Value)}, s.live())
		require.NoError(t, s.store.Invalidate(t.Context(), cookie.Value))
	}
}

type basket struct{ Items []string }

// The library reads what is stored, and what it has encoded is read.
func TestEncoding(t *testing.T) {
	t.Parallel()
	gob.Register(basket{})
	for name, values := range map[string]map[any]any{
		"plain": {"user": "alice", "uid": int64(1), "admin": true},
		"other": {"basket": basket{[]string{"lamp"}}, 7: map[string]string{"a": "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			_, cookie := s.ask("", func(_ http.ResponseWriter, _ *http.Request, s session.Store) {
				for key, value := range values {
					require.NoError(t, s.Set(key, value))
				}
			})
			stored, err := s.store.Read(t.Context(), cookie.Value)
			require.NoError(t, err)
			decoded, err := session.DecodeGob(stored.Data)
			require.NoError(t, err)
			require.Equal(t, values, decoded)

			const id = "00000000000000ff"
			data, err := session.EncodeGob(values)
			require.NoError(t, err)
			_, err = s.store.Write(t.Context(), id, data, time.Hour)
			require.NoError(t, err)
			for key, value := range values {
				require.Equal(t, value, s.get(id, key))
			}
			after, err := s.store.Read(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, data, after.Data, "it was only read")

			_, err = s.store.Write(t.Context(), id, []byte("no gob"), time.Hour)
			require.NoError(t, err)
			answer, _ := s.ask(id, func(http.ResponseWriter, *http.Request, session.Store) { t.Error("served") })
			require.Equal(t, http.StatusInternalServerError, answer.StatusCode)
		})
	}
}

// What ends a session in a request, and what goes on after it.
func TestEndings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end   func(w http.ResponseWriter, q *http.Request, s session.Store)
		after []any // user and flash in the session that the browser has then
	}{
		"Flush": {func(_ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Flush()
		}, nil},
		"Delete of the last value": {func(_ http.ResponseWriter, _ *http.Request, s session.Store) {
			_ = s.Delete("user")
		}, nil},
		"Destroy, Set": {func(w http.ResponseWriter, q *http.Request, s session.Store) {
			require.NoError(t, s.Destroy(w, q))
			_ = s.Set("flash", "bye")
		}, nil},
		"Destroy, RegenerateSession, Set": {func(w http.ResponseWriter, q *http.Request, s session.Store) {
			require.NoError(t, s.Destroy(w, q))
			_, err := session.RegenerateSession(w, q)
			require.NoError(t, err)
			_ = s.Set("flash", "bye")
		}, []any{nil, "bye"}},
		"RegenerateSession twice, Destroy": {func(w http.ResponseWriter, q *http.Request, s session.Store) {
			for range 2 {
				_, err := session.RegenerateSession(w, q)
				require.NoError(t, err)
				require.NoError(t, s.Release())
			}
			require.NoError(t, s.Destroy(w, q))
		}, nil},
		"Flush, RegenerateSession, Set": {func(w http.ResponseWriter, q *http.Request, s session.Store) {
			_ = s.Flush()
			_, err := session.RegenerateSession(w, q)
			require.NoError(t, err)
			_ = s.Set("user", "bob")
		}, []any{"bob", nil}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			old := s.login()
			_, cookie := s.ask(old, test.end)
			require.Nil(t, s.get(old, "user"))
			require.Empty(t, s.refusals, "nobody else has ended it")
			if test.after == nil {
				require.Empty(t, s.live())
				require.True(t, cookie == nil || cookie.MaxAge < 0)
				return
			}
			require.Equal(t, test.after, []any{s.get(cookie.Value, "user"), s.get(cookie.Value, "flash")})
			require.Equal(t, []string{tombstore.Ref(cookie.Value)}, s.live())
		})
	}
}

// One refusal is reported, whatever the request does after it, and a new session may follow a
// Destroy.
func TestRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.login()
	answer, cookie := s.ask(old, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.NoError(t, s.store.Invalidate(q.Context(), old))
		require.NoError(t, store.Set("items", 1))
		require.NoError(t, store.Release())
		renewed, err := session.RegenerateSession(w, q)
		require.NoError(t, err)
		require.NoError(t, renewed.Set("user", "alice"))
		_, _ = io.WriteString(w, "done")
	})
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Nil(t, cookie)
	require.Empty(t, s.live())
	require.Equal(t, []tombstore.Event{
		{Verb: "write", Outcome: tombstore.OutcomeRefused, Reason: tombstore.Logout, Ref: tombstore.Ref(old)},
	}, s.refusals)

	old = s.login()
	_, cookie = s.ask(old, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.NoError(t, s.store.Invalidate(q.Context(), old))
		require.NoError(t, store.Set("items", 1))
		require.NoError(t, store.Release())
		require.NoError(t, store.Destroy(w, q))
		renewed, err := session.RegenerateSession(w, q)
		require.NoError(t, err)
		require.NoError(t, renewed.Set("user", "bob"))
	})
	require.Equal(t, "bob", s.get(cookie.Value, "user"))
	require.Len(t, s.live(), 1)
}

// A logout does not delete the cookie of a session that somebody else has ended: the browser may
// have got another one since.
func TestDestroy_Ended(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.login()
	_, cookie := s.ask(old, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.NoError(t, s.store.Invalidate(q.Context(), old))
		require.NoError(t, store.Destroy(w, q))
	})
	require.Nil(t, cookie)
}

// With WithLateRequests a request with an old cookie is given no new session, unless it logs in.
func TestLateRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t, adapter.WithLateRequests(time.Minute))
	old := s.login()
	require.NoError(t, s.store.Invalidate(t.Context(), old))
	_, cookie := s.ask(old, func(_ http.ResponseWriter, _ *http.Request, store session.Store) {
		require.NoError(t, store.Set("cart", 1))
	})
	require.Nil(t, cookie)
	_, cookie = s.ask(old, func(w http.ResponseWriter, q *http.Request, _ session.Store) {
		renewed, err := session.RegenerateSession(w, q)
		require.NoError(t, err)
		require.NoError(t, renewed.Set("user", "bob"))
	})
	require.Equal(t, "bob", s.get(cookie.Value, "user"))
}

// While the server does not answer nobody is logged out, and no page says that something was saved.
func TestServerAway(t *testing.T) {
	t.Parallel()
	away := errors.New("no route")
	s := newSite(t)
	cookie := s.login()
	s.store.err = away
	answer, set := s.ask(cookie, func(http.ResponseWriter, *http.Request, session.Store) { t.Error("served") })
	require.Equal(t, http.StatusInternalServerError, answer.StatusCode)
	require.Nil(t, set)
	s.store.err = nil
	require.Equal(t, "alice", s.get(cookie, "user"))

	for _, with := range []string{cookie, ""} {
		answer, set = s.ask(with, func(w http.ResponseWriter, _ *http.Request, store session.Store) {
			require.NoError(t, store.Set("items", 1))
			s.store.err = away
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "saved")
		})
		s.store.err = nil
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusInternalServerError, answer.StatusCode)
		require.Equal(t, "Internal Server Error\n", string(body))
		require.Nil(t, set)
	}

	_, set = s.ask(cookie, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		s.store.err = away
		require.ErrorIs(t, store.Destroy(w, q), away)
		s.store.err = nil
	})
	require.Nil(t, set)
}

// A visitor who comes without a session, and leaves without one, needs no server.
func TestServerAway_Visitor(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.store.err = errors.New("no route")
	answer, set := s.ask("", func(w http.ResponseWriter, _ *http.Request, store session.Store) {
		require.Nil(t, store.Get("user"))
		_, _ = io.WriteString(w, "welcome")
	})
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Nil(t, set)
}

// The session is saved before the response begins, in whatever way that is.
func TestBegins(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(w http.ResponseWriter) error{
		"Write":       func(w http.ResponseWriter) error { _, err := w.Write(nil); return err },
		"WriteHeader": func(w http.ResponseWriter) error { w.WriteHeader(http.StatusAccepted); return nil },
		"Flush":       func(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() },
		"Flusher":     func(w http.ResponseWriter) error { w.(http.Flusher).Flush(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			_, cookie := s.ask("", func(w http.ResponseWriter, q *http.Request, store session.Store) {
				require.NoError(t, store.Set("items", 1))
				require.NoError(t, begin(w))
				require.Equal(t, []string{tombstore.Ref(store.ID())}, s.live())
				require.NoError(t, store.Set("late", 1))
				_, err := session.RegenerateSession(w, q)
				require.ErrorContains(t, err, "after the response has begun")
			})
			require.Equal(t, 1, s.get(cookie.Value, "late"), "it is saved at the end")

			_, cookie = s.ask("", func(w http.ResponseWriter, _ *http.Request, store session.Store) {
				require.NoError(t, begin(w))
				require.NoError(t, store.Set("items", 1))
				require.ErrorContains(t, store.Release(), "the response had begun")
			})
			require.Nil(t, cookie)
			require.Len(t, s.live(), 1)
		})
	}
}

// serve returns a server on which each request runs handler.
func (s *site) serve(handler http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.ServeHTTP(w, q.WithContext(context.WithValue(q.Context(), handlerKey{}, handler)))
	}))
	s.Cleanup(server.Close)
	return server
}

// An informational response is not the beginning, and carries no cookie.
func TestInformational(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server := s.serve(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		_ = session.GetSession(q).Set("items", 1)
	})
	hints := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
			hints++
			require.Empty(t, header["Set-Cookie"])
			return nil
		},
	})
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	answer, err := server.Client().Do(q)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, 1, hints)
	require.Equal(t, 1, s.get(answer.Cookies()[0].Value, "items"))
}

func TestHijack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cookie := s.login()
	server := s.serve(func(w http.ResponseWriter, q *http.Request) {
		_ = session.GetSession(q).Set("items", 1)
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_, _ = io.WriteString(conn, "hello\n")
			_ = conn.Close()
		}
	})
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: %s=%s\r\n\r\n", cookieName, cookie)
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)
	require.Equal(t, 1, s.get(cookie, "items"))
}

// Outside of its request a session is found by its id, as the library has it.
func TestOtherSession(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	alice := s.login()
	s.ask("", func(_ http.ResponseWriter, _ *http.Request, store session.Store) {
		other, err := store.Read(alice)
		require.NoError(t, err)
		require.Equal(t, alice, other.ID())
		require.Equal(t, "alice", other.Get("user"))
		require.NoError(t, other.Set("items", 1))
		require.NoError(t, other.Release())
		n, err := store.Count()
		require.NoError(t, err)
		require.Equal(t, 1, n)
		store.GC()
	})
	require.Equal(t, 1, s.get(alice, "items"))
}

// A Release after which nothing was changed asks the server nothing.
func TestRelease_Twice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ask(s.login(), func(_ http.ResponseWriter, _ *http.Request, store session.Store) {
		require.NoError(t, store.Set("items", 1))
		require.NoError(t, store.Release())
		s.store.err = errors.New("no route")
		require.NoError(t, store.Release())
		require.NoError(t, store.Set("items", 2))
		require.Error(t, store.Release())
	})
}

// A handler that passes its request on to the program shares its session with the next one.
func TestPassedOn(t *testing.T) {
	t.Parallel()
	for _, visitor := range []bool{true, false} {
		s, with := newSite(t), ""
		if !visitor {
			with = s.login()
		}
		_, cookie := s.ask(with, func(w http.ResponseWriter, q *http.Request, store session.Store) {
			require.NoError(t, store.Set("items", 1))
			next := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				inner := session.GetSession(q)
				require.Equal(t, store.ID(), inner.ID())
				require.Equal(t, 1, inner.Get("items"))
				require.NoError(t, inner.Set("items", 2))
				_, err := session.RegenerateSession(w, q)
				require.NoError(t, err)
			})
			s.ServeHTTP(w, q.WithContext(context.WithValue(q.Context(), handlerKey{}, next)))
			require.Equal(t, 2, store.Get("items"))
		})
		require.Equal(t, 2, s.get(cookie.Value, "items"))
		require.Equal(t, []string{tombstore.Ref(cookie.Value)}, s.live())
	}
}

// Goroutines of one request may share its session.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ask(s.login(), func(_ http.ResponseWriter, _ *http.Request, store session.Store) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				_ = store.Set(i, store.Get("user"))
				_ = store.Release()
				_ = store.Delete(i)
				_ = store.ID()
			})
		}
		all.Wait()
	})
}

// The library's own middleware does not do.
func TestNotInstalled(t *testing.T) {
	t.Parallel()
	_, err := session.Sessioner(session.Options{Provider: "tombstore"})
	require.ErrorContains(t, err, "call chistore.Sessioner")
	w, q := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
	require.ErrorContains(t, chistore.Login(w, q, tombstore.Login{}), "outside of its request")
	_, err = chistore.LogoutEverywhere(w, q, "alice")
	require.ErrorContains(t, err, "outside of its request")
}

// A request that panics leaves no cookie behind of a session that is not stored, whoever answers
// for it.
func TestPanic(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sessions := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		defer func() {
			if recover() != nil {
				w.WriteHeader(http.StatusTeapot)
			}
		}()
		sessions.ServeHTTP(w, q)
	})
	cookie := s.login()
	for _, with := range []string{cookie, ""} {
		answer, set := s.ask(with, func(w http.ResponseWriter, q *http.Request, _ session.Store) {
			renewed, err := session.RegenerateSession(w, q)
			require.NoError(t, err)
			require.NoError(t, renewed.Set("user", "bob"))
			panic("out of order")
		})
		require.Equal(t, http.StatusTeapot, answer.StatusCode)
		require.Nil(t, set)
	}
	require.Equal(t, "alice", s.get(cookie, "user"))
	require.Len(t, s.live(), 1)

	_, set := s.ask(cookie, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		require.NoError(t, store.Destroy(w, q))
		panic("out of order")
	})
	require.Negative(t, set.MaxAge)
	require.Empty(t, s.live())
}

// No page says goodbye while the session lives on, although its handler does not look at the error.
func TestDestroy_Fails(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cookie := s.login()
	for _, logout := range []func(w http.ResponseWriter, q *http.Request, store session.Store){
		func(w http.ResponseWriter, q *http.Request, store session.Store) {
			_ = store.Flush()
			_ = store.Destroy(w, q)
		},
		func(w http.ResponseWriter, q *http.Request, store session.Store) {
			_ = store.Destroy(w, q)
			_ = store.Set("flash", "bye")
		},
	} {
		answer, set := s.ask(cookie, func(w http.ResponseWriter, q *http.Request, store session.Store) {
			s.store.err = errors.New("no route")
			logout(w, q, store)
			s.store.err = nil
			http.Redirect(w, q, "/", http.StatusSeeOther)
		})
		require.Equal(t, http.StatusInternalServerError, answer.StatusCode)
		require.Nil(t, set)
		require.Equal(t, "alice", s.get(cookie, "user"))
	}

	answer, _ := s.ask(cookie, func(w http.ResponseWriter, q *http.Request, store session.Store) {
		s.store.err = errors.New("no route")
		require.Error(t, store.Destroy(w, q))
		s.store.err = nil
		require.NoError(t, store.Destroy(w, q), "it is tried again")
	})
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Empty(t, s.live())
}

// A goroutine that outlives its request cannot log out, and is told so.
func TestDestroy_AfterRequest(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cookie := s.login()
	var late func() error
	s.ask(cookie, func(_ http.ResponseWriter, q *http.Request, store session.Store) {
		late = func() error { return store.Destroy(httptest.NewRecorder(), q) }
	})
	require.Error(t, late())
	require.Equal(t, "alice", s.get(cookie, "user"))
}

// asked is an OldStore that notes what it is asked for.
type asked struct{ ids []string }

func (a *asked) Read(_ context.Context, id string) ([]byte, time.Duration, error) {
	a.ids = append(a.ids, id)
	return nil, 0, tombstore.ErrNotFound
}

func (a *asked) Delete(context.Context, string) (bool, error) { return false, nil }

// Only what the library would take for an id is looked for where sessions were before: a cookie
// could name any key there.
func TestMigration_OtherKeys(t *testing.T) {
	t.Parallel()
	old := &asked{}
	s := newSite(t, adapter.WithMigration(old))
	for _, cookie := range []string{
		"config", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0", "0123456789%20bcdef",
	} {
		s.ask(cookie, func(w http.ResponseWriter, q *http.Request, store session.Store) {
			require.NoError(t, store.Destroy(w, q))
		})
		require.Empty(t, old.ids)
	}
	s.ask("0123456789abcdef", func(http.ResponseWriter, *http.Request, session.Store) {})
	require.Equal(t, []string{"0123456789abcdef"}, old.ids)
}
