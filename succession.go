package tombstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// A session is one thing with a succession of ids. The tombstone of each earlier id names the key
// of the next one, so that an end by any of them reaches the session.

// maxHops bounds how many moves of a session an Invalidate follows.
const maxHops = 4096

var errTooManyHops = fmt.Errorf("%w: it has moved more than %d times", ErrNotInvalidated, maxHops)

// Invalidate implements [Store]. It works on a server that is at maxmemory too. An error wraps
// ErrNotInvalidated if the server refused, ErrUnknownOutcome if it did not answer, and
// ErrUnacknowledged if replicas are late (WithReplicaAcks). It is safe to repeat.
func (s *RedisStore) Invalidate(ctx context.Context, id string, opts ...InvalidateOption) error {
	ctx, op := s.begin(ctx, "invalidate", id)
	return op.end(s.invalidate(ctx, id, collect(opts)))
}

func (s *RedisStore) invalidate(ctx context.Context, id string, o InvalidateOptions) error {
	key, err := s.key(id)
	if err != nil {
		return err
	}
	return s.end(ctx, key, o)
}

// InvalidateRef implements [Lister].
func (s *RedisStore) InvalidateRef(ctx context.Context, ref string, opts ...InvalidateOption) error {
	ctx, op := s.beginRef(ctx, "invalidate", ref)
	key, err := s.refKey(ref)
	if err == nil {
		err = s.end(ctx, key, collect(opts))
	}
	return op.end(err)
}

// end ends the session at key as o says, and follows it. It waits for the replicas of each key that
// it passes, but does not stop for them: what can be ended is ended.
func (s *RedisStore) end(ctx context.Context, key string, o InvalidateOptions) error {
	_, err := s.endLive(ctx, key, o)
	return err
}

