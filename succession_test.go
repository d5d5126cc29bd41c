package tombstore

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// world is a store whose commands are seen, and another one of the same sessions.
type world struct {
	*bed
	tap     *tap
	other   *bed
	cluster bool
}

func newWorld(t *testing.T, url string, opts ...Option) world {
	t.Helper()
	client := newTap(redistest.Dial(t, url))
	b := bedOn(t, client, opts...)
	opts = append(slices.Clone(opts), WithKeyPrefix(b.prefix))
	w := world{b, client, bedOn(t, redistest.Dial(t, url), opts...), false}
	w.cluster = client.Mode() == rueidis.ClientModeCluster
	loadScripts(t, b)
	return w
}

// shared returns the URLs of a server and of a cluster that tests share; under -short of one of
// them, which is drawn.
func shared(t *testing.T) map[string]string {
	urls := map[string]string{}
	for _, name := range some([]string{"standalone", "cluster"}, rand.Int()) {
		if name == "cluster" {
			urls[name] = redistest.ClusterURL(t)
		} else {
			urls[name] = redistest.URL(t)
		}
	}
	return urls
}

// onBoth runs a test on a server and on a cluster; under -short on one of them.
func onBoth(t *testing.T, test func(t *testing.T, newWorld func(*testing.T, ...Option) world)) {
	for name, url := range shared(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(t *testing.T, opts ...Option) world { return newWorld(t, url, opts...) })
		})
	}
}

// move gives a session another id.
type move func(ctx context.Context, s *RedisStore, from, to string) (Session, error)

var moves = map[string]move{
	"Rotate": func(ctx context.Context, s *RedisStore, from, to string) (Session, error) {
		return s.Rotate(ctx, from, to)
	},
	"Rotate WithData": func(ctx context.Context, s *RedisStore, from, to string) (Session, error) {
		return s.Rotate(ctx, from, to, WithData([]byte("data"), time.Hour))
	},
	"renewal": func(ctx context.Context, s *RedisStore, from, to string) (Session, error) {
		r, err := s.BeginRenewal(ctx, from, 0)
		if err != nil {
			return Session{}, err
		}
		return s.FinishRenewal(ctx, r, to, []byte("data"), time.Hour)
	},
	"renewal, taken over": func(ctx context.Context, s *RedisStore, from, to string) (Session, error) {
		r, err := s.BeginRenewal(ctx, from, 0)
		if err == nil {
			err = s.CancelRenewal(ctx, r)
		}
		if err == nil {
			r, err = s.BeginRenewal(ctx, from, 0)
		}
		if err != nil {
			return Session{}, err
		}
		return s.FinishRenewal(ctx, r, to, []byte("data"), time.Hour)
	},
}

// renews reports whether a move of this kind is a renewal in two halves.
func renews(kind string) bool { return strings.HasPrefix(kind, "renewal") }

// moved makes a session that has moved through n ids, and returns them.
func (b *bed) moved(n int) (ids []string) {
	b.t.Helper()
	ids = []string{NewID()}
	b.write(ids[0], "data", time.Hour)
	kinds := slices.Sorted(maps.Keys(moves))
	for i := range n - 1 {
		next := NewID()
		_, err := moves[kinds[i%len(kinds)]](b.t.Context(), b.RedisStore, ids[i], next)
		require.NoError(b.t, err)
		ids = append(ids, next)
	}
	return ids
}

func (b *bed) live(id string) bool {
	b.t.Helper()
	live, err := b.Exists(b.t.Context(), id)
	require.NoError(b.t, err)
	return live
}

// successor returns what the tombstone of an id names for another.
func (b *bed) successor(id string) string { return strings.TrimPrefix(b.keyOf(id), b.prefix) }

// mutant changes a script.
type mutant struct {
	script   string
	old, new string
}

// apply makes the client run the changed script.
func (m mutant) apply(t *testing.T, c *tap) {
	t.Helper()
	s := scripts[m.script]
	source := strings.Replace(s.source, m.old, m.new, 1)
	require.NotEqual(t, s.source, source)
	require.NoError(t, c.Client.Do(t.Context(), c.B().ScriptLoad().Script(source).Build()).Error())
	c.change = func(words []string) []string {
		if nameOf(words) != m.script {
			return nil
		}
		return append([]string{"EVAL", source}, words[2:]...)
	}
}

// skipIfShort is for broken variants: that a test can fail is shown where there is time for it.
func skipIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
}

// catches checks that a check fails with each of the changed scripts.
func catches(
	t *testing.T, newWorld func(*testing.T) world,
	check func(t require.TestingT, w world), mutants map[string]mutant,
) {
	t.Helper()
	for name, m := range mutants {
		t.Run("catches: "+name, func(t *testing.T) {
			skipIfShort(t)
			w := newWorld(t)
			m.apply(t, w.tap)
			require.True(t, fails(t, func(t require.TestingT) { check(t, w) }))
		})
	}
}

