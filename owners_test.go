package tombstore

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// actor is a store that does one thing, trip by trip, as it is told.
type actor struct {
	*bed
	tap *tap

	run   bool // it asks before each trip
	lose  int  // number of the trip whose reply is lost; 0: none
	asks  chan struct{}
	goes  chan error
	done  chan error
	asked bool // it waits in goes
	over  bool
	err   error // once it is over
}

// gate is a client that asks an actor before each trip.
type gate struct {
	*tap
	of *actor
}

func (g *gate) pass() error {
	if !g.of.run {
		return nil
	}
	g.of.asks <- struct{}{}
	return <-g.of.goes
}

func (g *gate) lost() bool {
	if g.of.lose == 0 {
		return false
	}
	g.of.lose--
	return g.of.lose == 0
}

func (g *gate) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if err := g.pass(); err != nil {
		return rueidis.NewErrorResult(err)
	}
	res := g.tap.Do(ctx, cmd)
	if g.lost() {
		return rueidis.NewErrorResult(io.EOF)
	}
	return res
}

func (g *gate) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	if err := g.pass(); err != nil {
		return slices.Repeat([]rueidis.RedisResult{rueidis.NewErrorResult(err)}, len(multi))
	}
	results := g.tap.DoMulti(ctx, multi...)
	if g.lost() {
		return slices.Repeat([]rueidis.RedisResult{rueidis.NewErrorResult(io.EOF)}, len(multi))
	}
	return results
}

// begin has the actor do something; it waits before the first trip.
func (a *actor) begin(do func(s *RedisStore) error) {
	a.run, a.asked, a.over = true, false, false
	a.asks, a.goes, a.done = make(chan struct{}), make(chan error), make(chan error)
	go func() { a.done <- do(a.RedisStore) }()
	a.park()
}

// park waits until the actor waits before a trip, or is done.
func (a *actor) park() {
	select {
	case <-a.asks:
		a.asked = true
	case a.err = <-a.done:
		a.over, a.run = true, false
	}
}

// advance lets the actor make n trips, and reports whether it had as many to make.
func (a *actor) advance(n int) bool {
	for ; n > 0 && !a.over; n-- {
		a.goes <- nil
		a.park()
	}
	return n == 0
}

// finish lets the actor do the rest.
func (a *actor) finish() error {
	for !a.over {
		a.advance(1)
	}
	return a.err
}

// die makes the actor end without another trip, as a process that is killed does.
func (a *actor) die() {
	for !a.over {
		a.goes <- rueidis.ErrClosing
		a.park()
	}
}

// stage is a revoker, somebody who moves or logs in, and somebody who looks, on the same sessions.
type stage struct {
	t              *testing.T
	revoker, mover *actor
	other          *bed
	cluster        bool
	owner          string
}

func newActor(t *testing.T, url, prefix string) *actor {
	t.Helper()
	a := &actor{tap: newTap(redistest.Dial(t, url)), over: true}
	// It waits while others go.
	a.bed = bedOn(t, &gate{a.tap, a}, WithKeyPrefix(prefix), WithTimeout(time.Minute))
	t.Cleanup(a.die) // or what cleans up would wait at the gate
	loadScripts(t, a.bed)
	return a
}

func newStage(t *testing.T, url string) *stage {
	t.Helper()
	other := bedOn(t, redistest.Dial(t, url))
	st := &stage{
		t: t, other: other,
		revoker: newActor(t, url, other.prefix),
		mover:   newActor(t, url, other.prefix),
	}
	st.cluster = st.mover.clustered()
	return st
}

// onBothStages runs test on a server and on a cluster; under -short on one of them, which is drawn.
func onBothStages(t *testing.T, test func(t *testing.T, newStage func(t *testing.T) *stage)) {
	for _, name := range some([]string{"standalone", "cluster"}, rand.Int()) {
		url := redistest.URL(t)
		if name == "cluster" {
			url = redistest.StartCluster(t).URL
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(t *testing.T) *stage { return newStage(t, url) })
		})
	}
}

// some returns all, or under -short the one whose turn it is.
func some[T any](all []T, turn int) []T {
	if testing.Short() {
		turn %= len(all)
		return all[turn : turn+1]
	}
	return all
}

// caughtOn checks that a check fails with each of the changed scripts.
func caughtOn(
	t *testing.T, newStage func(t *testing.T) *stage,
	check func(t require.TestingT, st *stage), mutants map[string]mutant,
) {
	for name, m := range mutants {
		t.Run("catches: "+name, func(t *testing.T) {
			skipIfShort(t)
			st := newStage(t)
			m.apply(t, st.revoker.tap)
			m.apply(t, st.mover.tap)
			require.True(t, fails(t, func(t require.TestingT) {
				defer st.revoker.die()
				defer st.mover.die()
				check(t, st)
			}))
		})
	}
}

func until() ReserveOption { return Until(time.Now().Add(12 * time.Hour)) }

func (b *bed) login(owner string) Login {
	b.t.Helper()
	login, err := b.BeginLogin(b.t.Context(), owner)
	require.NoError(b.t, err)
	return login
}

// bound writes a new session of an owner.
func (b *bed) bound(owner string, opts ...ReserveOption) (id string) {
	b.t.Helper()
	id = NewID()
	binding, err := b.Reserve(b.t.Context(), id, b.login(owner), append([]ReserveOption{until()}, opts...)...)
	require.NoError(b.t, err)
	b.write(id, "data", time.Hour, Bound(binding))
	return id
}

// act is something that the mover does with the session of an id; to is the id that it has then.
// The options are for a login, beside its deadline.
type act func(ctx context.Context, s *RedisStore, login Login, from, to string, opts ...ReserveOption) error

// logins begin a session of an owner.
var logins = map[string]act{
	"Write": func(ctx context.Context, s *RedisStore, login Login, _, to string, opts ...ReserveOption) error {
		b, err := s.Reserve(ctx, to, login, append(opts, until())...)
		if err == nil {
			_, err = s.Write(ctx, to, []byte("data"), time.Hour, Bound(b))
		}
		return err
	},
	"Rotate": func(ctx context.Context, s *RedisStore, login Login, from, to string, opts ...ReserveOption) error {
		b, err := s.Reserve(ctx, to, login, append(opts, until())...)
		if err == nil {
			_, err = s.Rotate(ctx, from, to, WithBinding(b))
		}
		return err
	},
	"renewal": func(ctx context.Context, s *RedisStore, login Login, from, to string, opts ...ReserveOption) error {
		r, err := s.BeginRenewal(ctx, from, 0)
		if err != nil {
			return err
		}
		b, err := s.Reserve(ctx, to, login, append(opts, until())...)
		if err == nil {
			r.Binding = &b
			_, err = s.FinishRenewal(ctx, r, to, []byte("data"), time.Hour)
		}
		return err
	},
}

