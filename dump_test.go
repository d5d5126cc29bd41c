package tombstore

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// A tombstone that RESTORE has put there is the same after AOF, RDB and replication.
func TestDump_Survives(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"aof":         {"--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no"},
		"rdb":         {"--save", "900 1"},
		"aof and rdb": {"--appendonly", "yes", "--appendfsync", "always"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary := redistest.Start(t, append(args, "--repl-diskless-sync-delay", "0")...)
			replica := redistest.Start(t, primary.Replicaof(t)...)
			client := redistest.Dial(t, primary.URL)
			redistest.Until(t, "replica", func() bool { return redistest.Info(t, client, "connected_slaves") == "1" })
			b := bedOn(t, client, WithReplicaAcks(1, 5*time.Second)).proven()
			require.EqualValues(t, restoresWell, b.restores.Load())
			ids := map[string]Reason{}
			for i := range 64 {
				id := NewID()
				b.write(id, "x", time.Hour)
				ids[id] = Reason(i)
				if ids[id] == 0 || ids[id] == Rotated {
					ids[id] = Revoked
				}
				require.NoError(t, b.Invalidate(t.Context(), id, WithReason(ids[id])))
				almost(t, 25*time.Hour, b.requireTombstone(id, ids[id]))
			}
			for range 500 {
				d := dumpOf(Reason(rand.IntN(256)), time.UnixMilli(rand.Int64N(1<<48)))
				b.do("RESTORE", b.prefix+"x", "5000", d, "REPLACE")
				field, err := b.do("HGET", b.prefix+"x", "t").ToString()
				require.NoError(t, err)
				require.Equal(t, d[dumpHead:dumpHead+endSize], field)
			}
			on := &bed{b.RedisStore, t, redistest.Dial(t, replica.URL)}
			for id, reason := range ids {
				almost(t, 25*time.Hour, on.requireTombstone(id, reason))
			}
			b.do("SAVE")
			primary.Restart(t)
			for id, reason := range ids {
				almost(t, 25*time.Hour, b.requireTombstone(id, reason))
			}
		})
	}
}

// RESTORE tells those who cache the key.
func TestDump_IsTold(t *testing.T) {
	t.Parallel()
	url := redistest.URL(t)
	reader := bedOn(t, redistest.Dial(t, url, redistest.WithCache), WithClientCache(time.Minute))
	ender := bedOn(t, redistest.Dial(t, url), WithKeyPrefix(reader.prefix)).proven()
	for range 20 {
		id := NewID()
		ender.write(id, "x", time.Hour)
		for range 2 {
			_, err := reader.Read(t.Context(), id)
			require.NoError(t, err)
		}
		// By hand, so that the epoch, which is the process's, does not move.
		ender.do("EVAL", invalidateScript.source, "1", ender.keyOf(id), dumpOf(Logout, time.Now()), "86400000", "")
		redistest.Until(t, "the message arrives", func() bool {
			_, err := reader.Read(t.Context(), id)
			return NoSession(err)
		})
	}
}
