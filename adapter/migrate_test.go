package adapter

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// turns lets what an actor does go on one step at a time.
type turns struct {
	stands chan bool // before a step; false: it has ended
	goOn   chan struct{}
}

type turnsKey struct{}

// step waits for the turn of ctx's actor.
func step(ctx context.Context) {
	if s, ok := ctx.Value(turnsKey{}).(*turns); ok {
		s.stands <- true
		<-s.goOn
	}
}

// actor is one of two that act at the same time.
type actor struct {
	*turns
	ended bool
}

func start(act func(ctx context.Context)) *actor {
	s := &turns{make(chan bool), make(chan struct{})}
	go func() {
		defer func() { s.stands <- false }() // a failed requirement ends the goroutine
		act(context.WithValue(context.Background(), turnsKey{}, s))
	}()
	return &actor{s, !<-s.stands}
}

func (a *actor) step() {
	a.goOn <- struct{}{}
	a.ended = !<-a.stands
}

// inEveryOrder lets two actors act, once for each order of their steps. prepare returns both, and what to
// require after each step. It returns how many orders there are.
func inEveryOrder(prepare func() (one, two func(ctx context.Context), after func(one, two bool))) (orders int) {
	var second []bool // at which step the second actor was chosen, where there was a choice
	for {
		one, two, after := prepare()
		a, b := start(one), start(two)
		made := 0
		for !a.ended || !b.ended {
			next := a
			if a.ended {
				next = b
			}
			if !a.ended && !b.ended {
				if made == len(second) {
					second = append(second, false)
				}
				if second[made] {
					next = b
				}
				made++
			}
			next.step()
			after(a.ended, b.ended)
		}
		orders++
		for second = second[:made]; made > 0 && second[made-1]; made-- {
			second = second[:made-1]
		}
		if made == 0 {
			return orders
		}
		second[made-1] = true
	}
}

// stepping is a store whose operations are steps.
type stepping struct{ *tombstore.MemoryStore }

func (s stepping) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	step(ctx)
	return s.MemoryStore.Read(ctx, id, opts...)
}

func (s stepping) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	step(ctx)
	return s.MemoryStore.Write(ctx, id, data, ttl, opts...)
}

func (s stepping) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	step(ctx)
	return s.MemoryStore.Invalidate(ctx, id, opts...)
}

func (s stepping) BeginRenewal(ctx context.Context, id string, v tombstore.Version) (tombstore.Renewal, error) {
	step(ctx)
	return s.MemoryStore.BeginRenewal(ctx, id, v)
}

func (s stepping) FinishRenewal(
	ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	step(ctx)
	return s.MemoryStore.FinishRenewal(ctx, r, newID, data, ttl)
}

// shelf is an old store with one session, "x", or none. Its operations are steps.
type shelf struct {
	mu    sync.Mutex
	data  []byte
	reads int
	fails error // of Read
	keeps error // of Delete
}

