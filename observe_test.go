package tombstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// recorder notes what it is told, and that each operation ends as it has begun.
type recorder struct {
	t testing.TB

	mu     sync.Mutex
	events []Event
	hits   int
	begun  int
}

type recorded struct{ verb string }

type recordedKey struct{}

func (r *recorder) Start(ctx context.Context, verb string, begun time.Time) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun++
	if time.Since(begun) > time.Minute || begun.After(time.Now()) {
		r.t.Errorf("%s has begun %v ago", verb, time.Since(begun))
	}
	return context.WithValue(ctx, recordedKey{}, &recorded{verb})
}

func (r *recorder) End(ctx context.Context, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if begun, _ := ctx.Value(recordedKey{}).(*recorded); begun == nil || begun.verb != e.Verb {
		r.t.Errorf("%s ends in the context of %v", e.Verb, begun)
	}
	if e.Duration <= 0 || e.Duration > time.Minute {
		r.t.Errorf("%s took %v", e.Verb, e.Duration)
	}
	if (e.Err == nil) != (e.Outcome == OutcomeOK) {
		r.t.Errorf("%s: %v with the error %v", e.Verb, e.Outcome, e.Err)
	}
	r.events = append(r.events, e)
}

func (r *recorder) CacheHit(context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hits++
}

// take returns the events since the last time.
func (r *recorder) take() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

// last returns the one event since the last time, and its line.
func (r *recorder) last() (Event, string) {
	r.t.Helper()
	events := r.take()
	require.Len(r.t, events, 1)
	e := events[0]
	return e, line(e.Verb, e.Outcome, e.Reason, e.Ref)
}

func line(verb string, outcome Outcome, reason Reason, ref string) string {
	return fmt.Sprintf("%s: %v, %d, %s", verb, outcome, reason, ref)
}

type wholeStore interface {
	Renewer
	Lister
	Binder
	Watcher
}

