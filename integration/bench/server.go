package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tombstore/tombstore/internal/redistest"
)

// server is a Redis or Valkey server on loopback, without persistence.
type server struct{ *redistest.Server }

// version returns the name and the release.
func (s server) version() (string, error) {
	text, err := s.ask("INFO server")
	if err != nil {
		return "", err
	}
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields[name] = value
	}
	if valkey := fields["valkey_version"]; valkey != "" {
		return "Valkey " + valkey, nil
	}
	return "Redis " + fields["redis_version"], nil
}

// ask sends one command in the inline form and returns the reply's text.
func (s server) ask(command string) (string, error) {
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		return "", err
	}
	return reply(bufio.NewReader(conn))
}

// reply reads a reply that is no array.
func reply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil || line[0] != '$' {
		return strings.TrimSpace(line), err
	}
	var n int
	if _, err := fmt.Sscanf(line, "$%d", &n); err != nil || n < 0 {
		return "", err
	}
	text := make([]byte, n+2)
	_, err = io.ReadFull(r, text)
	return string(text[:n]), err
}

// info returns a number from INFO.
func (s server) info(field string) (n float64, err error) {
	text, err := s.ask("INFO everything")
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name == field {
			_, err = fmt.Sscan(value, &n)
		}
	}
	return n, err
}

// stored returns what the server's data takes, in bytes.
func (s server) stored() (float64, error) {
	used, err := s.info("used_memory")
	if err != nil {
		return 0, err
	}
	clients, err := s.info("mem_clients_normal")
	return used - clients, err
}

// seconds returns the processor time that the server has used.
func (s server) seconds() (sum float64, err error) {
	text, err := s.ask("INFO cpu")
	for line := range strings.Lines(text) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "used_cpu_user", "used_cpu_sys":
			var x float64
			if _, err := fmt.Sscan(value, &x); err != nil {
				return 0, err
			}
			sum += x
		}
	}
	return sum, err
}

// unasked does do once for each of n sessions, and fails unless the server is (nearly) never asked.
func (s server) unasked(
	ctx context.Context, name string, n int, do func(ctx context.Context, i int) error,
) error {
	before, err := s.info("total_commands_processed")
	if err != nil {
		return err
	}
	if err := each(ctx, 1, n, do); err != nil {
		return err
	}
	after, err := s.info("total_commands_processed")
	if asked := after - before; err == nil && asked > float64(n)/20+20 { // a canary and PINGs may be among them
		err = fmt.Errorf("%s: the server has been sent %.0f commands for %d sessions", name, asked, n)
	}
	return err
}

// relay passes connections on, each chunk delay later, until it is told to be silent.
type relay struct {
	listener net.Listener
	target   string
	delay    time.Duration
	silent   atomic.Bool
}

func newRelay(target string, delay time.Duration) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{listener: l, target: target, delay: delay}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			go r.pump(upstream, client)
			go r.pump(client, upstream)
		}
	}()
	return r, nil
}

func (r *relay) url() string { return "redis://" + r.listener.Addr().String() }

func (r *relay) close() { r.listener.Close() }

type chunk struct {
	at   time.Time
	data []byte
}

func (r *relay) pump(to, from net.Conn) {
	defer to.Close()
	chunks := make(chan chunk, 1024)
	go func() {
		defer close(chunks)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			chunks <- chunk{time.Now().Add(r.delay), buf[:n]}
		}
	}()
	for c := range chunks {
		time.Sleep(time.Until(c.at))
		if r.silent.Load() {
			continue
		}
		if _, err := to.Write(c.data); err != nil {
			return
		}
	}
}
