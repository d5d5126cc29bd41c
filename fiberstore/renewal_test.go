package fiberstore

import (
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

func openStore(t *testing.T, url string, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	prefix := tombstore.WithKeyPrefix(redistest.Prefix(t, redistest.Dial(t, url)))
	store, err := tombstore.Open(url, append(opts, prefix)...)
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	return store
}

// eachBackend runs test on a MemoryStore, on a server and on a cluster, in both modes.
func eachBackend(t *testing.T, test func(t *testing.T, store backend, m mode)) {
	t.Helper()
	t.Parallel()
	cluster := redistest.ClusterURL(t)
	for name, open := range map[string]func(t *testing.T) backend{
		"memory":  func(t *testing.T) backend { return newSpy(t) },
		"server":  func(t *testing.T) backend { return openStore(t, redistest.URL(t)) },
		"cluster": func(t *testing.T) backend { return openStore(t, cluster) },
	} {
		for _, m := range modes {
			t.Run(name+"/"+string(m), func(t *testing.T) {
				t.Parallel()
				test(t, open(t), m)
			})
		}
	}
}

// rounds returns how often to try what depends on the timing.
func rounds(store backend) int {
	if _, server := store.(*tombstore.RedisStore); server {
		return 100
	}
	return 20
}

// loggedIn returns how many live sessions have a user.
func (b *bed) loggedIn() (n int) {
	b.Helper()
	for entry, err := range b.storage.adapter.Store().(tombstore.Lister).List(b.Context()) {
		require.NoError(b, err)
		if entry.Pending { // left by a request that has failed
			continue
		}
		values, err := decode(entry.Data)
		require.NoError(b, err)
		if values["user"] != nil {
			n++
		}
	}
	return n
}

// Where B, which renews the session, is when A, which logs out, ends it.
var stages = []string{"loaded", "between its halves", "saved", "answered"}

func TestRenewalAgainstLogout(t *testing.T) {
	eachBackend(t, func(t *testing.T, store backend, m mode) {
		b := newBedOn(t, store, m, session.Config{})
		for _, renew := range []string{"renew", "login"} {
			for _, end := range []string{"logout", "reset", "delete"} {
				for _, early := range []bool{true, false} {
					for _, stage := range stages {
						b.renewalAgainstLogout(renew, end, early, stage)
					}
				}
			}
		}
	})
}

// renewalAgainstLogout lets A log out a session that B renews. If A is early, it has loaded the
// session before B has.
func (b *bed) renewalAgainstLogout(renew, end string, early bool, stage string) {
	b.Helper()
	x := b.login()
	resumeA := func() reply { return b.get(end, x) }
	if early {
		resumeA = b.start(end, x, "loaded")
	}
	gate := map[string]string{"loaded": "loaded", "between its halves": "done", "saved": "saved"}[stage]
	var theirs, ours reply
	if gate == "" {
		theirs = b.get(renew, x)
		ours = resumeA()
	} else {
		resumeB := b.start(renew, x, gate)
		ours = resumeA()
		theirs = resumeB()
	}
	cell := renew + " against " + end + ", " + stage
	require.Equal(b, http.StatusAccepted, ours.status, cell)
	require.Equal(b, http.StatusAccepted, theirs.status, cell)
	require.Equal(b, "alice", theirs.body, cell)
	if stage == "loaded" || stage == "between its halves" {
		require.Nil(b, theirs.cookie, cell)
	} else {
		require.NotEmpty(b, theirs.id(), cell)
		require.Equal(b, "anonymous", b.get("who", theirs.id()).body, cell)
	}
	require.Equal(b, "anonymous", b.get("who", x).body, cell)
	require.Zero(b, b.loggedIn(), cell)
}

func TestRenewalAgainstLogout_Random(t *testing.T) {
	eachBackend(t, func(t *testing.T, store backend, m mode) {
		b := newBedOn(t, store, m, session.Config{})
		for range rounds(store) {
			x := b.login()
			_, theirs := b.both(
				func() reply { return b.get([]string{"logout", "reset", "delete"}[rand.IntN(3)], x) },
				func() reply { return b.get([]string{"renew", "login"}[rand.IntN(2)], x) })
			if id := theirs[1].id(); theirs[1].body == "alice" { // else it has begun after the logout
				require.Equal(t, "anonymous", b.get("who", id).body)
			} else {
				b.get("logout", id)
			}
			require.Zero(t, b.loggedIn())
		}
	})
}

// both does two things at about the same time, and returns the replies in the order in which they
// came.
func (b *bed) both(first, second func() reply) (order []reply, replies [2]reply) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	for i, f := range []func() reply{first, second} {
		wait.Go(func() {
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
			r := f()
			mu.Lock()
			defer mu.Unlock()
			order, replies[i] = append(order, r), r
		})
	}
	wait.Wait()
	return order, replies
}

// jar returns what a browser with the cookie x has after replies, in this order.
func jar(x string, replies ...reply) string {
	for _, r := range replies {
		if r.cookie != nil {
			x = r.cookie.Value
		}
	}
	return x
}

// A double click on "log in", with one anonymous session. If both have loaded it, it goes on as one.
func TestTwoLogins(t *testing.T) {
	eachBackend(t, func(t *testing.T, store backend, m mode) {
		b := newBedOn(t, store, m, session.Config{})
		for _, stage := range []string{"loaded", "done", "saved"} {
			for _, other := range []string{"loaded", "done", "saved"} {
				for range 2 {
					x := b.get("modify", "").id()
					first := b.start("login", x, stage)
					second := b.start("login", x, other)
					replies := []reply{first(), second()}
					for range 2 {
						replies[0], replies[1] = replies[1], replies[0]
						require.Equal(t, "alice", b.get("who", jar(x, replies...)).body, "%s, %s", stage, other)
					}
					if stage == "loaded" { // otherwise the second one has begun a session of its own
						require.Equal(t, 1, b.loggedIn(), other)
						b.get("logout", x)
						require.Zero(t, b.loggedIn(), other)
					}
					require.NoError(t, b.storage.Reset())
				}
			}
		}
		for range rounds(store) {
			x := b.get("modify", "").id()
			login := func() reply { return b.get("login", x) }
			order, _ := b.both(login, login)
			require.Equal(t, "alice", b.get("who", jar(x, order...)).body)
			order[0], order[1] = order[1], order[0]
			require.Equal(t, "alice", b.get("who", jar(x, order...)).body)
		}
	})
}
