package fiber2store

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// A session with a lifetime of its own keeps it in requests that know nothing of it, and its cookie
// lives as long.
func TestSetLifetime(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	b := newBed(t, session.Config{Expiration: time.Hour})
	visit := func(id string, idle time.Duration, do func(c *fiber.Ctx, s *session.Session) error) string {
		t.Helper()
		b.do = do
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if id != "" {
			r.AddCookie(&http.Cookie{Name: "session_id", Value: id})
		}
		res, err := b.app.Test(r, -1)
		require.NoError(t, err)
		require.Len(t, res.Cookies(), 1)
		cookie := res.Cookies()[0]
		require.InDelta(t, idle.Seconds(), cookie.MaxAge, 60)
		got, err := b.store.Read(t.Context(), cookie.Value, tombstore.WithExpiry())
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(idle), got.ExpiresAt, time.Minute)
		return cookie.Value
	}
	for _, l := range []tombstore.Lifetime{
		{Idle: 30 * day, Absolute: 90 * day}, {Idle: 15 * time.Minute, Absolute: 45 * time.Minute},
	} {
		for _, before := range []string{"", b.login()} {
			id := visit(before, l.Idle, func(c *fiber.Ctx, s *session.Session) error {
				require.NoError(t, b.sessions.SetLifetime(c, s, l))
				return s.Save()
			})
			require.Equal(t, id, visit(id, l.Idle, set("x", 1)))
			require.Equal(t, id, visit(id, l.Idle, func(_ *fiber.Ctx, s *session.Session) error {
				s.SetExpiry(5 * time.Minute)
				s.Set("x", 2)
				return s.Save()
			}))
			id = visit(id, l.Idle, func(_ *fiber.Ctx, s *session.Session) error {
				require.NoError(t, s.Regenerate())
				return s.Save()
			})
			id = visit(id, time.Hour, func(c *fiber.Ctx, s *session.Session) error {
				require.NoError(t, b.sessions.SetLifetime(c, s, tombstore.Lifetime{}))
				return s.Save()
			})
			visit(id, l.Idle, func(c *fiber.Ctx, s *session.Session) error {
				login, err := b.store.BeginLogin(c.Context(), "alice")
				require.NoError(t, err)
				require.NoError(t, b.sessions.Login(c, s, login, tombstore.LoginLifetime(l)))
				return s.Save()
			})
		}
	}
}
