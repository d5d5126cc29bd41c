package tombstore

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestAdopt_Stored(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		w := newWorld(t)
		ctx, owner, id := t.Context(), NewID(), NewID()
		before := w.write(id, "data", time.Hour)
		until := time.Now().Add(48 * time.Hour).Truncate(time.Millisecond)
		login := w.login(owner)
		w.tap.forget()
		adopt := func(d time.Duration) string {
			return w.tap.tripsOf(func() {
				_, err := w.Adopt(ctx, id, login, Until(until.Add(d)), Label("phone"))
				require.NoError(t, err)
			})
		}
		require.Equal(t, "GET bind restore", adopt(0))
		value, ttl := w.raw(id)
		almost(t, time.Hour, ttl)
		b := Binding{Owners: []string{Ref(owner)}, Label: "phone", CreatedAt: before.CreatedAt, Deadline: until}
		require.Equal(t, "\xc1\x01"+before.Version.bytes()+string(b.header())[offsetCreated:]+"data", value)
		require.Equal(t, (until.UnixMilli()+999)/1000+3600, w.members(owner)["l"+Ref(id)]&(1<<32-1))
		require.Equal(t, "GET bind", adopt(time.Hour))
		again, _ := w.raw(id)
		require.Equal(t, value, again)

		// The owner's key was lost.
		w.do("DEL", w.ownerKey(Ref(owner)))
		login = w.login(owner)
		require.Equal(t, "GET bind", adopt(0))
		require.Contains(t, w.members(owner), "l"+Ref(id))

		// What the header has, and a deadline that is sooner, are kept.
		id = NewID()
		soon := time.Now().Add(30 * time.Minute)
		header := append(newHeader(1, 1, soon.UnixMilli()), 0, 4, 9, 0, 1, 'x')
		header[1] |= flagItems
		w.plant(id, string(header)+"data", time.Hour)
		adopt(0)
		value, ttl = w.raw(id)
		almost(t, 30*time.Minute, ttl)
		require.Equal(t, soon.UnixMilli(), milli48(value[offsetDeadline:]))
		got := headerOf([]byte(value))
		require.Equal(t, "x", string(itemsIn(got, 9)[0]))
		require.Equal(t, []string{Ref(owner)}, ownersIn(got))
	})
}

// Whatever the session, or its owner's, does while it is adopted, and wherever the process ends:
// when all is over, it is the owner's or Adopt has said that it is not.
func TestAdopt_Interleaved(t *testing.T) {
	t.Parallel()
	type rival struct {
		do    func(s *RedisStore, owner, id, next string) error
		stays bool // the session is live if it is not adopted
	}
	rivals := map[string]rival{
		"InvalidateOwner": {func(s *RedisStore, owner, _, _ string) error {
			_, err := s.InvalidateOwner(t.Context(), owner)
			return err
		}, false},
		"Invalidate": {func(s *RedisStore, _, id, _ string) error { return s.Invalidate(t.Context(), id) }, false},
		"save": {func(s *RedisStore, _, id, _ string) error {
			session, err := s.Read(t.Context(), id)
			if err == nil {
				_, err = s.Write(t.Context(), id, []byte("more"), time.Hour, Replacing(session))
			}
			return err
		}, true},
	}
	for kind, move := range moves {
		rivals[kind] = rival{func(s *RedisStore, _, id, next string) error {
			_, err := move(t.Context(), s, id, next)
			return err
		}, true}
	}
	check := func(r rival) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			ctx := st.t.Context()
			for i, more := 0, true; more; i++ {
				for j, further := 0, true; further; j++ {
					for _, end := range some([]string{"the rival first", "Adopt first", "Adopt dies"}, i+j) {
						where := strconv.Itoa(i) + ", " + strconv.Itoa(j) + ", " + end
						login, id, next := st.prepare(false)
						st.revoker.begin(func(s *RedisStore) error { return r.do(s, st.owner, id, next) })
						st.mover.begin(func(s *RedisStore) error {
							_, err := s.Adopt(ctx, id, login, until())
							return err
						})
						more = st.revoker.advance(i)
						further = st.mover.advance(j)
						switch end {
						case "Adopt first":
							_ = st.mover.finish()
						case "Adopt dies":
							st.mover.die()
						}
						if err := st.revoker.finish(); err != nil {
							require.ErrorIs(t, err, ErrConflict, where) // it has saved what it had read before
						}
						err := st.mover.finish()
						if end == "Adopt dies" {
							for _, id := range []string{id, next} {
								if st.other.live(id) {
									_, err = st.other.Adopt(ctx, id, st.other.login(st.owner), until())
									require.NoError(t, err, where)
								}
							}
						} else if err != nil {
							require.True(t, NoSession(err) || errors.Is(err, ErrStaleLogin), "%s: %v", where, err)
							stays := r.stays || errors.Is(err, ErrStaleLogin)
							require.Equal(t, stays, st.other.live(id) || st.other.live(next), where)
							continue
						}
						_, err = st.other.InvalidateOwner(ctx, st.owner)
						require.NoError(t, err)
						st.requireOut(t, where, id, next)
					}
				}
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for name, r := range rivals {
			t.Run(name, func(t *testing.T) { check(r)(t, newStage(t)) })
		}
	})
}

