//go:build e2e

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

var screenshot = flag.String("screenshot", "", "`file` for a picture of the page after the race, on the plain store")

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// browser is Chromium with two tabs on a shop.
type browser struct {
	*testing.T
	site, shop string
	ctx        context.Context // of the browser
	tab        [3]context.Context
}

func open(t *testing.T, shop string) *browser {
	t.Helper()
	t.Parallel()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
		}
	}
	require.NotEmpty(t, path, "the browser test needs Chromium (Debian: apt-get install chromium)")
	client, closeAll, err := connect(redistest.URL(t))
	require.NoError(t, err)
	t.Cleanup(closeAll)
	handler, err := newSite(client)
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.Flag("disable-quic", true))...)
	t.Cleanup(cancel)
	b := &browser{T: t, site: server.URL, shop: shop}
	b.ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Run(b.ctx))
	for _, n := range []int{1, 2} {
		b.tab[n], cancel = chromedp.NewContext(b.ctx)
		t.Cleanup(cancel)
		b.reload(n)
	}
	return b
}

// reload opens the tab's page and waits for it.
func (b *browser) reload(n int) {
	b.Helper()
	require.NoError(b, chromedp.Run(b.tab[n], chromedp.Navigate(b.site+"/"+b.shop+"/tab/"+string(rune('0'+n)))))
}

// click presses a button, waits for the page that it leads to, and requires that it shows the user.
func (b *browser) click(n int, button, user string) {
	b.Helper()
	require.NoError(b, b.press(n, button))
	require.Equal(b, user, b.user(n))
}

func (b *browser) press(n int, button string) error {
	_, err := chromedp.RunResponse(b.tab[n], chromedp.Click("#"+button, chromedp.ByQuery))
	return err
}

// user returns who the tab's page shows.
func (b *browser) user(n int) (user string) {
	b.Helper()
	require.NoError(b, chromedp.Run(b.tab[n], chromedp.Text("#user", &user, chromedp.ByQuery)))
	return user
}

// slow starts a slow request and returns when it has loaded the session. What it returns lets the
// request finish, and waits for its page.
func (b *browser) slow(n int) (finish func()) {
	b.Helper()
	answered := make(chan error, 1)
	go func() { answered <- b.press(n, "slow") }()
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.site+"/"+b.shop+"/events", nil)
	require.NoError(b, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(b, err)
	defer res.Body.Close()
	require.NoError(b, waiting(res.Body))
	return func() {
		b.Helper()
		res, err := http.Post(b.site+"/"+b.shop+"/finish", "", nil)
		require.NoError(b, err)
		res.Body.Close()
		require.NoError(b, <-answered)
	}
}

// users reloads both tabs and requires that they show the user.
func (b *browser) users(user string) {
	b.Helper()
	for _, n := range []int{1, 2} {
		b.reload(n)
		require.Equal(b, user, b.user(n), "tab %d", n)
	}
}

func (b *browser) logoutDuringSlowRequest() {
	b.Helper()
	b.click(1, "login", "alice")
	b.reload(2)
	finish := b.slow(2)
	b.click(1, "logout", "anonymous")
	finish()
}

func (b *browser) loginDuringSlowRequest() {
	b.Helper()
	b.click(1, "add", "anonymous")
	b.reload(2)
	finish := b.slow(2)
	b.click(1, "login", "alice")
	finish()
}

func TestLogout_Tombstore(t *testing.T) {
	b := open(t, "tombstore")
	b.logoutDuringSlowRequest()
	b.users("anonymous")
}

func TestLogin_Tombstore(t *testing.T) {
	b := open(t, "tombstore")
	b.loginDuringSlowRequest()
	b.users("alice")
}

// The same page on the plain store shows that the tests above can fail.
func TestLogout_Plain(t *testing.T) {
	b := open(t, "plain")
	b.logoutDuringSlowRequest()
	b.users("alice")
	if *screenshot != "" {
		b.picture(*screenshot)
	}
}

func TestLogin_Plain(t *testing.T) {
	b := open(t, "plain")
	b.loginDuringSlowRequest()
	b.users("anonymous")
}

func (b *browser) picture(file string) {
	b.Helper()
	var png []byte
	require.NoError(b, chromedp.Run(b.tab[1],
		chromedp.EmulateViewport(1000, 900),
		chromedp.Navigate(b.site+"/?store="+b.shop),
		chromedp.WaitVisible("#log tr", chromedp.ByQuery),
		chromedp.FullScreenshot(&png, 100),
	))
	require.NoError(b, os.WriteFile(file, png, 0o644))
}

// waiting reads events until one says that a slow request waits.
func waiting(events io.Reader) error {
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var v view
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(data), &v); err != nil || v.Waiting {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
