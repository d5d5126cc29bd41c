package history

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// bed is a server and processes that use it. One of them is connected to it directly, the others
// through front and wire. None has a cache: a cached read is held to G4, which does not order it
// against changes that are still under way.
type bed struct {
	server  *redistest.Server
	admin   rueidis.Client
	front   *redistest.Proxy
	wire    *wire
	kind    kind
	ids     int // of a round
	clients []*process
}

func newBed(t *testing.T, k kind, bug string, args ...string) *bed {
	t.Helper()
	start := redistest.Start
	if k.cluster { // of one node, to which no proxy leads
		start = redistest.StartCluster
	}
	b := &bed{server: start(t, args...), kind: k, ids: ids}
	b.admin = redistest.Dial(t, b.server.URL)
	b.wire = newWire(t, b.server.Addr)
	b.front = redistest.NewProxy(t, b.wire.addr)
	n := processes
	if bug != "" { // found by fewer
		n = 2
	}
	for i := range n {
		url := b.front.URL
		if i == 0 || k.cluster {
			url = b.server.URL
		}
		b.clients = append(b.clients, startProcess(t, config{URL: url, Number: i, Bug: bug, Lossy: k.lossy}))
	}
	_, err := b.seen() // all are connected
	require.NoError(t, err)
	return b
}

// round lets all clients play with new sessions, and returns what they saw.
func (b *bed) round() (ops []operation, err error) {
	names := make([]string, b.ids)
	for i := range names {
		names[i] = tombstore.NewID()
	}
	for _, c := range b.clients {
		if err := c.in.Encode(names); err != nil {
			return nil, err
		}
	}
	return b.seen()
}

// seen waits for all clients and returns what they saw.
func (b *bed) seen() (ops []operation, err error) {
	for _, c := range b.clients {
		var seen []operation
		if err := c.out.Decode(&seen); err != nil {
			return nil, err
		}
		ops = append(ops, seen...)
	}
	return ops, nil
}

// result is what rounds have found.
type result struct {
	checked, wrong int64
	first          []porcupine.Operation // the first history that no order explains
	tooLong        int
	err            error
}

// run plays rounds while inject breaks things, until they are enough.
func (b *bed) run(t *testing.T, inject func(), enough func(wrong int64) bool) (injected int64, r result) {
	t.Helper()
	results := make(chan result, 1)
	go func() {
		for r.err == nil && (r.checked == 0 || !enough(r.wrong)) {
			var ops []operation
			if ops, r.err = b.round(); r.err != nil {
				break
			}
			checked, wrong, tooLong := check(ops, b.kind)
			r.checked += checked
			r.wrong += int64(len(wrong))
			r.tooLong += tooLong
			if len(wrong) > 0 && r.first == nil {
				r.first = wrong[0]
			}
		}
		results <- r
	}()
	for {
		inject()
		injected++
		select {
		case r := <-results:
			require.NoError(t, r.err)
			if r.tooLong > 0 {
				t.Logf("%d histories were too long to be checked", r.tooLong)
			}
			return injected, r
		case <-time.After(between(10*time.Millisecond, 80*time.Millisecond)):
		}
	}
}

func between(low, high time.Duration) time.Duration { return low + rand.N(high-low) }

// flush makes the server forget its scripts.
func (b *bed) flush(t *testing.T) {
	_ = b.admin.Do(t.Context(), b.admin.B().ScriptFlush().Build()).Error()
}

// kill breaks connections: on the clients' side, so that a command may arrive later, or on the
// server's.
func (b *bed) kill(t *testing.T) {
	if rand.IntN(2) == 0 {
		b.front.Cut()
		return
	}
	_ = b.admin.Do(t.Context(), b.admin.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()).Error()
}

// lose loses a reply.
func (b *bed) lose(t *testing.T) {
	before := b.front.Lost()
	b.front.LoseReply()
	for until := time.Now().Add(time.Second); b.front.Lost() == before && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
}

// slow returns toxics that delay the wire.
func slow() []string {
	return []string{
		toxic("latency", commands, `"latency":%d`, rand.IntN(5)),
		toxic("latency", replies, `"latency":%d`, rand.IntN(5)),
		toxic("slicer", commands, `"average_size":%d,"size_variation":5,"delay":10`, 10+rand.IntN(100)),
		toxic("bandwidth", replies, `"rate":%d`, 100+rand.IntN(1000)),
	}
}

