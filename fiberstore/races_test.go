package fiberstore

import (
	"net/http"
	"testing"

	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// outcome is what a race of two requests with the cookie X, whose user is alice, leaves behind.
type outcome struct {
	Status int    // of B
	Body   string // of B
	Cookie string // of B: "", "expired", "X" or "new"
	X      string // whom X is worth
	Y      string // whom the cookie is worth that A got
	Others int    // live sessions besides those
}

// race lets B race with A, which wins.
func (b *bed) race(a, kind string, revoke func(id string), live func() int) outcome {
	step := map[string]string{"renews": "renew", "only reads": "who", "logs out too": "logout"}[kind]
	if step == "" {
		step = "modify"
	}
	x := b.login()
	var theirs, ours reply
	switch {
	case a == "revocation" && kind == "starts late":
		revoke(x)
		theirs = b.get(step, x)
	case a == "revocation":
		resume := b.start(step, x, "loaded")
		revoke(x)
		theirs = resume()
	case kind == "starts late":
		ours = b.get(a, x)
		theirs = b.get(step, x)
	case kind == "finishes first":
		resume := b.start(step, x, "loaded")
		finish := b.start(a, x, "done")
		theirs = resume()
		ours = finish()
	default:
		resume := b.start(step, x, "loaded")
		ours = b.get(a, x)
		theirs = resume()
	}
	o := outcome{Status: theirs.status, Body: theirs.body, Others: live()}
	switch {
	case theirs.cookie == nil:
	case theirs.cookie.Value == "":
		o.Cookie = "expired"
	case theirs.cookie.Value == x:
		o.Cookie = "X"
	default:
		o.Cookie = "new"
	}
	o.X = b.get("who", x).body
	if o.X != "anonymous" {
		o.Others--
	}
	if ours.id() != "" {
		o.Y = b.get("who", ours.id()).body
		if o.Y != "anonymous" {
			o.Others--
		}
	}
	return o
}

var (
	as    = []string{"logout", "login", "revocation"}
	kinds = []string{"modifies", "only reads", "renews", "finishes first", "starts late", "logs out too"}
)

func TestRaces(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		for _, a := range as {
			for _, kind := range kinds {
				t.Run(string(m)+"/"+a+"/"+kind, func(t *testing.T) {
					t.Parallel()
					b := newBed(t, m, session.Config{})
					want := outcome{Status: http.StatusAccepted, Body: "alice", X: "anonymous"}
					if a == "login" {
						want.Y = "alice"
					}
					switch kind {
					case "starts late":
						want.Body, want.Cookie, want.Others = "anonymous", "new", 1
					case "logs out too": // it reaches the session that a login has made of its own
						want.Cookie = "expired"
						if a == "login" {
							want.Y = "anonymous"
						}
					}
					require.Equal(t, want, b.race(a, kind, func(id string) {
						require.NoError(t, b.store.Invalidate(t.Context(), id, tombstore.WithReason(tombstore.Revoked)))
					}, b.live))
				})
			}
		}
	}
}

// The same races with a plain storage show what they are about, and that TestRaces can fail.
func TestRaces_PlainStorage(t *testing.T) {
	t.Parallel()
	resurrected := outcome{Status: http.StatusAccepted, Body: "alice", Cookie: "X", X: "alice"}
	renewed := outcome{Status: http.StatusAccepted, Body: "alice", Cookie: "new", X: "anonymous", Others: 1}
	want := map[string]outcome{
		"modifies": resurrected, "only reads": resurrected, "finishes first": resurrected, "renews": renewed,
	}
	for _, m := range modes {
		for _, a := range as {
			for kind, want := range want {
				t.Run(string(m)+"/"+a+"/"+kind, func(t *testing.T) {
					t.Parallel()
					storage := &mapStorage{data: map[string][]byte{}}
					b := newBed(t, m, session.Config{Storage: storage})
					if a == "login" {
						want.Y = "alice"
					}
					require.Equal(t, want, b.race(a, kind, func(id string) {
						require.NoError(t, storage.DeleteWithContext(t.Context(), id))
					}, storage.len))
				})
			}
		}
	}
}
