package tombstore

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Binder is a Store that knows whose sessions it keeps: for logging a user out everywhere, and for
// pages that list a user's devices. Both stores of this package implement it. It is safe for
// concurrent use.
//
// A login takes three steps. BeginLogin comes before the password is looked at, so that a login
// whose password was checked before InvalidateOwner cannot succeed after it. Reserve enters the id
// that the session will have among the owner's. Then the session is written under that id, by Write
// with [Bound], by Rotate with [WithBinding], or by FinishRenewal of a [Renewal] that has the
// Binding. A login begins a new life: creation time, deadline, owner and label are those of the
// Binding, whatever the session was before. A move without a Binding keeps them.
//
// An owner is whatever the program calls its users, 1 to 1024 bytes; otherwise every method must
// return an error wrapping [ErrInvalidID]. No error may contain one. A session may have several,
// such as a user, a tenant, and the session at an identity provider: it is in the list of each of
// them, and the end of any of them ends it. The one of its login comes first, and is the one that
// WithMaxSessions limits.
type Binder interface {
	Store

	// BeginLogin returns what Reserve needs to know about the moment at which a login begins. It
	// changes nothing. Call it once the owner is known, and before the proof, such as the password,
	// is checked; never for a form that is only shown.
	BeginLogin(ctx context.Context, owner string) (Login, error)

	// Reserve enters id, which must be new, among the sessions of the login's owner. A session of
	// an owner needs a deadline, by [Until], by a [Lifetime] or by WithAbsoluteTimeout; the sooner
	// one counts.
	//
	// It must return an error wrapping [ErrStaleLogin] if InvalidateOwner has come since the login
	// began, or if that is more than an hour ago, [ErrNoDeadline] if there is no deadline or it has
	// passed, [ErrTooManySessions] if the owner has as many sessions as WithMaxSessions allows,
	// [ErrConflict] if id was reserved before and its session has ended or moved, and [ErrTooLarge]
	// if the label is longer than 1024 bytes or there are more than four owners. With
	// [ErrUnacknowledged] the Binding is valid. With [ErrUnknownOutcome] it is good for Release,
	// and for nothing else. If one of several owners refuses, id may stay entered among others, so
	// that their end reaches what is written there.
	Reserve(ctx context.Context, id string, login Login, opts ...ReserveOption) (Binding, error)

	// Adopt gives a live session to the login's owner, in place: for sessions that were begun
	// before the program used owners, when they are met next. Nothing else does that, since whoever
	// knew the id before the user was known would know it afterwards: a login is Reserve. Id, data,
	// version, creation time and [Lifetime] stay; the deadline is the sooner one of that which the
	// session has, or otherwise of WithAbsoluteTimeout from its creation on, and of Until. It is
	// safe to repeat, and changes nothing then. It returns the session as it is stored: a save of
	// the session as it was before, by Replacing, meets ErrConflict.
	//
	// A session that already belongs to the login's owner is given the further owners that it does
	// not have yet, and nothing else.
	//
	// It must return an error wrapping [ErrNotFound] or an [*InvalidatedError] if there is no live
	// session, [ErrConflict] if it belongs to another owner, and what Reserve returns for a login,
	// a deadline, a label, a limit or a number of owners. An InvalidateOwner that came before does
	// not reach the session. [InPlaceOf] has no effect.
	Adopt(ctx context.Context, id string, login Login, opts ...ReserveOption) (Session, error)

	// Release gives up what Reserve has entered: for a login that fails after it. It ends the
	// session of the id, whether that was written or not, and then takes it out.
	Release(ctx context.Context, b Binding) error

	// Sessions returns the live sessions of an owner, in no order. One that is between two ids may
	// be missing. If an InvalidateOwner was broken off, Sessions goes on with it first. With
	// [ErrCorrupt] it returns those that it can read.
	Sessions(ctx context.Context, owner string) ([]OwnedSession, error)

	// InvalidateOwned is Invalidate for the session that Sessions returned with ref, with the
	// reason [Revoked] unless another one is given. It must return an error wrapping [ErrNotFound]
	// if ref is not that owner's, or not a ref at all: it may come from a form.
	InvalidateOwned(ctx context.Context, owner, ref string, opts ...InvalidateOption) error

	// InvalidateOwner ends all sessions of an owner, with the reason [Revoked] unless another one
	// is given, and returns how many live ones it has ended. After it has returned nil, no session
	// that was reserved before the call is live or becomes live, under any id, and no Reserve
	// succeeds for a login that was begun before the call. It is safe to repeat.
	//
	// With [Except] one session goes on. It must return an error wrapping [ErrNotFound], and change
	// nothing, if that is not a session of the owner. [Thorough] makes it look further. Other
	// options have no effect.
	InvalidateOwner(ctx context.Context, owner string, opts ...InvalidateOption) (int, error)
}

