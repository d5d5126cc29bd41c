package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/boj/redistore/v2"
	ginsessions "github.com/gin-contrib/sessions"
	ginredis "github.com/gin-contrib/sessions/redis"
	"github.com/gin-gonic/gin"
	"github.com/gofiber/fiber/v3"
	fibersession "github.com/gofiber/fiber/v3/middleware/session"
	fiberredis "github.com/gofiber/storage/redis/v3"
	"github.com/gomodule/redigo/redis"
	gorilla "github.com/gorilla/sessions"
	goredis "github.com/redis/go-redis/v9"
	"github.com/valyala/fasthttp"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/fiberstore"
	"github.com/tombstore/tombstore/gorillastore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

const (
	visitors = 128
	cookie   = "session_id"
	count    = "count" // of the changes
)

// The paths of an application.
const (
	login  = "/login"
	change = "/change"
	read   = "/read"
)

// profile is what a login stores: 300 bytes of values, and a count that each change increments.
var profile = map[string]string{
	"user":    "5f1d7a0e-8a52-4b6e-9a73-2f3d0c6b9e41",
	"name":    "Alice Example",
	"email":   "alice@example.com",
	"csrf":    strings.Repeat("c", 43),
	"locale":  "en-GB",
	"back_to": "/orders/2026/11/29?page=3&sort=date",
	"cart":    strings.Repeat("sku-0123456789,", 10),
}

// values is a session in a handler.
type values interface {
	get(key string) any
	set(key string, value any)
}

// act does what a path stands for, and returns the body of the response: the count, or the user.
func act(path string, s values) string {
	switch path {
	case login:
		for key, value := range profile {
			s.set(key, value)
		}
		s.set(count, 0)
	case change:
		n, _ := s.get(count).(int)
		s.set(count, n+1)
		return fmt.Sprint(n + 1)
	}
	user, _ := s.get("user").(string)
	return user
}

// app is an application on some store. It serves a request and returns the body and the new cookie.
type app func(path, cookie string) (body, newCookie string, err error)

// framework is one, with its usual backend.
type framework struct {
	name, backend string
	usual         func(c *connections) (func() app, error)
	ours          func(store *tombstore.RedisStore) func() app
	bound         func(l least, store *tombstore.RedisStore) func() app // on plain commands; or nil
	least         map[string]float64                                    // by path, of processor time: usual / ours
}

var frameworks = []framework{
	onSCS("scs", 0),
	onSCS("scs, IdleTimeout", hour),
	{"gorilla", "boj/redistore v2", func(c *connections) (func() app, error) {
		store, err := redistore.NewStore([][]byte{keyPair}, redistore.WithPool(c.pool))
		return gorillaApp(store), err
	}, func(store *tombstore.RedisStore) func() app {
		return gorillaApp(gorillastore.New(store, keyPair))
	}, nil, map[string]float64{change: 1.5, read: 1.5}},
	{"gin", "gin-contrib/sessions/redis", func(c *connections) (func() app, error) {
		store, err := ginredis.NewStoreWithPool(c.pool, keyPair)
		return ginApp(store), err
	}, func(store *tombstore.RedisStore) func() app {
		return ginApp(ginstore.New(store, keyPair))
	}, nil, map[string]float64{change: 1.5, read: 1.5}},
	{"fiber", "gofiber/storage/redis v3", func(c *connections) (func() app, error) {
		return fiberApp(fiberredis.NewFromConnection(c.client)), nil
	}, func(store *tombstore.RedisStore) func() app {
		return fiberApp(fiberstore.New(store))
	}, func(l least, _ *tombstore.RedisStore) func() app {
		return fiberApp(leastOfFiber{l})
	}, map[string]float64{change: 1.5, read: 1.5}},
}

var keyPair = []byte("0123456789abcdef0123456789abcdef")

// connections are those of the usual backends, as many as there are visitors.
type connections struct {
	client *goredis.Client
	pool   *redis.Pool
}

