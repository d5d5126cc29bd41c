package tombstore

import (
	"context"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// bed is a store with a private prefix, and a client to look behind it.
type bed struct {
	*RedisStore
	t      *testing.T
	client rueidis.Client
}

func newBed(t *testing.T, opts ...Option) *bed {
	t.Helper()
	return bedOn(t, redistest.Client(t), opts...)
}

func bedOn(t *testing.T, client rueidis.Client, opts ...Option) *bed {
	t.Helper()
	s, err := New(client, append([]Option{WithKeyPrefix(redistest.Prefix(t, client))}, opts...)...)
	require.NoError(t, err)
	return &bed{s, t, client}
}

func (b *bed) keyOf(id string) string {
	b.t.Helper()
	key, err := b.key(id)
	require.NoError(b.t, err)
	return key
}

// raw returns the record that the server holds for id, and its TTL. It is empty if there is none.
func (b *bed) raw(id string) (string, time.Duration) {
	b.t.Helper()
	value, err := b.client.Do(b.t.Context(), b.client.B().Get().Key(b.keyOf(id)).Build()).ToString()
	if rueidis.IsRedisNil(err) {
		return "", 0
	}
	require.NoError(b.t, err)
	return value, b.ttl(id)
}

// dump returns what the server holds for id, of whatever type, and its TTL.
func (b *bed) dump(id string) (string, time.Duration) {
	b.t.Helper()
	value, err := b.do("DUMP", b.keyOf(id)).ToString()
	if rueidis.IsRedisNil(err) {
		return "", 0
	}
	require.NoError(b.t, err)
	return value, b.ttl(id)
}

// ttl returns the TTL of what the server holds for id.
func (b *bed) ttl(id string) time.Duration {
	b.t.Helper()
	ttl, err := b.do("PTTL", b.keyOf(id)).AsInt64()
	require.NoError(b.t, err)
	return time.Duration(ttl) * time.Millisecond
}

// do runs a command that must succeed.
func (b *bed) do(command ...string) rueidis.RedisResult {
	b.t.Helper()
	res := b.client.Do(b.t.Context(), b.client.B().Arbitrary(command...).Build())
	if err := res.Error(); !rueidis.IsRedisNil(err) {
		require.NoError(b.t, err)
	}
	return res
}

func (b *bed) write(id, data string, ttl time.Duration, opts ...WriteOption) Session {
	b.t.Helper()
	s, err := b.Write(b.t.Context(), id, []byte(data), ttl, opts...)
	require.NoError(b.t, err)
	return s
}

// headOf returns the first bytes of a record that a store writes, up to and including the version.
func headOf(v Version) string { return "\xc1\x00" + v.bytes() }

// tombstone returns the fields of the tombstone of id, and its TTL.
func (b *bed) tombstone(id string) (map[string]string, time.Duration) {
	b.t.Helper()
	fields, err := b.do("HGETALL", b.keyOf(id)).AsStrMap()
	require.NoError(b.t, err)
	return fields, b.ttl(id)
}

func (b *bed) requireTombstone(id string, reason Reason) time.Duration {
	b.t.Helper()
	fields, ttl := b.tombstone(id)
	require.Len(b.t, fields["t"], endSize)
	require.Equal(b.t, []byte{kindTombstone, 0, byte(reason)}, []byte(fields["t"][:3]))
	return ttl
}

// almost checks a TTL that was want a moment ago.
func almost(t *testing.T, want, got time.Duration) {
	t.Helper()
	require.LessOrEqual(t, got, want)
	require.Greater(t, got, want-30*time.Second)
}

func TestWrite_StoresRecord(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithAbsoluteTimeout(time.Hour))
	id := NewID()
	s := b.write(id, "data", time.Minute)

	value, ttl := b.raw(id)
	almost(t, time.Minute, ttl)
	require.Len(t, value, headerSize+4)
	require.Equal(t, "\xc1\x00", value[:2])
	require.EqualValues(t, s.Version, binary.BigEndian.Uint64([]byte(value[2:])))
	require.Equal(t, s.CreatedAt.UnixMilli(), milli48(value[10:]))
	require.Equal(t, s.CreatedAt.Add(time.Hour).UnixMilli(), milli48(value[16:]))
	require.Equal(t, "data", value[22:])

	now, err := b.do("TIME").AsStrSlice()
	require.NoError(t, err)
	seconds, err := time.ParseDuration(now[0] + "s")
	require.NoError(t, err)
	require.InDelta(t, seconds.Milliseconds(), s.CreatedAt.UnixMilli(), 10_000)

	again := b.write(id, "more", time.Minute)
	after, _ := b.raw(id)
	require.NotEqual(t, s.Version, again.Version)
	require.Equal(t, value[10:22], after[10:22], "creation time and deadline stay")
}

