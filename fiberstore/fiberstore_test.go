package fiberstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/extractors"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// bed is an application on a loopback port.
type bed struct {
	*testing.T
	store    *spy
	storage  *Storage
	sessions *session.Store
	url      string
	gates    sync.Map                          // name to gate
	step     func(c fiber.Ctx, s values) error // what /step does
}

// gate holds a handler until it is opened.
type gate struct{ reached, open chan struct{} }

// backend is what the stores of package tombstore implement.
type backend interface {
	tombstore.Renewer
	tombstore.Lister
}

// spy is a store that remembers what was written.
type spy struct {
	backend
	mu       sync.Mutex
	writes   int
	touches  int
	ttl      time.Duration // of the last
	contexts []context.Context
}

func newSpy(t *testing.T) *spy {
	t.Helper()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	return &spy{backend: store}
}

func (s *spy) saw(ctx context.Context, ttl time.Duration, n *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
	s.ttl = ttl
	s.contexts = append(s.contexts, ctx)
}

func (s *spy) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	s.saw(ctx, ttl, &s.writes)
	return s.backend.Write(ctx, id, data, ttl, opts...)
}

func (s *spy) Touch(ctx context.Context, id string, ttl time.Duration) error {
	s.saw(ctx, ttl, &s.touches)
	return s.backend.Touch(ctx, id, ttl)
}

// values is what both kinds of session have in common.
type values interface {
	Get(key any) any
	Set(key, val any)
	ID() string
	Destroy() error
	Regenerate() error
	Reset() error
}

// mode is a way to use sessions.
type mode string

const (
	middleware mode = "middleware"
	storeMode  mode = "store"
)

var modes = []mode{middleware, storeMode}

// newBed serves the steps below on a MemoryStore.
func newBed(t *testing.T, m mode, config session.Config, opts ...adapter.Option) *bed {
	t.Helper()
	return newBedOn(t, newSpy(t), m, config, opts...)
}

func newBedOn(
	t *testing.T, store backend, m mode, config session.Config, opts ...adapter.Option,
) *bed {
	t.Helper()
	b := &bed{T: t, storage: New(store, opts...)}
	b.store, _ = store.(*spy)
	if config.Storage == nil {
		config.Storage = b.storage
	}
	app := fiber.New(fiber.Config{ReadBufferSize: 16 << 10}) // for cookies of 4 KiB
	if m == middleware {
		var handler fiber.Handler
		handler, b.sessions = session.NewWithStore(config)
		app.Get("/:step", handler, func(c fiber.Ctx) error { return b.handle(c, session.FromContext(c)) })
	} else {
		b.sessions = session.NewStore(config)
		app.Get("/:step", func(c fiber.Ctx) error {
			s, err := b.sessions.Get(c)
			if err != nil {
				return err
			}
			defer s.Release()
			err = b.handle(c, s)
			if step := c.Params("step"); err != nil || step == "logout" || step == "delete" {
				return err
			}
			return s.Save()
		})
	}
	b.url = serve(t, app)
	return b
}

// serve starts app and returns its URL.
func serve(t *testing.T, app *fiber.App) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- app.Listener(listener, fiber.ListenConfig{DisableStartupMessage: true}) }()
	t.Cleanup(func() {
		require.NoError(t, app.Shutdown())
		require.NoError(t, <-done)
	})
	return "http://" + listener.Addr().String() + "/"
}

// handle is the application: it loads, waits at a gate if there is one, does its step and waits at
// another.
func (b *bed) handle(c fiber.Ctx, s values) error {
	c.Cookie(&fiber.Cookie{Name: "theme", Value: "dark", Path: "/settings"})
	user, _ := s.Get("user").(string)
	if user == "" {
		user = "anonymous"
	}
	b.wait(c.Query("loaded"))
	c.Status(http.StatusAccepted)
	err := c.SendString(user)
	switch c.Params("step") {
	case "login":
		err = s.Regenerate()
		s.Set("user", "alice")
		s.Set("since", int64(17))
		s.Set("roles", "a,b")
	case "modify":
		s.Set("cart", "book")
	case "renew":
		err = s.Regenerate()
	case "reset":
		err = s.Reset()
	case "logout":
		err = s.Destroy()
	case "delete":
		err = b.sessions.Delete(c, s.ID())
	case "step":
		err = b.step(c, s)
	}
	b.wait(c.Query("done"))
	return err
}

