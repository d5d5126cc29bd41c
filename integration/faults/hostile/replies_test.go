package hostile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
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

// reply is what a server answers that is none.
type reply struct {
	name, text string
	number     bool // it is an integer, which WAIT may answer
	endless    bool // it is not whole, or says "later": the store asks again until its time is up
	cut        bool // the connection ends after it
	null       bool // for a read, and for a save, it says that there is no session
	ended      bool // for a script it says that the session was ended
}

const record = "\xc1\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00secret" // a live session

const tombstone = "\xc0\x00\x01\x00\x00\x00\x00\x00\x01" // its field t

func blob(text string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(text), text) }

var replies = []reply{
	{name: "integer", text: ":1\r\n", number: true},
	{name: "integer of 20 digits", text: ":99999999999999999999\r\n", number: true},
	{name: "integer without digits", text: ":\r\n", endless: true},
	{name: "integer with letters", text: ":1x\r\n", endless: true},
	{name: "double", text: ",1.5\r\n"},
	{name: "double inf", text: ",inf\r\n"},
	{name: "double nan", text: ",nan\r\n"},
	{name: "double that is a code", text: ",D\r\n"},
	{name: "true", text: "#t\r\n"},
	{name: "boolean that is none", text: "#x\r\n"},
	{name: "big number", text: "(3492890328409238509324850943850943825024385\r\n"},
	{name: "big number that is a code", text: "(D\r\n"},
	{name: "big number that is a record", text: "(" + record + "\r\n"},
	{name: "verbatim string", text: fmt.Sprintf("=%d\r\ntxt:%s\r\n", len(record)+4, record)},
	{name: "verbatim string that is a record", text: fmt.Sprintf("=%d\r\n%s\r\n", len(record), record)},
	{name: "verbatim string that is a code", text: "=1\r\nD\r\n"},
	{name: "blob error", text: "!21\r\nSYNTAX invalid syntax\r\n"},
	{name: "blob error that is a record", text: fmt.Sprintf("!%d\r\n%s\r\n", len(record), record)},
	{name: "blob error that is empty", text: "!0\r\n\r\n"},
	{name: "error", text: "-ERR an-id and its data\r\n"},
	{name: "error that is empty", text: "-\r\n"},
	{name: "error NOSCRIPT for ever", text: "-NOSCRIPT no\r\n"},
	{name: "error MOVED to nowhere", text: "-MOVED 1 \r\n"},
	{name: "error LOADING for ever", text: "-LOADING soon\r\n", endless: true},
	{name: "error WRONGTYPE to everything", text: "-WRONGTYPE an-id and its data\r\n"},
	{name: "error OOM", text: "-OOM an-id and its data\r\n"},
	{name: "array of one null", text: "*1\r\n_\r\n"},
	{name: "array of numbers", text: "*3\r\n:1\r\n:2\r\n:3\r\n"},
	{name: "array of a tombstone cut off", text: "*3\r\n" + blob("\xc0\x00\x01") + "_\r\n_\r\n"},
	{name: "array, empty", text: "*0\r\n"},
	{name: "array of nulls", text: "*2\r\n_\r\n_\r\n"},
	{name: "array, RESP2 null", text: "*-1\r\n", null: true},
	{name: "array of records and codes", text: "*3\r\n" + blob(record) + blob("D") + ":5\r\n"},
	{name: "array of a record and a string", text: "*2\r\n" + blob(record) + blob("5")},
	{name: "array of a record and a double", text: "*2\r\n" + blob(record) + ",5\r\n"},
	{name: "array in arrays, 10,000 deep", text: strings.Repeat("*1\r\n", 10000) + ":1\r\n"},
	{name: "array without end", text: "*?\r\n:1\r\n", endless: true, cut: true},
	{name: "array of any length", text: "*?\r\n:1\r\n.\r\n"},
	{name: "array, cut", text: "*2\r\n" + blob(record), endless: true, cut: true},
	{name: "array, half of it", text: "*2\r\n" + blob(record), endless: true},
	{name: "set", text: "~2\r\n:1\r\n:2\r\n"},
	{name: "map", text: "%1\r\n" + blob(record) + ":5\r\n"},
	{name: "map, half of it", text: "%1\r\n" + blob(record), endless: true},
	{name: "map of any length", text: "%?\r\n:1\r\n.\r\n"},
	{name: "end of nothing", text: ".\r\n"},
	{name: "null", text: "_\r\n", null: true},
	{name: "null with a text", text: "_no\r\n", null: true, endless: true},
	{name: "string, RESP2 null", text: "$-1\r\n", null: true},
	{name: "string of foreign bytes", text: blob("not a record")},
	{name: "string, a record that must be understood", text: blob("\xc1\x80" + record[2:])},
	{name: "string, a record cut off", text: blob(record[:21])},
	{name: "string, a tombstone cut off", text: blob("\xc0\x01\x00\x00\x00\x00\x00")},
	{name: "string, a tombstone too long", text: blob("\xc0\x01\x00\x00\x00\x00\x00\x00\x00")},
	{name: "string, a code of no script", text: blob("Z")},
	{name: "string, ended without a tombstone", text: blob("E")},
	{name: "string, ended with a record", text: blob("E" + record)},
	{name: "string, ended, cut off", text: blob("E\xc0\x00\x01")},
	{name: "string, ended, and what must be understood", text: blob("E\xc0\x80\x01\x00\x00\x00\x00\x00\x01")},
	{name: "string, ended, moved to what is no ref", text: blob("E" + tombstone + "not a ref"), ended: true},
	{name: "string, ended, moved without end", text: blob("E" + tombstone + tombstore.Ref("another")), ended: true},
	{name: "string, too short for its length", text: "$100\r\n" + record + "\r\n", endless: true, cut: true},
	{name: "string, too short, and nothing follows", text: "$100\r\n" + record + "\r\n", endless: true},
	{name: "string, too long for its length", text: "$5\r\n" + record + "\r\n", cut: true},
	{name: "string without a length", text: "$\r\n", endless: true},
	{name: "string with a length in letters", text: "$x\r\n", endless: true},
	{name: "string in parts, foreign", text: "$?\r\n;4\r\nHell\r\n;5\r\no wor\r\n;0\r\n"},
	{name: "string in parts, cut", text: "$?\r\n;4\r\nHell\r\n", endless: true, cut: true},
	{name: "line without an end", text: "+" + strings.Repeat("x", 1<<16), endless: true},
	{name: "line feed alone", text: "\n", endless: true},
	{name: "bytes", text: "\x00\xff\xfe\r\n", endless: true},
	{name: "HTTP", text: "HTTP/1.1 400 Bad Request\r\n\r\n", endless: true},
	{name: "nothing", text: "", endless: true, cut: true},
	{name: "nothing, and the connection stays", text: "", endless: true},
	{name: "attribute, then an integer", text: "|1\r\n+ttl\r\n:3600\r\n:1\r\n", number: true},
	{name: "attribute, then foreign bytes", text: "|1\r\n+ttl\r\n:3600\r\n" + blob("not a record")},
	{name: "attribute and nothing", text: "|1\r\n+ttl\r\n:3600\r\n", endless: true},
	{name: "1,000 attributes", text: strings.Repeat("|1\r\n+a\r\n:1\r\n", 1000) + ":1\r\n", number: true},
	{name: "push, empty", text: ">0\r\n:1\r\n", number: true},
	{name: "push of no kind", text: ">2\r\n:1\r\n:2\r\n:1\r\n", number: true},
	{name: "push: invalidate nothing", text: ">1\r\n+invalidate\r\n:1\r\n", number: true},
	{name: "push: invalidate a number", text: ">2\r\n+invalidate\r\n:7\r\n:1\r\n", number: true},
	{name: "push: invalidate a string", text: ">2\r\n+invalidate\r\n+x\r\n:1\r\n", number: true},
	{name: "push: invalidate all", text: ">2\r\n+invalidate\r\n_\r\n:1\r\n", number: true},
	{name: "push: invalidate numbers and nulls", text: ">2\r\n+invalidate\r\n*3\r\n:1\r\n_\r\n*0\r\n:1\r\n", number: true},
	{name: "push: invalidate a map", text: ">2\r\n+invalidate\r\n%1\r\n+a\r\n+b\r\n:1\r\n", number: true},
	{name: "push: message", text: ">3\r\n+message\r\n_\r\n:1\r\n:1\r\n", number: true},
	{name: "push: unsubscribe", text: ">3\r\n+unsubscribe\r\n+x\r\n:0\r\n:1\r\n", number: true},
	{name: "push, RESP2 null", text: ">-1\r\n", null: true},
	{name: "1,000 pushes", text: strings.Repeat(">2\r\n+invalidate\r\n*1\r\n+x\r\n", 1000) + ":1\r\n", number: true},
	{name: "push and nothing", text: ">2\r\n+invalidate\r\n*1\r\n+x\r\n", endless: true},
}

