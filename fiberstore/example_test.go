package fiberstore_test

import (
	"bufio"
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

// Server-sent events that end with the session. The handler has returned when they begin.
func Example_events() {
	store, err := tombstore.NewMemory() // on a server: tombstore.Open, with tombstore.WithPublish
	if err != nil {
		log.Fatal(err)
	}
	app := fiber.New()
	app.Use(session.New(session.Config{Storage: fiberstore.New(store)}))
	app.Post("/visit", func(c fiber.Ctx) error { return c.SendStatus(fiber.StatusNoContent) })
	news := make(chan string)
	app.Get("/events", func(c fiber.Ctx) error {
		ctx, cancel := context.WithCancel(context.Background())
		ctx, err := store.Watch(ctx, session.FromContext(c).ID())
		if err != nil {
			cancel()
			if tombstore.NoSession(err) {
				return fiber.ErrUnauthorized
			}
			return err
		}
		c.Set(fiber.HeaderContentType, "text/event-stream")
		return c.SendStreamWriter(func(w *bufio.Writer) {
			defer cancel() // in the handler it would end the watch at once
			for {
				select {
				case text := <-news:
					fmt.Fprintf(w, "data: %s\n\n", text)
				case <-ctx.Done():
					fmt.Fprint(w, "event: end\ndata: you are logged out\n\n")
					return
				case <-time.After(15 * time.Second):
					fmt.Fprint(w, ": are you there?\n\n")
				}
				if w.Flush() != nil { // the browser has gone
					return
				}
			}
		})
	})

	visit, err := app.Test(httptest.NewRequest("POST", "/visit", nil))
	if err != nil {
		log.Fatal(err)
	}
	cookie := visit.Cookies()[0]
	go func() {
		news <- "hello"
		if err := store.Invalidate(context.Background(), cookie.Value); err != nil { // a logout in another tab
			log.Fatal(err)
		}
	}()
	for range 2 {
		r := httptest.NewRequest("GET", "/events", nil)
		r.AddCookie(cookie)
		events, err := app.Test(r, fiber.TestConfig{})
		if err != nil {
			log.Fatal(err)
		}
		text, _ := io.ReadAll(events.Body)
		fmt.Printf("%s\n%s", events.Status, text)
	}
	// Output:
	// 200 OK
	// data: hello
	//
	// event: end
	// data: you are logged out
	//
	// 401 Unauthorized
	// Unauthorized
}
