package redistest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

const patience = 20 * time.Second // for a server to answer

var errNoServer = errors.New("redistest: no server: install redis-server or valkey-server, " +
	"set TOMBSTORE_REDIS to the URL of one, or start Docker")

// Server is a server on a loopback port of its own.
type Server struct {
	URL  string
	Addr string

	port int
	args []string
	env  []string // further environment variables, if it is a process

	// One of the two runs it.
	process   *process
	container *container
}

// Start starts a server with further arguments and stops it when the test ends.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := New(args...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

// StartCluster starts a cluster of one node and stops it when the test ends.
func StartCluster(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := NewCluster(args...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

// NewCluster starts a cluster of one node, outside of a test. The caller must call Stop.
func NewCluster(args ...string) (*Server, error) {
	s, err := New(append([]string{"--cluster-enabled", "yes"}, args...)...)
	if err != nil {
		return nil, err
	}
	if err := s.serveAllSlots(); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Server) serveAllSlots() error {
	option, err := rueidis.ParseURL(s.URL)
	if err != nil {
		return err
	}
	option.ForceSingleClient, option.DisableCache = true, true
	client, err := rueidis.NewClient(option)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	do := func(command ...string) rueidis.RedisResult {
		return client.Do(ctx, client.B().Arbitrary(command...).Build())
	}
	if err := do("CLUSTER", "ADDSLOTSRANGE", "0", strconv.Itoa(Slots-1)).Error(); err != nil {
		return err
	}
	for {
		switch info, err := do("CLUSTER", "INFO").ToString(); {
		case err != nil:
			return err
		case strings.Contains(info, "cluster_state:ok"):
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill ends the server at once, as SIGKILL does. What it had not persisted is lost.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if s.process != nil {
		s.process.kill()
		return
	}
	require.NoError(t, s.container.kill())
}

// Pause stops the server's process (SIGSTOP): its connections stay open, and nothing answers. Only
// for a server that is a process. It skips the test on a system that cannot stop one.
func (s *Server) Pause(t testing.TB) {
	t.Helper()
	err := s.Suspend()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
}

// Resume lets a paused server go on.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	require.NoError(t, s.Wake())
}

// Suspend is Pause outside of a test. Wake ends it.
func (s *Server) Suspend() error { return s.signal(stop) }

// Wake lets a suspended server go on.
func (s *Server) Wake() error { return s.signal(goOn) }

func (s *Server) signal(sig os.Signal) error {
	if s.process == nil {
		return errors.New("redistest: a container takes no signals")
	}
	if sig == nil {
		return fmt.Errorf("redistest: stop a process: %w", errors.ErrUnsupported)
	}
	return s.process.server.Process.Signal(sig)
}

// Restart starts a killed server again: same address, same arguments, same directory.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Relaunch(t)
	require.NoError(t, s.await())
}

// Relaunch is Restart for a test that meets the server while it is loading its data, or does not
// listen yet.
func (s *Server) Relaunch(t testing.TB) {
	t.Helper()
	var err error
	if s.process != nil {
		s.process, err = launch(s.process.command, s.process.dir, s.env)
	} else {
		err = s.container.restart()
	}
	require.NoError(t, err)
}

// Replicaof returns the arguments that make another server a replica of s.
func (s *Server) Replicaof(t testing.TB) []string {
	t.Helper()
	if s.process != nil {
		return []string{"--replicaof", "127.0.0.1 " + strconv.Itoa(s.port)}
	}
	ip, err := s.container.ip() // the loopback of a container is its own
	require.NoError(t, err)
	return []string{"--replicaof", ip + " 6379"}
}

// New starts a server with further arguments, outside of a test. The caller must call Stop.
func New(args ...string) (*Server, error) { return newWithEnv(nil, args) }

func newWithEnv(env, args []string) (*Server, error) {
	command := serverCommand()
	if command == nil {
		return newInContainer(args)
	}
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		return nil, err
	}
	for range 5 { // somebody else may take the port first
		s := newServer(args)
		s.env = env
		s.process, err = launch(append(append(command, s.arguments("127.0.0.1", s.port)...), "--dir", dir), dir, env)
		if err == nil {
			if err = s.await(); err == nil {
				return s, nil
			}
			s.process.kill()
		}
	}
	return nil, errors.Join(err, os.RemoveAll(dir))
}

func newInContainer(args []string) (*Server, error) {
	s := newServer(args)
	var err error
	if s.container, err = startContainer(s); err != nil {
		return nil, fmt.Errorf("%w (container: %w)", errNoServer, err)
	}
	if err := s.await(); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// serverCommand returns the command line that starts a server, or nil if it takes a container.
func serverCommand() []string {
	switch command := os.Getenv("TOMBSTORE_SERVER"); command {
	case "":
	case "container":
		return nil
	default:
		return strings.Fields(command)
	}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return []string{path}
		}
	}
	return nil
}