func TestMove_Stored(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for name, opts := range map[string][]Option{
			"digests":   {WithAbsoluteTimeout(12 * time.Hour)},
			"plain ids": {WithPlainIDs()},
		} {
			for kind, move := range moves {
				t.Run(name+", "+kind, func(t *testing.T) {
					t.Parallel()
					w := newWorld(t, opts...)
					id, next := NewID(), NewID()
					first := w.write(id, "data", time.Hour)
					before, _ := w.raw(id)
					s, err := move(t.Context(), w.RedisStore, id, next)
					require.NoError(t, err)

					end, ttl := w.tombstone(id)
					almost(t, 25*time.Hour, ttl)
					want := map[string]string{"t": end["t"], "s": w.successor(next)}
					if renews(kind) { // so that it can be repeated
						want["h"] = before[:headerSize]
					}
					require.Equal(t, want, end)
					w.requireTombstone(id, Rotated)

					value, ttl := w.raw(next)
					almost(t, time.Hour, ttl)
					require.Equal(t, headOf(s.Version)+before[offsetCreated:], value, "creation time, deadline and data")
					require.NotEqual(t, first.Version, s.Version)
					require.Equal(t, first.CreatedAt, s.CreatedAt)
					require.Equal(t, "data", string(s.Data))
				})
			}
		}
	})
}

func TestBeginRenewal_Stored(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithAbsoluteTimeout(12*time.Hour))
	id := NewID()
	s := b.write(id, "data", time.Hour)
	before, _ := b.raw(id)
	_, err := b.BeginRenewal(t.Context(), id, s.Version+1)
	require.ErrorIs(t, err, ErrConflict)
	after, _ := b.raw(id)
	require.Equal(t, before, after)

	r, err := b.BeginRenewal(t.Context(), id, s.Version)
	require.NoError(t, err)
	require.Equal(t, Ref(id), r.Ref)
	end, ttl := b.tombstone(id)
	almost(t, 25*time.Hour, ttl)
	require.Equal(t, map[string]string{"t": end["t"], "c": r.claim(), "h": before[:headerSize]}, end)
	b.requireTombstone(id, Rotated)

	require.NoError(t, b.CancelRenewal(t.Context(), r))
	end, ttl = b.tombstone(id)
	almost(t, 25*time.Hour, ttl)
	require.Equal(t, map[string]string{"t": end["t"], "h": before[:headerSize]}, end)
	b.requireTombstone(id, Rotated)
	_, err = b.FinishRenewal(t.Context(), r, NewID(), nil, time.Hour)
	require.ErrorIs(t, err, ErrInvalidated)

	_, err = b.BeginRenewal(t.Context(), id, s.Version+1)
	require.ErrorIs(t, err, ErrConflict)
	r, err = b.BeginRenewal(t.Context(), id, s.Version)
	require.NoError(t, err)
	end, ttl = b.tombstone(id)
	almost(t, 25*time.Hour, ttl)
	require.Equal(t, map[string]string{"t": end["t"], "c": r.claim(), "h": before[:headerSize]}, end)
}

// A tombstone outlives the last move by WithTombstoneTTL, however late in its time that comes.
func TestFinishRenewal_TombstoneTTL(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for name, c := range map[string]struct{ before, after time.Duration }{
		"short": {time.Minute, 24 * time.Hour},
		"long":  {48 * time.Hour, 48 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			b.write(id, "data", time.Hour)
			r, err := b.BeginRenewal(t.Context(), id, 0)
			require.NoError(t, err)
			b.do("PEXPIRE", b.keyOf(id), decimal(c.before.Milliseconds()))
			_, err = b.FinishRenewal(t.Context(), r, NewID(), nil, time.Hour)
			require.NoError(t, err)
			almost(t, c.after, b.ttl(id))
		})
	}
}

// What a renewal carries is in the tombstone, so it expires with its deadline.
func TestFinishRenewal_PastTheDeadline(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	id, next := NewID(), NewID()
	b.plant(id, string(newHeader(1, 1, time.Now().Add(time.Hour).UnixMilli())), time.Hour)
	r, err := b.BeginRenewal(t.Context(), id, 0)
	require.NoError(t, err)
	b.do("HSET", b.keyOf(id), "h", string(newHeader(1, 1, 2)))
	_, err = b.FinishRenewal(t.Context(), r, next, nil, time.Hour)
	require.ErrorIs(t, err, ErrNotFound)
	require.False(t, b.live(next))
}

// An end that comes at any moment of a move, by the old id, is an end of the session.
func TestMove_EndAtAnyMoment(t *testing.T) {
	t.Parallel()
	check := func(move move) func(t require.TestingT, w world) {
		return func(t require.TestingT, w world) {
			ctx := w.t.Context()
			for at := 0; ; at++ { // before the command of this number, and at last after all
				id, next := NewID(), NewID()
				w.write(id, "data", time.Hour)
				n, done := 0, false
				end := func() {
					done = true
					require.NoError(t, w.other.Invalidate(ctx, id, WithReason(Revoked)))
				}
				w.tap.before = func([]string) error {
					if n++; n == at+1 {
						end()
					}
					return nil
				}
				_, err := move(ctx, w.RedisStore, id, next)
				w.tap.before = nil
				last := !done
				if last {
					require.NoError(t, err)
					end()
				} else {
					var ended *InvalidatedError
					require.ErrorAs(t, err, &ended)
					require.Equal(t, Revoked, ended.Reason)
				}
				for _, id := range []string{id, next} {
					require.False(t, w.other.live(id), "at command %d", at)
				}
				w.other.requireTombstone(id, Revoked)
				if last {
					require.Greater(t, at, 0)
					return
				}
			}
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		for kind, move := range moves {
			t.Run(kind, func(t *testing.T) {
				check(move)(t, newWorld(t))
				// The one who ends is not changed, so only what the move leaves behind is.
				mutants := map[string]mutant{"no successor": {"rotate", "'s', ARGV[3]", "'x', ARGV[3]"}}
				if renews(kind) {
					mutants = map[string]mutant{
						"no successor": {"link", "redis.call('HSET', KEYS[1], 's', ARGV[2])", ""},
						"finished although it was ended": {"link", "return 'E' .. t\nend",
							"return 'D\\193' .. string.rep('\\0', 21)\nend"},
					}
				}
				catches(t, plain, check(move), mutants)
			})
		}
	})
}

