package integration

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// site is an application on a session store.
type site struct {
	url    string
	hashed bool // the store knows the hashes of ids
	// live returns the data of the live sessions, and revoke ends them all as an administrator
	// would.
	live   func() []string
	revoke func()
	owned  func() []string // refs of alice's sessions, as their owner's
	fail   func(err error) // makes all saves fail, until err is nil

	// transport has the site's connections: another site may get a port that was closed, and
	// connections to that fail.
	transport http.Transport
}

// What A does to the session that B has loaded, and what B does.
var (
	endings  = []string{"logout", "login", "revocation"}
	requests = []string{"modifies", "only reads", "renews", "finishes first", "starts late", "logs out too"}
)

var actions = map[string]string{
	"modifies": "add", "only reads": "read", "renews": "renew", "finishes first": "add", "starts late": "add", "logs out too": "logout",
}

var bodies = map[string]string{"login": "hello", "add": "added", "read": "seen", "renew": "renewed", "logout": "bye"}

// outcome is how a race ended.
type outcome struct {
	B      string // status and body
	Cookie string // that B was given: "", "new", "old" or "deleted"
	Next   string // who the browser is, at its next request
	Thief  string // who holds a copy of the old cookie
	Live   int    // sessions on the server
}

func (o outcome) String() string {
	return fmt.Sprintf("B %s, cookie %q, next %s, thief %s, %d live", o.B, o.Cookie, o.Next, o.Thief, o.Live)
}

// play plays one cell of the matrix, with barriers.
func play(t testing.TB, s *site, ending, request string) outcome {
	alice := &browser{TB: t, site: s}
	if ending == "login" {
		alice.do("add")
	} else {
		alice.do("login")
	}
	old := alice.cookie
	require.NotEmpty(t, old, "the browser has a session")
	act := actions[request]

	end := func() {
		if ending == "revocation" {
			s.revoke()
			return
		}
		alice.apply(alice.send(ending, old, ""))
	}

	var b answer
	switch {
	case request == "starts late":
		end()
		b = alice.apply(alice.send(act, old, ""))
	case request == "finishes first" && ending == "revocation":
		b = alice.do(act)
		end()
	case request == "finishes first":
		late, first := alice.prepare(act, old), alice.prepare(ending, old)
		require.True(t, late.to(loaded) && first.to(answering))
		b = late.finish()
		first.finish()
	default:
		late := alice.prepare(act, old)
		require.True(t, late.to(loaded))
		end()
		b = late.finish()
	}

	o := outcome{B: fmt.Sprintf("%d %s", b.status, b.body)}
	switch {
	case b.cookie == nil:
	case b.cookie.Value == "" && ending != "login": // there is no session to take it from
	case b.cookie.Value == "":
		o.Cookie = "deleted"
	case named(b.cookie.Value) == named(old):
		o.Cookie = "old"
	default:
		o.Cookie = "new"
	}
	o.Live = len(s.live())
	o.Next = strings.TrimSpace(alice.send("whoami", alice.cookie, "").body)
	o.Thief = strings.TrimSpace(alice.send("whoami", old, "").body)
	return o
}

// id returns what the store calls the session that a cookie names.
func (s *site) id(cookie string) string {
	id := named(cookie)
	if s.hashed {
		hash := sha256.Sum256([]byte(id))
		return base64.RawURLEncoding.EncodeToString(hash[:])
	}
	return id
}

func (s *site) ref(cookie string) string { return tombstore.Ref(s.id(cookie)) }

// named returns the session id in a cookie's value. Some frameworks sign it with the time, so that
// two cookies of one session differ.
func named(cookie string) (id string) {
	if securecookie.DecodeMulti(cookieName, cookie, &id, securecookie.CodecsFromPairs(keyPair)...) != nil {
		return cookie
	}
	return id
}

// wanted says how a race has to end: A wins, B keeps its own answer and gets no cookie, and nothing
// of the old session lives.
func wanted(ending, request string, lateOption bool) outcome {
	o := outcome{B: "200 " + bodies[actions[request]], Next: anonymous, Thief: anonymous}
	if ending == "login" {
		o.Next, o.Live = "alice", 1
	}
	switch request {
	case "starts late": // B knows nothing of the old session: it gets a new one, unless that is held back
		if ending == "revocation" || !lateOption {
			o.Cookie, o.Next = "new", anonymous
			o.Live++
		}
	case "logs out too": // it reaches the session that a login has made of its own
		if ending == "login" {
			o.Cookie, o.Next, o.Live = "deleted", anonymous, 0
		}
	case "finishes first":
		if ending == "revocation" {
			o.Cookie = "old" // it was live then
		}
	}
	return o
}

// wanted is what is wanted of a framework: one that sets a cookie only with a new id has none for B
// where others have.
func (s setup) wanted(ending, request string, lateOption bool) outcome {
	o := wanted(ending, request, lateOption)
	if s.silent && o.Cookie == "old" {
		o.Cookie = ""
	}
	return o
}

// TestMatrix plays every race on every framework with tombstore, with and without the option for
// late requests.
func TestMatrix(t *testing.T) {
	t.Parallel()
	for _, s := range all() {
		for _, ending := range endings {
			for _, request := range requests {
				t.Run(s.name+"/"+ending+"/"+request, func(t *testing.T) {
					t.Parallel()
					site := ourSite(t, s)
					require.Equal(t, s.wanted(ending, request, false), play(t, site, ending, request))
					if request == "starts late" {
						site = ourSite(t, s, adapter.WithLateRequests(time.Minute))
						require.Equal(t, s.wanted(ending, request, true), play(t, site, ending, request))
					}
				})
			}
		}
	}
}

// TestMatrix_Usual plays the same races on the usual backends. Each framework must lose some, or
// TestMatrix shows nothing.
func TestMatrix_Usual(t *testing.T) {
	t.Parallel()
	for _, s := range setups {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			require.NotEqual(t, s.wanted("logout", "modifies", false), play(t, usualSite(t, s), "logout", "modifies"))
			require.NotEqual(t, s.wanted("login", "modifies", false), play(t, usualSite(t, s), "login", "modifies"))
		})
	}
}
