package tombstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// arena is where rounds of a race are played: several stores that go trip by trip, in an order that is
// drawn, and one that prepares and looks.
type arena struct {
	t      *testing.T
	actors []*actor
	other  *bed
	taps   []*tap
}

func newArena(t *testing.T, url string) *arena {
	t.Helper()
	client := newTap(redistest.Dial(t, url))
	a := &arena{t: t, other: bedOn(t, client), taps: []*tap{client}}
	for range 6 {
		actor := newActor(t, url, a.other.prefix)
		a.actors, a.taps = append(a.actors, actor), append(a.taps, actor.tap)
	}
	return a
}

// life is a session under all its ids, from its login on.
type life struct {
	ids      []string // that it has, or may get
	begun    int      // step at which its login had begun
	known    bool     // its login knows a generation
	busy     int      // actors at work on it
	reserved bool     // and not written yet
	inTeam   bool     // it has the round's team as an owner, too
	joined   int      // step at which it had, if that was not its login
}

// revoked is an InvalidateOwner.
type revoked struct {
	begun, returned int // steps; -1: not yet
	except          *life
	ofTeam          bool
}

// reaches reports whether a life must be over after the revoke.
func (v *revoked) reaches(l *life) bool {
	return v.returned >= 0 && l != v.except && (!v.ofTeam || l.inTeam)
}

// round is one race for one owner.
type round struct {
	*arena
	*rand.Rand
	owner    string
	team     string // another owner of some sessions
	limit    int
	whenFull WhenFull
	lives    []*life
	kept     *life // whom each InvalidateOwner lets live, or nil
	revokes  []*revoked
	step     int
	lost     bool // the owner's key was
	occupied int  // places of the limit that may be taken
	where    string
}

func (r *round) newLife(ids ...string) *life {
	l := &life{ids: ids}
	r.lives = append(r.lives, l)
	return l
}

// pick returns one of the lives that are not kept, or nil.
func (r *round) pick(from []*life) *life {
	if len(from) == 0 {
		return nil
	}
	return from[r.IntN(len(from))]
}

type task struct {
	name string
	do   func(s *RedisStore) error
	on   []*life
}

