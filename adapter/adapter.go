// Package adapter is what adapters of tombstore to session libraries have in common: it knows which
// session a request came with, and from that which write is the right one.
//
// A session library calls Load, Save, Leave, Rotate and End in the course of a request, with the
// same [Request] each time. A session that was loaded is saved only if it is still live, or touched
// if its data is the same, or left alone if its TTL is nearly right as well and the response can do
// without its cookie; a new one is saved only if its id is unused; one that is renewed stays the
// same session, so that a logout by its old id ends it; and once the session of a request has been
// ended by somebody else, nothing that the request holds is saved any more, neither under the old
// id nor under a new one. Login, before the Save, makes it the session of a user.
//
// What is begun is carried out: a save or an end goes on when the client has gone away, or the time
// of the handler is up. The store's own timeout bounds it. Only a renewal is not begun any more
// then, and one whose client goes away between its halves is given up: nobody would get the new id,
// and of two logins by a double click the one whose client is still there would lose. That one
// takes over.
package adapter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tombstore/tombstore"
)

// ErrRefused says that a session was not saved because the request's session has been ended or has
// expired meanwhile. The error is a [*RefusedError]. A session library must answer the request as
// if it had been saved, but without a session cookie.
var ErrRefused = errors.New("session was ended during the request")

// RefusedError is the ErrRefused of one request. It wraps what the store said, which is the Err of
// the Event.
type RefusedError struct{ tombstore.Event }

func (e *RefusedError) Error() string { return "tombstore: " + e.Verb + ": " + ErrRefused.Error() }

// Is reports whether target is ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// Unwrap returns what the store said.
func (e *RefusedError) Unwrap() error { return e.Err }

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

// Merge asks merge what to store. base is what the request loaded, mine what it would store, theirs
// what another request has stored meanwhile. It may be called more than once for one save, and must
// not use the request's session. An error of merge is returned by the save.
func Merge(merge func(base, mine, theirs []byte) ([]byte, error)) LostUpdates {
	return LostUpdates{conflict: true, merge: merge}
}

// Option configures an Adapter.
type Option func(*Adapter)

// WithLostUpdates says what happens when two requests change one session at the same time. The
// default is LastWriteWins.
func WithLostUpdates(l LostUpdates) Option { return func(a *Adapter) { a.updates = l } }

// WithOnRefused sets a function that is called on every refusal, in the goroutine of the request.
// The default is nil, none.
//
// The Outcome of the event is OutcomeRefused if the session was ended, and OutcomeNotFound if it
// has expired or the server has lost it. Its Ref stands for the session that the request came with.
// Its Verb is what was refused: "write", "touch", "create", "absorb", "login" or "end others", or
// "rotate" for a renewal in one step; one in two halves is a "write" if its first half was refused,
// and else a "create". Duration and Attempts are zero.
//
// This counts requests, and an Observer of the store (tombstore.WithObserver) counts what the store
// was asked to do. Do not add them up: most refusals are both, a request that has been refused once
// is refused again without asking the store, and a renewal may ask it twice.
func WithOnRefused(f func(ctx context.Context, e tombstore.Event)) Option {
	return func(a *Adapter) { a.onRefused = f }
}

// WithOnUnacknowledged sets a function that is called, in the goroutine of the request, when a
// session was saved under a new id with tombstore.ErrUnacknowledged: it goes on there, but a
// failover may bring it back under the old id too. Some session libraries cannot both return that
// error and send the cookie. The event is as for WithOnRefused, with OutcomeUnacknowledged. The
// default is nil, none.
func WithOnUnacknowledged(f func(ctx context.Context, e tombstore.Event)) Option {
	return func(a *Adapter) { a.onUnacknowledged = f }
}

// WithLateRequests refuses new anonymous sessions to requests that come with the id of a session
// that was ended less than window ago by a logout or a rotation, as far as the clocks of the
// process that has ended it and of this one agree. Such a request began before the browser got its
// new cookie, and a cookie for a new session would overwrite that one: the user would be logged in
// and lose it. Requests whose session was revoked get a new session, and so do those that renew
// their id, since they log in. The default is 0, off; a few seconds are enough.
func WithLateRequests(window time.Duration) Option { return func(a *Adapter) { a.late = window } }

