package tombstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestFullMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := redistest.Dial(t, server.URL)
	b := bedOn(t, client)
	live, absent, ended := NewID(), NewID(), NewID()
	b.write(live, strings.Repeat("x", 100), time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), ended, WithReason(Revoked)))
	b.do("CONFIG", "SET", "maxmemory", "1") // full from now on
	before, _ := b.raw(live)

	_, err := b.Write(t.Context(), live, []byte("y"), time.Hour)
	require.EqualError(t, err, "tombstore: write: server answered OOM")
	require.NotErrorIs(t, err, ErrUnknownOutcome)
	_, err = b.Rotate(t.Context(), live, NewID())
	require.ErrorContains(t, err, "OOM")
	after, _ := b.raw(live)
	require.Equal(t, before, after)
	_, err = b.Write(t.Context(), NewID(), []byte("y"), time.Hour)
	require.ErrorContains(t, err, "OOM")
	_, err = b.Read(t.Context(), live)
	require.NoError(t, err)

	for id, reason := range map[string]Reason{live: Logout, absent: Logout, ended: Revoked} {
		require.NoError(t, b.Invalidate(t.Context(), id))
		require.Greater(t, b.requireTombstone(id, reason), 23*time.Hour)
		_, err = b.Read(t.Context(), id)
		require.ErrorIs(t, err, ErrInvalidated)
	}
}

// What a server refuses to end is not ended, and the caller is told so.
func TestInvalidate_Refused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ command, code string }{
		"READONLY":   {"REPLICAOF 127.0.0.1 1", "READONLY"},
		"NOREPLICAS": {"CONFIG SET min-replicas-to-write 1", "NOREPLICAS"},
		"NOPERM":     {"ACL SETUSER default -set", ""}, // 7.0 has no code for it,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bedOn(t, redistest.Dial(t, redistest.Start(t).URL))
			id := NewID()
			b.write(id, "x", time.Hour)
			b.do(strings.Fields(c.command)...)
			err := b.Invalidate(t.Context(), id)
			require.ErrorIs(t, err, ErrNotInvalidated)
			require.ErrorContains(t, err, c.code)
			var reply *rueidis.RedisError
			require.ErrorAs(t, err, &reply)
			value, _ := b.raw(id)
			require.EqualValues(t, kindLive, value[0])
		})
	}
}

func TestDeadServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := bedOn(t, redistest.Dial(t, server.URL), WithTimeout(300*time.Millisecond))
	id := NewID()
	b.write(id, "x", time.Hour)
	server.Kill(t)
	errs := everyLiveVerb(b, id)
	errs["Invalidate"] = b.Invalidate(t.Context(), id)
	_, errs["Exists"] = b.Exists(t.Context(), id)
	for verb, err := range errs {
		require.Error(t, err, verb)
		require.NotErrorIs(t, err, ErrNotFound, verb)
		require.NotErrorIs(t, err, ErrInvalidated, verb)
	}
	err := b.Touch(t.Context(), id, time.Minute) // by now the connection is known to be broken, and nothing is sent
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.NotErrorIs(t, err, ErrUnknownOutcome)
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	b := bedOn(t, redistest.Dial(t, proxy.URL), WithTimeout(300*time.Millisecond))
	id := NewID()
	b.write(id, "x", time.Hour)
	proxy.Mute()
	err := b.Invalidate(t.Context(), id)
	require.ErrorIs(t, err, ErrUnknownOutcome)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = b.Read(t.Context(), id)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnknownOutcome)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = b.Write(ctx, id, nil, time.Minute)
	require.ErrorIs(t, err, ErrUnknownOutcome)
	require.ErrorIs(t, err, context.Canceled)
}

// answers returns the reply to a command.
type answers func(command []string) string

