// Package beegostore keeps the sessions of beego v2 in a tombstore.Renewer, so that a logout wins
// over requests that are still running. In an existing program three lines change:
//
//	package main
//
//	import (
//		"log"
//
//		"github.com/beego/beego/v2/server/web"
//		"github.com/tombstore/tombstore"
//		"github.com/tombstore/tombstore/beegostore"
//	)
//
//	func main() {
//		store, err := tombstore.Open("redis://127.0.0.1:6379")
//		if err != nil {
//			log.Fatal(err)
//		}
//		sessions := beegostore.Register("tombstore", store)
//		web.BConfig.WebConfig.Session.SessionOn = true
//		web.BConfig.WebConfig.Session.SessionProvider = "tombstore"
//		web.RunWithMiddleWares("", sessions.Middleware)
//	}
//
// A request whose session was ended while it ran is answered with its own status and body, but
// without a session cookie, and nothing of it is saved. [adapter.WithOnRefused] reports it. A
// logout ends the session under whatever id it has by then: one that another request is giving a
// new id, or has given one, is out as well. [Provider] says what counts as a logout.
//
// A session is saved before the first byte of the response, and not after the last one as by
// beego's own providers. So what a response says is true when it arrives, and a session that cannot
// be saved, or ended, is answered with 500 and without a session cookie. What a handler changes
// later is saved when beego releases the session; if that fails, only session.SLogger tells.
//
// A request that changes nothing sends nothing after it has loaded its session, until a tenth of
// SessionGCMaxLifetime has passed ([adapter.WithTouchThreshold]). Beego sets no cookie for a
// session that a request came with, so none is missing.
//
// [Provider.Login] instead of SessionRegenerateID says whose the session is, so that its owner can
// be logged out everywhere ([Provider.LogoutEverywhere]).
//
// # Limits
//
//   - The id travels in a cookie. EnableSidInHTTPHeader and EnableSidInURLQuery do not work.
//   - A handler that reads the session cookie by itself sees the id with a suffix, which tells requests
//     apart: beego tells its provider nothing else of the request. SessionID returns the id.
//   - http.TimeoutHandler goes around the Middleware. Inside of it, a handler whose time is up may give its
//     session a new id, for which beego changes the request's header, while the Middleware reads that.
//   - SessionRegenerateID fails when the response has begun. After an error beego leaves its controller
//     without a session.
//   - A program whose functions have lost their names, as by obfuscation, cannot use this package:
//     Register panics. By the name of its caller SessionRead tells an id that beego has made from one that
//     somebody asks about.
package beegostore

import (
	"context"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/beego/beego/v2/server/web"
	"github.com/beego/beego/v2/server/web/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/caller"
	"github.com/tombstore/tombstore/internal/gobmap"
)

// DefaultTTL is how long a session lives after its last use if the manager has no lifetime.
const DefaultTTL = time.Hour

// Provider is a session.Provider. A request logs out by
//
//   - DestroySession of its controller, or SessionDestroy of the manager. What it sets after that is not
//     saved, unless SessionRegenerateID comes between,
//   - Flush of its session. What it sets after that goes on as a new session under a new id,
//   - taking away the last value of its session, or with UserKeys the value of one of them. What is left
//     goes on in the same way.
//
// SessionDestroy of the Provider itself, with the id of another request's session, revokes that.
//
// It is safe for concurrent use once its fields are set.
type Provider struct {
	// UserKeys are the keys under which sessions keep who is logged in. A request that takes the
	// value of one away, or puts an empty one in its place, logs out. The default, none, is for
	// programs that keep nothing else in a session, or log out in one of the other ways.
	UserKeys []any
	// CookieName is the name of the session cookie. The default is
	// web.BConfig.WebConfig.Session.SessionName.
	CookieName string
	// Manager is what gives sessions their ids. The default is web.GlobalSessions.
	Manager *session.Manager

	adapter *adapter.Adapter
	ttl     atomic.Int64
	last    atomic.Uint64 // number of a request
	stores  sync.Map      // of requests under way: the id that the manager knows, to *Store
}

var _ session.Provider = (*Provider)(nil)

// The methods of beego that must be told apart.
const (
	start      = "session.(*Manager).SessionStart"
	regenerate = "session.(*Manager).SessionRegenerateID"
)

// Register makes a provider of sessions in store available to beego under a name. Call it before
// web.Run. It panics in a program whose functions have lost their names.
func Register(name string, store tombstore.Renewer, opts ...adapter.Option) *Provider {
	if !named(start, (*session.Manager).SessionStart) || !named(regenerate, (*session.Manager).SessionRegenerateID) {
		panic("beegostore: the names of beego's methods are not in this program, or are not those of the " +
			"beego that this package was written for; build it without obfuscation")
	}
	defaults := []adapter.Option{adapter.WithEqual(gobmap.Equal[any]), adapter.WithDecode(gobmap.Check[any])}
	p := &Provider{adapter: adapter.New(store, append(defaults, opts...)...)}
	p.ttl.Store(int64(DefaultTTL))
	session.Register(name, p)
	return p
}

