package tombstore

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Binder is a Store that knows whose sessions are: for logging a user out everywhere, and for pages
// that list a user's devices. Both stores of this package implement it. It is safe for concurrent
// use.
//
// A login takes three steps. BeginLogin comes before the password is looked at, so that a login
// whose password was checked before InvalidateOwner cannot succeed after it. Reserve enters the id
// that the session will have among the owner's. Then the session is written under that id, by Write
// with [Bound], by Rotate with [WithBinding], or by FinishRenewal of a [Renewal] that has the
// Binding. A login begins a new life: creation time, deadline, owner and label are those of the
// Binding, whatever the session was before. A move without a Binding keeps them.
//
// An owner is whatever the program calls its users, 1 to 1024 bytes; otherwise every method must
// return an error wrapping [ErrInvalidID]. No error may contain one.
type Binder interface {
	Store

	// BeginLogin returns what Reserve needs to know of the moment at which a login begins. It
	// changes nothing. Call it when the owner is known and before the proof of who it is, such as
	// the password, is compared; never for a form that is only shown.
	BeginLogin(ctx context.Context, owner string) (Login, error)

	// Reserve enters id, which must be new, among the sessions of the login's owner. A session of an
	// owner needs a deadline, by [Until] or by WithAbsoluteTimeout; the sooner one counts.
	//
	// It must return an error wrapping [ErrStaleLogin] if InvalidateOwner has come since the login
	// began, or if that is more than an hour ago, [ErrNoDeadline] if there is no deadline or it has
	// passed, [ErrTooManySessions] if the owner has as many sessions as WithMaxSessions allows,
	// [ErrConflict] if id was reserved before and its session has ended or moved, and [ErrTooLarge]
	// if the label is longer than 1024 bytes. With [ErrUnacknowledged] the Binding is valid. With
	// [ErrUnknownOutcome] it is good for Release, and for nothing else.
	Reserve(ctx context.Context, id string, login Login, opts ...ReserveOption) (Binding, error)

	// Adopt makes a session that is live the login's owner's, in place: for sessions that were begun
	// before the program used owners, when they are met next. Nothing else does that, since whoever
	// knew the id before the user was known would know it afterwards: a login is Reserve. Id, data,
	// version and creation time stay; the deadline is the soonest of that which the session has, of
	// Until, and of WithAbsoluteTimeout from its creation on. It is safe to repeat, and changes
	// nothing then. It returns the session as it is stored: who saves it as it was before, by
	// Replacing, meets ErrConflict.
	//
	// It must return an error wrapping [ErrNotFound] or an [*InvalidatedError] if there is no live
	// session, [ErrConflict] if it is another owner's, and what Reserve returns of a login, a deadline,
	// a label or a limit. An InvalidateOwner that came before does not reach the session.
	Adopt(ctx context.Context, id string, login Login, opts ...ReserveOption) (Session, error)

	// Release gives up what Reserve has entered: for a login that fails after it. It ends the
	// session of the id, whether that was written or not, and then takes it out.
	Release(ctx context.Context, b Binding) error

	// Sessions returns the live sessions of an owner, in no order. One that is between two ids may
	// be missing. If an InvalidateOwner was broken off, Sessions goes on with it first. With
	// [ErrCorrupt] it returns those that it can read.
	Sessions(ctx context.Context, owner string) ([]OwnedSession, error)

	// InvalidateOwned is Invalidate for the session that Sessions returned with ref, with the reason
	// [Revoked] unless another one is given. It must return an error wrapping [ErrNotFound] if ref
	// is not of that owner: it may come from a form.
	InvalidateOwned(ctx context.Context, owner, ref string, opts ...InvalidateOption) error

	// InvalidateOwner ends all sessions of an owner, with the reason [Revoked] unless another one is
	// given, and returns how many live ones it has ended. After it has returned nil, no session that
	// was reserved before the call is live or becomes live, under any id, and no Reserve succeeds
	// for a login that was begun before the call. It is safe to repeat.
	//
	// With [Except] one session goes on. It must return an error wrapping [ErrNotFound], and change
	// nothing, if that is not a session of the owner. [Thorough] makes it look further. Other options
	// have no effect.
	InvalidateOwner(ctx context.Context, owner string, opts ...InvalidateOption) (int, error)
}

// Login is a login that has begun. It may be kept between the steps of a login, beside what the user
// has proved so far, but never leaves the server: it is not signed. The zero Login is stale.
type Login struct {
	Owner      string    // digest of the owner, as Ref gives it
	Generation int64     // of the owner's sessions; -1 if nothing was known of the owner
	At         time.Time // on the server's clock, in whole milliseconds
}

