package adapter

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// newBedWith is newBed on a store with options.
func newBedWith(t *testing.T, opts ...tombstore.Option) *bed {
	t.Helper()
	t.Parallel()
	memory, err := tombstore.NewMemory(opts...)
	require.NoError(t, err)
	b := &bed{T: t, store: &failing{MemoryStore: memory}, id: tombstore.NewID(), b: &Request{}}
	b.Adapter = New(b.store, WithOnRefused(func(_ context.Context, e tombstore.Event) { b.events = append(b.events, e) }))
	require.NoError(t, b.Save(t.Context(), &Request{}, b.id, []byte("x"), time.Hour))
	b.load(b.b, b.id, "x")
	return b
}

// ways are those in which a session library logs in: begin comes before Login, save after it.
var ways = map[string]struct {
	begin func(b *bed) error
	save  func(b *bed, id, data string) error
}{
	"in two halves": {func(b *bed) error { return b.Leave(b.Context(), b.b, b.b.ID()) }, (*bed).save},
	"in one step":   {func(*bed) error { return nil }, (*bed).rotate},
	"new":           {func(b *bed) error { b.b = &Request{}; return nil }, (*bed).save},
}

// eachWay runs test for each way to log in.
func eachWay(t *testing.T, opts []tombstore.Option, test func(b *bed, begin func(), save func(id, data string) error)) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			b := newBedWith(t, opts...)
			test(b, func() { require.NoError(t, way.begin(b)) }, func(id, data string) error { return way.save(b, id, data) })
		})
	}
}

// ticket begins a login.
func (b *bed) ticket(owner string) tombstore.Login {
	b.Helper()
	login, err := b.store.BeginLogin(b.Context(), owner)
	require.NoError(b, err)
	return login
}

// login logs in with the request b.b, and returns the id that is to be saved.
func (b *bed) login(owner string, opts ...tombstore.ReserveOption) (id string) {
	b.Helper()
	id = tombstore.NewID()
	require.NoError(b, b.tryLogin(id, b.ticket(owner), opts...))
	return id
}

func (b *bed) tryLogin(id string, login tombstore.Login, opts ...tombstore.ReserveOption) error {
	opts = append(opts, tombstore.Until(time.Now().Add(8*time.Hour)), tombstore.Label("phone"))
	_, err := b.Login(b.Context(), b.b, id, login, opts...)
	return err
}

// owned requires that the owner has exactly these sessions.
func (b *bed) owned(owner string, ids ...string) {
	b.Helper()
	all, err := b.store.Sessions(b.Context(), owner)
	require.NoError(b, err)
	refs := []string{}
	for _, s := range all {
		require.Equal(b, "phone", s.Label)
		require.WithinDuration(b, time.Now().Add(8*time.Hour), s.Deadline, time.Minute)
		refs = append(refs, s.Ref)
	}
	want := []string{}
	for _, id := range ids {
		want = append(want, tombstore.Ref(id))
	}
	require.ElementsMatch(b, want, refs)
}

func (b *bed) endAll(owner string) {
	b.Helper()
	_, err := b.store.InvalidateOwner(b.Context(), owner)
	require.NoError(b, err)
}

// another is a login of another browser.
func (b *bed) another(owner string) (id string, err error) {
	b.Helper()
	login, id, r := b.ticket(owner), tombstore.NewID(), &Request{}
	opts := []tombstore.ReserveOption{tombstore.Until(time.Now().Add(8 * time.Hour)), tombstore.Label("phone")}
	if _, err := b.Login(b.Context(), r, id, login, opts...); err != nil {
		return "", err
	}
	return id, b.Save(b.Context(), r, id, []byte(owner), time.Hour)
}

func TestLogin(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		old, id := b.b.ID(), b.login("alice")
		b.owned("alice")
		require.NoError(b, save(id, "alice"))
		b.load(nil, id, "alice")
		b.owned("alice", id)
		require.NoError(b, b.save(id, "alice, 1 item"))
		b.owned("alice", id)
		if old != "" { // a logout by the old id
			require.NoError(b, b.Store().Invalidate(b.Context(), old))
			b.owned("alice")
			b.load(nil, id, "")
		}
	})
}