func TestSession_Deadline(t *testing.T) {
	t.Parallel()
	memory, err := NewMemory(WithAbsoluteTimeout(time.Hour))
	require.NoError(t, err)
	for name, s := range map[string]Store{"server": newBed(t, WithAbsoluteTimeout(time.Hour)).RedisStore, "memory": memory} {
		t.Run(name, func(t *testing.T) {
			id, next := NewID(), NewID()
			first, err := s.Write(t.Context(), id, []byte("x"), time.Minute)
			require.NoError(t, err)
			deadline := first.CreatedAt.Add(time.Hour)
			saved, err := s.Write(t.Context(), id, []byte("y"), time.Minute, Replacing(first))
			require.NoError(t, err)
			read, err := s.Read(t.Context(), id)
			require.NoError(t, err)
			moved, err := s.Rotate(t.Context(), id, next)
			require.NoError(t, err)
			for _, s := range []Session{first, saved, read, moved} {
				require.True(t, deadline.Equal(s.Deadline()))
			}
		})
	}
	none := newBed(t).write(NewID(), "x", time.Minute)
	require.Zero(t, none.Deadline())
	require.Zero(t, Session{}.Deadline())
}

func TestWrite_KeyIsDigest(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	id := NewID()
	b.write(id, "data", time.Minute)
	keys := redistest.Keys(t.Context(), b.client, b.prefix)
	require.Len(t, keys, 1)
	require.Len(t, keys[0], len(b.prefix)+22)
	require.NotContains(t, keys[0], id)

	plain := newBed(t, WithPlainIDs())
	plain.write("an id", "data", time.Minute)
	require.Equal(t, []string{plain.prefix + "an id"}, redistest.Keys(t.Context(), plain.client, plain.prefix))
}

func TestWrite_RefusedChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	id, dead := NewID(), NewID()
	b.write(id, "data", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), dead))
	before, _ := b.raw(id)
	tombstone, _ := b.dump(dead)

	_, err := b.Write(t.Context(), id, []byte("x"), time.Minute, IfAbsent())
	require.ErrorIs(t, err, ErrConflict)
	_, err = b.Write(t.Context(), id, []byte("x"), time.Minute, IfVersion(1))
	require.ErrorIs(t, err, ErrConflict)
	_, err = b.Write(t.Context(), dead, []byte("x"), time.Minute)
	require.ErrorIs(t, err, ErrInvalidated)

	after, ttl := b.raw(id)
	require.Equal(t, before, after)
	almost(t, time.Hour, ttl)
	after, ttl = b.dump(dead)
	require.Equal(t, tombstone, after)
	almost(t, 24*time.Hour, ttl)
}

