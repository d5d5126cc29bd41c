package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/securecookie"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// A cookie that names no live session is no more than no cookie, and what it names is never used.
func TestBadCookies(t *testing.T) {
	onEach(t, func(t *testing.T, s setup) {
		sign := func(key []byte, value any) string {
			signed, err := securecookie.EncodeMulti(cookieName, value, securecookie.CodecsFromPairs(key)...)
			require.NoError(t, err)
			return signed
		}
		store := newStore(t, s.url(t))
		site := siteOn(t, s, store)
		alice := &browser{TB: t, site: site}
		alice.do("login")
		dead, id := alice.cookie, tombstore.NewID()
		alice.do("logout")
		for name, cookie := range map[string]string{
			"malformed":      "%%%",
			"truncated":      dead[:len(dead)/2],
			"changed":        dead[:len(dead)-4] + "AAAA",
			"replayed":       dead,
			"of another key": sign([]byte("another key of thirty-two bytes."), id),
			"bare id":        id,
			"signed id":      sign(keyPair, id),
			"empty id":       sign(keyPair, ""),
			"oversize id":    sign(keyPair, strings.Repeat("A", 2000)),
			"not an id":      sign(keyPair, 1),
		} {
			for _, action := range []string{"read", "add", "login", "logout"} {
				stranger := &browser{TB: t, site: site, cookie: cookie}
				a := stranger.do(action)
				require.Equal(t, http.StatusOK, a.status, "%s, %s: %s", name, action, a.body)
				switch action {
				case "add", "login":
					require.NotNil(t, a.cookie, "%s, %s", name, action)
					require.NotContains(t, []string{"", id, cookie, named(cookie)}, named(a.cookie.Value))
					require.Len(t, site.live(), 1, "%s, %s", name, action)
				case "logout":
					require.Empty(t, site.live(), name)
				}
				require.Equal(t, anonymous, alice.send("whoami", cookie, "").body, "%s, %s", name, action)
				for _, id := range []string{id, site.id(cookie), site.id(dead)} {
					live, err := store.Exists(t.Context(), id)
					require.False(t, live, "%s, %s: %v", name, action, err)
				}
				site.revoke()
			}
		}
	})
}