// observedRun calls every method, and has every outcome that needs no fault. It returns the ids and
// owners that it has used.
func observedRun(t *testing.T, s wholeStore, r *recorder) (names []string) {
	t.Helper()
	ctx := t.Context()
	name := func() string {
		names = append(names, NewID())
		return names[len(names)-1]
	}
	saw := func(verb string, outcome Outcome, reason Reason, ref string) {
		t.Helper()
		_, got := r.last()
		require.Equal(t, line(verb, outcome, reason, ref), got)
	}
	id, next, third, absent := name(), name(), name(), name()

	read := func(id string, opts ...ReadOption) Session {
		session, _ := s.Read(ctx, id, opts...)
		return session
	}
	write := func(id string, opts ...WriteOption) Session {
		session, _ := s.Write(ctx, id, []byte("secret data"), time.Hour, opts...)
		return session
	}
	first := write(id, IfAbsent())
	saw("write", OutcomeOK, 0, Ref(id))
	write(id, IfAbsent())
	saw("write", OutcomeConflict, 0, Ref(id))
	write(id, Replacing(first))
	saw("write", OutcomeOK, 0, Ref(id))
	write(absent, IfPresent())
	saw("write", OutcomeNotFound, 0, Ref(absent))
	_, _ = s.Write(ctx, id, nil, 0)
	saw("write", OutcomeInvalid, 0, Ref(id))
	read(id)
	saw("read", OutcomeOK, 0, Ref(id))
	read(id, Slide(time.Hour))
	saw("read", OutcomeOK, 0, Ref(id))
	read(id, Slide(0))
	saw("read", OutcomeInvalid, 0, Ref(id))
	read("")
	saw("read", OutcomeInvalid, 0, "")
	read(absent)
	saw("read", OutcomeNotFound, 0, Ref(absent))
	_, _ = s.Exists(ctx, id)
	saw("exists", OutcomeOK, 0, Ref(id))
	_ = s.Touch(ctx, id, time.Hour)
	saw("touch", OutcomeOK, 0, Ref(id))
	_, _ = s.Rotate(ctx, id, next)
	saw("rotate", OutcomeOK, 0, Ref(id))
	_, _ = s.Rotate(ctx, absent, name())
	saw("rotate", OutcomeNotFound, 0, Ref(absent))

	// What a tombstone refuses.
	_, _ = s.Rotate(ctx, id, name())
	saw("rotate", OutcomeRefused, Rotated, Ref(id))
	write(id)
	saw("write", OutcomeRefused, Rotated, Ref(id))
	renewal, _ := s.BeginRenewal(ctx, next, 0)
	saw("begin renewal", OutcomeOK, 0, Ref(next))
	_, _ = s.BeginRenewal(ctx, next, 0)
	saw("begin renewal", OutcomeRefused, Rotated, Ref(next))
	_, _ = s.FinishRenewal(ctx, renewal, third, nil, time.Hour)
	saw("finish renewal", OutcomeOK, 0, Ref(next))
	_ = s.CancelRenewal(ctx, renewal)
	saw("cancel renewal", OutcomeOK, 0, Ref(next))
	renewal, _ = s.BeginRenewal(ctx, third, 0)
	saw("begin renewal", OutcomeOK, 0, Ref(third))
	_ = s.Invalidate(ctx, id, WithReason(Revoked))
	saw("invalidate", OutcomeOK, 0, Ref(id))
	_, _ = s.FinishRenewal(ctx, renewal, name(), nil, time.Hour)
	saw("finish renewal", OutcomeRefused, Revoked, Ref(third))
	write(third, Replacing(first))
	saw("write", OutcomeRefused, Revoked, Ref(third))
	_ = s.Touch(ctx, third, time.Hour)
	saw("touch", OutcomeRefused, Revoked, Ref(third))
	read(third)
	saw("read", OutcomeEnded, Revoked, Ref(third))
	_ = s.Invalidate(ctx, third, IfLive())
	saw("invalidate", OutcomeEnded, Revoked, Ref(third))
	_ = s.InvalidateRef(ctx, Ref(absent), IfLive())
	saw("invalidate", OutcomeNotFound, 0, Ref(absent))
	_ = s.InvalidateRef(ctx, absent) // by mistake
	saw("invalidate", OutcomeInvalid, 0, "")
	_, _ = s.Watch(ctx, third)
	saw("watch", OutcomeEnded, Revoked, Ref(third))

	// Owners.
	owner, a, b := name(), name(), name()
	login, _ := s.BeginLogin(ctx, owner)
	saw("begin login", OutcomeOK, 0, Ref(owner))
	binding, _ := s.Reserve(ctx, a, login, until())
	saw("reserve", OutcomeOK, 0, Ref(a))
	write(a, Bound(binding))
	saw("write", OutcomeOK, 0, Ref(a))
	_, _ = s.Reserve(ctx, b, login, until())
	saw("reserve", OutcomeTooManySessions, 0, Ref(b))
	_, _ = s.Reserve(ctx, b, login, Until(time.Unix(1, 0)))
	saw("reserve", OutcomeInvalid, 0, Ref(b))
	_, _ = s.Sessions(ctx, owner)
	saw("sessions", OutcomeOK, 0, Ref(owner))
	_ = s.InvalidateOwned(ctx, owner, Ref(absent))
	saw("invalidate owned", OutcomeNotFound, 0, Ref(absent))
	_ = s.Release(ctx, binding)
	saw("release", OutcomeOK, 0, Ref(a))
	write(b)
	saw("write", OutcomeOK, 0, Ref(b))
	_, _ = s.Adopt(ctx, b, login, until())
	saw("adopt", OutcomeOK, 0, Ref(b))
	_, _ = s.Adopt(ctx, third, login, until())
	saw("adopt", OutcomeRefused, Revoked, Ref(third))

	watched, err := s.Watch(ctx, b)
	require.NoError(t, err)
	require.Nil(t, watched.Value(recordedKey{}), "what goes on is no part of the operation")
	saw("watch", OutcomeOK, 0, Ref(b))
	watched, err = s.WatchOwner(ctx, owner)
	require.NoError(t, err)
	require.Nil(t, watched.Value(recordedKey{}))
	saw("watch owner", OutcomeOK, 0, Ref(owner))

	for range s.List(ctx) {
		require.Empty(t, r.take(), "it ends with its iteration")
	}
	saw("list", OutcomeOK, 0, "")
	for range s.List(ctx) {
		break
	}
	saw("list", OutcomeOK, 0, "")
	_, _ = s.InvalidateOwner(ctx, owner, Thorough())
	saw("invalidate owner", OutcomeOK, 0, Ref(owner))
	_, _ = s.Reserve(ctx, name(), login, until())
	saw("reserve", OutcomeStaleLogin, 0, Ref(names[len(names)-1]))

	over, cancel := context.WithCancel(ctx)
	cancel()
	_, _ = s.Read(over, id, Fresh())
	saw("read", OutcomeCanceled, 0, Ref(id))
	return names
}