// Login is a login that has begun. It may be kept between the steps of a login, beside what the
// user has proved so far, but never leaves the server: it is not signed. The zero Login is stale.
type Login struct {
	Owner      string    // digest of the owner, as Ref gives it
	Generation int64     // of the owner's sessions; -1 if nothing was known of the owner
	At         time.Time // on the server's clock, in whole milliseconds
}

// MarshalText implements [encoding.TextMarshaler].
func (l Login) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s.%d.%d", l.Owner, l.Generation, l.At.UnixMilli()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler]. It returns ErrStaleLogin for a text that
// does not come from MarshalText.
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
	Ref       string   // of the id
	Owners    []string // digests, as Ref gives them, the one of the login first
	Label     string
	CreatedAt time.Time // on the server's clock, in whole milliseconds
	Deadline  time.Time
	InPlaceOf string // ref of the session that must move to the id; "" for any, or none

	Idle time.Duration // of the session's own; 0 for none

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

// ReserveOption is an option of Reserve and Adopt: Until, Label, Also, AlsoFinal, InPlaceOf or
// LoginLifetime.
type ReserveOption func(*ReserveOptions)

// ReserveOptions is what the options of one Reserve add up to.
type ReserveOptions struct {
	Until     time.Time // zero: none
	Label     string
	Also      []Login
	AlsoFinal []string
	InPlaceOf *string
	Lifetime  Lifetime
}

// Until sets the deadline of a session, after which it is no longer live, however often it is used.
// t is the caller's; a deadline that follows from WithAbsoluteTimeout is on the server's clock.
func Until(t time.Time) ReserveOption { return func(o *ReserveOptions) { o.Until = t } }

// Label sets what Sessions shows of a session, to tell devices apart: at most 1024 bytes. It stays
// with the session.
func Label(text string) ReserveOption { return func(o *ReserveOptions) { o.Label = text } }

// Also gives a session a further owner, for whom a login was begun beside the one that Reserve is
// given: Reserve returns ErrStaleLogin if either is stale. It may be repeated; four owners are the
// most.
func Also(login Login) ReserveOption {
	return func(o *ReserveOptions) { o.Also = append(o.Also, login) }
}

// AlsoFinal gives a session a further owner who is known only after the proof of who the user is,
// so no login could be begun before it, and who ends once and for all: the session at an OpenID
// provider, whose sid comes with the ID token (OpenID Connect Back-Channel Logout 1.0, section
// 2.1). Once InvalidateOwner has ended that owner, Reserve returns ErrStaleLogin, for two hours and
// the time of WithTombstoneTTL at least, so a logout that overtakes its login wins. It may be
// repeated; four owners are the most.
func AlsoFinal(owner string) ReserveOption {
	return func(o *ReserveOptions) { o.AlsoFinal = append(o.AlsoFinal, owner) }
}

// InPlaceOf does not count the session of an id for WithMaxSessions, if it is the owner's, since it
// is about to give way: for a user who logs in again. The Binding is then good only for a Rotate of
// that id, or the end of its renewal; for anything else it is ErrInvalidID. A repeated Reserve must
// have it, too. One session gives way to one login at a time.
func InPlaceOf(id string) ReserveOption { return func(o *ReserveOptions) { o.InPlaceOf = &id } }

// Bound makes Write store the session for which b was reserved, if the id is unused (IfAbsent).
// Write then fails with ErrInvalidated if the owner's sessions have been ended meanwhile.
func Bound(b Binding) WriteOption { return func(o *WriteOptions) { o.Binding = &b } }

