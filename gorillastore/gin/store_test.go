package ginstore_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/gorillastore/internal/racetest"
)

func init() { gin.SetMode(gin.ReleaseMode) }

// page is a racetest.Session of gin.
type page struct {
	sessions.Session
	store *ginstore.Store
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
	p.Clear()
	return p.Session.Save()
}

// serve answers every path with do.
func serve(store *ginstore.Store, do racetest.Page) http.Handler {
	router := gin.New()
	router.Use(sessions.Sessions(racetest.CookieName, store))
	router.NoRoute(func(c *gin.Context) {
		body, err := do(c.Request, page{sessions.Default(c), store})
		if err != nil {
			c.String(http.StatusInternalServerError, "%v", err)
			return
		}
		c.String(http.StatusOK, "%s", body)
	})
	return router
}

func site(t *testing.T, opts ...adapter.Option) racetest.Site {
	return racetest.OnMemory(t, func(store tombstore.Store, do racetest.Page) http.Handler {
		return serve(ginstore.New(store, racetest.Key).With(opts...), do)
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
	handler := serve(store, func(_ *http.Request, s racetest.Session) (string, error) { return "", s.Visit() })
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
	handler := serve(store, func(r *http.Request, s racetest.Session) (string, error) {
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
