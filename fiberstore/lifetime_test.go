package fiberstore

import (
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// A session with a lifetime of its own keeps it in requests that know nothing of it, and its cookie
// lives as long.
func TestSetLifetime(t *testing.T) {
	const day = 24 * time.Hour
	config := session.Config{IdleTimeout: time.Hour, AbsoluteTimeout: 12 * time.Hour}
	eachMember(t, config, nil, func(m *members, _ mode) {
		lives := func(r reply, id string, idle time.Duration) {
			m.Helper()
			require.Equal(m, 202, r.status, r.body)
			got, err := m.store.Read(m.Context(), id, tombstore.WithExpiry())
			require.NoError(m, err)
			require.WithinDuration(m, time.Now().Add(idle), got.ExpiresAt, time.Minute)
			require.NotNil(m, r.cookie)
			require.Equal(m, id, r.cookie.Value)
			require.InDelta(m, idle.Seconds(), r.cookie.MaxAge, 60)
		}
		id := m.visitor()
		m.act(func(c fiber.Ctx, s Session) error {
			require.ErrorIs(m, m.storage.SetLifetime(c, s, tombstore.Lifetime{Idle: -1}), tombstore.ErrInvalidTTL)
			require.Equal(m, id, s.ID())
			return nil
		})
		require.Equal(m, 202, m.get("step", id).status)
		for _, l := range []tombstore.Lifetime{
			{Idle: 30 * day, Absolute: 90 * day}, {Idle: 15 * time.Minute, Absolute: 45 * time.Minute},
		} {
			remember := func(c fiber.Ctx, s Session) error {
				s.Set("user", "alice")
				return m.storage.SetLifetime(c, s, l)
			}
			login := func(c fiber.Ctx, s Session) error {
				login, err := m.store.BeginLogin(c.Context(), "alice")
				require.NoError(m, err)
				s.Set("user", "alice")
				return m.storage.Login(c, s, login, tombstore.LoginLifetime(l))
			}
			for _, begin := range []func(c fiber.Ctx, s Session) error{remember, login} {
				for _, before := range []string{"", m.visitor()} {
					m.act(begin)
					r := m.get("step", before)
					id := r.id()
					lives(r, id, l.Idle)
					m.act(func(_ fiber.Ctx, s Session) error { s.Set("x", "1"); return nil })
					lives(m.get("step", id), id, l.Idle)
					r = m.get("renew", id)
					lives(r, r.id(), l.Idle)
					id = r.id()
					m.act(func(c fiber.Ctx, s Session) error {
						return m.storage.SetLifetime(c, s, tombstore.Lifetime{})
					})
					if l.Absolute > time.Hour { // or its deadline comes first
						r = m.get("step", id)
						lives(r, r.id(), time.Hour)
						id = r.id()
					}
					m.get("logout", id)
					m.dead(id)
				}
			}
		}
	})
}
