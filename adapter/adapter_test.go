package adapter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// failing is a store that can be out of reach.
type failing struct {
	*tombstore.MemoryStore
	fails  bool
	begins func() // called before a renewal begins
}

var errOut = errors.New("out of reach")

func (f *failing) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	if f.fails {
		return tombstore.Session{}, errOut
	}
	return f.MemoryStore.Read(ctx, id, opts...)
}

func (f *failing) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if f.fails {
		return errOut
	}
	return f.MemoryStore.Invalidate(ctx, id, opts...)
}

func (f *failing) BeginRenewal(ctx context.Context, id string, v tombstore.Version) (tombstore.Renewal, error) {
	if f.fails {
		return tombstore.Renewal{}, errOut
	}
	if f.begins != nil {
		f.begins()
	}
	return f.MemoryStore.BeginRenewal(ctx, id, v)
}

func (f *failing) CancelRenewal(ctx context.Context, r tombstore.Renewal) error {
	if f.fails {
		return errOut
	}
	return f.MemoryStore.CancelRenewal(ctx, r)
}

// bed is a browser with a live session "x" and the request B that has loaded it.
type bed struct {
	*testing.T
	*Adapter
	store  *failing
	id     string
	b      *Request
	events []tombstore.Event
}

func newBed(t *testing.T, opts ...Option) *bed {
	t.Helper()
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	store := &failing{MemoryStore: memory}
	bed := &bed{T: t, store: store, id: tombstore.NewID(), b: &Request{}}
	hook := WithOnRefused(func(_ context.Context, e tombstore.Event) { bed.events = append(bed.events, e) })
	bed.Adapter = New(store, append(opts, hook)...)
	require.NoError(t, bed.Save(t.Context(), &Request{}, bed.id, []byte("x"), time.Hour))
	bed.load(bed.b, bed.id, "x")
	return bed
}

// load requires a live session, or with want "" none.
func (b *bed) load(r *Request, id, want string) {
	b.Helper()
	data, found, err := b.Load(b.Context(), r, id)
	require.NoError(b, err)
	require.Equal(b, want != "", found)
	require.Equal(b, want, string(data))
}

func (b *bed) save(id, data string) error {
	return b.Save(b.Context(), b.b, id, []byte(data), time.Hour)
}

// refused requires that a save was refused, reported and left nothing live.
func (b *bed) refused(err error, verb string, reason tombstore.Reason, ids ...string) {
	b.Helper()
	require.ErrorIs(b, err, ErrRefused)
	want := tombstore.Event{Verb: verb, Outcome: tombstore.OutcomeRefused, Reason: reason, Ref: tombstore.Ref(b.id)}
	if reason == 0 {
		want.Outcome = tombstore.OutcomeNotFound
	}
	want.Err = errors.Unwrap(err)
	require.True(b, tombstore.NoSession(want.Err))
	require.Equal(b, []tombstore.Event{want}, b.events)
	b.events = nil
	for _, id := range append(ids, b.id) {
		b.load(nil, id, "")
	}
}

// logout ends the session in another request.
func (b *bed) logout() {
	b.Helper()
	r := &Request{}
	b.load(r, b.id, "x")
	require.NoError(b, b.End(b.Context(), r, b.id))
}

func TestSave_Modified(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.save(b.id, "y"))
	require.NoError(t, b.save(b.id, "z"))
	b.load(nil, b.id, "z")
}

func TestSave_AfterLogout(t *testing.T) {
	b := newBed(t)
	b.logout()
	b.refused(b.save(b.id, "y"), "write", tombstore.Logout)
	b.refused(b.save(b.id, "z"), "write", tombstore.Logout)
}

func TestSave_UnchangedAfterLogout(t *testing.T) {
	b := newBed(t)
	b.logout()
	b.refused(b.save(b.id, "x"), "touch", tombstore.Logout)
}

func TestSave_AfterRevocation(t *testing.T) {
	b := newBed(t)
	admin := &Request{}
	b.load(admin, tombstore.NewID(), "")
	require.NoError(t, b.End(t.Context(), admin, b.id))
	b.refused(b.save(b.id, "y"), "write", tombstore.Revoked)
}

// When the server has lost the tombstone, IfPresent still refuses.
func TestSave_AfterExpiry(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.Store().Touch(t.Context(), b.id, time.Nanosecond))
	require.Eventually(t, func() bool {
		exists, err := b.Store().Exists(t.Context(), b.id)
		return err == nil && !exists
	}, time.Second, time.Millisecond)
	b.refused(b.save(b.id, "y"), "write", 0)
}

