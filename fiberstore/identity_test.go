package fiberstore

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/extractors"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// kind is where a session's id comes from.
type kind struct {
	name      string
	extractor func(key string) extractors.Extractor // nil for GetByID
}

var sources = []kind{
	{"cookie", extractors.FromCookie},
	{"header", extractors.FromHeader},
	{"query", extractors.FromQuery},
	{"cookie or query", func(key string) extractors.Extractor {
		return extractors.Chain(extractors.FromCookie(key), extractors.FromQuery(key))
	}},
	{"id", nil},
}

// nowhere reports whether nothing in a response tells where a session came from.
func (k kind) nowhere() bool { return k.name == "query" || k.name == "id" }

// pair is an application with two session stores on one Storage. In one request it loads a session
// of each, renews both and saves both, in the order of steps.
type pair struct {
	*testing.T
	storage *Storage
	kinds   [2]kind
	stores  [2]*session.Store
	ids     [2]string // that the sessions of alice and bob begin with
	steps   string    // each a and b stands for the next step of that session
	reset   bool      // instead of to renew
	between func(c fiber.Ctx) error
	url     string
}

func newPair(t *testing.T, first, second kind) *pair {
	t.Helper()
	p := &pair{T: t, storage: New(newSpy(t)), kinds: [2]kind{first, second}}
	for i, k := range p.kinds {
		config := session.Config{Storage: p.storage, KeyGenerator: newID}
		if k.extractor != nil {
			config.Extractor = k.extractor(fmt.Sprintf("s%d", i))
		}
		p.stores[i] = session.NewStore(config)
	}
	app := fiber.New()
	app.Get("/", p.handle)
	p.url = serve(t, app)
	return p
}

// newID returns an id that looks like a pair in a cookie.
func newID() string { return tombstore.NewID() + "==" }

// new makes a session for each of alice and bob.
func (p *pair) new() {
	for i, user := range []string{"alice", "bob"} {
		p.ids[i] = newID()
		p.put(p.ids[i], user)
	}
}

func (p *pair) put(id, user string) {
	data := encode(p, map[any]any{"user": user})
	_, err := p.storage.adapter.Store().Write(p.Context(), id, data, time.Hour)
	require.NoError(p, err)
}

func (p *pair) handle(c fiber.Ctx) error {
	var sessions [2]*session.Session
	var step [2]int
	for _, letter := range p.steps {
		i := int(letter - 'a')
		var err error
		switch step[i]++; step[i] {
		case 1:
			if p.kinds[i].extractor == nil {
				sessions[i], err = p.stores[i].GetByID(c, p.ids[i])
			} else {
				sessions[i], err = p.stores[i].Get(c)
			}
		case 2:
			if p.reset {
				err = sessions[i].ResetWithContext(c)
			} else {
				err = sessions[i].RegenerateWithContext(c)
			}
		case 3:
			err = sessions[i].SaveWithContext(c)
		}
		if err == nil && p.between != nil && step[0] == 2 {
			err = p.between(c)
		}
		if err != nil {
			return err
		}
	}
	return c.SendString(sessions[0].ID() + " " + sessions[1].ID())
}

