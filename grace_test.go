package tombstore

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// What is stored for a grace, and that a program that does not use it sends and stores nothing
// else.
func TestGrace_Stored(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for _, opts := range [][]Option{nil, {WithPublish()}} {
			w := newWorld(t, append(opts, WithTombstoneTTL(time.Hour))...)
			for _, moving := range [][]RotateOption{nil, {WithData([]byte("y"), time.Hour)}} {
				rotate := func(opts ...RotateOption) (old, id string, words int) {
					old, id = NewID(), NewID()
					w.write(old, "x", time.Hour)
					w.tap.forget()
					_, err := w.Rotate(t.Context(), old, id, append(opts, moving...)...)
					require.NoError(t, err)
					for _, sent := range w.tap.sent() {
						if nameOf(sent) == "rotate" {
							words = len(sent)
						}
					}
					return old, id, words
				}
				plain, _, words := rotate()
				fields, _ := w.tombstone(plain)
				require.Len(t, fields["t"], endSize)
				require.Zero(t, fields["t"][1])
				keys, arguments := 2, 5
				if w.cluster {
					keys = 1
				}
				if moving != nil || w.publish {
					arguments = 7
				}
				if w.publish {
					arguments = 8
				}
				require.Equal(t, 3+keys+arguments, words)
				require.Equal(t, "GET read", w.tap.tripsOf(func() {
					_, err := w.Read(t.Context(), plain)
					require.ErrorIs(t, err, ErrInvalidated)
				}))

				old, id, _ := rotate(Grace(time.Minute))
				fields, left := w.tombstone(old)
				almost(t, 2*time.Hour, left)
				require.Equal(t, strings.TrimPrefix(w.keyOf(id), w.prefix), fields["s"])
				require.Len(t, fields["t"], endSize+6)
				require.Equal(t, []byte{kindTombstone, flagGrace, byte(Rotated)}, []byte(fields["t"][:3]))
				until := time.UnixMilli(milli48(fields["t"][endSize:]))
				require.WithinDuration(t, time.Now().Add(time.Minute), until, 10*time.Second)
				require.Equal(t, "GET read GET", w.tap.tripsOf(func() {
					_, err := w.Read(t.Context(), old)
					require.NoError(t, err)
				}))
			}
		}
	})
}

// What ends a grace: its time, by the server's clock, and any end, at the old id alone too.
func TestGrace_Ends(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		leave := func() (old, id string) {
			old, id = NewID(), NewID()
			_, err := w.other.Write(ctx, old, []byte("x"), time.Hour)
			require.NoError(t, err)
			_, err = w.Rotate(ctx, old, id, Grace(time.Minute))
			require.NoError(t, err)
			s, err := w.Read(ctx, old)
			require.NoError(t, err)
			require.Equal(t, "x", string(s.Data))
			return old, id
		}
		old, id := leave()
		fields, _ := w.other.tombstone(old)
		var past [6]byte
		putMilli48(past[:], time.Now().Add(-time.Minute).UnixMilli())
		w.do("HSET", w.keyOf(old), "t", fields["t"][:endSize]+string(past[:]))
		_, err := w.Read(ctx, old)
		require.ErrorIs(t, err, ErrInvalidated)
		require.True(t, w.other.live(id))

		old, id = leave()
		require.NoError(t, w.other.Invalidate(ctx, old, Alone()))
		_, err = w.Read(ctx, old)
		require.ErrorIs(t, err, ErrInvalidated)
		require.True(t, w.other.live(id))

		old, id = leave()
		require.NoError(t, w.other.Invalidate(ctx, id, WithReason(Revoked)))
		_, err = w.Read(ctx, old)
		var end *InvalidatedError
		require.ErrorAs(t, err, &end)
		require.Equal(t, Revoked, end.Reason)

		// A successor that is not written yet, or has expired.
		old, id = leave()
		w.do("DEL", w.keyOf(id))
		_, err = w.Read(ctx, old)
		require.ErrorAs(t, err, &end)
		require.Equal(t, Rotated, end.Reason)
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"a grace without end":         {"read", "clock() < number(met, 11) and ", ""},
			"a grace that outlives ends":  {"read", " or string.byte(met, 4) ~= 2", ""},
			"a grace that is not granted": {"rotate", "if (ARGV[9] or '') ~= '' then", "if false then"},
		})
	})
}

// An end that comes between the steps of a Read wins, wherever it comes.
func TestGrace_EndBetween(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for name, opts := range map[string][]ReadOption{
			"plain": nil, "expiry": {WithExpiry()}, "slide": {Slide(time.Hour)},
		} {
			for _, byOld := range []bool{false, true} {
				for step := range 3 {
					w := newWorld(t)
					old, id := NewID(), NewID()
					w.write(old, "x", time.Hour)
					_, err := w.Rotate(t.Context(), old, id, Grace(time.Minute))
					require.NoError(t, err)
					ends, trips := id, 0
					if byOld {
						ends = old
					}
					w.tap.before = func(words []string) error {
						if words[0] == "PTTL" { // is in the trip of a GET
							return nil
						}
						if trips == step {
							require.NoError(t, w.other.Invalidate(t.Context(), ends))
						}
						trips++
						return nil
					}
					_, err = w.Read(t.Context(), old, opts...)
					require.ErrorIs(t, err, ErrInvalidated, "%s, %v, %d", name, byOld, step)
				}
			}
		}
	})
}

// A cache does not know of a grace longer than the server does, nor of what is read in it.
func TestGrace_Cached(t *testing.T) {
	t.Parallel()
	client := redistest.Dial(t, redistest.URL(t), redistest.WithCache)
	b := bedOn(t, client, WithClientCache(time.Minute))
	other := bedOn(t, redistest.Client(t), WithKeyPrefix(b.prefix))
	ctx := t.Context()
	leave := func() (old, id string) {
		old, id = NewID(), NewID()
		other.write(old, "x", time.Hour)
		_, err := other.Rotate(ctx, old, id, Grace(time.Minute))
		require.NoError(t, err)
		for range 3 {
			b.reads(old, "x")
		}
		return old, id
	}
	old, id := leave()
	other.write(id, "y", time.Hour)
	b.reads(old, "y")
	require.NoError(t, other.Invalidate(ctx, id))
	_, err := b.Read(ctx, old)
	require.ErrorIs(t, err, ErrInvalidated)

	// The server, which has the clock, has forgotten the grace, and the message may be on its way.
	old, _ = leave()
	fields, _ := other.tombstone(old)
	other.do("HSET", other.keyOf(old), "t", fields["t"][:endSize]+strings.Repeat("\x00", 6))
	_, err = b.Read(ctx, old)
	require.ErrorIs(t, err, ErrInvalidated)
}
