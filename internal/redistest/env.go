package redistest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// StartEnv is Start with further environment variables, each of the form name=value. It takes a
// server that is a process: skip the test if InContainer.
func StartEnv(t testing.TB, env []string, args ...string) *Server {
	t.Helper()
	require.False(t, InContainer(), "a container has an environment of its own")
	s, err := newWithEnv(env, args)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}
