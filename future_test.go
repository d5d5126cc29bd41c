package tombstore

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// futureRecord is a record of a later edition: flags and items that this one does not know.
func futureRecord(v Version, deadline int64, items, data string) string {
	header := newHeader(v, lifeBegan, deadline)
	header[1] = 0x7f
	length := string([]byte{byte(len(items) >> 8), byte(len(items))})
	return string(header) + length + items + data
}

// futureItems are one of type 0x7f and one of type 0xfe, and none, and as many as there can be.
var futureItems = map[string]string{
	"items":    "\x7f\x00\x02ab" + "\xfe\x00\x00",
	"no items": "",
	"many":     "\x7f\xff\xfc" + strings.Repeat("x", 0xfffc),
}

// afterVersion returns all of a record but its version.
func afterVersion(value string) string {
	return value[:offsetVersion] + value[min(offsetCreated, len(value)):]
}

// What this edition does not know of a live session goes along with it.
func TestFuture_Record(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for _, items := range futureItems {
			deadline := time.Now().Add(10 * time.Hour).UnixMilli()
			plant := func(ttl time.Duration) (id, value string) {
				id, value = NewID(), futureRecord(7, deadline, items, "data")
				w.plant(id, value, ttl)
				return id, value
			}
			requireRecord := func(id, before, data string) {
				after, _ := w.raw(id)
				want := afterVersion(before[:len(before)-4]) + data
				require.Equal(t, want, afterVersion(after))
			}

			id, value := plant(time.Hour)
			s, err := w.Read(ctx, id)
			require.NoError(t, err)
			require.Equal(t, "data", string(s.Data))
			require.EqualValues(t, 7, s.Version)
			_, err = w.Read(ctx, id, Slide(2*time.Hour))
			require.NoError(t, err)
			require.True(t, w.live(id))
			require.NoError(t, w.Touch(ctx, id, time.Minute))
			stored, ttl := w.raw(id)
			require.Equal(t, value, stored)
			almost(w.t, time.Minute, ttl)

			for _, opts := range [][]WriteOption{
				nil, {IfPresent()}, {IfVersion(7)}, {Replacing(s)}, {Replacing(Session{})},
			} {
				id, value := plant(time.Hour)
				written, err := w.Write(ctx, id, []byte("more"), time.Hour, opts...)
				require.NoError(t, err)
				requireRecord(id, value, "more")
				// It goes along with what was returned, too.
				_, err = w.Write(ctx, id, []byte("again"), time.Hour, Replacing(written))
				require.NoError(t, err)
				again, err := w.Read(ctx, id)
				require.NoError(t, err)
				require.Equal(t, "again", string(again.Data))
				requireRecord(id, value, "again")
			}
			id, value = plant(time.Hour)
			_, err = w.Write(ctx, id, nil, time.Hour, IfAbsent())
			require.ErrorIs(t, err, ErrConflict)
			stored, _ = w.raw(id)
			require.Equal(t, value, stored)

			for _, move := range moves {
				id, value := plant(time.Hour)
				next := NewID()
				s, err := move(ctx, w.RedisStore, id, next)
				require.NoError(t, err)
				require.Equal(t, "data", string(s.Data))
				requireRecord(next, value, "data")
				require.NoError(t, w.Invalidate(ctx, id))
				w.requireEnded(t, next, Logout)
			}

			id, _ = plant(time.Hour)
			found := listed(w.t, w)
			require.Equal(t, "data", found[Ref(id)])
			require.NoError(t, w.Invalidate(ctx, id))
			w.requireEnded(t, id, Logout)
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		check(t, plain(t))
		items := [2]string{"if flags % 2 == 0 then", "if true then"}
		catches(t, plain, check, map[string]mutant{
			"a write drops the items":   {"write", items[0], items[1]},
			"a renewal drops the items": {"invalidate", items[0], items[1]},
			"a write drops the flags":   {"write", "record = string.sub(record, 1, 2)", "record = '\\193\\1'"},
			"all flags must be known":   {"touch", "flags > 127", "flags > 1"},
			"a move drops the items": {"write", "record, deadline = ARGV[5]",
				"record, deadline = string.sub(ARGV[5], 1, 22)"},
		})
	})
}

// plantEnd stores a tombstone of a later edition: unknown flags and fields, and more in the field
// t.
func (b *bed) plantEnd(id string, reason Reason, fields ...string) map[string]string {
	b.t.Helper()
	end := []byte(canaryEnd(reason))
	end[1] = 0x7f
	putMilli48(end[3:], time.Now().UnixMilli())
	fields = append([]string{"t", string(end) + "more", "x", "unknown", "o", ""}, fields...)
	b.do(append([]string{"HSET", b.keyOf(id)}, fields...)...)
	b.do("PEXPIRE", b.keyOf(id), "60000")
	stored, _ := b.tombstone(id)
	return stored
}