// deadly are replies at which rueidis 1.0.79 panics or runs out of memory: it trusts every length,
// and that a reply follows a command. Where a goroutine of rueidis reads, as with WithClientCache
// and under load, that ends the process; otherwise the caller panics, and the connection never
// answers again. Each reply has a process of its own. Left out is a string of some GiB that never
// come: rueidis allocates it at once, and again for each attempt.
var deadly = []reply{
	{name: "string of length -2", text: "$-2\r\n"},
	{name: "string of 2^63-1 bytes", text: "$9223372036854775807\r\nx", cut: true},
	{name: "string in parts, one of length -5", text: "$?\r\n;-5\r\n", cut: true},
	{name: "string in parts, one of 2^63-1 bytes", text: "$?\r\n;9223372036854775807\r\n", cut: true},
	{name: "array of length -2", text: "*-2\r\n"},
	{name: "array of length 2^31", text: "*2147483648\r\n", cut: true},
	{name: "array of length 2^63-1", text: "*9223372036854775807\r\n", cut: true},
	{name: "set of length -2", text: "~-2\r\n"},
	{name: "map of length -1", text: "%-1\r\n"},
	{name: "map of length 2^62", text: "%4611686018427387904\r\n"},
	{name: "attribute of length -1", text: "|-1\r\n"},
	{name: "push of length -2", text: ">-2\r\n"},
	{name: "push: subscribe", text: ">3\r\n+subscribe\r\n+x\r\n:1\r\n:1\r\n"},
	{name: "two replies", text: ":1\r\n:2\r\n"},
}

