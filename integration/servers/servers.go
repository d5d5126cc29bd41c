// Package servers starts, for tests, the servers that are not net/http's.
package servers

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/common/config"
	"github.com/cloudwego/hertz/pkg/common/hlog"
	"github.com/cloudwego/hertz/pkg/network"
	"github.com/cloudwego/hertz/pkg/network/standard"
	fiber2 "github.com/gofiber/fiber/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

func init() { hlog.SetLevel(hlog.LevelFatal) }

// Fiber2 returns the address of a server that ends with the test.
func Fiber2(t testing.TB, app *fiber2.App) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = app.Listener(l)
	}()
	t.Cleanup(func() {
		_ = app.ShutdownWithTimeout(time.Second)
		<-done
	})
	return l.Addr().String()
}

// Hertz returns the address of a server that ends with the test. It is on package net: where
// servers come and go, netpoll, hertz' default, closes file descriptors twice, the second time
// those of other connections of the process.
func Hertz(t testing.TB, configure func(h *server.Hertz)) string {
	var listening interface{ Listener() net.Listener }
	h := server.New(server.WithHostPorts("127.0.0.1:0"), server.WithDisablePrintRoute(true),
		server.WithKeepAlive(false), // or Shutdown would wait for connections that a client keeps
		server.WithTransport(func(o *config.Options) network.Transporter {
			transporter := standard.NewTransporter(o)
			listening = transporter.(interface{ Listener() net.Listener })
			return transporter
		}))
	configure(h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Run()
	}()
	redistest.Until(t, "the server listens", h.IsRunning)
	t.Cleanup(func() {
		require.NoError(t, h.Shutdown(context.Background()))
		<-done
	})
	return listening.Listener().Addr().String()
}