// MarshalText implements [encoding.TextMarshaler].
func (l Login) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s.%d.%d", l.Owner, l.Generation, l.At.UnixMilli()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler]. It returns ErrStaleLogin for a text that is
// none of MarshalText.
func (l *Login) UnmarshalText(text []byte) error {
	parts := strings.Split(string(text), ".")
	if len(parts) == 3 {
		generation, err := strconv.ParseInt(parts[1], 10, 64)
		at, err2 := strconv.ParseInt(parts[2], 10, 64)
		read := Login{Owner: parts[0], Generation: generation, At: time.UnixMilli(at)}
		if err == nil && err2 == nil && read.valid() {
			*l = read
			return nil
		}
	}
	return wrap("login", ErrStaleLogin)
}

func (l *Login) valid() bool { return digestOf(l.Owner) != nil && l.Generation >= -1 }

// Binding is an id that is reserved for a session of an owner. It is for the process that reserved
// it, and good for ten minutes, or half of WithTombstoneTTL if that is shorter.
type Binding struct {
	Ref       string // of the id
	Owner     string // digest of the owner, as Ref gives it
	Label     string
	CreatedAt time.Time // on the server's clock, in whole milliseconds
	Deadline  time.Time

	until time.Time // until when a session may be written with it
}

// OwnedSession is a live session in the list of its owner's.
type OwnedSession struct {
	// Ref stands for the session in InvalidateOwned. It is of no use as a cookie, so it may be in a
	// form. With WithPlainIDs it is the id itself.
	Ref       string
	Label     string
	CreatedAt time.Time // when the user has logged in, on the server's clock
	ExpiresAt time.Time // unless it is used before
	Deadline  time.Time // however it is used
}

// ReserveOption is an option of Reserve: Until or Label.
type ReserveOption func(*ReserveOptions)

// ReserveOptions is what the options of one Reserve add up to.
type ReserveOptions struct {
	Until time.Time // zero: none
	Label string
}

// Until sets the deadline of a session, after which it is no longer live, however often it is used. t
// is the caller's; a deadline that follows from WithAbsoluteTimeout is on the server's clock.
func Until(t time.Time) ReserveOption { return func(o *ReserveOptions) { o.Until = t } }

// Label sets what Sessions shows of a session, to tell devices apart: at most 1024 bytes. It stays
// with the session.
func Label(text string) ReserveOption { return func(o *ReserveOptions) { o.Label = text } }

// Bound makes Write store the session for which b was reserved, if the id is unused (IfAbsent).
// Write then fails with ErrInvalidated if the owner's sessions have been ended meanwhile.
func Bound(b Binding) WriteOption { return func(o *WriteOptions) { o.Binding = &b } }

// WithBinding makes Rotate log the session in: it goes on under the new id, for which b was
// reserved, and begins a new life. Without WithData it keeps its remaining TTL, which the deadline
// of its old life may have cut short.
func WithBinding(b Binding) RotateOption { return func(o *RotateOptions) { o.Binding = &b } }

// Except lets one session go on when InvalidateOwner ends the others.
func Except(id string) InvalidateOption { return func(o *InvalidateOptions) { o.Except = id } }

// Thorough makes InvalidateOwner end the sessions, too, that name the owner in their record and are not
// among the owner's: when the server may have lost that key, by an eviction, without persistence or in
// a failover. It walks through all keys of the server, as List does, and fails as that does; a value that
// nobody can read is ErrCorrupt, once the walk is over. Except finds its session only if that is among
// the owner's, where Adopt puts it. MemoryStore loses nothing, and ignores it.
func Thorough() InvalidateOption { return func(o *InvalidateOptions) { o.Thorough = true } }

const (
	itemOwner = 1 // digest
	itemLabel = 2

	maxLabel   = 1024          // bytes
	maxMilli48 = 1<<48 - 1     // ms since 1970
	loginLife  = time.Hour     // bind.lua has it too
	ownerLife  = 2 * time.Hour // of an owner's key, beside the tombstone TTL
	entryBatch = 500           // entries of an owner that are looked at in one command
	headRead   = 22 + 2 + 3 + 16 + 3 + maxLabel

	// ownerMark is what an owner's key has between the prefix and the digest. It is in no ref.
	ownerMark = "o:"

	// reservedFor is how long a session may be written after Reserve: as long as a request may last.
	// A tombstone that was left for it in between must live as long.
	reservedFor = 10 * time.Minute
)

// errOwned says that a session has an owner, so it moves in steps.
var errOwned = errors.New("session has an owner")

// ownerOf returns the digest of an owner.
func ownerOf(owner string) (string, error) {
	if owner == "" || len(owner) > maxIDLength {
		return "", ErrInvalidID
	}
	return Ref(owner), nil
}

