package tombstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// onAllStores runs a test with a store of each kind.
func onAllStores(t *testing.T, test func(t *testing.T, newStore func(opts ...Option) everything)) {
	cluster := redistest.StartCluster(t).URL
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, func(opts ...Option) everything {
			s, err := NewMemory(opts...)
			require.NoError(t, err)
			return s
		})
	})
	for name, url := range map[string]string{"standalone": redistest.URL(t), "cluster": cluster} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(opts ...Option) everything { return bedOn(t, redistest.Dial(t, url), opts...).RedisStore })
		})
	}
}

// everything is what both stores implement.
type everything interface {
	Renewer
	Lister
	Binder
}

// enter logs an owner in.
func enter(ctx context.Context, s everything, owner string, opts ...ReserveOption) (id string, b Binding, err error) {
	id = NewID()
	login, err := s.BeginLogin(ctx, owner)
	if err == nil {
		b, err = s.Reserve(ctx, id, login, append([]ReserveOption{until()}, opts...)...)
	}
	if err == nil {
		_, err = s.Write(ctx, id, nil, time.Hour, Bound(b))
	}
	return id, b, err
}

func TestMaxSessions_Refuse(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
		s := newStore(WithMaxSessions(2, Refuse))
		ctx, owner := t.Context(), NewID()
		full := func() {
			t.Helper()
			_, _, err := enter(ctx, s, owner)
			require.ErrorIs(t, err, ErrTooManySessions)
		}
		in := func() string {
			t.Helper()
			id, _, err := enter(ctx, s, owner)
			require.NoError(t, err)
			return id
		}
		first, second := in(), in()
		full()
		_, _, err := enter(ctx, s, NewID())
		require.NoError(t, err, "another owner")

		// Whatever a session moves to, it is one.
		next := NewID()
		_, err = s.Rotate(ctx, first, next)
		require.NoError(t, err)
		full()
		r, err := s.BeginRenewal(ctx, next, 0)
		require.NoError(t, err)
		full()
		last := NewID()
		_, err = s.FinishRenewal(ctx, r, last, nil, time.Hour)
		require.NoError(t, err)
		full()

		// A logout makes room, as do an expiry and a renewal that is given up and ended.
		require.NoError(t, s.Invalidate(ctx, second))
		second = in()
		full()
		_, err = s.Write(ctx, second, nil, time.Millisecond)
		require.NoError(t, err)
		redistest.Until(t, "expiry", func() bool { live, err := s.Exists(ctx, second); return err == nil && !live })
		_, err = s.Rotate(ctx, last, NewID())
		require.NoError(t, err)

		// What is reserved counts, until it is released.
		other := NewID()
		in2, _, err := enter(ctx, s, other)
		require.NoError(t, err)
		login, err := s.BeginLogin(ctx, other)
		require.NoError(t, err)
		id := NewID()
		b, err := s.Reserve(ctx, id, login, until())
		require.NoError(t, err)
		_, err = s.Reserve(ctx, id, login, until())
		require.NoError(t, err, "the same once more")
		_, _, err = enter(ctx, s, other)
		require.ErrorIs(t, err, ErrTooManySessions)
		require.NoError(t, s.Release(ctx, b))
		_, _, err = enter(ctx, s, other)
		require.NoError(t, err)

		// A logout everywhere makes room at once.
		_, err = s.InvalidateOwner(ctx, other)
		require.NoError(t, err)
		for range 2 {
			_, _, err = enter(ctx, s, other)
			require.NoError(t, err)
		}
		live, err := s.Exists(ctx, in2)
		require.NoError(t, err)
		require.False(t, live)
	})
}