// actOf is a move as an act.
func actOf(move move) act {
	return func(ctx context.Context, s *RedisStore, _ Login, from, to string, _ ...ReserveOption) error {
		_, err := move(ctx, s, from, to)
		return err
	}
}

// acts are all that a session of an owner, or one that becomes it, may be about to do.
func acts() map[string]struct {
	act
	bound bool // the session is the owner's before
} {
	all := map[string]struct {
		act
		bound bool
	}{}
	for kind, login := range logins {
		all["login by "+kind] = struct {
			act
			bound bool
		}{login, false}
		if kind != "Write" {
			all["login again by "+kind] = struct {
				act
				bound bool
			}{login, true}
		}
	}
	for kind, move := range moves {
		all[kind] = struct {
			act
			bound bool
		}{actOf(move), true}
	}
	return all
}

// prepare makes a session that is the owner's, or not, and a login that has begun.
func (st *stage) prepare(bound bool) (login Login, from, to string) {
	st.owner = NewID()
	login = st.other.login(st.owner)
	if bound {
		return login, st.other.bound(st.owner), NewID()
	}
	from = NewID()
	st.other.write(from, "data", time.Hour)
	return login, from, NewID()
}

// requireOut checks that nothing of the owner's is live.
func (st *stage) requireOut(t require.TestingT, where string, ids ...string) {
	for i, id := range ids {
		require.False(t, st.other.live(id), "%s: id %d", where, i)
	}
	all, err := st.other.Sessions(st.t.Context(), st.owner)
	require.NoError(t, err)
	require.Empty(t, all)
}

// Whatever somebody is about to do with a session of an owner, and wherever the two interrupt each
// other, the session is out when InvalidateOwner has returned nil.
func TestInvalidateOwner_Interleaved(t *testing.T) {
	t.Parallel()
	check := func(act act, bound bool) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			ctx := st.t.Context()
			for i, more := 0, true; more; i++ { // trips of the revoker before those of the mover
				for j, further := 0, true; further; j++ { // trips of the mover before the rest
					for _, end := range some([]string{"the revoker first", "the mover first", "the mover dies"}, i+j) {
						login, from, to := st.prepare(bound)
						st.revoker.begin(func(s *RedisStore) error {
							_, err := s.InvalidateOwner(ctx, st.owner)
							return err
						})
						st.mover.begin(func(s *RedisStore) error { return act(ctx, s, login, from, to) })
						more = st.revoker.advance(i)
						further = st.mover.advance(j)
						where := strings.Join([]string{strconv.Itoa(i), strconv.Itoa(j), end}, ", ")
						switch end {
						case "the mover first":
							_ = st.mover.finish()
						case "the mover dies":
							st.mover.die()
						}
						require.NoError(t, st.revoker.finish(), where)
						if err := st.mover.finish(); err != nil && end != "the mover dies" {
							require.True(t, errors.Is(err, ErrInvalidated) || errors.Is(err, ErrConflict) ||
								errors.Is(err, ErrStaleLogin), "%s: %v", where, err)
						}
						ids := []string{to}
						if bound {
							ids = append(ids, from)
						}
						st.requireOut(t, where, ids...)
					}
				}
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for name, a := range acts() {
			t.Run(name, func(t *testing.T) {
				check(a.act, a.bound)(t, newStage(t))
				mutants := map[string]mutant{
					"no new generation": {"revoke", "generation = generation + 1\n", "\n"},
				}
				if strings.HasPrefix(name, "login by") {
					mutants["any ticket"] = mutant{"bind", "if stale or", "if"}
					mutants["no tombstone for what is not written"] = mutant{
						"invalidate", "local keep =", "if not live and condition == '' then return 'A' end\nlocal keep ="}
				}
				caughtOn(t, newStage, check(a.act, a.bound), mutants)
			})
		}
	})
}

// An InvalidateOwner that was broken off at any trip is finished by whoever lists the sessions
// next, and by the next InvalidateOwner.
func TestInvalidateOwner_BrokenOff(t *testing.T) {
	t.Parallel()
	check := func(finish func(s *RedisStore, owner, keep string) error) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			ctx := st.t.Context()
			for i, more := 1, true; more; i++ { // the first trip closes the generation
				st.owner = NewID()
				login := st.other.login(st.owner)
				live, moved := st.other.bound(st.owner), st.other.bound(st.owner)
				next, reserved := NewID(), NewID()
				_, err := st.other.Rotate(ctx, moved, next)
				require.NoError(t, err)
				b, err := st.other.Reserve(ctx, reserved, login, until())
				require.NoError(t, err)
				st.revoker.begin(func(s *RedisStore) error {
					_, err := s.InvalidateOwner(ctx, st.owner)
					return err
				})
				more = st.revoker.advance(i)
				st.revoker.die()
				_, err = st.other.Reserve(ctx, NewID(), login, until())
				require.ErrorIs(t, err, ErrStaleLogin)
				begun := st.other.bound(st.owner) // it is not ended by mistake

				require.NoError(t, finish(st.mover.RedisStore, st.owner, begun))
				_, err = st.other.Write(ctx, reserved, nil, time.Hour, Bound(b))
				require.ErrorIs(t, err, ErrInvalidated)
				for _, id := range []string{live, moved, next} {
					require.False(t, st.other.live(id))
				}
				require.True(t, st.other.live(begun))
				all, err := st.other.Sessions(ctx, st.owner)
				require.NoError(t, err)
				require.Len(t, all, 1)
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for name, finish := range map[string]func(s *RedisStore, owner, keep string) error{
			"Sessions": func(s *RedisStore, owner, _ string) error {
				_, err := s.Sessions(t.Context(), owner)
				return err
			},
			"InvalidateOwner": func(s *RedisStore, owner, keep string) error {
				_, err := s.InvalidateOwner(t.Context(), owner, Except(keep))
				return err
			},
		} {
			t.Run(name, func(t *testing.T) {
				check(finish)(t, newStage(t))
				caughtOn(t, newStage, check(finish), map[string]mutant{
					"no new generation": {"revoke", "generation = generation + 1\n", "\n"},
				})
			})
		}
	})
}

