package fiber2store

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

func TestCallersAreKnown(t *testing.T) {
	t.Parallel()
	require.True(t, callersAreKnown(callers))
	for i := range callers { // as if fiber had renamed it
		others := append([]string{}, callers...)
		others[i] += "X"
		require.False(t, callersAreKnown(others))
	}
}

// bed is a program whose handler is do.
type bed struct {
	testing.TB
	store    *tombstore.MemoryStore
	sessions *Store
	lookup   string // session.Config.KeyLookup
	app      *fiber.App
	do       func(c *fiber.Ctx, s *session.Session) error
}

func newBed(t testing.TB, config session.Config, opts ...adapter.Option) *bed {
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	b := &bed{TB: t, store: store, sessions: New(store, config, opts...), lookup: config.KeyLookup}
	b.app = fiber.New()
	b.app.Get("/", func(c *fiber.Ctx) error {
		s, err := b.sessions.Get(c)
		if err != nil {
			return err
		}
		return b.do(c, s)
	})
	return b
}

// request sends a request with a session's id, and returns the id that the answer has, and the body.
func (b *bed) request(id string, do func(c *fiber.Ctx, s *session.Session) error) (newID, body string) {
	b.Helper()
	b.do = do
	q := httptest.NewRequest(http.MethodGet, "/", nil)
	source, name, _ := strings.Cut(b.lookup, ":")
	switch {
	case id == "":
	case source == "header":
		q.Header.Set(name, id)
	case source == "query":
		q.URL.RawQuery = name + "=" + id
		q.RequestURI = q.URL.RequestURI()
	default:
		q.AddCookie(&http.Cookie{Name: "session_id", Value: id})
	}
	res, err := b.app.Test(q, -1)
	require.NoError(b, err)
	text, err := io.ReadAll(res.Body)
	require.NoError(b, err)
	newID = res.Header.Get(name)
	for _, c := range res.Cookies() {
		newID = c.Value
	}
	return newID, string(text)
}

func set(key string, value any) func(c *fiber.Ctx, s *session.Session) error {
	return func(_ *fiber.Ctx, s *session.Session) error {
		s.Set(key, value)
		return s.Save()
	}
}

func (b *bed) login() (id string) {
	id, _ = b.request("", set("user", "alice"))
	require.NotEmpty(b, id)
	return id
}

func (b *bed) user(id string) (user string) {
	b.request(id, func(_ *fiber.Ctx, s *session.Session) error {
		user, _ = s.Get("user").(string)
		return nil
	})
	return user
}

func (b *bed) live() (n int) {
	for _, err := range b.store.List(b.Context()) {
		require.NoError(b, err)
		n++
	}
	return n
}

// Wherever the id is kept, a request that outlives a logout saves nothing and hands no id out, whatever
// it does; and a session that is renewed is found under its new id alone.
func TestPlaces(t *testing.T) {
	t.Parallel()
	for _, lookup := range []string{"", "header:X-Session", "query:sid"} {
		t.Run(lookup, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, session.Config{KeyLookup: lookup})
			for _, renews := range []bool{false, true} {
				x := b.login()
				id, body := b.request(x, func(c *fiber.Ctx, s *session.Session) error {
					require.NoError(t, b.store.Invalidate(c.UserContext(), x))
					if renews {
						require.NoError(t, s.Regenerate())
					}
					s.Set("cart", "pen")
					require.NoError(t, s.Save())
					return c.SendString("done")
				})
				require.Equal(t, "done", body)
				require.Empty(t, id)
				require.Zero(t, b.live())
			}

			x := b.login()
			id, _ := b.request(x, func(c *fiber.Ctx, s *session.Session) error { return s.Save() })
			if strings.HasPrefix(lookup, "query") { // fiber keeps it in a cookie from now on
				require.Equal(t, x, id)
			} else {
				require.Empty(t, id)
			}
			y, _ := b.request(x, func(_ *fiber.Ctx, s *session.Session) error {
				return errors.Join(s.Regenerate(), s.Save())
			})
			require.Len(t, y, len(tombstore.NewID()))
			require.Equal(t, "alice", b.user(y))
			require.Empty(t, b.user(x))
			require.NoError(t, b.sessions.Delete(x))
			require.Empty(t, b.user(y))
			z, _ := b.request("made up", set("user", "bob"))
			require.NotEqual(t, "made up", z)
			require.Equal(t, "bob", b.user(z))
		})
	}
}

