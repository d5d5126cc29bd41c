package ginstore_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/gorillastore/internal/racetest"
	"github.com/tombstore/tombstore/internal/redistest"
)

// club is a site whose members log in as owners.
type club struct {
	*testing.T
	store interface {
		tombstore.Binder
		tombstore.Renewer
	}
	url            string
	between, after func() // what happens when a login has begun, and when Login has been called
}

func onEachClub(t *testing.T, opts []tombstore.Option, test func(c *club)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		store, err := tombstore.NewMemory(opts...)
		require.NoError(t, err)
		c := &club{T: t, store: store}
		c.serve()
		test(c)
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		client := redistest.Client(t)
		prefix := tombstore.WithKeyPrefix(redistest.Prefix(t, client))
		minute := tombstore.WithTimeout(time.Minute) // the machine may be busy
		store, err := tombstore.New(client, append(opts[:len(opts):len(opts)], prefix, minute)...)
		require.NoError(t, err)
		c := &club{T: t, store: store}
		c.serve()
		test(c)
	})
}

func (c *club) serve() {
	store := ginstore.New(c.store, racetest.Key)
	router := gin.New()
	router.Use(sessions.Sessions(racetest.CookieName, store))
	page := func(path string, do func(g *gin.Context, s sessions.Session) error) {
		router.GET(path, func(g *gin.Context) {
			s := sessions.Default(g)
			if err := errors.Join(do(g, s), s.Save()); err != nil {
				g.String(http.StatusInternalServerError, "%v", err)
				return
			}
			g.String(http.StatusOK, "%v %v", s.Get("user"), s.Get("cart"))
		})
	}
	login := func(g *gin.Context, s sessions.Session) error {
		login, err := c.store.BeginLogin(g.Request.Context(), g.Query("user"))
		if err != nil {
			return err
		}
		if c.between != nil {
			c.between()
		}
		tomorrow := tombstore.Until(time.Now().Add(24 * time.Hour))
		if err := store.Login(g, s, login, tomorrow, tombstore.Label("phone")); err != nil {
			return err
		}
		if c.after != nil {
			c.after()
		}
		s.Set("user", g.Query("user"))
		return nil
	}
	page("/add", func(_ *gin.Context, s sessions.Session) error { s.Set("cart", "lamp"); return nil })
	page("/read", func(*gin.Context, sessions.Session) error { return nil })
	page("/login", login)
	page("/clear", func(g *gin.Context, s sessions.Session) error {
		s.Clear()
		return login(g, s)
	})
	page("/nothing-to-set", func(g *gin.Context, s sessions.Session) error {
		login, err := c.store.BeginLogin(g.Request.Context(), "alice")
		if err != nil {
			return err
		}
		return store.Login(g, s, login, tombstore.Until(time.Now().Add(24*time.Hour)))
	})
	page("/failed", func(g *gin.Context, s sessions.Session) error {
		err := login(g, s)
		s.Options(sessions.Options{MaxAge: -1})
		return err
	})
	page("/logout", func(_ *gin.Context, s sessions.Session) error { s.Clear(); return nil })
	page("/everywhere", func(g *gin.Context, s sessions.Session) error {
		_, err := store.LogoutEverywhere(g, s, g.Query("user"))
		return err
	})
	page("/everywhere-out", func(g *gin.Context, s sessions.Session) error {
		_, err := store.LogoutEverywhere(g, s, "alice")
		s.Clear()
		return err
	})
	server := httptest.NewServer(router)
	c.Cleanup(server.Close)
	c.url = server.URL
}

// get returns status and body, and the cookie that the browser has then.
func (c *club) get(path, cookie string) (status int, body, next string) {
	c.Helper()
	r, err := http.NewRequestWithContext(c.Context(), http.MethodGet, c.url+path, nil)
	require.NoError(c, err)
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: racetest.CookieName, Value: cookie})
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(c, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(c, err)
	for _, set := range res.Cookies() {
		cookie = set.Value
	}
	return res.StatusCode, string(text), cookie
}

// login returns the cookie of a login that succeeds.
func (c *club) login(user, cookie string) (next string) {
	c.Helper()
	status, body, next := c.get("/login?user="+user, cookie)
	require.Equal(c, http.StatusOK, status, body)
	return next
}

