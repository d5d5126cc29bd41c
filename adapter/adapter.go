// Package adapter is what adapters of tombstore to session libraries have in common: it knows which session a request came
// with, and from that which write is the right one.
//
// A session library calls Load, Save and End in the course of a request, with the same [Request] each time. A session that was
// loaded is saved only if it is still live, or touched if its data is the same; a new one is saved only if its id is unused; and
// once the session of a request has been ended by somebody else, nothing that the request holds is saved any more, neither under
// the old id nor under a new one.
package adapter

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tombstore/tombstore"
)

// ErrRefused says that a session was not saved because the request's session has been ended or has expired meanwhile. The error
// is a [*RefusedError]. A session library must answer the request as if it had been saved, but without a session cookie.
var ErrRefused = errors.New("session was ended during the request")

// RefusedError is the ErrRefused of one request. It wraps what the store said.
type RefusedError struct {
	Event
	cause error
}

func (e *RefusedError) Error() string { return "tombstore: " + e.Verb + ": " + ErrRefused.Error() }

// Is reports whether target is ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// Unwrap returns what the store said.
func (e *RefusedError) Unwrap() error { return e.cause }

// Event is a refusal, for logs and metrics.
type Event struct {
	// Verb is what was refused: "write", "touch", "rotate" or "create".
	Verb string
	// Reason is why the session was ended. It is zero if the session expired or the server has lost it.
	Reason tombstore.Reason
	// Ref stands for the session that the request came with; see tombstore.Ref. It is never the id.
	Ref string
}

// LostUpdates says what happens when two requests change one session at the same time.
type LostUpdates struct {
	conflict bool
	merge    func(base, mine, theirs []byte) ([]byte, error)
}

var (
	// LastWriteWins lets the later of two writes stand, as session libraries do.
	LastWriteWins = LostUpdates{}
	// Conflict makes the later of two writes fail with tombstore.ErrConflict.
	Conflict = LostUpdates{conflict: true}
)

// Merge asks merge what to store. base is what the request loaded, mine what it would store, theirs what another request has
// stored meanwhile. It may be called more than once for one save. An error of merge is returned by the save.
func Merge(merge func(base, mine, theirs []byte) ([]byte, error)) LostUpdates {
	return LostUpdates{conflict: true, merge: merge}
}

// Option configures an Adapter.
type Option func(*Adapter)

// WithLostUpdates says what happens when two requests change one session at the same time. The default is LastWriteWins.
func WithLostUpdates(l LostUpdates) Option { return func(a *Adapter) { a.updates = l } }

// WithOnRefused sets a function that is called on every refusal, in the goroutine of the request. The default is none.
func WithOnRefused(f func(ctx context.Context, e Event)) Option {
	return func(a *Adapter) { a.onRefused = f }
}

// WithLateRequests refuses new anonymous sessions to requests that come with the id of a session that was ended less than window
// ago by a logout or a rotation. Such a request began before the browser got its new cookie, and a cookie for a new session would
// overwrite that one: the user would be logged in and lose it. Requests whose session was revoked get a new session, and so do
// those that renew their id, since they log in. The default is 0, off; a few seconds are enough.
func WithLateRequests(window time.Duration) Option { return func(a *Adapter) { a.late = window } }

// WithEqual sets what tells whether two encodings are of the same session, so that a session that did not change is touched and
// not written: for encodings that differ from one time to the next, as gob's of a map do. The default is bytes.Equal.
func WithEqual(equal func(a, b []byte) bool) Option { return func(a *Adapter) { a.equal = equal } }

// Adapter saves the sessions of a session library in a Store. It is safe for concurrent use.
type Adapter struct {
	store     tombstore.Store
	updates   LostUpdates
	onRefused func(ctx context.Context, e Event)
	late      time.Duration
	equal     func(a, b []byte) bool
}

// New returns an adapter for store.
func New(store tombstore.Store, opts ...Option) *Adapter {
	a := &Adapter{store: store, onRefused: func(context.Context, Event) {}, equal: bytes.Equal}
	for _, opt := range opts {
		opt(a)
	}
	return a
}

// Store returns the store.
func (a *Adapter) Store() tombstore.Store { return a.store }

// Request is what one request knows of its session. The zero value is a request that has loaded nothing. It is safe for
// concurrent use. Methods of Adapter take a nil Request for a caller that is no request, and then only refuse what the store
// refuses.
type Request struct {
	mu     sync.Mutex
	came   string            // the id that it came with, live or not
	id     string            // the session that it holds, which was live when it was loaded or saved
	held   tombstore.Session // with a copy of the data
	gone   error             // why that session is not live any more, if it is not, by somebody else's doing
	late   error             // the end of a session that the request came too late for
	renews bool              // it wants a new id
}

type contextKey struct{ a *Adapter }

// NewContext returns a context that carries a Request of a. If ctx has one already, that is ctx.
func (a *Adapter) NewContext(ctx context.Context) context.Context {
	if a.FromContext(ctx) != nil {
		return ctx
	}
	return context.WithValue(ctx, contextKey{a}, &Request{})
}

// FromContext returns the Request of a in ctx, or nil.
func (a *Adapter) FromContext(ctx context.Context) *Request {
	r, _ := ctx.Value(contextKey{a}).(*Request)
	return r
}

