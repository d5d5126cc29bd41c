package losses

import (
	"math/rand/v2"
	"testing"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// strikes are what happens while owners log in and are logged out. The server keeps all that it has
// acknowledged.
var strikes = map[string]func(t *testing.T, b *bed){
	"SIGKILL and restart, AOF always": func(t *testing.T, b *bed) {
		b.server.Kill(t)
		b.server.Restart(t)
	},
	"replies lost":       func(_ *testing.T, b *bed) { b.wire.LoseReply() },
	"wire cut":           func(_ *testing.T, b *bed) { b.wire.Cut() },
	"SCRIPT FLUSH":       func(t *testing.T, b *bed) { do(t, b.admin, "SCRIPT", "FLUSH") },
	"connections killed": func(t *testing.T, b *bed) { do(t, b.admin, "CLIENT", "KILL", "TYPE", "normal") },
}

// bed is a server on which owners log in and out, and what was found.
type bed struct {
	server *redistest.Server
	wire   *redistest.Proxy
	admin  rueidis.Client // past the wire
	client *faults.Striking

	out, told, places faults.Row
}

// newBed returns a bed whose store has a client that is wrapped.
func newBed(t *testing.T, fault string, wrap func(rueidis.Client) rueidis.Client) *bed {
	t.Helper()
	b := &bed{server: redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")}
	b.wire, b.admin = redistest.NewProxy(t, b.server.Addr), redistest.Dial(t, b.server.URL)
	b.client = &faults.Striking{Client: wrap(redistest.Dial(t, b.wire.URL)), Strike: func() { strikes[fault](t, b) }}
	return b
}

// round strikes ahead of one of the commands of an InvalidateOwner, with all that goes on at the same
// time, and ahead of one of those of many logins that want the last places.
func (b *bed) round(t *testing.T) {
	t.Helper()
	const limit = 2
	account := func(opts ...tombstore.Option) *faults.Account {
		b.client.Arm(1 + rand.Int64N(20))
		return &faults.Account{
			Owner: tombstore.NewID(), NewID: tombstore.NewID,
			Store: newStore(t, b.client, opts...), Whole: newStore(t, b.admin), Server: b.admin,
		}
	}
	account(tombstore.WithPublish()).LogOut(t, b.out.Injected%2 == 1, &b.out, &b.told)
	whenFull := []tombstore.WhenFull{tombstore.EvictOldest, tombstore.Refuse}[b.places.Injected%2]
	account(tombstore.WithMaxSessions(limit, whenFull)).Crowd(t, limit, &b.places)
}

// TestOwners breaks things while owners log in, move and are logged out everywhere.
func TestOwners(t *testing.T) {
	t.Parallel()
	for fault := range strikes {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, fault, func(c rueidis.Client) rueidis.Client { return c })
			faults.Repeat(t, 4, 1, func() { b.round(t) })
			if fault == "replies lost" {
				require.Positive(t, b.wire.Lost())
			}
			for what, row := range map[string]*faults.Row{
				"InvalidateOwner against logins and moves":     &b.out,
				"watchers of sessions that move, and then end": &b.told,
				"moments with more sessions than the limit":    &b.places,
			} {
				row.Kind, row.Fault = faults.Promised, "owners, "+fault+": "+what
				faults.Report(t, *row)
			}
		})
	}
}

// TestOwners_SeededBugs takes guards out of the scripts, one at a time.
func TestOwners_SeededBugs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		wrap func(rueidis.Client) rueidis.Client
		row  func(b *bed) *faults.Row // in which it is found
	}{
		"revoke.lua closes nothing": {
			faults.Edit("revoke.lua", "generation = generation + 1\n", "\n"), (*bed).outRow},
		"revoke.lua leaves out the session that goes on": {
			faults.Edit("revoke.lua", "if score then redis.call", "if false then redis.call"), (*bed).outRow},
		"bind.lua looks at no ticket": {
			faults.Edit("bind.lua", "if stale or math.abs", "if math.abs"), (*bed).outRow},
		"bind.lua lets a move join what is open": {
			faults.Edit("bind.lua", "score = score or tonumber(found[4])", "score = own"), (*bed).outRow},
		"bind.lua lets one in too many": {
			faults.Edit("bind.lua", ">= tonumber(ARGV[9])", "> tonumber(ARGV[9])"), (*bed).placesRow},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, faults.Seeded)
			b := newBed(t, "replies lost", c.wrap)
			row := c.row(b)
			row.Kind, row.Fault = faults.Seeded, "owners, "+name
			for row.Violations == 0 && row.Injected < 100 {
				b.round(t)
			}
			faults.Report(t, *row)
		})
	}
}

func (b *bed) outRow() *faults.Row    { return &b.out }
func (b *bed) placesRow() *faults.Row { return &b.places }
