package adapter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tombstore/tombstore"
)

// pending is a login of a request that is not saved yet.
type pending struct {
	login   tombstore.Login
	opts    []tombstore.ReserveOption
	id      string // that is reserved; "" if none is
	binding tombstore.Binding
}

// owners returns the digests of the owners that the session will have.
func (p *pending) owners() []string {
	var o tombstore.ReserveOptions
	for _, opt := range p.opts {
		opt(&o)
	}
	owners := []string{p.login.Owner}
	for _, login := range o.Also {
		owners = append(owners, login.Owner)
	}
	for _, name := range o.AlsoFinal {
		owners = append(owners, tombstore.Ref(name))
	}
	return owners
}

var (
	errNoBinder  = errors.New("tombstore: the store does not know whose sessions it keeps")
	errNoRequest = errors.New("tombstore: login: outside of a request")
	errGivenUp   = errors.New("tombstore: login: the request is over")
)

func (a *Adapter) binder() (tombstore.Binder, error) {
	if binder, ok := a.store.(tombstore.Binder); ok {
		return binder, nil
	}
	return nil, errNoBinder
}

// Login logs a user in with the session of the request, which goes on under id, new and not saved
// yet: it reserves the id, and the Save of it, or the Rotate to it, leaves the id that the session
// has and begins a new life. If the request saves another new id after a Leave, or by Rotate, that
// is reserved when it does. Login returns the deadline of the session, or a zero time if the
// session has been lost to another request, in which case nothing is reserved unless this one takes
// the renewal over.
//
// After an error nothing is reserved, and the request is what it was. The error is that of Reserve,
// such as tombstore.ErrStaleLogin, or a *RefusedError if nothing of the request is saved any more.
// The request's own session does not count for a limit, since it gives way. The store must be a
// tombstore.Binder.
func (a *Adapter) Login(
	ctx context.Context, r *Request, id string, login tombstore.Login, opts ...tombstore.ReserveOption,
) (deadline time.Time, err error) {
	if r == nil {
		return time.Time{}, errNoRequest
	}
	if err := over(ctx); err != nil {
		return time.Time{}, err
	}
	ctx = context.WithoutCancel(ctx)
	of, deadline, err := a.login(ctx, r, id, &pending{login: login, opts: opts})
	if err = a.tell(ctx, r, "login", of, err); errors.Is(err, tombstore.ErrUnacknowledged) {
		err = nil // the login is valid, and what saves it asks the replicas again
	}
	return deadline, err
}

// login also returns for which session it was.
func (a *Adapter) login(
	ctx context.Context, r *Request, id string, p *pending,
) (of string, deadline time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of = cmp.Or(r.id, id)
	switch r.state {
	case tainted:
		return of, deadline, r.cause
	case lost:
	default:
		a.release(ctx, r.login) // it would take the place of this one
		if err = a.reserve(ctx, r, p, id); !reserved(err) {
			return of, deadline, err
		}
	}
	r.login, r.renews, r.lasts = p, true, nil
	return of, p.binding.Deadline, err
}

// reserve reserves id for p. If the request's own session is the owner's, that is the one to give
// way.
func (a *Adapter) reserve(ctx context.Context, r *Request, p *pending, id string) error {
	binder, err := a.binder()
	if err != nil {
		return err
	}
	opts := p.opts
	if r.owns(p.login.Owner) {
		opts = append(slices.Clip(opts), tombstore.InPlaceOf(r.id))
	}
	p.binding, err = binder.Reserve(ctx, id, p.login, opts...)
	if reserved(err) {
		p.id = id
	}
	return err
}

// owns reports whether the session that the request holds or has left is one of an owner's.
func (r *Request) owns(owner string) bool {
	return (r.state == holding || r.state == left) && slices.Contains(r.held.Owners(), owner)
}

// aheadTTL is for how long a session lives that was saved ahead, in case that its request does not
// come to save it: for as long as a login is good.
const aheadTTL = time.Hour

// saveAhead carries out the login of a request that holds or has left a session: it goes on under
// the id of the login, with the data that it has. So what the request saves later is refused if the
// session was ended meanwhile, by whatever id. Otherwise the session that it has would have to be
// ended as one of the owner's others, and nothing would lead from there to the new one.
func (a *Adapter) saveAhead(ctx context.Context, r *Request) (err error) {
	id, data, merged := r.login.id, r.base, false
	var s tombstore.Session
	if r.state == left {
		merged = a.updates.merge != nil && !bytes.Equal(data, r.held.Data)
		s, err = a.finish(ctx, r, id, data, aheadTTL)
	} else {
		s, err = a.move(ctx, r, id, data, aheadTTL, &r.login.binding)
	}
	if merged {
		s.Version = 0 // what the request saves next is merged again
	}
	r.saved(id, s, data, err)
	switch {
	case r.state == holding && r.id == id:
		r.ahead = true
		return nil // it is asked again for what is not acknowledged
	case r.state == left: // whether it was stored is not known
		r.taint(err)
	}
	return err
}

