package integration

import (
	"net/http"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/labstack/echo-contrib/session"
	"github.com/labstack/echo/v4"

	"github.com/tombstore/tombstore"
)

func echo4App(t testing.TB, store sessions.Store, backend tombstore.Renewer) string {
	e := echo.New()
	e.Use(session.Middleware(store))
	e.POST("/:action", func(c echo.Context) error {
		s, err := session.Get(cookieName, c)
		if err != nil {
			return err
		}
		pass(c.Request().Context(), loaded)
		body, save, err := gorillaOwned(store, c.Request(), s).actAll(c.Request().Context(), c.Param("action"), s, backend)
		if err == nil && save {
			err = s.Save(c.Request(), c.Response())
		}
		if err != nil {
			return err
		}
		return c.String(http.StatusOK, body)
	})
	return serve(t, e)
}
