package tombstore

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/client"
	"github.com/tombstore/tombstore/internal/redistest"
)

// name leads to the primary of two servers, as a DNS name or a virtual address does: new
// connections go to the primary of the moment, and connections that there are stay where they are.
type name struct {
	*redistest.Proxy
	t       *testing.T
	prefix  string
	servers [2]*redistest.Server // the primary and its replica
	admins  [2]rueidis.Client
}

func newName(t *testing.T) *name {
	t.Helper()
	if redistest.InContainer() {
		t.Skip("containers do not reach each other")
	}
	n := &name{t: t}
	for i := range n.servers {
		n.servers[i] = redistest.Start(t, "--repl-diskless-sync-delay", "0")
		n.admins[i] = redistest.Dial(t, n.servers[i].URL)
	}
	n.Proxy = redistest.NewProxy(t, n.servers[0].Addr)
	n.prefix = redistest.Prefix(t, n.admins[0])
	n.do(1, n.follow(0)...)
	n.awaitRoles()
	return n
}

// do sends a command to the primary (0) or to the replica (1).
func (n *name) do(i int, command ...string) rueidis.RedisResult {
	n.t.Helper()
	res := n.admins[i].Do(n.t.Context(), n.admins[i].B().Arbitrary(command...).Build())
	if err := res.Error(); !rueidis.IsRedisNil(err) {
		require.NoError(n.t, err, command)
	}
	return res
}

func (n *name) follow(i int) []string {
	host, port, err := net.SplitHostPort(n.servers[i].Addr)
	require.NoError(n.t, err)
	return []string{"REPLICAOF", host, port}
}

// awaitRoles waits until the replica has what the primary has, and says that it is one.
func (n *name) awaitRoles() {
	n.t.Helper()
	redistest.Until(n.t, "the replica follows", func() bool {
		return redistest.Info(n.t, n.admins[1], "role") == "slave" &&
			redistest.Info(n.t, n.admins[1], "master_link_status") == "up" &&
			redistest.Info(n.t, n.admins[0], "role") == "master" && n.offset(0) == n.offset(1)
	})
}

func (n *name) offset(i int) string {
	n.t.Helper()
	return redistest.Info(n.t, n.admins[i], "master_repl_offset")
}

// replicaof lets the servers change places by REPLICAOF. Nothing is written meanwhile.
func (n *name) replicaof() {
	n.t.Helper()
	n.do(0, "CLIENT", "PAUSE", "60000", "WRITE")
	redistest.Until(n.t, "the replica has everything", func() bool { return n.offset(0) == n.offset(1) })
	n.do(1, "REPLICAOF", "NO", "ONE")
	n.do(0, n.follow(1)...)
	n.do(0, "CLIENT", "UNPAUSE")
	n.swap()
}

// failover lets the servers change places by FAILOVER.
func (n *name) failover() {
	n.t.Helper()
	command := append([]string{"FAILOVER", "TO"}, n.follow(1)[1:]...)
	redistest.Until(n.t, "the replica is online", func() bool {
		return n.admins[0].Do(n.t.Context(), n.admins[0].B().Arbitrary(command...).Build()).Error() == nil
	})
	redistest.Until(n.t, "the servers have changed places", func() bool {
		return redistest.Info(n.t, n.admins[0], "role") == "slave" && redistest.Info(n.t, n.admins[1], "role") == "master"
	})
	n.swap()
}

func (n *name) swap() {
	n.servers[0], n.servers[1] = n.servers[1], n.servers[0]
	n.admins[0], n.admins[1] = n.admins[1], n.admins[0]
	n.Lead(n.servers[0].Addr)
}

// open returns a bed on a store that was opened with the name, and whose client is the primary's.
func (n *name) open(opts ...Option) *bed {
	n.t.Helper()
	s, err := Open(n.URL, append([]Option{WithKeyPrefix(n.prefix), WithTimeout(20 * time.Second)}, opts...)...)
	require.NoError(n.t, err)
	n.t.Cleanup(s.Close)
	return &bed{s, n.t, n.admins[0]}
}

