package failover

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

const (
	down   = 3 * time.Second         // for Sentinels to call a primary down
	window = 1500 * time.Millisecond // at least, for clients that have missed the switch to meet the old primary
)

// hearing says what a client hears of the Sentinels.
type hearing int

const (
	all    hearing = iota
	missed         // all but the message that the primary was switched
	deaf           // nothing, until the old primary has been back for a while
)

// group is some of the clients of a bed.
type group struct {
	kind  faults.Kind
	fault string
	hears []hearing // of each client
	opts  []tombstore.Option
}

// TestSentinel lets clients work while Sentinels replace the primary. No session that is live and
// replicated may be reported as absent, and none whose end two of two replicas have acknowledged
// may be live.
func TestSentinel(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	for name, c := range map[string]struct {
		args    []string
		replace func(b *bed, t *testing.T)
		refusal string // by which clients see that they have met the old primary
		groups  []group
	}{
		"demoted": {nil, (*bed).demote, "READONLY", []group{
			{faults.Promised, "old primary demoted", []hearing{all, missed, deaf}, nil},
		}},
		"empty replica": {nil, (*bed).killAndFollow, "READONLY", []group{
			{faults.Unpromised, "old primary back as an empty replica", []hearing{deaf}, nil},
		}},
		"empty replica that refuses": {[]string{"--replica-serve-stale-data", "no"}, (*bed).killAndFollow, "MASTERDOWN", []group{
			{faults.Promised, "old primary back as an empty replica, replica-serve-stale-data no", []hearing{all, deaf}, nil},
		}},
		"empty primary": {[]string{"--min-replicas-to-write", "1"}, (*bed).killAndLead, "NOREPLICAS", []group{
			{faults.Unpromised, "old primary back as an empty primary", []hearing{deaf}, nil},
			{
				faults.Promised, "old primary back as an empty primary, WithStrictReads", []hearing{all, deaf},
				[]tombstore.Option{tombstore.WithStrictReads()},
			},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, c.args...)
			for i, g := range c.groups {
				for _, hears := range g.hears {
					b.start(t, i, hears, g.opts...)
				}
			}
			acked := faults.Row{Kind: faults.Promised, Fault: "Sentinel failover, acknowledged by 2 of 2"}
			plain := faults.Row{Kind: faults.Unpromised, Fault: "Sentinel failover, without acknowledgements"}
			faults.Repeat(t, 1, 1, func() {
				b.sentinels.Await(t, 2)
				b.agreed(t, b.sentinels, nil)
				b.synced(t)
				b.end(t, faults.Create(t, b.primary.store(t), 20), b.primary.store(t, tombstore.WithReplicaAcks(2, patience)))
				last := faults.Create(t, b.primary.store(t), 20)
				b.synced(t)
				refused := b.failed(c.refusal)
				for _, wire := range b.wires {
					wire.Isolate()
				}
				for _, id := range last {
					require.NoError(t, b.primary.store(t).Invalidate(t.Context(), id))
				}
				c.replace(b, t)
				time.Sleep(window)
				redistest.Until(t, "clients meet the old primary", func() bool { return b.failed(c.refusal) > refused })
				for _, n := range b.nodes {
					n.wire.Heal()
				}
				for _, wire := range b.wires {
					wire.Heal()
				}
				b.reunite(t)
				plain.Injected++
				plain.Checked += int64(len(last))
				plain.Violations += faults.Live(t, b.primary.store(t), last)
			})
			b.stop()

			t.Logf("failures: %v", b.failures)
			acked.Injected, acked.Checked = plain.Injected, int64(len(b.ended))
			acked.Violations = faults.Live(t, b.primary.store(t), b.ended)
			rows := make([]faults.Row, len(c.groups))
			for _, client := range b.clients {
				rows[client.group].Checked += client.answers
				rows[client.group].Violations += client.absent
				acked.Violations += client.revived
			}
			for i, g := range c.groups {
				rows[i].Kind, rows[i].Injected = g.kind, plain.Injected
				rows[i].Fault = "Sentinel failover, switch message missed, " + g.fault + ": live sessions reported as absent"
				faults.Report(t, rows[i])
			}
			faults.Report(t, acked)
			faults.Report(t, plain)
		})
	}
}

