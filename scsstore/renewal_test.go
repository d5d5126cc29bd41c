package scsstore_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

// renewer is what both stores are.
type renewer interface {
	tombstore.Renewer
	tombstore.Lister
}

func onMemory(t *testing.T) renewer {
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	return store
}

func onServer(t *testing.T) renewer { return storeAt(t, redistest.URL(t)) }

func onCluster(t *testing.T) renewer { return storeAt(t, redistest.ClusterURL(t)) }

func storeAt(t *testing.T, url string, opts ...tombstore.Option) *tombstore.RedisStore {
	client := redistest.Dial(t, url)
	opts = append(opts, tombstore.WithKeyPrefix(redistest.Prefix(t, client)), tombstore.WithTimeout(time.Minute))
	store, err := tombstore.New(client, opts...)
	require.NoError(t, err)
	return store
}

// faulty is a store that fails where the context says so.
type faulty struct{ renewer }

type faultKey struct{}

// fault is a failure that happens once.
type fault struct {
	err     error
	applied bool // what is asked for is done all the same
	done    atomic.Bool
}

func (f *fault) in(ctx context.Context) context.Context { return context.WithValue(ctx, faultKey{}, f) }

func fail(ctx context.Context, do func() error) error {
	f, _ := ctx.Value(faultKey{}).(*fault)
	if f == nil || f.done.Swap(true) {
		return do()
	}
	if f.applied {
		_ = do()
	}
	return f.err
}

func (f faulty) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	return fail(ctx, func() error { return f.renewer.Invalidate(ctx, id, opts...) })
}

func (f faulty) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (s tombstore.Session, err error) {
	err = fail(ctx, func() error {
		s, err = f.renewer.Write(ctx, id, data, ttl, opts...)
		return err
	})
	return s, err
}

// logout is a way to log out.
type logout struct {
	name   string
	do     func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error
	leaves bool // the client does, before the session is ended
	status int  // of the answer, if there is one
	keys   []string
	live   int // sessions that it leaves, with these keys
}

var logouts = []logout{
	{name: "Destroy", status: 202, do: destroy},
	{name: "Destroy, Put", status: 202, live: 1, keys: []string{"flash"}, do: destroyPut},
	{
		name: "Destroy, RenewToken", status: 202, live: 1,
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			return errors.Join(destroy(sm, w, r), sm.RenewToken(r.Context()))
		},
	},
	{
		name: "RenewToken, Destroy", status: 202,
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			return errors.Join(sm.RenewToken(r.Context()), destroy(sm, w, r))
		},
	},
	{
		name: "RenewToken, Destroy, Put", status: 202, live: 1, keys: []string{"flash"},
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			return errors.Join(sm.RenewToken(r.Context()), destroyPut(sm, w, r))
		},
	},
	{
		name: "writes before", status: 200,
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			_, _ = w.Write([]byte("bye"))
			return destroy(sm, w, r)
		},
	},
	{
		name: "flushes before", status: 200,
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			return errors.Join(http.NewResponseController(w).Flush(), destroy(sm, w, r))
		},
	},
	{
		name: "sends 103 before", status: 202,
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			return destroy(sm, w, r)
		},
	},
	{
		name: "panics after",
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			if err := destroyPut(sm, w, r); err != nil {
				return err
			}
			panic(http.ErrAbortHandler)
		},
	},
	{name: "client leaves", leaves: true, live: 1, keys: []string{"flash"}, do: destroyPut},
	{
		name: "server refuses first", status: 202,
		do: func(sm *scs.SessionManager, _ http.ResponseWriter, r *http.Request) error {
			return destroyTwice(sm, r, &fault{err: tombstore.ErrNotInvalidated})
		},
	},
	{
		name: "server does not answer first", status: 202,
		do: func(sm *scs.SessionManager, _ http.ResponseWriter, r *http.Request) error {
			return destroyTwice(sm, r, &fault{err: errors.New("no route"), applied: true})
		},
	},
	{
		name: "the flash is not saved", status: 202, // after what ErrorFunc wrote, as scs does it
		do: func(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
			if err := destroyPut(sm, w, r); err != nil {
				return err
			}
			failure := &fault{err: tombstore.ErrUnknownOutcome}
			if _, _, err := sm.Commit(failure.in(r.Context())); !errors.Is(err, failure.err) {
				return errors.New("saved")
			}
			return destroy(sm, w, r)
		},
	},
}

