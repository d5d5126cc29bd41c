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
	"github.com/tombstore/tombstore/internal/redistest"
)

// TestWatch watches sessions through a name that leads to the primary. The primary is lost when
// sessions have ended and moved of which the watcher has heard nothing, and others end on the
// replica that is promoted before the watcher has found it.
func TestWatch(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	for _, c := range []struct {
		kind    faults.Kind
		fault   string
		wrap    func(rueidis.Client) rueidis.Client
		waiting time.Duration // until a watcher counts as not told; less than what a watch looks again after
	}{
		{faults.Promised, "primary lost: ended sessions whose watchers are not told", same, 30 * time.Second},
		{
			faults.Seeded, "primary lost: watch.go does not look again when it has subscribed",
			func(c rueidis.Client) rueidis.Client { return &incurious{c} }, 500 * time.Millisecond,
		},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			r := newTrio(t, "--repl-timeout", "5") // a sync that hangs begins anew while there is time
			for _, n := range r.replicas {
				n.follow(t, r.primary.Addr)
			}
			name := redistest.NewProxy(t, r.primary.Addr)
			watcher, err := tombstore.New(c.wrap(redistest.Dial(t, name.URL)), tombstore.WithTimeout(patience))
			require.NoError(t, err)
			ended := faults.Row{Kind: c.kind, Fault: c.fault}
			live := faults.Row{Kind: faults.Promised, Fault: "primary lost: live sessions whose watchers are told of an end"}
			faults.Repeat(t, 1, 1, func() { watchLoss(t, r, name, watcher, c.waiting, &ended, &live) })
			faults.Report(t, ended)
			faults.Report(t, live)
		})
	}
}

// watched is a session that is watched.
type watched struct {
	ctx context.Context
	id  string // under which it is
}

func watch(t *testing.T, s *tombstore.RedisStore, ids []string) (list []*watched) {
	t.Helper()
	for _, id := range ids {
		ctx, err := s.Watch(t.Context(), id)
		require.NoError(t, err)
		list = append(list, &watched{ctx, id})
	}
	return list
}

func watchLoss(t *testing.T, r *trio, name *redistest.Proxy, watcher *tombstore.RedisStore, waiting time.Duration, ended, live *faults.Row) {
	t.Helper()
	const n = 20
	store := func() *tombstore.RedisStore {
		return r.primary.store(t, tombstore.WithPublish(), tombstore.WithReplicaAcks(2, patience))
	}
	end := func(list []*watched) {
		t.Helper()
		for _, w := range list {
			require.NoError(t, store().Invalidate(t.Context(), w.id))
		}
	}
	r.synced(t)
	list := watch(t, watcher, faults.Create(t, store(), 4*n))
	r.synced(t)
	name.Isolate()
	end(list[:n])
	for _, w := range list[2*n:] {
		id := tombstore.NewID()
		_, err := store().Rotate(t.Context(), w.id, id)
		require.NoError(t, err)
		w.id = id
	}
	old := r.primary
	old.Kill(t)
	r.replicas[0].promote(t)
	r.lead(r.replicas[0])
	old.restartAs(t, r.primary.Addr)
	old.Restart(t)
	r.replicas[1].follow(t, r.primary.Addr)
	r.synced(t)
	end(list[n : 2*n])
	end(list[2*n : 3*n])
	name.Lead(r.primary.Addr)
	name.Heal()
	redistest.Until(t, "the watcher hears of what is ended", func() bool {
		probe := watch(t, watcher, faults.Create(t, r.primary.store(t), 1))
		end(probe)
		select {
		case <-probe[0].ctx.Done():
			return true
		case <-time.After(100 * time.Millisecond):
			return false
		}
	})

	late := time.After(waiting)
	ended.Injected++
	for _, w := range list[:3*n] {
		ended.Checked++
		select {
		case <-w.ctx.Done():
		case <-late:
			late = closed
		}
		if !errors.Is(context.Cause(w.ctx), tombstore.ErrInvalidated) {
			ended.Violations++
		}
	}
	live.Injected++
	for _, w := range list[3*n:] {
		live.Checked++
		if w.ctx.Err() != nil {
			live.Violations++
		}
	}
	end(list[3*n:])
}

// closed is a moment that has passed.
var closed = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()

// incurious is a client that does not say when a subscription has begun.
type incurious struct{ rueidis.Client }

func (c *incurious) Dedicate() (rueidis.DedicatedClient, func()) {
	d, release := c.Client.Dedicate()
	return &quiet{d}, release
}

type quiet struct{ rueidis.DedicatedClient }

func (c *quiet) Receive(ctx context.Context, cmd rueidis.Completed, fn func(rueidis.PubSubMessage)) error {
	ctx = rueidis.WithOnSubscriptionHook(ctx, func(rueidis.PubSubSubscription) {})
	return c.DedicatedClient.Receive(ctx, cmd, fn)
}
