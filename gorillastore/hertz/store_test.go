package hertzstore_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/common/ut"
	"github.com/hertz-contrib/sessions"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	hertzstore "github.com/tombstore/tombstore/gorillastore/hertz"
)

var key = []byte("0123456789abcdef0123456789abcdef")

func newServer() *server.Hertz { return server.New(server.WithDisablePrintRoute(true)) }

// visitor is a browser and a site whose only page does what it is told to.
type visitor struct {
	*testing.T
	backend *tombstore.MemoryStore
	store   *hertzstore.Store
	site    *server.Hertz
	do      func(s sessions.Session)
	cookie  string
}

func newVisitor(t *testing.T) *visitor {
	t.Parallel()
	backend, err := tombstore.NewMemory()
	require.NoError(t, err)
	v := &visitor{T: t, backend: backend, store: hertzstore.New(backend, key), site: newServer()}
	v.site.Use(sessions.New("session", v.store))
	v.site.GET("/", func(_ context.Context, c *app.RequestContext) { v.do(sessions.Default(c)) })
	return v
}

// visit makes a request, and returns the cookies that the answer sets.
func (v *visitor) visit(do func(s sessions.Session)) []*http.Cookie {
	v.Helper()
	v.do = do
	res := ut.PerformRequest(v.site.Engine, http.MethodGet, "/", nil,
		ut.Header{Key: "Cookie", Value: "session=" + v.cookie}).Result()
	require.Equal(v, http.StatusOK, res.StatusCode())
	var cookies []*http.Cookie
	res.Header.VisitAllCookie(func(_, line []byte) {
		cookie, err := http.ParseSetCookie(string(line))
		require.NoError(v, err)
		cookies = append(cookies, cookie)
		v.cookie = cookie.Value
	})
	return cookies
}

func (v *visitor) save(do func(s sessions.Session)) []*http.Cookie {
	v.Helper()
	return v.visit(func(s sessions.Session) {
		do(s)
		require.NoError(v, s.Save())
	})
}

func (v *visitor) user() (user any) {
	v.visit(func(s sessions.Session) { user = s.Get("user") })
	return user
}

func login(s sessions.Session) { s.Set("user", "alice") }

// A request that outlives a logout saves nothing and sets no cookie, whether it changes the session or
// renews it.
func TestRefused(t *testing.T) {
	v := newVisitor(t)
	for _, renews := range []bool{false, true} {
		v.save(login)
		require.Empty(t, v.save(func(s sessions.Session) {
			require.NoError(t, v.backend.Invalidate(t.Context(), s.ID()))
			s.Set("cart", "pen")
			if renews {
				v.store.Renew(s)
			}
			require.NoError(t, s.Save())
			require.True(t, v.store.Refused(s))
		}))
		require.Nil(t, v.user())
	}
}

// A session that is renewed is found with its new cookie alone, and ended with either.
func TestRenew(t *testing.T) {
	v := newVisitor(t)
	old := v.save(login)[0].Value
	require.Len(t, v.save(func(s sessions.Session) { v.store.Renew(s) }), 1)
	require.NotEqual(t, old, v.cookie)
	require.Len(t, v.save(func(s sessions.Session) { // however often it is saved
		v.store.Renew(s)
		require.NoError(t, s.Save())
		s.Set("cart", "pen")
	}), 1)
	require.Equal(t, "alice", v.user())
	renewed := v.cookie
	v.cookie = old
	require.Nil(t, v.user())
	require.Empty(t, v.save(func(s sessions.Session) { s.Clear() })[0].Value)
	v.cookie = renewed
	require.Nil(t, v.user())
}

// Clear and Save are a logout, and the showing of a flash is none.
func TestSave_Intent(t *testing.T) {
	v := newVisitor(t)
	for name, logout := range map[string]func(s sessions.Session){
		"Clear":           func(s sessions.Session) { s.Clear() },
		"Clear, AddFlash": func(s sessions.Session) { s.Clear(); s.AddFlash("bye") },
		"MaxAge":          func(s sessions.Session) { s.Options(sessions.Options{MaxAge: -1}) },
		"Delete":          func(s sessions.Session) { s.Delete("user") },
	} {
		old := v.save(login)[0].Value
		require.Len(t, v.save(logout), 1, name)
		v.cookie = old
		require.Nil(t, v.user(), name)
		v.cookie = ""
	}
	v.save(func(s sessions.Session) { s.AddFlash("hello") })
	v.save(func(s sessions.Session) { require.Len(t, s.Flashes(), 1) })
	v.visit(func(s sessions.Session) { require.NotEmpty(t, s.ID()) })
}

func TestOptions(t *testing.T) {
	v := newVisitor(t)
	v.store.Options(sessions.Options{Path: "/shop", MaxAge: 60, Secure: true})
	cookie := v.save(login)[0]
	require.Equal(t, "/shop", cookie.Path)
	require.Equal(t, 60, cookie.MaxAge)
	require.True(t, cookie.Secure)
}

type failing struct {
	tombstore.Renewer
	err error
}

func (f failing) Read(context.Context, string, ...tombstore.ReadOption) (tombstore.Session, error) {
	return tombstore.Session{}, f.err
}

// A handler can tell a user whose session could not be looked for from a visitor.
func TestFailed(t *testing.T) {
	v := newVisitor(t)
	v.visit(func(s sessions.Session) {
		require.NoError(t, v.store.Failed(s))
		login(s)
		require.NoError(t, s.Save())
	})
	v.visit(func(s sessions.Session) {
		require.Equal(t, "alice", s.Get("user"))
		require.NoError(t, v.store.Failed(s))
	})
	down := errors.New("down")
	v.store.Store = hertzstore.New(failing{v.backend, down}, key).Store
	v.visit(func(s sessions.Session) {
		require.Nil(t, s.Get("user"))
		require.ErrorIs(t, v.store.Failed(s), down)
	})
}
