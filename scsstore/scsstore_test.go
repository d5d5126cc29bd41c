package scsstore_test

import (
	"context"
	"encoding/gob"
	"errors"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/scsstore"
)

// counter counts what a store is asked to do.
type counter struct {
	*tombstore.MemoryStore
	writes, touches, ends atomic.Int64
}

func (c *counter) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	c.writes.Add(1)
	return c.MemoryStore.Write(ctx, id, data, ttl, opts...)
}

func (c *counter) Touch(ctx context.Context, id string, ttl time.Duration) error {
	c.touches.Add(1)
	return c.MemoryStore.Touch(ctx, id, ttl)
}

func (c *counter) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	c.ends.Add(1)
	return c.MemoryStore.Invalidate(ctx, id, opts...)
}

func newCounter(t *testing.T) *counter {
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	return &counter{MemoryStore: store}
}

// serve answers one request, without a network that would keep some cookies from arriving.
func serve(
	sm *scs.SessionManager, loadAndSave func(http.Handler) http.Handler, token string, handler http.HandlerFunc,
) *http.Response {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if token != "" {
		r.Header.Set("Cookie", sm.Cookie.Name+"="+token)
	}
	w := httptest.NewRecorder()
	loadAndSave(handler).ServeHTTP(w, r)
	return w.Result()
}

func put(sm *scs.SessionManager, key string, value any) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) { sm.Put(r.Context(), key, value) }
}

func nothing(http.ResponseWriter, *http.Request) {}

func TestBadCookies(t *testing.T) {
	t.Parallel()
	dead := tombstore.NewID()
	for name, cookie := range map[string]string{
		"malformed": "not-a-token",
		"truncated": tombstore.NewID()[:20],
		"unknown":   tombstore.NewID(),
		"replayed":  dead,
		"4 KiB":     strings.Repeat("x", 4096),
		"binary":    "\x00\x01\xff\xfe\x80",
		"handle":    "\x00ref:" + tombstore.Ref(dead),
		"quoted":    `"` + dead + `"`,
		"spaces":    "a b  c",
		"no value":  "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newCounter(t)
			require.NoError(t, store.MemoryStore.Invalidate(t.Context(), dead))
			sm := newManager(time.Minute)
			loadAndSave := scsstore.Install(sm, store)
			res := serve(sm, loadAndSave, cookie, nothing)
			require.Equal(t, http.StatusOK, res.StatusCode)
			require.Empty(t, res.Cookies())
			require.Zero(t, store.writes.Load()+store.touches.Load()+store.ends.Load())

			res = serve(sm, loadAndSave, cookie, put(sm, "cart", 1))
			require.Equal(t, http.StatusOK, res.StatusCode)
			require.Len(t, res.Cookies(), 1)
			require.Len(t, res.Cookies()[0].Value, 43)
			require.NotEqual(t, cookie, res.Cookies()[0].Value)
			require.EqualValues(t, 1, store.writes.Load())
		})
	}
}

// Whether it answers with a body, a status, both or neither, a refused request keeps its response.
func TestRefused_ResponseIsComplete(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(w http.ResponseWriter){
		"nothing": func(http.ResponseWriter) {},
		"status":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot) },
		"body":    func(w http.ResponseWriter) { _, _ = w.Write([]byte("body")) },
		"flush": func(w http.ResponseWriter) {
			_, _ = w.Write([]byte("bo"))
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write([]byte("dy"))
		},
		"own cookies": func(w http.ResponseWriter) {
			http.SetCookie(w, &http.Cookie{Name: "session2", Value: "1"})
		},
	} {
		for _, logout := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				store := newCounter(t)
				sm := scs.New()
				loadAndSave := scsstore.Install(sm, store)
				token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
				w := httptest.NewRecorder()
				r := httptest.NewRequest(http.MethodGet, "/", nil)
				r.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: token})
				loadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					require.NoError(t, store.Invalidate(r.Context(), token))
					sm.Put(r.Context(), "user", "bob")
					if logout {
						require.NoError(t, sm.Destroy(r.Context()))
					}
					answer(w)
				})).ServeHTTP(w, r)
				plain := httptest.NewRecorder()
				answer(plain)
				plain.Header().Set("Vary", "Cookie")
				require.Equal(t, plain.Code, w.Code)
				require.Equal(t, plain.Body.String(), w.Body.String())
				require.Equal(t, plain.Result().Cookies(), w.Result().Cookies())
				require.Equal(t, "Cookie", w.Header().Get("Vary"))
			})
		}
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	store := newCounter(t)
	loadAndSave := scsstore.Install(sm, store)
	for want, end := range map[tombstore.Reason]func(context.Context) error{
		tombstore.Logout:  sm.Destroy,
		tombstore.Rotated: sm.RenewToken,
	} {
		token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
		serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) { require.NoError(t, end(r.Context())) })
		_, err := store.Read(t.Context(), token)
		var ended *tombstore.InvalidatedError
		require.ErrorAs(t, err, &ended)
		require.Equal(t, want, ended.Reason)
	}
}

