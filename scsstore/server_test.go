package scsstore_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/scsstore"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// A login whose old token may come back in a failover is served, with its cookie, and told of.
func TestUnacknowledged(t *testing.T) {
	t.Parallel()
	store := storeAt(t, redistest.URL(t), tombstore.WithReplicaAcks(1, 10*time.Millisecond))
	sm := scs.New()
	sm.ErrorFunc = func(_ http.ResponseWriter, _ *http.Request, err error) { t.Error(err) }
	events := make(chan tombstore.Event, 10)
	s := newSite(t, sm, scsstore.Install(sm, store, adapter.WithOnUnacknowledged(
		func(ctx context.Context, e tombstore.Event) {
			require.Equal(t, "alice", sm.GetString(ctx, "user"))
			e.Err = nil
			events <- e
		})))
	x := s.get("/put", "").token()
	got := s.get("/login", x)
	require.Equal(t, http.StatusAccepted, got.status)
	require.Equal(t, "alice/1.", s.get("/read", got.token()).body)
	require.Equal(t, tombstore.Event{
		Verb: "create", Outcome: tombstore.OutcomeUnacknowledged, Ref: tombstore.Ref(x),
	}, <-events)

	// A logout says it itself, each time.
	for range 2 {
		out := s.get("/logout", got.token())
		require.Equal(t, http.StatusInternalServerError, out.status)
		require.Contains(t, out.body, tombstore.ErrUnacknowledged.Error())
	}
	require.Empty(t, s.live())
	require.Empty(t, events)
}

// Whoever iterates meets every session that could be somebody's: those that cannot be decoded, and
// those between two tokens, have no values, and can be destroyed.
func TestIterate_Unreadable(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) renewer{"memory": onMemory, "server": onServer} {
		for _, hash := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				store := newStore(t)
				sm := scs.New()
				sm.HashTokenInStore = hash
				s := newSite(t, sm, scsstore.Install(sm, store))
				bob := s.get("/put", "").token()
				alice := s.get("/login", s.get("/put", "").token()).token()
				_, err := store.Write(t.Context(), tombstore.NewID(), []byte("what is this"), time.Hour)
				require.NoError(t, err)
				pending := s.get("/login", s.get("/put", "").token()).token()
				b := s.gate("b-done")
				done := s.start("/renew?gate=b", pending)
				<-b.reached

				require.Equal(t, []string{"/0", "/0", "/1", "alice/1"}, s.live())
				require.NoError(t, sm.Iterate(t.Context(), func(ctx context.Context) error {
					if sm.GetString(ctx, "user") == "alice" || len(sm.Keys(ctx)) == 0 {
						return sm.Destroy(ctx)
					}
					return nil
				}))
				close(b.open)
				require.Empty(t, (<-done).cookies)
				require.Equal(t, []string{"/1"}, s.live())
				require.Equal(t, "/0.", s.get("/read", alice).body)
				require.Equal(t, "/1.", s.get("/read", bob).body)
			})
		}
	}
}

// commands returns how many commands a server has executed.
func commands(t *testing.T, client rueidis.Client) int {
	n, err := strconv.Atoi(redistest.Info(t, client, "total_commands_processed"))
	require.NoError(t, err)
	return n
}

// A logout costs the same however many sessions there are, with hashed tokens too, and even in a
// process that has iterated over them.
func TestLogout_DoesNotWalk(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := redistest.Dial(t, server.URL)
	for _, hash := range []bool{false, true} {
		store := storeAt(t, server.URL)
		sm := newManager(time.Hour)
		sm.HashTokenInStore = hash
		s := newSite(t, sm, scsstore.Install(sm, store))
		for range 500 {
			_, err := store.Write(t.Context(), tombstore.NewID(), []byte("x"), time.Hour)
			require.NoError(t, err)
		}
		login := func() string { return s.get("/login", s.get("/put", "").token()).token() }
		s.actions["/merge"] = func(_ http.ResponseWriter, r *http.Request) error {
			return sm.MergeSession(r.Context(), r.FormValue("token"))
		}
		token, dead, other := login(), login(), login()
		s.get("/logout", dead)
		s.actions["/renew-logout"] = func(_ http.ResponseWriter, r *http.Request) error {
			return errors.Join(sm.RenewToken(r.Context()), sm.Destroy(r.Context()))
		}
		renewed, before := login(), commands(t, client)
		require.Equal(t, http.StatusAccepted, s.get("/renew-logout", renewed).status)
		require.Less(t, commands(t, client)-before, 150, "of a token that was never saved")
		s.live() // from here on the process knows handles
		for name, logout := range map[string]func() response{
			"without a cookie": func() response { return s.get("/logout", "") },
			"unknown":          func() response { return s.get("/logout", tombstore.NewID()) },
			"dead":             func() response { return s.get("/logout", dead) },
			"live":             func() response { return s.get("/logout", login()) },
			"merge":            func() response { return s.get("/merge?token="+other, login()) },
			"by a job": func() response {
				ctx, err := sm.Load(t.Context(), login())
				require.NoError(t, err)
				require.NoError(t, sm.Destroy(ctx))
				return response{status: http.StatusAccepted}
			},
			"twice, both have loaded it": func() response {
				b := s.gate("b")
				done := s.start("/logout?gate=b", token)
				<-b.reached
				require.Equal(t, http.StatusAccepted, s.get("/logout", token).status)
				close(b.open)
				return <-done
			},
		} {
			before := commands(t, client)
			require.Equal(t, http.StatusAccepted, logout().status)
			require.Less(t, commands(t, client)-before, 150, name)
		}
	}
}
