// Package history records what concurrent clients see while things are broken, and checks with porcupine that one order of the operations
// explains it (G3).
package history

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// The model of a session: absent, ended, or live with data that no other write has.
const (
	absent = ""
	ended  = "ended"
)

type verb int

const (
	read verb = iota
	slide
	touch
	write
	ifAbsent
	ifPresent
	ifVersion
	invalidate
	ifLive
	verbs
)

func (v verb) changes() bool { return v > touch }

type input struct {
	verb   verb
	id     int
	data   string // what it writes
	expect string // what IfVersion wants to be there
	lossy  bool   // replies are lost: a refusal may be that of a second attempt, of which the first was applied
}

// Outcomes; a read that finds the session has its data for one.
const (
	done     = "done"
	gone     = "gone"
	conflict = "conflict"
	unknown  = "unknown" // may have been applied, or not, or may yet be
)

// step returns the outcome of in on a session in this state, and the state after it.
func step(state string, in input) (outcome, next string) {
	live := state != absent && state != ended
	switch in.verb {
	case read, slide:
		if live {
			return state, state
		}
	case touch:
		if live {
			return done, state
		}
	case invalidate:
		return done, ended
	case ifLive:
		if live {
			return done, ended
		}
	case write:
		if state != ended {
			return done, in.data
		}
	case ifAbsent:
		if live {
			return conflict, state
		}
		if state == absent {
			return done, in.data
		}
	case ifPresent:
		if live {
			return done, in.data
		}
	case ifVersion:
		if live && state != in.expect {
			return conflict, state
		}
		if live {
			return done, in.data
		}
	}
	if state == ended {
		return ended, state
	}
	return gone, state
}

var model = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byID := map[int][]porcupine.Operation{}
		for _, op := range history {
			id := op.Input.(input).id
			byID[id] = append(byID[id], op)
		}
		for _, part := range byID {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() []any { return []any{absent} },
	Step: func(state, in, out any) []any {
		outcome, next := step(state.(string), in.(input))
		switch {
		case out == unknown:
			return []any{state, next}
		case out == outcome:
			return []any{next}
		case out == ended && outcome == done && in.(input).lossy: // and then somebody else has ended it
			return []any{next}
		}
		return nil
	},
}).ToModel()

// client is a store that a goroutine uses, and what it knows.
type client struct {
	store  tombstore.Store
	number int
	known  map[int]tombstore.Session
	random *rand.Rand
}

// do runs one operation. ok is false if nothing can be learned from it: a read that failed.
func (c *client) do(ctx context.Context, in input, name string) (outcome string, ok bool) {
	var s tombstore.Session
	var err error
	switch in.verb {
	case read:
		s, err = c.store.Read(ctx, name)
	case slide:
		s, err = c.store.Read(ctx, name, tombstore.Slide(time.Hour+time.Duration(c.random.IntN(3))*time.Hour))
	case touch:
		err = c.store.Touch(ctx, name, time.Hour+time.Duration(c.random.IntN(3))*time.Hour)
	case write:
		s, err = c.store.Write(ctx, name, []byte(in.data), time.Hour)
	case ifAbsent:
		s, err = c.store.Write(ctx, name, []byte(in.data), time.Hour, tombstore.IfAbsent())
	case ifPresent:
		s, err = c.store.Write(ctx, name, []byte(in.data), time.Hour, tombstore.IfPresent())
	case ifVersion:
		s, err = c.store.Write(ctx, name, []byte(in.data), time.Hour, tombstore.IfVersion(c.known[in.id].Version))
	case invalidate:
		err = c.store.Invalidate(ctx, name)
	case ifLive:
		err = c.store.Invalidate(ctx, name, tombstore.IfLive())
	}
	switch {
	case err == nil:
		if in.verb == touch || in.verb >= invalidate {
			return done, true
		}
		c.known[in.id] = s
		if in.verb.changes() {
			return done, true
		}
		return string(s.Data), true
	case errors.Is(err, tombstore.ErrUnknownOutcome):
		return unknown, in.verb.changes()
	case errors.Is(err, tombstore.ErrNotFound):
		return gone, true
	case errors.Is(err, tombstore.ErrInvalidated):
		return ended, true
	case errors.Is(err, tombstore.ErrConflict):
		return conflict, true
	}
	return unknown, in.verb.changes()
}

