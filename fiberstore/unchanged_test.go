package fiberstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/extractors"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"
)

// Where the id came in a header, a request that changes nothing gets none in its response.
func TestUnchanged_Header(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{
			IdleTimeout: time.Hour,
			Extractor:   extractors.Chain(extractors.FromHeader("X-Session"), extractors.FromCookie("session_id")),
		})
		x := b.get("login", "").header.Get("X-Session")
		require.NotEmpty(t, x)
		who := func() reply {
			req := b.request("who", "")
			req.Header.Set("X-Session", x)
			return b.do(req)
		}
		got := who()
		require.Equal(t, "alice", got.body)
		require.NotContains(t, got.header, "X-Session")
		require.Nil(t, got.cookie)
		require.Zero(t, b.store.touches)
		require.NoError(t, b.store.backend.Touch(t.Context(), x, 50*time.Minute))
		require.Equal(t, x, who().header.Get("X-Session"))
	})
}

// A program that puts the id into the response itself hands it out, so it must be good.
func TestUnchanged_HandedOut(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		for name, put := range map[string]func(c fiber.Ctx, id string){
			"header": func(c fiber.Ctx, id string) { c.Set("X-Id", id) },
			"cookie": func(c fiber.Ctx, id string) { c.Cookie(&fiber.Cookie{Name: "copy", Value: id}) },
		} {
			b := newBed(t, m, session.Config{})
			b.step = func(c fiber.Ctx, s values) error {
				put(c, s.ID())
				return nil
			}
			x := b.login()
			got := b.get("step", x)
			require.Equal(t, x, got.id())
			require.Equal(t, 2, strings.Count(fmt.Sprint(got.header), x), name)
			require.Equal(t, 1, b.store.touches)

			resume := b.start("step", x, "loaded")
			b.get("logout", x)
			got = resume()
			require.Nil(t, got.cookie)
			require.NotContains(t, got.header, "X-Id")
			require.Len(t, got.header["Set-Cookie"], 1, "the theme")
		}
	})
}

// What the request has saved before, under whatever id, keeps its cookie when nothing is left to save.
func TestUnchanged_SavedBefore(t *testing.T) {
	t.Parallel()
	set := func(s *session.Session) error { s.Set("user", "alice"); return s.Save() }
	for name, first := range map[string]func(b *bed, c fiber.Ctx, s *session.Session) error{
		"new":     func(_ *bed, _ fiber.Ctx, s *session.Session) error { return set(s) },
		"changed": func(_ *bed, _ fiber.Ctx, s *session.Session) error { s.Set("n", rand.Text()); return s.Save() },
		"renewed": func(_ *bed, _ fiber.Ctx, s *session.Session) error { return errors.Join(s.Regenerate(), s.Save()) },
		"reset":   func(_ *bed, _ fiber.Ctx, s *session.Session) error { return errors.Join(s.Reset(), set(s)) },
		"new, and loaded again": func(b *bed, c fiber.Ctx, s *session.Session) error {
			again, err := b.storage.GetWithContext(c, s.ID())
			require.Nil(t, again)
			err = errors.Join(err, set(s))
			again, err2 := b.storage.GetWithContext(c, s.ID())
			require.NotNil(t, again)
			return errors.Join(err, err2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, storeMode, session.Config{})
			b.step = func(c fiber.Ctx, s values) error { return first(b, c, s.(*session.Session)) }
			x := b.login()
			if strings.HasPrefix(name, "new") {
				x = ""
			}
			got := b.get("step", x)
			require.Equal(t, http.StatusAccepted, got.status)
			require.NotNil(t, got.cookie)
			require.Equal(t, "alice", b.get("who", got.id()).body)
		})
	}
}

// With a context of NewContext there is no response, and nobody whose cookie would be at stake.
func TestUnchanged_NoResponse(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	x := b.login()
	ctx := b.storage.NewContext(t.Context())
	s, err := b.sessions.GetByID(ctx, x)
	require.NoError(t, err)
	require.NoError(t, s.SaveWithContext(ctx))
	require.Equal(t, 1, b.store.touches)
}
