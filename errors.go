package tombstore

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Every error of a Store wraps exactly one of these, or is a transport or server failure that keeps
// its cause for errors.Is and errors.As, or says that options exclude each other. A failure is
// never reported as ErrNotFound.
var (
	// ErrNotFound says that the id has no session: never written, or expired.
	ErrNotFound = errors.New("no such session")
	// ErrInvalidated says that the session was ended for good. The error is an [*InvalidatedError].
	ErrInvalidated = errors.New("session was ended")
	// ErrConflict says that a condition did not hold: IfVersion or IfUnchanged met another version,
	// IfAbsent met a live session, or Replacing another session under the id; or that the new id of
	// a session is in use.
	ErrConflict = errors.New("session was changed, or its id is in use")
	// ErrUnknownOutcome says that no reply arrived in time, so the operation may have been applied,
	// or not, or may yet be. The cause is wrapped too, unless it is that a repeated attempt got a
	// reply that does not tell whether the first one was applied.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrInvalidID says that an id, or an owner, is empty or longer than 1024 bytes, that a session
	// would move to the id that it has, that a ref is none, that a Binding is for another id, or,
	// with WithPlainIDs, that an id begins like the key of an owner; with WithSealedData that one
	// under which a session would begin has fewer than 128 bits. Nothing was sent.
	ErrInvalidID = errors.New("invalid session id, ref or owner")
	// ErrInvalidTTL says that a TTL is zero or negative, that a time of a Lifetime is negative, or
	// that a Grace is negative or longer than a minute. Nothing was sent.
	ErrInvalidTTL = errors.New("invalid TTL")
	// ErrTooLarge says that the data is larger than WithMaxDataSize allows, or a label than 1024
	// bytes, or that a session would have more than four owners. Nothing was changed.
	ErrTooLarge = errors.New("session data too large")
	// ErrCorrupt says that the key holds something that this package did not write, or, with
	// WithSealedData, data that was changed or is not sealed, or without that option data that is.
	// It is left as it is, or put back if a Write with Replacing has met it.
	ErrCorrupt = errors.New("key holds a foreign or damaged value")
	// ErrNotInvalidated says that the server refused to end a session (for example MISCONF,
	// NOREPLICAS, READONLY or NOPERM): the session may still be live.
	ErrNotInvalidated = errors.New("session was NOT ended")
	// ErrUnacknowledged says that a session was ended on the primary, but that fewer replicas than
	// WithReplicaAcks asks for have confirmed it in time: a failover may bring the session back.
	// Calling Invalidate again asks again. Of Reserve it says that the id is reserved, but not
	// confirmed.
	ErrUnacknowledged = errors.New("ended, but not confirmed by enough replicas")
	// ErrStaleLogin says that a login has come too late: the owner's sessions have been ended since
	// it began, or more than an hour has passed, or it is too long since Reserve. The user has to
	// log in again. It says the same of a Login that BeginLogin has not returned.
	ErrStaleLogin = errors.New("login is stale, or was not begun")
	// ErrTooManySessions says that an owner has as many sessions as WithMaxSessions allows, and
	// that none of them was to be ended for this one. It wraps context.DeadlineExceeded if others
	// took each place that was made until the time was up.
	ErrTooManySessions = errors.New("owner has too many sessions")
	// ErrNoDeadline says that a session of an owner would have no deadline, or one that has passed.
	ErrNoDeadline = errors.New("session of an owner needs a deadline in the future")
)

// InvalidatedError is the ErrInvalidated of one session.
type InvalidatedError struct {
	Reason Reason
	At     time.Time // on the clock of the process that has ended it, in whole milliseconds

	grace int64 // until when the id may still read, ms since 1970 on the server's clock; 0: not at all
}

func (e *InvalidatedError) Error() string { return ErrInvalidated.Error() + ": " + e.Reason.String() }

// Is reports whether target is ErrInvalidated.
func (e *InvalidatedError) Is(target error) bool { return target == ErrInvalidated }

// NoSession reports whether err says that there is no live session: ErrNotFound or ErrInvalidated.
// A request with such an id is anonymous. Any other error says nothing about the session.
func NoSession(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalidated)
}

// wrap names the operation that failed. Exported methods call it once, at their edge.
func wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("tombstore: %s: %w", verb, err)
}

// unknown reports an operation that may have been applied. cause is nil if the last reply does not
// tell; it is dropped if it is another error of the contract.
func unknown(cause error) error {
	if cause == nil || errors.Is(cause, ErrCorrupt) {
		return ErrUnknownOutcome
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, cause)
}

