package tombstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

const secret = "what the session holds, and nobody else may read"

func newKey(b byte) []byte { return bytes.Repeat([]byte{b}, minKey) }

// runs reports whether a command runs a script, or a broken variant of it.
func runs(words []string, script string) bool { return nameOf(words) == script || words[0] == "EVAL" }

// sealedSession is what a test has written.
type sealedSession struct{ id, data string }

// everySealing writes sessions by every way that data takes to the server, and returns those that
// are live.
func everySealing(t require.TestingT, ctx context.Context, s *RedisStore) (all []sealedSession) {
	n := 0
	add := func(id string, write func(data []byte) (Session, error)) Session {
		n++
		data := fmt.Sprintf("%s %d", secret, n)
		written, err := write([]byte(data))
		require.NoError(t, err)
		require.Equal(t, data, string(written.Data))
		all = append(all, sealedSession{id, data})
		return written
	}
	write := func(id string, opts ...WriteOption) Session {
		return add(id, func(data []byte) (Session, error) { return s.Write(ctx, id, data, time.Hour, opts...) })
	}
	last := func() { all = all[len(all)-1:] } // the earlier ones were replaced
	keep := all

	id := NewID()
	first := write(id)
	write(id, IfPresent())
	second := write(id, Replacing(first))
	write(id, IfVersion(second.Version))
	write(id)
	last()
	keep = append(keep, all...)

	old := NewID()
	written, err := s.Write(ctx, old, []byte(secret), time.Hour, IfAbsent())
	require.NoError(t, err)
	require.Equal(t, secret, string(written.Data))
	next, third, fourth, fifth := NewID(), NewID(), NewID(), NewID()
	moved, err := s.Rotate(ctx, old, next)
	require.NoError(t, err)
	require.Equal(t, secret, string(moved.Data))
	keep = append(keep, sealedSession{next, secret})
	add(third, func(data []byte) (Session, error) {
		return s.Rotate(ctx, next, third, WithData(data, time.Hour))
	})
	add(fourth, func(data []byte) (Session, error) {
		r, err := s.BeginRenewal(ctx, third, 0)
		require.NoError(t, err)
		return s.FinishRenewal(ctx, r, fourth, data, time.Hour)
	})
	last()
	keep = slices.DeleteFunc(append(keep, all...), func(k sealedSession) bool { return k.id == next })

	login, err := s.BeginLogin(ctx, "owner")
	require.NoError(t, err)
	until, label := Until(time.Now().Add(time.Hour)), Label("label")
	b, err := s.Reserve(ctx, fifth, login, until, label)
	require.NoError(t, err)
	write(fifth, Bound(b))
	write(fifth, IfPresent()) // the writer does not know whose it is
	last()
	keep = append(keep, all...)
	sixth := NewID()
	_, err = s.Rotate(ctx, fifth, sixth)
	require.NoError(t, err)
	keep[len(keep)-1].id = sixth

	seventh, eighth := NewID(), NewID()
	write(seventh)
	last()
	adopted, err := s.Adopt(ctx, seventh, login, until, label)
	require.NoError(t, err)
	require.Equal(t, all[0].data, string(adopted.Data))
	b, err = s.Reserve(ctx, eighth, login, until)
	require.NoError(t, err)
	_, err = s.Rotate(ctx, seventh, eighth, WithBinding(b))
	require.NoError(t, err)
	return append(keep, sealedSession{eighth, all[0].data})
}

// What is sent and what is stored is sealed, by whatever way, and its owner reads it.
func TestSeal_EveryWay(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for name, opts := range map[string][]Option{
			"id alone":        {WithSealedData()},
			"keys, published": {WithSealedData(), WithKeys(newKey(1)), WithPublish()},
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, opts...)
				sessions := everySealing(t, t.Context(), w.RedisStore)
				for _, words := range w.tap.commands {
					require.NotContains(t, strings.Join(words, " "), secret, nameOf(words))
				}
				require.Len(t, listed(t, w.other), len(sessions))
				for _, data := range listed(t, w.other) {
					require.Empty(t, data)
				}
				for _, s := range sessions {
					value, _ := w.raw(s.id)
					require.EqualValues(t, flagStrict|flagSealed, value[1]&mustKnow)
					require.NotContains(t, value, secret)
					require.Len(t, value, len(headerOf([]byte(value)))+sealOverhead+len(s.data))
					read, err := w.other.Read(t.Context(), s.id)
					require.NoError(t, err)
					require.Equal(t, s.data, string(read.Data))
				}
			})
		}
	})
}

