package scsstore_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

// action is what a request to a site does to its session.
type action func(w http.ResponseWriter, r *http.Request) error

// site is a shop: its state of a session is "user/cart". A request with ?gate=name stops at the gates
// "name" before and "name-done" after it does what it is asked to.
type site struct {
	*testing.T
	sm      *scs.SessionManager
	actions map[string]action
	url     string
	gates   sync.Map
}

func newSite(t *testing.T, sm *scs.SessionManager, loadAndSave func(http.Handler) http.Handler) *site {
	s := &site{T: t, sm: sm}
	s.actions = map[string]action{
		"/read": func(http.ResponseWriter, *http.Request) error { return nil },
		"/put": func(_ http.ResponseWriter, r *http.Request) error {
			sm.Put(r.Context(), "cart", sm.GetInt(r.Context(), "cart")+1)
			return nil
		},
		"/renew": func(_ http.ResponseWriter, r *http.Request) error { return sm.RenewToken(r.Context()) },
		"/login": func(_ http.ResponseWriter, r *http.Request) error {
			if err := sm.RenewToken(r.Context()); err != nil {
				return err
			}
			sm.Put(r.Context(), "user", "alice")
			return nil
		},
		"/logout": func(_ http.ResponseWriter, r *http.Request) error { return sm.Destroy(r.Context()) },
	}
	handler := loadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.pass(r.FormValue("gate"))
		state := fmt.Sprintf("%s/%d", sm.GetString(r.Context(), "user"), sm.GetInt(r.Context(), "cart"))
		if err := s.actions[r.URL.Path](w, r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		s.pass(r.FormValue("gate") + "-done")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, state)
		_, _ = io.WriteString(w, ".")
	}))
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

type gate struct{ reached, open chan struct{} }

func (s *site) gate(name string) gate {
	g := gate{make(chan struct{}), make(chan struct{})}
	s.gates.Store(name, g)
	return g
}

func (s *site) pass(name string) {
	if g, ok := s.gates.Load(name); ok {
		close(g.(gate).reached)
		select {
		case <-g.(gate).open:
		case <-s.Context().Done(): // a test that has failed
		}
	}
}

type response struct {
	status  int
	body    string
	cookies []*http.Cookie
}

// token returns the token in the response's cookie, "" if it deletes that, or "none".
func (r response) token() string {
	if len(r.cookies) == 0 {
		return "none"
	}
	return r.cookies[0].Value
}

func (s *site) get(path, token string) response {
	res, err := s.try(s.Context(), path, token)
	if err != nil && s.Context().Err() == nil {
		s.Error(err)
	}
	return res
}

// httpClient is not http.DefaultClient: the idle connections of that are closed by each httptest.Server
// that closes, while another test may be about to use them.
var httpClient = &http.Client{Transport: &http.Transport{}}

// try sends a request that no client sends twice.
func (s *site) try(ctx context.Context, path, token string) (response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, nil)
	if err != nil {
		return response{}, err
	}
	if token != "" {
		r.AddCookie(&http.Cookie{Name: s.sm.Cookie.Name, Value: token})
	}
	res, err := httpClient.Do(r)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return response{res.StatusCode, string(body), res.Cookies()}, err
}

// start sends a request and returns where its response will be.
func (s *site) start(path, token string) <-chan response {
	done := make(chan response, 1)
	go func() { done <- s.get(path, token) }()
	return done
}

// live returns the states of all live sessions.
func (s *site) live() []string {
	states := []string{}
	require.NoError(s, s.sm.Iterate(s.Context(), func(ctx context.Context) error {
		states = append(states, s.sm.GetString(ctx, "user")+"/"+strconv.Itoa(s.sm.GetInt(ctx, "cart")))
		return nil
	}))
	slices.Sort(states)
	return states
}

func newManager(idle time.Duration) *scs.SessionManager {
	sm := scs.New()
	sm.IdleTimeout = idle
	return sm
}

// installed returns a site on a new store in memory.
func installed(t *testing.T, sm *scs.SessionManager, opts ...adapter.Option) (*site, *tombstore.MemoryStore) {
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	return newSite(t, sm, scsstore.Install(sm, store, opts...)), store
}

// renewer is what both stores are.
type renewer interface {
	tombstore.Renewer
	tombstore.Lister
}

func onMemory(t *testing.T) renewer {
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	return store
}

func onServer(t *testing.T) renewer { return storeAt(t, redistest.URL(t)) }

func storeAt(t *testing.T, url string, opts ...tombstore.Option) *tombstore.RedisStore {
	client := redistest.Dial(t, url)
	opts = append(opts, tombstore.WithKeyPrefix(redistest.Prefix(t, client)), tombstore.WithTimeout(time.Minute))
	store, err := tombstore.New(client, opts...)
	require.NoError(t, err)
	return store
}

func destroyPut(sm *scs.SessionManager, _ http.ResponseWriter, r *http.Request) error {
	if err := sm.Destroy(r.Context()); err != nil {
		return err
	}
	sm.Put(r.Context(), "flash", "bye")
	return nil
}
