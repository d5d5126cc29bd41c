package fiber2store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/fiber2store"
)

func Example() {
	store, err := tombstore.NewMemory() // tombstore.Open("redis://127.0.0.1:6379") in a program of several processes
	if err != nil {
		log.Fatal(err)
	}
	sessions := fiber2store.New(store, session.Config{Expiration: time.Hour})
	app := fiber.New()
	app.Get("/visits", func(c *fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		n, _ := s.Get("visits").(int)
		s.Set("visits", n+1)
		if err := s.Save(); err != nil {
			return err
		}
		return c.SendString(fmt.Sprintf("visit %d", n+1))
	})
	app.Get("/logout", func(c *fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		if err := s.Destroy(); err != nil {
			return err
		}
		return c.SendString("logged out")
	})

	cookie := ""
	for _, path := range []string{"/visits", "/visits", "/logout", "/visits"} {
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("Cookie", cookie)
		res, err := app.Test(req)
		if err != nil {
			log.Fatal(err)
		}
		if cookie == "" {
			cookie, _, _ = strings.Cut(res.Header.Get("Set-Cookie"), ";")
		}
		body, _ := io.ReadAll(res.Body)
		fmt.Printf("%s: %s\n", path, body)
	}
	// Output:
	// /visits: visit 1
	// /visits: visit 2
	// /logout: logged out
	// /visits: visit 1
}

// A login that can be ended: its owner can be logged out everywhere.
func ExampleStore_Login() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	sessions := fiber2store.New(store, session.Config{})
	app := fiber.New()
	app.Post("/login", func(c *fiber.Ctx) error {
		user := c.Query("user")
		login, err := store.BeginLogin(c.UserContext(), user) // first of all
		if err != nil {
			return err
		}
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		if c.Query("password") != "secret" {
			return fiber.NewError(fiber.StatusForbidden, "wrong password")
		}
		evening := time.Now().Add(12 * time.Hour)
		if err := sessions.Login(c, s, login, tombstore.Until(evening)); errors.Is(err, tombstore.ErrStaleLogin) {
			return fiber.NewError(fiber.StatusForbidden, "log in again")
		} else if err != nil {
			return err
		}
		s.Set("user", user)
		if err := s.Save(); err != nil {
			return err
		}
		return c.SendString("welcome")
	})

	res, err := app.Test(httptest.NewRequest("POST", "/login?user=alice&password=secret", nil))
	if err != nil {
		log.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	fmt.Println(string(body))
	fmt.Println(store.InvalidateOwner(context.Background(), "alice"))
	// Output:
	// welcome
	// 1 <nil>
}