// mode is a way in which a store talks to its server.
type mode string

const (
	usual     mode = "usual"     // as Open sets it
	pipelined mode = "pipelined" // a goroutine of the client reads
	cached    mode = "cached"    // WithClientCache
	queued    mode = "queued"    // WithClientCache: EXEC gets the reply, and not the command before it
	acks      mode = "acks"      // WithReplicaAcks: WAIT gets the reply, scripts get what they want to hear
	hello     mode = "hello"     // HELLO gets the reply too
)

var modes = []mode{usual, pipelined, cached, queued, acks, hello}

// peer is a server that answers with one reply from the moment it is turned.
type peer struct {
	net.Listener
	mode   mode
	reply  reply
	turned atomic.Bool
	reads  atomic.Int64 // cached ones
	canary atomic.Value // string: its tombstone
}

func newPeer(t testing.TB, m mode, r reply) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &peer{Listener: l, mode: m, reply: r}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	return p
}

func (p *peer) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	var waiting []string // the last command of a MULTI
	for {
		command, err := redistest.ReadCommand(r)
		if err != nil {
			return
		}
		text, turned := "+QUEUED\r\n", false
		switch name := command[0]; {
		case name == "MULTI":
			text, waiting = "+OK\r\n", command
		case name == "EXEC":
			text, turned = p.exec(waiting)
			waiting = nil
		case waiting != nil:
			waiting = command
		default:
			text, turned = p.answer(command)
		}
		if _, err := io.WriteString(conn, text); err != nil || turned && p.reply.cut {
			return
		}
	}
}