func destroy(sm *scs.SessionManager, _ http.ResponseWriter, r *http.Request) error {
	return sm.Destroy(r.Context())
}

func destroyPut(sm *scs.SessionManager, w http.ResponseWriter, r *http.Request) error {
	if err := destroy(sm, w, r); err != nil {
		return err
	}
	sm.Put(r.Context(), "flash", "bye")
	return nil
}

func destroyTwice(sm *scs.SessionManager, r *http.Request, f *fault) error {
	if err := sm.Destroy(f.in(r.Context())); !errors.Is(err, f.err) {
		return errors.New("the server has not failed")
	}
	return sm.Destroy(r.Context())
}

var moments = []string{"before B renews", "between the halves", "before B is answered", "after B"}

// B renews the token of a session, and A logs out with the old one, at each moment and in each way.
func TestRenewal_AgainstLogout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		store func(t *testing.T) renewer
		idle  time.Duration
		hash  bool
		few   bool
	}{
		{"memory", onMemory, 0, false, false},
		{"memory, hashed tokens", onMemory, time.Hour, true, false},
		{"server", onServer, time.Hour, false, false},
		{"cluster", onCluster, 0, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			shared := c.store(t)
			for _, l := range logouts {
				if c.few && !strings.HasPrefix(l.name, "Destroy") {
					continue
				}
				for _, moment := range moments {
					for _, loads := range []string{"first", "then"} {
						if moment == "after B" && loads == "first" && l.leaves {
							continue // the same as before B is answered
						}
						t.Run(l.name+"/"+moment+"/A loads "+loads, func(t *testing.T) {
							t.Parallel()
							store := shared
							if !c.few {
								store = c.store(t)
							}
							sm := newManager(c.idle)
							sm.HashTokenInStore = c.hash
							if c.few { // the sessions of others are there too
								renewalAgainstLogout(t, sm, store, l, moment, loads == "first", false)
								return
							}
							renewalAgainstLogout(t, sm, store, l, moment, loads == "first", true)
						})
					}
				}
			}
		})
	}
}

