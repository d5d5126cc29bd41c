package failover

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
)

// TestOwners kills the primary right after InvalidateOwner has returned nil, or while it goes on, and
// promotes a replica, which lags where nobody waits for it.
func TestOwners(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		acks  int
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{2, faults.Promised, "primary lost, owners logged out everywhere, acknowledged by 2 of 2", same},
		{0, faults.Unpromised, "primary lost, owners logged out everywhere, without acknowledgements", same},
		{2, faults.Seeded, "primary lost, owners logged out everywhere, WAIT is not sent", func(c rueidis.Client) rueidis.Client { return &impatient{c} }},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			r := newTrio(t)
			near, far := r.replicas[0], r.replicas[1]
			near.follow(t, r.primary.Addr)
			far.follow(t, r.primary.wireAddr())
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			faults.Repeat(t, 2, 3, func() {
				var owners []*faults.Devices
				for range 5 {
					a := &faults.Account{Owner: tombstore.NewID(), NewID: tombstore.NewID, Whole: r.primary.store(t)}
					owners = append(owners, a.Devices(t))
				}
				r.synced(t)
				opts := []tombstore.Option{tombstore.WithTimeout(patience)}
				if c.acks > 0 {
					opts = append(opts, tombstore.WithReplicaAcks(c.acks, 200*time.Millisecond))
				}
				s, err := tombstore.New(c.wrap(r.primary.client), opts...)
				require.NoError(t, err)
				var promised []*faults.Devices
				lags := len(owners) // owners from this one on end while the replica hears of nothing
				switch {
				case c.kind != faults.Promised:
					lags = 0
				case row.Injected%2 == 0: // else the kill follows the last promise at once
					lags--
				}
				for i, d := range owners {
					if i == lags {
						r.primary.wire.Isolate()
					}
					switch _, err := s.InvalidateOwner(t.Context(), d.Owner); {
					case err == nil:
						promised = append(promised, d)
					default:
						require.True(t, errors.Is(err, tombstore.ErrUnacknowledged), "%v", err)
					}
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