// exec answers EXEC after a command whose answer is to be cached.
func (p *peer) exec(command []string) (text string, turned bool) {
	if strings.Contains(command[1], ":canary-") {
		return "*2\r\n:9000\r\n*1\r\n" + blob(p.canary.Load().(string)), false
	}
	p.reads.Add(1)
	switch {
	case !p.turned.Load():
		return "*2\r\n:-2\r\n$0\r\n\r\n", false
	case p.mode == queued:
		return p.reply.text, true
	}
	return "*2\r\n:9000\r\n" + p.reply.text, true
}

// answer returns what to send, and whether that is the reply of the test.
func (p *peer) answer(command []string) (text string, turned bool) {
	name := command[0]
	if len(command) > 1 && strings.Contains(command[1], ":canary-") {
		switch name {
		case "HSET":
			p.canary.Store(command[3])
			return ":1\r\n>2\r\n+invalidate\r\n*1\r\n" + blob(command[1]), false
		case "RESTORE":
			p.canary.Store(command[3][5:14])
			return "+OK\r\n", false
		case "SET":
			return "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n", false
		case "HGET":
			return blob(p.canary.Load().(string)), false
		}
		return ":1\r\n", false
	}
	switch {
	case name == "HELLO" && p.mode != hello:
		return "%2\r\n+proto\r\n:3\r\n+version\r\n+8.0.0\r\n", false
	case name == "CLUSTER" && p.mode != hello:
		return "-ERR This instance has cluster support disabled\r\n", false
	case name == "CLIENT" || name == "PING" || name == "DEL":
		return "+OK\r\n", false
	case p.mode == acks && strings.HasPrefix(name, "EVAL"):
		return blob("D"), false
	}
	if !p.turned.Load() {
		return "_\r\n", false
	}
	return p.reply.text, true
}

// open returns a store on p, and what closes it.
func (p *peer) open(timeout time.Duration) (s *tombstore.RedisStore, end func(), err error) {
	opts := []tombstore.Option{tombstore.WithTimeout(timeout)}
	switch p.mode {
	case pipelined:
		client, err := rueidis.NewClient(rueidis.ClientOption{
			InitAddress: []string{p.Addr().String()}, AlwaysPipelining: true, DisableCache: true, DisableRetry: true,
		})
		if err != nil {
			return nil, nil, err
		}
		s, err := tombstore.New(client, opts...)
		return s, client.Close, err
	case cached, queued:
		opts = append(opts, tombstore.WithClientCache(time.Hour))
	case acks:
		opts = append(opts, tombstore.WithReplicaAcks(1, 20*time.Millisecond))
	}
	s, err = tombstore.Open("redis://"+p.Addr().String(), opts...)
	if err != nil {
		return nil, nil, err
	}
	return s, s.Close, nil
}

// caches reports whether s asks in the way whose answers are cached.
func (p *peer) caches(t testing.TB, s *tombstore.RedisStore) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := s.Read(ctx, "another")
	return errors.Is(err, tombstore.ErrNotFound) && p.reads.Load() > 0
}

// someSession returns a session as a store gives it out.
func someSession(t testing.TB) tombstore.Session {
	t.Helper()
	s, err := tombstore.NewMemory()
	require.NoError(t, err)
	held, err := s.Write(t.Context(), "an-id", nil, time.Hour)
	require.NoError(t, err)
	return held
}

// deadlyIn reports whether rueidis 1.0.79 panics at a reply that it survives in other places: at a
// push inside of another reply, and at what EXEC answers if it is an array that is too short.
func deadlyIn(m mode, r reply) bool {
	return m == cached && r.text != "" && r.text[0] == '>' || m == queued && r.text != "" && strings.Contains("*~%", r.text[:1])
}

// waits reports whether the store asks again until its time is up: for whatever is no number of
// replicas, and for a cluster without nodes, too.
func waits(m mode, r reply) bool { return r.endless || m == acks || m == hello }

