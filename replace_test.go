package tombstore

import (
	"fmt"
	"math"
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

// sessionOf is a session as a store gave it out earlier, when its header was this.
func sessionOf(t *testing.T, header []byte) Session {
	t.Helper()
	s, err := parse(slices.Clone(header))
	require.NoError(t, err)
	return s
}

// plant stores a value under id. A TTL of 0 is none.
func (b *bed) plant(id, value string, ttl time.Duration) {
	b.t.Helper()
	command := []string{"SET", b.keyOf(id), value}
	if ttl > 0 {
		command = append(command, "PX", decimal(ttl.Milliseconds()))
	}
	b.do(command...)
}

// isNative reports whether a command is a write that the server refuses for an ended session.
func isNative(words []string) bool {
	return words[0] == "SET" && slices.Contains(words, "XX") && slices.Contains(words, "GET")
}

func (b *bed) replace(id, data string, ttl time.Duration, s Session) (Session, error) {
	return b.Write(b.t.Context(), id, []byte(data), ttl, Replacing(s))
}

func TestReplacing_Stored(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client, WithAbsoluteTimeout(24*time.Hour))
	loadScripts(t, b)
	id := NewID()
	first := b.write(id, "1", time.Hour)
	before, _ := b.raw(id)
	var second Session
	require.Equal(t, "SET", client.tripsOf(func() {
		var err error
		second, err = b.replace(id, "2", 2*time.Hour, first)
		require.NoError(t, err)
	}))
	value, ttl := b.raw(id)
	almost(t, 2*time.Hour, ttl)
	require.Equal(t, headOf(second.Version)+before[10:headerSize]+"2", value)
	require.NotEqual(t, first.Version, second.Version)
	require.Equal(t, first.CreatedAt, second.CreatedAt)
	require.Equal(t, "2", string(second.Data))

	b.write(id, "theirs", time.Hour)
	third, err := b.replace(id, "3", time.Hour, first)
	require.NoError(t, err, "of two who save one session the later wins")
	value, _ = b.raw(id)
	require.Equal(t, headOf(third.Version)+before[10:headerSize]+"3", value)

	// Whoever gave the session out, it can be replaced.
	read, err := b.Read(t.Context(), id)
	require.NoError(t, err)
	next := NewID()
	moved, err := b.Rotate(t.Context(), id, next)
	require.NoError(t, err)
	renewal, err := b.BeginRenewal(t.Context(), next, 0)
	require.NoError(t, err)
	last := NewID()
	renewed, err := b.FinishRenewal(t.Context(), renewal, last, []byte("4"), time.Hour)
	require.NoError(t, err)
	for _, s := range []Session{read, moved, renewed, second} {
		require.Equal(t, "SET", client.tripsOf(func() {
			_, err := b.replace(last, "5", time.Hour, s)
			require.NoError(t, err)
		}))
		value, _ = b.raw(last)
		require.Equal(t, before[10:headerSize]+"5", value[10:])
	}
}

// met is what a native write meets under the key of a session that was created at 2000000000000.
type met struct {
	plant func(b *bed, id string)
	err   error // nil: it is replaced
	lost  error // if it is another one after an attempt whose reply was lost
}

const lifeBegan = 2_000_000_000_000 // ms