// listen starts a server that answers whatever the test wants.
func listen(t *testing.T, answer answers) rueidis.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn, answer)
		}
	}()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{l.Addr().String()}, DisableCache: true, ForceSingleClient: true, AlwaysRESP2: true,
		DisableRetry: true, ClientSetInfo: rueidis.DisableClientSetInfo,
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func serve(conn net.Conn, answer answers) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		command, err := redistest.ReadCommand(r)
		if err != nil {
			return
		}
		reply := "+OK\r\n"
		if command[0] == "GET" || command[0] == "WAIT" || strings.HasPrefix(command[0], "EVAL") {
			reply = answer(command)
		}
		if _, err := io.WriteString(conn, reply); err != nil {
			return
		}
	}
}

func TestOldServer(t *testing.T) {
	t.Parallel()
	var evals atomic.Int64
	client := listen(t, func(command []string) string {
		switch command[0] {
		case "EVALSHA":
			return "-NOSCRIPT No matching script. Please use EVAL.\r\n"
		case "EVAL_RO":
			return "-ERR unknown command `EVAL_RO`, with args beginning with: `return 1`, `1`, `a key`\r\n"
		}
		evals.Add(1)
		return "+OK\r\n"
	})
	s, err := New(client, WithReplicaAcks(1, time.Second))
	require.NoError(t, err)
	require.ErrorContains(t, s.Invalidate(t.Context(), NewID()), "Redis 7.0")
	_, err = s.Write(t.Context(), NewID(), nil, time.Minute)
	require.ErrorContains(t, err, "Redis 7.0")
	require.ErrorContains(t, err, "Valkey 7.2")
	require.NotContains(t, err.Error(), "a key")
	require.Zero(t, evals.Load(), "no script reaches a server that would run it unsafely")
}

func TestNonsense(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{
		"+OK\r\n", ":1\r\n", "*0\r\n", "*2\r\n:1\r\n$1\r\nD\r\n", "$0\r\n\r\n", "$1\r\nD\r\n", "$1\r\nZ\r\n", "$1\r\nE\r\n",
		"$3\r\nDxx\r\n", "$23\r\nE\xc1\x00" + strings.Repeat("x", 20) + "\r\n", "-ERR something about an-id\r\n", "-weird\r\n",
		"$9\r\nEabcdefgh\r\n", "(A1\r\n", ",A1\r\n",
	} {
		t.Run(reply, func(t *testing.T) {
			t.Parallel()
			s, err := New(listen(t, func([]string) string { return reply }), WithTimeout(time.Second))
			require.NoError(t, err)
			id := "an-id"
			errs := map[string]error{}
			_, errs["Read"] = s.Read(t.Context(), id)
			_, errs["Slide"] = s.Read(t.Context(), id, Slide(time.Minute))
			_, errs["Write"] = s.Write(t.Context(), id, nil, time.Minute)
			_, errs["Rotate"] = s.Rotate(t.Context(), id, "another")
			if !strings.Contains(reply, "\nD") { // which is all that these want to hear
				errs["Touch"] = s.Touch(t.Context(), id, time.Minute)
				errs["Invalidate"] = s.Invalidate(t.Context(), id)
			}
			for verb, err := range errs {
				require.Error(t, err, verb)
				require.NotErrorIs(t, err, ErrNotFound, verb)
				require.NotErrorIs(t, err, ErrInvalidated, verb)
				require.NotContains(t, err.Error(), id, verb)
			}
		})
	}
}