// Every store has the same outcomes.
func TestObserver(t *testing.T) {
	t.Parallel()
	cluster := redistest.ClusterURL(t)
	for name, open := range map[string]func(t *testing.T, opts ...Option) wholeStore{
		"server": func(t *testing.T, opts ...Option) wholeStore { return newBed(t, opts...).RedisStore },
		"cluster": func(t *testing.T, opts ...Option) wholeStore {
			return bedOn(t, redistest.Dial(t, cluster), opts...).RedisStore
		},
		"memory": func(t *testing.T, opts ...Option) wholeStore {
			s, err := NewMemory(opts...)
			require.NoError(t, err)
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{t: t}
			s := open(t, WithMaxSessions(1, Refuse), WithObserver(r))
			for _, id := range observedRun(t, s, r) {
				require.NotContains(t, fmt.Sprintf("%+v", r.events), id)
			}
			require.Zero(t, r.hits)
		})
	}
}

// No method is forgotten.
func TestObserver_EveryMethod(t *testing.T) {
	t.Parallel()
	m := newSeen(t)
	r := m.observer.(*recorder)
	seen := map[string]bool{}
	r.t = t
	all := reflect.TypeFor[wholeStore]()
	for i := range all.NumMethod() {
		method := all.Method(i)
		var args []reflect.Value
		for n := range method.Type.NumIn() {
			switch in := method.Type.In(n); {
			case in == reflect.TypeFor[context.Context]():
				args = append(args, reflect.ValueOf(t.Context()))
			case method.Type.IsVariadic() && n == method.Type.NumIn()-1:
			default:
				args = append(args, reflect.Zero(in))
			}
		}
		results := reflect.ValueOf(m).MethodByName(method.Name).Call(args)
		if method.Name == "List" {
			for range results[0].Seq2() {
			}
		}
		e, _ := r.last()
		seen[e.Verb] = true
		words := strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(method.Name, "$1 $2"))
		require.Equal(t, strings.Replace(words, "invalidate ref", "invalidate", 1), e.Verb)
		if e.Err != nil {
			require.ErrorContains(t, e.Err, "tombstore: "+e.Verb+": ")
		}
	}
	require.Len(t, seen, all.NumMethod()-1)
}

func newSeen(t *testing.T) *MemoryStore {
	t.Helper()
	m, err := NewMemory(WithObserver(&recorder{t: t}))
	require.NoError(t, err)
	return m
}

// With WithPlainIDs refs and keys are ids. No event has one.
func TestObserver_PlainIDs(t *testing.T) {
	t.Parallel()
	r := &recorder{t: t}
	b := newBed(t, WithPlainIDs(), WithObserver(r))
	memory, err := NewMemory(WithPlainIDs(), WithObserver(r))
	require.NoError(t, err)
	for _, s := range []wholeStore{b.RedisStore, memory} {
		id := NewID()
		_, _ = s.Write(t.Context(), id, nil, time.Hour)
		_, _ = s.Read(t.Context(), id)
		renewal, err := s.BeginRenewal(t.Context(), id, 0)
		require.NoError(t, err)
		_ = s.CancelRenewal(t.Context(), renewal)
		_ = s.InvalidateRef(t.Context(), id)
		_ = s.InvalidateOwned(t.Context(), "owner", id)
		events := r.take()
		require.Len(t, events, 6)
		for _, e := range events {
			require.Equal(t, Ref(id), e.Ref)
			require.NotContains(t, fmt.Sprintf("%+v", e), id)
		}
	}
}

// carrying is a client that looks at the context of what is sent.
type carrying struct {
	rueidis.Client
	mu   sync.Mutex
	sent map[string]int // by verb; "" for none
}

func (c *carrying) note(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	verb := ""
	if op, _ := ctx.Value(recordedKey{}).(*recorded); op != nil {
		verb = op.verb
	}
	c.sent[verb]++
}

func (c *carrying) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	c.note(ctx)
	return c.Client.Do(ctx, cmd)
}

func (c *carrying) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	c.note(ctx)
	return c.Client.DoMulti(ctx, multi...)
}

