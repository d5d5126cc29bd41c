package tombstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// withFloor sets how often what is watched is looked at. An hour is never, in a test.
func withFloor(d time.Duration) Option { return func(c *config) { c.watchFloor = d } }

// audience is a store whose sessions are watched, with commands that are seen, and another one that
// publishes what it ends.
type audience struct {
	world
	hold  chan struct{} // no subscription begins before it is closed
	asked *atomic.Int32 // subscriptions that were to begin
}

// deaf is a client that waits before it subscribes.
type deaf struct {
	*tap
	hold  chan struct{}
	asked *atomic.Int32
}

func (d *deaf) Dedicate() (rueidis.DedicatedClient, func()) {
	d.asked.Add(1)
	<-d.hold
	return d.Client.Dedicate()
}

func newAudience(t *testing.T, url string, opts ...Option) audience {
	t.Helper()
	client := &deaf{newTap(redistest.Dial(t, url)), make(chan struct{}), new(atomic.Int32)}
	b := bedOn(t, client, append([]Option{withFloor(time.Hour)}, opts...)...)
	other := bedOn(t, redistest.Dial(t, url), append(opts, WithKeyPrefix(b.prefix), WithPublish())...)
	loadScripts(t, other)
	return audience{world{b, client.tap, other, b.clustered()}, client.hold, client.asked}
}

// hears lets the subscription begin, and waits for it if something is watched.
func (a audience) hears() audience {
	close(a.hold)
	return a
}

// onBothAudiences runs a test on a server and on a cluster; under -short on one of them.
func onBothAudiences(t *testing.T, test func(t *testing.T, newAudience func(*testing.T, ...Option) audience)) {
	for name, url := range shared(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(t *testing.T, opts ...Option) audience { return newAudience(t, url, opts...) })
		})
	}
}

// session writes a session.
func (a audience) session() (id string) {
	id = NewID()
	a.other.write(id, "x", time.Hour)
	return id
}

func (b *bed) watch(id string) context.Context {
	b.t.Helper()
	ctx, err := b.Watch(b.t.Context(), id)
	require.NoError(b.t, err)
	return ctx
}

func (b *bed) watchOwner(owner string) context.Context {
	b.t.Helper()
	ctx, err := b.WatchOwner(b.t.Context(), owner)
	require.NoError(b.t, err)
	return ctx
}

// told waits until a watch ends, and returns its cause.
func told(t require.TestingT, ctx context.Context, what string) error {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		require.Fail(t, "the end is not told", what)
	}
	return context.Cause(ctx)
}

func requireTold(t require.TestingT, ctx context.Context, reason Reason, what string) {
	var end *InvalidatedError
	require.ErrorAs(t, told(t, ctx, what), &end, what)
	require.Equal(t, reason, end.Reason, what)
}

// requireUntold has the watch of another session end first.
func (a audience) requireUntold(t require.TestingT, ctx context.Context, what string) {
	for range 3 {
		id := a.session()
		watched := a.watch(id)
		require.NoError(t, a.other.Invalidate(a.t.Context(), id))
		requireTold(t, watched, Logout, what)
	}
	require.NoError(t, context.Cause(ctx), what)
}

// subscribers returns how many connections the server has that listen.
func (a audience) subscribers() (n int64) {
	for _, node := range a.other.client.Nodes() {
		reply, err := node.Do(a.t.Context(), node.B().PubsubNumsub().Channel(a.channel()).Build()).AsIntMap()
		require.NoError(a.t, err)
		n += reply[a.channel()]
	}
	return n
}

// What may happen to a session until it is ended.
var fates = map[string]func(ctx context.Context, s *RedisStore, id string) error{
	"Invalidate": func(ctx context.Context, s *RedisStore, id string) error { return s.Invalidate(ctx, id) },
	"Rotate, Invalidate of the new id": func(ctx context.Context, s *RedisStore, id string) error {
		next := NewID()
		_, err := s.Rotate(ctx, id, next)
		return errors.Join(err, s.Invalidate(ctx, next))
	},
	"Rotate, Rotate, Invalidate of the old id": func(ctx context.Context, s *RedisStore, id string) error {
		next := NewID()
		_, err := s.Rotate(ctx, id, next)
		_, err2 := s.Rotate(ctx, next, NewID(), WithData(nil, time.Hour))
		return errors.Join(err, err2, s.Invalidate(ctx, id))
	},
	"BeginRenewal, Invalidate": func(ctx context.Context, s *RedisStore, id string) error {
		_, err := s.BeginRenewal(ctx, id, 0)
		return errors.Join(err, s.Invalidate(ctx, id))
	},
	"renewal, Invalidate of the new id": func(ctx context.Context, s *RedisStore, id string) error {
		next := NewID()
		r, err := s.BeginRenewal(ctx, id, 0)
		_, err2 := s.FinishRenewal(ctx, r, next, nil, time.Hour)
		return errors.Join(err, err2, s.Invalidate(ctx, next))
	},
	"InvalidateOwner": func(ctx context.Context, s *RedisStore, id string) error {
		next, owner := NewID(), NewID()
		login, err := s.BeginLogin(ctx, owner)
		b, err2 := s.Reserve(ctx, next, login, until())
		_, err3 := s.Rotate(ctx, id, next, WithBinding(b))
		_, err4 := s.InvalidateOwner(ctx, owner, WithReason(Logout))
		return errors.Join(err, err2, err3, err4)
	},
}

