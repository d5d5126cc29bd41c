package history

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// TestFullMemory ends sessions on a server that is at maxmemory, with a script that does not make room first.
func TestFullMemory(t *testing.T) {
	t.Parallel()
	const n = 20
	client := redistest.Dial(t, redistest.Start(t, "--maxmemory-policy", "noeviction").URL)
	usual, err := tombstore.New(client)
	require.NoError(t, err)
	broken, err := tombstore.New(faults.Edit("invalidate.lua",
		"redis.call('DEL', KEYS[1])\n  redis.call('SET', KEYS[1], tombstone, 'PX', keep)", "return set")(client))
	require.NoError(t, err)
	var ids []string
	for range n {
		id := tombstore.NewID()
		_, err := usual.Write(t.Context(), id, []byte("x"), time.Hour)
		require.NoError(t, err)
		ids = append(ids, id)
	}
	require.NoError(t, client.Do(t.Context(), client.B().Arbitrary("CONFIG", "SET", "maxmemory", "1").Build()).Error())
	row := faults.Row{Kind: faults.Seeded, Fault: "full memory: invalidate.lua does not make room", Injected: 1, Checked: n}
	for _, id := range ids {
		if err := broken.Invalidate(t.Context(), id); err != nil {
			require.ErrorIs(t, err, tombstore.ErrNotInvalidated)
			require.ErrorContains(t, err, "OOM")
			row.Violations++
		}
		require.NoError(t, usual.Invalidate(t.Context(), id))
	}
	faults.Report(t, row)
}

// TestReplicaAcks ends sessions again and again while the only replica hangs. An end that is acknowledged is a violation.
func TestReplicaAcks(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("a container cannot be paused")
	}
	const n, tries = 3, 2
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, primary.Replicaof(t)...)
	client := redistest.Dial(t, primary.URL)
	usual, err := tombstore.New(client, tombstore.WithReplicaAcks(1, time.Second))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return usual.Invalidate(t.Context(), tombstore.NewID()) == nil }, time.Minute, time.Millisecond)
	var ids []string
	for range n {
		id := tombstore.NewID()
		_, err := usual.Write(t.Context(), id, []byte("x"), time.Hour)
		require.NoError(t, err)
		ids = append(ids, id)
	}
	replica.Pause(t)
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{faults.Promised, "replica hangs: acknowledged ends", func(c rueidis.Client) rueidis.Client { return c }},
		{faults.Seeded, "replica hangs: invalidate.lua writes no standing tombstone again", faults.Edit("invalidate.lua",
			"local tombstone, keep, left =",
			"if ended and not (string.byte(head, 2) == 2 and ARGV[1] ~= '\\2') then return 'D' end\nlocal tombstone, keep, left =")},
	} {
		// A connection of its own, that has written nothing for WAIT to wait for.
		s, err := tombstore.New(c.wrap(redistest.Dial(t, primary.URL)), tombstore.WithReplicaAcks(1, 100*time.Millisecond))
		require.NoError(t, err)
		row := faults.Row{Kind: c.kind, Fault: c.fault, Injected: 1}
		for _, id := range ids {
			for range tries {
				row.Checked++
				if err := s.Invalidate(t.Context(), id); err == nil {
					row.Violations++
				} else {
					require.ErrorIs(t, err, tombstore.ErrUnacknowledged)
				}
			}
		}
		// Redis 7.0 counts what a script has not written as written by it, so there this bug does no harm.
		if c.kind == faults.Seeded && waitsForAll(t, client) {
			require.Zero(t, row.Violations)
			continue
		}
		faults.Report(t, row)
	}
	replica.Resume(t)
}

// waitsForAll reports whether WAIT waits for all that the server has written, also for a client that has written nothing: before Redis 7.2.
func waitsForAll(t *testing.T, client rueidis.Client) bool {
	var major, minor int
	_, err := fmt.Sscanf(redistest.Info(t, client, "redis_version"), "%d.%d", &major, &minor)
	require.NoError(t, err)
	return major < 7 || major == 7 && minor < 2
}
