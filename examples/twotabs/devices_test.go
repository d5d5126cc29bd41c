package main

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// user is alice with her devices. It asserts what the store holds, beside what the pages show.
type user struct {
	*testing.T
	site, full string
	store      *tombstore.RedisStore
	browser    *http.Client
}

// onBoth runs a test on the server of the tests, and on the one inside the program.
func onBoth(t *testing.T, full string, test func(u *user)) {
	t.Parallel()
	for name, server := range map[string]string{"server": redistest.URL(t), "inside": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			site, client, prefix := serve(t, server)
			store, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix+full+":"))
			require.NoError(t, err)
			jar, err := cookiejar.New(nil)
			require.NoError(t, err)
			test(&user{T: t, site: site, full: full, store: store, browser: &http.Client{Jar: jar}})
		})
	}
}

// serve serves the site, with keys of its own.
func serve(t *testing.T, redis string) (site string, client rueidis.Client, prefix string) {
	t.Helper()
	client, closeAll, err := connect(redis)
	require.NoError(t, err)
	t.Cleanup(closeAll)
	prefix = redistest.Prefix(t, client)
	handler, err := newSite(client, prefix)
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL, client, prefix
}

func (u *user) url(device, path string) string {
	return u.site + "/devices/" + u.full + "/" + device + "/" + path
}

// page reads an answer.
func (u *user) page(answer *http.Response, err error) (status int, page string) {
	u.Helper()
	require.NoError(u, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(u, err)
	return answer.StatusCode, string(body)
}

// post sends a form, and requires the page that it leads to.
func (u *user) post(device, action string, form url.Values) (page string) {
	u.Helper()
	status, page := u.page(u.browser.PostForm(u.url(device, action), form))
	require.Equal(u, http.StatusOK, status)
	return page
}

func (u *user) login(device string) (token string) {
	u.Helper()
	require.Contains(u, u.post(device, "login", nil), ">alice</b> is logged in")
	return u.token(device)
}

// token returns the session cookie of a device.
func (u *user) token(device string) string {
	u.Helper()
	site, err := url.Parse(u.url(device, ""))
	require.NoError(u, err)
	cookies := u.browser.Jar.Cookies(site)
	require.Len(u, cookies, 1)
	return cookies[0].Value
}

// shows reports whom a device's page shows as logged in.
func (u *user) shows(device string) bool {
	u.Helper()
	status, page := u.page(u.browser.Get(u.url(device, "")))
	require.Equal(u, http.StatusOK, status)
	return strings.Contains(page, ">alice</b> is logged in")
}

// live requires that the store holds these sessions of alice's, and no other.
func (u *user) live(tokens ...string) {
	u.Helper()
	var want, got []string
	for _, token := range tokens {
		want = append(want, tombstore.Ref(token))
		_, err := u.store.Read(u.Context(), token)
		require.NoError(u, err)
	}
	sessions, err := u.store.Sessions(u.Context(), "alice")
	require.NoError(u, err)
	for _, s := range sessions {
		got = append(got, s.Ref)
	}
	require.ElementsMatch(u, want, got)
}

// ended requires that the store holds a tombstone.
func (u *user) ended(token string, why tombstore.Reason) {
	u.Helper()
	var ended *tombstore.InvalidatedError
	_, err := u.store.Read(u.Context(), token)
	require.ErrorAs(u, err, &ended)
	require.Equal(u, why, ended.Reason)
}

func TestDevices_Login(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		require.False(u, u.shows("phone"))
		phone, laptop := u.login("phone"), u.login("laptop")
		u.live(phone, laptop)
		_, page := u.page(u.browser.Get(u.url("phone", "")))
		rows := regexp.MustCompile(`(?s)<li>.*?</li>`).FindAllString(page, -1)
		slices.SortFunc(rows, strings.Compare) // they may have been begun at the same time
		require.Len(u, rows, 2)
		require.Contains(u, rows[0], "laptop, another browser")
		require.NotContains(u, rows[0], "this device")
		require.Contains(u, rows[0], `name="ref" value="`+tombstore.Ref(laptop)+`"`)
		require.Contains(u, rows[1], "phone, another browser")
		require.Contains(u, rows[1], "this device")
		require.NotContains(u, rows[1], "<form")
		require.NotContains(u, page, laptop)
	})
}

