package tombstore

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Observer sees what a store does, for metrics and traces: every call of a method of [Store],
// [Renewer], [Lister], [Binder] and [Watcher]. Module otelstore has one for OpenTelemetry.
//
// Its methods run in the goroutine of the caller, who waits for them, so they must not block, and
// many run at the same time. Nothing recovers from a panic of theirs. If they call the store they
// are called again.
type Observer interface {
	// Start is called when an operation begins, and returns the context of the operation, which
	// must be derived from ctx. Commands are sent with it, so spans of an instrumented client are
	// children of a span that Start puts there. What Watch and WatchOwner return is not derived
	// from it.
	//
	// verb names the operation as the text of its errors does: "read", "begin renewal", "invalidate
	// owner". begun is when it began. That is in the past for a Read that memory might have
	// answered (WithClientCache) and has not: Start is called when that is known.
	Start(ctx context.Context, verb string, begun time.Time) context.Context
	// End is called when the operation has ended, with the context that Start has returned. A List
	// ends when its iteration does, and its duration includes what the caller does in between.
	End(ctx context.Context, e Event)
}

// CacheObserver is an Observer that counts what it does not time: reads that memory has answered
// (WithClientCache), each in less than a microsecond.
type CacheObserver interface {
	Observer

	// CacheHit is called for each of them, whatever the answer was, and in the place of Start and
	// End.
	CacheHit(ctx context.Context)
}

// Event is what has become of an operation of a store, or of a request (package adapter). No field,
// and no text of its error, has an id, an owner or data.
type Event struct {
	Verb    string // as Start has it
	Outcome Outcome
	// Reason is why the session was ended, if the outcome is OutcomeEnded or OutcomeRefused.
	Reason Reason
	// Ref is [Ref] of the session's id, also with WithPlainIDs; of the old id if the session moves;
	// and of the owner if the method was given only that. It is "" for a List, and if the method
	// was given an empty id or a ref that is none.
	Ref      string
	Duration time.Duration
	// Attempts is 1, and one more for each time that something was sent again for want of an
	// answer. It is 0 if nothing was sent; a MemoryStore sends nothing.
	Attempts int
	Err      error // as the method returns it; nil if Outcome is OutcomeOK
}

// Outcome is what an operation has come to.
type Outcome byte

// The outcomes, and the errors that they stand for.
const (
	OutcomeOK       Outcome = iota
	OutcomeNotFound         // ErrNotFound
	// OutcomeEnded is the ErrInvalidated of what would have changed nothing, such as a Read with
	// the cookie of a session that was ended.
	OutcomeEnded
	// OutcomeRefused is the ErrInvalidated of what would have let an ended session live on: a
	// Write, Touch, Rotate, BeginRenewal, FinishRenewal or Adopt that a tombstone has refused.
	OutcomeRefused
	OutcomeConflict        // ErrConflict
	OutcomeStaleLogin      // ErrStaleLogin
	OutcomeTooManySessions // ErrTooManySessions
	OutcomeCorrupt         // ErrCorrupt
	OutcomeUnacknowledged  // ErrUnacknowledged: it was done
	OutcomeNotInvalidated  // ErrNotInvalidated
	OutcomeUnknown         // ErrUnknownOutcome
	// OutcomeInvalid is a mistake of the caller: ErrInvalidID, ErrInvalidTTL, ErrTooLarge or
	// ErrNoDeadline.
	OutcomeInvalid
	OutcomeCanceled // context.Canceled of what has changed nothing: the caller has gone away
	OutcomeFailed   // any other error: the server cannot be reached, or refuses
)

var outcomes = [...]string{
	OutcomeOK:              "ok",
	OutcomeNotFound:        "not found",
	OutcomeEnded:           "ended",
	OutcomeRefused:         "refused",
	OutcomeConflict:        "conflict",
	OutcomeStaleLogin:      "stale login",
	OutcomeTooManySessions: "too many sessions",
	OutcomeCorrupt:         "corrupt",
	OutcomeUnacknowledged:  "unacknowledged",
	OutcomeNotInvalidated:  "not invalidated",
	OutcomeUnknown:         "unknown",
	OutcomeInvalid:         "invalid",
	OutcomeCanceled:        "canceled",
	OutcomeFailed:          "failed",
}

var outcomesOfErrors = [...]struct {
	err error
	Outcome
}{
	{ErrNotFound, OutcomeNotFound},
	{ErrConflict, OutcomeConflict},
	{ErrStaleLogin, OutcomeStaleLogin},
	{ErrTooManySessions, OutcomeTooManySessions},
	{ErrCorrupt, OutcomeCorrupt},
	{ErrUnacknowledged, OutcomeUnacknowledged},
	{ErrNotInvalidated, OutcomeNotInvalidated},
	{ErrUnknownOutcome, OutcomeUnknown},
	{ErrInvalidID, OutcomeInvalid},
	{ErrInvalidTTL, OutcomeInvalid},
	{ErrTooLarge, OutcomeInvalid},
	{ErrNoDeadline, OutcomeInvalid},
	{context.Canceled, OutcomeCanceled},
}

func (o Outcome) String() string {
	if int(o) < len(outcomes) {
		return outcomes[o]
	}
	return "outcome?"
}

// WithObserver shows every operation of the store to o. The default is nil, none.
func WithObserver(o Observer) Option {
	return func(c *config) {
		c.observer = o
		c.hits, _ = o.(CacheObserver)
	}
}