// monitor returns a function that returns all that MONITOR has shown since.
func monitor(t *testing.T, server *redistest.Server) func() string {
	t.Helper()
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	conn, err := net.Dial("tcp", u.Host)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = conn.Write([]byte("MONITOR\r\n"))
	require.NoError(t, err)
	lines := bufio.NewScanner(conn)
	require.True(t, lines.Scan())
	require.Equal(t, "+OK", lines.Text())
	return func() string {
		client, last := redistest.Dial(t, server.URL), NewID()
		require.NoError(t, client.Do(t.Context(), client.B().Echo().Message(last).Build()).Error())
		var seen strings.Builder
		for lines.Scan() && !strings.Contains(lines.Text(), last) {
			seen.WriteString(lines.Text() + "\n")
		}
		require.Contains(t, lines.Text(), last, lines.Err())
		return seen.String()
	}
}

// Whoever has all but the cookie reads nothing: the dump of primary and replica, what MONITOR has
// shown, the keys of the application, and the names of owners and sessions.
func TestSeal_NobodyElseOpens(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	client := redistest.Dial(t, primary.URL)
	replica := redistest.Start(t, primary.Replicaof(t)...)
	redistest.Until(t, "replica", func() bool { return redistest.Info(t, client, "connected_slaves") == "1" })
	for name, keys := range map[string][][]byte{"id alone": nil, "with keys": {newKey(1), newKey(2)}} {
		t.Run(name, func(t *testing.T) {
			opts := []Option{WithSealedData(), WithPublish()}
			if keys != nil {
				opts = append(opts, WithKeys(keys[0], keys[1:]...))
			}
			b := bedOn(t, client, opts...)
			watched := monitor(t, primary)
			sessions := everySealing(t, t.Context(), b.RedisStore)
			b.do("WAIT", "1", "5000")
			seen := watched()
			require.Contains(t, seen, "GETRANGE")
			require.NotContains(t, seen, secret)

			behind := redistest.Dial(t, replica.URL)
			guesses := append([]string{"", "owner", "label", Ref("owner"), labelNone, b.prefix}, strings.Fields(seen)...)
			for _, word := range strings.Fields(seen) {
				guesses = append(guesses, strings.Trim(word, `"`))
			}
			for _, key := range keys {
				guesses = append(guesses, string(key))
			}
			values := map[string]string{} // by key
			for _, key := range redistest.Keys(t.Context(), client, b.prefix) {
				guesses = append(guesses, key, b.ref(key))
				for _, c := range []rueidis.Client{client, behind} {
					value, err := c.Do(t.Context(), c.B().Dump().Key(key).Build()).ToString()
					require.NoError(t, err)
					require.NotContains(t, value, secret)
					for _, s := range sessions {
						require.NotContains(t, value, s.id)
						require.NotContains(t, seen, s.id)
					}
					if value, err = c.Do(t.Context(), c.B().Get().Key(key).Build()).ToString(); err == nil {
						values[key] = value
					}
				}
			}
			require.Len(t, values, len(sessions))
			slices.Sort(guesses)
			guesses = slices.Compact(guesses)

			for key, value := range values {
				for _, guess := range guesses {
					s, err := parse([]byte(value))
					require.NoError(t, err)
					require.ErrorIs(t, b.open(guess, key, &s), ErrCorrupt)
					require.Empty(t, s.Data)
					var derived [][]byte
					if len(guess) == 32 { // as the key itself
						derived = append(derived, []byte(guess))
					}
					for _, k := range b.sealings { // as what the key is derived from
						d := k.derive(labelData, guess)
						derived = append(derived, d[:])
					}
					s, _ = parse([]byte(value))
					for _, d := range derived {
						block, err := aes.NewCipher(d)
						require.NoError(t, err)
						aead, err := cipher.NewGCMWithRandomNonce(block)
						require.NoError(t, err)
						_, err = aead.Open(nil, nil, s.Data[sealName:], authenticated(key, s.header[headerSize:]))
						require.Error(t, err)
					}
				}
			}
			for _, held := range sessions { // and with the cookie the dump is enough
				key := b.keyOf(held.id)
				s, err := parse([]byte(values[key]))
				require.NoError(t, err)
				require.NoError(t, b.open(held.id, key, &s))
				require.Equal(t, held.data, string(s.Data))
			}
			if keys == nil {
				return
			}
			without := bedOn(t, client, WithKeyPrefix(b.prefix), WithSealedData(), WithKeys(newKey(3)))
			for _, held := range sessions { // the cookie without the key is not
				_, err := without.Read(t.Context(), held.id)
				require.ErrorIs(t, err, ErrCorrupt)
			}
		})
	}
}