func TestOnRefused(t *testing.T) {
	t.Parallel()
	var events []tombstore.Event
	sm := scs.New()
	s, store := installed(t, sm, adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
		e.Err = nil
		events = append(events, e)
	}))
	token := s.get("/login", "").token()
	b := s.gate("b")
	done := s.start("/put?gate=b", token)
	<-b.reached
	require.NoError(t, store.Invalidate(t.Context(), token, tombstore.WithReason(tombstore.Revoked)))
	close(b.open)
	<-done
	want := tombstore.Event{
		Verb: "write", Outcome: tombstore.OutcomeRefused, Reason: tombstore.Revoked, Ref: tombstore.Ref(token),
	}
	require.Equal(t, []tombstore.Event{want}, events)
}

type item struct{ Name string }

func init() {
	gob.Register(item{})
	gob.Register(time.Time{})
}

func TestUnchanged(t *testing.T) {
	t.Parallel()
	store := newCounter(t)
	sm := newManager(time.Minute)
	loadAndSave := scsstore.Install(sm, store)
	token := serve(sm, loadAndSave, "", func(_ http.ResponseWriter, r *http.Request) {
		for _, key := range strings.Split("abcdefghijklmnopqrst", "") {
			sm.Put(r.Context(), key, key)
		}
		sm.Put(r.Context(), "item", item{"x"})
		sm.Put(r.Context(), "time", time.Now())
	}).Cookies()[0].Value
	store.writes.Store(0)
	for range 50 { // gob writes the values in another order almost every time
		require.Empty(t, serve(sm, loadAndSave, token, nothing).Cookies())
	}
	require.Zero(t, store.touches.Load())
	for n := range 50 {
		require.NoError(t, store.MemoryStore.Touch(t.Context(), token, 30*time.Second))
		res := serve(sm, loadAndSave, token, nothing)
		require.Equal(t, token, res.Cookies()[0].Value)
		require.EqualValues(t, n+1, store.touches.Load())
	}
	require.Zero(t, store.writes.Load())

	swap := func(_ http.ResponseWriter, r *http.Request) { // the same bytes in another place
		a, b := sm.Get(r.Context(), "a"), sm.Get(r.Context(), "b")
		sm.Put(r.Context(), "a", b)
		sm.Put(r.Context(), "b", a)
	}
	deadline := func(_ http.ResponseWriter, r *http.Request) {
		sm.SetDeadline(r.Context(), sm.Deadline(r.Context()).Add(time.Second))
	}
	twice := func(_ http.ResponseWriter, r *http.Request) {
		sm.Put(r.Context(), "a", "1")
		_, _, err := sm.Commit(r.Context())
		require.NoError(t, err)
		sm.Put(r.Context(), "a", "2")
	}
	for _, tt := range []struct {
		want    int64
		handler http.HandlerFunc
	}{{1, swap}, {1, deadline}, {2, twice}} {
		store.writes.Store(0)
		serve(sm, loadAndSave, token, tt.handler)
		require.Equal(t, tt.want, store.writes.Load())
	}
	serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
		require.Equal(t, "2", sm.GetString(r.Context(), "a"))
	})
}

