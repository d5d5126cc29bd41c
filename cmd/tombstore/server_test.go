package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/doctor"
	"github.com/tombstore/tombstore/internal/redistest"
)

// call runs a command line.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	status = run(t.Context(), args, &out, &err)
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
	require.NoError(t, client.Do(t.Context(), client.B().Arbitrary("CONFIG", "SET", "save", "60 1").Build()).Error())
	status, out, _ = call(t, "doctor", "-json", server.URL)
	require.Equal(t, exitFailed, status)
	var findings []doctor.Finding
	require.NoError(t, json.Unmarshal([]byte(out), &findings))
	require.True(t, doctor.Failed(findings))
}

func TestInspectAndInvalidate(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s, err := tombstore.New(redistest.Dial(t, server.URL), tombstore.WithAbsoluteTimeout(time.Hour))
	require.NoError(t, err)
	id := tombstore.NewID()
	ref := tombstore.Ref(id)
	_, err = s.Write(t.Context(), id, []byte("secret"), time.Minute)
	require.NoError(t, err)

	status, out, _ := call(t, "inspect", server.URL, ref, tombstore.Ref("none"))
	require.Equal(t, exitOK, status)
	require.Contains(t, out, ref+"  live, created at 20")
	require.Contains(t, out, "at the latest at 20")
	require.Contains(t, out, "absent\n")
	require.NotContains(t, out, "secret")

	status, out, _ = call(t, "invalidate", server.URL, ref)
	require.Equal(t, exitOK, status)
	require.Equal(t, ref+"  ended\n", out)
	_, err = s.Read(t.Context(), id)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
	_, out, _ = call(t, "inspect", server.URL, ref)
	require.Contains(t, out, "ended (revoked) at 20")

	status, _, stderr := call(t, "invalidate", server.URL, "no ref")
	require.Equal(t, exitFailed, status)
	require.Contains(t, stderr, "invalid session id")
	require.Equal(t, "foreign value", state([]byte("something"), 0))
}

func TestServerCommands_Usage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"doctor"}, {"doctor", "-nonsense"}, {"doctor", "redis://:secret@127.0.0.1:1:2"}, {"inspect", "redis://:secret@127.0.0.1:1"},
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
