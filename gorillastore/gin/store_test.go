package ginstore_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
)

func init() { gin.SetMode(gin.ReleaseMode) }

const cookieName = "session"

var key = []byte("0123456789abcdef0123456789abcdef")

// visitor is a browser and a site whose only page does what it is told to.
type visitor struct {
	*testing.T
	memory *tombstore.MemoryStore
	store  *ginstore.Store
	server *httptest.Server
	do     *func(s sessions.Session, c *gin.Context)
	cookie *http.Cookie
}

func newVisitor(t *testing.T) *visitor {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	v := &visitor{T: t, memory: memory, store: ginstore.New(memory, key), do: new(func(sessions.Session, *gin.Context))}
	router := gin.New()
	router.Use(sessions.Sessions(cookieName, v.store))
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

func TestOptions(t *testing.T) {
	v := newVisitor(t)
	v.store.Options(sessions.Options{Path: "/shop", MaxAge: 60, Secure: true})
	cookie := v.visit(func(s sessions.Session, _ *gin.Context) {
		s.Set("cart", "lamp")
		require.NoError(t, s.Save())
	})[0]
	require.Equal(t, "/shop", cookie.Path)
	require.Equal(t, 60, cookie.MaxAge)
	require.True(t, cookie.Secure)
}

func TestRefused(t *testing.T) {
	v := newVisitor(t)
	require.Empty(t, v.visit(func(s sessions.Session, c *gin.Context) {
		s.Set("user", "alice")
		require.NoError(t, s.Save())
		require.False(t, v.store.Refused(s))
		require.NoError(t, v.memory.Invalidate(c.Request.Context(), s.ID()))
		s.Set("cart", "lamp")
		require.NoError(t, s.Save())
		require.True(t, v.store.Refused(s))
	}))
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
	v.visit(func(s sessions.Session, _ *gin.Context) {
		require.NoError(t, v.store.Failed(s))
		s.Set("user", "alice")
		require.NoError(t, s.Save())
	})
	v.visit(func(s sessions.Session, _ *gin.Context) {
		require.Equal(t, "alice", s.Get("user"))
		require.NoError(t, v.store.Failed(s))
	})
	down := errors.New("down")
	v.store.Store = ginstore.New(failing{v.memory, down}, key).Store
	v.visit(func(s sessions.Session, _ *gin.Context) {
		require.Nil(t, s.Get("user"))
		require.ErrorIs(t, v.store.Failed(s), down)
	})
}