func newConnections(url string) (*connections, error) {
	option, err := goredis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	option.PoolSize = visitors
	return &connections{
		goredis.NewClient(option),
		&redis.Pool{MaxIdle: visitors, Dial: func() (redis.Conn, error) { return redis.DialURL(url) }},
	}, nil
}

func (c *connections) close() {
	c.client.Close()
	c.pool.Close()
}

// overHTTP serves by calling a handler.
func overHTTP(h http.Handler) func() app {
	return func() app {
		return func(path, cookie string) (body, newCookie string, err error) {
			r, err := http.NewRequest(http.MethodGet, path, nil)
			if err != nil {
				return "", "", err
			}
			if cookie != "" {
				r.Header.Set("Cookie", cookie)
			}
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != http.StatusOK {
				return "", "", fmt.Errorf("status %d: %s", w.Code, w.Body)
			}
			newCookie, _, _ = strings.Cut(w.Header().Get("Set-Cookie"), ";")
			return w.Body.String(), newCookie, nil
		}
	}
}

type scsValues struct {
	sm  *scs.SessionManager
	ctx context.Context
}

func (s scsValues) get(key string) any        { return s.sm.Get(s.ctx, key) }
func (s scsValues) set(key string, value any) { s.sm.Put(s.ctx, key, value) }

// onSCS returns scs with an IdleTimeout, or none.
func onSCS(name string, idle time.Duration) framework {
	// on keeps sessions in a store, in the encoding of codec if that is not nil.
	on := func(store scs.Store, codec scs.Codec) func() app {
		return scsApp(idle, func(sm *scs.SessionManager) func(http.Handler) http.Handler {
			sm.Store, sm.Codec = store, cmp.Or(codec, sm.Codec)
			return sm.LoadAndSave
		})
	}
	return framework{name, "goredisstore", func(c *connections) (func() app, error) {
		return on(goredisstore.New(c.client), nil), nil
	}, func(store *tombstore.RedisStore) func() app {
		return scsApp(idle, func(sm *scs.SessionManager) func(http.Handler) http.Handler {
			return scsstore.Install(sm, store)
		})
	}, func(l least, store *tombstore.RedisStore) func() app {
		fast := scs.New()
		scsstore.Install(fast, store)
		return on(leastOfSCS{l}, fast.Codec)
	}, map[string]float64{change: 3, read: 4}}
}

// scsApp keeps its sessions where install says, which returns its middleware.
func scsApp(idle time.Duration, install func(sm *scs.SessionManager) func(http.Handler) http.Handler) func() app {
	sm := scs.New()
	sm.Cookie.Name = cookie
	sm.IdleTimeout = idle
	return overHTTP(install(sm)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, act(r.URL.Path, scsValues{sm, r.Context()}))
	})))
}

type gorillaValues map[any]any

func (s gorillaValues) get(key string) any        { return s[key] }
func (s gorillaValues) set(key string, value any) { s[key] = value }

func gorillaApp(store gorilla.Store) func() app {
	return overHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, cookie)
		var body string
		if err == nil {
			body = act(r.URL.Path, gorillaValues(s.Values))
			if r.URL.Path != read {
				err = s.Save(r, w)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, body)
	}))
}

type ginValues struct{ ginsessions.Session }

func (s ginValues) get(key string) any        { return s.Get(key) }
func (s ginValues) set(key string, value any) { s.Set(key, value) }

func ginApp(store ginsessions.Store) func() app {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(ginsessions.Sessions(cookie, store))
	for _, path := range []string{login, change, read} {
		engine.GET(path, func(c *gin.Context) {
			s := ginsessions.Default(c)
			body := act(path, ginValues{s})
			if path != read {
				if err := s.Save(); err != nil {
					c.String(http.StatusInternalServerError, err.Error())
					return
				}
			}
			c.String(http.StatusOK, body)
		})
	}
	return overHTTP(engine)
}

type fiberValues struct{ *fibersession.Middleware }

func (s fiberValues) get(key string) any        { return s.Get(key) }
func (s fiberValues) set(key string, value any) { s.Set(key, value) }