// tasks draws what the actors do.
func (r *round) tasks(owned []*life, anonymous []string, waiting []Binding, held []*life) (tasks []task) {
	ctx := r.t.Context()
	ticket, teams, before := r.other.login(r.owner), r.other.login(r.team), owned
	begin := func(s *RedisStore, l *life) (login, team Login, err error) { // later than the tickets were
		if login, err = s.BeginLogin(ctx, r.owner); err == nil && l.inTeam {
			team, err = s.BeginLogin(ctx, r.team)
		}
		l.begun, l.known = r.step, login.Generation >= 0
		return login, team, err
	}
	add := func(name string, do func(s *RedisStore) error, on ...*life) {
		tasks = append(tasks, task{name, do, on})
	}
	for range len(r.actors) - 1 {
		switch kind := r.IntN(13); kind {
		case 0, 1, 2, 10, 11: // a login, of each kind; also of somebody who is logged in
			l, to, late := r.newLife(), NewID(), r.IntN(2) == 0
			names := []string{"Write", "Rotate", "renewal"}
			name, from, on := names[kind%9], NewID(), []*life{l}
			l.ids, l.known, l.inTeam = []string{to}, ticket.Generation >= 0, r.IntN(2) == 0
			var opts []ReserveOption
			if kind < 10 {
				r.other.write(from, "data", time.Hour)
			} else {
				last := r.pick(owned)
				if last == nil || last == r.kept {
					continue
				}
				owned = slices.DeleteFunc(slices.Clone(owned), func(o *life) bool { return o == last })
				from, on = last.ids[len(last.ids)-1], append(on, last)
				opts = append(opts, InPlaceOf(from))
			}
			add(fmt.Sprint("login by ", name, ", late ", late, ", in place ", kind >= 10, ", team ", l.inTeam), func(s *RedisStore) error {
				login, team := ticket, teams
				if late {
					var err error
					if login, team, err = begin(s, l); err != nil {
						return err
					}
				}
				if l.inTeam {
					opts = append(opts, Also(team))
				}
				return logins[name](ctx, s, login, from, to, opts...)
			}, on...)
		case 3: // a first write under way
			if len(waiting) == 0 {
				continue
			}
			b, l := waiting[0], held[0]
			waiting, held = waiting[1:], held[1:]
			release := r.IntN(4) == 0
			add(fmt.Sprint("first write, release ", release), func(s *RedisStore) error {
				defer func() { l.reserved = false }()
				if release {
					return s.Release(ctx, b)
				}
				_, err := s.Write(ctx, l.ids[0], nil, time.Hour, Bound(b))
				return err
			}, l)
		case 4, 5, 6, 7: // moves
			l := r.pick(owned)
			if l == nil {
				continue
			}
			names := []string{"Rotate", "Rotate WithData", "renewal", "renewal, taken over"}
			name, from, to, last := names[kind-4], l.ids[len(l.ids)-1], NewID(), NewID()
			l.ids = append(l.ids, to, last)
			owned = slices.DeleteFunc(slices.Clone(owned), func(o *life) bool { return o == l })
			add(name, func(s *RedisStore) error {
				_, err := moves[name](ctx, s, from, to)
				if err == nil {
					_, err = moves[name](ctx, s, to, last)
				}
				return err
			}, l)
		case 8: // a logout, or somebody who looks
			if l := r.pick(owned); l != nil && l != r.kept && r.IntN(2) == 0 {
				id := l.ids[0]
				add("Invalidate", func(s *RedisStore) error { return s.Invalidate(ctx, id) }, l)
				continue
			}
			add("Sessions", func(s *RedisStore) error {
				_, err := s.Sessions(ctx, r.owner)
				return err
			})
		case 9:
			id, l := anonymous[0], r.newLife()
			l.ids, l.known, l.inTeam = []string{id}, ticket.Generation >= 0, r.IntN(2) == 0
			opts := []ReserveOption{until()}
			if l.inTeam {
				opts = append(opts, Also(teams))
			}
			anonymous = append(anonymous[1:], anonymous[0])
			add(fmt.Sprint("Adopt, team ", l.inTeam), func(s *RedisStore) error {
				_, err := s.Adopt(ctx, id, ticket, opts...)
				return err
			}, l)
		case 12: // a further owner, whatever else is done with the session
			l := r.pick(before)
			if l == nil || l.inTeam {
				continue
			}
			id := l.ids[r.IntN(len(l.ids))]
			add("Adopt for the team", func(s *RedisStore) error {
				login, err := s.BeginLogin(ctx, r.owner)
				if err == nil {
					_, err = s.Adopt(ctx, id, login, Also(teams), until())
				}
				switch {
				case err == nil:
					l.inTeam, l.joined = true, r.step
				case errors.Is(err, ErrNotFound): // it has not come to this id
					err = nil
				}
				return err
			})
		}
	}
	for range 1 + r.IntN(2) {
		v := &revoked{-1, -1, r.kept, r.IntN(3) == 0 && (r.kept == nil || r.kept.inTeam)}
		r.revokes = append(r.revokes, v)
		owner := r.owner
		if v.ofTeam {
			owner = r.team
		}
		add("InvalidateOwner", func(s *RedisStore) error {
			v.begun = r.step
			var opts []InvalidateOption
			if r.kept != nil {
				opts = append(opts, Except(r.kept.ids[0]))
			}
			_, err := s.InvalidateOwner(ctx, owner, opts...)
			if err == nil {
				v.returned = r.step
			}
			return err
		})
	}
	r.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
	return tasks[:min(len(tasks), len(r.actors))]
}