// Data is that of its session, and whole, or ErrCorrupt; and it is left as it is.
func TestSeal_Tampered(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"standalone": redistest.URL(t), "cluster": redistest.ClusterURL(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testTampered(t, url)
		})
	}
}

func testTampered(t *testing.T, url string) {
	client := redistest.Dial(t, url)
	b := bedOn(t, client, WithSealedData(), WithKeys(newKey(1)))
	cached := bedOn(t, redistest.Dial(t, url, redistest.WithCache),
		WithKeyPrefix(b.prefix), WithSealedData(), WithKeys(newKey(1)), WithClientCache(time.Minute))
	login, err := b.BeginLogin(t.Context(), "owner")
	require.NoError(t, err)
	owned := func(id string) string {
		binding, err := b.Reserve(t.Context(), id, login, Until(time.Now().Add(time.Hour)), Label("label"))
		require.NoError(t, err)
		b.write(id, secret, time.Hour, Bound(binding))
		value, _ := b.raw(id)
		return value
	}
	id, other := NewID(), NewID()
	value, foreign := owned(id), owned(other)
	size := len(headerOf([]byte(value)))
	clear := bedOn(t, client)
	clear.write(id, secret, time.Hour)
	plain, _ := clear.raw(id)
	elsewhere := bedOn(t, client, WithSealedData(), WithKeys(newKey(1)))
	elsewhere.write(id, secret, time.Hour)
	moved, _ := elsewhere.raw(id)
	keyless := bedOn(t, client, WithSealedData())
	keyless.write(id, secret, time.Hour)
	forged, _ := keyless.raw(id)

	flip := func(at int) string {
		changed := []byte(value)
		changed[at] ^= 1
		return string(changed)
	}
	for name, planted := range map[string]string{
		"name":                      flip(size),
		"nonce":                     flip(size + sealName),
		"data":                      flip(size + sealName + 12),
		"tag":                       flip(len(value) - 1),
		"cut":                       value[:len(value)-1],
		"cut to nothing":            value[:size],
		"longer":                    value + "x",
		"owner":                     flip(headerSize + 2 + 3),
		"label":                     flip(size - 1),
		"kind of an item":           flip(headerSize + 2),
		"without items":             value[:1] + "\x90" + value[2:headerSize] + value[size:],
		"not said to be sealed":     value[:1] + "\x01" + value[2:],
		"sealed, and more":          value[:1] + "\xb1" + value[2:],
		"data of another session":   value[:size] + foreign[size:],
		"another session":           foreign,
		"clear":                     plain,
		"clear, said to be sealed":  "\xc1\x90" + plain[2:],
		"of another store":          moved,
		"made up, without the key":  forged,
		"made up, with another key": string(headerOf([]byte(forged))) + value[size:size+sealName] + forged[headerSize+sealName:],
	} {
		t.Run(name, func(t *testing.T) {
			b.plant(id, planted, time.Hour)
			for _, b := range []*bed{b, cached} {
				for range 3 {
					s, err := b.Read(t.Context(), id, Shared())
					require.ErrorIs(t, err, ErrCorrupt)
					require.Zero(t, s)
				}
				_, err = b.Read(t.Context(), id, Slide(time.Hour))
				require.ErrorIs(t, err, ErrCorrupt)
			}
			_, err = b.Rotate(t.Context(), id, NewID())
			require.ErrorIs(t, err, ErrCorrupt)
			require.NotErrorIs(t, err, ErrUnknownOutcome)
			_, err = b.Adopt(t.Context(), id, login, Until(time.Now().Add(time.Hour)))
			require.ErrorIs(t, err, ErrCorrupt)
			after, _ := b.raw(id)
			require.Equal(t, planted, after)
		})
	}
	b.plant(id, value, time.Hour)
	s, err := b.Read(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, secret, string(s.Data))
	require.Equal(t, "label", s.Label())
}

