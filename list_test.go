package tombstore

import (
	"context"
	"errors"
	"fmt"
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

// listed returns the data of what is live, by ref.
func listed(t *testing.T, s Lister) map[string]string {
	t.Helper()
	found := map[string]string{}
	for e, err := range s.List(t.Context()) {
		require.NoError(t, err)
		found[e.Ref] = string(e.Data)
	}
	return found
}

func TestList(t *testing.T) {
	t.Parallel()
	memory, err := NewMemory()
	require.NoError(t, err)
	client := redistest.Client(t)
	for name, s := range map[string]Lister{
		"memory":     memory,
		"standalone": bedOn(t, client).RedisStore,
		"glob":       bedOn(t, client, WithKeyPrefix(redistest.Prefix(t, client)+`[a-z]*?\:`)).RedisStore,
		"cluster":    bedOn(t, redistest.Dial(t, redistest.ClusterURL(t))).RedisStore,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, want := t.Context(), map[string]string{}
			require.Empty(t, listed(t, s))
			ids := []string{NewID(), NewID(), NewID()}
			for _, id := range ids {
				_, err := s.Write(ctx, id, []byte(id[:5]), time.Hour)
				require.NoError(t, err)
				want[Ref(id)] = id[:5]
			}
			require.NoError(t, s.Invalidate(ctx, NewID()))
			require.Equal(t, want, listed(t, s))

			require.NoError(t, s.InvalidateRef(ctx, Ref(ids[0]), WithReason(Revoked)))
			delete(want, Ref(ids[0]))
			require.Equal(t, want, listed(t, s))
			_, err := s.Read(ctx, ids[0])
			var ended *InvalidatedError
			require.ErrorAs(t, err, &ended)
			require.Equal(t, Revoked, ended.Reason)

			for _, bad := range []string{
				"", "x", ids[1], Ref(ids[1]) + "x", "../" + Ref(ids[1]), Ref(ids[1]) + "\n",
				Ref(ids[1])[:3] + "\r\n" + Ref(ids[1])[3:], Ref(ids[1])[:21] + "_",
			} {
				require.ErrorIs(t, s.InvalidateRef(ctx, bad), ErrInvalidID)
			}
			_, err = s.Read(ctx, Ref(ids[1]))
			require.ErrorIs(t, err, ErrNotFound, "a ref opens nothing")

			for range s.List(ctx) {
				break
			}
			ended2, cancel := context.WithCancel(ctx)
			cancel()
			for _, err := range s.List(ended2) {
				require.ErrorIs(t, err, context.Canceled)
			}
			require.ErrorIs(t, s.InvalidateRef(ended2, Ref(ids[1])), context.Canceled)
		})
	}
}

// A cluster that has lost a part of its slots must not look like one that holds less.
func TestList_ClusterIncomplete(t *testing.T) {
	t.Parallel()
	b := bedOn(t, redistest.Dial(t, redistest.StartCluster(t, "--cluster-require-full-coverage", "no").URL))
	require.Empty(t, listed(t, b))
	b.do("CLUSTER", "DELSLOTS", "0")
	entries, failures := 0, 0
	for _, err := range b.List(t.Context()) {
		if err == nil {
			entries++
			continue
		}
		require.ErrorIs(t, err, errSlots)
		failures++
	}
	require.Zero(t, entries)
	require.Equal(t, 1, failures)
}

func TestList_PlainIDs(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithPlainIDs())
	b.write("an id", "x", time.Hour)
	require.Equal(t, map[string]string{"an id": "x"}, listed(t, b))
	require.NoError(t, b.InvalidateRef(t.Context(), "an id"))
	require.Empty(t, listed(t, b))
}

func TestList_ForeignValue(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ref := Ref("x")
	b.do("SET", b.prefix+ref, "foreign")
	b.do("SET", b.prefix+"other:"+ref, "of a store with a longer prefix")
	b.write(NewID(), "mine", time.Hour)
	found, faults := 0, 0
	for e, err := range b.List(t.Context()) {
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			require.Equal(t, ref, e.Ref)
			faults++
			continue
		}
		require.Equal(t, "mine", string(e.Data))
		found++
	}
	require.Equal(t, 1, found)
	require.Equal(t, 1, faults)
}

