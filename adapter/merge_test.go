package adapter

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// A new id that is in use is a conflict that no merge can solve.
func TestRotate_MergeAndTakenID(t *testing.T) {
	var merges atomic.Int64
	b := newBed(t, WithLostUpdates(Merge(func(_, mine, _ []byte) ([]byte, error) {
		if merges.Add(1) > 1000 {
			panic("for ever")
		}
		return mine, nil
	})))
	taken := tombstore.NewID()
	_, err := b.store.Write(t.Context(), taken, []byte("taken"), time.Hour)
	require.NoError(t, err)
	var failed any
	func() {
		defer func() { failed = recover() }()
		err = b.Rotate(t.Context(), b.b, taken, []byte("y"), time.Hour)
	}()
	require.Nil(t, failed, "it goes on for ever")
	require.ErrorIs(t, err, tombstore.ErrConflict)
}

type ahead struct {
	*tombstore.MemoryStore
	by time.Duration
}

// Read answers as if the session had been ended by a process whose clock is ahead.
func (a ahead) Read(_ context.Context, _ string, _ ...tombstore.ReadOption) (tombstore.Session, error) {
	return tombstore.Session{}, &tombstore.InvalidatedError{Reason: tombstore.Logout, At: time.Now().Add(a.by)}
}

// An end by a process whose clock is hours ahead is no late request for hours.
func TestLateRequests_ClockAhead(t *testing.T) {
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	a := New(ahead{memory, 3 * time.Hour}, WithLateRequests(5*time.Second))
	r := &Request{}
	_, found, err := a.Load(t.Context(), r, "old")
	require.NoError(t, err)
	require.False(t, found)
	require.NoError(t, a.Save(t.Context(), r, tombstore.NewID(), []byte("anonymous"), time.Hour))
}
