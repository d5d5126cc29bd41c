package storetest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/tombstore/tombstore"
)

// watches is a store with Watch replaced.
type watches struct {
	whole
	watch func(ctx context.Context, id string) (context.Context, error)
}

// ownerWatches is a store with WatchOwner replaced.
type ownerWatches struct {
	whole
	watch func(ctx context.Context, owner string) (context.Context, error)
}

func (w *ownerWatches) WatchOwner(ctx context.Context, owner string) (context.Context, error) {
	return w.watch(ctx, owner)
}

// onWatchOwner replaces WatchOwner.
func onWatchOwner(
	watch func(ctx context.Context, s whole, owner string) (context.Context, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &ownerWatches{whole: s, watch: func(ctx context.Context, owner string) (context.Context, error) {
			return watch(ctx, s, owner)
		}}
	}
}

func (w *watches) Watch(ctx context.Context, id string) (context.Context, error) {
	return w.watch(ctx, id)
}

// onWatch replaces Watch.
func onWatch(
	watch func(ctx context.Context, s whole, id string) (context.Context, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &watches{whole: s, watch: func(ctx context.Context, id string) (context.Context, error) {
			return watch(ctx, s, id)
		}}
	}
}

// telling tells another cause than the store, or none.
func telling(cause func(s whole, id string, told error) error) func(whole) tombstore.Store {
	return onWatch(func(ctx context.Context, s whole, id string) (context.Context, error) {
		inner, err := s.Watch(ctx, id)
		if err != nil {
			return nil, err
		}
		return retold(ctx, inner, func(told error) error { return cause(s, id, told) }), nil
	})
}

// retold returns a context that ends with another cause than inner, or not at all.
func retold(ctx, inner context.Context, cause func(told error) error) context.Context {
	outer, end := context.WithCancelCause(ctx)
	context.AfterFunc(inner, func() {
		if err := cause(context.Cause(inner)); err != nil {
			end(err)
		}
	})
	return outer
}

// endsAt ends a watch before its time, when ends says so of what is about to be done to an id.
func endsAt(change func(s whole, ends func(id string)) *broken) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		all := map[string]context.CancelCauseFunc{} // the rules do one thing after another
		changed := change(s, func(ref string) {
			if end := all[ref]; end != nil {
				end(tombstore.ErrNotFound)
			}
		})
		return &watches{whole: changed, watch: func(ctx context.Context, id string) (context.Context, error) {
			ctx, all[tombstore.Ref(id)] = context.WithCancelCause(ctx)
			return s.Watch(ctx, id)
		}}
	}
}

// misses does not hear of what happens before it has begun.
var misses = onWatch(func(ctx context.Context, s whole, id string) (context.Context, error) {
	if _, err := s.Read(ctx, id); err != nil {
		return s.Watch(ctx, id)
	}
	time.Sleep(time.Millisecond)
	watched, err := s.Watch(ctx, id)
	if tombstore.NoSession(err) {
		return ctx, nil
	}
	return watched, err
})

