// Package watchhttp ends what goes on beyond a request when its session ends: websockets, server-sent
// events, long downloads.
//
// Without [tombstore.WithPublish] the end of a session is told within a minute, also one by the same
// process; with it, at once. A [tombstore.MemoryStore] always tells at once. A watch does not keep a session
// alive: at the idle timeout what goes on ends too, if nothing else has used the session.
package watchhttp

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/tombstore/tombstore"
)

// grace is how long a handler has to say goodbye.
const grace = time.Second

// Handler returns a handler that calls next with a request whose context ends when its session does.
// [context.Cause] then says why: see [tombstore.Watcher]. A second later the connection is closed, if
// next has not returned by then, so that a download ends, or a websocket that nobody has told. A
// connection that next has hijacked is closed as well, but only while next has not returned.
//
// id returns the id of the request's session, which is a matter of the session library in use, or ""
// for none; it may trust whoever has let the request in. Without a session, or with one that is not
// live, the answer is 401, and while that is not known it is 503. The session is looked at once more
// for that, so use the handler for what lasts, and not for every request.
func Handler(w tombstore.Watcher, id func(*http.Request) string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		name := id(r)
		if name == "" {
			http.Error(rw, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel() // or the watch would go on after a hijack
		ctx, err := w.Watch(ctx, name)
		if err != nil {
			status := http.StatusServiceUnavailable
			if tombstore.NoSession(err) {
				status = http.StatusUnauthorized
			}
			http.Error(rw, http.StatusText(status), status)
			return
		}
		c := &connection{ResponseWriter: rw}
		defer c.leave()
		stop := context.AfterFunc(ctx, func() {
			if tombstore.NoSession(context.Cause(ctx)) {
				c.closeIn(grace)
			}
		})
		defer stop()
		next.ServeHTTP(c, r.WithContext(ctx))
	})
}

// connection is the answer to a request, whose connection can be closed.
type connection struct {
	http.ResponseWriter

	mu       sync.Mutex
	left     bool // the handler has returned, so the connection is another request's
	hijacked net.Conn
	timer    *time.Timer
}

func (c *connection) closeIn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.left {
		c.timer = time.AfterFunc(d, c.close)
	}
}

func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.left:
	case c.hijacked != nil:
		c.hijacked.Close()
	default: // what next reads or writes fails, and then the server closes the connection
		past, control := time.Unix(1, 0), http.NewResponseController(c.ResponseWriter)
		_ = control.SetReadDeadline(past)
		_ = control.SetWriteDeadline(past)
	}
}

func (c *connection) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// Unwrap is for [http.ResponseController].
func (c *connection) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Flush implements [http.Flusher].
func (c *connection) Flush() { _ = http.NewResponseController(c.ResponseWriter).Flush() }

// ReadFrom implements [io.ReaderFrom], by which a file is sent without being copied.
func (c *connection) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(c.ResponseWriter, r)
}

// Hijack implements [http.Hijacker].
func (c *connection) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffer, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hijacked = conn
	return conn, buffer, nil
}