// A user who logs in again where he is logged in needs no second place, and nobody else has to go.
func TestMaxSessions_InPlaceOf(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
		for _, whenFull := range []WhenFull{Refuse, EvictOldest} {
			s := newStore(WithMaxSessions(2, whenFull))
			ctx, owner := t.Context(), NewID()
			login, err := s.BeginLogin(ctx, owner)
			require.NoError(t, err)
			reserve := func(opts ...ReserveOption) (id string, b Binding, err error) {
				id = NewID()
				b, err = s.Reserve(ctx, id, login, append(opts, until())...)
				return id, b, err
			}
			other, _, err := enter(ctx, s, owner)
			require.NoError(t, err)
			id, _, err := enter(ctx, s, owner)
			require.NoError(t, err)

			for range 2 {
				next, b, err := reserve(InPlaceOf(id))
				require.NoError(t, err)
				all, err := s.Sessions(ctx, owner)
				require.NoError(t, err)
				require.Len(t, all, 2)
				if whenFull == Refuse { // there is one place to give up, for one login
					_, _, err = reserve(InPlaceOf(id))
					require.ErrorIs(t, err, ErrTooManySessions)
					_, _, err = reserve()
					require.ErrorIs(t, err, ErrTooManySessions)
				}
				_, err = s.Rotate(ctx, id, next, WithBinding(b))
				require.NoError(t, err)
				id = next
			}
			all, err := s.Sessions(ctx, owner)
			require.NoError(t, err)
			require.Len(t, all, 2)
			live, err := s.Exists(ctx, other)
			require.NoError(t, err)
			require.True(t, live)

			// What has been ended, or has moved, has no place to give up, and nobody else has to go
			// for it.
			refused := func(gone string) {
				_, _, err = reserve(InPlaceOf(gone))
				require.ErrorIs(t, err, ErrTooManySessions)
				all, err = s.Sessions(ctx, owner)
				require.NoError(t, err)
				require.Len(t, all, 2)
			}
			next := NewID()
			_, err = s.Rotate(ctx, id, next)
			require.NoError(t, err)
			refused(id)
			require.NoError(t, s.Invalidate(ctx, next))
			id, _, err = enter(ctx, s, owner)
			require.NoError(t, err)
			refused(next)

			// What is not the owner's has no place to give up.
			strange, _, err := enter(ctx, s, NewID())
			require.NoError(t, err)
			_, err = s.BeginRenewal(ctx, strange, 0)
			require.NoError(t, err)
			if _, _, err = reserve(InPlaceOf(strange)); whenFull == Refuse {
				require.ErrorIs(t, err, ErrTooManySessions)
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, s.Invalidate(ctx, id))
			if _, _, err = reserve(InPlaceOf(id)); whenFull == Refuse {
				require.NoError(t, err)
				_, _, err = reserve(InPlaceOf(id))
				require.ErrorIs(t, err, ErrTooManySessions)
			}
		}
	})
}

// The owner of the login is limited, and further ones are not.
func TestMaxSessions_Also(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
		s := newStore(WithMaxSessions(1, Refuse))
		ctx, team := t.Context(), NewID()
		also := func() ReserveOption {
			login, err := s.BeginLogin(ctx, team)
			require.NoError(t, err)
			return Also(login)
		}
		alice := NewID()
		for _, owner := range []string{alice, NewID(), NewID()} {
			_, _, err := enter(ctx, s, owner, also())
			require.NoError(t, err)
		}
		_, _, err := enter(ctx, s, alice, also())
		require.ErrorIs(t, err, ErrTooManySessions)
		all, err := s.Sessions(ctx, team)
		require.NoError(t, err)
		require.Len(t, all, 3)
		n, err := s.InvalidateOwner(ctx, team)
		require.NoError(t, err)
		require.Equal(t, 3, n)
		id, _, err := enter(ctx, s, alice)
		require.NoError(t, err)

		// The options may name the owner of the login, too.
		login, err := s.BeginLogin(ctx, alice)
		require.NoError(t, err)
		_, _, err = enter(ctx, s, alice, Also(login))
		require.ErrorIs(t, err, ErrTooManySessions)
		require.NoError(t, s.Invalidate(ctx, id))
		_, _, err = enter(ctx, s, alice, Also(login))
		require.NoError(t, err)
		bob := NewID()
		_, _, err = enter(ctx, s, bob, AlsoFinal(bob))
		require.NoError(t, err)
		_, _, err = enter(ctx, s, bob, AlsoFinal(bob))
		require.ErrorIs(t, err, ErrTooManySessions)
	})
}

