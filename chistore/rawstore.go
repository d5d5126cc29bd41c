package chistore

import (
	"cmp"
	"errors"
	"sync"

	"gitea.com/go-chi/session"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/gobmap"
)

// rawStore is a session.RawStore.
type rawStore struct {
	provider *provider
	request  *request

	mu      sync.Mutex
	id      string
	values  map[any]any
	saved   []byte // what this request has saved, nil if it has not
	failure error  // of the last save
	flushed bool   // Flush was called
	refused bool   // somebody else has ended it
	dropped bool   // the request itself has, and has not begun another one
	unended error  // why that has failed, which a handler may not have looked at
}

// self is the key under which a session returns itself.
type self struct{}

// Get implements session.RawStore.
func (s *rawStore) Get(key any) any {
	if key == (self{}) {
		return s
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

// Set implements session.RawStore.
func (s *rawStore) Set(key, value any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = value
	return nil
}

// Delete implements session.RawStore.
func (s *rawStore) Delete(key any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, key)
	return nil
}

// Flush implements session.RawStore.
func (s *rawStore) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values, s.flushed = map[any]any{}, true
	return nil
}

// ID implements session.RawStore.
func (s *rawStore) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// rename makes the session go on under id.
func (s *rawStore) rename(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.dropped = id, false
}

// drop forgets the session when its request ends it.
func (s *rawStore) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values, s.saved, s.flushed, s.refused, s.dropped = map[any]any{}, nil, false, false, true
}

// noteEnd notes how the end went.
func (s *rawStore) noteEnd(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unended = err
}

// load reads the session, and reports whether it is live.
func (s *rawStore) load() (found bool, err error) {
	data, found, err := s.provider.adapter.Load(s.request.ctx, &s.request.Request, s.id)
	s.values = map[any]any{}
	if found && err == nil {
		s.values, err = decode(data)
	}
	return found, err
}

var errNoCookie = errors.New("chistore: a new session was not saved: the response had begun before its first value was set")

// Release implements session.RawStore: it saves the session, unless it has no values. If the
// session was ended by somebody else nothing is saved, and the error is nil. With
// tombstore.ErrUnacknowledged it was saved.
func (s *rawStore) Release() error {
	data, err := s.due()
	if data == nil || err != nil {
		return err
	}
	a, r, id := s.provider.adapter, &s.request.Request, s.ID()
	if id == r.ID() {
		_, err = a.SaveIfDue(s.request.ctx, r, id, data, s.provider.ttl) // no cookie goes out
	} else {
		err = a.Rotate(s.request.ctx, r, id, data, s.provider.ttl)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil, errors.Is(err, tombstore.ErrUnacknowledged):
		s.saved = data
	case errors.Is(err, adapter.ErrRefused):
		s.refused = true
		return nil
	default:
		s.failure = err
	}
	return err
}

// due returns what is to be saved, nil if nothing is.
func (s *rawStore) due() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	moves := s.id != s.request.Request.ID()
	switch {
	case s.dropped && s.unended != nil:
		return nil, s.unended
	case s.refused, s.dropped, len(s.values) == 0:
		return nil, nil
	case moves && s.request.begun.Load():
		return nil, cmp.Or(s.failure, errNoCookie)
	}
	data, err := encode(s.values)
	if err == nil && !moves && s.request.Holds() && s.saved != nil && gobmap.Equal[any](s.saved, data) {
		return nil, nil
	}
	return data, err
}

// emptied reports whether all values were taken out of the session: one that another request is
// renewing, or has renewed, was empty from the beginning.
func (s *rawStore) emptied() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.values) == 0 && (s.flushed || s.request.Holds())
}

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
