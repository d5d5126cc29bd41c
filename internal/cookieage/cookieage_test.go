package cookieage

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSet(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"session=a; Path=/; Max-Age=60; HttpOnly; SameSite=Lax",
		"session=a; Path=/; Expires=" + time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) + "; HttpOnly; SameSite=Lax",
		"session=a; max-age=60; path=/; expires=Wed, 01 Jan 2200 00:00:00 GMT; HttpOnly; SameSite=Lax",
	} {
		cookie, err := http.ParseSetCookie(Set(line, 90*time.Minute+1))
		require.NoError(t, err)
		require.Equal(t, 90*60+1, cookie.MaxAge)
		require.WithinDuration(t, time.Now().Add(90*time.Minute), cookie.Expires, time.Minute)
		require.Equal(t, "a", cookie.Value)
		require.Equal(t, "/", cookie.Path)
		require.True(t, cookie.HttpOnly)
		require.Equal(t, http.SameSiteLaxMode, cookie.SameSite)
	}
	for _, line := range []string{
		"session=a; Path=/", "session=; Max-Age=0", "session=; Expires=Thu, 01 Jan 1970 00:00:01 GMT; Max-Age=0",
		"session=; Expires=Thu, 01 Jan 1970 00:00:01 GMT", "", "; Max-Age=60",
	} {
		require.Equal(t, line, Set(line, time.Hour))
	}
}
