package scsstore_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

// binder is what both stores are.
type binder interface {
	renewer
	tombstore.Binder
}

// members is a site whose users log in as owners: /in?user=name. It runs what is in between, if that is
// set, when the login has begun.
type members struct {
	*site
	store   binder
	between func()
	opts    []tombstore.ReserveOption
}

func newMembers(t *testing.T, store binder, sm *scs.SessionManager) *members {
	m := &members{site: newSite(t, sm, scsstore.Install(sm, store)), store: store}
	m.actions["/in"] = func(w http.ResponseWriter, r *http.Request) error { return m.in(r, r.FormValue("user")) }
	m.actions["/in-out"] = func(_ http.ResponseWriter, r *http.Request) error {
		return errors.Join(m.in(r, "alice"), sm.Destroy(r.Context()))
	}
	m.actions["/in-renew"] = func(_ http.ResponseWriter, r *http.Request) error {
		return errors.Join(m.in(r, "alice"), sm.RenewToken(r.Context()))
	}
	m.actions["/in-in"] = func(_ http.ResponseWriter, r *http.Request) error {
		return errors.Join(m.in(r, "alice"), m.in(r, "bob"))
	}
	m.actions["/in-panic"] = func(_ http.ResponseWriter, r *http.Request) error {
		if err := m.in(r, "alice"); err != nil {
			return err
		}
		panic(http.ErrAbortHandler)
	}
	m.actions["/everywhere"] = func(w http.ResponseWriter, r *http.Request) error {
		n, err := scsstore.LogoutEverywhere(r.Context(), sm, r.FormValue("user"))
		w.Header().Set("Ended", strconv.Itoa(n))
		return err
	}
	m.actions["/in-everywhere"] = func(_ http.ResponseWriter, r *http.Request) error {
		if err := m.in(r, "alice"); err != nil {
			return err
		}
		_, err := scsstore.LogoutEverywhere(r.Context(), sm, "alice")
		return err
	}
	m.actions["/everywhere-out"] = func(_ http.ResponseWriter, r *http.Request) error {
		_, err := scsstore.LogoutEverywhere(r.Context(), sm, "alice")
		return errors.Join(err, sm.Destroy(r.Context()))
	}
	return m
}

func (m *members) in(r *http.Request, user string) error {
	login, err := m.store.BeginLogin(r.Context(), user)
	if err != nil {
		return err
	}
	if m.between != nil {
		m.between()
	}
	if err := scsstore.Login(r.Context(), m.sm, login, append(m.opts, tombstore.Label("phone"))...); err != nil {
		return err
	}
	m.sm.Put(r.Context(), "user", user)
	return nil
}

// visitor returns the token of somebody who has a cart.
func (m *members) visitor() string { return m.get("/put", "").token() }

// login returns the token of a login that succeeds.
func (m *members) login(user, token string) string {
	m.Helper()
	res := m.get("/in?user="+user, token)
	require.Equal(m, http.StatusAccepted, res.status, res.body)
	require.Len(m, res.cookies, 1)
	return res.token()
}

func (m *members) endAll(user string) {
	m.Helper()
	_, err := m.store.InvalidateOwner(m.Context(), user)
	require.NoError(m, err)
}

// owned requires that a user has exactly these sessions, and returns them.
func (m *members) owned(user string, tokens ...string) []tombstore.OwnedSession {
	m.Helper()
	all, err := m.store.Sessions(m.Context(), user)
	require.NoError(m, err)
	refs, want := []string{}, []string{}
	for _, s := range all {
		require.Equal(m, "phone", s.Label)
		refs = append(refs, s.Ref)
	}
	for _, token := range tokens {
		if m.sm.HashTokenInStore {
			hash := sha256.Sum256([]byte(token))
			token = base64.RawURLEncoding.EncodeToString(hash[:])
		}
		want = append(want, tombstore.Ref(token))
	}
	require.ElementsMatch(m, want, refs)
	return all
}

// is requires what a request with a token meets.
func (m *members) is(state, token string) {
	m.Helper()
	require.Equal(m, state+".", m.get("/read", token).body)
}

