package faults

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// Create stores n sessions for an hour and returns their ids.
func Create(t testing.TB, s tombstore.Store, n int) (ids []string) {
	t.Helper()
	for range n {
		id := tombstore.NewID()
		_, err := s.Write(t.Context(), id, []byte("x"), time.Hour, tombstore.IfAbsent())
		require.NoError(t, err)
		ids = append(ids, id)
	}
	return ids
}

// End ends sessions, which must succeed.
func End(t testing.TB, s tombstore.Store, ids []string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, s.Invalidate(t.Context(), id))
	}
}

// Live counts the ids that are live.
func Live(t testing.TB, s tombstore.Store, ids []string) (n int64) {
	t.Helper()
	for _, id := range ids {
		if _, err := s.Read(t.Context(), id); !Gone(t, err) {
			n++
		}
	}
	return n
}

// Revived counts the ids that a late writer makes live.
func Revived(t testing.TB, s tombstore.Store, ids []string, opts ...tombstore.WriteOption) (n int64) {
	t.Helper()
	for _, id := range ids {
		if _, err := s.Write(t.Context(), id, []byte("late"), time.Hour, opts...); !Gone(t, err) {
			n++
		}
	}
	return n
}

// Gone reports whether err says that there is no live session. Every other error fails the test.
func Gone(t testing.TB, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	require.True(t, errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated), "%v", err)
	return true
}
