package integration

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
)

// What holds for the renewals of every framework, and how its requests may end.

// onEach runs test for each framework.
func onEach(t *testing.T, test func(t *testing.T, s setup)) {
	t.Helper()
	t.Parallel()
	for _, s := range setups {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// onEachServer runs test for each framework that stands on net/http. Fiber's server cancels nothing when a client goes away.
func onEachServer(t *testing.T, test func(t *testing.T, s setup)) {
	t.Helper()
	onEach(t, func(t *testing.T, s setup) {
		if strings.HasPrefix(s.name, "fiber") {
			t.Skip("its requests know nothing of their clients")
		}
		test(t, s)
	})
}

// requireOnce requires that the browser is logged in, that there is no other session, and that a logout with the old cookie ends it.
func (b *browser) requireOnce(old string) {
	b.Helper()
	require.Equal(b, "alice", b.send("whoami", b.cookie, "").body)
	require.Equal(b, 1, b.site.live())
	require.Equal(b, http.StatusOK, b.send("logout", old, "").status)
	require.Zero(b, b.site.live())
}

// TestTwoLogins plays double clicks on a login's button. Both requests have loaded the session before one renews it.
func TestTwoLogins(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		site := ourSite(t, s)
		for range rounds(t) {
			alice := &browser{TB: t, site: site}
			site.race.delay = func() {}
			alice.do("add")
			old := alice.cookie
			var loaded, both sync.WaitGroup
			loaded.Add(2)
			site.race.delay = func() {
				loaded.Done()
				loaded.Wait()
			}
			var arrival sync.Mutex
			for range 2 {
				both.Go(func() {
					a := alice.send("login", old, "")
					arrival.Lock()
					defer arrival.Unlock()
					alice.apply(a)
				})
			}
			both.Wait()
			site.race.delay = func() {}
			alice.requireOnce(old)
		}
	})
}

// leave makes a request whose client goes away when the session has been loaded, and waits for the handler.
func (b *browser) leave(action, cookie string) {
	b.Helper()
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, b.site.url+"/"+action, nil)
	require.NoError(b, err)
	q.Header.Set(raceHeader, "leave")
	q.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	go func() {
		<-b.site.race.leaving
		leave()
	}()
	_, err = http.DefaultClient.Do(q)
	require.ErrorIs(b, err, context.Canceled)
	<-b.site.race.answered
}

// The browser breaks the first of two logins off, and waits for the second.
func TestTwoLogins_FirstIsBrokenOff(t *testing.T) {
	onEachServer(t, func(t *testing.T, s setup) {
		site := ourSite(t, s)
		alice := &browser{TB: t, site: site}
		alice.do("add")
		old, second := alice.cookie, make(chan answer, 1)
		go func() { second <- alice.send("login", old, "wait") }()
		<-site.race.loaded
		alice.leave("login", old)
		close(site.race.goOn)
		alice.apply(<-second)
		alice.requireOnce(old)
	})
}

// What a request does when its client has gone away is done all the same.
func TestClientLeaves(t *testing.T) {
	for _, action := range []string{"add", "logout"} {
		t.Run(action, func(t *testing.T) {
			onEachServer(t, func(t *testing.T, s setup) {
				store := newStore(t)
				alice := &browser{TB: t, site: siteOn(t, s, store)}
				alice.do("login")
				before := only(t, store)
				alice.leave(action, alice.cookie)
				if action == "logout" {
					require.Equal(t, anonymous, alice.send("whoami", alice.cookie, "").body)
					require.Zero(t, alice.site.live())
					return
				}
				require.False(t, bytes.Equal(before.Data, only(t, store).Data), "the order is saved")
			})
		})
	}
}

// only returns the only session there is.
func only(t *testing.T, store *tombstore.RedisStore) (s tombstore.Session) {
	t.Helper()
	n := 0
	for e, err := range store.List(t.Context()) {
		require.NoError(t, err)
		s = e.Session
		n++
	}
	require.Equal(t, 1, n)
	return s
}

// A session that is renewed is as old as it was, so its absolute timeout does not begin anew.
func TestRenewal_AbsoluteTimeout(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		store := newStore(t, tombstore.WithAbsoluteTimeout(time.Hour))
		alice := &browser{TB: t, site: siteOn(t, s, store)}
		alice.do("add")
		before := only(t, store)
		redistest.Until(t, "the clock goes on", func() bool { return time.Since(before.CreatedAt) > 20*time.Millisecond })
		for _, action := range []string{"login", "renew"} {
			require.Equal(t, http.StatusOK, alice.do(action).status)
			after := only(t, store)
			require.NotEqual(t, before.Version, after.Version)
			require.Equal(t, before.CreatedAt, after.CreatedAt)
		}
	})
}

// Another request changes the session while a login renews it.
func TestRenewal_LostUpdates(t *testing.T) {
	for _, how := range []string{"last write wins", "conflict", "merge"} {
		t.Run(how, func(t *testing.T) {
			onEach(t, func(t *testing.T, s setup) {
				var merged atomic.Bool
				updates := map[string]adapter.LostUpdates{
					"last write wins": adapter.LastWriteWins,
					"conflict":        adapter.Conflict,
					"merge": adapter.Merge(func(base, mine, theirs []byte) ([]byte, error) {
						merged.Store(!bytes.Equal(base, theirs) && !bytes.Equal(base, mine))
						return mine, nil
					}),
				}[how]
				site := ourSite(t, s, adapter.WithLostUpdates(updates))
				alice := &browser{TB: t, site: site}
				alice.do("add")
				old, login := alice.cookie, make(chan answer, 1)
				go func() { login <- alice.send("login", old, "wait") }()
				<-site.race.loaded
				require.Equal(t, http.StatusOK, alice.do("add").status)
				close(site.race.goOn)
				a := alice.apply(<-login)
				require.Equal(t, 1, site.live())
				require.Equal(t, how == "merge", merged.Load())
				if how == "conflict" {
					require.Equal(t, http.StatusInternalServerError, a.status)
					require.Equal(t, named(old), named(alice.cookie))
					return
				}
				require.Equal(t, http.StatusOK, a.status)
				alice.requireOnce(old)
			})
		})
	}
}

// A login whose old session too few replicas know to be ended keeps the user logged in, with what it had. The frameworks that can
// return an error beside the cookie do.
func TestRenewal_Unacknowledged(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		store := newStore(t, tombstore.WithReplicaAcks(1, time.Millisecond)) // there is no replica
		alice := &browser{TB: t, site: siteOn(t, s, store)}
		alice.do("add")
		a := alice.do("login")
		if s.name == "scs" || strings.HasPrefix(s.name, "fiber") {
			require.Equal(t, http.StatusOK, a.status)
		} else {
			require.Equal(t, http.StatusInternalServerError, a.status)
		}
		require.NotNil(t, a.cookie)
		require.Equal(t, "alice", alice.send("whoami", alice.cookie, "").body)
		require.Equal(t, 1, alice.site.live())
	})
}

// A save that failed, or that may have, is an error and leaves no cookie in the response.
func TestFailedSave(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		for _, failure := range []error{tombstore.ErrUnknownOutcome, tombstore.ErrTooLarge, context.DeadlineExceeded} {
			for _, session := range []string{"new", "known"} {
				for _, action := range []string{"add", "login"} {
					alice := &browser{TB: t, site: ourSite(t, s)}
					if session == "known" {
						alice.do("add")
					}
					alice.site.fail(failure)
					a := alice.do(action)
					require.Equal(t, http.StatusInternalServerError, a.status)
					require.Nil(t, a.cookie, "%s, %s session: %v", action, session, failure)
				}
			}
		}
	})
}
