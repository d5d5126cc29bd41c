// Package clocks moves the clocks of servers by seconds and by hours, ahead and back.
package clocks

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

const (
	hour     = time.Hour
	patience = 30 * time.Second
	n        = 100 // sessions a round
)

// library compiles what moves the clock, once.
var library = sync.OnceValues(func() (string, error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", err
	}
	source, err := filepath.Abs("testdata/skew.c")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "skew.so")
	out, err := exec.Command(cc, "-shared", "-fPIC", "-O2", "-o", path, source).CombinedOutput()
	if err != nil {
		err = errors.New(err.Error() + ": " + string(out))
	}
	return path, err
})

var dir string // of the library

func TestMain(m *testing.M) {
	var err error
	if dir, err = os.MkdirTemp("", "skew"); err != nil {
		panic(err)
	}
	code := redistest.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// server is one whose clock can be moved.
type server struct {
	*redistest.Server
	client rueidis.Client
	file   string
}

// start starts a server whose clock is off by skew.
func start(t *testing.T, skew time.Duration, args ...string) *server {
	t.Helper()
	if redistest.InContainer() {
		t.Skip("the clock of a container cannot be moved")
	}
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("no C compiler to make the library that moves a server's clock")
	}
	so, err := library()
	require.NoError(t, err)
	s := &server{file: filepath.Join(t.TempDir(), "skew")}
	require.NoError(t, os.WriteFile(s.file, make([]byte, 8), 0o600))
	s.Server = redistest.StartEnv(t, []string{"LD_PRELOAD=" + so, "SKEW=" + s.file}, args...)
	s.client = redistest.Dial(t, s.URL, func(o *rueidis.ClientOption) { o.ForceSingleClient = true })
	s.move(t, skew)
	return s
}

// move sets the server's clock to be ahead of the true one by skew, and waits until the server
// shows it.
func (s *server) move(t *testing.T, skew time.Duration) {
	t.Helper()
	f, err := os.OpenFile(s.file, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(skew/time.Second))), 0) // in place: the server has mapped it
	require.NoError(t, err)
	require.NoError(t, f.Close())
	for until := time.Now().Add(patience); ; {
		now, err := s.client.Do(t.Context(), s.client.B().Time().Build()).AsStrSlice()
		require.NoError(t, err)
		seconds, err := strconv.ParseInt(now[0], 10, 64)
		require.NoError(t, err)
		off := time.Until(time.Unix(seconds, 0)) - skew
		if off.Abs() < 3*time.Second { // TIME was cut to seconds, and its reply may have taken long
			return
		}
		if time.Now().After(until) {
			t.Skip("the server's clock cannot be moved: it does not ask the C library for the time")
		}
	}
}

func (s *server) store(t *testing.T, opts ...tombstore.Option) *tombstore.RedisStore {
	t.Helper()
	store, err := tombstore.New(s.client, append([]tombstore.Option{tombstore.WithTimeout(patience)}, opts...)...)
	require.NoError(t, err)
	return store
}

// session is what a late writer holds.
type session struct {
	id   string
	held tombstore.Session
}

func create(t *testing.T, s tombstore.Store, ttl time.Duration) (list []session) {
	t.Helper()
	for range n {
		id := tombstore.NewID()
		w, err := s.Write(t.Context(), id, []byte("x"), ttl, tombstore.IfAbsent())
		require.NoError(t, err)
		list = append(list, session{id, w})
	}
	return list
}

func end(t *testing.T, s tombstore.Store, list []session) {
	t.Helper()
	for _, x := range list {
		require.NoError(t, s.Invalidate(t.Context(), x.id))
	}
}

func live(t *testing.T, s tombstore.Store, list []session) (count int64) {
	t.Helper()
	for _, x := range list {
		if _, err := s.Read(t.Context(), x.id); !faults.Gone(t, err) {
			count++
		}
	}
	return count
}