// Where a session library does not leave the request's session, the login does.
func TestLogin_WithoutLeave(t *testing.T) {
	b := newBedWith(t, tombstore.WithMaxSessions(1, tombstore.Refuse))
	id, flash := b.login("alice"), tombstore.NewID()
	require.NoError(t, b.save(flash, "flash"))
	b.owned("alice")
	require.NoError(t, b.save(id, "alice"))
	b.owned("alice", id)
	b.load(nil, b.id, "")
	require.NoError(t, b.save(id, "more"))
	b.load(nil, id, "more")
	again := b.login("alice")
	require.NoError(t, b.save(again, "alice again"))
	b.owned("alice", again)
	b.load(nil, id, "")
	require.NoError(t, b.store.Invalidate(t.Context(), b.id))
	b.owned("alice")
}

// A login whose owner has been logged out everywhere since it began is refused by Login, and the
// session goes on as it was.
func TestLogin_Stale(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		login, id := b.ticket("alice"), tombstore.NewID()
		b.endAll("alice")
		require.ErrorIs(b, b.tryLogin(id, login), tombstore.ErrStaleLogin)
		require.NoError(b, save(id, "x"))
		b.load(nil, id, "x")
		b.owned("alice")
	})
}

// One whose owner is logged out everywhere after Login is refused by the save.
func TestLogin_EndedBeforeSave(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		id := b.login("alice")
		b.endAll("alice")
		require.ErrorIs(b, save(id, "alice"), ErrRefused)
		require.Equal(b, tombstore.Revoked, b.events[0].Reason)
		b.load(nil, id, "")
		require.ErrorIs(b, b.save(tombstore.NewID(), "alice"), ErrRefused)
		b.owned("alice")
	})
}

// What is reserved is given up when it is not saved: nobody can write there, and it takes no place.
func TestLogin_GivenUp(t *testing.T) {
	one := []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}
	for name, giveUp := range map[string]func(b *bed, save func(id, data string) error){
		"end": func(b *bed, _ func(id, data string) error) { require.NoError(b, b.End(b.Context(), b.b, b.b.ID())) },
		"refused": func(b *bed, save func(id, data string) error) {
			ended := b.id
			if b.b.ID() == "" { // there is no session but the next
				ended = b.b.login.id
			}
			require.NoError(b, b.Store().Invalidate(b.Context(), ended))
			require.ErrorIs(b, save(b.b.login.id, "alice"), ErrRefused)
		},
		"release": func(b *bed, save func(id, data string) error) {
			b.Release(b.Context(), b.b)
			require.ErrorIs(b, save(tombstore.NewID(), "alice"), errGivenUp)
			b.Release(b.Context(), b.b)
		},
		"another login": func(b *bed, _ func(id, data string) error) {
			b.login("alice")
			b.login("bob")
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, one, func(b *bed, begin func(), save func(id, data string) error) {
				begin()
				id := b.login("alice")
				_, err := b.another("alice")
				require.ErrorIs(b, err, tombstore.ErrTooManySessions)
				giveUp(b, save)
				_, err = b.store.Read(b.Context(), id)
				require.ErrorIs(b, err, tombstore.ErrInvalidated)
				other, err := b.another("alice")
				require.NoError(b, err)
				b.owned("alice", other)
			})
		})
	}
}

// Whatever new id is saved, the login goes with it.
func TestLogin_AnotherID(t *testing.T) {
	eachWay(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)},
		func(b *bed, begin func(), save func(id, data string) error) {
			begin()
			first, next := b.login("alice"), tombstore.NewID()
			require.NoError(b, save(next, "alice"))
			b.owned("alice", next)
			_, err := b.store.Read(b.Context(), first)
			require.ErrorIs(b, err, tombstore.ErrInvalidated)
		})
}

