package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

func newMemory(t *testing.T) *tombstore.MemoryStore {
	s, err := tombstore.NewMemory()
	require.NoError(t, err)
	return s
}

func TestRun(t *testing.T) {
	Run(t, func(t *testing.T) tombstore.Store { return newMemory(t) })
}

// TestRun_BrokenStores breaks one promise at a time and names the rule that must notice.
func TestRun_BrokenStores(t *testing.T) {
	for name, m := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.True(t, fails(t, m.rule, m.breaks(newMemory(t))), "no rule %q noticed", m.rule)
		})
	}
}

// fails reports whether a rule whose name begins with prefix fails on s.
func fails(t *testing.T, prefix string, s tombstore.Store) bool {
	failed := false
	for _, r := range append(append(rules[:len(rules):len(rules)], refusals()...), races...) {
		if strings.HasPrefix(r.name, prefix) {
			f := &failure{}
			var done sync.WaitGroup
			done.Go(func() { r.test(&check{TestingT: f, Context: t.Context(), store: s}) })
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

// broken is a store with some methods replaced.
type broken struct {
	tombstore.Store
	read       func(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error)
	write      func(ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption) (tombstore.Session, error)
	touch      func(ctx context.Context, id string, ttl time.Duration) error
	rotate     func(ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption) (tombstore.Session, error)
	invalidate func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error
	exists     func(ctx context.Context, id string) (bool, error)
}

func (b *broken) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	if b.read != nil {
		return b.read(ctx, id, opts...)
	}
	return b.Store.Read(ctx, id, opts...)
}

func (b *broken) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	if b.write != nil {
		return b.write(ctx, id, data, ttl, opts...)
	}
	return b.Store.Write(ctx, id, data, ttl, opts...)
}

func (b *broken) Touch(ctx context.Context, id string, ttl time.Duration) error {
	if b.touch != nil {
		return b.touch(ctx, id, ttl)
	}
	return b.Store.Touch(ctx, id, ttl)
}

func (b *broken) Rotate(ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption) (tombstore.Session, error) {
	if b.rotate != nil {
		return b.rotate(ctx, oldID, newID, opts...)
	}
	return b.Store.Rotate(ctx, oldID, newID, opts...)
}

func (b *broken) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if b.invalidate != nil {
		return b.invalidate(ctx, id, opts...)
	}
	return b.Store.Invalidate(ctx, id, opts...)
}

func (b *broken) Exists(ctx context.Context, id string) (bool, error) {
	if b.exists != nil {
		return b.exists(ctx, id)
	}
	return b.Store.Exists(ctx, id)
}

// reborn forgets what s knows of an id, as a DEL would: the id goes on under another name.
type reborn struct {
	tombstore.Store
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

func (r *reborn) Read(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
	return r.Store.Read(ctx, r.name(id), opts...)
}

func (r *reborn) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
) (tombstore.Session, error) {
	return r.Store.Write(ctx, r.name(id), data, ttl, opts...)
}

func (r *reborn) Touch(ctx context.Context, id string, ttl time.Duration) error {
	return r.Store.Touch(ctx, r.name(id), ttl)
}

func (r *reborn) Rotate(ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption) (tombstore.Session, error) {
	return r.Store.Rotate(ctx, r.name(oldID), r.name(newID), opts...)
}

func (r *reborn) Invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	return r.Store.Invalidate(ctx, r.name(id), opts...)
}

func (r *reborn) Exists(ctx context.Context, id string) (bool, error) {
	return r.Store.Exists(ctx, r.name(id))
}

func newReborn(s tombstore.Store) *reborn { return &reborn{Store: s, lives: map[string]int{}} }

// rebirth forgets what there was at every write.
func rebirth(s tombstore.Store) tombstore.Store {
	r := newReborn(s)
	return &broken{Store: r, write: func(
		ctx context.Context, id string, data []byte, ttl time.Duration, _ ...tombstore.WriteOption,
	) (tombstore.Session, error) {
		r.forget(id)
		return r.Write(ctx, id, data, ttl)
	}}
}

