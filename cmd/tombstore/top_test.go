package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// crowd is a store on a server of its own that holds known numbers of keys.
type crowd struct {
	*testing.T
	*redistest.Server
	client rueidis.Client
	store  *tombstore.RedisStore
}

const (
	crowdSessions   = 300
	crowdTombstones = 700
	crowdOwners     = 20 // each of a session that is among the live ones
	crowdOthers     = 500
)

func newCrowd(t *testing.T, server *redistest.Server) *crowd {
	t.Helper()
	client := redistest.Dial(t, server.URL)
	s, err := tombstore.New(client, tombstore.WithPublish())
	require.NoError(t, err)
	return &crowd{t, server, client, s}
}

func (c *crowd) begin() (id string) {
	c.Helper()
	id = tombstore.NewID()
	_, err := c.store.Write(c.Context(), id, nil, time.Hour)
	require.NoError(c, err)
	return id
}

func (c *crowd) logIn(owner string) {
	c.Helper()
	id := tombstore.NewID()
	login, err := c.store.BeginLogin(c.Context(), owner)
	require.NoError(c, err)
	binding, err := c.store.Reserve(c.Context(), id, login, tombstore.Until(time.Now().Add(time.Hour)))
	require.NoError(c, err)
	_, err = c.store.Write(c.Context(), id, nil, time.Hour, tombstore.Bound(binding))
	require.NoError(c, err)
}

func (c *crowd) gather() {
	c.Helper()
	for range crowdSessions - crowdOwners {
		c.begin()
	}
	for i := range crowdOwners {
		c.logIn("owner" + string(rune('a'+i)))
	}
	for range crowdTombstones {
		require.NoError(c, c.store.Invalidate(c.Context(), c.begin()))
	}
	for range crowdOthers {
		set := c.client.B().Set().Key("other:" + tombstore.NewID()).Value("x").Build()
		require.NoError(c, c.client.Do(c.Context(), set).Error())
	}
}

// pages runs top and returns the pages that it prints as JSON.
func pages(t *testing.T, args ...string) (status int, pages []page, stderr string) {
	t.Helper()
	status, out, stderr := call(t, append([]string{"top", "-json"}, args...)...)
	for line := range strings.Lines(out) {
		pages = append(pages, parsePage(t, line))
	}
	return status, pages, stderr
}

func parsePage(t *testing.T, line string) (p page) {
	t.Helper()
	p.figures = &figures{}
	known := json.NewDecoder(strings.NewReader(line))
	known.DisallowUnknownFields()
	require.NoError(t, known.Decode(&p), line)
	return p
}

// requireNear allows five standard deviations of the sample, and as far as one key.
func requireNear(t *testing.T, want int, of page, got estimate) {
	t.Helper()
	share := float64(want) / float64(of.Keys)
	deviation := float64(of.Keys) * math.Sqrt(share*(1-share)/float64(of.Sampled))
	require.InDelta(t, want, got.Keys, 5*deviation+1)
	require.LessOrEqual(t, got.Low, got.Keys)
	require.GreaterOrEqual(t, got.High, got.Keys)
	require.InDelta(t, 2*1.96*deviation, got.High-got.Low, deviation+3) // the width of the interval
}

func TestTop_Estimates(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t))
	c.gather()
	status, found, stderr := pages(t, "-n=1", "-interval=100ms", "-samples=4000", c.URL)
	require.Equal(t, exitOK, status, stderr)
	require.Len(t, found, 1)
	p := found[0]
	require.EqualValues(t, crowdSessions+crowdTombstones+crowdOwners+crowdOthers, p.Keys)
	require.Equal(t, 4000, p.Sampled)
	require.Equal(t, 1, p.Nodes)
	require.Regexp(t, `^(Redis|Valkey) \d+\.\d+\.\d+$`, p.Server)
	requireNear(t, crowdSessions, p, p.Sessions)
	requireNear(t, crowdTombstones, p, p.Tombstones)
	requireNear(t, crowdOwners, p, p.Owners)

	status, found, _ = pages(t, "-n=1", "-interval=100ms", "-prefix=nothing:", c.URL)
	require.Equal(t, exitOK, status)
	require.Zero(t, found[0].Sessions.Keys+found[0].Tombstones.Keys+found[0].Owners.Keys)
	require.Less(t, found[0].Commands*found[0].Interval, 50.0, "its own samples are counted")
}