func TestSave_WithoutRequest(t *testing.T) {
	b := newBed(t)
	b.b = nil
	require.NoError(t, b.save(b.id, "y"))
	require.NoError(t, b.End(t.Context(), nil, b.id))
	b.refused(b.save(b.id, "y"), "write", tombstore.Logout)
}

// A renewal that deletes and then saves, as scs and fiber do.
func TestRenew(t *testing.T) {
	b := newBed(t)
	next := tombstore.NewID()
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.NoError(t, b.save(next, "y"))
	b.load(nil, b.id, "")
	b.load(nil, next, "y")
	require.NoError(t, b.save(next, "z"))
	b.load(nil, next, "z")
}

func TestRenew_AfterLogout(t *testing.T) {
	b := newBed(t)
	b.logout()
	next := tombstore.NewID()
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	b.refused(b.save(next, "y"), "write", tombstore.Logout, next)
}

// A logout, or a revocation, counts whenever it comes: the session that the request makes of the
// old one is ended, or never begins.
func TestRenew_Ended(t *testing.T) {
	for name, end := range map[string]func(b *bed, a *Request) error{
		"logout of a request that had loaded it": func(b *bed, a *Request) error { return b.End(b.Context(), a, b.id) },
		"logout of a request that comes too late to load it": func(b *bed, _ *Request) error {
			a := &Request{}
			b.load(a, b.id, "")
			return b.End(b.Context(), a, b.id)
		},
		"logout of a request that wanted to renew it too": func(b *bed, a *Request) error {
			if err := b.Leave(b.Context(), a, b.id); err != nil {
				return err
			}
			return b.End(b.Context(), a, b.id)
		},
		"revocation": func(b *bed, _ *Request) error {
			return b.Store().Invalidate(b.Context(), b.id, tombstore.WithReason(tombstore.Revoked))
		},
		"logout outside a request": func(b *bed, _ *Request) error { return b.End(b.Context(), nil, b.id) },
	} {
		t.Run(name+", between the halves", func(t *testing.T) {
			b := newBed(t)
			a, next := &Request{}, tombstore.NewID()
			b.load(a, b.id, "x")
			require.NoError(t, b.Leave(t.Context(), b.b, b.id))
			require.NoError(t, end(b, a))
			require.ErrorIs(t, b.save(next, "y"), ErrRefused)
			b.load(nil, b.id, "")
			b.load(nil, next, "")
			require.ErrorIs(t, b.save(next, "z"), ErrRefused)
		})
		t.Run(name+", after both", func(t *testing.T) {
			b := newBed(t)
			a, next := &Request{}, tombstore.NewID()
			b.load(a, b.id, "x")
			require.NoError(t, b.Leave(t.Context(), b.b, b.id))
			require.NoError(t, b.save(next, "y"))
			require.NoError(t, end(b, a))
			b.load(nil, next, "")
			require.ErrorIs(t, b.save(next, "z"), ErrRefused)
		})
		t.Run(name+", after one in a single step", func(t *testing.T) {
			b := newBed(t)
			a, next := &Request{}, tombstore.NewID()
			b.load(a, b.id, "x")
			require.NoError(t, b.rotate(next, "y"))
			require.NoError(t, end(b, a))
			b.load(nil, next, "")
			require.ErrorIs(t, b.save(next, "z"), ErrRefused)
		})
	}
}

// Of two renewals at the same moment the first one goes on.
func TestRenew_Twice(t *testing.T) {
	b := newBed(t)
	a, first, second := &Request{}, tombstore.NewID(), tombstore.NewID()
	b.load(a, b.id, "x")
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.NoError(t, b.Leave(t.Context(), a, b.id))
	require.ErrorIs(t, b.Save(t.Context(), a, second, []byte("a"), time.Hour), ErrRefused)
	require.NoError(t, b.save(first, "y"))
	require.ErrorIs(t, b.Save(t.Context(), a, second, []byte("a"), time.Hour), ErrRefused)
	b.load(nil, first, "y")
	b.load(nil, second, "")
}

// A renewal of which the first half may not have worked.
func TestRenew_LeaveFails(t *testing.T) {
	b := newBed(t)
	b.store.fails = true
	require.ErrorIs(t, b.Leave(t.Context(), b.b, b.id), errOut)
	next := tombstore.NewID()
	err := b.save(next, "y")
	require.ErrorIs(t, err, errOut)
	require.NotErrorIs(t, err, ErrRefused)
	b.store.fails = false
	b.load(nil, next, "")
}

