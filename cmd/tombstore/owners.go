package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tombstore/tombstore"
)

// listOwned shows the live sessions of an owner, in the order in which they were begun.
func listOwned(ctx context.Context, s *tombstore.RedisStore, owner target, out *printer) {
	if owner.err != nil {
		out.print(owner.report())
		return
	}
	sessions, err := s.Sessions(ctx, owner.owner)
	slices.SortFunc(sessions, func(a, b tombstore.OwnedSession) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, session := range sessions {
		r := report{
			Ref:       session.Ref,
			Owner:     owner.ref,
			Label:     session.Label,
			CreatedAt: session.CreatedAt.UTC(),
			ExpiresAt: utc(session.ExpiresAt).Truncate(time.Millisecond),
			Deadline:  session.Deadline.UTC(),
		}
		expiry := "never expires"
		if !r.ExpiresAt.IsZero() {
			expiry = expiresIn(time.Until(r.ExpiresAt))
		}
		r.sayLive(expiry)
		out.print(r)
	}
	switch {
	case err != nil:
		out.print(report{Owner: owner.ref, Error: err.Error()})
	case len(sessions) == 0:
		out.print(report{Owner: owner.ref, State: absent, text: "no live session"})
	}
}

// endOwned ends the sessions of an owner.
func (r *report) endOwned(ctx context.Context, s *tombstore.RedisStore, owner string, thorough bool) {
	login, err := s.BeginLogin(ctx, owner)
	unknown := err == nil && login.Generation < 0
	var opts []tombstore.InvalidateOption
	if thorough {
		opts = append(opts, tombstore.Thorough())
	}
	n, err := s.InvalidateOwner(ctx, owner, opts...)
	r.Ended = &n
	switch {
	case n > 0:
		r.State, r.text = live, fmt.Sprintf("sessions ended: %d", n)
	case err != nil:
	case unknown:
		r.State, r.text = absent, "was not known"
	default:
		r.State, r.text = ended, "had no live session"
	}
	if err != nil {
		r.Error = err.Error()
	}
}