// whatSaversMeet has one case for each answer of the server.
func whatSaversMeet() map[string]met {
	value := func(v string) func(b *bed, id string) {
		return func(b *bed, id string) { b.plant(id, v, time.Hour) }
	}
	command := func(words ...string) func(b *bed, id string) {
		return func(b *bed, id string) {
			b.do(append([]string{words[0], b.keyOf(id)}, words[1:]...)...)
			b.do("PEXPIRE", b.keyOf(id), "3600000")
		}
	}
	record := func(created, deadline int64) string { return string(newHeader(7, created, deadline)) + "theirs" }
	rest := record(lifeBegan-1, 0)[2:]
	ended := func(opts ...InvalidateOption) func(b *bed, id string) {
		return func(b *bed, id string) { require.NoError(b.t, b.Invalidate(b.t.Context(), id, opts...)) }
	}
	return map[string]met{
		"nothing":                 {plant: func(*bed, string) {}, err: ErrNotFound, lost: ErrUnknownOutcome},
		"the session":             {plant: value(record(lifeBegan, 0))},
		"an earlier one":          {plant: value(record(lifeBegan-1, 0))},
		"a later one":             {plant: value(record(lifeBegan+1, 0)), err: ErrConflict},
		"one of another deadline": {plant: value(record(lifeBegan, lifeBegan+1)), err: ErrConflict},
		"one of other flags":      {plant: value("\xc1\x02" + record(lifeBegan, 0)[2:]), err: ErrConflict},
		"its tombstone":           {plant: ended(WithReason(Revoked)), err: ErrInvalidated},
		"a rotated one":           {plant: ended(WithReason(Rotated)), err: ErrInvalidated},
		"text":                    {plant: value("of another program"), err: ErrCorrupt},
		"binary":                  {plant: value(strings.Repeat("\x00", headerSize-1) + "\x01"), err: ErrCorrupt},
		"nothing but a string":    {plant: value(""), err: ErrCorrupt},
		"another kind":            {plant: value("\xc2" + record(lifeBegan-1, 0)[1:]), err: ErrCorrupt},
		"bit 7":                   {plant: value("\xc1\x80" + rest), err: ErrCorrupt},
		"a record cut short":      {plant: value(record(lifeBegan-1, 0)[:headerSize-1]), err: ErrCorrupt},
		"items cut short":         {plant: value("\xc1\x01" + rest[:headerSize-2] + "\xff\xff"), err: ErrCorrupt},
		"a foreign hash":          {plant: command("HSET", "user", "1"), err: ErrCorrupt},
		"a foreign tombstone":     {plant: command("HSET", "t", "\xc0\x80"+canaryEnd(Logout)[2:]), err: ErrCorrupt},
		"a list":                  {plant: command("RPUSH", "user"), err: ErrCorrupt},
	}
}

// checkSave saves over what c plants, and checks the answer and what is stored then.
func checkSave(t require.TestingT, b *bed, c met) {
	id := NewID()
	c.plant(b, id)
	before, ttl := b.dump(id)
	s := Session{header: newHeader(1, lifeBegan, 0)}
	saved, err := b.Write(b.t.Context(), id, []byte("mine"), 2*time.Hour, Replacing(s))
	after, left := b.dump(id)
	if c.err == nil {
		assert.NoError(t, err)
		value, _ := b.raw(id)
		assert.Equal(t, string(recordOf(s.header, saved.Version, []byte("mine"))), value)
		assert.Greater(t, left, time.Hour)
		return
	}
	assert.ErrorIs(t, err, c.err)
	for _, other := range []error{ErrNotFound, ErrConflict, ErrCorrupt, ErrInvalidated, ErrUnknownOutcome} {
		if other != c.err {
			assert.NotErrorIs(t, err, other)
		}
	}
	assert.Zero(t, saved)
	assert.Equal(t, before, after, "it stands as before")
	if kind, _ := b.do("TYPE", b.keyOf(id)).ToString(); kind != "string" {
		assert.LessOrEqual(t, left, ttl, "and expires as before")
	}
}

func TestReplacing_WhatItMeets(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	loadScripts(t, b)
	for name, c := range whatSaversMeet() {
		t.Run(name, func(t *testing.T) {
			trips := client.tripsOf(func() { checkSave(t, b, c) })
			require.Contains(t, strings.Fields(trips), "SET")
		})
	}

	// The script answers like the command that it stands in for.
	scripted := bedOn(t, redistest.Client(t), WithKeyPrefix(b.prefix))
	scripted.native.again.Store(math.MaxInt64)
	for _, name := range []string{
		"nothing", "the session", "its tombstone", "a rotated one", "text", "another kind", "bit 7", "a list",
	} {
		t.Run("by script: "+name, func(t *testing.T) { checkSave(t, scripted, whatSaversMeet()[name]) })
	}
}

