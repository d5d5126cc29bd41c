//go:build e2e

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
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

const phoneWidth = 390

// browser is Chromium with two tabs, on a shop or on two devices.
type browser struct {
	*testing.T
	site, shop string
	ctx        context.Context // of the browser
	tab        [3]context.Context
	path       [3]string // of the tab's page
}

func open(t *testing.T, shop string) *browser {
	t.Helper()
	b := openTabs(t, "/"+shop+"/tab/1", "/"+shop+"/tab/2")
	b.shop = shop
	return b
}

func openTabs(t *testing.T, path1, path2 string) *browser {
	t.Helper()
	t.Parallel()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
		}
	}
	require.NotEmpty(t, path, "the browser test needs Chromium (Debian: apt-get install chromium)")
	site, _, _ := serve(t, redistest.URL(t))

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.Flag("disable-quic", true))...)
	t.Cleanup(cancel)
	b := &browser{T: t, site: site, path: [3]string{1: path1, 2: path2}}
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
	require.NoError(b, chromedp.Run(b.tab[n], chromedp.Navigate(b.site+b.path[n])))
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

// Who is logged out on another device sees it without loading the page again.
func TestDevices_InBrowser(t *testing.T) {
	for action, button := range map[string]string{"one": ".end", "all others": "#others"} {
		t.Run(action, func(t *testing.T) {
			b := openTabs(t, "/devices/refuse/phone/", "/devices/refuse/laptop/")
			b.click(1, "login", "alice")
			b.click(2, "login", "alice")
			var message string
			var same bool
			require.NoError(b, chromedp.Run(b.tab[1], chromedp.Evaluate("window.same = true", nil)))
			_, err := chromedp.RunResponse(b.tab[2], chromedp.Click(button, chromedp.ByQuery))
			require.NoError(b, err)
			ctx, cancel := context.WithTimeout(b.tab[1], 30*time.Second) // what is not told is noticed in a minute
			defer cancel()
			require.NoError(b, chromedp.Run(ctx,
				chromedp.WaitVisible("#login", chromedp.ByQuery),
				chromedp.WaitNotVisible("#user", chromedp.ByQuery),
				chromedp.Text("#message", &message, chromedp.ByQuery),
				chromedp.Evaluate("window.same === true", &same),
			))
			require.Equal(b, "You have been logged out.", message)
			require.True(b, same, "the page was loaded again")
			require.Equal(b, "alice", b.user(2))
			b.click(1, "login", "alice")
		})
	}
}

// A page that was left holds no connection, of which a browser has six, and hears again when the user
// goes back to it.
func TestDevices_LeftPage(t *testing.T) {
	b := openTabs(t, "/devices/refuse/phone/", "/devices/refuse/laptop/")
	b.click(1, "login", "alice")
	b.click(2, "login", "alice")
	ctx, cancel := context.WithTimeout(b.tab[1], 50*time.Second) // a browser keeps a page for a minute
	defer cancel()
	for _, pages := range [][]string{{"/?store=plain", "/?store=tombstore"}, {b.path[2], b.path[1]}} {
		for range 6 {
			require.NoError(b, chromedp.Run(ctx, chromedp.Navigate(b.site+pages[0]), chromedp.Navigate(b.site+pages[1])))
		}
	}
	shown := func(id string) func() bool {
		return func() (shown bool) {
			visible := `document.getElementById("` + id + `")?.checkVisibility() === true`
			return chromedp.Run(ctx, chromedp.Evaluate(visible, &shown)) == nil && shown
		}
	}
	require.NoError(b, chromedp.Run(ctx, chromedp.Navigate(b.site), chromedp.Evaluate("history.back()", nil)))
	require.Eventually(b, shown("others"), 30*time.Second, 50*time.Millisecond)
	require.NoError(b, b.press(2, "others"))
	require.Eventually(b, shown("login"), 30*time.Second, 50*time.Millisecond)
}

// On a phone nothing is wider than the screen.
func TestPhone(t *testing.T) {
	b := openTabs(t, "/devices.html", "/devices/refuse/phone/")
	require.NoError(b, chromedp.Run(b.tab[2], chromedp.EmulateViewport(phoneWidth, 844, chromedp.EmulateMobile)))
	fits := func(path string) {
		b.path[2] = path
		b.reload(2)
		var width int
		require.NoError(b, chromedp.Run(b.tab[2], chromedp.Evaluate("document.documentElement.scrollWidth", &width)))
		require.LessOrEqual(b, width, phoneWidth, path)
	}
	fits("/devices/refuse/phone/")
	b.click(2, "login", "alice")
	for _, path := range []string{"/devices/refuse/phone/", "/devices.html", "/", "/tombstore/tab/1"} {
		fits(path)
	}
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
