package integration

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
)

// commanding is the barrier before each command of the store and of the old store, beside those
// that stand in race_test.go.
const commanding = "commanding"

type steppedClient struct{ rueidis.Client }

func (c steppedClient) Do(ctx context.Context, command rueidis.Completed) rueidis.RedisResult {
	pass(ctx, commanding)
	return c.Client.Do(ctx, command)
}

func (c steppedClient) DoMulti(ctx context.Context, commands ...rueidis.Completed) []rueidis.RedisResult {
	pass(ctx, commanding)
	return c.Client.DoMulti(ctx, commands...)
}

// move is an application on its usual backend, and the same one on tombstore, which migrates its
// sessions.
type move struct {
	before, after *site
	client        rueidis.Client
	prefix        string // of the usual backend's keys
	inID          bool   // its ids begin with the prefix
	store         *tombstore.RedisStore
}

func newMove(t testing.TB, s setup) *move {
	client := redistest.Client(t)
	m := &move{client: client, prefix: redistest.Prefix(t, client), inID: s.name == "beego"}
	m.before = &site{url: s.usual(t, redistest.URL(t), m.prefix)}
	stepped := steppedClient{client}
	var err error
	m.store, err = tombstore.New(stepped, tombstore.WithKeyPrefix(redistest.Prefix(t, client)), tombstore.WithTimeout(time.Minute))
	require.NoError(t, err)
	old := adapter.NewOldKeys(stepped, m.prefix)
	if m.inID {
		old = adapter.NewOldKeys(stepped, "")
	}
	m.after = siteOn(t, s, m.store, adapter.WithMigration(old))
	return m
}

// login returns a browser that was logged in before, and comes to the new site.
func (m *move) login(t testing.TB) *browser {
	alice := &browser{TB: t, site: m.before}
	require.Equal(t, "hello", alice.do("login").body)
	alice.site = m.after
	return alice
}

// gone reports whether neither store has the session of a cookie.
func (m *move) gone(t testing.TB, cookie string) bool {
	id, key := named(cookie), m.prefix+named(cookie)
	if m.inID {
		var err error
		id, err = url.QueryUnescape(cookie)
		require.NoError(t, err)
		key = id
	}
	live, err := m.store.Exists(t.Context(), id)
	require.NoError(t, err)
	n, err := m.client.Do(t.Context(), m.client.B().Exists().Key(key).Build()).AsInt64()
	require.NoError(t, err)
	return !live && n == 0
}

// TestMigration logs users in on the usual backend, and requires that none has to log in again on
// tombstore, although their browsers send two requests at once.
func TestMigration(t *testing.T) {
	onEachUsual(t, func(t *testing.T, s setup) {
		m := newMove(t, s)
		users := make([]*browser, rounds(t, 3))
		for i := range users {
			users[i] = m.login(t)
		}
		require.Len(t, redistest.Keys(t.Context(), m.client, m.prefix), len(users))
		for _, alice := range users {
			page, image := alice.prepare("whoami", alice.cookie), alice.prepare("add", alice.cookie)
			atOnce(func(q *request) { q.hurry() }, page, image)
			require.Equal(t, "alice", page.answer.body)
			require.Equal(t, "added", image.answer.body)
		}
		require.Empty(t, redistest.Keys(t.Context(), m.client, m.prefix))
		require.Len(t, m.after.live(), len(users))
		askedToLogIn := 0
		for _, alice := range users {
			if alice.do("whoami").body != "alice" {
				askedToLogIn++
			}
		}
		require.Zero(t, askedToLogIn)
		t.Logf("%d users, %d asked to log in again", len(users), askedToLogIn)
		cookie := users[0].cookie
		users[0].do("logout")
		require.True(t, m.gone(t, cookie))
		require.Len(t, m.after.live(), len(users)-1)
	})
}

// order chooses which of two requests takes the next step: one order after the other, or at random.
type order struct {
	random bool
	second []bool // at each choice
	made   int
}

func (o *order) choose() (second bool) {
	if o.random {
		return rand.IntN(2) == 1
	}
	if o.made == len(o.second) {
		o.second = append(o.second, false)
	}
	o.made++
	return o.second[o.made-1]
}

// next prepares the next order, and reports whether there is one.
func (o *order) next() bool {
	n := o.made
	for n > 0 && o.second[n-1] {
		n--
	}
	o.second, o.made = o.second[:n], 0
	if n > 0 {
		o.second[n-1] = true
	}
	return n > 0 || o.random
}

