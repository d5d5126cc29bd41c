package tombstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// Adopt implements [Binder]. The entry comes first, and then the record with the owner takes the
// place of the one without, under the version and the header that were read: so at no moment does
// the session belong to the owner without InvalidateOwner reaching it.
func (s *RedisStore) Adopt(
	ctx context.Context, id string, login Login, opts ...ReserveOption,
) (Session, error) {
	ctx, op := s.begin(ctx, "adopt", id)
	session, err := s.adopt(ctx, id, login, collect(opts))
	return session, op.end(err)
}

func (s *RedisStore) adopt(ctx context.Context, id string, login Login, o ReserveOptions) (Session, error) {
	key, err := s.key(id)
	if err != nil {
		return Session{}, err
	}
	logins, err := o.logins(login, time.Now())
	if err != nil {
		return Session{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var added []string // owners among whom the id was entered, and whose the session was not
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		session, err := s.readAt(ctx, id, key)
		if err != nil {
			if NoSession(err) { // the entries of its own owners go along with it, if it moves
				s.unlist(ctx, added, s.ref(key))
			}
			return Session{}, err
		}
		header, err := s.adoptedHeader(&session, logins, o)
		if err != nil {
			return Session{}, err
		}
		_, _, late, err := s.enterLogins(ctx, s.ref(key), logins, milli48(header[offsetDeadline:]), "0", "")
		if err != nil {
			return Session{}, err
		}
		if bytes.Equal(header, session.header) {
			return session, late
		}
		before := session.Owners()
		added = withOwners(before, logins)[len(before):]
		met := string(session.header)
		session.header = header
		data := session.Data
		if s.sealed { // anew, since the owners are authenticated
			data = s.seal(id, key, string(header[headerSize:]), data)
		}
		record := string(recordOf(header, session.Version, data))
		reply, lost, err := s.ask(ctx, &restoreScript, []string{key}, session.Version.bytes(), record, met)
		switch {
		case errors.Is(err, ErrCorrupt): // it has been ended since: Read says why
		case err != nil:
			return Session{}, err
		case reply[0] == codeDone:
			return session, late
		case reply[0] != codeConflict:
			return Session{}, cmp.Or(outcome(reply, lost), errUnexpected)
		}
		if !sleep(ctx, pause) { // it is being saved again and again
			return Session{}, unknown(context.DeadlineExceeded)
		}
	}
}

// adoptedHeader returns the header of a session when it has the owners of logins. It is the same if
// the session has them before.
func (c *config) adoptedHeader(s *Session, logins []Login, o ReserveOptions) ([]byte, error) {
	before := s.Owners()
	owners := withOwners(before, logins)
	switch {
	case len(before) > 0 && before[0] != logins[0].Owner:
		return nil, ErrConflict
	case len(owners) > maxOwners:
		return nil, fmt.Errorf("%w: %d owners, at most %d", ErrTooLarge, len(owners), maxOwners)
	case len(owners) == len(before):
		return s.header, nil
	case len(before) > 0: // nothing else changes
		o = ReserveOptions{Until: s.Deadline()}
	}
	deadline := s.deadline()
	sooner := func(ms int64) {
		if ms != 0 && (deadline == 0 || ms < deadline) {
			deadline = ms
		}
	}
	if deadline == 0 && c.absolute > 0 { // a session that has one may have been given a later one
		deadline = s.CreatedAt.Add(c.absolute).UnixMilli()
	}
	sooner(untilMillis(o.Until))
	if deadline == 0 {
		return nil, ErrNoDeadline
	}
	header := bytes.Clone(s.header[:headerSize])
	putMilli48(header[offsetDeadline:], deadline)
	var items []byte
	if len(s.header) > headerSize {
		items = bytes.Clone(s.header[headerSize+2:])
	}
	for _, digest := range owners[len(before):] {
		items = appendItem(items, itemOwner, digestOf(digest))
	}
	if o.Label != "" {
		items = appendItem(items, itemLabel, []byte(o.Label))
	}
	if len(items) > math.MaxUint16 {
		return nil, ErrTooLarge
	}
	return withItems(header, items), nil
}

// Adopt implements [Binder].
func (m *MemoryStore) Adopt(
	ctx context.Context, id string, login Login, opts ...ReserveOption,
) (Session, error) {
	ctx, op := m.begin(ctx, "adopt", id)
	s, err := m.adopt(ctx, id, login, collect(opts))
	return s, op.end(err)
}

func (m *MemoryStore) adopt(ctx context.Context, id string, login Login, o ReserveOptions) (Session, error) {
	key, err := m.key(id)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Session{}, err
	}
	logins, err := o.logins(login, time.Now())
	if err != nil {
		return Session{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	e, err := m.live(key, now)
	if err != nil {
		return Session{}, err
	}
	session := e.session()
	header, err := m.adoptedHeader(&session, logins, o)
	if err != nil {
		return Session{}, err
	}
	deadline := milli48(header[offsetDeadline:])
	if err := m.enterLogins(key, logins, deadline, "", now); err != nil {
		return Session{}, err
	}
	e.record = recordOf(header, session.Version, session.Data)
	if until := time.UnixMilli(deadline); until.Before(e.expires) {
		e.expires = until
	}
	session = e.session()
	session.Data = bytes.Clone(session.Data)
	return session, nil
}
