package fiberstore_test

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"

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
