package integration

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// What a login that says whose session it is does in each framework, and a log out everywhere.

// club is a site whose members log in as owners.
type club struct {
	testing.TB
	*site
	store backend
	setup setup
}

// onEachClub runs test for each framework, in memory, on a server and in a cluster.
func onEachClub(t *testing.T, opts []tombstore.Option, test func(c *club)) {
	t.Helper()
	t.Parallel()
	for _, s := range all() {
		for _, server := range serversFor(t, s) {
			t.Run(s.name+"/"+server.name, func(t *testing.T) {
				t.Parallel()
				store := newStore(t, server.url, opts...)
				test(&club{t, siteOn(t, s, store), store, s})
			})
		}
	}
}

// visitor returns a browser whose session holds something, and is nobody's.
func (c *club) visitor() *browser {
	b := c.stranger()
	b.does("add", "added")
	return b
}

// stranger returns a browser without a session.
func (c *club) stranger() *browser { return &browser{TB: c, site: c.site} }

// member returns a browser that is logged in.
func (c *club) member(user string) *browser {
	b := c.visitor()
	b.user = user
	b.does("enter", "hello")
	return b
}

// anybody returns a stranger and a visitor.
func (c *club) anybody() []*browser { return []*browser{c.stranger(), c.visitor()} }

// does requires what a request of the browser is answered.
func (b *browser) does(action, body string) answer {
	b.Helper()
	a := b.do(action)
	require.Equal(b, http.StatusOK, a.status, a.body)
	require.Equal(b, body, a.body)
	return a
}

// is requires who a cookie stands for.
func (c *club) is(user, cookie string) {
	c.Helper()
	require.Equal(c, user, c.stranger().send("whoami", cookie, "").body)
}

// keeps requires that the browser is still a visitor, with what the session holds.
func (c *club) keeps(b *browser) {
	c.Helper()
	c.is(anonymous, b.cookie)
	require.Contains(c, c.data(b.cookie), "items")
	require.NotContains(c, c.data(b.cookie), "alice")
}

// data returns the data of the session that a cookie names.
func (c *club) data(cookie string) string {
	c.Helper()
	for entry, err := range c.store.List(c.Context()) {
		require.NoError(c, err)
		if entry.Ref == c.ref(cookie) {
			return string(entry.Data)
		}
	}
	return ""
}

// owns requires that a user has exactly the sessions of these browsers, and returns them.
func (c *club) owns(user string, browsers ...*browser) []tombstore.OwnedSession {
	c.Helper()
	all, err := c.store.Sessions(c.Context(), user)
	require.NoError(c, err)
	refs, want := []string{}, []string{}
	for _, s := range all {
		refs = append(refs, s.Ref)
	}
	for _, b := range browsers {
		want = append(want, c.ref(b.cookie))
		c.is(user, b.cookie)
	}
	require.ElementsMatch(c, want, refs)
	return all
}

func (c *club) endAll(user string) {
	c.Helper()
	_, err := c.store.InvalidateOwner(c.Context(), user)
	require.NoError(c, err)
}

// A login begins a session of the owner, with what the visitor's holds. A renewal is no login, and a logout
// with an older cookie ends the session and takes it out.
func TestLogin(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		for _, alice := range c.anybody() {
			visitor := alice.cookie
			alice.does("enter", "hello")
			before := c.owns("alice", alice)[0]
			require.Greater(t, time.Until(before.Deadline), 59*time.Minute)
			require.Equal(c, visitor != "", strings.Contains(c.data(alice.cookie), "items"))
			c.is(anonymous, visitor)
			in := alice.cookie

			alice.does("renew", "renewed")
			after := c.owns("alice", alice)[0]
			require.Equal(c, before.Deadline, after.Deadline)
			require.Equal(c, before.CreatedAt, after.CreatedAt)

			require.Equal(c, http.StatusOK, alice.send("logout", in, "").status)
			c.owns("alice")
			c.is(anonymous, alice.cookie)
		}
	})
}

// The deadline is the absolute timeout's if that is sooner.
func TestLogin_AbsoluteTimeout(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithAbsoluteTimeout(20 * time.Minute)}, func(c *club) {
		deadline := c.owns("alice", c.member("alice"))[0].Deadline
		require.WithinDuration(c, time.Now().Add(20*time.Minute), deadline, time.Minute)
	})
}

// A login whose owner is logged out everywhere while the password is looked at is an error of Login, and the
// visitor stays one.
func TestLogin_Stale(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		alice := c.visitor()
		login := alice.prepare("enter", alice.cookie)
		require.True(c, login.to(begun))
		c.endAll("alice")
		require.Equal(c, "stale", login.finish().body)
		c.owns("alice")
		c.keeps(alice)
		alice.does("enter", "hello")
		c.owns("alice", alice)
	})
}

// One whose owner is logged out everywhere before the session is saved is refused, and nobody is in.
func TestLogin_EndedBeforeSave(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		for _, alice := range c.anybody() {
			login := alice.prepare("enter", alice.cookie)
			require.True(c, login.to(acted))
			c.endAll("alice")
			a := login.finish()
			require.Equal(c, http.StatusOK, a.status)
			require.Nil(c, a.cookie)
			c.owns("alice")
			require.NotContains(c, strings.Join(c.live(), " "), "alice")
		}
	})
}