// Each verb runs once although its reply is lost.
func TestLostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	behind := redistest.Dial(t, server.URL)
	proxy := redistest.NewProxy(t, server.Addr)
	b := bedOn(t, redistest.Dial(t, proxy.URL))
	other, err := New(behind, WithKeyPrefix(b.prefix))
	require.NoError(t, err)
	ctx := t.Context()

	// Every script is loaded, so that the reply that is lost is the answer and not NOSCRIPT.
	warm := NewID()
	b.write(warm, "x", time.Hour)
	everyLiveVerb(b, warm)
	require.NoError(t, b.Invalidate(ctx, warm))

	// lose loses the reply of the next command, and meanwhile calls between before the command is sent again.
	lose := func(between func()) {
		b.RedisStore.client = &interrupted{Client: b.client, before: proxy.LoseReply, between: between}
	}
	check := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			before := proxy.Lost()
			test(t)
			require.Equal(t, before+1, proxy.Lost())
			b.RedisStore.client = b.client
		})
	}
	nothing := func() {}

	check("Read", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Hour)
		lose(nothing)
		s, err := b.Read(ctx, id)
		require.NoError(t, err)
		require.Equal(t, "x", string(s.Data))
	})
	check("Write IfAbsent", func(t *testing.T) {
		id := NewID()
		lose(nothing)
		s := b.write(id, "x", time.Hour, IfAbsent())
		value, _ := b.raw(id)
		require.Equal(t, s.Version.head(), value[:10])
	})
	check("Write IfAbsent, then overwritten", func(t *testing.T) {
		id := NewID()
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour)
			require.NoError(t, err)
		})
		_, err := b.Write(ctx, id, []byte("mine"), time.Hour, IfAbsent())
		require.ErrorIs(t, err, ErrUnknownOutcome)
		value, _ := b.raw(id)
		require.Equal(t, "theirs", value[headerSize:])
	})
	check("Write IfVersion", func(t *testing.T) {
		id := NewID()
		first := b.write(id, "1", time.Hour)
		lose(nothing)
		second := b.write(id, "2", time.Hour, IfVersion(first.Version))
		b.write(id, "3", time.Hour, IfVersion(second.Version))
	})
	check("Write IfVersion, then overwritten", func(t *testing.T) {
		id := NewID()
		first := b.write(id, "1", time.Hour)
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour)
			require.NoError(t, err)
		})
		_, err := b.Write(ctx, id, []byte("2"), time.Hour, IfVersion(first.Version))
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrConflict)
		value, _ := b.raw(id)
		require.Equal(t, "theirs", value[headerSize:])
	})
	check("Write, then ended", func(t *testing.T) {
		id := NewID()
		lose(func() { require.NoError(t, other.Invalidate(ctx, id)) })
		_, err := b.Write(ctx, id, []byte("x"), time.Hour)
		require.ErrorIs(t, err, ErrInvalidated)
		b.requireTombstone(id, Logout)
	})
	check("Touch", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Minute)
		lose(nothing)
		require.NoError(t, b.Touch(ctx, id, time.Hour))
		_, ttl := b.raw(id)
		almost(t, time.Hour, ttl)
	})
	check("Rotate", func(t *testing.T) {
		old, id := NewID(), NewID()
		b.write(old, "x", time.Hour)
		lose(nothing)
		s, err := b.Rotate(ctx, old, id)
		require.NoError(t, err)
		require.Equal(t, "x", string(s.Data))
		value, ttl := b.raw(id)
		require.Equal(t, s.Version.head(), value[:10])
		almost(t, time.Hour, ttl)
		b.requireTombstone(old, Rotated)
	})
	check("Rotate, then changed under the new id", func(t *testing.T) {
		old, id := NewID(), NewID()
		b.write(old, "x", time.Hour)
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour)
			require.NoError(t, err)
		})
		_, err := b.Rotate(ctx, old, id)
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrInvalidated)
		b.requireTombstone(old, Rotated)
	})
	check("Invalidate", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Hour)
		lose(nothing)
		require.NoError(t, b.Invalidate(ctx, id))
		almost(t, 25*time.Hour, b.requireTombstone(id, Logout))
	})
	check("Invalidate IfLive", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Hour)
		lose(nothing)
		err := b.Invalidate(ctx, id, IfLive())
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrInvalidated)
		b.requireTombstone(id, Logout)
	})
	for name, change := range map[string]func(id string) error{
		"Write IfPresent": func(id string) error {
			_, err := b.Write(ctx, id, nil, time.Hour, IfPresent())
			return err
		},
		"Write IfVersion": func(id string) error {
			_, err := b.Write(ctx, id, nil, time.Hour, IfVersion(newVersion()))
			return err
		},
		"Rotate": func(id string) error {
			_, err := b.Rotate(ctx, id, NewID())
			return err
		},
		"Invalidate IfLive": func(id string) error { return b.Invalidate(ctx, id, IfLive()) },
	} {
		check(name+" of an absent session", func(t *testing.T) { // the lost attempt may yet arrive when there is one
			lose(nothing)
			err := change(NewID())
			require.ErrorIs(t, err, ErrUnknownOutcome)
			require.NotErrorIs(t, err, ErrNotFound)
		})
	}
	check("SET of a rotation in a cluster", func(t *testing.T) {
		key, record := b.keyOf(NewID()), newVersion().head()+strings.Repeat("\x00", 12)
		lose(nothing)
		require.NoError(t, b.create(ctx, "rotate", key, record, 60_000))
		require.ErrorIs(t, b.create(ctx, "rotate", key, newVersion().head(), 60_000), ErrConflict)
	})
	check("SET of a rotation in a cluster, then overwritten", func(t *testing.T) {
		id := NewID()
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour)
			require.NoError(t, err)
		})
		err := b.create(ctx, "rotate", b.keyOf(id), newVersion().head()+strings.Repeat("\x00", 12), 60_000)
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrConflict)
	})
}

