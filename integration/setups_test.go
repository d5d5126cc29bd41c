package integration

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/boj/redistore/v2"
	ginsessions "github.com/gin-contrib/sessions"
	ginredis "github.com/gin-contrib/sessions/redis"
	"github.com/gofiber/fiber/v3"
	fiberredis "github.com/gofiber/storage/redis/v3"
	"github.com/gomodule/redigo/redis"
	"github.com/gorilla/sessions"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/fiberstore"
	"github.com/tombstore/tombstore/gorillastore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

var keyPair = []byte("0123456789abcdef0123456789abcdef")

// setup is a framework with its usual Redis backend, and with tombstore. Both functions return the URL of the site.
type setup struct {
	name, backend string
	usual         func(t testing.TB, url, prefix string, r *race) string
	ours          func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string
}

var setups = []setup{
	{"scs", "alexedwards/scs/goredisstore", func(t testing.TB, url, prefix string, r *race) string {
		sm := newSCS()
		sm.Store = goredisstore.NewWithPrefix(goRedis(t, url), prefix)
		return scsApp(t, sm, sm.LoadAndSave, r)
	}, func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string {
		sm := newSCS()
		return scsApp(t, sm, scsstore.Install(sm, store, opts...), r)
	}},
	{"gorilla", "boj/redistore v2", func(t testing.TB, url, prefix string, r *race) string {
		return gorillaApp(t, boj(t, url, prefix), r)
	}, func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string {
		return gorillaApp(t, gorillastore.New(store, keyPair).With(opts...), r)
	}},
	{"gin", "gin-contrib/sessions/redis", func(t testing.TB, url, prefix string, r *race) string {
		store, err := ginredis.NewStoreWithPool(pool(t, url), keyPair)
		require.NoError(t, err)
		require.NoError(t, ginredis.SetKeyPrefix(store, prefix))
		store.Options(ginsessions.Options{Path: "/", MaxAge: 3600})
		return ginApp(t, store, r)
	}, func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string {
		return ginApp(t, ginstore.New(store, keyPair).With(opts...), r)
	}},
	{"echo", "boj/redistore v2", func(t testing.TB, url, prefix string, r *race) string {
		return echoApp(t, boj(t, url, prefix), r)
	}, func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string {
		return echoApp(t, gorillastore.New(store, keyPair).With(opts...), r)
	}},
	{"fiber, middleware", "gofiber/storage/redis v3", func(t testing.TB, url, prefix string, r *race) string {
		return fiberApp(t, prefixed{fiberredis.New(fiberredis.Config{URL: url}), prefix}, r)
	}, func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string {
		return fiberApp(t, fiberstore.New(store, opts...), r)
	}},
	{"fiber, store", "gofiber/storage/redis v3", func(t testing.TB, url, prefix string, r *race) string {
		return fiberStoreApp(t, prefixed{fiberredis.New(fiberredis.Config{URL: url}), prefix}, r)
	}, func(t testing.TB, store tombstore.Renewer, r *race, opts ...adapter.Option) string {
		return fiberStoreApp(t, fiberstore.New(store, opts...), r)
	}},
}

func goRedis(t testing.TB, url string) *goredis.Client {
	option, err := goredis.ParseURL(url)
	require.NoError(t, err)
	client := goredis.NewClient(option)
	t.Cleanup(func() { client.Close() })
	return client
}

func pool(t testing.TB, url string) *redis.Pool {
	p := &redis.Pool{MaxIdle: 10, Dial: func() (redis.Conn, error) { return redis.DialURL(url) }}
	t.Cleanup(func() { p.Close() })
	return p
}

func boj(t testing.TB, url, prefix string) sessions.Store {
	store, err := redistore.NewStore([][]byte{keyPair}, redistore.WithPool(pool(t, url)), redistore.WithKeyPrefix(prefix))
	require.NoError(t, err)
	return store
}

// prefixed gives a storage without a key prefix one.
type prefixed struct {
	fiber.Storage
	prefix string
}

func (p prefixed) GetWithContext(ctx context.Context, key string) ([]byte, error) {
	return p.Storage.GetWithContext(ctx, p.prefix+key)
}

func (p prefixed) SetWithContext(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return p.Storage.SetWithContext(ctx, p.prefix+key, value, ttl)
}

func (p prefixed) DeleteWithContext(ctx context.Context, key string) error {
	return p.Storage.DeleteWithContext(ctx, p.prefix+key)
}

// usualSite starts a framework on its usual backend.
func usualSite(t testing.TB, s setup) *site {
	client := redistest.Client(t)
	prefix := redistest.Prefix(t, client)
	r := newRace()
	keys := func() []string { return redistest.Keys(t.Context(), client, prefix) }
	return &site{
		url: s.usual(t, redistest.URL(t), prefix, r), race: r,
		live:   func() int { return len(keys()) },
		revoke: func() { del(t, client, keys()) },
	}
}

func del(t testing.TB, client rueidis.Client, keys []string) {
	for _, key := range keys {
		require.NoError(t, client.Do(t.Context(), client.B().Del().Key(key).Build()).Error())
	}
}

// recorder remembers the ids of the sessions that were stored, so that they can be revoked without walking through all keys. Its
// saves can be made to fail.
type recorder struct {
	*tombstore.RedisStore
	mu      sync.Mutex
	ids     []string
	failure error
}

func (r *recorder) record(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, id)
	return r.failure
}

func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure = err
}

func (r *recorder) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	if err := r.record(id); err != nil {
		return tombstore.Session{}, err
	}
	return r.RedisStore.Write(ctx, id, data, ttl, opts...)
}

func (r *recorder) Rotate(
	ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
) (tombstore.Session, error) {
	if err := r.record(newID); err != nil {
		return tombstore.Session{}, err
	}
	return r.RedisStore.Rotate(ctx, oldID, newID, opts...)
}

func (r *recorder) FinishRenewal(
	ctx context.Context, renewal tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if err := r.record(newID); err != nil {
		return tombstore.Session{}, err
	}
	return r.RedisStore.FinishRenewal(ctx, renewal, newID, data, ttl)
}

// revoke ends all sessions that were stored so far.
func (r *recorder) revoke(t testing.TB) {
	r.mu.Lock()
	ids := r.ids
	r.ids = nil
	r.mu.Unlock()
	for _, id := range ids {
		require.NoError(t, r.Invalidate(context.Background(), id, tombstore.WithReason(tombstore.Revoked)))
	}
}

// ourSite starts a framework on tombstore.
func ourSite(t testing.TB, s setup, opts ...adapter.Option) *site {
	return siteOn(t, s, newStore(t), opts...)
}

func newStore(t testing.TB, opts ...tombstore.Option) *tombstore.RedisStore {
	client := redistest.Client(t)
	store, err := tombstore.New(client, append(opts, tombstore.WithKeyPrefix(redistest.Prefix(t, client)))...)
	require.NoError(t, err)
	return store
}

func siteOn(t testing.TB, s setup, redis *tombstore.RedisStore, opts ...adapter.Option) *site {
	store := &recorder{RedisStore: redis}
	r := newRace()
	return &site{
		url: s.ours(t, store, r, opts...), race: r,
		live: func() (n int) {
			for _, err := range store.List(t.Context()) {
				require.NoError(t, err)
				n++
			}
			return n
		},
		revoke: func() { store.revoke(t) },
		fail:   store.fail,
	}
}
