package storetest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tombstore/tombstore"
)

// binds is a store with some methods of a Binder replaced, and those that have to do with a Binding.
type binds struct {
	whole
	beginLogin func(ctx context.Context, owner string) (tombstore.Login, error)
	reserve    func(
		ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
	) (tombstore.Binding, error)
	adopt func(
		ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
	) (tombstore.Session, error)
	release         func(ctx context.Context, b tombstore.Binding) error
	sessions        func(ctx context.Context, owner string) ([]tombstore.OwnedSession, error)
	invalidateOwned func(ctx context.Context, owner, ref string, opts ...tombstore.InvalidateOption) error
	invalidateOwner func(ctx context.Context, owner string, opts ...tombstore.InvalidateOption) (int, error)
}

func (b *binds) BeginLogin(ctx context.Context, owner string) (tombstore.Login, error) {
	if b.beginLogin != nil {
		return b.beginLogin(ctx, owner)
	}
	return b.whole.BeginLogin(ctx, owner)
}

func (b *binds) Reserve(
	ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
) (tombstore.Binding, error) {
	if b.reserve != nil {
		return b.reserve(ctx, id, login, opts...)
	}
	return b.whole.Reserve(ctx, id, login, opts...)
}

func (b *binds) Adopt(
	ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
) (tombstore.Session, error) {
	if b.adopt != nil {
		return b.adopt(ctx, id, login, opts...)
	}
	return b.whole.Adopt(ctx, id, login, opts...)
}

func (b *binds) Release(ctx context.Context, binding tombstore.Binding) error {
	if b.release != nil {
		return b.release(ctx, binding)
	}
	return b.whole.Release(ctx, binding)
}

func (b *binds) Sessions(ctx context.Context, owner string) ([]tombstore.OwnedSession, error) {
	if b.sessions != nil {
		return b.sessions(ctx, owner)
	}
	return b.whole.Sessions(ctx, owner)
}

func (b *binds) InvalidateOwned(
	ctx context.Context, owner, ref string, opts ...tombstore.InvalidateOption,
) error {
	if b.invalidateOwned != nil {
		return b.invalidateOwned(ctx, owner, ref, opts...)
	}
	return b.whole.InvalidateOwned(ctx, owner, ref, opts...)
}

func (b *binds) InvalidateOwner(
	ctx context.Context, owner string, opts ...tombstore.InvalidateOption,
) (int, error) {
	if b.invalidateOwner != nil {
		return b.invalidateOwner(ctx, owner, opts...)
	}
	return b.whole.InvalidateOwner(ctx, owner, opts...)
}

// onReserve replaces what is reserved.
func onReserve(
	reserve func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Binding, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &binds{whole: s, reserve: func(
			ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
		) (tombstore.Binding, error) {
			return reserve(ctx, s, id, login, opts)
		}}
	}
}

// onAdopt replaces Adopt.
func onAdopt(
	adopt func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Session, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &binds{whole: s, adopt: func(
			ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
		) (tombstore.Session, error) {
			return adopt(ctx, s, id, login, opts)
		}}
	}
}

// onOwnerEnd replaces InvalidateOwner.
func onOwnerEnd(
	end func(ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions) (int, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &binds{whole: s, invalidateOwner: func(
			ctx context.Context, owner string, opts ...tombstore.InvalidateOption,
		) (int, error) {
			return end(ctx, s, owner, collect(opts))
		}}
	}
}

// endListed ends what Sessions lists, but for one session.
func endListed(ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions) (n int, err error) {
	all, err := s.Sessions(ctx, owner)
	for _, found := range all {
		if o.Except != nil && found.Ref == tombstore.Ref(*o.Except) {
			continue
		}
		if err := s.InvalidateOwned(ctx, owner, found.Ref, reasonOf(o)...); err != nil {
			return n, err
		}
		n++
	}
	return n, err
}

// reasonOf returns the reason of an end as options.
func reasonOf(o tombstore.InvalidateOptions) []tombstore.InvalidateOption {
	return []tombstore.InvalidateOption{tombstore.WithReason(o.Reason)}
}