// isLook reports whether a command is a look at what is watched.
func isLook(words []string) bool { return words[0] == "GETRANGE" || words[0] == "HMGET" }

// An end comes before or after any look of a watch, and its message before or after the
// subscription has begun: whoever watches is told.
func TestWatch_EndAtAnyMoment(t *testing.T) {
	t.Parallel()
	onBothAudiences(t, func(t *testing.T, newAudience func(*testing.T, ...Option) audience) {
		for fate, end := range fates {
			for _, late := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, late: %v", fate, late), func(t *testing.T) {
					t.Parallel()
					for _, after := range []bool{false, true} {
						for at := int64(1); endAtLook(t, newAudience(t), end, late, after, at); at++ {
						}
					}
				})
			}
		}
	})
}

// endAtLook has a session end before or after a look of its watch. It reports whether there was
// that look; otherwise the session has ended when Watch had returned.
func endAtLook(
	t *testing.T, a audience, end func(context.Context, *RedisStore, string) error, late, after bool, at int64,
) bool {
	what, id := fmt.Sprintf("after %v, look %d", after, at), a.session()
	var armed atomic.Bool
	var looks atomic.Int64
	ended := make(chan error, 1)
	hook := func(words []string) error {
		if isLook(words) && armed.Load() && looks.Add(1) == at {
			ended <- end(context.WithoutCancel(t.Context()), a.other.RedisStore, id)
		}
		return nil
	}
	if after {
		a.tap.after = hook
	} else {
		a.tap.before = hook
	}
	if !late {
		a.hears()
		a.watch(a.session()) // so that it has begun
		redistest.Until(t, "the subscription", func() bool { return a.subscribers() == 1 })
	}
	armed.Store(true)
	watched, err := a.Watch(t.Context(), id)
	met := looks.Load() >= at
	for !met && looks.Load() < at {
		require.NoError(t, hook([]string{"GETRANGE"}))
	}
	require.NoError(t, <-ended, what)
	if late {
		a.hears()
	}
	if err == nil {
		requireTold(t, watched, Logout, what)
	} else {
		requireLoggedOut(t, err)
	}
	return met
}

// An InvalidateOwner comes before or after any trip of a WatchOwner, and its message before or
// after the subscription has begun: if the user is found logged in after WatchOwner, it is told.
func TestWatchOwner_EndAtAnyMoment(t *testing.T) {
	t.Parallel()
	onBothAudiences(t, func(t *testing.T, newAudience func(*testing.T, ...Option) audience) {
		for _, before := range []bool{false, true} { // whether the owner was ended before
			for _, late := range []bool{false, true} {
				for _, after := range []bool{false, true} {
					t.Run(fmt.Sprintf("ended before: %v, late: %v, after: %v", before, late, after), func(t *testing.T) {
						t.Parallel()
						for at := int64(1); endOwnerAtLook(t, newAudience(t), before, late, after, at); at++ {
						}
					})
				}
			}
		}
	})
}

