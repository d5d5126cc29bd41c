package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	ginsessions "github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/gofiber/fiber/v3"
	fibersession "github.com/gofiber/fiber/v3/middleware/session"
	"github.com/gorilla/sessions"
	echosession "github.com/labstack/echo-contrib/v5/session"
	"github.com/labstack/echo/v5"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/fiberstore"
	"github.com/tombstore/tombstore/gorillastore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/scsstore"
)

// The applications: each framework's idiom for the same requests.

const (
	cookieName = "session_id" // fiber's default
	anonymous  = "anonymous"
)

// serve returns the URL of a server that ends with the test.
func serve(t testing.TB, h http.Handler) string {
	server := httptest.NewServer(raced(h))
	t.Cleanup(server.Close)
	return server.URL
}

func who(user any) string {
	if name, ok := user.(string); ok && name != "" {
		return name
	}
	return anonymous
}

func number(n any) int { i, _ := n.(int); return i }

// ticket begins the login of alice.
func ticket(ctx context.Context, store tombstore.Renewer) (tombstore.Login, error) {
	login, err := store.(tombstore.Binder).BeginLogin(ctx, "alice")
	pass(ctx, begun)
	return login, err
}

// everywhere is what answers a request to log out everywhere.
func everywhere(err error) (body string, _ error) {
	if errors.Is(err, adapter.ErrRefused) { // the session has been ended meanwhile
		return anonymous, nil
	}
	return "others are out", err
}

// enters is what answers a login with an owner.
func enters(err error) (body string, _ error) {
	if errors.Is(err, tombstore.ErrStaleLogin) {
		return "stale", nil
	}
	return "hello", err
}

// scsApp serves logins with owners, too, if there is a store to ask.
func scsApp(
	t testing.TB, sm *scs.SessionManager, withSession func(http.Handler) http.Handler, store tombstore.Renewer,
) string {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(w http.ResponseWriter, q *http.Request) (string, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, q *http.Request) {
			pass(q.Context(), loaded)
			body, err := do(w, q)
			pass(q.Context(), acted)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, body)
		})
	}
	handle("POST /login", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		err := sm.RenewToken(q.Context())
		sm.Put(q.Context(), "user", "alice")
		return "hello", err
	})
	handle("POST /add", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		sm.Put(q.Context(), "items", sm.GetInt(q.Context(), "items")+1)
		return "added", nil
	})
	handle("POST /read", func(http.ResponseWriter, *http.Request) (string, error) { return "seen", nil })
	handle("POST /renew", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		return "renewed", sm.RenewToken(q.Context())
	})
	handle("POST /logout", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		return "bye", sm.Destroy(q.Context())
	})
	handle("POST /logout/flash", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		err := sm.Destroy(q.Context())
		sm.Put(q.Context(), "flash", "bye")
		return "bye", err
	})
	handle("POST /logout/renew", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		return "bye", errors.Join(sm.Destroy(q.Context()), sm.RenewToken(q.Context()))
	})
	handle("POST /logout/written", func(w http.ResponseWriter, q *http.Request) (string, error) {
		fmt.Fprint(w, "bye")
		return "", sm.Destroy(q.Context())
	})
	handle("POST /logout/hints", func(w http.ResponseWriter, q *http.Request) (string, error) {
		w.WriteHeader(http.StatusEarlyHints)
		return "bye", sm.Destroy(q.Context())
	})
	handle("POST /logout/panic", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		_ = sm.Destroy(q.Context())
		panic(http.ErrAbortHandler)
	})
	handle("POST /whoami", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		return who(sm.GetString(q.Context(), "user")), nil
	})
	handle("POST /enter", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		login, err := ticket(q.Context(), store)
		if err == nil {
			err = scsstore.Login(q.Context(), sm, login)
		}
		if err == nil {
			sm.Put(q.Context(), "user", "alice")
		}
		return enters(err)
	})
	handle("POST /everywhere", func(_ http.ResponseWriter, q *http.Request) (string, error) {
		if sm.GetString(q.Context(), "user") == "" {
			return anonymous, nil
		}
		_, err := scsstore.LogoutEverywhere(q.Context(), sm, "alice")
		return everywhere(err)
	})
	return serve(t, withSession(mux))
}

