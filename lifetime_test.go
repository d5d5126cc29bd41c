package tombstore

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

const month = 30 * 24 * time.Hour

var remembered = Lifetime{Idle: month, Absolute: 3 * month}

// requireTTL checks what is left of a TTL that was set a moment ago.
func (w world) requireTTL(t require.TestingT, id string, want time.Duration) {
	left := w.other.ttl(id)
	require.LessOrEqual(t, left, want)
	require.Greater(t, left, want-30*time.Second)
}

// Whoever touches or saves a session by the usual timeout leaves it its own, whatever script or
// command that takes.
func TestLifetime_Kept(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for _, l := range []Lifetime{remembered, {Idle: 15 * time.Minute, Absolute: 45 * time.Minute}} {
			id := NewID()
			s, err := w.Write(ctx, id, []byte("x"), time.Hour, Lasting(l))
			require.NoError(t, err)
			w.requireTTL(t, id, l.Idle)
			stored, _ := w.other.raw(id)
			idle := binary.BigEndian.AppendUint64(nil, uint64(l.Idle.Milliseconds()))
			require.Equal(t, "\xc1\x01"+s.Version.bytes(), stored[:offsetCreated])
			require.Equal(t, "\x00\x09\x03\x00\x06"+string(idle[2:])+"x", stored[headerSize:])
			require.Equal(t, s.CreatedAt.Add(l.Absolute), s.Deadline())

			// A TTL that is right is left alone, and one that is not is set to the session's own.
			w.do("PEXPIRE", w.keyOf(id), "600000")
			require.NoError(t, w.Touch(ctx, id, 10*time.Minute))
			w.requireTTL(t, id, l.Idle)
			require.Equal(t, "GET+PTTL", w.tap.tripsOf(func() {
				_, err = w.Read(ctx, id, Slide(10*time.Minute))
			}))
			require.NoError(t, err)
			w.do("PEXPIRE", w.keyOf(id), "600000")
			s, err = w.Read(ctx, id, Slide(10*time.Minute))
			require.NoError(t, err)
			w.requireTTL(t, id, l.Idle)
			require.WithinDuration(t, time.Now().Add(l.Idle), s.ExpiresAt, time.Minute)

			_, err = w.Write(ctx, id, []byte("y"), time.Hour)
			require.NoError(t, err)
			w.requireTTL(t, id, l.Idle)
			_, err = w.Write(ctx, id, []byte("z"), time.Hour, Replacing(s))
			require.NoError(t, err)
			w.requireTTL(t, id, l.Idle)

			next := NewID()
			s, err = w.Rotate(ctx, id, next, WithData([]byte("x"), time.Hour))
			require.NoError(t, err)
			require.Equal(t, l.Idle, s.Idle())
			w.requireTTL(t, next, l.Idle)

			// A move is no use of the session: what is left of its time goes along.
			w.do("PEXPIRE", w.keyOf(next), "300000")
			last := NewID()
			_, err = w.Rotate(ctx, next, last)
			require.NoError(t, err)
			w.requireTTL(t, last, 5*time.Minute)
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t, WithAbsoluteTimeout(12*time.Hour)) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"a touch sets its own":  {"touch", "idle(head) or tonumber(ARGV[1])", "tonumber(ARGV[1])"},
			"a touch does not look": {"touch", "'0', '32')", "'0', '21')"},
			"a slide sets its own":  {"read", "idle(value) or tonumber(ARGV[1])", "tonumber(ARGV[1])"},
			"a write sets its own":  {"write", "else\n  ttl = idle(record) or ttl\n", "else\n"},
			"a move sets its own":   {"rotate", "given and idle(record) or given or left", "given or left"},
			"a move is a use":       {"rotate", "given and idle(record) or given", "idle(record) or given"},
			"the first write, too":  {"write", "    ttl = idle(record) or ttl\n", ""},
			"no deadline":           {"write", "absolute > 0 and now + absolute or 0", "0"},
		})
	})
}

// The deadline of another lifetime begins with the move, by the server's clock, and that of a
// session that has owners comes no later than it did.
func TestLifetime_Moved(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		deadline := func(id string) time.Time {
			stored, _ := w.other.raw(id)
			return time.UnixMilli(milli48(stored[offsetDeadline:]))
		}
		id, next := NewID(), NewID()
		began := time.Now().Add(-10 * time.Hour)
		w.plant(id, string(newHeader(7, began.UnixMilli(), began.Add(12*time.Hour).UnixMilli()))+"x", time.Hour)
		_, err := w.Rotate(ctx, id, next, WithLifetime(Lifetime{Absolute: 3 * time.Hour}))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(3*time.Hour), deadline(next), time.Minute)
		r, err := w.BeginRenewal(ctx, next, 0)
		require.NoError(t, err)
		r.Lifetime = &Lifetime{}
		_, err = w.FinishRenewal(ctx, r, id+"1", nil, time.Hour)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(12*time.Hour), deadline(id+"1"), time.Minute)

		id, next = w.other.bound(NewID()), NewID()
		before := deadline(id)
		_, err = w.Rotate(ctx, id, next, WithLifetime(remembered))
		require.NoError(t, err)
		require.Equal(t, before, deadline(next))
		_, err = w.Rotate(ctx, next, next+"1", WithLifetime(Lifetime{Absolute: time.Minute}))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(time.Minute), deadline(next+"1"), 30*time.Second)
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t, WithAbsoluteTimeout(12*time.Hour)) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"a move gives no deadline":   {"write", "if ARGV[8] and (deadline", "if false and (deadline"},
			"a move puts deadlines off":  {"write", "(deadline == 0 or now + ARGV[8] < deadline)", "true"},
			"a move brings none forward": {"write", "(deadline == 0 or now + ARGV[8] < deadline)", "deadline == 0"},
			"a move tells only the TTL":  {"write", "      record = string.sub(record, 1, 16) .. bytes(deadline) .. string.sub(record, 23)\n", ""},
		})
	})
}

