package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync"
	"time"

	"github.com/tombstore/tombstore"
)

// The functions that begin with "on" replace one method of a store.

func onRead(
	read func(
		ctx context.Context, s whole, id string, opts []tombstore.ReadOption,
	) (tombstore.Session, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			return read(ctx, s, id, opts)
		}}
	}
}

// onReplacing replaces the condition of a Write with Replacing.
func onReplacing(condition func(s tombstore.Session) []tombstore.WriteOption) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			if o := collect(opts); o.Present && o.Replaced.Version != 0 {
				opts = condition(o.Replaced)
			}
			return s.Write(ctx, id, data, ttl, opts...)
		}}
	}
}

// onRotate replaces the options of Rotate.
func onRotate(change func(o tombstore.RotateOptions) []tombstore.RotateOption) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			return s.Rotate(ctx, oldID, newID, change(collect(opts))...)
		}}
	}
}

func onInvalidate(
	end func(ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption) error,
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, invalidate: func(
			ctx context.Context, id string, opts ...tombstore.InvalidateOption,
		) error {
			return end(ctx, s, id, opts)
		}}
	}
}

func onInvalidateRef(
	end func(ctx context.Context, s whole, ref string, opts []tombstore.InvalidateOption) error,
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, invalidateRef: func(
			ctx context.Context, ref string, opts ...tombstore.InvalidateOption,
		) error {
			return end(ctx, s, ref, opts)
		}}
	}
}

func onBegin(
	begin func(ctx context.Context, s whole, id string, v tombstore.Version) (tombstore.Renewal, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, begin: func(
			ctx context.Context, id string, v tombstore.Version,
		) (tombstore.Renewal, error) {
			return begin(ctx, s, id, v)
		}}
	}
}

func onFinish(
	finish func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error),
) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, finish: func(
			ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
		) (tombstore.Session, error) {
			return finish(ctx, s, r, newID, data, ttl)
		}}
	}
}

// refusedBy makes FinishRenewal refuse only what refuses says, and store the session otherwise.
func refusedBy(refuses func(err error) bool) func(whole) tombstore.Store {
	return onFinish(func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		session, err := s.FinishRenewal(ctx, r, newID, data, ttl)
		if err != nil && tombstore.NoSession(err) && !refuses(err) {
			return s.Write(ctx, newID, data, ttl, tombstore.IfAbsent())
		}
		return session, err
	})
}

// rotated reports whether err says that a session has moved and was not ended otherwise.
func rotated(err error) bool {
	var ended *tombstore.InvalidatedError
	return errors.As(err, &ended) && ended.Reason == tombstore.Rotated
}

// stopAtTombstones makes ends of what has ended already do nothing but say so.
func stopAtTombstones(
	ctx context.Context, s whole, id string, o tombstore.InvalidateOptions, opts []tombstore.InvalidateOption,
) error {
	if _, err := s.Read(ctx, id); errors.Is(err, tombstore.ErrInvalidated) {
		if o.Live {
			return err
		}
		return nil
	}
	return s.Invalidate(ctx, id, opts...)
}

// leavesTombstones makes ends of what has ended already do nothing.
var leavesTombstones = onInvalidate(func(
	ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
) error {
	return stopAtTombstones(ctx, s, id, collect(opts), opts)
})

// linkNowhere finishes a renewal, but what the old id leads to is not the new one.
func linkNowhere(
	ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if session, err := s.FinishRenewal(ctx, r, tombstore.NewID(), nil, ttl); err != nil {
		return session, err
	}
	return s.Write(ctx, newID, data, ttl, tombstore.IfAbsent())
}

// linkLate stores the new session first, and names it as the successor afterwards.
func linkLate(s whole) tombstore.Store {
	r := newReborn(s)
	return &broken{whole: r, finish: func(
		ctx context.Context, renewal tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		session, err := r.Write(ctx, newID, data, ttl, tombstore.IfAbsent())
		if err != nil {
			return session, err
		}
		runtime.Gosched()
		r.forget(newID) // what is under the id's next name is linked
		if session, err = r.FinishRenewal(ctx, renewal, newID, data, ttl); err != nil {
			r.recall(newID)
		}
		return session, err
	}}
}