// The session that is to go on does so, whatever it is about to become, and it alone.
func TestInvalidateOwner_ExceptInterleaved(t *testing.T) {
	t.Parallel()
	check := func(move move) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			ctx := st.t.Context()
			for i, more := 0, true; more; i++ {
				for j, further := 0, true; further; j++ {
					for _, first := range some([]*actor{st.revoker, st.mover}, i+j) {
						st.owner = NewID()
						other, from, to := st.other.bound(st.owner), st.other.bound(st.owner), NewID()
						st.revoker.begin(func(s *RedisStore) error {
							n, err := s.InvalidateOwner(ctx, st.owner, Except(from))
							if err == nil && n != 1 {
								err = errUnexpected
							}
							return err
						})
						st.mover.begin(func(s *RedisStore) error {
							_, err := move(ctx, s, from, to)
							return err
						})
						more = st.revoker.advance(i)
						further = st.mover.advance(j)
						_ = first.finish()
						where := strconv.Itoa(i) + ", " + strconv.Itoa(j)
						require.NoError(t, st.mover.finish(), where)
						require.NoError(t, st.revoker.finish(), where)
						require.False(t, st.other.live(other), where)
						require.False(t, st.other.live(from), where)
						require.True(t, st.other.live(to), where)
						all, err := st.other.Sessions(ctx, st.owner)
						require.NoError(t, err)
						require.Len(t, all, 1)
						require.Equal(t, Ref(to), all[0].Ref)
					}
				}
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for kind, move := range moves {
			t.Run(kind, func(t *testing.T) {
				check(move)(t, newStage(t))
				caughtOn(t, newStage, check(move), map[string]mutant{
					"a move joins the open generation anew": {"bind", "score = score or tonumber(found[4])", "score = score or 2^32"},
					"Except is not moved up":                {"revoke", "if score then redis.call", "if false then redis.call"},
					"Except takes any id":                   {"revoke", "if kept and (not score or", "if false and (not score or"},
				})
			})
		}
	})
}

// Each reply of an InvalidateOwner may be lost: one generation is closed, and the session that goes
// on is kept.
func TestInvalidateOwner_LostReply(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, st *stage) {
		ctx := st.t.Context()
		for lose := 1; ; lose++ {
			st.owner = NewID()
			kept, other := st.other.bound(st.owner), st.other.bound(st.owner)
			before := st.other.login(st.owner).Generation
			st.revoker.lose = lose
			_, err := st.revoker.InvalidateOwner(ctx, st.owner, Except(kept))
			require.NoError(t, err)
			require.Equal(t, before+1, st.other.login(st.owner).Generation, "trip %d", lose)
			require.True(t, st.other.live(kept))
			require.False(t, st.other.live(other))
			if st.revoker.lose > 0 {
				require.Greater(t, lose, 4)
				return
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		check(t, newStage(t))
		caughtOn(t, newStage, check, map[string]mutant{
			"a revoke does not know itself": {"revoke", "if not redis.call('ZSCORE', KEYS[1], 'x' .. ARGV[1]) then", "do"},
		})
	})
}

// Each reply of a login, and of a move, may be lost: there is one entry of what is live.
func TestBinding_LostReply(t *testing.T) {
	t.Parallel()
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for name, a := range acts() {
			t.Run(name, func(t *testing.T) {
				st := newStage(t)
				for lose := 1; ; lose++ {
					login, from, to := st.prepare(a.bound)
					st.mover.lose = lose
					err := a.act(t.Context(), st.mover.RedisStore, login, from, to)
					all, err2 := st.other.Sessions(t.Context(), st.owner)
					require.NoError(t, err2)
					if errors.Is(err, ErrUnknownOutcome) { // the record came with the reply
						require.Contains(t, name, "otate")
						require.Empty(t, all)
					} else {
						require.NoError(t, err, "trip %d", lose)
						require.Len(t, all, 1)
						require.Equal(t, Ref(to), all[0].Ref)
					}
					_, err = st.other.InvalidateOwner(t.Context(), st.owner)
					require.NoError(t, err)
					st.requireOut(t, name, to)
					if st.mover.lose > 0 {
						break
					}
				}
				st.mover.lose = 0
			})
		}
	})
}

// members returns what the server holds for an owner, with scores.
func (b *bed) members(owner string) map[string]int64 {
	b.t.Helper()
	all, err := b.do("ZRANGE", b.ownerKey(Ref(owner)), "0", "-1", "WITHSCORES").AsZScores()
	require.NoError(b.t, err)
	members := map[string]int64{}
	for _, m := range all {
		members[m.Member] = int64(m.Score)
	}
	return members
}

func (b *bed) ownerTTLOf(owner string) time.Duration {
	b.t.Helper()
	ttl, err := b.do("PTTL", b.ownerKey(Ref(owner))).AsInt64()
	require.NoError(b.t, err)
	return time.Duration(ttl) * time.Millisecond
}

func TestBinding_Stored(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t, WithMaxSessions(9, Refuse))
		ctx, owner, id, deadline := t.Context(), "alice@example.org", NewID(), time.Now().Add(48*time.Hour)
		login := w.login(owner)
		require.EqualValues(t, -1, login.Generation)
		require.Empty(t, w.members(owner), "nothing is written")
		b, err := w.Reserve(ctx, id, login, Until(deadline), Label("phone"))
		require.NoError(t, err)
		members := w.members(owner)
		require.Len(t, members, 3)
		generation := w.login(owner).Generation
		require.Less(t, generation, int64(1<<20))
		require.Equal(t, -2*generation, members["g"])
		seconds := (deadline.UnixMilli() + 999) / 1000
		require.Equal(t, generation<<32+seconds+3600, members["l"+Ref(id)])
		require.InDelta(t, -time.Now().Unix(), members["w"+Ref(id)], 60)
		almost(t, 50*time.Hour, w.ownerTTLOf(owner))

		s := w.write(id, "data", time.Hour, Bound(b))
		value, ttl := w.raw(id)
		almost(t, time.Hour, ttl)
		digest := string(digestOf(Ref(owner)))
		want := "\xc1\x01" + s.Version.bytes() + string(b.header())[offsetCreated:headerSize] +
			"\x00\x1b" + "\x01\x00\x10" + digest + "\x02\x00\x05phone" + "data"
		require.Equal(t, want, value)
		require.Equal(t, b.CreatedAt.UnixMilli(), milli48(value[offsetCreated:]))
		require.Equal(t, deadline.UnixMilli(), milli48(value[offsetDeadline:]))

		// Two keys, and the owner in none of what was sent.
		keys := redistest.Keys(ctx, w.other.client, w.prefix)
		if !w.cluster {
			require.ElementsMatch(t, []string{w.keyOf(id), w.prefix + "o:" + Ref(owner)}, keys)
		}
		for _, words := range w.tap.sent() {
			require.NotContains(t, strings.Join(words, " "), owner)
		}

		before := members["l"+Ref(id)]
		for kind, move := range moves {
			next := NewID()
			moved, err := move(ctx, w.RedisStore, id, next)
			require.NoError(t, err)
			require.Equal(t, s.CreatedAt, moved.CreatedAt)
			value, _ := w.raw(next)
			require.Equal(t, afterVersion(want), afterVersion(value), kind)
			members := w.members(owner)
			require.NotContains(t, members, "l"+Ref(id))
			require.Contains(t, members, "w"+Ref(id), "so that it is not entered again")
			require.Equal(t, before, members["l"+Ref(next)])
			require.Contains(t, members, "w"+Ref(next))
			id = next
		}
		require.NoError(t, w.Invalidate(ctx, id))
		require.NotContains(t, w.members(owner), "l"+Ref(id))
		require.Len(t, w.members(owner), 1+1+len(moves))

		n, err := w.InvalidateOwner(ctx, owner)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, -2*(generation+1)-1, w.members(owner)["g"])

		// A key that a revoke has made lives as long as a login from before it is accepted, and a
		// tombstone.
		_, err = w.InvalidateOwner(ctx, "bob")
		require.NoError(t, err)
		almost(t, 26*time.Hour, w.ownerTTLOf("bob"))
	})
}

