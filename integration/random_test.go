package integration

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rounds returns how many races to play in each cell: ROUNDS, or a few.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("ROUNDS")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

// TestRandom plays the races with random timing.
func TestRandom(t *testing.T) {
	t.Parallel()
	for _, s := range setups {
		for _, ending := range endings {
			for _, request := range []string{"modifies", "only reads", "renews", "logs out too"} {
				t.Run(s.name+"/"+ending+"/"+request, func(t *testing.T) {
					t.Parallel()
					site := ourSite(t, s)
					for range rounds(t) {
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
	s.race.delay = nil
	alice := &browser{TB: t, site: s}
	if ending == "login" {
		alice.do("add")
	} else {
		alice.do("login")
	}
	old, act := alice.cookie, actions[request]
	delay := func() { time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) }
	s.race.delay = delay

	var arrival sync.Mutex
	var both sync.WaitGroup
	var b answer
	both.Go(func() {
		delay()
		answer := alice.send(act, old, "")
		arrival.Lock()
		defer arrival.Unlock()
		b = alice.apply(answer)
	})
	both.Go(func() {
		delay()
		if ending == "revocation" {
			s.revoke()
			return
		}
		answer := alice.send(ending, old, "")
		arrival.Lock()
		defer arrival.Unlock()
		alice.apply(answer)
	})
	both.Wait()
	s.race.delay = func() {}

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
