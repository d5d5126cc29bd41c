package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// testify prints times, when it compares, by reading what package time sets when it is first used:
// a data race between two tests.
func init() { _ = time.Now().String() }

func newMemory(t *testing.T, opts ...tombstore.Option) *tombstore.MemoryStore {
	s, err := tombstore.NewMemory(opts...)
	require.NoError(t, err)
	return s
}

func TestRun(t *testing.T) {
	Run(t, func(t *testing.T) tombstore.Store { return newMemory(t) })
	t.Run("plain ids, absolute timeout", func(t *testing.T) {
		Run(t, func(t *testing.T) tombstore.Store {
			return newMemory(t, tombstore.WithPlainIDs(), tombstore.WithAbsoluteTimeout(24*hour))
		})
	})
}

func TestRun_OptionalInterfaces(t *testing.T) {
	whole := newMemory(t)
	of := func(s tombstore.Store, prefixes ...string) (n int) {
		for _, r := range rulesFor(s) {
			if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(r.name, p) }) {
				n++
			}
		}
		return n
	}
	renewals := []string{"Renewal/", "BeginRenewal/", "FinishRenewal/", "CancelRenewal"}
	listings := []string{"List/", "InvalidateRef"}
	owners := []string{"Owner/", "BeginLogin/", "Reserve/", "Release/", "Sessions/", "InvalidateOwned/", "InvalidateOwner/"}
	watches := []string{"Watch/"}
	none := struct{ tombstore.Store }{whole}
	require.Zero(t, of(none, slices.Concat(renewals, listings, owners, watches)...))
	require.NotZero(t, of(none, "Write/"))
	renewer := struct{ tombstore.Renewer }{whole}
	require.NotZero(t, of(renewer, renewals...))
	require.Zero(t, of(renewer, listings...))
	lister := struct{ tombstore.Lister }{whole}
	require.NotZero(t, of(lister, listings...))
	require.Zero(t, of(lister, renewals...))
	require.Greater(t, of(whole, renewals...), of(renewer, renewals...))
	binder := struct{ tombstore.Binder }{whole}
	require.NotZero(t, of(binder, owners...))
	require.Zero(t, of(binder, slices.Concat(renewals, listings)...))
	require.Greater(t, of(whole, owners...), of(binder, owners...))
	watcher := struct{ tombstore.Watcher }{whole}
	require.NotZero(t, of(watcher, watches...))
	require.Zero(t, of(watcher, slices.Concat(renewals, listings, owners)...))
	require.Greater(t, of(whole, watches...), of(watcher, watches...))
}

// How much is too much is a store's own affair, so no rule can tell.
func TestMemoryStore_TooLarge(t *testing.T) {
	ctx, s := t.Context(), newMemory(t, tombstore.WithMaxDataSize(1))
	id, next := tombstore.NewID(), tombstore.NewID()
	_, err := s.Write(ctx, id, []byte("xy"), hour)
	require.ErrorIs(t, err, tombstore.ErrTooLarge)
	_, err = s.Write(ctx, id, []byte("x"), hour)
	require.NoError(t, err)
	_, err = s.Rotate(ctx, id, next, tombstore.WithData([]byte("xy"), hour))
	require.ErrorIs(t, err, tombstore.ErrTooLarge)
	r, err := s.BeginRenewal(ctx, id, 0)
	require.NoError(t, err)
	_, err = s.FinishRenewal(ctx, r, next, []byte("xy"), hour)
	require.ErrorIs(t, err, tombstore.ErrTooLarge)
	_, err = s.FinishRenewal(ctx, r, next, []byte("x"), hour)
	require.NoError(t, err)
}

// An absolute timeout goes on through a renewal.
func TestMemoryStore_RenewalKeepsDeadline(t *testing.T) {
	ctx, s := t.Context(), newMemory(t, tombstore.WithAbsoluteTimeout(hour))
	id, next := tombstore.NewID(), tombstore.NewID()
	_, err := s.Write(ctx, id, nil, 2*hour)
	require.NoError(t, err)
	before, err := s.Read(ctx, id, tombstore.WithExpiry())
	require.NoError(t, err)
	newCheck(t, ctx, s).outlast()
	r, err := s.BeginRenewal(ctx, id, 0)
	require.NoError(t, err)
	_, err = s.FinishRenewal(ctx, r, next, nil, 2*hour)
	require.NoError(t, err)
	after, err := s.Read(ctx, next, tombstore.WithExpiry())
	require.NoError(t, err)
	require.Equal(t, before.ExpiresAt, after.ExpiresAt)
}