func TestAbsoluteTimeout(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithAbsoluteTimeout(time.Hour), WithTouchThreshold(0))
	ttlOf := func(id string) time.Duration {
		_, ttl := b.raw(id)
		return ttl
	}

	id := NewID()
	b.write(id, "x", 2*time.Hour)
	almost(t, time.Hour, ttlOf(id))
	b.write(id, "x", time.Minute)
	almost(t, time.Minute, ttlOf(id))
	b.write(id, "x", 2*time.Hour)
	almost(t, time.Hour, ttlOf(id))
	b.write(id, "x", time.Minute)
	require.NoError(t, b.Touch(t.Context(), id, 2*time.Hour))
	almost(t, time.Hour, ttlOf(id))
	b.write(id, "x", time.Minute)
	_, err := b.Read(t.Context(), id, Slide(2*time.Hour))
	require.NoError(t, err)
	almost(t, time.Hour, ttlOf(id))
	next := NewID()
	_, err = b.Rotate(t.Context(), id, next, WithData([]byte("x"), 2*time.Hour))
	require.NoError(t, err)
	almost(t, time.Hour, ttlOf(next))
}

// A record can be past its deadline and still be there, when the clock of a promoted replica is
// behind.
func TestAbsoluteTimeout_PastDeadlineIsAbsent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	id := NewID()
	plant := func() {
		record := headOf(newVersion()) + "\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x02" + "data"
		b.do("SET", b.keyOf(id), record, "PX", "3600000")
	}
	plant()
	for verb, err := range everyLiveVerb(b, id) {
		require.ErrorIs(t, err, ErrNotFound, verb)
	}
	require.ErrorIs(t, b.Invalidate(t.Context(), id, IfLive()), ErrNotFound)
	exists, err := b.Exists(t.Context(), id)
	require.NoError(t, err)
	require.False(t, exists)
	s := b.write(id, "new", time.Minute)
	require.WithinDuration(t, time.Now(), s.CreatedAt, time.Hour)

	plant()
	require.NoError(t, b.Invalidate(t.Context(), id))
	b.requireTombstone(id, Logout)
}

// everyLiveVerb calls every method that wants a live session.
func everyLiveVerb(b *bed, id string) map[string]error {
	errs := map[string]error{}
	ctx := b.t.Context()
	_, errs["Read"] = b.Read(ctx, id)
	_, errs["Read Slide"] = b.Read(ctx, id, Slide(time.Minute))
	_, errs["Write IfPresent"] = b.Write(ctx, id, nil, time.Minute, IfPresent())
	_, errs["Write IfVersion"] = b.Write(ctx, id, nil, time.Minute, IfVersion(1))
	_, errs["Write Replacing"] = b.Write(ctx, id, nil, time.Minute, Replacing(Session{}))
	errs["Touch"] = b.Touch(ctx, id, time.Minute)
	_, errs["Rotate"] = b.Rotate(ctx, id, NewID())
	_, errs["BeginRenewal"] = b.BeginRenewal(ctx, id, 0)
	return errs
}

func TestTouch_WritesOnlyWhatMatters(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	b := bedOn(t, client)
	changes := func() string { return redistest.Info(t, client, "rdb_changes_since_last_save") }
	id := NewID()
	b.write(id, "x", time.Hour)
	slide := func(ttl time.Duration) {
		_, err := b.Read(t.Context(), id, Slide(ttl))
		require.NoError(t, err)
	}

	before := changes()
	require.NoError(t, b.Touch(t.Context(), id, time.Hour))
	require.NoError(t, b.Touch(t.Context(), id, 63*time.Minute))
	slide(time.Hour)
	slide(57 * time.Minute)
	require.Equal(t, before, changes(), "a TTL that is off by less than a tenth is left alone")
	_, ttl := b.raw(id)
	almost(t, time.Hour, ttl)

	require.NoError(t, b.Touch(t.Context(), id, 70*time.Minute))
	require.NotEqual(t, before, changes())
	_, ttl = b.raw(id)
	almost(t, 70*time.Minute, ttl)
	slide(30 * time.Minute)
	_, ttl = b.raw(id)
	almost(t, 30*time.Minute, ttl)

	require.NoError(t, b.Invalidate(t.Context(), id))
	before = changes()
	require.ErrorIs(t, b.Touch(t.Context(), id, time.Minute), ErrInvalidated)
	_, err := b.Read(t.Context(), id, Slide(time.Minute))
	require.ErrorIs(t, err, ErrInvalidated)
	require.Equal(t, before, changes(), "a tombstone is never touched")

	eager := bedOn(t, client, WithTouchThreshold(0))
	eager.write(id, "x", time.Hour)
	before = changes()
	require.NoError(t, eager.Touch(t.Context(), id, time.Hour))
	require.NotEqual(t, before, changes())
}