// digestOf returns the bytes of a digest in text, or nil.
func digestOf(text string) []byte {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != refEntropy || len(text) != base64.RawURLEncoding.EncodedLen(refEntropy) {
		return nil
	}
	return raw
}

func (c *config) ownerKey(digest string) string { return c.prefix + ownerMark + digest }

// acceptable returns why nothing can be done with a login and these options, whatever the server knows.
func acceptable(login Login, o ReserveOptions, now time.Time) error {
	switch {
	case !login.valid():
		return ErrStaleLogin
	case len(o.Label) > maxLabel:
		return fmt.Errorf("%w: label of %d bytes, at most %d", ErrTooLarge, len(o.Label), maxLabel)
	case !o.Until.IsZero() && !o.Until.After(now):
		return ErrNoDeadline
	}
	return nil
}

// bind returns what is known of a Binding before it is reserved: complete adds the rest.
func (c *config) bind(ref string, login Login, o ReserveOptions, now time.Time) (Binding, error) {
	err := acceptable(login, o, now)
	if err == nil && o.Until.IsZero() && c.absolute == 0 {
		err = ErrNoDeadline
	}
	if err != nil {
		return Binding{}, err
	}
	return Binding{Ref: ref, Owner: login.Owner, Label: o.Label}, nil
}

// complete makes a Binding valid that was asked for at the moment begun. Both times are the server's,
// in ms since 1970.
func (c *config) complete(b *Binding, at, deadline int64, begun time.Time) {
	b.CreatedAt, b.Deadline = time.UnixMilli(at), time.UnixMilli(deadline)
	b.until = begun.Add(min(reservedFor, c.tombstoneTTL/2))
}

// untilMillis returns a deadline as bind.lua takes it.
func untilMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return min(t.UnixMilli(), maxMilli48)
}

// usable returns why a session may not be written under ref with b.
func (b *Binding) usable(ref string) error {
	switch {
	case b.Ref != ref || digestOf(b.Owner) == nil:
		return ErrInvalidID
	case !time.Now().Before(b.until):
		return ErrStaleLogin
	case !time.Now().Before(b.Deadline):
		return ErrNoDeadline
	}
	return nil
}

// header returns the header of the session that b begins.
func (b *Binding) header() []byte {
	items := appendItem(nil, itemOwner, digestOf(b.Owner))
	if b.Label != "" {
		items = appendItem(items, itemLabel, []byte(b.Label))
	}
	header := newHeader(0, b.CreatedAt.UnixMilli(), b.Deadline.UnixMilli())
	header[1] |= flagItems
	header = binary.BigEndian.AppendUint16(header, uint16(len(items)))
	return append(header, items...)
}

func appendItem(items []byte, kind byte, value []byte) []byte {
	items = binary.BigEndian.AppendUint16(append(items, kind), uint16(len(value)))
	return append(items, value...)
}

// itemIn returns an item of a header, or nil.
func itemIn(header []byte, kind byte) []byte {
	if len(header) < headerSize+2 {
		return nil
	}
	for items := header[headerSize+2:]; len(items) >= 3; {
		size := 3 + int(binary.BigEndian.Uint16(items[1:]))
		if size > len(items) {
			return nil
		}
		if items[0] == kind {
			return items[3:size]
		}
		items = items[size:]
	}
	return nil
}

