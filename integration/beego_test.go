package integration

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/beego/beego/v2/server/web"
	beecontext "github.com/beego/beego/v2/server/web/context"
	"github.com/beego/beego/v2/server/web/session"
	beegoredis "github.com/beego/beego/v2/server/web/session/redis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/beegostore"
)

// Beego keeps one manager for all of a process, and its providers by name. Here each site has its own.
var (
	beegoNames sync.Mutex
	lastBeego  atomic.Int64
	beegoUsers = []any{"user"}
)

// beegoManager returns a manager whose provider register makes available under a name.
func beegoManager(t testing.TB, cfg *session.ManagerConfig, register func(name string)) *session.Manager {
	beegoNames.Lock()
	defer beegoNames.Unlock()
	name := "site " + strconv.FormatInt(lastBeego.Add(1), 10)
	register(name)
	cfg.CookieName, cfg.EnableSetCookie, cfg.Gclifetime, cfg.Maxlifetime = cookieName, true, 3600, 3600
	m, err := session.NewManager(name, cfg)
	require.NoError(t, err)
	return m
}

// usualBeego keeps sessions with beego's own Redis provider.
func usualBeego(t testing.TB, address, prefix string) string {
	u, err := url.Parse(address)
	require.NoError(t, err)
	m := beegoManager(t, &session.ManagerConfig{ProviderConfig: u.Host, SessionIDPrefix: prefix}, func(name string) {
		session.Register(name, &beegoredis.Provider{})
	})
	return serve(t, beegoHandler(m, nil, nil))
}

// ourBeego keeps them with tombstore.
func ourBeego(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
	var p *beegostore.Provider
	m := beegoManager(t, &session.ManagerConfig{}, func(name string) { p = beegostore.Register(name, store, opts...) })
	p.CookieName, p.Manager, p.UserKeys = cookieName, m, beegoUsers
	return serve(t, p.Middleware(beegoHandler(m, p, store)))
}