// WithEqual sets what tells whether two encodings are of the same session, so that a session that
// did not change is touched and not written: for encodings that differ from one time to the next,
// as gob's of a map do. The default is bytes.Equal.
func WithEqual(equal func(a, b []byte) bool) Option { return func(a *Adapter) { a.equal = equal } }

// WithTouchThreshold sets the part of the idle timeout, from 0 to below 1, by which a session's TTL
// must be off before SaveIfDue touches a session that has not changed. It is best as large as the
// store's threshold: with a smaller one the store is asked and does nothing. The default is 0.1;
// with 0, and with what is out of range, every save is due, and Load does not ask when the session
// expires, which costs a request a tenth of its time.
func WithTouchThreshold(part float64) Option {
	return func(a *Adapter) {
		if a.threshold = part; !(part > 0 && part < 1) {
			a.threshold = 0
		}
	}
}

// Adapter saves the sessions of a session library in a store. It is safe for concurrent use.
type Adapter struct {
	store            tombstore.Renewer
	updates          LostUpdates
	onRefused        func(ctx context.Context, e tombstore.Event)
	onUnacknowledged func(ctx context.Context, e tombstore.Event)
	late             time.Duration
	threshold        float64
	equal            func(a, b []byte) bool
	old              OldStore // or nil
	decode           func(data []byte) error
}

// New returns an adapter for store.
func New(store tombstore.Renewer, opts ...Option) *Adapter {
	a := &Adapter{store: store, equal: bytes.Equal, threshold: 0.1}
	for _, opt := range opts {
		opt(a)
	}
	return a
}

// Store returns the store.
func (a *Adapter) Store() tombstore.Renewer { return a.store }

// Request is what one request knows of its session, the one that its cookie names and that is
// loaded first. The zero value is a request that has loaded nothing. It is safe for concurrent use.
// Methods of Adapter take a nil Request outside an HTTP request, and then only refuse what the
// store refuses. A session library with several sessions a request needs a Request each.
//
//	state      its session               Save its id   Save another id       Leave it      End it
//	anonymous  none, or not live         -             begin a session       -             end what it became
//	holding    live when loaded, saved   save, touch*  begin a second one    left          end; anonymous
//	left       left, for a new id        refused       finish; holding       -             end; anonymous
//	lost       left by another request   refused       left, or refused      -             end what it became
//	tainted    ended by somebody else    refused       refused               -             end what it became
//
// After a Login, what is saved under another id begins a new life, as the session of a user; while
// the request holds a session, only what is saved under the id of the Login, which that is left
// for. Login reserves the id, but is refused if the request is tainted, and waits for the Save if
// it has lost its session. What is reserved is given up by End, by whatever taints the request, by
// another Login, and by Release. EndOthers of the user who logs in again saves it at once.
//
// * with SaveIfDue nothing, if the request has not saved it before and its TTL is nearly right.
//
// A request whose session another one renews has lost it, unless that one gives up: then the Save
// of another id takes the renewal over. One that has left its session, and whose client has gone
// away when it saves another id, gives up, and is tainted.
//
// A request is also tainted by an error that leaves it unclear whether its own End or Leave took
// effect; then Leave and End may be tried again. In every state but holding, the id that a renewal
// has chosen and not yet saved stands for the session of the request in End.
type Request struct {
	mu      sync.Mutex
	state   state
	id      string              // the session's; when anonymous, the id that the request came with
	cause   error               // why the session is not live, when anonymous or tainted
	held    tombstore.Session   // as the store has it, when holding; it expires as it did when loaded
	stored  bool                // the request has saved or touched a session, and may have sent its cookie
	base    []byte              // the data that the request has changed, when holding or left
	renewal tombstore.Renewal   // when left
	spared  bool                // nobody may take the renewal over
	renews  bool                // it wants a new id
	login   *pending            // what the Save of another id is to carry
	ahead   bool                // it holds a session that it has not saved itself: see saveAhead
	lasts   *tombstore.Lifetime // that the Save of another id is to give, or nil
	grace   time.Duration       // that the Rotate to another id is to leave, or 0
	others  map[string]bool     // further ids that it has loaded live

	hooksMu sync.Mutex
	hooks   hooks
	waiting []func()
}