func renewalAgainstLogout(
	t *testing.T, sm *scs.SessionManager, store renewer, l logout, moment string, first, alone bool,
) {
	sm.ErrorFunc = func(http.ResponseWriter, *http.Request, error) {}
	s := newSite(t, sm, scsstore.Install(sm, faulty{store}))
	ended := make(chan struct{})
	s.actions["/a"] = func(w http.ResponseWriter, r *http.Request) error {
		defer close(ended)
		if l.leaves {
			<-r.Context().Done()
		}
		return l.do(sm, w, r)
	}
	x := s.get("/login", s.get("/put", "").token()).token()

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	loaded, answered := s.gate("a"), make(chan response, 1)
	begin := func() {
		go func() {
			res, err := s.try(ctx, "/a?gate=a", x)
			if (err == nil) != (l.status != 0) {
				t.Error("A's answer:", err)
			}
			answered <- res
		}()
		<-loaded.reached
	}
	var aResponse response
	finish := func() {
		if !first {
			begin()
		}
		if l.leaves {
			leave()
		}
		close(loaded.open)
		<-ended
		aResponse = <-answered
	}
	if first {
		begin()
	}
	var bResponse response
	if moment == "after B" {
		bResponse = s.get("/renew", x)
		finish()
	} else {
		b := s.gate("b" + map[string]string{
			"before B renews": "", "between the halves": "-done", "before B is answered": "-saved",
		}[moment])
		done := s.start("/renew?gate=b", x)
		<-b.reached
		finish()
		close(b.open)
		bResponse = <-done
	}
	require.Equal(t, l.status, aResponse.status, aResponse.body)
	require.Equal(t, http.StatusAccepted, bResponse.status)
	require.Equal(t, "alice/1.", bResponse.body)
	if moment == "before B renews" || moment == "between the halves" {
		require.Empty(t, bResponse.cookies)
	}
	for _, token := range []string{x, bResponse.token()} {
		require.Equal(t, "/0.", s.get("/read", token).body)
	}
	// A late click on the same logout ends nothing more.
	require.Equal(t, http.StatusAccepted, s.get("/logout", x).status)
	if l.live == 1 && l.status != 0 {
		s.actions["/keys"] = func(_ http.ResponseWriter, r *http.Request) error {
			require.ElementsMatch(t, l.keys, sm.Keys(r.Context()))
			require.NotEmpty(t, sm.Token(r.Context()))
			return nil
		}
		require.Equal(t, "/0.", s.get("/keys", aResponse.token()).body)
	}
	if alone {
		redistest.Until(t, "A's handler is done", func() bool { // its client may not wait for that
			live := 0
			require.NoError(t, sm.Iterate(t.Context(), func(ctx context.Context) error {
				require.ElementsMatch(t, l.keys, sm.Keys(ctx))
				live++
				return nil
			}))
			return live == l.live
		})
	}
}

// merges returns all ways to play a and b, each in its order.
func merges(a, b []string) (all [][]string) {
	if len(a) == 0 || len(b) == 0 {
		return [][]string{append(append([]string{}, a...), b...)}
	}
	for _, rest := range merges(a[1:], b) {
		all = append(all, append([]string{a[0]}, rest...))
	}
	for _, rest := range merges(a, b[1:]) {
		all = append(all, append([]string{b[0]}, rest...))
	}
	return all
}

// Two logins with one anonymous session, as a double click makes them, leave the browser logged in,
// in whatever order they leave the session, save it and are answered. Both have loaded it before. The
// browser keeps the cookie that comes last, and a logout with any of them ends the session.
func TestRenewal_TwoLogins(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		for _, order := range merges([]string{"1", "1-done", "1-saved"}, []string{"2", "2-done", "2-saved"}) {
			t.Run(name+"/"+strings.Join(order, ","), func(t *testing.T) {
				t.Parallel()
				sm := newManager(0)
				s := newSite(t, sm, scsstore.Install(sm, newStore(t)))
				x := s.get("/put", "").token()
				gates := map[string]gate{}
				for _, gate := range order {
					gates[gate] = s.gate(gate)
				}
				answers := map[string]<-chan response{}
				for _, login := range []string{"1", "2"} {
					answers[login] = s.start("/login?gate="+login, x)
					<-gates[login].reached
				}
				token := x
				for _, gate := range order {
					close(gates[gate].open)
					login, step, _ := strings.Cut(gate, "-")
					switch step {
					case "":
						<-gates[login+"-done"].reached
					case "done":
						<-gates[login+"-saved"].reached
					case "saved":
						token = kept(token, <-answers[login])
					}
				}
				loggedInOnce(s, x, token)
			})
		}
	}
}

// kept returns the token that a browser has after an answer.
func kept(token string, r response) string {
	if r.token() != "none" {
		return r.token()
	}
	return token
}

func loggedInOnce(s *site, x, token string) {
	require.NotEqual(s, x, token)
	require.Equal(s, "alice/1.", s.get("/read", token).body)
	require.Equal(s, []string{"alice/1"}, s.live())
	require.Equal(s, http.StatusAccepted, s.get("/logout", x).status)
	require.Empty(s, s.live())
}

