package faults

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
	"github.com/tombstore/tombstore/internal/redistest"
)

// Account is an owner of sessions, who logs in and is logged out everywhere while something is
// broken.
type Account struct {
	Owner  string
	NewID  func() string         // of a session
	Store  *tombstore.RedisStore // that meets the fault
	Whole  *tombstore.RedisStore // that prepares, and looks at what has become of it
	Server rueidis.Client        // of the server that has the sessions
}

// the ways to log in
const (
	byWrite = iota
	byRotate
	byRenewal
	ways
)

// login is a login that has begun: it is to turn the session of a visitor into one of the account.
type login struct {
	way           int
	ticket        tombstore.Login
	visitor, user string // ids
}

func (a *Account) ticket(t testing.TB) tombstore.Login {
	t.Helper()
	l, err := a.Whole.BeginLogin(t.Context(), a.Owner)
	require.NoError(t, err)
	return l
}

func (a *Account) begin(t testing.TB, way int, ticket tombstore.Login) *login {
	t.Helper()
	l := &login{way, ticket, a.NewID(), a.NewID()}
	_, err := a.Whole.Write(t.Context(), l.visitor, []byte("visitor"), time.Hour)
	require.NoError(t, err)
	return l
}

func (l *login) finish(ctx context.Context, s *tombstore.RedisStore) error {
	var r tombstore.Renewal
	var err error
	if l.way == byRenewal {
		if r, err = s.BeginRenewal(ctx, l.visitor, 0); err != nil {
			return err
		}
	}
	b, err := reserve(ctx, s, l.ticket, l.user)
	if err != nil {
		return err
	}
	switch l.way {
	case byWrite:
		_, err = s.Write(ctx, l.user, []byte("user"), time.Hour, tombstore.Bound(b))
	case byRotate:
		_, err = s.Rotate(ctx, l.visitor, l.user, tombstore.WithBinding(b))
	case byRenewal:
		r.Binding = &b
		_, err = s.FinishRenewal(ctx, r, l.user, []byte("user"), time.Hour)
	}
	return err
}

func reserve(ctx context.Context, s *tombstore.RedisStore, ticket tombstore.Login, id string) (tombstore.Binding, error) {
	return s.Reserve(ctx, id, ticket, tombstore.Until(time.Now().Add(3*time.Hour)))
}

// Devices are the sessions of an account, and what else InvalidateOwner must keep out.
type Devices struct {
	*Account
	In      []string          // ids of the sessions, one for each way to log in
	tickets []tombstore.Login // of logins that have begun: when the owner was not known, and later
	reserved
	out []string // ids that must not be live
}

// reserved is a login whose first write is on its way.
type reserved struct {
	id      string
	binding tombstore.Binding
}

// Devices logs the account in, in each way, and lets further logins begin.
func (a *Account) Devices(t testing.TB) *Devices {
	t.Helper()
	d := &Devices{Account: a, tickets: []tombstore.Login{a.ticket(t)}}
	for way := range ways {
		l := a.begin(t, way, a.ticket(t))
		require.NoError(t, l.finish(t.Context(), a.Whole))
		d.In = append(d.In, l.user)
	}
	d.tickets = append(d.tickets, a.ticket(t))
	d.id = a.NewID()
	var err error
	d.binding, err = reserve(t.Context(), a.Whole, d.tickets[1], d.id)
	require.NoError(t, err)
	d.out = append(d.out, d.id)
	return d
}

// Out lets late logins go on with a store, after InvalidateOwner has returned nil, and counts the ids
// that are live.
func (d *Devices) Out(t testing.TB, s *tombstore.RedisStore, row *Row) {
	t.Helper()
	_, _ = s.Write(t.Context(), d.id, []byte("late"), time.Hour, tombstore.Bound(d.binding))
	out := append(d.out[:len(d.out):len(d.out)], d.In...)
	for _, ticket := range d.tickets {
		for way := range ways {
			l := &login{way, ticket, d.NewID(), d.NewID()}
			_, err := s.Write(t.Context(), l.visitor, []byte("visitor"), time.Hour)
			require.NoError(t, err)
			_ = l.finish(t.Context(), s)
			out = append(out, l.user)
		}
	}
	row.Checked += int64(len(out))
	row.Violations += Live(t, s, out)
}