func TestMaxSessions_EvictOldest(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
		s := newStore(WithMaxSessions(3, EvictOldest))
		ctx, owner := t.Context(), NewID()
		var ids []string
		for i := range 3 { // the oldest has the latest deadline
			id, b, err := enter(ctx, s, owner, Until(time.Now().Add(time.Duration(10-i)*time.Hour)))
			require.NoError(t, err)
			ids = append(ids, id)
			for time.Now().UnixMilli() <= b.CreatedAt.UnixMilli() {
				time.Sleep(time.Millisecond)
			}
		}
		next := NewID()
		_, err := s.Rotate(ctx, ids[0], next) // it is still the oldest login
		require.NoError(t, err)
		ids = append([]string{next}, ids[1:]...)
		for i := range 3 {
			id, b, err := enter(ctx, s, owner)
			require.NoError(t, err)
			ids = append(ids, id)
			_, err = s.Read(ctx, ids[i])
			var ended *InvalidatedError
			require.ErrorAs(t, err, &ended)
			require.Equal(t, Revoked, ended.Reason)
			all, err := s.Sessions(ctx, owner)
			require.NoError(t, err)
			require.Len(t, all, 3)
			for time.Now().UnixMilli() <= b.CreatedAt.UnixMilli() {
				time.Sleep(time.Millisecond)
			}
		}

		// What is reserved or between two ids is spared.
		r, err := s.BeginRenewal(ctx, ids[3], 0)
		require.NoError(t, err)
		var reserved []Binding
		for range 2 {
			login, err := s.BeginLogin(ctx, owner)
			require.NoError(t, err)
			b, err := s.Reserve(ctx, NewID(), login, until())
			require.NoError(t, err)
			reserved = append(reserved, b)
		}
		_, _, err = enter(ctx, s, owner)
		require.ErrorIs(t, err, ErrTooManySessions)
		_, err = s.FinishRenewal(ctx, r, NewID(), nil, time.Hour)
		require.NoError(t, err)
		require.NoError(t, s.Release(ctx, reserved[0]))
	})
}

// A renewal that was given up may be taken over, and keeps its place as long.
func TestMaxSessions_GivenUp(t *testing.T) {
	t.Parallel()
	for name, whenFull := range map[string]WhenFull{"refuse": Refuse, "evict": EvictOldest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
				s := newStore(WithMaxSessions(1, whenFull))
				ctx, owner, next := t.Context(), NewID(), NewID()
				id, _, err := enter(ctx, s, owner)
				require.NoError(t, err)
				r, err := s.BeginRenewal(ctx, id, 0)
				require.NoError(t, err)
				require.NoError(t, s.CancelRenewal(ctx, r))
				_, _, err = enter(ctx, s, owner)
				require.ErrorIs(t, err, ErrTooManySessions)
				r, err = s.BeginRenewal(ctx, id, 0)
				require.NoError(t, err)
				_, _, err = enter(ctx, s, owner)
				require.ErrorIs(t, err, ErrTooManySessions)
				_, err = s.FinishRenewal(ctx, r, next, nil, time.Hour)
				require.NoError(t, err)

				r, err = s.BeginRenewal(ctx, next, 0)
				require.NoError(t, err)
				require.NoError(t, s.CancelRenewal(ctx, r))
				switch s := s.(type) { // nobody came
				case *RedisStore:
					end := dumpOf(Rotated, time.Now().Add(-reservedFor))[dumpHead : dumpHead+endSize]
					hset := s.client.B().Hset().Key(s.prefix+Ref(next)).FieldValue().FieldValue("t", end).Build()
					require.NoError(t, s.client.Do(ctx, hset).Error())
				case *MemoryStore:
					s.entries[s.prefix+Ref(next)].ended.At = time.Now().Add(-reservedFor)
				}
				_, _, err = enter(ctx, s, owner)
				require.NoError(t, err)
				_, err = s.BeginRenewal(ctx, next, 0)
				require.ErrorIs(t, err, ErrInvalidated)
			})
		})
	}
}