// ownerIn returns the digest of the owner that a header names, or "".
func ownerIn(header []byte) string {
	digest := itemIn(header, itemOwner)
	if len(digest) != refEntropy {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(digest)
}

// deadlineIn returns the deadline of a header, in ms since 1970.
func deadlineIn(header string) int64 { return milli48(header[offsetDeadline:]) }

// newGeneration returns the generation of a key that is made now. It is random, so that what is left
// of a key that was lost is not taken for its own, and small, so that scores are exact.
func newGeneration() string { return decimal(1 + rand.Int64N(1<<20-1)) }

// An owner's key is a sorted set:
//
//	g      the generation that is open, as -2*generation, and one less once there was a revoke
//	l+ref  a session: generation * 2^32 + its deadline in seconds + 1 h, for clocks differ
//	w+ref  an id that was entered in the last hour, so that it is not entered again by an attempt
//	       that comes late, and that may not be written yet: minus the time, in seconds
//	x+...  a revoke that was carried out in the last hour: minus the time
//
// A revoke opens the next generation, in one step, and what has a lower one is being ended. An entry
// is taken out only when there is a tombstone under its id, or when its deadline has passed, so at
// any moment whoever ends all entries, and follows them, ends all sessions.

// BeginLogin implements [Binder].
func (s *RedisStore) BeginLogin(ctx context.Context, owner string) (Login, error) {
	l, err := s.beginLogin(ctx, owner)
	return l, wrap("begin login", err)
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
	m, err := res.ToMessage()
	if err != nil {
		return 0, err
	}
	if !m.IsArray() {
		return 0, errUnexpected
	}
	parts, err := m.ToArray()
	if err != nil || len(parts) != 2 || !parts[0].IsString() || !parts[1].IsString() {
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
	b, err := s.reserve(ctx, id, login, collect(opts))
	return b, wrap("reserve", err)
}

func (s *RedisStore) reserve(ctx context.Context, id string, login Login, o ReserveOptions) (Binding, error) {
	key, err := s.key(id)
	if err != nil {
		return Binding{}, err
	}
	begun := time.Now()
	b, err := s.bind(s.ref(key), login, o, begun)
	if err != nil {
		return Binding{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	at, deadline, late, err := s.enterLogin(ctx, b.Ref, login, untilMillis(o.Until), s.argAbsolute)
	switch {
	case errors.Is(err, ErrUnknownOutcome):
		return b, err
	case err != nil:
		return Binding{}, err
	}
	s.complete(&b, at, deadline, begun)
	return b, late
}

// enterLogin enters ref for a login, and makes room if that is needed. Without an absolute timeout or
// a deadline the other is "0" or 0.
func (s *RedisStore) enterLogin(
	ctx context.Context, ref string, login Login, until int64, absolute string,
) (at, deadline int64, late, err error) {
	args := []string{
		ref,
		decimal(until),
		s.ownerTTL(),
		newGeneration(),
		"",
		"",
		decimal(login.At.UnixMilli()),
		absolute,
	}
	if login.Generation >= 0 {
		args[5] = decimal(login.Generation)
	}
	if s.maxSessions > 0 {
		args = append(args, strconv.Itoa(s.maxSessions))
	}
	lost := false
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		at, deadline, late, err = s.enter(ctx, login.Owner, args...)
		if !errors.Is(err, errFull) {
			break
		}
		lost = lost || errors.Is(err, ErrUnknownOutcome)
		if err = s.makeRoom(ctx, s.ownerKey(login.Owner)); err != nil {
			break
		}
		if pause > firstPause && !sleep(ctx, pause) { // others come first, again and again
			err = ErrTooManySessions
			break
		}
	}
	if err != nil && lost { // an attempt whose reply was lost may yet enter it
		err = unknown(nil)
	}
	return at, deadline, late, err
}

// ownerTTL returns how long an owner's key lives at least. No login from before a revoke is accepted
// for longer than an hour, so the revoke must not be forgotten before.
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

// rebind tells the key of a session's owner that the session, whose header w has, leaves oldKey for
// the new id, which is about to be written. It comes when the old id has been ended and before the
// new one is written: until then the owner's entry leads to the new id through the tombstone of the
// old one, and from then on it names it. With b the session begins a new life with an owner who has
// an entry for it already; that of the old id goes, so that its end does not follow the session into
// the new life. If any of this fails the session is not written.
func (s *RedisStore) rebind(ctx context.Context, oldKey string, w *writing, b *Binding) (late, err error) {
	owner := ownerIn([]byte(w.begins))
	switch {
	case b != nil:
		if owner != "" {
			err = s.dropEntries(ctx, s.ownerKey(owner), s.ref(oldKey))
		}
		w.begins = string(b.header())
	case owner != "":
		_, _, late, err = s.enter(ctx, owner,
			s.ref(w.key),
			decimal(deadlineIn(w.begins)),
			s.ownerTTL(),
			newGeneration(),
			s.ref(oldKey),
		)
	}
	switch {
	case errors.Is(err, ErrStaleLogin): // the old id has been ended, and nothing leads to the new one
		return nil, &InvalidatedError{Reason: Revoked, At: time.Now().Truncate(time.Millisecond)}
	case err != nil && !errors.Is(err, ErrUnknownOutcome):
		err = unknown(err)
	}
	return late, err
}

// unlist takes a session that was ended out of its owner's key, if its header names one. An entry
// that stays is in nobody's way, so it is tried once.
func (s *RedisStore) unlist(ctx context.Context, header, key string) {
	if owner := ownerIn([]byte(header)); owner != "" {
		_ = s.client.Do(ctx, s.removal(s.ownerKey(owner), s.ref(key))).Error()
	}
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
	return wrap("release", s.release(ctx, b))
}

func (s *RedisStore) release(ctx context.Context, b Binding) error {
	key, err := s.refKey(b.Ref)
	if err == nil && digestOf(b.Owner) == nil {
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
	_ = s.client.Do(ctx, s.removal(s.ownerKey(b.Owner), b.Ref)).Error()
	return nil
}

// InvalidateOwner implements [Binder].
func (s *RedisStore) InvalidateOwner(
	ctx context.Context, owner string, opts ...InvalidateOption,
) (int, error) {
	n, err := s.invalidateOwner(ctx, owner, collect(opts))
	return n, wrap("invalidate owner", err)
}

func (s *RedisStore) invalidateOwner(ctx context.Context, owner string, o InvalidateOptions) (int, error) {
	digest, err := ownerOf(owner)
	if err != nil {
		return 0, err
	}
	except := ""
	if o.Except != "" {
		if except, err = s.key(o.Except); err != nil {
			return 0, err
		}
	}
	key := s.ownerKey(digest)
	generation, late, err := s.revoke(ctx, key, except)
	if err != nil {
		return 0, err
	}
	n, err := s.endOlder(ctx, key, generation, revocation(o).Reason)
	if o.Thorough {
		more, err2 := s.endUnlisted(ctx, digest, revocation(o).Reason)
		n, err = n+more, worse(err, err2)
	}
	return n, cmp.Or(err, late)
}

// endUnlisted ends the sessions of an owner that have no entry, after a revoke, and returns how many
// live ones it has ended. Those that move meanwhile need not be found: bind.lua refuses a move that
// comes after a revoke and has no entry, and one that came before it has made one.
func (s *RedisStore) endUnlisted(ctx context.Context, owner string, reason Reason) (n int, first error) {
	key := s.ownerKey(owner)
	var refs []string
	end := func() error {
		unlisted, err := s.unlisted(ctx, key, refs)
		if refs = nil; err != nil || len(unlisted) == 0 {
			return err
		}
		live, _, err := s.endAll(ctx, key, unlisted, reason)
		n += live
		return err
	}
	for e, err := range s.List(ctx) {
		if err != nil {
			first = worse(first, err)
			continue // the walk goes on only after an ErrCorrupt
		}
		if ownerIn(e.header) != owner {
			continue
		}
		if refs = append(refs, e.Ref); len(refs) == listChunk {
			first = worse(first, end())
		}
	}
	if len(refs) > 0 {
		first = worse(first, end())
	}
	return n, first
}

// unlisted returns which of refs have no entry in an owner's key.
func (s *RedisStore) unlisted(ctx context.Context, key string, refs []string) (without []string, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	members := make([]string, len(refs))
	for i, ref := range refs {
		members[i] = "l" + ref
	}
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZMSCORE").Keys(key).Args(members...).Build()
	})
	reply, err := res.ToMessage()
	if err != nil {
		return nil, explain(err)
	}
	if !reply.IsArray() {
		return nil, errUnexpected
	}
	scores, err := reply.ToArray()
	if err != nil || len(scores) != len(refs) {
		return nil, errUnexpected
	}
	for i, ref := range refs {
		if scores[i].IsNil() {
			without = append(without, ref)
		}
	}
	return without, nil
}

// revocation gives an end the reason Revoked if it has none. Rotated would be no end: it follows no
// session, and leaves renewals under way alone.
func revocation(o InvalidateOptions) InvalidateOptions {
	if o.Reason == 0 || o.Reason == Rotated {
		o.Reason = Revoked
	}
	return o
}

// revoke opens the next generation, and returns it. The session at except, which may be on its way
// to another id, goes along.
func (s *RedisStore) revoke(ctx context.Context, key, except string) (generation int64, late, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	nonce, made := newVersion().bytes(), newGeneration()
	for range maxHops {
		args := []string{
			nonce,
			s.ownerTTL(),
			made,
		}
		if except != "" {
			args = append(args, s.ref(except))
		}
		reply, lost, err := s.ask(ctx, &revokeScript, []string{key}, args...)
		if err != nil {
			return 0, nil, err
		}
		switch reply[0] {
		case codeDone:
			again, late := s.acknowledged(ctx, &revokeScript, key, func() []string { return args })
			if again != "" && again[0] != codeDone { // a failover has taken the revoke, and the session that is to go on
				return 0, nil, unknown(nil)
			}
			reply = cmp.Or(again, reply)
			generation, err := generationOf(reply[1:])
			return generation, late, err
		case codeAbsent: // the script changes nothing then, so it can be asked again
			next, err := s.successor(ctx, except)
			if err != nil {
				return 0, nil, err
			}
			if except, err = s.refKey(next); err != nil {
				return 0, nil, ErrNotFound
			}
		default:
			return 0, nil, cmp.Or(outcome(reply, lost), errUnexpected)
		}
	}
	return 0, nil, errTooManyHops
}

// successor returns the ref to which the session at key has moved, or "".
func (s *RedisStore) successor(ctx context.Context, key string) (string, error) {
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("HMGET").Keys(key).Args("t", "s", "c").Build()
	})
	_, successor, _, err := tombstoneOf(res)
	if isWrongType(err) { // it is live
		return "", nil
	}
	return successor, explain(err)
}