// do plays steps and returns the new ids.
func (p *pair) do(steps string) (ids [2]string, err error) {
	p.steps = steps
	req, err := http.NewRequestWithContext(p.Context(), http.MethodGet, p.url, nil)
	require.NoError(p, err)
	query := req.URL.Query()
	for i, k := range p.kinds {
		key := fmt.Sprintf("s%d", i)
		switch k.name {
		case "cookie":
			req.AddCookie(&http.Cookie{Name: key, Value: p.ids[i], Quoted: true})
			if !p.reset { // which deletes a cookie of the request, and so changes the order of the others
				req.AddCookie(&http.Cookie{Name: key, Value: "the first one counts"})
			}
		case "header":
			req.Header.Set(key, p.ids[i])
		case "query", "cookie or query":
			query.Set(key, p.ids[i])
		}
	}
	req.URL.RawQuery = query.Encode()
	res, err := client.Do(req)
	require.NoError(p, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(p, err)
	if res.StatusCode != http.StatusOK {
		return ids, errors.New(string(body))
	}
	first, second, found := strings.Cut(string(body), " ")
	require.True(p, found)
	return [2]string{first, second}, nil
}

// user returns whose session id is.
func (p *pair) user(id string) any {
	data, err := p.storage.Get(id)
	require.NoError(p, err)
	if data == nil {
		return nil
	}
	values, err := decode(data)
	require.NoError(p, err)
	return values["user"]
}

// orders returns all orders of three steps of a and three of b.
func orders(prefix string, a, b int) (all []string) {
	if a == 0 && b == 0 {
		return []string{prefix}
	}
	if a > 0 {
		all = orders(prefix+"a", a-1, b)
	}
	if b > 0 {
		all = append(all, orders(prefix+"b", a, b-1)...)
	}
	return all
}

// mixed reports whether both sessions have been renewed at some moment, and none of them saved.
func mixed(steps string) bool {
	var done [2]int
	for _, letter := range steps {
		if done[letter-'a']++; done == [2]int{2, 2} {
			return true
		}
	}
	return false
}

// Each of the two goes on as itself: its values, and the end of its old id.
func TestIdentity(t *testing.T) {
	t.Parallel()
	for _, first := range sources {
		for _, second := range sources {
			t.Run(first.name+" and "+second.name, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, first, second)
				for _, steps := range orders("", 3, 3) {
					p.new()
					ids, err := p.do(steps)
					if err != nil { // rather than a guess
						unclear := first.nowhere() && second.nowhere() ||
							first.name == "cookie or query" && second.name == "cookie or query" ||
							first.name == "cookie or query" && second.nowhere() ||
							second.name == "cookie or query" && first.nowhere()
						require.True(t, unclear && mixed(steps), "%s: %v", steps, err)
						require.Equal(t, errUnclear.Error(), err.Error())
						continue
					}
					require.Equal(t, "alice", p.user(ids[0]), steps)
					require.Equal(t, "bob", p.user(ids[1]), steps)
					require.NoError(t, p.storage.Delete(p.ids[1])) // a logout that began before
					require.Nil(t, p.user(ids[1]), steps)
					require.Equal(t, "alice", p.user(ids[0]), steps)
					require.NoError(t, p.storage.Delete(p.ids[0]))
					require.Nil(t, p.user(ids[0]), steps)
				}
			})
		}
	}
}

// A reset session begins anew, so it does not matter which is which.
func TestIdentity_Reset(t *testing.T) {
	t.Parallel()
	for _, first := range sources {
		for _, second := range sources {
			p := newPair(t, first, second)
			p.reset = true
			for _, steps := range orders("", 3, 3) {
				p.new()
				ids, err := p.do(steps)
				require.NoError(t, err, steps)
				for i := range ids {
					data, err := p.storage.Get(ids[i])
					require.NoError(t, err)
					require.NotNil(t, data, steps)
					require.Nil(t, p.user(ids[i]), steps)
					require.Nil(t, p.user(p.ids[i]), "%s %s: %s", first.name, second.name, steps)
				}
			}
		}
	}
}

// A new session beside one that goes on: fiber sets its id in the cookie of the other one.
func TestIdentity_New(t *testing.T) {
	t.Parallel()
	p := newPair(t, sources[0], kind{"none", extractors.FromCookie})
	for _, steps := range orders("a", 2, 3) { // after a new one fiber reads no other cookie
		p.new()
		ids, err := p.do(steps)
		if err != nil {
			require.True(t, mixed(steps), "%s: %v", steps, err)
			require.Equal(t, errUnclear.Error(), err.Error())
			continue
		}
		require.Equal(t, "alice", p.user(ids[0]), steps)
		require.NoError(t, p.storage.Delete(p.ids[0]))
		require.Nil(t, p.user(ids[0]), steps)
		data, err := p.storage.Get(ids[1])
		require.NoError(t, err)
		require.NotNil(t, data, "%s: the new session is another one", steps)
	}
}