// play plays one round.
func (a *arena) play(t require.TestingT, seed uint64) {
	r := &round{arena: a, Rand: rand.New(rand.NewPCG(seed, 0)), owner: NewID(), team: NewID(), where: fmt.Sprint("round ", seed)}
	ctx := a.t.Context()
	if r.IntN(2) == 0 {
		r.limit, r.whenFull = 1+r.IntN(3), WhenFull(1+r.IntN(2))
	}
	var owned, held []*life
	var waiting []Binding
	for range r.IntN(4) {
		if r.limit > 0 && len(r.lives) == r.limit {
			break
		}
		login, id := a.other.login(r.owner), NewID()
		l, opts := r.newLife(id), []ReserveOption{until()}
		if l.known, l.inTeam = login.Generation >= 0, r.IntN(2) == 0; l.inTeam {
			opts = append(opts, Also(a.other.login(r.team)))
		}
		b, err := a.other.Reserve(ctx, id, login, opts...)
		require.NoError(t, err)
		if r.IntN(3) == 0 {
			l.reserved = true
			waiting, held = append(waiting, b), append(held, l)
			continue
		}
		a.other.write(id, "data", time.Hour, Bound(b))
		owned = append(owned, l)
	}
	if len(owned) > 0 && r.whenFull != EvictOldest && r.IntN(2) == 0 {
		r.kept = owned[0]
	}
	var anonymous []string
	for range 5 {
		id := NewID()
		a.other.write(id, "data", time.Hour)
		anonymous = append(anonymous, id)
	}
	tasks := r.tasks(owned, anonymous, waiting, held)
	for _, task := range tasks {
		r.where += ", " + task.name
	}
	r.where += fmt.Sprintf("; limit %d, %d; Except %v", r.limit, r.whenFull, r.kept != nil)
	loses := r.kept == nil && r.IntN(4) == 0
	most := make([]int, len(tasks)) // places that were taken while it was at work
	defer func() {
		for _, actor := range a.actors {
			actor.die()
		}
	}()

	begun := make([]bool, len(tasks))
	for i := r.IntN(len(tasks)); ; {
		var left []int
		for j, actor := range a.actors[:len(tasks)] {
			if !begun[j] || !actor.over {
				left = append(left, j)
			}
		}
		if len(left) == 0 {
			break
		}
		if !slices.Contains(left, i) || r.IntN(2) == 0 {
			i = left[r.IntN(len(left))]
		}
		actor, task := a.actors[i], tasks[i]
		r.step++
		if !begun[i] {
			begun[i] = true
			for _, l := range task.on {
				l.busy++
			}
			actor.maxSessions, actor.whenFull = r.limit, r.whenFull
			most[i] = r.occupied
			actor.begin(task.do)
		} else if r.IntN(60) == 0 && !slices.Contains(task.on, r.kept) {
			actor.die() // its process, wherever it was; its lives may be between two ids
			r.look(t)
			continue
		} else {
			actor.advance(1)
		}
		if actor.over {
			r.judge(t, task, actor.err, max(most[i], r.occupied))
			for _, l := range task.on {
				l.busy--
			}
		}
		r.look(t)
		for j := range most {
			most[j] = max(most[j], r.occupied)
		}
		if loses && !r.lost && !slices.ContainsFunc(r.revokes, func(v *revoked) bool { return v.returned < 0 }) {
			r.lost = true
			a.other.do("DEL", a.other.ownerKey(Ref(r.owner)))
			a.other.bound(r.owner) // the key is there again
		}
	}
	if r.lost {
		return
	}
	if r.kept != nil {
		require.True(t, slices.ContainsFunc(r.kept.ids, a.other.live), "%s: the session that goes on is lost", r.where)
	}
	r.kept, r.limit = nil, 0
	for _, v := range []*revoked{{begun: r.step + 1, returned: r.step + 1, ofTeam: true}, {begun: r.step + 1, returned: r.step + 1}} {
		owner := r.owner
		if v.ofTeam {
			owner = r.team
		}
		_, err := a.other.InvalidateOwner(ctx, owner)
		require.NoError(t, err)
		r.revokes = []*revoked{v}
		r.look(t)
	}
}

// judge looks at how a task has ended.
func (r *round) judge(t require.TestingT, task task, err error, places int) {
	switch {
	case err == nil, errors.Is(err, ErrInvalidated), errors.Is(err, ErrConflict), errors.Is(err, ErrStaleLogin):
		require.False(t, err != nil && slices.Contains(task.on, r.kept), "%s: %v", r.where, err)
	case errors.Is(err, ErrTooManySessions):
		require.GreaterOrEqual(t, places, r.limit, "%s: it was not full", r.where)
	default:
		require.NoError(t, err, r.where+": "+task.name)
	}
	require.False(t, err != nil && task.name == "InvalidateOwner", r.where)
}