// onEachStore runs a test on memory, on a server and on a cluster.
func onEachStore(t *testing.T, opts []tombstore.Option, test func(m *members)) {
	t.Helper()
	t.Parallel()
	cluster := redistest.ClusterURL(t)
	for _, idle := range []time.Duration{0, time.Hour} {
		for name, open := range map[string]func(t *testing.T) binder{
			"memory": func(t *testing.T) binder {
				store, err := tombstore.NewMemory(opts...)
				require.NoError(t, err)
				return store
			},
			"server":  func(t *testing.T) binder { return storeAt(t, redistest.URL(t), opts...) },
			"cluster": func(t *testing.T) binder { return storeAt(t, cluster, opts...) },
		} {
			t.Run(fmt.Sprint(name, ", idle timeout ", idle), func(t *testing.T) {
				t.Parallel()
				test(newMembers(t, open(t), newManager(idle)))
			})
		}
	}
}

func TestLogin(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, hash := range []bool{false, true} {
			m.sm.HashTokenInStore = hash
			for _, x := range []string{"", m.visitor()} {
				res := m.get("/in?user=alice", x)
				require.Equal(m, http.StatusAccepted, res.status, res.body)
				y := res.token()
				before := m.owned("alice", y)[0]
				require.WithinDuration(m, time.Now().Add(m.sm.Lifetime), before.Deadline, time.Minute)
				m.is("/0", x)

				// A renewal is no login.
				z := m.get("/renew", y).token()
				after := m.owned("alice", z)[0]
				require.Equal(m, before.Deadline, after.Deadline)
				require.Equal(m, before.CreatedAt, after.CreatedAt)

				// A logout by an older token ends the session and takes it out.
				require.Equal(m, http.StatusAccepted, m.get("/logout", y).status)
				m.owned("alice")
				m.is("/0", z)
			}
		}
	})
}

// The values so far stay, and the session lives for as long as is said, in scs and in its cookie too.
func TestLogin_Until(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		m.sm.Lifetime = 24 * time.Hour
		for _, until := range []time.Duration{time.Hour, 30 * 24 * time.Hour} {
			m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(until))}
			res := m.get("/in?user=alice", m.visitor())
			require.WithinDuration(m, time.Now().Add(until), m.owned("alice", res.token())[0].Deadline, time.Minute)
			m.is("alice/1", res.token())
			if m.sm.IdleTimeout == 0 {
				require.InDelta(m, until.Seconds(), res.cookies[0].MaxAge, 60)
			}
			require.Equal(m, http.StatusAccepted, m.get("/logout", res.token()).status)
		}
	})
}

// A later renewal begins the deadline of scs anew, and not that of the login, and the sooner one counts. A
// program that keeps scs' keeps both.
func TestLogin_UntilThenRenewed(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
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
				token := m.get(path, m.login("alice", m.visitor())).token()
				s := m.owned("alice", token)[0]
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
	onEachStore(t, nil, func(m *members) {
		const begun = "the response has begun"
		for name, begin := range map[string]func(w http.ResponseWriter){
			"status": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
			"body":   func(w http.ResponseWriter) { _, _ = w.Write([]byte("body")) },
			"flush":  func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() },
		} {
			var failed error
			m.actions["/late-in"] = func(w http.ResponseWriter, r *http.Request) error {
				begin(w)
				failed = m.in(r, "alice")
				return nil
			}
			m.actions["/late-everywhere"] = func(w http.ResponseWriter, r *http.Request) error {
				begin(w)
				_, failed = scsstore.LogoutEverywhere(r.Context(), m.sm, "alice")
				return nil
			}
			visitor := m.visitor()
			m.get("/late-in", visitor)
			require.ErrorContains(m, failed, begun, name)
			m.is("/1", visitor)
			m.owned("alice")

			phone, laptop := m.login("alice", m.visitor()), m.login("alice", m.visitor())
			m.get("/late-everywhere", phone)
			require.ErrorContains(m, failed, begun, name)
			m.owned("alice", phone, laptop)
			m.endAll("alice")
		}
		// An informational response is no beginning.
		m.actions["/hints-in"] = func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			return m.in(r, "alice")
		}
		res := m.get("/hints-in", m.visitor())
		require.Equal(m, http.StatusAccepted, res.status, res.body)
		m.owned("alice", res.token())
	})
}

// What the store allows counts too.
func TestLogin_AbsoluteTimeout(t *testing.T) {
	onEachStore(t, []tombstore.Option{tombstore.WithAbsoluteTimeout(2 * time.Hour)}, func(m *members) {
		res := m.get("/in?user=alice", m.visitor())
		require.WithinDuration(m, time.Now().Add(2*time.Hour), m.owned("alice", res.token())[0].Deadline, time.Minute)
		if m.sm.IdleTimeout == 0 {
			require.InDelta(m, 7200, res.cookies[0].MaxAge, 60)
		}
	})
}