// A rotation in a cluster that fails when the old id has been ended does not look like one that has done nothing.
func TestRotate_ClusterHalfDone(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]error{
		"refused": &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		"cut":     io.EOF,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bedOn(t, redistest.Dial(t, redistest.StartCluster(t).URL), WithTimeout(300*time.Millisecond))
			id, next := NewID(), NewID()
			b.write(id, "x", time.Hour)
			b.RedisStore.client = &withoutSet{b.client, cause}
			_, err := b.Rotate(t.Context(), id, next)
			require.ErrorIs(t, err, cause)
			require.ErrorIs(t, err, ErrUnknownOutcome)
			b.requireTombstone(id, Rotated)
			value, _ := b.raw(next)
			require.Empty(t, value)
		})
	}
}

// Where a foreign value stands under the new id, the old one has been ended all the same.
func TestRotate_ClusterForeign(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	key := b.keyOf(NewID())
	b.do("RPUSH", key, "x")
	err := b.create(t.Context(), "rotate", key, "record", 60_000)
	require.ErrorIs(t, err, ErrUnknownOutcome)
	require.NotErrorIs(t, err, ErrCorrupt)
}

// withoutSet does not send SET.
type withoutSet struct {
	rueidis.Client
	cause error
}

func (c *withoutSet) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[0] == "SET" {
		return rueidis.NewErrorResult(c.cause)
	}
	return c.Client.Do(ctx, cmd)
}

// interrupted calls before ahead of the first command, and between after it.
type interrupted struct {
	rueidis.Client
	before, between func()
	done            bool
}

func (c *interrupted) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if c.done {
		return c.Client.Do(ctx, cmd)
	}
	c.done = true
	c.before()
	res := c.Client.Do(ctx, cmd)
	c.between()
	return res
}

// A reply that is lost every time ends as an unknown outcome.
func TestLostReply_UntilTheDeadline(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	behind := bedOn(t, redistest.Dial(t, server.URL))
	for name, change := range map[string]func(b *bed, id string) error{
		"Invalidate": func(b *bed, id string) error { return b.Invalidate(t.Context(), id) },
		"Write":      func(b *bed, id string) error { _, err := b.Write(t.Context(), id, nil, time.Minute); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := redistest.NewProxy(t, server.Addr)
			b := bedOn(t, redistest.Dial(t, proxy.URL), WithKeyPrefix(behind.prefix))
			require.NoError(t, change(b, NewID())) // loads the script
			b.RedisStore.client, b.timeout = &lossy{b.client, proxy}, 200*time.Millisecond
			id := NewID()
			err := change(b, id)
			require.ErrorIs(t, err, ErrUnknownOutcome)
			require.NotErrorIs(t, err, ErrNotInvalidated)
			value, _ := behind.raw(id)
			require.NotEmpty(t, value)
		})
	}
}