// Load returns the data of a session, and whether it is live. A session that was ended is just not found, since a request with
// an old cookie is no error.
func (a *Adapter) Load(ctx context.Context, r *Request, id string) (data []byte, found bool, err error) {
	if r == nil {
		r = &Request{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := a.store.Read(ctx, id)
	if r.came == "" {
		r.came = id
	}
	switch {
	case err == nil:
		if id == r.id || id == r.came && !r.renews { // not one that the handler merely looks at
			r.hold(id, s)
		}
		return s.Data, true, nil
	case errors.Is(err, tombstore.ErrInvalidID): // nobody got such an id from here
		return nil, false, nil
	case !gone(err):
		return nil, false, err
	case r.id == id: // it was live before
		r.gone = err
	case id == r.came && a.tooLate(err):
		r.late = err
	}
	return nil, false, nil
}

// Save stores a session for ttl after its last use. It returns a *RefusedError if the request's session is not live any more.
func (a *Adapter) Save(ctx context.Context, r *Request, id string, data []byte, ttl time.Duration) error {
	if r == nil {
		_, err := a.store.Write(ctx, id, data, ttl)
		return a.refuse(ctx, "write", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var s tombstore.Session
	var err error
	verb := "create"
	switch {
	case r.gone != nil:
		verb, err = "write", r.gone
	case r.id == id && a.equal(r.held.Data, data):
		verb, s = "touch", r.held
		err = a.store.Touch(ctx, id, ttl)
	case r.id == id:
		verb = "write"
		s, err = a.update(ctx, r.held, id, data, ttl)
	case r.id != "":
		verb = "rotate"
		s, err = a.store.Rotate(ctx, r.id, id, tombstore.WithData(data, ttl))
	case r.late != nil && !r.renews:
		return a.refuse(ctx, verb, r.came, r.late)
	default:
		s, err = a.store.Write(ctx, id, data, ttl, tombstore.IfAbsent())
	}
	if gone(err) {
		r.gone = err
		return a.refuse(ctx, verb, r.came, err)
	}
	if err == nil || errors.Is(err, tombstore.ErrUnacknowledged) {
		r.hold(id, s)
	}
	return err
}

// update writes data over what the request has loaded.
func (a *Adapter) update(
	ctx context.Context, base tombstore.Session, id string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if !a.updates.conflict {
		return a.store.Write(ctx, id, data, ttl, tombstore.IfPresent())
	}
	s, err := a.store.Write(ctx, id, data, ttl, tombstore.IfVersion(base.Version))
	for a.updates.merge != nil && errors.Is(err, tombstore.ErrConflict) && !errors.Is(err, tombstore.ErrUnknownOutcome) {
		var theirs tombstore.Session
		if theirs, err = a.store.Read(ctx, id, tombstore.Fresh()); err != nil {
			return theirs, err
		}
		merged, failed := a.updates.merge(base.Data, data, theirs.Data)
		if failed != nil {
			return theirs, failed
		}
		s, err = a.store.Write(ctx, id, merged, ttl, tombstore.IfVersion(theirs.Version))
	}
	return s, err
}

// End ends a session. If it is the one that the request holds, and somebody else has ended it before, nothing is saved for this
// request any more: it may hold values that it must not carry over to a new id. That the session was ended before is no error.
// An empty id is the renewal of a session that has no id yet.
func (a *Adapter) End(ctx context.Context, r *Request, id string) error {
	if r == nil {
		return a.end(ctx, id, tombstore.Logout)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case id == "":
	case id != r.came && id != r.id:
		return a.end(ctx, id, tombstore.Revoked) // somebody else's
	case id != r.id || r.gone != nil:
		if err := a.end(ctx, id, tombstore.Logout); err != nil {
			return err
		}
	default:
		err := a.store.Invalidate(ctx, id, tombstore.IfLive())
		switch {
		case err == nil:
			r.id, r.held = "", tombstore.Session{}
		case gone(err):
			r.gone = err
			return a.end(ctx, id, tombstore.Logout)
		default:
			return err
		}
	}
	r.renews = true
	return nil
}

func (a *Adapter) end(ctx context.Context, id string, reason tombstore.Reason) error {
	if id == "" {
		return nil
	}
	err := a.store.Invalidate(ctx, id, tombstore.WithReason(reason))
	if errors.Is(err, tombstore.ErrInvalidID) { // nobody got such an id from here
		return nil
	}
	return err
}

// refuse turns err into a refusal if it says that the session is not live.
func (a *Adapter) refuse(ctx context.Context, verb, id string, err error) error {
	if !gone(err) {
		return err
	}
	e := Event{Verb: verb, Ref: tombstore.Ref(id)}
	var ended *tombstore.InvalidatedError
	if errors.As(err, &ended) {
		e.Reason = ended.Reason
	}
	a.onRefused(ctx, e)
	return &RefusedError{Event: e, cause: err}
}

func gone(err error) bool {
	return errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated)
}

// tooLate reports whether err is an end so recent that the request may have been on its way.
func (a *Adapter) tooLate(err error) bool {
	var ended *tombstore.InvalidatedError
	return errors.As(err, &ended) && ended.Reason != tombstore.Revoked && time.Since(ended.At) < a.late
}

func (r *Request) hold(id string, s tombstore.Session) {
	s.Data = bytes.Clone(s.Data)
	r.id, r.held, r.gone, r.late = id, s, nil, nil
}
