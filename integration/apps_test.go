package integration

import (
	"context"
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
)

// The applications: each framework's idiom for the same six requests. A request that changes or reads the session waits, when it
// has loaded it, if its header says so.

const (
	cookieName = "session_id" // fiber's default
	raceHeader = "Race"
	anonymous  = "anonymous"
)

// race decides the order of two requests.
type race struct {
	loaded, goOn     chan struct{} // of the request that waits when it has loaded its session
	answered, arrive chan struct{} // of the request whose answer is held back
	leaving          chan struct{} // of the request whose client leaves when it has loaded its session
	delay            func()        // instead of the above, if it is set
}

func newRace() *race {
	return &race{
		loaded: make(chan struct{}), goOn: make(chan struct{}), answered: make(chan struct{}), arrive: make(chan struct{}),
		leaving: make(chan struct{}),
	}
}

// pause is called when a request has loaded its session.
func (r *race) pause(ctx context.Context, header string) {
	switch {
	case r.delay != nil:
		r.delay()
	case header == "wait":
		close(r.loaded)
		<-r.goOn
	case header == "leave":
		close(r.leaving)
		<-ctx.Done()
	}
}

// hold is called when a request has been dealt with, before its answer leaves.
func (r *race) hold(header string) {
	switch {
	case r.delay != nil:
	case header == "hold":
		close(r.answered)
		<-r.arrive
	case header == "leave":
		close(r.answered)
	}
}

// held wraps an http.Handler in hold.
func (r *race) held(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, q)
		r.hold(q.Header.Get(raceHeader))
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})
}

// serve returns the URL of a server that ends with the test.
func serve(t testing.TB, h http.Handler) string {
	server := httptest.NewServer(h)
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

func scsApp(t testing.TB, sm *scs.SessionManager, withSession func(http.Handler) http.Handler, r *race) string {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(q *http.Request) (string, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, q *http.Request) {
			r.pause(q.Context(), q.Header.Get(raceHeader))
			body, err := do(q)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, body)
		})
	}
	handle("POST /login", func(q *http.Request) (string, error) {
		err := sm.RenewToken(q.Context())
		sm.Put(q.Context(), "user", "alice")
		return "hello", err
	})
	handle("POST /add", func(q *http.Request) (string, error) {
		sm.Put(q.Context(), "items", sm.GetInt(q.Context(), "items")+1)
		return "added", nil
	})
	handle("POST /read", func(q *http.Request) (string, error) { return "seen", nil })
	handle("POST /renew", func(q *http.Request) (string, error) { return "renewed", sm.RenewToken(q.Context()) })
	handle("POST /logout", func(q *http.Request) (string, error) { return "bye", sm.Destroy(q.Context()) })
	handle("POST /whoami", func(q *http.Request) (string, error) { return who(sm.GetString(q.Context(), "user")), nil })
	return serve(t, r.held(withSession(mux)))
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

func gorillaApp(t testing.TB, store sessions.Store, r *race) string {
	return serve(t, r.held(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s, err := store.Get(q, cookieName)
		r.pause(q.Context(), q.Header.Get(raceHeader))
		if err == nil {
			body, save := gorillaAct(q.URL.Path[1:], s)
			if save {
				err = s.Save(q, w)
			}
			if err == nil {
				fmt.Fprint(w, body)
				return
			}
		}
		http.Error(w, err.Error(), http.StatusInternalServerError)
	})))
}

func ginApp(t testing.TB, store ginsessions.Store, r *race) string {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(ginsessions.Sessions(cookieName, store))
	engine.POST("/:action", func(c *gin.Context) {
		s := ginsessions.Default(c)
		s.Get("user") // gin loads at the first use
		r.pause(c.Request.Context(), c.GetHeader(raceHeader))
		inner := s.(interface{ Session() *sessions.Session }).Session()
		var body string
		save := true
		switch action := c.Param("action"); action {
		case "logout":
			s.Clear()
			s.Options(ginsessions.Options{Path: "/", MaxAge: -1})
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
			body, save = gorillaAct(action, inner)
		}
		if save {
			if err := s.Save(); err != nil {
				c.String(http.StatusInternalServerError, err.Error())
				return
			}
		}
		c.String(http.StatusOK, body)
	})
	return serve(t, r.held(engine))
}

func echoApp(t testing.TB, store sessions.Store, r *race) string {
	e := echo.New()
	e.Use(echosession.Middleware(store))
	e.POST("/:action", func(c *echo.Context) error {
		s, err := echosession.Get(cookieName, c)
		if err != nil {
			return err
		}
		r.pause(c.Request().Context(), c.Request().Header.Get(raceHeader))
		body, save := gorillaAct(c.Param("action"), s)
		if save {
			if err := s.Save(c.Request(), c.Response()); err != nil {
				return err
			}
		}
		return c.String(http.StatusOK, body)
	})
	return serve(t, r.held(e))
}

// fiberSession is what fiber's two modes have in common.
type fiberSession interface {
	Get(key any) any
	Set(key, value any)
	Regenerate() error
	Destroy() error
}

func fiberAct(action string, s fiberSession) (body string, err error) {
	switch action {
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
	}
	return who(s.Get("user")), nil
}

func fiberApp(t testing.TB, storage fiber.Storage, r *race) string {
	app := fiber.New()
	app.Use(func(c fiber.Ctx) error {
		err := c.Next()
		r.hold(c.Get(raceHeader))
		return err
	})
	app.Use(fibersession.New(fibersession.Config{Storage: storage}))
	app.Post("/:action", func(c fiber.Ctx) error {
		s := fibersession.FromContext(c)
		r.pause(c, c.Get(raceHeader))
		body, err := fiberAct(c.Params("action"), s)
		if err != nil {
			return err
		}
		return c.SendString(body)
	})
	return serveFiber(t, app)
}

func fiberStoreApp(t testing.TB, storage fiber.Storage, r *race) string {
	app := fiber.New()
	store := fibersession.NewStore(fibersession.Config{Storage: storage})
	app.Post("/:action", func(c fiber.Ctx) error {
		s, err := store.Get(c)
		if err != nil {
			return err
		}
		defer s.Release()
		r.pause(c, c.Get(raceHeader))
		action := c.Params("action")
		body, err := fiberAct(action, s)
		if err == nil && action != "logout" && action != "whoami" {
			err = s.Save()
		}
		if err != nil {
			return err
		}
		r.hold(c.Get(raceHeader))
		return c.SendString(body)
	})
	return serveFiber(t, app)
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
