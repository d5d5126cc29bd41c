package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombstore/tombstore"
)

const roundWorkers = 8

// rounds runs the race n times over HTTP, with the slow request and the logout under way at the
// same time, and counts the sessions that are live when both are over.
func rounds(ctx context.Context, s sessions, n int) (int, error) {
	var revived, took atomic.Int64
	pause := func(ctx context.Context) { // of the order of a request's duration, on a server near or far
		select {
		case <-time.After(time.Duration(rand.Int64N(took.Load() + 1))):
		case <-ctx.Done():
		}
	}
	a := serve(s, pause)
	defer a.Close()
	err := each(ctx, n, roundWorkers, func(ctx context.Context, _ int) error {
		alice, start := a.browser(""), time.Now()
		login := alice.send(ctx, "POST", "/login")
		took.Store(int64(time.Since(start)))
		id := alice.cookie()

		var cart, logout reply
		var both sync.WaitGroup
		both.Go(func() {
			pause(ctx)
			cart = alice.send(ctx, "POST", "/cart")
		})
		both.Go(func() {
			pause(ctx)
			logout = alice.send(ctx, "POST", "/logout")
		})
		both.Wait()

		thief := a.browser(id).send(ctx, "GET", "/whoami")
		if thief.status == http.StatusOK {
			revived.Add(1)
		}
		return errors.Join(login.err, cart.err, logout.err, thief.err)
	})
	return int(revived.Load()), err
}

// opsPerRace is how many operations a forced race takes.
const opsPerRace = 5

// forced runs n races without HTTP, each in the order that loses. The stores of late take turns to
// load a session and to save it too late; ender, which has connections of its own, ends it in
// between. forced counts the sessions that are live then, and the late saves that were not refused.
func forced(ctx context.Context, late []sessions, ender sessions, n, workers int) (revived, accepted int, err error) {
	var live, saved atomic.Int64
	err = each(ctx, n, workers, func(ctx context.Context, i int) error {
		s, id := late[i%len(late)], tombstore.NewID()
		if err := s.create(ctx, id, "alice"); err != nil {
			return err
		}
		loaded, err := s.load(ctx, id)
		if err != nil {
			return err
		}
		if err = ender.delete(ctx, id); err != nil {
			return err
		}
		if err = s.save(ctx, id, loaded, string(loaded.Data)); err == nil {
			saved.Add(1)
		} else if !errors.Is(err, tombstore.ErrInvalidated) {
			return err
		}
		if _, err = s.load(ctx, id); err == nil {
			live.Add(1)
		} else if !tombstore.NoSession(err) {
			return err
		}
		return nil
	})
	return int(live.Load()), int(saved.Load()), err
}

// each calls f with 0 to n-1 on so many workers. It stops at the first error and returns it, or why
// ctx has ended.
func each(ctx context.Context, n, workers int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(n, workers) {
		all.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}
