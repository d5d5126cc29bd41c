package integration

import (
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/recover"
	"github.com/gofiber/fiber/v2/middleware/session"
	fiberredis "github.com/gofiber/storage/redis/v3"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/fiber2store"
	"github.com/tombstore/tombstore/integration/servers"
)

// fiber2Sessions is fiber's session store, or ours.
type fiber2Sessions interface {
	Get(c *fiber.Ctx) (*session.Session, error)
}

// fiber2Act does a step of an action, and reports whether the session is to be saved after it.
func fiber2Act(
	c *fiber.Ctx, step string, s *session.Session, sessions fiber2Sessions, store tombstore.Renewer,
) (body string, save bool, err error) {
	switch step {
	case "enter":
		login, err := ticket(c.UserContext(), store)
		if err == nil {
			hour := tombstore.Until(time.Now().Add(time.Hour))
			err = sessions.(*fiber2store.Store).Login(c, s, login, hour)
		}
		if err == nil {
			s.Set("user", name(c.UserContext()))
		}
		body, err = enters(err)
		return body, true, err
	case "everywhere", "everywhere/anyway":
		if step == "everywhere" && s.Get("user") == nil {
			return anonymous, true, nil
		}
		_, err = sessions.(*fiber2store.Store).LogoutEverywhere(c, s, "alice")
		body, err = everywhere(err)
		return body, true, err
	case "login":
		err = s.Regenerate()
		s.Set("user", "alice")
		return "hello", true, err
	case "add":
		s.Set("items", number(s.Get("items"))+1)
		return "added", true, nil
	case "read":
		return "seen", true, nil
	case "renew":
		return "renewed", true, s.Regenerate()
	case "logout":
		return "bye", false, s.Destroy()
	case "logout/reset":
		return "bye", true, s.Reset()
	}
	return who(s.Get("user")), false, nil
}

func fiber2App(t testing.TB, sessions fiber2Sessions, store tombstore.Renewer) string {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Use(recover.New(), func(c *fiber.Ctx) error {
		ctx, _ := withRace(withUser(c.UserContext(), c.Get(userHeader)), c.Get(raceHeader))
		c.SetUserContext(ctx)
		err := c.Next()
		pass(ctx, answering)
		return err
	})
	app.Post("/*", func(c *fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		pass(c.UserContext(), loaded)
		save := false
		body, err := inTurn(c.Params("*"), func(step string) (text string, err error) {
			text, save, err = fiber2Act(c, step, s, sessions, store)
			return text, err
		})
		pass(c.UserContext(), acted)
		if err == nil && save {
			err = s.Save()
		}
		if err != nil {
			return err
		}
		return c.SendString(body)
	})
	return "http://" + servers.Fiber2(t, app)
}

// prefixed2 is prefixed for fiber v2, which passes no context.
type prefixed2 struct {
	*fiberredis.Storage
	prefix string
}

func (p prefixed2) Get(key string) ([]byte, error) { return p.Storage.Get(p.prefix + key) }

func (p prefixed2) Set(key string, value []byte, ttl time.Duration) error {
	return p.Storage.Set(p.prefix+key, value, ttl)
}

func (p prefixed2) Delete(key string) error { return p.Storage.Delete(p.prefix + key) }
