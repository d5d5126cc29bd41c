package scsstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/caller"
)

// handle begins the keys of All, which stand for sessions whose ids the store does not know. No
// cookie can hold this byte.
const handle = "\x00ref:"

// Store keeps the sessions of an scs.SessionManager in a tombstore.Renewer. It implements
// scs.CtxStore and scs.IterableCtxStore, and is safe for concurrent use.
type Store struct {
	adapter *adapter.Adapter
	sm      *scs.SessionManager // nil unless from Install or Protect
	handles atomic.Bool         // AllCtx has given some out
}

var (
	_ scs.CtxStore         = (*Store)(nil)
	_ scs.IterableStore    = (*Store)(nil)
	_ scs.IterableCtxStore = (*Store)(nil)
)

// New returns a store for a session manager that is used outside of HTTP requests, with Load and
// Commit. It refuses what store refuses, but cannot know which session a request came with, nor how
// the manager encodes sessions: for a server use [Install].
func New(store tombstore.Renewer, opts ...adapter.Option) *Store {
	return &Store{adapter: adapter.New(store, opts...)}
}

// Find is FindCtx with the background context.
func (s *Store) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}

// Commit is CommitCtx with the background context.
func (s *Store) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// Delete is DeleteCtx with the background context.
func (s *Store) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

// All is AllCtx with the background context.
func (s *Store) All() (map[string][]byte, error) { return s.AllCtx(context.Background()) }

// FindCtx returns the data of a session, and whether it is live. That it is not live is not an
// error.
func (s *Store) FindCtx(ctx context.Context, token string) (b []byte, found bool, err error) {
	if strings.HasPrefix(token, handle) {
		return nil, false, nil
	}
	r, err := s.request(ctx)
	if err != nil {
		return nil, false, err
	}
	b, found, err = s.adapter.Load(ctx, r, token)
	// scs has the store look after its deadline, which an idle timeout of the session's own does not.
	if found && s.sm != nil && r != nil && r.CookieAge() > 0 {
		if deadline, err := s.deadline(b); err == nil && !time.Now().Before(deadline) {
			return nil, false, s.adapter.End(ctx, r, token)
		}
	}
	if found && !s.copies() {
		b = bytes.Clone(b)
	}
	return b, found, err
}

// copies reports whether the manager's codec leaves what it decodes as it is, and returns copies:
// the data may be that of a cache.
func (s *Store) copies() bool {
	if s.sm == nil {
		return false
	}
	_, ours := s.sm.Codec.(gobCodec)
	return ours
}

// CommitCtx stores a session until expiry, and ends it if that is past. The error is an
// adapter.ErrRefused if the session that the request came with is not live any more, and a
// tombstore.ErrConflict if another request has changed it and adapter.WithLostUpdates says that
// this matters. Data that has not changed costs no write, only a touch, and where the middleware of
// scs saves it not even that: see Requests that change nothing, above. That the end of the old
// token of a renewal was not confirmed by enough replicas (tombstore.ErrUnacknowledged) is not an
// error, because scs would send no cookie for the session that was stored:
// adapter.WithOnUnacknowledged reports it.
func (s *Store) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if strings.HasPrefix(token, handle) {
		return errors.New("scsstore: a session that Iterate found cannot be changed, only destroyed")
	}
	r, err := s.request(ctx)
	if err != nil {
		return err
	}
	ttl := time.Until(expiry)
	if ttl <= 0 {
		return s.adapter.End(ctx, r, token)
	}
	due, err := s.adapter.SaveIfDue(ctx, r, token, b, ttl)
	outer, _ := ctx.Value(outerKey{s.sm}).(*outerWriter)
	switch {
	case !due && outer != nil && caller.Method(setsCookie) != "": // with an IdleTimeout scs saves whatever was loaded
		outer.leave(token)
		return err
	case !due: // a program that calls sm.Commit, and may hand out the token
		err = s.adapter.Save(ctx, r, token, b, ttl)
	}
	if outer != nil {
		outer.saved(token)
	}
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		return nil
	}
	return err
}

// The methods of scs that delete a session, its middleware, and what that saves with.
const (
	destroy      = "v2.(*SessionManager).Destroy"
	renewToken   = "v2.(*SessionManager).RenewToken"
	mergeSession = "v2.(*SessionManager).MergeSession"
	loadAndSave  = "(*SessionManager).LoadAndSave"
	setsCookie   = "v2.(*SessionManager).commitAndWriteSessionCookie"
)

// DeleteCtx ends a session, and that it was ended before is not an error. What it does depends on
// who calls it: RenewToken leaves the session to go on under another token, MergeSession ends it or
// fails if somebody else has, and Destroy logs out. A session that is not the request's own is
// revoked. Of the request's own, any other caller gets an error.
func (s *Store) DeleteCtx(ctx context.Context, token string) error {
	r := s.adapter.FromContext(ctx)
	if s.sm != nil && s.sm.HashTokenInStore && token == hashed("") {
		token = ""
	}
	method := caller.Method(destroy, renewToken, mergeSession)
	own := r != nil && token == r.ID()
	if token != "" && !own && method != mergeSession {
		ref, err := s.ref(ctx, token)
		if err != nil {
			return err
		}
		if ref != "" {
			return s.revoke(ctx, ref)
		}
	}
	switch {
	case method == renewToken:
		return s.adapter.Leave(ctx, r, token)
	case method == mergeSession:
		return s.adapter.Absorb(ctx, r, token)
	case token == "" && r == nil: // the session was never saved
		return nil
	case method == "" && token != "" && own:
		return errUnknownCaller
	case method == "" && token != "" && r != nil:
		r = &adapter.Request{} // nothing to do with this one
	}
	return s.adapter.End(ctx, r, token)
}

