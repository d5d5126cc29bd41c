package integration

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
)

// What holds for the renewals of every framework, and how its requests may end.

// onEach runs test for each framework, in each of its configurations.
func onEach(t *testing.T, test func(t *testing.T, s setup)) {
	t.Helper()
	onThese(t, all(), test)
}

// onEachUsual runs test for each framework that has a usual backend.
func onEachUsual(t *testing.T, test func(t *testing.T, s setup)) {
	t.Helper()
	onThese(t, setups, test)
}

func onThese(t *testing.T, these []setup, test func(t *testing.T, s setup)) {
	t.Helper()
	t.Parallel()
	for _, s := range these {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// onEachServer runs test for each framework that stands on net/http. Fiber's server cancels nothing when a client goes away, and hertz
// has a store know nothing of it.
func onEachServer(t *testing.T, test func(t *testing.T, s setup)) {
	t.Helper()
	onEach(t, func(t *testing.T, s setup) {
		if strings.HasPrefix(s.name, "fiber") || s.name == "hertz" {
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

// TestTwoLogins plays double clicks on a login's button. Both requests have loaded the session before one renews it; then they go on in
// every order, and at random. Whatever cookie the browser keeps, it is logged in, and a logout with the old one ends the session.
func TestTwoLogins(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		for _, server := range serversFor(t, s) {
			site := ourSiteAt(t, server.url, s)
			play := func(goOn func(one, two *request)) {
				alice := &browser{TB: t, site: site}
				alice.do("add")
				old := alice.cookie
				one, two := alice.prepare("login", old), alice.prepare("login", old)
				require.True(t, one.to(loaded))
				require.True(t, two.to(loaded))
				goOn(one, two)
				alice.requireOnce(old)
			}
			for _, order := range schedules(3) {
				play(func(one, two *request) {
					at := map[*request][]string{one: {acted, answering, ""}, two: {acted, answering, ""}}
					for _, letter := range order {
						q := map[rune]*request{'A': one, 'B': two}[letter]
						switch point := at[q][0]; {
						case point == "":
							q.finish()
						case point != acted || s.halves:
							require.True(t, q.to(point))
						}
						at[q] = at[q][1:]
					}
				})
			}
			for range rounds(t, 5) {
				play(func(one, two *request) {
					atOnce(func(q *request) { q.to("") }, one, two)
					one.finish()
					two.finish()
				})
			}
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

// The browser breaks the first of two logins off between the halves of its renewal. The second one takes over if it has loaded the
// session before, whenever it renews it itself; otherwise it has found no session, and begins one.
func TestTwoLogins_FirstIsBrokenOffBetweenTheHalves(t *testing.T) {
	for _, second := range []string{"renews before", "renews after", "loads after the first half"} {
		t.Run(second, func(t *testing.T) {
			onEachServer(t, func(t *testing.T, s setup) {
				if !s.halves {
					t.Skip("its renewals have no halves")
				}
				for _, server := range serversFor(t, s) {
					alice := &browser{TB: t, site: ourSiteAt(t, server.url, s)}
					alice.do("add")
					old := alice.cookie
					one, two := alice.prepare("login", old), alice.prepare("login", old)
					if second != "loads after the first half" {
						require.True(t, two.to(loaded))
					}
					require.True(t, one.to(acted))
					switch second {
					case "renews before":
						require.True(t, two.to(acted))
					case "loads after the first half":
						require.True(t, two.to(loaded))
					}
					one.abandon()
					two.finish()
					if second != "loads after the first half" {
						alice.requireOnce(old)
						continue
					}
					require.NotEqual(t, old, alice.cookie)
					require.Equal(t, "alice", alice.send("whoami", alice.cookie, "").body)
					require.Equal(t, anonymous, alice.send("whoami", old, "").body)
				}
			})
		})
	}
}

// What a request does when its client has gone away is done all the same.
func TestClientLeaves(t *testing.T) {
	for _, action := range []string{"add", "logout"} {
		t.Run(action, func(t *testing.T) {
			onEachServer(t, func(t *testing.T, s setup) {
				store := newStore(t, s.url(t))
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
func only(t *testing.T, store backend) (s tombstore.Session) {
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
		store := newStore(t, s.url(t), tombstore.WithAbsoluteTimeout(10*time.Minute))
		alice := &browser{TB: t, site: siteOn(t, s, store)}
		read := func() tombstore.Session {
			session, err := store.Read(t.Context(), alice.site.id(alice.cookie), tombstore.WithExpiry())
			require.NoError(t, err)
			return session
		}
		alice.do("add")
		begun := time.Now()
		before := read()
		took := time.Since(begun) // a busy machine reads late, and takes the end for later
		redistest.Until(t, "the clock goes on", func() bool { return time.Since(before.CreatedAt) > 50*time.Millisecond })
		for _, action := range []string{"login", "renew"} {
			begun := time.Now()
			require.Equal(t, http.StatusOK, alice.do(action).status)
			after := read()
			require.NotEqual(t, before.Version, after.Version)
			require.Equal(t, before.CreatedAt, after.CreatedAt)
			require.WithinDuration(t, before.ExpiresAt, after.ExpiresAt, took+time.Since(begun)+2*time.Millisecond)
		}
	})
}

// Another request changes the session while one changes it too, or renews it.
func TestLostUpdates(t *testing.T) {
	for _, action := range []string{"add", "login"} {
		for _, how := range []string{"last write wins", "conflict", "merge"} {
			t.Run(action+"/"+how, func(t *testing.T) {
				onEach(t, func(t *testing.T, s setup) {
					var changed bool
					var theirs string
					updates := map[string]adapter.LostUpdates{
						"last write wins": adapter.LastWriteWins,
						"conflict":        adapter.Conflict,
						"merge": adapter.Merge(func(base, m, th []byte) ([]byte, error) {
							changed, theirs = !bytes.Equal(base, m), string(th)
							return th, nil
						}),
					}[how]
					site := ourSite(t, s, adapter.WithLostUpdates(updates))
					alice := &browser{TB: t, site: site}
					alice.do(map[string]string{"add": "login", "login": "add"}[action])
					old := alice.cookie
					late := alice.prepare(action, old)
					require.True(t, late.to(loaded))
					for range 2 {
						require.Equal(t, http.StatusOK, alice.do("add").status)
					}
					before := site.live()
					a := late.finish()
					live := site.live()
					require.Len(t, live, 1)
					switch how {
					case "last write wins":
						require.NotEqual(t, before, live)
						alice.requireOnce(old)
					case "conflict":
						require.Equal(t, before, live)
						require.Equal(t, http.StatusInternalServerError, a.status)
						require.Equal(t, named(old), named(alice.cookie))
						return
					case "merge":
						require.True(t, changed)
						require.Equal(t, []string{theirs}, before)
						require.Equal(t, []string{theirs}, live, "what the function returns is saved")
					}
					require.Equal(t, http.StatusOK, a.status)
					require.Equal(t, s.silent && action == "add", a.cookie == nil)
				})
			})
		}
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
		silent := func(name string) bool { return strings.HasPrefix(s.name, name) }
		if slices.ContainsFunc([]string{"scs", "fiber", "beego"}, silent) {
			require.Equal(t, http.StatusOK, a.status)
		} else {
			require.Equal(t, http.StatusInternalServerError, a.status)
		}
		require.NotNil(t, a.cookie)
		require.Equal(t, "alice", alice.send("whoami", alice.cookie, "").body)
		require.Len(t, alice.site.live(), 1)

		for range 2 { // so that the user can try again
			a = alice.send("logout", alice.cookie, "")
			require.Equal(t, http.StatusInternalServerError, a.status)
			require.Empty(t, alice.site.live())
		}
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