// The case of each answer finds a store that takes it for another one.
func TestReplacing_WhatItMeets_Catches(t *testing.T) {
	t.Parallel()
	without := func(word string) func([]string) []string {
		return func(words []string) []string {
			if !isNative(words) {
				return nil
			}
			return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == word })
		}
	}
	for name, broken := range map[string]struct {
		change func(words []string) []string
		cases  []string
	}{
		"SET without GET": {without("GET"), []string{
			"its tombstone", "a rotated one", "a foreign hash", "a list", "text", "a later one",
		}},
		"SET without XX": {without("XX"), []string{"nothing"}},
		"no restore.lua": {func(words []string) []string {
			if nameOf(words) == "restore" {
				return []string{"ECHO", "D"}
			}
			return nil
		}, []string{"a later one", "one of another deadline", "text", "another kind", "bit 7", "a record cut short"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newTap(redistest.Client(t))
			b := bedOn(t, client)
			loadScripts(t, b)
			client.change = broken.change
			for _, c := range broken.cases {
				require.True(t, fails(t, func(t require.TestingT) { checkSave(t, b, whatSaversMeet()[c]) }), c)
			}
		})
	}
}

// fails reports whether a check fails, and logs how.
func fails(t *testing.T, check func(t require.TestingT)) bool {
	f := new(failure)
	func() {
		defer func() {
			if r := recover(); r != nil && r != f {
				panic(r)
			}
		}()
		check(f)
	}()
	t.Log(f.text)
	return f.text != ""
}

// failure is a test that may fail.
type failure struct{ text string }

func (f *failure) Errorf(format string, args ...any) { f.text += fmt.Sprintf(format, args...) }
func (f *failure) FailNow()                          { panic(f) }

// The reply to a save may be lost: it is sent again and meets what it has stored, or what was put
// there since.
func TestReplacing_LostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	client := newTap(redistest.Dial(t, proxy.URL))
	b := bedOn(t, client)
	behind := bedOn(t, redistest.Dial(t, server.URL), WithKeyPrefix(b.prefix))
	loadScripts(t, b)

	t.Run("its own version", func(t *testing.T) {
		id := NewID()
		s := b.write(id, "1", time.Hour)
		client.lose(proxy, "SET", 1, nil)
		var saved Session
		require.Equal(t, "SET SET", client.tripsOf(func() {
			var err error
			saved, err = b.replace(id, "2", time.Hour, s)
			require.NoError(t, err)
		}))
		value, _ := behind.raw(id)
		require.Equal(t, string(recordOf(s.header, saved.Version, []byte("2"))), value)
	})
	t.Run("its own version in the place of an earlier session", func(t *testing.T) {
		id := NewID()
		b.plant(id, string(newHeader(7, lifeBegan-1, 0)), time.Hour)
		client.lose(proxy, "SET", 1, nil)
		_, err := b.replace(id, "2", time.Hour, Session{header: newHeader(1, lifeBegan, 0)})
		require.NoError(t, err)
	})
	for name, c := range whatSaversMeet() {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			s := sessionOf(t, newHeader(1, lifeBegan, 0))
			b.plant(id, string(s.header)+"1", time.Hour)
			lost := proxy.Lost()
			var before string
			client.lose(proxy, "SET", 1, func() {
				behind.do("DEL", b.keyOf(id))
				c.plant(behind, id)
				before, _ = behind.dump(id)
			})
			_, err := b.replace(id, "mine", 2*time.Hour, s)
			require.Equal(t, lost+1, proxy.Lost())
			if c.err == nil {
				require.NoError(t, err)
				value, _ := behind.raw(id)
				require.Equal(t, "mine", value[headerSize:])
				return
			}
			if c.lost != nil {
				c.err = c.lost
			}
			require.ErrorIs(t, err, c.err)
			after, _ := behind.dump(id)
			require.Equal(t, before, after)
		})
	}
	t.Run("of the script that puts back", func(t *testing.T) {
		id := NewID()
		theirs := string(newHeader(7, lifeBegan+1, 0)) + "theirs"
		b.plant(id, theirs, time.Hour)
		client.lose(proxy, "restore", 1, nil)
		_, err := b.replace(id, "mine", time.Hour, sessionOf(t, newHeader(1, lifeBegan, 0)))
		require.ErrorIs(t, err, ErrConflict)
		value, _ := behind.raw(id)
		require.Equal(t, theirs, value)
	})
}