// A login that is followed by a logout in its request has taken no place.
func TestLogin_NotSaved(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(c *club) {
		for _, l := range c.setup.logouts {
			if l.leaves || l.aborts || slices.Contains([]string{"clear", "logout/delete", "logout/empty"}, strings.SplitN(l.action, "+", 2)[0]) {
				continue // to take values away is no logout after Login, which has set them
			}
			for _, alice := range c.anybody() {
				require.Equal(c, http.StatusOK, alice.do("enter+"+l.action).status, l.name)
				c.is(anonymous, alice.cookie)
				c.owns("alice", c.member("alice"))
				c.endAll("alice")
			}
		}
	})
}

// A handler that panics after Login leaves nobody logged in. With scs it has taken no place. Beego has recovered before the session is
// saved, and saves it, as with its own providers.
func TestLogin_Panics(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(c *club) {
		for _, alice := range c.anybody() {
			login := alice.prepare("enter+panic", alice.cookie)
			if a := login.finish(); login.failure != nil {
				<-login.stops.ended
			} else {
				require.Equal(c, http.StatusInternalServerError, a.status)
			}
			if c.setup.name == "beego" {
				c.owns("alice", alice)
				c.endAll("alice")
				continue
			}
			require.NotContains(c, strings.Join(c.live(), " "), "alice")
			if strings.HasPrefix(c.setup.name, "scs") {
				c.owns("alice", c.member("alice"))
			}
			c.endAll("alice")
		}
	})
}

// What renews the session after a login takes the login along, and a second login is the one that counts.
func TestLogin_ThenAgain(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(c *club) {
		for action, body := range map[string]string{"enter+renew": "hello renewed", "enter+enter": "hello hello"} {
			for _, alice := range c.anybody() {
				alice.does(action, body)
				c.owns("alice", alice)
				c.endAll("alice")
			}
		}
	})
}

// Bob logs in where alice was.
func TestLogin_OfAnotherUser(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		bob := c.member("alice")
		alices := bob.cookie
		bob.user = "bob"
		bob.does("enter", "hello")
		c.owns("alice")
		c.owns("bob", bob)
		c.endAll("alice")
		c.is("bob", bob.cookie)
		c.is(anonymous, alices)
	})
}

// A login too many is an error of Login, and one in the browser that has the place is none.
func TestLogin_Refuse(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(c *club) {
		alice, late := c.member("alice"), c.visitor()
		late.does("enter", "full")
		c.keeps(late)
		alice.does("enter", "hello")
		c.owns("alice", alice)
	})
}

func TestLogin_EvictOldest(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.EvictOldest)}, func(c *club) {
		first, second := c.member("alice"), c.member("alice")
		c.is(anonymous, first.cookie)
		second.does("enter", "hello")
		c.owns("alice", second)
	})
}

// Only the session of the request goes on, as what it was, under a new id.
func TestLogoutEverywhere_Others(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		phone := c.member("alice")
		before, old := c.owns("alice", phone)[0], phone.cookie
		laptop, bob := c.member("alice"), c.member("bob")
		phone.does("everywhere", "others are out")
		after := c.owns("alice", phone)[0]
		require.NotEqual(c, before.Ref, after.Ref)
		require.Equal(c, before.Deadline, after.Deadline)
		require.Equal(c, before.CreatedAt, after.CreatedAt)
		c.is(anonymous, old)
		c.is(anonymous, laptop.cookie)
		c.owns("bob", bob)
	})
}

// Without a session of the owner's all of those are ended, and the request keeps what it has.
func TestLogoutEverywhere_OfSomebodyElse(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		for _, who := range append(c.anybody(), c.member("bob")) {
			c.member("alice")
			before := who.send("whoami", who.cookie, "").body
			who.does("everywhere/anyway", "others are out")
			c.owns("alice")
			c.is(before, who.cookie)
		}
	})
}

// To log out here as well takes a call more, and the cookie goes.
func TestLogoutEverywhere_HereToo(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		phone := c.member("alice")
		old := phone.cookie
		c.member("alice")
		phone.does("everywhere+logout", "others are out bye")
		require.Empty(c, phone.cookie)
		c.owns("alice")
		c.is(anonymous, old)
	})
}

// A login that logs out all others is the one that stays, also if it is in the place of an earlier one.
func TestLogoutEverywhere_AtLogin(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		for _, alice := range append([]*browser{c.member("alice")}, c.anybody()...) {
			c.member("alice")
			alice.does("enter+everywhere", "hello others are out")
			c.owns("alice", alice)
		}
	})
}

// A logout in another tab, before such a login is answered, ends it.
func TestLogoutEverywhere_AtLoginThatIsLoggedOut(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		alice := c.member("alice")
		late := alice.prepare("enter+everywhere", alice.cookie)
		require.True(c, late.to(acted))
		tab := *alice
		tab.does("logout", "bye")
		a := late.finish()
		c.owns("alice")
		c.is(anonymous, alice.cookie)
		if a.cookie != nil { // it was on its way, and is dead
			c.is(anonymous, a.cookie.Value)
		}
	})
}

// Of two devices that log each other out one goes on.
func TestLogoutEverywhere_Twice(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		phone, laptop := c.member("alice"), c.member("alice")
		late := laptop.prepare("everywhere", laptop.cookie)
		require.True(c, late.to(loaded))
		phone.does("everywhere", "others are out")
		a := late.finish()
		require.Equal(c, anonymous, a.body, "it is refused")
		require.Nil(c, a.cookie)
		c.owns("alice", phone)
	})
}
