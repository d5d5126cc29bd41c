package racetest

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// OnServer returns a site whose sessions are on a real server.
func OnServer(t *testing.T, handler Handler, opts ...tombstore.Option) Site {
	client := redistest.Client(t)
	opts = append(opts, tombstore.WithKeyPrefix(redistest.Prefix(t, client)))
	store, err := tombstore.New(client, opts...)
	require.NoError(t, err)
	return on(t, store, handler)
}

// OnCluster returns a site whose sessions are on a cluster, where a renewal has two steps.
func OnCluster(t *testing.T, cluster *redistest.Server, handler Handler) Site {
	gate := &gate{Client: redistest.Dial(t, cluster.URL)}
	store, err := tombstore.New(gate, tombstore.WithKeyPrefix(redistest.Prefix(t, gate)))
	require.NoError(t, err)
	site := on(t, store, handler)
	site.Between = func(f func()) { gate.between.Store(&f) }
	return site
}

// gate is a client that stops a renewal between its steps: the first one looks whether the new key
// is unused, and the second one runs a script with it.
type gate struct {
	rueidis.Client
	between atomic.Pointer[func()]
	key     atomic.Pointer[string]
}

func (g *gate) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	switch words := cmd.Commands(); words[0] {
	case "EXISTS":
		key := words[1] // the words are used again for another command
		g.key.Store(&key)
	case "EVALSHA":
		if key := g.key.Load(); key != nil && words[3] == *key {
			if f := g.between.Swap(nil); f != nil {
				(*f)()
			}
		}
	}
	return g.Client.Do(ctx, cmd)
}

// When is when a logout, A, meets a renewal of the same session, B. Both came with its cookie.
type When string

// The logout of all but the last two loads its session before B renews it.
const (
	BeforeLoad  When = "A is answered before B loads"
	BeforeRenew When = "A is answered before B renews"
	Between     When = "A is answered between the steps of B"
	AfterRenew  When = "A ends after B has renewed, before B is answered"
	LateBegin   When = "A begins after B has renewed, before B is answered"
	LateAnswer  When = "A begins after B was answered"
)

// Whens returns all of them. Between is for a cluster.
func Whens() []When {
	return []When{BeforeLoad, BeforeRenew, Between, AfterRenew, LateBegin, LateAnswer}
}

// Play plays the race, and requires that the logout counts: whatever cookie a browser has kept, the
// user is out. left is how many sessions the logout leaves, for what it has to say.
func (when When) Play(t *testing.T, site Site, left int) {
	b := newBrowser(t, site)
	old := b.visit("login?user=alice").cookie(t)
	renewal := answer{status: http.StatusOK}
	logout := func() {
		require.Equal(b, http.StatusOK, b.apply(b.fetch("logout", old, "")).status)
	}
	switch when {
	case BeforeLoad:
		logout()
		renewal = b.apply(b.fetch("renew", old, ""))
		left = -1 // and what a login of nobody leaves
	case LateAnswer:
		renewal = b.apply(b.fetch("renew", old, ""))
		logout()
	case Between:
		met := false
		site.Between(func() { met = true; logout() })
		renewal = b.apply(b.fetch("renew", old, ""))
		require.True(t, met)
	default:
		var a *request
		if when == AfterRenew {
			a = b.start("logout", old)
		}
		r := b.start("renew", old)
		if when == BeforeRenew {
			logout()
		}
		close(r.act)
		b.wait(r.acted)
		switch when {
		case AfterRenew:
			close(a.act)
			b.wait(a.acted)
			require.Equal(t, http.StatusOK, b.finish(a).status)
		case LateBegin:
			logout()
		}
		renewal = b.finish(r)
	}
	require.Equal(t, http.StatusOK, renewal.status)
	b.requireOut(site, left, old, renewal)
}

// requireOut requires that neither the old cookie nor that of an answer opens a session of a user.
func (b *browser) requireOut(site Site, left int, old string, answers ...answer) {
	cookies := []string{old, b.jar}
	for _, a := range answers {
		for _, c := range a.cookies {
			cookies = append(cookies, c.Value)
		}
	}
	for _, cookie := range cookies {
		require.Empty(b, b.fetch("read", cookie, "").body)
	}
	if left >= 0 {
		require.Equal(b, left, site.Live())
	}
}

// RandomLogouts plays renewals against logouts that begin at random moments, and requires that the
// user is out once both are answered.
func RandomLogouts(t *testing.T, rounds int, site Site) {
	b := newBrowser(t, site)
	for range rounds {
		b.jar = ""
		old := b.visit("login?user=alice").cookie(t)
		answers := b.both("logout", "renew", old)
		require.Equal(t, http.StatusOK, answers[0].status)
		require.Equal(t, http.StatusOK, answers[1].status)
		b.requireOut(site, -1, old, answers[:]...)
	}
}

// both makes two requests at about the same moment, and applies the answers in the order of
// arrival.
func (b *browser) both(first, second, cookie string) (answers [2]answer) {
	var arrival sync.Mutex
	var both sync.WaitGroup
	for i, path := range []string{first, second} {
		both.Go(func() {
			time.Sleep(rand.N(time.Millisecond))
			a := b.fetch(path, cookie, "")
			arrival.Lock()
			defer arrival.Unlock()
			answers[i] = b.apply(a)
		})
	}
	both.Wait()
	return answers
}

// TwoLogins plays two logins of one browser, whose session is nobody's yet, in all orders, and
// requires that it is logged in whichever answer it gets last. If both have loaded the session, it
// goes on as one, which a logout with the old cookie ends.
func TwoLogins(t *testing.T, site Site) {
	b := newBrowser(t, site)
	// Each letter is the next step of its login: it loads its session, renews it, is answered.
	for _, order := range []string{
		"aaabbb", "aababb", "aabbab", "aabbba", "abaabb",
		"ababab", "ababba", "abbaab", "abbaba", "abbbaa",
	} {
		b.jar = ""
		b.visit("visit")
		old := b.jar
		logins := map[rune]*request{}
		steps := map[rune]int{}
		for _, who := range order {
			switch steps[who]++; steps[who] {
			case 1:
				logins[who] = b.start("login?user="+string(who), old)
			case 2:
				close(logins[who].act)
				b.wait(logins[who].acted)
			case 3:
				require.Equal(t, http.StatusOK, b.finish(logins[who]).status)
			}
		}
		require.NotEmpty(t, b.visit("read").body, order)
		if strings.HasPrefix(order, "ab") { // otherwise b has begun a session of its own
			require.Equal(t, 1, site.Live(), order)
			b.fetch("logout", old, "")
			require.Empty(t, b.visit("read").body, order)
		}
		site.Revoke()
	}
}

// RandomLogins is TwoLogins with random timing.
func RandomLogins(t *testing.T, rounds int, site Site) {
	b := newBrowser(t, site)
	for range rounds {
		b.jar = ""
		b.visit("visit")
		b.both("login?user=alice", "login?user=bob", b.jar)
		require.NotEmpty(t, b.visit("read").body)
	}
}
