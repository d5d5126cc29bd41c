package storetest

import (
	"context"
	"time"

	"github.com/tombstore/tombstore"
)

var lifetimeMutants = map[string]mutant{
	"a Write gives none": {"Lifetime/of a Write", onWrite(func(o *tombstore.WriteOptions) { o.Lifetime = nil })},
	"a Write gives no idle timeout": {"Lifetime/of a Write", onWrite(func(o *tombstore.WriteOptions) {
		if o.Lifetime != nil {
			o.Lifetime = &tombstore.Lifetime{Absolute: o.Lifetime.Absolute}
		}
	})},
	"a Write gives no deadline": {"Lifetime/of a Write", onWrite(func(o *tombstore.WriteOptions) {
		if o.Lifetime != nil {
			o.Lifetime = &tombstore.Lifetime{Idle: o.Lifetime.Idle}
		}
	})},
	"a negative one is none": {"Lifetime/errors", onWrite(func(o *tombstore.WriteOptions) {
		if l := o.Lifetime; l != nil && (l.Idle < 0 || l.Absolute < 0) {
			o.Lifetime = nil
		}
	})},
	"a session that is live gets another one": {"Lifetime/a session that is live keeps its own", func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			if l := collect(opts).Lifetime; l != nil && l.Idle > 0 {
				ttl = l.Idle
			}
			return s.Write(ctx, id, data, ttl, opts...)
		}}
	}},
	"a move keeps it": {"Lifetime/Rotate gives another one", onRotate(func(o tombstore.RotateOptions) []tombstore.RotateOption {
		o.Lifetime = nil
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"a move resets it": {"Lifetime/of a Write", onRotate(func(o tombstore.RotateOptions) []tombstore.RotateOption {
		if o.Lifetime == nil {
			o.Lifetime = &tombstore.Lifetime{}
		}
		return []tombstore.RotateOption{func(all *tombstore.RotateOptions) { *all = o }}
	})},
	"a renewal keeps it": {"Lifetime/of a renewal", onFinish(func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		r.Lifetime = nil
		return s.FinishRenewal(ctx, r, newID, data, ttl)
	})},
	"a renewal resets it": {"Lifetime/of a renewal", onFinish(func(
		ctx context.Context, s whole, r tombstore.Renewal, newID string, data []byte, ttl time.Duration,
	) (tombstore.Session, error) {
		if r.Lifetime == nil {
			r.Lifetime = &tombstore.Lifetime{}
		}
		return s.FinishRenewal(ctx, r, newID, data, ttl)
	})},
	"a login gives none": {"Lifetime/of a login", altered(
		func(_ context.Context, _ whole, o *tombstore.ReserveOptions) {
			if o.Lifetime.Absolute > 0 {
				o.Until = time.Now().Add(o.Lifetime.Absolute)
			}
			o.Lifetime = tombstore.Lifetime{}
		},
		func(*tombstore.Binding) {})},
	"a login keeps the idle timeout only": {"Lifetime/of a login", altered(
		func(_ context.Context, _ whole, o *tombstore.ReserveOptions) {
			o.Lifetime.Absolute, o.Until = 0, time.Now().Add(2*hour)
		},
		func(*tombstore.Binding) {})},
	"one is the other, too": {"Lifetime/only one of the two", onWrite(func(o *tombstore.WriteOptions) {
		if l := o.Lifetime; l != nil {
			both := max(l.Idle, l.Absolute)
			o.Lifetime = &tombstore.Lifetime{Idle: both, Absolute: both}
		}
	})},
	"none is an hour": {"Lifetime/none is as all others", onWrite(func(o *tombstore.WriteOptions) {
		if l := o.Lifetime; l != nil && *l == (tombstore.Lifetime{}) {
			o.Lifetime = &tombstore.Lifetime{Idle: hour}
		}
	})},
	"it is never over": {"Lifetime/expires after its own idle time", onWrite(func(o *tombstore.WriteOptions) {
		o.Lifetime = nil
	})},
	"a move counts from the creation": {"Lifetime/another one begins with the move", func(s whole) tombstore.Store {
		return &broken{whole: s, rotate: func(
			ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
		) (tombstore.Session, error) {
			session, err := s.Read(ctx, oldID)
			if l := collect(opts).Lifetime; err == nil && l != nil && l.Absolute > 0 {
				older := *l
				older.Absolute -= time.Since(session.CreatedAt)
				opts = append(opts, tombstore.WithLifetime(older))
			}
			return s.Rotate(ctx, oldID, newID, opts...)
		}}
	}},
	"what has expired comes back": {"Lifetime/a longer one does not bring back", revivesExpired},
	"adopting ends it soon": {"Lifetime/a session that is adopted", onAdopt(func(
		ctx context.Context, s whole, id string, login tombstore.Login, opts []tombstore.ReserveOption,
	) (tombstore.Session, error) {
		return s.Adopt(ctx, id, login, append(opts, tombstore.Until(time.Now().Add(hour/2)))...)
	})},
	"a login goes on with what was there": {"Lifetime/a login without one has none", onBinding(func(
		ctx context.Context, s whole, oldID, newID string, o tombstore.RotateOptions,
	) (tombstore.Session, error) {
		old, err := s.Read(ctx, oldID)
		if err == nil && o.Binding.Idle == 0 {
			o.Binding.Idle = old.Idle()
		}
		return s.Rotate(ctx, oldID, newID, func(to *tombstore.RotateOptions) { *to = o })
	})},
	"a move keeps what a login gave": {
		"Lifetime/a move brings the deadline of a login forward only", func(s whole) tombstore.Store {
			return &broken{whole: s, rotate: func(
				ctx context.Context, oldID, newID string, opts ...tombstore.RotateOption,
			) (tombstore.Session, error) {
				if session, err := s.Read(ctx, oldID); err == nil && len(session.Owners()) > 0 {
					opts = append(opts, func(o *tombstore.RotateOptions) { o.Lifetime = nil })
				}
				return s.Rotate(ctx, oldID, newID, opts...)
			}}
		},
	},
	"Until makes it longer": {"Lifetime/Until counts if it is sooner", altered(
		func(_ context.Context, _ whole, o *tombstore.ReserveOptions) {
			if o.Lifetime.Absolute > 0 && !o.Until.IsZero() {
				o.Lifetime.Absolute = 0
			}
		},
		func(*tombstore.Binding) {})},
}

// onWrite changes the options of a Write.
func onWrite(change func(o *tombstore.WriteOptions)) func(whole) tombstore.Store {
	return func(s whole) tombstore.Store {
		return &broken{whole: s, write: func(
			ctx context.Context, id string, data []byte, ttl time.Duration, opts ...tombstore.WriteOption,
		) (tombstore.Session, error) {
			return s.Write(ctx, id, data, ttl, append(opts, change)...)
		}}
	}
}