// late makes commands take long, on half of the connections.
const late = `{"name":"late","type":"latency","stream":"upstream","toxicity":0.5,"attributes":{"latency":60,"jitter":30}}`

// delay delays the wire for a while. On some connections commands take long, so that after a cut
// they may arrive later than those that the client has sent again.
func (b *bed) delay(t *testing.T) {
	b.wire.up(t, append(slow(), late)...)
	for range 3 {
		time.Sleep(between(100*time.Millisecond, 300*time.Millisecond)) // connections are set up
		b.front.Cut()
	}
	time.Sleep(100 * time.Millisecond)
	b.wire.up(t)
}

// cut cuts the wire for a while, in one of several ways.
func (b *bed) cut(t *testing.T) {
	direction := commands
	if rand.IntN(2) == 0 {
		direction = replies
	}
	switch rand.IntN(4) {
	case 0: // there is nobody
		b.wire.down()
	case 1: // half-open: what is sent does not arrive, and nobody notices
		b.wire.up(t, toxic("timeout", direction, `"timeout":0`))
	case 2: // broken in the middle of a command or a reply
		b.wire.up(t, toxic("limit_data", direction, `"bytes":%d`, 100+rand.IntN(5000)))
	case 3:
		b.wire.up(t, toxic("reset_peer", direction, `"timeout":%d`, rand.IntN(5)))
	}
	time.Sleep(between(20*time.Millisecond, 150*time.Millisecond))
	b.wire.up(t)
	time.Sleep(between(0, 50*time.Millisecond))
}

// pause lets the server hang.
func (b *bed) pause(t *testing.T) {
	b.server.Pause(t)
	time.Sleep(between(5*time.Millisecond, 50*time.Millisecond))
	b.server.Resume(t)
}

// restart kills the server.
func (b *bed) restart(t *testing.T) {
	b.server.Kill(t)
	time.Sleep(between(0, 30*time.Millisecond))
	b.server.Restart(t)
	time.Sleep(between(0, 200*time.Millisecond))
}

// all delays the wire and does several of the rest meanwhile.
func (b *bed) all(t *testing.T) {
	rest := []func(*testing.T){b.flush, b.kill, b.lose, b.cut, b.restart}
	if !redistest.InContainer() {
		rest = append(rest, b.pause)
	}
	b.wire.up(t, slow()...)
	for range 5 {
		time.Sleep(between(0, 30*time.Millisecond))
		rest[rand.IntN(len(rest))](t)
	}
	b.wire.up(t)
}

func TestHistory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind   kind
		inject func(*bed, *testing.T)
	}{
		"nothing broken":                       {kind{}, func(*bed, *testing.T) {}},
		"rotations in two steps, in a cluster": {kind{cluster: true}, (*bed).flush},
		"SCRIPT FLUSH":                         {kind{}, (*bed).flush},
		"connections killed":                   {kind{lossy: true}, (*bed).kill},
		"replies lost":                         {kind{lossy: true}, (*bed).lose},
		"wire delayed":                         {kind{lossy: true}, (*bed).delay},
		"wire cut":                             {kind{lossy: true}, (*bed).cut},
		"server paused":                        {kind{lossy: true}, (*bed).pause},
		"server restarted":                     {kind{lossy: true}, (*bed).restart},
		"everything at once":                   {kind{lossy: true}, (*bed).all},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "server paused" && redistest.InContainer() {
				t.Skip("a container cannot be paused")
			}
			var args []string
			if name == "server restarted" || name == "everything at once" {
				args = []string{"--appendonly", "yes", "--appendfsync", "always"}
			}
			b := newBed(t, c.kind, "", args...)
			until := time.Now().Add(faults.Duration(t, time.Second))
			injected, r := b.run(t, func() { c.inject(b, t) }, func(int64) bool { return time.Now().After(until) })
			for _, op := range r.first {
				t.Logf("%+v", op.Input)
			}
			faults.Report(t, faults.Row{
				Kind: faults.Promised, Fault: "history: " + name, Injected: injected, Checked: r.checked, Violations: r.wrong,
			})
		})
	}
}