// endOwnerAtLook has an owner's sessions end before or after a look of WatchOwner. It reports
// whether there was that look; otherwise they end when WatchOwner has returned.
func endOwnerAtLook(t *testing.T, a audience, before, late, after bool, at int64) bool {
	what, owner := fmt.Sprintf("look %d", at), NewID()
	if before {
		_, err := a.other.InvalidateOwner(t.Context(), owner)
		require.NoError(t, err)
	}
	id := a.other.bound(owner)
	var armed atomic.Bool
	var looks atomic.Int64
	end := sync.OnceFunc(func() {
		n, err := a.other.InvalidateOwner(t.Context(), owner)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
	hook := func(words []string) error {
		if (words[0] == "ZMSCORE" || words[0] == "ZRANGE") && armed.Load() && looks.Add(1) == at {
			end()
		}
		return nil
	}
	if after {
		a.tap.after = hook
	} else {
		a.tap.before = hook
	}
	if !late {
		a.hears()
		a.watch(a.session()) // so that it has begun
		redistest.Until(t, "the subscription", func() bool { return a.subscribers() == 1 })
	}
	armed.Store(true)
	watched := a.watchOwner(owner)
	met := looks.Load() >= at
	if at == 1 && !after {
		require.False(t, a.other.live(id))
	}
	end()
	if late {
		a.hears()
	}
	if at == 1 && !after {
		a.requireUntold(t, watched, "it was before")
	} else {
		requireTold(t, watched, Revoked, what)
	}
	return met
}

// What an InvalidateOwner that was broken off has left is ended by WatchOwner: nothing would be
// told of it.
func TestWatchOwner_GoesOnWithWhatWasBrokenOff(t *testing.T) {
	t.Parallel()
	a := newAudience(t, redistest.URL(t)).hears()
	owner := NewID()
	id := a.other.bound(owner)
	_, _, err := a.other.revoke(t.Context(), a.ownerKey(Ref(owner)), "", 77)
	require.NoError(t, err)
	require.True(t, a.other.live(id))
	watched := a.watchOwner(owner)
	a.requireEnded(t, id, 77)
	a.requireUntold(t, watched, "it was before")

	_, _, err = a.other.revoke(t.Context(), a.ownerKey(Ref(owner)), "", Logout)
	require.NoError(t, err)
	requireTold(t, watched, Logout, "it is told before the sessions have ended")
}

// What may happen to an owner's key, and what those who watch the owner make of it.
func TestWatchOwner_Key(t *testing.T) {
	t.Parallel()
	a := newAudience(t, redistest.URL(t)).hears()
	newOwner := func() (owner, key string) {
		owner = NewID()
		a.other.bound(owner)
		return owner, a.ownerKey(Ref(owner))
	}
	owner, key := newOwner()
	goesOn := func(ctx context.Context, what string) {
		t.Helper()
		a.watches.hint(key)
		a.requireUntold(t, ctx, what)
	}
	revoked := func(ctx context.Context, what string) {
		t.Helper()
		goesOn(ctx, what)
		_, err := a.other.InvalidateOwner(t.Context(), owner)
		require.NoError(t, err)
		requireTold(t, ctx, Revoked, what)
	}
	lost := func(ctx context.Context) {
		t.Helper()
		a.watches.hint(key)
		require.ErrorIs(t, told(t, ctx, "lost"), ErrNotFound)
	}
	ctx := a.watchOwner(owner)
	a.other.bound(owner)
	revoked(ctx, "a login")
	revoked(a.watchOwner(owner), "ended before")

	owner = NewID()
	key = a.ownerKey(Ref(owner))
	ctx = a.watchOwner(owner)
	goesOn(ctx, "nothing is known")
	a.other.bound(owner)
	revoked(ctx, "a first login")

	owner, key = newOwner()
	ctx = a.watchOwner(owner)
	a.other.do("DEL", key)
	lost(ctx)

	owner, key = newOwner()
	ctx = a.watchOwner(owner)
	a.other.do("DEL", key)
	a.other.bound(owner)
	lost(ctx)

	owner, key = newOwner()
	a.other.do("PERSIST", key)
	ctx = a.watchOwner(owner)
	goesOn(ctx, "no TTL")
	a.other.do("DEL", key)
	lost(ctx)

	owner, key = newOwner()
	ctx = a.watchOwner(owner)
	goesOn(ctx, "no look is under way that may come between")
	a.other.do("DEL", key)
	_, err := a.other.InvalidateOwner(t.Context(), owner)
	require.NoError(t, err)
	requireTold(t, ctx, Revoked, "lost, and made anew by a revoke")

	owner, key = newOwner()
	a.other.do("PEXPIRE", key, "20")
	ctx = a.watchOwner(owner)
	redistest.Until(t, "the expiry", func() bool { return a.other.ownerTTLOf(owner) < 0 })
	goesOn(ctx, "its time had come")
	a.other.bound(owner)
	revoked(ctx, "a login after that")

	for _, foreign := range [][]string{{"SET", key, "x"}, {"ZADD", key, "1", "g"}} {
		a.other.do("DEL", key)
		a.other.do(foreign...)
		_, err := a.WatchOwner(t.Context(), owner)
		require.ErrorIs(t, err, ErrCorrupt)
	}
	_, err = a.WatchOwner(t.Context(), "")
	require.EqualError(t, err, "tombstore: watch owner: "+ErrInvalidID.Error())
}

func requireLoggedOut(t require.TestingT, err error) {
	var end *InvalidatedError
	require.ErrorAs(t, err, &end)
	require.Equal(t, Logout, end.Reason)
}

// A message is lost with the connection that it was for: then all are looked at when there is
// another one, in few trips. The gap is as long as the ends take, or as GAP says: GAP=30s go test
// -run TestWatch_Gap .
func TestWatch_Gap(t *testing.T) {
	t.Parallel()
	var least time.Duration
	if text := os.Getenv("GAP"); text != "" {
		var err error
		least, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	server := redistest.Start(t)
	for name, gap := range map[string]func(p *redistest.Proxy, during func()){
		"the wire is cut": func(p *redistest.Proxy, during func()) {
			p.Lead("127.0.0.1:1")
			p.Cut()
			during()
			p.Lead(server.Addr)
		},
		"nothing arrives": func(p *redistest.Proxy, during func()) {
			p.Isolate()
			during()
			p.Heal()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := redistest.NewProxy(t, server.Addr)
			a := newAudience(t, proxy.URL)
			a.other = bedOn(t, redistest.Dial(t, server.URL), WithKeyPrefix(a.prefix), WithPublish())
			a.hears()
			n := 1000
			if testing.Short() {
				n = 300
			}
			ids, watched := make([]string, n), make([]context.Context, n)
			for i := range ids {
				ids[i] = a.session()
				watched[i] = a.watch(ids[i])
			}
			var owners []string
			for range 10 {
				owners = append(owners, NewID())
				watched = append(watched, a.watchOwner(owners[len(owners)-1]))
			}
			redistest.Until(t, "the subscription", func() bool { return a.subscribers() == 1 })
			a.requireUntold(t, watched[0], "before")
			gap(proxy, func() {
				over := time.After(least)
				for i, id := range ids {
					switch i % 3 {
					case 0:
						_, err := a.other.Rotate(t.Context(), id, NewID())
						require.NoError(t, err)
					case 1:
						id = NewID()
						_, err := a.other.Rotate(t.Context(), ids[i], id)
						require.NoError(t, err)
					}
					require.NoError(t, a.other.Invalidate(t.Context(), id, WithReason(Revoked)))
				}
				for _, owner := range owners {
					_, err := a.other.InvalidateOwner(t.Context(), owner)
					require.NoError(t, err)
				}
				<-over
				a.tap.forget()
			})
			for i, ctx := range watched {
				requireTold(t, ctx, Revoked, fmt.Sprint(i))
			}
			a.tap.mu.Lock()
			require.Less(t, len(a.tap.trips), n/5)
			a.tap.mu.Unlock()
		})
	}
}

// The subscription begins while somebody looks, and the end comes in between.
func TestWatch_GapDuringALook(t *testing.T) {
	t.Parallel()
	a := newAudience(t, redistest.URL(t))
	id, witness := a.session(), a.session()
	a.watch(witness)
	a.tap.forget()
	a.tap.after = func(words []string) error {
		if words[0] != "GETRANGE" || words[1] != a.keyOf(id) {
			return nil
		}
		if a.other.live(id) {
			require.NoError(t, a.other.Invalidate(t.Context(), id))
			a.hears()
			redistest.Until(t, "a look after the gap", func() bool {
				return slices.ContainsFunc(a.tap.sent(), func(words []string) bool { return words[1] == a.keyOf(witness) })
			})
		}
		return nil
	}
	requireTold(t, a.watch(id), Logout, "")
}

// Without messages an end is noticed when the session is looked at the next time.
func TestWatch_Floor(t *testing.T) {
	t.Parallel()
	onBothAudiences(t, func(t *testing.T, newAudience func(*testing.T, ...Option) audience) {
		a := newAudience(t, withFloor(20*time.Millisecond))
		defer close(a.hold)
		id, gone := a.session(), NewID()
		a.other.write(gone, "x", time.Hour)
		watched, absent, owner := a.watch(id), a.watch(gone), a.watchOwner("alice")
		mute := bedOn(t, a.other.client, WithKeyPrefix(a.prefix))
		require.NoError(t, mute.Invalidate(t.Context(), id))
		requireTold(t, watched, Logout, "")
		_, err := mute.InvalidateOwner(t.Context(), "alice")
		require.NoError(t, err)
		requireTold(t, owner, Revoked, "")
		require.NoError(t, context.Cause(absent))
		a.other.do("DEL", a.keyOf(gone))
		<-absent.Done()
		require.ErrorIs(t, context.Cause(absent), ErrNotFound)
	})
}

// A session that is between two ids has not ended, however often it is looked at.
func TestWatch_Pending(t *testing.T) {
	t.Parallel()
	for kind, move := range moves {
		for _, finishes := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, finishes: %v", kind, finishes), func(t *testing.T) {
				t.Parallel()
				a := newAudience(t, redistest.URL(t)).hears()
				id, next := a.session(), NewID()
				watched := a.watch(id)
				mover := newTap(inSteps{redistest.Dial(t, redistest.URL(t))})
				s := bedOn(t, mover, WithKeyPrefix(a.prefix), WithPublish())
				loadScripts(t, s)
				mover.before = func(words []string) error {
					if nameOf(words) != "write" {
						return nil
					}
					a.tap.forget()
					redistest.Until(t, "many looks", func() bool { return watched.Err() != nil || len(a.tap.sent()) > 6 })
					a.requireUntold(t, watched, "between two ids")
					if !finishes {
						return rueidis.ErrClosing
					}
					return nil
				}
				_, err := move(t.Context(), s.RedisStore, id, next)
				if finishes {
					require.NoError(t, err)
					a.requireUntold(t, watched, "has moved")
					require.NoError(t, a.other.Invalidate(t.Context(), next))
					requireTold(t, watched, Logout, "")
					return
				}
				require.Error(t, err)
				a.longAgo(a.keyOf(next))
				require.ErrorIs(t, context.Cause(watched), ErrNotFound)
			})
		}
	}
}

