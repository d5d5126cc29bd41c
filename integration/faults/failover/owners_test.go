package failover

import (
	"context"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
)

// TestOwners kills the primary after InvalidateOwner has returned nil, and promotes a replica.
// Unless it is waited for, that has heard of nothing.
func TestOwners(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	acked := []tombstore.Option{tombstore.WithReplicaAcks(2, 200*time.Millisecond)}
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
		opts  []tombstore.Option
	}{
		{faults.Promised, "acknowledged by 2 of 2", same, acked},
		{faults.Unpromised, "without acknowledgements", same, nil},
		{faults.Seeded, "WAIT is not sent", func(c rueidis.Client) rueidis.Client { return &impatient{c} }, acked},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			const n = 5
			r := newTrio(t, "--repl-timeout", "5") // as in TestWatch
			near, far := r.replicas[0], r.replicas[1]
			near.follow(t, r.primary.Addr)
			far.follow(t, r.primary.wireAddr())
			row := faults.Row{Kind: c.kind, Fault: "primary lost, owners logged out everywhere, " + c.fault}
			faults.Repeat(t, 2, 1, func() {
				var owners []*faults.Devices
				for range n {
					a := &faults.Account{Owner: tombstore.NewID(), NewID: tombstore.NewID, Whole: r.primary.store(t)}
					owners = append(owners, a.Devices(t))
				}
				r.synced(t)
				s, err := tombstore.New(c.wrap(r.primary.client), append(c.opts, tombstore.WithTimeout(patience))...)
				require.NoError(t, err)
				cut := 0 // the first owner of whom the replica does not hear
				if c.kind == faults.Promised {
					cut = n - int(row.Injected%2) // every other time the kill follows the last promise at once
				}
				var promised []*faults.Devices
				for i, d := range owners {
					if i == cut {
						r.primary.wire.Isolate()
					}
					_, err := s.InvalidateOwner(t.Context(), d.Owner)
					if err != nil {
						require.ErrorIs(t, err, tombstore.ErrUnacknowledged)
						continue
					}
					promised = append(promised, d)
				}
				r.primary.Kill(t)
				old := r.primary
				far.promote(t)
				old.wire.Heal()
				r.lead(far)
				row.Injected++
				for _, d := range promised {
					d.Out(t, far.store(t), &row)
				}
				old.restartAs(t, far.Addr)
				near.follow(t, far.wireAddr())
				old.Restart(t)
				near, far = old, near
				r.synced(t)
			})
			faults.Report(t, row)
		})
	}
}

func same(c rueidis.Client) rueidis.Client { return c }

// impatient is a client that does not wait for replicas, and says that they have answered.
type impatient struct{ rueidis.Client }

func (c *impatient) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	for i, cmd := range multi {
		if words := cmd.Commands(); words[0] == "WAIT" {
			multi[i] = c.B().Eval().Script("return tonumber(ARGV[1])").Numkeys(0).Arg(words[1]).Build()
		}
	}
	return c.Client.DoMulti(ctx, multi...)
}