// check asks a server that answers r everything that a store can ask. It returns how many answers
// it has checked, and what was wrong.
func check(t testing.TB, m mode, r reply) (checked int64, wrong []string) {
	t.Helper()
	timeout := 20 * time.Second
	if waits(m, r) {
		timeout = 200 * time.Millisecond
	}
	p := newPeer(t, m, r)
	defer p.Close()
	p.turned.Store(m == hello)
	s, end, err := p.open(timeout)
	if m == hello && err != nil {
		return 1, judge(r, "open", err)
	}
	for until := time.Now().Add(time.Minute); err != nil || (m == cached || m == queued) && !p.caches(t, s); s, end, err = p.open(timeout) {
		require.True(t, time.Now().Before(until), "%v", err) // a busy machine may be too slow at first
		if err == nil {
			end()
		}
	}
	defer end()
	const id = "an-id"
	ctx := context.Background()
	held := someSession(t)
	if m != hello { // so that it saves by SET
		patient, cancel := context.WithTimeout(ctx, time.Minute)
		_, err := s.Write(patient, id, nil, time.Hour, tombstore.Replacing(held))
		cancel()
		require.ErrorIs(t, err, tombstore.ErrNotFound)
	}
	p.turned.Store(true)
	type verb struct {
		name string
		ask  func() error
	}
	verbs := []verb{
		{"read", func() error { _, err := s.Read(ctx, id); return err }}, // the first, while the connection that caches is good
		{"read fresh", func() error { _, err := s.Read(ctx, id, tombstore.Fresh()); return err }},
		{"read slide", func() error { _, err := s.Read(ctx, id, tombstore.Slide(time.Hour)); return err }},
		{"read expiry", func() error { _, err := s.Read(ctx, id, tombstore.WithExpiry()); return err }},
		{"exists", func() error {
			live, err := s.Exists(ctx, id)
			if err == nil && !live {
				return tombstore.ErrNotFound
			}
			return err
		}},
		{"write", func() error { _, err := s.Write(ctx, id, nil, time.Hour); return err }},
		{"write IfPresent", func() error { _, err := s.Write(ctx, id, nil, time.Hour, tombstore.IfPresent()); return err }},
		{"write Replacing", func() error { _, err := s.Write(ctx, id, nil, time.Hour, tombstore.Replacing(held)); return err }},
		{"begin renewal", func() error { _, err := s.BeginRenewal(ctx, id, 0); return err }},
		{"finish renewal", func() error {
			_, err := s.FinishRenewal(ctx, tombstore.Renewal{Ref: tombstore.Ref(id), Claim: 1}, "another", nil, time.Hour)
			return err
		}},
		{"cancel renewal", func() error { return s.CancelRenewal(ctx, tombstore.Renewal{Ref: tombstore.Ref(id), Claim: 1}) }},
		{"touch", func() error { return s.Touch(ctx, id, time.Hour) }},
		{"rotate", func() error { _, err := s.Rotate(ctx, id, "another"); return err }},
		{"invalidate IfLive", func() error { return s.Invalidate(ctx, id, tombstore.IfLive()) }},
		{"list", func() error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			for _, err := range s.List(ctx) {
				return err
			}
			return nil
		}},
		{"invalidate", func() error { return s.Invalidate(ctx, id) }},
		{"invalidate ref", func() error { return s.InvalidateRef(ctx, tombstore.Ref(id)) }},
	}
	if m == acks {
		verbs = verbs[len(verbs)-2:]
	}
	for _, v := range verbs {
		checked++
		if err := v.ask(); !(m == acks && r.number && err == nil) {
			wrong = append(wrong, judge(r, v.name, err)...)
		}
	}
	return checked, wrong
}