// A session that moves while it is given a further owner does so, whatever comes in between, and is
// its owner's under the next id.
func TestAdopt_FurtherOwnerInterleaved(t *testing.T) {
	t.Parallel()
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		for _, kind := range some(slices.Sorted(maps.Keys(moves)), rand.Int()) {
			t.Run(kind, func(t *testing.T) {
				st, ctx, move := newStage(t), t.Context(), moves[kind]
				for i, more := 0, true; more; i++ {
					for j, further := 0, true; further; j++ {
						for k, rest := 0, true; rest; k++ {
							where := fmt.Sprint(i, ", ", j, ", ", k)
							_, from, to := st.prepare(true)
							_, err := st.other.InvalidateOwner(ctx, st.owner, Except(from))
							require.NoError(t, err)
							login, team := st.other.login(st.owner), st.other.login(NewID())
							st.revoker.begin(func(s *RedisStore) error {
								_, err := s.Adopt(ctx, from, login, Also(team))
								return err
							})
							st.mover.begin(func(s *RedisStore) error {
								_, err := move(ctx, s, from, to)
								return err
							})
							more = st.revoker.advance(i)
							further = st.mover.advance(j)
							rest = st.revoker.advance(k)
							require.NoError(t, st.mover.finish(), where)
							if err := st.revoker.finish(); err != nil {
								require.True(t, NoSession(err) || errors.Is(err, ErrConflict), "%s: %v", where, err)
							}
							require.True(t, st.other.live(to), where)
							_, err = st.other.InvalidateOwner(ctx, st.owner)
							require.NoError(t, err)
							st.requireOut(t, where, from, to)
						}
					}
				}
			})
		}
	})
}

// Two that adopt a session at the same time do not undo each other: it gets the further owners of
// both, and of two users it is the first one's.
func TestAdopt_Twice(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for _, another := range []bool{false, true} {
			id, owner := NewID(), NewID()
			_, err := w.other.Write(ctx, id, []byte("x"), time.Hour)
			require.NoError(t, err)
			login, rival := w.login(owner), w.login(owner)
			if another {
				rival = w.login(NewID())
			}
			mine, theirs := w.login(NewID()), w.login(NewID())
			first := true
			w.tap.before = func(words []string) error {
				if first && runs(words, "restore") {
					first = false
					_, err := w.other.Adopt(ctx, id, rival, until(), Also(theirs))
					require.NoError(t, err)
				}
				return nil
			}
			_, err = w.Adopt(ctx, id, login, until(), Also(mine))
			w.tap.before = nil
			want := []string{rival.Owner, theirs.Owner}
			if another {
				require.ErrorIs(t, err, ErrConflict)
			} else {
				require.NoError(t, err)
				want = append(want, mine.Owner)
			}
			read, err := w.other.Read(ctx, id)
			require.NoError(t, err)
			require.Equal(t, "x", string(read.Data))
			require.Equal(t, want, read.Owners())
		}
	}
	onBoth(t, func(t *testing.T, newWorld func(*testing.T, ...Option) world) {
		for name, opts := range map[string][]Option{"clear": nil, "sealed": {WithSealedData()}} {
			t.Run(name, func(t *testing.T) {
				made := func(t *testing.T) world { return newWorld(t, opts...) }
				check(t, made(t))
				catches(t, made, check, map[string]mutant{
					"whatever the header is": {"restore", "if ARGV[3] and", "if false and"},
				})
			})
		}
	})
}

