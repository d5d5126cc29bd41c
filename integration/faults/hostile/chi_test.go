package hostile

import (
	"io"
	"net/http"
	"testing"

	"gitea.com/go-chi/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/chistore"
)

func chiApp(t testing.TB, store tombstore.Renewer) *app {
	withSession, err := chistore.Sessioner(store, session.Options{CookieName: cookieName})
	require.NoError(t, err)
	return &app{name: "chi", addr: serve(t, withSession(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s, text, err := session.GetSession(q), "done", error(nil)
		switch q.URL.Path {
		case "/login":
			if _, err = session.RegenerateSession(w, q); err == nil {
				err = s.Set("user", victim)
			}
		case "/add":
			err = s.Set("items", 1)
		case "/logout":
			err = s.Destroy(w, q)
		default:
			text = who(s.Get("user"))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, text)
	})))}
}