// An id that was reserved, and under which nothing is stored, keeps its place for a while. Who
// comes later than that with what was reserved is refused.
func TestMaxSessions_Unwritten(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
		for name, c := range map[string]struct {
			whenFull WhenFull
			kept     time.Duration
		}{"refuse": {Refuse, 10 * time.Minute}, "evict": {EvictOldest, time.Minute}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s, ctx, owner, id := newStore(WithMaxSessions(1, c.whenFull)), t.Context(), NewID(), NewID()
				entered := func(ago time.Duration) {
					at := time.Now().Add(-ago)
					switch s := s.(type) {
					case *RedisStore:
						mark := s.client.B().Zadd().Key(s.ownerKey(Ref(owner))).ScoreMember().
							ScoreMember(-float64(at.Unix()), "w"+Ref(id)).Build()
						require.NoError(t, s.client.Do(ctx, mark).Error())
					case *MemoryStore:
						key := s.prefix + Ref(id)
						in := s.owners[Ref(owner)].sessions[key]
						in.at = at
						s.owners[Ref(owner)].sessions[key] = in
					}
				}
				login, err := s.BeginLogin(ctx, owner)
				require.NoError(t, err)
				b, err := s.Reserve(ctx, id, login, until())
				require.NoError(t, err)
				entered(c.kept - 10*time.Second)
				_, _, err = enter(ctx, s, owner)
				require.ErrorIs(t, err, ErrTooManySessions)

				entered(c.kept + 10*time.Second)
				_, _, err = enter(ctx, s, owner)
				require.NoError(t, err)
				_, err = s.Write(ctx, id, nil, time.Hour, Bound(b))
				require.ErrorIs(t, err, ErrInvalidated)
				all, err := s.Sessions(ctx, owner)
				require.NoError(t, err)
				require.Len(t, all, 1)
			})
		}
	})
}

// What is under the id of an entry and is no session takes no place for long, and is left as it is.
// What a later version may take for a session does, until its deadline.
func TestMaxSessions_Foreign(t *testing.T) {
	t.Parallel()
	now := time.Now()
	record := func(flags byte) string {
		header := newHeader(7, now.UnixMilli(), now.Add(12*time.Hour).UnixMilli())
		header[1] = flags
		return string(header) + "data"
	}
	strict := []byte(dumpOf(Logout, now)[dumpHead : dumpHead+endSize])
	strict[1] |= flagStrict
	for name, c := range map[string]struct {
		command []string
		counts  bool
	}{
		"string":               {[]string{"SET", "", "foreign"}, false},
		"short record":         {[]string{"SET", "", record(0)[:headerSize-1]}, false},
		"broken items":         {[]string{"SET", "", record(flagItems)[:headerSize] + "\xff\xff"}, false},
		"list":                 {[]string{"RPUSH", "", "x"}, false},
		"hash":                 {[]string{"HSET", "", "x", "y"}, false},
		"tombstone to be":      {[]string{"HSET", "", "t", string(strict)}, false},
		"record of the future": {[]string{"SET", "", record(flagStrict)}, true},
	} {
		for _, closed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", closed ", closed), func(t *testing.T) {
				t.Parallel()
				b := newBed(t, WithMaxSessions(1, EvictOldest))
				ctx, owner := t.Context(), NewID()
				id := b.bound(owner)
				key, entry := b.ownerKey(Ref(owner)), "l"+Ref(id)
				b.do("DEL", b.keyOf(id))
				b.do(append([]string{c.command[0], b.keyOf(id)}, c.command[2:]...)...)
				before, err := b.do("DUMP", b.keyOf(id)).ToString()
				require.NoError(t, err)
				if closed {
					_, err := b.InvalidateOwner(ctx, owner)
					require.ErrorIs(t, err, ErrCorrupt)
				}
				if !closed && c.command[0] == "SET" { // it was reserved a moment ago
					_, _, err = enter(ctx, b.RedisStore, owner)
					require.ErrorIs(t, err, ErrTooManySessions)
				}
				b.do("ZADD", key, decimal(-now.Add(-reservedFor).Unix()), "w"+Ref(id))
				if c.counts {
					_, _, err = enter(ctx, b.RedisStore, owner)
					require.ErrorIs(t, err, ErrTooManySessions)
					score := b.members(owner)[entry]
					b.do("ZADD", key, decimal(score&^(1<<32-1)+now.Unix()-1), entry)
					require.Eventually(t, func() bool { // one in sixteen prunes
						_, _, err = enter(ctx, b.RedisStore, owner)
						return err == nil
					}, time.Minute, time.Millisecond)
				} else {
					_, _, err = enter(ctx, b.RedisStore, owner)
					require.NoError(t, err)
				}
				require.NotContains(t, b.members(owner), entry)
				after, err := b.do("DUMP", b.keyOf(id)).ToString()
				require.NoError(t, err)
				require.Equal(t, before, after)
				all, err := b.Sessions(ctx, owner)
				require.NoError(t, err)
				require.Len(t, all, 1)
			})
		}
	}
}

