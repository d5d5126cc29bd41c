package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	ginsessions "github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/gofiber/fiber/v3"
	fiberrecover "github.com/gofiber/fiber/v3/middleware/recover"
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

// The applications: each framework's idiom for the same requests. The path is the action: login, add, read, renew, logout and whoami,
// and with owners enter, everywhere, and everywhere/anyway, which is also for those who are not logged in. Several in one request are joined
// by "+". The other actions are of a library's own ways to log out.

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

// ticket begins a login.
func ticket(ctx context.Context, store tombstore.Renewer) (tombstore.Login, error) {
	login, err := store.(tombstore.Binder).BeginLogin(ctx, name(ctx))
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
	switch {
	case errors.Is(err, tombstore.ErrStaleLogin):
		return "stale", nil
	case errors.Is(err, tombstore.ErrTooManySessions):
		return "full", nil
	}
	return "hello", err
}

// inTurn does the actions of a request, which are joined by "+", and returns what they say.
func inTurn(action string, do func(step string) (string, error)) (body string, _ error) {
	var said []string
	for step := range strings.SplitSeq(action, "+") {
		if step == "panic" {
			panic(http.ErrAbortHandler)
		}
		text, err := do(step)
		if err != nil {
			return "", err
		}
		if text != "" {
			said = append(said, text)
		}
	}
	return strings.Join(said, " "), nil
}

// scsApp serves logins with owners, too, if there is a store to ask.
func scsApp(
	t testing.TB, sm *scs.SessionManager, withSession func(http.Handler) http.Handler, store tombstore.Renewer,
) string {
	return serve(t, withSession(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		pass(q.Context(), loaded)
		body, err := inTurn(q.URL.Path[1:], func(step string) (string, error) { return scsAct(w, q.Context(), step, sm, store) })
		pass(q.Context(), acted)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, body)
	})))
}

func scsAct(
	w http.ResponseWriter, ctx context.Context, step string, sm *scs.SessionManager, store tombstore.Renewer,
) (string, error) {
	switch step {
	case "login":
		err := sm.RenewToken(ctx)
		sm.Put(ctx, "user", name(ctx))
		return "hello", err
	case "enter":
		login, err := ticket(ctx, store)
		if err == nil {
			err = scsstore.Login(ctx, sm, login)
		}
		if err == nil {
			sm.Put(ctx, "user", name(ctx))
		}
		return enters(err)
	case "everywhere", "everywhere/anyway":
		if step == "everywhere" && sm.GetString(ctx, "user") == "" {
			return anonymous, nil
		}
		_, err := scsstore.LogoutEverywhere(ctx, sm, "alice")
		return everywhere(err)
	case "add":
		sm.Put(ctx, "items", sm.GetInt(ctx, "items")+1)
		return "added", nil
	case "read":
		return "seen", nil
	case "renew":
		return "renewed", sm.RenewToken(ctx)
	case "logout":
		return "bye", sm.Destroy(ctx)
	case "logout/refused", "logout/unanswered":
		err := sm.Destroy(context.WithValue(ctx, faultKey{}, step))
		if err == nil {
			return "", errors.New("the end did not fail")
		}
		return "", nil
	case "flash":
		sm.Put(ctx, "flash", "bye")
		return "", nil
	case "write":
		_, err := fmt.Fprint(w, "so long: ")
		return "", err
	case "flush":
		return "", http.NewResponseController(w).Flush()
	case "hints":
		w.WriteHeader(http.StatusEarlyHints)
		return "", nil
	}
	return who(sm.GetString(ctx, "user")), nil
}

func newSCS() *scs.SessionManager {
	sm := scs.New()
	sm.Cookie.Name = cookieName
	sm.IdleTimeout = time.Hour // with it scs saves on every request
	return sm
}