const (
	goroutines = 8
	sessions   = 4
	perRound   = 30 // operations of each
	checkTime  = 30 * time.Second
)

// round records one history on new sessions.
func round(ctx context.Context, stores []tombstore.Store, blind bool, begun time.Time) (history []porcupine.Operation) {
	names := make([]string, sessions)
	for i := range names {
		names[i] = tombstore.NewID()
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	for g := range goroutines {
		group.Go(func() {
			c := &client{stores[g%len(stores)], g, map[int]tombstore.Session{}, rand.New(rand.NewPCG(rand.Uint64(), uint64(g)))}
			for n := range perRound {
				in := input{verb: verb(c.random.IntN(int(verbs))), id: c.random.IntN(sessions), data: fmt.Sprintf("%d.%d", g, n), lossy: !blind}
				if in.verb >= invalidate && c.random.IntN(4) > 0 { // or all would be ended at once
					in.verb = read
				}
				if (in.verb == write || in.verb == ifPresent) && !blind { // may count twice when a reply is lost
					in.verb = ifVersion
				}
				if in.verb == ifVersion {
					held, ok := c.known[in.id]
					if !ok {
						in.verb = ifAbsent
					}
					in.expect = string(held.Data)
				}
				short, cancel := context.WithTimeout(ctx, 2*time.Second)
				call := time.Since(begun).Nanoseconds()
				out, ok := c.do(short, in, names[in.id])
				returned := time.Since(begun).Nanoseconds()
				cancel()
				if !ok {
					continue
				}
				if out == unknown { // it may take effect at any later time
					returned = time.Hour.Nanoseconds()
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: g, Input: in, Call: call, Output: out, Return: returned})
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return history
}

// bed is a server behind a proxy, and stores on it. None has a cache: a cached read is held to G4, which does not order it against
// changes that are still under way.
type bed struct {
	server *redistest.Server
	admin  rueidis.Client
	proxy  *redistest.Proxy
	stores []tombstore.Store
}

func newBed(t *testing.T, wrap func(rueidis.Client) rueidis.Client) *bed {
	t.Helper()
	b := &bed{server: redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")}
	b.admin = redistest.Dial(t, b.server.URL)
	b.proxy = redistest.NewProxy(t, b.server.Addr)
	for range 3 {
		option, err := rueidis.ParseURL(b.proxy.URL)
		require.NoError(t, err)
		option.DisableRetry, option.DisableCache = true, true
		c, err := rueidis.NewClient(option)
		require.NoError(t, err)
		t.Cleanup(c.Close)
		s, err := tombstore.New(wrap(c))
		require.NoError(t, err)
		b.stores = append(b.stores, s)
	}
	return b
}

// check records histories while inject breaks things until it is enough, and returns how many operations were checked and how many sessions have a history
// that no order explains.
func (b *bed) check(t *testing.T, blind bool, inject func(), enough func(violations int64) bool) (injected, checked, violations int64) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				inject()
				injected++
			}
		}
	}()
	for checked == 0 || !enough(violations) {
		history := round(t.Context(), b.stores, blind, time.Now())
		checked += int64(len(history))
		for _, part := range model.Partition(history) {
			switch porcupine.CheckOperationsTimeout(model, part, checkTime) {
			case porcupine.Illegal:
				violations++
			case porcupine.Unknown:
				t.Log("a history was too long to be checked")
			}
		}
	}
	close(stop)
	<-stopped
	return max(injected, 1), checked, violations
}

func same(c rueidis.Client) rueidis.Client { return c }

func TestHistory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		blind  bool // no reply is lost
		inject func(t *testing.T, b *bed)
	}{
		"nothing broken":  {true, func(*testing.T, *bed) {}},
		"SCRIPT FLUSH":    {true, func(t *testing.T, b *bed) { _ = b.admin.Do(t.Context(), b.admin.B().ScriptFlush().Build()).Error() }},
		"reply lost":      {false, func(_ *testing.T, b *bed) { b.proxy.LoseReply() }},
		"connections cut": {false, func(_ *testing.T, b *bed) { b.proxy.Cut() }},
		"CLIENT KILL": {false, func(t *testing.T, b *bed) {
			_ = b.admin.Do(t.Context(), b.admin.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()).Error()
		}},
		"server paused": {false, func(t *testing.T, b *bed) {
			if redistest.InContainer() {
				return
			}
			b.server.Pause(t)
			time.Sleep(20 * time.Millisecond)
			b.server.Resume(t)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, same)
			until := time.Now().Add(faults.Duration(t, 2*time.Second))
			injected, checked, violations := b.check(t, c.blind, func() { c.inject(t, b) }, func(int64) bool { return time.Now().After(until) })
			faults.Report(t, faults.Row{
				Kind: faults.Promised, Fault: "history: " + name, Injected: injected, Checked: checked, Violations: violations,
			})
		})
	}
}

