package integration

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// against is what B is doing while A logs alice out everywhere but in its own session.
type against string

const (
	login   against = "a login"               // in another browser
	renewal against = "a renewal"             // in another browser that is logged in
	own     against = "a renewal of the same" // of A's session, in another tab
)

// race lets A log alice out everywhere while B stands where m says, and returns the browsers.
func (k against) race(t testing.TB, s *site, m moment) (phone, other *browser, a, b *request) {
	phone, other = &browser{TB: t, site: s}, &browser{TB: t, site: s}
	require.Equal(t, "hello", phone.do("enter").body)
	switch action := "renew"; k {
	case login:
		other.do("add")
		b = other.prepare("enter", other.cookie)
	case renewal:
		require.Equal(t, "hello", other.do("enter").body)
		b = other.prepare(action, other.cookie)
	case own:
		other = phone
		b = phone.prepare(action, phone.cookie)
	}
	a = phone.prepare("everywhere", phone.cookie)
	if m.point == random {
		var arrival sync.Mutex
		atOnce(func(q *request) {
			q.hurry()
			arrival.Lock()
			defer arrival.Unlock()
			q.browser.apply(q.answer)
		}, a, b)
	} else {
		stood := (!m.first || a.to(loaded)) && b.to(m.point) == (m.point != "")
		a.finish()
		b.finish()
		require.True(t, stood)
	}
	for _, q := range []*request{a, b} {
		require.NoError(t, q.failure)
		require.Equal(t, 200, q.answer.status, q.answer.body)
	}
	return phone, other, a, b
}

// play plays a moment and requires that A's session is the only one of alice, unless B is a login
// that has begun after A.
func (k against) play(t testing.TB, s *site, m moment) {
	phone, other, a, b := k.race(t, s, m)
	defer s.revoke()
	if k == own {
		k.requireOne(t, s, phone, m)
		return
	}
	require.Equal(t, "others are out", a.answer.body)
	require.Equal(t, "alice", phone.send("whoami", phone.cookie, "").body, "the session that is kept")
	refs := []string{s.ref(phone.cookie)}
	in := other.send("whoami", other.cookie, "").body == "alice"
	if in {
		refs = append(refs, s.ref(other.cookie))
	}
	require.ElementsMatch(t, refs, s.owned())
	if k == renewal || m.point != random {
		require.Equal(t, k == login && m.point == loaded, in, "only a login that has begun after A is in")
	}
	switch {
	case k == login && m.point == begun:
		require.Equal(t, "stale", b.answer.body)
	case m.point == acted, m.point == writing:
		require.Nil(t, b.answer.cookie, "of a session that was not saved")
	}
}

// requireOne requires that the session of both requests goes on, and that the browser has it. At
// random, one of them may have come too late to find it, and its cookie last.
func (k against) requireOne(t testing.TB, s *site, phone *browser, m moment) {
	require.Len(t, s.owned(), 1)
	who := phone.send("whoami", phone.cookie, "").body
	if m.point == random && who == anonymous {
		return
	}
	require.Equal(t, "alice", who)
	require.Equal(t, s.owned()[0], s.ref(phone.cookie))
}

// TestLogoutEverywhere plays "log out everywhere" against logins and renewals under way.
func TestLogoutEverywhere(t *testing.T) {
	t.Parallel()
	for _, s := range all() {
		for _, server := range serversFor(t, s) {
			for _, k := range []against{login, renewal, own} {
				moments := moments()
				if k == login {
					moments = append(moments, moment{true, begun}, moment{false, begun})
				}
				for _, m := range moments {
					if k != login && m.point == acted && !s.halves || m.point == writing && server.url == memory {
						continue
					}
					if testing.Short() && rand.IntN(3) > 0 { // a third of the moments, which are drawn
						continue
					}
					t.Run(s.name+"/"+server.name+"/"+string(k)+"/"+m.String(), func(t *testing.T) {
						t.Parallel()
						site := ourSiteAt(t, server.url, s)
						n := rounds(t, 1)
						if m.point == random {
							n = rounds(t, 5)
						}
						for range n {
							k.play(t, site, m)
						}
					})
				}
			}
		}
	}
}