// gorillaAct is what the three frameworks do that stand on gorilla/sessions.
func gorillaAct(step string, s *sessions.Session) (body string, save bool) {
	switch step {
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
	case "clear":
		clear(s.Values)
		return "bye", true
	case "flash":
		s.AddFlash("bye")
		return "", true
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
	ctx context.Context, step string, s *sessions.Session, store tombstore.Renewer,
) (body string, save bool, err error) {
	switch step {
	case "enter":
		login, err := ticket(ctx, store)
		if err == nil {
			err = o.login(login, tombstore.Until(time.Now().Add(time.Hour)))
		}
		if save = err == nil; save {
			s.Values["user"] = name(ctx)
		}
		pass(ctx, acted)
		body, err = enters(err)
		return body, save, err
	case "everywhere", "everywhere/anyway":
		if step == "everywhere" && s.Values["user"] == nil {
			return anonymous, false, nil
		}
		_, err := o.everywhere()
		pass(ctx, acted)
		body, err = everywhere(err)
		return body, true, err
	}
	body, save = gorillaAct(step, s)
	return body, save, nil
}

// actAll does all steps of an action, and reports whether one of them wants the session saved.
func (o owned) actAll(
	ctx context.Context, action string, s *sessions.Session, store tombstore.Renewer,
) (body string, save bool, err error) {
	body, err = inTurn(action, func(step string) (string, error) {
		text, saves, err := o.act(ctx, step, s, store)
		save = save || saves
		return text, err
	})
	return body, save, err
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
			body, save, err = gorillaOwned(store, q, s).actAll(q.Context(), q.URL.Path[1:], s, backend)
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

// contribAct is actAll for sessions of gin-contrib and hertz-contrib, which save only what was changed through their own methods.
func (o owned) contribAct(
	ctx context.Context, action string, s interface {
		Clear()
		Delete(key any)
	}, expire func(), inner *sessions.Session, store tombstore.Renewer,
) (body string, save bool, err error) {
	body, err = inTurn(action, func(step string) (string, error) {
		if step == "logout" || step == "clear" {
			s.Clear()
		}
		if step == "logout" || step == "expire" {
			expire()
		}
		if slices.Contains([]string{"logout", "clear", "expire"}, step) {
			save = true
			return "bye", nil
		}
		text, saves, err := o.act(ctx, step, inner, store)
		if saves && step != "enter" && !strings.HasPrefix(step, "everywhere") {
			s.Delete("nothing")
		}
		save = save || saves
		return text, err
	})
	return body, save, err
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
		var o owned
		if ours, ok := store.(*ginstore.Store); ok {
			o.login = func(login tombstore.Login, opts ...tombstore.ReserveOption) error {
				return ours.Login(c, s, login, opts...)
			}
			o.everywhere = func() (int, error) { return ours.LogoutEverywhere(c, s, "alice") }
		}
		expire := func() { s.Options(ginsessions.Options{Path: "/", MaxAge: -1}) }
		body, save, err := o.contribAct(c.Request.Context(), c.Param("action")[1:], s, expire, inner, backend)
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
		body, save, err := gorillaOwned(store, c.Request(), s).actAll(c.Request().Context(), c.Param("action"), s, backend)
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

// fiberBackend is where the sessions of fiber are.
type fiberBackend struct {
	storage  fiber.Storage
	sessions *fibersession.Store
	store    tombstore.Renewer // nil without tombstore
}

func (b fiberBackend) act(c fiber.Ctx, step string, s fiberSession) (string, error) {
	switch step {
	case "login":
		err := s.Regenerate()
		s.Set("user", name(c.Context()))
		return "hello", err
	case "enter":
		login, err := ticket(c.Context(), b.store)
		if err == nil {
			hour := tombstore.Until(time.Now().Add(time.Hour))
			err = b.storage.(*fiberstore.Storage).Login(c, s, login, hour)
		}
		if err == nil {
			s.Set("user", name(c.Context()))
		}
		return enters(err)
	case "everywhere", "everywhere/anyway":
		if step == "everywhere" && s.Get("user") == nil {
			return anonymous, nil
		}
		_, err := b.storage.(*fiberstore.Storage).LogoutEverywhere(c, s, "alice")
		return everywhere(err)
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
	case "logout/delete":
		return "bye", b.sessions.Delete(c, s.ID())
	}
	return who(s.Get("user")), nil
}

func (b fiberBackend) actAll(c fiber.Ctx, s fiberSession) (body string, err error) {
	pass(c.Context(), loaded)
	body, err = inTurn(c.Params("*"), func(step string) (string, error) { return b.act(c, step, s) })
	pass(c.Context(), acted)
	return body, err
}

func fiberApp(t testing.TB, storage fiber.Storage, store tombstore.Renewer) string {
	app := newFiber()
	handler, sessions := fibersession.NewWithStore(fibersession.Config{Storage: storage})
	b := fiberBackend{storage, sessions, store}
	app.Use(handler)
	app.Post("/*", func(c fiber.Ctx) error {
		body, err := b.actAll(c, fibersession.FromContext(c))
		if err != nil {
			return err
		}
		return c.SendString(body)
	})
	return serveFiber(t, app)
}

func fiberStoreApp(t testing.TB, storage fiber.Storage, store tombstore.Renewer) string {
	app := newFiber()
	b := fiberBackend{storage, fibersession.NewStore(fibersession.Config{Storage: storage}), store}
	app.Post("/*", func(c fiber.Ctx) error {
		s, err := b.sessions.Get(c)
		if err != nil {
			return err
		}
		defer s.Release()
		body, err := b.actAll(c, s)
		switch last := path.Base(strings.ReplaceAll(c.Params("*"), "+", "/")); {
		case err != nil:
			return err
		case last == "logout", last == "delete", last == "whoami": // there is nothing to save
		case body == "stale", body == "full": // nobody is in, and Login has saved the visitor's session
		default:
			err = s.Save()
		}
		if err != nil {
			return err
		}
		return c.SendString(body)
	})
	return serveFiber(t, app)
}

// newFiber returns an app whose requests can stop, and panic.
func newFiber() *fiber.App {
	app := fiber.New()
	app.Use(fiberrecover.New())
	app.Use(func(c fiber.Ctx) error {
		ctx, _ := withRace(withUser(c.Context(), c.Get(userHeader)), c.Get(raceHeader))
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
