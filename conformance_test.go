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

// sliding restarts the idle timeout with every Read that does not ask when the session expires.
type sliding struct{ *tombstore.RedisStore }

func (s sliding) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	var asked tombstore.ReadOptions
	for _, opt := range opts {
		opt(&asked)
	}
	if asked.Slide || asked.Expiry {
		return s.RedisStore.Read(ctx, id, opts...)
	}
	session, err := s.RedisStore.Read(ctx, id, append(opts, tombstore.Slide(time.Hour))...)
	session.ExpiresAt = time.Time{}
	return session, err
}

func newStore(t *testing.T, client rueidis.Client, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	s, err := tombstore.New(client, append([]tombstore.Option{tombstore.WithKeyPrefix(redistest.Prefix(t, client))}, opts...)...)
	require.NoError(t, err)
	return s
}

// resp2 makes a client speak the older protocol, in which nothing can be cached.
func resp2(o *rueidis.ClientOption) { o.AlwaysRESP2 = true }

func TestRedisStore(t *testing.T) {
	t.Parallel()
	cluster := redistest.ClusterURL(t)
	day := tombstore.WithAbsoluteTimeout(24 * time.Hour)
	caching, strict := tombstore.WithClientCache(time.Minute), tombstore.WithStrictReads()
	briefly := tombstore.WithClientCache(time.Millisecond)
	sealed, keys := tombstore.WithSealedData(), tombstore.WithKeys(make([]byte, 32))
	for i, c := range []struct {
		name    string
		url     string
		client  func(*rueidis.ClientOption)
		sliding bool
		opts    []tombstore.Option
	}{
		// These have each setting once, and are played under -short.
		{"plain", "", nil, false, nil},
		{"cached, sliding, absolute timeout", "", redistest.WithCache, true, []tombstore.Option{caching, day}},
		{"RESP2, strict", "", resp2, true, []tombstore.Option{strict}},
		{"cluster, cached", cluster, redistest.WithCache, false, []tombstore.Option{caching}},
		{"sealed", "", nil, false, []tombstore.Option{sealed}},
		// The others are combinations.
		{"strict, sliding", "", nil, true, []tombstore.Option{strict}},
		{"RESP2, cached", "", resp2, false, []tombstore.Option{caching}},
		{"cluster, strict", cluster, nil, false, []tombstore.Option{strict}},
		{"sliding", "", nil, true, nil},
		{"plain ids, absolute timeout", "", nil, false, []tombstore.Option{tombstore.WithPlainIDs(), day}},
		{"cached", "", redistest.WithCache, false, []tombstore.Option{caching}},
		{"cached for a moment", "", redistest.WithCache, true, []tombstore.Option{briefly}},
		{"strict", "", nil, false, []tombstore.Option{strict}},
		{"RESP2", "", resp2, false, nil},
		{"RESP2, sliding", "", resp2, true, nil},
		{"cluster", cluster, nil, false, nil},
		{"cluster, sliding, absolute timeout", cluster, nil, true, []tombstore.Option{day}},
		{"cluster, cached, sliding", cluster, redistest.WithCache, true, []tombstore.Option{caching}},
		{"cluster, RESP2", cluster, resp2, false, nil},
		{"sealed, keys, cached, sliding", "", redistest.WithCache, true, []tombstore.Option{sealed, keys, caching, day}},
		{"cluster, sealed, keys", cluster, nil, false, []tombstore.Option{sealed, keys}},
		{"cluster, RESP2, sliding", cluster, resp2, true, nil},
	} {
		if testing.Short() && i == 5 {
			break
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url, mode := cluster, rueidis.ClientModeCluster
			if c.url == "" {
				url, mode = redistest.URL(t), rueidis.ClientModeStandalone
			}
			client := redistest.Dial(t, url, func(o *rueidis.ClientOption) {
				if c.client != nil {
					c.client(o)
				}
			})
			require.Equal(t, mode, client.Mode())
			storetest.Run(t, func(t *testing.T) tombstore.Store {
				s := newStore(t, client, append(c.opts, tombstore.WithPublish())...)
				if c.sliding {
					return sliding{s}
				}
				return s
			})
		})
	}
}

func TestMemoryStore(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]tombstore.Option{"plain": nil, "sealed": {tombstore.WithSealedData()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T) tombstore.Store {
				s, err := tombstore.NewMemory(opts...)
				require.NoError(t, err)
				return s
			})
		})
	}
}
