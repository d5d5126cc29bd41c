package tombstore

import (
	"context"
	"iter"
	"time"
)

// Store keeps sessions so that a session that was ended stays ended. [RedisStore] and [MemoryStore]
// implement it; package storetest tests that an implementation keeps to what is said here.
//
// Implementations must be safe for concurrent use, and every operation must be atomic for the
// sessions it names. An id is 1 to 1024 bytes, otherwise every method must return an error wrapping
// [ErrInvalidID]. A failure to reach the sessions must never be reported as ErrNotFound. An
// operation that may or may not have been applied must return an error wrapping
// [ErrUnknownOutcome]. No error may contain an id or data.
type Store interface {
	// Read returns the live session of id. It must return an error wrapping [ErrNotFound] if there
	// is none, an [*InvalidatedError] if it was ended, and [ErrInvalidTTL] for a Slide that is not
	// positive.
	Read(ctx context.Context, id string, opts ...ReadOption) (Session, error)

	// Write stores data under id, to expire ttl after it was last written or touched. It creates
	// the session if there is none; an existing one keeps its creation time, its [Lifetime] and its
	// absolute deadline, which no ttl goes past. It returns the session as stored, with its new
	// version.
	//
	// It must return an [*InvalidatedError] and store nothing if the session was ended. Conditions
	// are [IfAbsent], [IfPresent], [IfVersion] and [Replacing]. It must return [ErrInvalidTTL] if
	// ttl is not positive, and [ErrTooLarge] if there is too much data.
	//
	// A Write whose reply is lost may be sent again. Without a condition, with IfPresent or with
	// Replacing it may then land on top of a later write by somebody else, as a retried SET does;
	// where that matters use IfVersion.
	Write(
		ctx context.Context, id string, data []byte, ttl time.Duration, opts ...WriteOption,
	) (Session, error)

	// Touch restarts the idle timeout of a live session: it expires ttl from now, but never after
	// its absolute deadline. It may leave the TTL alone when that is nearly right. It must return
	// an error wrapping [ErrNotFound] if there is no session, an [*InvalidatedError] if it was
	// ended, and [ErrInvalidTTL] if ttl is not positive.
	Touch(ctx context.Context, id string, ttl time.Duration) error

	// Rotate moves a live session to newID, which must be unused, and ends oldID with the reason
	// [Rotated]: for a login or another change of privilege (OWASP Session Management Cheat Sheet,
	// "Renew the Session ID After Any Privilege Level Change"). Data, creation time, deadline and
	// remaining TTL go along unless [WithData] or [WithLifetime] is given; a login begins a new
	// life instead ([WithBinding]). Once it returns, oldID is ended, and an Invalidate of oldID
	// ends newID. With [Grace] a Read of oldID returns the session for a moment all the same.
	//
	// It must return an error wrapping [ErrNotFound] if oldID has no session, an
	// [*InvalidatedError] if it was ended, [ErrConflict] if newID is in use or was ended or if
	// [IfUnchanged] is not met, and [ErrInvalidID] if both ids are the same. It may return an
	// [*InvalidatedError] too when somebody ends the session while it moves.
	Rotate(ctx context.Context, oldID, newID string, opts ...RotateOption) (Session, error)

	// Invalidate ends the session of id for good, whether it is live, absent or ended already. If
	// the session has moved to another id, by Rotate or by a [Renewer], Invalidate follows it and
	// ends it there, through any number of moves, and returns nil only when the last id is ended:
	// a logout with an old id is a logout of the session that it has become. It also ends the
	// renewals of the session that are under way. [Alone] keeps it from following.
	//
	// An end with the reason Rotated is different: it is a step of a renewal and not a logout. It
	// does not follow, and it leaves the renewal of another request alone, also one that was
	// given up.
	//
	// The first reason and time are kept, except that any other reason replaces Rotated. With
	// [IfLive] it must return an error wrapping [ErrNotFound] or an [*InvalidatedError] if there
	// was no live session to end, under this id or under the one to which it moved; it still
	// follows the session as described above.
	//
	// After it has returned nil no Read returns the session under any id that it has had, and no
	// Write, Touch, Rotate or renewal makes it live again.
	Invalidate(ctx context.Context, id string, opts ...InvalidateOption) error

	// Exists reports whether the session of id is live.
	Exists(ctx context.Context, id string) (bool, error)
}