func newSCS() *scs.SessionManager {
	sm := scs.New()
	sm.Cookie.Name = cookieName
	sm.IdleTimeout = time.Hour // with it scs saves on every request
	return sm
}

// gorillaAct is what the three frameworks do that stand on gorilla/sessions.
func gorillaAct(action string, s *sessions.Session) (body string, save bool) {
	switch action {
	case "login":
		s.ID = "" // gorilla's idiom for a new id
		s.Values["user"] = "alice"
		return "hello", true
	case "add":
		s.Values["items"] = number(s.Values["items"]) + 1
		return "added", true
	case "read":
		return "seen", false
	case "save":
		return "saved", true
	case "renew":
		s.ID = ""
		return "renewed", true
	case "logout":
		s.Options.MaxAge = -1
		return "bye", true
	}
	return who(s.Values["user"]), false
}

// owned does what needs owners, for the frameworks that stand on gorilla/sessions.
type owned struct {
	login      func(login tombstore.Login, opts ...tombstore.ReserveOption) error
	everywhere func() (int, error)
}

func (o owned) act(
	ctx context.Context, action string, s *sessions.Session, store tombstore.Renewer,
) (body string, save bool, err error) {
	switch action {
	case "enter":
		login, err := ticket(ctx, store)
		if err == nil {
			err = o.login(login, tombstore.Until(time.Now().Add(time.Hour)))
		}
		if save = err == nil; save {
			s.Values["user"] = "alice"
		}
		pass(ctx, acted)
		body, err = enters(err)
		return body, save, err
	case "everywhere":
		if s.Values["user"] == nil {
			return anonymous, false, nil
		}
		_, err := o.everywhere()
		pass(ctx, acted)
		body, err = everywhere(err)
		return body, true, err
	}
	body, save = gorillaAct(action, s)
	return body, save, nil
}

// gorillaOwned is owned for gorilla and echo. store is nil without tombstore.
func gorillaOwned(store sessions.Store, q *http.Request, s *sessions.Session) owned {
	ours, ok := store.(*gorillastore.Store)
	if !ok {
		return owned{}
	}
	return owned{
		func(login tombstore.Login, opts ...tombstore.ReserveOption) error {
			return ours.Login(q, s, login, opts...)
		},
		func() (int, error) { return ours.LogoutEverywhere(q, s, "alice") },
	}
}

func gorillaApp(t testing.TB, store sessions.Store, backend tombstore.Renewer) string {
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s, err := store.Get(q, cookieName)
		pass(q.Context(), loaded)
		if err == nil {
			var body string
			var save bool
			body, save, err = gorillaOwned(store, q, s).act(q.Context(), q.URL.Path[1:], s, backend)
			if err == nil && save {
				err = s.Save(q, w)
			}
			if err == nil {
				fmt.Fprint(w, body)
				return
			}
		}
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}))
}

func ginApp(t testing.TB, store ginsessions.Store, backend tombstore.Renewer) string {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(ginsessions.Sessions(cookieName, store))
	engine.POST("/*action", func(c *gin.Context) {
		s := ginsessions.Default(c)
		s.Get("user") // gin loads at the first use
		pass(c.Request.Context(), loaded)
		inner := s.(interface{ Session() *sessions.Session }).Session()
		var body string
		var err error
		save := true
		switch action := c.Param("action")[1:]; action {
		case "logout":
			s.Clear()
			s.Options(ginsessions.Options{Path: "/", MaxAge: -1})
			body = "bye"
		case "logout/clear":
			s.Clear()
			body = "bye"
		case "logout/flash":
			s.Clear()
			s.AddFlash("bye")
			body = "bye"
		case "login", "add":
			body, _ = gorillaAct(action, inner)
			s.Set("at", time.Now().UnixNano()) // gin saves only what was changed through its own methods
		case "save":
			body, _ = gorillaAct(action, inner)
			s.Delete("nothing")
		case "renew":
			body, _ = gorillaAct(action, inner)
			s.Set("at", time.Now().UnixNano())
		default:
			var o owned
			if ours, ok := store.(*ginstore.Store); ok {
				o.login = func(login tombstore.Login, opts ...tombstore.ReserveOption) error {
					return ours.Login(c, s, login, opts...)
				}
				o.everywhere = func() (int, error) { return ours.LogoutEverywhere(c, s, "alice") }
			}
			body, save, err = o.act(c.Request.Context(), action, inner, backend)
		}
		if err == nil && save {
			err = s.Save()
		}
		if err != nil {
			c.String(http.StatusInternalServerError, err.Error())
			return
		}
		c.String(http.StatusOK, body)
	})
	return serve(t, engine)
}

