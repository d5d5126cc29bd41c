package integration

import (
	"context"
	"net/http"
	"testing"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/middlewares/server/recovery"
	hertzserver "github.com/cloudwego/hertz/pkg/app/server"
	"github.com/gorilla/sessions"
	hertzsessions "github.com/hertz-contrib/sessions"

	"github.com/tombstore/tombstore"
	hertzstore "github.com/tombstore/tombstore/gorillastore/hertz"
	"github.com/tombstore/tombstore/integration/servers"
)

func hertzApp(t testing.TB, store hertzsessions.Store, backend tombstore.Renewer) string {
	return "http://" + servers.Hertz(t, func(h *hertzserver.Hertz) {
		h.Use(recovery.Recovery(), func(ctx context.Context, c *app.RequestContext) {
			ctx, _ = withRace(withUser(ctx, string(c.GetHeader(userHeader))), string(c.GetHeader(raceHeader)))
			c.Next(ctx)
			pass(ctx, answering)
		})
		h.Use(hertzsessions.New(cookieName, racedHertzStore{store}))
		h.POST("/*action", func(ctx context.Context, c *app.RequestContext) {
			s := hertzsessions.Default(c)
			s.Get("user") // hertz loads at the first use
			pass(ctx, loaded)
			body, save, err := hertzAct(ctx, c.Param("action"), s, store, backend)
			if err == nil && save {
				err = s.Save()
			}
			if err != nil {
				c.String(http.StatusInternalServerError, err.Error())
				return
			}
			c.String(http.StatusOK, body)
		})
	})
}

func hertzAct(
	ctx context.Context, action string, s hertzsessions.Session, store hertzsessions.Store, backend tombstore.Renewer,
) (body string, save bool, err error) {
	inner := s.(interface{ Session() *sessions.Session }).Session()
	var o owned
	if ours, ok := store.(*hertzstore.Store); ok {
		o.login = func(login tombstore.Login, opts ...tombstore.ReserveOption) error {
			return ours.Login(ctx, s, login, opts...)
		}
		o.everywhere = func() (int, error) { return ours.LogoutEverywhere(ctx, s, "alice") }
	}
	expire := func() { s.Options(hertzsessions.Options{Path: "/", MaxAge: -1}) }
	return o.contribAct(ctx, action, s, expire, inner, backend)
}

// racedHertzStore lets requests stop in a store, which hertz gives a request without the handler's context.
type racedHertzStore struct{ hertzsessions.Store }

func (s racedHertzStore) Get(r *http.Request, name string) (*sessions.Session, error) {
	ctx, _ := withRace(r.Context(), r.Header.Get(raceHeader))
	*r = *r.WithContext(ctx)
	return s.Store.Get(r, name)
}
