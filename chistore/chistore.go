// Package chistore keeps the sessions of gitea.com/go-chi/session in a tombstore.Renewer, so that a
// logout wins over requests that are still running. In an existing program [Sessioner] instead of
// session.Sessioner is all that changes:
//
//	package main
//
//	import (
//		"log"
//		"net/http"
//
//		"gitea.com/go-chi/session"
//		"github.com/tombstore/tombstore"
//		"github.com/tombstore/tombstore/chistore"
//	)
//
//	func main() {
//		store, err := tombstore.Open("redis://127.0.0.1:6379")
//		if err != nil {
//			log.Fatal(err)
//		}
//		withSession, err := chistore.Sessioner(store, session.Options{CookieName: "session"})
//		if err != nil {
//			log.Fatal(err)
//		}
//		log.Fatal(http.ListenAndServe("127.0.0.1:8080", withSession(http.DefaultServeMux)))
//	}
//
// A request whose session was ended while it ran is answered with its own status and body, but
// without a session cookie, and nothing of it is saved. [adapter.WithOnRefused] reports it.
// Store.Destroy ends the session under whatever id it has by then: one that another request is
// renewing, or has renewed, is out as well. session.RegenerateSession moves a session, in one step,
// when it is saved.
//
// What a handler has left is saved before the first byte of its response, and what it changes later
// at its end. If the first save fails, or a Destroy has failed, the response is a 500. Only a
// session that is stored has a cookie: an unknown id is never taken from a request, and a visitor
// of whom nothing is saved is given none.
//
// # Limits
//
//   - A visitor's first values, a new id and a logout's cookie have to come before the first byte of the
//     response. RegenerateSession fails after it.
//   - Within a request the session's cookie, as http.Request.Cookie shows it, stands for the request
//     and is not the session's id. Store.ID returns that.
//   - A goroutine that outlives its request cannot end the session: Destroy returns an error.
//   - A session whose values were all taken out, by Flush or one by one, is ended, as by a logout.
//   - The values of a session that Destroy has ended are gone, and a RegenerateSession after it begins
//     an empty one.
package chistore

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"gitea.com/go-chi/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/caller"
	"github.com/tombstore/tombstore/internal/gobmap"
)

// Sessioner is session.Sessioner with sessions that are kept in store. Provider and ProviderConfig
// of options have no meaning. A session lives for Maxlifetime seconds after its last use. The
// library's ids have 64 bits unless IDLength is larger than its default; tombstore.WithSealedData
// needs 32 or more.
func Sessioner(
	store tombstore.Renewer, options session.Options, opts ...adapter.Option,
) (func(http.Handler) http.Handler, error) {
	options = session.PrepareOptions([]session.Options{options})
	p := &provider{
		adapter: adapter.New(store, append([]adapter.Option{adapter.WithEqual(gobmap.Equal[any]), adapter.WithDecode(gobmap.Check[any])}, opts...)...),
		ttl:     time.Duration(options.Maxlifetime) * time.Second,
		options: options,
	}
	options.Provider, options.ProviderConfig = providerName, strconv.FormatInt(last.Add(1), 10)
	installing.Store(options.ProviderConfig, p)
	sessioner, err := session.Sessioner(options)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler { return p.outer(sessioner(p.inner(next))) }, nil
}

// The library knows providers by a name, and makes them itself. What Sessioner has made waits in
// installing for Init, under the text that the library passes from one to the other.
const providerName = "tombstore"

var (
	installing sync.Map
	last       atomic.Int64
)

func init() {
	session.RegisterFn(providerName, func() session.Provider { return &installed{} })
}

type installed struct{ *provider }

var errNotInstalled = errors.New("chistore: call chistore.Sessioner in the place of session.Sessioner")

// Init implements session.Provider.
func (i *installed) Init(_ int64, config string) error {
	p, ok := installing.LoadAndDelete(config)
	if !ok {
		return errNotInstalled
	}
	i.provider = p.(*provider)
	return nil
}