// endOlder ends the sessions of the generations before this one, and returns how many live ones it
// has ended. It is what an InvalidateOwner does, and what is left to do of one that was broken off.
// What can be ended is ended, and what cannot stays entered until its deadline has passed; of several
// failures it returns the worst.
func (s *RedisStore) endOlder(
	ctx context.Context, key string, generation int64, reason Reason,
) (n int, first error) {
	below := "(" + decimal(generation<<32)
	failed := map[string]bool{}
	for skip, more := 0, false; ; {
		entries, err := s.entries(ctx, key, "1", below, skip)
		if err != nil {
			return n, worse(first, err)
		}
		if len(entries) == 0 {
			if !more {
				return n, first
			}
			skip, more = 0, false // what moves, or goes, shifts those that are passed over
			continue
		}
		var refs []string
		for _, e := range entries {
			if !failed[e.ref] {
				refs = append(refs, e.ref)
			}
		}
		live, ended, err := s.endAll(ctx, key, refs, reason)
		n += live
		first = worse(first, err)
		if len(ended) < len(refs) {
			now := time.Now()
			for _, e := range entries {
				switch {
				case failed[e.ref] || slices.Contains(ended, e.ref):
				case e.expired(now): // bind.lua prunes what is not closed
					ended = append(ended, e.ref)
				default:
					failed[e.ref], more = true, true
				}
			}
		}
		if len(ended) > 0 {
			if err := s.dropEntries(ctx, key, ended...); err != nil {
				return n, worse(first, err)
			}
		}
		skip += len(entries) - len(ended)
	}
}