func TestRenewal_TwoLoginsAtRandom(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sm := newManager(time.Hour)
			s := newSite(t, sm, scsstore.Install(sm, newStore(t)))
			for range 100 {
				token := s.get("/put", "").token()
				one, two := s.start("/login", token), s.start("/login", token)
				for range 2 { // a request that comes after the other has loaded nothing
					select {
					case r := <-one:
						token = kept(token, r)
					case r := <-two:
						token = kept(token, r)
					}
				}
				require.True(t, strings.HasPrefix(s.get("/read", token).body, "alice/"))
			}
		})
	}
}

// The browser breaks the first of two logins off, and waits for the second.
func TestRenewal_TwoLogins_FirstIsBrokenOff(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sm := newManager(0)
			s := newSite(t, sm, scsstore.Install(sm, newStore(t)))
			ctx, breakOff := context.WithCancel(t.Context())
			defer breakOff()
			login, over := s.actions["/login"], make(chan error, 1)
			s.actions["/login-broken"] = func(w http.ResponseWriter, r *http.Request) error {
				<-r.Context().Done()
				err := login(w, r)
				over <- err
				return err
			}
			x := s.get("/put", "").token()
			one, two := s.gate("1"), s.gate("2")
			broken := make(chan struct{})
			go func() {
				defer close(broken)
				_, _ = s.try(ctx, "/login-broken?gate=1", x)
			}()
			<-one.reached
			second := s.start("/login?gate=2", x)
			<-two.reached
			breakOff()
			<-broken
			close(one.open)
			require.ErrorIs(t, <-over, context.Canceled)
			close(two.open)
			loggedInOnce(s, x, kept(x, <-second))
		})
	}
}

// The browser breaks the first of two logins off between the halves of its renewal, and waits for the
// second. That one takes over if it has loaded the session before, whenever it renews it itself;
// otherwise it has found no session, and begins one.
func TestRenewal_TwoLogins_FirstIsBrokenOffBetweenTheHalves(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) renewer{
		"memory": onMemory, "server": onServer, "cluster": onCluster,
	} {
		for _, second := range []string{"renews before", "renews after", "loads after the first half"} {
			t.Run(name+"/the second "+second, func(t *testing.T) {
				t.Parallel()
				sm := newManager(0)
				failed := make(chan error, 1)
				sm.ErrorFunc = func(_ http.ResponseWriter, _ *http.Request, err error) { failed <- err }
				s := newSite(t, sm, scsstore.Install(sm, newStore(t)))
				ctx, breakOff := context.WithCancel(t.Context())
				defer breakOff()
				login, begun := s.actions["/login"], make(chan struct{})
				s.actions["/login-broken"] = func(w http.ResponseWriter, r *http.Request) error {
					err := login(w, r)
					close(begun)
					<-r.Context().Done()
					return err
				}
				x := s.get("/put", "").token()
				one, saved, two, renewed := s.gate("1"), s.gate("1-saved"), s.gate("2"), s.gate("2-done")
				broken := make(chan struct{})
				go func() {
					defer close(broken)
					_, _ = s.try(ctx, "/login-broken?gate=1", x)
				}()
				<-one.reached
				var answer <-chan response
				start := func() {
					answer = s.start("/login?gate=2", x)
					<-two.reached
				}
				renew := func() {
					close(two.open)
					<-renewed.reached
				}
				if second != "loads after the first half" {
					start()
				}
				close(one.open)
				<-begun
				switch second {
				case "renews before":
					renew()
				case "loads after the first half":
					start()
				}
				breakOff()
				<-broken
				<-saved.reached
				close(saved.open)
				if len(failed) > 0 {
					require.ErrorIs(t, <-failed, context.Canceled)
				}
				if second != "renews before" {
					renew()
				}
				close(renewed.open)
				token := kept(x, <-answer)
				if second != "loads after the first half" {
					loggedInOnce(s, x, token)
					return
				}
				require.NotEqual(t, x, token)
				require.Equal(t, "alice/0.", s.get("/read", token).body)
				require.Equal(t, "/0.", s.get("/read", x).body)
			})
		}
	}
}