// Several sessions of one request are one, as they have one id.
func TestSeveral(t *testing.T) {
	t.Parallel()
	b := newBed(t, session.Config{})
	get := func(c *fiber.Ctx) *session.Session {
		s, err := b.sessions.Get(c)
		require.NoError(t, err)
		return s
	}
	x, _ := b.request("", func(c *fiber.Ctx, s *session.Session) error {
		s.Set("user", "alice")
		require.NoError(t, s.Save())
		again := get(c)
		require.Equal(t, "alice", again.Get("user"))
		again.Set("cart", "pen")
		return again.Save()
	})
	require.Equal(t, 1, b.live())

	y, _ := b.request(x, func(c *fiber.Ctx, s *session.Session) error {
		other := get(c)
		require.NoError(t, s.Regenerate())
		require.ErrorIs(t, other.Regenerate(), errTwice)
		require.True(t, get(c).Fresh(), "the session has left its id")
		require.NoError(t, s.Regenerate())
		return s.Save()
	})
	require.Equal(t, "alice", b.user(y))
	require.Equal(t, 1, b.live())

	_, body := b.request(y, func(c *fiber.Ctx, s *session.Session) error {
		other := get(c)
		require.NoError(t, s.Regenerate())
		require.NoError(t, other.Destroy())
		return c.SendString("bye")
	})
	require.Equal(t, "bye", body)
	require.Zero(t, b.live())

	// Ended by somebody else between two Gets, whether the session was loaded or made in this request.
	for _, id := range []string{b.login(), ""} {
		z, body := b.request(id, func(c *fiber.Ctx, s *session.Session) error {
			id := s.ID()
			s.Set("user", "alice")
			require.NoError(t, s.Save())
			require.NoError(t, b.store.Invalidate(c.UserContext(), id))
			other := get(c)
			other.Set("user", "alice")
			require.NoError(t, other.Save())
			return c.SendString("done")
		})
		require.Equal(t, "done", body)
		require.Empty(t, b.user(z))
		require.Zero(t, b.live())
	}
}

func TestStore_Reset(t *testing.T) {
	t.Parallel()
	b := newBed(t, session.Config{})
	x, y := b.login(), b.login()
	require.NoError(t, b.sessions.Reset())
	require.Empty(t, b.user(x)+b.user(y))
	require.ErrorIs(t, b.sessions.Delete(""), session.ErrEmptySessionID)
}

func TestConflict(t *testing.T) {
	t.Parallel()
	b := newBed(t, session.Config{}, adapter.WithLostUpdates(adapter.Conflict))
	x := b.login()
	b.request(x, func(c *fiber.Ctx, s *session.Session) error {
		other, err := b.sessions.Get(c)
		require.NoError(t, err)
		theirs := newBedOn(b)
		theirs.request(x, set("cart", "pen"))
		other.Set("cart", "ink")
		require.ErrorIs(t, other.Save(), tombstore.ErrConflict)
		require.ErrorIs(t, s.Regenerate(), tombstore.ErrConflict)
		return nil
	})
	require.Equal(t, "alice", b.user(x))
}

// newBedOn returns another program with the sessions of b.
func newBedOn(b *bed) *bed {
	other := newBed(b.TB, session.Config{})
	other.store, other.sessions = b.store, b.sessions
	return other
}

func TestLogin(t *testing.T) {
	t.Parallel()
	b := newBed(t, session.Config{})
	begin := func() tombstore.Login {
		login, err := b.store.BeginLogin(t.Context(), "alice")
		require.NoError(t, err)
		return login
	}
	hour := tombstore.Until(time.Now().Add(time.Hour))
	for name, before := range map[string]func(s *session.Session) error{
		"":        func(*session.Session) error { return nil },
		"Destroy": (*session.Session).Destroy,
		"Reset":   (*session.Session).Reset,
	} {
		x, _ := b.request("", set("cart", "pen"))
		y, _ := b.request(x, func(c *fiber.Ctx, s *session.Session) error {
			require.NoError(t, before(s), name)
			require.NoError(t, b.sessions.Login(c, s, begin(), hour))
			s.Set("user", "alice")
			return s.Save()
		})
		require.Equal(t, "alice", b.user(y), name)
		require.Empty(t, b.user(x))
		n, err := b.store.InvalidateOwner(t.Context(), "alice")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Empty(t, b.user(y), name)
	}

	stale := begin()
	_, err := b.store.InvalidateOwner(t.Context(), "alice")
	require.NoError(t, err)
	x := b.login()
	id, _ := b.request(x, func(c *fiber.Ctx, s *session.Session) error {
		require.ErrorIs(t, b.sessions.Login(c, s, stale, hour), tombstore.ErrStaleLogin)
		require.ErrorIs(t, b.sessions.Login(c, s, begin()), tombstore.ErrNoDeadline)
		require.ErrorIs(t, b.sessions.Login(c, &session.Session{}, begin(), hour), errAnother)
		_, err := b.sessions.LogoutEverywhere(c, &session.Session{}, "alice")
		require.ErrorIs(t, err, errAnother)
		require.Equal(t, x, s.ID())
		s.Set("cart", "pen")
		return s.Save()
	})
	require.Equal(t, x, id, "the session is as it was")

	id, _ = b.request(x, func(c *fiber.Ctx, s *session.Session) error { // refused, and so is what comes after
		require.NoError(t, b.sessions.Login(c, s, begin(), hour))
		_, err := b.store.InvalidateOwner(c.UserContext(), "alice")
		require.NoError(t, err)
		return s.Save()
	})
	require.Empty(t, id)
	entered, err := b.store.Sessions(t.Context(), "alice")
	require.NoError(t, err)
	require.Empty(t, entered)
}