// scored is an entry of an owner's key.
type scored struct {
	ref   string
	score int64
}

// expired reports whether the session's deadline has passed an hour ago.
func (e scored) expired(now time.Time) bool { return e.score&(1<<32-1) < now.Unix() }

// entries returns at most entryBatch sessions of an owner whose scores are between two, from the one
// of number skip on.
func (s *RedisStore) entries(
	ctx context.Context, key, from, to string, skip int,
) (entries []scored, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZRANGE").Keys(key).Args(from, to,
			"BYSCORE", "LIMIT", strconv.Itoa(skip), strconv.Itoa(entryBatch), "WITHSCORES").Build()
	})
	reply, err := res.ToMessage()
	if err != nil {
		return nil, explain(err)
	}
	if !reply.IsArray() {
		return nil, errUnexpected
	}
	parts, err := reply.ToArray()
	for len(parts) > 0 && err == nil {
		pair := parts // in RESP3 each is an array of its own
		if parts[0].IsArray() {
			pair, err = parts[0].ToArray()
			parts = parts[1:]
		} else {
			parts = parts[min(2, len(parts)):]
		}
		if err != nil || len(pair) < 2 {
			return nil, errUnexpected
		}
		member, err := pair[0].ToString()
		score, err2 := pair[1].AsFloat64()
		if err != nil || err2 != nil {
			return nil, errUnexpected
		}
		ref, ours := strings.CutPrefix(member, "l")
		if _, err := s.refKey(ref); err != nil || !ours {
			return nil, ErrCorrupt
		}
		entries = append(entries, scored{ref, int64(score)})
	}
	return entries, err
}

// endAll ends the sessions of refs. It returns how many of them were live, and for which there is a
// tombstone now that is confirmed. Of several failures it returns the worst. It does not follow a
// session to an id that has an entry of its own, which says whether that is to be ended: what leads
// there may be the entry of a late attempt.
func (s *RedisStore) endAll(
	ctx context.Context, ownerKey string, refs []string, reason Reason,
) (live int, ended []string, first error) {
	o := InvalidateOptions{Reason: reason, spares: func(key string) (bool, error) {
		_, entered, err := s.score(ctx, ownerKey, "l"+s.ref(key))
		return entered, err
	}}
	rest := refs
	if s.acks == 0 {
		live, ended, rest = s.endAtOnce(ctx, refs, reason)
	}
	for _, ref := range rest {
		met, err := s.endLive(ctx, s.prefix+ref, o)
		if met {
			live++
		}
		if first = worse(first, err); err == nil {
			ended = append(ended, ref)
		} else if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrUnacknowledged) {
			break // the others would wait as long for a server that is away
		}
	}
	return live, ended, first
}

// score returns the score of a member of an owner's key, if it is there.
func (s *RedisStore) score(ctx context.Context, key, member string) (score int64, found bool, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZSCORE").Keys(key).Args(member).Build()
	})
	score, found, err = scoreOf(res)
	return score, found, explain(err)
}

