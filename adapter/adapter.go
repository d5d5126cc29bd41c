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
	"cmp"
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
// stored meanwhile. It may be called more than once for one save, and must not use the request's session. An error of merge is
// returned by the save.
func Merge(merge func(base, mine, theirs []byte) ([]byte, error)) LostUpdates {
	return LostUpdates{conflict: true, merge: merge}
}

// Option configures an Adapter.
type Option func(*Adapter)

// WithLostUpdates says what happens when two requests change one session at the same time. The default is LastWriteWins.
func WithLostUpdates(l LostUpdates) Option { return func(a *Adapter) { a.updates = l } }

// WithOnRefused sets a function that is called on every refusal, in the goroutine of the request. The default is nil, none.
func WithOnRefused(f func(ctx context.Context, e Event)) Option {
	return func(a *Adapter) { a.onRefused = f }
}

// WithLateRequests refuses new anonymous sessions to requests that come with the id of a session that was ended less than window
// ago by a logout or a rotation, as far as the clocks of the server and of this process agree. Such a request began before the
// browser got its new cookie, and a cookie for a new session would overwrite that one: the user would be logged in and lose it.
// Requests whose session was revoked get a new session, and so do those that renew their id, since they log in. The default is 0,
// off; a few seconds are enough.
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
	a := &Adapter{store: store, equal: bytes.Equal}
	for _, opt := range opts {
		opt(a)
	}
	return a
}

// Store returns the store.
func (a *Adapter) Store() tombstore.Store { return a.store }

// Request is what one request knows of its session, the one that its cookie names and that is loaded first. The zero value is a
// request that has loaded nothing. It is safe for concurrent use. Methods of Adapter take a nil Request for a caller that is no
// request, and then only refuse what the store refuses. A session library with several sessions a request needs a Request each.
type Request struct {
	mu     sync.Mutex
	came   string            // the id that it came with, live or not
	absent error             // why that was not live, if it was not
	id     string            // the session that it holds, which was live when it was loaded or saved
	held   tombstore.Session // with a copy of the data
	left   string            // the session that it has ended, perhaps to go on under another id
	gone   error             // why nothing may be saved any more: somebody else has ended the session, or nobody knows
	renews bool              // it wants a new id
	others map[string]bool   // further ids that it has loaded live
}

// Gone returns why the session that the request came with, or has saved, is not live, if that is not the request's own doing:
// an error wrapping tombstore.ErrInvalidated or tombstore.ErrNotFound. Otherwise it returns nil.
func (r *Request) Gone() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range []error{r.gone, r.absent} {
		if gone(err) {
			return err
		}
	}
	return nil
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
	first := r.came == "" || id == r.came && r.absent != nil && !known(r.absent)
	if first {
		r.came, r.absent = id, err
	}
	switch {
	case err == nil && (first || id == r.id):
		r.hold(id, s)
	case err == nil: // one that the handler merely looks at
		if r.others == nil {
			r.others = map[string]bool{}
		}
		r.others[id] = true
	case id == r.id && gone(err): // it was live before
		r.gone = err
	}
	switch {
	case err == nil:
		return s.Data, true, nil
	case known(err):
		return nil, false, nil
	}
	return nil, false, err
}

// Save stores a session for ttl after its last use. It returns a *RefusedError if the request's session is not live any more,
// and tombstore.ErrConflict if another request has changed it and WithLostUpdates says that this matters.
func (a *Adapter) Save(ctx context.Context, r *Request, id string, data []byte, ttl time.Duration) error {
	verb, of, err := a.save(ctx, r, id, data, ttl)
	return a.refuse(ctx, verb, of, err)
}

