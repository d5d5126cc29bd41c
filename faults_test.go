package tombstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
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

// everyVerb calls every method that has to do with a session. Those that change one get the wrong
// time to do so: renewal is one that has begun, and moved has gone on under another id.
func (b *bed) everyVerb(id string, s Session, renewal Renewal, moved string) map[string]error {
	ctx := b.t.Context()
	errs := everyLiveVerb(b, id)
	_, errs["Read WithExpiry"] = b.Read(ctx, id, WithExpiry())
	_, errs["Read Fresh"] = b.Read(ctx, id, Fresh())
	_, errs["Exists"] = b.Exists(ctx, id)
	_, errs["Write"] = b.Write(ctx, id, nil, time.Minute)
	_, errs["Write IfAbsent"] = b.Write(ctx, NewID(), nil, time.Minute, IfAbsent())
	_, errs["Write Replacing"] = b.Write(ctx, id, nil, time.Minute, Replacing(s))
	_, errs["Rotate WithData"] = b.Rotate(ctx, id, NewID(), WithData(nil, time.Minute))
	_, errs["BeginRenewal"] = b.BeginRenewal(ctx, id, 0)
	_, errs["FinishRenewal"] = b.FinishRenewal(ctx, renewal, NewID(), nil, time.Minute)
	errs["CancelRenewal"] = b.CancelRenewal(ctx, renewal)
	errs["Invalidate"] = b.Invalidate(ctx, id)
	errs["Invalidate IfLive"] = b.Invalidate(ctx, id, IfLive())
	errs["Invalidate, moved"] = b.Invalidate(ctx, moved)
	errs["InvalidateRef"] = b.InvalidateRef(ctx, renewal.Ref)
	for _, err := range b.List(ctx) {
		errs["List"] = err
	}
	return errs
}

// begin returns a renewal that has begun, and the id that it has left.
func (b *bed) begin() (Renewal, string) {
	b.t.Helper()
	id := NewID()
	b.write(id, "x", time.Hour)
	r, err := b.BeginRenewal(b.t.Context(), id, 0)
	require.NoError(b.t, err)
	return r, id
}

// move returns the old and the present id of a session that has moved.
func (b *bed) move() (old, id string) {
	b.t.Helper()
	old, id = NewID(), NewID()
	b.write(old, "x", time.Hour)
	_, err := b.Rotate(b.t.Context(), old, id)
	require.NoError(b.t, err)
	return old, id
}

// proven returns a bed whose store has seen that the server refuses a SET for an ended session.
func (b *bed) proven() *bed {
	b.t.Helper()
	require.True(b.t, b.refusesByType(b.t.Context()))
	return b
}

// value is dump without the TTL.
func (b *bed) value(id string) string {
	value, _ := b.dump(id)
	return value
}

// inSteps is a client that a store takes for one of a cluster, where a Rotate goes in two steps.
type inSteps struct{ rueidis.Client }

func (inSteps) Mode() rueidis.ClientMode { return rueidis.ClientModeCluster }

// At maxmemory everything that ends a session works, and the rest is refused and changes nothing.
func TestFullMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := redistest.Dial(t, server.URL)
	b := bedOn(t, client).proven()
	steps := bedOn(t, inSteps{client}, WithKeyPrefix(b.prefix))
	unproven := bedOn(t, client, WithKeyPrefix(b.prefix))
	ctx := t.Context()

	live := NewID()
	session := b.write(live, strings.Repeat("x", 100), time.Hour)
	ended, rotated := NewID(), NewID()
	require.NoError(t, b.Invalidate(ctx, ended, WithReason(Revoked)))
	require.NoError(t, b.Invalidate(ctx, rotated, WithReason(Rotated)))
	old, present := b.move()
	bereft, missing := b.move()
	b.do("DEL", b.keyOf(missing))
	begun, left := b.begin()
	given, _ := b.begin()
	b.do("CONFIG", "SET", "maxmemory", "1") // full from here on

	before := b.value(live)
	for verb, change := range map[string]func() (Session, error){
		"Write":           func() (Session, error) { return b.Write(ctx, live, []byte("y"), time.Hour) },
		"Write IfAbsent":  func() (Session, error) { return b.Write(ctx, NewID(), nil, time.Hour, IfAbsent()) },
		"Write Replacing": func() (Session, error) { return b.Write(ctx, live, nil, time.Hour, Replacing(session)) },
		"Write Replacing, unproven": func() (Session, error) {
			return unproven.Write(ctx, live, nil, time.Hour, Replacing(session))
		},
		"Rotate":          func() (Session, error) { return b.Rotate(ctx, live, NewID()) },
		"Rotate WithData": func() (Session, error) { return b.Rotate(ctx, live, NewID(), WithData(nil, time.Hour)) },
		"Rotate in steps": func() (Session, error) { return steps.Rotate(ctx, live, NewID()) },
	} {
		s, err := change()
		require.ErrorContains(t, err, "server answered OOM", verb)
		require.NotErrorIs(t, err, ErrUnknownOutcome, verb)
		require.Zero(t, s, verb)
		require.Equal(t, before, b.value(live), verb)
	}
	require.NoError(t, b.Touch(ctx, live, 2*time.Hour))
	_, err := b.Read(ctx, live, Slide(time.Hour))
	require.NoError(t, err)
	_, ttl := b.raw(live)
	almost(t, time.Hour, ttl)

	next := NewID()
	s, err := b.FinishRenewal(ctx, begun, next, nil, time.Hour)
	require.ErrorContains(t, err, "server answered OOM")
	require.ErrorIs(t, err, ErrUnknownOutcome, "the old id has been linked")
	require.Zero(t, s)
	require.Empty(t, b.value(next))
	require.NoError(t, b.CancelRenewal(ctx, given))
	_, err = b.FinishRenewal(ctx, given, NewID(), nil, time.Hour)
	require.ErrorIs(t, err, ErrInvalidated)

	late, err := b.BeginRenewal(ctx, live, 0)
	require.NoError(t, err)
	require.Greater(t, b.requireTombstone(live, Rotated), 23*time.Hour)
	fields, _ := b.tombstone(live)
	require.Equal(t, late.claim(), fields["c"])

	for id, reason := range map[string]Reason{
		ended: Revoked, rotated: Rotated, old: Rotated, left: Rotated, live: Rotated,
	} {
		b.do("PEXPIRE", b.keyOf(id), "60000")
		require.NoError(t, b.Invalidate(ctx, id, WithReason(Rotated))) // a standing tombstone is written again
		require.Greater(t, b.requireTombstone(id, reason), 23*time.Hour)
		_, err = b.BeginRenewal(ctx, id, 0)
		require.ErrorIs(t, err, ErrInvalidated)
	}
	for id, reason := range map[string]Reason{
		live: Logout, NewID(): Logout, ended: Revoked, rotated: Logout, old: Logout, bereft: Logout, left: Logout,
	} {
		b.do("PEXPIRE", b.keyOf(id), "60000")
		require.NoError(t, b.Invalidate(ctx, id))
		require.Greater(t, b.requireTombstone(id, reason), 23*time.Hour)
		_, err = b.Read(ctx, id)
		require.ErrorIs(t, err, ErrInvalidated)
	}
	for _, successor := range []string{present, missing, next} {
		require.Greater(t, b.requireTombstone(successor, Logout), 23*time.Hour)
	}
}