func (b *bed) wait(name string) {
	if g, ok := b.gates.Load(name); ok {
		close(g.(gate).reached)
		<-g.(gate).open
	}
}

// reply is the response to one request.
type reply struct {
	status int
	body   string
	// cookie is the session's, nil if none was set.
	cookie *http.Cookie
	header http.Header
}

func (r reply) id() string {
	if r.cookie == nil {
		return ""
	}
	return r.cookie.Value
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// get does a step with a session cookie, or with none if id is "".
func (b *bed) get(step, id string) reply { return b.do(b.request(step, id)) }

func (b *bed) request(step, id string) *http.Request {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, b.url+step, nil)
	require.NoError(b, err)
	if id != "" {
		req.Header.Set("Cookie", "session_id="+id)
	}
	return req
}

func (b *bed) do(req *http.Request) reply {
	res, err := client.Do(req)
	if !assert.NoError(b, err) {
		return reply{}
	}
	return b.read(res)
}

func (b *bed) read(res *http.Response) reply {
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	assert.NoError(b, err)
	r := reply{status: res.StatusCode, body: string(body), header: res.Header}
	themes := 0
	for _, cookie := range res.Cookies() {
		switch cookie.Name {
		case "session_id":
			r.cookie = cookie
		case "theme":
			assert.Equal(b, "theme=dark; path=/settings; SameSite=Lax", cookie.Raw)
			themes++
		}
	}
	assert.Equal(b, 1, themes, "other cookies survive")
	return r
}

// start begins a request and returns once it is at the gate. What it returns opens the gate and
// waits for the reply.
func (b *bed) start(step, id, at string) func() reply { return b.startRequest(b.request(step, id), at) }

func (b *bed) startRequest(req *http.Request, at string) func() reply {
	name := rand.Text()
	g := gate{make(chan struct{}), make(chan struct{})}
	b.gates.Store(name, g)
	req.URL.RawQuery = at + "=" + name
	replies := make(chan reply, 1)
	go func() { replies <- b.do(req) }()
	<-g.reached
	return func() reply {
		close(g.open)
		return <-replies
	}
}

// login returns the id of a session of alice.
func (b *bed) login() string {
	id := b.get("login", "").id()
	require.NotEmpty(b, id)
	return id
}

func (b *bed) live() int {
	n := 0
	for _, err := range b.store.List(b.Context()) {
		require.NoError(b, err)
		n++
	}
	return n
}

// loggedIn returns how many live sessions have a user.
func (b *bed) loggedIn() (n int) {
	b.Helper()
	for entry, err := range b.storage.adapter.Store().(tombstore.Lister).List(b.Context()) {
		require.NoError(b, err)
		if entry.Pending { // left by a request that has failed
			continue
		}
		values, err := decode(entry.Data)
		require.NoError(b, err)
		if values["user"] != nil {
			n++
		}
	}
	return n
}

func each(t *testing.T, test func(t *testing.T, m mode)) {
	t.Helper()
	t.Parallel()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			test(t, m)
		})
	}
}

// mapStorage is what fiber applications use now.
type mapStorage struct {
	fiber.Storage
	mu   sync.Mutex
	data map[string][]byte
}

func (m *mapStorage) GetWithContext(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data[key], nil
}

func (m *mapStorage) SetWithContext(_ context.Context, key string, val []byte, _ time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[string([]byte(key))] = val
	return nil
}

func (m *mapStorage) DeleteWithContext(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.data, key)
	return nil
}

