package fiberstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/cache"
	"github.com/gofiber/fiber/v3/middleware/csrf"
	"github.com/gofiber/fiber/v3/middleware/idempotency"
	"github.com/gofiber/fiber/v3/middleware/limiter"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/gofiber/fiber/v3/middleware/timeout"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

func TestCallersAreKnown(t *testing.T) {
	t.Parallel()
	require.True(t, callersAreKnown(callers))
	for i := range callers { // as if fiber had renamed it
		others := append([]string{}, callers...)
		others[i] += "X"
		require.False(t, callersAreKnown(others))
	}
}

// Other middleware would find its keys refused once it had deleted them, and Reset ends all keys.
func TestShared(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(app *fiber.App, s fiber.Storage){
		"csrf": func(app *fiber.App, s fiber.Storage) {
			app.Use(csrf.New(csrf.Config{
				Storage: s, ErrorHandler: func(_ fiber.Ctx, err error) error { return err },
			}))
		},
		"limiter": func(app *fiber.App, s fiber.Storage) { app.Use(limiter.New(limiter.Config{Storage: s})) },
		"sliding limiter": func(app *fiber.App, s fiber.Storage) {
			app.Use(limiter.New(limiter.Config{Storage: s, LimiterMiddleware: limiter.SlidingWindow{}}))
		},
		"cache": func(app *fiber.App, s fiber.Storage) { app.Use(cache.New(cache.Config{Storage: s})) },
		"idempotency": func(app *fiber.App, s fiber.Storage) {
			app.Use(idempotency.New(idempotency.Config{Storage: s}))
		},
		"a file": func(app *fiber.App, s fiber.Storage) {
			app.Use(func(c fiber.Ctx) error {
				header, err := c.FormFile("file")
				if err != nil {
					return err
				}
				return c.SaveFileToStorage(header, "file", s)
			})
		},
		"the program itself": func(app *fiber.App, s fiber.Storage) {
			app.Use(func(c fiber.Ctx) error { return s.SetWithContext(c, "key", []byte("v"), time.Hour) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newSpy(t)
			app := fiber.New()
			use(app, New(store))
			app.All("/", func(c fiber.Ctx) error { return c.SendString("hello") })
			u := serve(t, app)
			method, body, contentType := http.MethodGet, io.Reader(nil), ""
			switch name {
			case "idempotency":
				method = http.MethodPost
			case "a file":
				method, body, contentType = http.MethodPost, form(), "multipart/form-data; boundary=x"
			}
			req, err := http.NewRequestWithContext(t.Context(), method, u, body)
			require.NoError(t, err)
			req.Header.Set("X-Idempotency-Key", "00000000-0000-0000-0000-000000000000")
			req.Header.Set("Content-Type", contentType)
			res, err := client.Do(req)
			require.NoError(t, err)
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			require.Equal(t, http.StatusInternalServerError, res.StatusCode)
			require.Contains(t, string(text), errNoSession.Error())
			require.Zero(t, store.writes)
		})
	}
}

// What csrf keeps in the session is a part of it.
func TestShared_CSRFInSession(t *testing.T) {
	t.Parallel()
	handler, sessions := session.NewWithStore(session.Config{Storage: New(newSpy(t))})
	app := fiber.New()
	app.Use(handler, csrf.New(csrf.Config{Session: sessions}))
	app.All("/", func(c fiber.Ctx) error { return c.SendString("hello") })
	u := serve(t, app)
	do := func(method, token string, cookies []*http.Cookie) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, u, nil)
		require.NoError(t, err)
		req.Header.Set("X-Csrf-Token", token)
		for _, c := range cookies {
			req.AddCookie(c)
		}
		res, err := client.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res
	}
	cookies := do(http.MethodGet, "", nil).Cookies()
	token := ""
	for _, c := range cookies {
		if c.Name == csrf.ConfigDefault.CookieName {
			token = c.Value
		}
	}
	require.NotEmpty(t, token)
	require.Equal(t, http.StatusForbidden, do(http.MethodPost, "another", cookies).StatusCode)
	require.Equal(t, http.StatusOK, do(http.MethodPost, token, cookies).StatusCode)
}

