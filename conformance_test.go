package tombstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/storetest"
)

// sliding reads by the script.
type sliding struct{ tombstore.Store }

func (s sliding) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	return s.Store.Read(ctx, id, append([]tombstore.ReadOption{tombstore.Slide(time.Hour)}, opts...)...)
}

func newStore(t *testing.T, client rueidis.Client, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	s, err := tombstore.New(client, append([]tombstore.Option{tombstore.WithKeyPrefix(redistest.Prefix(t, client))}, opts...)...)
	require.NoError(t, err)
	return s
}

func TestRedisStore(t *testing.T) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		client := redistest.Client(t)
		storetest.Run(t, func(t *testing.T) tombstore.Store { return newStore(t, client) })
	})
	t.Run("sliding", func(t *testing.T) {
		t.Parallel()
		client := redistest.Client(t)
		storetest.Run(t, func(t *testing.T) tombstore.Store { return sliding{newStore(t, client)} })
	})
	t.Run("plain ids, absolute timeout", func(t *testing.T) {
		t.Parallel()
		client := redistest.Client(t)
		storetest.Run(t, func(t *testing.T) tombstore.Store {
			return newStore(t, client, tombstore.WithPlainIDs(), tombstore.WithAbsoluteTimeout(24*time.Hour))
		})
	})
	t.Run("cached", func(t *testing.T) {
		t.Parallel()
		client := redistest.Dial(t, redistest.URL(t), redistest.WithCache)
		storetest.Run(t, func(t *testing.T) tombstore.Store { return newStore(t, client, tombstore.WithClientCache(time.Minute)) })
		storetest.Run(t, func(t *testing.T) tombstore.Store {
			return sliding{newStore(t, client, tombstore.WithClientCache(time.Minute))}
		})
	})
	t.Run("strict", func(t *testing.T) {
		t.Parallel()
		client := redistest.Client(t)
		storetest.Run(t, func(t *testing.T) tombstore.Store { return newStore(t, client, tombstore.WithStrictReads()) })
		storetest.Run(t, func(t *testing.T) tombstore.Store { return sliding{newStore(t, client, tombstore.WithStrictReads())} })
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		client := redistest.Dial(t, redistest.StartCluster(t).URL)
		require.Equal(t, rueidis.ClientModeCluster, client.Mode())
		storetest.Run(t, func(t *testing.T) tombstore.Store { return newStore(t, client) })
	})
}

func TestMemoryStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) tombstore.Store {
		s, err := tombstore.NewMemory()
		require.NoError(t, err)
		return s
	})
}
