package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// breaker is a client that breaks at one of its steps. A step is a command, or a batch on a
// connection of its own.
type breaker struct {
	rueidis.Client
	at    int    // the step, from 1
	meet  func() // called ahead of it
	err   error  // what the caller is told instead of the reply; nil for the reply
	runs  bool   // the command is executed although the caller is told otherwise
	after error  // what the caller is told of every later step, none of which is executed; nil to let them be

	step int
}

// next returns what the caller is told of the next step, nil for the reply, and whether the step is
// executed.
func (b *breaker) next() (err error, executed bool) {
	b.step++
	switch {
	case b.step == b.at:
		b.meet()
		return b.err, b.err == nil || b.runs
	case b.step > b.at && b.after != nil:
		return b.after, false
	}
	return nil, true
}

func (b *breaker) Do(ctx context.Context, cmd rueidis.Completed) (res rueidis.RedisResult) {
	err, executed := b.next()
	if executed {
		res = b.Client.Do(ctx, cmd)
	}
	if err != nil {
		return rueidis.NewErrorResult(err)
	}
	return res
}

func (b *breaker) Dedicated(fn func(rueidis.DedicatedClient) error) error {
	return b.Client.Dedicated(func(c rueidis.DedicatedClient) error { return fn(&dedicated{c, b}) })
}

type dedicated struct {
	rueidis.DedicatedClient
	*breaker
}

func (d *dedicated) B() rueidis.Builder { return d.DedicatedClient.B() }

func (d *dedicated) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return d.DedicatedClient.Do(ctx, cmd)
}

func (d *dedicated) Close() { d.DedicatedClient.Close() }

func (d *dedicated) Receive(ctx context.Context, cmd rueidis.Completed, fn func(rueidis.PubSubMessage)) error {
	return d.DedicatedClient.Receive(ctx, cmd, fn)
}

func (d *dedicated) DoMulti(ctx context.Context, multi ...rueidis.Completed) (results []rueidis.RedisResult) {
	err, executed := d.next()
	if executed {
		results = d.DedicatedClient.DoMulti(ctx, multi...)
	}
	if err != nil {
		results = nil
		for range multi {
			results = append(results, rueidis.NewErrorResult(err))
		}
	}
	return results
}

// rotation is one try to move a session.
type rotation struct {
	store    *tombstore.RedisStore // whole
	old, new string
	taken    bool // somebody else writes under the new id
	ended    bool // somebody else ends the old id
	halves   bool // it is a renewal: when the second half fails, the first has ended the old id
}

const mine, theirs = "mine", "theirs"

// wrong returns what is wrong with the two ids after the rotation has returned err, or "".
func (r *rotation) wrong(t *testing.T, err error) string {
	t.Helper()
	old, oldErr := r.store.Read(t.Context(), r.old)
	moved, newErr := r.store.Read(t.Context(), r.new)
	oldLive, newLive := oldErr == nil && string(old.Data) == mine, newErr == nil && string(moved.Data) == mine
	for _, readErr := range []error{oldErr, newErr} {
		if readErr != nil && !tombstore.NoSession(readErr) {
			require.NoError(t, readErr)
		}
	}
	switch {
	case oldLive && newLive:
		return "both are live"
	case r.ended && (oldLive || newLive):
		return "it was ended, and is live"
	case errors.Is(oldErr, tombstore.ErrNotFound):
		return "the old one has vanished"
	case err == nil, errors.Is(err, tombstore.ErrUnacknowledged):
		if !newLive && !r.ended {
			return "success, but the new one is not live"
		}
	case errors.Is(err, tombstore.ErrUnknownOutcome):
	case errors.Is(err, tombstore.ErrConflict):
		if !r.taken || newLive {
			return "conflict, but nobody has taken the new id"
		}
	case errors.Is(err, tombstore.ErrInvalidated):
		if !r.ended || newLive {
			return "ended, but by nobody else"
		}
	case errors.Is(err, tombstore.ErrNotFound):
		return "no such session, but it was live"
	case newLive, !oldLive && !r.halves:
		return "failed as if nothing had been done, but the old one has been ended"
	}
	if oldLive {
		return ""
	}
	if newLive {
		require.NoError(t, r.store.Invalidate(t.Context(), r.old))
		if _, err := r.store.Read(t.Context(), r.new); !errors.Is(err, tombstore.ErrInvalidated) {
			return "an end by the old id does not reach the new one"
		}
	}
	late := map[string]error{}
	_, late["write"] = r.store.Write(t.Context(), r.old, []byte(mine), hour)
	_, late["write IfAbsent"] = r.store.Write(t.Context(), r.old, []byte(mine), hour, tombstore.IfAbsent())
	_, late["rotate"] = r.store.Rotate(t.Context(), r.old, tombstore.NewID())
	_, late["read"] = r.store.Read(t.Context(), r.old)
	for what, err := range late {
		if !errors.Is(err, tombstore.ErrInvalidated) {
			return "the old one is live again: " + what
		}
	}
	return ""
}