type state int

// hooks is when the functions of WithOnRefused and WithOnUnacknowledged run.
type hooks int

const (
	atOnce hooks = iota
	deferred
	apart // each in a goroutine of its own
)

const (
	anonymous state = iota
	holding
	left
	lost
	tainted
)

// Gone returns why the session that the request came with, or has saved, is not live, if that is
// not the request's own doing: an error wrapping tombstore.ErrInvalidated or tombstore.ErrNotFound.
// Otherwise it returns nil.
func (r *Request) Gone() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if tombstore.NoSession(r.cause) {
		return r.cause
	}
	return nil
}

// ID returns the id of the session that the request holds, or came with. It is "" if there is none.
func (r *Request) ID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

// Spare reports whether the request has left its session for an id that it has not saved yet, for a
// library that ends all sessions but this one. If the request does not come to save it, the session
// is ended for good, and no other request can take the renewal over: there it was to be ended, too.
func (r *Request) Spare() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spared = r.spared || r.state == left
	return r.state == left
}

// DeferHooks makes the functions of WithOnRefused and WithOnUnacknowledged wait for RunHooks: for a
// session library that calls its store under a lock of the session, which such a function may want
// to read.
func (r *Request) DeferHooks() {
	r.hooksMu.Lock()
	defer r.hooksMu.Unlock()
	r.hooks = deferred
}

// RunHooks calls the functions that wait. last says that RunHooks will not be called again: what
// comes later, from a goroutine that outlives the request, runs in a goroutine of its own.
func (r *Request) RunHooks(last bool) {
	r.hooksMu.Lock()
	waiting := r.waiting
	r.waiting = nil
	if last {
		r.hooks = apart
	}
	r.hooksMu.Unlock()
	for _, f := range waiting {
		f()
	}
}

// run calls f when it may. Without a Request that is at once.
func (r *Request) run(f func()) {
	if r == nil {
		f()
		return
	}
	r.hooksMu.Lock()
	when := r.hooks
	if when == deferred {
		r.waiting = append(r.waiting, f)
	}
	r.hooksMu.Unlock()
	switch when {
	case atOnce:
		f()
	case apart:
		go f()
	}
}

// Renew notes that the next Save is of a session under a new id: with WithLateRequests it is
// served. It may be a login, so it takes back a Grace.
func (r *Request) Renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renews, r.grace = true, 0
}

// Grace lets the id that the next Rotate leaves read on for d: see tombstore.Grace. It is for a
// renewal that nobody has asked for, such as one every quarter of an hour, and never for a login: a
// Login, a SetLifetime or a Renew after it takes it back.
func (r *Request) Grace(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grace = d
}

