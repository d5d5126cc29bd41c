package clocks

import (
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// pair is a cluster of two nodes: the keys of owners are on one, and those of their sessions on the
// other, whose clock is right.
type pair struct {
	owners, sessions *server
	client           rueidis.Client // of the cluster
}

func startPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{}
	var buses []string
	for i, node := range []**server{&p.owners, &p.sessions} {
		bus := strconv.Itoa(redistest.FreePort())
		buses = append(buses, bus)
		*node = start(t, 0, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-announce-bus-port", bus, "--cluster-node-timeout", "1000")
		(*node).do(t, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*redistest.Slots/2), strconv.Itoa((i+1)*redistest.Slots/2-1))
		(*node).do(t, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	_, port, _ := net.SplitHostPort(p.sessions.Addr)
	p.owners.do(t, "CLUSTER", "MEET", "127.0.0.1", port, buses[1])
	for _, node := range []*server{p.owners, p.sessions} {
		redistest.Until(t, "the nodes know each other", func() bool {
			info := node.do(t, "CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_slots_ok:16384")
		})
		node.do(t, "CONFIG", "SET", "cluster-node-timeout", strconv.FormatInt((100*hour).Milliseconds(), 10)) // no jump is a loss
	}
	var err error
	p.client, err = rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{p.owners.Addr, p.sessions.Addr}, DisableCache: true, DisableRetry: true,
	})
	require.NoError(t, err)
	t.Cleanup(p.client.Close)
	require.Equal(t, rueidis.ClientModeCluster, p.client.Mode())
	return p
}

func (s *server) do(t *testing.T, command ...string) string {
	t.Helper()
	res := s.client.Do(t.Context(), s.client.B().Arbitrary(command...).Build())
	require.NoError(t, res.Error())
	text, _ := res.ToString()
	return text
}

// account returns an owner whose key is on the one node, and whose sessions are on the other.
func (p *pair) account(t *testing.T, wrap func(rueidis.Client) rueidis.Client, opts ...tombstore.Option) *faults.Account {
	t.Helper()
	store := func(client rueidis.Client) *tombstore.RedisStore {
		s, err := tombstore.New(client, append([]tombstore.Option{
			tombstore.WithTimeout(patience), tombstore.WithAbsoluteTimeout(2 * hour)}, opts...)...)
		require.NoError(t, err)
		return s
	}
	first := func(id string) bool { return faults.Slot("tombstore:o:"+tombstore.Ref(id)) < redistest.Slots/2 }
	second := func(id string) bool { return faults.Slot("tombstore:"+tombstore.Ref(id)) >= redistest.Slots/2 }
	return &faults.Account{
		Owner: faults.NewID(first), NewID: func() string { return faults.NewID(second) },
		Store: store(wrap(p.client)), Whole: store(p.client), Server: p.sessions.client,
	}
}

func same(c rueidis.Client) rueidis.Client { return c }

// ending are sessions near their deadline.
type ending struct {
	*faults.Account
	ids []string
}

// ending logs an owner in with sessions whose deadline has passed, by the clock of the owner's server,
// when that has moved ahead by skew; or will in half an hour.
func (p *pair) ending(t *testing.T, skew time.Duration, wrap func(rueidis.Client) rueidis.Client) *ending {
	t.Helper()
	e := &ending{Account: p.account(t, wrap)}
	left := hour / 2
	if skew > 0 {
		left = min(left, skew*4/5)
	}
	for range 10 {
		id := e.NewID()
		b := e.reserve(t, id, left)
		_, err := e.Store.Write(t.Context(), id, nil, hour, tombstore.Bound(b))
		require.NoError(t, err)
		e.ids = append(e.ids, id)
	}
	return e
}

func (e *ending) reserve(t *testing.T, id string, left time.Duration) tombstore.Binding {
	t.Helper()
	login, err := e.Store.BeginLogin(t.Context(), e.Owner)
	require.NoError(t, err)
	b, err := e.Store.Reserve(t.Context(), id, login, tombstore.Until(time.Now().Add(left)))
	require.NoError(t, err)
	return b
}