// longAgo makes it ten minutes since the session at key was first found to be between two ids, and
// waits until those who watch it are told.
func (a audience) longAgo(key string) {
	redistest.Until(a.t, "the end", func() bool {
		a.watches.mu.Lock()
		for w := a.watches.at[key]; w != nil; w = w.next {
			if !w.since.IsZero() {
				w.since = time.Now().Add(-reservedFor)
			}
		}
		over := a.watches.at[key] == nil
		a.watches.mu.Unlock()
		a.watches.hint(key)
		return over
	})
}

// A renewal that nobody finishes has ended ten minutes later, whether it was given up or not.
func TestWatch_PendingClaim(t *testing.T) {
	t.Parallel()
	for _, givenUp := range []bool{false, true} {
		a := newAudience(t, redistest.URL(t)).hears()
		id := a.session()
		watched := a.watch(id)
		r, err := a.other.BeginRenewal(t.Context(), id, 0)
		require.NoError(t, err)
		if givenUp {
			require.NoError(t, a.other.CancelRenewal(t.Context(), r))
		}
		again := a.watch(id)
		a.watches.hint(a.keyOf(id))
		a.requireUntold(t, watched, "a claim stands")
		a.longAgo(a.keyOf(id))
		requireTold(t, watched, Rotated, "")
		requireTold(t, again, Rotated, "")
	}
}