// endLive is end, and reports whether it has met a live session.
func (s *RedisStore) endLive(
	ctx context.Context, key string, o InvalidateOptions,
) (live bool, err error) {
	if o.Reason == 0 {
		o.Reason = Logout
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var late error
	for hop := range maxHops {
		if hop > 0 && o.spares != nil {
			if spared, err := o.spares(key); spared || err != nil {
				return false, cmp.Or(err, late)
			}
		}
		condition := ""
		if o.Live && hop == 0 { // a successor that is absent may yet be written
			condition = "live"
		}
		reply, lost, err := s.endOne(ctx, key, o.Reason, condition)
		successor := ""
		if err != nil {
			if hop > 0 && !errors.Is(err, ErrNotInvalidated) && !errors.Is(err, ErrUnknownOutcome) {
				err = unknown(err) // the ids before this one have been ended
			}
			return false, err
		}
		live = reply[0] == codeDone
		if reply[0] != codeAbsent || condition == "" {
			again, err := s.confirm(ctx, key, o.Reason)
			late = cmp.Or(err, late)
			successor = cmp.Or(successorIn(again), successorIn(reply))
			if live && err == nil && o.Reason != Rotated {
				s.unlist(ctx, ownersIn([]byte(reply[1:])), s.ref(key))
			}
		}
		if successor == "" || o.Alone || o.Reason == Rotated {
			if !o.Live || live {
				return live, late
			}
			met := outcome(reply, lost)
			if lost && errors.Is(met, ErrInvalidated) { // perhaps by the attempt whose reply was lost
				met = unknown(nil)
			}
			return false, met
		}
		if key, err = s.refKey(successor); err != nil {
			return false, unknown(ErrCorrupt)
		}
	}
	return false, errTooManyHops
}

// successorIn returns the successor that a reply of invalidate.lua names, or "".
func successorIn(reply string) string {
	if len(reply) <= endSize || reply[0] != codeEnded {
		return ""
	}
	return reply[1+endSize:]
}

// endOne runs invalidate.lua, and returns a reply that says what it met: codeDone for a live
// session, codeAbsent or codeEnded.
func (s *RedisStore) endOne(
	ctx context.Context, key string, reason Reason, condition string,
) (reply string, lost bool, err error) {
	reply, lost, err = s.ask(ctx, &invalidateScript, []string{key}, s.endArgs(ctx, reason, condition)...)
	refusal, refused := errors.AsType[*replyError](err)
	switch {
	case refused && !errors.Is(err, ErrUnknownOutcome):
		err = fmt.Errorf("%w: %w", ErrNotInvalidated, refusal)
	case err == nil && reply[0] != codeAbsent:
		if met := outcome(reply, lost); met != nil && !errors.Is(met, ErrInvalidated) {
			err = met
		}
	}
	return reply, lost, err
}

// endArgs returns the arguments of invalidate.lua, but for those of a renewal.
func (s *RedisStore) endArgs(ctx context.Context, reason Reason, condition string) []string {
	args := []string{
		s.tombstone(ctx, reason),
		s.argTombstoneTTL,
		condition,
	}
	if s.publish {
		args = append(args, "", s.channel())
	}
	return args
}

// tombstone returns what the scripts put where a session was: the tombstone as DUMP would give it,
// or its field t where RESTORE is not to be used. In a cluster it is used unless it was seen not to
// work, since there a session could get lost without it.
func (s *RedisStore) tombstone(ctx context.Context, reason Reason) string {
	dump := dumpOf(reason, time.Now())
	if s.clustered() {
		s.refusesByType(ctx)
	}
	if seen := s.restores.Load(); seen == restoresWell || seen == 0 && s.clustered() {
		return dump
	}
	return dump[dumpHead : dumpHead+endSize]
}

func (s *RedisStore) clustered() bool { return s.client.Mode() == rueidis.ClientModeCluster }

// Rotate implements [Store]. In a cluster, where the two keys may be on two nodes, it ends the old
// id first: whatever goes wrong in between logs the user out, and the two ids are never live
// together. With ErrUnacknowledged the session is returned too: it was rotated, but replicas are
// late (WithReplicaAcks).
func (s *RedisStore) Rotate(
	ctx context.Context, oldID, newID string, opts ...RotateOption,
) (Session, error) {
	ctx, op := s.begin(ctx, "rotate", oldID)
	session, err := s.rotate(ctx, oldID, newID, collect(opts))
	return session, op.end(err)
}

func (s *RedisStore) rotate(ctx context.Context, oldID, newID string, o RotateOptions) (Session, error) {
	oldKey, newKey, err := s.keyPair(oldID, newID)
	if err != nil {
		return Session{}, err
	}
	var ms int64
	if o.Replace {
		if ms, err = s.check(o.Data, o.TTL); err != nil {
			return Session{}, err
		}
	}
	if err := o.Lifetime.valid(); err != nil {
		return Session{}, err
	}
	if o.Binding != nil {
		if err := o.Binding.usable(s.ref(oldKey), s.ref(newKey)); err != nil {
			return Session{}, err
		}
	}
	grace, err := o.grace(s.sealed)
	if err != nil {
		return Session{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	m := &moving{oldID, newID, oldKey, newKey, ms, grace, newVersion(), o}
	if s.clustered() || o.Binding != nil || o.Lifetime != nil {
		return s.moveInSteps(ctx, m)
	}
	var session Session
	if s.sealed {
		session, err = s.moveSealed(ctx, m)
	} else {
		session, err = s.moveAtOnce(ctx, m)
	}
	if errors.Is(err, errInSteps) {
		return s.moveInSteps(ctx, m)
	}
	return session, err
}

// moving is what a Rotate is about.
type moving struct {
	oldID, newID   string
	oldKey, newKey string
	idle           int64   // ms, if Replace is set
	grace          int64   // ms
	version        Version // of the new record
	RotateOptions
}

// moveArgs returns the arguments of rotate.lua. data is as it is to be stored, and kept if it is ""
// and Replace is not set.
func (s *RedisStore) moveArgs(ctx context.Context, m *moving, data string) []string {
	args := []string{
		m.version.bytes(),
		s.argTombstoneTTL,
		m.newKey[len(s.prefix):],
		"",
		s.tombstone(ctx, Rotated),
		"",
		data,
		"",
		"",
		"sealed",
	}
	if m.Version != 0 {
		args[3] = m.Version.bytes()
	}
	if m.Replace {
		args[5] = decimal(m.idle)
	}
	if s.publish {
		args[7] = s.channel()
	}
	if m.grace > 0 {
		args[8] = decimal(m.grace)
	}
	switch { // what is not needed is left out
	case s.sealed:
		return args
	case m.grace > 0:
		return args[:9]
	case s.publish:
		return args[:8]
	case m.Replace:
		return args[:7]
	}
	return args[:5]
}

// moveAtOnce runs rotate.lua with both keys. The data does not pass through the script, so it is
// read afterwards.
func (s *RedisStore) moveAtOnce(ctx context.Context, m *moving) (Session, error) {
	session, late, err := s.moveRecord(ctx, m, string(m.Data))
	if err != nil {
		return Session{}, err
	}
	if m.Replace {
		session.Data = m.Data
		return session, late
	}
	session, err = s.readAt(ctx, m.newID, m.newKey)
	if err != nil && !NoSession(err) {
		err = unknown(err)
	}
	return session, cmp.Or(err, late)
}

// sealedTries is how often a move of sealed data meets somebody who saves the session before it
// goes in steps, which nobody can overtake.
const sealedTries = 3

// moveSealed reads the session, seals its data for the new id, and moves it under the version that
// was read. If that has changed, it does so again.
func (s *RedisStore) moveSealed(ctx context.Context, m *moving) (Session, error) {
	for range sealedTries {
		before, err := s.readAt(ctx, m.oldID, m.oldKey)
		switch {
		case err != nil:
			return Session{}, err
		case m.Version != 0 && m.Version != before.Version:
			return Session{}, ErrConflict
		}
		data, try := before.Data, *m
		if m.Replace {
			data = m.Data
		}
		try.Version, try.version = before.Version, newVersion()
		sealed := s.seal(m.newID, m.newKey, string(before.header[headerSize:]), data)
		session, late, err := s.moveRecord(ctx, &try, rueidis.BinaryString(sealed))
		if err == nil {
			session.Data = data
			return session, late
		}
		if !errors.Is(err, ErrConflict) || m.Version != 0 {
			return Session{}, err
		}
		if err := s.unused(ctx, m.newKey); err != nil {
			return Session{}, err
		}
	}
	return Session{}, errInSteps
}

// moveRecord runs rotate.lua with both keys, and returns the session without its data.
func (s *RedisStore) moveRecord(
	ctx context.Context, m *moving, data string,
) (session Session, late, err error) {
	record, err := s.leave(ctx, []string{m.oldKey, m.newKey}, s.moveArgs(ctx, m, data))
	if err != nil {
		return Session{}, nil, err
	}
	late, err = s.confirmMove(ctx, m.oldKey, m.newKey)
	if err != nil {
		return Session{}, nil, err
	}
	header := headerOf([]byte(record))
	if header == nil {
		return Session{}, nil, errUnexpected
	}
	session, err = parse(header)
	return session, late, err
}

// moveInSteps ends the old id by rotate.lua, enters the new one in the key of the session's owner
// if it has one, and then creates it. An end that comes in between follows the old id's tombstone,
// and leaves one under the new id, which refuses the last step. The replicas must have the
// tombstone before that step: if they lost it while the new id is live, an end by the old id would
// not find that.
func (s *RedisStore) moveInSteps(ctx context.Context, m *moving) (Session, error) {
	if err := s.unused(ctx, m.newKey); err != nil {
		if _, gone := s.readThrough(ctx, m.oldKey, 0, false); gone != nil {
			err = gone
		}
		return Session{}, err
	}
	if s.sealed && !m.Replace { // what cannot be opened must not be left
		if _, err := s.readAt(ctx, m.oldID, m.oldKey); err != nil {
			return Session{}, err
		}
	}
	reply, err := s.leave(ctx, []string{m.oldKey}, s.moveArgs(ctx, m, ""))
	if err != nil {
		return Session{}, err
	}
	if len(reply) < 6+headerSize {
		return Session{}, errUnexpected
	}
	moved, err := parse([]byte(reply[6:])) // whatever the clock here says, it has been moved
	if err != nil {
		return Session{}, err
	}
	if m.Replace {
		moved.Data = m.Data
	} else if err := s.open(m.oldID, m.oldKey, &moved); err != nil {
		return Session{}, unknown(err)
	}
	late, err := s.confirmMove(ctx, m.oldKey, m.newKey)
	if err != nil {
		return Session{}, err
	}
	w := writing{id: m.newID, key: m.newKey, version: m.version, data: moved.Data, ttl: milli48(reply)}
	w.beginsAs(moved.header)
	s.relive(&w, m.Lifetime)
	anew := m.Binding != nil || m.Lifetime != nil
	if anew && m.Replace { // what was left of the old life does not bound the new one
		w.ttl = m.idle
	}
	late2, err := s.rebind(ctx, m.oldKey, &w, m.Binding)
	if err != nil {
		return Session{}, err
	}
	if anew {
		w.ttl = cmp.Or(idleIn([]byte(w.begins)), w.ttl)
	}
	session, err := s.create(ctx, w)
	return session, cmp.Or(err, late, late2)
}

// confirmMove is confirm for the old id of a session that moves. The replicas confirm whatever the
// primary has: if a failover has taken what the move has written, that does not name the new id,
// and an end by the old one would not reach it. Then the move goes no further, and the session is
// ended.
func (s *RedisStore) confirmMove(ctx context.Context, oldKey, newKey string) (late, err error) {
	reply, late := s.confirm(ctx, oldKey, Rotated)
	if reply != "" && successorIn(reply) != newKey[len(s.prefix):] {
		s.warn(ctx, warnFailover, nil)
		return nil, unknown(nil)
	}
	return late, nil
}

// create stores a session under an id that must be unused, when its old id has been ended. A
// failure that might look as if nothing had been done is ErrUnknownOutcome.
func (s *RedisStore) create(ctx context.Context, w writing) (Session, error) {
	w.condition = "absent"
	session, _, err := s.writeScript(ctx, w)
	if err != nil && !NoSession(err) && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnknownOutcome) {
		err = unknown(err)
	}
	return session, err
}

// leave runs rotate.lua.
func (s *RedisStore) leave(ctx context.Context, keys, args []string) (string, error) {
	reply, lost, err := s.ask(ctx, &rotateScript, keys, args...)
	if err != nil {
		return "", err
	}
	if reply[0] == codeOwned {
		return "", errInSteps
	}
	err = outcome(reply, lost)
	if lost && errors.Is(err, ErrInvalidated) { // the attempt whose reply was lost may have ended it
		return "", unknown(nil)
	}
	return reply[1:], err
}

// unused looks whether a new id is taken, before the old one is ended. What it finds can change at
// once; it saves a mistaken caller from losing the session.
func (s *RedisStore) unused(ctx context.Context, key string) error {
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("EXISTS").Keys(key).Build()
	})
	n, err := intOf(res)
	switch {
	case err != nil:
		return explain(err)
	case n != 0:
		return ErrConflict
	}
	return nil
}