// A session that is renewed is as old as it was, whatever scs says of its lifetime.
func TestRenewal_AbsoluteTimeout(t *testing.T) {
	t.Parallel()
	sm := scs.New() // starts a goroutine that never ends
	synctest.Test(t, func(t *testing.T) {
		store, err := tombstore.NewMemory(tombstore.WithAbsoluteTimeout(time.Hour))
		require.NoError(t, err)
		loadAndSave := scsstore.Install(sm, store)
		token := serve(sm, loadAndSave, "", put(sm, "user", "alice")).Cookies()[0].Value
		for range 3 {
			time.Sleep(15 * time.Minute)
			token = serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
				require.Equal(t, "alice", sm.GetString(r.Context(), "user"))
				require.NoError(t, sm.RenewToken(r.Context()))
			}).Cookies()[0].Value
		}
		time.Sleep(16 * time.Minute)
		serve(sm, loadAndSave, token, func(_ http.ResponseWriter, r *http.Request) {
			require.Empty(t, sm.GetString(r.Context(), "user"))
		})
	})
}

// The same on a server, which keeps the creation time and the deadline.
func TestRenewal_KeepsTheSession(t *testing.T) {
	t.Parallel()
	store := storeAt(t, redistest.URL(t), tombstore.WithAbsoluteTimeout(time.Hour))
	sm := scs.New()
	s := newSite(t, sm, scsstore.Install(sm, store))
	token := s.get("/put", "").token()
	before, err := store.Read(t.Context(), token)
	require.NoError(t, err)
	after, err := store.Read(t.Context(), s.get("/login", token).token(), tombstore.WithExpiry())
	require.NoError(t, err)
	require.Equal(t, before.CreatedAt, after.CreatedAt)
	require.False(t, after.ExpiresAt.After(before.CreatedAt.Add(time.Hour+time.Second)), after.ExpiresAt)
}

// Another request changes the session before, or while, this one renews it.
func TestRenewal_LostUpdates(t *testing.T) {
	t.Parallel()
	merge := adapter.Merge(func(_, mine, theirs []byte) ([]byte, error) {
		deadline, values, err := scs.GobCodec{}.Decode(mine)
		if err != nil {
			return nil, err
		}
		_, others, err := scs.GobCodec{}.Decode(theirs)
		if err != nil {
			return nil, err
		}
		values["cart"] = others["cart"]
		return scs.GobCodec{}.Encode(deadline, values)
	})
	for store, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		for _, tt := range []struct {
			name    string
			updates adapter.LostUpdates
			status  int
			live    string
		}{
			{"last write wins", adapter.LastWriteWins, http.StatusAccepted, "alice/1"},
			{"conflict", adapter.Conflict, http.StatusInternalServerError, "/2"},
			{"merge", merge, http.StatusAccepted, "alice/2"},
		} {
			t.Run(store+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				sm := scs.New()
				s := newSite(t, sm, scsstore.Install(sm, newStore(t), adapter.WithLostUpdates(tt.updates)))
				x := s.get("/put", "").token()
				b := s.gate("b")
				done := s.start("/login?gate=b", x)
				<-b.reached
				require.Equal(t, x, s.get("/put", x).token())
				close(b.open)
				got := <-done
				require.Equal(t, tt.status, got.status)
				if tt.status != http.StatusAccepted {
					require.Contains(t, got.body, tombstore.ErrConflict.Error())
				}
				require.Equal(t, []string{tt.live}, s.live())
			})
		}
	}
}

// A change of the password ends all sessions but its own, and its client goes away before that has its
// new token. Another request that came with the old one does not take it over.
func TestRenewal_LogoutEverywhereIsNotTakenOver(t *testing.T) {
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