// Each reply may be lost: the session is adopted, and once.
func TestAdopt_LostReply(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, st *stage) {
		ctx := st.t.Context()
		for lose := 1; ; lose++ {
			login, id, _ := st.prepare(false)
			st.mover.lose = lose
			_, err := st.mover.Adopt(ctx, id, login, until())
			require.NoError(t, err, "trip %d", lose)
			session, err := st.other.Read(ctx, id)
			require.NoError(t, err)
			require.Equal(t, []string{Ref(st.owner)}, session.Owners(), "trip %d", lose)
			all, err := st.other.Sessions(ctx, st.owner)
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.Equal(t, Ref(id), all[0].Ref)
			if st.mover.lose > 0 {
				require.Equal(t, 4, lose)
				return
			}
		}
	}
	onBothStages(t, func(t *testing.T, newStage func(t *testing.T) *stage) {
		check(t, newStage(t))
		caughtOn(t, newStage, check, map[string]mutant{
			"an attempt does not know the entry of the one before": {
				"bind", "if score and score < base or not score and found[3] then", "if score or found[3] then"},
		})
	})
}

// With a limit, a session that is adopted counts, and makes room as another one does.
func TestAdopt_Limit(t *testing.T) {
	t.Parallel()
	onAllStores(t, func(t *testing.T, newStore func(opts ...Option) everything) {
		for _, whenFull := range []WhenFull{Refuse, EvictOldest} {
			s := newStore(WithMaxSessions(1, whenFull))
			ctx, owner, id := t.Context(), NewID(), NewID()
			_, err := s.Write(ctx, id, nil, time.Hour)
			require.NoError(t, err)
			first, _, err := enter(ctx, s, owner)
			require.NoError(t, err)
			login, err := s.BeginLogin(ctx, owner)
			require.NoError(t, err)
			_, err = s.Adopt(ctx, id, login)
			require.ErrorIs(t, err, ErrNoDeadline)
			for range 2 {
				_, err = s.Adopt(ctx, id, login, until())
				if whenFull == Refuse {
					require.ErrorIs(t, err, ErrTooManySessions)
				} else {
					require.NoError(t, err)
				}
			}
			live, err := s.Exists(ctx, first)
			require.NoError(t, err)
			require.Equal(t, whenFull == Refuse, live)
			all, err := s.Sessions(ctx, owner)
			require.NoError(t, err)
			require.Len(t, all, 1)
		}
	})
}

// Where the owner's key was lost, Thorough finds who has logged in before, whatever they are about
// to do.
func TestInvalidateOwner_Thorough(t *testing.T) {
	t.Parallel()
	check := func(move move) func(t require.TestingT, st *stage) {
		return func(t require.TestingT, st *stage) {
			ctx := st.t.Context()
			for i, more := 0, true; more; i++ {
				for j, further := 0, true; further; j++ {
					for _, end := range some([]string{"the revoker first", "the mover first", "the mover dies"}, i+j) {
						where := strconv.Itoa(i) + ", " + strconv.Itoa(j) + ", " + end
						st.other.do("FLUSHALL") // what was there before would only make the walk longer
						_, from, to := st.prepare(true)
						at, bystander := st.other.bound(st.owner), st.other.bound(NewID())
						st.other.do("DEL", st.other.ownerKey(Ref(st.owner)))
						kept := st.other.bound(st.owner) // it has logged in since
						st.revoker.begin(func(s *RedisStore) error {
							_, err := s.InvalidateOwner(ctx, st.owner, Thorough(), Except(kept))
							return err
						})
						st.mover.begin(func(s *RedisStore) error {
							_, err := move(ctx, s, from, to)
							return err
						})
						more = st.revoker.advance(i)
						further = st.mover.advance(j)
						switch end {
						case "the mover first":
							_ = st.mover.finish()
						case "the mover dies":
							st.mover.die()
						}
						require.NoError(t, st.revoker.finish(), where)
						if err := st.mover.finish(); err != nil && end != "the mover dies" {
							require.True(t, errors.Is(err, ErrInvalidated) || errors.Is(err, ErrConflict), "%s: %v", where, err)
						}
						require.True(t, st.other.live(bystander), where)
						require.True(t, st.other.live(kept), where)
						for _, id := range []string{from, to, at} {
							require.False(t, st.other.live(id), where)
						}
					}
				}
			}
		}
	}
	for name, url := range map[string]string{
		"standalone": redistest.Start(t).URL, "cluster": redistest.StartCluster(t).URL,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, kind := range []string{"Rotate", "renewal"} {
				move := moves[kind]
				t.Run(kind, func(t *testing.T) {
					newStage := func(t *testing.T) *stage { return newStage(t, url) }
					check(move)(t, newStage(t))
					caughtOn(t, newStage, check(move), map[string]mutant{
						"whoever comes is entered": {"bind", "if not score and revoked then return 'S' end", ""},
					})
				})
			}
		})
	}
}