// lose loses the reply to the nth command of that name from now on, and calls between before it is
// sent again.
func (c *tap) lose(proxy *redistest.Proxy, name string, nth int, between func()) {
	var n int
	matches := func(words []string) bool { return nameOf(words) == name }
	c.before = func(words []string) error {
		if matches(words) {
			if n++; n == nth {
				proxy.LoseReply()
			}
		}
		return nil
	}
	c.after = func(words []string) error {
		if matches(words) && n == nth && between != nil {
			c.before, c.after = nil, nil
			between()
		}
		return nil
	}
}

// Between a save and its putting back others go on, and keep what they have done.
func TestReplacing_PutBackSparesOthers(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	other := bedOn(t, redistest.Client(t), WithKeyPrefix(b.prefix))
	loadScripts(t, b)
	later := string(newHeader(7, lifeBegan+1, 0)) + "theirs"
	write := func(id string) { other.write(id, "other", time.Hour) }
	remove := func(id string) { other.do("DEL", other.keyOf(id)) }
	end := func(id string) { require.NoError(t, other.Invalidate(t.Context(), id)) }
	for name, c := range map[string]struct {
		displaced string // what the save has displaced
		meanwhile func(id string)
		want      error
		stored    string // data in the end; "" for none
	}{
		"a write":           {later, write, ErrConflict, "other"},
		"a write over text": {"text of another program", write, ErrCorrupt, "other"},
		"an end":            {later, end, ErrConflict, ""},
		"expiry":            {later, remove, ErrConflict, ""},
		"a new session":     {later, func(id string) { remove(id); write(id) }, ErrConflict, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(t require.TestingT) {
				id := NewID()
				b.plant(id, c.displaced, time.Hour)
				var then string
				client.before = func(words []string) error {
					if nameOf(words) == "restore" || words[0] == "SET" && !isNative(words) {
						client.before = nil
						c.meanwhile(id)
						then, _ = other.dump(id)
					}
					return nil
				}
				_, err := b.replace(id, "mine", time.Hour, Session{header: newHeader(1, lifeBegan, 0)})
				assert.ErrorIs(t, err, c.want)
				after, _ := other.dump(id)
				assert.Equal(t, then, after)
				if c.stored != "" {
					value, _ := other.raw(id)
					assert.Equal(t, c.stored, value[headerSize:])
				}
			}
			check(t)

			client.change = func(words []string) []string { // puts back whatever stands there
				if nameOf(words) == "restore" {
					return []string{"SET", words[3], words[5]}
				}
				return nil
			}
			require.True(t, fails(t, check), "a SET in the place of the script is found")
			client.change = nil
		})
	}
}