// reserved reports whether an error of Reserve says that the id is reserved.
func reserved(err error) bool { return err == nil || errors.Is(err, tombstore.ErrUnacknowledged) }

// binding returns what the save of id is to carry, or nil if the request does not log in.
func (a *Adapter) binding(ctx context.Context, r *Request, id string) (*tombstore.Binding, error) {
	if r.login == nil {
		return nil, nil
	}
	if before := r.login.id; before != id {
		a.release(ctx, r.login)
		err := a.reserve(ctx, r, r.login, id)
		if before != "" && errors.Is(err, tombstore.ErrStaleLogin) { // its user was logged out meanwhile
			err = &tombstore.InvalidatedError{Reason: tombstore.Revoked, At: time.Now()}
			r.taint(err)
		}
		if !reserved(err) {
			return nil, err
		}
	}
	return &r.login.binding, nil
}

// met returns why a session could not be saved under id with a binding. That the id is in use means
// that it was ended when it was only reserved.
func (a *Adapter) met(ctx context.Context, b *tombstore.Binding, id string, err error) error {
	if b == nil || !errors.Is(err, tombstore.ErrConflict) {
		return err
	}
	if _, end := a.store.Read(ctx, id, tombstore.Fresh()); errors.Is(end, tombstore.ErrInvalidated) {
		return end
	}
	return err
}

// Release gives up a login that was not saved. Call it when the request is over.
func (a *Adapter) Release(ctx context.Context, r *Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ahead {
		_ = a.revoke(context.WithoutCancel(ctx), r.id) // nobody has its cookie
		r.taint(errGivenUp)
	}
	if r.login != nil {
		r.taint(errGivenUp)
		a.giveUpTainted(ctx, r)
	}
}

// giveUpTainted gives up the login of a request of which nothing is saved any more.
func (a *Adapter) giveUpTainted(ctx context.Context, r *Request) {
	if r.state == tainted {
		a.giveUp(ctx, r)
	}
}

// giveUp gives up the login of a request.
func (a *Adapter) giveUp(ctx context.Context, r *Request) {
	a.release(context.WithoutCancel(ctx), r.login)
	r.login = nil
}

// release gives up what is reserved for p. If that fails nothing is lost but the place.
func (a *Adapter) release(ctx context.Context, p *pending) {
	if p == nil || p.id == "" {
		return
	}
	if binder, err := a.binder(); err == nil {
		_ = binder.Release(ctx, p.binding)
	}
	p.id = ""
}

// Holds reports whether the request holds a live session, as far as it knows, that it has loaded or
// saved. One that EndOthers has moved to the id of a login is not, until it is saved.
func (r *Request) Holds() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state == holding && !r.ahead
}

// EndOthers ends all sessions of an owner but the one that the request holds, or is about to save,
// if that is the owner's, and returns how many. A session that the request holds should get a new
// id then. If it logs in, what it is about to save goes on; a session of the owner's that it holds
// moves to the id of the login at once. It returns a *RefusedError, and has ended nothing, if the
// request's own session has been ended by somebody else. The store must be a tombstore.Binder.
func (a *Adapter) EndOthers(ctx context.Context, r *Request, owner string) (n int, err error) {
	binder, err := a.binder()
	if err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx)
	id, err := a.idAs(ctx, r, tombstore.Ref(owner))
	if id == "" {
		return binder.InvalidateOwner(ctx, owner)
	}
	if err == nil {
		n, err = binder.InvalidateOwner(ctx, owner, tombstore.Except(id))
	}
	if tombstore.NoSession(err) {
		err = a.tell(ctx, r, "end others", id, err)
	}
	return n, err
}

// idAs returns the id of the session that the request has, or will have, as one of an owner's; ""
// if there is none. If the owner logs in again, that is the new one, to which the old one moves: it
// would be one of the others.
func (a *Adapter) idAs(ctx context.Context, r *Request, owner string) (id string, err error) {
	if r == nil {
		return "", nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	own := slices.Contains(r.held.Owners(), owner)
	switch {
	case r.login != nil && slices.Contains(r.login.owners(), owner):
		id = cmp.Or(r.login.id, r.id)
		if r.login.id != "" && r.owns(owner) {
			err = a.saveAhead(ctx, r)
			a.giveUpTainted(ctx, r)
		}
		return id, err
	case own:
		return r.id, nil
	}
	return "", nil
}