func TestLogOutEverywhere(t *testing.T) {
	t.Parallel()
	for _, hash := range []bool{false, true} {
		for _, admin := range []string{"alice", "root", "nobody"} {
			t.Run(admin, func(t *testing.T) {
				t.Parallel()
				sm := newManager(time.Minute)
				sm.HashTokenInStore = hash
				store := newCounter(t)
				loadAndSave := scsstore.Install(sm, store)
				login := func(user string) string {
					return serve(sm, loadAndSave, "", put(sm, "user", user)).Cookies()[0].Value
				}
				user := func(token string) (user string) {
					serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
						user = sm.GetString(r.Context(), "user")
					})
					return user
				}
				all := func(ctx context.Context) error {
					return sm.Iterate(ctx, func(ctx context.Context) error {
						if sm.GetString(ctx, "user") == "alice" {
							return sm.Destroy(ctx)
						}
						return nil
					})
				}
				bob, one, two := login("bob"), login("alice"), login("alice")
				if admin == "nobody" { // a job, not a request
					require.NoError(t, all(t.Context()))
				} else {
					token := login(admin)
					res := serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
						require.NoError(t, all(r.Context()))
						sm.Put(r.Context(), "done", true)
					})
					require.Equal(t, http.StatusOK, res.StatusCode)
					if admin == "alice" {
						require.Empty(t, res.Cookies())
						require.Empty(t, user(token))
					} else {
						require.Equal(t, token, res.Cookies()[0].Value)
						require.Equal(t, admin, user(token))
					}
				}
				require.Equal(t, []string{"bob", "", ""}, []string{user(bob), user(one), user(two)})
				serve(sm, loadAndSave, bob, func(_ http.ResponseWriter, r *http.Request) {
					require.NoError(t, sm.Destroy(r.Context()))
				})
				require.Empty(t, user(bob))
			})
		}
	}
}

// A user who logs out everywhere else is known by the token of the session.
func TestIterate_OwnSession(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	loadAndSave := scsstore.Install(sm, newCounter(t))
	token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
	serve(sm, loadAndSave, "", put(sm, "user", "alice"))
	res := serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
		require.NoError(t, sm.Iterate(r.Context(), func(ctx context.Context) error {
			if sm.Token(ctx) != sm.Token(r.Context()) {
				return sm.Destroy(ctx)
			}
			return nil
		}))
		require.NoError(t, sm.RenewToken(r.Context()))
	})
	require.Len(t, res.Cookies(), 1)
	tokens, err := sm.Store.(*scsstore.Store).All()
	require.NoError(t, err)
	require.Len(t, tokens, 1)
}

// One who renews the session first, and then logs out everywhere else, keeps it: it is between two
// tokens, so Iterate must not meet it. And it stays the same session, for a logout with the old
// token.
func TestIterate_WhileRenewing(t *testing.T) {
	t.Parallel()
	for _, hash := range []bool{false, true} {
		for _, loggedOut := range []bool{false, true} {
			sm := newManager(time.Hour)
			sm.HashTokenInStore = hash
			s, _ := installed(t, sm)
			s.actions["/everywhere"] = func(_ http.ResponseWriter, r *http.Request) error {
				if err := sm.RenewToken(r.Context()); err != nil {
					return err
				}
				return sm.Iterate(r.Context(), sm.Destroy)
			}
			login := func() string { return s.get("/login", s.get("/put", "").token()).token() }
			x, other := login(), login()
			b := s.gate("b-done")
			done := s.start("/everywhere?gate=b", x)
			<-b.reached
			require.Equal(t, "/0.", s.get("/read", other).body)
			if loggedOut {
				require.Equal(t, http.StatusAccepted, s.get("/logout", x).status)
			}
			close(b.open)
			got := <-done
			require.Equal(t, http.StatusAccepted, got.status)
			if loggedOut {
				require.Empty(t, got.cookies)
			} else {
				require.Equal(t, "alice/1.", s.get("/read", got.token()).body)
				require.Equal(t, http.StatusAccepted, s.get("/logout", x).status)
			}
			require.Empty(t, s.live())
		}
	}
}