// What is sent has the context that Start has returned, so that spans of a client are its children.
func TestObserver_Context(t *testing.T) {
	t.Parallel()
	r := &recorder{t: t}
	client := &carrying{Client: redistest.Client(t), sent: map[string]int{}}
	b := bedOn(t, client, WithObserver(r), WithMaxSessions(1, Refuse))
	b.watches.hear = nil // looks of a watch belong to no operation
	observedRun(t, b.RedisStore, r)
	client.mu.Lock()
	defer client.mu.Unlock()
	require.Zero(t, client.sent[""])
	require.Len(t, client.sent, reflect.TypeFor[wholeStore]().NumMethod()-1, "%v", client.sent)
}

// What memory has answered is counted and not timed. What it has not is timed from its beginning.
func TestObserver_Cached(t *testing.T) {
	t.Parallel()
	r := &recorder{t: t}
	b := bedOn(t, redistest.Dial(t, redistest.URL(t), redistest.WithCache), WithClientCache(time.Hour), WithObserver(r))
	report, err := b.Check(t.Context())
	require.NoError(t, err)
	require.True(t, report.Cached)
	require.Empty(t, r.take(), "Check is no operation")

	id, gone := NewID(), NewID()
	b.write(id, "x", time.Hour)
	require.NoError(t, b.Invalidate(t.Context(), gone))
	r.take()
	for _, c := range []struct {
		id   string
		want string
		err  error
	}{
		{id, line("read", OutcomeOK, 0, Ref(id)), nil},
		{gone, line("read", OutcomeEnded, Logout, Ref(gone)), ErrInvalidated},
	} {
		before := r.begun
		_, err := b.Read(t.Context(), c.id)
		require.ErrorIs(t, err, c.err)
		e, got := r.last()
		require.Equal(t, c.want, got)
		require.Equal(t, 1, e.Attempts)
		require.Equal(t, before+1, r.begun)
		hits := r.hits
		for range 3 {
			_, err := b.Read(t.Context(), c.id, WithExpiry())
			require.ErrorIs(t, err, c.err)
		}
		require.Equal(t, hits+3, r.hits)
		require.Equal(t, before+1, r.begun, "nothing was begun")
		require.Empty(t, r.take())
	}
	_, err = b.Read(t.Context(), id, Slide(time.Minute)) // memory knows the session, but must ask
	require.NoError(t, err)
	_, got := r.last()
	require.Equal(t, line("read", OutcomeOK, 0, Ref(id)), got)

	plain := bedOn(t, redistest.Dial(t, redistest.URL(t), resp2Client), WithClientCache(time.Hour), WithObserver(r))
	_, err = plain.Read(t.Context(), id)
	require.ErrorIs(t, err, ErrNotFound)
	_, got = r.last()
	require.Equal(t, line("read", OutcomeNotFound, 0, Ref(id)), got)
}

func resp2Client(o *rueidis.ClientOption) { o.AlwaysRESP2 = true }

// Outcomes and attempts that take a fault.
func TestObserver_Faults(t *testing.T) {
	t.Parallel()
	r := &recorder{t: t}
	client := newTap(redistest.Client(t))
	b := bedOn(t, client, WithObserver(r))
	loadScripts(t, b)
	id := NewID()
	requireEvent := func(verb string, outcome Outcome, attempts int) {
		t.Helper()
		e, got := r.last()
		require.Equal(t, line(verb, outcome, 0, Ref(id)), got)
		require.Equal(t, attempts, e.Attempts)
	}
	fails := func(n int, err error) func([]string) error {
		return func([]string) error {
			if n--; n >= 0 {
				return err
			}
			return nil
		}
	}
	refused := &net.OpError{Op: "dial", Err: errors.New("refused")}

	b.write(id, "x", time.Hour)
	requireEvent("write", OutcomeOK, 1)
	client.before = fails(2, refused)
	_, err := b.Read(t.Context(), id)
	require.NoError(t, err)
	requireEvent("read", OutcomeOK, 3)
	client.before = fails(2, refused)
	_, err = b.Read(t.Context(), id, WithExpiry())
	require.NoError(t, err)
	requireEvent("read", OutcomeOK, 3)
	client.before, client.after = nil, fails(1, io.EOF) // the reply is lost
	require.ErrorIs(t, b.Invalidate(t.Context(), id, IfLive()), ErrUnknownOutcome)
	requireEvent("invalidate", OutcomeUnknown, 2)
	client.after = nil

	b.do("SET", b.keyOf(id), "foreign")
	_, err = b.Read(t.Context(), id)
	require.ErrorIs(t, err, ErrCorrupt)
	requireEvent("read", OutcomeCorrupt, 1)
	b.begin() // what is between two ids comes last in a list
	r.take()
	var pending bool
	for e, err := range b.List(t.Context()) {
		pending = e.Pending
		require.Equal(t, !pending, errors.Is(err, ErrCorrupt))
	}
	require.True(t, pending)
	e, _ := r.last()
	require.Equal(t, OutcomeCorrupt, e.Outcome, "of all that it has met")
	b.do("DEL", b.keyOf(id))

	late := bedOn(t, client, WithReplicaAcks(1, time.Millisecond), WithObserver(r))
	require.ErrorIs(t, late.Invalidate(t.Context(), id), ErrUnacknowledged)
	requireEvent("invalidate", OutcomeUnacknowledged, 1)

	own := redistest.Dial(t, redistest.Start(t, "--min-replicas-to-write", "1").URL)
	lonely := bedOn(t, own, WithObserver(r))
	require.ErrorIs(t, lonely.Invalidate(t.Context(), id), ErrNotInvalidated)
	requireEvent("invalidate", OutcomeNotInvalidated, 1)
	_, err = lonely.Write(t.Context(), id, nil, time.Hour)
	require.ErrorContains(t, err, "NOREPLICAS")
	requireEvent("write", OutcomeFailed, 1)

	closed, err := Open(redistest.URL(t), WithObserver(r))
	require.NoError(t, err)
	closed.Close()
	_, err = closed.Read(t.Context(), id)
	require.ErrorIs(t, err, rueidis.ErrClosing)
	requireEvent("read", OutcomeFailed, 0)
}