// A store that does not seal leaves sealed data alone, and one that does clear data; both can end
// it.
func TestSeal_Mixed(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		opts := []Option{WithKeyPrefix(w.prefix)}
		if !w.sealed {
			opts = append(opts, WithSealedData())
		}
		writer := bedOn(w.t, w.other.client, opts...)
		plant := func() (id, value string, s Session) {
			id = NewID()
			s = writer.write(id, secret, time.Hour)
			value, _ = writer.raw(id)
			return id, value, s
		}
		id, value, s := plant()
		errs := map[string]error{}
		_, errs["Read"] = w.Read(ctx, id)
		_, errs["Read Slide"] = w.Read(ctx, id, Slide(time.Hour))
		_, errs["Exists"] = w.Exists(ctx, id)
		_, errs["Write"] = w.Write(ctx, id, nil, time.Hour)
		_, errs["Write IfPresent"] = w.Write(ctx, id, nil, time.Hour, IfPresent())
		_, errs["Write IfVersion"] = w.Write(ctx, id, nil, time.Hour, IfVersion(s.Version))
		_, errs["Write Replacing"] = w.Write(ctx, id, nil, time.Hour, Replacing(s))
		_, errs["Rotate"] = w.Rotate(ctx, id, NewID())
		_, errs["Rotate WithData"] = w.Rotate(ctx, id, NewID(), WithData(nil, time.Hour))
		login, err := w.BeginLogin(ctx, "owner")
		require.NoError(t, err)
		_, errs["Adopt"] = w.Adopt(ctx, id, login, Until(time.Now().Add(time.Hour)))
		for verb, err := range errs {
			require.ErrorIs(t, err, ErrCorrupt, verb)
		}
		after, _ := w.raw(id)
		require.Equal(t, value, after)

		require.NoError(t, w.Touch(ctx, id, time.Minute))
		almost(w.t, time.Minute, w.ttl(id))
		data, found := listed(w.t, w)[Ref(id)]
		require.True(t, found)
		require.Empty(t, data)
		require.NoError(t, w.Invalidate(ctx, id, IfLive()))
		w.requireEnded(t, id, Logout)

		id, _, _ = plant()
		r, err := w.BeginRenewal(ctx, id, 0)
		require.NoError(t, err)
		next := NewID()
		_, err = w.FinishRenewal(ctx, r, next, nil, time.Hour)
		require.ErrorIs(t, err, ErrCorrupt)
		require.False(t, w.other.live(next))
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for name, opts := range map[string][]Option{"clear": nil, "sealed": {WithSealedData()}} {
			t.Run(name, func(t *testing.T) {
				made := func(t *testing.T) world { return newWorld(t, opts...) }
				check(t, made(t))
				catches(t, made, check, map[string]mutant{
					"a write that does not look": {"write", "(string.byte(head, 2) > 127) ~= sealed", "false"},
					"a touch that knows no seal": {"touch", "flags > 127 and floor(flags / 16) ~= 9", "flags > 127 or flags == 0"},
					"an end that knows no seal": {"invalidate", "flags > 127 and floor(flags / 16) ~= 9",
						"flags > 127 or flags == 0"},
				})
				if name == "clear" { // the other one reads before it moves a session
					catches(t, made, check, map[string]mutant{
						"a rotate that does not look": {"rotate", "(string.byte(head, 2) > 127) ~= (ARGV[10] ~= nil)", "false"},
					})
				}
			})
		}
	})
}

