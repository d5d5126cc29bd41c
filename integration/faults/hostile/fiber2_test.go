package hostile

import (
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/fiber2store"
	"github.com/tombstore/tombstore/integration/servers"
)

func fiber2App(t testing.TB, store tombstore.Renewer) *app {
	program := fiber.New(fiber.Config{DisableStartupMessage: true})
	sessions := fiber2store.New(store, session.Config{})
	program.Get("/:action", func(c *fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		text := "done"
		switch c.Params("action") {
		case "login":
			err = s.Regenerate()
			s.Set("user", victim)
		case "add":
			s.Set("items", 1)
		case "logout":
			if err := s.Destroy(); err != nil {
				return err
			}
			return c.SendString(text)
		default:
			text = who(s.Get("user"))
		}
		if err == nil {
			err = s.Save()
		}
		if err != nil {
			return err
		}
		return c.SendString(text)
	})
	return &app{name: "fiber v2", addr: servers.Fiber2(t, program)}
}