// fiberApp serves with the context of a connection, as fasthttp does.
func fiberApp(storage fiber.Storage) func() app {
	site := fiber.New()
	site.Use(fibersession.New(fibersession.Config{Storage: storage}))
	for _, path := range []string{login, change, read} {
		site.Get(path, func(c fiber.Ctx) error {
			return c.SendString(act(path, fiberValues{fibersession.FromContext(c)}))
		})
	}
	handler := site.Handler()
	return func() app {
		var c fasthttp.RequestCtx
		return func(path, cookie string) (body, newCookie string, err error) {
			c.Request.Reset()
			c.Response.Reset()
			c.ResetUserValues()
			c.Request.SetRequestURI(path)
			if cookie != "" {
				c.Request.Header.Set("Cookie", cookie)
			}
			if handler(&c); c.Response.StatusCode() != http.StatusOK {
				return "", "", fmt.Errorf("status %d: %s", c.Response.StatusCode(), c.Response.Body())
			}
			newCookie, _, _ = strings.Cut(string(c.Response.Header.Peek("Set-Cookie")), ";")
			return string(c.Response.Body()), newCookie, nil
		}
	}
}

// visitor has a session, and looks at what it is answered.
type visitor struct {
	app     app
	cookie  string
	changes int
}

func (v *visitor) visit(path string) error {
	body, cookie, err := v.app(path, v.cookie)
	v.cookie = cmp.Or(cookie, v.cookie)
	want := profile["user"]
	if path == change {
		v.changes++
		want = fmt.Sprint(v.changes)
	}
	if err == nil && body != want {
		err = fmt.Errorf("%s: answer %q, want %q", path, body, want)
	}
	return err
}

// site is an application with visitors who are logged in.
type site struct {
	framework
	store    string
	visitors []*visitor
	speeds   map[string]*served // by path
}

func newSite(f framework, store string, newApp func() app, visitors int) (*site, error) {
	s := &site{framework: f, store: store, speeds: map[string]*served{change: {}, read: {}}}
	for range visitors {
		v := &visitor{app: newApp()}
		if err := v.visit(login); err != nil {
			return nil, err
		}
		s.visitors = append(s.visitors, v)
	}
	return s, nil
}

// served is what a site takes for its requests, by round: how many a second, and processor time in
// microseconds a request.
type served struct{ ops, server, process []float64 }

func (s *served) processors() float64 { return median(s.server) + median(s.process) }

// serve lets all visitors ask for a path for a while, and at least n times each.
func (s *site) serve(path string, n int, d time.Duration) (requests float64, took time.Duration, err error) {
	var total atomic.Int64
	errs := make([]error, len(s.visitors))
	begun := time.Now()
	var group sync.WaitGroup
	for i, v := range s.visitors {
		group.Go(func() {
			did := 0
			for ; (did < n || time.Since(begun) < d) && errs[i] == nil; did++ {
				errs[i] = v.visit(path)
			}
			total.Add(int64(did))
		})
	}
	group.Wait()
	return float64(total.Load()), time.Since(begun), cmp.Or(errs...)
}

// measure serves one block.
func (b *bench) measure(s *site, path string, keep bool) error {
	if _, _, err := s.serve(path, 3, 0); err != nil { // the requests before were others
		return err
	}
	runtime.GC() // of what others have left
	server, err := b.server.seconds()
	if err != nil {
		return err
	}
	process := redistest.ProcessorTime().Seconds()
	n, took, err := s.serve(path, 1, b.time(100*time.Millisecond))
	if err != nil {
		return err
	}
	process = redistest.ProcessorTime().Seconds() - process
	after, err := b.server.seconds()
	if keep {
		speed := s.speeds[path]
		speed.ops = append(speed.ops, n/took.Seconds())
		speed.server = append(speed.server, (after-server)/n*1e6)
		speed.process = append(speed.process, process/n*1e6)
	}
	return err
}

