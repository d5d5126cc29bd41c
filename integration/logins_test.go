package integration

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// schedules returns all orders in which two requests, of which A begins, can go from point to point, and
// to the end, in so many steps each: each letter lets one of them go on to its next one. A request that
// has ended has no more.
func schedules(steps int) []string {
	var all []string
	var extend func(order string, a, b int)
	extend = func(order string, a, b int) {
		if a == 0 && b == 0 {
			all = append(all, order)
		}
		if a > 0 {
			extend(order+"A", a-1, b)
		}
		if b > 0 {
			extend(order+"B", a, b-1)
		}
	}
	extend("A", steps-1, steps)
	return all
}

// doubleLogin lets two logins by an action with one anonymous session go on in an order, or in a random
// one if that is empty. The browser must be logged in, with whatever cookie it keeps. It returns how many
// logins have set one.
func doubleLogin(t testing.TB, s *site, action, order string) (cookies int) {
	defer func() {
		if t.Failed() {
			t.Logf("the order was %q", order)
		}
	}()
	alice := &browser{TB: t, site: s}
	alice.do("add")
	require.NotEmpty(t, alice.cookie)
	a, b := alice.prepare(action, alice.cookie), alice.prepare(action, alice.cookie)
	for _, letter := range order {
		q := map[rune]*request{'A': a, 'B': b}[letter]
		if !q.ended && q.step() == "" {
			alice.apply(q.answer)
		}
	}
	if order == "" {
		var arrival sync.Mutex
		atOnce(func(q *request) {
			q.hurry()
			arrival.Lock()
			defer arrival.Unlock()
			alice.apply(q.answer)
		}, a, b)
	}
	for _, q := range []*request{a, b} {
		require.NoError(t, q.failure)
		require.Equal(t, "hello", q.answer.body)
		if q.answer.cookie != nil {
			cookies++
		}
	}
	require.Equal(t, "alice", alice.send("whoami", alice.cookie, "").body)
	return cookies
}

// Two logins at once with one anonymous session, as a double click sends them, leave the browser logged
// in, and no session that nobody has a cookie of. So do two that say whose session it is.
func TestDoubleLogins(t *testing.T) {
	t.Parallel()
	for action, orders := range map[string][]string{"login": schedules(5), "enter": schedules(6)} {
		for _, s := range all() {
			for _, server := range serversFor(t, s) {
				t.Run(action+"/"+s.name+"/"+server.name, func(t *testing.T) {
					t.Parallel()
					site := ourSiteAt(t, server.url, s)
					cookies := 0
					for i := range rounds(t, 10) {
						order := orders[i*37%len(orders)] // 37 and the number of orders have no common divisor
						cookies += doubleLogin(t, site, action, order) + doubleLogin(t, site, action, "")
					}
					live := site.live()
					require.Len(t, live, cookies)
					for _, data := range live {
						require.Contains(t, data, "alice")
					}
					if action == "enter" {
						require.Len(t, site.owned(), cookies)
					}
				})
			}
		}
	}
}
