package failover

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
)

// TestPromotion kills the primary right after it has acknowledged the last of some ends, and
// promotes a replica by hand: for that takes a small part of the time that Sentinels take.
func TestPromotion(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	const n = 20
	for _, c := range []struct {
		acks  int
		lags  bool // the replica that is promoted
		kind  faults.Kind
		fault string
	}{
		{0, false, faults.Unpromised, "primary lost, without acknowledgements, no replica lags"},
		{0, true, faults.Unpromised, "primary lost, without acknowledgements, a replica that lags promoted"},
		{1, true, faults.Unpromised, "primary lost, acknowledged by 1 of 2, the other promoted"},
		{2, true, faults.Promised, "primary lost, acknowledged by 2 of 2"},
	} {
		t.Run(fmt.Sprintf("acks=%d,lags=%v", c.acks, c.lags), func(t *testing.T) {
			t.Parallel()
			r := newTrio(t)
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			late := faults.Row{Kind: faults.Promised, Fault: "primary lost, tombstones lost: late writes with IfPresent, or Replacing"}
			blind := faults.Row{Kind: faults.Unpromised, Fault: "primary lost, tombstones lost: late writes without a condition"}
			near, far := r.replicas[0], r.replicas[1]
			near.follow(t, r.primary.Addr)
			far.follow(t, r.primary.wireAddr())
			faults.Repeat(t, 2, 12, func() {
				s := r.primary.store(t)
				r.primary.do(t, "FLUSHALL")
				ids := faults.Create(t, s, n)
				r.synced(t)

				var opts []tombstore.Option
				if c.acks > 0 {
					opts = append(opts, tombstore.WithReplicaAcks(c.acks, 50*time.Millisecond))
				}
				s = r.primary.store(t, opts...)
				lags := c.lags && (c.acks < 2 || row.Injected%2 == 0) // else the kill follows the last promise at once
				mute := n
				if lags {
					mute = rand.IntN(n)
				}
				var promised []string // the call returned nil
				for i, id := range ids {
					if i == mute {
						r.primary.wire.Isolate()
					}
					err := s.Invalidate(t.Context(), id)
					if err != nil {
						require.ErrorIs(t, err, tombstore.ErrUnacknowledged)
						if c.acks == 2 { // so will all others
							break
						}
						continue
					}
					promised = append(promised, id)
				}
				var held map[string]tombstore.Session
				var unheard []string // sessions and tombstones that the replica has not heard of
				if lags {
					r.primary.wire.Isolate()
					s = r.primary.store(t)
					unheard = faults.Create(t, s, 5)
					held = faults.Held(t, s, unheard)
					for _, id := range unheard {
						require.NoError(t, s.Invalidate(t.Context(), id))
					}
				}
				r.primary.Kill(t)
				old := r.primary
				far.promote(t)
				old.wire.Heal()
				r.lead(far)
				row.Injected++
				row.Checked += int64(len(promised))
				row.Violations += faults.Live(t, far.store(t), promised)
				if lags {
					late.Injected++
					late.Checked += 2 * int64(len(unheard))
					late.Violations += faults.Saved(t, far.store(t), held)
					late.Violations += faults.Revived(t, far.store(t), unheard, tombstore.IfPresent())
					blind.Injected++
					blind.Checked += int64(len(unheard))
					blind.Violations += faults.Revived(t, far.store(t), unheard)
				}

				old.restartAs(t, far.Addr)
				near.follow(t, far.wireAddr())
				old.Restart(t)
				near, far = old, near
			})
			faults.Report(t, row)
			if c.lags {
				faults.Report(t, late)
				faults.Report(t, blind)
			}
		})
	}
}