// The absolute timeout begins when the server says so, and the deadline of the caller is kept if it
// is sooner.
func TestReserve_AbsoluteTimeout(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, login := w.t.Context(), w.login(NewID())
		login.At = login.At.Add(-time.Minute) // the user had to think of the password
		for i := range 20 {
			b, err := w.Reserve(ctx, NewID(), login)
			require.NoError(t, err)
			require.Equal(t, b.CreatedAt.Add(time.Hour), b.Deadline)
			sooner := time.Now().Add(time.Minute * time.Duration(i+1)).Truncate(time.Millisecond)
			b, err = w.Reserve(ctx, NewID(), login, Until(sooner))
			require.NoError(t, err)
			require.Equal(t, sooner, b.Deadline)
			b, err = w.Reserve(ctx, NewID(), login, until())
			require.NoError(t, err)
			require.Equal(t, b.CreatedAt.Add(time.Hour), b.Deadline)
		}
	}
	newTimed := func(t *testing.T) world { return newWorld(t, redistest.URL(t), WithAbsoluteTimeout(time.Hour)) }
	check(t, newTimed(t))
	catches(t, newTimed, check, map[string]mutant{
		"the timeout begins with the login": {"bind", "then deadline = now + absolute", "then deadline = ARGV[7] + absolute"},
		"the later deadline counts":         {"bind", "deadline > now + absolute", "deadline < now + absolute"},
	})
}

// An id that is reserved again lives as long as the later one of two deadlines in the owner's key,
// or what is written with the later one would be forgotten too early.
func TestReserve_Again(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, owner, id := w.t.Context(), NewID(), NewID()
		login, now := w.login(owner), time.Now()
		var latest int64
		for _, hours := range []time.Duration{2, 3, 1} {
			b, err := w.Reserve(ctx, id, login, Until(now.Add(hours*time.Hour)))
			require.NoError(t, err)
			latest = max(latest, (b.Deadline.UnixMilli()+999)/1000)
			require.Equal(t, latest+3600, w.members(owner)["l"+Ref(id)]&(1<<32-1))
		}
	}
	newPlain := func(t *testing.T) world { return newWorld(t, redistest.URL(t)) }
	check(t, newPlain(t))
	catches(t, newPlain, check, map[string]mutant{
		"the first score stays": {"bind", "math.max(score or own, own)", "score or own"},
		"the last score counts": {"bind", "math.max(score or own, own)", "own"},
	})
}

// An attempt of Reserve, or of a move, that comes late enters nothing: its id has been taken out.
func TestBinding_EnteredOnce(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for name, leave := range map[string]func(id string, b Binding) error{
			"released": func(_ string, b Binding) error { return w.Release(ctx, b) },
			"ended":    func(id string, _ Binding) error { return w.Invalidate(ctx, id) },
			"moved": func(id string, _ Binding) error {
				_, err := w.Rotate(ctx, id, NewID())
				return err
			},
			"renewed": func(id string, _ Binding) error {
				_, err := moves["renewal"](ctx, w.RedisStore, id, NewID())
				return err
			},
		} {
			owner, id, left := NewID(), NewID(), NewID()
			login := w.login(owner)
			b, err := w.Reserve(ctx, id, login, until())
			require.NoError(t, err)
			w.write(id, "data", time.Hour, Bound(b))
			require.NoError(t, leave(id, b))
			before := w.members(owner)
			_, err = w.Reserve(ctx, id, login, until())
			require.ErrorIs(t, err, ErrConflict, name)
			require.Equal(t, before, w.members(owner), name)
			_, _, _, err = w.enter(ctx, Ref(owner), Ref(id), decimal(b.Deadline.UnixMilli()), w.ownerTTL(), "1", Ref(left))
			require.NoError(t, err, name)
			require.Equal(t, before, w.members(owner), name)
		}
	}
	newPlain := func(t *testing.T) world { return newWorld(t, redistest.URL(t)) }
	check(t, newPlain(t))
	catches(t, newPlain, check, map[string]mutant{
		"a late login is entered": {"bind", " or not score and found[3] then return 'C'", " then return 'C'"},
		"a late move is entered":  {"bind", "elseif not score and found[3] then", "elseif false then"},
		"no mark":                 {"bind", "'g', score, entry, -seconds, mark)", "'g', score, entry)"},
	})
}

// An entry stays for as long as its session may live, also if the id was reserved for less.
func TestBinding_ReservedForLess(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for kind, move := range moves {
			owner, next := NewID(), NewID()
			id := w.bound(owner)
			_, err := w.Reserve(ctx, next, w.login(owner), Until(time.Now().Add(time.Minute)))
			require.NoError(t, err)
			s, err := move(ctx, w.RedisStore, id, next)
			require.NoError(t, err, kind)
			forgotten := time.Unix(w.members(owner)["l"+Ref(next)]&(1<<32-1), 0)
			require.False(t, forgotten.Before(s.Deadline()), kind)
		}
	}
	newPlain := func(t *testing.T) world { return newWorld(t, redistest.URL(t)) }
	check(t, newPlain(t))
	catches(t, newPlain, check, map[string]mutant{
		"the place that was reserved stays": {"bind", "score = score and math.max(score, ", "score = score and math.min(score, "},
	})
}

// A session of which nothing is known moves as long as the owner's key may have been lost, but not
// if there was a revoke since.
func TestBinding_LostKey(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, owner := w.t.Context(), NewID()
		for kind, move := range moves {
			id, next := w.bound(owner), NewID()
			w.do("DEL", w.ownerKey(Ref(owner)))
			_, err := move(ctx, w.RedisStore, id, next)
			require.NoError(t, err, kind)
			require.Contains(t, w.members(owner), "l"+Ref(next), kind)

			w.do("DEL", w.ownerKey(Ref(owner)))
			_, err = w.InvalidateOwner(ctx, owner)
			require.NoError(t, err)
			last := NewID()
			_, err = move(ctx, w.RedisStore, next, last)
			require.ErrorIs(t, err, ErrInvalidated, kind)
			require.False(t, w.live(next) || w.live(last), kind)
			require.NotContains(t, w.members(owner), "l"+Ref(last), kind)
		}
	}
	newPlain := func(t *testing.T) world { return newWorld(t, redistest.URL(t)) }
	check(t, newPlain(t))
	catches(t, newPlain, check, map[string]mutant{
		"whoever comes is entered": {"bind", "if not score and revoked then return 'S' end", ""},
		"nobody comes back":        {"bind", "if not score and revoked", "if not score"},
	})
}