// A write that does not know the session's owners is sealed with those that it has, also if it gets
// them while the write is on its way.
func TestSeal_Owners(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, until := w.t.Context(), Until(time.Now().Add(time.Hour))
		login, err := w.other.BeginLogin(ctx, "owner")
		require.NoError(t, err)
		more, err := w.other.BeginLogin(ctx, "another")
		require.NoError(t, err)
		adopt := func(id string, opts ...ReserveOption) {
			_, err := w.other.Adopt(ctx, id, login, append(opts, until)...)
			require.NoError(t, err)
		}
		for _, condition := range []string{"none", "IfPresent", "IfVersion"} {
			id := NewID()
			s := w.write(id, "x", time.Hour)
			adopt(id)
			opts := map[string][]WriteOption{
				"none": nil, "IfPresent": {IfPresent()}, "IfVersion": {IfVersion(s.Version)},
			}[condition]
			n := 0
			w.tap.before = func(words []string) error {
				if runs(words, "write") {
					if n++; n == 2 {
						adopt(id, Also(more))
					}
				}
				return nil
			}
			_, err := w.Write(ctx, id, []byte("y"), time.Hour, opts...)
			w.tap.before = nil
			require.NoError(t, err)
			read, err := w.Read(ctx, id)
			require.NoError(t, err)
			require.Equal(t, "y", string(read.Data))
			require.Equal(t, 3, n)
			require.Len(t, read.Owners(), 2)

			// Who saves it as it was before does not undo that.
			adopt2 := NewID()
			s = w.write(adopt2, "x", time.Hour)
			adopt(adopt2)
			_, err = w.Write(ctx, adopt2, []byte("y"), time.Hour, Replacing(s))
			require.ErrorIs(t, err, ErrConflict)
			read, err = w.Read(ctx, adopt2)
			require.NoError(t, err)
			require.Equal(t, "x", string(read.Data))
			require.Len(t, read.Owners(), 1)
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		sealed := func(t *testing.T) world { return newWorld(t, WithSealedData()) }
		check(t, sealed(t))
		catches(t, sealed, check, map[string]mutant{
			"whatever the items are": {"write", "ARGV[6] ~= string.sub(record, 23)", "false"},
		})
	})
}

// A write is sealed with the items of the session that it meets. If that expires before the write
// comes again, what begins in its place is not its owners', who would not know of it.
func TestSeal_WriteMeetsExpiry(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t, WithSealedData())
		ctx := t.Context()
		for _, own := range []Lifetime{{}, {Idle: 15 * time.Minute, Absolute: time.Hour}} {
			id := NewID()
			b, err := w.Reserve(ctx, id, w.login(NewID()), Label("phone"), LoginLifetime(remembered))
			require.NoError(t, err)
			w.write(id, "x", time.Hour, Bound(b))
			writes := 0
			w.tap.before = func(words []string) error {
				if runs(words, "write") {
					if writes++; writes == 2 {
						w.other.do("DEL", w.keyOf(id))
					}
				}
				return nil
			}
			_, err = w.Write(ctx, id, []byte("y"), time.Hour, Lasting(own))
			w.tap.before = nil
			require.NoError(t, err)
			require.Equal(t, 3, writes)
			read, err := w.other.Read(ctx, id)
			require.NoError(t, err)
			require.Equal(t, "y", string(read.Data))
			require.Empty(t, read.Owners())
			require.Empty(t, read.Label())
			require.Equal(t, own.Idle, read.Idle())
			require.Equal(t, own.Absolute > 0, !read.Deadline().IsZero())
		}
	})
}