// named reports whether a function has the name by which package caller would find it.
func named(name string, function any) bool {
	return strings.HasSuffix(runtime.FuncForPC(reflect.ValueOf(function).Pointer()).Name(), "/"+name)
}

func (p *Provider) manager() (*session.Manager, error) {
	switch {
	case p.Manager != nil:
		return p.Manager, nil
	case web.GlobalSessions != nil:
		return web.GlobalSessions, nil
	}
	return nil, errors.New("beegostore: there is no manager of sessions: set Manager")
}

func (p *Provider) cookieName() string {
	if p.CookieName != "" {
		return p.CookieName
	}
	return web.BConfig.WebConfig.Session.SessionName
}

// SessionInit takes the lifetime of sessions, in seconds. The configuration is ignored.
func (p *Provider) SessionInit(_ context.Context, lifetime int64, _ string) error {
	if lifetime > 0 {
		p.ttl.Store(int64(time.Duration(lifetime) * time.Second))
	}
	return nil
}

var errNotInstalled = errors.New("beegostore: a session id did not come through the Middleware: it is not " +
	"installed, or its CookieName is not the manager's, or the id came in a header or a query")

// SessionExist reports whether a session is live.
func (p *Provider) SessionExist(ctx context.Context, sid string) (bool, error) {
	if s := p.find(sid); s != nil {
		return s.load()
	}
	if caller.Method(start) != "" {
		return false, errNotInstalled
	}
	_, found, err := p.adapter.Load(ctx, nil, sid)
	return found, err
}

// SessionRead returns the session of a request, always the same one. For an id that beego has just
// made that is a new session. Any other one is read, and if it is not live, the Store is empty and
// saves nothing.
func (p *Provider) SessionRead(ctx context.Context, sid string) (session.Store, error) {
	if s := p.find(sid); s != nil {
		_, err := s.load()
		return s, err
	}
	s := p.newStore(sid)
	if caller.Method(start, regenerate) != "" {
		s.isNew, s.loaded = true, true
		p.stores.Store(sid, s)
		return s, nil
	}
	found, err := s.load()
	if err != nil {
		return nil, err
	}
	s.closed = !found
	return s, nil
}

var errBegun = errors.New("beegostore: no new id for a session whose response has begun")

// SessionRegenerate gives the session of a request a new id, by a Rotate when it is saved. It
// returns the same Store, whose SessionID is the new one from here on.
func (p *Provider) SessionRegenerate(_ context.Context, old, sid string) (session.Store, error) {
	s := p.find(old)
	if s == nil {
		return nil, errNotInstalled
	}
	if _, err := s.load(); err != nil {
		return nil, err
	}
	if s.q != nil {
		if s.q.begun.Load() {
			return nil, errBegun
		}
		if before := s.q.before; before != nil {
			if err := before(s, sid); err != nil {
				return nil, err
			}
		}
	}
	s.request.Renew()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.closed = sid, s.failure != nil // after SessionDestroy it is a new one
	s.ids = append(s.ids, sid)
	p.stores.Store(sid, s)
	return s, nil
}

// SessionDestroy ends a session for good, under whatever id it has by now: for the reason
// tombstore.Logout if the manager calls it for a request, and otherwise tombstore.Revoked. It is
// not an error if there is none. The manager drops the error, so the request is answered with 500
// then, and keeps its cookie.
func (p *Provider) SessionDestroy(ctx context.Context, sid string) error {
	s := p.find(sid)
	if s == nil {
		if i := strings.LastIndex(sid, separator); i >= 0 { // the handler may outlive its request
			if err := p.adapter.End(ctx, &adapter.Request{}, sid[:i]); err != nil {
				return err
			}
		}
		return p.adapter.End(ctx, &adapter.Request{}, sid)
	}
	_, _ = s.load() // it is ended all the same
	return s.destroy()
}

// SessionAll returns 0, as beego's Redis provider does: to count means to read all keys.
func (p *Provider) SessionAll(context.Context) int { return 0 }

// SessionGC does nothing: the server deletes sessions that have expired.
func (p *Provider) SessionGC(context.Context) {}

// find returns the session of a request under way that the manager knows by an id. In a request
// that came with the id of none that is live, it is the one that was begun instead.
func (p *Provider) find(sid string) *Store {
	v, _ := p.stores.Load(sid)
	s, _ := v.(*Store)
	if s != nil && s.isGone() {
		if begun := s.q.begunSession(s); begun != nil {
			return begun
		}
	}
	return s
}

// encode returns what session.EncodeGob could have, or fails as that does.
func encode(values map[any]any) ([]byte, error) {
	if data, ok := gobmap.Encode(values); ok {
		return data, nil
	}
	return session.EncodeGob(values)
}

func decode(data []byte) (map[any]any, error) {
	if values, ok := gobmap.Decode(data); ok {
		return values, nil
	}
	return session.DecodeGob(data)
}