func TestInvalidate_Tombstone(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithTombstoneTTL(2*time.Hour))
	live, absent := NewID(), NewID()
	b.write(live, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), live, WithReason(Revoked)))
	almost(t, 3*time.Hour, b.requireTombstone(live, Revoked))
	require.NoError(t, b.Invalidate(t.Context(), absent))
	almost(t, 2*time.Hour, b.requireTombstone(absent, Logout))

	first, _ := b.tombstone(live)
	require.NoError(t, b.Invalidate(t.Context(), live))
	again, ttl := b.tombstone(live)
	require.Equal(t, first, again)
	require.Len(t, again, 1, "nothing but the end")
	almost(t, 3*time.Hour, ttl)
	b.do("PEXPIRE", b.keyOf(live), "1000")
	require.NoError(t, b.Invalidate(t.Context(), live))
	almost(t, 2*time.Hour, b.requireTombstone(live, Revoked))
}

// A WAIT behind a script that wrote nothing is acknowledged at once, so a repeated Invalidate must
// write.
func TestInvalidate_AgainIsReplicated(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	b := bedOn(t, client)
	id := NewID()
	require.NoError(t, b.Invalidate(t.Context(), id))
	before := redistest.Info(t, client, "rdb_changes_since_last_save")
	require.NoError(t, b.Invalidate(t.Context(), id))
	require.NotEqual(t, before, redistest.Info(t, client, "rdb_changes_since_last_save"))
}

func TestRotate_Stored(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		url  func(t *testing.T) string
	}{
		{"standalone", func(t *testing.T) string { return redistest.URL(t) }},
		{"cluster", func(t *testing.T) string { return redistest.ClusterURL(t) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := bedOn(t, redistest.Dial(t, c.url(t)), WithAbsoluteTimeout(24*time.Hour))
			old, id := NewID(), NewID()
			b.write(old, "data", time.Hour)
			before, _ := b.raw(old)
			s, err := b.Rotate(t.Context(), old, id)
			require.NoError(t, err)
			almost(t, 25*time.Hour, b.requireTombstone(old, Rotated))
			after, ttl := b.raw(id)
			almost(t, time.Hour, ttl)
			require.Equal(t, headOf(s.Version)+before[10:], after)
		})
	}
}

func TestForeignValues(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	end := canaryEnd(Logout)
	record := headOf(newVersion()) + strings.Repeat("\x00", 12) + "data"
	items := record[:1] + "\x01" + record[2:headerSize]
	for name, command := range map[string][]string{
		"text":                {"SET", "hello, I am a session of another library"},
		"short text":          {"SET", "x"},
		"empty":               {"SET", ""},
		"hash":                {"HSET", "user", "1"},
		"list":                {"RPUSH", "user"},
		"set":                 {"SADD", "t"},
		"tombstone cut":       {"HSET", "t", end[:8]},
		"tombstone, kind":     {"HSET", "t", "\xc1" + end[1:]},
		"tombstone, bit 7":    {"HSET", "t", "\xc0\x80" + end[2:]},
		"tombstone, a string": {"SET", end},
		"record cut":          {"SET", record[:headerSize-1]},
		"record, bit 7":       {"SET", "\xc1\x80" + record[2:]},
		"items cut":           {"SET", items + "\x00\x05abcd"},
		"length of items cut": {"SET", items + "\x00"},
		"unknown kind":        {"SET", "\xc2" + record[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			key := b.keyOf(id)
			b.do(append([]string{command[0], key}, command[1:]...)...)
			dump, _ := b.dump(id)

			errs := everyLiveVerb(b, id)
			_, errs["Write"] = b.Write(t.Context(), id, []byte("x"), time.Minute)
			_, errs["Write IfAbsent"] = b.Write(t.Context(), id, []byte("x"), time.Minute, IfAbsent())
			errs["Invalidate"] = b.Invalidate(t.Context(), id)
			errs["Invalidate IfLive"] = b.Invalidate(t.Context(), id, IfLive())
			_, errs["Exists"] = b.Exists(t.Context(), id)
			if strings.Contains(name, "items") { // of which these two read nothing
				delete(errs, "Exists")
				delete(errs, "Touch")
				b.do("PERSIST", key)
			}
			if name == "empty" { // GETRANGE cannot tell it from an absent key, and nobody's data is lost
				return
			}
			for verb, err := range errs {
				require.ErrorIs(t, err, ErrCorrupt, verb)
				require.NotErrorIs(t, err, ErrUnknownOutcome, verb)
				require.NotErrorIs(t, err, ErrNotInvalidated, verb)
			}
			after, _ := b.dump(id)
			require.Equal(t, dump, after, "untouched")
			require.Negative(t, b.ttl(id))
		})
	}
}