// What is published, and by which verb. Nothing is without the option.
func TestWatch_Messages(t *testing.T) {
	t.Parallel()
	for _, steps := range []bool{false, true} {
		for _, publishes := range []bool{true, false} {
			t.Run(fmt.Sprintf("in steps: %v, WithPublish: %v", steps, publishes), func(t *testing.T) {
				t.Parallel()
				client := redistest.Dial(t, redistest.URL(t))
				if steps {
					client = inSteps{client}
				}
				b := bedOn(t, client)
				if publishes {
					b = bedOn(t, client, WithKeyPrefix(b.prefix), WithPublish())
				}
				heard, begun := make(chan string, 100), make(chan struct{})
				ctx := rueidis.WithOnSubscriptionHook(t.Context(), func(s rueidis.PubSubSubscription) {
					if s.Kind == "subscribe" {
						close(begun)
					}
				})
				listener := redistest.Dial(t, redistest.URL(t))
				go listener.Receive(ctx, listener.B().Subscribe().Channel(b.channel()).Build(), func(m rueidis.PubSubMessage) {
					heard <- m.Message
				})
				<-begun
				saidOf := func(what string, err error, want ...string) {
					t.Helper()
					require.NoError(t, err, what)
					b.do("PUBLISH", b.channel(), "over")
					var got []string
					for m := range heard {
						if m == "over" {
							break
						}
						got = append(got, m)
					}
					if !publishes {
						want = nil
					}
					require.Equal(t, want, got, what)
				}
				said := func(what string, err error, ids ...string) {
					t.Helper()
					var keys []string
					for _, id := range ids {
						keys = append(keys, b.keyOf(id))
					}
					saidOf(what, err, keys...)
				}
				id, next, last := NewID(), NewID(), NewID()
				b.write(id, "x", time.Hour)
				said("Write", b.Touch(t.Context(), id, 2*time.Hour))
				_, err := b.Rotate(t.Context(), id, next)
				said("Rotate", err, id)
				_, err = b.Rotate(t.Context(), next, last, WithData([]byte("y"), time.Hour))
				said("Rotate WithData", err, next)
				said("Invalidate", b.Invalidate(t.Context(), next), next, last)
				said("Invalidate, again", b.Invalidate(t.Context(), next, WithReason(Revoked)))
				said("Invalidate of the first id", b.Invalidate(t.Context(), id), id)
				absent := NewID()
				said("Invalidate of an absent one", b.Invalidate(t.Context(), absent), absent)
				require.ErrorIs(t, b.Invalidate(t.Context(), NewID(), IfLive()), ErrNotFound)
				said("Invalidate IfLive of an absent one", nil)

				id, next = NewID(), NewID()
				b.write(id, "x", time.Hour)
				r, err := b.BeginRenewal(t.Context(), id, 0)
				said("BeginRenewal", err)
				said("CancelRenewal", b.CancelRenewal(t.Context(), r))
				r, err = b.BeginRenewal(t.Context(), id, 0)
				said("BeginRenewal, taken over", err)
				said("Invalidate with the reason Rotated", b.Invalidate(t.Context(), id, WithReason(Rotated)))
				_, err = b.FinishRenewal(t.Context(), r, next, nil, time.Hour)
				said("FinishRenewal", err, id)
				_, err = b.BeginRenewal(t.Context(), next, 0)
				said("BeginRenewal", err)
				said("Invalidate between the halves", b.Invalidate(t.Context(), next), next)

				b.write(last+"x", "x", time.Hour)
				said("Invalidate with the reason Rotated, live",
					b.Invalidate(t.Context(), last+"x", WithReason(Rotated)), last+"x")

				first, second := b.bound("alice"), b.bound("alice")
				said("logins", nil)
				owner := b.ownerKey(Ref("alice"))
				_, err = b.InvalidateOwner(t.Context(), "alice", Except(second))
				saidOf("InvalidateOwner", err, owner, b.keyOf(first))
				_, err = b.InvalidateOwner(t.Context(), "alice", Except(first))
				require.ErrorIs(t, err, ErrNotFound)
				said("InvalidateOwner, refused", nil)
				nonce := []string{"nonce", b.ownerTTL(), "1", "-1", ""}
				if publishes {
					nonce = append(nonce, b.channel())
				}
				_, _, err = b.ask(t.Context(), &revokeScript, []string{owner}, nonce...)
				saidOf("a revoke", err, owner)
				_, _, err = b.ask(t.Context(), &revokeScript, []string{owner}, nonce...)
				saidOf("a revoke, again", err)
			})
		}
	}
}