// late lets late requests go on with what they hold, in every way that needs a live session. It
// returns how many attempts there were, and how many of them, and of the reads after them, found
// the session live.
func late(t *testing.T, s tombstore.Renewer, list []session) (checked, violations int64) {
	t.Helper()
	for _, x := range list {
		_, present := s.Write(t.Context(), x.id, []byte("late"), hour, tombstore.IfPresent())
		_, match := s.Write(t.Context(), x.id, []byte("late"), hour, tombstore.IfVersion(x.held.Version))
		_, replace := s.Write(t.Context(), x.id, []byte("late"), hour, tombstore.Replacing(x.held))
		_, slide := s.Read(t.Context(), x.id, tombstore.Slide(hour))
		_, rotate := s.Rotate(t.Context(), x.id, tombstore.NewID())
		_, renew := s.BeginRenewal(t.Context(), x.id, 0)
		_, finish := s.FinishRenewal(t.Context(), tombstore.Renewal{Ref: tombstore.Ref(x.id)}, tombstore.NewID(), []byte("late"), hour)
		for _, err := range []error{present, match, replace, slide, rotate, renew, finish, s.Touch(t.Context(), x.id, hour)} {
			checked++
			if !faults.Gone(t, err) {
				violations++
			}
		}
	}
	return checked + int64(len(list)), violations + live(t, s, list)
}

// blind lets late requests write without a condition, and counts those that make the session live.
func blind(t *testing.T, s tombstore.Store, list []session) (violations int64) {
	t.Helper()
	for _, x := range list {
		if _, err := s.Write(t.Context(), x.id, []byte("late"), hour); !faults.Gone(t, err) {
			violations++
		}
	}
	return violations
}

// rows add up what the rounds of a test find, by fault.
type rows map[string]*faults.Row

func (r rows) add(kind faults.Kind, fault string, checked, violations int64) {
	row := r[fault]
	if row == nil {
		row = &faults.Row{Kind: kind, Fault: fault}
		r[fault] = row
	}
	row.Injected++
	row.Checked += checked
	row.Violations += violations
}

func (r rows) report(t *testing.T) {
	t.Helper()
	for _, row := range r {
		faults.Report(t, *row)
	}
}

// TestJump moves the clock of a server ahead and back, by more than a tombstone lives.
func TestJump(t *testing.T) {
	t.Parallel()
	server := start(t, 0)
	s, r := server.store(t), rows{}
	faults.Repeat(t, 1, 1, func() {
		ended, loggedIn := create(t, s, hour), create(t, s, hour)
		end(t, s, ended)
		server.move(t, 30*hour)
		checked, violations := late(t, s, ended)
		r.add(faults.Promised, "clock jumps 30 h ahead: late requests with conditions", checked, violations)
		r.add(faults.Unpromised, "clock jumps 30 h ahead: sessions expired early", n, n-live(t, s, loggedIn))
		server.move(t, 0)
		checked, violations = late(t, s, ended)
		r.add(faults.Promised, "clock jumps 30 h ahead and back: late requests with conditions", checked, violations)

		ended = create(t, s, hour)
		end(t, s, ended)
		server.move(t, 30*hour)
		r.add(faults.Unpromised, "clock jumps 30 h ahead: late writes without a condition", n, blind(t, s, ended))
		server.move(t, 0)

		// What is ended while the clock is behind has a tombstone that lasts when it is put right.
		behind := create(t, s, hour)
		ended = create(t, s, hour)
		end(t, s, ended)
		server.move(t, -30*hour)
		checked, violations = late(t, s, ended)
		r.add(faults.Promised, "clock jumps 30 h back: late requests, with and without conditions", checked+n, violations+blind(t, s, ended))
		end(t, s, behind)
		server.move(t, 0)
		checked, violations = late(t, s, behind)
		r.add(faults.Promised, "clock 30 h behind during the end, then right: late requests, with and without conditions",
			checked+n, violations+blind(t, s, behind))
	})
	r.report(t)
}

