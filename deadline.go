package tombstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// bounded gives ctx a deadline if it has none: rueidis would try for ever.
func (s *RedisStore) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	timeout := max(s.timeout, s.timeout+s.acksTimeout) // the sum may overflow
	if ctx.Done() == nil {
		return boundedContext{ctx, s.timers.in(timeout)}, func() {}
	}
	return context.WithTimeout(ctx, timeout)
}

// boundedContext is a context that nothing but a timer ends.
type boundedContext struct {
	context.Context
	timer *timer
}

func (c boundedContext) Deadline() (time.Time, bool) { return c.timer.at, true }
func (c boundedContext) Done() <-chan struct{}       { return c.timer.done }

func (c boundedContext) Err() error {
	select {
	case <-c.timer.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// timers lets operations that begin at nearly the same time have one timer. A save has a context that is
// never cancelled, and a timer of its own would cost it as much as it takes to build its command.
type timers struct{ latest atomic.Pointer[timer] }

type timer struct {
	shared time.Time // until when it is handed out
	at     time.Time
	done   chan struct{} // closed at that time
}

// in returns a timer for d from now, or up to a sixty-fourth of that later.
func (t *timers) in(d time.Duration) *timer {
	now := time.Now()
	latest := t.latest.Load()
	if latest == nil || now.After(latest.shared) {
		shared := now.Add(d / 64)
		latest = &timer{shared: shared, at: shared.Add(d), done: make(chan struct{})}
		time.AfterFunc(latest.at.Sub(now), func() { close(latest.done) }) // Sub does not overflow
		t.latest.Store(latest)
	}
	return latest
}

// lateDeadline gives a context the deadline that it lacks, but starts no timer until somebody
// waits: a read that memory answers does not.
type lateDeadline struct {
	context.Context
	at     time.Time
	once   sync.Once
	timed  context.Context
	cancel context.CancelFunc
}

func (c *lateDeadline) started() context.Context {
	c.once.Do(func() { c.timed, c.cancel = context.WithDeadline(c.Context, c.at) })
	if c.timed == nil { // stopped before it was started
		return c.Context
	}
	return c.timed
}

func (c *lateDeadline) Deadline() (time.Time, bool) { return c.at, true }
func (c *lateDeadline) Done() <-chan struct{}       { return c.started().Done() }
func (c *lateDeadline) Err() error                  { return c.started().Err() }

func (c *lateDeadline) stop() {
	c.once.Do(func() {})
	if c.cancel != nil {
		c.cancel()
	}
}
