package tombstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"iter"
	"sync"
	"time"
)

// sweep is how many entries each change looks at to drop the expired ones.
const sweep = 4

// MemoryStore is a Store in the memory of one process, with the same contract as RedisStore, for
// tests, demonstrations and programs of one process. Sessions and tombstones end with the process:
// a cookie from before names no session after that.
//
// It is safe for concurrent use. It starts no goroutine but for Watch: expired entries are dropped
// by later changes.
type MemoryStore struct {
	config
	mu      sync.Mutex
	entries map[string]*entry // by key
	owners  map[string]*owned // by digest
	watches *watches
}

// entry is a live session or, if ended is set, a tombstone.
type entry struct {
	record  []byte // replaced and never changed; of a tombstone the header, for a renewal
	expires time.Time

	ended     *InvalidatedError
	successor string    // key of the id to which the session has moved, or ""
	grace     time.Time // until when the id may still read
	claim     uint64    // of a renewal under way, or 0
}

var (
	_ Renewer = (*MemoryStore)(nil)
	_ Lister  = (*MemoryStore)(nil)
	_ Binder  = (*MemoryStore)(nil)
)

// NewMemory returns an empty store. It checks the options, and ignores those that only a server can
// carry out.
func NewMemory(opts ...Option) (*MemoryStore, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	m := &MemoryStore{config: c, entries: map[string]*entry{}, owners: map[string]*owned{}}
	m.watches = newWatches(c.watchFloor, m.sightsOf, nil)
	return m, nil
}

// Read implements [Store].
func (m *MemoryStore) Read(ctx context.Context, id string, opts ...ReadOption) (Session, error) {
	ctx, op := m.begin(ctx, "read", id)
	s, err := m.read(ctx, id, collect(opts))
	return s, op.end(err)
}

func (m *MemoryStore) read(ctx context.Context, id string, o ReadOptions) (Session, error) {
	key, err := m.key(id)
	if err == nil && o.Slide {
		_, err = millis(o.TTL)
	}
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Session{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	e, err := m.live(key, now)
	if err != nil {
		if e, err = m.readOn(key, err, now); err != nil {
			return Session{}, err
		}
	} else if o.Slide {
		e.expireIn(ownIdle(headerOf(e.record), o.TTL), now)
	}
	s := e.session()
	if !o.Shared {
		s.Data = bytes.Clone(s.Data)
	}
	if o.Slide || o.Expiry {
		s.ExpiresAt = e.expires
	}
	return s, nil
}

// Write implements [Store].
func (m *MemoryStore) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...WriteOption,
) (Session, error) {
	ctx, op := m.begin(ctx, "write", id)
	s, err := m.write(ctx, id, data, ttl, collect(opts))
	return s, op.end(err)
}

