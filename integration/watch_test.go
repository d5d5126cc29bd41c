package integration

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"

	"gitea.com/go-chi/session"
	"github.com/alexedwards/scs/v2"
	"github.com/beego/beego/v2/server/web"
	beecontext "github.com/beego/beego/v2/server/web/context"
	beegosession "github.com/beego/beego/v2/server/web/session"
	ginsessions "github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/beegostore"
	"github.com/tombstore/tombstore/chistore"
	"github.com/tombstore/tombstore/gorillastore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/scsstore"
	"github.com/tombstore/tombstore/watchhttp"
)

// events sends one event, and when the session has ended another one that says so.
func events(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "data: hello\n\n")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
	_, _ = io.WriteString(w, "data: "+context.Cause(r.Context()).Error()+"\n\n")
}

// watched are applications that log in at /login, out at /logout, give the session a new id at /renew,
// and send events at /events.
var watched = map[string]func(t *testing.T, store *tombstore.MemoryStore) http.Handler{
	"scs": func(_ *testing.T, store *tombstore.MemoryStore) http.Handler {
		sm := scs.New()
		withSession := scsstore.Install(sm, store)
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(_ http.ResponseWriter, r *http.Request) { sm.Put(r.Context(), "user", "alice") })
		mux.HandleFunc("/renew", func(_ http.ResponseWriter, r *http.Request) { _ = sm.RenewToken(r.Context()) })
		mux.HandleFunc("/logout", func(_ http.ResponseWriter, r *http.Request) { _ = sm.Destroy(r.Context()) })
		id := func(r *http.Request) string { return sm.Token(r.Context()) }
		mux.Handle("/events", watchhttp.Handler(store, id, http.HandlerFunc(events)))
		return withSession(mux)
	},
	"gorilla": func(_ *testing.T, store *tombstore.MemoryStore) http.Handler {
		sessions := gorillastore.New(store, make([]byte, 32))
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
			s, _ := sessions.Get(r, "session")
			s.Values["user"] = "alice"
			_ = s.Save(r, w)
		})
		mux.HandleFunc("/renew", func(w http.ResponseWriter, r *http.Request) {
			s, _ := sessions.Get(r, "session")
			sessions.Renew(s)
			_ = s.Save(r, w)
		})
		mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
			s, _ := sessions.Get(r, "session")
			s.Options.MaxAge = -1
			_ = s.Save(r, w)
		})
		id := func(r *http.Request) string {
			s, err := sessions.Get(r, "session")
			if err != nil {
				return ""
			}
			return s.ID
		}
		mux.Handle("/events", watchhttp.Handler(store, id, http.HandlerFunc(events)))
		return mux
	},
	"chi": func(t *testing.T, store *tombstore.MemoryStore) http.Handler {
		withSession, err := chistore.Sessioner(store, chiOptions)
		require.NoError(t, err)
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(_ http.ResponseWriter, r *http.Request) {
			_ = session.GetSession(r).Set("user", "alice")
		})
		mux.HandleFunc("/renew", func(w http.ResponseWriter, r *http.Request) {
			_, _ = session.RegenerateSession(w, r)
		})
		mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
			_ = session.GetSession(r).Destroy(w, r)
		})
		id := func(r *http.Request) string { return session.GetSession(r).ID() }
		mux.Handle("/events", watchhttp.Handler(store, id, http.HandlerFunc(events)))
		return withSession(mux)
	},
	"gin": func(_ *testing.T, store *tombstore.MemoryStore) http.Handler {
		gin.SetMode(gin.ReleaseMode)
		router := gin.New()
		sessions := ginstore.New(store, make([]byte, 32))
		router.Use(ginsessions.Sessions("session", sessions))
		router.GET("/login", func(c *gin.Context) {
			s := ginsessions.Default(c)
			s.Set("user", "alice")
			_ = s.Save()
		})
		router.GET("/renew", func(c *gin.Context) {
			s := ginsessions.Default(c)
			sessions.Renew(s)
			_ = s.Save()
		})
		router.GET("/logout", func(c *gin.Context) {
			s := ginsessions.Default(c)
			s.Options(ginsessions.Options{MaxAge: -1})
			_ = s.Save()
		})
		router.GET("/events", func(c *gin.Context) {
			id := func(*http.Request) string { return ginsessions.Default(c).ID() }
			watchhttp.Handler(store, id, http.HandlerFunc(events)).ServeHTTP(c.Writer, c.Request)
		})
		return router
	},
	"beego": func(t *testing.T, store *tombstore.MemoryStore) http.Handler {
		var sessions *beegostore.Provider
		m := beegoManager(t, &beegosession.ManagerConfig{}, func(name string) { sessions = beegostore.Register(name, store) })
		sessions.CookieName, sessions.Manager = cookieName, m
		cfg := *web.BConfig
		app := web.NewHttpServerWithCfg(&cfg)
		app.Handlers.Get("/:action", func(c *beecontext.Context) {
			w := c.ResponseWriter.ResponseWriter
			s, err := m.SessionStart(w, c.Request)
			if err != nil {
				return
			}
			defer s.SessionRelease(c.Request.Context(), w)
			switch c.Input.Param(":action") {
			case "login":
				_ = s.Set(c.Request.Context(), "user", "alice")
			case "renew":
				_, _ = m.SessionRegenerateID(w, c.Request)
			case "logout":
				m.SessionDestroy(w, c.Request)
			case "events":
				id := func(r *http.Request) string { return s.SessionID(r.Context()) }
				watchhttp.Handler(store, id, http.HandlerFunc(events)).ServeHTTP(w, c.Request)
			}
		})
		app.Handlers.Init()
		return sessions.Middleware(app.Handlers)
	},
}

// Who has events open is told when the session ends, by a logout in another tab, and not when it is
// given another id.
func TestWatch(t *testing.T) {
	t.Parallel()
	for name, app := range watched {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := tombstore.NewMemory()
			require.NoError(t, err)
			server := httptest.NewServer(app(t, store))
			t.Cleanup(server.Close)
			jar, err := cookiejar.New(nil)
			require.NoError(t, err)
			browser := &http.Client{Jar: jar}
			get := func(path string) *http.Response {
				answer, err := browser.Get(server.URL + path)
				require.NoError(t, err)
				t.Cleanup(func() { answer.Body.Close() })
				return answer
			}
			require.Equal(t, http.StatusUnauthorized, get("/events").StatusCode)
			get("/login")
			tab := get("/events")
			require.Equal(t, http.StatusOK, tab.StatusCode)
			stream := bufio.NewReader(tab.Body)
			first, err := stream.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "data: hello\n", first)
			get("/renew")
			get("/logout")
			rest, err := io.ReadAll(stream)
			require.NoError(t, err)
			require.Contains(t, string(rest), "session was ended: logout")
		})
	}
}