func newServer(args []string) *Server {
	port := FreePort()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return &Server{URL: "redis://" + addr, Addr: addr, port: port, args: args}
}

var ports sync.Map // that servers of this process have had

// FreePort returns a port on which nothing listens. No two servers of a process get the same one,
// or a server that is started again would meet another one in its place. It is below those that the
// system takes for connections, and so is the one that is 10,000 higher, which a node of a cluster
// takes, too.
func FreePort() int {
	for {
		port := 10_000 + rand.IntN(10_000)
		if _, had := ports.LoadOrStore(port, true); had {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			l.Close()
			return port
		}
	}
}

func (s *Server) arguments(bind string, port int) []string {
	return append([]string{
		"--bind", bind, "--port", strconv.Itoa(port), "--protected-mode", "no", "--save", "", "--loglevel", "warning",
		"--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", strconv.Itoa(s.port), // which clients can reach
		"--repl-timeout", "20", // a replica whose first attempt hangs tries again within patience
	}, s.args...)
}

// Stop kills the server and removes what it has stored.
func (s *Server) Stop() error {
	if s.process == nil {
		return s.container.remove()
	}
	s.process.kill()
	return os.RemoveAll(s.process.dir)
}

// await waits until the server answers PING with anything but LOADING.
func (s *Server) await() error {
	var err error
	until := time.Now().Add(patience)
	loading := until.Add(5 * patience) // a server that loads makes progress
	for ; time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		var answer string
		if answer, err = ping(s.Addr); err == nil && !strings.HasPrefix(answer, "-LOADING") {
			return nil
		}
		if err == nil {
			err, until = errors.New(strings.TrimSpace(answer)), loading
		}
		if s.process != nil && s.process.exited() {
			return fmt.Errorf("redistest: server exited: %s", s.process.output())
		}
	}
	return fmt.Errorf("redistest: server does not answer: %w", err)
}

func ping(addr string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

// process is a server that this process started. A shell kills it when this process ends, however
// it ends.
type process struct {
	command []string
	dir     string
	server  *exec.Cmd
	leash   io.Closer
	done    chan struct{}
	log     *os.File
}

func launch(command []string, dir string, env []string) (*process, error) {
	log, err := os.CreateTemp(dir, "log")
	if err != nil {
		return nil, err
	}
	p := &process{command: command, dir: dir, done: make(chan struct{}), log: log}
	p.server = exec.Command(command[0], command[1:]...)
	p.server.Env = append(os.Environ(), env...)
	p.server.Stdout, p.server.Stderr = log, log
	if err := p.server.Start(); err != nil {
		return nil, err
	}
	guard := exec.Command("sh", "-c", `read -r _; kill -9 "$1" 2>/dev/null`, "sh", strconv.Itoa(p.server.Process.Pid))
	if p.leash, err = guard.StdinPipe(); err == nil {
		err = guard.Start()
	}
	go func() {
		defer close(p.done)
		_ = p.server.Wait()
		if err == nil {
			_ = guard.Wait()
		}
	}()
	if err != nil {
		_ = p.server.Process.Kill()
	}
	return p, err
}

func (p *process) kill() {
	_ = p.server.Process.Kill()
	p.leash.Close()
	<-p.done
	p.log.Close()
}

func (p *process) exited() bool { return p.server.Process.Signal(syscall.Signal(0)) != nil }

func (p *process) output() string {
	b, _ := os.ReadFile(p.log.Name())
	return string(b)
}