// save returns what it did, for which session, and whether it worked.
func (a *Adapter) save(
	ctx context.Context, r *Request, id string, data []byte, ttl time.Duration,
) (verb, of string, err error) {
	if r == nil {
		_, err := a.store.Write(ctx, id, data, ttl)
		return "write", id, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	of = r.name(id)
	var s tombstore.Session
	switch {
	case r.gone != nil:
		r.left = ""
		return "write", of, r.gone
	case r.id == id && a.equal(r.held.Data, data):
		verb, s = "touch", r.held
		err = a.store.Touch(ctx, id, ttl)
	case r.id == id:
		verb = "write"
		s, err = a.update(ctx, r.held, id, data, ttl)
	case r.others[id]:
		_, err = a.store.Write(ctx, id, data, ttl, tombstore.IfPresent())
		return "write", id, err
	case r.id != "": // a second session
		_, err = a.store.Write(ctx, id, data, ttl, tombstore.IfAbsent())
		return "create", id, err
	case !r.renews && a.tooLate(r.absent):
		return "create", of, r.absent
	default:
		verb = "create"
		s, err = a.create(ctx, r.left, id, data, ttl)
	}
	return verb, of, r.saved(id, s, err)
}

// update writes data over what the request has loaded.
func (a *Adapter) update(
	ctx context.Context, base tombstore.Session, id string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if !a.updates.conflict {
		return a.store.Write(ctx, id, data, ttl, tombstore.IfPresent())
	}
	s, err := a.store.Write(ctx, id, data, ttl, tombstore.IfVersion(base.Version))
	for a.updates.merge != nil && errors.Is(err, tombstore.ErrConflict) {
		var theirs tombstore.Session
		if theirs, err = a.store.Read(ctx, id, tombstore.Fresh()); err != nil {
			return theirs, err
		}
		merged, failed := a.updates.merge(base.Data, data, theirs.Data)
		if failed != nil {
			return theirs, failed
		}
		_, err = a.store.Write(ctx, id, merged, ttl, tombstore.IfVersion(theirs.Version))
		s = tombstore.Session{Data: data} // what the request has; whatever it saves next is merged again
	}
	return s, err
}

// create stores a new session, which takes the place of the session left, if that is given. Whoever has ended left since the
// request did so itself believes that the user is out: then the new session is ended, too.
func (a *Adapter) create(
	ctx context.Context, left, id string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	s, err := a.store.Write(ctx, id, data, ttl, tombstore.IfAbsent())
	if err != nil || left == "" {
		return s, err
	}
	_, err = a.store.Read(ctx, left, tombstore.Fresh())
	var ended *tombstore.InvalidatedError
	if errors.As(err, &ended) && ended.Reason == tombstore.Rotated {
		return s, nil
	}
	if err == nil {
		err = tombstore.ErrUnknownOutcome // it was ended, and is live: the server has lost a tombstone
	}
	return s, errors.Join(err, a.store.Invalidate(ctx, id, tombstore.WithReason(tombstore.Revoked)))
}

// Rotate is Save under a new id, and ends the session that the request holds, in one step. If it holds none, it is Save.
func (a *Adapter) Rotate(ctx context.Context, r *Request, newID string, data []byte, ttl time.Duration) error {
	if r == nil {
		return a.Save(ctx, r, newID, data, ttl)
	}
	r.mu.Lock()
	if r.id == "" || r.gone != nil {
		r.mu.Unlock()
		return a.Save(ctx, r, newID, data, ttl)
	}
	of := r.name(newID)
	s, err := a.store.Rotate(ctx, r.id, newID, tombstore.WithData(data, ttl))
	err = r.saved(newID, s, err)
	r.mu.Unlock()
	return a.refuse(ctx, "rotate", of, err)
}

// End ends a session. That it was ended before is no error. For the session that the request holds reason is
// tombstore.Logout, or tombstore.Rotated if the request may go on under a new id: then call Finish when it is over. Any other
// session is Revoked.
//
// If somebody else has ended the request's session before, or if that cannot be known, nothing is saved for this request any
// more: it may hold values that it must not carry over to a new id. An empty id is the renewal of a session that has none yet.
func (a *Adapter) End(ctx context.Context, r *Request, id string, reason tombstore.Reason) error {
	if r == nil {
		r = &Request{}
		r.came, r.absent = id, errors.New("not loaded")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch id {
	case "":
		r.renews = true
		return nil
	case r.left:
		return nil
	case r.id:
		return a.endHeld(ctx, r, reason)
	case r.came:
		r.renews = true
		if errors.Is(r.absent, tombstore.ErrNotFound) || errors.Is(r.absent, tombstore.ErrInvalidID) {
			return nil // a stranger's cookie shall not fill the server with tombstones
		}
		if err := a.store.Invalidate(ctx, id); !errors.Is(err, tombstore.ErrInvalidID) {
			return err
		}
		return nil
	}
	err := a.store.Invalidate(ctx, id, tombstore.IfLive(), tombstore.WithReason(tombstore.Revoked))
	if gone(err) || errors.Is(err, tombstore.ErrInvalidID) {
		return nil
	}
	return err
}

func (a *Adapter) endHeld(ctx context.Context, r *Request, reason tombstore.Reason) error {
	if !gone(r.gone) { // nil, or an end that failed and is tried again
		err := a.store.Invalidate(ctx, r.id, tombstore.IfLive(), tombstore.WithReason(reason))
		switch {
		case err == nil, errors.Is(err, tombstore.ErrUnacknowledged):
			if reason == tombstore.Rotated {
				r.left = r.id
			}
			r.id, r.held, r.renews, r.gone = "", tombstore.Session{}, true, nil
			return err
		case !gone(err):
			r.gone = err
			return err
		}
		r.gone = err
	}
	if reason == tombstore.Rotated {
		r.left = r.id
		return nil
	}
	// Whoever moves the session elsewhere at this moment can tell from the reason that it was to end.
	return a.store.Invalidate(ctx, r.id)
}

// Finish ends the request, before its response leaves. If it has ended its session with the reason Rotated and then saved
// nothing in its place, it has logged out, and the tombstone is told so: whoever moves the session elsewhere at this moment can
// tell that it was to end.
func (a *Adapter) Finish(ctx context.Context, r *Request) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == "" {
		return nil
	}
	return a.store.Invalidate(ctx, r.left)
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
	if a.onRefused != nil {
		a.onRefused(ctx, e)
	}
	return &RefusedError{Event: e, cause: err}
}

func gone(err error) bool {
	return errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated)
}

// known reports whether err says that an id names no live session: ended, expired, or one that nobody got from here.
func known(err error) bool { return gone(err) || errors.Is(err, tombstore.ErrInvalidID) }

// tooLate reports whether err is an end so recent that the request may have been on its way.
func (a *Adapter) tooLate(err error) bool {
	var ended *tombstore.InvalidatedError
	return errors.As(err, &ended) && ended.Reason != tombstore.Revoked && time.Since(ended.At) < a.late
}

// name returns the id by which an event names the request's session. id is that of a session it saves.
func (r *Request) name(id string) string { return cmp.Or(r.id, r.left, r.came, id) }

// saved notes how a save of the request's session went.
func (r *Request) saved(id string, s tombstore.Session, err error) error {
	switch {
	case gone(err):
		r.gone = err
	case err == nil, errors.Is(err, tombstore.ErrUnacknowledged):
		r.hold(id, s)
	}
	return err
}

func (r *Request) hold(id string, s tombstore.Session) {
	s.Data = bytes.Clone(s.Data)
	r.id, r.held, r.left, r.gone, r.absent = id, s, "", nil, nil
}
