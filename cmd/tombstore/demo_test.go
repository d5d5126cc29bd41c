package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestDemo(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), []string{"demo", "-rounds=20", "-forced=20", "-workers=4"}, nil, &stdout, &stderr)
	require.Equal(t, exitOK, status, "%s", &stderr)
	require.Empty(t, stderr.String())

	usual, rest, found := strings.Cut(stdout.String(), "kept with tombstore")
	require.True(t, found)
	require.Contains(t, usual, "RESURRECTED")
	require.Contains(t, usual, "200 alice, 1 item   LIVE AGAIN     A\n")

	timeline, races, found := strings.Cut(rest, "Random timing")
	require.True(t, found)
	require.NotContains(t, timeline, "LIVE AGAIN")
	require.NotContains(t, timeline, "RESURRECTED")
	require.Contains(t, timeline, "200 item added      tombstone      none\n")
	require.Regexp(t, `HELD +tombstore +0 of 20 `, races)
	require.Regexp(t, `RESURRECTED +GET, SET, DEL +20 of 20 `, races)
	for line := range strings.Lines(stdout.String()) {
		require.LessOrEqual(t, len(line), 100, line)
	}
	require.NotRegexp(t, `[\w-]{22}`, stdout.String(), "a session id, or part of one")
}

func TestDemo_JSON(t *testing.T) {
	t.Parallel()
	status, out, stderr := call(t, "demo", "-json", "-rounds=5", "-forced=10", "-workers=2")
	require.Equal(t, exitOK, status, stderr)
	var found []verdict
	for line := range strings.Lines(out) {
		var v verdict
		require.NoError(t, json.Unmarshal([]byte(line), &v), line)
		found = append(found, v)
	}
	require.Len(t, found, 6)
	all, none := 10, 0
	found[2].Alive, found[2].Held = 0, false // by chance
	require.Equal(t, []verdict{
		{Store: "GET, SET, DEL", Race: "steps", Races: 1, Alive: 1},
		{Store: "tombstore", Race: "steps", Races: 1, Held: true},
		{Store: "GET, SET, DEL", Race: "random", Races: 5},
		{Store: "tombstore", Race: "random", Races: 5, Held: true},
		{Store: "GET, SET, DEL", Race: "forced", Races: 10, Alive: 10, Saves: &all},
		{Store: "tombstore", Race: "forced", Races: 10, Saves: &none, Held: true},
	}, found)
}

// The check can fail: a store that forgets what was ended is found out.
func TestDemo_brokenStore(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	status := runWith(t.Context(), openPlain, []string{"demo", "-rounds=0"}, nil, &stdout, &stderr)
	require.Equal(t, exitFailed, status)
	require.Equal(t, 2, strings.Count(stdout.String(), "RESURRECTED"), "%s", &stdout)
}

// deathless ignores logouts.
type deathless struct{ sessions }

func (deathless) delete(context.Context, string) error { return nil }

func TestRaces_count(t *testing.T) {
	t.Parallel()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	good := tombs{store: store}
	for _, c := range []struct {
		sessions
		lost int
	}{{good, 0}, {tombs{store: store, always: true}, 0}, {deathless{good}, 50}} {
		revived, err := rounds(t.Context(), c, 50)
		require.NoError(t, err)
		require.Equal(t, c.lost, revived)
		revived, accepted, err := forced(t.Context(), []sessions{c}, c, 50, 4)
		require.NoError(t, err)
		require.Equal(t, []int{c.lost, c.lost}, []int{revived, accepted})
	}
}

// On a server that refuses by type every other late save is a SET that the server refused.
func TestDemo_racesTheNativePath(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var stdout, stderr bytes.Buffer
	args := []string{"demo", "-redis=" + server.URL, "-rounds=0", "-forced=200"}
	require.Equal(t, exitOK, run(t.Context(), args, nil, &stdout, &stderr), "%s", &stderr)
	require.Regexp(t, `HELD +tombstore +0 of 200 `, stdout.String())

	sets := redistest.Info(t, redistest.Dial(t, server.URL), "cmdstat_set")
	_, refused, _ := strings.Cut(sets, "failed_calls=")
	n, err := strconv.Atoi(refused)
	require.NoError(t, err, sets)
	require.GreaterOrEqual(t, n, 100)
}

func TestDemo_leavesOtherKeysAlone(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	require.NoError(t, server.Set("other", "kept"))
	var stdout, stderr bytes.Buffer
	status := run(t.Context(), []string{"demo", "-redis=redis://" + server.Addr(), "-rounds=5"}, nil, &stdout, &stderr)
	require.Equal(t, exitOK, status, "%s", &stderr)
	require.Equal(t, []string{"other"}, server.Keys())
}

func TestDemo_interrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitFailed, run(ctx, []string{"demo"}, nil, &stdout, &stderr))
	require.Equal(t, "tombstore: demo: context canceled\n", stderr.String())
}

func TestRun_usage(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{
		"":                               exitUsage,
		"-h":                             exitOK,
		"unknown":                        exitUsage,
		"demo -h":                        exitOK,
		"demo -unknown":                  exitUsage,
		"demo -rounds=x":                 exitUsage,
		"demo -rounds=-1":                exitUsage,
		"demo -workers=0":                exitUsage,
		"demo more":                      exitUsage,
		"demo -redis=host:6379":          exitUsage,
		"demo -redis=redis://:secret@/x": exitUsage,
		"demo redis://:secret@host":      exitUsage,
		"redis://:secret@host":           exitUsage,
		"-unknown":                       exitUsage,
		"--help":                         exitOK,
		"help":                           exitOK,
	} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, want, run(t.Context(), strings.Fields(args), nil, &stdout, &stderr), args)
		require.NotEmpty(t, stdout.String()+stderr.String(), args)
		require.NotContains(t, stdout.String()+stderr.String(), "secret")
		require.Equal(t, args == "unknown", strings.HasPrefix(stderr.String(), "tombstore: unknown command \"unknown\"\n"), args)
	}
}