// untouchable panics when it is used.
type untouchable struct{ rueidis.Client }

func TestBadInput_NothingSent(t *testing.T) {
	t.Parallel()
	s, err := New(untouchable{}, WithMaxDataSize(10))
	require.NoError(t, err)
	ctx, id, long := t.Context(), NewID(), strings.Repeat("x", 2048)
	for _, bad := range []string{"", long} {
		_, err = s.Read(ctx, bad)
		require.ErrorIs(t, err, ErrInvalidID)
		_, err = s.Write(ctx, bad, nil, time.Minute)
		require.ErrorIs(t, err, ErrInvalidID)
		require.ErrorIs(t, s.Touch(ctx, bad, time.Minute), ErrInvalidID)
		_, err = s.Rotate(ctx, bad, id)
		require.ErrorIs(t, err, ErrInvalidID)
		_, err = s.Rotate(ctx, id, bad)
		require.ErrorIs(t, err, ErrInvalidID)
		require.ErrorIs(t, s.Invalidate(ctx, bad), ErrInvalidID)
		_, err = s.Exists(ctx, bad)
		require.ErrorIs(t, err, ErrInvalidID)
	}
	_, err = s.Rotate(ctx, id, id)
	require.ErrorIs(t, err, ErrInvalidID)

	_, err = s.Write(ctx, id, nil, 0)
	require.ErrorIs(t, err, ErrInvalidTTL)
	require.ErrorIs(t, s.Touch(ctx, id, -1), ErrInvalidTTL)
	_, err = s.Read(ctx, id, Slide(0))
	require.ErrorIs(t, err, ErrInvalidTTL)

	_, err = s.Write(ctx, id, []byte(long), time.Minute)
	require.ErrorIs(t, err, ErrTooLarge)
	require.EqualError(t, err, "tombstore: write: session data too large: 2048 bytes, at most 10")
	_, err = s.Rotate(ctx, id, NewID(), WithData([]byte(long), time.Minute))
	require.ErrorIs(t, err, ErrTooLarge)

	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Write(ended, id, nil, time.Minute)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrUnknownOutcome)

	memory, err := NewMemory(WithMaxDataSize(10))
	require.NoError(t, err)
	_, err = memory.Write(ctx, id, []byte(long), time.Minute)
	require.ErrorIs(t, err, ErrTooLarge)
}