// A second login in one request is the one that counts, and if it fails the first one does.
func TestLogin_Twice(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		b.login("alice")
		id := b.login("bob")
		stale := b.ticket("carol")
		b.endAll("carol")
		require.ErrorIs(b, b.tryLogin(tombstore.NewID(), stale), tombstore.ErrStaleLogin)
		require.NoError(b, save(tombstore.NewID(), "bob"))
		b.owned("alice")
		b.owned("bob", b.b.ID())
		b.owned("carol")
		b.load(nil, id, "")
	})
}

func TestLogin_OfAnotherUser(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		require.NoError(b, save(b.login("alice"), "alice"))
		alices := b.b.ID()
		again := &Request{}
		b.load(again, alices, "alice")
		b.b = again
		require.NoError(b, b.Leave(b.Context(), b.b, alices))
		bobs := b.login("bob")
		require.NoError(b, b.save(bobs, "bob"))
		b.owned("alice")
		b.owned("bob", bobs)
		b.endAll("alice")
		b.load(nil, bobs, "bob")
	})
}

// A renewal is no login, and a session that has an owner keeps it.
func TestRenew_KeepsTheOwner(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		require.NoError(b, save(b.login("alice"), "alice"))
		before, err := b.store.Sessions(b.Context(), "alice")
		require.NoError(b, err)
		require.NoError(b, b.Leave(b.Context(), b.b, b.b.ID()))
		require.NoError(b, b.save(tombstore.NewID(), "alice"))
		require.NoError(b, b.rotate(tombstore.NewID(), "alice"))
		b.owned("alice", b.b.ID())
		after, err := b.store.Sessions(b.Context(), "alice")
		require.NoError(b, err)
		require.Equal(b, before[0].CreatedAt, after[0].CreatedAt)
		require.Equal(b, before[0].Deadline, after[0].Deadline)
	})
}

// Of two logins with one session the one that has renewed it goes on. The other one takes no place,
// and takes over if that is given up.
func TestLogin_Twins(t *testing.T) {
	twins := func(t *testing.T) (b *bed, first *Request, id string) {
		b = newBedWith(t, tombstore.WithMaxSessions(1, tombstore.Refuse))
		first = &Request{}
		b.load(first, b.id, "x")
		require.NoError(t, b.Leave(t.Context(), first, b.id))
		require.NoError(t, b.Leave(t.Context(), b.b, b.id))
		return b, first, b.login("alice")
	}
	t.Run("the first goes on", func(t *testing.T) {
		b, first, id := twins(t)
		second := b.b
		b.b = first
		firsts := b.login("alice")
		require.NoError(t, b.save(firsts, "alice"))
		b.b = second
		require.ErrorIs(t, b.save(id, "alice"), ErrRefused)
		b.owned("alice", firsts)
	})
	t.Run("the first gives up", func(t *testing.T) {
		b, first, id := twins(t)
		gone, cancel := context.WithCancel(t.Context())
		second := b.b
		b.b = first
		firsts := b.login("alice")
		cancel()
		require.ErrorIs(t, b.Save(gone, first, firsts, []byte("alice"), time.Hour), context.Canceled)
		b.b = second
		require.NoError(t, b.save(id, "alice"))
		b.owned("alice", id)
	})
	t.Run("the first gives up, and the owner is logged out everywhere", func(t *testing.T) {
		b, first, id := twins(t)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, b.Save(gone, first, tombstore.NewID(), []byte("x"), time.Hour), context.Canceled)
		b.endAll("alice")
		require.ErrorIs(t, b.save(id, "alice"), tombstore.ErrStaleLogin)
		b.load(nil, id, "")
		b.owned("alice")
	})
}