// judge returns what is wrong with the result of a verb.
func judge(r reply, verb string, err error) (wrong []string) {
	complain := func(text string) { wrong = append(wrong, fmt.Sprintf("%s, %s: %s: %v", r.name, verb, text, err)) }
	reads := strings.HasPrefix(verb, "read") || verb == "exists"
	switch {
	case err == nil:
		complain("succeeds")
	case errors.Is(err, tombstore.ErrNotFound) && !(r.null && (reads || verb == "write Replacing")):
		complain("no session")
	case errors.Is(err, tombstore.ErrInvalidated) && !(r.ended && !reads):
		complain("ended")
	case errors.Is(err, tombstore.ErrConflict) && !(r.number && verb == "finish renewal"): // EXISTS answers by a number
		complain("conflict")
	case strings.Contains(err.Error(), "an-id"):
		complain("shows the id")
	case strings.Contains(err.Error(), "secret"):
		complain("shows the data")
	}
	return wrong
}

// TestReplies lets a server answer every verb with what no server answers.
func TestReplies(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var all []string
	row := faults.Row{Kind: faults.Promised, Fault: "hostile: replies that no server sends"}
	var running sync.WaitGroup
	busy, waiting := make(chan struct{}, 2), make(chan struct{}, 30)
	modesEach := 2
	if faults.Duration(t, 0) > 0 {
		modesEach = len(modes)
	} else if testing.Short() {
		modesEach = 1
	}
	for j, m := range modes {
		for i, r := range replies {
			if (i+j)%len(modes) >= modesEach || deadlyIn(m, r) {
				continue
			}
			if testing.Short() && rand.IntN(2) == 0 { // half of them, which are drawn
				continue
			}
			limit := busy
			if waits(m, r) {
				limit = waiting
			}
			running.Go(func() {
				limit <- struct{}{}
				defer func() { <-limit }()
				checked, wrong := check(t, m, r)
				mu.Lock()
				defer mu.Unlock()
				row.Injected++
				row.Checked += checked
				row.Violations += int64(len(wrong))
				for _, text := range wrong {
					all = append(all, string(m)+": "+text)
				}
			})
		}
	}
	running.Wait()
	require.Empty(t, all)
	faults.Report(t, row)
}

const child = "HOSTILE_REPLY" // mode and name of the one reply that a process of its own is for

func TestDeadlyReply(t *testing.T) {
	want := os.Getenv(child)
	if want == "" {
		t.Skip("for TestDeadlyReplies")
	}
	for _, m := range modes {
		for _, r := range deadly {
			if string(m)+": "+r.name == want {
				p := newPeer(t, m, r)
				s, _, err := p.open(20 * time.Second) // it cannot be closed after a panic
				require.NoError(t, err)
				p.turned.Store(true)
				_, err = s.Read(t.Context(), "an-id")
				require.Empty(t, judge(r, "read", err))
				return
			}
		}
	}
	t.Fatal("no such reply")
}

// TestDeadlyReplies counts the replies at which the client library ends the process. A process that
// survives has found nothing wrong.
func TestDeadlyReplies(t *testing.T) {
	t.Parallel()
	row := faults.Row{Kind: faults.Unpromised, Fault: "hostile: replies at which rueidis ends the process"}
	long := faults.Duration(t, 0) > 0
	for _, m := range []mode{pipelined, usual} {
		for i, r := range deadly {
			if !long && (m == usual || i%4 > 0) {
				continue
			}
			var out bytes.Buffer
			cmd := exec.Command(os.Args[0], "-test.run=^TestDeadlyReply$", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), child+"="+string(m)+": "+r.name)
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			row.Injected++
			row.Checked++
			if err == nil {
				t.Logf("%s: %s: survived", m, r.name)
				continue
			}
			text := out.String()
			cause, _, _ := strings.Cut(text[max(0, strings.Index(text, "panic:"), strings.Index(text, "fatal error:")):], "\n")
			t.Logf("%s: %s: %s", m, r.name, cause)
			require.Contains(t, text, "rueidis@", "it is not rueidis that ends the process")
			require.Regexp(t, `(?m)^(panic|fatal error): `, text)
			row.Violations++
		}
	}
	faults.Report(t, row)
}
