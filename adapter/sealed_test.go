package adapter

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// unsealed is the store of before, for a store with WithSealedData that has a prefix of its own.
type unsealed struct{ store tombstore.Store }

func (u unsealed) Read(ctx context.Context, id string) ([]byte, time.Duration, error) {
	s, err := u.store.Read(ctx, id, tombstore.WithExpiry())
	if tombstore.NoSession(err) {
		err = tombstore.ErrNotFound
	}
	return s.Data, time.Until(s.ExpiresAt), err
}

func (u unsealed) Delete(ctx context.Context, id string) (bool, error) {
	err := u.store.Invalidate(ctx, id, tombstore.IfLive())
	if tombstore.NoSession(err) {
		return false, nil
	}
	return err == nil, err
}

// Nobody is logged out when sealing is switched on, and nobody comes back.
func TestMigration_IntoSealed(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	store := func(opts ...tombstore.Option) *tombstore.RedisStore {
		s, err := tombstore.New(client, append(opts, tombstore.WithKeyPrefix(redistest.Prefix(t, client)))...)
		require.NoError(t, err)
		return s
	}
	before, after := store(), store(tombstore.WithSealedData())
	a := New(after, WithMigration(unsealed{before}))
	live, ended, absent := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
	for _, id := range []string{live, ended} {
		_, err := before.Write(t.Context(), id, []byte("x"), time.Minute)
		require.NoError(t, err)
	}
	require.NoError(t, before.Invalidate(t.Context(), ended))
	for id, want := range map[string]bool{live: true, ended: false, absent: false} {
		data, found, err := a.Load(t.Context(), nil, id)
		require.NoError(t, err)
		require.Equal(t, want, found)
		if want {
			require.Equal(t, "x", string(data))
		}
	}
	exists, err := before.Exists(t.Context(), live)
	require.NoError(t, err)
	require.False(t, exists)
	s, err := after.Read(t.Context(), live, tombstore.WithExpiry())
	require.NoError(t, err)
	require.Equal(t, "x", string(s.Data))
	require.LessOrEqual(t, time.Until(s.ExpiresAt), time.Minute)
}