// Who does not hear what has become of a Reserve can give it up.
func TestReserve_UnknownOutcome(t *testing.T) {
	t.Parallel()
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		st := newStage(t)
		ctx, owner, id := t.Context(), NewID(), NewID()
		login := st.mover.login(owner)
		brief, cancel := context.WithCancel(ctx)
		defer cancel()
		lost := 0
		st.mover.tap.after = func(words []string) error {
			if nameOf(words) != "bind" {
				return nil
			}
			if lost++; lost == 3 {
				cancel()
			}
			return io.EOF
		}
		b, err := st.mover.Reserve(brief, id, login, until(), Label("phone"))
		require.ErrorIs(t, err, ErrUnknownOutcome)
		require.Contains(t, st.other.members(owner), "l"+Ref(id))
		st.mover.tap.after = nil
		_, err = st.mover.Write(ctx, id, nil, time.Hour, Bound(b))
		require.Error(t, err, "nobody knows until when it is good")
		require.NoError(t, st.mover.Release(ctx, b))
		require.NotContains(t, st.other.members(owner), "l"+Ref(id))
		st.other.requireTombstone(id, Logout)

		// A lost attempt that has found the owner's key full may yet find room.
		st.mover.maxSessions, st.mover.whenFull = 1, Refuse
		st.other.bound(owner)
		for lose := range 3 {
			st.mover.lose = 0
			if lose > 0 {
				st.mover.lose = 1
			}
			b, err = st.mover.Reserve(ctx, NewID(), login, until())
			if lose == 0 {
				require.ErrorIs(t, err, ErrTooManySessions)
				require.Zero(t, b)
				continue
			}
			require.ErrorIs(t, err, ErrUnknownOutcome)
			require.NotErrorIs(t, err, ErrTooManySessions)
			require.NoError(t, st.mover.Release(ctx, b))
		}
	})
}

// What was left of the old life does not bound the new one.
func TestBinding_NewLife(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		ctx, old, id := t.Context(), NewID(), NewID()
		w.plant(old, string(newHeader(1, 1, time.Now().Add(5*time.Minute).UnixMilli()))+"data", time.Minute)
		b, err := w.Reserve(ctx, id, w.login("alice"), until())
		require.NoError(t, err)
		_, err = w.Rotate(ctx, old, id, WithBinding(b), WithData([]byte("more"), time.Hour))
		require.NoError(t, err)
		value, ttl := w.raw(id)
		almost(t, time.Hour, ttl)
		require.Equal(t, b.Deadline.UnixMilli(), milli48(value[offsetDeadline:]))
	})
}

// A deadline that is further away than a score can tell is kept, and its entry is not pruned.
func TestBinding_FarDeadline(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	owner, id := NewID(), NewID()
	binding, err := b.Reserve(t.Context(), id, b.login(owner), Until(time.Unix(1<<40, 0)))
	require.NoError(t, err)
	b.write(id, "data", time.Hour, Bound(binding))
	generation := b.login(owner).Generation
	require.Equal(t, generation<<32+1<<32-1, b.members(owner)["l"+Ref(id)])
	_, err = b.InvalidateOwner(t.Context(), owner, Except(id))
	require.NoError(t, err)
	require.True(t, b.live(id))
	_, err = b.InvalidateOwner(t.Context(), owner)
	require.NoError(t, err)
	require.False(t, b.live(id))
}

// What has expired goes, and nothing else does.
func TestBinding_Prunes(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, owner := w.t.Context(), NewID()
		live := w.bound(owner)
		key, now, generation := w.ownerKey(Ref(owner)), time.Now().Unix(), w.login(owner).Generation
		plant := func(member string, score int64) { w.do("ZADD", key, decimal(score), member) }
		plant("lexpired", generation<<32+now-10)
		plant("lyesterday's", generation<<32+now+3500)
		plant("lolder", (generation-1)<<32+now+7200)
		plant("lolder expired", (generation-1)<<32+now-10)
		plant("wlate", -now+3700)
		plant("wearly", -now+3500)
		plant("xlate", -now+3700)
		login, next := w.login(owner), NewID()
		for range 1000 { // one in sixteen prunes
			_, err := w.Reserve(ctx, next, login, until())
			require.NoError(t, err)
			if _, there := w.members(owner)["lexpired"]; !there {
				break
			}
		}
		members := slices.Sorted(func(yield func(string) bool) {
			for m := range w.members(owner) {
				if !yield(m) {
					return
				}
			}
		})
		want := []string{"g", "l" + Ref(live), "l" + Ref(next), "lolder", "lolder expired", "lyesterday's",
			"w" + Ref(live), "w" + Ref(next), "wearly"}
		slices.Sort(want)
		require.Equal(t, want, members)

		plant("xlate", -now+3700)
		_, err := w.InvalidateOwner(ctx, owner)
		require.ErrorIs(t, err, ErrCorrupt, "refs that are none")
		require.NotContains(t, w.members(owner), "xlate")
		require.Contains(t, w.members(owner), "g")
	}
	newPlain := func(t *testing.T) world { return newWorld(t, redistest.URL(t), WithMaxSessions(9, Refuse)) }
	check(t, newPlain(t))
	catches(t, newPlain, check, map[string]mutant{
		"prunes the generation":        {"bind", "drop(3600 - seconds, g - 1)", "drop(3600 - seconds, g)"},
		"prunes what is to be ended":   {"bind", "drop(base, base + seconds)", "drop(1, base + seconds)"},
		"prunes what is not expired":   {"bind", "drop(base, base + seconds)", "drop(base, base + seconds + 3600)"},
		"prunes marks that are young":  {"bind", "drop(3600 - seconds, g - 1)", "drop(-seconds, g - 1)"},
		"a revoke prunes no old marks": {"revoke", "drop(3600 - seconds,", "drop(3600 - 3600,"},
	})
}

// What this package did not write is left as it is.
func TestOwner_ForeignValues(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ctx := t.Context()
	for name, command := range map[string][]string{
		"string":               {"SET", "", "x"},
		"hash":                 {"HSET", "", "x", "y"},
		"set without the mark": {"ZADD", "", "1", "x"},
	} {
		owner, id := NewID(), NewID()
		key := b.ownerKey(Ref(owner))
		command[1] = key
		b.do(command...)
		before, err := b.do("DUMP", key).ToString()
		require.NoError(t, err)
		_, err = b.BeginLogin(ctx, owner)
		require.ErrorIs(t, err, ErrCorrupt, name)
		_, err = b.Reserve(ctx, id, Login{Owner: Ref(owner), Generation: -1, At: time.Now()}, until())
		require.ErrorIs(t, err, ErrCorrupt, name)
		_, err = b.Sessions(ctx, owner)
		require.ErrorIs(t, err, ErrCorrupt, name)
		_, err = b.InvalidateOwner(ctx, owner)
		require.ErrorIs(t, err, ErrCorrupt, name)
		require.ErrorIs(t, b.InvalidateOwned(ctx, owner, Ref(id)), ErrCorrupt, name)
		after, err := b.do("DUMP", key).ToString()
		require.NoError(t, err)
		require.Equal(t, before, after, name)
	}
}

