package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

func keysOf(t *testing.T, client rueidis.Client) []string {
	t.Helper()
	return redistest.Keys(t.Context(), client, "")
}

func TestBench(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	status, out, stderr := call(t, "bench", "-redis", server.URL, "-for=15s", "-rounds=3", "-clients=4", "-json")
	require.Equal(t, exitOK, status, stderr)
	require.Empty(t, stderr)
	require.Empty(t, keysOf(t, client))
	var names []string
	for line := range strings.Lines(out) {
		var r result
		known := json.NewDecoder(strings.NewReader(line))
		known.DisallowUnknownFields()
		r.pairing = &pairing{}
		require.NoError(t, known.Decode(&r), line)
		names = append(names, r.Call+" / "+r.Base)
		require.Positive(t, r.Low)
		require.LessOrEqual(t, r.Low, r.Ratio)
		require.LessOrEqual(t, r.Ratio, r.High)
		require.Equal(t, 3, r.Rounds)
		require.Positive(t, r.Calls)
		require.Positive(t, r.Bases)
	}
	require.Equal(t, []string{
		"Read / GET", "save / SET", "Read with Slide / GET", "cached Read / GET", "first Write / SET", "end / DEL",
		"Rotate / DEL, SET", "renewal / DEL, SET",
	}, names)
}

// What others keep there, in another database too, asks for consent and is kept, and the pairs do
// what they say: the server has seen each command.
func TestBench_OthersKeys(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	other := client.B().Set().Key("tombstore-bench:other").Value("kept").Build()
	require.NoError(t, client.Do(t.Context(), other).Error())
	args := []string{"bench", "-redis", server.URL + "/1", "-for=15s", "-rounds=3", "-clients=2", "-size=10"}
	var status int
	var out, stderr string
	sent := redistest.Commands(t, client, func() { status, out, stderr = call(t, args...) })
	require.Equal(t, exitUsage, status)
	require.Empty(t, out)
	require.Equal(t, "tombstore: the server holds 1 keys of other programs, which would have to wait; -yes runs it all the same\n", stderr)
	require.Empty(t, sent)

	sent = redistest.Commands(t, client, func() { status, out, stderr = call(t, append(args, "-yes")...) })
	require.Equal(t, exitOK, status, stderr)
	require.Regexp(t, `(?m)^save / SET +\d+\.\d\d  \(\d+\.\d\d to \d+\.\d\d\)  [# ]{10}\|#*(\.\.\.)?$`, out)
	require.Regexp(t, `\n3 rounds\. GET: [\d,]+ a second, SET: [\d,]+\.\n$`, out)
	for line := range strings.Lines(out) {
		require.LessOrEqual(t, len(line), 110, line)
	}
	for _, command := range []string{"get", "set", "del", "evalsha", "pttl", "restore", "rename"} {
		require.Positive(t, sent[command], command)
	}
	require.Equal(t, []string{"tombstore-bench:other"}, keysOf(t, client))
	require.Empty(t, keysOf(t, redistest.Dial(t, server.URL+"/1")))
}

// All keys expire by themselves, and an interrupted run deletes them.
func TestBench_Interrupted(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	for round := range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan int, 1)
		var stdout, stderr bytes.Buffer
		go func() {
			ended <- run(ctx, []string{"bench", "-redis", server.URL, "-for=1h"}, nil, &stdout, &stderr)
		}()
		redistest.Until(t, "sessions", func() bool { return len(keysOf(t, client)) > 500*(round+1) })
		keys := keysOf(t, client)
		var asked rueidis.Commands
		for _, key := range keys {
			asked = append(asked, client.B().Pttl().Key(key).Build())
		}
		for i, answer := range client.DoMulti(t.Context(), asked...) {
			left, err := answer.AsInt64()
			require.NoError(t, err)
			require.NotEqual(t, int64(-1), left, "%s does not expire", keys[i])
			require.LessOrEqual(t, left, (time.Hour + 5*time.Minute).Milliseconds())
		}
		cancel()
		require.Equal(t, exitFailed, <-ended)
		require.Empty(t, stdout.String())
		require.Equal(t, "tombstore: bench: interrupted\n", stderr.String())
		redistest.Until(t, "the store's own keys to go", func() bool { return len(keysOf(t, client)) == 0 })
	}
}

// It does not go on when the time is up, and says so if that was too short.
func TestBench_TimeIsUp(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	status, out, stderr := call(t, "bench", "-redis", server.URL, "-for=1s", "-rounds=1000000")
	if status == exitOK {
		require.Contains(t, out, "save / SET")
	} else {
		require.Contains(t, stderr, "rounds only: give it more with -for")
	}
	require.Empty(t, keysOf(t, redistest.Dial(t, server.URL)))
}

// One test, since the keys of bench would change under the eyes of top.
func TestBench_TopCluster(t *testing.T) {
	t.Parallel()
	url := redistest.ClusterURL(t)
	status, out, stderr := call(t, "bench", "-redis", url, "-for=15s", "-rounds=3", "-clients=2", "-yes")
	require.Equal(t, exitOK, status, stderr)
	require.Contains(t, out, "renewal / DEL, SET")
	client := redistest.Dial(t, url)
	require.Empty(t, redistest.Keys(t.Context(), client, "tombstore-bench:"))

	prefix := redistest.Prefix(t, client)
	s, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix))
	require.NoError(t, err)
	for range 10 {
		_, err := s.Write(t.Context(), tombstore.NewID(), nil, time.Minute)
		require.NoError(t, err)
	}
	status, found, stderr := pages(t, "-n=1", "-interval=100ms", "-samples=2000", "-prefix", prefix, url)
	require.Equal(t, exitOK, status, stderr)
	require.Equal(t, 1, found[0].Nodes)
	requireNear(t, 10, found[0], found[0].Sessions)
}

// Keys of others must not be evicted to make room.
func TestBench_FullServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "20mb")
	status, _, stderr := call(t, "bench", "-redis", server.URL, "-yes")
	require.Equal(t, exitUsage, status)
	require.Contains(t, stderr, "nearly at its maxmemory")
}

func TestBench_Usage(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"", "-redis=redis://127.0.0.1:1", "-redis=redis://:secret@x:y", "-redis=redis://127.0.0.1 -for=1ms",
		"-redis=redis://127.0.0.1 -clients=0", "-redis=redis://127.0.0.1 -rounds=2", "-redis=redis://127.0.0.1 -size=-1", "redis://:secret@127.0.0.1",
	} {
		status, out, stderr := call(t, append([]string{"bench"}, strings.Fields(args)...)...)
		require.Equal(t, exitUsage, status, args)
		require.Empty(t, out)
		require.NotEmpty(t, stderr)
		require.NotContains(t, stderr, "secret")
	}
}

func TestTextBar(t *testing.T) {
	t.Parallel()
	for ratio, want := range map[float64]string{
		0.04: "          |", 0.5: "#####     |", 1: "##########|", 1.26: "##########|###",
		9: "##########|" + strings.Repeat("#", 30) + "...",
	} {
		require.Equal(t, want, textBar(ratio), fmt.Sprint(ratio))
	}
}

func TestPairing_Result(t *testing.T) {
	t.Parallel()
	p := &pairing{ratios: []float64{5, 1, 3, 2, 4}, took: [2]time.Duration{2 * time.Second, time.Second}, calls: 100}
	r := p.result()
	require.Equal(t, []float64{3, 2, 4}, []float64{r.Ratio, r.Low, r.High})
	require.Equal(t, []int{5, 50, 100}, []int{r.Rounds, r.Calls, r.Bases})
}
