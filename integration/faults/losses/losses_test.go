// Package losses takes away what a server has acknowledged: by eviction and by a restart.
package losses

import (
	"errors"
	"fmt"
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
			owned := faults.Row{Kind: c.kind, Fault: row.Fault + ": owners that were logged out everywhere"}
			faults.Repeat(t, 1, 1, func() {
				client := redistest.Dial(t, server.URL)
				s := newStore(t, client)
				ids := faults.Create(t, s, 100)
				var all []*faults.Devices
				for range 5 {
					a := &faults.Account{Owner: tombstore.NewID(), NewID: tombstore.NewID, Whole: s}
					all = append(all, a.Devices(t))
				}
				if c.snapshot {
					do(t, client, "SAVE")
				}
				faults.End(t, s, ids)
				for _, d := range all {
					_, err := s.InvalidateOwner(t.Context(), d.Owner)
					require.NoError(t, err)
				}
				server.Kill(t)
				server.Restart(t)
				s = newStore(t, redistest.Dial(t, server.URL))
				row.Injected++
				row.Checked += int64(len(ids))
				row.Violations += faults.Live(t, s, ids)
				owned.Injected++
				for _, d := range all {
					d.Out(t, s, &owned)
				}
			})
			faults.Report(t, row)
			faults.Report(t, owned)
		})
	}
}

// TestEviction fills the memory of a server, by each of its policies.
func TestEviction(t *testing.T) {
	t.Parallel()
	policies := []string{
		"noeviction", "volatile-lru", "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lfu", "volatile-random", "volatile-ttl",
	}
	many := 1000
	if testing.Short() {
		policies, many = policies[:2], 200
	}
	for _, policy := range policies {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--maxmemory-policy", policy)
			client := redistest.Dial(t, server.URL)
			s := newStore(t, client)
			ids := faults.Create(t, s, 3*many)
			ended, loggedIn := ids[:2*many], ids[2*many:]
			held := faults.Held(t, s, ended[:many/2])
			faults.End(t, s, ended)
			var used int64
			_, err := fmt.Sscan(redistest.Info(t, client, "used_memory"), &used)
			require.NoError(t, err)
			do(t, client, "CONFIG", "SET", "maxmemory", fmt.Sprint(used+int64(many)<<10))
			full := 0
			for range 4 * many {
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
			row(faults.Promised, policy+": late writes with IfPresent, or Replacing", len(ended)+len(held),
				faults.Saved(t, s, held)+faults.Revived(t, s, ended, tombstore.IfPresent()))
			faults.End(t, s, loggedIn)
			if policy == "noeviction" {
				row(faults.Promised, policy+": logouts, then late writes", len(loggedIn), faults.Live(t, s, loggedIn)+faults.Revived(t, s, loggedIn))
			}
			if policy == "allkeys-random" {
				row(faults.Seeded, policy+": late writes without a condition", len(ended), faults.Revived(t, s, ended))
			}
		})
	}
}
