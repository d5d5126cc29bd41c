package integration

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/boj/redistore/v2"
	ginsessions "github.com/gin-contrib/sessions"
	ginredis "github.com/gin-contrib/sessions/redis"
	fiber2session "github.com/gofiber/fiber/v2/middleware/session"
	"github.com/gofiber/fiber/v3"
	fiberredis "github.com/gofiber/storage/redis/v3"
	"github.com/gomodule/redigo/redis"
	"github.com/gorilla/sessions"
	hertzsessions "github.com/hertz-contrib/sessions"
	hertzredis "github.com/hertz-contrib/sessions/redis"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/fiber2store"
	"github.com/tombstore/tombstore/fiberstore"
	"github.com/tombstore/tombstore/gorillastore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	hertzstore "github.com/tombstore/tombstore/gorillastore/hertz"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

var keyPair = []byte("0123456789abcdef0123456789abcdef")

// setup is a framework with its usual Redis backend, and with tombstore. Both functions return the URL of the site.
type setup struct {
	name, backend string
	halves        bool // a renewal has two, and is one step elsewhere
	silent        bool // it sets a cookie only with a new id
	logouts       []logout
	usual         func(t testing.TB, url, prefix string) string
	ours          func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string
}

// logout is a way to log out. Beside the first one, whose action is "logout", they are for TestRenewals.
type logout struct {
	name, action string
	live         int  // sessions that it leaves, without a user; -1 if it begins one where it has found none
	leaves       bool // the client does, before the session is ended
	aborts       bool // there is no answer
}