// What the request has changed goes on where the session goes, in spite of another change or not.
func TestRenew_LostUpdates(t *testing.T) {
	theirs := func(b *bed) {
		r := &Request{}
		b.load(r, b.id, "x")
		require.NoError(b, b.Save(b.Context(), r, b.id, []byte("theirs"), time.Hour))
	}
	merge := WithLostUpdates(Merge(func(base, mine, theirs []byte) ([]byte, error) {
		return []byte(string(base) + "+" + string(mine) + "+" + string(theirs)), nil
	}))
	halves := func(b *bed, next string) error {
		if err := b.Leave(b.Context(), b.b, b.id); err != nil {
			return err
		}
		return b.save(next, "mine")
	}
	step := func(b *bed, next string) error { return b.rotate(next, "mine") }
	for name, renew := range map[string]func(b *bed, next string) error{"in two halves": halves, "in one step": step} {
		for _, tt := range []struct {
			how  string
			opts []Option
			err  error
			want string
		}{
			{"last write wins", nil, nil, "mine"},
			{"conflict", []Option{WithLostUpdates(Conflict)}, tombstore.ErrConflict, ""},
			{"merge", []Option{merge}, nil, "x+mine+theirs"},
		} {
			t.Run(name+"/"+tt.how, func(t *testing.T) {
				b := newBed(t, tt.opts...)
				next := tombstore.NewID()
				theirs(b)
				require.ErrorIs(t, renew(b, next), tt.err)
				b.load(nil, next, tt.want)
				if tt.err != nil {
					b.load(nil, b.id, "theirs")
				}
			})
		}
	}
}

// A session that is renewed keeps its creation time.
func TestRenew_KeepsTheSession(t *testing.T) {
	b := newBed(t)
	before, err := b.Store().Read(t.Context(), b.id)
	require.NoError(t, err)
	next := tombstore.NewID()
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.NoError(t, b.save(next, "y"))
	after, err := b.Store().Read(t.Context(), next)
	require.NoError(t, err)
	require.Equal(t, before.CreatedAt, after.CreatedAt)
}

// After a logout the request may begin a new session, such as one for a message to show.
func TestEnd_ThenSave(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.End(t.Context(), b.b, b.id))
	require.NoError(t, b.b.Gone())
	next := tombstore.NewID()
	require.NoError(t, b.save(next, "bye"))
	require.NoError(t, b.Store().Invalidate(t.Context(), b.id))
	b.load(nil, next, "bye")
}

// What is begun is carried out although the client has gone away.
func TestClientHasGone(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	t.Run("save", func(t *testing.T) {
		b := newBed(t)
		require.NoError(t, b.Save(gone, b.b, b.id, []byte("y"), time.Hour))
		b.load(nil, b.id, "y")
	})
	t.Run("end", func(t *testing.T) {
		b := newBed(t)
		require.NoError(t, b.End(gone, b.b, b.id))
		b.load(nil, b.id, "")
	})
	t.Run("first half of a renewal that has begun", func(t *testing.T) {
		b := newBed(t)
		ctx, leave := context.WithCancel(t.Context())
		b.store.begins = leave
		next := tombstore.NewID()
		require.NoError(t, b.Leave(ctx, b.b, b.id))
		require.NoError(t, b.Save(t.Context(), b.b, next, []byte("y"), time.Hour))
		b.load(nil, next, "y")
	})
	t.Run("absorbing", func(t *testing.T) {
		b := newBed(t)
		other := tombstore.NewID()
		require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("o"), time.Hour))
		require.NoError(t, b.Absorb(gone, b.b, other))
		b.load(nil, other, "")
	})
	t.Run("second half of a renewal, during which it goes", func(t *testing.T) {
		b := newBed(t)
		ctx, leave := context.WithCancel(t.Context())
		a, next := New(leaving{b.store, leave}), tombstore.NewID()
		require.NoError(t, a.Leave(ctx, b.b, b.id))
		require.NoError(t, a.Save(ctx, b.b, next, []byte("y"), time.Hour))
		require.Error(t, ctx.Err())
		b.load(nil, next, "y")
	})
	t.Run("second half of a renewal, for which time is up", func(t *testing.T) {
		b := newBed(t)
		late, cancel := context.WithTimeout(t.Context(), 0)
		defer cancel()
		next := tombstore.NewID()
		require.NoError(t, b.Leave(t.Context(), b.b, b.id))
		require.NoError(t, b.Save(late, b.b, next, []byte("y"), time.Hour))
		b.load(nil, next, "y")
	})
}

// leaving is a store whose client leaves while it finishes a renewal.
type leaving struct {
	*failing
	leave func()
}

func (l leaving) FinishRenewal(
	ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	l.leave()
	if err := ctx.Err(); err != nil {
		return tombstore.Session{}, err
	}
	return l.failing.FinishRenewal(ctx, r, newID, data, ttl)
}

