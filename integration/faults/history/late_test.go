package history

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// delayer makes connections. When it is armed, the next change stays on the way and its connection
// breaks.
type delayer struct {
	addr  string
	armed atomic.Bool
	late  chan []byte
}

func (d *delayer) dial(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	return &delayed{conn, d}, err
}

type delayed struct {
	net.Conn
	delayer *delayer
}

func (c *delayed) Write(p []byte) (int, error) {
	change := bytes.Contains(p, []byte("\r\nEVALSHA\r\n")) || bytes.Contains(p, []byte("\r\nSET\r\n"))
	if !change || !c.delayer.armed.CompareAndSwap(true, false) {
		return c.Conn.Write(p)
	}
	c.delayer.late <- bytes.Clone(p)
	return len(p), c.Close()
}

// arrive lets the change arrive, and waits for the answer.
func (d *delayer) arrive(t *testing.T) {
	conn, err := net.Dial("tcp", d.addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = conn.Write(<-d.late)
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1024))
	require.NoError(t, err)
}

// TestLateCommands breaks a connection while a command is on its way. The store tries again and has
// an answer; then somebody writes, and the command arrives. An operation that has returned must not
// take effect then, unless its outcome is unknown.
func TestLateCommands(t *testing.T) {
	t.Parallel()
	type call func(s tombstore.Renewer, id, next string, held tombstore.Session) error
	write := func(condition func(tombstore.Session) tombstore.WriteOption) call {
		return func(s tombstore.Renewer, id, _ string, held tombstore.Session) error {
			_, err := s.Write(context.Background(), id, []byte("late"), time.Hour, condition(held))
			return err
		}
	}
	none := func(tombstore.Session) tombstore.WriteOption { return func(*tombstore.WriteOptions) {} }
	ifAbsent := func(tombstore.Session) tombstore.WriteOption { return tombstore.IfAbsent() }
	ifPresent := func(tombstore.Session) tombstore.WriteOption { return tombstore.IfPresent() }
	ifVersion := func(held tombstore.Session) tombstore.WriteOption { return tombstore.IfVersion(held.Version) }
	rotate := func(s tombstore.Renewer, id, next string, _ tombstore.Session) error {
		_, err := s.Rotate(context.Background(), id, next)
		return err
	}
	begin := func(s tombstore.Renewer, id, _ string, held tombstore.Session) error {
		_, err := s.BeginRenewal(context.Background(), id, held.Version)
		return err
	}
	ifLive := func(s tombstore.Renewer, id, _ string, _ tombstore.Session) error {
		return s.Invalidate(context.Background(), id, tombstore.IfLive())
	}
	for _, c := range []struct {
		kind         faults.Kind
		fault        string
		wrap         func(rueidis.Client) rueidis.Client
		live, absent []call // on a session in that state
	}{
		{
			faults.Promised, "commands late: operations that took effect after their return", same,
			[]call{write(ifVersion), write(ifAbsent), rotate, begin, ifLive},
			[]call{write(ifAbsent), write(ifPresent), rotate, begin, ifLive},
		},
		{
			faults.Unpromised, "commands late: writes without IfVersion or IfAbsent that overwrote a later one", same,
			[]call{write(none), write(ifPresent), write(tombstore.Replacing)}, []call{write(none)},
		},
		{
			faults.Seeded, "commands late: the store does not know that an attempt was lost",
			func(c rueidis.Client) rueidis.Client { return &retrying{c} },
			nil, []call{write(ifPresent), rotate, ifLive},
		},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			other, err := tombstore.New(redistest.Dial(t, server.URL))
			require.NoError(t, err)
			d := &delayer{addr: server.Addr, late: make(chan []byte, 1)}
			option, err := rueidis.ParseURL(server.URL)
			require.NoError(t, err)
			option.DisableRetry, option.DisableCache, option.PipelineMultiplex, option.DialCtxFn = true, true, -1, d.dial
			client, err := rueidis.NewClient(option)
			require.NoError(t, err)
			t.Cleanup(client.Close)
			s, err := tombstore.New(c.wrap(client), tombstore.WithTimeout(time.Minute))
			require.NoError(t, err)

			_, err = s.Check(t.Context()) // so that it saves by SET
			require.NoError(t, err)
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			for i, op := range slices.Concat(c.live, c.absent) {
				_ = op(s, tombstore.NewID(), tombstore.NewID(), tombstore.Session{}) // the server knows the script
				id, next := tombstore.NewID(), tombstore.NewID()
				var before tombstore.Session
				if i < len(c.live) {
					before, err = other.Write(t.Context(), id, []byte("first"), time.Hour)
					require.NoError(t, err)
				}
				d.armed.Store(true)
				outcome := op(s, id, next, before)
				_, _ = other.Write(t.Context(), id, []byte("other"), time.Hour)
				_, _ = other.Write(t.Context(), next, []byte("other"), time.Hour, tombstore.IfPresent())
				first := view(t, other, id, next)
				d.arrive(t)
				row.Injected++
				row.Checked++
				if !errors.Is(outcome, tombstore.ErrUnknownOutcome) && view(t, other, id, next) != first {
					row.Violations++
				}
			}
			faults.Report(t, row)
		})
	}
}

// view returns what readers see of sessions.
func view(t *testing.T, s tombstore.Store, ids ...string) (text string) {
	for _, id := range ids {
		held, err := s.Read(t.Context(), id)
		text += fmt.Sprintf("%q %v\n", held.Data, err)
	}
	return text
}
