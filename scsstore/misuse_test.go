package scsstore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/scsstore"
)

type middleware = func(http.Handler) http.Handler

func TestInstall_TwiceOnOneManager(t *testing.T) {
	t.Parallel()
	type install = func(*scs.SessionManager, tombstore.Renewer, ...adapter.Option) middleware
	for _, first := range []install{scsstore.Install, scsstore.Protect} {
		for _, second := range []install{scsstore.Install, scsstore.Protect} {
			sm := scs.New()
			first(sm, newCounter(t))
			require.PanicsWithValue(t, "scsstore: Install or Protect was called twice for one SessionManager",
				func() { second(sm, newCounter(t)) })
		}
	}
	sm := scs.New()
	sm.Store = scsstore.New(newCounter(t)) // is of no use beside Install
	require.NotPanics(t, func() { scsstore.Install(sm, newCounter(t)) })
}

// outdated is a store that wraps another one and knows nothing of contexts.
type outdated struct{ s scs.Store }

func (o outdated) Find(token string) ([]byte, bool, error) { return o.s.Find(token) }
func (o outdated) Delete(token string) error               { return o.s.Delete(token) }
func (o outdated) Commit(token string, b []byte, expiry time.Time) error {
	return o.s.Commit(token, b, expiry)
}

// dropping is a store that wraps another one, and drops the context.
type dropping struct {
	outdated
	scs.CtxStore
}

func (d dropping) Find(token string) ([]byte, bool, error) { return d.outdated.Find(token) }
func (d dropping) Delete(token string) error               { return d.outdated.Delete(token) }
func (d dropping) Commit(token string, b []byte, expiry time.Time) error {
	return d.outdated.Commit(token, b, expiry)
}

func (d dropping) FindCtx(_ context.Context, token string) ([]byte, bool, error) {
	return d.outdated.Find(token)
}

func (d dropping) CommitCtx(_ context.Context, token string, b []byte, expiry time.Time) error {
	return d.outdated.Commit(token, b, expiry)
}

func (d dropping) DeleteCtx(_ context.Context, token string) error { return d.outdated.Delete(token) }

// Where the middleware is missing, or of no effect, every request that has a session or begins one
// fails, through ErrorFunc and with the reason, on a server and without one.
func TestInstall_MiddlewareIsMissing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		set  func(sm *scs.SessionManager, store tombstore.Renewer) middleware
		want string
	}{
		"LoadAndSave": {func(sm *scs.SessionManager, store tombstore.Renewer) middleware {
			scsstore.Install(sm, store)
			return sm.LoadAndSave
		}, "not passed the middleware"},
		"LoadAndSave, inlined": {func(sm *scs.SessionManager, store tombstore.Renewer) middleware {
			scsstore.Install(sm, store)
			return func(next http.Handler) http.Handler { return sm.LoadAndSave(next) }
		}, "not passed the middleware"},
		"in the wrong order": {func(sm *scs.SessionManager, store tombstore.Renewer) middleware {
			protect := scsstore.Protect(sm, store)
			return func(next http.Handler) http.Handler { return sm.LoadAndSave(protect(next)) }
		}, "not passed the middleware"},
		"of another manager": {func(sm *scs.SessionManager, store tombstore.Renewer) middleware {
			scsstore.Install(sm, store)
			other := scsstore.Protect(scs.New(), store)
			return func(next http.Handler) http.Handler { return other(sm.LoadAndSave(next)) }
		}, "not passed the middleware"},
		"store that knows no contexts": {func(sm *scs.SessionManager, store tombstore.Renewer) middleware {
			loadAndSave := scsstore.Install(sm, store)
			sm.Store = outdated{sm.Store}
			return loadAndSave
		}, "must be an scs.CtxStore"},
		"store that drops the context": {func(sm *scs.SessionManager, store tombstore.Renewer) middleware {
			loadAndSave := scsstore.Install(sm, store)
			sm.Store = dropping{outdated{sm.Store}, sm.Store.(scs.CtxStore)}
			return loadAndSave
		}, "dropped the context"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failure error
			sm := scs.New()
			sm.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
				failure = err
				w.WriteHeader(http.StatusInternalServerError)
			}
			store := newCounter(t)
			loadAndSave := tt.set(sm, store)
			live := tombstore.NewID()
			b, err := scs.GobCodec{}.Encode(time.Now().Add(time.Hour), map[string]any{"user": "alice"})
			require.NoError(t, err)
			_, err = store.Write(t.Context(), live, b, time.Hour)
			require.NoError(t, err)
			server := httptest.NewServer(loadAndSave(put(sm, "cart", 1)))
			defer server.Close()
			for _, token := range []string{"", live, tombstore.NewID()} {
				failure = nil
				res := serve(sm, loadAndSave, token, put(sm, "cart", 1))
				require.Equal(t, http.StatusInternalServerError, res.StatusCode)
				require.Empty(t, res.Cookies())
				require.ErrorContains(t, failure, tt.want)

				failure = nil
				r, err := http.NewRequest(http.MethodGet, server.URL, nil)
				require.NoError(t, err)
				r.AddCookie(&http.Cookie{Name: sm.Cookie.Name, Value: token})
				res, err = httpClient.Do(r)
				require.NoError(t, err)
				require.NoError(t, res.Body.Close())
				require.Equal(t, http.StatusInternalServerError, res.StatusCode)
				require.Empty(t, res.Cookies())
				require.ErrorContains(t, failure, tt.want)
			}
			all, err := scsstore.New(store).All()
			require.NoError(t, err)
			require.Len(t, all, 1)
		})
	}
}