// What is put back expires by its own deadline, and not only when the late save would have.
func TestReplacing_PutBackKeepsTheDeadline(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	now := time.Now()
	for name, c := range map[string]struct{ deadline, left time.Duration }{
		"near":   {10 * time.Minute, 10 * time.Minute},
		"far":    {20 * time.Hour, 2 * time.Hour},
		"none":   {0, 2 * time.Hour},
		"passed": {-time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			var deadline int64
			if c.deadline != 0 {
				deadline = now.Add(c.deadline).UnixMilli()
			}
			theirs := string(newHeader(7, now.UnixMilli(), deadline)) + "theirs"
			b.plant(id, theirs, 0)
			_, err := b.replace(id, "mine", 2*time.Hour, sessionOf(t, newHeader(1, 1, 0)))
			require.ErrorIs(t, err, ErrConflict)
			value, ttl := b.raw(id)
			if c.left == 0 {
				require.Empty(t, value)
				return
			}
			require.Equal(t, theirs, value)
			require.InDelta(t, c.left, ttl, float64(time.Minute))
		})
	}
}

// Two who save sessions that lived under one id at different times: the later session stays.
func TestReplacing_TwoLives(t *testing.T) {
	t.Parallel()
	type step = func(b *bed, id string) error
	old, young := sessionOf(t, newHeader(1, lifeBegan, 0)), sessionOf(t, newHeader(2, lifeBegan+1, 0))
	saveOld := func(b *bed, id string) error { _, err := b.replace(id, "old", time.Hour, old); return err }
	saveYoung := func(b *bed, id string) error { _, err := b.replace(id, "young", time.Hour, young); return err }
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	other := bedOn(t, redistest.Client(t), WithKeyPrefix(b.prefix))
	loadScripts(t, b)
	loadScripts(t, other)
	for name, c := range map[string]struct {
		stored      Session
		first, then step // then comes between the two steps of first, if it has two
		errs        [2]error
		at          string // the command before which then comes
	}{
		"the older first":                    {young, saveOld, saveYoung, [2]error{ErrConflict, nil}, ""},
		"the younger first":                  {young, saveYoung, saveOld, [2]error{nil, ErrConflict}, ""},
		"the younger in the older's midst":   {young, saveOld, saveYoung, [2]error{ErrConflict, nil}, "restore"},
		"over the older, the older first":    {old, saveOld, saveYoung, [2]error{nil, nil}, ""},
		"over the older, the younger first":  {old, saveYoung, saveOld, [2]error{nil, ErrConflict}, ""},
		"over the older, before the younger": {old, saveYoung, saveOld, [2]error{nil, nil}, "SET"},
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			b.plant(id, string(c.stored.header), time.Hour)
			var errs [2]error
			ran := false
			client.before = func(words []string) error {
				if nameOf(words) == c.at && !ran {
					ran = true
					errs[1] = c.then(other, id)
				}
				return nil
			}
			errs[0] = c.first(b, id)
			client.before = nil
			if c.at == "" {
				errs[1] = c.then(other, id)
			} else {
				require.True(t, ran)
			}
			for i, want := range c.errs {
				require.ErrorIs(t, errs[i], want)
			}
			value, _ := b.raw(id)
			require.Equal(t, string(young.header[offsetCreated:])+"young", value[offsetCreated:])
		})
	}
}