// Ids that nobody got from here are not adopted, whatever they look like. Control characters are
// not among them: fasthttp answers those with 400.
func TestBadCookies(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{})
		x := b.login()
		for i, id := range []string{
			"x", x[:len(x)-1], x + "x", tombstore.NewID(), strings.Repeat("x", 4<<10), "\xff\xfe\xc0", "a,b c", "=",
			`"` + tombstore.NewID() + `"`, "%00", tombstore.Ref(x), x + "; session_id=" + x[1:] + "x",
		} {
			r := b.raw("modify", id)
			if id == x+"; session_id="+x[1:]+"x" { // the first of two counts
				require.Equal(t, "alice", r.body)
				require.Equal(t, x, r.id())
				continue
			}
			require.Equal(t, http.StatusAccepted, r.status)
			require.Equal(t, "anonymous", r.body)
			require.Len(t, r.id(), 43)
			require.NotContains(t, id, r.id())
			require.Equal(t, i+2, b.live(), "nothing but the new session is saved")
		}
	})
}

// raw is get without the checks of net/http.
func (b *bed) raw(step, id string) reply {
	u, err := url.Parse(b.url + step)
	require.NoError(b, err)
	conn, err := net.Dial("tcp", u.Host)
	require.NoError(b, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: session_id=%s\r\n\r\n", u.Path, id)
	require.NoError(b, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(b, err)
	return b.read(res)
}

// Gob writes the values in another order each time.
func TestUnchanged(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{IdleTimeout: time.Hour})
		x := b.login()
		require.Equal(t, 1, b.store.writes)
		const n = 30
		for range n {
			require.Nil(t, b.get("who", x).cookie)
		}
		require.Zero(t, b.store.touches)
		for range n {
			require.NoError(t, b.store.backend.Touch(t.Context(), x, 50*time.Minute))
			require.Equal(t, x, b.get("who", x).id())
		}
		require.Equal(t, 1, b.store.writes)
		require.Equal(t, n, b.store.touches)
		require.Equal(t, time.Hour, b.store.ttl)
	})
}

func TestUnchanged_SavedTwice(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	b.step = func(_ fiber.Ctx, s values) error {
		s.Set("cart", rand.Text())
		return s.(*session.Session).Save()
	}
	x := b.login()
	for range 10 {
		require.Equal(t, x, b.get("step", x).id())
	}
	require.Equal(t, 11, b.store.writes)
	require.Equal(t, 10, b.store.touches)
}

func TestUnchanged_KeepsUpdatesOfOthers(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{})
		b.step = func(c fiber.Ctx, s values) error { return c.SendString(fmt.Sprint(s.Get("cart"))) }
		for _, aged := range []bool{false, true} {
			x := b.login()
			if aged {
				require.NoError(t, b.store.backend.Touch(t.Context(), x, time.Minute))
			}
			resume := b.start("who", x, "loaded")
			b.get("modify", x)
			require.Equal(t, aged, resume().id() == x)
			require.Equal(t, "book", b.get("step", x).body)
		}
	})
}

func encode(t require.TestingT, values map[any]any) []byte {
	var b bytes.Buffer
	require.NoError(t, gob.NewEncoder(&b).Encode(values))
	return b.Bytes()
}

func decode(data []byte) (values map[any]any, err error) {
	err = gob.NewDecoder(bytes.NewReader(data)).Decode(&values)
	return values, err
}

func TestConflict(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		failed := make(chan error, 1)
		b := newBed(t, m, session.Config{ErrorHandler: func(c fiber.Ctx, err error) {
			failed <- err
			c.Status(http.StatusConflict)
		}}, adapter.WithLostUpdates(adapter.Conflict))
		b.step = func(_ fiber.Ctx, s values) error {
			s.Set("cart", "pen")
			return nil
		}
		x := b.login()
		resume := b.start("step", x, "loaded")
		b.get("modify", x)
		r := resume()
		if m == middleware {
			require.Equal(t, http.StatusConflict, r.status)
			require.ErrorIs(t, <-failed, tombstore.ErrConflict)
		} else { // Save has returned it
			require.Equal(t, http.StatusInternalServerError, r.status)
			require.Contains(t, r.body, tombstore.ErrConflict.Error())
		}
	})
}