// A Rotate moves what was saved last, however often somebody saves while it reads.
func TestSeal_RotateMeetsSaves(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for saves := range sealedTries + 2 {
			id, next := NewID(), NewID()
			w.write(id, "0", time.Hour)
			n := 0
			w.tap.before = func(words []string) error {
				if runs(words, "rotate") && n < saves {
					n++
					w.other.write(id, decimal(int64(n)), time.Hour, IfPresent())
				}
				return nil
			}
			s, err := w.Rotate(ctx, id, next)
			w.tap.before = nil
			require.NoError(t, err)
			require.Equal(t, decimal(int64(n)), string(s.Data))
			read, err := w.other.Read(ctx, next)
			require.NoError(t, err)
			require.Equal(t, decimal(int64(n)), string(read.Data))
			w.other.requireTombstone(id, Rotated)

			// Not against a condition.
			id, next = NewID(), NewID()
			s = w.write(id, "0", time.Hour)
			w.other.write(id, "1", time.Hour)
			_, err = w.Rotate(ctx, id, next, IfUnchanged(s.Version))
			require.ErrorIs(t, err, ErrConflict)
			require.True(t, w.other.live(id))
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		sealed := func(t *testing.T) world { return newWorld(t, WithSealedData()) }
		w := sealed(t)
		check(t, w)
		if !w.cluster { // where nothing is moved under a version
			catches(t, sealed, check, map[string]mutant{
				"whatever the version is": {"rotate", "ARGV[4] ~= '' and", "false and"},
			})
		}
	})
}

// A key of the application is changed without a session being lost.
func TestSeal_Keys(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	first := bedOn(t, client, WithSealedData(), WithKeys(newKey(1)))
	with := func(current byte, previous ...byte) *bed {
		var more [][]byte
		for _, b := range previous {
			more = append(more, newKey(b))
		}
		return bedOn(t, client, WithKeyPrefix(first.prefix), WithSealedData(), WithKeys(newKey(current), more...))
	}
	reads := func(b *bed, id string, ok bool) {
		t.Helper()
		s, err := b.Read(t.Context(), id)
		if !ok {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.NoError(t, err)
		require.Equal(t, secret, string(s.Data))
	}
	ready, second, last := with(1, 2), with(2, 9, 1), with(2)
	id := NewID()
	ready.write(id, secret, time.Hour)
	reads(first, id, true)
	reads(second, id, true)
	reads(last, id, false)
	s, err := second.Read(t.Context(), id)
	require.NoError(t, err)
	second.write(id, secret, time.Hour, Replacing(s))
	reads(first, id, false)
	reads(ready, id, true)
	reads(last, id, true)

	id = NewID()
	first.write(id, secret, time.Hour)
	next := NewID()
	_, err = second.Rotate(t.Context(), id, next)
	require.NoError(t, err)
	reads(last, next, true)
}

func TestSeal_Options(t *testing.T) {
	t.Parallel()
	short := []byte("a key of thirty-one bytes, or so")[:31]
	for fault, opts := range map[string][]Option{
		"plain ids":           {WithSealedData(), WithPlainIDs()},
		"WithSealedData":      {WithKeys(newKey(1))},
		"31 bytes":            {WithSealedData(), WithKeys(short)},
		"0 bytes, fewer than": {WithSealedData(), WithKeys(newKey(1), nil)},
	} {
		_, err := New(redistest.Client(t), opts...)
		require.ErrorContains(t, err, fault)
		require.NotContains(t, err.Error(), string(short))
		_, err = NewMemory(opts...)
		require.ErrorContains(t, err, fault)
	}
	key := newKey(1)
	opts := []Option{WithSealedData(), WithKeys(key)}
	b := newBed(t, opts...)
	key[0]++ // the caller's
	id := NewID()
	b.write(id, secret, time.Hour)
	_, err := bedOn(t, b.client, WithKeyPrefix(b.prefix), WithSealedData(), WithKeys(newKey(1))).Read(t.Context(), id)
	require.NoError(t, err)

	b = newBed(t, WithSealedData(), WithMaxDataSize(4)) // of the caller's data
	b.write(id, "1234", time.Hour)
	_, err = b.Write(t.Context(), id, []byte("12345"), time.Hour)
	require.ErrorIs(t, err, ErrTooLarge)
}

func TestWeak(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"": true, "x": true, strings.Repeat("z", 19): true,
		strings.Repeat("z", 20):                 false,
		strings.Repeat("a", 31):                 true,
		strings.Repeat("F", 32):                 false,
		strings.Repeat("a", 31) + "-":           true,
		strings.Repeat("a", 31) + "g":           false,
		"0bd3a2ac-1f7c-4a52-8a3b-6a1d0d6a3c11":  true, // a UUID
		"0bd3a2ac1f7c4a528a3b6a1d0d6a3c11":      false,
		"0bd3a2ac-1f7c-4a52-8a3b-6a1d0d6a3c112": false,
	} {
		require.Equal(t, want, weak(id), id)
	}
	for range 1000 {
		require.False(t, weak(NewID()))
	}
}

