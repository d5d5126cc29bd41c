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

// full returns a client of a server that is at maxmemory as soon as fill is called.
func full(t *testing.T) (client rueidis.Client, fill func()) {
	t.Helper()
	client = redistest.Dial(t, redistest.Start(t, "--maxmemory-policy", "noeviction").URL)
	return client, func() {
		t.Helper()
		require.NoError(t, client.Do(t.Context(), client.B().Arbitrary("CONFIG", "SET", "maxmemory", "1").Build()).Error())
	}
}

// TestFullMemory ends sessions on a server that is at maxmemory: with the script as it is, and with
// one that does not make room first.
func TestFullMemory(t *testing.T) {
	t.Parallel()
	const n = 20
	standing := "redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2]"
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
		check bool // so that it ends sessions by RESTORE
	}{
		{faults.Promised, "full memory: ends, and ends again", same, false},
		{faults.Promised, "full memory: ends by RESTORE, and ends again", same, true},
		{faults.Seeded, "full memory: invalidate.lua does not try RESTORE again",
			faults.Edit("invalidate.lua", "if full(put) then", "if false then"), true},
		{faults.Seeded, "full memory: invalidate.lua does not make room", faults.Edit("invalidate.lua",
			"if not wrongtype(set) and not full(set) then",
			"if not wrongtype(set) then"), false},
		{faults.Seeded, "full memory: invalidate.lua writes a standing tombstone by HSET before PEXPIRE",
			faults.Edit("invalidate.lua",
				standing, "redis.call('HSET', KEYS[1], 't', string.sub(met, 2))\n"+standing), false},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			client, fill := full(t)
			usual, err := tombstore.New(client)
			require.NoError(t, err)
			tried, err := tombstore.New(c.wrap(client))
			require.NoError(t, err)
			if c.check {
				_, err := tried.Check(t.Context())
				require.NoError(t, err)
			}
			ids := faults.Create(t, usual, n)
			fill()
			row := faults.Row{Kind: c.kind, Fault: c.fault, Injected: 1}
			for _, id := range ids {
				refused := false
				for _, s := range []tombstore.Store{tried, usual, tried} { // the last ends again
					err := s.Invalidate(t.Context(), id)
					if err != nil {
						require.ErrorIs(t, err, tombstore.ErrNotInvalidated)
						require.ErrorContains(t, err, "OOM")
						refused = true
					}
				}
				if row.Checked++; refused {
					row.Violations++
				}
			}
			require.Zero(t, faults.Live(t, usual, ids))
			faults.Report(t, row)
		})
	}
}

// TestNotPermitted ends and moves sessions as a user who may not write hashes. What is refused must
// change nothing.
func TestNotPermitted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{faults.Promised, "HSET not permitted: sessions that are refused an end, or a move", same},
		{faults.Seeded, "HSET not permitted: invalidate.lua makes room first", faults.Edit("invalidate.lua",
			"local set = redis.pcall(", "redis.call('DEL', KEYS[1])\nlocal set = redis.pcall(")},
		{faults.Seeded, "HSET not permitted: rotate.lua moves first", faults.Edit("rotate.lua",
			"local set = redis.pcall('HSET', KEYS[1], unpack(tombstone))\nif type(set) ~= 'table' or not wrongtype(set) then return set end",
			"")},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			server := redistest.Start(t)
			admin := redistest.Dial(t, server.URL)
			require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary(
				"ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-hset").Build()).Error())
			usual, err := tombstore.New(admin)
			require.NoError(t, err)
			limited, err := tombstore.New(c.wrap(redistest.Dial(t, "redis://limited:secret@"+server.Addr)))
			require.NoError(t, err)
			const n = 10
			ids := faults.Create(t, usual, 2*n)
			for i, id := range ids {
				var err error
				if i < n {
					err = limited.Invalidate(t.Context(), id)
					require.ErrorIs(t, err, tombstore.ErrNotInvalidated)
				} else {
					_, err = limited.Rotate(t.Context(), id, tombstore.NewID())
				}
				require.Error(t, err)
			}
			faults.Report(t, faults.Row{
				Kind: c.kind, Fault: c.fault, Injected: 2 * n, Checked: 2 * n, Violations: 2*n - faults.Live(t, usual, ids),
			})
		})
	}
}

// TestReplicaAcks ends sessions again and again while the only replica hangs. An end that is
// acknowledged is a violation.
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
		{faults.Promised, "replica hangs: acknowledged ends", same},
		{faults.Seeded, "replica hangs: invalidate.lua writes no standing tombstone again",
			faults.Edit("invalidate.lua",
				"redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2]",
				"do return string.sub(met, 1, 10) end\n  redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2]")},
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
		// Redis 7.0 counts what a script has not written as written by it, so there this bug does
		// no harm.
		if c.kind == faults.Seeded && waitsForAll(t, client) {
			require.Zero(t, row.Violations)
			continue
		}
		faults.Report(t, row)
	}
	replica.Resume(t)
}

// waitsForAll reports whether WAIT waits for all that the server has written, also for a client
// that has written nothing: before Redis 7.2.
func waitsForAll(t *testing.T, client rueidis.Client) bool {
	var major, minor int
	_, err := fmt.Sscanf(redistest.Info(t, client, "redis_version"), "%d.%d", &major, &minor)
	require.NoError(t, err)
	return major < 7 || major == 7 && minor < 2
}