// A member of an owner's key that is no entry, and takes a place all the same, is no reason to ask
// for ever.
func TestMaxSessions_ForeignMember(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client, WithMaxSessions(1, EvictOldest), WithTimeout(time.Second))
	owner := NewID()
	key, id := b.ownerKey(Ref(owner)), b.bound(owner)
	b.do("ZREM", key, "l"+Ref(id))
	b.do("ZADD", key, decimal(1<<53), "other")
	trips := strings.Fields(client.tripsOf(func() {
		_, _, err := enter(t.Context(), b.RedisStore, owner)
		require.ErrorIs(t, err, ErrTooManySessions)
	}))
	require.Less(t, len(trips), 100)
}

// How a Reserve ends that finds an owner full until its time is up, or its caller goes away, does
// not depend on where it was just then.
func TestMaxSessions_TimeIsUp(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	reserve := func(t *testing.T, timeout time.Duration, at func(bind, look int, cancel func())) error {
		client := newTap(redistest.Client(t))
		b := bedOn(t, client, WithMaxSessions(1, EvictOldest), WithTimeout(timeout))
		owner := NewID()
		key, id := b.ownerKey(Ref(owner)), b.bound(owner)
		b.do("ZREM", key, "l"+Ref(id))
		b.do("ZADD", key, decimal(1<<53), "other") // which is never ended
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		login, binds, looks := b.login(owner), 0, 0
		client.after = func(words []string) error {
			if nameOf(words) == "bind" {
				binds, looks = binds+1, 0
			} else {
				looks++
			}
			at(binds, looks, cancel)
			return nil
		}
		_, err := b.Reserve(ctx, NewID(), login, Until(time.Now().Add(time.Hour)))
		return err
	}
	all := 0 // that are taken between two attempts
	require.ErrorIs(t, reserve(t, timeout, func(bind, look int, _ func()) {
		if bind == 2 {
			all = max(all, look)
		}
	}), ErrTooManySessions)
	require.Positive(t, all)
	for end := range all + 1 {
		t.Run(fmt.Sprint("after look ", end), func(t *testing.T) {
			t.Parallel()
			err := reserve(t, timeout, func(bind, look int, _ func()) {
				if bind == 3 && look == end {
					time.Sleep(timeout)
				}
			})
			require.ErrorIs(t, err, ErrTooManySessions)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			err = reserve(t, time.Minute, func(bind, look int, cancel func()) {
				if bind == 3 && look == end {
					cancel()
				}
			})
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, ErrTooManySessions)
		})
	}
}

// A limit that was lowered, to where many have to go.
func TestMaxSessions_Lowered(t *testing.T) {
	t.Parallel()
	client := newTap(redistest.Client(t))
	b := bedOn(t, client)
	ctx, owner, ids := t.Context(), NewID(), []string{}
	for range 600 {
		ids = append(ids, b.bound(owner))
	}
	lower := bedOn(t, client, WithKeyPrefix(b.prefix), WithMaxSessions(2, EvictOldest), WithTimeout(time.Minute))
	id := ""
	trips := strings.Fields(client.tripsOf(func() { id = lower.bound(owner) }))
	require.Less(t, len(trips), 50)
	all, err := b.Sessions(ctx, owner)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.True(t, b.live(id))
	require.Len(t, b.members(owner), 1+2+601, "with a mark for each that was entered in the last hour")
	require.False(t, b.live(ids[0]))
}

