package tombstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"
)

// owned is what is known of an owner. One mutex guards the store, so a revoke ends all in one step
// and there is nothing of former generations.
type owned struct {
	generation int64
	ended      *InvalidatedError  // of the last revoke; nil if there was none
	sessions   map[string]entered // by key
	expires    time.Time
}

// entered is a session of an owner, or an id that is reserved for one.
type entered struct {
	at, deadline time.Time
}

// owner returns what is known of an owner, and begins with it if that is nothing.
func (m *MemoryStore) owner(digest string, now time.Time) *owned {
	o := m.knownOwner(digest, now)
	if o == nil {
		generation, _ := strconv.ParseInt(newGeneration(), 10, 64)
		o = &owned{generation: generation, sessions: map[string]entered{}}
		m.owners[digest] = o
	}
	o.keep(now.Add(ownerLife + m.tombstoneTTL))
	return o
}

// sight is what is seen by those who watch an owner. o is nil if nothing is known.
func (o *owned) sight() (seen sight) {
	if o == nil {
		return sight{}
	}
	seen = sight{mark: -2 * o.generation, expires: o.expires}
	if o.ended != nil {
		end := *o.ended
		seen.mark, seen.end = seen.mark-1, &end
	}
	return seen
}

func (o *owned) keep(until time.Time) {
	if until.After(o.expires) {
		o.expires = until
	}
}

func (m *MemoryStore) knownOwner(digest string, now time.Time) *owned {
	left := sweep // ranging over a map begins anywhere
	for other, o := range m.owners {
		if !now.Before(o.expires) {
			delete(m.owners, other)
		}
		if left--; left == 0 {
			break
		}
	}
	o := m.owners[digest]
	if o == nil || !now.Before(o.expires) {
		delete(m.owners, digest)
		return nil
	}
	for key, e := range o.sessions {
		if !now.Before(e.deadline) {
			delete(o.sessions, key)
		}
		if left++; left == 2*sweep {
			break
		}
	}
	return o
}

// enter enters key among an owner's sessions. It brings no deadline forward.
func (o *owned) enter(key string, deadline, now time.Time) {
	if before := o.sessions[key].deadline; before.After(deadline) {
		deadline = before
	}
	o.sessions[key] = entered{at: now, deadline: deadline}
	o.keep(deadline.Add(ownerLife))
}

// unlist takes key out of the sessions of owners.
func (m *MemoryStore) unlist(owners []string, key string) {
	for _, digest := range owners {
		if o := m.owners[digest]; o != nil {
			delete(o.sessions, key)
		}
	}
}

// rebind lets the entries of a session follow it, or drops them if the session begins a new life
// with b. It returns the header under the new id, with l if that is not nil.
func (m *MemoryStore) rebind(
	header []byte, oldKey, newKey string, b *Binding, l *Lifetime, now time.Time,
) []byte {
	owners := ownersIn(header)
	m.unlist(owners, oldKey)
	if b != nil {
		return b.header()
	}
	if l != nil {
		header = relived(header, l)
		putMilli48(header[offsetDeadline:], m.bound(l, milli48(header[offsetDeadline:]), now.UnixMilli()))
	}
	for _, digest := range owners {
		m.owner(digest, now).enter(newKey, time.UnixMilli(milli48(header[offsetDeadline:])), now)
	}
	return header
}

// BeginLogin implements [Binder].
func (m *MemoryStore) BeginLogin(ctx context.Context, owner string) (Login, error) {
	ctx, op := m.begin(ctx, "begin login", owner)
	l, err := m.beginLogin(ctx, owner)
	return l, op.end(err)
}