// provider is a session.Provider. The library passes ids to it and no request, and many requests
// come with the same id. So outer puts a random handle in front of the cookies of each, and where
// the library takes that for the session's id, requests tells which request it is.
type provider struct {
	adapter  *adapter.Adapter
	ttl      time.Duration
	options  session.Options
	requests sync.Map // handle to *request
}

// request is a request on its way.
type request struct {
	adapter.Request
	ctx     context.Context
	id      string    // of its cookie
	session *rawStore // nil until it is loaded
	login   *login    // that Login has begun
	begun   atomic.Bool
}

type login struct {
	tombstore.Login
	opts []tombstore.ReserveOption
}

func (p *provider) request(sid string) *request {
	q, _ := p.requests.Load(sid)
	r, _ := q.(*request)
	return r
}

// Exist implements session.Provider. The library asks it whether the session of a request is live.
func (p *provider) Exist(sid string) (bool, error) {
	r := p.request(sid)
	if r == nil {
		_, found, err := p.adapter.Load(context.Background(), nil, sid)
		return found, err
	}
	if r.session != nil || r.id == "" {
		return r.session != nil, nil
	}
	s := &rawStore{provider: p, request: r, id: r.id}
	found, err := s.load()
	if found && err == nil {
		r.session = s
	}
	return found, err
}

// Read implements session.Provider. It stores nothing: the id may be one that the library has just
// made for a visitor, of whom there may be nothing to save, or one that somebody has made up.
func (p *provider) Read(sid string) (session.RawStore, error) {
	if r := p.request(sid); r != nil && r.session != nil {
		return r.session, nil
	}
	s := &rawStore{
		provider: p, request: &request{ctx: context.Background()}, id: sid, values: map[any]any{},
	}
	if caller.Method("go-chi/session.(*Manager).Start") != "" { // nothing can be stored under a new id
		return s, nil
	}
	_, err := s.load()
	return s, err
}

var errOver = errors.New("chistore: a session is ended after its request, or is not live")

// Destroy implements session.Provider.
func (p *provider) Destroy(sid string) error {
	if r := p.request(sid); r != nil {
		return p.end(r)
	}
	ctx := context.Background()
	switch _, found, err := p.adapter.Load(ctx, nil, sid); {
	case err != nil:
		return err
	case !found: // it may be the handle of a request that is over
		return errOver
	}
	return p.adapter.End(ctx, &adapter.Request{}, sid)
}

// end ends the session of a request, under whatever id it has by now.
func (p *provider) end(r *request) error {
	if r.session != nil {
		r.session.drop()
	}
	err := p.adapter.End(r.ctx, &r.Request, "")
	if r.session != nil {
		r.session.noteEnd(err)
	}
	return err
}

var (
	errNoRequest = errors.New("chistore: a session is given a new id outside of its request")
	errBegun     = errors.New("chistore: a session is given a new id after the response has begun")
)

// Regenerate implements session.Provider. The session moves when it is saved.
func (p *provider) Regenerate(handle, sid string) (session.RawStore, error) {
	r := p.request(handle)
	switch {
	case r == nil || r.session == nil:
		return nil, errNoRequest
	case r.begun.Load():
		return nil, errBegun
	}
	if l := r.login; l != nil {
		r.login = nil
		if _, err := p.adapter.Login(r.ctx, &r.Request, sid, l.Login, l.opts...); err != nil {
			return nil, err
		}
	}
	r.Renew()
	r.session.rename(sid)
	return r.session, nil
}

var errNoLister = errors.New("chistore: count: the store is not a tombstore.Lister")

// Count implements session.Provider. It reads all sessions.
func (p *provider) Count() (n int, err error) {
	lister, ok := p.adapter.Store().(tombstore.Lister)
	if !ok {
		return 0, errNoLister
	}
	for _, err := range lister.List(context.Background()) {
		switch {
		case err == nil:
			n++
		case !errors.Is(err, tombstore.ErrCorrupt): // which is not a session
			return 0, err
		}
	}
	return n, nil
}

// GC implements session.Provider. The server lets sessions expire.
func (p *provider) GC() {}
