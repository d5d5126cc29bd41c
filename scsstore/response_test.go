package scsstore_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

// However the response begins, it carries the cookie of a login.
func TestResponse_KeepsTheCookie(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(w http.ResponseWriter) error{
		"nothing": func(http.ResponseWriter) error { return nil },
		"status":  func(w http.ResponseWriter) error { w.WriteHeader(http.StatusAccepted); return nil },
		"body":    func(w http.ResponseWriter) error { _, err := io.WriteString(w, "body"); return err },
		"Flush":   func(w http.ResponseWriter) error { w.(http.Flusher).Flush(); return nil },
		"Flush of ResponseController": func(w http.ResponseWriter) error {
			return http.NewResponseController(w).Flush()
		},
		"Early Hints": func(w http.ResponseWriter) error { w.WriteHeader(http.StatusEarlyHints); return nil },
		"Early Hints, status": func(w http.ResponseWriter) error {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusProcessing)
			w.WriteHeader(http.StatusAccepted)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sm := scs.New()
			s, _ := installed(t, sm)
			login := s.actions["/login"]
			s.actions["/answer"] = func(w http.ResponseWriter, r *http.Request) error {
				if err := login(w, r); err != nil {
					return err
				}
				return answer(w)
			}
			x := s.get("/put", "").token()
			got := s.get("/answer", x)
			require.Len(t, got.cookies, 1)
			require.Equal(t, "alice/1.", s.get("/read", got.token()).body)
		})
	}
}

// What the handler changes between an informational response and the first byte is saved, and the
// informational response carries no cookie of a session that nobody has saved.
func TestResponse_InformationalIsNotTheFirstByte(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	s, _ := installed(t, sm)
	s.actions["/hint"] = func(w http.ResponseWriter, r *http.Request) error {
		sm.Put(r.Context(), "cart", 1)
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		sm.Put(r.Context(), "cart", 2)
		return nil
	}
	var hints []textproto.MIMEHeader
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
			hints = append(hints, header)
			return nil
		},
	})
	got, err := s.try(ctx, "/hint", "")
	require.NoError(t, err)
	require.Len(t, hints, 1)
	require.NotEmpty(t, hints[0].Get("Link"))
	require.Empty(t, hints[0].Get("Set-Cookie"))
	require.Equal(t, "/2.", s.get("/read", got.token()).body)
}

// A logout of a session that somebody else has ended takes no cookie away, after an informational
// response too.
func TestResponse_InformationalThenLateLogout(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	s, _ := installed(t, sm)
	s.actions["/hint"] = func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(http.StatusEarlyHints)
		return sm.Destroy(r.Context())
	}
	x := s.get("/login", s.get("/put", "").token()).token()
	b := s.gate("b")
	done := s.start("/hint?gate=b", x)
	<-b.reached
	require.Equal(t, http.StatusAccepted, s.get("/logout", x).status)
	close(b.open)
	got := <-done
	require.Equal(t, http.StatusAccepted, got.status)
	require.Empty(t, got.cookies)
}

// A handler that takes over the connection has its session saved before, and what it changes later
// when it is done. A refusal is not its business.
func TestResponse_Hijack(t *testing.T) {
	t.Parallel()
	for name, hijack := range map[string]func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error){
		"Hijacker": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return w.(http.Hijacker).Hijack()
		},
		"ResponseController": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return http.NewResponseController(w).Hijack()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory, err := tombstore.NewMemory()
			require.NoError(t, err)
			sm := scs.New()
			refused := make(chan string, 10)
			hook := adapter.WithOnRefused(func(ctx context.Context, _ tombstore.Event) {
				refused <- sm.GetString(ctx, "user")
			})
			s := newSite(t, sm, scsstore.Install(sm, memory, hook))
			taken, done, tokens := make(chan struct{}), make(chan struct{}), make(chan string, 1)
			upgrade := func(w http.ResponseWriter, r *http.Request) error {
				conn, _, err := hijack(w)
				if err != nil {
					return err
				}
				defer conn.Close()
				tokens <- sm.Token(r.Context())
				close(taken)
				<-done
				sm.Put(r.Context(), "cart", sm.GetInt(r.Context(), "cart")+1)
				_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
				return err
			}
			login := s.actions["/login"]
			s.actions["/upgrade"] = func(w http.ResponseWriter, r *http.Request) error {
				return errors.Join(login(w, r), upgrade(w, r))
			}
			s.actions["/late"] = func(w http.ResponseWriter, r *http.Request) error {
				sm.Put(r.Context(), "user", "bob")
				return upgrade(w, r)
			}

			answer := s.start("/upgrade", s.get("/put", "").token())
			<-taken
			token := <-tokens
			require.Equal(t, "alice/1.", s.get("/read", token).body)
			close(done)
			require.Equal(t, "ok", (<-answer).body)
			redistest.Until(t, "the handler has returned", func() bool {
				return s.get("/read", token).body == "alice/2."
			})

			taken, done = make(chan struct{}), make(chan struct{})
			b := s.gate("b")
			answer = s.start("/late?gate=b", token)
			<-b.reached
			require.NoError(t, memory.Invalidate(t.Context(), token))
			close(b.open)
			<-taken
			require.Equal(t, "bob", <-refused, "before the handler goes on")
			close(done)
			require.Equal(t, "ok", (<-answer).body)
			require.Equal(t, "bob", <-refused)
			require.Empty(t, s.live())
		})
	}
}

// down is a store that does not write.
type down struct{ renewer }