func TestDevices_Logout(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		phone, laptop := u.login("phone"), u.login("laptop")
		u.post("phone", "logout", nil)
		u.ended(phone, tombstore.Logout)
		u.live(laptop)
		require.False(u, u.shows("phone"))
	})
}

func TestDevices_End(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		phone, laptop := u.login("phone"), u.login("laptop")
		form := url.Values{"ref": {tombstore.Ref(phone)}}
		for range 2 { // the second time it is gone
			require.NotContains(u, u.post("laptop", "end", form), "phone")
			u.ended(phone, tombstore.Revoked)
			u.live(laptop)
		}
		require.False(u, u.shows("phone"))
		require.True(u, u.shows("laptop"))

		u.post("phone", "end", url.Values{"ref": {tombstore.Ref(laptop)}}) // it is logged out
		u.live(laptop)
	})
}

// A form cannot end a session of somebody else.
func TestDevices_EndForeign(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		laptop, bobs := u.login("laptop"), tombstore.NewID()
		login, err := u.store.BeginLogin(u.Context(), "bob")
		require.NoError(u, err)
		binding, err := u.store.Reserve(u.Context(), bobs, login, tombstore.Until(time.Now().Add(time.Hour)))
		require.NoError(u, err)
		_, err = u.store.Write(u.Context(), bobs, nil, time.Hour, tombstore.IfAbsent(), tombstore.Bound(binding))
		require.NoError(u, err)

		u.post("laptop", "end", url.Values{"ref": {tombstore.Ref(bobs)}, "user": {"bob"}})
		_, err = u.store.Read(u.Context(), bobs)
		require.NoError(u, err)
		u.live(laptop)
	})
}

// The device that ends all others goes on, with a new token.
func TestDevices_EndOthers(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		phone, laptop := u.login("phone"), u.login("laptop")
		page := u.post("laptop", "others", nil)
		require.Contains(u, page, "this device")
		require.NotContains(u, page, "phone")
		u.ended(phone, tombstore.Revoked)
		require.NotEqual(u, laptop, u.token("laptop"))
		u.live(u.token("laptop"))
		_, err := u.store.Read(u.Context(), laptop)
		require.ErrorIs(u, err, tombstore.ErrInvalidated)
		require.False(u, u.shows("phone"))

		u.post("phone", "others", nil) // it is logged out
		u.live(u.token("laptop"))
	})
}

func TestDevices_Refuse(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		phone, laptop := u.login("phone"), u.login("laptop")
		status, page := u.page(u.browser.PostForm(u.url("tablet", "login"), nil))
		require.Equal(u, http.StatusForbidden, status)
		require.Contains(u, page, "At most 2 devices")
		require.False(u, u.shows("tablet"))
		u.live(phone, laptop)
	})
}

func TestDevices_Evict(t *testing.T) {
	onBoth(t, "evict", func(u *user) {
		phone := u.login("phone")
		time.Sleep(2 * time.Millisecond) // it is the oldest by whole milliseconds
		laptop, tablet := u.login("laptop"), u.login("tablet")
		u.ended(phone, tombstore.Revoked)
		u.live(laptop, tablet)
		require.False(u, u.shows("phone"))
	})
}

// A device hears at once that it was ended, and if it asks too late, too.
func TestDevices_Events(t *testing.T) {
	onBoth(t, "refuse", func(u *user) {
		u.login("phone")
		u.login("laptop")
		listen := func() *http.Response {
			ctx, cancel := context.WithTimeout(u.Context(), 30*time.Second) // what is not told is noticed in a minute
			u.Cleanup(cancel)
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.url("phone", "events"), nil)
			require.NoError(u, err)
			answer, err := u.browser.Do(r)
			require.NoError(u, err)
			u.Cleanup(func() { answer.Body.Close() })
			require.Equal(u, "text/event-stream", answer.Header.Get("Content-Type"))
			return answer
		}
		phone := listen()
		u.post("laptop", "others", nil)
		for _, answer := range []*http.Response{phone, listen()} {
			_, told := u.page(answer, nil)
			require.Equal(u, "data: ended\n\n", told)
		}
	})
}
