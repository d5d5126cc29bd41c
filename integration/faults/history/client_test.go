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

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
)

const (
	processes  = 3
	goroutines = 3             // of each process
	ids        = 3 * groupSize // of a round
	perRound   = 30            // operations of a goroutine, or fewer if they take long
	roundTime  = time.Second
)

// config tells a process what it is. It travels in the environment.
type config struct {
	URL    string
	Number int
	Bug    string
	Lossy  bool // replies are lost
}

// kept is one goroutine's store, and what it has sent.
type kept struct {
	store  *tombstore.RedisStore
	client *watched
}

// watched is a client that notes how far an operation has come. One goroutine uses it.
type watched struct {
	rueidis.Client
	sent sent
}

func (w *watched) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := cmd.Commands()
	switch {
	case words[0] == "GET":
		w.sent.Read = true
	case words[0] != "EVALSHA":
	case words[1] == faults.SHA("write.lua"):
		w.sent.Written = true
	case words[1] == faults.SHA("rotate.lua"), words[1] == faults.SHA("link.lua"):
		w.sent.Left = true
	}
	return w.Client.Do(ctx, cmd)
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

// serve says that it is connected, plays a round for each list of names that comes in, and answers
// with its operations.
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
	var stores [goroutines]kept
	for g := range stores {
		own := client
		if b, ok := bugs[c.Bug]; ok {
			own = b.wrap(client)
		}
		w := &watched{Client: own}
		store, err := tombstore.New(w)
		if err != nil {
			return err
		}
		_, _ = store.Check(context.Background()) // so that it saves by SET; a store with a bug may fail
		stores[g] = kept{store, w}
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
		if err := answers.Encode(play(c, stores[:], names)); err != nil {
			return err
		}
	}
}

// play does random operations and returns what they saw.
func play(c config, stores []kept, names []string) (ops []operation) {
	var mu sync.Mutex
	var group sync.WaitGroup
	for g, own := range stores {
		group.Go(func() {
			p := &player{store: own.store, names: names, known: map[int]tombstore.Session{}}
			for n, begun := 0, time.Now(); n < perRound && time.Since(begun) < roundTime; n++ {
				op := p.choose(fmt.Sprintf("%d.%d.%d", c.Number, g, n), c.Lossy)
				patience := 2 * time.Second
				if c.Lossy && rand.IntN(16) == 0 { // too little
					patience = time.Duration(rand.IntN(int(10 * time.Millisecond)))
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				own.client.sent = sent{}
				op.Call = now()
				op.Outcome = p.do(ctx, op)
				op.Return = now()
				op.Sent = own.client.sent
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

// player is what a goroutine has, and what it knows of the sessions.
type player struct {
	store tombstore.Renewer
	names []string
	known map[int]tombstore.Session
	begun []renewal // that it has not ended
}

type renewal struct {
	id    int
	claim string // its name in the history
	tombstore.Renewal
}

func (p *player) choose(data string, lossy bool) operation {
	op := operation{Verb: verb(rand.IntN(int(verbs))), ID: rand.IntN(len(p.names)), Data: data}
	if len(p.begun) > 0 && rand.IntN(4) == 0 {
		r := p.begun[0]
		op.Verb, op.ID, op.Claim = finish, r.id, r.claim
		if rand.IntN(6) == 0 {
			op.Verb = cancel
		}
	}
	if op.Verb.ends() && rand.IntN(6) > 0 { // or all would be ended at once
		op.Verb = read
	}
	held, ok := p.known[op.ID]
	if lossy && (op.Verb == write || op.Verb == ifPresent) { // may count twice
		op.Verb = ifVersion
	}
	switch {
	case (op.Verb == ifVersion || op.Verb == replacing) && !ok:
		op.Verb = ifAbsent
	case op.Verb == ifVersion, op.Verb >= rotate && op.Verb <= begin && rand.IntN(2) == 0:
		op.Expect = string(held.Data)
	}
	if op.Verb == rotate {
		op.Data = ""
	}
	first := op.ID / groupSize * groupSize
	op.To = first + (op.ID-first+1+rand.IntN(groupSize-1))%groupSize
	return op
}

func (p *player) do(ctx context.Context, op operation) (outcome string) {
	id, data := p.names[op.ID], []byte(op.Data)
	ttl := time.Hour + time.Duration(rand.IntN(3))*time.Hour
	held := p.known[op.ID]
	var unchanged tombstore.Version // 0: any
	if op.Expect != "" {
		unchanged = held.Version
	}
	var r renewal
	if op.Verb == finish || op.Verb == cancel {
		r, p.begun = p.begun[0], p.begun[1:]
	}
	var s tombstore.Session
	var err error
	switch op.Verb {
	case read:
		s, err = p.store.Read(ctx, id)
	case slide:
		s, err = p.store.Read(ctx, id, tombstore.Slide(ttl))
	case expiry:
		s, err = p.store.Read(ctx, id, tombstore.WithExpiry())
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
		s, err = p.store.Write(ctx, id, data, ttl, tombstore.IfVersion(held.Version))
	case replacing:
		s, err = p.store.Write(ctx, id, data, ttl, tombstore.Replacing(held))
	case invalidate:
		err = p.store.Invalidate(ctx, id)
	case ifLive:
		err = p.store.Invalidate(ctx, id, tombstore.IfLive())
	case alone:
		err = p.store.Invalidate(ctx, id, tombstore.Alone())
	case endRotated:
		err = p.store.Invalidate(ctx, id, tombstore.WithReason(tombstore.Rotated))
	case rotate:
		s, err = p.store.Rotate(ctx, id, p.names[op.To], tombstore.IfUnchanged(unchanged))
	case rotateWith:
		s, err = p.store.Rotate(ctx, id, p.names[op.To], tombstore.WithData(data, ttl), tombstore.IfUnchanged(unchanged))
	case begin:
		r.Renewal, err = p.store.BeginRenewal(ctx, id, unchanged)
	case finish:
		s, err = p.store.FinishRenewal(ctx, r.Renewal, p.names[op.To], data, ttl)
	case cancel:
		err = p.store.CancelRenewal(ctx, r.Renewal)
	}
	var end *tombstore.InvalidatedError
	switch {
	case err == nil:
		switch op.Verb {
		case read, slide, expiry:
			p.known[op.ID] = s
			return string(s.Data)
		case rotate, rotateWith:
			p.known[op.To] = s
			return string(s.Data)
		case finish:
			p.known[op.To] = s
		case begin:
			p.begun = append(p.begun, renewal{op.ID, op.Data, r.Renewal})
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