// However many log in at the same time, there is no moment with one session too many, and there are
// as many as may be at the end.
func TestMaxSessions_Race(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 3} {
		for name, full := range map[string]struct {
			when   WhenFull
			logins int // those that evict wait for each other
		}{"refuse": {Refuse, 64}, "evict": {EvictOldest, 16}} {
			t.Run(fmt.Sprint(name, limit), func(t *testing.T) {
				t.Parallel()
				b := newBed(t, WithMaxSessions(limit, full.when), WithTimeout(time.Minute))
				ctx := t.Context()
				for range rounds(t, 3) {
					owner, ids, keys := NewID(), make([]string, full.logins), make([]string, full.logins)
					logins := make([]Login, len(ids))
					for i := range ids {
						ids[i] = NewID()
						keys[i] = b.keyOf(ids[i])
						logins[i] = b.login(owner)
					}
					// How many are live, in one step.
					count := func() int64 {
						n, err := b.client.Do(ctx, b.client.B().Eval().Script(`
							local n = 0
							for _, key in ipairs(KEYS) do
								if redis.call('TYPE', key).ok == 'string' then n = n + 1 end
							end
							return n`).Numkeys(int64(len(keys))).Key(keys...).Build()).AsInt64()
						if err != nil {
							return -1
						}
						return n
					}
					var all, sampler sync.WaitGroup
					var over atomic.Bool
					var most atomic.Int64
					sampler.Go(func() {
						for !over.Load() {
							most.Store(max(most.Load(), count()))
						}
					})
					for i := range ids {
						all.Go(func() {
							binding, err := b.Reserve(ctx, ids[i], logins[i], until())
							if err == nil {
								_, err = b.Write(ctx, ids[i], nil, time.Hour, Bound(binding))
							}
							if err != nil && !errors.Is(err, ErrTooManySessions) && !errors.Is(err, ErrInvalidated) {
								t.Error(err)
							}
						})
					}
					all.Wait()
					over.Store(true)
					sampler.Wait()
					require.LessOrEqual(t, most.Load(), int64(limit))
					require.EqualValues(t, limit, count())
				}
			})
		}
	}
}

// Two who log in, or move, interrupted at any two moments: there is no moment with one session too
// many, and at the end there are as many as may be. But where a login has chosen a session to make
// room, and that begins to give way to another login, it is ended, and both logins are refused.
func TestMaxSessions_Interleaved(t *testing.T) {
	t.Parallel()
	check := func(act act, bound, again bool, whenFull WhenFull) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			ctx := st.t.Context()
			for _, a := range []*actor{st.revoker, st.mover} {
				a.maxSessions, a.whenFull = 1, whenFull
			}
			for i, more := 0, true; more; i++ {
				for j, further := 0, true; further; j++ {
					for _, order := range some([][]*actor{{st.revoker, st.mover}, {st.mover, st.revoker}}, i+j) {
						login, from, to := st.prepare(bound)
						ids, other := []string{to}, NewID()
						if ids = append(ids, other); bound {
							ids = append(ids, from)
						}
						st.revoker.begin(func(s *RedisStore) error { return logins["Write"](ctx, s, login, "", other) })
						var opts []ReserveOption
						if again {
							opts = append(opts, InPlaceOf(from))
						}
						st.mover.begin(func(s *RedisStore) error { return act(ctx, s, login, from, to, opts...) })
						more = st.revoker.advance(i)
						further = st.mover.advance(j)
						for _, a := range order {
							for !a.over {
								a.advance(1)
								live := 0
								for _, id := range ids {
									if st.other.live(id) {
										live++
									}
								}
								require.LessOrEqual(t, live, 1, "%d, %d", i, j)
							}
							if a.err != nil && !errors.Is(a.err, ErrTooManySessions) {
								require.ErrorIs(t, a.err, ErrInvalidated, "%d, %d", i, j)
							}
						}
						all, err := st.other.Sessions(ctx, st.owner)
						require.NoError(t, err)
						if st.revoker.err == nil || st.mover.err == nil {
							require.Len(t, all, 1, "%d, %d", i, j)
						} else {
							require.True(t, again && whenFull == EvictOldest, "%d, %d", i, j)
						}
					}
				}
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for name, a := range acts() {
			for _, policy := range some([]string{"refuse", "evict"}, rand.Int()) {
				whenFull := map[string]WhenFull{"refuse": Refuse, "evict": EvictOldest}[policy]
				t.Run(name+", "+policy, func(t *testing.T) {
					check := check(a.act, a.bound, strings.HasPrefix(name, "login again"), whenFull)
					check(t, newStage(t))
					caughtOn(t, newStage, check, map[string]mutant{
						"one too many": {"bind", ">= tonumber(ARGV[9])", "> tonumber(ARGV[9])"},
					})
				})
			}
		}
	})
}