// A save never gives a session more time than its deadline, and never carries an expiry in the
// past, which would delete the key.
func TestReplacing_Deadline(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	loadScripts(t, b)
	soon, later := nearDeadline-time.Second, nearDeadline+time.Minute
	for name, c := range map[string]struct {
		deadline, ttl time.Duration
		how           string // PX, PXAT, or write
		left          time.Duration
	}{
		"none":                         {0, time.Hour, "PX", time.Hour},
		"after the idle timeout":       {2 * time.Hour, time.Hour, "PX", time.Hour},
		"before the idle timeout":      {time.Hour, 2 * time.Hour, "PXAT", time.Hour},
		"soon":                         {soon, 2 * time.Hour, "write", soon},
		"soon, after the idle timeout": {soon, time.Minute, "write", time.Minute},
		"not quite soon":               {later, 2 * time.Hour, "PXAT", later},
		"passed":                       {-time.Hour, 2 * time.Hour, "write", 0},
	} {
		t.Run(name, func(t *testing.T) {
			id := NewID()
			now := time.Now()
			var deadline int64
			if c.deadline != 0 {
				deadline = now.Add(c.deadline).UnixMilli()
			}
			header := newHeader(1, now.UnixMilli(), deadline)
			b.plant(id, string(header), time.Hour)
			n := len(client.sent())
			saved, err := b.replace(id, "x", c.ttl, sessionOf(t, header))
			words := client.sent()[n]
			value, ttl := b.raw(id)
			if c.how == "write" {
				require.Equal(t, "write", nameOf(words))
			} else {
				require.True(t, isNative(words))
				require.Contains(t, words, c.how)
			}
			if c.how == "PXAT" {
				require.Equal(t, decimal(deadline), words[len(words)-1])
			}
			if c.left == 0 {
				require.ErrorIs(t, err, ErrNotFound)
				require.Equal(t, string(header), value, "not deleted")
				return
			}
			require.NoError(t, err)
			require.InDelta(t, c.left, ttl, float64(30*time.Second))
			require.Equal(t, string(recordOf(header, saved.Version, []byte("x"))), value)
		})
	}
}

// Replacing what no store gave out is IfPresent.
func TestReplacing_Nothing(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	loadScripts(t, b)
	id := NewID()
	first := b.write(id, "1", time.Hour)
	byHand := Session{Data: first.Data, Version: first.Version, CreatedAt: first.CreatedAt}
	for _, s := range []Session{{}, byHand} {
		require.Equal(t, "write", client.tripsOf(func() {
			_, err := b.replace(id, "2", time.Hour, s)
			require.NoError(t, err)
		}))
		_, err := b.replace(NewID(), "2", time.Hour, s)
		require.ErrorIs(t, err, ErrNotFound)
	}
	commands := client.sent()
	require.Contains(t, commands[len(commands)-1], "present")
}

// everyVerb uses all that a store can do, on live, absent and ended sessions.
func everyVerb(t *testing.T, b *bed) (ids []string) {
	ctx := t.Context()
	id := func() string {
		ids = append(ids, NewID())
		return ids[len(ids)-1]
	}
	for _, prepare := range []func(id string) Session{
		func(id string) Session { return b.write(id, "x", time.Hour) },
		func(string) Session { return Session{} },
		func(id string) Session {
			s := b.write(id, "x", time.Hour)
			require.NoError(t, b.Invalidate(ctx, id))
			return s
		},
	} {
		for _, opts := range [][]ReadOption{nil, {Slide(time.Minute)}, {WithExpiry()}, {Fresh()}, {Shared()}} {
			one := id()
			prepare(one)
			_, _ = b.Read(ctx, one, opts...)
			_, _ = b.Exists(ctx, one)
		}
		one := id()
		s := prepare(one)
		stale := Session{header: newHeader(1, 1, 0)}
		for _, opt := range []WriteOption{
			IfPresent(), Replacing(s), Replacing(stale), IfVersion(s.Version), IfAbsent(),
		} {
			_, _ = b.Write(ctx, one, nil, time.Hour, opt)
		}
		_ = b.Touch(ctx, one, time.Minute)
		for _, opts := range [][]RotateOption{nil, {WithData(nil, time.Hour)}, {IfUnchanged(1)}} {
			old := id()
			prepare(old)
			_, _ = b.Rotate(ctx, old, id(), opts...)
			_ = b.Invalidate(ctx, old, IfLive())
			_ = b.InvalidateRef(ctx, Ref(old), Alone())
		}
		old := id()
		prepare(old)
		r, _ := b.BeginRenewal(ctx, old, 0)
		_, _ = b.FinishRenewal(ctx, r, id(), nil, time.Hour)
		_ = b.CancelRenewal(ctx, r)
	}
	for range b.List(ctx) { // what it sends matters
	}
	owner := NewID()
	reserve := func(id string) Binding {
		binding, err := b.Reserve(ctx, id, b.login(owner), until())
		require.NoError(t, err)
		return binding
	}
	first, second, third, fourth := id(), id(), id(), id()
	_ = b.write(first, "x", time.Hour, Bound(reserve(first)))
	_, _ = b.Rotate(ctx, first, second)
	_, _ = b.Rotate(ctx, second, third, WithBinding(reserve(third)))
	r, _ := b.BeginRenewal(ctx, third, 0)
	binding := reserve(fourth)
	r.Binding = &binding
	_, _ = b.FinishRenewal(ctx, r, fourth, nil, time.Hour)
	_, _ = b.InvalidateOwner(ctx, owner, Except(third))
	_, _ = b.Sessions(ctx, owner)
	_ = b.InvalidateOwned(ctx, owner, Ref(third))
	_ = b.Release(ctx, reserve(id()))
	reserve(id())
	_, _ = b.InvalidateOwner(ctx, owner)
	return ids
}