func (s *shelf) Read(ctx context.Context, _ string) ([]byte, time.Duration, error) {
	step(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	switch {
	case s.fails != nil:
		return nil, 0, s.fails
	case s.data == nil:
		return nil, 0, tombstore.ErrNotFound
	}
	return s.data, time.Minute, nil
}

func (s *shelf) Delete(ctx context.Context, _ string) (deleted bool, err error) {
	step(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeps != nil {
		return false, s.keeps
	}
	deleted = s.data != nil
	s.data = nil
	return deleted, nil
}

// house is a store, and an old one with a session.
type house struct {
	*testing.T
	*Adapter
	store *tombstore.MemoryStore
	old   *shelf
	id    string
}

var errNoX = errors.New("not x")

func newHouse(t *testing.T) *house {
	t.Helper()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	h := &house{T: t, store: store, old: &shelf{data: []byte("x")}, id: tombstore.NewID()}
	h.Adapter = New(stepping{store}, WithMigration(h.old), WithDecode(func(data []byte) error {
		if string(data) != "x" {
			return errNoX
		}
		return nil
	}))
	return h
}

// find loads the session in a request, and returns what it has found.
func (h *house) find(ctx context.Context, r *Request) string {
	data, _, err := h.Load(ctx, r, h.id)
	require.NoError(h, err)
	return string(data)
}

func (h *house) live() bool {
	live, err := h.store.Exists(h.Context(), h.id)
	require.NoError(h, err)
	return live
}

func (h *house) requireOut() {
	h.Helper()
	require.False(h, h.live())
	require.Nil(h, h.old.data)
	require.Empty(h, h.find(h.Context(), nil))
}

func TestMigration(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := &Request{}
	require.Equal(t, "x", h.find(t.Context(), r))
	s, err := h.store.Read(t.Context(), h.id, tombstore.WithExpiry())
	require.NoError(t, err)
	require.Equal(t, "x", string(s.Data))
	require.WithinDuration(t, time.Now().Add(time.Minute), s.ExpiresAt, 10*time.Second)
	require.Nil(t, h.old.data)

	reads := h.old.reads
	require.Equal(t, "x", h.find(t.Context(), nil))
	require.Equal(t, reads, h.old.reads, "it was migrated before")
	require.NoError(t, h.Save(t.Context(), r, h.id, []byte("y"), time.Hour))
	require.Equal(t, "y", h.find(t.Context(), nil))
}

// A session that neither store has is none, and an id that cannot be one is not looked for.
func TestMigration_Unknown(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.old.data = nil
	require.Empty(t, h.find(t.Context(), nil))
	reads := h.old.reads
	h.id = ""
	require.Empty(t, h.find(t.Context(), nil))
	require.Equal(t, reads, h.old.reads)
}

// What an old process saves later under the id of a session that was ended stays where it is.
func TestMigration_Ended(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	require.NoError(t, h.store.Invalidate(t.Context(), h.id))
	require.Empty(t, h.find(t.Context(), nil))
	require.Zero(t, h.old.reads)
}

// An old store that cannot be asked is an error, in each verb, and never "no session".
func TestMigration_OldStoreFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.old.fails, h.old.keeps = errOut, errOut
	_, found, err := h.Load(t.Context(), nil, h.id)
	require.ErrorIs(t, err, errOut)
	require.False(t, found || tombstore.NoSession(err) || h.live())
	require.EqualError(t, err, "tombstore: migrate: out of reach")
	require.ErrorIs(t, h.End(t.Context(), &Request{}, h.id), errOut, "it may be there")
	require.ErrorIs(t, h.Absorb(t.Context(), &Request{}, h.id), errOut)

	h.old.fails = nil // it can be read
	_, _, err = h.Load(t.Context(), nil, h.id)
	require.ErrorIs(t, err, errOut)
	r := &Request{}
	require.Equal(t, "x", h.find(t.Context(), r), "it was written before")
	require.ErrorIs(t, h.End(t.Context(), r, h.id), errOut)
	require.False(t, h.live())
	h.old.keeps = nil
	require.NoError(t, h.End(t.Context(), r, h.id), "tried again")
	h.requireOut()
}

// A store that cannot be asked leaves the old one as it is.
func TestMigration_StoreFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	failing := &failing{MemoryStore: h.store, fails: true}
	h.Adapter = New(failing, WithMigration(h.old))
	_, _, err := h.Load(t.Context(), nil, h.id)
	require.ErrorIs(t, err, errOut)
	require.ErrorIs(t, h.End(t.Context(), &Request{}, h.id), errOut)
	require.NotNil(t, h.old.data)
}

