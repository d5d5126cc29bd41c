package failover

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// TestOldPrimary cuts the primary off from its replicas and from the Sentinels, but not from a
// client. The Sentinels promote a replica, sessions are ended there, and the client goes on reading
// from the old primary.
func TestOldPrimary(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	usual := faults.Row{Kind: faults.Unpromised, Fault: "old primary, cut off: stale answers to Read"}
	for _, c := range []struct {
		maxLag string // seconds
		down   time.Duration
		row    faults.Row
	}{
		{"1", 5 * time.Second, faults.Row{Kind: faults.Promised, Fault: usual.Fault + ", WithStrictReads"}},
		{"10", 1500 * time.Millisecond, faults.Row{
			Kind: faults.Unpromised, Fault: usual.Fault + ", WithStrictReads, min-replicas-max-lag above the time of a failover",
		}},
	} {
		t.Run("max-lag="+c.maxLag, func(t *testing.T) {
			t.Parallel()
			usual, strict := usual, c.row
			faults.Repeat(t, 1, 1, func() {
				t.Run("round", func(t *testing.T) { replacePrimary(t, c.maxLag, c.down, &usual, &strict) })
			})
			faults.Report(t, usual)
			faults.Report(t, strict)
		})
	}
}

func replacePrimary(t *testing.T, maxLag string, down time.Duration, usual, strict *faults.Row) {
	r := newTrio(t)
	old := r.primary
	for _, n := range r.replicas {
		n.follow(t, old.wireAddr())
	}
	ids := faults.Create(t, old.store(t), 50)
	r.synced(t)
	sentinels := redistest.StartSentinels(t, old.wireAddr(), 2, down)
	old.do(t, "CONFIG", "SET", "min-replicas-max-lag", maxLag)
	old.do(t, "CONFIG", "SET", "min-replicas-to-write", "1")

	old.wire.Isolate()
	cut := time.Now()
	r.agreed(t, sentinels, old)
	promoted := time.Now()
	end := r.primary.store(t)
	for _, id := range ids {
		require.NoError(t, end.Invalidate(t.Context(), id))
	}

	plain, careful := old.store(t), old.store(t, tombstore.WithStrictReads())
	usual.Injected++
	strict.Injected++
	for refused, until := false, time.Now().Add(patience); !refused; time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(until), "the old primary never refuses a strict read")
		for _, id := range ids {
			usual.Checked++
			usual.Violations += faults.Live(t, plain, []string{id})
			strict.Checked++
			if _, err := careful.Read(t.Context(), id); err == nil {
				strict.Violations++
			} else {
				require.ErrorContains(t, err, "NOREPLICAS")
				refused = true
			}
		}
	}
	t.Logf("promoted after %.1f s; strict reads were refused %.1f s later", promoted.Sub(cut).Seconds(), time.Since(promoted).Seconds())
	if faults.Duration(t, 0) == 0 { // the rest takes ten seconds
		return
	}
	old.wire.Heal()
	joined := time.Now()
	redistest.Until(t, "the old primary is a replica", func() bool {
		usual.Checked++
		usual.Violations += faults.Live(t, plain, ids[:1])
		return old.role(t) == "slave"
	})
	t.Logf("stale reads were answered for %.1f s, %.1f s of them after the old primary was joined again",
		time.Since(promoted).Seconds(), time.Since(joined).Seconds())
}
