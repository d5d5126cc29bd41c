package client

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// MinLife is how old a connection is at least when it is dropped. Where the name leads to a replica,
// for good or until it is told of the switch, each process dials no more often than that, and reads
// are answered meanwhile.
const MinLife = 500 * time.Millisecond

// Conns are the connections of a client. rueidis stays on one for as long as it works, wherever the
// name of the server leads by then. When the connections are dropped it dials anew.
type Conns struct {
	mu     sync.Mutex
	open   map[*conn]struct{}
	closed bool
	due    atomic.Int64 // when a doomed connection may be closed, ns since 1970; 0: there is none
}

// Track returns the connections of the client that is to be made with o, of which it changes how to
// dial.
func Track(o *rueidis.ClientOption) *Conns {
	c := &Conns{open: map[*conn]struct{}{}}
	dial := dialer(o)
	o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		dialled, err := dial(ctx, addr, d, t)
		if err != nil {
			return nil, err
		}
		return c.add(dialled)
	}
	return c
}

// dialer returns what rueidis would dial with.
func dialer(o *rueidis.ClientOption) func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
	if o.DialCtxFn != nil {
		return o.DialCtxFn
	}
	if dial := o.DialFn; dial != nil {
		return func(_ context.Context, addr string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
			return dial(addr, d, t)
		}
	}
	return func(ctx context.Context, addr string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		if t != nil {
			return (&tls.Dialer{NetDialer: d, Config: t}).DialContext(ctx, "tcp", addr)
		}
		return d.DialContext(ctx, "tcp", addr)
	}
}

// Drop closes the connections that were there at a moment and have reached MinLife. The others that
// were there are overdue when they reach it; wait is how long that takes. What is under way on a
// connection that is closed fails as it does when the server ends it.
func (c *Conns) Drop(since time.Time) (wait time.Duration) {
	c.mu.Lock()
	for conn := range c.open {
		if !conn.since.After(since) {
			conn.doomed = true
			wait = max(wait, time.Until(conn.since.Add(MinLife)))
		}
	}
	c.mu.Unlock()
	cut(c.take(false))
	return wait
}

// DropOverdue closes the connections that are overdue, and reports whether there were any. No timer
// does it, since that would hit a command that is under way.
func (c *Conns) DropOverdue() bool {
	if due := c.due.Load(); due == 0 || time.Now().UnixNano() < due {
		return false
	}
	overdue := c.take(false)
	cut(overdue)
	return len(overdue) > 0
}

// Close closes all connections for good, when the client has been closed: rueidis leaves one open
// that was being dialled at that moment.
func (c *Conns) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	cut(c.take(true))
}

// take takes the connections that are overdue, or all, out of the set.
func (c *Conns) take(all bool) (taken []net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, due := time.Now(), int64(0)
	for conn := range c.open {
		switch end := conn.since.Add(MinLife); {
		case all || conn.doomed && !now.Before(end):
			taken = append(taken, conn.Conn)
			delete(c.open, conn)
		case conn.doomed && (due == 0 || end.UnixNano() < due):
			due = end.UnixNano()
		}
	}
	c.due.Store(due)
	return taken
}

func cut(conns []net.Conn) {
	for _, conn := range conns {
		below(conn).Close() // TLS would wait for the other side
	}
}

// below returns the connection that carries the TLS of c, or c without TLS.
func below(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}

func (c *Conns) add(dialled net.Conn) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		dialled.Close()
		return nil, net.ErrClosed
	}
	added := &conn{Conn: dialled, of: c, since: time.Now()}
	c.open[added] = struct{}{}
	return added, nil
}

// conn is a connection that is in the set of the open ones until it is closed.
type conn struct {
	net.Conn
	of     *Conns
	since  time.Time
	doomed bool // it is overdue when it reaches MinLife
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