// TestLate keeps sessions past their idle timeout by setting the clock back.
func TestLate(t *testing.T) {
	t.Parallel()
	server := start(t, 0)
	s := server.store(t)
	list := create(t, s, 2*time.Second)
	expired := time.Now().Add(2 * time.Second)
	server.move(t, -30*hour)
	time.Sleep(time.Until(expired))
	faults.Report(t, faults.Row{
		Kind: faults.Unpromised, Fault: "clock set back: sessions served past their idle timeout", Injected: 1, Checked: n,
		Violations: live(t, s, list),
	})
}

// TestDeadline keeps records past their absolute deadline: the sessions are an hour past it, and
// the server's clock, set back, is where it was when they were created.
func TestDeadline(t *testing.T) {
	t.Parallel()
	server := start(t, -30*hour)
	s := server.store(t, tombstore.WithAbsoluteTimeout(29*hour))
	cached, err := tombstore.Open(server.URL, tombstore.WithTimeout(patience), tombstore.WithClientCache(hour))
	require.NoError(t, err)
	defer cached.Close()
	list := create(t, s, 100*hour)

	var stored int64
	for _, key := range redistest.Keys(t.Context(), server.client, "tombstore:") {
		value, err := server.client.Do(t.Context(), server.client.B().Get().Key(key).Build()).AsBytes()
		require.NoError(t, err)
		if len(value) > 0 {
			stored++
		}
	}
	faults.Report(t, faults.Row{
		Kind: faults.Seeded, Fault: "clock set back: absolute deadline, read by GET", Injected: 1, Checked: n, Violations: stored,
	})
	var served, written int64
	for _, x := range list {
		_, slide := s.Read(t.Context(), x.id, tombstore.Slide(hour))
		_, twice := cached.Read(t.Context(), x.id)
		exists, err := s.Exists(t.Context(), x.id)
		require.NoError(t, err)
		for _, found := range []bool{!faults.Gone(t, slide), !faults.Gone(t, twice), exists} {
			if found {
				served++
			}
		}
		if _, err := s.Write(t.Context(), x.id, []byte("late"), 100*hour, tombstore.IfPresent()); !faults.Gone(t, err) {
			written++
		}
	}
	served += live(t, s, list) // after the writes, too, which keep the deadline
	faults.Report(t, faults.Row{
		Kind: faults.Promised, Fault: "clock set back: sessions served past their absolute deadline", Injected: 1, Checked: 4 * n,
		Violations: served,
	})
	faults.Report(t, faults.Row{
		Kind: faults.Unpromised, Fault: "clock set back: writes with IfPresent past the absolute deadline", Injected: 1, Checked: n,
		Violations: written,
	})
}

// TestPromotion kills the primary and promotes a replica whose clock is another.
func TestPromotion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		skew time.Duration
	}{{"30 h ahead", 30 * hour}, {"30 h behind", -30 * hour}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rows{}
			faults.Repeat(t, 1, 1, func() {
				primary := start(t, 0, "--repl-diskless-sync-delay", "0")
				replica := start(t, c.skew, primary.Replicaof(t)...)
				for until := time.Now().Add(patience); ; { // it follows once WAIT has counted it
					require.NoError(t, primary.client.Do(t.Context(), primary.client.B().Set().Key("probe").Value("x").Build()).Error())
					acks, err := primary.client.Do(t.Context(), primary.client.B().Arbitrary("WAIT", "1", "500").Build()).AsInt64()
					require.NoError(t, err)
					if acks == 1 {
						break
					}
					require.True(t, time.Now().Before(until), "the replica does not follow")
				}
				s := primary.store(t, tombstore.WithReplicaAcks(1, patience))
				ended, others := create(t, s, hour), create(t, s, hour)
				end(t, s, ended)
				end(t, s, others)
				primary.Kill(t)
				require.NoError(t, replica.client.Do(t.Context(), replica.client.B().Arbitrary("REPLICAOF", "NO", "ONE").Build()).Error())

				promoted := replica.store(t)
				checked, violations := late(t, promoted, ended)
				r.add(faults.Promised, "replica "+c.name+" promoted: late requests with conditions", checked, violations)
				r.add(faults.Unpromised, "replica "+c.name+" promoted: late writes without a condition", n, blind(t, promoted, others))
				replica.Kill(t)
			})
			r.report(t)
		})
	}
}