// WithBinding makes Rotate log the session in: it goes on under the new id, for which b was
// reserved, and begins a new life. Without WithData it keeps its remaining TTL, which the deadline
// of its old life may have cut short.
func WithBinding(b Binding) RotateOption { return func(o *RotateOptions) { o.Binding = &b } }

// Except lets one session go on when InvalidateOwner ends the others. An invalid id, such as "", is
// ErrInvalidID.
func Except(id string) InvalidateOption { return func(o *InvalidateOptions) { o.Except = &id } }

// Thorough makes InvalidateOwner also end sessions that name the owner in their record and are
// missing in the owner's key: when the server may have lost that key, by an eviction, without
// persistence or in a failover. It walks through all keys of the server, as List does, and fails as
// that does; a value that nobody can read is ErrCorrupt, once the walk is over. Except finds its
// session only if that is in the owner's key, where Adopt puts it. MemoryStore loses nothing, and
// ignores it.
func Thorough() InvalidateOption { return func(o *InvalidateOptions) { o.Thorough = true } }

const (
	itemOwner = 1 // digest
	itemLabel = 2
	itemIdle  = 3 // idle timeout of the session's own, ms, six bytes

	maxLabel   = 1024 // bytes
	maxOwners  = 4
	maxMilli48 = 1<<48 - 1     // ms since 1970
	loginLife  = time.Hour     // bind.lua has it too
	ownerLife  = 2 * time.Hour // of an owner's key, beside the tombstone TTL
	endShift   = 42            // bits of the time, ms since 1970, in the score of e
	entryBatch = 500           // entries of an owner that are looked at in one command
	headRead   = 22 + 2 + 3 + 6 + maxOwners*(3+16) + 3 + maxLabel

	// ownerMark is what an owner's key has between the prefix and the digest. It is in no ref.
	ownerMark = "o:"

	// reservedFor is how long a session may be written after Reserve: as long as a request may
	// last. A tombstone that was left for it in between must live as long.
	reservedFor = 10 * time.Minute
)

// errInSteps says that a session has an owner, so it moves in steps, or cannot move at once for
// another reason.
var errInSteps = errors.New("session moves in steps")

// ownerOf returns the digest of an owner.
func ownerOf(owner string) (string, error) {
	if owner == "" || len(owner) > maxIDLength {
		return "", ErrInvalidID
	}
	return Ref(owner), nil
}

func (c *config) ownerKey(digest string) string { return c.prefix + ownerMark + digest }

// logins returns the logins of all owners that a session is to have, or why nothing can be done
// with them and the other options, whatever the server knows. The first one is the one that is
// limited.
func (o *ReserveOptions) logins(login Login, now time.Time) ([]Login, error) {
	all := append([]Login{login}, o.Also...)
	for _, name := range o.AlsoFinal {
		digest, err := ownerOf(name)
		if err != nil {
			return nil, err
		}
		// As if nothing had been known of it: such a login is stale once there was a revoke.
		all = append(all, Login{Owner: digest, Generation: -1, At: login.At})
	}
	switch {
	case slices.ContainsFunc(all, func(l Login) bool { return !l.valid() }):
		return nil, ErrStaleLogin
	case len(all) > maxOwners:
		return nil, fmt.Errorf("%w: %d owners, at most %d", ErrTooLarge, len(all), maxOwners)
	case len(o.Label) > maxLabel:
		return nil, fmt.Errorf("%w: label of %d bytes, at most %d", ErrTooLarge, len(o.Label), maxLabel)
	case !o.Until.IsZero() && !o.Until.After(now):
		return nil, ErrNoDeadline
	}
	return all, nil
}

// bind returns what is known of a Binding before it is reserved: complete adds the rest.
func (c *config) bind(ref string, login Login, o ReserveOptions, now time.Time) (Binding, []Login, error) {
	logins, err := o.logins(login, now)
	err = cmp.Or(err, o.Lifetime.valid())
	if err == nil && o.Until.IsZero() && c.absoluteOf(&o.Lifetime) == 0 {
		err = ErrNoDeadline
	}
	b := Binding{Ref: ref, Label: o.Label, Idle: o.Lifetime.Idle}
	if err == nil && o.InPlaceOf != nil {
		var key string
		key, err = c.key(*o.InPlaceOf)
		b.InPlaceOf = c.ref(key)
	}
	if err != nil {
		return Binding{}, nil, err
	}
	b.Owners = withOwners(nil, logins)
	return b, logins, nil
}

