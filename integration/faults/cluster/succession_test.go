package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

func same(c rueidis.Client) rueidis.Client { return c }

// withoutSuccessor is a client of a store that forgets where a session has moved to.
var withoutSuccessor = faults.Edit("rotate.lua", ", 's', ARGV[3] }", " }")

// TestSuccession ends sessions that move from slot to slot. FAULTS_COUNT says how many.
func TestSuccession(t *testing.T) {
	faults.Long(t)
	t.Parallel()
	n := start(t, calm)
	client := dial(t, n)
	t.Run("between the steps of a rotation", func(t *testing.T) { betweenSteps(t, n, client) })
	t.Run("log out everywhere", func(t *testing.T) { everywhere(t, client, "cluster, ") })
}

// TestSuccession_SingleServer is the part of TestSuccession that can happen on a single server,
// where a rotation is one step.
func TestSuccession_SingleServer(t *testing.T) {
	t.Parallel()
	everywhere(t, redistest.Dial(t, redistest.Start(t).URL), "")
}

// loadScripts makes every node know the scripts, so that each step is one command.
func loadScripts(t *testing.T, n *redistest.Nodes) {
	t.Helper()
	for _, node := range n.Primaries {
		for _, file := range []string{"write.lua", "rotate.lua", "invalidate.lua", "link.lua"} {
			node.Do(t, "SCRIPT", "LOAD", faults.Source(file))
		}
	}
}

// betweenSteps ends each session by its old id, between the two steps of a rotation, and counts
// those that are live under the new one.
func betweenSteps(t *testing.T, n *redistest.Nodes, client rueidis.Client) {
	loadScripts(t, n)
	usual := newStore(t, client)
	ends := []func(id string) error{
		func(id string) error { return usual.Invalidate(t.Context(), id) },
		func(id string) error { return usual.InvalidateRef(t.Context(), tombstore.Ref(id)) },
		func(id string) error {
			return usual.Invalidate(t.Context(), id, tombstore.WithReason(tombstore.Revoked))
		},
		func(id string) error {
			err := usual.Invalidate(t.Context(), id, tombstore.IfLive())
			if !tombstore.NoSession(err) {
				return errors.New("IfLive says that it has ended a session between two ids")
			}
			return nil
		},
	}
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
		count int
	}{
		{faults.Promised, "cluster, ends between the two steps of a rotation: live under the new id",
			same, faults.Count(t, 200)},
		{faults.Seeded, "cluster, rotate.lua does not write the successor, ends between the two steps",
			withoutSuccessor, 20},
	} {
		var live, checked atomic.Int64
		each(c.count, func(i int) {
			id, next := tombstore.NewID(), tombstore.NewID()
			if _, err := usual.Write(t.Context(), id, []byte(mine), hour, tombstore.IfAbsent()); err != nil {
				t.Error(err)
				return
			}
			b := &ahead{Client: client, sha: faults.SHA("write.lua"), meet: func() {
				if err := ends[i%len(ends)](id); err != nil && c.kind == faults.Promised {
					t.Error(err)
				}
			}}
			s, err := tombstore.New(c.wrap(b))
			if err != nil {
				t.Error(err)
				return
			}
			_, moved := s.Rotate(t.Context(), id, next)
			found, err := usual.Exists(t.Context(), next)
			refused := errors.Is(moved, tombstore.ErrInvalidated)
			if err != nil || !b.met || c.kind == faults.Promised && !refused {
				t.Errorf("%v, %v", err, moved)
			}
			checked.Add(1)
			if found {
				live.Add(1)
			}
		})
		faults.Report(t, faults.Row{
			Kind: c.kind, Fault: c.fault, Injected: checked.Load(), Checked: checked.Load(), Violations: live.Load(),
		})
	}
}

// ahead is a client that lets others in ahead of a script.
type ahead struct {
	rueidis.Client
	sha  string
	meet func()
	met  bool
}

func (c *ahead) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := cmd.Commands()
	if !c.met && words[0] == "EVALSHA" && words[1] == c.sha {
		c.met = true
		c.meet()
	}
	return c.Client.Do(ctx, cmd)
}

// each calls f for the numbers below n, some at once.
func each(n int, f func(i int)) {
	var group sync.WaitGroup
	numbers := make(chan int)
	for range 8 {
		group.Go(func() {
			for i := range numbers {
				f(i)
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	group.Wait()
}

// everywhere ends all sessions by List and InvalidateRef, while each of them moves again and again,
// and counts those that are live.
func everywhere(t *testing.T, client rueidis.Client, where string) {
	const size = 200
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
		count int
	}{
		{faults.Promised, where + "log out everywhere while each session moves: live",
			same, faults.Count(t, size)},
		{faults.Seeded, where + "rotate.lua does not write the successor, log out everywhere",
			withoutSuccessor, size},
	} {
		row := faults.Row{Kind: c.kind, Fault: c.fault}
		round := min(c.count, 2500) // sessions at once
		for range (c.count + round - 1) / round {
			s, err := tombstore.New(c.wrap(client),
				tombstore.WithKeyPrefix(redistest.Prefix(t, client)), tombstore.WithTimeout(patience))
			require.NoError(t, err)
			moved, live := logOutEverywhere(t, s, round)
			row.Injected += moved
			row.Checked += int64(round)
			row.Violations += live
		}
		faults.Report(t, row)
	}
}

// logOutEverywhere returns how often sessions have moved, and how many are live after all were
// ended.
func logOutEverywhere(t *testing.T, s *tombstore.RedisStore, size int) (moved, live int64) {
	t.Helper()
	each := (size + 7) / 8 // sessions of a mover
	ids := faults.Create(t, s, size)
	var moves atomic.Int64
	var stop atomic.Bool
	var movers sync.WaitGroup
	stepped := make(chan struct{})
	for first := 0; first < size; first += each {
		movers.Go(func() {
			last, over := min(first+each, size), map[int]bool{}
			for round := 0; len(over) < last-first && !stop.Load(); round++ {
				for i := first; i < last; i++ {
					if over[i] {
						continue
					}
					next := tombstore.NewID()
					err := move(t.Context(), s, round, ids[i], next)
					if err != nil && !tombstore.NoSession(err) {
						t.Error(err)
					}
					ids[i] = next
					if err != nil {
						over[i] = true
						continue
					}
					moves.Add(1)
					select { // one move, or more, for each end
					case stepped <- struct{}{}:
					case <-time.After(time.Millisecond):
					}
				}
			}
		})
	}
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		movers.Wait()
	}()
	for e, err := range s.List(t.Context()) {
		if err != nil {
			t.Error(err)
			break
		}
		select {
		case <-stepped:
		case <-idle:
		}
		if err := s.InvalidateRef(t.Context(), e.Ref); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	<-idle
	return moves.Load(), faults.Live(t, s, ids)
}

// move moves a session, in one step or in two halves.
func move(ctx context.Context, s *tombstore.RedisStore, round int, id, next string) error {
	if round%2 == 0 {
		_, err := s.Rotate(ctx, id, next)
		return err
	}
	r, err := s.BeginRenewal(ctx, id, 0)
	if err == nil {
		_, err = s.FinishRenewal(ctx, r, next, []byte("x"), hour)
	}
	return err
}