// What this edition does not know of a tombstone stays, whatever becomes of the rest.
func TestFuture_Tombstone(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		// requireEnd checks the tombstone: other is what it has besides t, and what follows the
		// time in t.
		requireEnd := func(id string, reason Reason, other map[string]string) {
			fields, _ := w.tombstone(id)
			require.Equal(t, string([]byte{kindTombstone, 0x7f, byte(reason)}), fields["t"][:3])
			require.Equal(t, "more", fields["t"][endSize:])
			delete(fields, "t")
			want := map[string]string{"x": "unknown", "o": ""}
			for name, value := range other {
				want[name] = value
			}
			require.Equal(t, want, fields)
		}

		id := NewID()
		before := w.plantEnd(id, Revoked)
		errs := everyLiveVerb(w.bed, id)
		_, errs["Write"] = w.Write(ctx, id, nil, time.Hour)
		_, errs["Write IfAbsent"] = w.Write(ctx, id, nil, time.Hour, IfAbsent())
		stale := sessionOf(w.t, newHeader(1, time.Now().UnixMilli(), 0))
		_, errs["Write Replacing"] = w.Write(ctx, id, nil, time.Hour, Replacing(stale))
		for verb, err := range errs {
			var ended *InvalidatedError
			require.ErrorAs(t, err, &ended, verb)
			require.Equal(t, Revoked, ended.Reason)
			require.WithinDuration(t, time.Now(), ended.At, time.Hour)
		}
		require.False(t, w.live(id))
		fields, _ := w.tombstone(id)
		require.Equal(t, before, fields)
		live := NewID()
		w.write(live, "data", time.Hour)
		_, err := w.Rotate(ctx, live, id)
		require.ErrorIs(t, err, ErrConflict)
		require.True(t, w.live(live))

		// An end writes it again, for longer, and with its own reason if that was Rotated.
		require.NoError(t, w.Invalidate(ctx, id))
		fields, ttl := w.tombstone(id)
		require.Equal(t, before, fields)
		require.Greater(t, ttl, 23*time.Hour)
		next := NewID()
		w.write(next, "data", time.Hour)
		id = NewID()
		w.plantEnd(id, Rotated, "s", w.successor(next))
		require.NoError(t, w.Invalidate(ctx, id, WithReason(9)))
		requireEnd(id, 9, map[string]string{"s": w.successor(next)})
		w.requireEnded(t, next, 9)

		// A claim on it is redeemed, or given up and taken over.
		header := futureRecord(7, 0, "\x7f\x00\x01x", "")
		r := Renewal{Claim: 5}
		id, next = NewID(), NewID()
		r.Ref = w.successor(id)
		w.plantEnd(id, Rotated, "c", r.claim(), "h", header)
		_, err = w.FinishRenewal(ctx, r, next, []byte("data"), time.Hour)
		require.NoError(t, err)
		requireEnd(id, Rotated, map[string]string{"s": w.successor(next), "h": header})
		value, _ := w.raw(next)
		require.Equal(t, afterVersion(header)+"data", afterVersion(value))
		id = NewID()
		r.Ref = w.successor(id)
		w.plantEnd(id, Rotated, "c", r.claim(), "h", header)
		require.NoError(t, w.CancelRenewal(ctx, r))
		requireEnd(id, Rotated, map[string]string{"h": header})
		w.do("PEXPIRE", w.keyOf(id), decimal((w.tombstoneTTL + time.Hour).Milliseconds()))
		r, err = w.BeginRenewal(ctx, id, 7)
		require.NoError(t, err)
		requireEnd(id, Rotated, map[string]string{"c": r.claim(), "h": header})
		require.NoError(t, w.Invalidate(ctx, id))
		requireEnd(id, Logout, nil)

		// A list follows it.
		id, next = NewID(), NewID()
		w.plantEnd(id, Rotated, "s", w.successor(next))
		found := map[string]bool{}
		for e, err := range w.List(ctx) {
			require.NoError(t, err)
			if e.Pending {
				found[e.Ref] = true
			}
		}
		require.Equal(t, map[string]bool{Ref(id): true}, found)
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"an end cuts t":          {"invalidate", ".. string.sub(stands, 10)", ""},
			"an end drops the flags": {"invalidate", "stands = string.sub(stands, 1, 2)", "stands = '\\192\\0'"},
			"an end drops fields": {"invalidate", "redis.call('HSET', KEYS[1], 't', stands)",
				"redis.call('DEL', KEYS[1]) redis.call('HSET', KEYS[1], 't', stands)"},
			"t must be short":         {"write", "#t < 9", "#t ~= 9"},
			"all flags must be known": {"read", "string.byte(t, 2) > 127", "string.byte(t, 2) > 0"},
			"successor after t":       {"invalidate", "string.sub(met, 1, 10)", "met"},
		})
	})
}