// Two new sessions are two.
func TestIdentity_AllNew(t *testing.T) {
	t.Parallel()
	none := kind{"none", extractors.FromCookie}
	p := newPair(t, none, none)
	for _, steps := range orders("", 3, 3) {
		ids, err := p.do(steps)
		require.NoError(t, err, steps)
		for i := range ids {
			data, err := p.storage.Get(ids[i])
			require.NoError(t, err)
			require.NotNil(t, data, steps)
			require.NoError(t, p.storage.Delete(ids[i]))
		}
	}
}

// A session that begins and is renewed in one request goes on like any other.
func TestIdentity_NewRenewed(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	var x string
	b.step = func(c fiber.Ctx, s values) error {
		x = s.ID()
		s.Set("user", "alice")
		save := s.(*session.Session).Save
		return errors.Join(save(), s.Regenerate(), b.sessions.Delete(c, x), save())
	}
	y := b.get("step", "").id()
	require.Equal(t, "alice", b.get("who", y).body)
	b.get("logout", x)
	require.Zero(t, b.loggedIn())
}

// The middleware saves its session last. Programs keep ids in Locals too.
func TestIdentity_Middleware(t *testing.T) {
	t.Parallel()
	b := newBed(t, middleware, session.Config{})
	for _, steps := range orders("", 1, 3) {
		x, z := b.login(), b.login()
		var other *session.Session
		b.step = func(c fiber.Ctx, own values) (err error) {
			step := 0
			for _, letter := range steps {
				if letter == 'a' {
					err = own.Regenerate()
					own.Set("cart", "book")
					c.Locals("id", own.ID())
				} else {
					switch step++; step {
					case 1:
						other, err = b.sessions.GetByID(c, z)
					case 2:
						err = other.RegenerateWithContext(c)
						c.Locals("other", other.ID())
					case 3:
						other.Set("user", "bob")
						err = other.SaveWithContext(c)
					}
				}
				if err != nil {
					return err
				}
			}
			return c.SendString(other.ID())
		}
		r := b.get("step", x)
		y, z2 := r.id(), r.body
		require.Equal(t, "alice", b.get("who", y).body)
		require.Equal(t, "bob", b.get("who", z2).body)
		b.get("logout", z)
		require.Equal(t, "alice", b.get("who", y).body)
		require.Equal(t, "anonymous", b.get("who", z2).body)
		b.get("logout", x)
		require.Equal(t, "anonymous", b.get("who", y).body)
	}
}

// What a program may do with one session in one request.
func TestIdentity_Sequences(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		b := newBed(t, m, session.Config{})
		for steps, want := range map[string]string{
			"regenerate regenerate": "alice", "regenerate save regenerate": "alice", "save regenerate save": "alice",
			"reset regenerate": "anonymous", "regenerate reset": "anonymous", "reset save regenerate": "anonymous",
			"regenerate destroy": "none", "regenerate save destroy": "none", "destroy regenerate": "anonymous",
			"regenerate get": "alice", "get regenerate": "alice", "save byid regenerate": "alice",
		} {
			b.step = func(c fiber.Ctx, s values) (err error) {
				first := s.ID()
				for _, step := range strings.Fields(steps) {
					switch step {
					case "regenerate":
						err = s.Regenerate()
					case "reset":
						err = s.Reset()
					case "destroy":
						err = s.Destroy()
					case "save":
						if s, ok := s.(*session.Session); ok {
							err = s.Save()
						}
					case "get": // fiber finds nothing, or the same session once more
						_, err = b.sessions.GetByID(c, first)
						if errors.Is(err, session.ErrSessionIDNotFoundInStore) {
							err = nil
						}
					case "byid":
						_, err = b.sessions.GetByID(c, s.ID())
					}
					if err != nil {
						return err
					}
				}
				return c.SendString(s.ID())
			}
			for _, end := range []string{"", "logout"} {
				x := b.login()
				r := b.get("step", x)
				require.Equal(t, http.StatusAccepted, r.status, "%s: %s", steps, r.body)
				require.Equal(t, "anonymous", b.get("who", x).body, steps)
				if want == "none" && m == middleware {
					require.Empty(t, r.id(), steps)
				}
				if end != "" { // with the id that it began with
					b.get(end, x)
					require.Zero(t, b.loggedIn(), steps)
				} else if r.id() != "" {
					user := b.get("who", r.id()).body
					require.True(t, user == want || want == "none", "%s: %s", steps, user)
				}
				b.get("logout", r.id())
				require.Zero(t, b.loggedIn(), steps)
			}
		}
	})
}

