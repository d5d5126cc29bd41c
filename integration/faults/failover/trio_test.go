// Package failover takes the primary away: by hand, thousands of times, and with Sentinels that
// promote a replica.
package failover

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

const (
	hour     = time.Hour
	patience = time.Minute // for something that has to happen
)

// TestMain lets all tests run at once: what they do most is wait for Sentinels.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// node is a server that may be a primary or a replica.
type node struct {
	*redistest.Server
	wire   *redistest.Proxy // another way to it, which can be broken
	client rueidis.Client
	start  string // the file that says what it follows when it starts
}

// trio is three nodes, of which one is the primary.
type trio struct {
	nodes    []*node
	primary  *node
	replicas []*node
}

// newTrio starts three servers, of which none follows another.
func newTrio(t *testing.T, args ...string) *trio {
	t.Helper()
	if redistest.InContainer() {
		t.Skip("the servers are containers")
	}
	r := &trio{}
	dir := t.TempDir()
	for i := range 3 {
		n := &node{start: filepath.Join(dir, fmt.Sprint(i))}
		n.restartAs(t, "")
		n.Server = redistest.Start(t, append([]string{"--include", n.start, "--repl-diskless-sync", "no", "--hz", "100"}, args...)...)
		n.wire = redistest.NewProxy(t, n.Addr)
		n.client = redistest.Dial(t, n.URL)
		r.nodes = append(r.nodes, n)
	}
	r.lead(r.nodes[0])
	return r
}

// lead notes that n is the primary.
func (r *trio) lead(n *node) {
	r.primary, r.replicas = n, nil
	for _, other := range r.nodes {
		if other != n {
			r.replicas = append(r.replicas, other)
		}
	}
}

// at returns the node with that address, direct or by its wire.
func (r *trio) at(addr string) *node {
	for _, n := range r.nodes {
		if n.Addr == addr || n.wireAddr() == addr {
			return n
		}
	}
	return nil
}

// agreed waits until the Sentinels agree on a primary, another one than old, and notes it.
func (r *trio) agreed(t *testing.T, sentinels *redistest.Sentinels, old *node) {
	t.Helper()
	redistest.Until(t, "the Sentinels agree", func() bool {
		primary := r.at(sentinels.Primary(t))
		if primary == nil || primary == old {
			return false
		}
		r.lead(primary)
		return true
	})
}

// synced waits until all replicas have all that the primary has.
func (r *trio) synced(t *testing.T) {
	t.Helper()
	states := ""
	defer func() {
		if t.Failed() {
			t.Log(states)
		}
	}()
	redistest.Until(t, "the replicas follow", func() bool {
		probe, wait := r.primary.client.B().Set().Key("probe").Value("x").Build(), r.primary.client.B().Wait().Numreplicas(2).Timeout(500).Build()
		acks, err := r.primary.client.DoMulti(t.Context(), probe, wait)[1].AsInt64()
		if err == nil && acks == 2 {
			return true
		}
		states = fmt.Sprintln(acks, "acknowledgements,", err)
		for _, n := range r.nodes {
			info, err := n.client.Do(t.Context(), n.client.B().Info().Section("replication").Build()).ToString()
			states += fmt.Sprintln(n.Addr, n.wireAddr(), n == r.primary, err, info)
		}
		return false
	})
}

func (n *node) wireAddr() string { return strings.TrimPrefix(n.wire.URL, "redis://") }

// follow makes n a replica of the primary at addr.
func (n *node) follow(t *testing.T, addr string) {
	t.Helper()
	n.do(t, append([]string{"REPLICAOF"}, hostPort(t, addr)...)...)
}

// promote makes n a primary.
func (n *node) promote(t *testing.T) {
	t.Helper()
	n.do(t, "REPLICAOF", "NO", "ONE")
}

// role returns what n is now: master, slave, or nothing while it does not answer.
func (n *node) role(t *testing.T) string {
	t.Helper()
	reply, err := n.client.Do(t.Context(), n.client.B().Role().Build()).ToArray()
	if err != nil || len(reply) == 0 {
		return ""
	}
	role, _ := reply[0].ToString()
	return role
}

// restartAs says what n is when it starts next: a replica of the primary at addr or, without one, a
// primary. It loses its data anyway.
func (n *node) restartAs(t *testing.T, addr string) {
	t.Helper()
	line := ""
	if addr != "" {
		line = "replicaof " + strings.Join(hostPort(t, addr), " ") + "\n"
	}
	require.NoError(t, os.WriteFile(n.start, []byte(line), 0o600))
}

func (n *node) do(t *testing.T, command ...string) {
	t.Helper()
	redistest.Until(t, command[0]+" succeeds", func() bool {
		return n.client.Do(t.Context(), n.client.B().Arbitrary(command...).Build()).Error() == nil
	})
}

func hostPort(t *testing.T, addr string) []string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	return []string{host, port}
}

func (n *node) store(t *testing.T, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	s, err := tombstore.New(n.client, append([]tombstore.Option{tombstore.WithTimeout(patience)}, opts...)...)
	require.NoError(t, err)
	return s
}