func scoreOf(res rueidis.RedisResult) (score int64, found bool, err error) {
	if err := res.Error(); rueidis.IsRedisNil(err) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, err
	}
	float, err := res.AsFloat64()
	if err != nil {
		return 0, false, errUnexpected
	}
	return int64(float), true, nil
}

// worse returns the first of two errors, unless that is ErrUnacknowledged, which says that something
// was ended.
func worse(first, second error) error {
	if first == nil || errors.Is(first, ErrUnacknowledged) && second != nil {
		return second
	}
	return first
}

// endAtOnce ends sessions in pipelines. What is not done with one command each, because a session
// has moved, or something has failed, is left to others.
func (s *RedisStore) endAtOnce(
	ctx context.Context, refs []string, reason Reason,
) (live int, ended, rest []string) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	args := s.endArgs(ctx, reason, "")
	if s.sendable(ctx) != nil {
		return 0, nil, refs
	}
	for chunk := range slices.Chunk(refs, listChunk) {
		for len(chunk) > 0 {
			commands := make([]rueidis.Completed, len(chunk))
			for i, ref := range chunk {
				commands[i] = s.client.B().Evalsha().Sha1(invalidateScript.sha1).Numkeys(1).Key(s.prefix + ref).Arg(args...).Build()
			}
			var unloaded []string // on nodes that do not know the script
			for i, res := range s.client.DoMulti(ctx, commands...) {
				ref := chunk[i]
				moveEpoch(s.prefix + ref)
				if isNoScript(res.Error()) {
					if unloaded = append(unloaded, ref); len(unloaded) > 1 {
						continue
					}
					res, _ = s.run(ctx, &invalidateScript, []string{s.prefix + ref}, args...) // loads it
				}
				reply, err := bytesOf(res)
				switch {
				case err != nil || len(reply) == 0:
					rest = append(rest, ref)
				case reply[0] == codeDone:
					live++
					ended = append(ended, ref)
				case reply[0] == codeAbsent || reply[0] == codeEnded && len(reply) == 1+endSize:
					ended = append(ended, ref)
				default:
					rest = append(rest, ref)
				}
			}
			chunk = unloaded[min(1, len(unloaded)):]
		}
	}
	return live, ended, rest
}

// InvalidateOwned implements [Binder].
func (s *RedisStore) InvalidateOwned(
	ctx context.Context, owner, ref string, opts ...InvalidateOption,
) error {
	return wrap("invalidate owned", s.invalidateOwned(ctx, owner, ref, revocation(collect(opts))))
}

// invalidateOwned looks for ref among the owner's, and for what it has become if it is not there. An
// id has one owner for life, so what it finds there is that owner's when it is ended, too.
func (s *RedisStore) invalidateOwned(ctx context.Context, owner, ref string, o InvalidateOptions) error {
	digest, err := ownerOf(owner)
	if err != nil {
		return err
	}
	key, err := s.refKey(ref)
	if err != nil {
		return err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	for range maxHops {
		_, entered, err := s.score(ctx, s.ownerKey(digest), "l"+s.ref(key))
		if err != nil {
			return err
		}
		if entered {
			return s.end(ctx, key, o)
		}
		next, err := s.successor(ctx, key)
		if err != nil {
			return err
		}
		if key, err = s.refKey(next); err != nil {
			_, _, err = s.generation(ctx, s.ownerKey(digest)) // foreign, perhaps
			return cmp.Or(err, ErrNotFound)
		}
	}
	return errTooManyHops
}

// Sessions implements [Binder].
func (s *RedisStore) Sessions(ctx context.Context, owner string) ([]OwnedSession, error) {
	all, err := s.sessions(ctx, owner)
	return all, wrap("sessions", err)
}

func (s *RedisStore) sessions(ctx context.Context, owner string) (all []OwnedSession, err error) {
	digest, err := ownerOf(owner)
	if err != nil {
		return nil, err
	}
	key := s.ownerKey(digest)
	generation, _, err := s.generation(ctx, key)
	if err != nil || generation < 0 {
		return nil, err
	}
	_, corrupt := s.endOlder(ctx, key, generation, Revoked)
	if corrupt != nil && !errors.Is(corrupt, ErrCorrupt) {
		return nil, corrupt
	}
	err = s.eachEntry(ctx, key, generation<<32, func(refs []string) error {
		found, err := s.look(ctx, refs)
		for _, l := range found {
			switch l.state {
			case stateLive:
				all = append(all, l.OwnedSession)
			case stateForeign, stateFuture:
				corrupt = ErrCorrupt
			}
		}
		return err
	})
	return all, cmp.Or(err, corrupt)
}

// eachEntry calls visit with the refs of all entries with at least a score, in chunks.
func (s *RedisStore) eachEntry(
	ctx context.Context, key string, least int64, visit func(refs []string) error,
) error {
	named := map[string]bool{}
	var refs []string
	for cursor := uint64(0); ; {
		entries, next, err := s.scanEntries(ctx, key, cursor)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.score >= least && !named[e.ref] {
				named[e.ref] = true
				refs = append(refs, e.ref)
			}
		}
		cursor = next
		for len(refs) >= listChunk || cursor == 0 && len(refs) > 0 {
			chunk := refs[:min(listChunk, len(refs))]
			refs = refs[len(chunk):]
			if err := visit(chunk); err != nil {
				return err
			}
		}
		if cursor == 0 {
			return nil
		}
	}
}