// A program that loads sessions by itself and forgets Protect's middleware.
func TestProtect_MiddlewareIsMissing(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	scsstore.Protect(sm, newCounter(t))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := sm.Load(r.Context(), tombstore.NewID())
		require.ErrorContains(t, err, "not passed the middleware")
		ctx, err := sm.Load(r.Context(), "")
		require.NoError(t, err)
		_, _, err = sm.Commit(ctx)
		require.ErrorContains(t, err, "not passed the middleware")
		require.NoError(t, sm.Iterate(r.Context(), sm.Destroy), "for that it takes none")
	}))
	defer server.Close()
	res, err := httpClient.Get(server.URL)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusOK, res.StatusCode)
}

// traced is a store of a program that wraps this one.
type traced struct {
	*scsstore.Store
	apart bool // it calls this one in another goroutine
}

func (s traced) DeleteCtx(ctx context.Context, token string) (err error) {
	if !s.apart {
		return deep(20, func() error { return s.Store.DeleteCtx(ctx, token) })
	}
	done := make(chan error)
	go func() { done <- s.Store.DeleteCtx(ctx, token) }()
	return <-done
}

func (s traced) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return s.Store.CommitCtx(ctx, token, b, expiry)
}

func deep(n int, f func() error) error {
	if n == 0 {
		return f()
	}
	return deep(n-1, f)
}

func TestWrapped(t *testing.T) {
	t.Parallel()
	sm := newManager(time.Hour)
	s, _ := installed(t, sm)
	sm.Store = traced{Store: sm.Store.(*scsstore.Store)}
	s.actions["/flash"] = func(w http.ResponseWriter, r *http.Request) error { return destroyPut(sm, w, r) }

	x := s.get("/login", s.get("/put", "").token()).token()
	y := s.get("/renew", x).token()
	require.Equal(t, "alice/1.", s.get("/read", y).body)
	flash := s.get("/flash", x).token()
	require.Equal(t, "/0.", s.get("/read", y).body, "the logout has followed the renewal")
	require.Equal(t, []string{"/0"}, s.live())
	require.Empty(t, s.get("/read", flash).cookies, "its caller is known through the wrapper")
	require.Equal(t, flash, s.get("/put", flash).token())
}

// Where it cannot be told what is meant, nothing is done and the program hears of it.
func TestWrapped_InAnotherGoroutine(t *testing.T) {
	t.Parallel()
	sm := scs.New()
	s, store := installed(t, sm)
	token := s.get("/login", s.get("/put", "").token()).token()
	other := s.get("/put", "").token()
	s.actions["/direct"] = func(_ http.ResponseWriter, r *http.Request) error {
		return sm.Store.(scs.CtxStore).DeleteCtx(r.Context(), r.FormValue("token"))
	}
	require.Contains(t, s.get("/direct?token="+token, token).body, "in the same goroutine")
	require.Equal(t, http.StatusAccepted, s.get("/direct?token="+other, token).status)
	_, err := store.Read(t.Context(), other)
	var ended *tombstore.InvalidatedError
	require.ErrorAs(t, err, &ended)
	require.Equal(t, tombstore.Revoked, ended.Reason)

	sm.Store = traced{Store: sm.Store.(*scsstore.Store), apart: true}
	for _, path := range []string{"/renew", "/logout"} {
		got := s.get(path, token)
		require.Equal(t, http.StatusInternalServerError, got.status)
		require.Contains(t, got.body, "in the same goroutine")
		require.Equal(t, "alice/1.", s.get("/read", token).body)
	}
}

// ending is a store in which somebody ends a session right before another request absorbs it.
type ending struct {
	renewer
	id string
	as tombstore.Reason
}

func (e *ending) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if id == e.id {
		if err := e.renewer.Invalidate(ctx, id, tombstore.WithReason(e.as)); err != nil {
			return err
		}
	}
	return e.renewer.Invalidate(ctx, id, opts...)
}

