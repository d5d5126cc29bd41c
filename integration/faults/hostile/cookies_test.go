package hostile

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/beego/beego/v2/server/web/session"
	ginsessions "github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/gofiber/fiber/v3"
	fibersession "github.com/gofiber/fiber/v3/middleware/session"
	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/beegostore"
	"github.com/tombstore/tombstore/fiberstore"
	"github.com/tombstore/tombstore/gorillastore"
	ginstore "github.com/tombstore/tombstore/gorillastore/gin"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

const (
	cookieName = "session_id" // fiber's default
	victim     = "the victim"
	anonymous  = "anonymous"
)

var keyPair = []byte("0123456789abcdef0123456789abcdef")

// app is a program that keeps sessions, with the paths /login, /whoami, /add and /logout.
type app struct {
	name   string
	addr   string
	codec  securecookie.Codec // of the cookies, if they are signed
	cookie string             // the victim's
}

// paths are what the hostile cookie is sent to: one that only reads, one that writes, one that
// ends.
var paths = []string{"/whoami", "/add", "/logout"}

// bed is a server of its own with programs on it, each of which a victim has logged in to.
type bed struct {
	client rueidis.Client
	stores []*tombstore.RedisStore // hashed ids, plain ids
	apps   []*app
	keys   []string // of the victims
}

var prefixes = []string{"hashed:", "plain:"}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{client: redistest.Dial(t, redistest.Start(t).URL)}
	for i, prefix := range prefixes {
		opts := []tombstore.Option{tombstore.WithKeyPrefix(prefix), tombstore.WithTimeout(20 * time.Second)}
		if i == 1 {
			opts = append(opts, tombstore.WithPlainIDs())
		}
		store, err := tombstore.New(b.client, opts...)
		require.NoError(t, err)
		b.stores = append(b.stores, store)
		for _, a := range []*app{
			scsApp(t, store), gorillaApp(t, store), ginApp(t, store), hertzApp(t, store), fiberApp(t, store), fiber2App(t, store),
			chiApp(t, store), beegoApp(t, store),
		} {
			a.name += ", " + prefix
			answer, err := ask(a, "/login", "")
			require.NoError(t, err, a.name)
			for _, c := range answer.Cookies() {
				a.cookie = c.Value
			}
			require.NotEmpty(t, a.cookie, a.name)
			b.apps = append(b.apps, a)
		}
	}
	for _, prefix := range prefixes {
		b.keys = append(b.keys, redistest.Keys(t.Context(), b.client, prefix)...)
	}
	require.Len(t, b.keys, len(b.apps))
	b.requireVictims(t)
	return b
}

// requireVictims checks that the victims are still logged in, and so that the programs know them by
// their cookies.
func (b *bed) requireVictims(t testing.TB) {
	t.Helper()
	for _, a := range b.apps {
		answer, err := ask(a, "/whoami", a.cookie)
		require.NoError(t, err, a.name)
		require.Equal(t, victim, body(answer), a.name)
	}
}

func serve(t testing.TB, h http.Handler) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func scsApp(t testing.TB, store tombstore.Renewer) *app {
	sm := scs.New()
	sm.Cookie.Name = cookieName
	withSession := scsstore.Install(sm, store)
	return &app{name: "scs", addr: serve(t, withSession(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		ctx, text, err := q.Context(), "done", error(nil)
		switch q.URL.Path {
		case "/login":
			err = sm.RenewToken(ctx)
			sm.Put(ctx, "user", victim)
		case "/add":
			sm.Put(ctx, "items", 1)
		case "/logout":
			err = sm.Destroy(ctx)
		default:
			text = who(sm.Get(ctx, "user"))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, text)
	})))}
}

func who(user any) string {
	if name, ok := user.(string); ok {
		return name
	}
	return anonymous
}