// Where another browser has the only place the login is refused and the session goes on. A session
// that logs in again makes room for itself.
func TestLogin_Full(t *testing.T) {
	for whenFull, name := range map[tombstore.WhenFull]string{tombstore.Refuse: "refuse", tombstore.EvictOldest: "evict"} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, []tombstore.Option{tombstore.WithMaxSessions(1, whenFull)},
				func(b *bed, begin func(), save func(id, data string) error) {
					other, err := b.another("alice")
					require.NoError(b, err)
					begin()
					old, id := b.b.ID(), tombstore.NewID()
					if err := b.tryLogin(id, b.ticket("alice")); whenFull == tombstore.Refuse {
						require.ErrorIs(b, err, tombstore.ErrTooManySessions)
						require.NoError(b, save(id, "x"))
						b.load(nil, id, "x")
						b.load(nil, other, "alice")
						if old != "" {
							require.NoError(b, b.Store().Invalidate(b.Context(), old))
							b.load(nil, id, "")
						}
						return
					}
					require.NoError(b, save(id, "alice"))
					b.owned("alice", id)
					b.load(nil, other, "")
				})
			eachWay(t, []tombstore.Option{tombstore.WithMaxSessions(1, whenFull)},
				func(b *bed, begin func(), save func(id, data string) error) {
					first, err := b.another("alice")
					require.NoError(b, err)
					b.b, b.id = &Request{}, first
					b.load(b.b, first, "alice")
					begin()
					if b.b.ID() == "" {
						return
					}
					id := b.login("alice")
					require.NoError(b, save(id, "alice again"))
					b.owned("alice", id)
					b.load(nil, id, "alice again")
					b.load(nil, first, "")
					require.NoError(b, b.b.Gone())
				})
		})
	}
}

// taking is a store in which somebody takes the place that is given up.
type taking struct {
	*tombstore.MemoryStore
	take func()
}

func (s taking) Release(ctx context.Context, b tombstore.Binding) error {
	err := s.MemoryStore.Release(ctx, b)
	s.take()
	return err
}

// A session that logs in again makes room for itself also when another id is saved than Login was
// given.
func TestLogin_AnotherIDFull(t *testing.T) {
	eachWay(t, []tombstore.Option{tombstore.WithMaxSessions(2, tombstore.Refuse)},
		func(b *bed, begin func(), save func(id, data string) error) {
			b.loginAs("alice")
			alices, other, next := b.b.ID(), "", tombstore.NewID()
			b.Adapter = New(taking{b.store.MemoryStore, func() {
				if other != "" {
					return
				}
				other = tombstore.NewID()
				opts := []tombstore.ReserveOption{tombstore.Until(time.Now().Add(8 * time.Hour)), tombstore.Label("phone")}
				binding, err := b.store.Reserve(b.Context(), other, b.ticket("alice"), opts...)
				require.NoError(b, err)
				_, err = b.store.Write(b.Context(), other, []byte("alice"), time.Hour, tombstore.Bound(binding))
				require.NoError(b, err)
			}})
			b.b = &Request{}
			b.load(b.b, alices, "alice")
			begin()
			if b.b.ID() == "" {
				return
			}
			b.login("alice")
			require.NoError(b, save(next, "alice again"))
			b.owned("alice", next, other)
			b.load(nil, alices, "")
		})
}

// A login is no late request, whether it renews a session or not.
func TestLogin_Late(t *testing.T) {
	b := newBedWith(t)
	b.Adapter = New(b.store, WithLateRequests(time.Minute))
	require.NoError(t, b.Store().Invalidate(t.Context(), b.id))
	b.b = &Request{}
	b.load(b.b, b.id, "")
	id := b.login("alice")
	require.NoError(t, b.save(id, "alice"))
	b.owned("alice", id)
}

// A request of which nothing is saved any more says so at once.
func TestLogin_Tainted(t *testing.T) {
	b := newBedWith(t)
	require.NoError(t, b.Store().Invalidate(t.Context(), b.id))
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	b.refused(b.tryLogin(tombstore.NewID(), b.ticket("alice")), "login", tombstore.Logout)
}