// watching runs top until the test cancels it.
type watching struct {
	*testing.T
	lines  *bufio.Scanner
	pages  int
	cancel context.CancelFunc
	status chan int
}

func watchTop(t *testing.T, args ...string) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	l := &watching{t, bufio.NewScanner(out), 0, cancel, make(chan int, 1)}
	go func() {
		var stderr bytes.Buffer
		l.status <- run(ctx, append([]string{"top", "-json", "-interval=100ms"}, args...), nil, in, &stderr)
		in.Close()
	}()
	t.Cleanup(func() { cancel(); out.Close() })
	return l
}

func (l *watching) next() page {
	l.Helper()
	require.True(l, l.lines.Scan())
	require.Less(l, l.pages, 300, "what the test waits for does not come")
	l.pages++
	return parsePage(l.T, l.lines.Text())
}

// What was ended, moved and refused while top looks on is counted, and nothing else.
func TestTop_Rates(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t))
	late := tombstore.NewID()
	loaded, err := c.store.Write(t.Context(), late, nil, time.Hour)
	require.NoError(t, err)
	_, err = c.store.Write(t.Context(), late, nil, time.Hour, tombstore.Replacing(loaded)) // proves that the server refuses
	require.NoError(t, err)
	c.logIn(alice)
	c.logIn(alice)
	var ids [12]string
	for i := range ids {
		ids[i] = c.begin()
	}

	top := watchTop(t, c.URL)
	first := top.next()
	require.Zero(t, *first.Ends+*first.Moves+*first.OwnersEnded+first.LateSaves)
	require.NoError(t, c.store.Invalidate(t.Context(), late))
	for range 5 {
		_, err := c.store.Write(t.Context(), late, nil, time.Hour, tombstore.Replacing(loaded))
		require.ErrorIs(t, err, tombstore.ErrInvalidated)
	}
	for _, id := range ids[:4] {
		_, err := c.store.Rotate(t.Context(), id, tombstore.NewID())
		require.NoError(t, err)
	}
	for _, id := range ids[4:] {
		require.NoError(t, c.store.Invalidate(t.Context(), id))
	}
	_, err = c.store.InvalidateOwner(t.Context(), alice)
	require.NoError(t, err)
	var ends, moves, owners, saves, others float64
	for more := 1; more >= 0; { // one page behind that which has all
		p := top.next()
		require.NotNil(t, p.Ends)
		ends += *p.Ends * p.Interval
		moves += *p.Moves * p.Interval
		owners += *p.OwnersEnded * p.Interval
		saves += p.LateSaves * p.Interval
		others += p.OtherRefused * p.Interval
		if math.Round(ends) >= 1+8+2 && math.Round(moves) >= 4 && math.Round(owners) >= 1 &&
			math.Round(saves) >= 5 && math.Round(others) >= 5 {
			more--
		}
	}
	require.InDelta(t, 1+8+2, ends, 0.5)
	require.InDelta(t, 4, moves, 0.5)
	require.InDelta(t, 1, owners, 0.5)
	require.InDelta(t, 5, saves, 0.5)
	require.InDelta(t, 5, others, 0.5) // write.lua, which says why
	top.cancel()
	require.Equal(t, exitOK, <-top.status)
}

// What top sends reads, and its number is bounded.
func TestTop_ReadOnly(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t))
	c.gather()
	sent := redistest.Commands(t, c.client, func() {
		status, _, stderr := pages(t, "-n=2", "-interval=100ms", "-samples=250", c.URL)
		require.Equal(t, exitOK, status, stderr)
	})
	require.Equal(t, 3*250, sent["randomkey"])
	require.LessOrEqual(t, sent["type"], 3*250)
	require.Equal(t, 3, sent["dbsize"])
	require.Equal(t, 1, sent["subscribe"])
	for _, known := range []string{"randomkey", "type", "dbsize", "subscribe"} {
		delete(sent, known)
	}
	require.Empty(t, sent)
}

func TestTop_Text(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t))
	c.begin()
	status, out, stderr := call(t, "top", "-n=2", "-interval=100ms", c.URL)
	require.Equal(t, exitOK, status)
	require.Empty(t, stderr)
	require.Equal(t, 2, strings.Count(out, "\nsessions               1   (0 to 1)\n"), out)
	require.Contains(t, out, "\nends        0.0   moves 0.0   owners logged out 0.0   (as told by WithPublish)\n")
	require.Contains(t, out, "\nrefused     late saves 0.0   others 0.0\n")
	require.Contains(t, out, " MiB   noeviction\n")
	require.NotContains(t, out, "\x1b")
	for line := range strings.Lines(out) {
		require.LessOrEqual(t, len(line), 100, line)
	}
}