// With plain ids no id is an owner's key.
func TestOwner_PlainIDs(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithPlainIDs())
	owner := NewID()
	id := b.bound(owner)
	require.Contains(t, b.members(owner), "l"+id)
	_, err := b.Read(t.Context(), "o:"+Ref(owner))
	require.ErrorIs(t, err, ErrInvalidID)
	require.ErrorIs(t, b.InvalidateRef(t.Context(), "o:"+Ref(owner)), ErrInvalidID)
	n, err := b.InvalidateOwner(t.Context(), owner)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.False(t, b.live(id))
}

// Who does not use owners pays nothing, and a binding is one trip more.
func TestOwner_Trips(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		ctx := t.Context()
		trips := func(do func() error) string {
			return w.tap.tripsOf(func() { require.NoError(t, do()) })
		}
		id, next, owner := NewID(), NewID(), NewID()
		var login Login
		var b Binding
		var s Session
		require.Equal(t, "EXISTS+ZSCORE+TIME", trips(func() (err error) { login, err = w.BeginLogin(ctx, owner); return }))
		require.Equal(t, "bind", trips(func() (err error) { b, err = w.Reserve(ctx, id, login, until()); return }))
		require.Equal(t, "write", trips(func() (err error) { s, err = w.Write(ctx, id, nil, time.Hour, Bound(b)); return }))
		require.Equal(t, "GET", trips(func() (err error) { s, err = w.Read(ctx, id); return }))
		require.Equal(t, "SET", trips(func() (err error) { s, err = w.Write(ctx, id, nil, time.Hour, Replacing(s)); return }))
		require.Equal(t, "touch", trips(func() error { return w.Touch(ctx, id, time.Hour) }))
		steps := "EXISTS rotate bind write"
		if !w.cluster {
			steps = "rotate " + steps
		}
		require.Equal(t, steps, trips(func() (err error) { _, err = w.Rotate(ctx, id, next); return }))
		require.Equal(t, "invalidate ZREM", trips(func() error { return w.Invalidate(ctx, next) }))

		// Of nobody's.
		id, next = NewID(), NewID()
		w.write(id, "", time.Hour)
		if w.cluster {
			require.Equal(t, "EXISTS rotate write", trips(func() (err error) { _, err = w.Rotate(ctx, id, next); return }))
		} else {
			require.Equal(t, "rotate GET", trips(func() (err error) { _, err = w.Rotate(ctx, id, next); return }))
		}
		require.Equal(t, "invalidate", trips(func() error { return w.Invalidate(ctx, next) }))
	})
}

// More sessions than one look takes, many with one deadline.
func TestSessions_Many(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		const many = 1100
		ctx, owner, same := t.Context(), NewID(), Until(time.Now().Add(time.Hour))
		want := map[string]bool{}
		for i := range many {
			id := NewID()
			opts := []ReserveOption{same}
			if i >= many/2+100 {
				opts = []ReserveOption{Until(time.Now().Add(time.Duration(i) * time.Minute))}
			}
			b, err := w.Reserve(ctx, id, w.login(owner), append(opts, Label(strconv.Itoa(i)))...)
			require.NoError(t, err)
			w.write(id, "", time.Hour, Bound(b))
			want[Ref(id)] = true
		}
		var all []OwnedSession
		trips := strings.Fields(w.tap.tripsOf(func() {
			var err error
			all, err = w.Sessions(ctx, owner)
			require.NoError(t, err)
		}))
		require.LessOrEqual(t, len(trips), 2*many/100)
		require.Len(t, all, many)
		for _, s := range all {
			require.True(t, want[s.Ref])
			delete(want, s.Ref)
		}

		trips = strings.Fields(w.tap.tripsOf(func() {
			n, err := w.InvalidateOwner(ctx, owner)
			require.NoError(t, err)
			require.Equal(t, many, n)
		}))
		require.LessOrEqual(t, len(trips), 2*many/100)
		all, err := w.Sessions(ctx, owner)
		require.NoError(t, err)
		require.Empty(t, all)
	})
}

// A header with more than this version writes is read in full.
func TestSessions_Future(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	owner := NewID()
	id := b.bound(owner, Label("phone"))
	value, _ := b.raw(id)
	items := value[headerSize+2 : len(value)-len("data")]
	for _, more := range futureItems {
		more = more[:min(len(more), 0xf000)]
		if len(more) > 3 {
			more = more[:1] + string([]byte{byte((len(more) - 3) >> 8), byte(len(more) - 3)}) + more[3:]
		}
		all := more + items
		b.plant(id, value[:headerSize]+string([]byte{byte(len(all) >> 8), byte(len(all))})+all+"data", time.Hour)
		found, err := b.Sessions(t.Context(), owner)
		require.NoError(t, err)
		require.Len(t, found, 1)
		require.Equal(t, "phone", found[0].Label)
		next := NewID()
		_, err = b.Rotate(t.Context(), id, next)
		require.NoError(t, err)
		require.Contains(t, b.members(owner), "l"+Ref(next))
		id = next
	}
}

// A logout everywhere works on a server that is at maxmemory.
func TestInvalidateOwner_FullMemory(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx, owner := w.t.Context(), NewID()
		login := w.login(owner)
		id := w.bound(owner)
		w.do("CONFIG", "SET", "maxmemory", "1")
		_, err := w.Reserve(ctx, NewID(), login, until())
		require.ErrorContains(t, err, "server answered OOM")
		n, err := w.InvalidateOwner(ctx, owner)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.False(t, w.live(id))
		_, err = w.Reserve(ctx, NewID(), login, until())
		require.ErrorIs(t, err, ErrStaleLogin)
	}
	newFull := func(t *testing.T) world {
		return newWorld(t, redistest.Start(t, "--maxmemory-policy", "noeviction").URL)
	}
	check(t, newFull(t))
	catches(t, newFull, check, map[string]mutant{
		"the first write needs memory": {"revoke", "redis.call('ZREM', KEYS[1], '')", ""},
	})
}