// beegoHandler is an application that starts and releases the sessions of its requests as beego does with
// web.GlobalSessions.
func beegoHandler(m *session.Manager, p *beegostore.Provider, store tombstore.Renewer) http.Handler {
	cfg := *web.BConfig
	cfg.RunMode = web.PROD
	app := web.NewHttpServerWithCfg(&cfg)
	app.Handlers.Post("/*", func(ctx *beecontext.Context) {
		var err error
		rw := ctx.ResponseWriter.ResponseWriter
		if ctx.Input.CruSession, err = m.SessionStart(rw, ctx.Request); err != nil {
			http.Error(ctx.ResponseWriter, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer func() {
			if ctx.Input.CruSession != nil {
				ctx.Input.CruSession.SessionRelease(context.Background(), rw)
			}
		}()
		pass(ctx.Request.Context(), loaded)
		body, err := inTurn(ctx.Input.Param(":splat"), beegoController{ctx, m, p, store}.act)
		pass(ctx.Request.Context(), acted)
		if err != nil {
			http.Error(ctx.ResponseWriter, err.Error(), http.StatusInternalServerError)
			return
		}
		ctx.WriteString(body)
	})
	app.Handlers.Init()
	return app.Handlers
}

// beegoController has the methods of web.Controller, for a manager of its own.
type beegoController struct {
	*beecontext.Context
	m     *session.Manager
	p     *beegostore.Provider
	store tombstore.Renewer
}

func (c beegoController) set(key, value any) error {
	return c.Input.CruSession.Set(context.Background(), key, value)
}

func (c beegoController) get(key any) any { return c.Input.CruSession.Get(context.Background(), key) }

func (c beegoController) del(key any) error {
	return c.Input.CruSession.Delete(context.Background(), key)
}

func (c beegoController) regenerateID() error {
	c.Input.CruSession.SessionRelease(context.Background(), c.ResponseWriter)
	s, err := c.m.SessionRegenerateID(c.ResponseWriter, c.Request)
	c.Input.CruSession = s
	return err
}

func (c beegoController) destroySession() error {
	err := c.Input.CruSession.Flush(context.Background())
	if err != nil {
		return err
	}
	c.Input.CruSession = nil
	c.m.SessionDestroy(c.ResponseWriter, c.Request)
	return nil
}

func (c beegoController) act(action string) (body string, err error) {
	switch action {
	case "login":
		if err := c.regenerateID(); err != nil {
			return "", err
		}
		_ = c.set("theme", "dark")
		return "hello", c.set("user", "alice")
	case "add":
		return "added", c.set("items", number(c.get("items"))+1)
	case "read":
		return "seen", nil
	case "renew":
		return "renewed", c.regenerateID()
	case "logout":
		return "bye", c.destroySession()
	case "logout/manager":
		c.m.SessionDestroy(c.ResponseWriter, c.Request)
		return "bye", nil
	case "logout/renew":
		c.m.SessionDestroy(c.ResponseWriter, c.Request)
		return "bye", c.regenerateID()
	case "logout/flush":
		return "bye", c.Input.CruSession.Flush(context.Background())
	case "logout/set":
		_ = c.Input.CruSession.Flush(context.Background())
		return "bye", c.set("flash", "bye")
	case "logout/delete":
		_ = c.set("theme", "light")
		return "bye", c.del("user")
	case "logout/empty":
		_ = c.set("user", "")
		return "bye", c.regenerateID()
	case "casdoor/login":
		_ = c.set("user", "alice")
		return "hello", c.set("SessionData", `{"ExpireTime":4102444800}`)
	case "casdoor/logout":
		_ = c.set("user", "")
		return "bye", c.del("SessionData")
	case "casdoor/logout/regenerate":
		_ = c.set("user", "")
		_ = c.del("SessionData")
		return "bye", c.regenerateID()
	case "enter":
		login, err := ticket(c.Request.Context(), c.store)
		if err == nil {
			err = c.p.Login(c.Request, login, tombstore.Until(time.Now().Add(time.Hour)))
		}
		if err == nil {
			err = c.set("user", name(c.Request.Context()))
		}
		return enters(err)
	case "everywhere", "everywhere/anyway":
		if action == "everywhere" && c.get("user") == nil {
			return anonymous, nil
		}
		_, err := c.p.LogoutEverywhere(c.Request, "alice")
		return everywhere(err)
	}
	return who(c.get("user")), nil
}

// casdoor does what the browser of a user of Casdoor does: it logs out while pages poll. It reports whether a cookie opens alice's page
// afterwards.
func casdoor(t testing.TB, s *site, logout string) (loggedIn bool) {
	alice := &browser{TB: t, site: s}
	require.Equal(t, "hello", alice.do("casdoor/login").body)
	first := alice.cookie
	var arrival sync.Mutex
	send := func(action string) answer {
		arrival.Lock()
		cookie := alice.cookie
		arrival.Unlock()
		a := alice.send(action, cookie, random)
		arrival.Lock()
		defer arrival.Unlock()
		return alice.apply(a)
	}
	var pages sync.WaitGroup
	loggedOut := make(chan struct{})
	for _, action := range []string{"read", "read", "add", "whoami"} {
		pages.Go(func() {
			for {
				select {
				case <-loggedOut:
					return
				default:
					require.Equal(t, http.StatusOK, send(action).status)
				}
			}
		})
	}
	dawdle()
	require.Equal(t, "bye", send(logout).body)
	close(loggedOut)
	pages.Wait()
	for _, cookie := range []string{first, alice.cookie} {
		loggedIn = loggedIn || alice.send("whoami", cookie, "").body == "alice"
	}
	return loggedIn
}

// Casdoor logs out by an empty name, and in later versions by a new id as well. Nobody is logged in again.
// With -v it shows how often it is otherwise with beego's own provider.
func TestCasdoor(t *testing.T) {
	t.Parallel()
	s := setups[slices.IndexFunc(setups, func(s setup) bool { return s.name == "beego" })]
	for _, logout := range []string{"casdoor/logout", "casdoor/logout/regenerate"} {
		for name, site := range map[string]*site{s.backend: usualSite(t, s), "tombstore": ourSite(t, s)} {
			t.Run(logout+"/"+name, func(t *testing.T) {
				t.Parallel()
				n, again := rounds(t, 10), 0
				for range n {
					if casdoor(t, site, logout) {
						again++
					}
				}
				t.Logf("%s, %s: logged in again after %d of %d logouts", logout, name, again, n)
				if name == "tombstore" {
					require.Zero(t, again)
				}
			})
		}
	}
}