// A user who may not publish ends and moves sessions all the same.
func TestWatch_NotPermittedToPublish(t *testing.T) {
	t.Parallel()
	check := func(t require.TestingT, w world) {
		ctx := w.t.Context()
		for kind, move := range moves {
			id, next := NewID(), NewID()
			w.write(id, "data", time.Hour)
			_, err := move(ctx, w.RedisStore, id, next)
			require.NoError(t, err, kind)
			require.True(t, w.live(next), kind)
			require.NoError(t, w.Invalidate(ctx, id), kind)
			w.requireEnded(t, id, Logout)
			w.requireEnded(t, next, Logout)
		}
		owner := NewID()
		id := w.bound(owner)
		n, err := w.InvalidateOwner(ctx, owner)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		w.requireEnded(t, id, Revoked)
	}
	for name, start := range map[string]func(testing.TB, ...string) *redistest.Server{
		"standalone": redistest.Start, "cluster": redistest.StartCluster,
	} {
		for _, right := range []string{"-publish", "resetchannels"} {
			t.Run(name+", "+right, func(t *testing.T) {
				t.Parallel()
				url := start(t).URL
				newWorld := func(t *testing.T) world { return newWorld(t, url, WithPublish()) }
				w := newWorld(t)
				w.do("ACL", "SETUSER", "default", right)
				check(t, w)
				const first, refused = "redis.call('PUBLISH', ARGV[%d] or 'x', KEYS[1])\n%s", "redis.call('PUBLISH'"
				catches(t, newWorld, check, map[string]mutant{
					"invalidate.lua publishes first": {"invalidate", "local head, dump", fmt.Sprintf(first, 5, "local head, dump")},
					"rotate.lua publishes first":     {"rotate", "local new, given", fmt.Sprintf(first, 8, "local new, given")},
					"link.lua publishes first":       {"link", "local found", fmt.Sprintf(first, 4, "local found")},
					"revoke.lua publishes first":     {"revoke", "local g = ", fmt.Sprintf(first, 6, "local g = ")},
					"invalidate.lua must publish":    {"invalidate", "redis.pcall('PUBLISH'", refused},
					"rotate.lua must publish":        {"rotate", "redis.pcall('PUBLISH'", refused},
					"link.lua must publish":          {"link", "redis.pcall('PUBLISH'", refused},
					"revoke.lua must publish":        {"revoke", "redis.pcall('PUBLISH'", refused},
				})
			})
		}
	}
}

// A store subscribes when something is watched, and once.
func TestWatch_Subscription(t *testing.T) {
	t.Parallel()
	onBothAudiences(t, func(t *testing.T, newAudience func(*testing.T, ...Option) audience) {
		a := newAudience(t).hears()
		id := a.session()
		for range 2 {
			require.Zero(t, a.subscribers())
			ctx, cancel := context.WithCancel(t.Context())
			for range 3 {
				_, err := a.Watch(ctx, id)
				require.NoError(t, err)
			}
			redistest.Until(t, "the subscription", func() bool { return a.subscribers() == 1 })
			a.requireUntold(t, ctx, "")
			require.EqualValues(t, 1, a.subscribers())
			cancel()
			redistest.Until(t, "the end of the subscription", func() bool { return a.subscribers() == 0 })
			a.watches.mu.Lock()
			require.Empty(t, a.watches.at)
			require.Empty(t, a.watches.due)
			require.Nil(t, a.watches.end)
			a.watches.mu.Unlock()
		}
	})
}

// What is not live, or cannot be looked at, opens no connection: strangers choose the ids.
func TestWatch_NoSession(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := bedOn(t, redistest.Dial(t, server.URL))
	s, err := Open(server.URL)
	require.NoError(t, err)
	connections := func() string { return redistest.Info(t, b.client, "total_connections_received") }
	_, err = s.Watch(t.Context(), NewID())
	require.ErrorIs(t, err, ErrNotFound)
	before := connections()
	for range 20 {
		_, err = s.Watch(t.Context(), NewID())
		require.ErrorIs(t, err, ErrNotFound)
		s.watches.mu.Lock()
		require.Empty(t, s.watches.at)
		s.watches.mu.Unlock()
	}
	s.Close()
	_, err = s.Watch(t.Context(), NewID())
	require.ErrorIs(t, err, rueidis.ErrClosing)
	require.Equal(t, before, connections())
	require.Nil(t, s.watches.wakeDue, "nothing was started")
}

// foreignContext is a caller's context that package context does not know as its own.
type foreignContext struct {
	context.Context
	done chan struct{}
}

func (c foreignContext) Done() <-chan struct{} { return c.done }

func (c foreignContext) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// A watch ends as its caller's context does, whatever that is made of.
func TestWatch_ForeignContext(t *testing.T) {
	t.Parallel()
	m, err := NewMemory()
	require.NoError(t, err)
	id := NewID()
	_, err = m.Write(t.Context(), id, nil, time.Hour)
	require.NoError(t, err)
	for range 100 {
		caller := foreignContext{t.Context(), make(chan struct{})}
		ctx, err := m.Watch(caller, id)
		require.NoError(t, err)
		close(caller.done)
		<-ctx.Done()
		require.Equal(t, context.DeadlineExceeded, ctx.Err())
		require.Equal(t, context.DeadlineExceeded, context.Cause(ctx))
	}
}

