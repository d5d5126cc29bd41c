package hertzstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/common/ut"
	"github.com/hertz-contrib/sessions"

	"github.com/tombstore/tombstore"
	hertzstore "github.com/tombstore/tombstore/gorillastore/hertz"
)

// The first lines of main are all that changes in an existing program, and Renew at the login is
// new: hertz has nothing for it.
func Example() {
	backend, err := tombstore.NewMemory() // or tombstore.Open("redis://127.0.0.1:6379")
	if err != nil {
		panic(err)
	}
	store := hertzstore.New(backend, []byte("an authentication key, 32 bytes."))

	h := server.New()
	h.Use(sessions.New("session", store))
	h.POST("/login", func(_ context.Context, c *app.RequestContext) {
		session := sessions.Default(c)
		session.Set("user", "alice")
		store.Renew(session)
		if err := session.Save(); err != nil {
			c.String(http.StatusServiceUnavailable, "try again later")
			return
		}
		c.String(http.StatusOK, "welcome")
	})

	res := ut.PerformRequest(h.Engine, http.MethodPost, "/login", nil).Result()
	fmt.Println(string(res.Body()), len(res.Header.GetCookies()))
	// Output: welcome 1
}

// A login that can be ended: its owner can be logged out everywhere.
func ExampleStore_Login() {
	backend, err := tombstore.NewMemory()
	if err != nil {
		panic(err)
	}
	store := hertzstore.New(backend, []byte("an authentication key, 32 bytes."))

	h := server.New()
	h.Use(sessions.New("session", store))
	h.POST("/login", func(ctx context.Context, c *app.RequestContext) {
		session, user := sessions.Default(c), c.Query("user")
		login, err := backend.BeginLogin(ctx, user) // first of all
		if err == nil && c.Query("password") != "secret" {
			c.String(http.StatusForbidden, "wrong password")
			return
		}
		if err == nil {
			err = store.Login(ctx, session, login, tombstore.Until(time.Now().Add(12*time.Hour)))
		}
		switch {
		case errors.Is(err, tombstore.ErrStaleLogin):
			c.String(http.StatusForbidden, "log in again")
			return
		case err != nil:
			c.String(http.StatusServiceUnavailable, "try again later")
			return
		}
		session.Set("user", user)
		if err := session.Save(); err != nil || store.Refused(session) {
			c.String(http.StatusServiceUnavailable, "try again later")
			return
		}
		c.String(http.StatusOK, "welcome")
	})

	res := ut.PerformRequest(h.Engine, http.MethodPost, "/login?user=alice&password=secret", nil).Result()
	fmt.Println(string(res.Body()))
	fmt.Println(backend.InvalidateOwner(context.Background(), "alice"))
	// Output:
	// welcome
	// 1 <nil>
}
