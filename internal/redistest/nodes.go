package redistest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// Slots is the number of slots of a cluster.
const Slots = 16384

// Node is a server that is a part of a cluster.
type Node struct {
	*Server
	ID     string
	Client rueidis.Client // of this node alone: it follows no redirections
}

// Nodes is a cluster of three primaries, each with one replica: at first Replicas[i] is the replica
// of Primaries[i].
type Nodes struct {
	Primaries, Replicas [3]*Node
}

// StartNodes starts a cluster whose nodes have further arguments. A primary that does not answer
// for timeout counts as lost. The nodes cannot be containers, since these do not reach each other.
func StartNodes(t testing.TB, timeout time.Duration, args ...string) *Nodes {
	t.Helper()
	n := new(Nodes)
	for i := range n.Primaries {
		n.Primaries[i] = startNode(t, args)
		n.Replicas[i] = startNode(t, args)
	}
	// While they know no others, each gets an epoch, and the replicas the lower ones. A replica
	// tells the epoch of its primary; to a node that knew it with a higher one, it may be a primary
	// for ever.
	for i, node := range append(n.Replicas[:], n.Primaries[:]...) {
		node.Do(t, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	for _, node := range n.All() {
		for _, other := range n.All() {
			if other != node {
				node.Do(t, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(other.port), other.busPort())
			}
		}
	}
	for i, node := range n.Primaries {
		first, next := i*Slots/len(n.Primaries), (i+1)*Slots/len(n.Primaries)
		node.Do(t, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(next-1))
	}
	for i, node := range n.Replicas {
		primary := n.Primaries[i].ID
		Until(t, "the replica knows its primary", func() bool {
			return strings.Contains(node.Do(t, "CLUSTER", "NODES"), primary) && node.Try("CLUSTER", "REPLICATE", primary) == nil
		})
	}
	n.AwaitReady(t)
	for _, node := range n.All() {
		node.Do(t, "CONFIG", "SET", "cluster-node-timeout", strconv.FormatInt(timeout.Milliseconds(), 10))
		node.Do(t, "CONFIG", "SET", "cluster-replica-no-failover", "no")
	}
	return n
}

// All returns the primaries and the replicas.
func (n *Nodes) All() []*Node { return append(n.Primaries[:], n.Replicas[:]...) }

// AwaitReady waits until every node calls the cluster sound and knows three primaries and three
// replicas, and every replica follows.
func (n *Nodes) AwaitReady(t testing.TB) {
	t.Helper()
	said := "" // by the first node that is not ready
	defer func() {
		if t.Failed() {
			t.Log(said)
		}
	}()
	Until(t, "the cluster is ready", func() bool {
		for _, node := range n.All() {
			info, err := node.Ask("CLUSTER", "INFO")
			said = info
			if err != nil || !strings.Contains(info, "cluster_state:ok") {
				return false
			}
			primaries, replicas := 0, 0
			view, err := node.Ask("CLUSTER", "NODES")
			said = view
			for line := range strings.Lines(view) {
				flags := strings.Split(strings.Fields(line)[2], ",")
				switch has := func(flag string) bool { return slices.Contains(flags, flag) }; {
				case has("fail"), has("fail?"), has("handshake"):
				case has("master"):
					primaries++
				case has("slave"):
					replicas++
				}
			}
			if err != nil || primaries != len(n.Primaries) || replicas != len(n.Replicas) {
				return false
			}
			replication, err := node.Ask("INFO", "replication")
			said = replication
			if err != nil || !strings.Contains(replication, "master_link_status:up") && !strings.Contains(replication, "state=online") {
				return false
			}
		}
		return true
	})
}

// Ask sends a command to the node and returns the reply, which must be a string.
func (n *Node) Ask(command ...string) (string, error) {
	return n.result(command).ToString()
}

// Try sends a command to the node.
func (n *Node) Try(command ...string) error { return n.result(command).Error() }

// Do sends a command to the node, which must succeed, and returns the reply if that is a string.
func (n *Node) Do(t testing.TB, command ...string) string {
	t.Helper()
	res := n.result(command)
	require.NoError(t, res.Error(), strings.Join(command[:min(2, len(command))], " "))
	text, _ := res.ToString()
	return text
}

// Port returns the port of the node.
func (n *Node) Port() string { return strconv.Itoa(n.port) }

func (n *Node) busPort() string {
	for i, arg := range n.args {
		if arg == "--cluster-port" {
			return n.args[i+1]
		}
	}
	return ""
}

func (n *Node) result(command []string) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return n.Client.Do(ctx, n.Client.B().Arbitrary(command...).Build())
}

func startNode(t testing.TB, args []string) *Node {
	t.Helper()
	var err error
	for range 5 { // somebody else may take the port first
		n := new(Node)
		bus := strconv.Itoa(FreePort())
		n.Server, err = New(append([]string{
			"--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-announce-bus-port", bus,
			"--cluster-allow-replica-migration", "no", "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
			"--cluster-node-timeout", "1000", "--cluster-replica-no-failover", "yes", // until all know each other, and they do so soon
		}, args...)...)
		if err != nil {
			continue
		}
		t.Cleanup(func() { require.NoError(t, n.Stop()) })
		option, err := rueidis.ParseURL(n.URL)
		require.NoError(t, err)
		option.ForceSingleClient, option.DisableCache, option.DisableRetry, option.PipelineMultiplex = true, true, true, -1
		n.Client, err = rueidis.NewClient(option)
		require.NoError(t, err)
		t.Cleanup(n.Client.Close)
		n.ID = n.Do(t, "CLUSTER", "MYID")
		return n
	}
	require.NoError(t, fmt.Errorf("redistest: start a node: %w", err))
	return nil
}