// When the store is closed nobody hears of an end any more.
func TestWatch_Closed(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	opened, err := Open(redistest.URL(t), WithKeyPrefix(b.prefix), withFloor(time.Hour))
	require.NoError(t, err)
	client := redistest.Dial(t, redistest.URL(t))
	given, err := New(client, WithKeyPrefix(b.prefix), withFloor(50*time.Millisecond))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		store *RedisStore
		close func()
	}{"Open": {opened, opened.Close}, "New": {given, client.Close}} {
		id := NewID()
		b.write(id, "x", time.Hour)
		ctx, err := c.store.Watch(t.Context(), id)
		require.NoError(t, err)
		ws, key := c.store.watches, b.keyOf(id)
		due := func() time.Time {
			ws.mu.Lock()
			defer ws.mu.Unlock()
			if w := ws.at[key]; w.state == watchDue {
				return w.due
			}
			return time.Time{}
		}
		before := due()
		redistest.Until(t, "the look after the subscription", func() bool {
			d := due()
			return !d.Equal(before) && time.Until(d) > ws.floor/4
		})
		c.close()
		<-ctx.Done()
		require.ErrorIs(t, context.Cause(ctx), rueidis.ErrClosing, name)
		require.False(t, NoSession(context.Cause(ctx)), name)
		_, err = c.store.Watch(t.Context(), id)
		require.ErrorIs(t, err, rueidis.ErrClosing, name)
		require.Empty(t, c.store.watches.at, name)
	}
}

// A server that does not answer has ended nothing, and what it has ended is told when it does.
func TestWatch_ServerAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	a := newAudience(t, proxy.URL, withFloor(10*time.Millisecond), WithTimeout(500*time.Millisecond)).hears()
	a.other = bedOn(t, redistest.Dial(t, server.URL), WithKeyPrefix(a.prefix))
	id := a.session()
	watched := a.watch(id)
	proxy.Isolate()
	a.tap.forget()
	redistest.Until(t, "failing looks", func() bool { return len(a.tap.sent()) > 4 })
	_, err := a.Watch(t.Context(), id)
	require.Error(t, err)
	require.False(t, NoSession(err))
	require.NoError(t, context.Cause(watched))
	require.NoError(t, a.other.Invalidate(t.Context(), id))
	proxy.Heal()
	requireTold(t, watched, Logout, "")
}

// What Watch sends, and what it makes of what it finds.
func TestWatch_Look(t *testing.T) {
	t.Parallel()
	look := func(opts ...Option) (audience, func(id string, want error) string) {
		a := newAudience(t, redistest.URL(t), opts...)
		t.Cleanup(func() { close(a.hold) })
		return a, func(id string, want error) string {
			return a.tap.tripsOf(func() {
				ctx, err := a.Watch(t.Context(), id)
				require.ErrorIs(t, err, want)
				require.Equal(t, want == nil, ctx != nil)
			})
		}
	}
	a, trips := look()
	id, next := a.session(), NewID()
	require.Equal(t, "GETRANGE+PTTL", trips(id, nil))
	require.Equal(t, "GETRANGE+PTTL", trips(NewID(), ErrNotFound))
	_, err := a.other.Rotate(t.Context(), id, next)
	require.NoError(t, err)
	require.Equal(t, "GETRANGE+PTTL HMGET GETRANGE+PTTL", trips(id, nil))
	require.NoError(t, a.other.Invalidate(t.Context(), next))
	require.Equal(t, "GETRANGE+PTTL HMGET GETRANGE+PTTL HMGET", trips(id, ErrInvalidated))
	for _, foreign := range [][]string{{"SET", "x"}, {"HSET", "t", "x"}, {"HSET", "x", "x"}, {"LPUSH", "x"}} {
		id := NewID()
		a.other.do(append([]string{foreign[0], a.keyOf(id)}, foreign[1:]...)...)
		if foreign[0] == "HSET" && foreign[1] == "x" {
			trips(id, ErrNotFound) // read.lua tells; a look does not ask it
			continue
		}
		trips(id, ErrCorrupt)
	}
	t1 := string(dumpOf(Rotated, time.Now())[dumpHead : dumpHead+endSize])
	id, next = NewID(), NewID()
	a.other.do("HSET", a.keyOf(id), "t", t1, "s", "nonsense")
	trips(id, ErrCorrupt)
	a.other.do("HSET", a.keyOf(id), "t", t1, "s", a.successor(next))
	a.other.do("HSET", a.keyOf(next), "t", t1, "s", a.successor(id))
	trips(id, ErrNotInvalidated)
	_, err = a.Watch(t.Context(), "")
	require.EqualError(t, err, "tombstore: watch: "+ErrInvalidID.Error())
	ofOwner := func() string { return a.tap.tripsOf(func() { a.watchOwner("alice") }) }
	require.Equal(t, "ZMSCORE+PTTL", ofOwner())
	a.other.bound("alice")
	require.Equal(t, "ZMSCORE+PTTL", ofOwner())
	_, err = a.other.InvalidateOwner(t.Context(), "alice")
	require.NoError(t, err)
	require.Equal(t, "ZMSCORE+PTTL ZRANGE", ofOwner())

	a, trips = look(WithStrictReads())
	id = a.session()
	require.Equal(t, "GETEX+PTTL", trips(id, nil))
	require.Equal(t, "GETEX+PTTL", trips(NewID(), ErrNotFound))
	require.NoError(t, a.other.Invalidate(t.Context(), id))
	require.Equal(t, "GETEX+PTTL HMGET", trips(id, ErrInvalidated))
}