// A session whose deadline passes between the halves of its renewal has expired.
func TestMemoryStore_DeadlineBetweenTheHalves(t *testing.T) {
	c := newCheck(t, t.Context(), newMemory(t, tombstore.WithAbsoluteTimeout(instant)))
	var r tombstore.Renewal
	_, old := c.briefly(func(_ tombstore.Session, id string) (err error) {
		r, err = c.renewer.BeginRenewal(c, id, 0)
		return err
	})
	c.outlast()
	id := tombstore.NewID()
	_, err := c.renewer.FinishRenewal(c, r, id, nil, hour)
	require.ErrorIs(t, err, tombstore.ErrNotFound)
	c.absent(id)
	c.ended(old, tombstore.Rotated)
}

// A session that has moved too often to be followed is not said to have ended.
func TestMemoryStore_TooManyMoves(t *testing.T) {
	ctx, s, id := t.Context(), newMemory(t), tombstore.NewID()
	first := id
	_, err := s.Write(ctx, id, nil, hour)
	require.NoError(t, err)
	for range 4096 {
		next := tombstore.NewID()
		_, err = s.Rotate(ctx, id, next)
		require.NoError(t, err)
		id = next
	}
	require.ErrorIs(t, s.Invalidate(ctx, first), tombstore.ErrNotInvalidated)
	newCheck(t, ctx, s).holds(id, "")
	require.NoError(t, s.Invalidate(ctx, id))
}

// mutant is a store that breaks a promise, and the rules that must notice.
type mutant struct {
	rule   string
	breaks func(s whole) tombstore.Store
}

// TestRun_BrokenStores breaks one promise at a time and names the rule that must notice.
func TestRun_BrokenStores(t *testing.T) {
	for _, table := range []map[string]mutant{mutants, moveMutants, renewalMutants, listMutants, ownerMutants, watchMutants, lifetimeMutants, graceMutants} {
		for name, m := range table {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				require.True(t, fails(t, m.rule, m.breaks(newMemory(t))), "no rule %q noticed", m.rule)
			})
		}
	}
}

// fails reports whether a rule whose name begins with prefix fails on s.
func fails(t *testing.T, prefix string, s tombstore.Store) bool {
	failed := false
	for _, r := range rulesFor(s) {
		if strings.HasPrefix(r.name, prefix) {
			f := &failure{}
			var done sync.WaitGroup
			c := newCheck(f, t.Context(), s)
			c.patience = time.Second // some tell nothing
			done.Go(func() { r.test(c) })
			done.Wait()
			failed = failed || f.failed
		}
	}
	return failed
}

// failure is a TestingT that notes failures.
type failure struct {
	mu     sync.Mutex
	failed bool
}

func (f *failure) Errorf(string, ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = true
}

func (f *failure) FailNow() {
	f.Errorf("")
	runtime.Goexit()
}

// whole is a store with all optional interfaces.
type whole interface {
	tombstore.Renewer
	tombstore.Lister
	tombstore.Binder
	tombstore.Watcher
}

// broken is a store with some methods replaced.
type broken struct {
	whole
	read  func(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error)
	write func(
		ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
	) (tombstore.Session, error)
	touch  func(ctx context.Context, id string, ttl time.Duration) error
	rotate func(
		ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
	) (tombstore.Session, error)
	invalidate func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error
	exists     func(ctx context.Context, id string) (bool, error)
	begin      func(ctx context.Context, id string, v tombstore.Version) (tombstore.Renewal, error)
	finish     func(
		ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error)
	cancel        func(ctx context.Context, r tombstore.Renewal) error
	list          func(ctx context.Context) iter.Seq2[tombstore.Entry, error]
	invalidateRef func(ctx context.Context, ref string, opts ...tombstore.InvalidateOption) error
}