// withOwners adds the owners of logins to those that a session has.
func withOwners(owners []string, logins []Login) []string {
	for _, l := range logins {
		if !slices.Contains(owners, l.Owner) {
			owners = append(owners, l.Owner)
		}
	}
	return owners
}

// complete makes a Binding valid that was asked for at the moment begun. Both times are the
// server's, in ms since 1970.
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

// usable returns why the session of a ref, "" for none, may not go on under another one with b.
func (b *Binding) usable(from, ref string) error {
	switch {
	case b.Ref != ref || !b.owned() || b.InPlaceOf != "" && b.InPlaceOf != from:
		return ErrInvalidID
	case !time.Now().Before(b.until):
		return ErrStaleLogin
	case !time.Now().Before(b.Deadline):
		return ErrNoDeadline
	}
	return nil
}

// owned reports whether b names owners as Reserve does.
func (b *Binding) owned() bool {
	foreign := func(digest string) bool { return digestOf(digest) == nil }
	return len(b.Owners) > 0 && len(b.Owners) <= maxOwners && !slices.ContainsFunc(b.Owners, foreign)
}

// header returns the header of the session that b begins.
func (b *Binding) header() []byte {
	items := appendIdle(nil, b.Idle)
	for _, digest := range b.Owners {
		items = appendItem(items, itemOwner, digestOf(digest))
	}
	if b.Label != "" {
		items = appendItem(items, itemLabel, []byte(b.Label))
	}
	return withItems(newHeader(0, b.CreatedAt.UnixMilli(), b.Deadline.UnixMilli()), items)
}

func appendItem(items []byte, kind byte, value []byte) []byte {
	items = binary.BigEndian.AppendUint16(append(items, kind), uint16(len(value)))
	return append(items, value...)
}

// itemsIn returns the items of a kind in a header.
func itemsIn(header []byte, kind byte) (found [][]byte) {
	if len(header) < headerSize+2 {
		return nil
	}
	for items := header[headerSize+2:]; len(items) >= 3; {
		size := 3 + int(binary.BigEndian.Uint16(items[1:]))
		if size > len(items) {
			return found
		}
		if items[0] == kind {
			found = append(found, items[3:size])
		}
		items = items[size:]
	}
	return found
}

// ownersIn returns the digests of the owners that a header names.
func ownersIn(header []byte) (owners []string) {
	for _, digest := range itemsIn(header, itemOwner) {
		if len(digest) == refEntropy {
			owners = append(owners, base64.RawURLEncoding.EncodeToString(digest))
		}
	}
	return owners
}

// deadlineIn returns the deadline of a header, in ms since 1970.
func deadlineIn(header string) int64 { return milli48(header[offsetDeadline:]) }

// digestIn returns the digest of the owner whose key this is; ok is false for the key of a session.
func (c *config) digestIn(key string) (digest string, ok bool) {
	return strings.CutPrefix(c.ref(key), ownerMark)
}

// endScore returns what member e of an owner's key says of an end, without the sign.
func endScore(reason Reason, at time.Time) int64 { return int64(reason)<<endShift + at.UnixMilli() }

// newGeneration returns the generation of a key that is made now. It is random, so that what is
// left of a key that was lost is not taken for its own, and small, so that scores are exact.
func newGeneration() string { return decimal(1 + rand.Int64N(1<<20-1)) }

// An owner's key is a sorted set:
//
//	g      the generation that is open, as -2*generation, and one less once there was a revoke
//	e      reason and time of the last revoke, as -(reason * 2^42 + time in ms)
//	l+ref  a session: generation * 2^32 + its deadline in seconds + 1 h, for clocks differ
//	w+ref  an id that was entered in the last hour, so that it is not entered again by an attempt
//	       that comes late, and that may not be written yet: minus the time, in seconds
//	x+...  a revoke that was carried out in the last hour: minus the time
//
// A revoke opens the next generation, in one step, and what has a lower one is being ended. An
// entry is taken out only when there is a tombstone under its id, or when its deadline has passed,
// so at any moment whoever ends all entries, and follows them, ends all sessions.