// unlinked rotates without a successor.
func unlinked(s whole) tombstore.Store {
	return &broken{whole: s, rotate: func(
		ctx context.Context, oldID, newID string, _ ...tombstore.RotateOption,
	) (tombstore.Session, error) {
		session, err := s.Read(ctx, oldID)
		if err == nil {
			err = s.Invalidate(ctx, oldID, tombstore.IfLive(), tombstore.WithReason(tombstore.Rotated))
		}
		if err != nil {
			return tombstore.Session{}, err
		}
		return s.Write(ctx, newID, session.Data, hour, tombstore.IfAbsent())
	}}
}

// oneHop follows a session that has moved once, and not to where nothing is live if onlyLive is
// set.
func oneHop(onlyLive bool) func(s whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		var successors sync.Map
		return &broken{
			whole: s,
			rotate: func(
				ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
			) (tombstore.Session, error) {
				successors.Store(oldID, newID)
				return s.Rotate(ctx, oldID, newID, opts...)
			},
			invalidate: func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
				err := s.Invalidate(ctx, id, append(opts, tombstore.Alone())...)
				next, moved := successors.Load(id)
				if !moved {
					return err
				}
				if exists, _ := s.Exists(ctx, next.(string)); !exists && onlyLive {
					return err
				}
				return s.Invalidate(ctx, next.(string), append(opts, tombstore.Alone())...)
			},
		}
	}
}

var moveMutants = map[string]mutant{
	"an end stops at the first tombstone": {"Invalidate/follows a session", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		return s.Invalidate(ctx, id, append(opts, tombstore.Alone())...)
	})},
	"an end stops where an earlier one has been": {"Invalidate/goes on", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		_, err := s.Read(ctx, id)
		if errors.Is(err, tombstore.ErrInvalidated) && !rotated(err) {
			return nil
		}
		return s.Invalidate(ctx, id, append(opts, tombstore.Alone())...)
	})},
	"an end follows one move":                {"Invalidate/follows through many", oneHop(false)},
	"an end follows to live sessions only":   {"Invalidate/reaches", oneHop(true)},
	"rotating names no successor":            {"Race/Rotate against Invalidate", unlinked},
	"rotating in a row names no successor":   {"Race/many rotations in a row", unlinked},
	"an old id does not lead to the session": {"Invalidate/follows a session", unlinked},
	"IfLive does not follow": {"Invalidate/IfLive follows", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		if collect(opts).Live {
			opts = append(opts, tombstore.Alone())
		}
		return s.Invalidate(ctx, id, opts...)
	})},
	"IfLive answers for the first id": {"Invalidate/IfLive follows", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		_, met := s.Read(ctx, id)
		if err := s.Invalidate(ctx, id, opts...); err != nil || !collect(opts).Live {
			return err
		}
		return met
	})},
	"all who follow have ended it": {"Race/one session, many ids", onInvalidate(func(
		ctx context.Context, s whole, id string, _ []tombstore.InvalidateOption,
	) error {
		return s.Invalidate(ctx, id)
	})},
	"Alone is not heard": {"Invalidate/Alone", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		o := collect(opts)
		o.Alone = false
		return s.Invalidate(ctx, id, func(to *tombstore.InvalidateOptions) { *to = o })
	})},
	"a step of a renewal is a logout": {"Invalidate/with the reason Rotated", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		if collect(opts).Reason == tombstore.Rotated {
			opts = append(opts, tombstore.WithReason(tombstore.Logout))
		}
		return s.Invalidate(ctx, id, opts...)
	})},

	"Replacing ignores the other life": {
		"Write/Replacing spares",
		onReplacing(func(tombstore.Session) []tombstore.WriteOption {
			return []tombstore.WriteOption{tombstore.IfPresent()}
		}),
	},
	"Replacing wants the latest version": {
		"Write/Replacing an older version",
		onReplacing(func(s tombstore.Session) []tombstore.WriteOption {
			return []tombstore.WriteOption{tombstore.IfVersion(s.Version)}
		}),
	},
	"Replacing creates": {
		"Write/Replacing does not create",
		onReplacing(func(tombstore.Session) []tombstore.WriteOption { return nil }),
	},
	"Replacing wants a session of the store": {
		"Write/Replacing a session that no store",
		onReplacing(func(s tombstore.Session) []tombstore.WriteOption {
			if s.Version == 1 {
				return []tombstore.WriteOption{tombstore.IfAbsent()}
			}
			return []tombstore.WriteOption{tombstore.Replacing(s)}
		}),
	},
	"Replacing starts a new life":       {"Write/Replacing keeps", rebirth},
	"what has moved cannot be replaced": {"Rotate/what it returns", newestIsForeign},
	"nobody knows when it expires": {"Read/WithExpiry", onRead(func(
		ctx context.Context, s whole, id string, opts []tombstore.ReadOption,
	) (tombstore.Session, error) {
		session, err := s.Read(ctx, id, opts...)
		session.ExpiresAt = time.Time{}
		return session, err
	})},
	"everybody is told when it expires": {"Read/WithExpiry", onRead(func(
		ctx context.Context, s whole, id string, opts []tombstore.ReadOption,
	) (tombstore.Session, error) {
		return s.Read(ctx, id, append(opts, tombstore.WithExpiry())...)
	})},
	"what is shared is old": {"Read/Shared", func(s whole) tombstore.Store {
		var lent sync.Map
		return &broken{whole: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if collect(opts).Shared {
				data, _ := lent.LoadOrStore(id, session.Data)
				session.Data = data.([]byte)
			}
			return session, err
		}}
	}},
	"an error is lent": {"Read/an error", func(s whole) tombstore.Store {
		var lent sync.Map
		return &broken{whole: s, read: func(
			ctx context.Context, id string, opts ...tombstore.ReadOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, id, opts...)
			if err != nil {
				first, _ := lent.LoadOrStore(id, err)
				err = first.(error)
			}
			return session, err
		}}
	}},
	"rotating ignores the version": {"Rotate/IfUnchanged", onRotate(
		func(o tombstore.RotateOptions) []tombstore.RotateOption {
			o.Version = 0
			return []tombstore.RotateOption{func(to *tombstore.RotateOptions) { *to = o }}
		},
	)},
	"comparing and rotating are two steps": {"Race/Rotate against writers If", func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			if now, err := s.Read(ctx, oldID); err != nil || now.Version != collect(opts).Version {
				return tombstore.Session{}, tombstore.ErrConflict
			}
			time.Sleep(time.Millisecond)
			return s.Rotate(ctx, oldID, newID)
		}}
	}},
}