func (b *broken) Read(
	ctx context.Context, id string, opts ...tombstore.ReadOption,
) (tombstore.Session, error) {
	if b.read != nil {
		return b.read(ctx, id, opts...)
	}
	return b.whole.Read(ctx, id, opts...)
}

func (b *broken) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	if b.write != nil {
		return b.write(ctx, id, data, ttl, opts...)
	}
	return b.whole.Write(ctx, id, data, ttl, opts...)
}

func (b *broken) Touch(ctx context.Context, id string, ttl time.Duration) error {
	if b.touch != nil {
		return b.touch(ctx, id, ttl)
	}
	return b.whole.Touch(ctx, id, ttl)
}

func (b *broken) Rotate(
	ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
) (tombstore.Session, error) {
	if b.rotate != nil {
		return b.rotate(ctx, oldID, newID, opts...)
	}
	return b.whole.Rotate(ctx, oldID, newID, opts...)
}

func (b *broken) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if b.invalidate != nil {
		return b.invalidate(ctx, id, opts...)
	}
	return b.whole.Invalidate(ctx, id, opts...)
}

func (b *broken) Exists(ctx context.Context, id string) (bool, error) {
	if b.exists != nil {
		return b.exists(ctx, id)
	}
	return b.whole.Exists(ctx, id)
}

func (b *broken) BeginRenewal(
	ctx context.Context, id string, v tombstore.Version,
) (tombstore.Renewal, error) {
	if b.begin != nil {
		return b.begin(ctx, id, v)
	}
	return b.whole.BeginRenewal(ctx, id, v)
}

func (b *broken) FinishRenewal(
	ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if b.finish != nil {
		return b.finish(ctx, r, newID, data, ttl)
	}
	return b.whole.FinishRenewal(ctx, r, newID, data, ttl)
}

func (b *broken) CancelRenewal(ctx context.Context, r tombstore.Renewal) error {
	if b.cancel != nil {
		return b.cancel(ctx, r)
	}
	return b.whole.CancelRenewal(ctx, r)
}

func (b *broken) List(ctx context.Context) iter.Seq2[tombstore.Entry, error] {
	if b.list != nil {
		return b.list(ctx)
	}
	return b.whole.List(ctx)
}

func (b *broken) InvalidateRef(
	ctx context.Context, ref string, opts ...tombstore.InvalidateOption,
) error {
	if b.invalidateRef != nil {
		return b.invalidateRef(ctx, ref, opts...)
	}
	return b.whole.InvalidateRef(ctx, ref, opts...)
}

// reborn forgets what s knows of an id, as a DEL would: the id goes on under another name.
type reborn struct {
	whole
	mu    sync.Mutex
	lives map[string]int
}

func (r *reborn) name(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%s %d", id, r.lives[id])
}

func (r *reborn) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives[id]++
}

// recall undoes a forget.
func (r *reborn) recall(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives[id]--
}

func (r *reborn) Read(
	ctx context.Context, id string, opts ...tombstore.ReadOption,
) (tombstore.Session, error) {
	return r.whole.Read(ctx, r.name(id), opts...)
}

func (r *reborn) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	return r.whole.Write(ctx, r.name(id), data, ttl, opts...)
}

func (r *reborn) Touch(ctx context.Context, id string, ttl time.Duration) error {
	return r.whole.Touch(ctx, r.name(id), ttl)
}

func (r *reborn) Rotate(
	ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
) (tombstore.Session, error) {
	return r.whole.Rotate(ctx, r.name(oldID), r.name(newID), opts...)
}

func (r *reborn) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	return r.whole.Invalidate(ctx, r.name(id), opts...)
}

func (r *reborn) Exists(ctx context.Context, id string) (bool, error) {
	return r.whole.Exists(ctx, r.name(id))
}

func (r *reborn) BeginRenewal(
	ctx context.Context, id string, v tombstore.Version,
) (tombstore.Renewal, error) {
	return r.whole.BeginRenewal(ctx, r.name(id), v)
}

func (r *reborn) FinishRenewal(
	ctx context.Context, renewal tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	return r.whole.FinishRenewal(ctx, renewal, r.name(newID), data, ttl)
}

