package beegostore

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/beego/beego/v2/server/web/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

const cookieName = "sid"

// broken is a store whose operations fail with an error while there is one.
type broken struct {
	*tombstore.MemoryStore
	reads, writes, ends atomic.Pointer[error]
	changes             atomic.Int64 // writes and touches
}

func failure(p *atomic.Pointer[error]) error {
	if err := p.Load(); err != nil {
		return *err
	}
	return nil
}

func (b *broken) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	if err := failure(&b.reads); err != nil {
		return tombstore.Session{}, err
	}
	return b.MemoryStore.Read(ctx, id, opts...)
}

func (b *broken) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	b.changes.Add(1)
	if err := failure(&b.writes); err != nil {
		return tombstore.Session{}, err
	}
	return b.MemoryStore.Write(ctx, id, data, ttl, opts...)
}

func (b *broken) Touch(ctx context.Context, id string, ttl time.Duration) error {
	b.changes.Add(1)
	return b.MemoryStore.Touch(ctx, id, ttl)
}

func (b *broken) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if err := failure(&b.ends); err != nil {
		return err
	}
	return b.MemoryStore.Invalidate(ctx, id, opts...)
}

// action is what a page does with its session.
type action = func(w http.ResponseWriter, r *http.Request, s session.Store) (body string, err error)

// bed is a site that uses a manager without the rest of beego.
type bed struct {
	testing.TB
	store    *broken
	provider *Provider
	manager  *session.Manager
	url      string

	mu      sync.Mutex
	pages   map[string]action
	refused []tombstore.Event
	refusal func() // what else a refusal does
}

var (
	registry sync.Mutex // of beego
	sites    int
)

func newBed(t testing.TB, opts ...tombstore.Option) *bed {
	memory, err := tombstore.NewMemory(opts...)
	require.NoError(t, err)
	b := &bed{TB: t, store: &broken{MemoryStore: memory}, pages: map[string]action{}}
	registry.Lock()
	defer registry.Unlock()
	sites++
	name := "site " + strconv.Itoa(sites)
	b.provider = Register(name, b.store, adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
		e.Err = nil
		b.refused = append(b.refused, e)
		if b.refusal != nil {
			b.refusal()
		}
	}))
	b.manager, err = session.NewManager(name, &session.ManagerConfig{
		CookieName: cookieName, EnableSetCookie: true, Gclifetime: 3600, Secure: false,
	})
	require.NoError(t, err)
	b.provider.CookieName, b.provider.Manager = cookieName, b.manager
	server := httptest.NewServer(b.provider.Middleware(http.HandlerFunc(b.serve)))
	t.Cleanup(server.Close)
	b.url = server.URL
	b.pages["/"] = func(_ http.ResponseWriter, _ *http.Request, s session.Store) (string, error) {
		return fmt.Sprint(s.Get(context.Background(), "user")), nil
	}
	b.pages["/login"] = func(w http.ResponseWriter, r *http.Request, _ session.Store) (string, error) {
		s, err := b.manager.SessionRegenerateID(w, r)
		if err != nil {
			return "", err
		}
		return "hello", s.Set(context.Background(), "user", "alice")
	}
	return b
}

func (b *bed) serve(w http.ResponseWriter, r *http.Request) {
	s, err := b.manager.SessionStart(w, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.SessionRelease(context.Background(), w)
	b.mu.Lock()
	page := b.pages[r.URL.Path]
	b.mu.Unlock()
	body, err := page(w, r, s)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, body)
}

// answer is what a browser gets.
type answer struct {
	status  int
	body    string
	cookies []*http.Cookie
}

// get asks for a page with a session cookie.
func (b *bed) get(path, cookie string) answer {
	b.Helper()
	q, err := http.NewRequestWithContext(b.Context(), http.MethodGet, b.url+path, nil)
	require.NoError(b, err)
	if cookie != "" {
		q.Header.Set("Cookie", cookieName+"="+cookie)
	}
	res, err := http.DefaultClient.Do(q)
	require.NoError(b, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(b, err)
	return answer{res.StatusCode, strings.TrimSpace(string(body)), res.Cookies()}
}

// visit asks for a page that does something, and returns the answer.
func (b *bed) visit(cookie string, page action) answer {
	b.Helper()
	path := fmt.Sprintf("/page%d", len(b.pages))
	b.mu.Lock()
	b.pages[path] = page
	b.mu.Unlock()
	return b.get(path, cookie)
}

// login returns the cookie of a browser that has logged in.
func (b *bed) login() string {
	b.Helper()
	a := b.get("/login", "")
	require.Equal(b, "hello", a.body)
	require.Len(b, a.cookies, 1)
	return a.cookies[0].Value
}

// live returns how many sessions there are.
func (b *bed) live() (n int) {
	for _, err := range b.store.List(b.Context()) {
		require.NoError(b, err)
		n++
	}
	return n
}