// An id that can be guessed begins no session. To ask for it, or to end it, is no error.
func TestSeal_WeakIDs(t *testing.T) {
	t.Parallel()
	type store interface {
		Renewer
		Binder
	}
	memory, err := NewMemory(WithSealedData())
	require.NoError(t, err)
	for name, s := range map[string]store{"server": newBed(t, WithSealedData()).RedisStore, "memory": memory} {
		t.Run(name, func(t *testing.T) {
			ctx, id, weak := t.Context(), NewID(), "0bd3a2ac-1f7c-4a52-8a3b-6a1d0d6a3c11"
			_, err := s.Write(ctx, weak, nil, time.Hour)
			require.ErrorIs(t, err, ErrInvalidID)
			require.NotContains(t, err.Error(), weak)
			_, err = s.Write(ctx, id, nil, time.Hour)
			require.NoError(t, err)
			_, err = s.Rotate(ctx, id, weak)
			require.ErrorIs(t, err, ErrInvalidID)
			r, err := s.BeginRenewal(ctx, id, 0)
			require.NoError(t, err)
			_, err = s.FinishRenewal(ctx, r, weak, nil, time.Hour)
			require.ErrorIs(t, err, ErrInvalidID)
			login, err := s.BeginLogin(ctx, "owner")
			require.NoError(t, err)
			_, err = s.Reserve(ctx, weak, login, Until(time.Now().Add(time.Hour)))
			require.ErrorIs(t, err, ErrInvalidID)
			_, err = s.Read(ctx, weak)
			require.ErrorIs(t, err, ErrNotFound)
			require.NoError(t, s.Invalidate(ctx, weak))
		})
	}
	_, err = memory.Write(t.Context(), NewID(), []byte(secret), time.Hour)
	require.NoError(t, err)
	for _, data := range listed(t, memory) {
		require.Empty(t, data)
	}
}

// BenchmarkSeal seals and opens 512 bytes, which a write and a read do beside the rest.
func BenchmarkSeal(b *testing.B) {
	id, data := NewID(), make([]byte, 512)
	for name, opts := range map[string][]Option{
		"key of the id":           {WithSealedData()},
		"key of the id, WithKeys": {WithSealedData(), WithKeys(newKey(1))},
	} {
		b.Run(name, func(b *testing.B) {
			c, err := newConfig(opts)
			require.NoError(b, err)
			key, err := c.key(id)
			require.NoError(b, err)
			header := c.begun(newHeader(1, 1, 0))
			b.ReportAllocs()
			for b.Loop() {
				s := Session{header: header, Data: c.seal(id, key, "", data)}
				if err := c.open(id, key, &s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// What it would cost if all sessions had one key, so that whoever has that could read them all.
	b.Run("one shared key", func(b *testing.B) {
		c, err := newConfig([]Option{WithSealedData()})
		require.NoError(b, err)
		key, err := c.key(id)
		require.NoError(b, err)
		aead := newSealing(newKey(1)).cipher("")
		b.ReportAllocs()
		for b.Loop() {
			sealed := aead.Seal(make([]byte, 0, sealOverhead+len(data)), nil, data, authenticated(key, ""))
			if _, err := aead.Open(make([]byte, 0, len(data)), nil, sealed, authenticated(key, "")); err != nil {
				b.Fatal(err)
			}
		}
	})
}