// A page that has lost keys to eviction says what they may have been.
func TestTop_Warnings(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru"))
	value := strings.Repeat("x", 10<<10)
	for range 1000 {
		set := c.client.B().Set().Key(tombstore.NewID()).Value(value).Build()
		require.NoError(t, c.client.Do(t.Context(), set).Error())
	}
	status, found, stderr := pages(t, "-n=1", "-interval=100ms", c.URL)
	require.Equal(t, exitOK, status, stderr)
	p := found[0]
	require.Positive(t, p.Evicted)
	require.EqualValues(t, 3<<20, p.Limit)
	require.Equal(t, "allkeys-lru", p.Policy)
	warnings := strings.Join(p.Warnings, "\n")
	require.Contains(t, warnings, "keys were evicted, each of which may have been a tombstone")
	require.Contains(t, warnings, "maxmemory-policy is allkeys-lru")
	require.Contains(t, warnings, "% of its memory")
}

func TestTop_Replicas(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	replica := redistest.Start(t, primary.Replicaof(t)...)
	client := redistest.Dial(t, replica.URL)
	redistest.Until(t, "the replica", func() bool { return redistest.Info(t, client, "master_link_status") == "up" })
	_, found, _ := pages(t, "-n=1", "-interval=100ms", primary.URL)
	require.EqualValues(t, 1, found[0].Replicas)
	require.Empty(t, found[0].Warnings)
	_, found, _ = pages(t, "-n=1", "-interval=100ms", replica.URL)
	require.Len(t, found[0].Warnings, 1)
	require.Contains(t, found[0].Warnings[0], "is a replica, whose link to its primary is up")
}

// Each primary's keys count once, whether its replica answers or not. Without a primary there is no
// page.
func TestTop_Nodes(t *testing.T) {
	if testing.Short() || redistest.InContainer() {
		t.Skip("takes a cluster of six servers on one machine")
	}
	t.Parallel()
	nodes := redistest.StartNodes(t, time.Hour)
	url := nodes.Primaries[0].URL
	client := redistest.Dial(t, url)
	s, err := tombstore.New(client)
	require.NoError(t, err)
	for range 200 {
		id := tombstore.NewID()
		_, err := s.Write(t.Context(), id, nil, time.Hour)
		require.NoError(t, err)
		require.NoError(t, s.Invalidate(t.Context(), id))
		_, err = s.Write(t.Context(), tombstore.NewID(), nil, time.Hour)
		require.NoError(t, err)
	}
	look := func() page {
		_, found, stderr := pages(t, "-n=1", "-interval=100ms", "-samples=3000", url)
		require.Empty(t, stderr)
		require.Len(t, found, 1)
		require.Equal(t, 3, found[0].Nodes)
		require.EqualValues(t, 400, found[0].Keys)
		requireNear(t, 200, found[0], found[0].Sessions)
		requireNear(t, 200, found[0], found[0].Tombstones)
		return found[0]
	}
	require.EqualValues(t, 3, look().Replicas)
	status, _, stderr := call(t, "bench", "-redis", url, "-for=15s", "-rounds=3", "-yes")
	require.Equal(t, exitOK, status, stderr)
	require.EqualValues(t, 3, look().Replicas, "and no other keys")

	top := watchTop(t, url)
	require.Empty(t, top.next().Error)
	nodes.Replicas[0].Kill(t)
	redistest.Until(t, "the replica is missed", func() bool { return look().Replicas == 2 })
	require.Empty(t, top.next().Error)
	nodes.Primaries[2].Kill(t)
	for top.next().Error == "" {
	}
	top.cancel()
	require.Equal(t, exitOK, <-top.status)
}