// A condition that is not met changes nothing.
func TestRotate_IfUnchanged(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, id, next := w.t.Context(), NewID(), NewID()
		first := w.write(id, "1", time.Hour)
		second := w.write(id, "2", time.Hour)
		before, _ := w.dump(id)
		for _, opts := range [][]RotateOption{nil, {WithData([]byte("3"), time.Hour)}} {
			_, err := w.Rotate(ctx, id, next, append(opts, IfUnchanged(first.Version))...)
			require.ErrorIs(t, err, ErrConflict)
		}
		after, _ := w.dump(id)
		require.Equal(t, before, after)
		require.False(t, w.live(next))
		_, err := w.Rotate(ctx, id, next, IfUnchanged(second.Version))
		require.NoError(t, err)
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		check(t, newWorld(t))
		catches(t, func(t *testing.T) world { return newWorld(t) }, check, map[string]mutant{
			"any version": {"rotate", "if ARGV[4] ~= '' and", "if false and"},
		})
	})
}

// Whoever takes the new id first keeps it.
func TestMove_NewIDIsTakenMeanwhile(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		for kind, move := range moves {
			id, next := NewID(), NewID()
			w.write(id, "data", time.Hour)
			last := "write"
			if !w.cluster && !renews(kind) {
				last = "rotate"
			}
			w.tap.before = func(words []string) error {
				if nameOf(words) == last {
					w.other.write(next, "theirs", time.Hour)
				}
				return nil
			}
			_, err := move(t.Context(), w.RedisStore, id, next)
			w.tap.before = nil
			require.ErrorIs(t, err, ErrConflict, kind)
			require.NotErrorIs(t, err, ErrUnknownOutcome, kind)
			value, _ := w.raw(next)
			require.Equal(t, "theirs", value[headerSize:])
			require.Equal(t, last == "rotate", w.live(id), "it is lost if it has been left")
		}
	})
}

// What an end finds of a session that has moved, and what it leaves.
func TestInvalidate_Follows(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		var ended *InvalidatedError

		// Through any number of moves, and by any of the ids.
		for _, at := range []int{0, 3, 6} {
			ids := w.moved(7)
			require.True(t, w.other.live(ids[6]))
			require.NoError(t, w.Invalidate(ctx, ids[at], WithReason(Revoked)))
			for i, id := range ids {
				if i >= at {
					w.requireEnded(t, id, Revoked)
				} else {
					w.requireEnded(t, id, Rotated)
				}
			}
			_, err := w.Write(ctx, ids[6], nil, time.Hour)
			require.ErrorAs(t, err, &ended)

			// The first reason stays.
			require.NoError(t, w.Invalidate(ctx, ids[0], WithReason(Logout)))
			w.requireEnded(t, ids[6], Revoked)
			w.requireEnded(t, ids[at], Revoked)
		}

		// By ref.
		ids := w.moved(4)
		require.NoError(t, w.InvalidateRef(ctx, Ref(ids[0])))
		w.requireEnded(t, ids[3], Logout)

		// Not if it is Alone, nor with the reason of a step of a renewal.
		ids = w.moved(2)
		require.NoError(t, w.Invalidate(ctx, ids[0], Alone()))
		w.requireEnded(t, ids[0], Logout)
		require.True(t, w.live(ids[1]))
		ids = w.moved(2)
		require.NoError(t, w.Invalidate(ctx, ids[0], WithReason(Rotated)))
		require.True(t, w.live(ids[1]))
		require.NoError(t, w.Invalidate(ctx, ids[0]))
		require.False(t, w.live(ids[1]))

		// IfLive tells what the last id held.
		ids = w.moved(3)
		require.NoError(t, w.Invalidate(ctx, ids[0], IfLive()))
		w.requireEnded(t, ids[2], Logout)
		require.ErrorAs(t, w.Invalidate(ctx, ids[0], IfLive(), WithReason(Revoked)), &ended)
		require.Equal(t, Logout, ended.Reason)

		// A successor that is absent may yet be written: it gets a tombstone, by IfLive too.
		for _, opts := range [][]InvalidateOption{nil, {IfLive()}} {
			ids = w.moved(3)
			w.do("DEL", w.keyOf(ids[2]))
			if err := w.Invalidate(ctx, ids[0], opts...); opts == nil {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrNotFound)
			}
			w.requireEnded(t, ids[2], Logout)
		}

		// Of an absent session IfLive stores nothing.
		id := NewID()
		require.ErrorIs(t, w.Invalidate(ctx, id, IfLive()), ErrNotFound)
		stored, _ := w.dump(id)
		require.Empty(t, stored)
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"does not follow":    {"invalidate", "(redis.call('HGET', KEYS[1], 's') or '')", "''"},
			"forgets successors": {"invalidate", "'c', 'h')", "'c', 'h', 's')"},
			"keeps Rotated":      {"invalidate", "string.byte(stands, 3) == 2", "false"},
			"takes every reason": {"invalidate", "string.byte(stands, 3) == 2", "true"},
			"spares absent ones": {"invalidate", "local keep =",
				"if not live then return 'A' end local keep ="},
			"IfLive ends anybody": {"invalidate", "condition ~= ''", "false"},
		})
	})
}