// Two sessions that share a cookie are one. Of two renewals of it in one request one is refused,
// since a logout would reach only one of the two new ids.
func TestIdentity_Twice(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	b.step = func(c fiber.Ctx, s values) error {
		second, err := b.sessions.Get(c)
		if err != nil {
			return err
		}
		if err := s.Regenerate(); err != nil {
			return err
		}
		return errors.Join(second.Regenerate(), second.Save())
	}
	x := b.login()
	r := b.get("step", x)
	require.Equal(t, http.StatusInternalServerError, r.status)
	require.Equal(t, errTwice.Error(), r.body)
	require.Zero(t, b.loggedIn())

	b.step = func(c fiber.Ctx, s values) error { // a new session instead of the one that was left
		if err := s.Regenerate(); err != nil {
			return err
		}
		second, err := b.sessions.Get(c)
		if err != nil {
			return err
		}
		return second.Save()
	}
	x = b.login()
	y := b.get("step", x).id() // the first one is saved last
	require.Equal(t, "alice", b.get("who", y).body)
	b.get("logout", x)
	require.Zero(t, b.loggedIn())
}

// A session that was only looked up is not the one that the request logs out of.
func TestIdentity_LookedUp(t *testing.T) {
	t.Parallel()
	b := newBed(t, storeMode, session.Config{})
	z := b.login()
	y := b.get("renew", z).id()
	b.step = func(c fiber.Ctx, s values) error {
		_, err := b.sessions.GetByID(c, z)
		if !errors.Is(err, session.ErrSessionIDNotFoundInStore) {
			return fmt.Errorf("found: %w", err)
		}
		return s.Destroy()
	}
	require.Equal(t, http.StatusAccepted, b.get("step", "").status)
	require.Equal(t, "alice", b.get("who", y).body)
}

// A Delete of another session, or of the id that the request has left itself, does not touch a
// renewal.
func TestIdentity_Delete(t *testing.T) {
	t.Parallel()
	for _, k := range sources {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, k, kind{"id", nil})
			for _, own := range []bool{true, false} {
				p.new()
				other := tombstore.NewID()
				p.put(other, "carol")
				p.between = func(c fiber.Ctx) error {
					if own {
						return p.stores[0].Delete(c, p.ids[0])
					}
					return p.stores[0].Delete(c, other)
				}
				ids, err := p.do("aaabbb")
				require.NoError(t, err)
				require.Equal(t, "alice", p.user(ids[0]))
				require.Equal(t, "bob", p.user(ids[1]))
				if !own {
					var ended *tombstore.InvalidatedError
					_, err := p.storage.adapter.Store().Read(t.Context(), other)
					require.ErrorAs(t, err, &ended)
					require.Equal(t, tombstore.Revoked, ended.Reason)
				}
				require.NoError(t, p.storage.Delete(p.ids[0]))
				require.Nil(t, p.user(ids[0]))
			}
		})
	}
}