// A login whose owner is logged out everywhere while the password is looked at is an error in the handler,
// and the visitor stays one, with the cart.
func TestLogin_Stale(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		m.between = func() { m.endAll("alice") }
		res := m.get("/in?user=alice", m.visitor())
		require.Equal(m, http.StatusInternalServerError, res.status)
		require.Contains(m, res.body, tombstore.ErrStaleLogin.Error())
		m.is("/1", res.token())
		m.owned("alice")
		m.between = nil
		m.owned("alice", m.login("alice", res.token()))
	})
}

// One whose owner is logged out everywhere before it is saved is refused, and nobody is in.
func TestLogin_EndedBeforeCommit(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, x := range []string{"", m.visitor()} {
			m.sm.HashTokenInStore = x == ""
			name := "in" + x
			g := m.gate(name)
			done := m.gate(name + "-done")
			answer := m.start("/in?user=alice&gate="+name, x)
			<-g.reached
			close(g.open)
			<-done.reached
			m.endAll("alice")
			close(done.open)
			res := <-answer
			require.Equal(m, http.StatusAccepted, res.status)
			require.Empty(m, res.cookies)
			m.owned("alice")
			require.NotContains(m, m.live(), "alice/1")
		}
	})
}

// What is reserved is given up if it is not saved.
func TestLogin_NotSaved(t *testing.T) {
	one := []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}
	onEachStore(t, one, func(m *members) {
		for _, x := range []string{"", m.visitor()} {
			_, err := m.try(m.Context(), "/in-panic", x)
			require.Error(m, err)
			redistest.Until(m, "the place is free", func() bool { // the client does not wait for the server
				res := m.get("/in?user=alice", "")
				if res.status == http.StatusAccepted {
					m.owned("alice", res.token())
				}
				return res.status == http.StatusAccepted
			})
			m.endAll("alice")

			require.Equal(m, http.StatusAccepted, m.get("/in-out", x).status)
			m.owned("alice", m.login("alice", ""))
			m.endAll("alice")
		}
	})
}

func TestLogin_ThenRenewed(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, x := range []string{"", m.visitor()} {
			res := m.get("/in-renew", x)
			require.Equal(m, http.StatusAccepted, res.status, res.body)
			m.owned("alice", res.token())
			require.Equal(m, http.StatusAccepted, m.get("/logout", res.token()).status)
		}
	})
}

// A second login in one request is the one that counts.
func TestLogin_Twice(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, x := range []string{"", m.visitor()} {
			res := m.get("/in-in", x)
			m.owned("alice")
			m.owned("bob", res.token())
			require.Equal(m, http.StatusAccepted, m.get("/logout", res.token()).status)
		}
	})
}

// Bob logs in where alice was.
func TestLogin_OfAnotherUser(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		alices := m.login("alice", m.visitor())
		bobs := m.login("bob", alices)
		m.owned("alice")
		m.owned("bob", bobs)
		m.endAll("alice")
		m.is("bob/1", bobs)
		m.is("/0", alices)
	})
}

func TestLogin_Refuse(t *testing.T) {
	onEachStore(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.Refuse)}, func(m *members) {
		first := m.login("alice", m.visitor())
		res := m.get("/in?user=alice", m.visitor())
		require.Contains(m, res.body, tombstore.ErrTooManySessions.Error())
		m.is("/1", res.token())
		again := m.login("alice", first)
		m.owned("alice", again)
		m.is("alice/1", again)
	})
}

func TestLogin_LabelTooLarge(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		m.actions["/label"] = func(_ http.ResponseWriter, r *http.Request) error {
			login, err := m.store.BeginLogin(r.Context(), "alice")
			if err != nil {
				return err
			}
			return scsstore.Login(r.Context(), m.sm, login, tombstore.Label(strings.Repeat("x", 1025)))
		}
		res := m.get("/label", m.visitor())
		require.Contains(m, res.body, tombstore.ErrTooLarge.Error())
		m.is("/1", res.token())
		m.owned("alice")
	})
}

func TestLogin_EvictOldest(t *testing.T) {
	onEachStore(t, []tombstore.Option{tombstore.WithMaxSessions(1, tombstore.EvictOldest)}, func(m *members) {
		first := m.login("alice", m.visitor())
		second := m.login("alice", m.visitor())
		m.is("/0", first)
		again := m.login("alice", second)
		m.owned("alice", again)
		m.is("alice/1", again)
	})
}

