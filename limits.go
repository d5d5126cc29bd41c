package tombstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/rueidis"
)

// errFull says that an owner has reached the limit of sessions, as far as entries tell.
var errFull = errors.New("owner's key is full")

// makeRoom takes out entries of what is not a session any more, and ends sessions of an owner as
// far as that is asked for, until there is room for one more. An entry goes when there is a
// tombstone under its id, and not before; so however many make room at the same time, an owner
// never has more sessions than entries, nor more entries than sessions are allowed, but for those
// that wait for a session to give way. leaves is the ref of such a session, or "". Once that has
// been ended, or has moved, nobody else is ended for a login that can only go on from there.
func (s *RedisStore) makeRoom(ctx context.Context, owner, leaves string) error {
	key := s.ownerKey(owner)
	generation, now, err := s.generation(ctx, key)
	if err != nil {
		return err
	}
	if _, err := s.endOlder(ctx, key, generation, Revoked); err != nil && !errors.Is(err, ErrCorrupt) {
		return roomless(err)
	}
	var live []OwnedSession
	var dead, foreign []string
	moving, gives := 0, leaves == ""
	err = s.eachEntry(ctx, key, 1, func(refs []string) error {
		found, err := s.look(ctx, refs)
		if err != nil {
			return err
		}
		for _, l := range found {
			if l.Ref == leaves {
				gives = true
				continue
			}
			if l.state == stateLive {
				live = append(live, l.OwnedSession)
				continue
			}
			underWay, err := s.underWay(ctx, key, l, now)
			switch {
			case errors.Is(err, ErrCorrupt) || err == nil && !underWay && l.state == stateForeign:
				foreign = append(foreign, l.Ref)
			case err != nil:
				return err
			case underWay:
				moving++
			default:
				dead = append(dead, l.Ref)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(foreign) > 0 { // nobody may write a session there by now, and what is there is not touched
		if err := s.dropEntries(ctx, key, foreign...); err != nil {
			return err
		}
	}
	excess, err := excess(live, moving, s.maxSessions, s.whenFull)
	if err != nil {
		return err
	}
	if len(excess) > 0 && !gives {
		seen := s.sightOf(ctx, s.prefix+leaves)
		switch {
		case seen.next != "", errors.Is(seen.err, ErrInvalidated) && !seen.pending:
			return ErrTooManySessions
		case seen.err != nil && !NoSession(seen.err):
			return seen.err
		}
	}
	for chunk := range slices.Chunk(append(dead, excess...), entryBatch) {
		_, ended, err := s.endAll(ctx, key, chunk, Revoked)
		if len(ended) > 0 {
			if err := s.dropEntries(ctx, key, ended...); err != nil {
				return err
			}
		}
		if err != nil {
			return roomless(err)
		}
	}
	return nil
}

// roomless is the error of a Reserve that could not make room. ErrUnacknowledged would say that the
// id is reserved.
func roomless(err error) error {
	if errors.Is(err, ErrUnacknowledged) {
		return fmt.Errorf("%w: replicas have not confirmed that another one was ended", ErrTooManySessions)
	}
	return err
}

// excess returns the refs of the sessions that are to be ended so that there is room for one more.
func excess(live []OwnedSession, moving, limit int, whenFull WhenFull) (refs []string, err error) {
	n := len(live) + moving + 1 - limit
	if n <= 0 {
		return nil, nil
	}
	if whenFull != EvictOldest || n > len(live) {
		return nil, ErrTooManySessions
	}
	slices.SortFunc(live, func(a, b OwnedSession) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, s := range live[:n] {
		refs = append(refs, s.Ref)
	}
	return refs, nil
}

// placeKept returns for how long an id under which nothing is stored keeps its place. Where the
// oldest session has to give way, so does a login that takes longer than a minute.
func (c *config) placeKept() time.Duration {
	if c.whenFull == EvictOldest {
		return time.Minute
	}
	return reservedFor
}

// underWay reports whether there may be a session, or one may be about to be written, whose entry
// was found with nothing under its ref that is known to be live: the ref was entered lately, or the
// session has just left it for another id, or a later version has written it. now is the time of
// the owner's server. It returns ErrCorrupt for a foreign value that is not a string.
func (s *RedisStore) underWay(ctx context.Context, key string, l looked, now int64) (bool, error) {
	switch l.state {
	case stateFuture:
		return true, nil
	case stateAbsent, stateForeign:
		at, marked, err := s.score(ctx, key, "w"+l.Ref)
		return marked && time.Duration(now+at*1000)*time.Millisecond < s.placeKept(), err
	}
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("HMGET").Keys(s.prefix+l.Ref).Args("t", "s", "h").Build()
	})
	end, successor, renewable, err := tombstoneOf(res)
	if err == nil && end == nil { // a hash that is not a tombstone; or one that has expired, with all that it refused
		err = ErrCorrupt
	}
	return end.underWay(successor != "" || renewable), explain(err)
}

// underWay reports whether a session that has left an id by e may be about to be written under
// another one. leads says that the tombstone has a successor, or the header of a renewal: one that
// was given up may be taken over, so it keeps its place.
func (e *InvalidatedError) underWay(leads bool) bool {
	return e != nil && e.Reason == Rotated && leads && time.Since(e.At).Abs() < reservedFor
}
