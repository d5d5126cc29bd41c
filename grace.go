package tombstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxGrace is more than a browser needs for requests that are under way when it gets a new cookie.
const maxGrace = time.Minute

// Grace lets requests that came with the old id go on reading for d, at most a minute, after a
// renewal that nobody has asked for, such as one every quarter of an hour: otherwise those that
// were under way, and those that a page sends at the same time, are a visitor's. For d a Read of
// the old id returns the session under its new one, as it is then. Nothing but Read does: a Write,
// a Touch or another move by the old id is refused, a Slide does not restart the idle timeout, and
// Exists says that there is no session. An end of the session, by any of its ids, ends that too; a
// later move without Grace, such as a login, does so for the ids before it.
//
// What it gives up: whoever has stolen the old id reads for d longer. So Rotate refuses it together
// with WithBinding or WithLifetime, which are for a login; a login by any other Rotate must not
// have it either, or whoever has planted the old id (session fixation) reads what the user does. 0
// is none, which is the default. Rotate returns ErrInvalidTTL if d is negative or more than a
// minute, and wraps [errors.ErrUnsupported] if the store seals its data (WithSealedData), which the
// old id does not open.
func Grace(d time.Duration) RotateOption { return func(o *RotateOptions) { o.Grace = d } }

var (
	errGraceAtLogin = errors.New("no grace at a login: whoever knows the old id would read the new life")
	errGraceSealed  = fmt.Errorf("%w: no grace for sealed data, which the old id does not open", errors.ErrUnsupported)
)

// grace returns for how long the old id may read, in ms, or why the options exclude each other.
func (o *RotateOptions) grace(sealed bool) (int64, error) {
	switch {
	case o.Grace == 0:
		return 0, nil
	case o.Grace < 0 || o.Grace > maxGrace:
		return 0, ErrInvalidTTL
	case o.Binding != nil || o.Lifetime != nil:
		return 0, errGraceAtLogin
	case sealed:
		return 0, errGraceSealed
	}
	return millis(o.Grace)
}

// movedError says that an id was left, and that it may still read what is under its successor.
type movedError struct {
	*InvalidatedError
	successor string // its key without the prefix
}

func (e *movedError) Unwrap() error { return e.InvalidatedError }

// movedIn returns what a reply of read.lua says of an id that may still read.
func movedIn(reply string) error {
	if len(reply) <= 1+endSize {
		return errUnexpected
	}
	err := parseEnd(reply[1 : 1+endSize])
	end, ok := errors.AsType[*InvalidatedError](err)
	if !ok {
		return err
	}
	return &movedError{end, reply[1+endSize:]}
}

// readOn reads the session of an id that was left, under the one that it has now. What is absent
// there may be about to be written, and is not there to be read; so the id was just left.
func (s *RedisStore) readOn(ctx context.Context, left *movedError, expiry bool) (Session, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	next := left
	for range maxHops {
		key, err := s.refKey(next.successor)
		if err != nil {
			return Session{}, ErrCorrupt
		}
		session, err := s.readThrough(ctx, key, 0, expiry)
		if errors.Is(err, ErrNotFound) {
			return Session{}, left.InvalidatedError
		}
		var moved bool
		if next, moved = errors.AsType[*movedError](err); !moved {
			return session, err
		}
	}
	return Session{}, left.InvalidatedError
}

// readOn returns the entry of the session of an id that was left and may still read, or err, which
// says why it may not.
func (m *MemoryStore) readOn(key string, err error, now time.Time) (*entry, error) {
	for range maxHops {
		left := m.entries[key]
		end, ok := errors.AsType[*InvalidatedError](err)
		if !ok || end.Reason != Rotated || left.successor == "" || !now.Before(left.grace) {
			return nil, err
		}
		e, met := m.live(left.successor, now)
		switch {
		case met == nil:
			return e, nil
		case errors.Is(met, ErrNotFound):
			return nil, err
		}
		key, err = left.successor, met
	}
	return nil, err
}
