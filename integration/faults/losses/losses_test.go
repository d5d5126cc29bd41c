// Package losses takes away what a server has acknowledged: by eviction, by a restart, by a promotion.
package losses

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

const hour = time.Hour

func newStore(t *testing.T, client rueidis.Client, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	s, err := tombstore.New(client, append([]tombstore.Option{tombstore.WithTimeout(20 * time.Second)}, opts...)...)
	require.NoError(t, err)
	return s
}

func do(t *testing.T, client rueidis.Client, command ...string) {
	t.Helper()
	require.NoError(t, client.Do(t.Context(), client.B().Arbitrary(command...).Build()).Error())
}

// create stores n sessions and returns their ids.
func create(t *testing.T, s tombstore.Store, n int) (ids []string) {
	t.Helper()
	for range n {
		ids = append(ids, tombstore.NewID())
		_, err := s.Write(t.Context(), ids[len(ids)-1], []byte("x"), hour, tombstore.IfAbsent())
		require.NoError(t, err)
	}
	return ids
}

func end(t *testing.T, s tombstore.Store, ids []string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, s.Invalidate(t.Context(), id))
	}
}

// live counts the ids that are live.
func live(t *testing.T, s tombstore.Store, ids []string) (n int64) {
	t.Helper()
	for _, id := range ids {
		switch _, err := s.Read(t.Context(), id); {
		case err == nil:
			n++
		default:
			require.True(t, errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated), "%v", err)
		}
	}
	return n
}

// revived counts the ids that a late writer makes live.
func revived(t *testing.T, s tombstore.Store, ids []string, opts ...tombstore.WriteOption) (n int64) {
	t.Helper()
	for _, id := range ids {
		if _, err := s.Write(t.Context(), id, []byte("late"), hour, opts...); err == nil {
			n++
		}
	}
	return n
}

// repeat calls round until the time is over, and at least once.
func repeat(t *testing.T, round func()) {
	t.Helper()
	until := time.Now().Add(faults.Duration(t, 0))
	for {
		round()
		if !time.Now().Before(until) {
			return
		}
	}
}

// TestRestart kills the server right after it has acknowledged ends.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		persistence string
		kind        faults.Kind
		args        []string
		snapshot    bool
	}{
		{"no persistence", faults.Unpromised, nil, false},
		{"RDB", faults.Unpromised, nil, true},
		{"AOF everysec", faults.Unpromised, []string{"--appendonly", "yes", "--appendfsync", "everysec"}, false},
		{"AOF always", faults.Promised, []string{"--appendonly", "yes", "--appendfsync", "always"}, false},
	} {
		t.Run(c.persistence, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, c.args...)
			row := faults.Row{Kind: c.kind, Fault: "restart after SIGKILL, " + c.persistence}
			repeat(t, func() {
				client := redistest.Dial(t, server.URL)
				s := newStore(t, client)
				ids := create(t, s, 100)
				if c.snapshot {
					do(t, client, "SAVE")
				}
				end(t, s, ids)
				server.Kill(t)
				server.Restart(t)
				row.Injected++
				row.Checked += int64(len(ids))
				row.Violations += live(t, newStore(t, redistest.Dial(t, server.URL)), ids)
			})
			faults.Report(t, row)
		})
	}
}

// TestEviction fills the memory of a server, by each of its policies.
func TestEviction(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{
		"noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--maxmemory-policy", policy)
			client := redistest.Dial(t, server.URL)
			s := newStore(t, client)
			ids := create(t, s, 3000)
			ended, loggedIn := ids[:2000], ids[2000:]
			end(t, s, ended)
			var used int64
			_, err := fmt.Sscan(redistest.Info(t, client, "used_memory"), &used)
			require.NoError(t, err)
			do(t, client, "CONFIG", "SET", "maxmemory", fmt.Sprint(used+1<<20))
			full := 0
			for range 4000 {
				if _, err := s.Write(t.Context(), tombstore.NewID(), []byte(strings.Repeat("x", 1000)), 100*hour); err != nil {
					require.ErrorContains(t, err, "OOM")
					full++
				}
			}

			var lost int64
			for _, id := range ended {
				if _, err := s.Read(t.Context(), id); errors.Is(err, tombstore.ErrNotFound) {
					lost++
				} else {
					require.ErrorIs(t, err, tombstore.ErrInvalidated)
				}
			}
			row := func(kind faults.Kind, fault string, checked int, violations int64) {
				faults.Report(t, faults.Row{
					Kind: kind, Fault: "full memory, " + fault, Injected: 1, Checked: int64(checked), Violations: violations,
				})
			}
			kept := faults.Unpromised
			if policy == "noeviction" {
				kept = faults.Promised
				require.Positive(t, full)
			}
			row(kept, policy+": tombstones lost", len(ended), lost)
			row(faults.Promised, policy+": late writes with IfPresent", len(ended), revived(t, s, ended, tombstore.IfPresent()))
			end(t, s, loggedIn)
			if policy == "noeviction" {
				row(faults.Promised, policy+": logouts, then late writes", len(loggedIn), live(t, s, loggedIn)+revived(t, s, loggedIn))
			}
			if policy == "allkeys-random" {
				row(faults.Seeded, policy+": late writes without a condition", len(ended), revived(t, s, ended))
			}
		})
	}
}