// What is no session of the library is neither migrated nor deleted, and ends under its id all the same:
// another version of the program may know it.
func TestMigration_NotASession(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.old.data = []byte("somebody else's")
	_, found, err := h.Load(t.Context(), nil, h.id)
	require.ErrorIs(t, err, tombstore.ErrCorrupt)
	require.ErrorIs(t, err, errNoX)
	require.False(t, found || h.live())
	require.NoError(t, h.End(t.Context(), &Request{}, h.id))
	require.Equal(t, "somebody else's", string(h.old.data))
	_, err = h.store.Read(t.Context(), h.id)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
}

// An end of a session that neither store has leaves no tombstone.
func TestMigration_EndUnknown(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.old.data = nil
	require.NoError(t, h.End(t.Context(), &Request{}, h.id))
	_, err := h.store.Read(t.Context(), h.id)
	require.ErrorIs(t, err, tombstore.ErrNotFound)
}

// Every request that comes with the cookie finds its session, whatever the others do meanwhile.
func TestMigration_AgainstMigration(t *testing.T) {
	t.Parallel()
	orders := inEveryOrder(func() (one, two func(ctx context.Context), after func(one, two bool)) {
		h := newHouse(t)
		load := func(ctx context.Context) { require.Equal(t, "x", h.find(ctx, nil)) }
		return load, load, func(one, two bool) {
			if one && two {
				require.True(t, h.live())
				require.Nil(t, h.old.data)
			}
		}
	})
	require.Greater(t, orders, 50)
}

// From the moment on at which an end has returned, the session is out: whoever ends it, whether the request
// has loaded it or not, and whatever another one does that migrates it and saves what it holds.
func TestMigration_AgainstEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(h *house, ctx context.Context) error{
		"loaded": func(h *house, ctx context.Context) error {
			r := &Request{}
			h.find(ctx, r)
			return h.End(ctx, r, h.id)
		},
		"not loaded":    func(h *house, ctx context.Context) error { return h.End(ctx, &Request{}, h.id) },
		"no request":    func(h *house, ctx context.Context) error { return h.End(ctx, nil, h.id) },
		"another's":     func(h *house, ctx context.Context) error { return h.End(ctx, &Request{id: "own"}, h.id) },
		"absorbed":      func(h *house, ctx context.Context) error { return h.Absorb(ctx, &Request{}, h.id) },
		"left":          func(h *house, ctx context.Context) error { return h.Leave(ctx, nil, h.id) },
		"another, left": func(h *house, ctx context.Context) error { return h.Leave(ctx, &Request{id: "own"}, h.id) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			orders := inEveryOrder(func() (one, two func(ctx context.Context), after func(one, two bool)) {
				h := newHouse(t)
				migrate := func(ctx context.Context) {
					r := &Request{}
					if h.find(ctx, r) == "" {
						return
					}
					err := h.Save(ctx, r, h.id, []byte("y"), time.Hour)
					if err != nil {
						require.ErrorIs(t, err, ErrRefused)
					}
				}
				return migrate, func(ctx context.Context) { require.NoError(t, end(h, ctx)) }, func(one, two bool) {
					if two {
						require.False(t, h.live())
						require.Nil(t, h.old.data)
					}
					if one && two {
						h.requireOut()
					}
				}
			})
			require.Greater(t, orders, 40)
		})
	}
}

// What another request has saved is not undone.
func TestMigration_AgainstSave(t *testing.T) {
	t.Parallel()
	inEveryOrder(func() (one, two func(ctx context.Context), after func(one, two bool)) {
		h := newHouse(t)
		load := func(ctx context.Context) { require.NotEmpty(t, h.find(ctx, nil)) }
		save := func(ctx context.Context) {
			r := &Request{}
			require.Equal(t, "x", h.find(ctx, r))
			require.NoError(t, h.Save(ctx, r, h.id, []byte("y"), time.Hour))
		}
		return load, save, func(_, two bool) {
			if two {
				require.Equal(t, "y", h.find(t.Context(), nil))
			}
		}
	})
}

