package main

import (
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// The tool runs itself as client processes: here the test binary is what it runs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := worker(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "performance.md")
	require.NoError(t, os.WriteFile(path, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o600))
	require.NoError(t, run(t.Context(), "mixed,handlers", 400, folder))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(text), "before\n"+begin))
	require.True(t, strings.HasSuffix(string(text), end+"after\n"))
	require.Contains(t, string(text), "\n| tombstore, cached | ")
	require.Contains(t, string(text), "\n| server time, mixed load, cached / two keys, processes: 4 | ")
	require.Contains(t, string(text), "\n| fiber | change | tombstore, cached | ")
	require.Contains(t, string(text), "\n| processor time, scs, read, goredisstore / tombstore | ")
	require.NotContains(t, string(text), "old")
	svg, err := os.ReadFile(filepath.Join(folder, "performance.svg"))
	require.NoError(t, err)
	require.Contains(t, string(svg), "gorilla, read: tombstore, cached")
}

func TestFigures(t *testing.T) {
	t.Parallel()
	var b bench
	b.atMost("met as printed", 1.704, 1.7)
	b.atMost("missed", 1.706, 1.7)
	b.atLeast("met", 2.496, 2.5)
	b.none("counted", 1, 10)
	b.known("without a bound", 3)
	require.Equal(t, [][]string{
		{"met as printed", "1.7", "at most 1.7", "yes"},
		{"missed", "1.71", "at most 1.7", "**no**"},
		{"met", "2.5", "at least 2.5", "yes"},
		{"counted", "1 of 10", "0", "**no**"},
		{"without a bound", "3.00", "", ""},
	}, figures(b.figures).rows)
}

func TestRaces(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	ender, err := tombstore.Open(cluster.URL)
	require.NoError(t, err)
	defer ender.Close()
	for name, run := range map[string]race{"between": endBetween, "all": endAllMoving} {
		t.Run(name, func(t *testing.T) {
			live, err := run(t.Context(), cluster.URL, ender, 500)
			require.NoError(t, err)
			require.Zero(t, live)
			live, err = run(t.Context(), cluster.URL, shortSighted{ender}, 500)
			require.NoError(t, err)
			require.Positive(t, live)
		})
	}
}

// shortSighted ends ids and not sessions: those that it knew at first.
type shortSighted struct{ tombstore.Lister }

func (s shortSighted) Invalidate(ctx context.Context, id string, _ ...tombstore.InvalidateOption) error {
	return s.Lister.Invalidate(ctx, id, tombstore.Alone())
}

func (s shortSighted) InvalidateRef(ctx context.Context, ref string, _ ...tombstore.InvalidateOption) error {
	return s.Lister.InvalidateRef(ctx, ref, tombstore.Alone())
}

func (s shortSighted) List(ctx context.Context) iter.Seq2[tombstore.Entry, error] {
	var entries []tombstore.Entry
	for entry, err := range s.Lister.List(ctx) {
		if err != nil {
			return func(yield func(tombstore.Entry, error) bool) { yield(entry, err) }
		}
		entries = append(entries, entry)
	}
	return func(yield func(tombstore.Entry, error) bool) {
		for _, entry := range entries {
			if !yield(entry, nil) {
				return
			}
		}
	}
}

func TestWrapped(t *testing.T) {
	t.Parallel()
	word := strings.Repeat("x", 49)
	require.Equal(t, word+" "+word+"\n"+word, wrapped(word+" "+word+"  "+word))
}

func TestPlot(t *testing.T) {
	t.Parallel()
	svg := plot([]bar{{"<peer>", 1, "reading"}, {"Read", 4, "reading"}, {"Write", 0.4, "writing"}})
	require.Contains(t, svg, "&lt;peer&gt;")
	require.Contains(t, svg, "logarithmic")
	for _, tick := range []string{">0.25<", ">0.5<", ">1<", ">2<", ">4<", ">8<"} {
		require.Contains(t, svg, tick)
	}
	bars := regexp.MustCompile(`<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="14" fill="[^"]+"/>\n<text[^>]*>([\d.]+)<`).
		FindAllStringSubmatch(svg, -1)
	require.Len(t, bars, 3)
	for i, want := range []string{"1.00", "4.00", "0.40"} {
		require.Equal(t, want, bars[i][3])
	}
	number := func(text string) float64 {
		x, err := strconv.ParseFloat(text, 64)
		require.NoError(t, err)
		return x
	}
	one := number(bars[0][1]) // where the usual way is
	require.InDelta(t, one, number(bars[1][1]), 0.1)
	require.InDelta(t, one, number(bars[2][1])+number(bars[2][2]), 0.2)
	require.Greater(t, number(bars[2][2]), 50.0) // what is slower has a bar, too
}

// The plot of the document shows its tables, whole requests among them.
func TestPlot_ShowsTheDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/performance.md")
	require.NoError(t, err)
	bars := barsOf(tablesIn(string(text)))
	svg, err := os.ReadFile("../../docs/performance.svg")
	require.NoError(t, err)
	require.Equal(t, plot(bars), string(svg), "cd integration && go run ./bench -plot ../docs")
	var groups []string
	for _, b := range bars {
		if !slices.Contains(groups, b.group) {
			groups = append(groups, b.group)
		}
	}
	require.Len(t, groups, 4)
	for _, framework := range frameworks {
		require.Contains(t, string(svg), ">"+framework.name+", change: tombstore<")
	}
}
