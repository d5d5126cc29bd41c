package fiberstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/fiberstore"
)

func Example() {
	store, err := tombstore.NewMemory() // tombstore.Open("redis://127.0.0.1:6379") in a program of several processes
	if err != nil {
		log.Fatal(err)
	}
	app := fiber.New()
	app.Use(session.New(session.Config{Storage: fiberstore.New(store)}))
	app.Get("/visits", func(c fiber.Ctx) error {
		s := session.FromContext(c)
		n, _ := s.Get("visits").(int)
		s.Set("visits", n+1)
		return c.SendString(fmt.Sprintf("visit %d", n+1))
	})
	app.Get("/logout", func(c fiber.Ctx) error {
		if err := session.FromContext(c).Destroy(); err != nil {
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
func ExampleStorage_Login() {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	storage := fiberstore.New(store)
	app := fiber.New()
	app.Use(session.New(session.Config{Storage: storage, AbsoluteTimeout: 12 * time.Hour}))
	app.Post("/login", func(c fiber.Ctx) error {
		s, user := session.FromContext(c), c.Query("user")
		login, err := store.BeginLogin(c.Context(), user) // first of all
		if err != nil {
			return err
		}
		if c.Query("password") != "secret" {
			return fiber.NewError(fiber.StatusForbidden, "wrong password")
		}
		if err := storage.Login(c, s, login); errors.Is(err, tombstore.ErrStaleLogin) {
			return fiber.NewError(fiber.StatusForbidden, "log in again")
		} else if err != nil {
			return err
		}
		s.Set("user", user)
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
