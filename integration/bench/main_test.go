package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
	require.NoError(t, run(t.Context(), "mixed", 400, folder))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(text), "before\n"+begin))
	require.True(t, strings.HasSuffix(string(text), end+"after\n"))
	require.Contains(t, string(text), "\n| tombstore, cached | ")
	require.NotContains(t, string(text), "old")
}

func TestPlot(t *testing.T) {
	t.Parallel()
	svg := plot([]bar{{"<peer>", 1, "reading"}, {"Read", 4, "reading"}, {"Write", 0.5, "writing"}})
	require.Contains(t, svg, "&lt;peer&gt;")
	require.Equal(t, 3, strings.Count(svg, `height="14"`))
}