func form() io.Reader {
	return strings.NewReader("--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n" +
		"content\r\n--x--\r\n")
}

// broken is a store whose writes fail with err, or work but for it if that is ErrUnacknowledged.
type broken struct {
	*spy
	err error
}

func (b *broken) fails() bool { return b.err != nil && !errors.Is(b.err, tombstore.ErrUnacknowledged) }

func (b *broken) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	if b.fails() {
		return tombstore.Session{}, b.err
	}
	s, err := b.spy.Write(ctx, id, data, ttl, opts...)
	return s, errors.Join(err, b.err)
}

func (b *broken) Touch(ctx context.Context, id string, ttl time.Duration) error {
	if b.fails() {
		return b.err
	}
	return errors.Join(b.spy.Touch(ctx, id, ttl), b.err)
}

func (b *broken) FinishRenewal(
	ctx context.Context, r tombstore.Renewal, id string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if b.fails() {
		return tombstore.Session{}, b.err
	}
	s, err := b.spy.FinishRenewal(ctx, r, id, data, ttl)
	return s, errors.Join(err, b.err)
}

// A save that failed, or may have, leaves no cookie in the response; one that worked does, although
// too few replicas have it.
func TestFailedSave(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		for _, failure := range []error{
			errors.New("down"), context.DeadlineExceeded, tombstore.ErrUnknownOutcome, tombstore.ErrConflict,
			tombstore.ErrCorrupt, tombstore.ErrTooLarge, tombstore.ErrInvalidID,
			tombstore.ErrNotFound, &tombstore.InvalidatedError{Reason: tombstore.Revoked, At: time.Now()},
			tombstore.ErrUnacknowledged,
		} {
			for _, step := range []string{"new", "who", "modify", "renew", "reset"} {
				store := &broken{spy: newSpy(t)}
				b := newBedOn(t, store, m, session.Config{ErrorHandler: func(c fiber.Ctx, _ error) {
					c.Status(http.StatusInternalServerError)
				}})
				age := func(id string) { require.NoError(t, store.backend.Touch(t.Context(), id, time.Minute)) }
				x := b.login()
				age(x) // else "who" has nothing to do
				if step == "new" {
					x, step = "", "modify"
				}
				resume := b.start(step, x, "done")
				store.err = failure
				r := resume()
				store.err = nil
				what := fmt.Sprintf("%s %q: %v", step, x, failure)
				switch {
				case errors.Is(failure, tombstore.ErrUnacknowledged):
					require.Equal(t, http.StatusAccepted, r.status, what)
					require.NotEmpty(t, r.id(), what)
					age(r.id())
					require.Equal(t, r.id(), b.get("modify", r.id()).id(), what)
					continue
				case tombstore.NoSession(failure),
					errors.Is(failure, tombstore.ErrConflict) && x != "" && step == "modify": // a session of others
					require.Equal(t, http.StatusAccepted, r.status, what)
				default:
					require.Equal(t, http.StatusInternalServerError, r.status, what)
				}
				require.Nil(t, r.cookie, what)
			}
		}
	})
}

// What a handler has begun is carried out after its client has gone away.
func TestClientGone(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{})
		answered := make(chan struct{})
		b.step = func(c fiber.Ctx, s values) error {
			b.wait(c.Query("gone"))
			defer close(answered)
			if c.Query("logout") != "" {
				return s.Destroy()
			}
			s.Set("user", "bob")
			return s.Regenerate()
		}
		for _, logout := range []string{"", "&logout=1"} {
			answered = make(chan struct{})
			x := b.login()
			g := gate{make(chan struct{}), make(chan struct{})}
			name := t.Name() + logout
			b.gates.Store(name, g)
			u, err := url.Parse(b.url)
			require.NoError(t, err)
			conn, err := net.Dial("tcp", u.Host)
			require.NoError(t, err)
			_, err = fmt.Fprintf(conn, "GET /step?gone=%s%s HTTP/1.1\r\nHost: x\r\nCookie: session_id=%s\r\n\r\n",
				url.QueryEscape(name), logout, x)
			require.NoError(t, err)
			<-g.reached
			require.NoError(t, conn.Close())
			close(g.open)
			<-answered
			require.Equal(t, "anonymous", b.get("who", x).body)
			if logout == "" {
				require.Eventually(t, func() bool { return b.loggedIn() == 1 }, 5*time.Second, time.Millisecond)
				require.NoError(t, b.storage.Reset())
			} else {
				require.Zero(t, b.loggedIn())
			}
		}
	})
}

