package adapter

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// saveIfDue requires that a save with SaveIfDue succeeds, and says whether it was due.
func (b *bed) saveIfDue(id, data string) bool {
	b.Helper()
	due, err := b.SaveIfDue(b.Context(), b.b, id, []byte(data), time.Hour)
	require.NoError(b, err)
	return due
}

// age makes the session expire in ttl, and loads it in a new request.
func (b *bed) age(ttl time.Duration) {
	b.Helper()
	require.NoError(b, b.Store().Touch(b.Context(), b.id, ttl))
	b.b = &Request{}
	b.load(b.b, b.id, "x")
}

// left requires that the session lives for about ttl.
func (b *bed) left(ttl time.Duration) {
	b.Helper()
	s, err := b.Store().Read(b.Context(), b.id, tombstore.WithExpiry())
	require.NoError(b, err)
	require.WithinDuration(b, time.Now().Add(ttl), s.ExpiresAt, time.Minute)
}

func TestSaveIfDue_Unchanged(t *testing.T) {
	b := newBed(t)
	b.age(55 * time.Minute)
	require.False(t, b.saveIfDue(b.id, "x"))
	b.left(55 * time.Minute)

	b.age(53 * time.Minute)
	require.True(t, b.saveIfDue(b.id, "x"))
	b.left(time.Hour)

	b.age(2 * time.Hour) // the idle timeout was set to less
	require.True(t, b.saveIfDue(b.id, "x"))
	b.left(time.Hour)
}

func TestSaveIfDue_Changed(t *testing.T) {
	b := newBed(t)
	require.True(t, b.saveIfDue(b.id, "y"))
	b.load(nil, b.id, "y")
	b.endNow()
	due, err := b.SaveIfDue(t.Context(), b.b, b.id, []byte("z"), time.Hour)
	require.True(t, due)
	b.refused(err, "write", tombstore.Logout)
}

// endNow ends the session in another request, whatever its data is.
func (b *bed) endNow() {
	b.Helper()
	require.NoError(b, b.Store().Invalidate(b.Context(), b.id))
}

// What the request has saved has its cookie in the response, so the next save must not take that back.
func TestSaveIfDue_SavedBefore(t *testing.T) {
	for name, save := range map[string]func(b *bed) string{
		"new": func(b *bed) string {
			b.b, b.id = &Request{}, tombstore.NewID()
			require.True(b, b.saveIfDue(b.id, "x"))
			return b.id
		},
		"written": func(b *bed) string {
			require.True(b, b.saveIfDue(b.id, "y"))
			require.True(b, b.saveIfDue(b.id, "x"))
			return b.id
		},
		"touched": func(b *bed) string {
			require.NoError(b, b.save(b.id, "x"))
			return b.id
		},
		"rotated": func(b *bed) string {
			id := tombstore.NewID()
			require.NoError(b, b.rotate(id, "x"))
			return id
		},
		"renewed": func(b *bed) string {
			id := tombstore.NewID()
			require.NoError(b, b.Leave(b.Context(), b.b, b.id))
			require.True(b, b.saveIfDue(id, "x"))
			return id
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			id := save(b)
			require.True(t, b.saveIfDue(id, "x"))
			b.load(b.b, id, "x") // fiber loads a session again if it is asked for again
			require.True(t, b.saveIfDue(id, "x"))
		})
	}
}

// A request that is not holding its session has something to do, whatever its data is.
func TestSaveIfDue_OtherStates(t *testing.T) {
	t.Run("left", func(t *testing.T) {
		b := newBed(t)
		require.NoError(t, b.Leave(t.Context(), b.b, b.id))
		due, err := b.SaveIfDue(t.Context(), b.b, b.id, []byte("x"), time.Hour)
		require.True(t, due)
		require.ErrorIs(t, err, ErrRefused)
	})
	t.Run("tainted", func(t *testing.T) {
		b := newBed(t)
		b.logout()
		b.load(b.b, b.id, "")
		due, err := b.SaveIfDue(t.Context(), b.b, b.id, []byte("x"), time.Hour)
		require.True(t, due)
		b.refused(err, "write", tombstore.Logout)
	})
	t.Run("another session", func(t *testing.T) {
		b := newBed(t)
		other := tombstore.NewID()
		require.NoError(t, b.Save(t.Context(), &Request{}, other, []byte("x"), time.Hour))
		b.load(b.b, other, "x")
		require.True(t, b.saveIfDue(other, "x"))
	})
	t.Run("without a request", func(t *testing.T) {
		b := newBed(t)
		b.b = nil
		require.True(t, b.saveIfDue(b.id, "x"))
	})
}

// withoutExpiry is a store that does not know when its sessions expire.
type withoutExpiry struct{ tombstore.Renewer }

func (w withoutExpiry) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	s, err := w.Renewer.Read(ctx, id, opts...)
	s.ExpiresAt = time.Time{}
	return s, err
}

func TestSaveIfDue_UnknownExpiry(t *testing.T) {
	b := newBed(t)
	b.Adapter = New(withoutExpiry{b.store})
	b.age(time.Hour)
	require.True(t, b.saveIfDue(b.id, "x"))
}

// Near its deadline a session lives for less than the idle timeout, and no touch would change that.
func TestSaveIfDue_Deadline(t *testing.T) {
	t.Parallel()
	memory, err := tombstore.NewMemory(tombstore.WithAbsoluteTimeout(10 * time.Minute))
	require.NoError(t, err)
	b := &bed{T: t, store: &failing{MemoryStore: memory}, id: tombstore.NewID(), b: &Request{}}
	b.Adapter = New(b.store)
	require.NoError(t, b.save(b.id, "x"))
	b.age(time.Hour)
	require.False(t, b.saveIfDue(b.id, "x"))
	b.age(8 * time.Minute)
	require.True(t, b.saveIfDue(b.id, "x"))
	b.left(10 * time.Minute)
}

func TestSaveIfDue_Threshold(t *testing.T) {
	b := newBed(t, WithTouchThreshold(0.5))
	b.age(31 * time.Minute)
	require.False(t, b.saveIfDue(b.id, "x"))
	b.age(29 * time.Minute)
	require.True(t, b.saveIfDue(b.id, "x"))

	b.Adapter = New(b.store, WithTouchThreshold(0))
	b.age(time.Hour)
	require.True(t, b.saveIfDue(b.id, "x"))
}

// Decoding both encodings is dear, and a save that has something to do does it once.
func TestSaveIfDue_ComparesOnce(t *testing.T) {
	compared := 0
	b := newBed(t, WithEqual(func(x, y []byte) bool { compared++; return string(x) == string(y) }))
	for _, data := range []string{"x", "y"} {
		compared = 0
		b.saveIfDue(b.id, data)
		require.Equal(t, 1, compared)
	}
}
