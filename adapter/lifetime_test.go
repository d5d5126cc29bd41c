package adapter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

const day = 24 * time.Hour

var remembered = tombstore.Lifetime{Idle: 30 * day, Absolute: 90 * day}

// lasts requires that the session of the request under an id has a lifetime, and its cookie too.
func (b *bed) lasts(id string, l tombstore.Lifetime) {
	b.Helper()
	s, err := b.Store().Read(b.Context(), id, tombstore.WithExpiry())
	require.NoError(b, err)
	require.Equal(b, l.Idle, s.Idle())
	require.Equal(b, l.Absolute == 0, s.Deadline().IsZero())
	if l.Idle > 0 {
		require.WithinDuration(b, time.Now().Add(l.Idle), s.ExpiresAt, time.Minute)
		require.WithinDuration(b, time.Now().Add(l.Absolute), s.Deadline(), time.Minute)
	}
	require.InDelta(b, l.Idle.Seconds(), b.b.CookieAge().Seconds(), 60)
}

func TestSetLifetime(t *testing.T) {
	for name, save := range map[string]func(b *bed, id string) error{
		"new": func(b *bed, id string) error {
			b.b.id, b.b.state = "", anonymous
			return b.save(id, "y")
		},
		"renewed": func(b *bed, id string) error {
			require.NoError(b, b.Leave(b.Context(), b.b, b.id))
			return b.save(id, "y")
		},
		"rotated": func(b *bed, id string) error { return b.rotate(id, "y") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			id := tombstore.NewID()
			require.NoError(t, b.b.SetLifetime(remembered))
			require.NoError(t, save(b, id))
			b.lasts(id, remembered)

			// Later requests touch and save it for an hour, and one that changes nothing has
			// nothing to do.
			b.id = id
			b.b = &Request{}
			b.load(b.b, id, "y")
			require.False(t, b.saveIfDue(id, "y"))
			require.True(t, b.saveIfDue(id, "z"))
			b.lasts(id, remembered)
			require.NoError(t, b.save(id, "z"))
			b.lasts(id, remembered)

			// A renewal keeps it, and a login that does not want it says so.
			next := tombstore.NewID()
			require.NoError(t, b.rotate(next, "z"))
			b.lasts(next, remembered)
			id = tombstore.NewID()
			require.NoError(t, b.b.SetLifetime(tombstore.Lifetime{}))
			require.NoError(t, b.Leave(t.Context(), b.b, next))
			require.NoError(t, b.save(id, "z"))
			b.lasts(id, tombstore.Lifetime{})
		})
	}
}

func TestSetLifetime_Errors(t *testing.T) {
	b := newBed(t)
	require.ErrorIs(t, b.b.SetLifetime(tombstore.Lifetime{Idle: -1}), tombstore.ErrInvalidTTL)
	require.NoError(t, b.save(b.id, "x"))
	require.NoError(t, b.b.SetLifetime(remembered))
	for _, data := range []string{"x", "y"} {
		require.ErrorIs(t, b.save(b.id, data), errKeepsID)
	}
	b.load(nil, b.id, "x")

	b.login("alice", tombstore.Until(time.Now().Add(day)))
	require.ErrorIs(t, b.b.SetLifetime(remembered), errAfterLogin)
}

func TestLogin_Lifetime(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.b.SetLifetime(tombstore.Lifetime{Idle: time.Minute}), "the login has its own")
	id := tombstore.NewID()
	in := func(id string, l tombstore.Lifetime) {
		_, err := b.Login(t.Context(), b.b, id, b.ticket("alice"), tombstore.LoginLifetime(l))
		require.NoError(t, err)
	}
	in(id, remembered)
	require.NoError(t, b.rotate(id, "y"))
	b.lasts(id, remembered)
	short := tombstore.Lifetime{Idle: day, Absolute: day / 2}
	next := tombstore.NewID()
	in(next, short)
	require.NoError(t, b.rotate(next, "y"))
	require.InDelta(t, (day / 2).Seconds(), b.b.CookieAge().Seconds(), 60, "its deadline comes first")
}

// A Rotate leaves a grace if it was asked for, and nothing that may be a login does.
func TestGrace(t *testing.T) {
	for name, c := range map[string]struct {
		after func(b *bed, id string)
		reads bool
	}{
		"a renewal": {func(*bed, string) {}, true},
		"Renew":     {func(b *bed, _ string) { b.b.Renew() }, false},
		"SetLifetime": {func(b *bed, _ string) {
			require.NoError(b, b.b.SetLifetime(tombstore.Lifetime{}))
		}, false},
		"Login": {func(b *bed, id string) { require.NoError(b, b.tryLogin(id, b.ticket("alice"))) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			id := tombstore.NewID()
			b.b.Grace(time.Minute)
			c.after(b, id)
			require.NoError(t, b.rotate(id, "y"))
			late := &Request{}
			data, found, err := b.Load(t.Context(), late, b.id)
			require.NoError(t, err)
			require.Equal(t, c.reads, found)
			if c.reads {
				require.Equal(t, "y", string(data))
				b.b = late
				require.ErrorIs(t, b.save(b.id, "z"), ErrRefused)
				b.b = &Request{}
				b.load(b.b, id, "y")
			}

			// The next one is another one.
			require.NoError(t, b.rotate(tombstore.NewID(), "y"))
			_, found, err = b.Load(t.Context(), &Request{}, id)
			require.NoError(t, err)
			require.False(t, found)
		})
	}
}