// edited is a client that runs a script with a guard taken out.
type edited struct {
	rueidis.Client
	sha, source string
}

func (e *edited) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := cmd.Commands()
	if words[0] != "EVALSHA" || words[1] != e.sha {
		return e.Client.Do(ctx, cmd)
	}
	return e.Client.Do(ctx, e.B().Arbitrary("EVAL", e.source, "1").Keys(words[3]).Args(words[4:]...).Build())
}

func TestHistory_SeededBugs(t *testing.T) {
	t.Parallel()
	for bug, c := range map[string]struct{ file, old, new string }{
		"write.lua without the tombstone check": {
			"write.lua", "if kind == 192 and #head == 8 then return 'E' .. head end", "if kind == 192 and #head == 8 then kind, head = nil, '' end",
		},
		"write.lua without the existence check":   {"write.lua", "then return 'A' end", "then end"},
		"write.lua without comparing versions":    {"write.lua", "if string.sub(head, 1, 10) ~= ARGV[1] then return 'C' end\n  return 'D' .. stamps", ""},
		"touch.lua takes absent for live":         {"touch.lua", "then return 'A' end", "then return 'D' end"},
		"invalidate.lua leaves an absent key":     {"invalidate.lua", "if ARGV[3] and not kind then return 'A' end", "if not kind then return 'D' end"},
		"invalidate.lua forgets the tombstone":    {"invalidate.lua", "local set = redis.pcall('SET', KEYS[1], tombstone, 'PX', keep)", "local set = { redis.call('DEL', KEYS[1]) }"},
		"invalidate.lua ends whoever ended first": {"invalidate.lua", "if ARGV[3] and ended then return 'E' .. head end", ""},
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			source, err := os.ReadFile(filepath.Join("../../../scripts", c.file))
			require.NoError(t, err)
			require.Contains(t, string(source), c.old)
			sum := sha1.Sum(source)
			broken := strings.Replace(string(source), c.old, c.new, 1)
			b := newBed(t, func(client rueidis.Client) rueidis.Client { return &edited{client, hex.EncodeToString(sum[:]), broken} })
			until := time.Now().Add(time.Minute)
			_, checked, violations := b.check(t, true, func() {}, func(found int64) bool { return found > 0 || time.Now().After(until) })
			faults.Report(t, faults.Row{Kind: faults.Seeded, Fault: bug, Injected: 1, Checked: checked, Violations: violations})
		})
	}
}