// unbinding writes and moves sessions in a way that forgets the binding.
func unbinding(s whole) tombstore.Store {
	return &broken{whole: s, write: func(
		ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
	) (tombstore.Session, error) {
		if o := collect(opts); o.Binding != nil {
			return s.Write(ctx, id, data, ttl, tombstore.IfAbsent())
		}
		return s.Write(ctx, id, data, ttl, opts...)
	}}
}

// onBinding replaces a Rotate that logs in.
func onBinding(
	change func(ctx context.Context, s whole, oldID, newID string, o tombstore.RotateOptions) (tombstore.Session, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			if o := collect(opts); o.Binding != nil {
				return change(ctx, s, oldID, newID, o)
			}
			return s.Rotate(ctx, oldID, newID, opts...)
		}}
	}
}

// unboundRenewal finishes a renewal without the login.
var unboundRenewal = onFinish(func(
	ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	r.Binding = nil
	return s.FinishRenewal(ctx, r, newID, data, ttl)
})

// reboundRenewal finishes a renewal with another binding.
func reboundRenewal(change func(b *tombstore.Binding, oldRef, newRef string)) func(whole) tombstore.Store {
	return onFinish(func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		if r.Binding != nil {
			b := *r.Binding
			change(&b, r.Ref, tombstore.Ref(newID))
			r.Binding = &b
		}
		return s.FinishRenewal(ctx, r, newID, data, ttl)
	})
}

// revivesExpired stores a session whose renewal is finished after its deadline.
var revivesExpired = refusedBy(func(err error) bool { return !errors.Is(err, tombstore.ErrNotFound) })

// fresh begins a login anew if it is stale.
func fresh(
	ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption, owners *sync.Map,
) (tombstore.Binding, error) {
	b, err := s.Reserve(ctx, id, login, opts...)
	owner, known := owners.Load(login.Owner)
	if errors.Is(err, tombstore.ErrStaleLogin) && known {
		if login, err = s.BeginLogin(ctx, owner.(string)); err == nil {
			b, err = s.Reserve(ctx, id, login, opts...)
		}
	}
	return b, err
}

// neverStale lets every login in whose owner it has seen, after a while.
func neverStale(s whole) tombstore.Store {
	var owners sync.Map
	return &binds{
		whole: s,
		beginLogin: func(ctx context.Context, owner string) (tombstore.Login, error) {
			login, err := s.BeginLogin(ctx, owner)
			owners.Store(login.Owner, owner)
			return login, err
		},
		reserve: func(
			ctx context.Context, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
		) (tombstore.Binding, error) {
			time.Sleep(time.Millisecond)
			return fresh(ctx, s, id, login, opts, &owners)
		},
	}
}

// altered reserves with other options, and returns another binding.
func altered(
	options func(ctx context.Context, s whole, o *tombstore.ReserveOptions), binding func(b *tombstore.Binding),
) func(whole) tombstore.Store {
	return onReserve(func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Binding, error) {
		o := collect(opts)
		options(ctx, s, &o)
		b, err := s.Reserve(ctx, id, login, func(to *tombstore.ReserveOptions) { *to = o })
		binding(&b)
		return b, err
	})
}