// A renewal whose client goes away between its halves is given up, and a request that has loaded
// the session before takes over, whether it has tried to renew it before that or after it.
func TestClientHasGone_BetweenTheHalves(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, twinFirst := range map[string]bool{"the twin leaves before": true, "the twin leaves after": false} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			twin, next, other := &Request{}, tombstore.NewID(), tombstore.NewID()
			b.load(twin, b.id, "x")
			require.NoError(t, b.Leave(t.Context(), b.b, b.id))
			if twinFirst {
				require.NoError(t, b.Leave(t.Context(), twin, b.id))
				require.ErrorIs(t, twin.Gone(), tombstore.ErrInvalidated)
			}
			for range 2 { // the session library may try again
				require.ErrorIs(t, b.Save(gone, b.b, next, []byte("y"), time.Hour), context.Canceled)
			}
			require.ErrorIs(t, b.save(b.id, "y"), context.Canceled)
			if !twinFirst {
				require.NoError(t, b.Leave(t.Context(), twin, b.id))
			}
			require.NoError(t, b.Save(t.Context(), twin, other, []byte("z"), time.Hour))
			require.NoError(t, twin.Gone())
			b.load(nil, next, "")
			b.load(nil, b.id, "")
			b.load(nil, other, "z")
			require.NoError(t, b.Save(t.Context(), twin, other, []byte("zz"), time.Hour))
			require.Empty(t, b.events)
			require.NoError(t, b.End(gone, b.b, b.id))
			b.load(nil, other, "")
		})
	}
}

// Who may not take over, although a renewal was given up.
func TestTakeOver_Refused(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		opts   []Option
		before func(b *bed)                // the twin leaves
		after  func(b *bed, twin *Request) // the renewal was given up
		ctx    context.Context
		err    error
	}{
		"somebody has logged out": {
			after: func(b *bed, _ *Request) { require.NoError(b, b.Store().Invalidate(b.Context(), b.id)) },
			err:   ErrRefused,
		},
		"its client has gone too": {ctx: gone, err: ErrRefused},
		"it carries what was ended": {
			after: func(b *bed, twin *Request) {
				other := tombstore.NewID()
				require.NoError(b, b.Store().Invalidate(b.Context(), other, tombstore.WithReason(tombstore.Rotated)))
				require.ErrorIs(b, b.Absorb(b.Context(), twin, other), ErrRefused)
				b.events = nil
			},
			err: ErrRefused,
		},
		"it has not seen the last change": {
			opts:   []Option{WithLostUpdates(Conflict)},
			before: func(b *bed) { require.NoError(b, b.save(b.id, "newer")) },
			err:    tombstore.ErrConflict,
		},
		"it cannot merge with what is gone": {
			opts:   []Option{WithLostUpdates(Merge(func(_, mine, _ []byte) ([]byte, error) { return mine, nil }))},
			before: func(b *bed) { require.NoError(b, b.save(b.id, "newer")) },
			err:    ErrRefused,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, c.opts...)
			twin, next := &Request{}, tombstore.NewID()
			b.load(twin, b.id, "x")
			if c.before != nil {
				c.before(b)
			}
			require.NoError(t, b.Leave(t.Context(), b.b, b.id))
			require.NoError(t, b.Leave(t.Context(), twin, b.id))
			require.ErrorIs(t, b.Save(gone, b.b, tombstore.NewID(), []byte("y"), time.Hour), context.Canceled)
			if c.after != nil {
				c.after(b, twin)
			}
			ctx := cmp.Or(c.ctx, t.Context())
			require.ErrorIs(t, b.Save(ctx, twin, next, []byte("z"), time.Hour), c.err)
			require.ErrorIs(t, b.Save(ctx, twin, b.id, []byte("z"), time.Hour), ErrRefused)
			b.load(nil, next, "")
		})
	}
}

// A request whose twin has begun a renewal before it came has loaded nothing, and begins a session.
func TestClientHasGone_BeforeTheTwinLoads(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b := newBed(t)
	twin, next := &Request{}, tombstore.NewID()
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	b.load(twin, b.id, "")
	require.NoError(t, b.Leave(t.Context(), twin, ""))
	require.ErrorIs(t, b.Save(gone, b.b, tombstore.NewID(), []byte("y"), time.Hour), context.Canceled)
	require.NoError(t, b.Save(t.Context(), twin, next, []byte("z"), time.Hour))
	b.load(nil, next, "z")
}

// A renewal that cannot be given up says so.
func TestClientHasGone_GivingUpFails(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b := newBed(t)
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	b.store.fails = true
	require.ErrorIs(t, b.Save(gone, b.b, tombstore.NewID(), []byte("y"), time.Hour), errOut)
}

