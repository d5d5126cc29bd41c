package scsstore_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/scsstore"
)

// What a login does, and a log out everywhere, in every library is in ../integration/login_test.go.

// members is a site whose user logs in as an owner at /in, for as long as opts say.
type members struct {
	*site
	store *tombstore.MemoryStore
	opts  []tombstore.ReserveOption
	ended int // by /everywhere
}

// onEachTimeout runs a test with an idle timeout and without one.
func onEachTimeout(t *testing.T, opts []tombstore.Option, test func(m *members)) {
	t.Helper()
	t.Parallel()
	for _, idle := range []time.Duration{0, time.Hour} {
		t.Run(idle.String(), func(t *testing.T) {
			t.Parallel()
			store, err := tombstore.NewMemory(opts...)
			require.NoError(t, err)
			sm := newManager(idle)
			m := &members{site: newSite(t, sm, scsstore.Install(sm, store)), store: store}
			m.actions["/in"] = m.in
			m.actions["/everywhere"] = m.everywhere
			test(m)
		})
	}
}

func (m *members) in(_ http.ResponseWriter, r *http.Request) error {
	login, err := m.store.BeginLogin(r.Context(), "alice")
	require.NoError(m, err)
	if err := scsstore.Login(r.Context(), m.sm, login, append(m.opts, tombstore.Label("phone"))...); err != nil {
		return err
	}
	m.sm.Put(r.Context(), "user", "alice")
	return nil
}

func (m *members) everywhere(_ http.ResponseWriter, r *http.Request) (err error) {
	m.ended, err = scsstore.LogoutEverywhere(r.Context(), m.sm, "alice")
	return err
}

// visitor returns the token of somebody who has a cart.
func (m *members) visitor() string { return m.get("/put", "").token() }

// owned requires that alice has exactly these sessions, and returns them.
func (m *members) owned(tokens ...string) []tombstore.OwnedSession {
	m.Helper()
	all, err := m.store.Sessions(m.Context(), "alice")
	require.NoError(m, err)
	refs, want := []string{}, []string{}
	for _, s := range all {
		require.Equal(m, "phone", s.Label)
		refs = append(refs, s.Ref)
	}
	for _, token := range tokens {
		want = append(want, tombstore.Ref(token))
	}
	require.ElementsMatch(m, want, refs)
	return all
}

// lives requires how long the only session of alice lives, by its deadline and by the cookie that names it.
func (m *members) lives(want time.Duration, res response) {
	m.Helper()
	require.WithinDuration(m, time.Now().Add(want), m.owned(res.token())[0].Deadline, time.Minute)
	if m.sm.IdleTimeout == 0 {
		require.InDelta(m, want.Seconds(), res.cookies[0].MaxAge, 60)
	}
}

// The session lives for as long as is said, in scs and in its cookie too; also after a log out everywhere.
func TestLogin_Until(t *testing.T) {
	onEachTimeout(t, nil, func(m *members) {
		m.lives(m.sm.Lifetime, m.get("/in", ""))
		for _, until := range []time.Duration{time.Hour, 30 * 24 * time.Hour} {
			m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(until))}
			token := m.get("/in", m.visitor()).token()
			res := m.get("/everywhere", token)
			require.Equal(m, 1, m.ended)
			m.lives(until, res)
			require.Equal(m, "alice/1.", m.get("/read", res.token()).body)
		}
	})
}

// What the store allows counts too.
func TestLogin_AbsoluteTimeout(t *testing.T) {
	onEachTimeout(t, []tombstore.Option{tombstore.WithAbsoluteTimeout(2 * time.Hour)}, func(m *members) {
		m.lives(2*time.Hour, m.get("/in", m.visitor()))
	})
}

