package beegostore

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/beego/beego/v2/server/web/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/gobmap"
)

// Store is the session.Store of one session in one request, or outside of one. It is safe for
// concurrent use. The contexts that beego passes to its methods are not used.
type Store struct {
	provider *Provider
	q        *request // nil outside of a request
	request  *adapter.Request

	mu     sync.RWMutex
	id     string   // that it came with, or is saved under
	next   string   // that it goes on under, once it is saved
	ids    []string // all that the response may have a cookie of
	values map[any]any
	data   []byte       // as it was loaded or saved
	had    int          // how many values it had then
	users  map[any]bool // and under which UserKeys

	loaded  bool
	gone    bool // it was not live when it was loaded
	isNew   bool // it was begun in this request
	flushed bool
	dropped bool  // the value of one of UserKeys was taken away, if there was one
	closed  bool  // nothing is saved any more
	saved   bool  // in this request
	failure error // why it could not be saved or ended
}

var _ session.Store = (*Store)(nil)

func (p *Provider) newStore(id string) *Store {
	s := &Store{provider: p, request: &adapter.Request{}, id: id, ids: []string{id}, values: map[any]any{}}
	s.request.DeferHooks()
	return s
}

// context returns the context of the request.
func (s *Store) context() context.Context {
	if s.q == nil {
		return context.Background()
	}
	return s.q.r.Context()
}

// load loads the session, once, and reports whether it is live, or new.
func (s *Store) load() (found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded {
		return !s.gone, nil
	}
	data, found, err := s.provider.adapter.Load(s.context(), s.request, s.id)
	if err != nil {
		return false, err
	}
	if found {
		if s.values, err = decode(data); err != nil {
			return false, err
		}
		s.note(data)
	}
	s.loaded, s.gone = true, !found
	return found, nil
}

func (s *Store) isGone() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.gone
}

// note notes what is stored now.
func (s *Store) note(data []byte) {
	s.data, s.had, s.users, s.flushed, s.dropped = data, len(s.values), nil, false, false
	for _, key := range s.provider.UserKeys {
		if !empty(s.values[key]) {
			if s.users == nil {
				s.users = map[any]bool{}
			}
			s.users[key] = true
		}
	}
}

func empty(value any) bool { return value == nil || reflect.ValueOf(value).IsZero() }

// loggedOut reports whether the request has logged out by changing values; see Provider. In one
// that came with the id of a session that was ended, as that of one that has another id by now,
// there is no value to take away, so the attempt counts.
func (s *Store) loggedOut() bool {
	if s.flushed || len(s.provider.UserKeys) == 0 && s.had > 0 && len(s.values) == 0 {
		return true
	}
	for key := range s.users {
		if empty(s.values[key]) {
			return true
		}
	}
	isUser := func(key any) bool { return !empty(s.values[key]) }
	return s.dropped && s.request.Gone() != nil && !slices.ContainsFunc(s.provider.UserKeys, isUser)
}

// Get returns the value of a key, or nil.
func (s *Store) Get(_ context.Context, key any) any {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.values[key]
}

// Set sets the value of a key. A nil deletes it: gob cannot store one.
func (s *Store) Set(ctx context.Context, key, value any) error {
	if value == nil {
		return s.Delete(ctx, key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = value
	s.drop(key)
	return nil
}

// drop notes that the value of a key was taken away, if it was.
func (s *Store) drop(key any) {
	if empty(s.values[key]) && slices.Contains(s.provider.UserKeys, key) {
		s.dropped = true
	}
}

// Delete deletes the value of a key.
func (s *Store) Delete(_ context.Context, key any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, key)
	s.drop(key)
	return nil
}

// Flush deletes all values. It is a logout.
func (s *Store) Flush(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values, s.flushed = map[any]any{}, true
	return nil
}

// SessionID returns the id of the session.
func (s *Store) SessionID(context.Context) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.next != "" {
		return s.next
	}
	return s.id
}

// SessionRelease saves what has changed since the response began. Before that there is nothing to
// do, and outside of a request it saves at once.
func (s *Store) SessionRelease(_ context.Context, w http.ResponseWriter) {
	if s.q == nil && s.isNew {
		if q := writerOf(w); q != nil { // a middleware has copied the request's header
			q.adopt(s)
		}
	}
	if s.q != nil && !s.q.begun.Load() {
		return
	}
	err := s.commit()
	if s.q == nil && s.isNew {
		err = errNotInstalled
	}
	if err != nil {
		session.SLogger.Println(err)
	}
}

// SessionReleaseIfPresent is SessionRelease, unless the session is new. No release brings one back
// that was ended.
func (s *Store) SessionReleaseIfPresent(ctx context.Context, w http.ResponseWriter) {
	if !s.isNew {
		s.SessionRelease(ctx, w)
	}
}

// destroy ends the session.
func (s *Store) destroy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values, s.closed = map[any]any{}, true
	s.note(nil)
	s.failure = s.provider.adapter.End(s.context(), s.request, "")
	return s.failure
}

// commit saves the session, or ends it if the request has logged out. That it is refused is not an
// error; then it takes the cookie back.
func (s *Store) commit() error {
	if s.q == nil && s.isNew {
		return nil
	}
	defer s.request.RunHooks(false)
	again, err := s.logOut()
	if err == nil && again {
		err = s.q.renew(s.q.r)
	}
	if err != nil {
		return err
	}
	return s.save()
}

// logOut ends the session if the request has logged out. It reports whether there are values left,
// for which the response has no new id yet.
func (s *Store) logOut() (again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.loggedOut() {
		return false, nil
	}
	if err := s.provider.adapter.End(s.context(), s.request, ""); err != nil {
		s.closed, s.failure = true, err
		return false, err
	}
	s.note(nil)
	s.closed = len(s.values) == 0 || s.q == nil || s.q.begun.Load()
	return !s.closed && s.next == "", nil
}

func (s *Store) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.withdraw(s.ids...)
		return s.failure
	}
	data, err := encode(s.values)
	if err != nil {
		return err
	}
	if s.saved && s.next == "" && gobmap.Equal[any](data, s.data) {
		return nil
	}
	id, ttl, a := s.id, time.Duration(s.provider.ttl.Load()), s.provider.adapter
	switch {
	case s.next != "":
		id = s.next
		err = a.Rotate(s.context(), s.request, id, data, ttl)
	case s.q != nil && s.q.sets(id): // new, or by the handler itself
		err = a.Save(s.context(), s.request, id, data, ttl)
	default:
		_, err = a.SaveIfDue(s.context(), s.request, id, data, ttl)
	}
	switch {
	case errors.Is(err, adapter.ErrRefused):
		s.closed = true
		s.withdraw(s.ids...)
		return nil
	case err != nil && !errors.Is(err, tombstore.ErrUnacknowledged):
		return err
	}
	for _, old := range s.ids {
		if old != id {
			s.withdraw(old)
		}
	}
	s.id, s.next, s.saved = id, "", true
	s.note(data)
	return nil
}

func (s *Store) withdraw(ids ...string) {
	if s.q != nil {
		s.q.withdraw(ids)
	}
}