var mutants = map[string]struct {
	rule   string
	breaks func(s tombstore.Store) tombstore.Store
}{
	"ending deletes": {"Race/read, Invalidate, Write", func(s tombstore.Store) tombstore.Store {
		r := newReborn(s)
		return &broken{Store: r, invalidate: func(_ context.Context, id string, _ ...tombstore.InvalidateOption) error {
			r.forget(id)
			return nil
		}}
	}},
	"ending an absent id does nothing": {"Invalidate/absent", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, invalidate: func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
			if exists, err := s.Exists(ctx, id); err != nil || !exists {
				return err
			}
			return s.Invalidate(ctx, id, opts...)
		}}
	}},
	"ending ignores its condition": {"Invalidate/IfLive", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, invalidate: func(ctx context.Context, id string, _ ...tombstore.InvalidateOption) error {
			return s.Invalidate(ctx, id, tombstore.WithReason(tombstore.Revoked))
		}}
	}},
	"many have ended it": {"Race/one session, many endings", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, invalidate: func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
			if exists, err := s.Exists(ctx, id); err != nil || !exists {
				return tombstore.ErrInvalidated
			}
			runtime.Gosched()
			return s.Invalidate(ctx, id)
		}}
	}},
	"the last reason counts": {"Invalidate/again", func(s tombstore.Store) tombstore.Store {
		r := newReborn(s)
		return &broken{Store: r, invalidate: func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
			r.forget(id)
			return r.Invalidate(ctx, id, opts...)
		}}
	}},
	"the tombstone dies with the session": {"Invalidate/outlives", func(s tombstore.Store) tombstore.Store {
		r := newReborn(s)
		return &broken{Store: r, invalidate: func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
			defer time.AfterFunc(instant/2, func() { r.forget(id) })
			return r.Invalidate(ctx, id, opts...)
		}}
	}},
	"writing ignores tombstones": {"Race/read, Rotate, Write", rebirth},
	"writing ignores conditions": {"Write/If", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, _ ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			return s.Write(ctx, id, data, ttl)
		}}
	}},
	"comparing and writing are two steps": {"Race/one version", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			var o tombstore.WriteOptions
			for _, opt := range opts {
				opt(&o)
			}
			if now, err := s.Read(ctx, id); o.Match && (err != nil || now.Version != o.Version) {
				return tombstore.Session{}, tombstore.ErrConflict
			}
			runtime.Gosched()
			return s.Write(ctx, id, data, ttl)
		}}
	}},
	"writing starts a new life": {"Write/replaces", rebirth},
	"reading lends its memory": {"Read/data belongs", func(s tombstore.Store) tombstore.Store {
		var lent sync.Map
		return &broken{Store: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			data, _ := lent.LoadOrStore(id, session.Data)
			session.Data = data.([]byte)
			return session, err
		}}
	}},
	"two ids win one": {"Race/many sessions", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Rotate(ctx, oldID, newID, opts...)
			if errors.Is(err, tombstore.ErrConflict) {
				err = s.Invalidate(ctx, oldID)
			}
			return session, err
		}}
	}},
	"rotating is reading and writing": {"Race/Rotate against writers", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, rotate: func(
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
	"all reasons are one": {"Invalidate/any reason", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, invalidate: func(ctx context.Context, id string, _ ...tombstore.InvalidateOption) error {
			return s.Invalidate(ctx, id)
		}}
	}},
	"conditions ignore the TTL": {"Write/conditions restart", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			if len(opts) > 0 {
				ttl = instant
			}
			return s.Write(ctx, id, data, ttl, opts...)
		}}
	}},
	"touching does nothing": {"Touch/restarts", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, touch: func(context.Context, string, time.Duration) error { return nil }}
	}},
	"touching revives": {"Race/read, Invalidate, Touch", func(s tombstore.Store) tombstore.Store {
		r := newReborn(s)
		return &broken{Store: r, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			r.forget(id)
			_, err := r.Write(ctx, id, nil, ttl)
			return err
		}}
	}},
	"sliding does nothing": {"Read/Slide restarts", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, read: func(
			ctx context.Context, id string, _ ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			return s.Read(ctx, id)
		}}
	}},
	"rotating leaves the old id alive": {"Rotate/moves", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, rotate: func(
			ctx context.Context, oldID, newID string, _ ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, oldID)
			if err != nil {
				return session, err
			}
			return s.Write(ctx, newID, session.Data, hour)
		}}
	}},
	"rotating takes what it finds": {"Rotate/new id in use", func(s tombstore.Store) tombstore.Store {
		r := newReborn(s)
		return &broken{Store: r, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			r.forget(newID)
			return r.Rotate(ctx, oldID, newID, opts...)
		}}
	}},
	"rotating ignores its options": {"Rotate/WithData", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, rotate: func(
			ctx context.Context, oldID, newID string, _ ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			return s.Rotate(ctx, oldID, newID)
		}}
	}},
	"ended sessions exist": {"Exists", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, exists: func(ctx context.Context, id string) (bool, error) {
			_, err := s.Read(ctx, id)
			return err == nil || strings.Contains(err.Error(), "ended"), nil
		}}
	}},
	"failures look like absence": {"Errors/an ended context", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if err != nil {
				err = tombstore.ErrNotFound
			}
			return session, err
		}}
	}},
	"errors quote the id": {"Errors/carry", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			if err := s.Touch(ctx, id, ttl); err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			return nil
		}}
	}},
	"long ids are cut": {"Ids/empty or too long", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			return s.Touch(ctx, id[:min(len(id), 1024)], ttl)
		}}
	}},
	"any TTL is taken": {"TTL/", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, touch: func(ctx context.Context, id string, ttl time.Duration) error {
			return s.Touch(ctx, id, max(ttl, 1))
		}}
	}},
	"the crowd is served after the end": {"Race/Invalidate against a crowd", func(s tombstore.Store) tombstore.Store {
		return &broken{Store: s, read: func(ctx context.Context, id string, opts ...tombstore.ReadOption) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if len(opts) == 0 && err != nil {
				err = nil
			}
			return session, err
		}}
	}},
}