// A handler that is given up goes on, and so does what it does with its session.
func TestTimeout(t *testing.T) {
	t.Parallel()
	store := newSpy(t)
	storage := New(store)
	sessions := session.NewStore(session.Config{Storage: storage})
	open, done := make(chan struct{}), make(chan error)
	app := fiber.New()
	app.Get("/login", func(c fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err != nil {
			return err
		}
		s.Set("user", "alice")
		return errors.Join(s.Regenerate(), s.Save())
	})
	var act func(c fiber.Ctx, s *session.Session) error
	app.Get("/slow", timeout.New(func(c fiber.Ctx) error {
		s, err := sessions.Get(c)
		if err == nil {
			<-open
			<-c.Context().Done()
			err = act(c, s)
		}
		done <- err
		return nil
	}, timeout.Config{Timeout: time.Millisecond}))
	b := &bed{T: t, store: store, storage: storage, url: serve(t, app)}
	get := func(step, id string) *http.Response {
		res, err := client.Do(b.request(step, id))
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res
	}
	for _, name := range []string{
		"destroy", "destroy under its context", "renew", "renew by id", "save", "reset all",
	} {
		act = func(c fiber.Ctx, s *session.Session) error {
			ctx, cancel := context.WithCancel(c) // a deadline of the program's own
			cancel()
			s.Set("cart", "book")
			switch name {
			case "destroy":
				return s.Destroy()
			case "destroy under its context":
				return s.DestroyWithContext(ctx)
			case "reset all":
				return sessions.Reset(c)
			case "renew by id":
				var err error
				if s, err = sessions.GetByID(c, s.ID()); err != nil {
					return err
				}
				return errors.Join(s.RegenerateWithContext(ctx), s.SaveWithContext(ctx))
			case "renew":
				return errors.Join(s.RegenerateWithContext(ctx), s.SaveWithContext(ctx))
			}
			return s.SaveWithContext(ctx)
		}
		x := get("login", "").Cookies()[0].Value
		require.Equal(t, http.StatusRequestTimeout, get("slow", x).StatusCode)
		open <- struct{}{}
		err := <-done
		data, failed := storage.Get(x)
		require.NoError(t, failed)
		switch name {
		case "renew", "renew by id": // nobody would get the new id, and a twin may still want the old one
			require.ErrorIs(t, err, context.Canceled, name)
			require.Equal(t, 1, b.loggedIn(), name)
			require.NotNil(t, data, name)
		case "save":
			require.NoError(t, err)
			values, err := decode(data)
			require.NoError(t, err)
			require.Equal(t, "book", values["cart"])
		default:
			require.NoError(t, err, name)
			require.Zero(t, b.loggedIn(), name)
		}
		require.NoError(t, storage.Reset())
	}
}

// Fiber's own is a value of the session, which goes on as it is under each new id.
func TestAbsoluteTimeout_Renewed(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{IdleTimeout: time.Hour, AbsoluteTimeout: time.Hour})
		stored := func(id string) (values map[any]any, key any, end time.Time) {
			data, err := b.storage.Get(id)
			require.NoError(t, err)
			values, err = decode(data)
			require.NoError(t, err)
			for k, v := range values {
				if at, ok := v.(time.Time); ok {
					key, end = k, at
				}
			}
			return values, key, end
		}
		x := b.get("modify", "").id()
		_, _, first := stored(x)
		require.NotZero(t, first)
		for _, step := range []string{"login", "renew", "renew"} {
			x = b.get(step, x).id()
			_, _, end := stored(x)
			require.Equal(t, first, end, step)
		}
		values, key, _ := stored(x)
		values[key] = time.Now().Add(-time.Second)
		_, err := b.store.backend.Write(t.Context(), x, encode(t, values), time.Hour)
		require.NoError(t, err)
		require.Equal(t, "anonymous", b.get("renew", x).body)
		require.Zero(t, b.loggedIn())
	})
}