var ownerMutants = map[string]mutant{
	"further owners are forgotten": {"Reserve/several owners", altered(
		func(_ context.Context, _ whole, o *tombstore.ReserveOptions) { o.Also, o.AlsoFinal = nil, nil },
		func(*tombstore.Binding) {})},
	"a move keeps the owner of the login only": {"Reserve/several owners: another login leaves them all", altered(
		func(context.Context, whole, *tombstore.ReserveOptions) {},
		func(b *tombstore.Binding) { b.Owners = b.Owners[:1] })},
	"a final owner begins again": {"Reserve/a final owner ends once and for all", altered(
		func(ctx context.Context, s whole, o *tombstore.ReserveOptions) {
			for _, name := range o.AlsoFinal {
				login, _ := s.BeginLogin(ctx, name)
				o.Also = append(o.Also, login)
			}
			o.AlsoFinal = nil
		}, func(*tombstore.Binding) {})},
	"InPlaceOf binds nobody": {"Reserve/InPlaceOf is for one session", altered(
		func(context.Context, whole, *tombstore.ReserveOptions) {},
		func(b *tombstore.Binding) { b.InPlaceOf = "" })},
	"the binding is forgotten": {"Owner/a session is bound", unbinding},
	"a bound write takes what it finds": {"Owner/Bound is IfAbsent", func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			session, err := s.Write(ctx, id, data, ttl, opts...)
			if o := collect(opts); o.Binding != nil && errors.Is(err, tombstore.ErrConflict) {
				return s.Write(ctx, id, data, ttl)
			}
			return session, err
		}}
	}},
	"a binding is for any id": {"Owner/a binding is for one id", func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			if o := collect(opts); o.Binding != nil {
				b := *o.Binding
				b.Ref = tombstore.Ref(id)
				opts = append(opts, tombstore.Bound(b))
			}
			return s.Write(ctx, id, data, ttl, opts...)
		}}
	}},
	"logging in goes on with the old life": {"Owner/a login by Rotate begins a new life", onBinding(func(
		ctx context.Context, s whole, oldID, newID string, o tombstore.RotateOptions,
	) (tombstore.Session, error) {
		return s.Rotate(ctx, oldID, newID, tombstore.WithData(o.Data, o.TTL))
	})},
	"logging in drops the data": {"Owner/a login by Rotate keeps the data", onBinding(func(
		ctx context.Context, s whole, oldID, newID string, o tombstore.RotateOptions,
	) (tombstore.Session, error) {
		return s.Rotate(ctx, oldID, newID, tombstore.WithBinding(*o.Binding), tombstore.WithData(nil, hour))
	})},
	"a move loses the owner": {"Owner/Rotate keeps", unlinked},
	"a renewal loses the owner": {"Owner/a renewal keeps", func(s whole) tombstore.Store {
		return onFinish(func(
			ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
		) (tombstore.Session, error) {
			return linkNowhere(ctx, s, r, newID, data, ttl)
		})(s)
	}},
	"the first owner keeps the session": {"Owner/another user logs in with the session", onBinding(func(
		ctx context.Context, s whole, oldID, newID string, o tombstore.RotateOptions,
	) (tombstore.Session, error) {
		return s.Rotate(ctx, oldID, newID)
	})},
	"a renewal forgets the binding": {"Owner/a login by renewal begins", unboundRenewal},
	"a binding is for any id, in a renewal": {"Owner/a binding is for one id, in a renewal too", reboundRenewal(
		func(b *tombstore.Binding, _, newRef string) { b.Ref = newRef })},
	"InPlaceOf is for any renewal": {"Reserve/InPlaceOf is for one renewal", reboundRenewal(
		func(b *tombstore.Binding, oldRef, _ string) { b.InPlaceOf = oldRef })},
	"the first owner keeps the session, in a renewal": {"Owner/another user logs in by a renewal", unboundRenewal},
	"a login brings back what has expired":            {"Owner/a login by renewal does not bring back", revivesExpired},
	"a login has no time": {"Reserve/a login is good for an hour", onReserve(func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Binding, error) {
		login.At = time.Now()
		return s.Reserve(ctx, id, login, opts...)
	})},
	"any deadline is one": {"Reserve/errors", onReserve(func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Binding, error) {
		b, err := s.Reserve(ctx, id, login, opts...)
		if errors.Is(err, tombstore.ErrNoDeadline) {
			return s.Reserve(ctx, id, login, tombstore.Until(time.Now().Add(hour)))
		}
		return b, err
	})},
	"a login is let in that began before":       {"InvalidateOwner/a login that has begun", neverStale},
	"a login is let in that began before, once": {"Race/logins that have begun against InvalidateOwner", neverStale},
	"adopting writes nothing": {"Adopt/a session becomes", onAdopt(func(
		ctx context.Context, s whole, id string, _ tombstore.Login, _ []tombstore.ReserveOption,
	) (tombstore.Session, error) {
		return s.Read(ctx, id)
	})},
	"adopting takes any session": {"Adopt/errors", onAdopt(func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Session, error) {
		session, err := s.Adopt(ctx, id, login, opts...)
		if errors.Is(err, tombstore.ErrConflict) {
			return s.Read(ctx, id)
		}
		return session, err
	})},
	"adopting tells of what was not adopted": {"Race/sessions are adopted", onAdopt(func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Session, error) {
		session, err := s.Adopt(ctx, id, login, opts...)
		if errors.Is(err, tombstore.ErrInvalidated) {
			return tombstore.Session{}, nil
		}
		return session, err
	})},
	"Thorough ends all": {"InvalidateOwner/Thorough", onOwnerEnd(func(
		ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions,
	) (int, error) {
		n, err := s.InvalidateOwner(ctx, owner, reasonOf(o)...)
		return n - 1, err
	})},
	"giving up forgets to end": {"Release/", func(s whole) tombstore.Store {
		return &binds{whole: s, release: func(context.Context, tombstore.Binding) error { return nil }}
	}},
	"anybody's session is the owner's": {"InvalidateOwned/only", func(s whole) tombstore.Store {
		return &binds{whole: s, invalidateOwned: func(
			ctx context.Context, _, ref string, opts ...tombstore.InvalidateOption,
		) error {
			return s.InvalidateRef(ctx, ref, opts...)
		}}
	}},
	"an owned session is not followed": {"InvalidateOwned/follows", func(s whole) tombstore.Store {
		return &binds{whole: s, invalidateOwned: func(
			ctx context.Context, owner, ref string, opts ...tombstore.InvalidateOption,
		) error {
			all, err := s.Sessions(ctx, owner)
			for _, found := range all {
				if found.Ref == ref {
					return s.InvalidateRef(ctx, ref, opts...)
				}
			}
			return errors.Join(err, tombstore.ErrNotFound)
		}}
	}},
	"ended sessions are listed": {"Sessions/what is live", func(s whole) tombstore.Store {
		var seen sync.Map
		return &binds{whole: s, sessions: func(ctx context.Context, owner string) ([]tombstore.OwnedSession, error) {
			all, err := s.Sessions(ctx, owner)
			if before, ok := seen.LoadOrStore(owner, all); ok && len(all) < len(before.([]tombstore.OwnedSession)) {
				return before.([]tombstore.OwnedSession), err
			}
			return all, err
		}}
	}},
	"logging out everywhere is a walk": {"InvalidateOwner/what is reserved", onOwnerEnd(endListed)},
	"logging out everywhere is a walk, with logins": {
		"InvalidateOwner/between the halves of a login", onOwnerEnd(endListed)},
	"logging out everywhere is a walk, with renewals": {
		"InvalidateOwner/between the halves of a renewal", onOwnerEnd(endListed)},
	"the walk is behind": {"Race/all are renewed against InvalidateOwner: all are out", func(s whole) tombstore.Store {
		slow := &broken{whole: s, begin: func(
			ctx context.Context, id string, v tombstore.Version,
		) (tombstore.Renewal, error) {
			r, err := s.BeginRenewal(ctx, id, v)
			time.Sleep(time.Millisecond) // most are between two ids when they are listed
			return r, err
		}}
		return onOwnerEnd(endListed)(slow)
	}},
	"the reason is not heard": {"InvalidateOwner/reasons", onOwnerEnd(func(
		ctx context.Context, s whole, owner string, _ tombstore.InvalidateOptions,
	) (int, error) {
		return s.InvalidateOwner(ctx, owner)
	})},
	"Except is not heard": {"InvalidateOwner/Except", onOwnerEnd(func(
		ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions,
	) (int, error) {
		return s.InvalidateOwner(ctx, owner, reasonOf(o)...)
	})},
	"Except takes anybody's": {"InvalidateOwner/Except must be", onOwnerEnd(func(
		ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions,
	) (int, error) {
		n, err := s.InvalidateOwner(ctx, owner, append(reasonOf(o), tombstore.Except(*o.Except))...)
		if errors.Is(err, tombstore.ErrNotFound) {
			return s.InvalidateOwner(ctx, owner, reasonOf(o)...)
		}
		return n, err
	})},
	"Except knows the first id only": {"Race/all move against InvalidateOwner Except", onOwnerEnd(func(
		ctx context.Context, s whole, owner string, o tombstore.InvalidateOptions,
	) (int, error) {
		if o.Except == nil {
			return s.InvalidateOwner(ctx, owner, reasonOf(o)...)
		}
		return endListed(ctx, s, owner, o)
	})},
}