// A session's key is written by scripts, and by a SET that its tombstone refuses, and by nothing
// else. The SET is not used before the server was seen to refuse it.
func TestEveryWriteIsRefusedByATombstone(t *testing.T) {
	t.Parallel()
	server := redistest.URL(t)
	cluster := redistest.ClusterURL(t)
	for name, c := range map[string]struct {
		url  string
		opts []Option
	}{
		"plain":   {server, nil},
		"cached":  {server, []Option{WithClientCache(time.Minute)}},
		"strict":  {server, []Option{WithStrictReads()}},
		"cluster": {cluster, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newTap(redistest.Dial(t, c.url, redistest.WithCache))
			b := bedOn(t, client, c.opts...)
			ids := everyVerb(t, b)
			_, err := b.Check(t.Context())
			require.NoError(t, err)
			require.Empty(t, writeFaults(b, ids, client.sent()))

			key := b.keyOf(ids[0])
			for _, bad := range [][]string{
				{"SET", key, "x"}, {"SET", key, "x", "XX", "PX", "1"}, {"SET", key, "x", "GET"},
				{"SET", key, "", "XX", "GET"}, {"SETEX", key, "1", "x"}, {"GETEX", key, "PX", "1"},
				{"PEXPIRE", key, "1"}, {"DEL", key}, {"HSET", key, "t", "x"}, {"RENAME", key, "x"},
			} {
				require.NotEmpty(t, writeFaults(b, ids, append([][]string{bad}, client.sent()...)), bad)
			}
		})
	}
}

// writeFaults returns what is wrong with commands that were sent to sessions.
func writeFaults(b *bed, ids []string, commands [][]string) (faults []string) {
	ours := map[string]bool{}
	for _, id := range ids {
		ours[b.keyOf(id)] = true
	}
	proven := false
	for _, words := range commands {
		if len(words) > 1 && strings.Contains(words[1], "canary-") {
			proven = proven || isNative(words)
			continue
		}
		if !slices.ContainsFunc(words, func(w string) bool { return ours[w] }) {
			continue
		}
		switch words[0] {
		case "EVALSHA", "EVAL", "EVAL_RO", "GET", "GETRANGE", "PTTL", "EXISTS", "HMGET", "HGET":
		case "GETEX":
			if len(words) != 2 {
				faults = append(faults, "GETEX with an expiry")
			}
		case "SET":
			if !isNative(words) {
				faults = append(faults, "SET without XX and GET")
			}
			if !proven {
				faults = append(faults, "SET before the proof")
			}
		default:
			faults = append(faults, words[0])
		}
	}
	return faults
}

