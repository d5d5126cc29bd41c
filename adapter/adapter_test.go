package adapter

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// bed is a browser with a live session "x" and the request B that has loaded it.
type bed struct {
	*testing.T
	*Adapter
	id     string
	b      *Request
	events []Event
}

func newBed(t *testing.T, opts ...Option) *bed {
	t.Helper()
	t.Parallel()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	bed := &bed{T: t, id: tombstore.NewID(), b: &Request{}}
	hook := WithOnRefused(func(_ context.Context, e Event) { bed.events = append(bed.events, e) })
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
	want := Event{Verb: verb, Reason: reason, Ref: tombstore.Ref(b.id)}
	require.Equal(b, []Event{want}, b.events)
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
	require.NoError(b, b.End(b.Context(), r, b.id, tombstore.Logout))
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
	require.NoError(t, b.End(t.Context(), admin, b.id, tombstore.Logout))
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
	require.NoError(t, b.End(t.Context(), nil, b.id, tombstore.Logout))
	b.refused(b.save(b.id, "y"), "write", tombstore.Logout)
}

// A renewal that deletes and then saves, as scs and fiber do.
func TestRenew(t *testing.T) {
	b := newBed(t)
	next := tombstore.NewID()
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
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
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	b.refused(b.save(next, "y"), "write", tombstore.Logout, next)
}

// A logout, or a revocation, that comes between the two halves of a renewal counts.
func TestRenew_EndedInBetween(t *testing.T) {
	for name, end := range map[string]func(b *bed, a *Request) error{
		"logout of a request that had loaded it": func(b *bed, a *Request) error {
			return b.End(b.Context(), a, b.id, tombstore.Logout)
		},
		"logout of a request that was told to say Rotated": func(b *bed, a *Request) error {
			if err := b.End(b.Context(), a, b.id, tombstore.Rotated); err != nil {
				return err
			}
			return b.Finish(b.Context(), a)
		},
		"logout of a request that came too late": func(b *bed, _ *Request) error {
			a := &Request{}
			b.load(a, b.id, "")
			return b.End(b.Context(), a, b.id, tombstore.Logout)
		},
		"revocation": func(b *bed, _ *Request) error {
			return b.Store().Invalidate(b.Context(), b.id, tombstore.WithReason(tombstore.Revoked))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			a, next := &Request{}, tombstore.NewID()
			b.load(a, b.id, "x")
			require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
			require.NoError(t, end(b, a))
			require.ErrorIs(t, b.save(next, "y"), ErrRefused)
			b.load(nil, b.id, "")
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
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	require.NoError(t, b.End(t.Context(), a, b.id, tombstore.Rotated))
	require.ErrorIs(t, b.Save(t.Context(), a, second, []byte("a"), time.Hour), ErrRefused)
	require.NoError(t, b.Finish(t.Context(), a))
	require.NoError(t, b.save(first, "y"))
	b.load(nil, first, "y")
	b.load(nil, second, "")
}

// A renewal of which the first half may not have worked.
func TestRenew_EndFails(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, b.End(ctx, b.b, b.id, tombstore.Rotated), context.Canceled)
	next := tombstore.NewID()
	err := b.save(next, "y")
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrRefused)
	b.load(nil, next, "")
}

func TestFinish(t *testing.T) {
	b := newBed(t)
	reason := func() tombstore.Reason {
		_, err := b.Store().Read(t.Context(), b.id)
		var ended *tombstore.InvalidatedError
		require.ErrorAs(t, err, &ended)
		return ended.Reason
	}
	require.NoError(t, b.Finish(t.Context(), b.b))
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	require.Equal(t, tombstore.Rotated, reason())
	require.NoError(t, b.Finish(t.Context(), b.b))
	require.Equal(t, tombstore.Logout, reason())
}

func TestFinish_AfterRenewal(t *testing.T) {
	b := newBed(t)
	next := tombstore.NewID()
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	require.NoError(t, b.save(next, "y"))
	require.NoError(t, b.Finish(t.Context(), b.b))
	b.load(nil, next, "y")
	_, err := b.Store().Read(t.Context(), b.id)
	require.ErrorContains(t, err, "rotated")
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
	require.NoError(t, b.End(t.Context(), r, id, tombstore.Logout))
	require.NoError(t, b.End(t.Context(), &Request{}, id, tombstore.Logout))
	_, err := b.Store().Read(t.Context(), id)
	require.ErrorIs(t, err, tombstore.ErrNotFound)
}

func TestEnd_OfOthersDoesNotTaint(t *testing.T) {
	b := newBed(t)
	other := tombstore.NewID()
	require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("o"), time.Hour))
	b.load(b.b, other, "o")
	require.NoError(t, b.End(t.Context(), b.b, other, tombstore.Rotated))
	require.NoError(t, b.End(t.Context(), b.b, other, tombstore.Rotated))
	require.NoError(t, b.save(b.id, "y"))
	b.load(nil, b.id, "y")
	b.load(nil, other, "")
}

func TestEnd_Twice(t *testing.T) {
	b := newBed(t)
	b.logout()
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	require.NoError(t, b.End(t.Context(), nil, b.id, tombstore.Logout))
	require.NoError(t, b.End(t.Context(), nil, "", tombstore.Logout))
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
		require.NoError(t, b.End(t.Context(), b.b, "", tombstore.Rotated))
		require.NoError(t, b.save(next, "bob"))
		b.load(nil, next, "bob")
	})
}

func TestLoad_BadID(t *testing.T) {
	b := newBed(t)
	for _, id := range []string{"", string(make([]byte, 2000))} {
		b.load(&Request{}, id, "")
		require.NoError(t, b.End(t.Context(), &Request{}, id, tombstore.Logout))
		require.NoError(t, b.End(t.Context(), nil, id, tombstore.Logout))
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

// The server has refused to end the session, or has not answered. Asked again in the same request, it must be asked again.
func TestEnd_TriedAgain(t *testing.T) {
	for _, reason := range []tombstore.Reason{tombstore.Logout, tombstore.Rotated} {
		t.Run(reason.String(), func(t *testing.T) {
			b := newBed(t)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for range 2 {
				require.ErrorIs(t, b.End(ctx, b.b, b.id, reason), context.Canceled)
			}
			b.load(nil, b.id, "x")
			require.NoError(t, b.End(t.Context(), b.b, b.id, reason))
			b.load(nil, b.id, "")
			require.NoError(t, b.save(tombstore.NewID(), "y"), "it has ended the session itself")
		})
	}
}

// A request whose first load has failed holds its session from the next one on.
func TestLoad_AgainAfterFailure(t *testing.T) {
	b := newBed(t)
	b.b = &Request{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := b.Load(ctx, b.b, b.id)
	require.ErrorIs(t, err, context.Canceled)
	b.load(b.b, b.id, "x")
	b.logout()
	require.NoError(t, b.End(t.Context(), b.b, b.id, tombstore.Rotated))
	next := tombstore.NewID()
	b.refused(b.save(next, "x"), "write", tombstore.Logout, next)
}

func TestNilRequest(t *testing.T) {
	b := newBed(t)
	next := tombstore.NewID()
	require.NoError(t, b.Rotate(t.Context(), nil, next, []byte("y"), time.Hour))
	b.load(nil, next, "y")
	require.NoError(t, b.Finish(t.Context(), nil))
}