// A renewal is not begun for a client that has gone away, and nothing is saved instead: the twin of
// a login by a double click goes on. An end is still carried out.
func TestClientHasGone_Renewal(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, renew := range map[string]func(b *bed, next string) error{
		"halves": func(b *bed, _ string) error { return b.Leave(gone, b.b, b.id) },
		"step": func(b *bed, next string) error {
			return b.Rotate(gone, b.b, next, []byte("y"), time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			twin, next, other := &Request{}, tombstore.NewID(), tombstore.NewID()
			b.load(twin, b.id, "x")
			require.ErrorIs(t, renew(b, next), context.Canceled)
			require.ErrorIs(t, b.save(next, "y"), context.Canceled)
			require.ErrorIs(t, b.save(b.id, "y"), context.Canceled)
			b.load(nil, next, "")
			b.load(nil, b.id, "x")
			require.NoError(t, b.Leave(t.Context(), twin, b.id))
			require.NoError(t, b.Save(t.Context(), twin, other, []byte("z"), time.Hour))
			b.load(nil, other, "z")
			require.NoError(t, b.End(gone, b.b, b.id))
			b.load(nil, other, "")
		})
	}
}

func (b *bed) rotate(id, data string) error {
	return b.Rotate(b.Context(), b.b, id, []byte(data), time.Hour)
}

func TestRotate(t *testing.T) {
	b := newBed(t)
	next := tombstore.NewID()
	require.NoError(t, b.rotate(next, "y"))
	b.load(nil, b.id, "")
	b.load(nil, next, "y")
	require.NoError(t, b.save(next, "z"))
	b.load(nil, next, "z")
}

func TestRotate_AfterLogout(t *testing.T) {
	b := newBed(t)
	b.logout()
	next := tombstore.NewID()
	b.refused(b.rotate(next, "y"), "rotate", tombstore.Logout, next)
	b.refused(b.rotate(next, "y"), "write", tombstore.Logout, next)
}

func TestRotate_New(t *testing.T) {
	b := newBed(t)
	b.b = &Request{}
	next := tombstore.NewID()
	require.NoError(t, b.rotate(next, "y"))
	b.load(nil, next, "y")
	b.load(nil, b.id, "x")
}

// A second session in one request, new or loaded, takes nothing from the first one.
func TestSave_SecondSession(t *testing.T) {
	b := newBed(t)
	other, flash := tombstore.NewID(), tombstore.NewID()
	require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("o"), time.Hour))
	b.load(b.b, other, "o")
	require.NoError(t, b.save(flash, "f"))
	require.NoError(t, b.save(other, "p"))
	require.NoError(t, b.save(b.id, "y"))
	b.load(nil, b.id, "y")
	b.load(nil, other, "p")
	b.load(nil, flash, "f")

	require.NoError(t, b.Store().Invalidate(t.Context(), other))
	require.ErrorIs(t, b.save(other, "q"), ErrRefused)
	require.NoError(t, b.save(b.id, "z"))
}

func TestGone(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.b.Gone())
	b.logout()
	require.NoError(t, b.b.Gone())
	require.ErrorIs(t, b.save(b.id, "y"), ErrRefused)
	require.ErrorIs(t, b.b.Gone(), tombstore.ErrInvalidated)
	late := &Request{}
	b.load(late, b.id, "")
	require.ErrorIs(t, late.Gone(), tombstore.ErrInvalidated)
}

// An id that never was leaves nothing on the server, or strangers could fill it.
func TestEnd_UnknownID(t *testing.T) {
	b := newBed(t)
	id, r := tombstore.NewID(), &Request{}
	b.load(r, id, "")
	require.NoError(t, b.End(t.Context(), r, id))
	require.NoError(t, b.End(t.Context(), &Request{}, id))
	_, err := b.Store().Read(t.Context(), id)
	require.ErrorIs(t, err, tombstore.ErrNotFound)
}

func TestEnd_OfOthersDoesNotTaint(t *testing.T) {
	b := newBed(t)
	other := tombstore.NewID()
	require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("o"), time.Hour))
	b.load(b.b, other, "o")
	require.NoError(t, b.Leave(t.Context(), b.b, other))
	require.NoError(t, b.Leave(t.Context(), b.b, other))
	require.NoError(t, b.save(b.id, "y"))
	b.load(nil, b.id, "y")
	b.load(nil, other, "")
}

func TestEnd_Twice(t *testing.T) {
	b := newBed(t)
	b.logout()
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.NoError(t, b.End(t.Context(), nil, b.id))
	require.NoError(t, b.End(t.Context(), nil, ""))
}