// A change of the password ends all sessions but its own, and its client goes away before that has
// its new token. Another request that came with the old one does not take it over.
func TestIterate_IsNotTakenOver(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	sm := newManager(time.Hour)
	loadAndSave := scsstore.Install(sm, memory)
	token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
	res := serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
		ctx, leave := context.WithCancel(t.Context())
		change := httptest.NewRequest(http.MethodPost, "/password", nil).WithContext(ctx)
		change.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: token})
		loadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			require.NoError(t, sm.RenewToken(r.Context()))
			require.NoError(t, sm.Iterate(r.Context(), sm.Destroy))
			leave()
		})).ServeHTTP(httptest.NewRecorder(), change)
		require.NoError(t, sm.RenewToken(r.Context()))
	})
	require.Empty(t, res.Cookies())
	for _, err := range memory.List(t.Context()) {
		require.NoError(t, err)
		require.Fail(t, "a session is live, or may be")
	}
}

// refusing is a store that does not save while it is told so.
type refusing struct {
	renewer
	saves bool
}

func (s *refusing) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	if !s.saves {
		return tombstore.Session{}, tombstore.ErrUnknownOutcome
	}
	return s.renewer.Write(ctx, id, data, ttl, opts...)
}

// A logout whose flash could not be saved is one, and the next call ends what may have been.
func TestDestroy_AfterFailedCommit(t *testing.T) {
	t.Parallel()
	for _, renewed := range []bool{false, true} {
		store := &refusing{onMemory(t), true}
		sm := scs.New()
		loadAndSave := scsstore.Install(sm, store)
		token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
		serve(sm, loadAndSave, token, func(w http.ResponseWriter, r *http.Request) {
			if renewed { // in another tab
				serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) { require.NoError(t, sm.RenewToken(r.Context())) })
			}
			require.NoError(t, destroyPut(sm, w, r))
			store.saves = false
			_, _, err := sm.Commit(r.Context())
			require.ErrorIs(t, err, tombstore.ErrUnknownOutcome)
			store.saves = true
			require.NoError(t, sm.Destroy(r.Context()))
		})
		require.NoError(t, sm.Iterate(t.Context(), func(context.Context) error { return errors.New("a session is live") }))
	}
}

// What is done to the sessions of others does nothing to that of the request.
func TestIterate_OthersAreNotTheRequests(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	loadAndSave := scsstore.Install(sm, newCounter(t))
	token := serve(sm, loadAndSave, "", put(sm, "user", "root")).Cookies()[0].Value
	serve(sm, loadAndSave, "", put(sm, "user", "alice"))
	res := serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
		require.NoError(t, sm.Iterate(r.Context(), func(ctx context.Context) error {
			if sm.GetString(ctx, "user") == "root" {
				return nil
			}
			sm.Put(ctx, "seen", true)
			_, _, err := sm.Commit(ctx)
			require.ErrorContains(t, err, "cannot be changed") // there is no token to store it under
			require.NoError(t, sm.RenewToken(ctx))
			_, _, err = sm.Commit(ctx)
			return err
		}))
		sm.Put(r.Context(), "done", true)
	})
	require.Equal(t, token, res.Cookies()[0].Value)
	serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
		require.Equal(t, "root", sm.GetString(r.Context(), "user"))
		require.False(t, sm.GetBool(r.Context(), "seen"))
	})
}

func TestMergeSession(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	store := newCounter(t)
	loadAndSave := scsstore.Install(sm, store)
	other := serve(sm, loadAndSave, "", put(sm, "cart", 1)).Cookies()[0].Value
	for _, own := range []string{"", serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value} {
		other = serve(sm, loadAndSave, own, func(_ http.ResponseWriter, r *http.Request) {
			require.NoError(t, sm.MergeSession(r.Context(), other))
		}).Cookies()[0].Value
	}
	serve(sm, loadAndSave, other, func(_ http.ResponseWriter, r *http.Request) {
		require.Equal(t, "alice", sm.GetString(r.Context(), "user"))
		require.Equal(t, 1, sm.GetInt(r.Context(), "cart"))
	})
	all, err := sm.Store.(*scsstore.Store).All()
	require.NoError(t, err)
	require.Len(t, all, 1)
}

