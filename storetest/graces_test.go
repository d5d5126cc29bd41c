package storetest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tombstore/tombstore"
)

var graceMutants = map[string]mutant{
	"no grace is granted": {"Grace/the old id reads what the new one has", onRotate(func(
		o tombstore.RotateOptions,
	) []tombstore.RotateOption {
		o.Grace = min(o.Grace, 0)
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"there is always one": {"Grace/not without it", onRotate(func(o tombstore.RotateOptions) []tombstore.RotateOption {
		if o.Grace == 0 && o.Binding == nil && o.Lifetime == nil {
			o.Grace = time.Minute
		}
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"a grace goes on after its time": {"Grace/it is over after its time", onRotate(func(
		o tombstore.RotateOptions,
	) []tombstore.RotateOption {
		if o.Grace > 0 {
			o.Grace = time.Minute
		}
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"a grace may be of any length": {"Grace/errors", onRotate(func(o tombstore.RotateOptions) []tombstore.RotateOption {
		o.Grace = min(max(o.Grace, 0), time.Minute)
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"a grace at a login": {"Grace/never at a login", onRotate(func(o tombstore.RotateOptions) []tombstore.RotateOption {
		if o.Binding != nil {
			o.Grace = 0
		}
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"a grace lets touch": {"Grace/the old id does nothing but read", following(func(
		s whole, f *followed,
	) *broken {
		return &broken{touch: func(ctx context.Context, id string, ttl time.Duration) error {
			return s.Touch(ctx, f.now(id), ttl)
		}}
	})},
	"a grace lets write": {"Grace/the old id does nothing but read", following(func(
		s whole, f *followed,
	) *broken {
		return &broken{write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			return s.Write(ctx, f.now(id), data, ttl, opts...)
		}}
	})},
	"a grace lets exist": {"Grace/the old id does nothing but read", following(func(
		s whole, f *followed,
	) *broken {
		return &broken{exists: func(ctx context.Context, id string) (bool, error) { return s.Exists(ctx, f.now(id)) }}
	})},
	"a grace lets renew": {"Grace/the old id does not begin a renewal", following(func(
		s whole, f *followed,
	) *broken {
		return &broken{begin: func(ctx context.Context, id string, v tombstore.Version) (tombstore.Renewal, error) {
			return s.BeginRenewal(ctx, f.now(id), v)
		}}
	})},
	"a grace lets slide": {"Grace/a Slide restarts nothing", following(func(
		s whole, f *followed,
	) *broken {
		return &broken{read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			return s.Read(ctx, f.now(id), opts...)
		}}
	})},
	"a grace outlives an end":             {"Grace/an end ends it", remembering},
	"a grace outlives an owner's end":     {"Grace/of an owner's session", remembering},
	"a grace outlives a login":            {"Grace/a login ends it", remembering},
	"a grace outlives a renewal":          {"Grace/between the halves of a renewal nobody reads", remembering},
	"a grace outlives another move":       {"Grace/of several moves", remembering},
	"a grace outlives the session":        {"Grace/the session expires", remembering},
	"a grace reads after an end, at once": {"Grace/nobody reads after an end", remembering},
}

// followed knows as which id each one goes on for which there is a grace.
type followed struct{ next sync.Map }

func (f *followed) now(id string) string {
	if next, ok := f.next.Load(id); ok {
		return next.(string)
	}
	return id
}

// following gives a broken store what each id goes on as.
func following(breaks func(s whole, f *followed) *broken) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		f := &followed{}
		b := breaks(s, f)
		b.whole = s
		b.rotate = func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Rotate(ctx, oldID, newID, opts...)
			if err == nil && collect(opts).Grace > 0 {
				f.next.Store(oldID, newID)
			}
			return session, err
		}
		return b
	}
}

// remembering answers for an id that was left with the session that it has read there before, as a
// cache would that does not hear of ends.
func remembering(s whole) tombstore.Store {
	var read sync.Map
	b := following(func(s whole, f *followed) *broken {
		return &broken{read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if f.now(id) == id {
				return session, err
			}
			if err == nil {
				read.Store(id, session)
			} else if before, ok := read.Load(id); ok && errors.Is(err, tombstore.ErrInvalidated) {
				return before.(tombstore.Session), nil
			} else if session, gone := s.Read(ctx, f.now(id)); gone == nil {
				return session, nil
			}
			return session, err
		}}
	})(s).(*broken)
	moves := b.rotate
	b.rotate = func(
		ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
	) (tombstore.Session, error) {
		session, err := moves(ctx, oldID, newID, opts...)
		if err == nil {
			_, _ = b.read(ctx, oldID)
		}
		return session, err
	}
	return b
}