// Each verb takes as many trips as its comment says.
func TestTripsOfEachVerb(t *testing.T) {
	t.Parallel()
	renewing := func(t *testing.T, b *bed, id string) Renewal {
		r, err := b.BeginRenewal(t.Context(), id, 0)
		require.NoError(t, err)
		return r
	}
	type verb func(t *testing.T, b *bed, id string)
	read := func(opts ...ReadOption) verb {
		return func(t *testing.T, b *bed, id string) { _, _ = b.Read(t.Context(), id, opts...) }
	}
	write := func(opts ...WriteOption) verb {
		return func(t *testing.T, b *bed, id string) { _, _ = b.Write(t.Context(), id, nil, time.Hour, opts...) }
	}
	replace := func(t *testing.T, b *bed, id string) {
		s := Session{header: newHeader(1, time.Now().UnixMilli(), 0)}
		_, _ = b.Write(t.Context(), id, nil, time.Hour, Replacing(s))
	}
	rotate := func(opts ...RotateOption) verb {
		return func(t *testing.T, b *bed, id string) { _, _ = b.Rotate(t.Context(), id, NewID(), opts...) }
	}
	invalidate := func(t *testing.T, b *bed, id string) { _ = b.Invalidate(t.Context(), id) }
	exists := func(t *testing.T, b *bed, id string) { _, _ = b.Exists(t.Context(), id) }
	touch := func(t *testing.T, b *bed, id string) { _ = b.Touch(t.Context(), id, time.Hour) }
	begin := func(t *testing.T, b *bed, id string) { _, _ = b.BeginRenewal(t.Context(), id, 0) }

	cluster := redistest.ClusterURL(t)
	for _, c := range []struct {
		where, name         string
		verb                verb
		live, absent, ended string // a trip a word
	}{
		{"", "Read", read(), "GET", "GET", "GET read"},
		{"", "Read WithExpiry", read(WithExpiry()), "GET+PTTL", "GET+PTTL", "GET+PTTL read"},
		{"", "Read Slide within the threshold", read(Slide(time.Hour)), "GET+PTTL", "GET+PTTL", "GET+PTTL read"},
		{"", "Read Slide", read(Slide(time.Minute)), "GET+PTTL read", "GET+PTTL", "GET+PTTL read"},
		{"", "Exists", exists, "GETRANGE", "GETRANGE", "GETRANGE read"},
		{"", "Write", write(), "write", "write", "write"},
		{"", "Write IfAbsent", write(IfAbsent()), "write", "write", "write"},
		{"", "Write IfPresent", write(IfPresent()), "write", "write", "write"},
		{"", "Write IfVersion", write(IfVersion(1)), "write", "write", "write"},
		{"", "Write Replacing", replace, "SET", "SET", "SET write"},
		{"", "Touch", touch, "touch", "touch", "touch"},
		{"", "Invalidate", invalidate, "invalidate", "invalidate", "invalidate"},
		{"", "Rotate", rotate(), "rotate GET", "rotate", "rotate"},
		{"", "Rotate WithData", rotate(WithData(nil, time.Hour)), "rotate", "rotate", "rotate"},
		{"", "BeginRenewal", begin, "invalidate", "invalidate", "invalidate"},
		{"strict", "Read", read(), "GETEX", "GETEX", "GETEX read"},
		{"strict", "Read WithExpiry", read(WithExpiry()), "GETEX+PTTL", "GETEX+PTTL", "GETEX+PTTL read"},
		{"strict", "Read Slide", read(Slide(time.Minute)), "GETEX+PTTL read GETEX", "GETEX+PTTL", "GETEX+PTTL read"},
		{"strict", "Exists", exists, "GETEX", "GETEX", "GETEX read"},
		{"cluster", "Rotate", rotate(), "EXISTS rotate write", "EXISTS rotate", "EXISTS rotate"},
	} {
		t.Run(strings.TrimSpace(c.where+" "+c.name), func(t *testing.T) {
			t.Parallel()
			var client *tap
			var opts []Option
			switch c.where {
			case "cluster":
				client = newTap(redistest.Dial(t, cluster))
			case "strict":
				client, opts = newTap(redistest.Client(t)), []Option{WithStrictReads()}
			default:
				client = newTap(redistest.Client(t))
			}
			b := bedOn(t, client, opts...)
			loadScripts(t, b)
			live, absent, ended := NewID(), NewID(), NewID()
			b.write(live, "x", time.Hour)
			require.NoError(t, b.Invalidate(t.Context(), ended))
			for _, at := range []struct{ id, trips string }{{live, c.live}, {absent, c.absent}, {ended, c.ended}} {
				require.Equal(t, at.trips, client.tripsOf(func() { c.verb(t, b, at.id) }))
			}
		})
	}
	t.Run("through moves", func(t *testing.T) {
		t.Parallel()
		client := newTap(redistest.Client(t))
		b := bedOn(t, client)
		loadScripts(t, b)
		id, next, last := NewID(), NewID(), NewID()
		b.write(id, "x", time.Hour)
		rotate := func(from, to string) {
			_, err := b.Rotate(t.Context(), from, to)
			require.NoError(t, err)
		}
		rotate(id, next)
		rotate(next, last)
		require.Equal(t, "invalidate invalidate invalidate", client.tripsOf(func() { invalidate(t, b, id) }))
		require.Equal(t, "invalidate", client.tripsOf(func() {
			require.NoError(t, b.Invalidate(t.Context(), id, Alone()))
		}))

		id, next = NewID(), NewID()
		b.write(id, "x", time.Hour)
		r := renewing(t, b, id)
		require.Equal(t, "EXISTS link write", client.tripsOf(func() {
			_, err := b.FinishRenewal(t.Context(), r, next, nil, time.Hour)
			require.NoError(t, err)
		}))
		r = renewing(t, b, next)
		require.Equal(t, "link", client.tripsOf(func() { require.NoError(t, b.CancelRenewal(t.Context(), r)) }))
	})
}