// With WithReplicaAcks what is bound, and what is closed, is on the replicas when the call returns.
func TestOwner_ReplicaAcks(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Dial(t, redistest.Start(t).URL))
	b := bedOn(t, client, WithReplicaAcks(1, 10*time.Millisecond))
	loadScripts(t, b)
	ctx, owner, id, next := t.Context(), NewID(), NewID(), NewID()
	login := b.login(owner)
	written := func() string { return redistest.Info(t, client, "rdb_changes_since_last_save") }
	var binding Binding
	var err error
	require.Equal(t, "bind bind+WAIT", client.tripsOf(func() { binding, err = b.Reserve(ctx, id, login, until()) }))
	require.ErrorIs(t, err, ErrUnacknowledged)
	before := written()
	again, err := b.Reserve(ctx, id, login, until())
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.NotEqual(t, before, written(), "a second run writes, too")
	require.Equal(t, binding.Ref, again.Ref)
	_, err = b.Write(ctx, id, nil, time.Hour, Bound(binding))
	require.NoError(t, err)
	s, err := b.Rotate(ctx, id, next)
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.NotZero(t, s.Version)
	require.True(t, b.live(next))
	n := 0
	require.Contains(t, client.tripsOf(func() { n, err = b.InvalidateOwner(ctx, owner) }), "revoke revoke+WAIT ")
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.Equal(t, 1, n)
	require.False(t, b.live(next))
	require.Contains(t, b.members(owner), "l"+Ref(next), "nobody has confirmed its end")
	_, err = b.InvalidateOwner(ctx, owner)
	require.ErrorIs(t, err, ErrUnacknowledged)

	key, args := b.ownerKey(Ref(owner)), []string{"nonce", b.ownerTTL(), "1", "-1"}
	first, _, err := b.runAndWait(ctx, &revokeScript, key, args)
	require.NoError(t, err)
	before = written()
	second, _, err := b.runAndWait(ctx, &revokeScript, key, args)
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.NotEqual(t, before, written(), "a second run writes, too")
}

// A Binding is good for the time of a request, and no longer than a tombstone that it may meet.
func TestBinding_GrowsOld(t *testing.T) {
	t.Parallel()
	for tombstone, want := range map[time.Duration]time.Duration{24 * time.Hour: reservedFor, time.Second: time.Second / 2} {
		b := newBed(t, WithTombstoneTTL(tombstone))
		before := time.Now()
		binding, err := b.Reserve(t.Context(), NewID(), b.login("alice"), until())
		require.NoError(t, err)
		require.WithinRange(t, binding.until, before.Add(want), time.Now().Add(want))
		binding.until = time.Now()
		require.ErrorIs(t, binding.usable("", binding.Ref), ErrStaleLogin)
	}
}

// An entry that has come late, and leads through the tombstone of an id to the session that goes
// on, ends nothing but itself.
func TestOwner_LateEntries(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		ctx := t.Context()
		late := func(owner string) (id string) { // the session has moved on since
			login, first, second, third := w.login(owner), NewID(), NewID(), NewID()
			b, err := w.Reserve(ctx, first, login, until())
			require.NoError(t, err)
			w.write(first, "data", time.Hour, Bound(b))
			_, err = w.Rotate(ctx, first, second)
			require.NoError(t, err)
			_, err = w.Rotate(ctx, second, third)
			require.NoError(t, err)
			// Nothing is entered for an hour.
			before := w.members(owner)
			_, err = w.Reserve(ctx, first, login, until())
			require.ErrorIs(t, err, ErrConflict)
			_, _, _, err = w.enter(ctx, Ref(owner), Ref(second), decimal(b.Deadline.UnixMilli()), w.ownerTTL(), "1", Ref(first))
			require.NoError(t, err)
			require.Equal(t, before, w.members(owner))

			key, score := w.ownerKey(Ref(owner)), decimal(before["l"+Ref(third)])
			w.do("ZADD", key, score, "l"+Ref(first), score, "l"+Ref(second))
			return third
		}
		owner := NewID()
		id := late(owner)
		n, err := w.InvalidateOwner(ctx, owner, Except(id))
		require.NoError(t, err)
		require.Zero(t, n)
		require.True(t, w.live(id))

		// It was broken off, and somebody else goes on.
		owner = NewID()
		id = late(owner)
		_, _, err = w.revoke(ctx, w.ownerKey(Ref(owner)), w.keyOf(id), Revoked)
		require.NoError(t, err)
		all, err := w.Sessions(ctx, owner)
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.True(t, w.live(id))

		// Whoever makes room, when they are no longer young.
		owner = NewID()
		id = late(owner)
		end := dumpOf(Rotated, time.Now().Add(-time.Hour))[dumpHead : dumpHead+endSize]
		for member := range w.members(owner) {
			ref, ours := strings.CutPrefix(member, "l")
			if ours && ref != Ref(id) {
				w.do("HSET", w.prefix+ref, "t", end)
			}
		}
		w.maxSessions, w.whenFull = 2, Refuse
		second := w.bound(owner)
		w.maxSessions = 0
		require.True(t, w.live(id))
		require.True(t, w.live(second))
	})
}

// A session whose end fails is not taken out.
func TestInvalidateOwner_Fails(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	owner, other := NewID(), NewID()
	id, live := b.bound(owner), b.bound(owner)
	b.do("SET", b.keyOf(id), "foreign")
	for range 2 {
		_, err := b.InvalidateOwner(t.Context(), owner)
		require.ErrorIs(t, err, ErrCorrupt)
		require.False(t, b.live(live), "what can be ended is ended")
		require.Contains(t, b.members(owner), "l"+Ref(id))
		require.NotContains(t, b.members(owner), "l"+Ref(live))
	}
	id = b.bound(other)
	b.do("ZADD", b.ownerKey(Ref(other)), "5", "other")
	_, err := b.InvalidateOwner(t.Context(), other)
	require.ErrorIs(t, err, ErrCorrupt)
	require.True(t, b.live(id))
}

// A session that moves while an owner's are ended and replicas are late is not passed over: with
// ErrUnacknowledged all have been ended.
func TestInvalidateOwner_UnacknowledgedMove(t *testing.T) {
	t.Parallel()
	url := redistest.Start(t).URL
	other := bedOn(t, redistest.Dial(t, url))
	client := newTap(redistest.Dial(t, url))
	b := bedOn(t, client, WithReplicaAcks(1, time.Millisecond), WithKeyPrefix(other.prefix))
	owner := NewID()
	first, second, next := other.bound(owner), other.bound(owner), NewID()
	moved := false
	client.after = func(words []string) error {
		if words[0] == "ZRANGE" && !moved {
			moved = true
			_, err := other.Rotate(t.Context(), first, next)
			require.NoError(t, err)
		}
		return nil
	}
	_, err := b.InvalidateOwner(t.Context(), owner)
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.True(t, moved)
	for _, id := range []string{first, second, next} {
		require.False(t, b.live(id))
	}
}