// What WithLogger logs.
const (
	warnFailover  = "tombstore: a failover has taken what was written a moment before"
	warnReplica   = "tombstore: the server has become a replica; connecting anew"
	warnSubscribe = "tombstore: not permitted to subscribe; ends are noticed within a minute"
	warnScripted  = "tombstore: saves run a script, since the server was not seen to refuse a SET"
	warnUncached  = "tombstore: reads are not answered from memory"

	warnPause = time.Hour // between two of one kind
)

// WithLogger logs, as warnings, what no method returns, each at most once an hour: that messages
// are not permitted (Watch), that reads are not answered from memory although they were to be, that
// saves run a script although they could be a SET (see [Report] for both), that a failover has
// taken what was written a moment before, and that the store has left a server that has become a
// replica. No record has an id. A [*log/slog.Logger] will do, and a program that has none does not
// build that package. The default is nil: nothing is logged.
func WithLogger(l interface {
	WarnContext(ctx context.Context, message string, args ...any)
}) Option {
	return func(c *config) {
		if c.warnings = nil; l != nil {
			c.warnings = &warnings{logger: l, last: map[string]time.Time{}}
		}
	}
}

// warnings are what a store has logged.
type warnings struct {
	logger interface {
		WarnContext(ctx context.Context, message string, args ...any)
	}
	mu   sync.Mutex
	last map[string]time.Time // by message
}

// warn logs a message, with its cause unless that is nil. The cause must be one that errors show.
func (c *config) warn(ctx context.Context, message string, cause error) {
	w := c.warnings
	if w == nil {
		return
	}
	w.mu.Lock()
	now := time.Now()
	due := now.Sub(w.last[message]) >= warnPause
	if due {
		w.last[message] = now
	}
	w.mu.Unlock()
	switch {
	case !due:
	case cause == nil:
		w.logger.WarnContext(ctx, message)
	default:
		w.logger.WarnContext(ctx, message, "error", cause)
	}
}

// operation is one call of a method. Whoever begins it ends it, at the edge of the method.
type operation struct {
	verb string
	seen *observed // nil without an Observer
}

// observed is an operation that an Observer sees, and its context.
type observed struct {
	context.Context // that Start has returned
	Observer
	begun time.Time
	event Event
}

// begin begins an operation on an id or an owner, or "" for neither.
func (c *config) begin(ctx context.Context, verb, name string) (context.Context, operation) {
	if c.observer == nil {
		return ctx, operation{verb: verb}
	}
	ref := ""
	if name != "" {
		ref = Ref(name)
	}
	return c.beginAt(ctx, verb, ref, time.Now())
}

// beginRef begins an operation on a ref that may be anything.
func (c *config) beginRef(ctx context.Context, verb, ref string) (context.Context, operation) {
	if c.observer == nil {
		return ctx, operation{verb: verb}
	}
	if c.plainIDs && ref != "" {
		ref = Ref(ref)
	} else if digestOf(ref) == nil {
		ref = ""
	}
	return c.beginAt(ctx, verb, ref, time.Now())
}

// beginKey begins an operation on a session's key. A zero time is now.
func (c *config) beginKey(
	ctx context.Context, verb, key string, begun time.Time,
) (context.Context, operation) {
	if c.observer == nil {
		return ctx, operation{verb: verb}
	}
	ref := c.ref(key)
	if c.plainIDs {
		ref = Ref(ref)
	}
	if begun.IsZero() {
		begun = time.Now()
	}
	return c.beginAt(ctx, verb, ref, begun)
}

func (c *config) beginAt(ctx context.Context, verb, ref string, begun time.Time) (context.Context, operation) {
	o := &observed{Observer: c.observer, begun: begun, event: Event{Verb: verb, Ref: ref}}
	o.Context = o.Start(ctx, verb, begun)
	return o, operation{verb, o}
}

// end ends an operation, and returns its error as the method does.
func (op operation) end(err error) error {
	err = wrap(op.verb, err)
	if o := op.seen; o != nil {
		o.event.Duration = time.Since(o.begun)
		o.event.Outcome, o.event.Reason = outcomeOf(op.verb, err)
		o.event.Err = err
		o.End(o.Context, o.event)
	}
	return err
}

type observedKey struct{}

func (o *observed) Value(key any) any {
	if key == (observedKey{}) {
		return o
	}
	return o.Context.Value(key)
}

// sends counts what an operation sends: once, and each time that it is sent again.
func (c *config) sends(ctx context.Context, again bool) {
	if c.observer == nil {
		return
	}
	if o, ok := ctx.Value(observedKey{}).(*observed); ok && (again || o.event.Attempts == 0) {
		o.event.Attempts++
	}
}

func outcomeOf(verb string, err error) (Outcome, Reason) {
	if err == nil {
		return OutcomeOK, 0
	}
	if ended, ok := errors.AsType[*InvalidatedError](err); ok {
		switch verb {
		case "write", "touch", "rotate", "begin renewal", "finish renewal", "adopt":
			return OutcomeRefused, ended.Reason
		}
		return OutcomeEnded, ended.Reason
	}
	for _, o := range outcomesOfErrors {
		if errors.Is(err, o.err) {
			return o.Outcome, 0
		}
	}
	return OutcomeFailed, 0
}