// newestIsForeign refuses to replace the very version that is stored.
func newestIsForeign(s whole) tombstore.Store {
	return &broken{whole: s, write: func(
		ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
	) (tombstore.Session, error) {
		o := collect(opts)
		if now, err := s.Read(ctx, id); err == nil && o.Present && now.Version == o.Replaced.Version {
			return tombstore.Session{}, tombstore.ErrConflict
		}
		return s.Write(ctx, id, data, ttl, opts...)
	}}
}

var renewalMutants = map[string]mutant{
	"renewing deletes the old id": {"Renewal/moves", beginDeletes},
	"a late save finds nothing":   {"Race/read, BeginRenewal, Write,", beginDeletes},
	"a renewal ignores its version": {"BeginRenewal/version", onBegin(func(
		ctx context.Context, s whole, id string, _ tombstore.Version,
	) (tombstore.Renewal, error) {
		return s.BeginRenewal(ctx, id, 0)
	})},
	"a renewal of nothing begins": {"BeginRenewal/absent", onBegin(func(
		ctx context.Context, s whole, id string, v tombstore.Version,
	) (tombstore.Renewal, error) {
		r, err := s.BeginRenewal(ctx, id, v)
		if errors.Is(err, tombstore.ErrNotFound) {
			err = s.Invalidate(ctx, id)
		}
		return r, err
	})},
	"renewing names no successor":         {"Renewal/Invalidate after", onFinish(linkNowhere)},
	"a renewal starts a new life":         {"Renewal/moves", onFinish(linkNowhere)},
	"a renewal in a row is not followed":  {"Renewal/again and again", onFinish(linkNowhere)},
	"the session is stored, then linked":  {"Race/the second half against", linkLate},
	"both halves, stored and then linked": {"Race/Renewal against", linkLate},
	"the claim is not compared": {
		"FinishRenewal/needs", refusedBy(func(err error) bool { return !rotated(err) }),
	},
	"a renewal is finished twice": {
		"FinishRenewal/twice", refusedBy(func(err error) bool { return !rotated(err) }),
	},
	"what was given up can be finished": {
		"CancelRenewal", refusedBy(func(err error) bool { return !rotated(err) }),
	},
	"the end between the halves is not seen": {
		"Renewal/Invalidate between", refusedBy(func(error) bool { return false }),
	},
	"the end by ref is not seen": {
		"Renewal/InvalidateRef between", refusedBy(func(error) bool { return false }),
	},
	"what nobody knows can be finished": {
		"FinishRenewal/of what nothing",
		refusedBy(func(err error) bool { return errors.Is(err, tombstore.ErrInvalidated) }),
	},
	"all begin and all finish": {"Race/many renewals", func(s whole) tombstore.Store {
		var begun sync.Map
		careless := refusedBy(func(error) bool { return false })(s).(*broken)
		careless.begin = func(
			ctx context.Context, id string, v tombstore.Version,
		) (tombstore.Renewal, error) {
			if r, err := s.BeginRenewal(ctx, id, v); err == nil {
				begun.Store(id, r)
			}
			if r, ok := begun.Load(id); ok {
				return r.(tombstore.Renewal), nil
			}
			return tombstore.Renewal{}, tombstore.ErrInvalidated
		}
		return careless
	}},
	"a step of a renewal ends that of another": {"Renewal/an end with the reason Rotated", rotatedClears},
	"two renewals end each other":              {"Renewal/two at once", rotatedClears},
	"IfLive leaves the claim": {"Renewal/Invalidate IfLive between", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		if o := collect(opts); o.Live {
			return stopAtTombstones(ctx, s, id, o, opts)
		}
		return s.Invalidate(ctx, id, opts...)
	})},
	"an end leaves the claim": {"Renewal/Invalidate between", leavesTombstones},
	"Alone leaves the claim": {"Renewal/Alone", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		if o := collect(opts); o.Alone {
			return stopAtTombstones(ctx, s, id, o, opts)
		}
		return s.Invalidate(ctx, id, opts...)
	})},
	"an end does not follow to the claim": {"Renewal/ended between the halves", onInvalidate(func(
		ctx context.Context, s whole, id string, opts []tombstore.InvalidateOption,
	) error {
		return s.Invalidate(ctx, id, append(opts, tombstore.Alone())...)
	})},
	"giving up ends the renewal of another": {"CancelRenewal/leaves", func(s whole) tombstore.Store {
		var begun sync.Map
		return &broken{
			whole: s,
			begin: func(ctx context.Context, id string, v tombstore.Version) (tombstore.Renewal, error) {
				r, err := s.BeginRenewal(ctx, id, v)
				begun.Store(r.Ref, r)
				return r, err
			},
			cancel: func(ctx context.Context, r tombstore.Renewal) error {
				own, _ := begun.Load(r.Ref)
				return s.CancelRenewal(ctx, own.(tombstore.Renewal))
			},
		}
	}},
	"a session is renewed once":            {"Renewal/given up", beginsOnce},
	"whoever was refused is refused again": {"Renewal/two at once, one", beginsOnce},
	"a claim that stands is taken over": {"Renewal/two at once, in", func(s whole) tombstore.Store {
		var begun sync.Map
		return &broken{whole: s, begin: func(
			ctx context.Context, id string, v tombstore.Version,
		) (tombstore.Renewal, error) {
			if theirs, ok := begun.Load(id); ok {
				if err := s.CancelRenewal(ctx, theirs.(tombstore.Renewal)); err != nil {
					return tombstore.Renewal{}, err
				}
			}
			r, err := s.BeginRenewal(ctx, id, v)
			if err == nil {
				begun.Store(id, r)
			}
			return r, err
		}}
	}},
	"taking over ignores the version": {"BeginRenewal/version of what", onBegin(func(
		ctx context.Context, s whole, id string, v tombstore.Version,
	) (tombstore.Renewal, error) {
		if _, err := s.Read(ctx, id); rotated(err) {
			v = 0
		}
		return s.BeginRenewal(ctx, id, v)
	})},
	"whatever has moved can be renewed":        {"BeginRenewal/of what was not", beginsAnyway},
	"what was given up never expires":          {"BeginRenewal/of what was given up", beginsAnyway},
	"an end leaves what was given up":          {"Renewal/Invalidate after it was given up", leavesTombstones},
	"an end of what was given up is not heard": {"Race/Renewal of what was given up", leavesTombstones},
	"an end by ref leaves what was given up": {
		"Renewal/InvalidateRef after it was given up", onInvalidateRef(func(
			ctx context.Context, s whole, ref string, opts []tombstore.InvalidateOption,
		) error {
			return s.InvalidateRef(ctx, ref, append(opts, tombstore.WithReason(tombstore.Rotated))...)
		}),
	},
	"a step of a renewal ends what was given up": {
		"Renewal/an end with the reason Rotated leaves what", onInvalidate(func(
			ctx context.Context, s whole, id string, _ []tombstore.InvalidateOption,
		) error {
			return s.Invalidate(ctx, id)
		}),
	},
	"many take over": {"Race/many renewals of what", func(s whole) tombstore.Store {
		careless := refusedBy(func(error) bool { return false })(s).(*broken)
		careless.begin = beginsAnyway(s).(*broken).begin
		return careless
	}},
	"giving up does nothing": {"CancelRenewal", func(s whole) tombstore.Store {
		return &broken{whole: s, cancel: func(context.Context, tombstore.Renewal) error { return nil }}
	}},
	"giving up logs out": {"CancelRenewal/when", func(s whole) tombstore.Store {
		return &broken{whole: s, cancel: func(ctx context.Context, r tombstore.Renewal) error {
			return s.InvalidateRef(ctx, r.Ref)
		}}
	}},
	"renewing takes what it finds": {"FinishRenewal/new id", func(s whole) tombstore.Store {
		r := newReborn(s)
		return &broken{whole: r, finish: func(
			ctx context.Context, renewal tombstore.Renewal, newID string, data []byte, ttl time.Duration,
		) (tombstore.Session, error) {
			r.forget(newID)
			return r.FinishRenewal(ctx, renewal, newID, data, ttl)
		}}
	}},
	"a renewal takes any TTL": {"FinishRenewal/arguments", onFinish(func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		return s.FinishRenewal(ctx, r, newID, data, max(ttl, 1))
	})},
	"a renewal has its own TTL": {"Renewal/sets", onFinish(func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		return s.FinishRenewal(ctx, r, newID, data, min(ttl, instant))
	})},
	"a renewal keeps what it was given": {"Renewal/data belongs", func(s whole) tombstore.Store {
		var kept sync.Map
		return &broken{
			whole: s,
			finish: func(
				ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
			) (tombstore.Session, error) {
				kept.Store(newID, data)
				return s.FinishRenewal(ctx, r, newID, data, ttl)
			},
			read: func(
				ctx context.Context, id string, opts ...tombstore.ReadOption,
			) (tombstore.Session, error) {
				session, err := s.Read(ctx, id, opts...)
				if data, ok := kept.Load(id); ok {
					session.Data = data.([]byte)
				}
				return session, err
			},
		}
	}},
	"a renewal's errors quote the id": {"Renewal/errors", onBegin(func(
		ctx context.Context, s whole, id string, v tombstore.Version,
	) (tombstore.Renewal, error) {
		r, err := s.BeginRenewal(ctx, id, v)
		if err != nil {
			err = fmt.Errorf("%s: %w", id, err)
		}
		return r, err
	})},
}

