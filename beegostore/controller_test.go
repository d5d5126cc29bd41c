package beegostore

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/beego/beego/v2/server/web"
	"github.com/beego/beego/v2/server/web/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// shop is a program that knows nothing of this package.
type shop struct{ web.Controller }

func (c *shop) Login() {
	_ = c.SessionRegenerateID()
	_ = c.SetSession("user", c.GetString("user"))
	c.Ctx.WriteString("hello")
}

func (c *shop) Who() {
	user, _ := c.GetSession("user").(string)
	c.Ctx.WriteString(user)
}

func (c *shop) Add() {
	_ = c.SetSession("cart", "lamp")
	if meanwhile := shopMeanwhile; meanwhile != nil {
		meanwhile()
	}
	c.Ctx.WriteString("added")
}

func (c *shop) Renew() {
	shopMeanwhile()
	_ = c.SessionRegenerateID()
	_ = c.SetSession("cart", "lamp")
	c.Ctx.WriteString("renewed")
}

func (c *shop) Logout() {
	_ = c.DestroySession()
	c.Ctx.WriteString("bye")
}

func (c *shop) Leave() {
	_ = c.DelSession("user")
	c.Data["json"] = "bye"
	_ = c.ServeJSON()
}

func (c *shop) Panic() {
	_ = c.SetSession("cart", "lamp")
	panic("on purpose")
}

var shopMeanwhile func()

// All of beego: its router, its controllers and its one manager.
func TestController(t *testing.T) {
	b := &bed{TB: t}
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	b.store = &broken{MemoryStore: memory}
	b.provider = Register("tombstore", b.store)
	b.provider.UserKeys = []any{"user"}
	web.BConfig.RunMode = web.PROD
	web.BConfig.WebConfig.Session.SessionOn = true
	web.BConfig.WebConfig.Session.SessionProvider = "tombstore"
	web.BConfig.WebConfig.Session.SessionName = cookieName
	web.GlobalSessions, err = session.NewManager("tombstore", &session.ManagerConfig{
		CookieName: cookieName, EnableSetCookie: true, Gclifetime: 3600,
	}) // as web.Run does
	require.NoError(t, err)
	web.AutoRouter(&shop{})
	web.BeeApp.Handlers.Init()
	server := httptest.NewServer(b.provider.Middleware(web.BeeApp.Handlers))
	t.Cleanup(server.Close)
	b.url = server.URL + "/shop"

	login := func() string {
		a := b.get("/login?user=alice", "")
		require.Equal(t, "hello", a.body)
		require.Len(t, a.cookies, 1)
		require.Equal(t, 1, b.live())
		require.Equal(t, "alice", b.get("/who", a.cookies[0].Value).body)
		return a.cookies[0].Value
	}
	end := func(path, body string) func(string) {
		return func(cookie string) { require.Equal(t, body, b.get(path, cookie).body) }
	}
	for name, logout := range map[string]func(cookie string){
		"DestroySession": end("/logout", "bye"),
		"DelSession":     end("/leave", `"bye"`),
		"Invalidate":     func(cookie string) { require.NoError(t, b.store.Invalidate(ctx, cookie)) },
	} {
		for path, body := range map[string]string{"/add": "added", "/renew": "renewed"} {
			cookie := login()
			shopMeanwhile = func() { logout(cookie) }
			a := b.get(path, cookie)
			shopMeanwhile = nil
			require.Equal(t, answer{http.StatusOK, body, nil}, answer{a.status, a.body, nil}, name)
			require.Empty(t, a.cookies)
			require.Zero(t, b.live())
		}
	}

	cookie := login()
	a := b.get("/panic", cookie) // which beego answers
	require.Equal(t, http.StatusInternalServerError, a.status)
	s, err := web.GlobalSessions.GetSessionStore(cookie)
	require.NoError(t, err)
	require.Equal(t, "lamp", s.Get(ctx, "cart"))

	down := tombstore.ErrUnknownOutcome
	b.store.reads.Store(&down)
	a = b.get("/who", cookie)
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Empty(t, a.cookies)
	b.store.reads.Store(nil)
	b.store.ends.Store(&down)
	a = b.get("/logout", cookie)
	require.Equal(t, http.StatusInternalServerError, a.status)
	require.Empty(t, a.cookies)
	b.store.ends.Store(nil)
	require.Equal(t, "alice", b.get("/who", cookie).body)
}