func TestLogin_Errors(t *testing.T) {
	b := newBedWith(t)
	login, id := b.ticket("alice"), tombstore.NewID()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Login(gone, b.b, id, login)
	require.ErrorIs(t, err, context.Canceled)
	_, err = b.Login(t.Context(), b.b, id, login)
	require.ErrorIs(t, err, tombstore.ErrNoDeadline)
	_, err = b.Login(t.Context(), nil, id, login)
	require.ErrorIs(t, err, errNoRequest)
	a := New(withoutExpiry{b.store})
	_, err = a.Login(t.Context(), b.b, id, login)
	require.ErrorIs(t, err, errNoBinder)
	_, err = a.EndOthers(t.Context(), b.b, "alice")
	require.ErrorIs(t, err, errNoBinder)
	require.NoError(t, b.save(b.id, "y"))
	b.load(nil, b.id, "y")
}

// unsure is a store whose replicas are late to confirm a login.
type unsure struct{ *tombstore.MemoryStore }

func (u unsure) Reserve(
	ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
) (tombstore.Binding, error) {
	b, err := u.MemoryStore.Reserve(ctx, id, login, opts...)
	if err == nil {
		err = tombstore.ErrUnacknowledged
	}
	return b, err
}

func TestLogin_Unacknowledged(t *testing.T) {
	b := newBedWith(t)
	var events []tombstore.Event
	b.Adapter = New(unsure{b.store.MemoryStore}, WithOnUnacknowledged(func(_ context.Context, e tombstore.Event) { events = append(events, e) }))
	id := b.login("alice")
	require.Len(t, events, 1)
	require.ErrorIs(t, events[0].Err, tombstore.ErrUnacknowledged)
	events[0].Err = nil
	require.Equal(t, []tombstore.Event{
		{Verb: "login", Outcome: tombstore.OutcomeUnacknowledged, Ref: tombstore.Ref(b.id)},
	}, events)
	require.NoError(t, b.rotate(id, "alice"))
	b.owned("alice", id)
}

func TestEndOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(b *bed) // lets b.b come to what it is
		keeps   bool
		err     error
	}{
		"no request":       {func(b *bed) { b.b = nil }, false, nil},
		"nobody's session": {func(*bed) {}, false, nil},
		"bob's session":    {func(b *bed) { b.loginAs("bob") }, false, nil},
		"own session":      {func(b *bed) { b.loginAs("alice") }, true, nil},
		"own session, between its halves": {func(b *bed) {
			b.loginAs("alice")
			require.NoError(b, b.Leave(b.Context(), b.b, b.b.ID()))
		}, true, nil},
		"own session, renewed by another request": {func(b *bed) {
			b.loginAs("alice")
			_, err := b.store.Rotate(b.Context(), b.b.ID(), tombstore.NewID())
			require.NoError(b, err)
		}, true, nil},
		"own session, ended": {func(b *bed) {
			b.loginAs("alice")
			require.NoError(b, b.store.Invalidate(b.Context(), b.b.ID()))
		}, true, ErrRefused},
		"own session, which it has ended": {func(b *bed) {
			b.loginAs("alice")
			require.NoError(b, b.End(b.Context(), b.b, ""))
		}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBedWith(t)
			other, err := b.another("alice")
			require.NoError(t, err)
			bobs, err := b.another("bob")
			require.NoError(t, err)
			tt.prepare(b)
			n, err := b.EndOthers(t.Context(), b.b, "alice")
			require.ErrorIs(t, err, tt.err)
			if tt.err != nil {
				b.load(nil, other, "alice")
				return
			}
			require.Equal(t, 1, n)
			b.load(nil, other, "")
			b.load(nil, bobs, "bob")
			if !tt.keeps {
				b.owned("alice")
				return
			}
			if !b.b.Holds() {
				require.NoError(t, b.save(tombstore.NewID(), "alice"))
			}
			all, err := b.store.Sessions(t.Context(), "alice")
			require.NoError(t, err)
			require.Len(t, all, 1)
		})
	}
}

// loginAs logs in with the request.
func (b *bed) loginAs(owner string) {
	b.Helper()
	require.NoError(b, b.rotate(b.login(owner), owner))
}