func TestLostUpdates(t *testing.T) {
	theirs := func(b *bed) {
		r := &Request{}
		b.load(r, b.id, "x")
		require.NoError(b, b.Save(b.Context(), r, b.id, []byte("theirs"), time.Hour))
	}
	t.Run("last write wins", func(t *testing.T) {
		b := newBed(t)
		theirs(b)
		require.NoError(t, b.save(b.id, "mine"))
		b.load(nil, b.id, "mine")
	})
	t.Run("nothing to write, nothing lost", func(t *testing.T) {
		b := newBed(t)
		theirs(b)
		require.NoError(t, b.save(b.id, "x"))
		b.load(nil, b.id, "theirs")
	})
	t.Run("nothing to write in other bytes", func(t *testing.T) {
		b := newBed(t, WithEqual(bytes.EqualFold))
		theirs(b)
		require.NoError(t, b.save(b.id, "X"))
		b.load(nil, b.id, "theirs")
	})
	t.Run("conflict", func(t *testing.T) {
		b := newBed(t, WithLostUpdates(Conflict))
		theirs(b)
		err := b.save(b.id, "mine")
		require.ErrorIs(t, err, tombstore.ErrConflict)
		require.NotErrorIs(t, err, ErrRefused)
		b.load(nil, b.id, "theirs")
	})
	t.Run("merge", func(t *testing.T) {
		b := newBed(t, WithLostUpdates(Merge(func(base, mine, theirs []byte) ([]byte, error) {
			return []byte(string(base) + "+" + string(mine) + "+" + string(theirs)), nil
		})))
		theirs(b)
		require.NoError(t, b.save(b.id, "mine"))
		b.load(nil, b.id, "x+mine+theirs")
		require.NoError(t, b.save(b.id, "mine")) // nothing new
		b.load(nil, b.id, "x+mine+theirs")
		require.NoError(t, b.save(b.id, "more"))
		b.load(nil, b.id, "mine+more+x+mine+theirs")
	})
	t.Run("merge fails", func(t *testing.T) {
		no := errors.New("cannot")
		b := newBed(t, WithLostUpdates(Merge(func(_, _, _ []byte) ([]byte, error) { return nil, no })))
		theirs(b)
		require.ErrorIs(t, b.save(b.id, "mine"), no)
		b.load(nil, b.id, "theirs")
	})
	t.Run("merge after logout", func(t *testing.T) {
		b := newBed(t, WithLostUpdates(Merge(func(_, mine, _ []byte) ([]byte, error) { return mine, nil })))
		b.logout()
		b.refused(b.save(b.id, "mine"), "write", tombstore.Logout)
	})
}

func TestLateRequests(t *testing.T) {
	late := func(t *testing.T, window time.Duration, reason tombstore.Reason) (*bed, string) {
		b := newBed(t, WithLateRequests(window))
		require.NoError(t, b.Store().Invalidate(t.Context(), b.id, tombstore.WithReason(reason)))
		b.b = &Request{}
		b.load(b.b, b.id, "")
		return b, tombstore.NewID()
	}
	for _, reason := range []tombstore.Reason{tombstore.Logout, tombstore.Rotated} {
		t.Run(reason.String(), func(t *testing.T) {
			b, next := late(t, time.Minute, reason)
			b.refused(b.save(next, "anonymous"), "create", reason, next)
		})
	}
	t.Run("revoked", func(t *testing.T) {
		b, next := late(t, time.Minute, tombstore.Revoked)
		require.NoError(t, b.save(next, "anonymous"))
	})
	t.Run("off", func(t *testing.T) {
		b, next := late(t, 0, tombstore.Logout)
		require.NoError(t, b.save(next, "anonymous"))
	})
	t.Run("a login is served", func(t *testing.T) {
		b, next := late(t, time.Minute, tombstore.Logout)
		require.NoError(t, b.Leave(t.Context(), b.b, ""))
		require.NoError(t, b.save(next, "bob"))
		b.load(nil, next, "bob")
	})
}

func TestLoad_BadID(t *testing.T) {
	b := newBed(t)
	for _, id := range []string{"", string(make([]byte, 2000))} {
		b.load(&Request{}, id, "")
		require.NoError(t, b.End(t.Context(), &Request{}, id))
		require.NoError(t, b.End(t.Context(), nil, id))
	}
}

func TestLoad_FailureIsNotAbsence(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := b.Load(ctx, &Request{}, b.id)
	require.ErrorIs(t, err, context.Canceled)
}

func TestContext(t *testing.T) {
	b := newBed(t)
	other := New(b.Store())
	ctx := b.NewContext(t.Context())
	require.NotNil(t, b.FromContext(ctx))
	require.Nil(t, other.FromContext(ctx))
	require.Equal(t, ctx, b.NewContext(ctx))
	require.Nil(t, b.FromContext(t.Context()))
}