func (m *MemoryStore) write(
	ctx context.Context, id string, data []byte, ttl time.Duration, o WriteOptions,
) (Session, error) {
	key, err := m.keyToStore(id)
	if err == nil {
		_, err = m.check(data, ttl)
	}
	err = cmp.Or(err, o.Lifetime.valid())
	if err == nil && o.Binding != nil {
		err = o.Binding.usable("", m.ref(key))
		o = WriteOptions{Absent: true, Binding: o.Binding}
	}
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Session{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	e, err := m.live(key, now)
	var header []byte
	switch {
	case errors.Is(err, ErrNotFound) && !o.Present && !o.Match:
		header = m.firstHeader(now, o.Lifetime)
		if o.Binding != nil {
			header = o.Binding.header()
		}
	case err != nil:
		return Session{}, err
	case o.Absent, o.Match && o.Version != e.session().Version, e.begunSince(o.Replaced):
		return Session{}, ErrConflict
	default:
		header = headerOf(e.record)
	}
	return m.store(key, header, data, ownIdle(header, ttl), now), nil
}

// firstHeader returns the header of a session that begins now.
func (m *MemoryStore) firstHeader(now time.Time, l *Lifetime) []byte {
	created := now.UnixMilli()
	header := newHeader(0, created, m.bound(l, 0, created))
	if l == nil {
		return header
	}
	return withItems(header, appendIdle(nil, l.Idle))
}

// store puts a live session at key, under a new version.
func (m *MemoryStore) store(
	key string, header, data []byte, ttl time.Duration, now time.Time,
) Session {
	e := &entry{record: recordOf(header, newVersion(), data)}
	e.expireIn(ttl, now)
	m.entries[key] = e
	s := e.session()
	s.Data = data
	return s
}

// Touch implements [Store].
func (m *MemoryStore) Touch(ctx context.Context, id string, ttl time.Duration) error {
	ctx, op := m.begin(ctx, "touch", id)
	return op.end(m.touch(ctx, id, ttl))
}

func (m *MemoryStore) touch(ctx context.Context, id string, ttl time.Duration) error {
	key, err := m.key(id)
	if err == nil {
		_, err = millis(ttl)
	}
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	e, err := m.live(key, now)
	if err != nil {
		return err
	}
	e.expireIn(ownIdle(headerOf(e.record), ttl), now)
	return nil
}

// Rotate implements [Store].
func (m *MemoryStore) Rotate(
	ctx context.Context, oldID, newID string, opts ...RotateOption,
) (Session, error) {
	ctx, op := m.begin(ctx, "rotate", oldID)
	s, err := m.rotate(ctx, oldID, newID, collect(opts))
	return s, op.end(err)
}

func (m *MemoryStore) rotate(
	ctx context.Context, oldID, newID string, o RotateOptions,
) (Session, error) {
	oldKey, newKey, err := m.keyPair(oldID, newID)
	if err == nil && o.Replace {
		_, err = m.check(o.Data, o.TTL)
	}
	if err == nil && o.Binding != nil {
		err = o.Binding.usable(m.ref(oldKey), m.ref(newKey))
	}
	grace, refusal := o.grace(m.sealed)
	if err := cmp.Or(err, o.Lifetime.valid(), refusal, ctx.Err()); err != nil {
		return Session{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	old, err := m.live(oldKey, now)
	if err != nil {
		return Session{}, err
	}
	before := old.session()
	if o.Version != 0 && o.Version != before.Version || m.used(newKey, now) {
		return Session{}, ErrConflict
	}
	data, ttl := bytes.Clone(before.Data), old.expires.Sub(now)
	if o.Replace {
		data, ttl = o.Data, o.TTL
	}
	t := m.end(oldKey, Rotated, now)
	t.successor, t.grace = newKey, now.Add(time.Duration(grace)*time.Millisecond)
	header := m.rebind(before.header, oldKey, newKey, o.Binding, o.Lifetime, now)
	if o.Replace || o.Binding != nil || o.Lifetime != nil {
		ttl = ownIdle(header, ttl)
	}
	return m.store(newKey, header, data, ttl, now), nil
}

// Invalidate implements [Store].
func (m *MemoryStore) Invalidate(ctx context.Context, id string, opts ...InvalidateOption) error {
	ctx, op := m.begin(ctx, "invalidate", id)
	key, err := m.key(id)
	if err = cmp.Or(err, ctx.Err()); err == nil {
		err = m.invalidate(key, collect(opts))
	}
	return op.end(err)
}

// InvalidateRef implements [Lister].
func (m *MemoryStore) InvalidateRef(
	ctx context.Context, ref string, opts ...InvalidateOption,
) error {
	ctx, op := m.beginRef(ctx, "invalidate", ref)
	key, err := m.refKey(ref)
	if err = cmp.Or(err, ctx.Err()); err == nil {
		err = m.invalidate(key, collect(opts))
	}
	return op.end(err)
}

func (m *MemoryStore) invalidate(key string, o InvalidateOptions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	_, err := m.endLive(key, o, now)
	return err
}

// endLive ends the session at key, and follows it. It reports whether it has met a live one.
func (m *MemoryStore) endLive(key string, o InvalidateOptions, now time.Time) (live bool, err error) {
	reason := cmp.Or(o.Reason, Logout)
	for hop := range maxHops {
		if hop > 0 && o.spares != nil {
			if spared, err := o.spares(key); spared || err != nil {
				return false, err
			}
		}
		e, met := m.live(key, now)
		if hop == 0 && o.Live && errors.Is(met, ErrNotFound) {
			return false, met
		}
		if met == nil && reason != Rotated {
			m.unlist(ownersIn(headerOf(e.record)), key)
		}
		next := m.end(key, reason, now).successor
		switch {
		case next != "" && reason != Rotated && !o.Alone:
			key = next
		case o.Live:
			return met == nil, met
		default:
			return met == nil, nil
		}
	}
	return false, errTooManyHops
}

// Exists implements [Store].
func (m *MemoryStore) Exists(ctx context.Context, id string) (bool, error) {
	ctx, op := m.begin(ctx, "exists", id)
	exists, err := m.exists(ctx, id)
	return exists, op.end(err)
}

func (m *MemoryStore) exists(ctx context.Context, id string) (bool, error) {
	key, err := m.key(id)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err = m.live(key, time.Now())
	return err == nil, nil
}

// BeginRenewal implements [Renewer].
func (m *MemoryStore) BeginRenewal(ctx context.Context, id string, v Version) (Renewal, error) {
	ctx, op := m.begin(ctx, "begin renewal", id)
	r, err := m.beginRenewal(ctx, id, v)
	return r, op.end(err)
}

func (m *MemoryStore) beginRenewal(ctx context.Context, id string, v Version) (Renewal, error) {
	key, err := m.key(id)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Renewal{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	e, err := m.live(key, now)
	if t := m.entries[key]; t.givenUp() && now.Sub(t.ended.At) < takeOverFor &&
		now.Before(t.expires.Add(-m.tombstoneTTL)) { // the session would still live
		e, err = t, nil
	}
	if err != nil {
		return Renewal{}, err
	}
	before := e.session()
	if v != 0 && v != before.Version {
		return Renewal{}, ErrConflict
	}
	t := m.end(key, Rotated, now)
	t.record, t.claim = bytes.Clone(before.header), uint64(newVersion())
	return Renewal{Ref: m.ref(key), Claim: t.claim}, nil
}

// FinishRenewal implements [Renewer].
func (m *MemoryStore) FinishRenewal(
	ctx context.Context, r Renewal, newID string, data []byte, ttl time.Duration,
) (Session, error) {
	ctx, op := m.beginRef(ctx, "finish renewal", r.Ref)
	s, err := m.finishRenewal(ctx, r, newID, data, ttl)
	return s, op.end(err)
}

func (m *MemoryStore) finishRenewal(
	ctx context.Context, r Renewal, newID string, data []byte, ttl time.Duration,
) (Session, error) {
	oldKey, err := m.refKey(r.Ref)
	newKey, err2 := m.keyToStore(newID)
	if err = cmp.Or(err, err2); err == nil && oldKey == newKey {
		err = ErrInvalidID
	}
	if err == nil {
		_, err = m.check(data, ttl)
	}
	if err == nil && r.Binding != nil {
		err = r.Binding.usable(m.ref(oldKey), m.ref(newKey))
	}
	if err := cmp.Or(err, r.Lifetime.valid(), ctx.Err()); err != nil {
		return Session{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	if m.used(newKey, now) {
		return Session{}, ErrConflict
	}
	t := m.claimed(r, oldKey, now)
	if t == nil {
		_, err := m.live(oldKey, now)
		return Session{}, cmp.Or(err, ErrNotFound) // a session that lives there is another one
	}
	before := t.session()
	if deadline := before.deadline(); deadline != 0 && deadline <= now.UnixMilli() {
		return Session{}, ErrNotFound
	}
	t.record, t.claim, t.successor = nil, 0, newKey
	m.watches.hint(oldKey)
	header := m.rebind(before.header, oldKey, newKey, r.Binding, r.Lifetime, now)
	return m.store(newKey, header, data, ownIdle(header, ttl), now), nil
}

// CancelRenewal implements [Renewer].
func (m *MemoryStore) CancelRenewal(ctx context.Context, r Renewal) error {
	ctx, op := m.beginRef(ctx, "cancel renewal", r.Ref)
	return op.end(m.cancelRenewal(ctx, r))
}

func (m *MemoryStore) cancelRenewal(ctx context.Context, r Renewal) error {
	key, err := m.refKey(r.Ref)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.claimed(r, key, time.Now()); t != nil {
		t.claim = 0
	}
	return nil
}

// claimed returns the tombstone at key if the claim of r stands on it, or nil.
func (m *MemoryStore) claimed(r Renewal, key string, now time.Time) *entry {
	e := m.entries[key]
	if e == nil || !now.Before(e.expires) || e.claim == 0 || e.claim != r.Claim {
		return nil
	}
	return e
}

// givenUp reports whether e is the tombstone that is left of a renewal that was given up.
func (e *entry) givenUp() bool {
	return e != nil && e.ended != nil && e.record != nil && e.claim == 0
}

// List implements [Lister]. It returns what was live when the iteration began.
func (m *MemoryStore) List(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		ctx, op := m.begin(ctx, "list", "")
		var err error
		defer func() { op.end(err) }() // whatever the caller does
		for _, e := range m.snapshot(time.Now()) {
			if err = ctx.Err(); err != nil {
				yield(Entry{}, wrap("list", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m *MemoryStore) snapshot(now time.Time) (all []Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, e := range m.entries {
		switch {
		case !now.Before(e.expires):
		case e.ended == nil:
			s := e.session()
			if s.Data = bytes.Clone(s.Data); m.sealed {
				s.Data = nil
			}
			all = append(all, Entry{Ref: m.ref(key), Session: s})
		case (e.claim != 0 || e.givenUp()) && now.Sub(e.ended.At) < listMargin:
			all = append(all, Entry{Ref: m.ref(key), Pending: true})
		}
	}
	return all
}

// live returns the live session at key, ErrNotFound, or an *InvalidatedError that is the caller's.
func (m *MemoryStore) live(key string, now time.Time) (*entry, error) {
	e := m.entries[key]
	switch {
	case e == nil, !now.Before(e.expires):
		return nil, ErrNotFound
	case e.ended != nil:
		ended := *e.ended
		return nil, &ended
	}
	return e, nil
}

// used reports whether key holds a live session or a tombstone.
func (m *MemoryStore) used(key string, now time.Time) bool {
	_, err := m.live(key, now)
	return !errors.Is(err, ErrNotFound)
}

// end puts a tombstone at key, or keeps the one that is there, and returns it. It outlives what was
// there by the tombstone TTL.
func (m *MemoryStore) end(key string, reason Reason, now time.Time) *entry {
	m.watches.hint(key)
	e := m.entries[key]
	if e == nil || !now.Before(e.expires) {
		e = &entry{expires: now}
	}
	ended := &InvalidatedError{Reason: reason, At: now.Truncate(time.Millisecond)}
	if e.ended == nil {
		t := &entry{ended: ended, expires: e.expires.Add(m.tombstoneTTL)}
		m.entries[key] = t
		return t
	}
	if expires := now.Add(m.tombstoneTTL); expires.After(e.expires) {
		e.expires = expires
	}
	if reason != Rotated {
		if e.ended.Reason == Rotated {
			e.ended = ended
		}
		e.record, e.claim = nil, 0
	}
	return e
}

// dropExpired looks at a few entries; ranging over a map begins anywhere.
func (m *MemoryStore) dropExpired(now time.Time) {
	left := sweep
	for key, e := range m.entries {
		if !now.Before(e.expires) {
			delete(m.entries, key)
		}
		if left--; left == 0 {
			return
		}
	}
}

// session returns the session of e. Its data is e's.
func (e *entry) session() Session {
	s, _ := parse(e.record)
	return s
}

// begunSince reports whether e is another session than s and was begun under the id after it.
func (e *entry) begunSince(s Session) bool {
	stored := e.session()
	return s.header != nil && !sameHeader(s.header, stored.header) &&
		!stored.CreatedAt.Before(s.CreatedAt)
}

func (e *entry) expireIn(ttl time.Duration, now time.Time) {
	e.expires = now.Add(ttl)
	s := e.session()
	if ms := s.deadline(); ms != 0 && time.UnixMilli(ms).Before(e.expires) {
		e.expires = time.UnixMilli(ms)
	}
}