// Nor is any passed over because the replicas of one could not be asked.
func TestInvalidateOwner_UnacknowledgedInTime(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Dial(t, redistest.Start(t).URL))
	b := bedOn(t, client, WithReplicaAcks(1, time.Millisecond), WithTimeout(time.Second))
	other := bedOn(t, client.Client, WithKeyPrefix(b.prefix))
	owner := NewID()
	first, second := other.bound(owner), other.bound(owner)
	client.after = func(words []string) error {
		if words[0] == "WAIT" {
			return context.DeadlineExceeded
		}
		return nil
	}
	_, err := b.InvalidateOwner(t.Context(), owner)
	require.ErrorIs(t, err, ErrUnacknowledged)
	require.False(t, other.live(first))
	require.False(t, other.live(second))
}

// At no moment of a login or a move is a session live that has no entry: without one it could be
// found through tombstones only, until these expire.
func TestBinding_EntryBeforeSession(t *testing.T) {
	t.Parallel()
	check := func(act act, bound bool) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			login, from, to := st.prepare(bound)
			st.mover.begin(func(s *RedisStore) error { return act(st.t.Context(), s, login, from, to) })
			for !st.mover.over {
				st.mover.advance(1)
				for _, id := range []string{from, to} {
					if st.other.live(id) && (bound || id == to) {
						require.Contains(t, st.other.members(st.owner), "l"+Ref(id))
					}
				}
			}
			require.NoError(t, st.mover.err)
			require.True(t, st.other.live(to))
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for name, a := range acts() {
			t.Run(name, func(t *testing.T) {
				check(a.act, a.bound)(t, newStage(t))
				mutants := map[string]mutant{}
				if !strings.HasPrefix(name, "login") {
					mutants["a move takes the entry of the old id out only"] = mutant{
						"bind", "redis.call('ZADD', KEYS[1], score, entry, -seconds, mark)", ""}
				}
				caughtOn(t, newStage, check(a.act, a.bound), mutants)
			})
		}
	})
}

// The keys of all owners of a session have it, under each of its ids, and none has it when it was
// ended.
func TestBinding_SeveralStored(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		ctx, names := t.Context(), []string{NewID(), NewID(), NewID(), NewID()}
		also := func() []ReserveOption {
			return []ReserveOption{until(), Label("phone"), Also(w.login(names[1])), Also(w.login(names[2])), AlsoFinal(names[3])}
		}
		entered := func(id string, want bool) {
			t.Helper()
			for _, name := range names {
				_, found := w.members(name)["l"+Ref(id)]
				require.Equal(t, want, found)
			}
		}
		id := w.bound(names[0], also()...)
		entered(id, true)
		value, _ := w.raw(id)
		require.Equal(t, 24+4*19+3+5+len("data"), len(value))
		for _, move := range moves {
			next := NewID()
			_, err := move(ctx, w.RedisStore, id, next)
			require.NoError(t, err)
			entered(id, false)
			entered(next, true)
			id = next
		}
		require.NoError(t, w.Invalidate(ctx, id))
		entered(id, false)

		reserved := NewID()
		b, err := w.Reserve(ctx, reserved, w.login(names[0]), also()...)
		require.NoError(t, err)
		entered(reserved, true)
		require.NoError(t, w.Release(ctx, b))
		entered(reserved, false)

		id = w.bound(names[0], also()...)
		_, err = w.InvalidateOwner(ctx, names[1])
		require.NoError(t, err)
		entered(id, false)

		// Of one whose label is as long as can be the list reads all it needs at once.
		label := strings.Repeat("x", maxLabel)
		w.bound(names[0], append(also(), Label(label))...)
		trips := w.tap.tripsOf(func() {
			all, err := w.Sessions(ctx, names[3])
			require.NoError(t, err)
			require.Equal(t, label, all[0].Label)
		})
		require.Equal(t, 1, strings.Count(trips, "GETRANGE"))
	})
}

func TestOwner_NothingSent(t *testing.T) {
	t.Parallel()
	s, err := New(untouchable{})
	require.NoError(t, err)
	ctx, id, long := t.Context(), NewID(), strings.Repeat("x", 1025)
	login := Login{Owner: Ref("alice"), Generation: 1, At: time.Now()}
	for _, bad := range []string{"", long} {
		_, err = s.BeginLogin(ctx, bad)
		require.ErrorIs(t, err, ErrInvalidID)
		_, err = s.Reserve(ctx, bad, login, until())
		require.ErrorIs(t, err, ErrInvalidID)
		_, err = s.Sessions(ctx, bad)
		require.ErrorIs(t, err, ErrInvalidID)
		_, err = s.InvalidateOwner(ctx, bad)
		require.ErrorIs(t, err, ErrInvalidID)
		require.ErrorIs(t, s.InvalidateOwned(ctx, bad, Ref(id)), ErrInvalidID)
		_, err = s.InvalidateOwner(ctx, "alice", Except(bad))
		require.ErrorIs(t, err, ErrInvalidID)
		require.ErrorIs(t, s.InvalidateOwned(ctx, "alice", bad), ErrNotFound)
	}
	_, err = s.Reserve(ctx, id, Login{}, until())
	require.ErrorIs(t, err, ErrStaleLogin)
	_, err = s.Reserve(ctx, id, login)
	require.ErrorIs(t, err, ErrNoDeadline)
	_, err = s.Reserve(ctx, id, login, Until(time.Now()))
	require.ErrorIs(t, err, ErrNoDeadline)
	_, err = s.Reserve(ctx, id, login, until(), Label(long))
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = s.Reserve(ctx, id, login, until(), Also(login), Also(login), AlsoFinal("sid"), AlsoFinal("sid"))
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = s.Reserve(ctx, id, login, until(), Also(Login{}))
	require.ErrorIs(t, err, ErrStaleLogin)
	for _, bad := range []string{"", long} {
		_, err = s.Reserve(ctx, id, login, until(), AlsoFinal(bad))
		require.ErrorIs(t, err, ErrInvalidID)
		_, err = s.Reserve(ctx, id, login, until(), InPlaceOf(bad))
		require.ErrorIs(t, err, ErrInvalidID)
	}
	require.ErrorIs(t, s.Release(ctx, Binding{}), ErrInvalidID)
	old := Binding{Ref: Ref(id), Owners: []string{Ref("alice")}, Deadline: time.Now().Add(time.Hour)}
	_, err = s.Write(ctx, id, nil, time.Hour, Bound(old))
	require.ErrorIs(t, err, ErrStaleLogin)
	_, err = s.Rotate(ctx, NewID(), id, WithBinding(old))
	require.ErrorIs(t, err, ErrStaleLogin)
	_, err = s.FinishRenewal(ctx, Renewal{Ref: Ref("old"), Binding: &old}, id, nil, time.Hour)
	require.ErrorIs(t, err, ErrStaleLogin)

	var read Login
	for _, bad := range []string{"", "x", "x.1.1", Ref("alice") + ".1", Ref("alice") + ".-2.1", Ref("alice") + ".1.x", Ref("alice") + ".1.1.1"} {
		require.ErrorIs(t, read.UnmarshalText([]byte(bad)), ErrStaleLogin)
		require.Zero(t, read)
	}
}