// What a server refuses to end is not ended, and the caller is told so.
func TestInvalidate_Refused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ command, code string }{
		"READONLY":   {"REPLICAOF 127.0.0.1 1", "READONLY"},
		"NOREPLICAS": {"CONFIG SET min-replicas-to-write 1", "NOREPLICAS"},
		"NOPERM":     {"ACL SETUSER default -hset -hdel -pexpire -restore", ""}, // 7.0 has no code for it
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bedOn(t, redistest.Dial(t, redistest.Start(t).URL)).proven()
			ctx := t.Context()
			live, absent, ended := NewID(), NewID(), NewID()
			b.write(live, "x", time.Hour)
			require.NoError(t, b.Invalidate(ctx, ended, WithReason(Rotated)))
			old, present := b.move()
			begun, left := b.begin()
			everything := func() (dumps []string) {
				for _, id := range []string{live, absent, ended, old, present, left} {
					dumps = append(dumps, b.value(id))
				}
				return dumps
			}
			before := everything()
			b.do(strings.Fields(c.command)...)
			check := func(verb string, err error) {
				require.ErrorContains(t, err, c.code, verb)
				var reply *rueidis.RedisError
				require.ErrorAs(t, err, &reply, verb)
				require.NotErrorIs(t, err, ErrUnknownOutcome, verb)
				require.Equal(t, before, everything(), verb)
			}
			for what, id := range map[string]string{
				"live": live, "absent": absent, "ended": ended, "moved": old, "between two ids": left,
			} {
				err := b.Invalidate(ctx, id)
				require.ErrorIs(t, err, ErrNotInvalidated, what)
				check(what, err)
			}
			err := b.Invalidate(ctx, live, IfLive())
			require.ErrorIs(t, err, ErrNotInvalidated)
			check("IfLive", err)
			_, err = b.BeginRenewal(ctx, live, 0)
			check("BeginRenewal", err)
			_, err = b.FinishRenewal(ctx, begun, NewID(), nil, time.Hour)
			check("FinishRenewal", err)
			check("CancelRenewal", b.CancelRenewal(ctx, begun))
		})
	}
}

// Whatever right is missing, no session is lost without a tombstone, and none that is live is
// reported as ended.
func TestInvalidate_MissingRights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := bedOn(t, redistest.Dial(t, server.URL))
	for _, right := range []string{
		"getrange", "pttl", "pexpire", "del", "time", "hset", "hget", "hmget", "hdel", "exists",
		"set", "get", "setrange", "rename",
	} {
		t.Run(right, func(t *testing.T) {
			t.Parallel()
			admin.do("ACL", "SETUSER", "without-"+right, "on", ">password", "~*", "&*", "+@all", "-"+right)
			client := redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) {
				o.Username, o.Password = "without-"+right, "password"
			})
			b := &bed{bedOn(t, client, WithKeyPrefix(admin.prefix)).RedisStore, t, admin.client}
			steps := &bed{bedOn(t, inSteps{client}, WithKeyPrefix(admin.prefix)).RedisStore, t, admin.client}
			ctx := t.Context()
			for verb, end := range map[string]func(id string) error{
				"Invalidate":        func(id string) error { return b.Invalidate(ctx, id) },
				"Invalidate IfLive": func(id string) error { return b.Invalidate(ctx, id, IfLive()) },
				"BeginRenewal":      func(id string) error { _, err := b.BeginRenewal(ctx, id, 0); return err },
				"Rotate":            func(id string) error { _, err := b.Rotate(ctx, id, NewID()); return err },
				"Rotate in steps":   func(id string) error { _, err := steps.Rotate(ctx, id, NewID()); return err },
			} {
				id := NewID()
				_, err := admin.Write(ctx, id, []byte("x"), time.Hour)
				require.NoError(t, err)
				err = end(id)
				s, met := admin.Read(ctx, id)
				require.NotErrorIs(t, met, ErrNotFound, verb)
				if err == nil {
					require.ErrorIs(t, met, ErrInvalidated, verb)
				}
				if met == nil {
					require.Equal(t, "x", string(s.Data), verb)
				}
			}
		})
	}
}

// An end that is refused at a later id says so, and can be repeated.
func TestInvalidate_RefusedInMidChain(t *testing.T) {
	t.Parallel()
	b := bedOn(t, redistest.Dial(t, redistest.Start(t).URL))
	old, id := b.move()
	b.do("ACL", "SETUSER", "default", "resetkeys", "~"+b.keyOf(old), "%R~*")
	err := b.Invalidate(t.Context(), old)
	require.ErrorIs(t, err, ErrNotInvalidated)
	require.NotErrorIs(t, err, ErrUnknownOutcome)
	b.requireTombstone(old, Logout)
	_, err = b.Read(t.Context(), id)
	require.NoError(t, err)
	b.do("ACL", "SETUSER", "default", "~*")
	require.NoError(t, b.Invalidate(t.Context(), old))
	b.requireTombstone(id, Logout)

	old, id = b.move()
	b.do("SET", b.keyOf(id), "foreign")
	err = b.Invalidate(t.Context(), old)
	require.ErrorIs(t, err, ErrUnknownOutcome, "the old id has been ended")
	require.NotErrorIs(t, err, ErrCorrupt)
	b.requireTombstone(old, Logout)
}

func TestDeadServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := bedOn(t, redistest.Dial(t, server.URL)).proven()
	id := NewID()
	session := b.write(id, "x", time.Hour)
	begun, _ := b.begin()
	old, _ := b.move()
	server.Kill(t)
	b.timeout = 100 * time.Millisecond
	for verb, err := range b.everyVerb(id, session, begun, old) {
		require.Error(t, err, verb)
		require.NotErrorIs(t, err, ErrNotFound, verb)
		require.NotErrorIs(t, err, ErrInvalidated, verb)
		require.NotErrorIs(t, err, ErrConflict, verb)
	}
	redistest.Until(t, "the connection is known to be broken, and nothing is sent", func() bool {
		_, replaced := b.Write(t.Context(), id, nil, time.Minute, Replacing(session))
		_, renewed := b.BeginRenewal(t.Context(), id, 0)
		for _, err := range []error{
			replaced, renewed, b.Touch(t.Context(), id, time.Minute),
			b.CancelRenewal(t.Context(), begun), b.Invalidate(t.Context(), id),
		} {
			if !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, ErrUnknownOutcome) {
				return false
			}
		}
		return true
	})
}

// A server that falls silent leaves the outcome open of whatever it was sent that changes
// something.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	behind := bedOn(t, redistest.Dial(t, server.URL))
	type call func(ctx context.Context) error
	for name, c := range map[string]struct {
		unknown bool
		// prepare returns what to call, and the words of the first command that is not answered.
		prepare func(b *bed) (call, []string)
	}{
		"Read": {false, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { _, err := b.Read(ctx, NewID()); return err }, nil
		}},
		"Read Slide": {false, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { _, err := b.Read(ctx, NewID(), Slide(time.Hour)); return err }, nil
		}},
		"Exists": {false, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { _, err := b.Exists(ctx, NewID()); return err }, nil
		}},
		"List": {false, func(b *bed) (call, []string) {
			return func(ctx context.Context) error {
				for _, err := range b.List(ctx) {
					return err
				}
				return nil
			}, nil
		}},
		"Write": {true, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { _, err := b.Write(ctx, NewID(), nil, time.Minute); return err }, nil
		}},
		"Write Replacing": {true, func(b *bed) (call, []string) {
			id := NewID()
			s := b.proven().write(id, "x", time.Hour)
			return func(ctx context.Context) error {
				_, err := b.Write(ctx, id, nil, time.Minute, Replacing(s))
				return err
			}, []string{"SET"}
		}},
		"Write Replacing, looking at what the server refuses": {false, func(b *bed) (call, []string) {
			id := NewID()
			s := b.write(id, "x", time.Hour)
			return func(ctx context.Context) error {
				_, err := b.Write(ctx, id, nil, time.Minute, Replacing(s))
				return err
			}, nil
		}},
		"Write Replacing, putting back": {true, func(b *bed) (call, []string) {
			id := NewID()
			s := b.proven().write(id, "x", time.Hour)
			b.do("SET", b.keyOf(id), "foreign")
			return func(ctx context.Context) error {
					_, err := b.Write(ctx, id, nil, time.Minute, Replacing(s))
					return err
				},
				[]string{restoreScript.sha1}
		}},
		"Touch": {true, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { return b.Touch(ctx, NewID(), time.Minute) }, nil
		}},
		"Rotate": {true, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { _, err := b.Rotate(ctx, NewID(), NewID()); return err }, nil
		}},
		"Rotate, reading": {true, func(b *bed) (call, []string) {
			id := NewID()
			b.write(id, "x", time.Hour)
			return func(ctx context.Context) error { _, err := b.Rotate(ctx, id, NewID()); return err }, []string{"GET"}
		}},
		"BeginRenewal": {true, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { _, err := b.BeginRenewal(ctx, NewID(), 0); return err }, nil
		}},
		"FinishRenewal, before the link": {false, func(b *bed) (call, []string) {
			r, _ := b.begin()
			return func(ctx context.Context) error {
				_, err := b.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
				return err
			}, []string{"EXISTS"}
		}},
		"FinishRenewal, link": {true, func(b *bed) (call, []string) {
			r, _ := b.begin()
			return func(ctx context.Context) error {
					_, err := b.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
					return err
				},
				[]string{linkScript.sha1}
		}},
		"FinishRenewal, write": {true, func(b *bed) (call, []string) {
			r, _ := b.begin()
			return func(ctx context.Context) error {
					_, err := b.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
					return err
				},
				[]string{writeScript.sha1}
		}},
		"CancelRenewal": {true, func(b *bed) (call, []string) {
			r, _ := b.begin()
			return func(ctx context.Context) error { return b.CancelRenewal(ctx, r) }, nil
		}},
		"Invalidate": {true, func(b *bed) (call, []string) {
			return func(ctx context.Context) error { return b.Invalidate(ctx, NewID()) }, nil
		}},
		"Invalidate, second hop": {true, func(b *bed) (call, []string) {
			old, id := b.move()
			return func(ctx context.Context) error { return b.Invalidate(ctx, old) }, []string{b.keyOf(id)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
				proxy := redistest.NewProxy(t, server.Addr)
				client := redistest.Dial(t, proxy.URL)
				s, err := New(client, WithKeyPrefix(behind.prefix))
				require.NoError(t, err)
				b := &bed{s, t, client}
				warmUp(b)
				call, words := c.prepare(b)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				mute := proxy.Mute
				if want == context.Canceled {
					mute = func() { proxy.Mute(); time.AfterFunc(20*time.Millisecond, cancel) }
				} else {
					b.timeout = 500 * time.Millisecond
				}
				b.RedisStore.client = &interrupted{Client: client, words: words, before: mute, between: func() {}}
				err = call(ctx)
				require.ErrorIs(t, err, want)
				// The proof leaves time for the save itself.
				saved := strings.HasPrefix(name, "Write Replacing, looking") && want == context.DeadlineExceeded
				require.Equal(t, c.unknown || saved, errors.Is(err, ErrUnknownOutcome), err)
				require.False(t, NoSession(err), err)
				require.NotErrorIs(t, err, ErrNotInvalidated)
				require.NotErrorIs(t, err, ErrConflict)
				proxy.Cut() // or the client waits for answers when it is closed
			}
		})
	}
}

// warmUp loads every script.
func warmUp(b *bed) {
	b.t.Helper()
	for _, sc := range []script{
		readScript, writeScript, restoreScript, touchScript, invalidateScript, rotateScript, linkScript,
	} {
		b.do("SCRIPT", "LOAD", sc.source)
	}
}

