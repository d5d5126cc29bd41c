package integration

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// The barriers. A request with a Race header stops at each of these points, in this order, until
// the test lets it go on; if the header is "random" it waits for a moment instead.
const (
	loaded    = "loaded"    // it has loaded its session
	begun     = "begun"     // it has begun to log in, and looks at the password
	acted     = "acted"     // it has done what it is for, and what it has changed is not saved yet
	writing   = "writing"   // it is about to write a session under a new id, in a command of its own
	answering = "answering" // nothing but its answer is left to do
)

const (
	raceHeader = "Race"
	random     = "random"
	userHeader = "User" // who logs in, if it is not alice
)

// stops is a request that stops, on the side of the server.
type stops struct {
	at    chan string     // where it stands
	goOn  chan struct{}   // when it may
	ended chan struct{}   // when its handler has returned
	over  <-chan struct{} // when its test has ended, which may have failed and lets it go nowhere

	leaves atomic.Bool     // it may go on when its client has left
	left   <-chan struct{} // when that is so
}

var (
	races   sync.Map // Race header to *stops
	lastRun atomic.Int64
)

type raceKey struct{}

// withRace returns a context in which pass knows the request that has this Race header.
func withRace(ctx context.Context, header string) (context.Context, *stops) {
	if header == random {
		return context.WithValue(ctx, raceKey{}, random), nil
	}
	r, ok := races.Load(header)
	if !ok {
		return ctx, nil
	}
	s := r.(*stops)
	s.left = ctx.Done()
	return context.WithValue(ctx, raceKey{}, s), s
}

type userKey struct{}

// withUser returns a context in which name knows the request that has this User header.
func withUser(ctx context.Context, header string) context.Context {
	return context.WithValue(ctx, userKey{}, header)
}

// name returns who logs in with the request of ctx.
func name(ctx context.Context) string {
	if user, _ := ctx.Value(userKey{}).(string); user != "" {
		return user
	}
	return "alice"
}

// pass is called when the request of ctx is at a point.
func pass(ctx context.Context, point string) {
	switch s := ctx.Value(raceKey{}).(type) {
	case string:
		dawdle()
	case *stops:
		select {
		case s.at <- point:
		case <-s.over:
			return
		}
		select {
		case <-s.goOn:
		case <-s.over:
			return
		}
		if s.leaves.Load() {
			<-s.left
		}
	}
}

func dawdle() { time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) }

// raced lets requests of a net/http handler stop.
func raced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		ctx, s := withRace(withUser(q.Context(), q.Header.Get(userHeader)), q.Header.Get(raceHeader))
		if s != nil {
			defer close(s.ended)
		}
		next.ServeHTTP(&racedWriter{ResponseWriter: w, ctx: ctx}, q.WithContext(ctx))
	})
}

// racedWriter stops before the first byte.
type racedWriter struct {
	http.ResponseWriter
	ctx   context.Context
	begun bool
}

func (w *racedWriter) begin() {
	if !w.begun {
		w.begun = true
		pass(w.ctx, answering)
	}
}

func (w *racedWriter) WriteHeader(code int) {
	if code >= 200 {
		w.begin()
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *racedWriter) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *racedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// racedClient lets requests stop before the command that writes a session under a new id. A Rotate
// on one server has none, unless the session has an owner.
type racedClient struct {
	rueidis.Client
	script string // its SHA-1
}

func newRacedClient(t testing.TB, client rueidis.Client) racedClient {
	text, err := os.ReadFile("../scripts/write.lua")
	require.NoError(t, err)
	sum := sha1.Sum(text)
	return racedClient{client, hex.EncodeToString(sum[:])}
}

func (c racedClient) Do(ctx context.Context, command rueidis.Completed) rueidis.RedisResult {
	if words := command.Commands(); words[0] == "EVALSHA" && words[1] == c.script {
		pass(ctx, writing)
	}
	return c.Client.Do(ctx, command)
}

// browser keeps the session cookie in the order in which answers arrive.
type browser struct {
	testing.TB
	site   *site
	cookie string
	user   string // if it is not alice
}

type answer struct {
	status int // 0 if there was none
	body   string
	cookie *http.Cookie // that was set, or nil
}

// send sends a request with this cookie. Nothing is kept until the answer is applied.
func (b *browser) send(action, cookie, race string) answer {
	a, err := b.try(context.Background(), action, cookie, race)
	require.NoError(b, err)
	return a
}

func (b *browser) try(ctx context.Context, action, cookie, race string) (answer, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, b.site.url+"/"+action, nil)
	if err != nil {
		return answer{}, err
	}
	q.Header.Set(raceHeader, race)
	q.Header.Set(userHeader, b.user)
	if cookie != "" {
		q.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	}
	res, err := (&http.Client{Transport: &b.site.transport}).Do(q)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	a := answer{status: res.StatusCode, body: string(body)}
	for _, c := range res.Cookies() {
		if c.Name == cookieName {
			a.cookie = c
		}
	}
	return a, err
}