// bed is a trio with Sentinels, and clients that work all the time.
type bed struct {
	*trio
	sentinels *redistest.Sentinels
	wires     map[string]*redistest.Proxy // the way of deaf clients to the Sentinels, by the Sentinel's address
	alive     []string                    // live sessions that are replicated
	clients   []*client
	stop      func() // stops the clients

	ctx      context.Context
	group    sync.WaitGroup
	mu       sync.Mutex
	ended    []string       // sessions whose end all replicas have acknowledged
	failures map[string]int // by the last word of the error
}

func newBed(t *testing.T, args ...string) *bed {
	t.Helper()
	b := &bed{trio: newTrio(t, args...), wires: map[string]*redistest.Proxy{}, failures: map[string]int{}}
	for _, n := range b.replicas {
		n.follow(t, b.primary.Addr)
	}
	b.synced(t)
	b.sentinels = redistest.StartSentinels(t, b.primary.Addr, 2, down)
	for _, s := range b.sentinels.Servers {
		b.wires[s.Addr] = redistest.NewProxy(t, s.Addr)
	}
	b.alive = faults.Create(t, b.primary.store(t), 20)
	b.synced(t)
	b.end(t, faults.Create(t, b.primary.store(t), 1), b.primary.store(t, tombstore.WithReplicaAcks(2, patience)))
	var cancel func()
	b.ctx, cancel = context.WithCancel(t.Context())
	b.stop = func() {
		cancel()
		b.group.Wait()
	}
	t.Cleanup(b.stop)
	return b
}

// end ends sessions with a store that waits for all replicas.
func (b *bed) end(t *testing.T, ids []string, s tombstore.Store) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, s.Invalidate(t.Context(), id))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = append(b.ended, ids...)
}

// demote replaces a primary that is well, and that becomes a replica.
func (b *bed) demote(t *testing.T) {
	old := b.primary
	b.sentinels.Promote(t)
	b.agreed(t, b.sentinels, old)
	if faults.Duration(t, 0) == 0 {
		old.follow(t, b.primary.Addr) // Sentinels take ten seconds for that
	}
	redistest.Until(t, "the old primary is a replica", func() bool { return old.role(t) == "slave" })
}

// killAndFollow kills the primary, which comes back as a replica that does not reach the new
// primary for a while.
func (b *bed) killAndFollow(t *testing.T) {
	old := b.primary
	old.Kill(t)
	b.agreed(t, b.sentinels, old)
	b.primary.wire.Isolate()
	old.restartAs(t, b.primary.wireAddr())
	old.Restart(t)
}

// killAndLead kills the primary, which comes back as what it was, since nobody has told it of the
// switch.
func (b *bed) killAndLead(t *testing.T) {
	old := b.primary
	old.Kill(t)
	b.agreed(t, b.sentinels, old)
	old.restartAs(t, "")
	old.Restart(t)
}

// reunite waits until every client has found the primary.
func (b *bed) reunite(t *testing.T) {
	t.Helper()
	begun := time.Now()
	for _, c := range b.clients {
		redistest.Until(t, "every client finds the primary", func() bool {
			id := tombstore.NewID()
			if _, err := c.store.Write(t.Context(), id, nil, hour); err != nil {
				return false
			}
			return faults.Live(t, b.primary.store(t), []string{id}) == 1
		})
	}
	t.Logf("all clients have found the primary %.1f s after the Sentinels could be heard", time.Since(begun).Seconds())
}

// client is a program that uses the store all the time, and what it has seen.
type client struct {
	group  int
	store  *tombstore.RedisStore
	acked  *tombstore.RedisStore
	strict bool

	answers, absent, revived int64
}