// Messages that the server does not let top have are not taken for none.
func TestTop_NoMessages(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	acl := client.B().Arbitrary("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "resetchannels", "+@all").Build()
	require.NoError(t, client.Do(t.Context(), acl).Error())
	url := strings.Replace(server.URL, "redis://", "redis://deaf:pw@", 1)
	status, found, stderr := pages(t, "-n=1", "-interval=100ms", url)
	require.Equal(t, exitOK, status, stderr)
	require.Nil(t, found[0].Ends)
	require.Nil(t, found[0].Moves)
	status, out, _ := call(t, "top", "-n=1", "-interval=100ms", url)
	require.Equal(t, exitOK, status)
	require.Contains(t, out, "ends        unknown")
}

// The rights that docs/operations.md gives top are enough, and each is needed.
func TestTop_Rights(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	lines := regexp.MustCompile(`(?m)^    (ACL SETUSER watcher .*)$`).FindAllSubmatch(doc, -1)
	require.Len(t, lines, 2)
	c := newCrowd(t, redistest.Start(t))
	give := func(rights string) {
		require.NoError(t, c.client.Do(t.Context(), c.client.B().Arbitrary(strings.Fields(rights)...).Build()).Error())
	}
	for _, line := range lines {
		give(string(line[1]))
	}
	c.begin()
	moved := c.begin()
	url := strings.Replace(c.URL, "redis://", "redis://watcher:password@", 1)
	top := watchTop(t, url)
	require.NotNil(t, top.next().Ends)
	_, err = c.store.Rotate(t.Context(), moved, tombstore.NewID())
	require.NoError(t, err)
	var moves float64
	for math.Round(moves) < 1 {
		p := top.next()
		require.Empty(t, p.Error)
		moves += *p.Moves * p.Interval
	}
	for _, right := range []string{"info", "dbsize", "randomkey", "type"} {
		give("ACL SETUSER watcher -" + right)
		for top.next().Error == "" {
		}
		give("ACL SETUSER watcher +" + right)
		for top.next().Error != "" {
		}
	}
}

// A server that has gone is no reason to end. The exit status is that of the last page.
func TestTop_ServerGone(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t))
	top := watchTop(t, "-n=1000000", c.URL)
	require.Empty(t, top.next().Error)
	c.Kill(t)
	for top.next().Error == "" {
	}
	c.Restart(t)
	for top.next().Error != "" {
	}
	top.cancel()
	require.Equal(t, exitOK, <-top.status)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &stopAfter{lines: 1, stop: func() { c.Kill(t) }}
	var stderr bytes.Buffer
	require.Equal(t, exitFailed, run(ctx, []string{"top", "-json", "-n=2", "-interval=500ms", c.URL}, nil, out, &stderr))
	require.Equal(t, 2, strings.Count(out.String(), "\n"))
	require.NotEmpty(t, parsePage(t, strings.SplitN(out.String(), "\n", 2)[1]).Error)
}

// stopAfter is an output that calls stop once it has so many lines.
type stopAfter struct {
	mu sync.Mutex
	bytes.Buffer
	lines int
	stop  func()
}

func (s *stopAfter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.Buffer.Write(b)
	if s.lines > 0 && bytes.Count(s.Bytes(), []byte("\n")) >= s.lines {
		s.lines = 0
		s.stop()
	}
	return n, err
}

// An output that is closed, as by head, ends the program.
func TestTop_OutputGone(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, redistest.Start(t))
	for _, args := range [][]string{{"-json"}, {}} {
		var stderr bytes.Buffer
		args = append(append([]string{"top", "-interval=100ms"}, args...), c.URL)
		require.Equal(t, exitFailed, run(t.Context(), args, nil, broken{}, &stderr))
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestWilson(t *testing.T) {
	t.Parallel()
	for _, of := range []struct {
		found, n  int
		low, high float64
	}{{50, 100, 0.4038, 0.5962}, {0, 10, 0, 0.2775}, {10, 10, 0.7225, 1}, {1, 1000, 0.0002, 0.0056}} {
		low, high := wilson(of.found, of.n)
		require.InDelta(t, of.low, low, 0.0001)
		require.InDelta(t, of.high, high, 0.0001)
	}
}

// The intervals hold the true number as often as they say, on one node and on three of different
// size.
func TestEstimate_Coverage(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, nodes := range [][]struct{ keys, of int }{
		{{10_000, 300}}, {{1000, 500}}, {{10_000, 300}, {50_000, 40_000}, {2000, 0}},
	} {
		const trials, taken = 4000, 300
		truth, held := 0, 0
		for _, node := range nodes {
			truth += node.of
		}
		for range trials {
			var samples []sample
			for _, node := range nodes {
				s := sample{keys: int64(node.keys), taken: taken}
				for range taken {
					if random.IntN(node.keys) < node.of {
						s.found[1]++
					}
				}
				samples = append(samples, s)
			}
			if e := estimateOf(samples, 1); e.Low <= int64(truth) && int64(truth) <= e.High {
				held++
			}
		}
		require.InDelta(t, 0.95, float64(held)/trials, 0.02)
	}
}
