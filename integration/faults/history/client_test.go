package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tombstore/tombstore"
)

const (
	processes  = 3
	goroutines = 3 // of each process
	sessions   = 4 * groupSize
	perRound   = 30 // operations of a goroutine, or fewer if they take long
	roundTime  = time.Second
)

// config tells a process what it is. It travels in the environment.
type config struct {
	URL    string
	Number int
	Bug    string
	Lossy  bool // replies are lost
}

const configName = "HISTORY_CLIENT"

// TestMain makes a client of a process that process has started.
func TestMain(m *testing.M) {
	text := os.Getenv(configName)
	if text == "" {
		os.Exit(m.Run())
	}
	var c config
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = serve(c, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a client in a process of its own.
type process struct {
	in  *json.Encoder
	out *json.Decoder
}

// startProcess starts a process that ends with the test, or when this one does.
func startProcess(t *testing.T, c config) *process {
	t.Helper()
	text, err := json.Marshal(c)
	require.NoError(t, err)
	program, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(program)
	// A program with the race detector sleeps for a second before it ends.
	cmd.Env = append(os.Environ(), configName+"="+string(text), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		require.NoError(t, cmd.Wait())
	})
	return &process{json.NewEncoder(in), json.NewDecoder(out)}
}

// serve says that it is connected, plays a round for each list of names that comes in, and answers with its operations.
func serve(c config, in io.Reader, out io.Writer) error {
	option, err := rueidis.ParseURL(c.URL)
	if err != nil {
		return err
	}
	option.DisableRetry, option.DisableCache = true, true
	client, err := rueidis.NewClient(option)
	if err != nil {
		return err
	}
	defer client.Close()
	if b, ok := bugs[c.Bug]; ok {
		client = b.wrap(client)
	}
	store, err := tombstore.New(client)
	if err != nil {
		return err
	}
	rounds, answers := json.NewDecoder(in), json.NewEncoder(out)
	if err := answers.Encode([]operation{}); err != nil {
		return err
	}
	for {
		var names []string
		if err := rounds.Decode(&names); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := answers.Encode(play(c, store, names)); err != nil {
			return err
		}
	}
}

// play does random operations and returns what they saw.
func play(c config, store tombstore.Store, names []string) (ops []operation) {
	var mu sync.Mutex
	var group sync.WaitGroup
	for g := range goroutines {
		group.Go(func() {
			p := &player{store: store, names: names, known: map[int]tombstore.Session{}}
			for n, begun := 0, time.Now(); n < perRound && time.Since(begun) < roundTime; n++ {
				op := p.choose(fmt.Sprintf("%d.%d.%d", c.Number, g, n), c.Lossy)
				patience := 2 * time.Second
				if c.Lossy && rand.IntN(16) == 0 { // too little
					patience = time.Duration(rand.IntN(int(10 * time.Millisecond)))
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				op.Call = now()
				op.Outcome = p.do(ctx, op)
				op.Return = now()
				cancel()
				if op.Outcome == failed || op.Outcome == unknown && !op.Verb.changes() {
					continue
				}
				mu.Lock()
				ops = append(ops, op)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return ops
}

// now returns the time on a clock that all processes of a machine share, and that nobody sets.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// player is what a goroutine has, and what it knows of the sessions.
type player struct {
	store tombstore.Store
	names []string
	known map[int]tombstore.Session
}

func (p *player) choose(data string, lossy bool) operation {
	op := operation{Verb: verb(rand.IntN(int(verbs))), ID: rand.IntN(len(p.names)), Data: data}
	if op.Verb.ends() && rand.IntN(6) > 0 { // or all would be ended at once
		op.Verb = read
	}
	if lossy && (op.Verb == write || op.Verb == ifPresent) { // may count twice
		op.Verb = ifVersion
	}
	if op.Verb == ifVersion {
		held, ok := p.known[op.ID]
		if !ok {
			op.Verb = ifAbsent
		}
		op.Expect = string(held.Data)
	}
	first := op.ID / groupSize * groupSize
	op.To = first + (op.ID-first+1+rand.IntN(groupSize-1))%groupSize
	return op
}

func (p *player) do(ctx context.Context, op operation) (outcome string) {
	id, data := p.names[op.ID], []byte(op.Data)
	ttl := time.Hour + time.Duration(rand.IntN(3))*time.Hour
	var s tombstore.Session
	var err error
	switch op.Verb {
	case read:
		s, err = p.store.Read(ctx, id)
	case slide:
		s, err = p.store.Read(ctx, id, tombstore.Slide(ttl))
	case exists:
		var found bool
		if found, err = p.store.Exists(ctx, id); err == nil && !found {
			return gone
		}
	case touch:
		err = p.store.Touch(ctx, id, ttl)
	case write:
		s, err = p.store.Write(ctx, id, data, ttl)
	case ifAbsent:
		s, err = p.store.Write(ctx, id, data, ttl, tombstore.IfAbsent())
	case ifPresent:
		s, err = p.store.Write(ctx, id, data, ttl, tombstore.IfPresent())
	case ifVersion:
		s, err = p.store.Write(ctx, id, data, ttl, tombstore.IfVersion(p.known[op.ID].Version))
	case invalidate:
		err = p.store.Invalidate(ctx, id)
	case ifLive:
		err = p.store.Invalidate(ctx, id, tombstore.IfLive())
	case rotate:
		s, err = p.store.Rotate(ctx, id, p.names[op.To])
	case rotateWith:
		s, err = p.store.Rotate(ctx, id, p.names[op.To], tombstore.WithData(data, ttl))
	}
	var end *tombstore.InvalidatedError
	switch {
	case err == nil:
		switch op.Verb {
		case read, slide:
			p.known[op.ID] = s
			return string(s.Data)
		case rotate, rotateWith:
			p.known[op.To] = s
			return string(s.Data)
		}
		if op.Verb.writes() {
			p.known[op.ID] = s
		}
		return done
	case errors.Is(err, tombstore.ErrUnknownOutcome):
		return unknown
	case errors.As(err, &end) && end.Reason == tombstore.Rotated:
		return rotated
	case errors.Is(err, tombstore.ErrInvalidated):
		return ended
	case errors.Is(err, tombstore.ErrNotFound):
		return gone
	case errors.Is(err, tombstore.ErrConflict):
		return conflict
	}
	return failed
}