// A hook runs under fiber's lock of the session, and may read its values all the same.
func TestOnRefused_ReadsTheSession(t *testing.T) {
	t.Parallel()
	store, users := newSpy(t), make(chan any, 1)
	hook := adapter.WithOnRefused(func(ctx context.Context, _ tombstore.Event) {
		users <- session.FromContext(ctx).Get("user")
	})
	app := fiber.New(fiber.Config{PassLocalsToContext: true})
	app.Use(session.New(session.Config{Storage: New(store, hook)}))
	app.Get("/login", func(c fiber.Ctx) error {
		session.FromContext(c).Set("user", "alice")
		return nil
	})
	app.Get("/ended", func(c fiber.Ctx) error {
		session.FromContext(c).Set("cart", "book")
		return store.Invalidate(c, session.FromContext(c).ID())
	})
	b := &bed{T: t, url: serve(t, app)}
	do := func(step, id string) *http.Response {
		res, err := client.Do(b.request(step, id))
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res
	}
	x := do("login", "").Cookies()[0].Value
	res := do("ended", x)
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Empty(t, res.Cookies())
	require.Equal(t, "alice", <-users)
}

// To log out by Reset gives a new session at once; late requests leave its cookie alone.
func TestLateRequests_Reset(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{}, adapter.WithLateRequests(time.Minute))
		for _, end := range []string{"reset", "logout", "renew", "delete"} {
			x := b.login()
			r := b.get(end, x)
			if end == "reset" {
				require.Equal(t, r.id(), b.get("modify", r.id()).id())
			}
			if end == "delete" && m == middleware { // it saves its session after that
				require.Nil(t, r.cookie)
			}
			require.Nil(t, b.get("modify", x).cookie, end)
			require.Nil(t, b.get("who", x).cookie, end)
			for _, renew := range []string{"login", "reset", "renew"} {
				require.NotEmpty(t, b.get(renew, x).id(), end)
			}
		}
	})
}

// fewReplicas says of each end that it was not confirmed.
type fewReplicas struct{ *spy }

func (f fewReplicas) InvalidateRef(ctx context.Context, ref string, opts ...tombstore.InvalidateOption) error {
	return errors.Join(f.spy.InvalidateRef(ctx, ref, opts...), tombstore.ErrUnacknowledged)
}

func TestReset_Unacknowledged(t *testing.T) {
	t.Parallel()
	b := newBedOn(t, fewReplicas{newSpy(t)}, storeMode, session.Config{})
	b.login()
	b.login()
	require.ErrorIs(t, b.storage.Reset(), tombstore.ErrUnacknowledged)
	require.Zero(t, b.loggedIn())
}

// A middleware within the session's gives the handlers a context with a timeout, and cancels it
// when they are done. Fiber saves after that, for a client that is still there.
func TestContextOfMiddleware(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	app := fiber.New()
	app.Use(session.New(session.Config{Storage: New(memory)}))
	app.Use(func(c fiber.Ctx) error {
		ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
		defer cancel()
		c.SetContext(ctx)
		return c.Next()
	})
	app.Get("/put", func(c fiber.Ctx) error {
		session.FromContext(c).Set("n", 1)
		return nil
	})
	app.Get("/login", func(c fiber.Ctx) error {
		s := session.FromContext(c)
		if err := s.Regenerate(); err != nil {
			return err
		}
		s.Set("user", "alice")
		return nil
	})
	app.Get("/whoami", func(c fiber.Ctx) error {
		user, _ := session.FromContext(c).Get("user").(string)
		return c.SendString(user)
	})
	cookie, body := "", ""
	for _, path := range []string{"/put", "/login", "/whoami"} {
		r, err := http.NewRequest(http.MethodGet, path, nil)
		require.NoError(t, err)
		if cookie != "" {
			r.Header.Set("Cookie", "session_id="+cookie)
		}
		res, err := app.Test(r)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, res.StatusCode, path)
		for _, c := range res.Cookies() {
			cookie = c.Value
		}
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		body = string(text)
	}
	require.Equal(t, "alice", body)
}