// rotations breaks every step of a rotation across slots in every way.
func rotations(t *testing.T, n *redistest.Nodes, m *mover) {
	client := dial(t, n)
	whole := newStore(t, client)
	flush := func() {
		for _, node := range n.Primaries {
			node.Do(t, "SCRIPT", "FLUSH")
		}
	}

	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED} // proves that nothing was sent
	type fault struct {
		name string
		breaker
		event func(r *rotation)
	}
	breaks := []fault{
		{"refused", breaker{err: refused}, nil},
		{"refused from then on", breaker{err: refused, after: refused}, nil},
		{"cut", breaker{err: io.EOF}, nil},
		{"cut from then on", breaker{err: io.EOF, after: io.EOF}, nil},
		{"cut, refused from then on", breaker{err: io.EOF, after: refused}, nil},
		{"reply lost", breaker{err: io.EOF, runs: true}, nil},
		{"reply lost, cut from then on", breaker{err: io.EOF, runs: true, after: io.EOF}, nil},
		{"reply lost, refused from then on", breaker{err: io.EOF, runs: true, after: refused}, nil},
	}
	events := []fault{
		{"the old slot moves", breaker{}, func(r *rotation) { m.move(t, []int{slotOf(r.old)}, func() {}) }},
		{"the new slot moves", breaker{}, func(r *rotation) { m.move(t, []int{slotOf(r.new)}, func() {}) }},
		{"scripts are lost", breaker{}, func(*rotation) { flush() }},
		{"somebody ends the old one", breaker{}, func(r *rotation) {
			r.ended = true
			require.NoError(t, whole.Invalidate(t.Context(), r.old))
		}},
		{"somebody takes the new id", breaker{}, func(r *rotation) {
			r.taken = true
			_, err := whole.Write(t.Context(), r.new, []byte(theirs), hour, tombstore.IfAbsent())
			require.True(t, err == nil || errors.Is(err, tombstore.ErrConflict), "%v", err)
		}},
	}

	// try interrupts rotate at each of its steps in turn.
	try := func(row *faults.Row, f fault, rotate func(ctx context.Context, client rueidis.Client, r *rotation) error) {
		for at := 1; ; at++ {
			r := &rotation{store: whole, old: tombstore.NewID()}
			r.new = newID(func(slot int) bool { return m.from(slot) != m.from(slotOf(r.old)) })
			_, err := whole.Write(t.Context(), r.old, []byte(mine), hour, tombstore.IfAbsent())
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			b := f.breaker
			b.Client, b.at, b.meet = client, at, func() {
				if f.after != nil { // no retry gets anywhere
					time.AfterFunc(20*time.Millisecond, cancel)
				}
				if f.event != nil {
					f.event(r)
				}
			}
			err = rotate(ctx, &b, r)
			cancel()
			if b.step < at { // there are no more steps
				return
			}
			row.Injected++
			row.Checked++
			if wrong := r.wrong(t, err); wrong != "" {
				row.Violations++
				t.Logf("%s: %s at step %d of %d: %s (%v)", row.Fault, f.name, at, b.step, wrong, err)
			}
		}
	}
	rotate := func(ctx context.Context, client rueidis.Client, r *rotation) error {
		_, err := newStore(t, client, tombstore.WithReplicaAcks(1, 20*time.Second)).Rotate(ctx, r.old, r.new)
		return err
	}

	renew := func(ctx context.Context, client rueidis.Client, r *rotation) error {
		r.halves = true
		s := newStore(t, client, tombstore.WithReplicaAcks(1, 20*time.Second))
		begun, err := s.BeginRenewal(ctx, r.old, 0)
		if err != nil && !errors.Is(err, tombstore.ErrUnacknowledged) {
			return err
		}
		_, err = s.FinishRenewal(ctx, begun, r.new, []byte(mine), hour)
		return err
	}

	interrupted := faults.Row{Kind: faults.Promised, Fault: "cluster, rotation broken off at each step"}
	disturbed := faults.Row{Kind: faults.Promised, Fault: "cluster, rotation, renewal: slots, scripts, ids change at each step"}
	renewed := faults.Row{Kind: faults.Promised, Fault: "cluster, renewal broken off at each step"}
	until := time.Now().Add(faults.Duration(t, 0))
	for first := true; first || time.Now().Before(until); first = false {
		for _, f := range breaks {
			try(&interrupted, f, rotate)
			try(&interrupted, f, func(ctx context.Context, client rueidis.Client, r *rotation) error {
				flush() // more steps
				return rotate(ctx, client, r)
			})
			try(&renewed, f, renew)
		}
		for _, f := range events {
			try(&disturbed, f, rotate)
			try(&disturbed, f, renew)
		}
	}
	faults.Report(t, interrupted)
	faults.Report(t, renewed)
	faults.Report(t, disturbed)

	newFirst := faults.Row{Kind: faults.Seeded, Fault: "cluster, rotation that stores the new id first"}
	for _, f := range breaks {
		try(&newFirst, f, func(ctx context.Context, client rueidis.Client, r *rotation) error {
			s := newStore(t, client)
			if _, err := s.Write(ctx, r.new, []byte(mine), hour, tombstore.IfAbsent()); err != nil {
				return err
			}
			return s.Invalidate(ctx, r.old, tombstore.WithReason(tombstore.Rotated))
		})
	}
	faults.Report(t, newFirst)
}