// A store keeps working while the servers behind its name change places. Workers check each step of
// a session, and in the end nothing is there but what they have ended.
func TestWrongServer(t *testing.T) {
	t.Parallel()
	const workers = 8
	changes := rounds(t, 4)
	kinds := map[string][]Option{
		"plain": nil, "cached": {WithClientCache(time.Hour)}, "strict": {WithStrictReads()},
		"acknowledged": {WithReplicaAcks(1, 20*time.Second)},
	}
	for how, change := range map[string]func(*name){"REPLICAOF": (*name).replicaof, "FAILOVER": (*name).failover} {
		for _, kind := range some(slices.Sorted(maps.Keys(kinds)), rand.Int()) {
			opts := kinds[kind]
			t.Run(how+"/"+kind, func(t *testing.T) {
				t.Parallel()
				n := newName(t)
				b := n.open(opts...)
				if b.cache != nil {
					caching(b)
				}
				var stop atomic.Bool
				var rounds atomic.Int64
				var done sync.WaitGroup
				for range workers {
					done.Go(func() {
						for !stop.Load() && !t.Failed() {
							countAndEnd(t, b)
							rounds.Add(1)
						}
					})
				}
				for range changes {
					for next := rounds.Load() + workers; rounds.Load() < next && !t.Failed(); {
						time.Sleep(time.Millisecond)
					}
					change(n)
				}
				for next := rounds.Load() + workers; rounds.Load() < next && !t.Failed(); {
					time.Sleep(time.Millisecond)
				}
				stop.Store(true)
				done.Wait()
				n.awaitRoles()
				keys := redistest.Keys(t.Context(), n.admins[0], n.prefix)
				require.NotEmpty(t, keys)
				for _, key := range keys {
					n.requireEnded(key)
				}
			})
		}
	}
}

// Each verb that changes something, and each strict read, meets the wrong server by itself, and
// goes on at the right one. A plain read is content with whatever server it meets.
func TestWrongServer_EveryVerb(t *testing.T) {
	t.Parallel()
	n := newName(t)
	b, ctx := n.open(), t.Context()
	session := func() string {
		id := NewID()
		b.write(id, "x", time.Hour)
		return id
	}
	saved, absent := session(), NewID()
	held, err := b.Read(ctx, saved)
	require.NoError(t, err)
	finished, _ := b.begin()
	canceled, _ := b.begin()
	moved, present := b.move()
	strict := []Option{WithStrictReads()}

	type check struct {
		verb  string
		opts  []Option
		id    string
		found string // under id, on the primary, when the verb has returned
		call  func(s *RedisStore, id string) error
	}
	checks := []check{
		{"Write", nil, NewID(), "string", func(s *RedisStore, id string) error {
			_, err := s.Write(ctx, id, nil, time.Hour, IfAbsent())
			return err
		}},
		{"Write Replacing", nil, saved, "string", func(s *RedisStore, id string) error {
			_, err := s.Write(ctx, id, nil, time.Hour, Replacing(held))
			return err
		}},
		{"Touch", nil, session(), "string", func(s *RedisStore, id string) error { return s.Touch(ctx, id, 2*time.Hour) }},
		{"Rotate", nil, session(), "hash", func(s *RedisStore, id string) error {
			_, err := s.Rotate(ctx, id, NewID())
			return err
		}},
		{"BeginRenewal", nil, session(), "hash", func(s *RedisStore, id string) error {
			_, err := s.BeginRenewal(ctx, id, 0)
			return err
		}},
		{"FinishRenewal", nil, NewID(), "string", func(s *RedisStore, id string) error {
			_, err := s.FinishRenewal(ctx, finished, id, nil, time.Hour)
			return err
		}},
		{"CancelRenewal", nil, absent, "none", func(s *RedisStore, _ string) error { return s.CancelRenewal(ctx, canceled) }},
		{"Invalidate", nil, session(), "hash", func(s *RedisStore, id string) error { return s.Invalidate(ctx, id) }},
		{"Invalidate, moved", nil, present, "hash", func(s *RedisStore, _ string) error { return s.Invalidate(ctx, moved) }},
		{"InvalidateRef", nil, session(), "hash", func(s *RedisStore, id string) error { return s.InvalidateRef(ctx, Ref(id)) }},
		{
			"Invalidate, acknowledged", []Option{WithReplicaAcks(1, 20*time.Second)}, session(), "hash",
			func(s *RedisStore, id string) error { return s.Invalidate(ctx, id) },
		},
		{"Read Slide", nil, session(), "string", func(s *RedisStore, id string) error {
			_, err := s.Read(ctx, id, Slide(2*time.Hour))
			return err
		}},
		{"Read, strict", strict, session(), "string", func(s *RedisStore, id string) error {
			_, err := s.Read(ctx, id)
			return err
		}},
		{"Exists, strict", strict, session(), "string", func(s *RedisStore, id string) error {
			_, err := s.Exists(ctx, id)
			return err
		}},
		{"Check", nil, absent, "none", func(s *RedisStore, _ string) error {
			_, err := s.Check(ctx)
			return err
		}},
		{"Read, cached: the canary", []Option{WithClientCache(time.Hour)}, session(), "string", func(s *RedisStore, id string) error {
			_, err := s.Read(ctx, id)
			return err
		}},
	}
	stores := make([]*RedisStore, len(checks))
	logger, logged := newLog()
	for i, c := range checks {
		stores[i] = n.open(append(c.opts, WithLogger(logger))...).RedisStore
	}
	n.awaitRoles()
	n.failover()

	dialled := n.Dialled()
	b.reads(saved, "x")
	exists, err := b.Exists(ctx, saved)
	require.NoError(t, err)
	require.True(t, exists)
	require.Equal(t, dialled, n.Dialled())
	for i, c := range checks {
		dialled := n.Dialled() + 1
		if stores[i].acks > 0 {
			dialled++
		}
		require.NoError(t, c.call(stores[i], c.id), c.verb)
		require.Equal(t, dialled, n.Dialled(), c.verb)
		kind, err := n.do(0, "TYPE", b.keyOf(c.id)).ToString()
		require.NoError(t, err)
		require.Equal(t, c.found, kind, c.verb)
		require.Len(t, logged.lines(), i+1, c.verb)
		require.Contains(t, logged.lines()[i], warnReplica)
	}
}