// beginDeletes leaves nothing at the id that is renewed.
func beginDeletes(s whole) tombstore.Store {
	r := newReborn(s)
	return &broken{whole: r, begin: func(
		ctx context.Context, id string, v tombstore.Version,
	) (tombstore.Renewal, error) {
		defer r.forget(id)
		return r.BeginRenewal(ctx, id, v)
	}}
}

// beginsOnce lets nobody take over a renewal, even if it was given up.
func beginsOnce(s whole) tombstore.Store {
	var tried sync.Map
	return &broken{whole: s, begin: func(
		ctx context.Context, id string, v tombstore.Version,
	) (tombstore.Renewal, error) {
		if _, again := tried.LoadOrStore(id, true); again {
			_, err := s.Read(ctx, id)
			return tombstore.Renewal{}, err
		}
		return s.BeginRenewal(ctx, id, v)
	}}
}

// beginsAnyway begins what another renewal, or a move, has ended.
func beginsAnyway(s whole) tombstore.Store {
	return onBegin(func(
		ctx context.Context, s whole, id string, v tombstore.Version,
	) (tombstore.Renewal, error) {
		r, err := s.BeginRenewal(ctx, id, v)
		if rotated(err) {
			return tombstore.Renewal{Ref: tombstore.Ref(id), Claim: 1}, nil
		}
		return r, err
	})(s)
}