// SetLifetime gives the session of the request a lifetime of its own, such as that of "remember
// me". It takes effect with the id that the request saves next, of a new session or of one that it
// renews, and it is an error to save under the id that the request holds instead. A renewal without
// it keeps what the session had, so a login that wants what all others have gives the zero one. A
// Login has tombstore.LoginLifetime among its options instead, and after it SetLifetime is an
// error.
func (r *Request) SetLifetime(l tombstore.Lifetime) error {
	if l.Idle < 0 || l.Absolute < 0 {
		return fmt.Errorf("tombstore: lifetime: %w", tombstore.ErrInvalidTTL)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.login != nil {
		return errAfterLogin
	}
	r.lasts = &l
	return nil
}

var (
	errKeepsID    = errors.New("tombstore: lifetime: a session gets another one only with another id: renew it")
	errAfterLogin = errors.New("tombstore: lifetime: the login is begun: give it LoginLifetime")
)

// CookieAge returns for how long the cookie of the request's session should live if the session has
// an idle timeout of its own, of which a session library knows nothing. Otherwise it is 0.
func (r *Request) CookieAge() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	age := r.held.Idle()
	if deadline := r.held.Deadline(); age > 0 && !deadline.IsZero() {
		age = max(min(age, time.Until(deadline)), time.Millisecond)
	}
	return age
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

// Load returns the data of a session, and whether it is live. A session that was ended is just not
// found, since a request with an old cookie is not an error. The caller must not change the data.
func (a *Adapter) Load(ctx context.Context, r *Request, id string) (data []byte, found bool, err error) {
	if r == nil {
		r = &Request{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	opts := []tombstore.ReadOption{tombstore.Shared()}
	if a.threshold > 0 {
		opts = append(opts, tombstore.WithExpiry())
	}
	s, err := a.read(ctx, id, opts...)
	switch first := r.state == anonymous && (r.id == "" || id == r.id && !known(r.cause)); {
	case err == nil && (first || r.state == holding && id == r.id):
		r.hold(id, s)
	case err == nil: // one that the handler merely looks at
		if r.others == nil {
			r.others = map[string]bool{}
		}
		r.others[id] = true
	case first:
		r.id, r.cause = id, err
	case r.state == holding && id == r.id && tombstore.NoSession(err): // it was live before
		r.taint(err)
	}
	switch {
	case err == nil:
		return s.Data, true, nil
	case known(err):
		return nil, false, nil
	}
	return nil, false, err
}

// Save stores a session for ttl after its last use. It returns a *RefusedError if the request's
// session is not live any more, and tombstore.ErrConflict if another request has changed it and
// WithLostUpdates says that this matters. With tombstore.ErrUnacknowledged it was stored. The
// caller must not change data afterwards.
func (a *Adapter) Save(ctx context.Context, r *Request, id string, data []byte, ttl time.Duration) error {
	verb, of, err := a.save(ctx, r, id, data, ttl, 0)
	return a.tell(ctx, r, verb, of, err)
}

// SaveIfDue is Save for a response that can do without the session's cookie. If the request has
// changed nothing, and the session's TTL is nearly ttl, nothing is sent, and due is false. The
// response must not carry the session's id then: nobody has asked whether the session was ended or
// renewed meanwhile, and its cookie would take the place of the one that a login has set. What the
// request has saved before is due.
func (a *Adapter) SaveIfDue(
	ctx context.Context, r *Request, id string, data []byte, ttl time.Duration,
) (due bool, err error) {
	verb, of, err := a.save(ctx, r, id, data, ttl, a.threshold)
	return verb != "", a.tell(ctx, r, verb, of, err)
}

// save returns what it did, "" for nothing, for which session, and whether it worked.
func (a *Adapter) save(
	ctx context.Context, r *Request, id string, data []byte, ttl time.Duration, threshold float64,
) (verb, of string, err error) {
	gone := gone(ctx)
	ctx = context.WithoutCancel(ctx)
	if r == nil {
		_, err := a.store.Write(ctx, id, data, ttl)
		return "write", id, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	of = cmp.Or(r.id, id)
	defer a.giveUpTainted(ctx, r)
	if r.state == lost && id != r.id && gone == nil {
		if err := a.leave(ctx, r); err != nil {
			return "write", of, err
		}
	}
	switch {
	case r.state == tainted, r.state == lost:
		return "write", of, r.cause
	case r.state == left && id == r.id:
		return "write", of, &tombstore.InvalidatedError{Reason: tombstore.Rotated, At: time.Now()}
	case r.state == left && gone != nil:
		if r.spared {
			err = ended(a.store.Invalidate(ctx, r.id, tombstore.WithReason(tombstore.Revoked)))
		} else {
			err = a.store.CancelRenewal(ctx, r.renewal)
		}
		err = cmp.Or(err, gone)
		r.taint(err)
		return "create", of, err
	case r.state == left:
		verb = "create"
		var s tombstore.Session
		s, err = a.finish(ctx, r, id, data, ttl)
		r.saved(id, s, data, err)
		if err != nil && r.state == left { // whether it was stored is not known
			r.taint(err)
		}
	case r.state == holding && id == r.id && r.lasts != nil:
		return "write", of, errKeepsID
	case r.state == holding && id == r.id && a.equal(r.held.Data, data):
		if !r.stored && nearly(r.held, ttl, threshold) {
			return "", of, nil
		}
		verb = "touch"
		err = a.store.Touch(ctx, id, ttl)
		r.saved(id, r.held, r.held.Data, err)
	case r.state == holding && id == r.id:
		verb = "write"
		var s tombstore.Session
		s, err = a.update(r, data, func(data []byte, held tombstore.Session) (tombstore.Session, error) {
			if a.updates.conflict {
				return a.store.Write(ctx, id, data, ttl, tombstore.IfVersion(held.Version))
			}
			return a.replace(ctx, id, data, ttl, held)
		}, func() (tombstore.Session, error) { return a.store.Read(ctx, id, tombstore.Fresh()) })
		r.saved(id, s, data, err)
	case r.others[id]:
		_, err = a.store.Write(ctx, id, data, ttl, tombstore.IfPresent())
		return "write", id, err
	case r.state == holding && (r.login == nil || r.login.id != id): // a second session
		_, err = a.store.Write(ctx, id, data, ttl, tombstore.IfAbsent())
		return "create", id, err
	case r.state == holding: // the library has not left the session that logs in
		verb = "rotate"
		var s tombstore.Session
		s, err = a.move(ctx, r, id, data, ttl, &r.login.binding)
		r.saved(id, s, data, err)
	case !r.renews && a.tooLate(r.cause):
		return "create", of, r.cause
	default:
		verb = "create"
		var s tombstore.Session
		s, err = a.create(ctx, r, id, data, ttl)
		r.saved(id, s, data, err)
	}
	return verb, of, err
}

// replace stores data over a session that is held. One that has been given an owner meanwhile
// (Adopt) is the same session, although its header is another one.
func (a *Adapter) replace(
	ctx context.Context, id string, data []byte, ttl time.Duration, held tombstore.Session,
) (tombstore.Session, error) {
	s, err := a.store.Write(ctx, id, data, ttl, tombstore.Replacing(held))
	if errors.Is(err, tombstore.ErrConflict) {
		adopted, failed := a.store.Read(ctx, id, tombstore.Fresh())
		switch {
		case failed != nil:
			return adopted, failed
		case len(adopted.Owners()) > len(held.Owners()) && adopted.CreatedAt.Equal(held.CreatedAt):
			s, err = a.store.Write(ctx, id, data, ttl, tombstore.Replacing(adopted))
		}
	}
	if errors.Is(err, tombstore.ErrConflict) { // another session has begun under the id
		err = tombstore.ErrNotFound
	}
	return s, err
}

// nearly reports whether the TTL of a session that was read is so near to ttl that a Touch would
// leave it alone.
func nearly(s tombstore.Session, ttl time.Duration, threshold float64) bool {
	if s.ExpiresAt.IsZero() { // not known
		return false
	}
	now := time.Now()
	if idle := s.Idle(); idle > 0 {
		ttl = idle
	}
	if deadline := s.Deadline(); !deadline.IsZero() {
		ttl = min(ttl, deadline.Sub(now))
	}
	return float64((ttl - s.ExpiresAt.Sub(now)).Abs()) < float64(ttl)*threshold
}

// update stores data over the session that the request holds, by store. If another request has
// changed it, and lost updates are to be merged, it reads what that has stored and tries again.
func (a *Adapter) update(
	r *Request, data []byte,
	store func(data []byte, held tombstore.Session) (tombstore.Session, error),
	read func() (tombstore.Session, error),
) (tombstore.Session, error) {
	held := r.held
	s, err := store(data, held)
	for a.updates.merge != nil && errors.Is(err, tombstore.ErrConflict) {
		var theirs tombstore.Session
		if theirs, err = read(); err != nil {
			return theirs, err
		}
		if theirs.Version == held.Version { // what is in the way is the new id
			return theirs, tombstore.ErrConflict
		}
		held = theirs
		merged, failed := a.updates.merge(r.base, data, theirs.Data)
		if failed != nil {
			return theirs, failed
		}
		if s, err = store(merged, held); err == nil {
			s.Version = 0 // whatever the request saves next is merged again, since it has not seen this
		}
	}
	return s, err
}

// create stores a session of a request that has none.
func (a *Adapter) create(
	ctx context.Context, r *Request, id string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	b, err := a.binding(ctx, r, id)
	if err != nil {
		return tombstore.Session{}, err
	}
	opts := []tombstore.WriteOption{tombstore.IfAbsent()}
	switch {
	case b != nil:
		opts[0] = tombstore.Bound(*b)
	case r.lasts != nil:
		opts = append(opts, tombstore.Lasting(*r.lasts))
	}
	return a.store.Write(ctx, id, data, ttl, opts...)
}

// finish is the second half of a renewal.
func (a *Adapter) finish(
	ctx context.Context, r *Request, id string, data []byte, ttl time.Duration,
) (tombstore.Session, error) {
	if a.updates.merge != nil && !bytes.Equal(r.base, r.held.Data) {
		merged, err := a.updates.merge(r.base, data, r.held.Data)
		if err != nil {
			return tombstore.Session{}, err
		}
		data = merged
	}
	renewal := r.renewal
	renewal.Lifetime = r.lasts
	var err error
	if renewal.Binding, err = a.binding(ctx, r, id); err != nil {
		return tombstore.Session{}, err
	}
	s, err := a.store.FinishRenewal(ctx, renewal, id, data, ttl)
	return s, a.met(ctx, renewal.Binding, id, err)
}

// Rotate is Save under a new id, and leaves the session that the request holds, in one step. If it
// holds none, it is Save.
func (a *Adapter) Rotate(
	ctx context.Context, r *Request, newID string, data []byte, ttl time.Duration,
) error {
	over := over(ctx)
	if r == nil {
		return a.Save(ctx, r, newID, data, ttl)
	}
	r.mu.Lock()
	if r.state != holding || newID == r.id { // it holds the id of a login that was saved ahead
		r.mu.Unlock()
		return a.Save(ctx, r, newID, data, ttl)
	}
	if over != nil {
		r.taint(over)
		a.giveUpTainted(ctx, r)
		r.mu.Unlock()
		return over
	}
	ctx = context.WithoutCancel(ctx)
	id := r.id
	b, err := a.binding(ctx, r, newID)
	if err != nil {
		a.giveUpTainted(ctx, r)
		r.mu.Unlock()
		return a.tell(ctx, r, "rotate", id, err)
	}
	s, err := a.move(ctx, r, newID, data, ttl, b)
	r.saved(newID, s, data, err)
	a.giveUpTainted(ctx, r)
	r.mu.Unlock()
	return a.tell(ctx, r, "rotate", id, err)
}

// move stores data under a new id, and ends the session that the request holds, in one step.
func (a *Adapter) move(
	ctx context.Context, r *Request, newID string, data []byte, ttl time.Duration, b *tombstore.Binding,
) (tombstore.Session, error) {
	id := r.id
	s, err := a.update(r, data, func(data []byte, held tombstore.Session) (tombstore.Session, error) {
		opts := []tombstore.RotateOption{tombstore.WithData(data, ttl)}
		if b != nil {
			opts = append(opts, tombstore.WithBinding(*b))
		} else if r.lasts != nil {
			opts = append(opts, tombstore.WithLifetime(*r.lasts))
		} else if r.grace != 0 {
			opts = append(opts, tombstore.Grace(r.grace))
		}
		if a.updates.conflict {
			opts = append(opts, tombstore.IfUnchanged(cmp.Or(held.Version, never)))
		}
		return a.store.Rotate(ctx, id, newID, opts...)
	}, func() (tombstore.Session, error) { return a.store.Read(ctx, id, tombstore.Fresh()) })
	return s, a.met(ctx, b, newID, err)
}

// over returns an error if nobody waits for the response any more.
func over(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("tombstore: no new id for a request that is over: %w", err)
	}
	return nil
}

// gone returns an error if the client has gone away. That time is up does not show it: the response
// of http.TimeoutHandler goes out instead, but middleware that only limits the context sends this
// one.
func gone(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return over(ctx)
	}
	return nil
}

// never stands for a version that is not stored: the request's own write was merged with others.
const never = ^tombstore.Version(0)

// Leave is the first half of a renewal: it ends the session that the request holds, which goes on
// under the id of the next Save. That somebody else has ended it is not an error; the Save will be
// refused. An empty id, or one that is not live, is the renewal of a request that has no session
// yet. The session of somebody else is ended.
func (a *Adapter) Leave(ctx context.Context, r *Request, id string) error {
	over := over(ctx)
	ctx = context.WithoutCancel(ctx)
	if r == nil {
		return ended(a.invalidate(ctx, id, tombstore.WithReason(tombstore.Rotated)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if id != "" && id != r.id {
		return ended(a.revoke(ctx, id))
	}
	r.renews = true
	if r.state != holding && !(r.state == tainted && !tombstore.NoSession(r.cause)) {
		return nil
	}
	if over != nil {
		r.taint(over)
		return over
	}
	return a.leave(ctx, r)
}

// leave begins a renewal, or takes over one that was given up. That the session is not live is not
// an error.
func (a *Adapter) leave(ctx context.Context, r *Request) error {
	renewal, err := a.begin(ctx, r)
	switch {
	case err == nil, errors.Is(err, tombstore.ErrUnacknowledged): // FinishRenewal asks the replicas again
		r.state, r.renewal, r.cause = left, renewal, nil
		return nil
	case rotated(err):
		r.state, r.cause = lost, err
		return nil
	case tombstore.NoSession(err):
		r.taint(err)
		return nil
	case errors.Is(err, tombstore.ErrConflict):
		return err
	}
	r.taint(err)
	return err
}

// begin is the first half of a renewal. It notes in r.held what is to be merged later.
func (a *Adapter) begin(ctx context.Context, r *Request) (tombstore.Renewal, error) {
	if !a.updates.conflict {
		return a.store.BeginRenewal(ctx, r.id, 0)
	}
	renewal, err := a.store.BeginRenewal(ctx, r.id, cmp.Or(r.held.Version, never))
	for a.updates.merge != nil && errors.Is(err, tombstore.ErrConflict) {
		if r.held, err = a.store.Read(ctx, r.id, tombstore.Fresh()); err == nil {
			renewal, err = a.store.BeginRenewal(ctx, r.id, r.held.Version)
		}
	}
	return renewal, err
}

// End ends a session: for the reason tombstore.Logout, under whatever id it has by now, if it is
// the one that the request came with or holds, and otherwise tombstore.Revoked. That it was ended
// before is not an error. What the request saves afterwards under another id is a new session. An
// empty id is that of the session that the request came with or holds, whatever it is.
func (a *Adapter) End(ctx context.Context, r *Request, id string) error {
	ctx = context.WithoutCancel(ctx)
	if r == nil {
		return ended(a.invalidate(ctx, id))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if id != "" && id != r.id {
		err := a.revoke(ctx, id)
		if !errors.Is(err, tombstore.ErrNotFound) || r.state == holding {
			return ended(err)
		}
	}
	a.giveUp(ctx, r)
	if id = r.id; id == "" {
		r.renews = true
		return nil
	}
	// An id that never was gets no tombstone, or strangers could fill the server. For one that is
	// ended the replicas are asked again.
	met := a.invalidate(ctx, id, tombstore.IfLive())
	err := met
	if errors.Is(met, tombstore.ErrInvalidated) || errors.Is(met, tombstore.ErrUnknownOutcome) {
		err = a.invalidate(ctx, id)
	}
	switch {
	case err == nil, known(err):
		leaving := r.state == left
		r.hold("", tombstore.Session{})
		r.state, r.renews = anonymous, true
		if known(met) && !(leaving && rotated(met)) { // otherwise it is the request's own doing
			r.cause = met
		}
		return nil
	case errors.Is(err, tombstore.ErrUnacknowledged): // the id stays, so that End can be tried again
		r.hold(id, tombstore.Session{})
		r.state, r.renews = anonymous, true
	case r.state != anonymous:
		r.taint(err)
	}
	return err
}

// Absorb ends another session whose values the request has taken over. If that was ended meanwhile,
// the request is tainted, since it must not carry them on, and the error is a *RefusedError.
func (a *Adapter) Absorb(ctx context.Context, r *Request, id string) error {
	ctx = context.WithoutCancel(ctx)
	err := a.absorb(ctx, r, id)
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		return err
	}
	return a.tell(ctx, r, "absorb", id, err)
}

func (a *Adapter) absorb(ctx context.Context, r *Request, id string) error {
	err := a.invalidate(ctx, id, tombstore.IfLive(), tombstore.WithReason(tombstore.Revoked))
	if r == nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && !errors.Is(err, tombstore.ErrUnacknowledged):
		r.taint(err)
	case id == r.id: // the request has no session of its own, and took this one for it
		r.hold("", tombstore.Session{})
		r.state = anonymous
	}
	return err
}

func rotated(err error) bool { return endedFor(tombstore.Rotated, err) }

// endedFor reports whether err says that a session was ended for a reason.
func endedFor(reason tombstore.Reason, err error) bool {
	var ended *tombstore.InvalidatedError
	return errors.As(err, &ended) && ended.Reason == reason
}

// revoke ends a session that is not the request's.
func (a *Adapter) revoke(ctx context.Context, id string) error {
	return a.invalidate(ctx, id, tombstore.IfLive(), tombstore.WithReason(tombstore.Revoked))
}

// ended drops the errors that say that there was no session to end.
func ended(err error) error {
	if known(err) {
		return nil
	}
	return err
}

// tell turns err into a refusal if it says that the session is not live, and calls the hooks.
func (a *Adapter) tell(ctx context.Context, r *Request, verb, id string, err error) error {
	refused := tombstore.NoSession(err)
	if !refused && !errors.Is(err, tombstore.ErrUnacknowledged) {
		return err
	}
	e := tombstore.Event{Verb: verb, Outcome: tombstore.OutcomeUnacknowledged, Ref: tombstore.Ref(id), Err: err}
	hook := a.onUnacknowledged
	if refused {
		e.Outcome, hook = tombstore.OutcomeNotFound, a.onRefused
	}
	var ended *tombstore.InvalidatedError
	if errors.As(err, &ended) {
		e.Outcome, e.Reason = tombstore.OutcomeRefused, ended.Reason
	}
	if hook != nil {
		ctx = context.WithoutCancel(ctx) // it may run when the request is over
		r.run(func() { hook(ctx, e) })
	}
	if !refused {
		return err
	}
	return &RefusedError{e}
}

// known reports whether err says that an id names no live session: ended, expired, or one that
// nobody got from here.
func known(err error) bool {
	return tombstore.NoSession(err) || errors.Is(err, tombstore.ErrInvalidID)
}

// tooLate reports whether err is an end so recent that the request may have been on its way.
func (a *Adapter) tooLate(err error) bool {
	var ended *tombstore.InvalidatedError
	return errors.As(err, &ended) && ended.Reason != tombstore.Revoked && time.Since(ended.At).Abs() < a.late
}

// saved notes how a save of the request's session went. data is what the request has.
func (r *Request) saved(id string, s tombstore.Session, data []byte, err error) {
	switch {
	case err == nil, errors.Is(err, tombstore.ErrUnacknowledged):
		s.Data = data
		r.hold(id, s)
		r.stored, r.lasts, r.grace = true, nil, 0
		if r.login != nil && r.login.id == id {
			r.login = nil
		}
	case tombstore.NoSession(err):
		r.taint(err)
	}
}

func (r *Request) hold(id string, s tombstore.Session) {
	r.state, r.id, r.held, r.base, r.cause, r.renewal = holding, id, s, s.Data, nil, tombstore.Renewal{}
	r.ahead = false
}

func (r *Request) taint(err error) { r.state, r.cause = tainted, err }