type lossy struct {
	rueidis.Client
	proxy *redistest.Proxy
}

func (l *lossy) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	l.proxy.LoseReply()
	return l.Client.Do(ctx, cmd)
}

// TestTraffic breaks things in the middle of traffic. Each worker counts in a session of its own with IfVersion, so that a
// write applied twice, or lost without an error, leaves a wrong count; and ends sessions that must stay ended.
func TestTraffic(t *testing.T) {
	t.Parallel()
	const workers, faults = 16, 20
	for name, fault := range map[string]func(t *testing.T, s *redistest.Server, p *redistest.Proxy, admin rueidis.Client){
		"SCRIPT FLUSH": func(t *testing.T, _ *redistest.Server, _ *redistest.Proxy, admin rueidis.Client) {
			require.NoError(t, admin.Do(t.Context(), admin.B().ScriptFlush().Build()).Error())
		},
		"CLIENT KILL": func(t *testing.T, _ *redistest.Server, _ *redistest.Proxy, admin rueidis.Client) {
			kill := admin.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()
			require.NoError(t, admin.Do(t.Context(), kill).Error())
		},
		"restart": func(t *testing.T, s *redistest.Server, _ *redistest.Proxy, _ rueidis.Client) {
			s.Kill(t)
			s.Restart(t)
		},
		"lost reply": func(_ *testing.T, _ *redistest.Server, p *redistest.Proxy, _ rueidis.Client) { p.LoseReply() },
		"cut":        func(_ *testing.T, _ *redistest.Server, p *redistest.Proxy, _ rueidis.Client) { p.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			proxy := redistest.NewProxy(t, server.Addr)
			admin := redistest.Dial(t, server.URL)
			b := bedOn(t, redistest.Dial(t, proxy.URL), WithTimeout(20*time.Second))
			var stop atomic.Bool
			var done sync.WaitGroup
			var rounds atomic.Int64
			for range workers {
				done.Go(func() {
					for !stop.Load() && !t.Failed() {
						countAndEnd(t, b)
						rounds.Add(1)
					}
				})
			}
			for range faults {
				for next := rounds.Load() + workers; rounds.Load() < next && !t.Failed(); {
					time.Sleep(time.Millisecond) // traffic must flow between two faults
				}
				fault(t, server, proxy, admin)
			}
			stop.Store(true)
			done.Wait()
		})
	}
}

// countAndEnd plays a session from its first write to its end, and checks every step.
func countAndEnd(t *testing.T, b *bed) {
	const steps = 5
	ctx, id := t.Context(), NewID()
	number := func(n int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }
	s, err := b.Write(ctx, id, number(0), time.Hour, IfAbsent())
	for i := 1; i <= steps && assert.NoError(t, err); i++ {
		s, err = b.Write(ctx, id, number(i), time.Hour, IfVersion(s.Version))
	}
	if !assert.NoError(t, err, "nobody else writes") {
		return
	}
	read, err := b.Read(ctx, id)
	if !assert.NoError(t, err) || !assert.Equal(t, fmt.Sprint(number(steps)), fmt.Sprint(read.Data)) {
		return
	}
	next := NewID()
	_, err = b.Rotate(ctx, id, next)
	if !assert.NoError(t, err) || !assert.NoError(t, b.Touch(ctx, next, 2*time.Hour)) || !assert.NoError(t, b.Invalidate(ctx, next)) {
		return
	}
	for _, ended := range []string{id, next} {
		_, err = b.Write(ctx, ended, number(0), time.Hour)
		assert.ErrorIs(t, err, ErrInvalidated)
		_, err = b.Read(ctx, ended)
		assert.ErrorIs(t, err, ErrInvalidated)
	}
}