// requireEnded checks that the tombstone of id has this reason, and some time to live.
func (w world) requireEnded(t require.TestingT, id string, reason Reason) {
	fields, ttl := w.other.tombstone(id)
	var ended *InvalidatedError
	require.ErrorAs(t, parseEnd(fields["t"]), &ended)
	require.Equal(t, reason, ended.Reason)
	require.Greater(t, ttl, 23*time.Hour)
}

// Of all that can happen to a claim.
func TestRenewal_Claims(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		begin := func() (string, Renewal) {
			id := NewID()
			w.write(id, "data", time.Hour)
			r, err := w.BeginRenewal(ctx, id, 0)
			require.NoError(t, err)
			return id, r
		}
		finish := func(r Renewal) (string, error) {
			next := NewID()
			_, err := w.FinishRenewal(ctx, r, next, nil, time.Hour)
			require.Equal(t, err == nil, w.other.live(next))
			return next, err
		}

		// Of several renewals one can be finished, and it only once.
		id, r := begin()
		_, err := w.BeginRenewal(ctx, id, 0)
		require.ErrorIs(t, err, ErrInvalidated)
		require.NoError(t, w.Invalidate(ctx, id, WithReason(Rotated)), "a step of another renewal")
		_, err = finish(Renewal{Ref: r.Ref, Claim: r.Claim + 1})
		require.ErrorIs(t, err, ErrInvalidated)
		require.NoError(t, w.CancelRenewal(ctx, Renewal{Ref: r.Ref, Claim: r.Claim + 1}), "of another one")
		next, err := finish(r)
		require.NoError(t, err)
		_, err = finish(r)
		require.ErrorIs(t, err, ErrInvalidated)

		// Giving up what was finished ends nothing.
		require.NoError(t, w.CancelRenewal(ctx, r))
		require.True(t, w.live(next))
		require.NoError(t, w.Invalidate(ctx, id))
		require.False(t, w.live(next))

		// What was given up cannot be finished.
		_, r = begin()
		require.NoError(t, w.CancelRenewal(ctx, r))
		_, err = finish(r)
		require.ErrorIs(t, err, ErrInvalidated)

		// Another renewal can take over, which stands then as the first one did.
		giveUp := func() (string, Renewal) {
			id, r := begin()
			require.NoError(t, w.CancelRenewal(ctx, r))
			require.NoError(t, w.Invalidate(ctx, id, WithReason(Rotated)), "a step of another renewal")
			return id, r
		}
		id, given := giveUp()
		r, err = w.BeginRenewal(ctx, id, 0)
		require.NoError(t, err)
		_, err = w.BeginRenewal(ctx, id, 0)
		require.ErrorIs(t, err, ErrInvalidated)
		require.NoError(t, w.CancelRenewal(ctx, given))
		_, err = finish(given)
		require.ErrorIs(t, err, ErrInvalidated)
		next, err = finish(r)
		require.NoError(t, err)
		_, err = w.BeginRenewal(ctx, id, 0)
		require.ErrorIs(t, err, ErrInvalidated)
		require.True(t, w.live(next))

		// Not when it was given up so long ago that a list would miss it.
		id, _ = giveUp()
		end := []byte(canaryEnd(Rotated))
		putMilli48(end[3:], time.Now().Add(-takeOverFor-time.Second).UnixMilli())
		w.do("HSET", w.keyOf(id), "t", string(end))
		_, err = w.BeginRenewal(ctx, id, 0)
		require.ErrorIs(t, err, ErrInvalidated)

		// It needs the version that the session had.
		id = NewID()
		first := w.write(id, "1", time.Hour)
		second := w.write(id, "2", time.Hour)
		r, err = w.BeginRenewal(ctx, id, 0)
		require.NoError(t, err)
		require.NoError(t, w.CancelRenewal(ctx, r))
		before, _ := w.tombstone(id)
		_, err = w.BeginRenewal(ctx, id, first.Version)
		require.ErrorIs(t, err, ErrConflict)
		after, _ := w.tombstone(id)
		require.Equal(t, before, after)
		_, err = w.BeginRenewal(ctx, id, second.Version)
		require.NoError(t, err)

		// It comes before the session would have expired.
		id, _ = giveUp()
		w.do("PEXPIRE", w.keyOf(id), decimal(w.tombstoneTTL.Milliseconds()))
		_, err = w.BeginRenewal(ctx, id, 0)
		require.ErrorIs(t, err, ErrInvalidated)

		// What was ended, in whatever way, can neither be finished nor taken over.
		for _, opts := range [][]InvalidateOption{
			nil, {Alone()}, {IfLive()}, {WithReason(Revoked)}, {WithReason(9)},
		} {
			for _, begin := range []func() (string, Renewal){begin, giveUp} {
				id, r = begin()
				err := w.Invalidate(ctx, id, opts...)
				require.True(t, err == nil || errors.Is(err, ErrInvalidated))
				fields, _ := w.tombstone(id)
				require.Len(t, fields, 1, "neither claim nor header")
				_, err = finish(r)
				require.ErrorIs(t, err, ErrInvalidated)
				_, err = w.BeginRenewal(ctx, id, 0)
				require.ErrorIs(t, err, ErrInvalidated)
			}
		}

		// An id that is taken leaves the renewal as it was.
		_, r = begin()
		taken := NewID()
		w.write(taken, "theirs", time.Hour)
		_, err = w.FinishRenewal(ctx, r, taken, nil, time.Hour)
		require.ErrorIs(t, err, ErrConflict)
		value, _ := w.raw(taken)
		require.Equal(t, "theirs", value[headerSize:])
		_, err = finish(r)
		require.NoError(t, err)

		// Nothing is known of a tombstone that has expired, nor of a claim where a session lives.
		id, r = begin()
		w.do("DEL", w.keyOf(id))
		_, err = finish(r)
		require.ErrorIs(t, err, ErrNotFound)
		require.NoError(t, w.CancelRenewal(ctx, r))
		w.write(id, "another", time.Hour)
		session, _ := w.dump(id)
		_, err = finish(r)
		require.ErrorIs(t, err, ErrNotFound)
		require.NoError(t, w.CancelRenewal(ctx, r))
		untouched, _ := w.dump(id)
		require.Equal(t, session, untouched)

		// The store itself says what is wrong with the arguments.
		_, r = begin()
		for name, c := range map[string]struct {
			r    Renewal
			id   string
			data []byte
			ttl  time.Duration
			want error
		}{
			"no renewal": {Renewal{}, NewID(), nil, time.Hour, ErrInvalidID},
			"a bad ref":  {Renewal{Ref: "../x", Claim: 1}, NewID(), nil, time.Hour, ErrInvalidID},
			"no id":      {r, "", nil, time.Hour, ErrInvalidID},
			"no time":    {r, NewID(), nil, 0, ErrInvalidTTL},
			"too much":   {r, NewID(), make([]byte, 2<<20), time.Hour, ErrTooLarge},
		} {
			require.Empty(t, w.tap.tripsOf(func() {
				_, err := w.FinishRenewal(ctx, c.r, c.id, c.data, c.ttl)
				require.ErrorIs(t, err, c.want, name)
			}))
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"any claim is redeemed":   {"link", "if claim == ARGV[1] then\n", "if claim then\n"},
			"any claim is cleared":    {"link", "if claim == ARGV[1] then redis", "if claim then redis"},
			"a claim stands for ever": {"link", "  redis.call('HDEL', KEYS[1], 'c')\n", ""},
			"giving up loses the session": {"link",
				"'HDEL', KEYS[1], 'c') end", "'HDEL', KEYS[1], 'c', 'h') end"},
			"a claim that stands is taken": {"invalidate", "and not found[2] ", ""},
			"what has moved is taken":      {"invalidate", " and not found[3]", ""},
			"any version is taken":         {"invalidate", "#condition == 8 and condition ~= string.sub(found[1], 3, 10)", "false"},
			"what has expired is taken":    {"invalidate", "left > tonumber(ARGV[2])", "true"},
			"what is old is taken":         {"invalidate", "math.abs(clock() - number(met, 5)) < 300000", "true"},
			"ends leave the header":        {"invalidate", "redis.call('HDEL', KEYS[1], 'c', 'h')", "redis.call('HDEL', KEYS[1], 'c')"},
			"ends leave the claim":         {"invalidate", "redis.call('HDEL', KEYS[1], 'c', 'h')", ""},
			"steps clear others' claims":   {"invalidate", "reason ~= 2", "true"},
			"begins where it has begun":    {"invalidate", "redis.call('HGET', KEYS[1], 'c') == claim", "true"},
		})
	})
}

