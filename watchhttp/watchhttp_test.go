package watchhttp

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// serve serves next to requests that carry their session's id in a header.
func serve(t *testing.T, w tombstore.Watcher, http2 bool, next http.HandlerFunc) *httptest.Server {
	t.Helper()
	id := func(r *http.Request) string { return r.Header.Get("Session") }
	s := httptest.NewUnstartedServer(Handler(w, id, next))
	if s.EnableHTTP2 = http2; http2 {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, s *httptest.Server, id string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
	require.NoError(t, err)
	r.Header.Set("Session", id)
	return s.Client().Do(r)
}

func session(t *testing.T) (m *tombstore.MemoryStore, id string) {
	t.Helper()
	m, err := tombstore.NewMemory()
	require.NoError(t, err)
	id = tombstore.NewID()
	_, err = m.Write(t.Context(), id, nil, time.Hour)
	require.NoError(t, err)
	return m, id
}

// Events are sent until the session ends, and then a last one that says so.
func TestHandler_Events(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		m, id := session(t)
		s := serve(t, m, http2, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "data: hello\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			_, _ = io.WriteString(w, "data: "+context.Cause(r.Context()).Error()+"\n\n")
		})
		answer, err := get(t, s, id)
		require.NoError(t, err)
		defer answer.Body.Close()
		events := bufio.NewReader(answer.Body)
		line, err := events.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "data: hello\n", line)
		require.NoError(t, m.Invalidate(t.Context(), id, tombstore.WithReason(tombstore.Revoked)))
		rest, err := io.ReadAll(events)
		require.NoError(t, err)
		require.Contains(t, string(rest), "session was ended: revoked")
	}
}

// A download ends although its handler does not look at the context.
func TestHandler_Download(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		m, id := session(t)
		over := make(chan error, 1)
		s := serve(t, m, http2, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(w, endless{})
			over <- err
		})
		answer, err := get(t, s, id)
		require.NoError(t, err)
		defer answer.Body.Close()
		_, err = io.CopyN(io.Discard, answer.Body, 1<<20)
		require.NoError(t, err)
		require.NoError(t, m.Invalidate(t.Context(), id))
		_, err = io.Copy(io.Discard, answer.Body)
		require.Error(t, err)
		require.Error(t, <-over)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// An upload, too.
func TestHandler_Upload(t *testing.T) {
	t.Parallel()
	m, id := session(t)
	begun, over := make(chan struct{}), make(chan error, 1)
	s := serve(t, m, false, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		_, err := io.Copy(io.Discard, r.Body)
		over <- err
	})
	body, writer := io.Pipe()
	defer writer.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, body)
	require.NoError(t, err)
	r.Header.Set("Session", id)
	go func() {
		if answer, err := s.Client().Do(r); err == nil {
			answer.Body.Close()
		}
	}()
	<-begun
	require.NoError(t, m.Invalidate(t.Context(), id))
	require.Error(t, <-over)
}

// A connection that was hijacked, as websockets do it, is closed; one that nobody waits for is not.
func TestHandler_Hijacked(t *testing.T) {
	t.Parallel()
	for _, stays := range []bool{true, false} {
		m, id := session(t)
		conns, watched := make(chan net.Conn, 1), make(chan context.Context, 1)
		s := serve(t, m, false, func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			conns <- conn
			watched <- r.Context()
			for _, err := conn.Read(make([]byte, 1)); stays && err == nil; {
				_, err = conn.Read(make([]byte, 1))
			}
		})
		client, err := net.Dial("tcp", s.Listener.Addr().String())
		require.NoError(t, err)
		defer client.Close()
		_, err = io.WriteString(client, "GET / HTTP/1.1\r\nHost: host\r\nSession: "+id+"\r\n\r\n")
		require.NoError(t, err)
		conn, ctx := <-conns, <-watched
		_, err = io.WriteString(client, "x")
		require.NoError(t, err)
		if !stays {
			<-ctx.Done() // the handler has returned
			require.ErrorIs(t, context.Cause(ctx), context.Canceled)
			_, err = io.WriteString(conn, "y")
			require.NoError(t, err)
			conn.Close()
			continue
		}
		require.NoError(t, m.Invalidate(t.Context(), id))
		_, err = client.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		_, err = conn.Write([]byte("x"))
		require.ErrorIs(t, err, net.ErrClosed)
	}
}

// A handler that has returned has left its connection to the next request.
func TestHandler_ConnectionGoesOn(t *testing.T) {
	t.Parallel()
	m, id := session(t)
	ended := make(chan struct{})
	s := serve(t, m, false, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			close(ended)
			<-r.Context().Done()
		}
	})
	go func() {
		<-ended
		_ = m.Invalidate(context.Background(), id)
	}()
	client, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	ask := func(method, id string) int {
		_, err := io.WriteString(client, method+" / HTTP/1.1\r\nHost: host\r\nSession: "+id+"\r\nContent-Length: 0\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(bufio.NewReader(client), nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, answer.Body)
		require.NoError(t, err)
		return answer.StatusCode
	}
	require.Equal(t, http.StatusOK, ask("GET", id))
	other := tombstore.NewID()
	_, err = m.Write(t.Context(), other, nil, time.Hour)
	require.NoError(t, err)
	for range 15 { // for longer than the first one had to return
		require.Equal(t, http.StatusOK, ask("PUT", other))
		time.Sleep(grace / 10)
	}
}

func TestHandler_Refuses(t *testing.T) {
	t.Parallel()
	m, id := session(t)
	s := serve(t, m, false, func(http.ResponseWriter, *http.Request) {})
	status := func(s *httptest.Server, id string) int {
		answer, err := get(t, s, id)
		require.NoError(t, err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.False(t, id != "" && strings.Contains(string(body), id))
		return answer.StatusCode
	}
	require.Equal(t, http.StatusOK, status(s, id))
	require.Equal(t, http.StatusUnauthorized, status(s, ""))
	require.Equal(t, http.StatusUnauthorized, status(s, tombstore.NewID()))
	require.NoError(t, m.Invalidate(t.Context(), id))
	require.Equal(t, http.StatusUnauthorized, status(s, id))
	away := serve(t, down{m}, false, func(http.ResponseWriter, *http.Request) {})
	require.Equal(t, http.StatusServiceUnavailable, status(away, id))
}

// down is a store whose server is down.
type down struct{ *tombstore.MemoryStore }

func (down) Watch(context.Context, string) (context.Context, error) {
	return nil, errors.New("no server")
}
