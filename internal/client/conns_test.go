package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

func dialled(t *testing.T, o rueidis.ClientOption) (rueidis.Client, *Conns) {
	t.Helper()
	conns := Track(&o)
	c, err := Dial(o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, conns
}

func id(t *testing.T, c rueidis.Client) int64 {
	t.Helper()
	for {
		id, err := c.Do(t.Context(), c.B().ClientId().Build()).AsInt64()
		if err == nil {
			return id
		}
		_, replied := rueidis.IsRedisErr(err)
		require.False(t, replied, err) // the connection was closed
	}
}

func open(c *Conns) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// However a connection was dialled, it is dropped, and another one takes its place.
func TestConns_Drop(t *testing.T) {
	t.Parallel()
	direct := func(t *testing.T) rueidis.ClientOption {
		o, err := Option(redistest.URL(t), false)
		require.NoError(t, err)
		return o
	}
	for name, option := range map[string]func(t *testing.T) rueidis.ClientOption{
		"plain": direct,
		"TLS": func(t *testing.T) rueidis.ClientOption {
			o := direct(t)
			o.InitAddress[0], o.TLSConfig = behindTLS(t, o.InitAddress[0])
			return o
		},
		"DialCtxFn": func(t *testing.T) rueidis.ClientOption {
			o := direct(t)
			addr := o.InitAddress[0]
			o.InitAddress[0] = "server.invalid:1"
			o.DialCtxFn = func(ctx context.Context, _ string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
				return d.DialContext(ctx, "tcp", addr)
			}
			return o
		},
		"DialFn": func(t *testing.T) rueidis.ClientOption {
			o := direct(t)
			addr := o.InitAddress[0]
			o.InitAddress[0] = "server.invalid:1"
			o.DialFn = func(_ string, d *net.Dialer, _ *tls.Config) (net.Conn, error) { return d.Dial("tcp", addr) }
			return o
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, conns := dialled(t, option(t))
			first := id(t, c)
			require.Equal(t, first, id(t, c))
			begun := time.Now()
			wait := conns.Drop(begun)
			require.LessOrEqual(t, wait, MinLife)
			if wait > 0 {
				redistest.Until(t, "the connection is old enough", conns.DropOverdue)
			}
			second := id(t, c)
			require.NotEqual(t, first, second)
			require.Zero(t, conns.Drop(begun), "it was dialled later")
			require.Equal(t, second, id(t, c))
			require.Equal(t, 1, open(conns))
			c.Close()
			require.Zero(t, open(conns))
		})
	}
}

// behindTLS puts TLS in front of the server at addr.
func behindTLS(t *testing.T, addr string) (string, *tls.Config) {
	t.Helper()
	web := httptest.NewUnstartedServer(nil) // for its certificate
	web.StartTLS()
	t.Cleanup(web.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				in.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(out, in)
				out.Close()
			}()
			go func() {
				_, _ = io.Copy(in, out)
				in.Close()
			}()
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	return l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "example.com"}
}

// A client that is closed while it dials would keep the connection.
func TestConns_Close(t *testing.T) {
	t.Parallel()
	o, err := Option(redistest.URL(t), false)
	require.NoError(t, err)
	var dials atomic.Int64
	dialling, goOn := make(chan net.Conn), make(chan struct{})
	o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "tcp", addr)
		if dials.Add(1) == 2 {
			dialling <- conn
			<-goOn
		}
		return conn, err
	}
	c, conns := dialled(t, o)
	id(t, c)
	cut(conns.take(true))
	failed := make(chan error)
	go func() {
		for {
			err := c.Do(t.Context(), c.B().Ping().Build()).Error()
			if err == nil || dials.Load() > 1 {
				failed <- err
				return
			}
		}
	}()
	var late net.Conn
	select {
	case late = <-dialling:
	case err := <-failed:
		require.Fail(t, "it does not dial", err)
	}
	c.Close()
	conns.Close()
	close(goOn)
	require.Error(t, <-failed)
	_, err = late.Write([]byte("PING\r\n"))
	require.ErrorIs(t, err, net.ErrClosed)
}