// A reply that is lost, of each command of each move: the move is done once, or its outcome is
// unknown, and an end by the old id ends it all the same.
func TestMove_LostReply(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for kind, move := range moves {
			t.Run(kind, func(t *testing.T) {
				w := newWorld(t)
				count := len(strings.Fields(w.tap.tripsOf(func() {
					id := NewID()
					w.write(id, "data", time.Hour)
					_, err := move(t.Context(), w.RedisStore, id, NewID())
					require.NoError(t, err)
				}))) - 1
				for at := range count {
					for _, meanwhile := range []string{"", "ended", "written"} {
						id, next := NewID(), NewID()
						first := w.write(id, "data", time.Hour)
						n, name := 0, ""
						w.tap.after = func(words []string) error {
							if n++; n-1 != at {
								return nil
							}
							name = nameOf(words)
							switch meanwhile {
							case "ended":
								require.NoError(t, w.other.Invalidate(t.Context(), id))
							case "written":
								if w.other.live(next) {
									w.other.write(next, "theirs", time.Hour)
								}
							}
							return io.EOF
						}
						s, err := move(t.Context(), w.RedisStore, id, next)
						w.tap.after = nil
						live := w.other.live(next)
						where := name + " lost, " + meanwhile
						require.False(t, live && w.other.live(id), where)
						switch {
						case name == "rotate" && w.cluster: // the record came with the reply
							require.ErrorIs(t, err, ErrUnknownOutcome, where)
							require.False(t, live)
						case meanwhile == "ended" && name == "rotate", meanwhile == "ended" && err == nil:
							require.ErrorIs(t, err, ErrUnknownOutcome, where)
						case meanwhile == "ended":
							require.ErrorIs(t, err, ErrInvalidated, where)
							require.False(t, live, where)
						case meanwhile == "written" && (name == "rotate" || name == "write"):
							require.ErrorIs(t, err, ErrUnknownOutcome, where)
							require.NotErrorIs(t, err, ErrConflict, where)
						default:
							require.NoError(t, err, where)
							require.True(t, live, where)
							require.Equal(t, first.CreatedAt, s.CreatedAt)
						}
						require.NoError(t, w.Invalidate(t.Context(), id))
						require.False(t, w.other.live(next), where)
						w.requireEnded(t, id, Logout)
					}
				}
			})
		}
	})
}