// The server has refused to end the session, or has not answered. Asked again in the same request,
// it must be asked again.
func TestEnd_TriedAgain(t *testing.T) {
	for name, end := range map[string]func(b *bed) error{
		"End":   func(b *bed) error { return b.End(b.Context(), b.b, b.id) },
		"Leave": func(b *bed) error { return b.Leave(b.Context(), b.b, b.id) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.store.fails = true
			for range 2 {
				require.ErrorIs(t, end(b), errOut)
			}
			b.store.fails = false
			b.load(nil, b.id, "x")
			require.NoError(t, end(b))
			b.load(nil, b.id, "")
			require.NoError(t, b.save(tombstore.NewID(), "y"), "it has ended the session itself")
		})
	}
}

// A request whose first load has failed holds its session from the next one on.
func TestLoad_AgainAfterFailure(t *testing.T) {
	b := newBed(t)
	b.b = &Request{}
	b.store.fails = true
	_, _, err := b.Load(t.Context(), b.b, b.id)
	require.ErrorIs(t, err, errOut)
	b.store.fails = false
	b.load(b.b, b.id, "x")
	b.logout()
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	next := tombstore.NewID()
	b.refused(b.save(next, "x"), "write", tombstore.Logout, next)
}

func TestNilRequest(t *testing.T) {
	b := newBed(t)
	next := tombstore.NewID()
	require.NoError(t, b.Rotate(t.Context(), nil, next, []byte("y"), time.Hour))
	b.load(nil, next, "y")
}

// A request that logs out after it has renewed its session names an id that was never saved.
func TestEnd_OfTheNextID(t *testing.T) {
	for name, before := range map[string]func(b *bed){
		"left":                 func(*bed) {},
		"left, and linked":     func(b *bed) { b.b, b.events = b.renewedByAnother(), nil },
		"came with a dead one": func(b *bed) { b.renewedByAnother(); b.b = &Request{}; b.load(b.b, b.id, "") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			before(b)
			next, flash := tombstore.NewID(), tombstore.NewID()
			require.NoError(t, b.Leave(t.Context(), b.b, b.b.ID()))
			require.NoError(t, b.End(t.Context(), b.b, next))
			require.NoError(t, b.save(flash, "bye"))
			var all []string
			for e, err := range b.store.List(t.Context()) {
				require.NoError(t, err)
				all = append(all, string(e.Data))
			}
			require.Equal(t, []string{"bye"}, all)
			_, err := b.Store().Read(t.Context(), b.id)
			var ended *tombstore.InvalidatedError
			require.ErrorAs(t, err, &ended)
			require.Equal(t, tombstore.Logout, ended.Reason)
		})
	}
}

// renewedByAnother lets another request renew the session, and returns one that has loaded it
// before.
func (b *bed) renewedByAnother() *Request {
	b.Helper()
	a, other := &Request{}, &Request{}
	b.load(a, b.id, "x")
	b.load(other, b.id, "x")
	require.NoError(b, b.Leave(b.Context(), other, b.id))
	require.NoError(b, b.Save(b.Context(), other, tombstore.NewID(), []byte("theirs"), time.Hour))
	return a
}

// The session of somebody else, ended or not, is not the request's.
func TestEnd_OfOthersWhileLeft(t *testing.T) {
	b := newBed(t)
	other, next := tombstore.NewID(), tombstore.NewID()
	require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("o"), time.Hour))
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	for range 2 {
		require.NoError(t, b.End(t.Context(), b.b, other))
	}
	require.NoError(t, b.save(next, "y"))
	b.load(nil, next, "y")
	require.NoError(t, b.Store().Invalidate(t.Context(), b.id))
	b.load(nil, next, "")
}

// late is a store whose replicas are late.
type late struct{ *tombstore.MemoryStore }

func (l late) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	return cmp.Or(l.MemoryStore.Invalidate(ctx, id, opts...), tombstore.ErrUnacknowledged)
}

func (l late) FinishRenewal(
	ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	s, err := l.MemoryStore.FinishRenewal(ctx, r, newID, data, ttl)
	return s, cmp.Or(err, tombstore.ErrUnacknowledged)
}

// As long as replicas are late, a logout says so, however often it is tried and from where.
func TestEnd_Unacknowledged(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	a, id := New(late{memory}), tombstore.NewID()
	require.NoError(t, a.Save(t.Context(), &Request{}, id, []byte("x"), time.Hour))
	for range 2 {
		r := &Request{}
		_, _, err := a.Load(t.Context(), r, id)
		require.NoError(t, err)
		for range 2 {
			require.ErrorIs(t, a.End(t.Context(), r, id), tombstore.ErrUnacknowledged)
		}
		require.ErrorIs(t, a.Save(t.Context(), r, id, []byte("x"), time.Hour), ErrRefused)
	}
}