// start adds a client.
func (b *bed) start(t *testing.T, group int, hears hearing, opts ...tombstore.Option) {
	t.Helper()
	open := func(opts ...tombstore.Option) *tombstore.RedisStore {
		s, err := tombstore.Open(b.sentinels.URL, opts...)
		require.NoError(t, err)
		t.Cleanup(s.Close)
		return s
	}
	if hears != all {
		option, err := rueidis.ParseURL(b.sentinels.URL)
		require.NoError(t, err)
		option.DisableCache, option.DisableRetry, option.PipelineMultiplex = true, true, -1 // as Open does
		option.ConnWriteTimeout = 1500 * time.Millisecond
		option.Sentinel.TopologyRefreshInterval = 5 * time.Second
		option.DialCtxFn = func(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
			if proxy := b.wires[addr]; proxy != nil && hears == deaf {
				addr = strings.TrimPrefix(proxy.URL, "redis://")
			}
			conn, err := dialer.DialContext(ctx, "tcp", addr)
			if err != nil || hears == deaf {
				return conn, err
			}
			return inattentive{conn}, nil
		}
		shared, err := rueidis.NewClient(option)
		require.NoError(t, err)
		t.Cleanup(shared.Close)
		open = func(opts ...tombstore.Option) *tombstore.RedisStore {
			s, err := tombstore.New(shared, opts...)
			require.NoError(t, err)
			return s
		}
	}
	opts = append(opts, tombstore.WithTimeout(500*time.Millisecond))
	c := &client{
		group: group, store: open(opts...), acked: open(append(opts, tombstore.WithReplicaAcks(2, 100*time.Millisecond))...),
		strict: len(opts) > 1,
	}
	b.clients = append(b.clients, c)
	b.group.Go(func() {
		for b.ctx.Err() == nil {
			c.work(b)
			time.Sleep(time.Millisecond)
		}
	})
}

// inattentive is a connection to a Sentinel that loses each message about a switch.
type inattentive struct{ net.Conn }

func (c inattentive) Read(p []byte) (n int, err error) {
	for {
		if n, err = c.Conn.Read(p); !bytes.Contains(p[:n], []byte("message\r\n$14\r\n+switch-master")) || err != nil {
			return n, err
		}
	}
}

// work does one thing.
func (c *client) work(b *bed) {
	id := b.alive[rand.IntN(len(b.alive))]
	verb := rand.IntN(8)
	if c.strict { // only reads are
		verb %= 3
	}
	ttl := hour + time.Duration(rand.IntN(2))*hour
	switch verb {
	case 0:
		_, err := c.store.Read(b.ctx, id)
		c.learn(b, err)
	case 1:
		held, err := c.store.Read(b.ctx, id, tombstore.Slide(ttl))
		c.learn(b, err)
		if err == nil && !c.strict {
			_, err = c.store.Write(b.ctx, id, []byte("z"), ttl, tombstore.Replacing(held))
			c.learn(b, err)
		}
	case 2:
		ok, err := c.store.Exists(b.ctx, id)
		if err == nil && !ok {
			err = tombstore.ErrNotFound
		}
		c.learn(b, err)
	case 3:
		c.learn(b, c.store.Touch(b.ctx, id, ttl))
	case 4:
		_, err := c.store.Write(b.ctx, id, []byte("y"), ttl, tombstore.IfPresent())
		c.learn(b, err)
	case 5:
		id = tombstore.NewID()
		ids := []string{id}
		_, err := c.store.Write(b.ctx, id, []byte("x"), ttl)
		if err == nil && rand.IntN(2) == 0 { // it moves, and is ended by the id that it has left
			ids = append(ids, tombstore.NewID())
			_, err = c.acked.Rotate(b.ctx, id, ids[1])
		}
		if err == nil {
			err = c.acked.Invalidate(b.ctx, id)
		}
		if err != nil {
			b.fail(err)
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.ended = append(b.ended, ids...)
	default:
		b.mu.Lock()
		id = b.ended[rand.IntN(len(b.ended))]
		b.mu.Unlock()
		var err error
		if verb == 6 {
			_, err = c.store.Read(b.ctx, id)
		} else {
			_, err = c.store.Write(b.ctx, id, []byte("late"), hour, tombstore.IfPresent())
		}
		if err == nil {
			c.revived++
		}
	}
}

// learn counts what the client was told of a live session.
func (c *client) learn(b *bed, err error) {
	switch {
	case err == nil:
		c.answers++
	case errors.Is(err, tombstore.ErrNotFound), errors.Is(err, tombstore.ErrInvalidated):
		c.answers++
		c.absent++
	default:
		b.fail(err)
	}
}

func (b *bed) fail(err error) {
	text := err.Error()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures[text[strings.LastIndex(text, " ")+1:]]++
}

// failed returns how often clients got an error that ends in word.
func (b *bed) failed(word string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures[word]
}