// rotatedClears lets an end with the reason Rotated clear any claim.
func rotatedClears(s whole) tombstore.Store {
	var begun sync.Map
	return &broken{
		whole: s,
		begin: func(ctx context.Context, id string, v tombstore.Version) (tombstore.Renewal, error) {
			r, err := s.BeginRenewal(ctx, id, v)
			if err == nil {
				begun.Store(id, r)
			}
			return r, err
		},
		invalidate: func(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
			if r, ok := begun.Load(id); ok && collect(opts).Reason == tombstore.Rotated {
				if err := s.CancelRenewal(ctx, r.(tombstore.Renewal)); err != nil {
					return err
				}
			}
			return s.Invalidate(ctx, id, opts...)
		},
	}
}

// without lists only what keep lets pass.
func without(keep func(e tombstore.Entry) bool) func(s whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, list: func(ctx context.Context) iter.Seq2[tombstore.Entry, error] {
			return func(yield func(tombstore.Entry, error) bool) {
				for e, err := range s.List(ctx) {
					if (err != nil || keep(e)) && !yield(e, err) {
						return
					}
				}
			}
		}}
	}
}

var listMutants = map[string]mutant{
	"the list is empty": {"List/what is live", without(func(tombstore.Entry) bool { return false })},
	"the list forgets what is between two ids": {
		"List/names a session between", without(func(e tombstore.Entry) bool { return !e.Pending }),
	},
	"the list forgets what was given up": {
		"List/names a session whose renewal", without(func(e tombstore.Entry) bool { return !e.Pending }),
	},
	"whoever is between two ids is left in": {
		"Race/all are listed and ended while they are renewed", pendingLeftIn,
	},
	"whoever is taken over is left in": {"Race/all are listed and ended while others", pendingLeftIn},
	"the list goes on": {"List/stops", func(s whole) tombstore.Store {
		return &broken{whole: s, list: func(ctx context.Context) iter.Seq2[tombstore.Entry, error] {
			return s.List(context.WithoutCancel(ctx))
		}}
	}},
	"an end by ref does nothing": {"InvalidateRef", onInvalidateRef(func(
		context.Context, whole, string, []tombstore.InvalidateOption,
	) error {
		return nil
	})},
	"an end by ref does not follow":           {"InvalidateRef/follows", onInvalidateRef(refAlone)},
	"an end by ref does not follow a renewal": {"Renewal/InvalidateRef after", onInvalidateRef(refAlone)},
	"whoever moves meanwhile is left in":      {"Race/all are listed and ended while they rot", refAloneSlowly},
	"any ref is one": {"InvalidateRef/errors", onInvalidateRef(func(
		ctx context.Context, s whole, ref string, opts []tombstore.InvalidateOption,
	) error {
		if err := s.InvalidateRef(ctx, ref, opts...); !errors.Is(err, tombstore.ErrInvalidID) {
			return err
		}
		return nil
	})},
}

// pendingLeftIn lists nobody who is between two ids, and takes its time there.
func pendingLeftIn(s whole) tombstore.Store {
	slow := without(func(e tombstore.Entry) bool { return !e.Pending })(s).(*broken)
	list := slow.list
	slow.list = func(ctx context.Context) iter.Seq2[tombstore.Entry, error] {
		time.Sleep(2 * time.Millisecond) // the renewals have begun by then
		return list(ctx)
	}
	slow.finish = func(
		ctx context.Context, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		time.Sleep(20 * time.Millisecond) // longer than a walk takes on a busy machine
		return s.FinishRenewal(ctx, r, newID, data, ttl)
	}
	return slow
}

func refAlone(ctx context.Context, s whole, ref string, opts []tombstore.InvalidateOption) error {
	return s.InvalidateRef(ctx, ref, append(opts, tombstore.Alone())...)
}

// refAloneSlowly gives sessions time to move between being listed and being ended.
func refAloneSlowly(s whole) tombstore.Store {
	return onInvalidateRef(func(
		ctx context.Context, s whole, ref string, opts []tombstore.InvalidateOption,
	) error {
		time.Sleep(time.Millisecond)
		return refAlone(ctx, s, ref, opts)
	})(s)
}
