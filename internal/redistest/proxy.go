package redistest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// Proxy passes connections on to a server and breaks them on demand.
type Proxy struct {
	URL string

	target   atomic.Value // string
	dialled  atomic.Int64
	listener net.Listener
	lose     atomic.Bool
	lost     atomic.Int64
	mute     atomic.Bool
	apart    atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// NewProxy returns a proxy for the server at addr that ends with the test.
func NewProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{URL: "redis://" + l.Addr().String(), listener: l, conns: map[net.Conn]struct{}{}}
	p.Lead(addr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.accept()
	}()
	t.Cleanup(func() {
		l.Close()
		p.Cut()
		<-done
	})
	return p
}

// Lead makes the proxy lead to the server at addr from now on. Connections that it has stay where
// they are, as they do when a name comes to mean another server.
func (p *Proxy) Lead(addr string) { p.target.Store(addr) }

// Dialled returns how many connections were made to the proxy.
func (p *Proxy) Dialled() int64 { return p.dialled.Load() }

// LoseReply makes the proxy swallow what the server sends next and break that connection: the
// server has executed a command, and the client cannot know.
func (p *Proxy) LoseReply() { p.lose.Store(true) }

// Mute makes the proxy swallow everything that the server sends from now on, and keep the
// connections.
func (p *Proxy) Mute() { p.mute.Store(true) }

// Isolate makes the proxy swallow what either side sends, the end of a connection too, until Heal.
func (p *Proxy) Isolate() { p.apart.Store(true) }

// Heal ends what Isolate began. The connections break, since parts of what was said on them are
// missing.
func (p *Proxy) Heal() {
	p.apart.Store(false)
	p.Cut()
}

// Lost returns how many replies were swallowed.
func (p *Proxy) Lost() int64 { return p.lost.Load() }

// Cut breaks all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) accept() {
	var pumps sync.WaitGroup
	defer pumps.Wait()
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.dialled.Add(1)
		server, err := net.Dial("tcp", p.target.Load().(string))
		if err != nil {
			client.Close()
			continue
		}
		p.track(client, server)
		pumps.Go(func() { p.pump(server, client, false) })
		pumps.Go(func() { p.pump(client, server, true) })
	}
}

func (p *Proxy) track(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
}

// pump copies until either side ends, then ends both.
func (p *Proxy) pump(to, from net.Conn, replies bool) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		from.Close()
		delete(p.conns, from)
		if !p.apart.Load() { // else Cut ends the other
			to.Close()
			delete(p.conns, to)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if p.apart.Load() || replies && p.mute.Load() {
			continue
		}
		if replies && p.lose.CompareAndSwap(true, false) {
			p.lost.Add(1)
			return
		}
		if _, err := to.Write(buf[:n]); err != nil && err != io.EOF {
			return
		}
	}
}