// scanEntries returns some of an owner's entries. Not in the order of their scores: many may have the
// same one, and to pass over them would take the server long.
func (s *RedisStore) scanEntries(
	ctx context.Context, key string, cursor uint64,
) (entries []scored, next uint64, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZSCAN").Keys(key).Args(strconv.FormatUint(cursor, 10),
			"MATCH", "l*", "COUNT", strconv.Itoa(entryBatch)).Build()
	})
	if isReply(res.Error()) {
		return nil, 0, explain(res.Error())
	}
	page, err := res.AsScanEntry()
	if errors.As(err, new(*strconv.NumError)) { // its text quotes the reply
		err = errUnexpected
	}
	if err != nil {
		return nil, 0, err
	}
	for pair := range slices.Chunk(page.Elements, 2) {
		e := scored{}
		if len(pair) == 2 {
			e, err = s.entryOf(pair[0], pair[1])
		}
		if err != nil || e.ref == "" {
			return nil, 0, cmp.Or(err, errUnexpected)
		}
		entries = append(entries, e)
	}
	return entries, page.Cursor, nil
}

// entryOf returns the entry that a member and its score stand for.
func (s *RedisStore) entryOf(member, score string) (scored, error) {
	float, err := strconv.ParseFloat(score, 64)
	if err != nil {
		return scored{}, errUnexpected
	}
	ref, ours := strings.CutPrefix(member, "l")
	if _, err := s.refKey(ref); err != nil || !ours {
		return scored{}, ErrCorrupt
	}
	return scored{ref, int64(float)}, nil
}

// looked is what was found under the ref of an entry.
type looked struct {
	OwnedSession
	state
}

type state byte

const (
	stateAbsent  state = iota
	stateEnded         // or a foreign value that is not a string
	stateForeign       // no version reads it
	stateFuture        // a later version may
	stateLive
)

// look looks at what is under refs.
func (s *RedisStore) look(ctx context.Context, refs []string) (found []looked, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	results, err := s.pipeline(ctx, s.client, func() []rueidis.Completed {
		commands := make([]rueidis.Completed, 0, 2*len(refs))
		for _, ref := range refs {
			commands = append(commands,
				s.client.B().Arbitrary("GETRANGE").Keys(s.prefix+ref).Args("0", strconv.Itoa(headRead-1)).Build(),
				s.client.B().Arbitrary("PTTL").Keys(s.prefix+ref).Build())
		}
		return commands
	})
	if err != nil {
		return nil, explain(err)
	}
	now := time.Now()
	for i, ref := range refs {
		head, err := bytesOf(results[2*i])
		left, err2 := intOf(results[2*i+1])
		if len(head) == headRead && headerOf(head) == nil { // a later version has added something long
			head, err = s.query(ctx, "GETRANGE", s.prefix+ref, "0", strconv.Itoa(headRead+math.MaxUint16))
		}
		l := looked{OwnedSession{Ref: ref}, stateAbsent}
		switch err := cmp.Or(err, err2); {
		case isWrongType(err):
			l.state = stateEnded
		case err != nil:
			return nil, explain(err)
		case len(head) > 0:
			session, err := decode(head, now)
			switch {
			case err == nil:
				session.expireIn(left, now)
				l = looked{session.owned(ref), stateLive}
			case NoSession(err):
			case len(head) >= headerSize && head[0] == kindLive && head[1]&flagStrict != 0:
				l.state = stateFuture
			default:
				l.state = stateForeign
			}
		}
		found = append(found, l)
	}
	return found, nil
}

// owned returns what the list of its owner's sessions says of a session.
func (s *Session) owned(ref string) OwnedSession {
	return OwnedSession{
		Ref:       ref,
		Label:     string(itemIn(s.header, itemLabel)),
		CreatedAt: s.CreatedAt,
		ExpiresAt: s.ExpiresAt,
		Deadline:  time.UnixMilli(s.deadline()),
	}
}
