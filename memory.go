package tombstore

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"
)

// sweep is how many entries each change looks at to drop the expired ones.
const sweep = 4

// MemoryStore is a Store in the memory of one process, with the same contract as RedisStore, for tests, demonstrations and
// programs of one process. Sessions and tombstones end with the process, so a session that a client still holds a cookie of
// is then unknown, not live.
//
// It is safe for concurrent use. It starts no goroutine: expired entries are dropped by later changes.
type MemoryStore struct {
	config
	mu      sync.Mutex
	entries map[string]*entry // by key
}

// entry is a live session, or a tombstone if ended is set.
type entry struct {
	Session
	deadline time.Time // zero: none
	expires  time.Time
	ended    *InvalidatedError
}

var _ Store = (*MemoryStore)(nil)

// NewMemory returns an empty store. It checks the options. WithTimeout, WithTouchThreshold and WithReplicaAcks have no
// effect on it.
func NewMemory(opts ...Option) (*MemoryStore, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	return &MemoryStore{config: c, entries: map[string]*entry{}}, nil
}

// Read implements [Store].
func (m *MemoryStore) Read(ctx context.Context, id string, opts ...ReadOption) (Session, error) {
	const verb = "read"
	o := collect(opts)
	key, err := m.key(id)
	if err == nil && o.Slide {
		_, err = millis(o.TTL)
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return Session{}, wrap(verb, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	e, err := m.live(key, now)
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	if o.Slide {
		e.expireIn(o.TTL, now)
	}
	return e.copied(), nil
}

// Write implements [Store].
func (m *MemoryStore) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...WriteOption,
) (Session, error) {
	const verb = "write"
	o := collect(opts)
	key, err := m.key(id)
	if err == nil {
		_, err = m.check(data, ttl)
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return Session{}, wrap(verb, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	e, err := m.live(key, now)
	switch {
	case errors.Is(err, ErrNotFound) && !o.Present && !o.Match:
		e = &entry{Session: Session{CreatedAt: now.Truncate(time.Millisecond)}}
		if m.absolute > 0 {
			e.deadline = now.Add(m.absolute)
		}
		m.entries[key] = e
	case err != nil:
		return Session{}, wrap(verb, err)
	case o.Absent, o.Match && o.Version != e.Version:
		return Session{}, wrap(verb, ErrConflict)
	}
	e.Data, e.Version = bytes.Clone(data), newVersion()
	e.expireIn(ttl, now)
	return Session{Data: data, Version: e.Version, CreatedAt: e.CreatedAt}, nil
}

// Touch implements [Store].
func (m *MemoryStore) Touch(ctx context.Context, id string, ttl time.Duration) error {
	const verb = "touch"
	key, err := m.key(id)
	if err == nil {
		_, err = millis(ttl)
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return wrap(verb, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	e, err := m.live(key, now)
	if err != nil {
		return wrap(verb, err)
	}
	e.expireIn(ttl, now)
	return nil
}

// Rotate implements [Store].
func (m *MemoryStore) Rotate(ctx context.Context, oldID, newID string, opts ...RotateOption) (Session, error) {
	const verb = "rotate"
	o := collect(opts)
	oldKey, newKey, err := m.keyPair(oldID, newID)
	if err == nil && o.Replace {
		_, err = m.check(o.Data, o.TTL)
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return Session{}, wrap(verb, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	old, err := m.live(oldKey, now)
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	if _, err := m.live(newKey, now); !errors.Is(err, ErrNotFound) {
		return Session{}, wrap(verb, ErrConflict)
	}
	moved := *old
	moved.Version = newVersion()
	session := moved.copied()
	if o.Replace {
		moved.Data = bytes.Clone(o.Data)
		moved.expireIn(o.TTL, now)
		session.Data = o.Data
	}
	m.entries[newKey] = &moved
	m.end(oldKey, Rotated, now)
	return session, nil
}

// Invalidate implements [Store].
func (m *MemoryStore) Invalidate(ctx context.Context, id string, opts ...InvalidateOption) error {
	const verb = "invalidate"
	key, err := m.key(id)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return wrap(verb, err)
	}
	return m.invalidate(verb, key, collect(opts))
}

func (m *MemoryStore) invalidate(verb, key string, o InvalidateOptions) error {
	if o.Reason == 0 {
		o.Reason = Logout
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.dropExpired(now)
	if _, err := m.live(key, now); o.Live && err != nil {
		return wrap(verb, err)
	}
	m.end(key, o.Reason, now)
	return nil
}

// Exists implements [Store].
func (m *MemoryStore) Exists(ctx context.Context, id string) (bool, error) {
	const verb = "exists"
	key, err := m.key(id)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return false, wrap(verb, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err = m.live(key, time.Now())
	return err == nil, nil
}

// live returns the live session at key, ErrNotFound or an *InvalidatedError.
func (m *MemoryStore) live(key string, now time.Time) (*entry, error) {
	e := m.entries[key]
	switch {
	case e == nil, !now.Before(e.expires):
		return nil, ErrNotFound
	case e.ended != nil:
		return nil, e.ended
	}
	return e, nil
}

// end puts a tombstone at key that outlives what is there by the tombstone TTL.
func (m *MemoryStore) end(key string, reason Reason, now time.Time) {
	outlive := now
	e := m.entries[key]
	switch {
	case e == nil || !now.Before(e.expires):
	case e.ended != nil:
		if expires := now.Add(m.tombstoneTTL); expires.After(e.expires) {
			e.expires = expires
		}
		if e.ended.Reason == Rotated && reason != Rotated {
			e.ended = &InvalidatedError{Reason: reason, At: now.Truncate(time.Millisecond)}
		}
		return
	default:
		outlive = e.expires
	}
	m.entries[key] = &entry{
		ended:   &InvalidatedError{Reason: reason, At: now.Truncate(time.Millisecond)},
		expires: outlive.Add(m.tombstoneTTL),
	}
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

func (e *entry) expireIn(ttl time.Duration, now time.Time) {
	e.expires = now.Add(ttl)
	if !e.deadline.IsZero() && e.deadline.Before(e.expires) {
		e.expires = e.deadline
	}
}

func (e *entry) copied() Session {
	s := e.Session
	s.Data = append([]byte{}, e.Data...)
	return s
}