// loadScripts makes the server know all scripts.
func loadScripts(t *testing.T, b *bed) {
	t.Helper()
	for _, s := range scripts {
		require.NoError(t, b.client.Do(t.Context(), b.client.B().ScriptLoad().Script(s.source).Build()).Error())
	}
	b.refusesByType(t.Context())
}

// tap is a client that notes every command, and lets a test come in between.
type tap struct {
	rueidis.Client
	*tapLog
	// before is called with each command that is about to be sent, and after with each that was. An
	// error of theirs is the answer.
	before, after func(words []string) error
	// change is what is sent in place of a command.
	change func(words []string) []string
}

// tapLog is what taps of one client, and of its nodes, have noted.
type tapLog struct {
	mu       sync.Mutex
	trips    []string
	commands [][]string
}

func newTap(client rueidis.Client) *tap { return &tap{Client: client, tapLog: &tapLog{}} }

// nameOf returns the name of a command, or of the script that it runs.
func nameOf(words []string) string {
	if strings.HasPrefix(words[0], "EVAL") && len(words) > 1 {
		for name, s := range scripts {
			if words[1] == s.sha1 || words[1] == s.source {
				return name
			}
		}
	}
	return words[0]
}

func (l *tapLog) note(trip ...[]string) {
	var names []string
	for _, words := range trip {
		names = append(names, nameOf(words))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trips = append(l.trips, strings.Join(names, "+"))
	l.commands = append(l.commands, trip...)
}

// tripsOf returns the names of what do sends.
func (l *tapLog) tripsOf(do func()) string {
	l.mu.Lock()
	n := len(l.trips)
	l.mu.Unlock()
	do()
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.trips[n:], " ")
}

// sent returns all commands so far.
func (l *tapLog) sent() [][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.commands)
}

// forget drops what was noted.
func (l *tapLog) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trips, l.commands = nil, nil
}

func (c *tap) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := slices.Clone(cmd.Commands()) // it is used again once it was sent
	if c.change != nil {
		if changed := c.change(words); changed != nil {
			words, cmd = changed, c.Client.B().Arbitrary(changed...).Build()
		}
	}
	c.note(words)
	if c.before != nil {
		if err := c.before(words); err != nil {
			return rueidis.NewErrorResult(err)
		}
	}
	res := c.Client.Do(ctx, cmd)
	if c.after != nil {
		if err := c.after(words); err != nil {
			return rueidis.NewErrorResult(err)
		}
	}
	return res
}