func TestOnRefused(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		events := make(chan tombstore.Event, 1)
		b := newBed(t, m, session.Config{}, adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
			e.Err = nil
			events <- e
		}))
		for step, verb := range map[string]string{"modify": "write", "who": "touch", "renew": "write"} {
			x := b.login()
			require.NoError(t, b.store.backend.Touch(t.Context(), x, time.Minute)) // else "who" asks nobody
			resume := b.start(step, x, "loaded")
			require.Equal(t, "expired", expired(b.get("logout", x)))
			require.Nil(t, resume().cookie)
			require.Equal(t, tombstore.Event{
				Verb: verb, Outcome: tombstore.OutcomeRefused, Reason: tombstore.Logout, Ref: tombstore.Ref(x),
			}, <-events)
		}
		require.Zero(t, b.live())

		// An id is a part of the request's header in memory, and that can be written over.
		b.step = func(c fiber.Ctx, s values) error {
			x := strings.Clone(s.ID())
			if err := errors.Join(b.store.Invalidate(c, x), s.Regenerate()); err != nil {
				return err
			}
			c.Request().Header.SetCookie("session_id", strings.Repeat("z", len(x)))
			return c.SendString(x)
		}
		x := b.get("step", b.login()).body
		require.Equal(t, tombstore.Ref(x), (<-events).Ref)
	})
}

func expired(r reply) string {
	if r.cookie != nil && r.cookie.Value == "" && r.cookie.Expires.Before(time.Now()) {
		return "expired"
	}
	return "not expired"
}

func TestLateRequests(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{}, adapter.WithLateRequests(time.Minute))
		for _, end := range []string{"logout", "login"} {
			x := b.login()
			b.get(end, x)
			live := b.live()
			require.Nil(t, b.get("modify", x).cookie, "it would overwrite the cookie of a login")
			require.Equal(t, live, b.live())
			y := b.get("login", x).id() // a login with the old cookie
			require.Equal(t, "alice", b.get("who", y).body)
			b.get("logout", y)
		}
		x := b.login()
		require.NoError(t, b.store.Invalidate(t.Context(), x, tombstore.WithReason(tombstore.Revoked)))
		require.NotEmpty(t, b.get("modify", x).id())
	})
}

// The id of a new session was never saved: when it is renewed, nothing is to be refused.
func TestRegenerate_New(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{})
		var old string
		b.step = func(_ fiber.Ctx, s values) error {
			old = s.ID()
			return s.Regenerate()
		}
		require.NotEqual(t, old, b.get("step", "").id())
		_, err := b.store.Read(t.Context(), old)
		require.ErrorIs(t, err, tombstore.ErrNotFound)
		require.Equal(t, 1, b.live())
	})
}

// Fiber's own absolute timeout is a Reset while the session is loaded.
func TestAbsoluteTimeout(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		const timeout = 20 * time.Millisecond
		b := newBed(t, m, session.Config{IdleTimeout: timeout, AbsoluteTimeout: timeout})
		x := b.login()
		require.Eventually(t, func() bool { return b.get("who", x).body == "anonymous" }, 5*time.Second, time.Millisecond)
		exists, err := b.store.Exists(t.Context(), x)
		require.NoError(t, err)
		require.False(t, exists)
	})
}