// An end whose reply is lost at any of its hops is done, and so is the giving up of a renewal.
func TestInvalidate_LostReplyOfEachHop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redistest.URL(t))
	lose := func(nth int) {
		n := 0
		w.tap.after = func([]string) error {
			if n++; n == nth {
				return io.EOF
			}
			return nil
		}
	}
	for hop := 1; hop <= 3; hop++ {
		ids := w.moved(3)
		lose(hop)
		require.NoError(t, w.Invalidate(t.Context(), ids[0]))
		require.False(t, w.other.live(ids[2]))

		ids = w.moved(3)
		lose(hop)
		err := w.Invalidate(t.Context(), ids[0], IfLive())
		if hop == 3 { // the attempt whose reply was lost has ended it, or somebody else has
			require.ErrorIs(t, err, ErrUnknownOutcome)
		} else {
			require.NoError(t, err)
		}
		require.False(t, w.other.live(ids[2]))
	}
	id := NewID()
	w.tap.after = nil
	w.write(id, "x", time.Hour)
	r, err := w.BeginRenewal(t.Context(), id, 0)
	require.NoError(t, err)
	lose(1)
	require.NoError(t, w.CancelRenewal(t.Context(), r))
	w.tap.after = nil
	_, err = w.FinishRenewal(t.Context(), r, NewID(), nil, time.Hour)
	require.ErrorIs(t, err, ErrInvalidated)
}

// An end that does not get to the last id is never reported as done.
func TestInvalidate_HopFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(w world, last string)
		want  error
	}{
		"unreachable": {func(w world, last string) {
			w.tap.before = func(words []string) error {
				if slices.Contains(words, w.keyOf(last)) {
					return &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
				}
				return nil
			}
		}, syscall.ECONNREFUSED},
		"cut": {func(w world, last string) {
			w.tap.before = func(words []string) error {
				if slices.Contains(words, w.keyOf(last)) {
					return io.EOF
				}
				return nil
			}
		}, io.EOF},
		"a foreign string": {func(w world, last string) {
			w.plant(last, "of another program", time.Hour)
		}, ErrUnknownOutcome},
		"a foreign hash": {func(w world, last string) {
			w.do("DEL", w.keyOf(last))
			w.do("HSET", w.keyOf(last), "user", "1")
		}, ErrUnknownOutcome},
		"a tombstone of the future": {func(w world, last string) {
			w.do("DEL", w.keyOf(last))
			w.do("HSET", w.keyOf(last), "t", "\xc0\x80"+canaryEnd(Rotated)[2:])
		}, ErrUnknownOutcome},
	} {
		for _, opts := range [][]InvalidateOption{nil, {IfLive()}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, redistest.URL(t), WithTimeout(time.Second))
				ids := w.moved(3)
				c.spoil(w, ids[2])
				before, _ := w.other.dump(ids[2])
				err := w.Invalidate(t.Context(), ids[0], opts...)
				require.ErrorIs(t, err, c.want)
				require.ErrorIs(t, err, ErrUnknownOutcome)
				require.False(t, NoSession(err))
				after, _ := w.other.dump(ids[2])
				require.Equal(t, before, after)
				w.requireEnded(t, ids[0], Logout)
				w.requireEnded(t, ids[1], Logout)
				if w.tap.before != nil {
					w.tap.before = nil
					require.NoError(t, w.Invalidate(t.Context(), ids[0]), "it is safe to repeat")
					require.False(t, w.other.live(ids[2]))
				}
			})
		}
	}
	t.Run("not permitted", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		admin := bedOn(t, redistest.Dial(t, server.URL))
		ids := admin.moved(2)
		admin.do("ACL", "SETUSER", "half", "on", ">pw", "+@all", "~"+admin.keyOf(ids[0]))
		client := redistest.Dial(t, strings.Replace(server.URL, "://", "://half:pw@", 1))
		half := bedOn(t, client, WithKeyPrefix(admin.prefix))
		for _, opts := range [][]InvalidateOption{nil, {IfLive()}} {
			require.ErrorIs(t, half.Invalidate(t.Context(), ids[0], opts...), ErrNotInvalidated)
		}
		require.True(t, admin.live(ids[1]))
	})
}

// A successor that this package cannot have written leads nowhere.
func TestInvalidate_BadSuccessor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, successor := range []string{"../x", "x", strings.Repeat("x", 22) + "\n", strings.Repeat("x", 2000)} {
		id := NewID()
		b.do("HSET", b.keyOf(id), "t", canaryEnd(Rotated), "s", successor)
		for _, opts := range [][]InvalidateOption{nil, {IfLive()}} {
			err := b.Invalidate(t.Context(), id, opts...)
			require.ErrorIs(t, err, ErrUnknownOutcome)
			require.NotContains(t, err.Error(), successor)
		}
		require.NoError(t, b.Invalidate(t.Context(), id, Alone()))
		b.requireTombstone(id, Logout)
	}
	require.Len(t, redistest.Keys(t.Context(), b.client, b.prefix), 4)
}