// Renewer is a Store that can give a session a new id in two halves: for session libraries that
// delete the session under the old id and, later in the request, save it under a new one. Both
// stores of this package implement it. It is safe for concurrent use.
//
// An Invalidate that comes at any moment ends the session: before the first half, between the
// halves, or after the second. Of several renewals of one session, exactly one can be finished. One
// that is given up can be taken over.
type Renewer interface {
	Store

	// BeginRenewal ends the live session of id with the reason [Rotated] and puts a claim on it,
	// which FinishRenewal redeems. If v is not zero it is the version that the session must have.
	// If CancelRenewal has given up a renewal of id, BeginRenewal takes over where that one has
	// begun: for five minutes from then, as long as the session would have lived, and v is the
	// version that it had.
	//
	// It must return an error wrapping [ErrNotFound] if there is no session, an
	// [*InvalidatedError] if it was ended, by another renewal too, and [ErrConflict] if its
	// version is not v. With [ErrUnacknowledged] the Renewal is valid.
	BeginRenewal(ctx context.Context, id string, v Version) (Renewal, error)

	// FinishRenewal stores data under newID, which must be unused, as the session that r stands
	// for: creation time and absolute deadline are those of the old id, or those of r.Binding. It
	// expires ttl after it was last written or touched. From then on an Invalidate of the old id
	// ends newID.
	//
	// It must return an [*InvalidatedError] if the session has been ended since r began, an error
	// wrapping [ErrNotFound] if it has expired or if nothing is known of r any more,
	// [ErrConflict] if newID is in use or was ended, [ErrInvalidID] if newID is the old id,
	// [ErrInvalidTTL] if ttl is not positive, and [ErrTooLarge] if there is too much data. With
	// [ErrUnacknowledged] the session was stored and is returned.
	FinishRenewal(
		ctx context.Context, r Renewal, newID string, data []byte, ttl time.Duration,
	) (Session, error)

	// CancelRenewal gives r up, so that FinishRenewal refuses it and another renewal can take
	// over. It ends nothing else: to log out, call Invalidate with the old id. It returns nil if r
	// was finished, or ended, before, and must return [ErrInvalidID] if r is zero.
	CancelRenewal(ctx context.Context, r Renewal) error
}

// Renewal is a renewal that has begun and is not finished. It is for the process that began it.
type Renewal struct {
	Ref     string   // of the id that was left, as in Entry; of no use as a cookie
	Claim   uint64   // random
	Binding *Binding // set it before FinishRenewal to log the session in: see Binder

	Lifetime *Lifetime // set it before FinishRenewal as WithLifetime does for Rotate
}

// Lister is a Store that can show what it holds, for pages that list sessions and for logging a
// user out everywhere. Both stores of this package implement it. It is safe for concurrent use.
type Lister interface {
	Store

	// List returns the live sessions, in no order. One that is live from beginning to end is
	// returned at least once, although it may move to another id meanwhile; one that begins or ends
	// meanwhile may be missing. A session that moves may be returned twice, and one that is between
	// two ids is returned as Pending. After an error it goes on only if that is an [ErrCorrupt]. On
	// a server it walks through all keys (SCAN), so it takes time in proportion to all that the
	// server holds. In a cluster it fails while a node is down, and may miss sessions whose slots
	// move meanwhile. An implementation that shows no data leaves Data nil, as those of this
	// package do with WithSealedData.
	List(ctx context.Context) iter.Seq2[Entry, error]

	// InvalidateRef is Invalidate for the session that List returned with ref. It must return an
	// error wrapping [ErrInvalidID] if ref is none.
	InvalidateRef(ctx context.Context, ref string, opts ...InvalidateOption) error
}

// Session is a live session.
type Session struct {
	// Data belongs to the caller, except after a Read with [Shared]. Write and Rotate hand back
	// the slice they were given, if they were given one.
	Data    []byte
	Version Version
	// CreatedAt is on the server's clock, in whole milliseconds. A session that moves keeps it.
	CreatedAt time.Time
	// ExpiresAt is when the session expires unless it is written or touched before, on the clock
	// of this process. It is zero unless Read was given [Slide] or [WithExpiry], and when it is
	// not known.
	ExpiresAt time.Time

	header []byte // of the record; see headerOf. nil for a session that no store gave out
}

// Entry is a session in a list.
type Entry struct {
	// Ref stands for the session and is of no use as a cookie: it can be logged, and shown to an
	// administrator. With WithPlainIDs it is the id itself.
	Ref string
	// Pending says that the session is between two ids and may be live a moment later, as it may be
	// after its renewal was given up. Its Session is zero. InvalidateRef ends it.
	Pending bool
	Session
}