// A store that was closed says so, and not that there is no session. Nothing is answered from
// memory.
func TestClosedStore(t *testing.T) {
	t.Parallel()
	plain := newBed(t)
	for name, opts := range map[string][]Option{"plain": nil, "cached": {WithClientCache(time.Hour)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Open(redistest.URL(t), append(opts, WithKeyPrefix(plain.prefix))...)
			require.NoError(t, err)
			b := (&bed{s, t, plain.client}).proven()
			if s.cache != nil {
				caching(b)
			}
			id := NewID()
			session := b.write(id, "x", time.Hour)
			b.reads(id, "x")
			begun, _ := b.begin()
			old, _ := b.move()
			s.Close()
			s.Close()
			errs := b.everyVerb(id, session, begun, old)
			_, errs["Check"] = s.Check(t.Context())
			for verb, err := range errs {
				require.ErrorIs(t, err, rueidis.ErrClosing, verb)
				require.False(t, NoSession(err), verb)
				require.NotErrorIs(t, err, ErrUnknownOutcome, verb)
				require.NotErrorIs(t, err, ErrNotInvalidated, verb)
			}
			_, err = plain.Read(t.Context(), id)
			require.NoError(t, err)
		})
	}
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
		if command[0] != "HELLO" && command[0] != "PING" { // of the connection
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

// Whatever a server answers, it is an error and no session, nor the news that there is none.
func TestNonsense(t *testing.T) {
	t.Parallel()
	const id = "an-id"
	header := newHeader(newVersion(), time.Now().UnixMilli(), 0)
	session, err := parse(append(header, "data"...))
	require.NoError(t, err)
	renewal := Renewal{Ref: Ref("left"), Claim: 1}
	bulk := func(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }
	const wrongType, none = "-WRONGTYPE Operation against a key\r\n", ":0\r\n"
	type proper map[string]string // by a word of the command
	slide := Slide(time.Minute)

	for _, reply := range []string{
		"+OK\r\n", ":1\r\n", "*0\r\n", "*2\r\n:1\r\n$1\r\nD\r\n", "$0\r\n\r\n", "$1\r\nD\r\n", "$1\r\nZ\r\n", "$1\r\nE\r\n",
		"$3\r\nDxx\r\n", "$23\r\nE\xc1\x00" + strings.Repeat("x", 20) + "\r\n", "-ERR something about an-id\r\n", "-weird\r\n",
		"$9\r\nEabcdefgh\r\n", "(A1\r\n", ",A1\r\n", "*1\r\n*1\r\n:1\r\n", "*3\r\n:1\r\n:2\r\n:3\r\n",
		"*1\r\n$5\r\nan-id\r\n",
		"*2\r\n$1\r\n0\r\n:1\r\n", ":-9223372036854775808\r\n", "+an-id\r\n", "$1\r\nK\r\n",
	} {
		t.Run(reply, func(t *testing.T) {
			t.Parallel()
			var expected atomic.Pointer[proper]
			client := listen(t, func(command []string) string {
				for word, answer := range *expected.Load() {
					if slices.Contains(command, word) {
						return answer
					}
				}
				return reply
			})
			plain, err := New(client, WithTimeout(200*time.Millisecond))
			require.NoError(t, err)
			cached, err := New(client, WithTimeout(200*time.Millisecond), WithClientCache(time.Hour))
			require.NoError(t, err)
			strict, err := New(client, WithTimeout(200*time.Millisecond), WithStrictReads())
			require.NoError(t, err)
			steps, err := New(inSteps{client}, WithTimeout(200*time.Millisecond))
			require.NoError(t, err)
			for _, p := range []*proof{&plain.native, &cached.cache.proof} {
				p.seen.Store(true)
				p.again.Store(math.MaxInt64)
			}
			ctx := t.Context()
			read := func(s Store, opts ...ReadOption) func() (Session, error) {
				return func() (Session, error) { return s.Read(ctx, id, opts...) }
			}
			only := func(err error) (Session, error) { return Session{}, err }
			exists := func(s Store) func() (Session, error) {
				return func() (Session, error) {
					exists, err := s.Exists(ctx, id)
					require.False(t, exists)
					return only(err)
				}
			}
			write := func(opts ...WriteOption) func() (Session, error) {
				return func() (Session, error) { return plain.Write(ctx, id, nil, time.Minute, opts...) }
			}
			rotate := func(s Store, opts ...RotateOption) func() (Session, error) {
				return func() (Session, error) { return s.Rotate(ctx, id, "another", opts...) }
			}
			finish := func() (Session, error) { return plain.FinishRenewal(ctx, renewal, id, nil, time.Minute) }
			list := func() (Session, error) {
				for e, err := range plain.List(ctx) {
					require.Error(t, err)
					require.Zero(t, e.Session)
					require.False(t, e.Pending)
					return only(err)
				}
				return only(nil)
			}
			// pages answers SCAN with one key of this type.
			pages := func(kind string) proper {
				none := "*2\r\n" + bulk("0") + "*0\r\n"
				p := proper{"string": none, "hash": none}
				p[kind] = "*2\r\n" + bulk("0") + "*1\r\n" + bulk("tombstore:"+Ref(id))
				return p
			}
			calling := func(do func() error) func() (Session, error) {
				return func() (Session, error) { return only(do()) }
			}
			touch := calling(func() error { return plain.Touch(ctx, id, time.Minute) })
			cancel := calling(func() error { return plain.CancelRenewal(ctx, renewal) })
			begin := calling(func() error { _, err := plain.BeginRenewal(ctx, id, 0); return err })
			end := calling(func() error { return plain.Invalidate(ctx, id) })
			endLive := calling(func() error { return plain.Invalidate(ctx, id, IfLive()) })
			check := calling(func() error { _, err := cached.Check(ctx); return err })

			head, record := string(header), bulk(string(header))
			moved := "E" + canaryEnd(Rotated)
			nothing, number := reply == "$0\r\n\r\n", strings.HasPrefix(reply, ":")
			done := strings.HasPrefix(reply, "$") && strings.ContainsAny(reply, "DK")
			for name, c := range map[string]struct {
				call   func() (Session, error)
				proper proper
				fits   bool // this reply is one that the command may give
			}{
				"Read":                     {read(plain), nil, false},
				"Read, why":                {read(plain), proper{"GET": wrongType}, false},
				"Read strict":              {read(strict), nil, false},
				"Read strict, why":         {read(strict), proper{"GETEX": wrongType}, false},
				"Read Slide":               {read(plain, slide), nil, false},
				"Read Slide, PTTL":         {read(plain, slide), proper{"GET": record}, false},
				"Read Slide, setting":      {read(plain, slide), proper{"GET": record, "PTTL": ":1\r\n"}, false},
				"Read Slide, why":          {read(plain, slide), proper{"GET": wrongType, "PTTL": none}, false},
				"Read WithExpiry":          {read(plain, WithExpiry()), proper{"PTTL": ":1000\r\n"}, false},
				"Read WithExpiry, PTTL":    {read(plain, WithExpiry()), proper{"GET": record}, number},
				"Read cached":              {read(cached), nil, nothing},
				"Read cached, why":         {read(cached), proper{"GETRANGE": wrongType}, false},
				"Read cached Slide":        {read(cached, slide), nil, nothing},
				"Exists":                   {exists(plain), nil, nothing},
				"Exists, why":              {exists(plain), proper{"GETRANGE": wrongType}, false},
				"Exists strict":            {exists(strict), nil, false},
				"Write":                    {write(), nil, false},
				"Write IfAbsent":           {write(IfAbsent()), nil, false},
				"Write IfVersion":          {write(IfVersion(1)), nil, false},
				"Write Replacing":          {write(Replacing(session)), nil, false},
				"Write Replacing, why":     {write(Replacing(session)), proper{"SET": wrongType}, false},
				"Write Replacing, foreign": {write(Replacing(session)), proper{"SET": bulk("foreign")}, false},
				"Touch":                    {touch, nil, done},
				"Rotate":                   {rotate(plain), nil, false},
				"Rotate, reading":          {rotate(plain), proper{rotateScript.sha1: bulk("D")}, false},
				"Rotate WithData":          {rotate(plain, WithData(nil, time.Minute)), nil, false},
				"Rotate in steps":          {rotate(steps), nil, false},
				"Rotate in steps, first":   {rotate(steps), proper{"EXISTS": none}, false},
				"Rotate in steps, second": {
					rotate(steps), proper{"EXISTS": none, rotateScript.sha1: bulk("Dmillis" + head)}, false,
				},
				"BeginRenewal":           {begin, nil, done},
				"FinishRenewal":          {finish, nil, false},
				"FinishRenewal, link":    {finish, proper{"EXISTS": none}, false},
				"FinishRenewal, write":   {finish, proper{"EXISTS": none, linkScript.sha1: bulk("D" + head)}, false},
				"CancelRenewal":          {cancel, nil, done},
				"Invalidate":             {end, nil, done},
				"Invalidate IfLive":      {endLive, nil, done},
				"Invalidate, second hop": {end, proper{"tombstore:" + Ref(id): bulk(moved + Ref("next"))}, done},
				"Invalidate, successor":  {end, proper{"tombstore:" + Ref(id): bulk(moved + "nonsense")}, false},
				"List":                   {list, nil, false},
				"List, records":          {list, pages("string"), false},
				"List, tombstones":       {list, pages("hash"), false},
				"Check":                  {check, nil, false},
			} {
				if c.fits {
					continue
				}
				expected.Store(&c.proper)
				s, err := c.call()
				require.Error(t, err, name)
				require.Zero(t, s, name)
				require.False(t, NoSession(err), name)
				require.NotContains(t, err.Error(), id, name)
			}
		})
	}
}

// A SET is not sent to a server that was not seen to refuse it for an ended session.
func TestWrite_ReplacingIsAScriptWhere(t *testing.T) {
	t.Parallel()
	header := newHeader(newVersion(), time.Now().UnixMilli(), 0)
	session, err := parse(header)
	require.NoError(t, err)
	end := canaryEnd(Logout)
	const refused = "-WRONGTYPE Operation against a key\r\n"
	good := map[string]string{
		"HSET": ":1\r\n", "PEXPIRE": ":1\r\n", "SET": refused, "HGET": "$9\r\n" + end + "\r\n", "DEL": ":1\r\n",
	}
	for name, odd := range map[string]map[string]string{
		"":                                 {},
		"SET is obeyed":                    {"SET": "+OK\r\n"},
		"SET answers what was there":       {"SET": "$1\r\nx\r\n"},
		"SET answers nil":                  {"SET": "$-1\r\n"},
		"SET with GET is not known":        {"SET": "-ERR syntax error\r\n"},
		"SET is not permitted":             {"SET": "-NOPERM\r\n"},
		"SET is refused, but obeyed":       {"HGET": "$-1\r\n"},
		"SET is refused, and changes it":   {"HGET": "$9\r\n" + canaryEnd(Rotated) + "\r\n"},
		"SET is refused, and makes it one": {"HGET": refused},
		"HGET is not permitted":            {"HGET": "-NOPERM\r\n"},
		"HSET is not permitted":            {"HSET": "-NOPERM\r\n"},
		"PEXPIRE is not permitted":         {"PEXPIRE": "-NOPERM\r\n"},
		"nonsense":                         {"HGET": ":1\r\n", "SET": "*0\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var sent []string
			s, err := New(listen(t, func(command []string) string {
				mu.Lock()
				defer mu.Unlock()
				if strings.HasPrefix(command[0], "EVALSHA") || strings.Contains(command[1], Ref("id")) {
					sent = append(sent, command[0])
				}
				if reply, ok := odd[command[0]]; ok && !strings.Contains(command[1], Ref("id")) {
					return reply
				}
				if command[0] == "SET" && strings.Contains(command[1], Ref("id")) {
					return fmt.Sprintf("$%d\r\n%s\r\n", len(header), header)
				}
				if reply, ok := good[command[0]]; ok {
					return reply
				}
				return fmt.Sprintf("$%d\r\nD%s\r\n", 1+len(header), header)
			}))
			require.NoError(t, err)
			for range 2 {
				_, err = s.Write(t.Context(), "id", nil, time.Minute, Replacing(session))
				require.NoError(t, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if name == "" {
				require.Equal(t, []string{"SET", "SET"}, sent)
			} else {
				require.Equal(t, []string{"EVALSHA", "EVALSHA"}, sent)
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

	warmUp(b) // so that the reply that is lost is the answer and not NOSCRIPT
	b.proven()

	// lose loses the reply of the next command that has these words, and calls between before it is
	// sent again.
	lose := func(between func(), words ...string) {
		b.RedisStore.client = &interrupted{Client: b.client, words: words, before: proxy.LoseReply, between: between}
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
		require.Equal(t, headOf(s.Version), value[:10])
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
	check("Read Slide", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Hour)
		lose(nothing)
		s, err := b.Read(ctx, id, Slide(time.Hour))
		require.NoError(t, err)
		require.Equal(t, "x", string(s.Data))
		almost(t, time.Hour, time.Until(s.ExpiresAt))
	})
	check("Read Slide, setting the TTL", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Hour)
		lose(nothing, readScript.sha1)
		s, err := b.Read(ctx, id, Slide(2*time.Hour))
		require.NoError(t, err)
		require.Equal(t, "x", string(s.Data))
		almost(t, 2*time.Hour, time.Until(s.ExpiresAt))
		_, ttl := b.raw(id)
		almost(t, 2*time.Hour, ttl)
	})
	for name, opts := range map[string][]ReadOption{
		"Read": nil, "Read Slide": {Slide(time.Hour)}, "Read WithExpiry": {WithExpiry()},
	} {
		check(name+" of an ended session, looking why", func(t *testing.T) {
			id := NewID()
			require.NoError(t, b.Invalidate(ctx, id, WithReason(Revoked)))
			lose(nothing, readScript.sha1)
			_, err := b.Read(ctx, id, opts...)
			require.EqualError(t, err, "tombstore: read: session was ended: revoked")
		})
	}
	check("Exists of an ended session, looking why", func(t *testing.T) {
		id := NewID()
		require.NoError(t, b.Invalidate(ctx, id))
		lose(nothing, readScript.sha1)
		exists, err := b.Exists(ctx, id)
		require.NoError(t, err)
		require.False(t, exists)
	})
	check("Write Replacing", func(t *testing.T) {
		id := NewID()
		first := b.write(id, "1", time.Hour)
		lose(nothing, "SET")
		second := b.write(id, "2", 2*time.Hour, Replacing(first))
		value, ttl := b.raw(id)
		require.Equal(t, headOf(second.Version), value[:10])
		require.Equal(t, "2", value[headerSize:])
		almost(t, 2*time.Hour, ttl)
	})
	check("Write Replacing, then overwritten", func(t *testing.T) { // as a SET that is sent again
		id := NewID()
		first := b.write(id, "1", time.Hour)
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour, Replacing(first))
			require.NoError(t, err)
		}, "SET")
		b.write(id, "2", time.Hour, Replacing(first))
		value, _ := b.raw(id)
		require.Equal(t, "2", value[headerSize:])
	})
	check("Write Replacing, then ended", func(t *testing.T) {
		id := NewID()
		first := b.write(id, "1", time.Hour)
		lose(func() { require.NoError(t, other.Invalidate(ctx, id)) }, "SET")
		_, err := b.Write(ctx, id, []byte("2"), time.Hour, Replacing(first))
		require.ErrorIs(t, err, ErrInvalidated)
		b.requireTombstone(id, Logout)
	})
	check("Write Replacing, then expired", func(t *testing.T) {
		id := NewID()
		first := b.write(id, "1", time.Hour)
		lose(func() { b.do("DEL", b.keyOf(id)) }, "SET")
		_, err := b.Write(ctx, id, []byte("2"), time.Hour, Replacing(first))
		require.ErrorIs(t, err, ErrUnknownOutcome, "the lost attempt may yet arrive")
		require.NotErrorIs(t, err, ErrNotFound)
		require.Empty(t, b.value(id))
	})
	check("Write Replacing, putting back", func(t *testing.T) {
		id := NewID()
		first := b.write(id, "1", time.Hour)
		begun := newHeader(newVersion(), first.CreatedAt.UnixMilli()+1, 0)
		b.do("SET", b.keyOf(id), string(begun)+"theirs", "PX", "3600000")
		before := b.value(id)
		lose(nothing, restoreScript.sha1)
		_, err := b.Write(ctx, id, []byte("2"), time.Hour, Replacing(first))
		require.ErrorIs(t, err, ErrConflict)
		require.Equal(t, before, b.value(id))
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
		require.Equal(t, headOf(s.Version), value[:10])
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
	check("Rotate, reading", func(t *testing.T) {
		old, id := NewID(), NewID()
		b.write(old, "x", time.Hour)
		lose(nothing, "GET")
		s, err := b.Rotate(ctx, old, id)
		require.NoError(t, err)
		require.Equal(t, "x", string(s.Data))
	})
	check("Rotate, then ended", func(t *testing.T) {
		old, id := NewID(), NewID()
		b.write(old, "x", time.Hour)
		lose(func() { require.NoError(t, other.Invalidate(ctx, old)) })
		_, err := b.Rotate(ctx, old, id)
		require.ErrorIs(t, err, ErrUnknownOutcome)
		b.requireTombstone(old, Logout)
		b.requireTombstone(id, Logout)
	})
	check("Invalidate of a session that has moved", func(t *testing.T) {
		old, id := b.move()
		lose(nothing)
		require.NoError(t, b.Invalidate(ctx, old))
		b.requireTombstone(old, Logout)
		b.requireTombstone(id, Logout)
	})
	check("Invalidate of a session that has moved, second hop", func(t *testing.T) {
		old, id := b.move()
		lose(nothing, b.keyOf(id))
		require.NoError(t, b.Invalidate(ctx, old))
		b.requireTombstone(old, Logout)
		almost(t, 25*time.Hour, b.requireTombstone(id, Logout))
	})
	check("Invalidate IfLive of a session that has moved, second hop", func(t *testing.T) {
		old, id := b.move()
		lose(nothing, b.keyOf(id))
		err := b.Invalidate(ctx, old, IfLive())
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrInvalidated)
		b.requireTombstone(id, Logout)
	})
	check("Invalidate, then moved on from the second hop", func(t *testing.T) {
		old, id := b.move()
		next := NewID()
		b.RedisStore.client = &interrupted{
			Client: b.client, words: []string{b.keyOf(id)}, between: nothing,
			before: func() { // the end follows a session that moves ahead of it
				_, err := other.Rotate(ctx, id, next)
				require.NoError(t, err)
				proxy.LoseReply()
			},
		}
		require.NoError(t, b.Invalidate(ctx, old))
		for _, id := range []string{old, id, next} {
			b.requireTombstone(id, Logout)
		}
	})
	check("BeginRenewal", func(t *testing.T) {
		id, next := NewID(), NewID()
		s := b.write(id, "x", time.Hour)
		lose(nothing)
		r, err := b.BeginRenewal(ctx, id, s.Version)
		require.NoError(t, err, "the claim is its own")
		fields, ttl := b.tombstone(id)
		require.Equal(t, r.claim(), fields["c"])
		almost(t, 25*time.Hour, ttl)
		renewed, err := b.FinishRenewal(ctx, r, next, []byte("y"), time.Hour)
		require.NoError(t, err)
		require.Equal(t, s.CreatedAt, renewed.CreatedAt)
	})
	check("BeginRenewal, then ended", func(t *testing.T) {
		id := NewID()
		b.write(id, "x", time.Hour)
		lose(func() { require.NoError(t, other.Invalidate(ctx, id)) })
		_, err := b.BeginRenewal(ctx, id, 0)
		require.EqualError(t, err, "tombstore: begin renewal: session was ended: logout")
		b.requireTombstone(id, Logout)
	})
	check("BeginRenewal of what was given up", func(t *testing.T) {
		given, id := b.begin()
		require.NoError(t, b.CancelRenewal(ctx, given))
		lose(nothing)
		r, err := b.BeginRenewal(ctx, id, 0)
		require.NoError(t, err, "the claim is its own")
		fields, _ := b.tombstone(id)
		require.Equal(t, r.claim(), fields["c"])
		_, err = b.FinishRenewal(ctx, r, NewID(), []byte("y"), time.Hour)
		require.NoError(t, err)
	})
	check("BeginRenewal of what was given up, then ended", func(t *testing.T) {
		given, id := b.begin()
		require.NoError(t, b.CancelRenewal(ctx, given))
		lose(func() { require.NoError(t, other.Invalidate(ctx, id)) })
		_, err := b.BeginRenewal(ctx, id, 0)
		require.EqualError(t, err, "tombstore: begin renewal: session was ended: logout")
		b.requireTombstone(id, Logout)
	})
	check("BeginRenewal of a session that another renewal has ended", func(t *testing.T) {
		theirs, id := b.begin()
		lose(nothing)
		_, err := b.BeginRenewal(ctx, id, 0)
		require.EqualError(t, err, "tombstore: begin renewal: session was ended: rotated")
		fields, _ := b.tombstone(id)
		require.Equal(t, theirs.claim(), fields["c"])
	})
	for name, sc := range map[string]script{"link": linkScript, "write": writeScript} {
		check("FinishRenewal, "+name, func(t *testing.T) {
			r, old := b.begin()
			id := NewID()
			lose(nothing, sc.sha1)
			s, err := b.FinishRenewal(ctx, r, id, []byte("y"), time.Hour)
			require.NoError(t, err)
			value, ttl := b.raw(id)
			require.Equal(t, headOf(s.Version), value[:10])
			require.Equal(t, "y", value[headerSize:])
			almost(t, time.Hour, ttl)
			fields, _ := b.tombstone(old)
			require.Equal(t, Ref(id), fields["s"])
			require.NotContains(t, fields, "c")
		})
		check("FinishRenewal, "+name+", then ended", func(t *testing.T) {
			r, old := b.begin()
			id := NewID()
			lose(func() { require.NoError(t, other.Invalidate(ctx, old)) }, sc.sha1)
			_, err := b.FinishRenewal(ctx, r, id, []byte("y"), time.Hour)
			require.ErrorIs(t, err, ErrInvalidated)
			b.requireTombstone(old, Logout)
			b.requireTombstone(id, Logout)
		})
	}
	check("FinishRenewal, write, then overwritten", func(t *testing.T) {
		r, _ := b.begin()
		id := NewID()
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour)
			require.NoError(t, err)
		}, writeScript.sha1)
		_, err := b.FinishRenewal(ctx, r, id, []byte("y"), time.Hour)
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrConflict)
		value, _ := b.raw(id)
		require.Equal(t, "theirs", value[headerSize:])
	})
	check("CancelRenewal", func(t *testing.T) {
		r, old := b.begin()
		lose(nothing)
		require.NoError(t, b.CancelRenewal(ctx, r))
		fields, _ := b.tombstone(old)
		require.NotContains(t, fields, "c")
		_, err := b.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
		require.ErrorIs(t, err, ErrInvalidated)
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
		"BeginRenewal": func(id string) error {
			_, err := b.BeginRenewal(ctx, id, 0)
			return err
		},
		"BeginRenewal of a version": func(id string) error {
			_, err := b.BeginRenewal(ctx, id, newVersion())
			return err
		},
	} {
		check(name+" of an absent session", func(t *testing.T) { // the lost attempt may yet arrive when there is one
			lose(nothing)
			err := change(NewID())
			require.ErrorIs(t, err, ErrUnknownOutcome)
			require.NotErrorIs(t, err, ErrNotFound)
		})
	}
	check("first step of a rotation in a cluster", func(t *testing.T) {
		old, id := NewID(), NewID()
		b.write(old, "x", time.Hour)
		lose(nothing, rotateScript.sha1)
		b.RedisStore.client = inSteps{b.RedisStore.client}
		_, err := b.Rotate(ctx, old, id)
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrInvalidated)
		fields, _ := b.tombstone(old)
		require.Equal(t, Ref(id), fields["s"])
		require.Empty(t, b.value(id))
	})
	check("second step of a rotation in a cluster", func(t *testing.T) {
		step := created(b.keyOf(NewID()))
		lose(nothing)
		_, err := b.create(ctx, step)
		require.NoError(t, err)
		step.version++
		_, err = b.create(ctx, step)
		require.ErrorIs(t, err, ErrConflict)
	})
	check("second step of a rotation in a cluster, then overwritten", func(t *testing.T) {
		id := NewID()
		lose(func() {
			_, err := other.Write(ctx, id, []byte("theirs"), time.Hour)
			require.NoError(t, err)
		})
		_, err := b.create(ctx, created(b.keyOf(id)))
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.NotErrorIs(t, err, ErrConflict)
	})
}