func echoApp(t testing.TB, store sessions.Store, backend tombstore.Renewer) string {
	e := echo.New()
	e.Use(echosession.Middleware(store))
	e.POST("/:action", func(c *echo.Context) error {
		s, err := echosession.Get(cookieName, c)
		if err != nil {
			return err
		}
		pass(c.Request().Context(), loaded)
		body, save, err := gorillaOwned(store, c.Request(), s).act(c.Request().Context(), c.Param("action"), s, backend)
		if err == nil && save {
			err = s.Save(c.Request(), c.Response())
		}
		if err != nil {
			return err
		}
		return c.String(http.StatusOK, body)
	})
	return serve(t, e)
}

// fiberSession is what fiber's two modes have in common.
type fiberSession interface {
	fiberstore.Session
	Regenerate() error
	Destroy() error
	Reset() error
}

func fiberAct(
	c fiber.Ctx, action string, s fiberSession, storage fiber.Storage, store tombstore.Renewer,
) (body string, err error) {
	switch action {
	case "enter":
		login, err := ticket(c.Context(), store)
		if err == nil {
			hour := tombstore.Until(time.Now().Add(time.Hour))
			err = storage.(*fiberstore.Storage).Login(c, s, login, hour)
		}
		if err == nil {
			s.Set("user", "alice")
		}
		return enters(err)
	case "everywhere":
		if s.Get("user") == nil {
			return anonymous, nil
		}
		_, err := storage.(*fiberstore.Storage).LogoutEverywhere(c, s, "alice")
		return everywhere(err)
	case "login":
		err = s.Regenerate()
		s.Set("user", "alice")
		return "hello", err
	case "add":
		s.Set("items", number(s.Get("items"))+1)
		return "added", nil
	case "read":
		return "seen", nil
	case "renew":
		return "renewed", s.Regenerate()
	case "logout":
		return "bye", s.Destroy()
	case "logout/reset":
		return "bye", s.Reset()
	}
	return who(s.Get("user")), nil
}

func fiberApp(t testing.TB, storage fiber.Storage, store tombstore.Renewer) string {
	app := newFiber()
	app.Use(fibersession.New(fibersession.Config{Storage: storage}))
	app.Post("/*", func(c fiber.Ctx) error {
		pass(c.Context(), loaded)
		body, err := fiberAct(c, c.Params("*"), fibersession.FromContext(c), storage, store)
		pass(c.Context(), acted)
		if err != nil {
			return err
		}
		return c.SendString(body)
	})
	return serveFiber(t, app)
}

func fiberStoreApp(t testing.TB, storage fiber.Storage, store tombstore.Renewer) string {
	app := newFiber()
	sessions := fibersession.NewStore(fibersession.Config{Storage: storage})
	app.Post("/*", func(c fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		defer s.Release()
		pass(c.Context(), loaded)
		action := c.Params("*")
		body, err := fiberAct(c, action, s, storage, store)
		pass(c.Context(), acted)
		if err == nil && action != "logout" && action != "whoami" {
			err = s.Save()
		}
		if err != nil {
			return err
		}
		return c.SendString(body)
	})
	return serveFiber(t, app)
}

// newFiber returns an app whose requests can stop.
func newFiber() *fiber.App {
	app := fiber.New()
	app.Use(func(c fiber.Ctx) error {
		ctx, _ := withRace(c.Context(), c.Get(raceHeader))
		c.SetContext(ctx)
		err := c.Next()
		pass(ctx, answering)
		return err
	})
	return app
}

func serveFiber(t testing.TB, app *fiber.App) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = app.Listener(l, fiber.ListenConfig{DisableStartupMessage: true})
	}()
	t.Cleanup(func() {
		_ = app.ShutdownWithTimeout(time.Second)
		<-done
	})
	return "http://" + l.Addr().String()
}