func TestReplicaAcks(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, primary.Replicaof(t)...)
	client := redistest.Dial(t, primary.URL)
	require.Eventually(t, func() bool {
		info, err := client.Do(t.Context(), client.B().Info().Section("replication").Build()).ToString()
		return err == nil && strings.Contains(info, "state=online")
	}, 20*time.Second, 20*time.Millisecond)
	onReplica := redistest.Dial(t, replica.URL)
	b := bedOn(t, client, WithReplicaAcks(1, 10*time.Second))
	held := func(id string) string {
		value, err := onReplica.Do(t.Context(), onReplica.B().Arbitrary("GET").Keys(b.keyOf(id)).Build()).ToString()
		require.NoError(t, err)
		return value
	}
	b.do("SCRIPT", "FLUSH") // the first script on the connection must be loaded

	id, old, next := NewID(), NewID(), NewID()
	b.write(id, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), id))
	require.Len(t, held(id), tombstoneSize)
	b.write(old, "x", time.Hour)
	_, err := b.Rotate(t.Context(), old, next)
	require.NoError(t, err)
	require.Len(t, held(old), tombstoneSize)

	many := bedOn(t, client, WithReplicaAcks(2, 20*time.Millisecond))
	many.write(id, "x", time.Hour)
	for range 2 { // also when the tombstone stands already
		err = many.Invalidate(t.Context(), id)
		require.ErrorIs(t, err, ErrUnacknowledged)
		require.NotErrorIs(t, err, ErrNotInvalidated)
		many.requireTombstone(id, Logout)
	}
	many.write(old, "x", time.Hour)
	s, err := many.Rotate(t.Context(), old, next)
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.Equal(t, "x", string(s.Data), "rotated all the same")
	many.requireTombstone(old, Rotated)

	many.do("SET", many.keyOf("foreign"), "foreign")
	require.ErrorIs(t, many.Invalidate(t.Context(), "foreign"), ErrCorrupt)
	many.do("CONFIG", "SET", "min-replicas-to-write", "2")
	require.ErrorIs(t, many.Invalidate(t.Context(), NewID()), ErrNotInvalidated)
}

// A client that sends what it thinks only reads to replicas must not send reads of sessions there.
func TestReadsStayOnThePrimary(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, primary.Replicaof(t)...)
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{primary.Addr}, DisableCache: true,
		Standalone:     rueidis.StandaloneOption{ReplicaAddress: []string{replica.Addr}},
		SendToReplicas: func(cmd rueidis.Completed) bool { return cmd.IsReadOnly() },
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	onReplica := redistest.Dial(t, replica.URL)
	stats := func() string {
		text, err := onReplica.Do(t.Context(), onReplica.B().Info().Section("commandstats").Build()).ToString()
		require.NoError(t, err)
		return text
	}
	b := bedOn(t, client)
	id := NewID()
	b.write(id, "x", time.Hour)
	_, err = b.Read(t.Context(), id)
	require.NoError(t, err)
	_, err = b.Read(t.Context(), id, Slide(time.Hour))
	require.NoError(t, err)
	_, err = b.Exists(t.Context(), id)
	require.NoError(t, err)
	require.Len(t, listed(t, b), 1)
	for _, command := range []string{"get", "getrange", "scan", "evalsha"} {
		require.NotContains(t, stats(), "cmdstat_"+command+":")
	}
	_ = client.Do(t.Context(), client.B().Get().Key("typed").Build()).Error()
	require.Contains(t, stats(), "cmdstat_get:", "the client would have")
}