// look checks that nobody is in who must be out.
func (r *round) look(t require.TestingT) {
	ctx := r.t.Context()
	live := 0
	r.occupied = 0
	for _, l := range r.lives {
		in := false
		for _, id := range l.ids {
			head, err := r.other.query(ctx, "GETRANGE", r.other.keyOf(id), "0", "127")
			if err != nil {
				require.True(t, isWrongType(err))
				continue
			}
			if len(head) == 0 || !slices.Contains(ownersIn(headerOf(head)), Ref(r.owner)) {
				continue
			}
			in = true
			live++
			for _, v := range r.revokes {
				if v.reaches(l) && (l.known || !r.lost) {
					require.Less(t, v.begun, max(l.begun, l.joined), "%s: step %d: it is live that was before InvalidateOwner", r.where, r.step)
				}
			}
		}
		if in || l.busy > 0 || l.reserved {
			r.occupied++
		}
	}
	if r.limit > 0 && !r.lost {
		require.LessOrEqual(t, live, r.limit, "%s: step %d", r.where, r.step)
	}
}

// rounds is how many rounds are played: ROUNDS, or a few, and under -short a quarter of them.
func rounds(t *testing.T, few int) int {
	if text := os.Getenv("ROUNDS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		return n
	}
	if testing.Short() {
		return (few + 3) / 4
	}
	return few
}

// Whoever logs in, moves, gives up, adopts and looks while InvalidateOwner is called, in whatever order
// their commands reach the server, and whoever dies on the way: no session from before the call is live
// after it, none too many at any moment, and the one that goes on does.
func TestOwners_Race(t *testing.T) {
	t.Parallel()
	servers := map[string]string{"standalone": redistest.URL(t), "cluster": redistest.ClusterURL(t)}
	if os.Getenv("ROUNDS") != "" {
		nodes := redistest.StartNodes(t, 5*time.Second)
		servers["cluster"] = nodes.Primaries[0].URL
	}
	first := uint64(time.Now().UnixNano())
	for name, url := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newArena(t, url)
			for i := range rounds(t, 200) {
				a.play(t, first+uint64(i))
			}
		})
	}
	for name, m := range map[string]mutant{
		"no ticket is looked at":             {"bind", "if stale or math.abs", "if math.abs"},
		"a generation repeats":               {"bind", "or tonumber(ARGV[4])", "or 7"},
		"entries go before tombstones":       {"revoke", "drop(3600 - seconds,", "drop(1, generation * 2^32 - 1) drop(3600 - seconds,"},
		"Except does not go along":           {"revoke", "if score then redis.call", "if false then redis.call"},
		"a move has two entries":             {"bind", "if not login then redis.call('ZREM'", "if false then redis.call('ZREM'"},
		"a move has no entry":                {"bind", "redis.call('ZADD', KEYS[1], score, entry, -seconds, mark)", ""},
		"one too many":                       {"bind", ">= tonumber(ARGV[9])", "> tonumber(ARGV[9])"},
		"what is to be ended does not count": {"bind", "'ZCOUNT', KEYS[1], 1,", "'ZCOUNT', KEYS[1], base,"},
		"a revoke closes nothing":            {"revoke", "generation = generation + 1\n", "\n"},
		"no tombstone for what is absent": {
			"invalidate", "local keep =", "if not live and condition == '' then return 'A' end\nlocal keep ="},
	} {
		t.Run("catches: "+name, func(t *testing.T) {
			t.Parallel()
			skipIfShort(t)
			a := newArena(t, redistest.URL(t))
			for _, tap := range a.taps {
				m.apply(t, tap)
			}
			for i := range uint64(3000) {
				if fails(t, func(t require.TestingT) { a.play(t, i) }) {
					t.Log("round ", i)
					return
				}
			}
			t.Error("nothing was noticed")
		})
	}
}