func (c *club) is(body, cookie string) {
	c.Helper()
	_, got, _ := c.get("/read", cookie)
	require.Equal(c, body, got)
}

func (c *club) owned(user string, n int) []tombstore.OwnedSession {
	c.Helper()
	all, err := c.store.Sessions(c.Context(), user)
	require.NoError(c, err)
	require.Len(c, all, n)
	return all
}

func TestLogin(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		_, _, visitor := c.get("/add", "")
		for _, x := range []string{"", visitor} {
			in := c.login("alice", x)
			s := c.owned("alice", 1)[0]
			require.Equal(c, "phone", s.Label)
			require.WithinDuration(c, time.Now().Add(24*time.Hour), s.Deadline, time.Minute)
			c.is("<nil> <nil>", x)
			_, body, out := c.get("/logout", in)
			require.Equal(c, "<nil> <nil>", body)
			c.owned("alice", 0)
			c.is("<nil> <nil>", out)
			_, _, in = c.get("/nothing-to-set", "")
			require.NotEmpty(c, in)
			c.owned("alice", 1)
			c.get("/logout", in)
		}
	})
}

// A login that is refused leaves the visitor with his cart, and nobody logged in.
func TestLogin_Refused(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(c *club) {
		_, _, visitor := c.get("/add", "")
		endAll := func() {
			_, err := c.store.InvalidateOwner(c.Context(), "alice")
			require.NoError(c, err)
		}
		c.between = endAll
		status, body, cookie := c.get("/login?user=alice", visitor)
		require.Equal(c, http.StatusInternalServerError, status)
		require.Contains(c, body, tombstore.ErrStaleLogin.Error())
		c.is("<nil> lamp", cookie)

		c.between, c.after = nil, endAll
		status, body, cookie = c.get("/login?user=alice", visitor)
		require.Equal(c, http.StatusOK, status, body)
		require.Equal(c, visitor, cookie)
		c.is("<nil> lamp", visitor)
		c.owned("alice", 0)

		c.after = nil
		phone := c.login("alice", "")
		status, body, cookie = c.get("/login?user=alice", visitor)
		require.Equal(c, http.StatusInternalServerError, status)
		require.Contains(c, body, tombstore.ErrTooManySessions.Error())
		c.is("<nil> lamp", cookie)
		c.is("alice <nil>", phone)
	})
}

// A handler that fails after Login gives up what that has reserved.
func TestLogin_GivenUp(t *testing.T) {
	onEachClub(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(c *club) {
		_, _, visitor := c.get("/add", "")
		_, _, cookie := c.get("/failed?user=alice", visitor)
		require.Empty(c, cookie)
		c.is("<nil> <nil>", visitor)
		c.login("alice", "")
		c.owned("alice", 1)
	})
}

// A login that clears the session of whoever was there is no logout.
func TestLogin_Cleared(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		_, _, visitor := c.get("/add", "")
		bobs := c.login("bob", visitor)
		_, _, alices := c.get("/clear?user=alice", bobs)
		c.is("alice <nil>", alices)
		c.owned("alice", 1)
		c.owned("bob", 0)
	})
}

// Only this session goes on, under a new id, and who has none gets none.
func TestLogoutEverywhere(t *testing.T) {
	onEachClub(t, nil, func(c *club) {
		_, _, visitor := c.get("/add", "")
		phone, laptop := c.login("alice", visitor), c.login("alice", "")
		_, body, kept := c.get("/everywhere?user=alice", phone)
		require.Equal(c, "alice lamp", body)
		require.NotEqual(c, phone, kept)
		c.owned("alice", 1)
		c.is("alice lamp", kept)
		c.is("<nil> <nil>", phone)
		c.is("<nil> <nil>", laptop)

		c.login("alice", "")
		_, _, out := c.get("/everywhere-out", kept)
		require.Empty(c, out)
		c.owned("alice", 0)
		c.login("alice", "")
		_, _, none := c.get("/everywhere?user=alice", "")
		require.Empty(c, none)
		c.owned("alice", 0)
	})
}