// The id is in a header as well as in the cookie, and some cookies are of no concern.
func TestWithdraw(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		extractor := extractors.Chain(extractors.FromCookie("session_id"), extractors.FromHeader("X-Session"))
		// With the name of the session's cookie, but for another path.
		const other = "session_id=other; path=/elsewhere; x-future=1"
		b := newBed(t, m, session.Config{Extractor: extractor})
		b.step = func(c fiber.Ctx, s values) error {
			err := s.Regenerate()
			c.Response().Header.Add(fiber.HeaderSetCookie, "session_id=; path=/elsewhere") // fiber writes over this one
			c.Response().Header.Add(fiber.HeaderSetCookie, other)
			c.Response().Header.Add(fiber.HeaderSetCookie, "copy="+s.ID()+"; path=/")
			c.Set("X-Copy", s.ID())
			c.Set("X-Other", "other")
			return err
		}
		r := b.get("login", "")
		require.Equal(t, r.id(), r.header.Get("X-Session"))
		for header, prefix := range map[string]string{"Cookie": "session_id=", "X-Session": ""} {
			x := b.login()
			req := b.request("step", "")
			req.Header.Set(header, prefix+x)
			resume := b.startRequest(req, "loaded")
			require.NoError(t, b.store.Invalidate(t.Context(), x))
			r := resume()
			require.Equal(t, http.StatusAccepted, r.status)
			require.Contains(t, r.header["Set-Cookie"], other)
			for _, cookie := range r.header["Set-Cookie"] {
				require.Regexp(t, "^(theme=dark|session_id=other|session_id=); ", cookie)
			}
			require.NotContains(t, r.header, "X-Session")
			require.NotContains(t, r.header, "X-Copy")
			require.Equal(t, "other", r.header.Get("X-Other"))
		}
	})
}

// Fiber uses a Ctx again for other requests, so a store must not get hold of one.
func TestContext(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		type key struct{}
		b := newBed(t, m, session.Config{})
		b.step = func(c fiber.Ctx, _ values) error {
			ctx, cancel := context.WithCancel(context.WithValue(c.Context(), key{}, "v"))
			cancel() // as fiber's timeout middleware does
			c.SetContext(ctx)
			return nil
		}
		require.NotEmpty(t, b.get("step", "").id())
		require.Len(t, b.store.contexts, 1)
		ctx := b.store.contexts[0]
		require.NotImplements(t, (*fiber.Ctx)(nil), ctx)
		require.Equal(t, "v", ctx.Value(key{}))
		require.NoError(t, ctx.Err())
	})
}

// Contexts derived from the fiber.Ctx belong to the request as well.
func TestContext_Derived(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	b.step = func(c fiber.Ctx, s values) error {
		ctx, cancel := context.WithTimeout(c, time.Minute)
		defer cancel()
		if err := b.store.Invalidate(ctx, s.ID()); err != nil {
			return err
		}
		return s.(*session.Session).SaveWithContext(ctx)
	}
	r := b.get("step", b.login())
	require.Equal(t, http.StatusAccepted, r.status)
	require.Nil(t, r.cookie)

	b.step = func(c fiber.Ctx, s values) error { // one that does not lead to the response
		if err := b.store.Invalidate(c, s.ID()); err != nil {
			return err
		}
		err := s.(*session.Session).SaveWithContext(c.Context())
		assert.ErrorIs(t, err, adapter.ErrRefused)
		return nil
	}
	require.Nil(t, b.get("step", b.login()).cookie)
}

// An administrator changes and ends the sessions of others, and keeps the own one.
func TestOthers(t *testing.T) {
	t.Parallel()
	store := newSpy(t)
	sessions := session.NewStore(session.Config{Storage: New(store)})
	b := newBedOn(t, store, middleware, session.Config{Store: sessions})
	x := b.login()
	b.step = func(c fiber.Ctx, s values) error {
		other, err := sessions.GetByID(c, x)
		if err != nil {
			return err
		}
		other.Set("user", "bob")
		s.Set("user", "root")
		return other.SaveWithContext(c)
	}
	root := b.login()
	require.Equal(t, http.StatusAccepted, b.get("step", root).status)
	require.Equal(t, "bob", b.get("who", x).body)
	require.Equal(t, "root", b.get("who", root).body)

	b.step = func(c fiber.Ctx, _ values) error { return sessions.Delete(c, x) }
	require.Nil(t, b.get("step", root).cookie)
	var ended *tombstore.InvalidatedError
	_, err := store.Read(t.Context(), x)
	require.ErrorAs(t, err, &ended)
	require.Equal(t, tombstore.Revoked, ended.Reason)
	require.Equal(t, "root", b.get("who", root).body)
}

