package scsstore_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/scsstore"
)

// action is what a request to a site does to its session.
type action func(w http.ResponseWriter, r *http.Request) error

// site is a shop: its state of a session is "user/cart". A request with ?gate=name stops at the gates
// "name" before and "name-done" after it does what it is asked to, and at "name-saved" when scs has
// saved the session and nothing has left for the browser.
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
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(&savedWriter{ResponseWriter: w, site: s, gate: r.FormValue("gate") + "-saved"}, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// savedWriter stops before the first byte.
type savedWriter struct {
	http.ResponseWriter
	site   *site
	gate   string
	passed bool
}

func (w *savedWriter) WriteHeader(code int) {
	if code >= http.StatusOK && !w.passed {
		w.passed = true
		w.site.pass(w.gate)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *savedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

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

// outcome is what a race between A and B, which both came with X, leaves.
type outcome struct {
	Status int    // of B
	Body   string // of B
	Cookie string // of B: "none", "deleted", "X" or "new"
	X      string // state that a request with X meets; without a session that is "/0"
	A      string // state that a request with A's cookie meets, or ""
	Live   []string
}

// race lets A and B run on a session that is alice's for "logout" and "revocation", and nobody's
// yet for "login".
func race(s *site, a, b string, revoke func(token string)) outcome {
	x := s.get("/put", "").token()
	if a != "login" {
		x = s.get("/login", x).token()
	}
	var aResponse response
	doA := func() { aResponse = s.get("/"+a, x) }
	if a == "revocation" {
		doA = func() { revoke(x) }
	}
	var bResponse response
	switch b {
	case "starts late":
		doA()
		bResponse = s.get("/put", x)
	case "finishes first":
		before, done := s.gate("b"), s.gate("a-done")
		bDone := s.start("/put?gate=b", x)
		<-before.reached
		if a == "revocation" {
			revoke(x)
			close(before.open)
			bResponse = <-bDone
			break
		}
		aDone := s.start("/"+a+"?gate=a", x)
		<-done.reached // has told the store, and not yet the browser
		close(before.open)
		bResponse = <-bDone
		close(done.open)
		aResponse = <-aDone
	default:
		before := s.gate("b")
		done := s.start("/"+b+"?gate=b", x)
		<-before.reached
		doA()
		close(before.open)
		bResponse = <-done
	}
	o := outcome{Status: bResponse.status, Body: bResponse.body, Cookie: bResponse.token()}
	switch o.Cookie {
	case "none":
	case "":
		o.Cookie = "deleted"
	case x:
		o.Cookie = "X"
	default:
		o.Cookie = "new"
	}
	o.X = strings.TrimSuffix(s.get("/read", x).body, ".")
	if a == "login" {
		o.A = strings.TrimSuffix(s.get("/read", aResponse.token()).body, ".")
	}
	o.Live = s.live()
	return o
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

func TestRaces(t *testing.T) {
	t.Parallel()
	for _, hash := range []bool{false, true} {
		for _, idle := range []time.Duration{0, 20 * time.Minute} {
			for _, late := range []time.Duration{0, time.Minute} {
				for _, a := range []string{"logout", "login", "revocation"} {
					for _, b := range []string{"put", "read", "renew", "finishes first", "starts late", "logout"} {
						t.Run(fmt.Sprintf("hash=%v/idle=%v/late=%v/%s/B %s", hash, idle, late, a, b), func(t *testing.T) {
							t.Parallel()
							sm := newManager(idle)
							sm.HashTokenInStore = hash
							s, store := installed(t, sm, adapter.WithLateRequests(late))
							got := race(s, a, b, func(x string) {
								err := s.sm.Iterate(t.Context(), s.sm.Destroy)
								if !hash { // otherwise x is not the id
									err = store.Invalidate(t.Context(), x, tombstore.WithReason(tombstore.Revoked))
								}
								require.NoError(t, err)
							})
							require.Equal(t, wanted(a, b, late), got)
						})
					}
				}
			}
		}
	}
}

func wanted(a, b string, late time.Duration) outcome {
	o := outcome{Status: http.StatusAccepted, Body: "alice/1.", Cookie: "none", X: "/0", Live: []string{}}
	if a == "login" {
		o.Body, o.A, o.Live = "/1.", "alice/1", []string{"alice/1"}
		if b == "logout" { // it reaches the session that the login made of its own
			o.A, o.Live, o.Cookie = "/0", []string{}, "deleted"
		}
	}
	if b == "starts late" {
		o.Body = "/0."
		if late == 0 || a == "revocation" {
			o.Cookie, o.Live = "new", append([]string{"/1"}, o.Live...)
		}
	}
	return o
}

// The same races on scs' own store in memory, to show that they can be lost.
func TestRaces_AreLostWithoutTombstones(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		idle time.Duration
		want outcome
	}{
		{"logout", "put", 0, outcome{Body: "alice/1.", Cookie: "X", X: "alice/2", Live: []string{"alice/2"}}},
		{"logout", "read", time.Minute, outcome{Body: "alice/1.", Cookie: "X", X: "alice/1", Live: []string{"alice/1"}}},
		{"logout", "renew", 0, outcome{Body: "alice/1.", Cookie: "new", X: "/0", Live: []string{"alice/1"}}},
		{"logout", "finishes first", 0, outcome{Body: "alice/1.", Cookie: "X", X: "alice/2", Live: []string{"alice/2"}}},
		{"login", "put", 0, outcome{Body: "/1.", Cookie: "X", X: "/2", A: "alice/1", Live: []string{"/2", "alice/1"}}},
		{"login", "logout", 0, outcome{Body: "/1.", Cookie: "deleted", X: "/0", A: "alice/1", Live: []string{"alice/1"}}},
		{"revocation", "put", 0, outcome{Body: "alice/1.", Cookie: "X", X: "alice/2", Live: []string{"alice/2"}}},
	} {
		t.Run(tt.a+"/B "+tt.b, func(t *testing.T) {
			t.Parallel()
			sm := newManager(tt.idle)
			store := memstore.NewWithCleanupInterval(0)
			sm.Store = store
			s := newSite(t, sm, sm.LoadAndSave)
			tt.want.Status = http.StatusAccepted
			require.Equal(t, tt.want, race(s, tt.a, tt.b, func(x string) { require.NoError(t, store.Delete(x)) }))
		})
	}
}