// Where the server does not refuse, saves go by the script, and Check says so.
func TestReplacing_NotRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(words []string) []string{
		"overwrites": func(words []string) []string {
			if !isNative(words) {
				return nil
			}
			return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "GET" })
		},
		"sees nothing": func(words []string) []string {
			if !isNative(words) {
				return nil
			}
			return append([]string{"SET", "nobody's"}, words[2:]...)
		},
		"refuses everything": func(words []string) []string {
			if !isNative(words) {
				return nil
			}
			return append([]string{"WHATSET"}, words[1:]...)
		},
		"loses the tombstone": func(words []string) []string {
			if words[0] == "HGET" {
				return []string{"HGET", "nobody's", "t"}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newTap(redistest.Client(t))
			b := bedOn(t, client)
			client.change = change
			report, err := b.Check(t.Context())
			require.NoError(t, err)
			if name == "refuses everything" {
				require.ErrorContains(t, report.Scripted, "server lacks a command")
			} else {
				require.ErrorIs(t, report.Scripted, errNotRefused)
			}

			live, ended := NewID(), NewID()
			s := b.write(live, "1", time.Hour)
			b.write(ended, "1", time.Hour)
			require.NoError(t, b.Invalidate(t.Context(), ended))
			require.Equal(t, "write", client.tripsOf(func() {
				_, err := b.replace(live, "2", time.Hour, s)
				require.NoError(t, err)
			}))
			require.Equal(t, "write", client.tripsOf(func() {
				_, err := b.replace(ended, "2", time.Hour, s)
				require.ErrorIs(t, err, ErrInvalidated)
			}))
			b.requireTombstone(ended, Logout)

			if name == "overwrites" { // without the proof the session would be back
				b.native.seen.Store(true)
				_, err := b.replace(ended, "2", time.Hour, s)
				require.Error(t, err)
				value, _ := b.raw(ended)
				require.NotEmpty(t, value)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		report, err := b.Check(t.Context())
		require.NoError(t, err)
		require.NoError(t, report.Scripted)
	})
}

// One caller finds out what the server does, and others do not wait for it.
func TestReplacing_ProofIsOnesTask(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	ids := []string{NewID(), NewID()}
	sessions := []Session{b.write(ids[0], "1", time.Hour), b.write(ids[1], "1", time.Hour)}
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	client.before = func(words []string) error {
		if words[0] == "HSET" {
			once.Do(func() { close(reached) })
			<-goOn
		}
		return nil
	}
	var done sync.WaitGroup
	done.Go(func() {
		_, err := b.replace(ids[0], "2", time.Hour, sessions[0])
		assert.NoError(t, err)
	})
	<-reached
	_, err := b.replace(ids[1], "2", time.Hour, sessions[1])
	require.NoError(t, err)
	native := 0
	for _, words := range client.sent() {
		if isNative(words) && words[1] == b.keyOf(ids[1]) {
			native++
		}
	}
	require.Zero(t, native)
	close(goOn)
	done.Wait()
	n := len(client.sent())
	_, err = b.replace(ids[1], "3", time.Hour, sessions[1])
	require.NoError(t, err)
	require.True(t, isNative(client.sent()[n]))
	for _, key := range redistest.Keys(t.Context(), b.client, b.prefix) {
		require.NotContains(t, key, "canary", "nothing is left behind")
	}
}

// A user who may not do what the proof takes saves by the script.
func TestReplacing_ProofNotPermitted(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := bedOn(t, redistest.Dial(t, server.URL))
	digests := "~" + admin.prefix + strings.Repeat("?", 22)
	admin.do("ACL", "SETUSER", "limited", "on", ">pw", digests, "&*", "+@all")
	client := newTap(redistest.Dial(t, strings.Replace(server.URL, "://", "://limited:pw@", 1)))
	b := bedOn(t, client, WithKeyPrefix(admin.prefix))
	report, err := b.Check(t.Context())
	require.NoError(t, err)
	var reply *rueidis.RedisError
	require.ErrorAs(t, report.Scripted, &reply)
	id := NewID()
	s := b.write(id, "1", time.Hour)
	require.Equal(t, "write", client.tripsOf(func() {
		_, err := b.replace(id, "2", time.Hour, s)
		require.NoError(t, err)
	}))
}