// A login leaves no session under the old id, and goes on.
func TestMigration_AgainstRenewal(t *testing.T) {
	t.Parallel()
	inEveryOrder(func() (one, two func(ctx context.Context), after func(one, two bool)) {
		h := newHouse(t)
		next := tombstore.NewID()
		load := func(ctx context.Context) { h.find(ctx, nil) }
		renew := func(ctx context.Context) {
			r := &Request{}
			require.Equal(t, "x", h.find(ctx, r))
			require.NoError(t, h.Leave(ctx, r, h.id))
			require.NoError(t, h.Save(ctx, r, next, []byte("y"), time.Hour))
		}
		return load, renew, func(one, two bool) {
			if two {
				require.False(t, h.live())
				live, err := h.store.Exists(t.Context(), next)
				require.NoError(t, err)
				require.True(t, live)
			}
			if one && two {
				h.requireOut()
			}
		}
	})
}

// An old process ends a session that is on its way. If it still finds it, the session is out.
func TestMigration_AgainstOldProcess(t *testing.T) {
	t.Parallel()
	orders := inEveryOrder(func() (one, two func(ctx context.Context), after func(one, two bool)) {
		h := newHouse(t)
		ended := false
		load := func(ctx context.Context) { h.find(ctx, nil) }
		end := func(ctx context.Context) { ended, _ = h.old.Delete(ctx, h.id) }
		return load, end, func(one, two bool) {
			if one && two && ended {
				h.requireOut()
			}
		}
	})
	require.Equal(t, 5, orders) // before each of the four steps of a migration, and after them
}

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

func TestOldKeys(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	prefix := redistest.Prefix(t, client)
	do := func(words ...string) {
		t.Helper()
		require.NoError(t, client.Do(t.Context(), client.B().Arbitrary(words...).Build()).Error())
	}
	do("SET", prefix+"a", "x", "PX", "60000")
	do("SET", prefix+"no TTL", "x")
	do("SET", prefix+"visitor", "", "PX", "60000")
	do("HSET", prefix+"hash", "x", "x")
	old := NewOldKeys(client, prefix)

	data, ttl, err := old.Read(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, "x", string(data))
	require.InDelta(t, time.Minute, ttl, float64(10*time.Second))
	for id, want := range map[string]error{
		"b": tombstore.ErrNotFound, "visitor": tombstore.ErrNotFound, "no TTL": tombstore.ErrCorrupt, "hash": tombstore.ErrCorrupt,
	} {
		_, _, err := old.Read(t.Context(), id)
		require.ErrorIs(t, err, want)
	}
	for _, want := range []bool{true, false} {
		deleted, err := old.Delete(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, want, deleted)
	}
}

// A server that cannot be asked is an error.
func TestOldKeys_Away(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	old := NewOldKeys(redistest.Dial(t, server.URL), "session_")
	server.Kill(t)
	_, _, err := old.Read(t.Context(), "a")
	require.Error(t, err)
	require.False(t, tombstore.NoSession(err))
	_, err = old.Delete(t.Context(), "a")
	require.Error(t, err)
}

// What a server refuses is an error, whose text does not quote the key.
func TestOldKeys_Refused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--rename-command", "PTTL", "_")
	client := redistest.Dial(t, server.URL)
	do := func(words ...string) {
		t.Helper()
		require.NoError(t, client.Do(t.Context(), client.B().Arbitrary(words...).Build()).Error())
	}
	do("SET", "session_secret", "x", "PX", "60000")
	old := NewOldKeys(client, "session_")
	_, _, err := old.Read(t.Context(), "secret")
	require.EqualError(t, err, "server answered an error")
	var reply *rueidis.RedisError
	require.ErrorAs(t, err, &reply)
	require.ErrorContains(t, reply, "secret")

	do("ACL", "SETUSER", "default", "-get", "-del")
	_, _, err = old.Read(t.Context(), "secret")
	require.EqualError(t, err, "server answered NOPERM")
	_, err = old.Delete(t.Context(), "secret")
	require.EqualError(t, err, "server answered NOPERM")
}