// The two middlewares of two managers, and one that is there twice, do not meet.
func TestInstall_Twice(t *testing.T) {
	t.Parallel()
	one, two := scs.New(), scs.New()
	two.Cookie.Name = "two"
	store := newCounter(t)
	loadOne, loadTwo := scsstore.Install(one, store), scsstore.Install(two, store)
	w := httptest.NewRecorder()
	loadOne(loadTwo(loadOne(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		one.Put(r.Context(), "n", 1)
		two.Put(r.Context(), "n", 2)
	})))).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	for _, cookie := range w.Result().Cookies() {
		sm, want := one, 1
		if cookie.Name == "two" {
			sm, want = two, 2
		}
		ctx, err := sm.Load(t.Context(), cookie.Value)
		require.NoError(t, err)
		require.Equal(t, want, sm.GetInt(ctx, "n"))
	}
	all, err := one.Store.(*scsstore.Store).All()
	require.NoError(t, err)
	require.Len(t, all, 2)
}

func TestInstall_FailuresAreNotSwallowed(t *testing.T) {
	t.Parallel()
	var failure error
	sm := scs.New()
	sm.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
		failure = err
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	loadAndSave := scsstore.Install(sm, newCounter(t))
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: tombstore.NewID()})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	loadAndSave(http.HandlerFunc(nothing)).ServeHTTP(w, r.WithContext(ctx))
	require.ErrorIs(t, failure, context.Canceled)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
}

func TestStore(t *testing.T) {
	t.Parallel()
	store := newCounter(t)
	s := scsstore.New(store)
	id := tombstore.NewID()
	soon := time.Now().Add(time.Minute)
	found := func(token string) bool {
		b, found, err := s.Find(token)
		require.NoError(t, err)
		require.Equal(t, found, b != nil)
		return found
	}
	require.False(t, found(id))
	require.NoError(t, s.Commit(id, []byte("x"), soon))
	require.True(t, found(id))

	all, err := s.All()
	require.NoError(t, err)
	handle := "\x00ref:" + tombstore.Ref(id)
	require.Equal(t, map[string][]byte{handle: []byte("x")}, all)
	require.False(t, found(handle))
	require.ErrorContains(t, s.Commit(handle, []byte("y"), soon), "cannot be changed")
	require.NoError(t, s.Delete(handle))
	require.False(t, found(id))
	require.ErrorIs(t, s.Commit(id, []byte("y"), soon), adapter.ErrRefused)
	_, err = store.Read(t.Context(), id)
	var ended *tombstore.InvalidatedError
	require.ErrorAs(t, err, &ended)
	require.Equal(t, tombstore.Revoked, ended.Reason)

	id = tombstore.NewID()
	require.NoError(t, s.Commit(id, []byte("x"), soon))
	require.NoError(t, s.Commit(id, []byte("x"), time.Now()))
	require.False(t, found(id))
	require.NoError(t, s.Delete(""))
	require.NoError(t, s.Delete(id))
	require.ErrorIs(t, s.Delete("\x00ref:x"), tombstore.ErrInvalidID)
	all, err = s.All()
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{}, all)
}

func TestAll_StoreThatCannotList(t *testing.T) {
	t.Parallel()
	s := scsstore.New(struct{ tombstore.Renewer }{newCounter(t)})
	_, err := s.All()
	require.ErrorContains(t, err, "cannot list")
	require.ErrorContains(t, s.Delete("\x00ref:x"), "cannot list")
}

// failing lists a damaged record, and then what err says.
type failing struct {
	*counter
	err error
}

func (f failing) List(context.Context) iter.Seq2[tombstore.Entry, error] {
	return func(yield func(tombstore.Entry, error) bool) {
		_ = yield(tombstore.Entry{}, tombstore.ErrCorrupt) && yield(tombstore.Entry{Ref: "r"}, f.err)
	}
}

func TestAll_Errors(t *testing.T) {
	t.Parallel()
	all, err := scsstore.New(failing{newCounter(t), nil}).All()
	require.NoError(t, err)
	require.Contains(t, all, "\x00ref:r")
	require.Len(t, all, 1)

	down := errors.New("down")
	sm := scs.New()
	sm.HashTokenInStore = true
	scsstore.Install(sm, failing{newCounter(t), down})
	_, err = sm.Store.(*scsstore.Store).All()
	require.ErrorIs(t, err, down)
	require.ErrorIs(t, sm.Store.Delete(tombstore.NewID()), down) // may have been a handle
}
