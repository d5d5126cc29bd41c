package tombstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// BeginLogin implements [Binder].
func (s *RedisStore) BeginLogin(ctx context.Context, owner string) (Login, error) {
	ctx, op := s.begin(ctx, "begin login", owner)
	l, err := s.beginLogin(ctx, owner)
	return l, op.end(err)
}

func (s *RedisStore) beginLogin(ctx context.Context, owner string) (Login, error) {
	digest, err := ownerOf(owner)
	if err != nil {
		return Login{}, err
	}
	generation, at, err := s.generation(ctx, s.ownerKey(digest))
	if err != nil {
		return Login{}, err
	}
	return Login{Owner: digest, Generation: generation, At: time.UnixMilli(at)}, nil
}

// generation returns the generation of an owner's key, or -1 if there is no key, and the server's
// time.
func (s *RedisStore) generation(ctx context.Context, key string) (generation, at int64, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	for range 2 { // a key that expires between the first two commands is not foreign
		results, err := s.pipeline(ctx, s.client, func() []rueidis.Completed {
			return []rueidis.Completed{
				s.client.B().Arbitrary("EXISTS").Keys(key).Build(),
				s.client.B().Arbitrary("ZSCORE").Keys(key).Args("g").Build(),
				s.client.B().Arbitrary("TIME").Build().SetSlot(key),
			}
		})
		if err != nil {
			return 0, 0, explain(err)
		}
		exists, err := intOf(results[0])
		mark, marked, err2 := scoreOf(results[1])
		at, err3 := millisOf(results[2])
		switch err := cmp.Or(err, err2, err3); {
		case err != nil:
			return 0, 0, explain(err)
		case marked && mark >= 0:
			return 0, 0, ErrCorrupt
		case marked:
			return -mark / 2, at, nil
		case exists == 0:
			return -1, at, nil
		}
	}
	return 0, 0, ErrCorrupt
}

// millisOf returns what TIME says, in ms since 1970.
func millisOf(res rueidis.RedisResult) (int64, error) {
	parts, err := partsOf(res, 2)
	if err != nil {
		return 0, err
	}
	if !parts[0].IsString() || !parts[1].IsString() {
		return 0, errUnexpected
	}
	seconds, err := parts[0].AsInt64()
	micros, err2 := parts[1].AsInt64()
	if err != nil || err2 != nil {
		return 0, errUnexpected
	}
	return seconds*1000 + micros/1000, nil
}

func generationOf(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, errUnexpected
	}
	return n, nil
}

// Reserve implements [Binder].
func (s *RedisStore) Reserve(
	ctx context.Context, id string, login Login, opts ...ReserveOption,
) (Binding, error) {
	ctx, op := s.begin(ctx, "reserve", id)
	b, err := s.reserve(ctx, id, login, collect(opts))
	return b, op.end(err)
}

func (s *RedisStore) reserve(ctx context.Context, id string, login Login, o ReserveOptions) (Binding, error) {
	key, err := s.keyToStore(id)
	if err != nil {
		return Binding{}, err
	}
	begun := time.Now()
	b, logins, err := s.bind(s.ref(key), login, o, begun)
	if err != nil {
		return Binding{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	absolute := decimal(s.absoluteOf(&o.Lifetime))
	at, deadline, late, err := s.enterLogins(ctx, b.Ref, logins, untilMillis(o.Until), absolute, b.InPlaceOf)
	switch {
	case errors.Is(err, ErrUnknownOutcome):
		return b, err
	case err != nil:
		return Binding{}, err
	}
	s.complete(&b, at, deadline, begun)
	return b, late
}

// enterLogins enters ref for logins. The first one is limited, and comes last: a place is taken
// only when nobody else refuses. If somebody does, the entries that were made stay. Nobody knows
// whether the id was reserved before, and its session lives; so they are not taken out, and lead to
// an id that the caller has kept from its owners.
func (s *RedisStore) enterLogins(
	ctx context.Context, ref string, logins []Login, until int64, absolute, inPlaceOf string,
) (at, deadline int64, late, err error) {
	for i := len(logins) - 1; i >= 0 && err == nil; i-- {
		limit, leaves := 0, ""
		if logins[i].Owner == logins[0].Owner { // the options may name this owner again
			limit, leaves = s.maxSessions, inPlaceOf
		}
		var unsure error
		at, deadline, unsure, err = s.enterLogin(ctx, ref, logins[i], until, absolute, limit, leaves)
		late = cmp.Or(late, unsure)
	}
	return at, deadline, late, err
}

// enterLogin enters ref for a login, and makes room if that is needed. Without an absolute timeout
// or a deadline the other is "0" or 0; a limit of 0 is none.
func (s *RedisStore) enterLogin(
	ctx context.Context, ref string, login Login, until int64, absolute string, limit int, inPlaceOf string,
) (at, deadline int64, late, err error) {
	args := []string{
		ref,
		decimal(until),
		s.ownerTTL(),
		newGeneration(),
		inPlaceOf,
		"",
		decimal(login.At.UnixMilli()),
		absolute,
	}
	if login.Generation >= 0 {
		args[5] = decimal(login.Generation)
	}
	if limit > 0 {
		args = append(args, strconv.Itoa(limit))
	}
	lost, full := false, 0
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		at, deadline, late, err = s.enter(ctx, login.Owner, args...)
		if !errors.Is(err, errFull) {
			break
		}
		lost, full = lost || errors.Is(err, ErrUnknownOutcome), full+1
		err = s.makeRoom(ctx, login.Owner, inPlaceOf)
		if err == nil && full > 1 && !sleep(ctx, pause) { // others come first, again and again
			err = cmp.Or(ctx.Err(), context.DeadlineExceeded)
		}
		if err != nil {
			break
		}
	}
	if full > 1 && errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrUnknownOutcome) {
		err = fmt.Errorf("%w: %w", ErrTooManySessions, err)
	}
	if err != nil && lost { // an attempt whose reply was lost may yet enter it
		err = unknown(nil)
	}
	return at, deadline, late, err
}

