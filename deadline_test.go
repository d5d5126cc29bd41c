package tombstore

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// Nothing but WithTimeout ends an operation here: neither its context nor the client's own patience.
func TestTimeout_ContextWithoutEnd(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Start(t).Addr)
	s, err := OpenOption(rueidis.ClientOption{
		InitAddress:      []string{strings.TrimPrefix(proxy.URL, "redis://")},
		ConnWriteTimeout: time.Hour,
		AlwaysPipelining: true, // or the connection itself gets the deadline
		Dialer:           net.Dialer{KeepAlive: time.Hour},
	})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	id, ctx := NewID(), context.Background()
	session, err := s.Write(ctx, id, nil, time.Hour)
	require.NoError(t, err)
	session, err = s.Write(ctx, id, nil, time.Hour, Replacing(session))
	require.NoError(t, err)

	proxy.Isolate()
	s.timeout = 200 * time.Millisecond
	_, err = s.Read(ctx, id)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, NoSession(err))
	_, err = s.Write(ctx, id, nil, time.Hour, Replacing(session))
	require.ErrorIs(t, err, ErrUnknownOutcome)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestTimers(t *testing.T) {
	t.Parallel()
	shared := new(timers)
	begun := time.Now()
	one := shared.in(time.Hour)
	require.Same(t, one, shared.in(time.Hour))
	require.False(t, one.at.Before(begun.Add(time.Hour)))
	require.True(t, one.at.Before(time.Now().Add(time.Hour+2*time.Minute)))
	require.NoError(t, boundedContext{t.Context(), one}.Err())

	one.shared = begun // its time is up
	another := shared.in(time.Hour)
	require.NotSame(t, one, another)
	require.False(t, another.at.Before(one.shared.Add(time.Hour)), "what begins last has its hour, too")

	forever := new(timers).in(1<<63 - 1)
	require.NoError(t, boundedContext{t.Context(), forever}.Err())
}