// Connections that wait for replicas lead to the old server too, and most of them are idle.
func TestWrongServer_IdleConnections(t *testing.T) {
	t.Parallel()
	n := newName(t)
	b := n.open(WithReplicaAcks(1, 20*time.Second))
	n.servers[1].Pause(t)
	var waiting sync.WaitGroup
	for range 64 {
		waiting.Go(func() { assert.NoError(t, b.Invalidate(t.Context(), NewID())) })
	}
	redistest.Until(t, "all wait", func() bool { return redistest.Info(t, n.admins[0], "blocked_clients") == "64" })
	n.servers[1].Resume(t)
	waiting.Wait()
	n.awaitRoles()
	n.replicaof()
	id := NewID()
	b.write(id, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), id))
	n.requireEnded(b.keyOf(id))
}

// The servers change places when the old one has the end of a session and is about to be asked
// whether the replicas have it, and while it waits for them.
func TestWrongServer_Acknowledged(t *testing.T) {
	t.Parallel()
	t.Run("before WAIT", func(t *testing.T) {
		t.Parallel()
		n := newName(t)
		b := n.open(WithReplicaAcks(1, 20*time.Second))
		id := NewID()
		b.write(id, "x", time.Hour)
		require.NoError(t, b.Invalidate(t.Context(), NewID()), "there is a connection that waits")
		b.RedisStore.client = &interrupted{
			Client: b.RedisStore.client, words: []string{"WAIT"}, before: n.failover, between: func() {},
		}
		require.NoError(t, b.Invalidate(t.Context(), id))
		n.requireEnded(b.keyOf(id))
	})
	t.Run("in WAIT", func(t *testing.T) {
		t.Parallel()
		n := newName(t)
		b := n.open(WithReplicaAcks(1, 20*time.Second))
		id, done := NewID(), make(chan error)
		b.write(id, "x", time.Hour)
		n.awaitRoles()
		n.do(1, "REPLICAOF", "NO", "ONE")
		redistest.Until(t, "the replica is gone", func() bool { return redistest.Info(t, n.admins[0], "connected_slaves") == "0" })
		go func() { done <- b.Invalidate(t.Context(), id) }()
		redistest.Until(t, "the store waits", func() bool { return redistest.Info(t, n.admins[0], "blocked_clients") == "1" })
		n.do(0, n.follow(1)...)
		n.swap()
		require.NoError(t, <-done)
		n.requireEnded(b.keyOf(id))
	})
}

// requireEnded makes sure that both servers hold a tombstone.
func (n *name) requireEnded(key string) {
	n.t.Helper()
	for i := range n.admins {
		kind, err := n.do(i, "TYPE", key).ToString()
		require.NoError(n.t, err)
		require.Equal(n.t, "hash", kind)
	}
}

