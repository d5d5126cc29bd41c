package integration

import (
	"bytes"
	"context"
	"net/http"
	"strings"
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
	require.Len(b, b.site.live(), 1)
	require.Equal(b, http.StatusOK, b.send("logout", old, "").status)
	require.Empty(b, b.site.live())
}

// TestTwoLogins plays double clicks on a login's button. Both requests have loaded the session before one renews it.
func TestTwoLogins(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		site := ourSite(t, s)
		for range rounds(t, 10) {
			alice := &browser{TB: t, site: site}
			alice.do("add")
			old := alice.cookie
			one, two := alice.prepare("login", old), alice.prepare("login", old)
			require.True(t, one.to(loaded))
			require.True(t, two.to(loaded))
			atOnce(func(q *request) { q.to("") }, one, two)
			alice.apply(one.answer)
			alice.apply(two.answer)
			alice.requireOnce(old)
		}
	})
}

// leave makes a request whose client goes away when the session has been loaded, and waits for the handler.
func (b *browser) leave(action, cookie string) {
	b.Helper()
	q := b.prepare(action, cookie)
	require.True(b, q.to(loaded))
	q.abandon()
	require.ErrorIs(b, q.failure, context.Canceled)
}

// The browser breaks the first of two logins off, and waits for the second.
func TestTwoLogins_FirstIsBrokenOff(t *testing.T) {
	onEachServer(t, func(t *testing.T, s setup) {
		site := ourSite(t, s)
		alice := &browser{TB: t, site: site}
		alice.do("add")
		old := alice.cookie
		second := alice.prepare("login", old)
		require.True(t, second.to(loaded))
		alice.leave("login", old)
		second.finish()
		alice.requireOnce(old)
	})
}

// What a request does when its client has gone away is done all the same.
func TestClientLeaves(t *testing.T) {
	for _, action := range []string{"add", "logout"} {
		t.Run(action, func(t *testing.T) {
			onEachServer(t, func(t *testing.T, s setup) {
				store := newStore(t, redistest.URL(t))
				alice := &browser{TB: t, site: siteOn(t, s, store)}
				alice.do("login")
				before := only(t, store)
				alice.leave(action, alice.cookie)
				if action == "logout" {
					require.Empty(t, alice.site.live()) // beego begins a session at any request
					require.Equal(t, anonymous, alice.send("whoami", alice.cookie, "").body)
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
		store := newStore(t, redistest.URL(t), tombstore.WithAbsoluteTimeout(time.Hour))
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
				old := alice.cookie
				login := alice.prepare("login", old)
				require.True(t, login.to(loaded))
				require.Equal(t, http.StatusOK, alice.do("add").status)
				a := login.finish()
				require.Len(t, site.live(), 1)
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
		store := newStore(t, redistest.URL(t), tombstore.WithReplicaAcks(1, time.Millisecond)) // there is no replica
		alice := &browser{TB: t, site: siteOn(t, s, store)}
		alice.do("add")
		a := alice.do("login")
		if strings.Contains("gorilla gin echo", s.name) {
			require.Equal(t, http.StatusInternalServerError, a.status)
		} else {
			require.Equal(t, http.StatusOK, a.status)
		}
		require.NotNil(t, a.cookie)
		require.Equal(t, "alice", alice.send("whoami", alice.cookie, "").body)
		require.Len(t, alice.site.live(), 1)
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