// A hash that is no tombstone is named, and is no reason to stop.
func TestList_ForeignHash(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	foreign := map[string]bool{}
	for _, fields := range [][]string{
		{"t", "x"}, {"t", "\xc1" + canaryEnd(Logout)[1:]}, {"t", "\xc0\x80" + canaryEnd(Logout)[2:]}, {"t", ""},
	} {
		ref := Ref(NewID())
		b.do(append([]string{"HSET", b.prefix + ref}, fields...)...)
		foreign[ref] = true
	}
	b.write(NewID(), "mine", time.Hour)
	old, next := NewID(), NewID()
	b.write(old, "moved", time.Hour)
	_, err := b.Rotate(t.Context(), old, next)
	require.NoError(t, err)
	found := map[string]bool{}
	for e, err := range b.List(t.Context()) {
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			require.True(t, foreign[e.Ref])
			delete(foreign, e.Ref)
			continue
		}
		found[string(e.Data)] = true
	}
	require.Empty(t, foreign)
	require.Equal(t, map[string]bool{"mine": true, "moved": true}, found)
}

// Sessions that are between two ids are named as pending, and ended ones are not.
func TestList_Pending(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t, patient)
		ctx, want := t.Context(), map[string]bool{}
		// aged makes the end of an id look as old as that.
		aged := func(id string, age time.Duration) {
			end := []byte(canaryEnd(Rotated))
			putMilli48(end[3:], time.Now().Add(-age).UnixMilli())
			w.do("HSET", w.keyOf(id), "t", string(end))
		}
		begun := func(age time.Duration, pending bool) (string, Renewal) {
			id := NewID()
			w.write(id, "data", time.Hour)
			r, err := w.BeginRenewal(ctx, id, 0)
			require.NoError(t, err)
			if aged(id, age); pending {
				want[Ref(id)] = true
			}
			return id, r
		}
		halfMoved := func(age time.Duration, pending bool) {
			ids := w.moved(2)
			w.do("DEL", w.keyOf(ids[1]))
			if aged(ids[0], age); pending {
				want[Ref(ids[0])] = true
			}
		}
		one, renewal := begun(0, true)
		begun(listMargin-time.Minute, true)
		begun(listMargin+time.Minute, false)
		halfMoved(0, true)
		halfMoved(listMargin-time.Minute, true)
		halfMoved(listMargin+time.Minute, false)
		_, givenUp := begun(0, true) // another renewal may take over
		require.NoError(t, w.CancelRenewal(ctx, givenUp))
		ended, _ := begun(0, false)
		require.NoError(t, w.Invalidate(ctx, ended))
		chain := w.moved(4)
		require.NoError(t, w.Invalidate(ctx, chain[0]))
		live := w.moved(3)[2]

		entries := func() map[string]bool {
			pending := map[string]bool{}
			for e, err := range w.List(ctx) {
				require.NoError(t, err)
				if e.Pending {
					require.Zero(t, e.Session)
					pending[e.Ref] = true
				} else {
					require.Equal(t, Ref(live), e.Ref)
				}
			}
			return pending
		}
		require.Equal(t, want, entries())
		require.NoError(t, w.InvalidateRef(ctx, Ref(one)))
		_, err := w.FinishRenewal(ctx, renewal, NewID(), nil, time.Hour)
		require.ErrorIs(t, err, ErrInvalidated)
		delete(want, Ref(one))
		require.Equal(t, want, entries())
		for ref := range want {
			require.NoError(t, w.InvalidateRef(ctx, ref))
		}
		require.Empty(t, entries())
	})
}

// moments are those in a walk at which sessions move, one after the other.
var moments = map[string][]func(w world, words []string) bool{
	"before it":                {func(_ world, words []string) bool { return words[0] == "SCAN" }},
	"after the keys were read": {func(_ world, words []string) bool { return words[0] == "GET" }},
	"between the passes": {func(_ world, words []string) bool {
		return words[0] == "SCAN" && slices.Contains(words, "hash")
	}},
	"after the keys and the successors were read": {
		func(_ world, words []string) bool { return words[0] == "GET" },
		func(w world, words []string) bool { return words[0] == "GET" && w.tap.has("HMGET") },
	},
	"at every step": slices.Repeat([]func(world, []string) bool{func(world, []string) bool { return true }}, 5),
}

// has reports whether a command of that name was sent.
func (l *tapLog) has(name string) bool {
	return slices.ContainsFunc(l.sent(), func(words []string) bool { return words[0] == name })
}

// moveDuring makes all sessions that are live move at these moments. Each keeps its data.
func (w world) moveDuring(t require.TestingT, ids []string, kind string, at []func(world, []string) bool) {
	ctx := w.t.Context()
	w.tap.before = func(words []string) error {
		if len(at) == 0 || !at[0](w, words) {
			return nil
		}
		at = at[1:]
		for i, id := range ids {
			next := NewID()
			err := keepingData(ctx, w.other.RedisStore, kind, id, next)
			if errors.Is(err, ErrInvalidated) {
				continue
			}
			require.NoError(t, err)
			ids[i] = next
		}
		return nil
	}
}

