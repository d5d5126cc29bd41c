package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"gitea.com/go-chi/session"
	_ "gitea.com/go-chi/session/redis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/chistore"
)

// Its ids are of 128 bits, which sealed data needs, in the place of 64.
var chiOptions = session.Options{CookieName: cookieName, IDLength: 32}

// chiUsual is go-chi/session with the library's own provider for Redis.
func chiUsual(t testing.TB, url, prefix string) string {
	options := chiOptions
	options.Provider = "redis"
	options.ProviderConfig = "addr=" + strings.TrimPrefix(url, "redis://") + ",prefix=" + prefix
	withSession, err := session.Sessioner(options)
	require.NoError(t, err)
	return chiApp(t, withSession, nil)
}

func chiOurs(t testing.TB, store tombstore.Renewer, opts ...adapter.Option) string {
	withSession, err := chistore.Sessioner(store, chiOptions, opts...)
	require.NoError(t, err)
	return chiApp(t, withSession, store)
}

// chiApp logs in and out as Gitea does.
func chiApp(
	t testing.TB, withSession func(http.Handler) http.Handler, store tombstore.Renewer,
) string {
	return serve(t, withSession(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		pass(q.Context(), loaded)
		body, err := inTurn(q.URL.Path[1:], func(step string) (string, error) { return chiAct(w, q, step, store) })
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, body)
	})))
}

func chiAct(w http.ResponseWriter, q *http.Request, step string, store tombstore.Renewer) (body string, err error) {
	s := session.GetSession(q)
	switch step {
	case "login":
		if _, err := session.RegenerateSession(w, q); err != nil {
			return "", err
		}
		_ = s.Set("user", "alice")
		return "hello", s.Release()
	case "add":
		return "added", s.Set("items", number(s.Get("items"))+1)
	case "read":
		return "seen", nil
	case "renew":
		_, err := session.RegenerateSession(w, q)
		return "renewed", err
	case "logout":
		_ = s.Flush()
		return "bye", s.Destroy(w, q)
	case "logout/destroy":
		return "bye", s.Destroy(w, q)
	case "logout/flush":
		return "bye", s.Flush()
	case "logout/flash":
		err := s.Destroy(w, q)
		_ = s.Set("flash", "bye")
		return "bye", err
	case "logout/renew":
		if err := s.Destroy(w, q); err != nil {
			return "", err
		}
		_, err := session.RegenerateSession(w, q)
		_ = s.Set("flash", "bye")
		return "bye", err
	case "enter":
		login, err := ticket(q.Context(), store)
		if err == nil {
			err = chistore.Login(w, q, login, tombstore.Until(time.Now().Add(time.Hour)))
		}
		if err == nil {
			_ = s.Set("user", name(q.Context()))
		}
		pass(q.Context(), acted)
		return enters(err)
	case "everywhere", "everywhere/anyway":
		if step == "everywhere" && s.Get("user") == nil {
			return anonymous, nil
		}
		_, err := chistore.LogoutEverywhere(w, q, "alice")
		pass(q.Context(), acted)
		return everywhere(err)
	}
	return who(s.Get("user")), nil
}
