package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/doctor"
	"github.com/tombstore/tombstore/internal/redistest"
)

// call runs a command line.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return callWith(t, "", args...)
}

func callWith(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	status = run(t.Context(), args, strings.NewReader(stdin), &out, &err)
	return status, out.String(), err.String()
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	status, out, _ := call(t, "doctor", server.URL)
	require.Equal(t, exitOK, status)
	require.Contains(t, out, "ok       operations ")
	require.Contains(t, out, "fix: CONFIG SET appendonly yes")

	client := redistest.Dial(t, server.URL)
	save := client.B().Arbitrary("CONFIG", "SET", "save", "60 1").Build()
	require.NoError(t, client.Do(t.Context(), save).Error())
	status, out, _ = call(t, "doctor", "-json", server.URL)
	require.Equal(t, exitFailed, status)
	var findings []doctor.Finding
	require.NoError(t, json.Unmarshal([]byte(out), &findings))
	require.True(t, doctor.Failed(findings))
}

func TestServerCommands_Usage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"doctor"},
		{"doctor", "-nonsense"},
		{"doctor", "redis://:secret@127.0.0.1:1:2"},
		{"list", "redis://:secret@127.0.0.1:1"},
		{"inspect", "redis://127.0.0.1:1"},
		{"invalidate", "redis://127.0.0.1:1"},
		{"top", "redis://127.0.0.1:1"},
		{"top", "redis://:secret@127.0.0.1:1:2"},
		{"top", "-interval=1ms", redistest.URL(t)},
		{"top", "-samples=0", redistest.URL(t)},
		{"top", "-samples=10001", redistest.URL(t)},
		{"top", "-n=-1", redistest.URL(t)},
		{"list", "-prefix=", redistest.URL(t)},
		{"invalidate", "-prefix=", redistest.URL(t), tombstore.Ref("x")},
	} {
		status, out, stderr := call(t, args...)
		require.Equal(t, exitUsage, status)
		require.Empty(t, out)
		require.NotEmpty(t, stderr)
		require.NotContains(t, stderr, "secret")
	}
	status, _, _ := call(t, "doctor", "-h")
	require.Equal(t, exitOK, status)
}