// keepingData moves a session with its data.
func keepingData(ctx context.Context, s *RedisStore, kind, from, to string) error {
	if kind == "Rotate" {
		_, err := s.Rotate(ctx, from, to)
		return err
	}
	session, err := s.Read(ctx, from)
	if err != nil {
		return err
	}
	r, err := s.BeginRenewal(ctx, from, session.Version)
	if err == nil {
		_, err = s.FinishRenewal(ctx, r, to, session.Data, time.Hour)
	}
	return err
}

// writeMany makes n sessions, whose data tell them apart.
func (b *bed) writeMany(n int) (ids, data []string) {
	b.t.Helper()
	for i := range n {
		ids, data = append(ids, NewID()), append(data, fmt.Sprint(i))
		b.write(ids[i], data[i], time.Hour)
	}
	return ids, data
}

// patient is for a List during whose commands a test does many things.
var patient = WithTimeout(20 * time.Second)

// Sessions that move during the walk are found, wherever it is by then.
func TestList_Moves(t *testing.T) {
	t.Parallel()
	check := func(kind string, at []func(world, []string) bool) func(t require.TestingT, w world) {
		return func(t require.TestingT, w world) {
			ids, want := w.writeMany(20)
			w.moveDuring(t, ids, kind, at)
			found := map[string]bool{}
			for e, err := range w.List(w.t.Context()) {
				require.NoError(t, err)
				require.False(t, e.Pending)
				found[string(e.Data)] = true
			}
			for _, data := range want {
				require.True(t, found[data], "session %s", data)
			}
			require.Len(t, found, len(want))
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for when, at := range moments {
			for _, kind := range []string{"Rotate", "renewal"} {
				t.Run(when+", "+kind, func(t *testing.T) { check(kind, at)(t, newWorld(t, patient)) })
			}
		}
		t.Run("inside the loop", func(t *testing.T) {
			w := newWorld(t, patient)
			ids, want := w.writeMany(250)
			first, found := true, map[string]bool{}
			for e, err := range w.List(t.Context()) {
				require.NoError(t, err)
				if first {
					first = false
					for i, id := range ids {
						ids[i] = NewID()
						_, err := w.other.Rotate(t.Context(), id, ids[i])
						require.NoError(t, err)
					}
				}
				found[string(e.Data)] = true
			}
			require.Len(t, found, len(want))
		})
		for name, broken := range map[string]struct {
			change func(words []string) []string
			when   string
		}{
			"one pass": {func(words []string) []string {
				if words[0] == "SCAN" && slices.Contains(words, "hash") {
					return append(slices.Clone(words[:len(words)-1]), "zset")
				}
				return nil
			}, "after the keys were read"},
			"no successors": {func(words []string) []string {
				if words[0] == "HMGET" {
					return []string{"HMGET", words[1], "t", "x", "h"}
				}
				return nil
			}, "after the keys were read"},
		} {
			t.Run("catches: "+name, func(t *testing.T) {
				skipIfShort(t)
				w := newWorld(t, patient)
				w.tap.change = broken.change
				require.True(t, fails(t, func(t require.TestingT) { check("Rotate", moments[broken.when])(t, w) }))
			})
		}
	})
}

