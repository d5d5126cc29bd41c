package hostile

import (
	"context"
	"net/http"
	"testing"

	hertz "github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/hertz-contrib/sessions"

	"github.com/tombstore/tombstore"
	hertzstore "github.com/tombstore/tombstore/gorillastore/hertz"
	"github.com/tombstore/tombstore/integration/servers"
)

func hertzApp(t testing.TB, backend tombstore.Renewer) *app {
	store := hertzstore.New(backend, keyPair)
	return &app{name: "hertz", codec: store.Codecs[0], addr: servers.Hertz(t, func(h *server.Hertz) {
		h.Use(sessions.New(cookieName, store))
		h.GET("/:action", func(_ context.Context, c *hertz.RequestContext) {
			s := sessions.Default(c)
			text := "done"
			switch c.Param("action") {
			case "login":
				s.Set("user", victim)
			case "add":
				s.Set("items", 1)
			case "logout":
				s.Clear()
				s.Options(sessions.Options{Path: "/", MaxAge: -1})
			default:
				text = who(s.Get("user"))
			}
			if text == "done" {
				if err := s.Save(); err != nil {
					c.String(http.StatusInternalServerError, err.Error())
					return
				}
			}
			c.String(http.StatusOK, text)
		})
	})}
}