// A later renewal begins the deadline of scs anew, and not that of the login, and the sooner one counts. A
// program that keeps scs' keeps both.
func TestLogin_UntilThenRenewed(t *testing.T) {
	onEachTimeout(t, nil, func(m *members) {
		m.sm.Lifetime = 24 * time.Hour
		m.actions["/renew-keep"] = func(_ http.ResponseWriter, r *http.Request) error {
			deadline := m.sm.Deadline(r.Context())
			err := m.sm.RenewToken(r.Context())
			m.sm.SetDeadline(r.Context(), deadline)
			return err
		}
		var shown time.Time
		m.actions["/deadline"] = func(_ http.ResponseWriter, r *http.Request) error {
			shown = m.sm.Deadline(r.Context())
			return nil
		}
		for _, until := range []time.Duration{30 * time.Minute, 30 * 24 * time.Hour} {
			for path, of := range map[string]time.Duration{"/renew": m.sm.Lifetime, "/renew-keep": until} {
				m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(until))}
				token := m.get(path, m.get("/in", m.visitor()).token()).token()
				s := m.owned(token)[0]
				require.WithinDuration(m, time.Now().Add(until), s.Deadline, time.Minute)
				ends := min(until, of)
				if m.sm.IdleTimeout > 0 {
					ends = min(ends, m.sm.IdleTimeout)
				}
				require.WithinDuration(m, time.Now().Add(ends), s.ExpiresAt, time.Minute)
				m.get("/deadline", token)
				require.WithinDuration(m, time.Now().Add(of), shown, time.Minute)
				require.Equal(m, http.StatusAccepted, m.get("/logout", token).status)
			}
		}
	})
}

// Once the response has begun no cookie can be set. Nothing is done then.
func TestLogin_ResponseHasBegun(t *testing.T) {
	onEachTimeout(t, nil, func(m *members) {
		const begun = "the response has begun"
		for name, begin := range map[string]func(w http.ResponseWriter){
			"status": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
			"body":   func(w http.ResponseWriter) { _, _ = w.Write([]byte("body")) },
			"flush":  func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() },
		} {
			var failed error
			m.actions["/late-in"] = func(w http.ResponseWriter, r *http.Request) error {
				begin(w)
				failed = m.in(w, r)
				return nil
			}
			m.actions["/late-everywhere"] = func(w http.ResponseWriter, r *http.Request) error {
				begin(w)
				failed = m.everywhere(w, r)
				return nil
			}
			visitor := m.visitor()
			m.get("/late-in", visitor)
			require.ErrorContains(m, failed, begun, name)
			require.Equal(m, "/1.", m.get("/read", visitor).body)
			m.owned()

			phone, laptop := m.get("/in", m.visitor()).token(), m.get("/in", m.visitor()).token()
			m.get("/late-everywhere", phone)
			require.ErrorContains(m, failed, begun, name)
			m.owned(phone, laptop)
			m.get("/everywhere", "")
		}
		// An informational response is no beginning.
		m.actions["/hints-in"] = func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			return m.in(w, r)
		}
		res := m.get("/hints-in", m.visitor())
		require.Equal(m, http.StatusAccepted, res.status, res.body)
		m.owned(res.token())
	})
}

// Tokens that come in a header.
func TestLogin_Protect(t *testing.T) {
	t.Parallel()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	sm := scs.New()
	handler := scsstore.Protect(sm, store)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, err := sm.Load(r.Context(), r.Header.Get("X-Session"))
		require.NoError(t, err)
		login, err := store.BeginLogin(ctx, "alice")
		require.NoError(t, err)
		require.NoError(t, scsstore.Login(ctx, sm, login))
		token, _, err := sm.Commit(ctx)
		require.NoError(t, err)
		w.Header().Set("X-Session", token)
	}))
	token := ""
	for range 2 {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("X-Session", token)
		handler.ServeHTTP(w, r)
		token = w.Header().Get("X-Session")
		all, err := store.Sessions(t.Context(), "alice")
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.Equal(t, tombstore.Ref(token), all[0].Ref)
	}
}

// Without the middleware nothing is known of the request, and without a Binder nothing of owners.
func TestLogin_Misuse(t *testing.T) {
	t.Parallel()
	store, err := tombstore.NewMemory()
	require.NoError(t, err)
	login, err := store.BeginLogin(t.Context(), "alice")
	require.NoError(t, err)

	sm := scs.New()
	scsstore.Install(sm, store)
	ctx, err := sm.Load(t.Context(), "")
	require.NoError(t, err)
	require.ErrorContains(t, scsstore.Login(ctx, sm, login), "has not passed the middleware")
	_, err = scsstore.LogoutEverywhere(ctx, sm, "alice")
	require.ErrorContains(t, err, "has not passed the middleware")

	other := scs.New()
	s := newSite(t, other, scsstore.Install(other, struct{ renewer }{store}))
	s.actions["/in"] = func(_ http.ResponseWriter, r *http.Request) error {
		return scsstore.Login(r.Context(), other, login)
	}
	require.Contains(t, s.get("/in", "").body, "does not know whose sessions it keeps")
	s.actions["/in"] = func(_ http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		return scsstore.Login(ctx, other, login)
	}
	require.Contains(t, s.get("/in", "").body, context.Canceled.Error())
}