// A List in which the caller panics has ended.
func TestObserver_ListPanics(t *testing.T) {
	t.Parallel()
	m := newSeen(t)
	_, err := m.Write(t.Context(), NewID(), nil, time.Hour)
	require.NoError(t, err)
	m.observer.(*recorder).take()
	require.Panics(t, func() {
		for range m.List(t.Context()) {
			panic("the caller's")
		}
	})
	e, _ := m.observer.(*recorder).last()
	require.Equal(t, "list", e.Verb)
}

// Every outcome has a text of its own, and every error of the contract an outcome.
func TestOutcome(t *testing.T) {
	t.Parallel()
	var texts []string
	for o := range Outcome(len(outcomes)) {
		require.NotEmpty(t, o.String())
		require.NotContains(t, texts, o.String())
		texts = append(texts, o.String())
	}
	require.Equal(t, "outcome?", Outcome(len(outcomes)).String())
	for _, err := range contractErrors() {
		outcome, reason := outcomeOf("write", fmt.Errorf("tombstore: write: %w", err))
		require.Zero(t, reason)
		require.NotContains(t, []Outcome{OutcomeOK, OutcomeFailed, OutcomeRefused, OutcomeEnded}, outcome, err)
	}
	ended := &InvalidatedError{Reason: Revoked}
	for verb, want := range map[string]Outcome{"write": OutcomeRefused, "read": OutcomeEnded} {
		outcome, reason := outcomeOf(verb, ended)
		require.Equal(t, want, outcome)
		require.Equal(t, Revoked, reason)
	}
}

func contractErrors() []error {
	return []error{
		ErrNotFound, ErrConflict, ErrUnknownOutcome, ErrInvalidID, ErrInvalidTTL, ErrTooLarge, ErrCorrupt, ErrNotInvalidated,
		ErrUnacknowledged, ErrStaleLogin, ErrTooManySessions, ErrNoDeadline,
	}
}

// Without an observer there is no allocation, and with one a cached hit has none.
func TestObserver_Allocations(t *testing.T) { // not in parallel: AllocsPerRun counts those of all
	ctx, failed := t.Context(), error(ErrNotFound)
	c, err := newConfig(nil)
	require.NoError(t, err)
	id, ref, key := NewID(), Ref("id"), c.prefix+Ref("id")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		for _, begin := range []func() (context.Context, operation){
			func() (context.Context, operation) { return c.begin(ctx, "touch", id) },
			func() (context.Context, operation) { return c.beginRef(ctx, "release", ref) },
			func() (context.Context, operation) { return c.beginKey(ctx, "read", key, time.Time{}) },
		} {
			_, op := begin()
			failed = op.end(nil)
		}
	}))
	require.NoError(t, failed)

	read := func(opts ...Option) float64 {
		b := bedOn(t, redistest.Dial(t, redistest.URL(t), redistest.WithCache), append(opts, WithClientCache(time.Hour))...)
		_, err := b.Check(t.Context())
		require.NoError(t, err)
		b.write(id, "x", time.Hour)
		for range 2 {
			_, err := b.Read(t.Context(), id)
			require.NoError(t, err)
		}
		return testing.AllocsPerRun(100, func() { _, _ = b.Read(ctx, id, Shared()) })
	}
	require.Equal(t, read(), read(WithObserver(&recorder{t: t})))
}