// prune logs the owner in so often that what has expired is taken out of the key.
func (e *ending) prune(t *testing.T) {
	t.Helper()
	for range 100 {
		e.reserve(t, e.NewID(), 5*hour)
	}
}

// end logs the owner out everywhere, and counts the sessions that are live.
func (e *ending) end(t *testing.T, row *faults.Row) {
	t.Helper()
	_, err := e.Store.InvalidateOwner(t.Context(), e.Owner)
	require.NoError(t, err)
	row.Injected++
	row.Checked += int64(len(e.ids))
	row.Violations += faults.Live(t, e.Store, e.ids)
}

// list counts the sessions that are live and that Sessions does not return.
func list(t *testing.T, a *faults.Account, ids []string, row *faults.Row) {
	t.Helper()
	sessions, err := a.Store.Sessions(t.Context(), a.Owner)
	require.NoError(t, err)
	row.Injected++
	for _, id := range ids {
		row.Checked++
		if !slices.ContainsFunc(sessions, func(s tombstore.OwnedSession) bool { return s.Ref == tombstore.Ref(id) }) {
			row.Violations += faults.Live(t, a.Store, []string{id})
		}
	}
}

// TestOwners moves the clock of the server that has the owners' keys, and not that of their sessions'.
func TestOwners(t *testing.T) {
	t.Parallel()
	const limit = 3
	for _, c := range []struct {
		name string
		skew time.Duration
	}{{"10 s ahead", 10 * time.Second}, {"10 s behind", -10 * time.Second}, {"1 h ahead", hour}, {"1 h behind", -hour}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := startPair(t)
			var listed, near, before, out, told, places faults.Row
			faults.Repeat(t, 2, 1, func() {
				p.owners.move(t, 0)
				a := p.account(t, same)
				devices, ending := a.Devices(t), p.ending(t, c.skew, same)
				p.owners.move(t, c.skew)
				ending.prune(t)
				list(t, ending.Account, ending.ids, &listed)
				ending.end(t, &near)
				list(t, a, devices.In, &listed)
				_, err := a.Store.InvalidateOwner(t.Context(), a.Owner)
				require.NoError(t, err)
				before.Injected++
				devices.Out(t, a.Store, &before)
				p.account(t, same, tombstore.WithPublish()).LogOut(t, out.Injected%2 == 1, &out, &told)
				p.account(t, same, tombstore.WithMaxSessions(limit, tombstore.EvictOldest)).Crowd(t, limit, &places)
			})
			for what, row := range map[string]*faults.Row{
				"live sessions that Sessions does not list":                   &listed,
				"sessions near their deadline that InvalidateOwner misses":    &near,
				"InvalidateOwner of sessions and logins from before it moved": &before,
				"InvalidateOwner against logins and moves":                    &out,
				"watchers of sessions that move, and then end":                &told,
				"moments with more sessions than the limit":                   &places,
			} {
				row.Kind, row.Fault = faults.Promised, "clock of the owner's server "+c.name+": "+what
				faults.Report(t, *row)
			}
		})
	}
}

// TestOwners_NearDeadline moves that clock by more than entries are kept for, and keeps them for less.
func TestOwners_NearDeadline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		skew  time.Duration
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{faults.Unpromised, "clock of the owner's server 2 h ahead: sessions near their deadline that InvalidateOwner misses", 2 * hour, same},
		{
			faults.Seeded, "clock of the owner's server 1 h ahead: bind.lua takes an entry out at the deadline", hour,
			faults.Edit("bind.lua", "math.ceil(deadline / 1000) + 3600", "math.ceil(deadline / 1000)"),
		},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			p := startPair(t)
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			for row.Violations == 0 && row.Injected < 10 { // not every login takes out what has expired
				p.owners.move(t, 0)
				ending := p.ending(t, c.skew, c.wrap)
				p.owners.move(t, c.skew)
				ending.prune(t)
				ending.end(t, &row)
			}
			faults.Report(t, row)
		})
	}
}