// Whatever node of a cluster it has subscribed to, a store hears of ends on all of them; and one
// that hangs does not keep it from telling of the others'.
func TestWatch_Nodes(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("containers do not reach each other")
	}
	nodes := redistest.StartNodes(t, 30*time.Second)
	first := nodes.Primaries[0]
	ender, err := Open(first.URL, WithPublish())
	require.NoError(t, err)
	t.Cleanup(ender.Close)
	_, err = ender.Check(t.Context())
	require.NoError(t, err)
	var ids [3][]string // by primary
	for i := 0; i < 90; i++ {
		id := NewID()
		slot, err := first.Client.Do(t.Context(), first.Client.B().ClusterKeyslot().Key("tombstore:"+Ref(id)).Build()).AsInt64()
		require.NoError(t, err)
		_, err = ender.Write(t.Context(), id, nil, time.Hour)
		require.NoError(t, err)
		shard := (3*slot + 2) / redistest.Slots // the second begins at slot 5461, which is rounded down
		ids[shard] = append(ids[shard], id)
	}
	watch := func(opts ...Option) (watched [3][]context.Context) {
		s, err := Open(first.URL, opts...)
		require.NoError(t, err)
		t.Cleanup(s.Close)
		for shard, ids := range ids {
			for _, id := range ids {
				ctx, err := s.Watch(t.Context(), id)
				require.NoError(t, err)
				watched[shard] = append(watched[shard], ctx)
			}
		}
		redistest.Until(t, "the subscription", func() bool {
			for _, node := range nodes.All() {
				if strings.Contains(node.Do(t, "CLIENT", "LIST", "TYPE", "PUBSUB"), "addr") {
					return true
				}
			}
			return false
		})
		return watched
	}
	hears, looks := watch(withFloor(time.Hour)), watch(withFloor(100*time.Millisecond))
	nodes.Primaries[2].Pause(t)
	for shard := range 2 {
		for i, id := range ids[shard] {
			require.NoError(t, ender.Invalidate(t.Context(), id))
			requireTold(t, hears[shard][i], Logout, "messages")
		}
	}
	for shard := range 2 {
		for _, ctx := range looks[shard] {
			requireTold(t, ctx, Logout, "looks")
		}
	}
	nodes.Primaries[2].Resume(t)
	for i, id := range ids[2] {
		require.NoError(t, context.Cause(hears[2][i]))
		require.NoError(t, context.Cause(looks[2][i]))
		require.NoError(t, ender.Invalidate(t.Context(), id))
		requireTold(t, hears[2][i], Logout, "messages")
		requireTold(t, looks[2][i], Logout, "looks")
	}
}

// When another server becomes primary, ends on that one are told. Whoever does not subscribe again
// hears of none.
func TestWatch_Failover(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("containers do not reach each other")
	}
	primary := redistest.Start(t)
	redistest.Start(t, primary.Replicaof(t)...)
	sentinels := redistest.StartSentinels(t, primary.Addr, 1, time.Minute)
	// An end that no replica has confirmed may be undone, and then there is nothing to tell.
	a := newAudience(t, sentinels.URL, WithReplicaAcks(1, time.Second)).hears()
	broken := newAudience(t, sentinels.URL, WithKeyPrefix(a.prefix))
	t.Cleanup(func() { close(broken.hold) })
	end := func(id string) {
		redistest.Until(t, "an end", func() bool { return a.other.Invalidate(t.Context(), id) == nil })
	}
	ids, watched, unheard := make([]string, 20), make([]context.Context, 20), make([]context.Context, 20)
	for i := range ids {
		ids[i] = a.session()
		watched[i], unheard[i] = a.watch(ids[i]), broken.watch(ids[i])
	}
	broken.hold <- struct{}{} // one subscription
	redistest.Until(t, "the subscriptions", func() bool { return a.subscribers() == 2 })
	end(ids[0]) // and the replica has them all
	requireTold(t, watched[0], Logout, "")
	requireTold(t, unheard[0], Logout, "")
	sentinels.Promote(t)
	redistest.Until(t, "the new primary", func() bool {
		at := sentinels.Primary(t)
		return at != "" && at != primary.Addr
	})
	end(ids[1]) // which those may hear who are still subscribed to the old one
	redistest.Until(t, "the end of the subscription", func() bool { return broken.asked.Load() == 2 })
	for i, id := range ids[2:] {
		require.NoError(t, context.Cause(watched[i+2]))
		end(id)
	}
	requireTold(t, watched[1], Logout, "between two subscriptions")
	for i, ctx := range watched[2:] {
		requireTold(t, ctx, Logout, "")
		require.NoError(t, context.Cause(unheard[i+2]))
	}
}