// Two tombstones that name each other are no reason to go on for ever.
func TestInvalidate_TooManyMoves(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithTimeout(time.Minute))
	one, two := NewID(), NewID()
	b.do("HSET", b.keyOf(one), "t", canaryEnd(Rotated), "s", b.successor(two))
	b.do("HSET", b.keyOf(two), "t", canaryEnd(Rotated), "s", b.successor(one))
	err := b.Invalidate(t.Context(), one)
	require.ErrorIs(t, err, ErrNotInvalidated)
	require.ErrorIs(t, err, errTooManyHops)
}

// At maxmemory a session can be ended, through all its moves, and left; what begins waits for
// memory.
func TestSuccession_FullMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	cluster := redistest.StartCluster(t, "--maxmemory-policy", "noeviction")
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		full := func(yes bool) {
			limit := "0"
			if yes {
				limit = "1"
			}
			w.do("CONFIG", "SET", "maxmemory", limit)
		}
		full(false)
		ids, absent := w.moved(4), w.moved(3)
		w.do("DEL", w.keyOf(absent[2]))
		given, renewed, rotated, next := NewID(), NewID(), NewID(), NewID()
		for _, id := range []string{given, renewed, rotated} {
			w.write(id, "data", time.Hour)
		}
		full(true)

		require.NoError(t, w.Invalidate(ctx, ids[0]))
		require.NoError(t, w.Invalidate(ctx, absent[0]))
		for _, id := range append(ids, absent...) { // a tombstone that stands is written again
			require.NoError(t, w.Invalidate(ctx, id))
			require.NoError(t, w.Invalidate(ctx, id, WithReason(Rotated)))
			w.requireEnded(t, id, Logout)
		}

		r, err := w.BeginRenewal(ctx, given, 0)
		require.NoError(t, err)
		require.NoError(t, w.CancelRenewal(ctx, r))
		w.requireEnded(t, given, Rotated)
		r, err = w.BeginRenewal(ctx, given, 0)
		require.NoError(t, err)
		fields, _ := w.tombstone(given)
		require.Equal(t, r.claim(), fields["c"])

		before, _ := w.raw(renewed)
		r, err = w.BeginRenewal(ctx, renewed, 0)
		require.NoError(t, err)
		fields, _ = w.tombstone(renewed)
		require.Equal(t, before[:headerSize], fields["h"])
		_, err = w.FinishRenewal(ctx, r, next, []byte("data"), time.Hour)
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.ErrorContains(t, err, "OOM")
		require.False(t, w.live(next))
		fields, _ = w.tombstone(renewed)
		require.Equal(t, w.successor(next), fields["s"])

		// A rotation is refused, and the session is as it was.
		before, ttl := w.raw(rotated)
		for _, opts := range [][]RotateOption{nil, {WithData([]byte("y"), time.Hour)}} {
			_, err = w.Rotate(ctx, rotated, NewID(), opts...)
			require.ErrorContains(t, err, "OOM")
			require.NotErrorIs(t, err, ErrUnknownOutcome)
			after, left := w.raw(rotated)
			require.Equal(t, before, after)
			require.LessOrEqual(t, left, ttl)
		}
		full(false)

		_, err = w.FinishRenewal(ctx, r, next, []byte("data"), time.Hour)
		require.NoError(t, err, "it may be repeated with the same id")
		require.True(t, w.live(next))
		require.NoError(t, w.Invalidate(ctx, renewed))
		require.False(t, w.live(next))
	}
	for name, url := range map[string]string{"standalone": server.URL, "cluster": cluster.URL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := func(t *testing.T) world { return newWorld(t, url) }
			check(t, plain(t))
			catches(t, plain, check, map[string]mutant{
				"HSET comes first on a tombstone": {"invalidate",
					"redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2],", "local _ = (math.max(ARGV[2],"},
				"HSET comes first in the link": {"link",
					"redis.call('PEXPIRE', KEYS[1], math.max(ARGV[3],", "local _ = (math.max(ARGV[3],"},
				"OOM is the end of it": {"invalidate", "string.find(reply.err, '^%-?OOM')", "false"},
			})
		})
	}
}

