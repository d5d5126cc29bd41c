package ginstore_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/gorillastore/internal/racetest"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	os.Exit(redistest.Main(m))
}

// page is a racetest.Session of gin.
type page struct {
	sessions.Session
	store  *ginstore.Store
	logout func(page)
}

func (p page) User() string {
	user, _ := p.Get("user").(string)
	return user
}

func (p page) Visit() error {
	p.Set("visited", true)
	return p.Session.Save()
}

func (p page) Save() error {
	p.Delete("nothing") // without a change Save does nothing
	return p.Session.Save()
}

func (p page) Login(user string) error {
	p.Set("user", user)
	p.store.Renew(p.Session)
	return p.Session.Save()
}

func (p page) Logout() error {
	p.logout(p)
	return p.Session.Save()
}

func forget(p page) { p.Clear() }

// serve answers every path with do.
func serve(store *ginstore.Store, logout func(page), do racetest.Page) http.Handler {
	router := gin.New()
	router.Use(sessions.Sessions(racetest.CookieName, store))
	router.NoRoute(func(c *gin.Context) {
		body, err := do(c.Request, page{sessions.Default(c), store, logout})
		if err != nil {
			c.String(http.StatusInternalServerError, "%v", err)
			return
		}
		c.String(http.StatusOK, "%s", body)
	})
	return router
}

func site(t *testing.T, opts ...adapter.Option) racetest.Site {
	return racetest.OnMemory(t, func(store tombstore.Renewer, do racetest.Page) http.Handler {
		return serve(ginstore.New(store, racetest.Key).With(opts...), forget, do)
	})
}

func TestRaces(t *testing.T) {
	t.Parallel()
	for _, cell := range racetest.Cells() {
		t.Run(cell.A+"/"+cell.B, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, cell.Want(false), cell.Play(t, site(t)))
			require.Equal(t, cell.Want(true), cell.Play(t, site(t, racetest.LateRequests())))
		})
	}
}

// logouts are the ways to log out, and how many sessions each leaves.
var logouts = map[string]struct {
	do   func(page)
	left int
}{
	"Clear": {forget, 0},
	"Clear, AddFlash": {func(p page) {
		p.Clear()
		p.AddFlash("good bye")
	}, 1},
	"Clear, Options": {func(p page) {
		p.Clear()
		p.Options(sessions.Options{MaxAge: -1})
	}, 0},
	"Options": {func(p page) { p.Options(sessions.Options{MaxAge: -1}) }, 0},
	"Clear, Set, Renew": {func(p page) {
		language := p.Get("language")
		p.Clear()
		p.Set("language", language)
		p.store.Renew(p.Session)
	}, 1},
}

func handler(logout func(page)) racetest.Handler {
	return func(store tombstore.Renewer, do racetest.Page) http.Handler {
		return serve(ginstore.New(store, racetest.Key), logout, do)
	}
}

// A logout ends the session that a renewal has made of the one that it came with, whenever it
// comes.
func TestRenewal_LoggedOut(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	for name, logout := range logouts {
		for _, when := range racetest.Whens() {
			t.Run(name+"/"+string(when), func(t *testing.T) {
				t.Parallel()
				handler := handler(logout.do)
				if when != racetest.Between {
					when.Play(t, racetest.OnMemory(t, handler), logout.left)
					when.Play(t, racetest.OnServer(t, handler), logout.left)
				}
				when.Play(t, racetest.OnCluster(t, cluster, handler), logout.left)
			})
		}
		t.Run(name+"/at random", func(t *testing.T) {
			t.Parallel()
			racetest.RandomLogouts(t, 20, racetest.OnMemory(t, handler(logout.do)))
			racetest.RandomLogouts(t, 20, racetest.OnServer(t, handler(logout.do)))
		})
	}
}

// Of two logins at once the browser keeps one.
func TestRenewal_TwoLogins(t *testing.T) {
	t.Parallel()
	for _, site := range []racetest.Site{
		racetest.OnMemory(t, handler(forget)),
		racetest.OnServer(t, handler(forget)),
	} {
		racetest.TwoLogins(t, site)
		racetest.RandomLogins(t, 100, site)
	}
}

// visitor is a browser and a site whose only page does what it is told to.
type visitor struct {
	*testing.T
	store  *ginstore.Store
	server *httptest.Server
	do     *func(s sessions.Session, c *gin.Context)
	cookie *http.Cookie
}