func TestReplicaAcks_Cluster(t *testing.T) {
	t.Parallel()
	b := bedOn(t, redistest.Dial(t, redistest.StartCluster(t).URL), WithReplicaAcks(1, 10*time.Millisecond))
	id := NewID()
	b.write(id, "x", time.Hour)
	require.ErrorIs(t, b.Invalidate(t.Context(), id), ErrUnacknowledged)
	b.requireTombstone(id, Logout)
}

// The deadline of the caller ends the wait for replicas, and says what is known by then.
func TestReplicaAcks_Deadline(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	b := bedOn(t, redistest.Dial(t, server.URL), WithReplicaAcks(1, time.Minute))
	far := bedOn(t, redistest.Dial(t, proxy.URL), WithReplicaAcks(1, time.Minute))
	id := NewID()
	b.write(id, "x", time.Hour)
	b.do("SCRIPT", "FLUSH") // the session is ended before anybody waits
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Invalidate(ctx, id), ErrUnacknowledged)
	b.requireTombstone(id, Logout)
	<-ctx.Done()
	err := b.Invalidate(ctx, id)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnknownOutcome, "nothing was sent")

	proxy.Mute()
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = far.Invalidate(ctx, NewID())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnacknowledged, "nobody knows that it was ended")
	require.ErrorIs(t, err, ErrUnknownOutcome)
}

// A server that does not let the client WAIT says so once.
func TestReplicaAcks_NotPermitted(t *testing.T) {
	t.Parallel()
	b := bedOn(t, redistest.Dial(t, redistest.Start(t).URL), WithReplicaAcks(1, time.Minute))
	b.do("ACL", "SETUSER", "default", "-wait")
	id := NewID()
	err := b.Invalidate(t.Context(), id)
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.ErrorContains(t, err, "NOPERM")
	b.requireTombstone(id, Logout)
}

// A redirection that names no node is an error like any other.
func TestReplicaAcks_Nowhere(t *testing.T) {
	t.Parallel()
	for _, redirection := range []string{"MOVED", "MOVED 1", "ASK", "ASK 1"} {
		t.Run(redirection, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			s, err := New(listen(t, func(command []string) string {
				if calls.Add(1) == 1 { // the session is ended
					return "$1\r\nD\r\n"
				}
				return "-" + redirection + "\r\n"
			}), WithReplicaAcks(1, time.Millisecond), WithTimeout(100*time.Millisecond))
			require.NoError(t, err)
			require.ErrorIs(t, s.Invalidate(t.Context(), "id"), ErrUnacknowledged)
		})
	}
}

// WAIT is given the time that the option says when the caller has more, however much.
func TestReplicaAcks_FarDeadline(t *testing.T) {
	t.Parallel()
	var waits []string
	s, err := New(listen(t, func(command []string) string {
		if command[0] == "WAIT" {
			waits = append(waits, strings.Join(command, " "))
			return ":1\r\n"
		}
		return "$1\r\nD\r\n"
	}), WithReplicaAcks(1, time.Minute))
	require.NoError(t, err)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(250*365*24*time.Hour))
	defer cancel()
	require.NoError(t, s.Invalidate(ctx, "id"))
	require.Equal(t, []string{"WAIT 1 60000"}, waits)
}

func TestErrors_AreOne(t *testing.T) {
	t.Parallel()
	sentinels := []error{
		ErrNotFound, ErrInvalidated, ErrConflict, ErrUnknownOutcome, ErrInvalidID, ErrInvalidTTL, ErrTooLarge, ErrCorrupt,
		ErrNotInvalidated, ErrUnacknowledged,
	}
	err := wrap("read", &InvalidatedError{Reason: Revoked, At: time.Now()})
	require.EqualError(t, err, "tombstore: read: session was ended: revoked")
	matches := 0
	for _, sentinel := range sentinels {
		if errors.Is(err, sentinel) {
			matches++
		}
	}
	require.Equal(t, 1, matches)
}