// BeginRenewal implements [Renewer].
func (s *RedisStore) BeginRenewal(ctx context.Context, id string, v Version) (Renewal, error) {
	ctx, op := s.begin(ctx, "begin renewal", id)
	r, err := s.beginRenewal(ctx, id, v)
	return r, op.end(err)
}

func (s *RedisStore) beginRenewal(ctx context.Context, id string, v Version) (Renewal, error) {
	key, err := s.key(id)
	if err != nil {
		return Renewal{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	r := Renewal{Ref: key[len(s.prefix):], Claim: newClaim()}
	condition := "live"
	if v != 0 {
		condition = v.bytes()
	}
	// After a lost attempt, too: the claim tells the end of that attempt from another renewal's.
	_, _, err = s.change(ctx, &invalidateScript, []string{key},
		s.tombstone(ctx, Rotated),
		s.argTombstoneTTL,
		condition,
		r.claim(),
	)
	if err != nil {
		return Renewal{}, err
	}
	_, err = s.confirm(ctx, key, Rotated)
	return r, err
}

// FinishRenewal implements [Renewer]. It links first and writes then, so that there is no moment at
// which the session is live and an end by the old id does not reach it.
func (s *RedisStore) FinishRenewal(
	ctx context.Context, r Renewal, newID string, data []byte, ttl time.Duration,
) (Session, error) {
	ctx, op := s.beginRef(ctx, "finish renewal", r.Ref)
	session, err := s.finishRenewal(ctx, r, newID, data, ttl)
	return session, op.end(err)
}

func (s *RedisStore) finishRenewal(
	ctx context.Context, r Renewal, newID string, data []byte, ttl time.Duration,
) (Session, error) {
	oldKey, err := s.refKey(r.Ref)
	if err != nil {
		return Session{}, err
	}
	newKey, err := s.keyToStore(newID)
	if err != nil {
		return Session{}, err
	}
	if newKey == oldKey {
		return Session{}, ErrInvalidID
	}
	ms, err := s.check(data, ttl)
	if err != nil {
		return Session{}, err
	}
	if err := r.Lifetime.valid(); err != nil {
		return Session{}, err
	}
	if r.Binding != nil {
		if err := r.Binding.usable(s.ref(oldKey), s.ref(newKey)); err != nil {
			return Session{}, err
		}
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.unused(ctx, newKey); err != nil {
		return Session{}, err
	}
	args := []string{
		r.claim(),
		newKey[len(s.prefix):],
		s.argTombstoneTTL,
	}
	if s.publish {
		args = append(args, s.channel())
	}
	header, _, err := s.change(ctx, &linkScript, []string{oldKey}, args...)
	if err != nil {
		return Session{}, err
	}
	late, err := s.confirmMove(ctx, oldKey, newKey)
	if err != nil {
		return Session{}, err
	}
	if known := headerOf([]byte(header)); known == nil || len(known) < len(header) {
		return Session{}, errUnexpected
	}
	if err := s.understands([]byte(header)); err != nil { // it began in a store with other options
		return Session{}, err
	}
	if r.Lifetime != nil || r.Binding != nil { // a longer life must not bring back what has expired
		if err := alive([]byte(header), time.Now()); err != nil {
			return Session{}, err
		}
	}
	w := writing{id: newID, key: newKey, version: newVersion(), data: data, ttl: ms}
	w.beginsAs([]byte(header))
	s.relive(&w, r.Lifetime)
	late2, err := s.rebind(ctx, oldKey, &w, r.Binding)
	if err != nil {
		return Session{}, err
	}
	w.ttl = cmp.Or(idleIn([]byte(w.begins)), ms)
	session, err := s.create(ctx, w)
	return session, cmp.Or(err, late, late2)
}

// CancelRenewal implements [Renewer].
func (s *RedisStore) CancelRenewal(ctx context.Context, r Renewal) error {
	ctx, op := s.beginRef(ctx, "cancel renewal", r.Ref)
	return op.end(s.cancelRenewal(ctx, r))
}

func (s *RedisStore) cancelRenewal(ctx context.Context, r Renewal) error {
	key, err := s.refKey(r.Ref)
	if err != nil {
		return err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	reply, _, err := s.ask(ctx, &linkScript, []string{key}, r.claim())
	if err != nil || reply[0] == codeAbsent {
		return err
	}
	return outcome(reply, false)
}

func (r Renewal) claim() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], r.Claim)
	return string(b[:])
}

func newClaim() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}