func newReborn(s whole) *reborn { return &reborn{whole: s, lives: map[string]int{}} }

// rebirth forgets what there was at every write.
func rebirth(s whole) tombstore.Store {
	r := newReborn(s)
	return &broken{whole: r, write: func(
		ctx context.Context, id string, data []byte, ttl time.Duration, _ ...tombstore.WriteOption,
	) (tombstore.Session, error) {
		r.forget(id)
		return r.Write(ctx, id, data, ttl)
	}}
}

// collect applies opts to the zero value of O.
func collect[O any, F ~func(*O)](opts []F) O {
	var o O
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

var mutants = map[string]mutant{
	"ending deletes": {"Race/read, Invalidate, Write", func(s whole) tombstore.Store {
		r := newReborn(s)
		return &broken{whole: r, invalidate: func(
			_ context.Context, id string, _ ...tombstore.InvalidateOption,
		) error {
			r.forget(id)
			return nil
		}}
	}},
	"ending an absent id does nothing": {"Invalidate/absent", func(s whole) tombstore.Store {
		return &broken{whole: s, invalidate: func(
			ctx context.Context, id string, opts ...tombstore.InvalidateOption,
		) error {
			if exists, err := s.Exists(ctx, id); err != nil || !exists {
				return err
			}
			return s.Invalidate(ctx, id, opts...)
		}}
	}},
	"ending ignores its condition": {"Invalidate/IfLive", func(s whole) tombstore.Store {
		return &broken{whole: s, invalidate: func(
			ctx context.Context, id string, _ ...tombstore.InvalidateOption,
		) error {
			return s.Invalidate(ctx, id, tombstore.WithReason(tombstore.Revoked))
		}}
	}},
	"many have ended it": {"Race/one session, many endings", func(s whole) tombstore.Store {
		return &broken{whole: s, invalidate: func(
			ctx context.Context, id string, opts ...tombstore.InvalidateOption,
		) error {
			if exists, err := s.Exists(ctx, id); err != nil || !exists {
				return tombstore.ErrInvalidated
			}
			runtime.Gosched()
			return s.Invalidate(ctx, id)
		}}
	}},
	"the last reason counts": {"Invalidate/again", func(s whole) tombstore.Store {
		r := newReborn(s)
		return &broken{whole: r, invalidate: func(
			ctx context.Context, id string, opts ...tombstore.InvalidateOption,
		) error {
			r.forget(id)
			return r.Invalidate(ctx, id, opts...)
		}}
	}},
	"the tombstone dies with the session": {"Invalidate/outlives", func(s whole) tombstore.Store {
		r := newReborn(s)
		return &broken{whole: r, invalidate: func(
			ctx context.Context, id string, opts ...tombstore.InvalidateOption,
		) error {
			defer time.AfterFunc(instant/2, func() { r.forget(id) })
			return r.Invalidate(ctx, id, opts...)
		}}
	}},
	"a fresh read finds nothing": {"Read/Fresh", onRead(func(
		ctx context.Context, s whole, id string, opts []tombstore.ReadOption,
	) (tombstore.Session, error) {
		if collect(opts).Fresh {
			return tombstore.Session{}, tombstore.ErrNotFound
		}
		return s.Read(ctx, id, opts...)
	})},
	"the first TTL counts": {"Write/restarts the idle timeout", func(s whole) tombstore.Store {
		var ttls sync.Map
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			first, _ := ttls.LoadOrStore(id, ttl)
			return s.Write(ctx, id, data, first.(time.Duration), opts...)
		}}
	}},
	"writing ignores tombstones": {"Race/read, Rotate, Write", rebirth},
	"writing ignores conditions": {"Write/If", func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, _ ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			return s.Write(ctx, id, data, ttl)
		}}
	}},
	"comparing and writing are two steps": {"Race/one version", func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			o := collect(opts)
			if now, err := s.Read(ctx, id); o.Match && (err != nil || now.Version != o.Version) {
				return tombstore.Session{}, tombstore.ErrConflict
			}
			runtime.Gosched()
			return s.Write(ctx, id, data, ttl)
		}}
	}},
	"writing starts a new life": {"Write/replaces", rebirth},
	"reading lends its memory": {"Read/data belongs", func(s whole) tombstore.Store {
		var lent sync.Map
		return &broken{whole: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			data, _ := lent.LoadOrStore(id, session.Data)
			session.Data = data.([]byte)
			return session, err
		}}
	}},
	"two ids win one": {"Race/many sessions", func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Rotate(ctx, oldID, newID, opts...)
			if errors.Is(err, tombstore.ErrConflict) {
				err = s.Invalidate(ctx, oldID)
			}
			return session, err
		}}
	}},
	"rotating is reading and writing": {"Race/Rotate against writers", func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, _ ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, oldID)
			if err != nil {
				return session, err
			}
			time.Sleep(time.Millisecond)
			if session, err = s.Write(ctx, newID, session.Data, hour); err == nil {
				err = s.Invalidate(ctx, oldID)
			}
			return session, err
		}}
	}},
	"all reasons are one": {"Invalidate/any reason", func(s whole) tombstore.Store {
		return &broken{whole: s, invalidate: func(
			ctx context.Context, id string, _ ...tombstore.InvalidateOption,
		) error {
			return s.Invalidate(ctx, id)
		}}
	}},
	"conditions ignore the TTL": {"Write/conditions restart", func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			if len(opts) > 0 {
				ttl = instant
			}
			return s.Write(ctx, id, data, ttl, opts...)
		}}
	}},
	"touching does nothing": {"Touch/restarts", func(s whole) tombstore.Store {
		return &broken{whole: s, touch: func(context.Context, string, time.Duration) error { return nil }}
	}},
	"touching revives": {"Race/read, Invalidate, Touch", func(s whole) tombstore.Store {
		r := newReborn(s)
		return &broken{whole: r, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			r.forget(id)
			_, err := r.Write(ctx, id, nil, ttl)
			return err
		}}
	}},
	"sliding does nothing": {"Read/Slide restarts", func(s whole) tombstore.Store {
		return &broken{whole: s, read: func(
			ctx context.Context, id string, _ ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			return s.Read(ctx, id)
		}}
	}},
	"rotating leaves the old id alive": {"Rotate/moves", func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, _ ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, oldID)
			if err != nil {
				return session, err
			}
			return s.Write(ctx, newID, session.Data, hour)
		}}
	}},
	"rotating takes what it finds": {"Rotate/new id in use", func(s whole) tombstore.Store {
		r := newReborn(s)
		return &broken{whole: r, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			r.forget(newID)
			return r.Rotate(ctx, oldID, newID, opts...)
		}}
	}},
	"rotating ignores its options": {"Rotate/WithData", func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, _ ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			return s.Rotate(ctx, oldID, newID)
		}}
	}},
	"ended sessions exist": {"Exists", func(s whole) tombstore.Store {
		return &broken{whole: s, exists: func(ctx context.Context, id string) (bool, error) {
			_, err := s.Read(ctx, id)
			return err == nil || strings.Contains(err.Error(), "ended"), nil
		}}
	}},
	"failures look like absence": {"Errors/an ended context", func(s whole) tombstore.Store {
		return &broken{whole: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if err != nil {
				err = tombstore.ErrNotFound
			}
			return session, err
		}}
	}},
	"errors quote the id": {"Errors/carry", func(s whole) tombstore.Store {
		return &broken{whole: s, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			if err := s.Touch(ctx, id, ttl); err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			return nil
		}}
	}},
	"long ids are cut": {"Ids/empty or too long", func(s whole) tombstore.Store {
		return &broken{whole: s, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			return s.Touch(ctx, id[:min(len(id), 1024)], ttl)
		}}
	}},
	"any TTL is taken": {"TTL/", func(s whole) tombstore.Store {
		return &broken{whole: s, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			return s.Touch(ctx, id, max(ttl, 1))
		}}
	}},
	"the crowd is served after the end": {"Race/Invalidate against a crowd", func(s whole) tombstore.Store {
		return &broken{whole: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if len(opts) == 0 && err != nil {
				err = nil
			}
			return session, err
		}}
	}},
}