func (m *MemoryStore) beginLogin(ctx context.Context, owner string) (Login, error) {
	digest, err := ownerOf(owner)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Login{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	l := Login{Owner: digest, Generation: -1, At: now.Truncate(time.Millisecond)}
	if o := m.knownOwner(digest, now); o != nil {
		l.Generation = o.generation
	}
	return l, nil
}

// Reserve implements [Binder].
func (m *MemoryStore) Reserve(
	ctx context.Context, id string, login Login, opts ...ReserveOption,
) (Binding, error) {
	ctx, op := m.begin(ctx, "reserve", id)
	b, err := m.reserve(ctx, id, login, collect(opts))
	return b, op.end(err)
}

func (m *MemoryStore) reserve(ctx context.Context, id string, login Login, o ReserveOptions) (Binding, error) {
	key, err := m.keyToStore(id)
	if err != nil {
		return Binding{}, err
	}
	begun := time.Now()
	b, logins, err := m.bind(m.ref(key), login, o, begun)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return Binding{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	deadline := m.bound(&o.Lifetime, untilMillis(o.Until), now.UnixMilli())
	if err := m.enterLogins(key, logins, deadline, b.InPlaceOf, now); err != nil {
		return Binding{}, err
	}
	m.complete(&b, now.UnixMilli(), deadline, begun)
	return b, nil
}

// enterLogins enters key for logins, of which the first is limited: there inPlaceOf, a ref, does
// not count.
func (m *MemoryStore) enterLogins(
	key string, logins []Login, deadline int64, inPlaceOf string, now time.Time,
) error {
	for _, login := range slices.Backward(logins) {
		limit, leaves := 0, ""
		if login.Owner == logins[0].Owner { // the options may name this owner again
			limit, leaves = m.maxSessions, inPlaceOf
		}
		if err := m.enterLogin(key, login, deadline, limit, leaves, now); err != nil {
			return err
		}
	}
	return nil
}

// enterLogin enters key for a login, and makes room if that is needed. A limit of 0 is none.
func (m *MemoryStore) enterLogin(
	key string, login Login, deadline int64, limit int, inPlaceOf string, now time.Time,
) error {
	known := m.knownOwner(login.Owner, now)
	stale := known != nil && known.ended != nil
	if login.Generation >= 0 {
		stale = known == nil || known.generation != login.Generation
	}
	if stale || now.Sub(login.At).Abs() > loginLife {
		return ErrStaleLogin
	}
	if deadline <= now.UnixMilli() {
		return ErrNoDeadline
	}
	known = m.owner(login.Owner, now)
	if _, again := known.sessions[key]; !again {
		if _, err := m.live(key, now); errors.Is(err, ErrInvalidated) {
			return ErrConflict
		}
		if limit > 0 {
			if err := m.makeRoom(known, inPlaceOf, now); err != nil {
				return err
			}
		}
	}
	known.enter(key, time.UnixMilli(deadline), now)
	return nil
}

// makeRoom sees to it that an owner may have one more session, beside that of the ref leaves. Once
// that has been ended, or has moved, nobody else is ended for a login that can only go on from
// there.
func (m *MemoryStore) makeRoom(o *owned, leaves string, now time.Time) error {
	var live []OwnedSession
	moving := 0
	end := func(key string) error {
		_, err := m.endLive(key, InvalidateOptions{Reason: Revoked, spares: func(key string) (bool, error) {
			_, entered := o.sessions[key]
			return entered, nil
		}}, now)
		if err == nil {
			delete(o.sessions, key)
		}
		return err
	}
	for key, in := range o.sessions {
		e, err := m.live(key, now)
		left := m.entries[key]
		switch {
		case m.ref(key) == leaves:
		case err == nil:
			s := e.session()
			live = append(live, s.owned(m.ref(key)))
		case errors.Is(err, ErrNotFound) && now.Sub(in.at) < m.placeKept(),
			errors.Is(err, ErrInvalidated) && left.ended.underWay(left.successor != "" || left.record != nil):
			moving++
		default:
			if err := end(key); err != nil {
				return err
			}
		}
	}
	refs, err := excess(live, moving, m.maxSessions, m.whenFull)
	if _, gives := o.sessions[m.prefix+leaves]; len(refs) > 0 && leaves != "" && !gives {
		_, met := m.live(m.prefix+leaves, now)
		if errors.Is(met, ErrInvalidated) && !m.entries[m.prefix+leaves].pending() {
			return ErrTooManySessions
		}
	}
	for _, ref := range refs {
		if err == nil {
			err = end(m.prefix + ref)
		}
	}
	return err
}

// pending reports whether the session that has left this id may be about to be given another one.
func (e *entry) pending() bool {
	return e.successor == "" && e.record != nil && e.ended.Reason == Rotated
}

// Release implements [Binder].
func (m *MemoryStore) Release(ctx context.Context, b Binding) error {
	ctx, op := m.beginRef(ctx, "release", b.Ref)
	return op.end(m.release(ctx, b))
}

func (m *MemoryStore) release(ctx context.Context, b Binding) error {
	key, err := m.refKey(b.Ref)
	if err == nil && !b.owned() {
		err = ErrInvalidID
	}
	if err = cmp.Or(err, ctx.Err()); err == nil {
		err = m.invalidate(key, InvalidateOptions{})
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unlist(b.Owners, key)
	return nil
}

// Sessions implements [Binder].
func (m *MemoryStore) Sessions(ctx context.Context, owner string) ([]OwnedSession, error) {
	ctx, op := m.begin(ctx, "sessions", owner)
	all, err := m.sessions(ctx, owner)
	return all, op.end(err)
}

func (m *MemoryStore) sessions(ctx context.Context, owner string) ([]OwnedSession, error) {
	digest, err := ownerOf(owner)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	o := m.knownOwner(digest, now)
	if o == nil {
		return nil, nil
	}
	var all []OwnedSession
	for key := range o.sessions {
		if e, err := m.live(key, now); err == nil {
			s := e.session()
			s.ExpiresAt = e.expires
			if slices.Contains(s.Owners(), digest) { // or it was kept from this owner by another one
				all = append(all, s.owned(m.ref(key)))
			}
		}
	}
	return all, nil
}

// InvalidateOwned implements [Binder].
func (m *MemoryStore) InvalidateOwned(
	ctx context.Context, owner, ref string, opts ...InvalidateOption,
) error {
	ctx, op := m.beginRef(ctx, "invalidate owned", ref)
	return op.end(m.invalidateOwned(ctx, owner, ref, revocation(collect(opts))))
}

func (m *MemoryStore) invalidateOwned(ctx context.Context, owner, ref string, o InvalidateOptions) error {
	digest, err := ownerOf(owner)
	key, known := m.refKey(ref)
	if known != nil {
		known = ErrNotFound
	}
	if err := cmp.Or(err, known, ctx.Err()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	key, err = m.member(digest, key, now)
	if err == nil {
		_, err = m.endLive(key, o, now)
	}
	if err == nil {
		m.unlist([]string{digest}, key)
	}
	return err
}

// member returns key, or that of the id to which its session has moved, if it is among an owner's
// sessions, or ErrNotFound.
func (m *MemoryStore) member(digest, key string, now time.Time) (string, error) {
	o := m.knownOwner(digest, now)
	for range maxHops {
		if o == nil {
			return "", ErrNotFound
		}
		if _, ok := o.sessions[key]; ok {
			return key, nil
		}
		e := m.entries[key]
		if e == nil || !now.Before(e.expires) || e.successor == "" {
			return "", ErrNotFound
		}
		key = e.successor
	}
	return "", errTooManyHops
}

// InvalidateOwner implements [Binder].
func (m *MemoryStore) InvalidateOwner(
	ctx context.Context, owner string, opts ...InvalidateOption,
) (int, error) {
	ctx, op := m.begin(ctx, "invalidate owner", owner)
	n, err := m.invalidateOwner(ctx, owner, revocation(collect(opts)))
	return n, op.end(err)
}

func (m *MemoryStore) invalidateOwner(ctx context.Context, owner string, o InvalidateOptions) (n int, err error) {
	digest, err := ownerOf(owner)
	except := ""
	if err == nil && o.Except != nil {
		except, err = m.key(*o.Except)
	}
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if except != "" {
		if except, err = m.member(digest, except, now); err != nil {
			return 0, err
		}
	}
	known := m.owner(digest, now)
	known.generation++
	known.ended = &InvalidatedError{Reason: o.Reason, At: now.Truncate(time.Millisecond)}
	m.watches.hint(m.ownerKey(digest))
	for key := range known.sessions {
		if key == except {
			continue
		}
		live, err := m.endLive(key, InvalidateOptions{Reason: o.Reason, spares: func(key string) (bool, error) {
			return key == except, nil
		}}, now)
		if err != nil {
			return n, err
		}
		if live {
			n++
		}
		delete(known.sessions, key)
	}
	return n, nil
}