// A login of the same request goes on, also that of a twin that has lost its session.
func TestEndOthers_WhileLoggingIn(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		other, err := b.another("alice")
		require.NoError(b, err)
		begin()
		id := b.login("alice")
		n, err := b.EndOthers(b.Context(), b.b, "alice")
		require.NoError(b, err)
		require.Equal(b, 1, n)
		require.NoError(b, save(id, "alice"))
		b.owned("alice", id)
		b.load(nil, other, "")
	})
	for _, owner := range []string{"alice", "tenant", "sid"} { // also of a further owner
		t.Run("twins, "+owner, func(t *testing.T) {
			b := newBedWith(t)
			first := &Request{}
			b.load(first, b.id, "x")
			require.NoError(t, b.Leave(t.Context(), first, b.id))
			require.NoError(t, b.Leave(t.Context(), b.b, b.id))
			further := []tombstore.ReserveOption{tombstore.Also(b.ticket("tenant")), tombstore.AlsoFinal("sid")}
			second, seconds := b.b, b.login("alice", further...)
			b.b = first
			firsts := b.login("alice", further...)
			_, err := b.EndOthers(t.Context(), second, owner)
			require.ErrorIs(t, err, ErrRefused)
			require.NoError(t, b.save(firsts, "alice"))
			n, err := b.EndOthers(t.Context(), second, owner)
			require.NoError(t, err)
			require.Zero(t, n)
			require.ErrorIs(t, b.Save(t.Context(), second, seconds, []byte("alice"), time.Hour), ErrRefused)
			b.owned("alice", firsts)
		})
	}
}

// A user who logs in again and logs out all others goes on by the login, also where the request's
// session is the owner's before it.
func TestEndOthers_LoggingInAgain(t *testing.T) {
	again := func(b *bed) (other string) {
		b.loginAs("alice")
		other, err := b.another("alice")
		require.NoError(b, err)
		alices := b.b.ID()
		b.b = &Request{}
		b.load(b.b, alices, "alice")
		return other
	}
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		other := again(b)
		begin()
		old, id := b.b.ID(), b.login("alice")
		n, err := b.EndOthers(b.Context(), b.b, "alice")
		require.NoError(b, err)
		require.NoError(b, save(id, "alice again"))
		b.owned("alice", id)
		b.load(nil, id, "alice again")
		b.load(nil, other, "")
		if old != "" {
			require.Equal(b, 1, n)
			b.load(nil, old, "")
		}
		require.NoError(b, b.b.Gone())
	})
	t.Run("ended by somebody else", func(t *testing.T) {
		eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
			other := again(b)
			begin()
			old, id := b.b.ID(), b.login("alice")
			if old == "" {
				return
			}
			require.NoError(b, b.Store().Invalidate(b.Context(), old))
			_, err := b.EndOthers(b.Context(), b.b, "alice")
			require.ErrorIs(b, err, ErrRefused)
			require.ErrorIs(b, save(id, "alice again"), ErrRefused)
			b.owned("alice", other)
		})
	})
	t.Run("ended by somebody else afterwards", func(t *testing.T) {
		for _, everywhere := range []bool{false, true} {
			eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
				again(b)
				begin()
				old, id := b.b.ID(), b.login("alice")
				if old == "" {
					return
				}
				_, err := b.EndOthers(b.Context(), b.b, "alice")
				require.NoError(b, err)
				if everywhere {
					_, err = b.store.InvalidateOwner(b.Context(), "alice")
				} else {
					err = b.Store().Invalidate(b.Context(), old)
				}
				require.NoError(b, err)
				require.ErrorIs(b, save(id, "alice again"), ErrRefused)
				b.owned("alice")
				b.load(nil, id, "")
			})
		}
	})
	t.Run("renewed afterwards", func(t *testing.T) {
		b := newBedWith(t)
		again(b)
		b.login("alice")
		_, err := b.EndOthers(b.Context(), b.b, "alice")
		require.NoError(b, err)
		require.NoError(b, b.Leave(b.Context(), b.b, ""))
		id := tombstore.NewID()
		require.NoError(b, b.save(id, "alice again"))
		b.owned("alice", id)
	})
	t.Run("never saved", func(t *testing.T) {
		b := newBedWith(t)
		again(b)
		id := b.login("alice")
		_, err := b.EndOthers(b.Context(), b.b, "alice")
		require.NoError(b, err)
		require.False(b, b.b.Holds(), "or it would be renewed at once")
		b.owned("alice", id)
		b.Release(b.Context(), b.b)
		b.owned("alice")
		require.Error(b, b.save(id, "alice again"))
	})
	t.Run("ended, and another one loaded", func(t *testing.T) {
		b := newBedWith(t)
		other := again(b)
		id := b.login("alice")
		_, err := b.EndOthers(b.Context(), b.b, "alice")
		require.NoError(b, err)
		require.NoError(b, b.End(b.Context(), b.b, ""))
		b.load(nil, id, "")
		b.load(nil, other, "")
		bobs, err := b.another("bob")
		require.NoError(b, err)
		b.load(b.b, bobs, "bob")
		b.Release(b.Context(), b.b)
		b.load(nil, bobs, "bob")
	})
}