// replyError is an error reply of the server. Its text is the reply's code word and, of ERR, what
// is known to quote nothing, because the rest of a reply may quote the user or the arguments of the
// command; the whole reply is there for errors.As with a *rueidis.RedisError.
type replyError struct {
	cause *rueidis.RedisError
}

// rueidis cuts off the code word ERR. A reply without its code is told from one with another code
// by a list of the codes that servers have.
var (
	replyCodes = strings.Fields("ASK BUSY BUSYGROUP BUSYKEY CLUSTERDOWN CROSSSLOT DENIED ERR EXECABORT INPROG IOERR " +
		"LOADING MASTERDOWN MISCONF MOVED NOAUTH NOMASTERLINK NOPERM NOPROTO NOQUORUM NOREPLICAS NOSCRIPT NOTBUSY " +
		"OOM READONLY REDIRECT TRYAGAIN UNBLOCKED UNKILLABLE WRONGPASS WRONGTYPE")
	replyTexts = []string{ // of ERR, which quote nothing
		"AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
		"Client names cannot contain spaces, newlines or special characters.",
		"DB index is out of range",
		"No such master with that name",
		"SELECT is not allowed in cluster mode",
		"This instance has cluster support disabled",
		"max number of clients + cluster connections reached",
		"max number of clients reached",
	}
	replyStarts = []string{ // of ERR, where a script lacks a right; what follows may quote the user
		"ACL failure in script",
		"The user executing the script can't run this command or subcommand", // Redis 7.0
	}
)

func (e *replyError) Error() string {
	text := e.cause.Error()
	code, _, _ := strings.Cut(text, " ")
	start := slices.IndexFunc(replyStarts, func(start string) bool { return strings.HasPrefix(text, start) })
	switch {
	case start >= 0:
		return "server answered ERR " + replyStarts[start]
	case strings.HasPrefix(text, "unknown command 'SENTINEL'"):
		return "server is not a Sentinel"
	case isUnknownCommand(e.cause):
		return "server lacks a command; the oldest releases supported are Redis 7.0 and Valkey 7.2"
	case slices.Contains(replyCodes, code):
		return "server answered " + code
	case slices.Contains(replyTexts, text):
		return "server answered ERR " + text
	case code == "" || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "":
		return "server answered ERR"
	}
	return "server answered an error" // ERR, or a code that is not known
}

func (e *replyError) Unwrap() error { return e.cause }

// isWrongType reports whether err says that a key is not of the type that a command wants.
func isWrongType(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(reply.Error(), "WRONGTYPE")
}

func isUnknownCommand(err *rueidis.RedisError) bool {
	return strings.HasPrefix(err.Error(), "unknown command") // rueidis has cut off the "ERR "
}

// explain gives an error of the client its place in the contract: an error reply that names a wrong
// type is ErrCorrupt, other error replies lose their text, and transport errors stay as they are.
func explain(err error) error {
	if err == nil {
		return nil
	}
	reply, ok := rueidis.IsRedisErr(err)
	switch {
	case !ok:
		return err
	case isWrongType(err):
		return ErrCorrupt
	}
	return &replyError{cause: reply}
}

// fromReplica reports whether err is the reply of a server that has become a replica.
func fromReplica(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && (strings.HasPrefix(reply.Error(), "READONLY") || strings.HasPrefix(reply.Error(), "MASTERDOWN"))
}

// transient reports whether the same command may succeed a moment later.
func transient(err error) bool {
	if err == nil || rueidis.IsRedisNil(err) {
		return false
	}
	if reply, ok := rueidis.IsRedisErr(err); ok {
		return reply.IsLoading() || reply.IsTryAgain() || reply.IsClusterDown() || strings.HasPrefix(reply.Error(), "MASTERDOWN") ||
			strings.HasPrefix(reply.Error(), "UNBLOCKED") // a WAIT, when its server becomes a replica
	}
	return !errors.Is(err, rueidis.ErrClosing)
}

// unsent reports whether err proves that the command was not executed.
func unsent(err error) bool {
	if _, ok := rueidis.IsRedisErr(err); ok {
		return true
	}
	if _, ok := errors.AsType[notSent](err); ok {
		return true
	}
	dial, ok := errors.AsType[*net.OpError](err)
	return ok && dial.Op == "dial"
}