// apply keeps the cookie of an answer.
func (b *browser) apply(a answer) answer {
	if a.cookie != nil {
		b.cookie = a.cookie.Value
		if a.cookie.MaxAge < 0 {
			b.cookie = ""
		}
	}
	return a
}

func (b *browser) do(action string) answer { return b.apply(b.send(action, b.cookie, "")) }

// request is a request that stops, on the side of the browser.
type request struct {
	browser        *browser
	action, cookie string

	stops   *stops
	leave   context.CancelFunc
	stands  bool // at a point
	done    chan error
	ended   bool
	answer  answer
	failure error
}

// prepare returns a request with this cookie, which begins at its first step.
func (b *browser) prepare(action, cookie string) *request {
	return &request{browser: b, action: action, cookie: cookie}
}

func (r *request) begin() {
	r.stops = &stops{
		at: make(chan string), goOn: make(chan struct{}), ended: make(chan struct{}), over: r.browser.Context().Done(),
	}
	r.done = make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	r.leave = cancel
	race := strconv.FormatInt(lastRun.Add(1), 10)
	races.Store(race, r.stops)
	go func() {
		defer races.Delete(race)
		defer cancel()
		a, err := r.browser.try(ctx, r.action, r.cookie, race)
		if errors.Is(err, context.Canceled) {
			<-r.stops.ended
		}
		r.answer = a
		r.done <- err
	}()
}

// step lets the request go on to its next point, which it returns, or to its end: then it returns
// "".
func (r *request) step() (point string) {
	switch {
	case r.ended:
		return ""
	case r.stops == nil:
		r.begin()
	case r.stands:
		r.stops.goOn <- struct{}{}
	}
	select {
	case point = <-r.stops.at:
	case r.failure = <-r.done:
	}
	r.stands, r.ended = point != "", point == ""
	return point
}

// to lets the request go on to a point, and reports whether it stands there; else it has ended.
func (r *request) to(point string) bool {
	for at := r.step(); at != ""; at = r.step() {
		if at == point {
			return true
		}
	}
	return false
}

// finish lets the request go on to its end, and the browser have the answer.
func (r *request) finish() answer {
	r.to("")
	return r.browser.apply(r.answer)
}

// abandon lets the request go on to its end after its client has left.
func (r *request) abandon() {
	r.stops.leaves.Store(true)
	r.leave()
	r.to("")
}

// hurry lets a request that has not begun wait for a moment at each point.
func (r *request) hurry() {
	dawdle()
	r.answer, r.failure = r.browser.try(context.Background(), r.action, r.cookie, random)
}

// atOnce calls f for each request, all at once.
func atOnce(f func(r *request), requests ...*request) {
	var all sync.WaitGroup
	for _, r := range requests {
		all.Go(func() { f(r) })
	}
	all.Wait()
}

// rounds returns how many races to play in each cell: ROUNDS, or a few, and under -short a quarter
// of them.
func rounds(t testing.TB, few int) int {
	t.Helper()
	text := os.Getenv("ROUNDS")
	if text == "" && testing.Short() {
		return (few + 3) / 4
	}
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}