func gorillaApp(t testing.TB, backend tombstore.Renewer) *app {
	store := gorillastore.New(backend, keyPair)
	return &app{name: "gorilla", codec: store.Codecs[0], addr: serve(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s, err := store.Get(q, cookieName)
		text := "done"
		switch q.URL.Path {
		case "/login":
			s.Values["user"] = victim
		case "/add":
			s.Values["items"] = 1
		case "/logout":
			s.Options.MaxAge = -1
		default:
			text = who(s.Values["user"])
		}
		if err == nil && text == "done" {
			err = sessions.Save(q, w)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, text)
	}))}
}

func ginApp(t testing.TB, backend tombstore.Renewer) *app {
	gin.SetMode(gin.ReleaseMode)
	store := ginstore.New(backend, keyPair)
	engine := gin.New()
	engine.Use(ginsessions.Sessions(cookieName, store))
	engine.GET("/:action", func(c *gin.Context) {
		s := ginsessions.Default(c)
		text := "done"
		switch c.Param("action") {
		case "login":
			s.Set("user", victim)
		case "add":
			s.Set("items", 1)
		case "logout":
			s.Clear()
			s.Options(ginsessions.Options{Path: "/", MaxAge: -1})
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
	return &app{name: "gin", codec: store.Codecs[0], addr: serve(t, engine)}
}

func fiberApp(t testing.TB, store tombstore.Renewer) *app {
	program := fiber.New()
	program.Use(fibersession.New(fibersession.Config{Storage: fiberstore.New(store)}))
	program.Get("/:action", func(c fiber.Ctx) error {
		s := fibersession.FromContext(c)
		var err error
		text := "done"
		switch c.Params("action") {
		case "login":
			err = s.Regenerate()
			s.Set("user", victim)
		case "add":
			s.Set("items", 1)
		case "logout":
			err = s.Destroy()
		default:
			text = who(s.Get("user"))
		}
		if err != nil {
			return err
		}
		return c.SendString(text)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = program.Listener(l, fiber.ListenConfig{DisableStartupMessage: true})
	}()
	t.Cleanup(func() {
		_ = program.ShutdownWithTimeout(time.Second)
		<-done
	})
	return &app{name: "fiber", addr: l.Addr().String()}
}

// beegoApps tells the apps apart: beego has one name for each provider of a process.
var beegoApps atomic.Int64

func beegoApp(t testing.TB, store tombstore.Renewer) *app {
	name := "hostile " + strconv.FormatInt(beegoApps.Add(1), 10)
	provider := beegostore.Register(name, store)
	manager, err := session.NewManager(name, &session.ManagerConfig{CookieName: cookieName, EnableSetCookie: true, Gclifetime: 3600})
	require.NoError(t, err)
	provider.CookieName, provider.Manager = cookieName, manager
	return &app{name: "beego", addr: serve(t, provider.Middleware(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		ctx := q.Context()
		s, err := manager.SessionStart(w, q)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer s.SessionRelease(ctx, w)
		text := "done"
		switch q.URL.Path {
		case "/login":
			_, err = manager.SessionRegenerateID(w, q)
			_ = s.Set(ctx, "user", victim)
		case "/add":
			_ = s.Set(ctx, "items", 1)
		case "/logout":
			manager.SessionDestroy(w, q)
		default:
			text = who(s.Get(ctx, "user"))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, text)
	})))}
}

// ask sends a request with the cookie as it is, byte by byte, which no HTTP client would. The body
// of the answer is read.
func ask(a *app, path, cookie string) (*http.Response, error) {
	conn, err := net.Dial("tcp", a.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	patience := 20 * time.Second
	if splits(cookie) {
		patience = time.Second // the program may wait for more
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: %s=%s\r\n\r\n", path, cookieName, cookie)
	if err != nil && !splits(cookie) && len(cookie) < 4000 { // a long one may be answered before it is read
		return nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(answer.Body)
	answer.Body = io.NopCloser(strings.NewReader(string(text)))
	return answer, err
}

// splits reports whether cookie ends the line, so that what follows is another header, or another
// request.
func splits(cookie string) bool { return strings.ContainsAny(cookie, "\r\n") }

func body(answer *http.Response) string {
	text, _ := io.ReadAll(answer.Body)
	return string(text)
}

var digest = regexp.MustCompile(`^hashed:[A-Za-z0-9_-]{22}$`)

// attack sends a cookie that nobody was given to every program. It returns how many answers it has
// checked, and what was wrong.
func (b *bed) attack(t testing.TB, cookie string) (checked int64, wrong []string) {
	t.Helper()
	for _, a := range b.apps {
		sent := []string{cookie}
		if a.codec != nil { // as if the signing key were known
			if signed, err := a.codec.Encode(cookieName, cookie); err == nil {
				sent = append(sent, signed)
			}
		}
		for _, value := range sent {
			for _, path := range paths {
				checked++
				complain := func(format string, args ...any) {
					wrong = append(wrong, fmt.Sprintf("%s %s %q: ", a.name, path, value)+fmt.Sprintf(format, args...))
				}
				answer, err := ask(a, path, value)
				switch {
				case err != nil && splits(value), err != nil && len(value) >= 4000: // the connection may be closed before all is sent
					continue
				case err != nil:
					complain("no answer: %v", err)
					continue
				case answer.StatusCode >= 500:
					complain("%s: %s", answer.Status, body(answer))
				case strings.Contains(body(answer), victim):
					complain("somebody else's session")
				}
				for _, c := range answer.Cookies() {
					if c.Name == cookieName && c.Value != "" && c.Value == value {
						complain("a session for an id that was made up")
					}
				}
			}
		}
	}
	for _, s := range b.stores {
		checked++
		live, err := s.Exists(t.Context(), cookie)
		if live || err != nil && cookie != "" && len(cookie) <= 1024 {
			wrong = append(wrong, fmt.Sprintf("%q is live, or: %v", cookie, err))
		}
	}
	return checked, append(wrong, b.sweep(t)...)
}

// sweep deletes what an attack has stored, and returns what is not where it belongs, and which
// victim is missing.
func (b *bed) sweep(t testing.TB) (wrong []string) {
	t.Helper()
	left := len(b.keys)
	for _, key := range redistest.Keys(t.Context(), b.client, "") {
		switch {
		case slices.Contains(b.keys, key):
			left--
			continue
		case !digest.MatchString(key) && !strings.HasPrefix(key, "plain:"):
			wrong = append(wrong, fmt.Sprintf("key %q", key))
		}
		require.NoError(t, b.client.Do(t.Context(), b.client.B().Del().Key(key).Build()).Error())
	}
	if left > 0 {
		wrong = append(wrong, fmt.Sprintf("%d victims are logged out", left))
	}
	return wrong
}

var seeds = []string{
	"", "x", `"`, `""`, `"x"`, "=", ";", "; " + cookieName + "=y", "a b", "a,b", "\x00", "\x00ref:x", "\x7f", "\xff\xfe", "é", "\t", "\n", "\r\nX: y", "\r\n\r\n",
	"%00", "%0d%0aSet-Cookie: a=b", "../../x", "*", "?", "[a-z]*", "{x}", "hashed:", "plain:", "$-1", "*1\r\n$8\r\nFLUSHALL", "'; return 1 --",
	"Mg==|x|y", strings.Repeat("A", 43), strings.Repeat("A", 1024), strings.Repeat("A", 1025), strings.Repeat("x", 5000),
}

func FuzzCookie(f *testing.F) {
	b := newBed(f)
	f.Cleanup(func() { b.requireVictims(f) })
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, cookie []byte) {
		if len(cookie) > 1<<16 {
			t.Skip("longer than any server takes")
		}
		_, wrong := b.attack(t, string(cookie))
		require.Empty(t, wrong)
	})
}

// TestCookies sends cookies of arbitrary bytes, and changed ones of the victims.
func TestCookies(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	row := faults.Row{Kind: faults.Promised, Fault: "hostile: cookies that were made up"}
	var all []string
	send := func(cookie string) {
		checked, wrong := b.attack(t, cookie)
		row.Injected++
		row.Checked += checked
		row.Violations += int64(len(wrong))
		all = append(all, wrong...)
	}
	for _, a := range b.apps {
		send(tombstore.Ref(a.cookie)) // what may be logged
		send(a.cookie + "x")
		send(a.cookie[1:])
	}
	for _, key := range b.keys {
		if digest.MatchString(key) {
			send(key)
			send(strings.TrimPrefix(key, "hashed:"))
		}
	}
	for until := time.Now().Add(faults.Duration(t, time.Second)); time.Now().Before(until); {
		cookie := []byte(b.apps[rand.N(len(b.apps))].cookie)
		switch rand.N(4) {
		case 0: // any bytes
			cookie = make([]byte, 1+rand.N(64))
			for i := range cookie {
				cookie[i] = byte(rand.Uint32())
			}
		case 1: // one byte is another, and not in a bit that base64 leaves unused
			i := rand.N(len(cookie) - 4)
			if cookie[i] == 'Z' {
				cookie[i] = 'Y'
			} else {
				cookie[i] = 'Z'
			}
		case 2: // cut off
			cookie = cookie[:rand.N(len(cookie)-4)]
		case 3:
			cookie = []byte(seeds[rand.N(len(seeds))] + seeds[rand.N(len(seeds))])
		}
		send(string(cookie))
	}
	require.Empty(t, all)
	b.requireVictims(t)
	faults.Report(t, row)

	checked, wrong := b.attack(t, b.apps[0].cookie)
	faults.Report(t, faults.Row{
		Kind: faults.Seeded, Fault: "hostile: the cookie of somebody else", Injected: 1, Checked: checked, Violations: int64(len(wrong)),
	})
}

// TestIDs uses ids with every byte, none of which may get in the way of another.
func TestIDs(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	row := faults.Row{Kind: faults.Promised, Fault: "hostile: ids of any bytes"}
	for _, opts := range [][]tombstore.Option{nil, {tombstore.WithPlainIDs()}} {
		prefix := redistest.Prefix(t, client)
		s, err := tombstore.New(client, append(opts, tombstore.WithKeyPrefix(prefix), tombstore.WithTimeout(20*time.Second))...)
		require.NoError(t, err)
		other, err := tombstore.New(client, append(opts, tombstore.WithKeyPrefix(redistest.Prefix(t, client)))...)
		require.NoError(t, err)
		var ids []string
		for i := range 256 {
			b := string([]byte{byte(i)})
			ids = append(ids, b, "a"+b+"a", strings.Repeat(b, 1024))
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
		for _, id := range ids {
			_, err := s.Write(t.Context(), id, []byte(id), time.Hour, tombstore.IfAbsent())
			require.NoError(t, err, "%q", id)
		}
		keys := redistest.Keys(t.Context(), client, prefix)
		slices.Sort(keys)
		require.Len(t, slices.Compact(keys), len(ids))
		for i, id := range ids {
			row.Injected++
			read, err := s.Read(t.Context(), id)
			require.NoError(t, err, "%q", id)
			strange, err := other.Exists(t.Context(), id)
			require.NoError(t, err)
			if row.Checked += 2; string(read.Data) != id || strange {
				row.Violations++
			}
			switch i % 3 {
			case 0:
				require.NoError(t, s.Invalidate(t.Context(), id))
			case 1:
				_, err = s.Rotate(t.Context(), id, tombstore.NewID())
				require.NoError(t, err)
			}
		}
		for i, id := range ids {
			read, err := s.Read(t.Context(), id)
			if row.Checked++; i%3 < 2 && err == nil || i%3 == 2 && (err != nil || string(read.Data) != id) {
				row.Violations++
			}
		}
	}
	faults.Report(t, row)
}