// LogOut calls InvalidateOwner while the sessions move, and while logins go on that have begun before,
// and then once more. With except one session goes on at first, which moves too. Out counts the ids
// that are live and must not be, or that must be and are not; told the watchers of the account, and of
// its sessions, that are not told of an end, or are told that the session has ended which goes on.
func (a *Account) LogOut(t testing.TB, except bool, out, told *Row) {
	t.Helper()
	ctx, d := t.Context(), a.Devices(t)
	var watches []context.Context
	for _, id := range d.In {
		watch, err := a.Store.Watch(ctx, id)
		require.NoError(t, err)
		watches = append(watches, watch)
	}
	watch, err := a.Store.WatchOwner(ctx, a.Owner)
	require.NoError(t, err)
	watches = append(watches, watch)
	next := []string{a.NewID(), a.NewID(), a.NewID()}
	d.out = append(d.out, next[1:]...)
	var moved, ended error
	var opts []tombstore.InvalidateOption
	if except {
		opts = append(opts, tombstore.Except(d.In[0]))
	} else {
		d.out = append(d.out, next[0])
	}
	steps := []func(){
		func() { _, moved = a.Store.Rotate(ctx, d.In[0], next[0]) },
		func() { _, _ = a.Store.Rotate(ctx, d.In[1], next[1]) },
		func() {
			if r, err := a.Store.BeginRenewal(ctx, d.In[2], 0); err == nil {
				_, _ = a.Store.FinishRenewal(ctx, r, next[2], []byte("user"), time.Hour)
			}
		},
		func() { _, _ = a.Store.Write(ctx, d.id, []byte("user"), time.Hour, tombstore.Bound(d.binding)) },
		func() { _, ended = a.Store.InvalidateOwner(ctx, a.Owner, opts...) },
	}
	for _, ticket := range d.tickets {
		for way := range ways {
			l := a.begin(t, way, ticket)
			d.out = append(d.out, l.user)
			steps = append(steps, func() { _ = l.finish(ctx, a.Store) })
		}
	}
	atOnce(steps)
	if ended != nil { // it is safe to repeat
		_, ended = a.Store.InvalidateOwner(ctx, a.Owner, opts...)
	}
	require.NoError(t, ended)
	out.Injected++
	told.Injected++
	first := d.In[0]
	if except {
		d.In = d.In[1:]
		lost := tombstore.NoSession(moved)
		if moved == nil {
			lost = Live(t, a.Whole, next[:1]) == 0
			told.check(watches[0].Err() != nil)
		}
		out.check(lost)
	}
	d.Out(t, a.Store, out)

	again := a.begin(t, byWrite, a.ticket(t))
	require.NoError(t, again.finish(ctx, a.Store))
	out.check(Live(t, a.Whole, []string{again.user}) == 0)
	_, err = a.Store.InvalidateOwner(ctx, a.Owner)
	require.NoError(t, err)
	d.out = append(d.out, first, next[0], again.user)
	d.Out(t, a.Store, out)
	if out.Violations > 0 { // what is live has no end that could be told
		return
	}
	late := time.NewTimer(30 * time.Second) // a watch looks at a session once a minute in any case
	defer late.Stop()
	for _, watch := range watches {
		select {
		case <-watch.Done():
		case <-late.C:
			late.Reset(0)
		}
		told.check(!errors.Is(context.Cause(watch), tombstore.ErrInvalidated))
	}
}

// Crowd logs in many times at once, with a store that lets limit sessions be, and counts the moments
// at which there are more.
func (a *Account) Crowd(t testing.TB, limit int64, row *Row) {
	t.Helper()
	row.Injected++
	var steps []func()
	var keys []string
	for i := range 8 {
		l := a.begin(t, i%ways, a.ticket(t))
		keys = append(keys, "tombstore:"+tombstore.Ref(l.user))
		steps = append(steps, func() { _ = l.finish(t.Context(), a.Store) })
	}
	look := func() error {
		n, err := a.Server.Do(t.Context(), a.Server.B().Eval().Script(countLive).Numkeys(0).Arg(keys...).Build()).AsInt64()
		if err != nil {
			return err
		}
		row.check(n > limit)
		return nil
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		atOnce(steps)
	}()
	for {
		select {
		case <-over:
			redistest.Until(t, "a last look", func() bool { return look() == nil })
			return
		default:
			_ = look() // the server may be away
		}
	}
}

// countLive counts the keys that hold a record.
const countLive = `local n = 0
for _, key in ipairs(ARGV) do
  if redis.call('TYPE', key).ok == 'string' then n = n + 1 end
end
return n`

func atOnce(steps []func()) {
	var group sync.WaitGroup
	begin := make(chan struct{})
	for _, step := range steps {
		group.Go(func() {
			<-begin
			step()
		})
	}
	close(begin)
	group.Wait()
}

// Striking is a client that calls strike ahead of one of its commands, or pipelines.
type Striking struct {
	rueidis.Client
	Strike func()
	left   atomic.Int64
}

// Arm lets the strike come ahead of the command of this number, from 1.
func (s *Striking) Arm(number int64) { s.left.Store(number) }

func (s *Striking) count() {
	if s.left.Add(-1) == 0 {
		s.Strike()
	}
}

// Do implements rueidis.Client.
func (s *Striking) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	s.count()
	return s.Client.Do(ctx, cmd)
}

// DoMulti implements rueidis.Client.
func (s *Striking) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	s.count()
	return s.Client.DoMulti(ctx, multi...)
}