// What was cached over a connection to the old server is not found after a change at the new one.
func TestWrongServer_Cached(t *testing.T) {
	t.Parallel()
	n := newName(t)
	b := n.open(WithClientCache(time.Hour))
	caching(b)
	id, other := NewID(), NewID()
	b.write(id, "x", time.Hour)
	b.write(other, "x", time.Hour)
	b.reads(id, "x")
	n.awaitRoles()
	n.failover()
	n.do(1, "REPLICAOF", "127.0.0.1", "1") // it hears of nothing that happens at the primary
	elsewhere := n.open()
	require.NoError(t, elsewhere.Invalidate(t.Context(), id))
	b.reads(id, "x") // from memory, or as old as the replica

	require.NoError(t, b.Touch(t.Context(), other, 2*time.Hour))
	_, err := b.Read(t.Context(), id)
	require.ErrorIs(t, err, ErrInvalidated)
}

// A replica that has lost its primary, and is told not to answer then, shows a store that only
// reads where it is.
func TestWrongServer_Silent(t *testing.T) {
	t.Parallel()
	n := newName(t)
	b := n.open()
	id := NewID()
	b.write(id, "x", time.Hour)
	n.awaitRoles()
	n.failover()
	n.do(1, "CONFIG", "SET", "replica-serve-stale-data", "no")
	n.do(1, "REPLICAOF", "127.0.0.1", "1")
	require.NoError(t, n.open().Invalidate(t.Context(), id))
	_, err := b.Read(t.Context(), id)
	require.ErrorIs(t, err, ErrInvalidated)
}

// A name that leads to a replica for good is an error that says so, and no storm of connections.
// Reads are answered.
func TestWrongServer_ForGood(t *testing.T) {
	t.Parallel()
	n := newName(t)
	n.Lead(n.servers[1].Addr)
	begun := time.Now()
	b := n.open(WithTimeout(4 * client.MinLife))
	var failing sync.WaitGroup
	for range 32 {
		failing.Go(func() {
			_, err := b.Write(t.Context(), NewID(), nil, time.Hour)
			assert.ErrorContains(t, err, "server answered READONLY")
			assert.ErrorContains(t, b.Invalidate(t.Context(), NewID()), "server answered READONLY")
		})
		failing.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for range 100 {
				_, err := b.Read(ctx, NewID())
				assert.ErrorIs(t, err, ErrNotFound)
			}
		})
	}
	failing.Wait()
	require.Greater(t, n.Dialled(), int64(1))
	given := int64(2) // dials that rueidis gives up when the time of the calls is up, which is so twice
	require.LessOrEqual(t, n.Dialled()-1-given, int64(time.Since(begun)/client.MinLife))
	require.Empty(t, redistest.Keys(t.Context(), n.admins[0], n.prefix))

	n.Lead(n.servers[0].Addr)
	id := NewID()
	b.timeout = 20 * time.Second
	b.write(id, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), id))
}

// The error says what the server has said, although no answer came to the last attempt. A
// connection may be too young to be dropped when the store hears of the switch, and then the store
// only reads. It does not stay.
func TestWrongServer_YoungConnection(t *testing.T) {
	t.Parallel()
	n := newName(t)
	id := NewID()
	n.open().write(id, "x", time.Hour)
	n.awaitRoles()
	n.do(1, "REPLICAOF", "NO", "ONE")
	n.do(0, "REPLICAOF", "127.0.0.1", "1")        // it has lost touch
	b := n.open()                                 // the name has not followed yet
	redistest.Until(t, "a refusal", func() bool { // which a busy machine may not give in time
		ctx, cancel := context.WithTimeout(t.Context(), client.MinLife/4)
		defer cancel()
		err := b.Touch(ctx, id, time.Minute)
		return err != nil && strings.Contains(err.Error(), "READONLY")
	})
	n.Lead(n.servers[1].Addr)
	require.NoError(t, n.open().Invalidate(t.Context(), id))
	redistest.Until(t, "the store reads from the new primary", func() bool {
		_, err := b.Read(t.Context(), id)
		return errors.Is(err, ErrInvalidated)
	})
}

