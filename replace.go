package tombstore

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/redis/rueidis"
)

// nearDeadline is how long before its absolute deadline a session is saved by the script, which
// goes by the server's clock: clocks may differ, and a SET with an expiry in the past deletes the
// key.
const nearDeadline = 5 * time.Minute

// replace saves a session as its owner read it, by SET with XX and GET. The server refuses that for
// an absent key and, because a tombstone is a hash, for a session that was ended; and it answers
// with what was there before, so that the store can tell whether it was the session.
func (s *RedisStore) replace(ctx context.Context, w writing, old *Session) (Session, error) {
	w.condition = "present"
	w.ttl = cmp.Or(idleIn(old.header), w.ttl)
	if s.sealed {
		w.items = string(old.header[headerSize:])
	}
	now, deadline := time.Now().UnixMilli(), old.deadline()
	if deadline != 0 && deadline-now < nearDeadline.Milliseconds() || !s.refusesByType(ctx) {
		session, _, err := s.writeScript(ctx, w)
		return session, err
	}
	data := w.data
	if s.sealed {
		data = s.seal(w.id, w.key, w.items, data)
	}
	record := recordOf(old.header, w.version, data)
	res, lost := s.send(ctx, func() rueidis.Completed {
		set := s.client.B().Set().Key(w.key).Value(rueidis.BinaryString(record)).Xx().Get()
		if deadline != 0 && w.ttl > deadline-now {
			return set.PxatMillisecondsTimestamp(deadline).Build()
		}
		return set.PxMilliseconds(w.ttl).Build()
	})
	moveEpoch(w.key)
	before, err := bytesOf(res)
	switch {
	case rueidis.IsRedisNil(err):
		return Session{}, outcome(string(codeAbsent), lost)
	case isWrongType(err): // it was ended, or the value is foreign: the script tells
		session, _, err := s.writeScript(ctx, w)
		return session, err
	case err != nil:
		return Session{}, failed(err, lost)
	}
	if err := s.judge(ctx, w, record[:len(old.header)], before); err != nil {
		return Session{}, err
	}
	return Session{
		Data: w.data, Version: w.version, CreatedAt: old.CreatedAt, header: record[:len(old.header):len(old.header)],
	}, nil
}

// judge looks at what a SET has replaced. It is what was to be replaced if it has the same header,
// for a header never changes under one id; what an earlier attempt has stored has it, too. A
// session that was created earlier had ended, and was put there by a writer as late as this one can
// be. Anything else is put back, unless somebody has changed it since.
func (s *RedisStore) judge(ctx context.Context, w writing, header, before []byte) error {
	met := headerOf(before)
	if met != nil && (sameHeader(met, header) ||
		milli48(met[offsetCreated:]) < milli48(header[offsetCreated:])) {
		return nil
	}
	reply, _, err := s.ask(ctx, &restoreScript, []string{w.key}, w.version.bytes(), string(before))
	switch {
	case errors.Is(err, ErrUnknownOutcome):
		return err
	case errors.Is(err, ErrCorrupt): // it has been ended since
	case err != nil:
		return unknown(err)
	case reply != string(codeDone) && reply != string(codeConflict):
		return errUnexpected
	}
	if met == nil {
		return ErrCorrupt
	}
	return ErrConflict
}