// trio is a primary and two replicas, one of which can be cut off.
type trio struct {
	primary, near, far *redistest.Server
	wire               *redistest.Proxy
	client             rueidis.Client // of the primary
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	r := &trio{primary: redistest.Start(t, "--repl-diskless-sync-delay", "0")}
	r.wire = redistest.NewProxy(t, r.primary.Addr)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(r.wire.URL, "redis://"))
	require.NoError(t, err)
	r.near = redistest.Start(t, r.primary.Replicaof(t)...)
	r.far = redistest.Start(t, "--replicaof", "127.0.0.1 "+port)
	r.client = redistest.Dial(t, r.primary.URL)
	// Both follow once one WAIT has counted both.
	for until := time.Now().Add(30 * time.Second); ; {
		do(t, r.client, "SET", "probe", "x")
		n, err := r.client.Do(t.Context(), r.client.B().Arbitrary("WAIT", "2", "500").Build()).AsInt64()
		require.NoError(t, err)
		if n == 2 {
			return r
		}
		require.True(t, time.Now().Before(until), "the replicas do not follow")
	}
}

// promote kills the primary and returns a store on the replica that takes its place.
func (r *trio) promote(t *testing.T, replica *redistest.Server) *tombstore.RedisStore {
	t.Helper()
	r.primary.Kill(t)
	client := redistest.Dial(t, replica.URL)
	do(t, client, "REPLICAOF", "NO", "ONE")
	return newStore(t, client)
}

// TestPromotion kills the primary after it has acknowledged ends, and promotes the replica that lags.
func TestPromotion(t *testing.T) {
	t.Parallel()
	needsProcess(t)
	const n = 20
	for _, c := range []struct {
		acks  int
		kind  faults.Kind
		fault string
	}{
		{0, faults.Unpromised, "primary lost, without acknowledgements"},
		{1, faults.Unpromised, "primary lost, acknowledged by 1 of 2, the other promoted"},
		{2, faults.Promised, "primary lost, acknowledged by 2 of 2"},
	} {
		t.Run(fmt.Sprintf("acks=%d", c.acks), func(t *testing.T) {
			t.Parallel()
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			late := faults.Row{Kind: faults.Promised, Fault: "primary lost, tombstones lost: late writes with IfPresent"}
			repeat(t, func() {
				r := newTrio(t)
				var opts []tombstore.Option
				if c.acks > 0 {
					opts = append(opts, tombstore.WithReplicaAcks(c.acks, 500*time.Millisecond))
				}
				s := newStore(t, r.client, opts...)
				ids := create(t, newStore(t, r.client, tombstore.WithReplicaAcks(2, 20*time.Second)), 2*n)
				require.NoError(t, newStore(t, r.client, tombstore.WithReplicaAcks(2, 20*time.Second)).Invalidate(t.Context(), tombstore.NewID()))
				var promised []string // the call returned nil
				for i, id := range ids {
					if i == n {
						r.wire.Mute()
					}
					if c.acks == 2 && i == n+2 { // each takes half a second
						break
					}
					switch err := s.Invalidate(t.Context(), id); {
					case err == nil:
						promised = append(promised, id)
					default:
						require.ErrorIs(t, err, tombstore.ErrUnacknowledged)
					}
				}
				promoted := r.promote(t, r.far)
				row.Injected++
				row.Checked += int64(len(promised))
				row.Violations += live(t, promoted, promised)

				lost := redistest.Dial(t, r.far.URL)
				do(t, lost, "FLUSHALL")
				late.Injected++
				late.Checked += int64(len(ids))
				late.Violations += revived(t, promoted, ids, tombstore.IfPresent())
			})
			faults.Report(t, row)
			faults.Report(t, late)
		})
	}
}

// TestOldPrimary reads from a primary that has been replaced and does not know.
func TestOldPrimary(t *testing.T) {
	t.Parallel()
	needsProcess(t)
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, primary.Replicaof(t)...)
	client := redistest.Dial(t, primary.URL)
	usual := newStore(t, client)
	strict := newStore(t, client, tombstore.WithStrictReads(), tombstore.WithTimeout(time.Second))
	ids := create(t, usual, 100)
	do(t, client, "SET", "probe", "x")
	for until := time.Now().Add(30 * time.Second); ; {
		n, err := client.Do(t.Context(), client.B().Arbitrary("WAIT", "1", "500").Build()).AsInt64()
		require.NoError(t, err)
		if n == 1 {
			break
		}
		require.True(t, time.Now().Before(until), "the replica does not follow")
	}
	do(t, client, "CONFIG", "SET", "min-replicas-to-write", "1")

	promoted := redistest.Dial(t, replica.URL)
	do(t, promoted, "REPLICAOF", "NO", "ONE")
	end(t, newStore(t, promoted), ids)
	for until := time.Now().Add(30 * time.Second); redistest.Info(t, client, "connected_slaves") != "0"; {
		require.True(t, time.Now().Before(until), "the primary keeps its replica")
	}

	faults.Report(t, faults.Row{
		Kind: faults.Unpromised, Fault: "old primary: stale answers to Read", Injected: 1, Checked: int64(len(ids)), Violations: live(t, usual, ids),
	})
	var stale int64
	for _, id := range ids {
		_, err := strict.Read(t.Context(), id)
		if err == nil {
			stale++
			continue
		}
		require.ErrorContains(t, err, "NOREPLICAS")
		require.NotErrorIs(t, err, tombstore.ErrNotFound)
	}
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "old primary: stale answers to Read, WithStrictReads", Injected: 1, Checked: int64(len(ids)), Violations: stale,
	})
}

// needsProcess skips a test where the server is a container, whose loopback is its own.
func needsProcess(t *testing.T) {
	t.Helper()
	if redistest.InContainer() {
		t.Skip("the servers are containers")
	}
}