func newVisitor(t *testing.T) *visitor {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	v := &visitor{T: t, store: ginstore.New(memory, racetest.Key), do: new(func(sessions.Session, *gin.Context))}
	router := gin.New()
	router.Use(sessions.Sessions(racetest.CookieName, v.store))
	router.NoRoute(func(c *gin.Context) { (*v.do)(sessions.Default(c), c) })
	v.server = httptest.NewServer(router)
	t.Cleanup(v.server.Close)
	return v
}

// visit makes a request, and returns the cookies that the answer sets.
func (v *visitor) visit(do func(s sessions.Session, c *gin.Context)) []*http.Cookie {
	v.Helper()
	*v.do = do
	r, err := http.NewRequestWithContext(v.Context(), http.MethodPost, v.server.URL, nil)
	require.NoError(v, err)
	if v.cookie != nil {
		r.AddCookie(v.cookie)
	}
	res, err := v.server.Client().Do(r)
	require.NoError(v, err)
	defer res.Body.Close()
	for _, v.cookie = range res.Cookies() {
		if v.cookie.MaxAge < 0 {
			v.cookie = nil
		}
	}
	return res.Cookies()
}

// What ends a session is a logout, and nothing that looks like one.
func TestSave_Intent(t *testing.T) {
	for name, play := range map[string]struct {
		before, do func(s sessions.Session)
		ended      bool
	}{
		"the last flash is shown": {
			func(s sessions.Session) { s.AddFlash("hello") },
			func(s sessions.Session) { s.Flashes() }, false,
		},
		"the last flash of another key is shown": {
			func(s sessions.Session) { s.AddFlash("hello", "errors") },
			func(s sessions.Session) { s.Flashes("errors") }, false,
		},
		"a flash is added": {
			func(s sessions.Session) { s.Set("user", "alice") },
			func(s sessions.Session) { s.AddFlash("hello") }, false,
		},
		"one of two values is deleted": {
			func(s sessions.Session) { s.Set("user", "alice"); s.Set("cart", "lamp") },
			func(s sessions.Session) { s.Delete("user") }, false,
		},
		"a value takes the place of another": {
			func(s sessions.Session) { s.Set("state", "x") },
			func(s sessions.Session) { s.Delete("state"); s.Set("user", "alice") }, false,
		},
		"the last value is deleted": {
			func(s sessions.Session) { s.Set("user", "alice") },
			func(s sessions.Session) { s.Delete("user") }, true,
		},
		"the last value is deleted, with flashes": {
			func(s sessions.Session) { s.Set("user", "alice"); s.AddFlash("hello") },
			func(s sessions.Session) { s.Delete("user"); s.AddFlash("good bye") }, true,
		},
		"cleared": {
			func(s sessions.Session) { s.Set("user", "alice"); s.Set("cart", "lamp") },
			func(s sessions.Session) { s.Clear() }, true,
		},
		"cleared, a flash added": {
			func(s sessions.Session) { s.Set("user", "alice") },
			func(s sessions.Session) { s.Clear(); s.AddFlash("good bye") }, true,
		},
		"cleared, a value kept": {
			func(s sessions.Session) { s.Set("user", "alice"); s.Set("cart", "lamp") },
			func(s sessions.Session) { s.Clear(); s.Set("cart", "lamp") }, true,
		},
		"cleared of flashes": {
			func(s sessions.Session) { s.AddFlash("hello") },
			func(s sessions.Session) { s.Clear() }, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVisitor(t)
			save := func(do func(s sessions.Session)) func(s sessions.Session, c *gin.Context) {
				return func(s sessions.Session, _ *gin.Context) {
					do(s)
					require.NoError(t, s.Save())
				}
			}
			old := v.visit(save(play.before))[0]
			require.Len(t, v.visit(save(play.do)), 1)
			v.cookie = old
			live := false
			v.visit(func(s sessions.Session, _ *gin.Context) { live = s.ID() != "" })
			require.Equal(t, play.ended, !live)
		})
	}
}

// Two tabs: one shows a flash, the other one logs in.
func TestSave_FlashDuringLogin(t *testing.T) {
	v := newVisitor(t)
	v.visit(func(s sessions.Session, _ *gin.Context) {
		s.AddFlash("please log in")
		require.NoError(t, s.Save())
	})
	v.visit(func(s sessions.Session, _ *gin.Context) {
		s.Set("user", "alice") // loads the session
		other := *v            // the other tab
		require.Len(t, other.visit(func(s sessions.Session, _ *gin.Context) {
			require.Len(t, s.Flashes(), 1)
			require.NoError(t, s.Save())
		}), 1)
		v.store.Renew(s)
		require.NoError(t, s.Save())
	})
	user := any(nil)
	v.visit(func(s sessions.Session, _ *gin.Context) { user = s.Get("user") })
	require.Equal(t, "alice", user)
}