// TestMigration_Logout logs out while another request of the browser migrates the session. From the
// answer on, nothing of it is there. With ROUNDS each order of the commands of both requests is
// played, or as many as it says, and without it a few at random.
func TestMigration_Logout(t *testing.T) {
	for _, action := range []string{"add", "whoami", "renew"} {
		t.Run(action, func(t *testing.T) {
			onEachUsual(t, func(t *testing.T, s setup) {
				m := newMove(t, s)
				m.login(t).do("logout") // the first time scripts are loaded
				m.login(t).do(action)
				n := rounds(t, 25)
				orders := &order{random: os.Getenv("ROUNDS") == ""}
				played := 0
				for more := true; more && played < n; more = orders.next() {
					m.logout(t, action, orders)
					played++
				}
				t.Log(played, "orders")
			})
		})
	}
}

func (m *move) logout(t *testing.T, action string, orders *order) {
	alice := m.login(t)
	old := alice.cookie
	migrating, logout := alice.prepare(action, old), alice.prepare("logout", old)
	out := true
	for !migrating.ended || !logout.ended {
		next := migrating
		if migrating.ended || !logout.ended && orders.choose() {
			next = logout
		}
		next.to(commanding)
		out = out && (!logout.ended || m.gone(t, old))
	}
	require.True(t, out, "a session after its logout was answered")
	for _, q := range []*request{migrating, logout} {
		require.NoError(t, q.failure)
		require.Equal(t, http.StatusOK, q.answer.status, q.answer.body)
	}
	require.Equal(t, "bye", logout.answer.body)
	require.Equal(t, anonymous, alice.send("whoami", old, "").body)
	if c := migrating.answer.cookie; c != nil && c.MaxAge >= 0 {
		require.Equal(t, anonymous, alice.send("whoami", c.Value, "").body)
	}
	before := &browser{TB: alice.TB, site: m.before}
	require.Equal(t, anonymous, before.send("whoami", old, "").body, "a process that still runs on the usual backend")
}

// A logout that a process on the usual backend answers while the session is on its way.
func TestMigration_OldLogout(t *testing.T) {
	onEachUsual(t, func(t *testing.T, s setup) {
		m := newMove(t, s)
		for commands := range 4 { // of a migration: read, read the old key, write, delete the old key
			alice := m.login(t)
			request := alice.prepare("whoami", alice.cookie)
			for range commands + 1 {
				require.True(t, request.to(commanding))
			}
			before := &browser{TB: t, site: m.before}
			require.Equal(t, "bye", before.send("logout", alice.cookie, "").body)
			request.to("")
			require.True(t, m.gone(t, alice.cookie))
		}
	})
}

// A visitor of whom the usual backend has nothing, which go-chi/session writes down all the same,
// is one here, too.
func TestMigration_Visitor(t *testing.T) {
	onEachUsual(t, func(t *testing.T, s setup) {
		m := newMove(t, s)
		visitor := &browser{TB: t, site: m.before}
		require.Equal(t, "seen", visitor.do("read").body)
		visitor.site = m.after
		require.Equal(t, anonymous, visitor.do("whoami").body)
		require.Equal(t, "hello", visitor.do("login").body)
		require.Equal(t, "alice", visitor.do("whoami").body)
	})
}

// Fiber's usual storage has no key prefix, so a cookie can name any key.
func TestMigration_AnyKey(t *testing.T) {
	t.Parallel()
	for _, s := range setups {
		if s.backend != "gofiber/storage/redis v3" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			client := redistest.Client(t)
			prefix := redistest.Prefix(t, client)
			store, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix))
			require.NoError(t, err)
			site := siteOn(t, s, store, adapter.WithMigration(adapter.NewOldKeys(client, "")))
			alice, mallory := &browser{TB: t, site: site}, &browser{TB: t, site: site}
			require.Equal(t, "hello", alice.do("login").body)
			key := prefix + tombstore.Ref(alice.cookie)
			ended := tombstore.NewID()
			require.NoError(t, store.Invalidate(t.Context(), ended))
			for _, key := range []string{key, prefix + tombstore.Ref(ended)} {
				for _, action := range []string{"whoami", "add", "logout"} {
					require.NotEqual(t, "alice", mallory.send(action, key, "").body)
				}
			}
			require.Equal(t, "alice", alice.do("whoami").body)
			_, err = store.Read(t.Context(), ended)
			require.ErrorIs(t, err, tombstore.ErrInvalidated)
		})
	}
}