// A login whose user was logged out everywhere since is refused, also if the request has taken
// another id since.
func TestLogin_LoggedOutEverywhereSince(t *testing.T) {
	eachWay(t, nil, func(b *bed, begin func(), save func(id, data string) error) {
		begin()
		b.login("alice")
		_, err := b.store.InvalidateOwner(b.Context(), "alice")
		require.NoError(b, err)
		id := tombstore.NewID()
		err = save(id, "alice")
		require.ErrorIs(b, err, ErrRefused)
		require.ErrorIs(b, err, tombstore.ErrInvalidated)
		b.owned("alice")
		b.load(nil, id, "")
		require.ErrorIs(b, save(tombstore.NewID(), "alice"), ErrRefused)
	})
}

// A session that gets an owner during the request is the same session: what the request saves is
// stored, and so is what it saves after that.
func TestSave_Adopted(t *testing.T) {
	b := newBedWith(t)
	_, err := b.store.Adopt(t.Context(), b.id, b.ticket("alice"),
		tombstore.Until(time.Now().Add(8*time.Hour)), tombstore.Label("phone"))
	require.NoError(t, err)
	require.NoError(t, b.save(b.id, "y"))
	require.NoError(t, b.save(b.id, "z"))
	s, err := b.store.Read(t.Context(), b.id)
	require.NoError(t, err)
	require.Equal(t, "z", string(s.Data))
	b.owned("alice", b.id)

	require.NoError(t, b.store.Invalidate(t.Context(), b.id))
	require.ErrorIs(t, b.save(b.id, "late"), ErrRefused)
}

// Another session that has begun under the id is another one, whosever it is.
func TestSave_AnotherAdopted(t *testing.T) {
	b, another := newBedWith(t), (*tombstore.MemoryStore)(nil)
	require.Eventually(t, func() bool { // creation times are whole milliseconds
		var err error
		another, err = tombstore.NewMemory()
		require.NoError(t, err)
		s, err := another.Write(t.Context(), b.id, []byte("other"), time.Hour, tombstore.IfAbsent())
		require.NoError(t, err)
		return s.CreatedAt.After(b.b.held.CreatedAt)
	}, time.Minute, time.Millisecond)
	login, err := another.BeginLogin(t.Context(), "bob")
	require.NoError(t, err)
	_, err = another.Adopt(t.Context(), b.id, login, tombstore.Until(time.Now().Add(time.Hour)))
	require.NoError(t, err)

	require.ErrorIs(t, New(another).Save(t.Context(), b.b, b.id, []byte("y"), time.Hour), ErrRefused)
	s, err := another.Read(t.Context(), b.id)
	require.NoError(t, err)
	require.Equal(t, "other", string(s.Data))
}
