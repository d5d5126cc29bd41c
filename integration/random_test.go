package integration

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
)

// match is a race with random timing: what A does to the session, and what B does.
type match struct{ ending, request string }

func matches() (all []match) {
	for _, ending := range endings {
		for _, request := range []string{"modifies", "only reads", "renews", "logs out too"} {
			all = append(all, match{ending, request})
		}
	}
	return all
}

func (m match) String() string { return m.ending + ", B " + m.request }

// TestRandom plays the races with random timing. With tombstore none goes wrong. With -v it shows
// how many go wrong on the usual backends. On each of them some must, or the test shows nothing.
func TestRandom(t *testing.T) {
	t.Parallel()
	table := newTable(t, matches())
	for _, s := range all() {
		table.row(t, s.name+": tombstore", func(t *testing.T, m match) string {
			site, n, lost := ourSite(t, s), rounds(t, 5), 0
			for range n {
				if wrong := m.play(t, site); !assert.Empty(t, wrong) {
					lost++
				}
			}
			return fmt.Sprintf("%d of %d", lost, n)
		})
		if s.usual == nil || testing.Short() {
			continue
		}
		var played, lost atomic.Int64
		t.Cleanup(func() {
			if rounds(t, 5) >= 5 && played.Load() == int64(len(matches())) { // else luck or -run may have left out those that do
				assert.NotZero(t, lost.Load(), "%s: no race goes wrong on %s", s.name, s.backend)
			}
		})
		table.row(t, s.name+": "+s.backend, func(t *testing.T, m match) string {
			site, n, wrong := usualSite(t, s), rounds(t, 5), map[string]int{}
			for range n {
				wrong[m.play(t, site)]++
			}
			right := wrong[""]
			delete(wrong, "")
			t.Log(wrong)
			played.Add(1)
			lost.Add(int64(n - right))
			return fmt.Sprintf("%d of %d", n-right, n)
		})
	}
}

// play plays a race, and returns what has gone wrong, if anything has.
func (m match) play(t testing.TB, s *site) (wrong string) {
	t.Helper()
	alice := &browser{TB: t, site: s}
	if m.ending == "login" {
		alice.do("add")
	} else {
		alice.do("login")
	}
	old, act := alice.cookie, actions[m.request]

	var arrival sync.Mutex
	send := func(action string) answer {
		answer := alice.send(action, old, random)
		arrival.Lock()
		defer arrival.Unlock()
		return alice.apply(answer)
	}
	var both sync.WaitGroup
	var a, b answer
	both.Go(func() {
		dawdle()
		b = send(act)
	})
	both.Go(func() {
		dawdle()
		if m.ending == "revocation" {
			s.revoke()
			return
		}
		a = send(m.ending)
	})
	both.Wait()

	user := func(cookie string) string { return alice.send("whoami", cookie, "").body }
	if m.ending != "revocation" && (a.status != http.StatusOK || a.body != bodies[m.ending]) {
		return fmt.Sprintf("A is answered %d %q", a.status, a.body)
	}
	if b.status != http.StatusOK || b.body != bodies[act] {
		return fmt.Sprintf("B is answered %d %q", b.status, b.body)
	}
	if who := user(old); who != anonymous {
		return "the old cookie opens the page of " + who
	}
	next := user(alice.cookie)
	switch {
	case m.request == "logs out too" && next == "alice": // the logout came first, and the login has begun another session
		alice.send("logout", old, "")
		if user(alice.cookie) != "alice" {
			return "a logout with a cookie that was ended ends another session"
		}
	case m.ending != "login", m.request == "logs out too": // both were answered, so the user is out
		if next != anonymous {
			return "the browser is logged in again"
		}
		if b.cookie != nil && b.cookie.MaxAge >= 0 && user(b.cookie.Value) != anonymous {
			return "B's cookie is logged in"
		}
	case m.request == "renews": // one of the two has renewed the session, and the other one is refused
		if next != "alice" && next != anonymous {
			return "the page is " + next
		}
	case b.cookie == nil: // otherwise B was served before or after A, and its cookie may have come last
		if next != "alice" {
			return "the login is lost"
		}
	}
	return ""
}