// Where a command is not permitted a session stays as it was, and the caller is told.
func TestSuccession_NotPermitted(t *testing.T) {
	t.Parallel()
	type verb struct {
		name string
		do   func(ctx context.Context, w world, id string) error
		want error
	}
	verbs := []verb{
		{"Invalidate", func(ctx context.Context, w world, id string) error {
			return w.Invalidate(ctx, id)
		}, ErrNotInvalidated},
		{"Invalidate IfLive", func(ctx context.Context, w world, id string) error {
			return w.Invalidate(ctx, id, IfLive())
		}, ErrNotInvalidated},
		{"BeginRenewal", func(ctx context.Context, w world, id string) error {
			_, err := w.BeginRenewal(ctx, id, 0)
			return err
		}, nil},
		{"Rotate", func(ctx context.Context, w world, id string) error {
			_, err := w.Rotate(ctx, id, NewID())
			return err
		}, nil},
		{"Rotate WithData", func(ctx context.Context, w world, id string) error {
			_, err := w.Rotate(ctx, id, NewID(), WithData([]byte("y"), time.Hour))
			return err
		}, nil},
	}
	check := func(right string) func(t require.TestingT, w world) {
		return func(t require.TestingT, w world) {
			ctx := w.t.Context()
			w.do("ACL", "SETUSER", "default", "+@all")
			ids := map[string]string{}
			for _, v := range verbs {
				ids[v.name] = NewID()
				w.write(ids[v.name], "data", time.Hour)
			}
			w.do("ACL", "SETUSER", "default", "-"+right)
			if right == "del" || right == "hset" { // which are for where this is not permitted
				w.do("ACL", "SETUSER", "default", "-restore")
			}
			for _, v := range verbs {
				rotates := strings.HasPrefix(v.name, "Rotate")
				switch { // does it need that right?
				case right == "rename" && (!rotates || w.cluster), right == "setrange" && !rotates,
					right == "del" && rotates && !w.cluster:
					continue
				}
				id := ids[v.name]
				before, ttl := w.raw(id)
				err := v.do(ctx, w, id)
				require.Error(t, err, v.name)
				var reply *rueidis.RedisError
				require.ErrorAs(t, err, &reply, v.name)
				require.NotErrorIs(t, err, ErrUnknownOutcome, v.name)
				require.False(t, NoSession(err), v.name)
				if v.want != nil {
					require.ErrorIs(t, err, v.want, v.name)
				}
				after, left := w.raw(id)
				if right != "hset" && rotates { // the version is written before the others are tried
					before, after = before[:2]+before[offsetCreated:], after[:2]+after[min(offsetCreated, len(after)):]
				}
				require.Equal(t, before, after, v.name)
				require.InDelta(t, ttl, left, float64(30*time.Second), v.name)
				require.True(t, w.live(id), v.name)
			}
		}
	}
	for _, right := range []string{"hset", "del", "rename", "setrange"} {
		for name, start := range map[string]func(testing.TB, ...string) *redistest.Server{
			"standalone": redistest.Start, "cluster": redistest.StartCluster,
		} {
			if right == "rename" && name == "cluster" {
				continue
			}
			t.Run(right+", "+name, func(t *testing.T) {
				t.Parallel()
				server := start(t)
				plain := func(t *testing.T) world { return newWorld(t, server.URL) }
				check(right)(t, plain(t))
				if right == "hset" && name == "standalone" {
					catches(t, plain, check(right), map[string]mutant{
						"DEL comes first": {"invalidate", "local set = redis.pcall('HSET'",
							"redis.call('DEL', KEYS[1])\nlocal set = redis.pcall('HSET'"},
						"DEL whatever HSET says": {"invalidate", "if not wrongtype(set) and", "if false and"},
						"Rotate does not ask": {"rotate",
							"if type(set) ~= 'table' or not wrongtype(set) then return set end", ""},
					})
				}
			})
		}
	}
}

// What cannot be sent has not happened, and is no unknown outcome.
func TestClosed(t *testing.T) {
	t.Parallel()
	s, err := Open(redistest.URL(t), WithKeyPrefix(redistest.Prefix(t, redistest.Client(t))))
	require.NoError(t, err)
	ctx, id := t.Context(), NewID()
	old, err := s.Write(ctx, id, nil, time.Hour)
	require.NoError(t, err)
	r, err := s.BeginRenewal(ctx, id, 0)
	require.NoError(t, err)
	s.Close()

	errs := map[string]error{}
	_, errs["Read"] = s.Read(ctx, id)
	_, errs["Read Slide"] = s.Read(ctx, id, Slide(time.Hour))
	_, errs["Write"] = s.Write(ctx, id, nil, time.Hour)
	_, errs["Write Replacing"] = s.Write(ctx, id, nil, time.Hour, Replacing(old))
	errs["Touch"] = s.Touch(ctx, id, time.Hour)
	_, errs["Rotate"] = s.Rotate(ctx, id, NewID())
	errs["Invalidate"] = s.Invalidate(ctx, id)
	errs["Invalidate IfLive"] = s.Invalidate(ctx, id, IfLive())
	errs["InvalidateRef"] = s.InvalidateRef(ctx, Ref(id))
	_, errs["BeginRenewal"] = s.BeginRenewal(ctx, id, 0)
	_, errs["FinishRenewal"] = s.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
	errs["CancelRenewal"] = s.CancelRenewal(ctx, r)
	_, errs["Exists"] = s.Exists(ctx, id)
	_, errs["Check"] = s.Check(ctx)
	for _, err := range s.List(ctx) {
		errs["List"] = err
	}
	require.Len(t, errs, 15)
	for verb, err := range errs {
		require.ErrorIs(t, err, rueidis.ErrClosing, verb)
		require.ErrorContains(t, err, "store is closed", verb)
		require.NotErrorIs(t, err, ErrUnknownOutcome, verb)
		require.NotErrorIs(t, err, ErrNotInvalidated, verb)
		require.False(t, NoSession(err), verb)
	}
}

// A refusal is told by its code word and not by what else is in its text, such as the name of the
// user.
func TestInvalidate_NotPermittedToAnyName(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := redistest.Dial(t, server.URL)
	prefix := redistest.Prefix(t, admin)
	b := bedOn(t, admin, WithKeyPrefix(prefix))
	for _, name := range []string{"app", "ZOOM", "WRONGTYPE"} {
		t.Run(name, func(t *testing.T) {
			b.do("ACL", "SETUSER", name, "on", ">password", "~*", "+@all", "-restore", "-hset")
			app := bedOn(t, redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) {
				o.Username, o.Password = name, "password"
			}), WithKeyPrefix(prefix))
			id := NewID()
			b.write(id, "data", time.Hour)
			require.ErrorIs(t, app.Invalidate(t.Context(), id), ErrNotInvalidated)
			require.True(t, b.live(id), "a refused end loses nothing")
		})
	}
}