// The session that was renewed is saved, the error says the rest, and so does the hook.
func TestRenew_Unacknowledged(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory()
	require.NoError(t, err)
	var events []tombstore.Event
	a := New(late{memory}, WithOnUnacknowledged(func(_ context.Context, e tombstore.Event) { events = append(events, e) }))
	id, next, r := tombstore.NewID(), tombstore.NewID(), &Request{}
	require.NoError(t, a.Save(t.Context(), r, id, []byte("x"), time.Hour))
	require.NoError(t, a.Leave(t.Context(), r, id))
	err = a.Save(t.Context(), r, next, []byte("y"), time.Hour)
	require.ErrorIs(t, err, tombstore.ErrUnacknowledged)
	require.Equal(t, []tombstore.Event{
		{Verb: "create", Outcome: tombstore.OutcomeUnacknowledged, Ref: tombstore.Ref(id), Err: err},
	}, events)
	require.NoError(t, a.Save(t.Context(), r, next, []byte("z"), time.Hour))
	s, err := memory.Read(t.Context(), next)
	require.NoError(t, err)
	require.Equal(t, "z", string(s.Data))
}

// A session that is absorbed is not the request's, even if it is the first one that it has loaded.
func TestAbsorb(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.Absorb(t.Context(), b.b, b.id))
	require.Empty(t, b.b.ID())
	b.load(nil, b.id, "")
	next := tombstore.NewID()
	require.NoError(t, b.save(next, "y"))
	require.NoError(t, b.save(next, "z"))
	require.NoError(t, b.End(t.Context(), b.b, ""))
	b.load(nil, next, "")
}

func TestAbsorb_Ended(t *testing.T) {
	b := newBed(t)
	other, next := tombstore.NewID(), tombstore.NewID()
	require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("o"), time.Hour))
	b.load(b.b, other, "o")
	require.NoError(t, b.Store().Invalidate(t.Context(), other))
	require.ErrorIs(t, b.Absorb(t.Context(), b.b, other), ErrRefused)
	require.ErrorIs(t, b.save(b.id, "x+o"), ErrRefused)
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.ErrorIs(t, b.save(next, "x+o"), ErrRefused)
	b.load(nil, b.id, "x")
	b.load(nil, next, "")
	require.NoError(t, b.End(t.Context(), b.b, b.id))
	b.load(nil, b.id, "")
}

// A hook may ask the request, and where the library asks for that it runs later.
func TestHooks(t *testing.T) {
	b := newBed(t)
	var ran chan string
	a := New(b.store, WithOnRefused(func(ctx context.Context, _ tombstore.Event) {
		require.NoError(t, ctx.Err())
		ran <- b.b.ID()
	}))
	save := func() error { return a.Save(t.Context(), b.b, b.id, []byte("y"), time.Hour) }
	b.logout()

	ran = make(chan string, 1)
	require.ErrorIs(t, save(), ErrRefused)
	require.Equal(t, b.id, <-ran)

	b.b.DeferHooks()
	for range 2 {
		require.ErrorIs(t, save(), ErrRefused)
		require.Empty(t, ran)
		b.b.RunHooks(false)
		require.Equal(t, b.id, <-ran)
		b.b.RunHooks(false)
		require.Empty(t, ran)
	}

	require.ErrorIs(t, save(), ErrRefused)
	b.b.RunHooks(true)
	require.Equal(t, b.id, <-ran)
	ran = make(chan string)
	require.ErrorIs(t, save(), ErrRefused) // would wait for ever in this goroutine
	require.Equal(t, b.id, <-ran)
}

// Whoever renews and then logs out has ended the session itself, and its cookie goes.
func TestEnd_AfterLeave(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.Leave(t.Context(), b.b, b.id))
	require.NoError(t, b.End(t.Context(), b.b, b.id))
	require.NoError(t, b.b.Gone())
}

func TestEnd_AfterLeave_EndedByOthers(t *testing.T) {
	other := newBed(t)
	require.NoError(t, other.Leave(t.Context(), other.b, other.id))
	require.NoError(t, other.Store().Invalidate(t.Context(), other.id))
	require.NoError(t, other.End(t.Context(), other.b, other.id))
	require.ErrorIs(t, other.b.Gone(), tombstore.ErrInvalidated, "somebody else has")
}

// A threshold that is no part of anything must not keep a session from being touched.
func TestWithTouchThreshold(t *testing.T) {
	t.Parallel()
	for part, want := range map[float64]float64{0.5: 0.5, 0: 0, -1: 0, 1: 0, 7: 0, math.NaN(): 0, math.Inf(1): 0} {
		require.Equal(t, want, New(nil, WithTouchThreshold(part)).threshold)
	}
}