// ownerTTL returns how long an owner's key lives at least. No login from before a revoke is
// accepted for longer than an hour, so the revoke must not be forgotten before.
func (s *RedisStore) ownerTTL() string {
	return decimal(ownerLife.Milliseconds() + s.tombstoneTTL.Milliseconds())
}

// enter runs bind.lua, and returns the server's time and the deadline, in ms since 1970. late is
// ErrUnacknowledged or nil. An errFull wraps ErrUnknownOutcome if an attempt was lost.
func (s *RedisStore) enter(
	ctx context.Context, owner string, args ...string,
) (at, deadline int64, late, err error) {
	key := s.ownerKey(owner)
	reply, lost, err := s.ask(ctx, &bindScript, []string{key}, args...)
	if err != nil {
		return 0, 0, nil, err
	}
	if reply[0] == codeDone {
		var again string
		again, late = s.acknowledged(ctx, &bindScript, key, func() []string { return args })
		reply = cmp.Or(again, reply)
	}
	switch reply[0] {
	case codeStale:
		return 0, 0, nil, ErrStaleLogin
	case codeNoDeadline:
		return 0, 0, nil, ErrNoDeadline
	case codeLimit:
		if lost {
			return 0, 0, nil, unknown(errFull)
		}
		return 0, 0, nil, errFull
	}
	if err := outcome(reply, lost); err != nil {
		return 0, 0, nil, err
	}
	if len(reply) != 1+6+6 {
		return 0, 0, nil, errUnexpected
	}
	return milli48(reply[1:]), milli48(reply[1+6:]), late, nil
}

// rebind tells the keys of a session's owners that the session, whose header w has, leaves oldKey
// for the new id, which is about to be written. It comes when the old id has been ended and before
// the new one is written: until then an owner's entry leads to the new id through the tombstone of
// the old one, and from then on it names it. With b the session begins a new life with owners who
// have an entry for it already; those of the old id go, so that its end does not follow the session
// into the new life. If any of this fails the session is not written.
func (s *RedisStore) rebind(ctx context.Context, oldKey string, w *writing, b *Binding) (late, err error) {
	header := w.begins
	if b != nil {
		w.beginsAs(s.begun(b.header()))
		w.absolute = 0
	}
	for _, owner := range ownersIn([]byte(header)) {
		var unsure error
		if b != nil {
			err = s.dropEntries(ctx, s.ownerKey(owner), s.ref(oldKey))
		} else {
			_, _, unsure, err = s.enter(ctx, owner,
				s.ref(w.key),
				decimal(deadlineIn(header)),
				s.ownerTTL(),
				newGeneration(),
				s.ref(oldKey),
			)
		}
		if late = cmp.Or(late, unsure); err != nil {
			break
		}
	}
	switch {
	case errors.Is(err, ErrStaleLogin): // the old id has been ended, and nothing leads to the new one
		return nil, &InvalidatedError{Reason: Revoked, At: time.Now().Truncate(time.Millisecond)}
	case err != nil && !errors.Is(err, ErrUnknownOutcome):
		err = unknown(err)
	}
	return late, err
}

// unlist takes a session that was ended out of the keys of its owners. An entry that stays does no
// harm, so it is tried once.
func (s *RedisStore) unlist(ctx context.Context, owners []string, ref string) {
	if len(owners) == 0 {
		return
	}
	removals := make([]rueidis.Completed, len(owners))
	for i, owner := range owners {
		removals[i] = s.removal(s.ownerKey(owner), ref)
	}
	s.client.DoMulti(ctx, removals...)
}

// dropEntries takes entries out of an owner's key.
func (s *RedisStore) dropEntries(ctx context.Context, key string, refs ...string) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed { return s.removal(key, refs...) })
	_, err := intOf(res)
	return explain(err)
}

func (s *RedisStore) removal(key string, refs ...string) rueidis.Completed {
	members := make([]string, len(refs)) // what says that they were entered stays
	for i, ref := range refs {
		members[i] = "l" + ref
	}
	return s.client.B().Zrem().Key(key).Member(members...).Build()
}

// Release implements [Binder].
func (s *RedisStore) Release(ctx context.Context, b Binding) error {
	ctx, op := s.beginRef(ctx, "release", b.Ref)
	return op.end(s.release(ctx, b))
}

func (s *RedisStore) release(ctx context.Context, b Binding) error {
	key, err := s.refKey(b.Ref)
	if err == nil && !b.owned() {
		err = ErrInvalidID
	}
	if err != nil {
		return err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.end(ctx, key, InvalidateOptions{}); err != nil {
		return err
	}
	s.unlist(ctx, b.Owners, b.Ref)
	return nil
}
