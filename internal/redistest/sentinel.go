package redistest

import (
	"crypto/sha1"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const masterSet = "tombstore"

// Sentinels are three Sentinels that watch one primary, and promote one of its replicas when two of
// them miss it.
type Sentinels struct {
	URL     string    // of a store that asks them for the primary
	Servers []*Server // each speaks the protocol of a server

	clients []rueidis.Client
}

// StartSentinels starts Sentinels for the primary at addr, which call it down after so long, and
// stops them when the test ends. It returns when they know each other and that many replicas. The
// servers have to be processes.
func StartSentinels(t testing.TB, addr string, replicas int, down time.Duration) *Sentinels {
	t.Helper()
	command := serverCommand()
	require.NotNil(t, command, "Sentinels in containers do not reach each other")
	s := &Sentinels{}
	for range 3 {
		s.Servers = append(s.Servers, newServer(nil))
	}
	for i, server := range s.Servers {
		var err error
		server.process, err = launch(append(command[:len(command):len(command)], s.configure(t, i, addr, down), "--sentinel"), t.TempDir(), nil)
		require.NoError(t, err)
		t.Cleanup(server.process.kill)
		require.NoError(t, server.await())
		option, err := rueidis.ParseURL(server.URL)
		require.NoError(t, err)
		option.ForceSingleClient, option.DisableCache = true, true
		client, err := rueidis.NewClient(option)
		require.NoError(t, err)
		t.Cleanup(client.Close)
		s.clients = append(s.clients, client)
	}
	s.URL = fmt.Sprintf("redis://%s?addr=%s&addr=%s&master_set=%s", s.Servers[0].Addr, s.Servers[1].Addr, s.Servers[2].Addr, masterSet)
	s.Await(t, replicas)
	return s
}

// configure writes the file of Sentinel i. It names the others, so that they need not find each
// other first.
func (s *Sentinels) configure(t testing.TB, i int, addr string, down time.Duration) (path string) {
	t.Helper()
	id := func(i int) string { return fmt.Sprintf("%x", sha1.Sum([]byte(s.Servers[i].Addr))) }
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	lines := []string{
		fmt.Sprintf("port %d", s.Servers[i].port),
		"bind 127.0.0.1",
		"protected-mode no",
		"sentinel myid " + id(i),
		fmt.Sprintf("sentinel monitor %s 127.0.0.1 %s 2", masterSet, port),
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", masterSet, down.Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s 3000", masterSet), // the next one begins after twice that
		fmt.Sprintf("sentinel parallel-syncs %s 2", masterSet),
	}
	for other, server := range s.Servers {
		if other != i {
			lines = append(lines, fmt.Sprintf("sentinel known-sentinel %s 127.0.0.1 %d %s", masterSet, server.port, id(other)))
		}
	}
	path = filepath.Join(t.TempDir(), "sentinel.conf")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return path
}

// Await waits until each Sentinel sees the primary, the others and that many replicas, all of them
// well.
func (s *Sentinels) Await(t testing.TB, replicas int) {
	t.Helper()
	for _, client := range s.clients {
		var seen string
		done := assert.Eventually(t, func() bool {
			seen = ""
			of := func(what string) []map[string]string { return ask(t, client, what) }
			well := 0
			for _, state := range append(of("REPLICAS"), of("SENTINELS")...) {
				seen += fmt.Sprintf("%s %s %s\n", state["name"], state["flags"], state["master-link-status"])
				bad := strings.Contains(state["flags"], "s_down") || strings.Contains(state["flags"], "disconnected")
				if link := state["master-link-status"]; !bad && (link == "ok" || link == "") { // Sentinels have none
					well++
				}
			}
			primary := of("MASTERS")
			seen += fmt.Sprintln(primary)
			return len(primary) == 1 && primary[0]["flags"] == "master" && well == replicas+2
		}, 5*patience, 50*time.Millisecond, "a Sentinel does not see all")
		require.True(t, done, "it sees\n%s", seen)
	}
}

// ask returns what a Sentinel says of its masters, or of the replicas or Sentinels of its one
// master.
func ask(t testing.TB, client rueidis.Client, what string) (states []map[string]string) {
	command := []string{"SENTINEL", what}
	if what != "MASTERS" {
		command = append(command, masterSet)
	}
	reply, _ := client.Do(t.Context(), client.B().Arbitrary(command...).Build()).ToArray()
	for _, m := range reply {
		if state, err := m.AsStrMap(); err == nil {
			states = append(states, state)
		}
	}
	return states
}

// Primary returns the address that the Sentinels give for the primary, or nothing as long as they
// do not agree.
func (s *Sentinels) Primary(t testing.TB) (addr string) {
	t.Helper()
	for i, client := range s.clients {
		one, err := client.Do(t.Context(), client.B().SentinelGetMasterAddrByName().Master(masterSet).Build()).AsStrSlice()
		if err != nil || len(one) != 2 || i > 0 && addr != net.JoinHostPort(one[0], one[1]) {
			return ""
		}
		addr = net.JoinHostPort(one[0], one[1])
	}
	return addr
}

// Promote makes the Sentinels replace a primary that is well.
func (s *Sentinels) Promote(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool { // refused while another failover is under way
		return s.clients[0].Do(t.Context(), s.clients[0].B().SentinelFailover().Master(masterSet).Build()).Error() == nil
	}, 3*patience, 50*time.Millisecond, "the Sentinels do not promote")
}