// One caller loses no attempt to the connections that the store drops, so it is told that nothing
// was done, and after a switch what has become of the session.
func TestWrongServer_NothingIsLost(t *testing.T) {
	t.Parallel()
	n := newName(t)
	n.Lead(n.servers[1].Addr)
	b := n.open(WithTimeout(5 * client.MinLife / 2))
	refused := func(err error) (told bool) {
		if errors.Is(err, context.DeadlineExceeded) { // the last attempt had no time to be answered
			return false
		}
		require.ErrorContains(t, err, "server answered READONLY")
		require.NotErrorIs(t, err, ErrUnknownOutcome)
		return true
	}
	for range 3 {
		if err := b.Invalidate(t.Context(), NewID()); refused(err) {
			require.ErrorIs(t, err, ErrNotInvalidated)
		}
		_, err := b.Write(t.Context(), NewID(), nil, time.Hour)
		refused(err)
	}

	n.Lead(n.servers[0].Addr)
	b.timeout = 20 * time.Second
	id := NewID()
	b.write(id, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), id))
}

// An operation whose time is up when it drops the connections leaves it to the next one to see to
// it that the client has noticed.
func TestWrongServer_DroppedTooLate(t *testing.T) {
	t.Parallel()
	n := newName(t)
	n.Lead(n.servers[1].Addr)
	b := n.open(WithTimeout(20 * time.Second))
	_, err := b.Read(t.Context(), NewID())
	require.ErrorIs(t, err, ErrNotFound)
	redistest.Until(t, "the connection is old enough, and dropped", func() bool {
		return b.conns.Drop(time.Now()) == 0
	})
	replica := n.admins[1]
	refusal := replica.Do(t.Context(), replica.B().Set().Key(n.prefix).Value("").Build()).Error()
	over, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	n.Lead(n.servers[0].Addr)
	require.True(t, b.again(over, refusal, time.Now()))
	_, lost, err := b.ask(t.Context(), &touchScript, []string{b.keyOf(NewID())}, "1000", "0")
	require.NoError(t, err)
	require.False(t, lost)
}

func TestWrongServer_FallsSilent(t *testing.T) {
	t.Parallel()
	n := newName(t)
	n.Lead(n.servers[1].Addr)
	b := n.open()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	errs := make(chan error)
	go func() {
		_, err := b.Write(ctx, NewID(), nil, time.Hour)
		errs <- err
	}()
	redistest.Until(t, "the store has met a replica", func() bool { return n.Dialled() > 1 })
	n.Isolate()
	err := <-errs
	require.ErrorContains(t, err, "server answered READONLY")
	require.Equal(t, errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrUnknownOutcome), "whether it was sent again")

	replica := n.admins[1]
	refusal := replica.Do(t.Context(), replica.B().Set().Key(n.prefix).Value("").Build()).Error()
	err = after(context.DeadlineExceeded, refusal)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "server answered READONLY")
}

// sentinelled is a client that a store takes for one that asks Sentinels.
type sentinelled struct{ rueidis.Client }

func (sentinelled) Mode() rueidis.ClientMode { return rueidis.ClientModeSentinel }

// A server that is a replica for a moment is waited for where the client finds the primary by
// itself, and by the store that Open returned. With any other client it is the end of it.
func TestWrongServer_ForAMoment(t *testing.T) {
	t.Parallel()
	for kind, open := range map[string]func(n *name) *bed{
		"Open": func(n *name) *bed { return n.open() },
		"Sentinels": func(n *name) *bed {
			return bedOn(t, sentinelled{n.admins[0]}, WithKeyPrefix(n.prefix), WithTimeout(20*time.Second))
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			n := newName(t)
			b := open(n)
			id, done := NewID(), make(chan error)
			b.write(id, "x", time.Hour)
			n.do(0, n.follow(1)...)
			usual := bedOn(t, n.admins[0], WithKeyPrefix(n.prefix))
			n.do(0, "CONFIG", "RESETSTAT")
			require.ErrorContains(t, usual.Invalidate(t.Context(), id), "server answered READONLY")
			require.Equal(t, "count=1", redistest.Info(t, n.admins[0], "errorstat_READONLY"))
			go func() { done <- b.Invalidate(t.Context(), id) }()
			redistest.Until(t, "the store meets a replica", func() bool {
				return redistest.Info(t, n.admins[0], "errorstat_READONLY") != "count=1"
			})
			n.do(0, "REPLICAOF", "NO", "ONE")
			require.NoError(t, <-done)
			usual.requireTombstone(id, Logout)
		})
	}
}