// handlers compares whole requests.
func handlers(ctx context.Context, b *bench) ([]table, error) {
	t := table{
		title: wholeRequest,
		note: fmt.Sprintf("%d visitors ask at once, each with a session of its own: 300 bytes of strings, and a number. "+
			"Change loads the session, increments the number and saves; read looks at one of the strings. Handlers are "+
			"called without a network between browser and server. Processor time is that of the server and that of the "+
			"process, in which the framework, its encoding and its client are. Stores take turns in blocks, and the "+
			"numbers are medians of the rounds. Plain GET and SET through the same client, with the same encoding, and "+
			"without a refusal of anything, are the least that any store can do.", visitors),
		head: []string{"framework", "request", "store", "requests/s", "times", "server, µs", "process, µs", "times"},
	}
	all, closeAll, err := newSites(ctx, b.server.URL, min(visitors, b.scaled(10*visitors)))
	defer closeAll()
	if err != nil {
		return nil, err
	}
	for round := range max(1, 12/b.part) + 1 {
		for _, sites := range all {
			for _, path := range []string{change, read} {
				for _, s := range sites {
					if err := b.measure(s, path, round > 0); err != nil { // the first one warms up
						return nil, fmt.Errorf("%s, %s, %s: %w", s.name, path, s.store, err)
					}
				}
			}
		}
	}
	for _, sites := range all {
		for _, path := range []string{change, read} {
			usual, plain, cached := sites[0], sites[1], sites[2]
			base := usual.speeds[path]
			for _, s := range sites {
				speed := s.speeds[path]
				t.add(s.name, path[1:], s.store, fmt.Sprintf("%.0f", median(speed.ops)),
					ratio(median(speed.ops)/median(base.ops)), fmt.Sprintf("%.1f", median(speed.server)),
					fmt.Sprintf("%.1f", median(speed.process)), ratio(base.processors()/speed.processors()))
			}
			name := fmt.Sprintf("processor time, %s, %s, ", plain.name, path[1:])
			b.atLeast(name+usual.store+" / tombstore", base.processors()/plain.speeds[path].processors(), plain.least[path])
			if len(sites) > 3 {
				b.known(name+usual.store+" / "+plainCommands, base.processors()/sites[3].speeds[path].processors())
			}
			b.atMost(name+"with the cache / without", cached.speeds[path].processors()/plain.speeds[path].processors(), 1.05)
		}
	}
	return []table{t}, nil
}

// newSites returns the sites of each framework: on its usual backend, on a store, on one that
// caches, and for some on plain commands. Each has so many visitors.
func newSites(ctx context.Context, url string, visitors int) (all [][]*site, closeAll func(), err error) {
	var closers []func()
	closeAll = func() {
		for _, f := range closers {
			f()
		}
	}
	usual, err := newConnections(url)
	if err != nil {
		return nil, closeAll, err
	}
	closers = append(closers, usual.close)
	patient := tombstore.WithTimeout(time.Minute)
	plain, err := tombstore.Open(url, patient)
	if err != nil {
		return nil, closeAll, err
	}
	closers = append(closers, plain.Close)
	client, err := dial(url)
	if err != nil {
		return nil, closeAll, err
	}
	closers = append(closers, client.Close)
	cached, err := openCaching(ctx, url, hour, patient)
	if err != nil {
		return nil, closeAll, err
	}
	closers = append(closers, cached.Close)
	for _, f := range frameworks {
		theirs, err := f.usual(usual)
		if err != nil {
			return nil, closeAll, fmt.Errorf("%s: %w", f.backend, err)
		}
		type named struct {
			name string
			app  func() app
		}
		stores := []named{{f.backend, theirs}, {"tombstore", f.ours(plain)}, {"tombstore, cached", f.ours(cached)}}
		if f.bound != nil {
			stores = append(stores, named{plainCommands, f.bound(least{client}, plain)})
		}
		var sites []*site
		for _, one := range stores {
			s, err := newSite(f, one.name, one.app, visitors)
			if err != nil {
				return nil, closeAll, fmt.Errorf("%s, %s: %w", f.name, one.name, err)
			}
			sites = append(sites, s)
		}
		all = append(all, sites)
	}
	return all, closeAll, nil
}