// created is the second step of a rotation in a cluster.
func created(key string) writing {
	v := newVersion()
	return writing{key: key, version: v, ttl: 60_000, begins: string(newHeader(v, time.Now().UnixMilli(), 0))}
}

// A rotation in a cluster that fails when the old id has been ended does not look like one that has
// done nothing.
func TestRotate_ClusterHalfDone(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]error{
		"refused": &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		"cut":     io.EOF,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bedOn(t, redistest.Dial(t, redistest.ClusterURL(t)))
			id, next := NewID(), NewID()
			b.write(id, "x", time.Hour)
			b.timeout = 300 * time.Millisecond
			b.RedisStore.client = &withoutWrite{b.client, cause}
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
	_, err := b.create(t.Context(), created(key))
	require.ErrorIs(t, err, ErrUnknownOutcome)
	require.NotErrorIs(t, err, ErrCorrupt)
}

// withoutWrite does not send write.lua.
type withoutWrite struct {
	rueidis.Client
	cause error
}

func (c *withoutWrite) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if slices.Contains(cmd.Commands(), writeScript.sha1) {
		return rueidis.NewErrorResult(c.cause)
	}
	return c.Client.Do(ctx, cmd)
}

// interrupted calls before ahead of the first command that has these words, and between after it.
type interrupted struct {
	rueidis.Client
	words           []string
	before, between func()
	done            bool
}