var setups = []setup{
	{"scs", "alexedwards/scs/goredisstore", true, false, scsLogouts, func(t testing.TB, url, prefix string) string {
		sm := newSCS()
		sm.Store = goredisstore.NewWithPrefix(goRedis(t, url), prefix)
		return scsApp(t, sm, sm.LoadAndSave, nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		sm := newSCS()
		return scsApp(t, sm, scsstore.Install(sm, store, opts...), store)
	}},
	{"gorilla", "boj/redistore v2", false, false, []logout{
		{name: "MaxAge -1", action: "logout"},
		{name: "new id, MaxAge -1", action: "renew+logout"},
		{name: "client leaves before MaxAge -1", action: "logout", leaves: true},
	}, func(t testing.TB, url, prefix string) string {
		return gorillaApp(t, boj(t, url, prefix), nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return gorillaApp(t, gorillastore.New(store, keyPair).With(opts...), store)
	}},
	{"gin", "gin-contrib/sessions/redis", false, false, []logout{
		{name: "Clear, MaxAge -1", action: "logout"},
		{name: "MaxAge -1", action: "expire"},
		{name: "Clear", action: "clear"},
		{name: "Clear, AddFlash", action: "clear+flash", live: 1},
		{name: "Clear, Set, new id", action: "clear+add+renew", live: 1},
	}, func(t testing.TB, url, prefix string) string {
		store, err := ginredis.NewStoreWithPool(pool(t, url), keyPair)
		require.NoError(t, err)
		require.NoError(t, ginredis.SetKeyPrefix(store, prefix))
		store.Options(ginsessions.Options{Path: "/", MaxAge: 3600})
		return ginApp(t, store, nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return ginApp(t, ginstore.New(store, keyPair).With(opts...), store)
	}},
	{"hertz", "hertz-contrib/sessions/redis", false, false, []logout{
		{name: "Clear, MaxAge -1", action: "logout"},
		{name: "MaxAge -1", action: "expire"},
		{name: "Clear", action: "clear"},
		{name: "Clear, AddFlash", action: "clear+flash", live: 1},
		{name: "Clear, Set, new id", action: "clear+add+renew", live: 1},
	}, func(t testing.TB, url, prefix string) string {
		store, err := hertzredis.NewStoreWithPool(pool(t, url), keyPair)
		require.NoError(t, err)
		require.NoError(t, hertzredis.SetKeyPrefix(store, prefix))
		store.Options(hertzsessions.Options{Path: "/", MaxAge: 3600})
		return hertzApp(t, store, nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return hertzApp(t, hertzstore.New(store, keyPair).With(opts...), store)
	}},
	{"echo", "boj/redistore v2", false, false, []logout{
		{name: "MaxAge -1", action: "logout"},
		{name: "client leaves before MaxAge -1", action: "logout", leaves: true},
	}, func(t testing.TB, url, prefix string) string {
		return echoApp(t, boj(t, url, prefix), nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return echoApp(t, gorillastore.New(store, keyPair).With(opts...), store)
	}},
	{"echo v4", "boj/redistore v2", false, false, []logout{
		{name: "MaxAge -1", action: "logout"},
		{name: "client leaves before MaxAge -1", action: "logout", leaves: true},
	}, func(t testing.TB, url, prefix string) string {
		return echo4App(t, boj(t, url, prefix), nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return echo4App(t, gorillastore.New(store, keyPair).With(opts...), store)
	}},
	{"fiber, middleware", "gofiber/storage/redis v3", true, false, []logout{
		{name: "Destroy", action: "logout"},
		{name: "Reset", action: "logout/reset", live: 1},
		{name: "Delete of the store", action: "logout/delete", live: -1},
	}, func(t testing.TB, url, prefix string) string {
		return fiberApp(t, prefixed{fiberredis.New(fiberredis.Config{URL: url}), prefix}, nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return fiberApp(t, fiberstore.New(store, opts...), store)
	}},
	{"fiber, store", "gofiber/storage/redis v3", true, false, []logout{
		{name: "Destroy", action: "logout"},
		{name: "Reset", action: "logout/reset", live: 1},
		{name: "Delete of the store", action: "logout/delete"},
	}, func(t testing.TB, url, prefix string) string {
		return fiberStoreApp(t, prefixed{fiberredis.New(fiberredis.Config{URL: url}), prefix}, nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return fiberStoreApp(t, fiberstore.New(store, opts...), store)
	}},
	{"fiber v2", "gofiber/storage/redis v3", true, false, []logout{
		{name: "Destroy", action: "logout"},
		{name: "Reset", action: "logout/reset", live: 1},
	}, func(t testing.TB, url, prefix string) string {
		storage := prefixed2{fiberredis.New(fiberredis.Config{URL: url}), prefix}
		return fiber2App(t, fiber2session.New(fiber2session.Config{Storage: storage}), nil)
	}, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		return fiber2App(t, fiber2store.New(store, fiber2session.Config{}, opts...), store)
	}},
	{"chi", "go-chi/session/redis", false, true, []logout{
		{name: "Flush, Destroy", action: "logout"},
		{name: "Destroy", action: "logout/destroy"},
		{name: "Flush", action: "logout/flush"},
		{name: "Destroy, Set", action: "logout/flash"},
		{name: "Destroy, RegenerateSession", action: "logout/renew", live: 1},
		{name: "client leaves before Destroy", action: "logout", leaves: true},
	}, chiUsual, chiOurs},
	{"beego", "beego/session/redis", false, true, []logout{
		{name: "DestroySession", action: "logout"},
		{name: "SessionDestroy of the manager", action: "logout/manager"},
		{name: "SessionDestroy, SessionRegenerateID", action: "logout/renew", live: 1},
		{name: "Flush", action: "logout/flush"},
		{name: "Flush, SetSession", action: "logout/set", live: 1},
		{name: "DelSession of the user", action: "logout/delete", live: 1},
		{name: "SetSession of no user, SessionRegenerateID", action: "logout/empty", live: 1},
		{name: "client leaves before DestroySession", action: "logout", leaves: true},
		{name: "client leaves before Flush", action: "logout/flush", leaves: true},
	}, usualBeego, ourBeego},
}

var scsLogouts = []logout{
	{name: "Destroy", action: "logout"},
	{name: "Destroy, Put", action: "logout+flash", live: 1},
	{name: "Destroy, RenewToken", action: "logout+renew", live: 1},
	{name: "RenewToken, Destroy", action: "renew+logout"},
	{name: "RenewToken, Destroy, Put", action: "renew+logout+flash", live: 1},
	{name: "writes before Destroy", action: "write+logout"},
	{name: "flushes before Destroy", action: "flush+logout"},
	{name: "103 before Destroy", action: "hints+logout"},
	{name: "panics after Destroy, Put", action: "logout+flash+panic", aborts: true},
	{name: "client leaves before Destroy, Put", action: "logout+flash", leaves: true, live: 1},
	{name: "Destroy is refused first", action: "logout/refused+logout"},
	{name: "Destroy is not answered first", action: "logout/unanswered+logout"},
}

// variants are other configurations of the libraries. They have no usual backend.
var variants = []setup{
	{hashedSCS, "", true, false, scsLogouts, nil, func(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
		sm := newSCS()
		sm.HashTokenInStore = true
		sm.IdleTimeout = 0
		return scsApp(t, sm, scsstore.Install(sm, store, opts...), store)
	}},
	{"gorilla, EndWhenCleared", "", false, false, []logout{
		{name: "no values", action: "clear"},
		{name: "no values, AddFlash", action: "clear+flash", live: 1},
		{name: "other values, new id", action: "clear+add+renew", live: 1},
	}, nil, func(t testing.TB, backend tombstore.Renewer, opts ...adapter.Option) string {
		store := gorillastore.New(backend, keyPair).With(opts...)
		store.EndWhenCleared = true
		return gorillaApp(t, store, backend)
	}},
}

const hashedSCS = "scs, hashed tokens, no IdleTimeout"

// all returns the setups and the variants.
func all() []setup { return slices.Concat(setups, variants) }

// server is where a store keeps its sessions.
type server struct{ name, url string }

const memory = "" // the URL of no server

// url returns the URL of the shared server, or for a variant that of none.
func (s setup) url(t testing.TB) string {
	if s.usual == nil {
		return memory
	}
	return redistest.URL(t)
}

// serversFor returns those on which to play a setup; under -short one.
func serversFor(t testing.TB, s setup) []server {
	switch {
	case s.usual == nil:
		return []server{{"memory", memory}}
	case testing.Short():
		return []server{{"server", redistest.URL(t)}}
	}
	return []server{{"memory", memory}, {"server", redistest.URL(t)}, {"cluster", redistest.ClusterURL(t)}}
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
	keys := func() []string { return redistest.Keys(t.Context(), client, prefix) }
	return &site{
		url: s.usual(t, redistest.URL(t), prefix),
		live: func() (data []string) {
			for _, key := range keys() {
				value, err := client.Do(t.Context(), client.B().Get().Key(key).Build()).ToString()
				require.NoError(t, err)
				data = append(data, value)
			}
			return data
		},
		revoke: func() { del(t, client, keys()) },
	}
}

func del(t testing.TB, client rueidis.Client, keys []string) {
	for _, key := range keys {
		require.NoError(t, client.Do(t.Context(), client.B().Del().Key(key).Build()).Error())
	}
}

// backend is what the stores of package tombstore are.
type backend interface {
	tombstore.Renewer
	tombstore.Lister
	tombstore.Binder
}

// recorder remembers the ids of the sessions that were stored, so that they can be revoked without walking through all keys. Its
// saves can be made to fail, and ends where the context says so.
type recorder struct {
	backend
	mu      sync.Mutex
	ids     []string
	failure error
}

type faultKey struct{}

func (r *recorder) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	switch ctx.Value(faultKey{}) {
	case "logout/refused":
		return tombstore.ErrNotInvalidated
	case "logout/unanswered":
		_ = r.backend.Invalidate(ctx, id, opts...)
		return errors.New("no route")
	}
	return r.backend.Invalidate(ctx, id, opts...)
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
	return r.backend.Write(ctx, id, data, ttl, opts...)
}

func (r *recorder) Rotate(
	ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
) (tombstore.Session, error) {
	if err := r.record(newID); err != nil {
		return tombstore.Session{}, err
	}
	return r.backend.Rotate(ctx, oldID, newID, opts...)
}

func (r *recorder) FinishRenewal(
	ctx context.Context, renewal tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if err := r.record(newID); err != nil {
		return tombstore.Session{}, err
	}
	return r.backend.FinishRenewal(ctx, renewal, newID, data, ttl)
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

// ourSite starts a framework on tombstore, and on the shared server unless it is a variant.
func ourSite(t testing.TB, s setup, opts ...adapter.Option) *site {
	return ourSiteAt(t, s.url(t), s, opts...)
}

func ourSiteAt(t testing.TB, url string, s setup, opts ...adapter.Option) *site {
	return siteOn(t, s, newStore(t, url), opts...)
}

// newStore returns a store on a server or in memory.
func newStore(t testing.TB, url string, opts ...tombstore.Option) backend {
	if url == memory {
		store, err := tombstore.NewMemory(opts...)
		require.NoError(t, err)
		return store
	}
	client := newRacedClient(t, redistest.Dial(t, url))
	opts = append(slices.Clip(opts), tombstore.WithKeyPrefix(redistest.Prefix(t, client)), tombstore.WithTimeout(time.Minute)) // the machine may be busy
	store, err := tombstore.New(client, opts...)
	require.NoError(t, err)
	return store
}

func siteOn(t testing.TB, s setup, b backend, opts ...adapter.Option) *site {
	store := &recorder{backend: b}
	return &site{
		url:    s.ours(t, store, opts...),
		hashed: s.name == hashedSCS,
		live: func() (data []string) {
			for entry, err := range store.List(t.Context()) {
				require.NoError(t, err)
				data = append(data, string(entry.Data))
			}
			return data
		},
		owned: func() (refs []string) {
			all, err := store.Sessions(t.Context(), "alice")
			require.NoError(t, err)
			for _, s := range all {
				refs = append(refs, s.Ref)
			}
			return refs
		},
		revoke: func() { store.revoke(t) },
		fail:   store.fail,
	}
}
