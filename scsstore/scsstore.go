package scsstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

// handle begins the keys of All, which stand for sessions whose ids the store does not know. No cookie can hold this byte.
const handle = "\x00ref:"

// Store keeps the sessions of an scs.SessionManager in a tombstore.Store. It implements scs.CtxStore and
// scs.IterableCtxStore, and is safe for concurrent use.
type Store struct {
	adapter *adapter.Adapter
	sm      *scs.SessionManager // nil unless from Install
}

var (
	_ scs.CtxStore         = (*Store)(nil)
	_ scs.IterableStore    = (*Store)(nil)
	_ scs.IterableCtxStore = (*Store)(nil)
)

// New returns a store for a session manager that is used outside of HTTP requests, with Load and Commit. It refuses what
// store refuses, but cannot know which session a request came with: for a server use [Install].
func New(store tombstore.Store, opts ...adapter.Option) *Store {
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

// FindCtx returns the data of a session, and whether it is live. That it is not is no error.
func (s *Store) FindCtx(ctx context.Context, token string) (b []byte, found bool, err error) {
	if strings.HasPrefix(token, handle) {
		return nil, false, nil
	}
	return s.adapter.Load(ctx, s.adapter.FromContext(ctx), token)
}

// CommitCtx stores a session until expiry, and ends it if that is past. The error is an adapter.ErrRefused if the session
// that the request came with is not live any more, and a tombstore.ErrConflict if another request has changed it and
// adapter.WithLostUpdates says that this matters. Data that has not changed costs no write, only a touch.
func (s *Store) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if strings.HasPrefix(token, handle) {
		return errors.New("scsstore: a session that Iterate found cannot be changed, only destroyed")
	}
	ttl := time.Until(expiry)
	if ttl <= 0 {
		return s.DeleteCtx(ctx, token)
	}
	return s.adapter.Save(ctx, s.adapter.FromContext(ctx), token, b, ttl)
}

// DeleteCtx ends a session: for the reason Logout or Rotated if it is the request's own, otherwise Revoked. That it was
// ended before is no error.
func (s *Store) DeleteCtx(ctx context.Context, token string) error {
	if token == "" { // the session was never saved
		return nil
	}
	ref, err := s.ref(ctx, token)
	if err != nil {
		return err
	}
	if ref == "" {
		return s.adapter.End(ctx, s.adapter.FromContext(ctx), token, tombstore.Rotated) // or Logout, as Finish will see
	}
	lister, err := s.lister()
	if err != nil {
		return err
	}
	return lister.InvalidateRef(ctx, ref, tombstore.WithReason(tombstore.Revoked))
}

// AllCtx returns the data of the live sessions. The store does not know their ids, so the keys are handles that only Delete
// accepts, except that of the request's own session, which is its token. It fails if the store is no tombstore.Lister.
func (s *Store) AllCtx(ctx context.Context) (map[string][]byte, error) {
	lister, err := s.lister()
	if err != nil {
		return nil, err
	}
	own := ""
	if s.adapter.FromContext(ctx) != nil && !s.sm.HashTokenInStore {
		own = s.sm.Token(ctx)
	}
	ownRef := tombstore.Ref(own)
	all := map[string][]byte{}
	for e, err := range lister.List(ctx) {
		switch {
		case errors.Is(err, tombstore.ErrCorrupt): // nobody is logged in with it, and others must be logged out
		case err != nil:
			return nil, err
		case own != "" && (e.Ref == ownRef || e.Ref == own):
			all[own] = e.Data
		default:
			all[handle+e.Ref] = e.Data
		}
	}
	return all, nil
}

func (s *Store) lister() (tombstore.Lister, error) {
	if lister, ok := s.adapter.Store().(tombstore.Lister); ok {
		return lister, nil
	}
	return nil, errors.New("scsstore: the store cannot list its sessions")
}

// ref returns the ref in a handle, or "" for another token. Where scs hashes tokens it has hashed the handle too, and only a
// walk through the sessions tells which one it was.
func (s *Store) ref(ctx context.Context, token string) (string, error) {
	if ref, ok := strings.CutPrefix(token, handle); ok {
		return ref, nil
	}
	lister, err := s.lister()
	if err != nil || s.sm == nil || !s.sm.HashTokenInStore {
		return "", nil
	}
	if live, err := lister.Exists(ctx, token); err != nil || live {
		return "", err
	}
	for e, err := range lister.List(ctx) {
		if err != nil && !errors.Is(err, tombstore.ErrCorrupt) {
			return "", err
		}
		hash := sha256.Sum256([]byte(handle + e.Ref))
		if err == nil && base64.RawURLEncoding.EncodeToString(hash[:]) == token {
			return e.Ref, nil
		}
	}
	return "", nil
}

// equal reports whether a and b are the same session of sm. Codecs that write a map in random order, as gob does, make other
// bytes of it each time.
func equal(sm *scs.SessionManager, a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	aDeadline, aValues, err := sm.Codec.Decode(a)
	if err != nil {
		return false
	}
	bDeadline, bValues, err := sm.Codec.Decode(b)
	return err == nil && aDeadline.Equal(bDeadline) && reflect.DeepEqual(aValues, bValues)
}
