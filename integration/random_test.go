package integration

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRandom plays the races with random timing.
func TestRandom(t *testing.T) {
	t.Parallel()
	for _, s := range all() {
		for _, ending := range endings {
			for _, request := range []string{"modifies", "only reads", "renews", "logs out too"} {
				t.Run(s.name+"/"+ending+"/"+request, func(t *testing.T) {
					t.Parallel()
					site := ourSite(t, s)
					for range rounds(t, 5) {
						chance(t, site, ending, request)
					}
				})
			}
		}
	}
}

// chance plays one race with random timing.
func chance(t *testing.T, s *site, ending, request string) {
	t.Helper()
	alice := &browser{TB: t, site: s}
	if ending == "login" {
		alice.do("add")
	} else {
		alice.do("login")
	}
	old, act := alice.cookie, actions[request]

	var arrival sync.Mutex
	var both sync.WaitGroup
	var b answer
	both.Go(func() {
		dawdle()
		answer := alice.send(act, old, random)
		arrival.Lock()
		defer arrival.Unlock()
		b = alice.apply(answer)
	})
	both.Go(func() {
		dawdle()
		if ending == "revocation" {
			s.revoke()
			return
		}
		answer := alice.send(ending, old, random)
		arrival.Lock()
		defer arrival.Unlock()
		alice.apply(answer)
	})
	both.Wait()

	require.Equal(t, 200, b.status)
	require.Equal(t, bodies[act], b.body)
	require.Equal(t, anonymous, alice.send("whoami", old, "").body, "the old session is dead")
	next := alice.send("whoami", alice.cookie, "").body
	switch {
	case request == "logs out too" && next == "alice": // the logout came first, and the login has begun another session
		alice.send("logout", old, "")
		require.Equal(t, "alice", alice.send("whoami", alice.cookie, "").body, "an answered logout ends what the session has become")
	case ending != "login", request == "logs out too": // both were answered, so the user is out
		require.Equal(t, anonymous, next)
		if b.cookie != nil && b.cookie.MaxAge >= 0 {
			require.Equal(t, anonymous, alice.send("whoami", b.cookie.Value, "").body)
		}
	case request == "renews": // one of the two has renewed the session, and the other one is refused
		require.Contains(t, []string{"alice", anonymous}, next)
	case b.cookie == nil: // otherwise B was served before or after A, and its cookie may have come last
		require.Equal(t, "alice", next)
	}
}