var watchMutants = map[string]mutant{
	"no end is told": {"Watch/an end is told", telling(func(whole, string, error) error { return nil })},
	"the reason is not told": {"Watch/an end is told", telling(func(_ whole, _ string, told error) error {
		if errors.Is(told, tombstore.ErrInvalidated) {
			return tombstore.ErrInvalidated
		}
		return told
	})},
	"anything can be watched": {"Watch/what is not live", onWatch(func(
		ctx context.Context, s whole, id string,
	) (context.Context, error) {
		watched, err := s.Watch(ctx, id)
		if tombstore.NoSession(err) {
			return ctx, nil
		}
		return watched, err
	})},
	"no expiry is told": {"Watch/an expiry is told", telling(func(_ whole, _ string, told error) error {
		if errors.Is(told, tombstore.ErrNotFound) {
			return nil
		}
		return told
	})},
	"a session expires when it would have": {"Watch/a Touch moves the expiry", onWatch(func(
		ctx context.Context, s whole, id string,
	) (context.Context, error) {
		found, err := s.Read(ctx, id, tombstore.WithExpiry())
		if err != nil {
			return nil, err
		}
		ctx, end := context.WithCancelCause(ctx)
		// Early, since the rule does not wait for a timer that is late.
		time.AfterFunc(time.Until(found.ExpiresAt)/2, func() { end(tombstore.ErrNotFound) })
		return s.Watch(ctx, id)
	})},
	"a write ends the watch": {"Watch/what is done in a session", endsAt(func(s whole, ends func(string)) *broken {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			ends(tombstore.Ref(id))
			return s.Write(ctx, id, data, ttl, opts...)
		}}
	})},
	"a move ends the watch": {"Watch/follows a Rotate", endsAt(func(s whole, ends func(string)) *broken {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			ends(tombstore.Ref(oldID))
			return s.Rotate(ctx, oldID, newID, opts...)
		}}
	})},
	"what has moved is forgotten": {"Watch/follows a Rotate", telling(forgetMoved)},
	"Alone is told": {"Watch/goes on where Alone does not", endsAt(func(s whole, ends func(string)) *broken {
		return &broken{whole: s, invalidate: func(
			ctx context.Context, id string, opts ...tombstore.InvalidateOption,
		) error {
			if collect(opts).Alone {
				ends(tombstore.Ref(id))
			}
			return s.Invalidate(ctx, id, opts...)
		}}
	})},
	"the caller's end is not heard": {"Watch/the end of the caller's context", onWatch(func(
		ctx context.Context, s whole, id string,
	) (context.Context, error) {
		return s.Watch(context.WithoutCancel(ctx), id)
	})},
	"between two ids is an end": {"Watch/follows a renewal", endsAt(func(s whole, ends func(string)) *broken {
		return &broken{whole: s, begin: func(
			ctx context.Context, id string, v tombstore.Version,
		) (tombstore.Renewal, error) {
			ends(tombstore.Ref(id))
			return s.BeginRenewal(ctx, id, v)
		}}
	})},
	"giving up is an end":            {"Watch/an end between the halves", endsAt(givingUp)},
	"giving up is an end, for ever":  {"Watch/a renewal that was given up", endsAt(givingUp)},
	"what has renewed is forgotten":  {"Watch/follows a renewal", telling(forgetMoved)},
	"an end meanwhile is missed":     {"Race/Watch against Invalidate", misses},
	"an end after a move is missed":  {"Race/Watch against Rotate", misses},
	"an end in a renewal is missed":  {"Race/Watch against a renewal", misses},
	"one of an owner's ends is told": {"Watch/InvalidateOwner", tellOnce},
	"no end of an owner is told": {"WatchOwner/InvalidateOwner is told", onWatchOwner(func(
		ctx context.Context, _ whole, _ string,
	) (context.Context, error) {
		return ctx, nil
	})},
	"the reason of an owner's end is not told": {"WatchOwner/InvalidateOwner is told", onWatchOwner(func(
		ctx context.Context, s whole, owner string,
	) (context.Context, error) {
		inner, err := s.WatchOwner(ctx, owner)
		if err != nil {
			return nil, err
		}
		return retold(ctx, inner, func(error) error { return &tombstore.InvalidatedError{Reason: tombstore.Revoked} }), nil
	})},
	"with Except an owner's end is not told": {"WatchOwner/InvalidateOwner is told", onOwnerEnd(func(
		ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions,
	) (int, error) {
		return endListed(ctx, s, owner, o)
	})},
	"one session's end is told as the owner's": {"WatchOwner/nothing else", func(s whole) tombstore.Store {
		return &binds{whole: s, invalidateOwned: func(
			ctx context.Context, owner, _ string, _ ...tombstore.InvalidateOption,
		) error {
			_, err := s.InvalidateOwner(ctx, owner)
			return err
		}}
	}},
	"an owner's first login is told": {"WatchOwner/nothing else", func(s whole) tombstore.Store {
		ends := map[string]context.CancelFunc{} // the rules do one thing after another
		reserves := onReserve(func(
			ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
		) (tombstore.Binding, error) {
			if end := ends[login.Owner]; end != nil && login.Generation < 0 {
				end()
			}
			return s.Reserve(ctx, id, login, opts...)
		})(s).(whole)
		return onWatchOwner(func(ctx context.Context, _ whole, owner string) (context.Context, error) {
			ctx, ends[tombstore.Ref(owner)] = context.WithCancel(ctx)
			return ctx, nil
		})(reserves)
	}},
	"an owner's end of before is told": {"WatchOwner/what was ended before", func(s whole) tombstore.Store {
		all := map[string]bool{} // the rules do one thing after another
		ends := onOwnerEnd(func(
			ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions,
		) (int, error) {
			all[owner] = true
			return endListed(ctx, s, owner, o)
		})(s).(whole)
		return onWatchOwner(func(ctx context.Context, s whole, owner string) (context.Context, error) {
			if all[owner] {
				ended, end := context.WithCancel(ctx)
				end()
				return ended, nil
			}
			return ctx, nil
		})(ends)
	}},
	"the caller's end is not heard by whoever watches an owner": {"WatchOwner/errors", onWatchOwner(func(
		ctx context.Context, s whole, owner string,
	) (context.Context, error) {
		return s.WatchOwner(context.WithoutCancel(ctx), owner)
	})},
	"an owner's end meanwhile is missed": {"Race/WatchOwner", onWatchOwner(func(
		ctx context.Context, s whole, owner string,
	) (context.Context, error) {
		outer, end := context.WithCancelCause(ctx)
		time.AfterFunc(time.Millisecond, func() {
			if inner, err := s.WatchOwner(ctx, owner); err == nil {
				context.AfterFunc(inner, func() { end(context.Cause(inner)) })
			}
		})
		return outer, nil
	})},
}

// forgetMoved tells nothing of a session that has left the id under which it is watched.
func forgetMoved(s whole, id string, told error) error {
	var ended *tombstore.InvalidatedError
	if _, err := s.Read(context.Background(), id); errors.As(err, &ended) && ended.Reason == tombstore.Rotated {
		return nil
	}
	return told
}

func givingUp(s whole, ends func(ref string)) *broken {
	return &broken{whole: s, cancel: func(ctx context.Context, r tombstore.Renewal) error {
		ends(r.Ref)
		return s.CancelRenewal(ctx, r)
	}}
}

// tellOnce tells of one end.
func tellOnce(s whole) tombstore.Store {
	var told atomic.Bool
	return telling(func(_ whole, _ string, cause error) error {
		if told.CompareAndSwap(false, true) {
			return cause
		}
		return nil
	})(s)
}