// Whoever ends all that a list names leaves nobody logged in, although sessions move meanwhile.
func TestList_LogOutEverywhere(t *testing.T) {
	t.Parallel()
	endAll := func(t require.TestingT, w world) {
		for e, err := range w.List(w.t.Context()) {
			require.NoError(t, err)
			require.NoError(t, w.InvalidateRef(w.t.Context(), e.Ref))
		}
	}
	check := func(t require.TestingT, w world) {
		for when, at := range moments {
			if when == "at every step" { // ends are among them
				continue
			}
			for _, kind := range []string{"Rotate", "renewal"} {
				w.tap.forget()
				ids, _ := w.writeMany(20)
				w.moveDuring(t, ids, kind, at)
				endAll(t, w)
				w.tap.before = nil
				for _, id := range ids {
					require.False(t, w.other.live(id), "%s, %s", when, kind)
				}
			}

			// Renewals that have begun cannot be finished, and those that were given up not taken over.
			w.tap.forget()
			ids, _ := w.writeMany(20)
			var begun []Renewal
			w.tap.before = func(words []string) error {
				if begun != nil || !at[0](w, words) {
					return nil
				}
				begun = []Renewal{}
				for i, id := range ids {
					r, err := w.other.BeginRenewal(w.t.Context(), id, 0)
					if err != nil {
						continue
					}
					begun = append(begun, r)
					if i%2 == 0 {
						require.NoError(t, w.other.CancelRenewal(w.t.Context(), r))
					}
				}
				return nil
			}
			endAll(t, w)
			w.tap.before = nil
			if when != "between the passes" { // when all have been ended
				require.Len(t, begun, len(ids))
			}
			for _, r := range begun {
				_, err := w.other.FinishRenewal(w.t.Context(), r, NewID(), nil, time.Hour)
				require.ErrorIs(t, err, ErrInvalidated)
			}
			for _, id := range ids {
				_, err := w.other.BeginRenewal(w.t.Context(), id, 0)
				require.ErrorIs(t, err, ErrInvalidated)
			}
		}
		require.Empty(t, listed(w.t, w.other))
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		t.Run("at each moment", func(t *testing.T) { check(t, newWorld(t, patient)) })
		for name, field := range map[string]string{"no renewals": "x", "none that was given up": "c"} {
			t.Run("catches: "+name, func(t *testing.T) {
				skipIfShort(t)
				w := newWorld(t, patient)
				w.tap.change = func(words []string) []string {
					if words[0] == "HMGET" {
						return []string{"HMGET", words[1], "t", "s", field}
					}
					return nil
				}
				require.True(t, fails(t, func(t require.TestingT) { check(t, w) }))
			})
		}
		t.Run("all the time", func(t *testing.T) {
			w := newWorld(t, patient)
			ids, _ := w.writeMany(16)
			var started, done sync.WaitGroup
			started.Add(len(ids))
			for i := range ids {
				done.Go(func() {
					for round := 0; ; round++ {
						next := NewID()
						_, err := moves[[]string{"Rotate", "renewal"}[(i+round)%2]](t.Context(), w.other.RedisStore, ids[i], next)
						if round == 0 {
							started.Done()
						}
						if err != nil {
							assert.ErrorIs(t, err, ErrInvalidated)
							return
						}
						ids[i] = next
					}
				})
			}
			started.Wait()
			endAll(t, w)
			done.Wait() // each has learned that its session was ended
			require.Empty(t, listed(t, w.other))
		})
	})
}

// A walk takes far fewer trips than there are sessions.
func TestList_Pipelines(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		const sessions = 3000
		w := newWorld(t, patient)
		var plant []rueidis.Completed
		for range sessions {
			record := string(newHeader(1, lifeBegan, 0))
			plant = append(plant, w.client.B().Arbitrary("SET", w.keyOf(NewID()), record, "PX", "3600000").Build())
			end := canaryEnd(Logout)
			plant = append(plant, w.client.B().Arbitrary("HSET", w.keyOf(NewID()), "t", end).Build())
		}
		for _, res := range w.other.client.DoMulti(t.Context(), plant...) {
			require.NoError(t, res.Error())
		}
		found := map[string]bool{}
		scans, others := 0, 0
		for _, trip := range strings.Fields(w.tap.tripsOf(func() {
			for e, err := range w.List(t.Context()) {
				require.NoError(t, err)
				found[e.Ref] = true
			}
		})) {
			if trip == "SCAN" { // of all that the server holds
				scans++
			} else {
				others++
			}
		}
		require.Len(t, found, sessions)
		require.Less(t, others, sessions/10)
		require.Positive(t, scans)
	})
}

// A node that was started again at another address may keep the old one for itself, while the
// others know the new one.
func TestList_ClusterNodeMoved(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("containers do not reach each other")
	}
	n := redistest.StartNodes(t, time.Minute, "--cluster-announce-ip", "")
	node := n.Primaries[0]
	dir, err := node.Client.Do(t.Context(), node.Client.B().Arbitrary("CONFIG", "GET", "dir").Build()).AsStrMap()
	require.NoError(t, err)
	node.Kill(t)
	path := dir["dir"] + "/nodes.conf"
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "myself") {
			line = strings.Replace(line, "127.0.0.1", "10.9.9.9", 1)
		}
		lines = append(lines, line)
	}
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600))
	node.Restart(t)
	n.AwaitReady(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{n.Primaries[1].Addr, n.Primaries[2].Addr}, DisableCache: true, DisableRetry: true,
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	s, err := New(client)
	require.NoError(t, err)
	for range 30 {
		_, err = s.Write(t.Context(), NewID(), nil, time.Hour)
		require.NoError(t, err)
	}
	require.Len(t, listed(t, s), 30)
}

// A connection that the server has closed is no reason to fail.
func TestList_ClusterConnectionBroken(t *testing.T) {
	t.Parallel()
	server := redistest.StartCluster(t)
	s := bedOn(t, redistest.Dial(t, server.URL)).RedisStore
	admin := redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) { o.ForceSingleClient = true })
	for range 10 {
		require.Empty(t, listed(t, s))
		kill := admin.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()
		require.NoError(t, admin.Do(t.Context(), kill).Error())
	}
	require.Empty(t, listed(t, s))
}