func (down) Write(
	context.Context, string, []byte, time.Duration, ...tombstore.WriteOption,
) (tombstore.Session, error) {
	return tombstore.Session{}, tombstore.ErrUnknownOutcome
}

func TestResponse_HijackFails(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	s := newSite(t, sm, scsstore.Install(sm, down{onMemory(t)}))
	s.actions["/upgrade"] = func(w http.ResponseWriter, r *http.Request) error {
		sm.Put(r.Context(), "cart", 1)
		_, _, err := w.(http.Hijacker).Hijack()
		require.ErrorIs(t, err, tombstore.ErrUnknownOutcome)
		return err
	}
	got := s.get("/upgrade", "")
	require.Equal(t, http.StatusInternalServerError, got.status)
	require.Empty(t, got.cookies)
}

// What a handler does to the session after its client has left, or its time is up, is carried out:
// an order that was paid is saved, and a logout ends the session.
func TestResponse_ClientLeaves(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(http.Handler, middleware) http.Handler{
		"plain": func(next http.Handler, loadAndSave middleware) http.Handler {
			return loadAndSave(next)
		},
		"TimeoutHandler around": func(next http.Handler, loadAndSave middleware) http.Handler {
			return http.TimeoutHandler(loadAndSave(next), time.Hour, "too late")
		},
		"TimeoutHandler inside": func(next http.Handler, loadAndSave middleware) http.Handler {
			return loadAndSave(http.TimeoutHandler(next, time.Hour, "too late"))
		},
	} {
		for _, what := range []string{"logout", "order", "order, in a new session", "explicit commit"} {
			if name == "TimeoutHandler inside" && strings.HasPrefix(what, "order") {
				continue // scs saves before TimeoutHandler answers, which does not wait for the handler
			}
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				sm := scs.New()
				store := onMemory(t)
				loadAndSave := scsstore.Install(sm, store)
				token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
				if what == "order, in a new session" {
					require.NoError(t, store.Invalidate(t.Context(), token))
					token = ""
				}
				begun, over := make(chan struct{}), make(chan struct{})
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						close(begun)
						<-r.Context().Done()
						var err error
						switch {
						case what == "logout":
							err = sm.Destroy(r.Context())
							close(over)
						case what == "explicit commit":
							sm.Put(r.Context(), "order", "paid")
							_, _, err = sm.Commit(r.Context())
							close(over)
						default:
							sm.Put(r.Context(), "order", "paid")
						}
						if err != nil {
							t.Error(err)
						}
					}), func(next http.Handler) http.Handler {
						return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							loadAndSave(next).ServeHTTP(w, r)
							if strings.HasPrefix(what, "order") {
								close(over)
							}
						})
					}).ServeHTTP(w, r)
				}))
				defer server.Close()
				ctx, leave := context.WithCancel(t.Context())
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, nil)
				require.NoError(t, err)
				if token != "" {
					r.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: token})
				}
				gone := make(chan struct{})
				go func() {
					defer close(gone)
					_, err := httpClient.Do(r)
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				}()
				<-begun
				leave()
				<-gone
				<-over
				orders := []string{}
				require.NoError(t, sm.Iterate(t.Context(), func(ctx context.Context) error {
					orders = append(orders, sm.GetString(ctx, "order"))
					return nil
				}))
				if what == "logout" {
					require.Empty(t, orders)
				} else {
					require.Equal(t, []string{"paid"}, orders)
				}
			})
		}
	}
}

// A hook reads the session whose save was refused, before the answer has left; also when the
// handler saves by itself, panics, or goes on when the middleware is done.
func TestHooks_ReadTheSession(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	refused := make(chan string, 10)
	s, store := installed(t, sm, adapter.WithOnRefused(func(ctx context.Context, e tombstore.Event) {
		refused <- e.Verb + " " + sm.GetString(ctx, "user")
	}))
	commit := func(r *http.Request) error {
		sm.Put(r.Context(), "user", "bob")
		_, _, err := sm.Commit(r.Context())
		if !errors.Is(err, adapter.ErrRefused) {
			return errors.New("not refused")
		}
		return nil
	}
	over := make(chan struct{})
	for name, act := range map[string]action{
		"/commit": func(_ http.ResponseWriter, r *http.Request) error { return commit(r) },
		"/panic": func(_ http.ResponseWriter, r *http.Request) error {
			if err := commit(r); err != nil {
				return err
			}
			panic(http.ErrAbortHandler)
		},
		"/outlives": func(_ http.ResponseWriter, r *http.Request) error {
			go func() {
				<-over
				if err := commit(r); err != nil {
					t.Error(err)
				}
			}()
			return nil
		},
	} {
		s.actions[name] = func(w http.ResponseWriter, r *http.Request) error {
			if err := store.Invalidate(r.Context(), sm.Token(r.Context())); err != nil {
				return err
			}
			return act(w, r)
		}
	}
	token := func() string { return s.get("/login", s.get("/put", "").token()).token() }

	require.Equal(t, "alice/1.", s.get("/commit", token()).body)
	require.Equal(t, "write bob", <-refused) // of the handler
	require.Equal(t, "write bob", <-refused) // of scs
	_, err := s.try(t.Context(), "/panic", token())
	require.Error(t, err)
	require.Equal(t, "write bob", <-refused)
	require.Equal(t, "alice/1.", s.get("/outlives", token()).body)
	require.Empty(t, refused)
	close(over)
	require.Equal(t, "write bob", <-refused)
}