// A tombstone outlives what its session could have been, and so does what is known of its owner.
func TestLifetime_OutlivedByItsEnd(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t, WithAbsoluteTimeout(12*time.Hour), WithTombstoneTTL(time.Hour))
		ctx, id, owner := t.Context(), NewID(), NewID()
		w.write(id, "x", time.Minute, Lasting(remembered))
		for name, move := range moves {
			next := NewID()
			_, err := move(ctx, w.RedisStore, id, next)
			require.NoError(t, err, name)
			w.requireTTL(t, id, month+time.Hour)
			w.requireTTL(t, next, month)
			id = next
		}
		require.NoError(t, w.Invalidate(ctx, id))
		w.requireTTL(t, id, month+time.Hour)

		b, err := w.Reserve(ctx, NewID(), w.login(owner), LoginLifetime(remembered))
		require.NoError(t, err)
		require.Equal(t, b.CreatedAt.Add(remembered.Absolute), b.Deadline)
		almost(t, remembered.Absolute+2*time.Hour, w.ownerTTLOf(owner))
		due := w.members(owner)["l"+b.Ref] % (1 << 32)
		require.InDelta(t, b.Deadline.Add(time.Hour).Unix(), due, 1)
	})
}

// A session that is put back lives no longer than by its own idle timeout, although the save by
// mistake was that of a longer one.
func TestLifetime_PutBack(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		id, idle := NewID(), 15*time.Minute
		theirs := string(withItems(newHeader(7, lifeBegan, 0), appendIdle(nil, idle))) + "theirs"
		w.plant(id, theirs, idle)
		s := Session{header: withItems(newHeader(1, lifeBegan, 0), appendIdle(nil, month))}
		_, err := w.Write(w.t.Context(), id, []byte("mine"), time.Hour, Replacing(s))
		require.ErrorIs(t, err, ErrConflict)
		stored, _ := w.other.raw(id)
		require.Equal(t, theirs, stored)
		w.requireTTL(t, id, idle)
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		plain := func(t *testing.T) world { return newWorld(t) }
		check(t, plain(t))
		catches(t, plain, check, map[string]mutant{
			"it lives on": {"restore", "if own and left > own", "if false"},
		})
	})
}

// A renewal is not finished with a header that is none.
func TestLifetime_ForeignHeader(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	good := string(withItems(newHeader(7, lifeBegan, 0), appendIdle(nil, month)))
	for _, header := range []string{good[:headerSize], good[:headerSize+1], good[:headerSize+2], good[:len(good)-1], good + "x"} {
		id, next := NewID(), NewID()
		b.write(id, "x", time.Hour)
		r, err := b.BeginRenewal(t.Context(), id, 0)
		require.NoError(t, err)
		b.do("HSET", b.keyOf(id), "h", header)
		r.Lifetime = &remembered
		_, err = b.FinishRenewal(t.Context(), r, next, nil, time.Hour)
		require.ErrorIs(t, err, errUnexpected)
		require.False(t, b.live(next))
	}
}

// Data that looks like an item is data.
func TestLifetime_NotInData(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redistest.URL(t))
	fake := string(appendIdle(nil, month))
	for _, header := range [][]byte{
		newHeader(7, lifeBegan, 0),
		[]byte("\xc1\x01" + string(newHeader(7, lifeBegan, 0)[2:]) + "\x00\x00"),
		withItems(newHeader(7, lifeBegan, 0), appendItem(nil, 9, []byte("12"))),
	} {
		id := NewID()
		w.plant(id, string(header)+"\x00\x09"+fake, time.Hour)
		s, err := w.Read(t.Context(), id, Slide(2*time.Hour))
		require.NoError(t, err)
		require.Zero(t, s.Idle())
		w.requireTTL(t, id, 2*time.Hour)
		require.NoError(t, w.Touch(t.Context(), id, time.Hour))
		w.requireTTL(t, id, time.Hour)
		w.plant(id, string(header)+fake, time.Hour)
		require.NoError(t, w.Touch(t.Context(), id, 2*time.Hour))
		w.requireTTL(t, id, 2*time.Hour)
	}
}