// Sessions of GetByID are saved and destroyed outside of a request as well.
func TestWithoutRequest(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	byID := func(id string) *session.Session {
		s, err := b.sessions.GetByID(t.Context(), id)
		require.NoError(t, err)
		return s
	}
	x := b.login()
	s, stale := byID(x), byID(x)
	s.Set("user", "bob")
	require.NoError(t, s.Save())
	require.Equal(t, "bob", b.get("who", x).body)
	require.NoError(t, s.Destroy())
	require.NoError(t, s.Destroy())
	require.ErrorIs(t, stale.Save(), adapter.ErrRefused)
	require.Equal(t, "anonymous", b.get("who", x).body)

	// What is handed out may be the store's own.
	x = b.login()
	data, err := b.storage.Get(x)
	require.NoError(t, err)
	clear(data)
	require.Equal(t, "alice", b.get("who", x).body)

	data, err = b.storage.Get("unknown")
	require.NoError(t, err)
	require.Nil(t, data)
	require.NoError(t, b.storage.Set("", []byte("v"), time.Hour))
	require.NoError(t, b.storage.Set("x", nil, time.Hour))
	require.NoError(t, b.storage.Delete(""))
	require.NoError(t, b.storage.Delete("x"))
	require.NoError(t, b.storage.Close())
	require.Equal(t, "alice", b.get("who", x).body)
}

// A session of GetByID is renewed with a context, and refuses without one: a logout with the old id
// would not reach it.
func TestWithoutRequest_Regenerate(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	x := b.login()
	s, err := b.sessions.GetByID(t.Context(), x)
	require.NoError(t, err)
	require.ErrorIs(t, s.Regenerate(), errNoRequest)
	require.Equal(t, "alice", b.get("who", x).body)

	for _, logout := range []string{"between", "after"} {
		x = b.login()
		ctx := b.storage.NewContext(t.Context())
		require.Equal(t, ctx, b.storage.NewContext(ctx))
		s, err := b.sessions.GetByID(ctx, x)
		require.NoError(t, err)
		require.NoError(t, s.RegenerateWithContext(ctx))
		if logout == "between" {
			b.get("logout", x)
			require.ErrorIs(t, s.SaveWithContext(ctx), adapter.ErrRefused)
		} else {
			require.NoError(t, s.SaveWithContext(ctx))
			require.Equal(t, "alice", b.get("who", s.ID()).body)
			b.get("logout", x)
		}
		require.Equal(t, "anonymous", b.get("who", s.ID()).body)
	}
}

func TestReset(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{})
		x, y := b.login(), b.login()
		resume := b.start("modify", x, "loaded")
		require.NoError(t, New(b.store).Reset())
		require.Nil(t, resume().cookie)
		require.Zero(t, b.live())
		var ended *tombstore.InvalidatedError
		_, err := b.store.Read(t.Context(), y)
		require.ErrorAs(t, err, &ended)
		require.Equal(t, tombstore.Revoked, ended.Reason)
	})
}

func TestReset_NoLister(t *testing.T) {
	t.Parallel()
	require.Error(t, New(struct{ tombstore.Renewer }{newSpy(t)}).Reset())
}

// A server that cannot be reached is not an anonymous user.
func TestStorage_Failure(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	s := New(failing{newSpy(t), down})
	_, err := s.Get("x")
	require.ErrorIs(t, err, down)
	require.ErrorIs(t, s.Delete("x"), down)
	require.ErrorIs(t, s.Reset(), down)
}

// failing cannot be reached.
type failing struct {
	*spy
	err error
}

func (f failing) Read(context.Context, string, ...tombstore.ReadOption) (tombstore.Session, error) {
	return tombstore.Session{}, f.err
}

func (f failing) Invalidate(context.Context, string, ...tombstore.InvalidateOption) error {
	return f.err
}

func (f failing) List(context.Context) iter.Seq2[tombstore.Entry, error] {
	return func(yield func(tombstore.Entry, error) bool) { yield(tombstore.Entry{}, f.err) }
}