// Two logins at once in one browser leave it logged in, whatever comes first.
func TestLogin_Twins(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, stop := range []string{"", "-done", "-saved"} {
			x := m.visitor()
			loaded, name := m.gate("a"+x), "b"+x
			second := m.start("/in?user=alice&gate=a"+x, x)
			<-loaded.reached
			at := m.gate(name + stop)
			if stop != "" {
				g := m.gate(name)
				close(g.open)
			}
			first := m.start("/in?user=alice&gate="+name, x)
			<-at.reached
			close(loaded.open)
			if stop == "" { // the second one goes first
				theirs := <-second
				close(at.open)
				require.Empty(m, (<-first).cookies)
				m.owned("alice", theirs.token())
			} else {
				require.Empty(m, (<-second).cookies)
				close(at.open)
				m.owned("alice", (<-first).token())
			}
			m.endAll("alice")
		}
		for range 10 {
			x := m.visitor()
			first, second := m.start("/in?user=alice", x), m.start("/in?user=alice", x)
			tokens := []string{}
			for _, res := range []response{<-first, <-second} {
				require.Equal(m, http.StatusAccepted, res.status)
				if len(res.cookies) > 0 {
					tokens = append(tokens, res.token())
				}
			}
			require.NotEmpty(m, tokens)
			m.owned("alice", tokens...)
			m.endAll("alice")
		}
	})
}

// Only the session of the request goes on, as what it was, under a new token.
func TestLogoutEverywhere(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		m.opts = []tombstore.ReserveOption{tombstore.Until(time.Now().Add(2 * time.Hour))}
		phone, laptop, bobs := m.login("alice", m.visitor()), m.login("alice", m.visitor()), m.login("bob", "")
		var before tombstore.OwnedSession
		for _, s := range m.owned("alice", phone, laptop) {
			if s.Ref == tombstore.Ref(phone) {
				before = s
			}
		}
		res := m.get("/everywhere?user=alice", phone)
		require.Equal(m, http.StatusAccepted, res.status, res.body)
		require.NotEqual(m, phone, res.token())
		after := m.owned("alice", res.token())[0]
		require.Equal(m, before.Deadline, after.Deadline)
		require.Equal(m, before.CreatedAt, after.CreatedAt)
		if m.sm.IdleTimeout == 0 {
			require.InDelta(m, 7200, res.cookies[0].MaxAge, 60)
		}
		m.is("alice/1", res.token())
		for _, dead := range []string{phone, laptop} {
			m.is("/0", dead)
		}
		m.owned("bob", bobs)
	})
}

// Who has no session of the owner's keeps what he has.
func TestLogoutEverywhere_OfOthers(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, token := range []string{"", m.visitor(), m.login("bob", "")} {
			m.login("alice", "")
			before := m.get("/read", token).body
			res := m.get("/everywhere?user=alice", token)
			require.Equal(m, http.StatusAccepted, res.status, res.body)
			m.owned("alice")
			if token == "" {
				require.Empty(m, res.cookies)
				continue
			}
			require.Equal(m, before, m.get("/read", res.token()).body)
		}
	})
}

// To log out here as well takes a call more, and the cookie goes.
func TestLogoutEverywhere_HereToo(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		phone := m.login("alice", m.visitor())
		m.login("alice", m.visitor())
		res := m.get("/everywhere-out", phone)
		require.Equal(m, http.StatusAccepted, res.status, res.body)
		require.Len(m, res.cookies, 1)
		require.Negative(m, res.cookies[0].MaxAge)
		m.owned("alice")
		m.is("/0", phone)
	})
}

// A login that logs out all others is the one that stays, also if it is in the place of an earlier one.
func TestLogoutEverywhere_AtLogin(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		for _, x := range []string{m.login("alice", ""), "", m.visitor()} {
			m.login("alice", "")
			res := m.get("/in-everywhere", x)
			require.Equal(m, http.StatusAccepted, res.status, res.body)
			m.owned("alice", res.token())
		}
	})
}

// Of two devices that log each other out one goes on.
func TestLogoutEverywhere_Twice(t *testing.T) {
	onEachStore(t, nil, func(m *members) {
		phone, laptop := m.login("alice", m.visitor()), m.login("alice", m.visitor())
		g := m.gate("laptop")
		answer := m.start("/everywhere?user=alice&gate=laptop", laptop)
		<-g.reached
		kept := m.get("/everywhere?user=alice", phone).token()
		close(g.open)
		res := <-answer
		require.Equal(m, http.StatusInternalServerError, res.status)
		require.Contains(m, res.body, adapter.ErrRefused.Error())
		require.Empty(m, res.cookies)
		m.owned("alice", kept)
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
	s := newSite(t, other, scsstore.Install(other, faulty{store}))
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
