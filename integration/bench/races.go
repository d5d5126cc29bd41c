package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/client"
	"github.com/tombstore/tombstore/internal/redistest"
)

// race lets ender end n sessions that move, and counts those that are live then.
type race func(ctx context.Context, url string, ender tombstore.Lister, n int) (live int, err error)

// races counts the sessions that an end has missed because they moved to another id meanwhile, in a
// cluster: there Rotate takes two commands.
func races(ctx context.Context, b *bench) (_ []table, err error) {
	cluster, err := redistest.NewCluster()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	ender, err := tombstore.Open(cluster.URL)
	if err != nil {
		return nil, err
	}
	defer ender.Close()
	n := b.scaled(10_000)
	for _, r := range []struct {
		name string
		run  race
	}{
		{"Invalidate of the old id between the two steps of Rotate", endBetween},
		{"List and InvalidateRef, with a Rotate of each session during the walk", endAllMoving},
	} {
		live, err := r.run(ctx, cluster.URL, ender, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		b.none("cluster, live after: "+r.name, live, n)
	}
	return nil, nil
}

// stopping is a client that runs a stop, which comes with the context, before it sends the first
// script that has a certain key.
type stopping struct{ rueidis.Client }

type stop struct {
	key  string
	do   func() error
	done bool
	err  error
}

type stopKey struct{}

func (c stopping) Do(ctx context.Context, command rueidis.Completed) rueidis.RedisResult {
	s, ok := ctx.Value(stopKey{}).(*stop)
	if words := command.Commands(); ok && !s.done && words[0] == "EVALSHA" && slices.Contains(words, s.key) {
		s.done, s.err = true, s.do()
	}
	return c.Client.Do(ctx, command)
}

const raceGoroutines = 32

// endBetween ends sessions under their old id between the two steps of a Rotate, and counts those
// that are live under the new one.
func endBetween(ctx context.Context, url string, ender tombstore.Lister, n int) (int, error) {
	o, err := client.Option(url, false)
	if err != nil {
		return 0, err
	}
	conn, err := client.Dial(o)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	mover, err := tombstore.New(stopping{conn})
	if err != nil {
		return 0, err
	}
	var live atomic.Int64
	err = each(ctx, raceGoroutines, n, func(ctx context.Context, _ int) error {
		oldID, newID := tombstore.NewID(), tombstore.NewID()
		if _, err := mover.Write(ctx, oldID, []byte("x"), hour); err != nil {
			return err
		}
		between := &stop{key: storeKey(newID), do: func() error {
			var end *tombstore.InvalidatedError
			if _, err := ender.Read(ctx, oldID); !errors.As(err, &end) || end.Reason != tombstore.Rotated {
				return fmt.Errorf("the first step is not done: %w", err)
			}
			return ender.Invalidate(ctx, oldID)
		}}
		_, err := mover.Rotate(context.WithValue(ctx, stopKey{}, between), oldID, newID)
		switch {
		case !between.done:
			return fmt.Errorf("there is no second step: %w", err)
		case between.err != nil:
			return between.err
		case err != nil && !errors.Is(err, tombstore.ErrInvalidated):
			return err
		}
		exists, err := ender.Exists(ctx, newID)
		if exists {
			live.Add(1)
		}
		return err
	})
	return int(live.Load()), err
}

// endAllMoving ends sessions by List while they move to other ids, and counts those that are live
// after it. All have moved, or were ended before, when the walk is half way: SCAN finds some under
// the old id, some under the new one, and some under none, since it may miss a key that is younger
// than the walk.
func endAllMoving(ctx context.Context, url string, ender tombstore.Lister, n int) (int, error) {
	mover, err := tombstore.Open(url)
	if err != nil {
		return 0, err
	}
	defer mover.Close()
	ids := make([][2]string, n)
	err = each(ctx, raceGoroutines, n, func(ctx context.Context, i int) error {
		ids[i] = [2]string{tombstore.NewID(), tombstore.NewID()}
		_, err := mover.Write(ctx, ids[i][0], []byte("x"), hour)
		return err
	})
	if err != nil {
		return 0, err
	}

	next := make(chan int)
	walked := make(chan error, 1)
	go func() {
		defer close(next)
		walked <- func() error {
			order := rand.Perm(n)
			for entry, err := range ender.List(ctx) {
				if err != nil {
					return err
				}
				for range min(rand.IntN(5), len(order)) {
					next <- order[0]
					order = order[1:]
				}
				if err := ender.InvalidateRef(ctx, entry.Ref); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	moved := each(ctx, raceGoroutines, raceGoroutines, func(ctx context.Context, _ int) (err error) {
		for i := range next { // to the end, or the walk would wait for ever
			_, failed := mover.Rotate(ctx, ids[i][0], ids[i][1])
			if !tombstore.NoSession(failed) {
				err = errors.Join(err, failed)
			}
		}
		return err
	})
	if err := errors.Join(<-walked, moved); err != nil {
		return 0, err
	}

	var live atomic.Int64
	err = each(ctx, raceGoroutines, n, func(ctx context.Context, i int) error {
		for _, id := range ids[i] {
			exists, err := ender.Exists(ctx, id)
			if err != nil {
				return err
			}
			if exists {
				live.Add(1)
			}
		}
		return nil
	})
	return int(live.Load()), err
}
