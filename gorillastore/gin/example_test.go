package ginstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
)

// The first lines of main are all that changes in an existing program, and Renew at the login is
// new: gin has nothing for it.
func Example() {
	backend, err := tombstore.NewMemory() // or tombstore.Open("redis://127.0.0.1:6379")
	if err != nil {
		panic(err)
	}
	store := ginstore.New(backend, []byte("an authentication key, 32 bytes."))

	router := gin.New()
	router.Use(sessions.Sessions("session", store))
	router.POST("/login", func(c *gin.Context) {
		session := sessions.Default(c)
		session.Set("user", "alice")
		store.Renew(session)
		if err := session.Save(); err != nil {
			c.String(http.StatusServiceUnavailable, "try again later")
			return
		}
		c.String(http.StatusOK, "welcome")
	})

	w := httptest.NewRecorder()
	router.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/login", nil))
	fmt.Println(w.Body, len(w.Result().Cookies()))
	// Output: welcome 1
}

// A program that has kept its sessions in gin-contrib/sessions/redis: they are migrated when they are met.
// Take the option out when none of them can be live any more.
func ExampleStore_With() {
	backend, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithTombstoneTTL(31*24*time.Hour))
	if err != nil {
		panic(err)
	}
	client, err := rueidis.NewClient(rueidis.MustParseURL("redis://127.0.0.1:6379"))
	if err != nil {
		panic(err)
	}
	old := adapter.NewOldKeys(client, "session_")
	store := ginstore.New(backend, []byte("the key that signs the cookies so far")).With(adapter.WithMigration(old))
	gin.New().Use(sessions.Sessions("session", store))
}

// A login that can be ended: its owner can be logged out everywhere.
func ExampleStore_Login() {
	backend, err := tombstore.NewMemory()
	if err != nil {
		panic(err)
	}
	store := ginstore.New(backend, []byte("an authentication key, 32 bytes."))

	router := gin.New()
	router.Use(sessions.Sessions("session", store))
	router.POST("/login", func(c *gin.Context) {
		session := sessions.Default(c)
		login, err := backend.BeginLogin(c.Request.Context(), c.Query("user")) // first of all
		if err == nil && c.Query("password") != "secret" {
			c.String(http.StatusForbidden, "wrong password")
			return
		}
		if err == nil {
			err = store.Login(c, session, login, tombstore.Until(time.Now().Add(12*time.Hour)))
		}
		switch {
		case errors.Is(err, tombstore.ErrStaleLogin):
			c.String(http.StatusForbidden, "log in again")
			return
		case err != nil:
			c.String(http.StatusServiceUnavailable, "try again later")
			return
		}
		session.Set("user", c.Query("user"))
		if err := session.Save(); err != nil || store.Refused(session) {
			c.String(http.StatusServiceUnavailable, "try again later")
			return
		}
		c.String(http.StatusOK, "welcome")
	})

	w := httptest.NewRecorder()
	router.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/login?user=alice&password=secret", nil))
	fmt.Println(w.Body)
	fmt.Println(backend.InvalidateOwner(context.Background(), "alice"))
	// Output:
	// welcome
	// 1 <nil>
}