// A session that is ended between the find and the delete of MergeSession is carried on nowhere.
func TestMergeSession_Ended(t *testing.T) {
	t.Parallel()
	for store, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		for _, own := range []string{"no session", "session", "renewed session"} {
			for _, status := range []int{http.StatusAccepted, http.StatusInternalServerError} {
				t.Run(store+"/"+own, func(t *testing.T) {
					t.Parallel()
					sm := newManager(time.Hour)
					store := &ending{renewer: newStore(t), as: tombstore.Logout}
					s := newSite(t, sm, scsstore.Install(sm, store))
					s.actions["/merge"] = func(_ http.ResponseWriter, r *http.Request) error {
						if own == "renewed session" {
							require.NoError(t, sm.RenewToken(r.Context()))
						}
						err := sm.MergeSession(r.Context(), r.FormValue("token"))
						require.ErrorIs(t, err, adapter.ErrRefused)
						require.NoError(t, sm.RenewToken(r.Context()))
						if status != http.StatusAccepted {
							return err
						}
						return nil
					}
					alice, token := s.get("/login", s.get("/put", "").token()).token(), ""
					if own != "no session" {
						token = s.get("/put", "").token()
					}
					store.id = alice
					got := s.get("/merge?token="+alice, token)
					require.Equal(t, status, got.status)
					require.Empty(t, got.cookies)
					if own == "session" { // that of the browser is as it was
						require.Equal(t, []string{"/1"}, s.live())
						require.Equal(t, "/1.", s.get("/read", token).body)
					} else {
						for _, state := range s.live() { // one that is between two tokens has no values
							require.Equal(t, "/0", state)
						}
					}
					require.Equal(t, http.StatusAccepted, s.get("/logout", token).status)
					require.Empty(t, s.live())
				})
			}
		}
	}
}

// A merged session is ended, under whatever token it has by now, and the request goes on as usual.
func TestMergeSession_Live(t *testing.T) {
	t.Parallel()
	for _, hash := range []bool{false, true} {
		for _, own := range []bool{false, true} {
			for _, moved := range []bool{false, true} {
				sm := newManager(time.Hour)
				sm.HashTokenInStore = hash
				s, _ := installed(t, sm)
				s.actions["/merge"] = func(_ http.ResponseWriter, r *http.Request) error {
					return sm.MergeSession(r.Context(), r.FormValue("token"))
				}
				alice, token := s.get("/login", s.get("/put", "").token()).token(), ""
				if own {
					token = s.get("/put", "").token()
				}
				b := s.gate("b")
				done := s.start("/merge?gate=b&token="+alice, token)
				<-b.reached
				if moved {
					sm.Store = &renewing{Store: sm.Store.(*scsstore.Store), renew: func() { s.get("/renew", alice) }}
				}
				close(b.open)
				merged := (<-done).token()
				require.Equal(t, []string{"alice/1"}, s.live())
				require.Equal(t, "alice/1.", s.get("/read", merged).body)
				require.NotEqual(t, "none", s.get("/logout", merged).token())
				require.Empty(t, s.live())
			}
		}
	}
}

// renewing renews a session right after one was found.
type renewing struct {
	*scsstore.Store
	renew func()
	done  atomic.Bool
}

func (s *renewing) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, found, err := s.Store.FindCtx(ctx, token)
	if !s.done.Swap(true) {
		s.renew()
	}
	return b, found, err
}

// inPlace is a codec that uses up what it decodes.
type inPlace struct{}

func (inPlace) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	return json.Marshal(map[string]any{"deadline": deadline, "values": values})
}

func (inPlace) Decode(b []byte) (time.Time, map[string]any, error) {
	var session struct {
		Deadline time.Time
		Values   map[string]any
	}
	err := json.Unmarshal(b, &session)
	clear(b)
	return session.Deadline, session.Values, err
}

// shared is a store whose Reads hand out the same memory, as a cache does.
type shared struct {
	renewer
	data []byte
}

func (s *shared) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	session, err := s.renewer.Read(ctx, id, opts...)
	if s.data == nil {
		s.data = bytes.Clone(session.Data)
	}
	session.Data = s.data
	return session, err
}

// The data of a session may be shared with other requests, so no codec gets to change it.
func TestCodec_InPlace(t *testing.T) {
	t.Parallel()
	sm := newManager(time.Hour)
	sm.Codec = inPlace{}
	store := &shared{renewer: onMemory(t)}
	loadAndSave := scsstore.Install(sm, store)
	token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
	for range 3 {
		res := serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
			require.Equal(t, "alice", sm.GetString(r.Context(), "user"))
			require.NoError(t, sm.Iterate(r.Context(), func(ctx context.Context) error {
				require.Equal(t, "alice", sm.GetString(ctx, "user"))
				return nil
			}))
			sm.SetDeadline(r.Context(), sm.Deadline(r.Context()).Add(time.Minute)) // so that they are compared
		})
		require.Equal(t, http.StatusOK, res.StatusCode)
	}
}