func (c *tap) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	var trip [][]string
	for i, cmd := range multi {
		words := slices.Clone(cmd.Commands())
		if c.change != nil {
			if changed := c.change(words); changed != nil {
				words, multi[i] = changed, c.Client.B().Arbitrary(changed...).Build()
			}
		}
		trip = append(trip, words)
	}
	c.note(trip...)
	failed := func(hook func([]string) error) (results []rueidis.RedisResult) {
		for _, words := range trip {
			if hook == nil {
				break
			}
			if err := hook(words); err != nil {
				return slices.Repeat([]rueidis.RedisResult{rueidis.NewErrorResult(err)}, len(trip))
			}
		}
		return nil
	}
	if results := failed(c.before); results != nil {
		return results
	}
	results := c.Client.DoMulti(ctx, multi...)
	if lost := failed(c.after); lost != nil {
		return lost
	}
	return results
}

func (c *tap) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	c.note(slices.Clone(cmd.Commands()))
	return c.Client.DoCache(ctx, cmd, ttl)
}

func (c *tap) Nodes() map[string]rueidis.Client {
	nodes := c.Client.Nodes()
	for name, node := range nodes {
		nodes[name] = &tap{node, c.tapLog, c.before, c.after, c.change}
	}
	return nodes
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, opt := range map[string]Option{
		"key prefix":         WithKeyPrefix(""),
		"timeout":            WithTimeout(0),
		"tombstone TTL":      WithTombstoneTTL(time.Millisecond),
		"absolute timeout":   WithAbsoluteTimeout(-1),
		"maximum data size":  WithMaxDataSize(0),
		"touch threshold":    WithTouchThreshold(1),
		"number of replica":  WithReplicaAcks(-1, time.Second),
		"timeout of":         WithReplicaAcks(1, 0),
		"maximum age":        WithClientCache(-1),
		"number of sessions": WithMaxSessions(-1, Refuse),
		"WithMaxSessions":    WithMaxSessions(1, 0),
		"exclude each":       func(c *config) { WithClientCache(time.Second)(c); WithStrictReads()(c) },
	} {
		_, err := New(untouchable{}, opt)
		require.ErrorContains(t, err, name)
		_, err = NewMemory(opt)
		require.ErrorContains(t, err, name)
		_, err = Open("redis://127.0.0.1:1", opt)
		require.ErrorContains(t, err, name)
	}
	_, err := New(nil)
	require.ErrorContains(t, err, "client is nil")
}

func TestOpen(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s, err := Open(redistest.URL(t), WithKeyPrefix(b.prefix))
	require.NoError(t, err)
	id := NewID()
	_, err = s.Write(t.Context(), id, []byte("x"), time.Minute)
	require.NoError(t, err)
	value, _ := b.raw(id)
	require.Equal(t, "x", value[headerSize:])
	s.Close()
	_, err = s.Read(t.Context(), id)
	require.ErrorIs(t, err, rueidis.ErrClosing)
	require.NotErrorIs(t, err, ErrNotFound)

	b.Close() // the client is not the store's
	_, err = b.Read(t.Context(), id)
	require.NoError(t, err)

	_, err = Open("redis://:secret@127.0.0.1:1:2/x")
	require.ErrorContains(t, err, "tombstore: open")
	require.NotContains(t, err.Error(), "secret")
}

func TestNewID(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		assert.Len(t, id, 43)
		assert.Empty(t, strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
		assert.False(t, seen[id])
		seen[id] = true
	}
}

func TestReason_String(t *testing.T) {
	t.Parallel()
	require.Equal(t, "logout", Logout.String())
	require.Equal(t, "rotated", Rotated.String())
	require.Equal(t, "revoked", Revoked.String())
	require.Equal(t, "reason 9", Reason(9).String())
}