func (s *Store) revoke(ctx context.Context, ref string) error {
	lister, err := s.lister()
	if err != nil {
		return err
	}
	return lister.InvalidateRef(ctx, ref, tombstore.WithReason(tombstore.Revoked))
}

var (
	errNoMiddleware = errors.New("scsstore: the request has not passed the middleware of Install or Protect" +
		" (LoadAndSave of scs alone is not enough), or a store that wraps this one has dropped the context")
	errUnknownCaller = errors.New("scsstore: not known whether Delete is to log out or to renew:" +
		" end the session by Destroy, and let a store that wraps this one call it in the same goroutine")
)

// request returns what the HTTP request of ctx knows of its session, or nil outside of one. Where
// scs runs without the middleware of Install or Protect, renewals would not be protected, and
// nobody would see.
func (s *Store) request(ctx context.Context) (*adapter.Request, error) {
	r := s.adapter.FromContext(ctx)
	if r == nil && s.sm != nil && (ctx.Value(http.ServerContextKey) != nil || caller.Closure(loadAndSave)) {
		return nil, errNoMiddleware
	}
	return r, nil
}

// hashed returns what scs makes of a token with HashTokenInStore.
func hashed(token string) string {
	hash := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(hash[:])
}

// AllCtx returns the data of the live sessions. The store does not know their ids, so the keys are
// handles that only Delete accepts, except that of the request's own session, which is its token.
// It fails if the store is not a tombstore.Lister.
//
// With Install, a session that scs cannot decode is there as one without values, since another
// version of the program may know it, and so is one that is between two tokens at this moment: who
// must miss none destroys these too. The one that the request itself is renewing is not there,
// since it goes on as the request's; if the request does not come to save it, it is ended. With
// New, the first are there as they are, and the second are missing.
func (s *Store) AllCtx(ctx context.Context) (map[string][]byte, error) {
	lister, err := s.lister()
	if err != nil {
		return nil, err
	}
	s.handles.Store(true)
	var empty []byte
	if s.sm != nil {
		if empty, err = s.sm.Codec.Encode(time.Unix(0, 0).UTC(), map[string]any{}); err != nil {
			return nil, err
		}
	}
	id, left := "", false
	if r := s.adapter.FromContext(ctx); r != nil {
		id, left = r.ID(), r.Spare()
	}
	idRef := tombstore.Ref(id)
	all := map[string][]byte{}
	for e, err := range lister.List(ctx) {
		key := handle + e.Ref
		own := id != "" && (e.Ref == idRef || e.Ref == id)
		if own && !s.sm.HashTokenInStore {
			key = id
		}
		switch {
		case errors.Is(err, tombstore.ErrCorrupt): // no session, and others must be logged out
		case err != nil:
			return nil, err
		case e.Pending && (s.sm == nil || own && left):
		case e.Pending, s.sm != nil && s.decode(e.Data) != nil:
			all[key] = empty
		default:
			all[key] = e.Data
		}
	}
	return all, nil
}

// decode returns an error if data is not a session of the manager.
func (s *Store) decode(data []byte) error {
	_, err := s.deadline(data)
	return err
}

// deadline returns the deadline of scs, in the data of a session of the manager.
func (s *Store) deadline(data []byte) (time.Time, error) {
	deadline, _, err := s.sm.Codec.Decode(bytes.Clone(data))
	return deadline, err
}

func (s *Store) lister() (tombstore.Lister, error) {
	if lister, ok := s.adapter.Store().(tombstore.Lister); ok {
		return lister, nil
	}
	return nil, errors.New("scsstore: the store cannot list its sessions")
}

// ref returns the ref in a handle, or "" for another token. Where scs hashes tokens it has hashed
// the handle too, and only a walk through the sessions tells which one it was.
func (s *Store) ref(ctx context.Context, token string) (string, error) {
	if ref, ok := strings.CutPrefix(token, handle); ok {
		return ref, nil
	}
	if s.sm == nil || !s.sm.HashTokenInStore || !s.handles.Load() {
		return "", nil
	}
	lister, err := s.lister()
	if err != nil { // then nobody got a handle
		return "", nil
	}
	if live, err := lister.Exists(ctx, token); err != nil || live {
		return "", err
	}
	for e, err := range lister.List(ctx) {
		if err != nil && !errors.Is(err, tombstore.ErrCorrupt) {
			return "", err
		}
		if err == nil && hashed(handle+e.Ref) == token {
			return e.Ref, nil
		}
	}
	return "", nil
}

// equal reports whether a and b are the same session of the manager. Codecs that write a map in
// random order, as gob does, make other bytes of it each time.
func (s *Store) equal(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if s.copies() {
		if same, known := (gobCodec{}).same(a, b); known {
			return same
		}
	} else {
		a, b = bytes.Clone(a), bytes.Clone(b)
	}
	aDeadline, aValues, err := s.sm.Codec.Decode(a)
	if err != nil {
		return false
	}
	bDeadline, bValues, err := s.sm.Codec.Decode(b)
	return err == nil && aDeadline.Equal(bDeadline) && reflect.DeepEqual(aValues, bValues)
}