// Bit 7 of the flags says that whoever does not know the rest must leave the session alone.
func TestFuture_MustBeUnderstood(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		record := futureRecord(7, 0, "\x7f\x00\x01x", "data")
		end := canaryEnd(Rotated)
		live := NewID()
		w.write(live, "data", time.Hour)
		for name, plant := range map[string]func(id string){
			"record": func(id string) { w.plant(id, "\xc1\xff"+record[2:], time.Hour) },
			"tombstone": func(id string) {
				claim := Renewal{Claim: 5}.claim()
				w.do("HSET", w.keyOf(id), "t", "\xc0\xff"+end[2:], "c", claim, "h", record, "s", w.successor(live))
				w.do("PEXPIRE", w.keyOf(id), "3600000")
			},
		} {
			id := NewID()
			plant(id)
			before, ttl := w.dump(id)

			errs := everyLiveVerb(w.bed, id)
			_, errs["Write"] = w.Write(ctx, id, nil, time.Hour)
			_, errs["Write IfAbsent"] = w.Write(ctx, id, nil, time.Hour, IfAbsent())
			_, errs["Rotate WithData"] = w.Rotate(ctx, id, NewID(), WithData(nil, time.Hour))
			_, errs["Exists"] = w.Exists(ctx, id)
			errs["Invalidate"] = w.Invalidate(ctx, id)
			errs["Invalidate IfLive"] = w.Invalidate(ctx, id, IfLive())
			errs["Invalidate Alone"] = w.Invalidate(ctx, id, Alone())
			errs["InvalidateRef"] = w.InvalidateRef(ctx, Ref(id))
			if name == "tombstone" {
				r := Renewal{Ref: Ref(id), Claim: 5}
				_, errs["FinishRenewal"] = w.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
				errs["CancelRenewal"] = w.CancelRenewal(ctx, r)
			}
			for _, err := range w.List(ctx) {
				if err != nil {
					errs["List"] = err
				}
			}
			require.Contains(t, errs, "List")
			for verb, err := range errs {
				require.ErrorIs(t, err, ErrCorrupt, verb)
				require.NotErrorIs(t, err, ErrUnknownOutcome, verb)
			}
			for _, move := range moves {
				old := NewID()
				w.write(old, "data", time.Hour)
				_, err := move(ctx, w.RedisStore, old, id)
				require.ErrorIs(t, err, ErrConflict)
			}
			after, left := w.dump(id)
			require.Equal(t, before, after)
			require.InDelta(t, ttl, left, float64(30*time.Second))
			require.True(t, w.live(live))
			w.do("DEL", w.keyOf(id))
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		sealed := func(t *testing.T) world { return newWorld(t, WithSealedData()) }
		check(t, plain(t))
		w := sealed(t)
		check(t, w)
		mutants, ofSealed := map[string]mutant{}, map[string]mutant{}
		for name, s := range scripts {
			m := mutant{name, "flags > 127", "flags > 255"}
			switch {
			case !strings.Contains(s.source, m.old), name == "read": // which hands on the record as it is
			case name == "write", name == "rotate" && w.cluster: // without a seal they refuse bit 7 twice
				ofSealed[name+", record, sealed"] = m
			case name != "rotate": // on one server a store that seals reads before it
				mutants[name+", record"] = m
			}
			if strings.Contains(s.source, "string.byte(t, 2) > 127") {
				mutants[name+", tombstone"] = mutant{name, "string.byte(t, 2) > 127", "string.byte(t, 2) > 255"}
			}
		}
		require.GreaterOrEqual(t, len(mutants)+len(ofSealed), 8)
		catches(t, plain, check, mutants)
		catches(t, sealed, check, ofSealed)
	})
	t.Run("cached", func(t *testing.T) {
		t.Parallel()
		b := bedOn(t, redistest.Dial(t, redistest.URL(t), redistest.WithCache), WithClientCache(time.Minute))
		id, dead := NewID(), NewID()
		b.plant(id, "\xc1\xff"+futureRecord(7, 0, "", "data")[2:], time.Hour)
		b.do("HSET", b.keyOf(dead), "t", "\xc0\xff"+canaryEnd(Rotated)[2:])
		for range 3 {
			for _, id := range []string{id, dead} {
				_, err := b.Read(t.Context(), id)
				require.ErrorIs(t, err, ErrCorrupt)
			}
		}
	})
}