func (c *interrupted) meant(command []string) bool {
	for _, word := range c.words {
		if !slices.Contains(command, word) {
			return false
		}
	}
	return !c.done
}

func (c *interrupted) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if !c.meant(cmd.Commands()) {
		return c.Client.Do(ctx, cmd)
	}
	c.done = true
	c.before()
	res := c.Client.Do(ctx, cmd)
	c.between()
	return res
}

func (c *interrupted) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	if !slices.ContainsFunc(multi, func(cmd rueidis.Completed) bool { return c.meant(cmd.Commands()) }) {
		return c.Client.DoMulti(ctx, multi...)
	}
	c.done = true
	c.before()
	results := c.Client.DoMulti(ctx, multi...)
	c.between()
	return results
}

// A reply that is lost every time ends as an unknown outcome.
func TestLostReply_UntilTheDeadline(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	behind := bedOn(t, redistest.Dial(t, server.URL))
	for name, change := range map[string]func(b *bed, id string) error{
		"Invalidate": func(b *bed, id string) error { return b.Invalidate(t.Context(), id) },
		"Write":      func(b *bed, id string) error { _, err := b.Write(t.Context(), id, nil, time.Minute); return err },
		"Write Replacing": func(b *bed, id string) error {
			s, err := behind.Write(t.Context(), id, nil, time.Minute)
			if err == nil {
				_, err = b.Write(t.Context(), id, nil, time.Minute, Replacing(s))
			}
			return err
		},
		"BeginRenewal": func(b *bed, id string) error {
			_, err := behind.Write(t.Context(), id, nil, time.Minute)
			if err == nil {
				_, err = b.BeginRenewal(t.Context(), id, 0)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := redistest.NewProxy(t, server.Addr)
			b := bedOn(t, redistest.Dial(t, proxy.URL), WithKeyPrefix(behind.prefix))
			require.NoError(t, change(b.proven(), NewID())) // loads the script
			b.RedisStore.client, b.timeout = &lossy{b.client, proxy}, 500*time.Millisecond
			id := NewID()
			err := change(b, id)
			require.ErrorIs(t, err, ErrUnknownOutcome)
			require.NotErrorIs(t, err, ErrNotInvalidated)
			require.Len(t, redistest.Keys(t.Context(), behind.client, behind.keyOf(id)), 1)
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

// TestTraffic breaks things in the middle of traffic. Each worker counts in a session of its own
// with IfVersion, so that a write applied twice, or lost without an error, leaves a wrong count;
// and ends sessions that must stay ended.
func TestTraffic(t *testing.T) {
	t.Parallel()
	const workers = 16
	faults := rounds(t, 20)
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
	if s, err = b.Write(ctx, id, number(steps+1), time.Hour, Replacing(read)); !assert.NoError(t, err) {
		return
	}
	moved, next := NewID(), NewID()
	if _, err = b.Rotate(ctx, id, moved); !assert.NoError(t, err) {
		return
	}
	renewal, err := b.BeginRenewal(ctx, moved, 0)
	if !assert.NoError(t, err) {
		return
	}
	renewed, err := b.FinishRenewal(ctx, renewal, next, number(0), time.Hour)
	if !assert.NoError(t, err) || !assert.Equal(t, s.CreatedAt, renewed.CreatedAt) {
		return
	}
	if !assert.NoError(t, b.Touch(ctx, next, 2*time.Hour)) || !assert.NoError(t, b.Invalidate(ctx, id)) {
		return
	}
	for _, ended := range []string{id, moved, next} {
		_, err = b.Write(ctx, ended, number(0), time.Hour)
		assert.ErrorIs(t, err, ErrInvalidated)
		_, err = b.Write(ctx, ended, number(0), time.Hour, Replacing(s))
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
		value, err := onReplica.Do(t.Context(), onReplica.B().Arbitrary("HGET").Keys(b.keyOf(id)).Args("t").Build()).ToString()
		require.NoError(t, err)
		return value
	}
	b.do("SCRIPT", "FLUSH") // the first script on the connection must be loaded

	id, old, next := NewID(), NewID(), NewID()
	b.write(id, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), id))
	require.Len(t, held(id), endSize)
	b.write(old, "x", time.Hour)
	_, err := b.Rotate(t.Context(), old, next)
	require.NoError(t, err)
	require.Len(t, held(old), endSize)

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
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, b.Invalidate(ctx, id), ErrUnacknowledged)
	b.requireTombstone(id, Logout)
	<-ctx.Done()
	err := b.Invalidate(ctx, id)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnknownOutcome, "nothing was sent")

	proxy.Mute()
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = far.Invalidate(ctx, NewID())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrUnacknowledged, "nobody knows that it was ended")
	require.ErrorIs(t, err, ErrUnknownOutcome)
}

// A server that does not let the client WAIT says so once.
func TestReplicaAcks_NotPermitted(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Dial(t, redistest.Start(t).URL))
	b := bedOn(t, client, WithReplicaAcks(1, 10*time.Millisecond))
	b.do("ACL", "SETUSER", "default", "-wait")
	loadScripts(t, b)
	id := NewID()
	var err error
	require.Equal(t, "invalidate invalidate+WAIT", client.tripsOf(func() {
		err = b.Invalidate(t.Context(), id)
	}))
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
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var calls atomic.Int64
			s, err := New(listen(t, func(command []string) string {
				switch calls.Add(1) {
				case 1: // the session is ended
					return "$1\r\nD\r\n"
				case 10: // the caller gives up
					cancel()
				}
				return "-" + redirection + "\r\n"
			}), WithReplicaAcks(1, time.Millisecond), WithTimeout(time.Minute))
			require.NoError(t, err)
			require.ErrorIs(t, s.Invalidate(ctx, "id"), ErrUnacknowledged)
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