// newLog returns a logger, and what it logs.
func newLog() (*slog.Logger, *safeBuffer) {
	b := &safeBuffer{}
	return slog.New(slog.NewJSONHandler(b, nil)), b
}

type safeBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *safeBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(strings.Split(b.String(), "\n"), func(s string) bool { return s == "" })
}

// Each warning is logged once, although what it says goes on, and nothing else is.
func TestWithLogger(t *testing.T) {
	t.Parallel()
	once := func(t *testing.T, b *safeBuffer, message string) {
		t.Helper()
		require.Len(t, b.lines(), 1)
		require.Contains(t, b.lines()[0], `"level":"WARN"`)
		require.Contains(t, b.lines()[0], message)
	}
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		logger, logged := newLog()
		b := newBed(t, WithLogger(logger), WithMaxSessions(1, Refuse))
		r := &recorder{t: t}
		b.observer = r
		observedRun(t, b.RedisStore, r)
		require.Empty(t, logged.lines())
	})
	t.Run("no messages", func(t *testing.T) {
		t.Parallel()
		logger, logged := newLog()
		b := bedOn(t, redistest.Dial(t, redistest.URL(t), resp2Client), WithClientCache(time.Hour), WithLogger(logger))
		id := NewID()
		b.write(id, "x", time.Hour)
		for range 3 {
			_, err := b.Read(t.Context(), id)
			require.NoError(t, err)
			b.cache.proof.again.Store(0)
		}
		once(t, logged, warnUncached)
	})
	t.Run("no native saves", func(t *testing.T) {
		t.Parallel()
		logger, logged := newLog()
		client := newTap(redistest.Client(t))
		client.before = func(words []string) error {
			if words[0] == "HSET" {
				return &rueidis.RedisError{}
			}
			return nil
		}
		b := bedOn(t, client, WithLogger(logger))
		id := NewID()
		s := b.write(id, "x", time.Hour)
		for range 3 {
			s = b.write(id, "x", time.Hour, Replacing(s))
			b.native.again.Store(0)
		}
		once(t, logged, warnScripted)
	})
	t.Run("no subscription", func(t *testing.T) {
		t.Parallel()
		logger, logged := newLog()
		w := bedOn(t, redistest.Dial(t, redistest.Start(t).URL), WithLogger(logger))
		w.watchFloor = time.Millisecond // it tries again after that
		w.do("ACL", "SETUSER", "default", "-subscribe")
		id := NewID()
		w.write(id, "x", time.Hour)
		_, err := w.Watch(t.Context(), id)
		require.NoError(t, err)
		redistest.Until(t, "some attempts", func() bool {
			stats, err := w.do("INFO", "commandstats").ToString()
			require.NoError(t, err)
			return regexp.MustCompile(`cmdstat_subscribe:.*rejected_calls=([3-9]|\d\d)`).MatchString(stats)
		})
		once(t, logged, warnSubscribe)
	})
	t.Run("another hour", func(t *testing.T) {
		t.Parallel()
		logger, logged := newLog()
		c, err := newConfig([]Option{WithLogger(logger)})
		require.NoError(t, err)
		c.warn(t.Context(), warnFailover, nil)
		c.warn(t.Context(), warnReplica, nil)
		c.warn(t.Context(), warnFailover, nil)
		require.Len(t, logged.lines(), 2)
		c.warnings.last[warnFailover] = time.Now().Add(-warnPause)
		c.warn(t.Context(), warnFailover, errNoMessage)
		require.Len(t, logged.lines(), 3)
		require.Contains(t, logged.lines()[2], errNoMessage.Error())
	})
	c, err := newConfig([]Option{WithLogger(nil)})
	require.NoError(t, err)
	c.warn(t.Context(), warnReplica, nil)

	operations, err := os.ReadFile("docs/operations.md")
	require.NoError(t, err)
	for _, message := range []string{warnFailover, warnReplica, warnSubscribe, warnScripted, warnUncached} {
		message = strings.TrimPrefix(regexp.MustCompile(`[;,].*`).ReplaceAllString(message, ""), "tombstore: ")
		require.Contains(t, string(operations), "| "+message+" |")
	}
}