// However often a session is saved, its cookie is set once.
func TestSave_OneCookie(t *testing.T) {
	v := newVisitor(t)
	require.Len(t, v.visit(func(s sessions.Session, _ *gin.Context) {
		s.Set("cart", "lamp")
		require.NoError(t, s.Save())
		v.store.Renew(s)
		require.NoError(t, s.Save())
		s.Set("user", "alice")
		require.NoError(t, s.Save())
	}), 1)
	require.Len(t, v.visit(func(s sessions.Session, _ *gin.Context) {
		require.Equal(t, "alice", s.Get("user"))
		s.Set("cart", "chair")
		require.NoError(t, s.Save())
		s.Clear()
		s.AddFlash("good bye")
		require.NoError(t, s.Save())
	}), 1)
	v.visit(func(s sessions.Session, _ *gin.Context) { require.Len(t, s.Flashes(), 1) })
}

// A logout and a save are carried out though nobody waits for the answer.
func TestSave_NobodyWaits(t *testing.T) {
	for name, play := range map[string]struct {
		do   func(s sessions.Session)
		want any
	}{
		"save":   {func(s sessions.Session) { s.Set("order", "paid") }, "paid"},
		"logout": {func(s sessions.Session) { s.Clear() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVisitor(t)
			v.visit(func(s sessions.Session, _ *gin.Context) {
				s.Set("order", "open")
				require.NoError(t, s.Save())
			})
			ctx, leave := context.WithCancel(t.Context())
			done := make(chan error, 1)
			*v.do = func(s sessions.Session, c *gin.Context) {
				play.do(s)
				leave()
				<-c.Request.Context().Done()
				done <- s.Save()
			}
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.server.URL, nil)
			require.NoError(t, err)
			r.AddCookie(v.cookie)
			_, err = v.server.Client().Do(r)
			require.Error(t, err)
			require.NoError(t, <-done)
			order := any("")
			v.visit(func(s sessions.Session, _ *gin.Context) { order = s.Get("order") })
			require.Equal(t, play.want, order)
		})
	}
}

// A session that lives longer than the store says, and one whose MaxAge is 0.
func TestSave_MaxAge(t *testing.T) {
	v := newVisitor(t)
	zero := func(s sessions.Session, _ *gin.Context) {
		s.Options(sessions.Options{Path: "/"})
		require.NoError(t, s.Save())
	}
	v.visit(func(s sessions.Session, _ *gin.Context) {
		s.Set("user", "alice")
		require.NoError(t, s.Save())
	})
	require.Zero(t, v.visit(zero)[0].MaxAge)
	v.visit(func(s sessions.Session, _ *gin.Context) { require.Equal(t, "alice", s.Get("user")) })
	v.store.EndAtMaxAgeZero = true
	old := v.cookie
	require.Negative(t, v.visit(zero)[0].MaxAge)
	v.cookie = old
	v.visit(func(s sessions.Session, _ *gin.Context) { require.Nil(t, s.Get("user")) })
}

func TestBadCookies(t *testing.T) {
	t.Parallel()
	racetest.BadCookies(t, site(t))
}

func TestOptions(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	store := ginstore.New(memory, racetest.Key)
	store.Options(sessions.Options{Path: "/shop", MaxAge: 60, Secure: true})
	handler := serve(store, forget, func(_ *http.Request, s racetest.Session) (string, error) { return "", s.Visit() })
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	cookie := w.Result().Cookies()[0]
	require.Equal(t, "/shop", cookie.Path)
	require.Equal(t, 60, cookie.MaxAge)
	require.True(t, cookie.Secure)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	store := ginstore.New(memory, racetest.Key)
	handler := serve(store, forget, func(r *http.Request, s racetest.Session) (string, error) {
		session := s.(page).Session
		require.NoError(t, s.Login("alice"))
		require.False(t, store.Refused(session))
		require.NoError(t, memory.Invalidate(r.Context(), session.ID()))
		require.NoError(t, s.Visit())
		require.True(t, store.Refused(session))
		return "", nil
	})
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Empty(t, w.Result().Cookies())
}
