package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// bench is a store with a prefix of its own, and the commands on it.
type bench struct {
	*tombstore.RedisStore
	*testing.T
	client      rueidis.Client
	url, prefix string
}

func newBench(t *testing.T, opts ...tombstore.Option) *bench {
	t.Parallel()
	client := redistest.Client(t)
	prefix := redistest.Prefix(t, client)
	s, err := tombstore.New(client, append(opts, tombstore.WithKeyPrefix(prefix))...)
	require.NoError(t, err)
	return &bench{s, t, client, redistest.URL(t), prefix}
}

// begin returns a live session's id and ref.
func (b *bench) begin() (id, ref string) {
	b.Helper()
	id = tombstore.NewID()
	_, err := b.Write(b.Context(), id, []byte("secret"), time.Minute)
	require.NoError(b, err)
	return id, tombstore.Ref(id)
}

func (b *bench) do(command ...string) {
	b.Helper()
	require.NoError(b, b.client.Do(b.Context(), b.client.B().Arbitrary(command...).Build()).Error())
}

// run runs a command and returns its exit status and the lines that it has written.
func (b *bench) run(command string, refs ...string) (status int, lines []string, stderr string) {
	b.Helper()
	return b.runWith("", append([]string{command, b.url}, refs...)...)
}

// runWith runs a command line, in which the prefix is missing, with a standard input.
func (b *bench) runWith(stdin string, args ...string) (status int, lines []string, stderr string) {
	b.Helper()
	args = append([]string{args[0], "-prefix", b.prefix}, args[1:]...)
	status, stdout, stderr := callWith(b.T, stdin, args...)
	require.NotContains(b, stdout+stderr, "secret")
	return status, strings.Split(strings.TrimSuffix(stdout, "\n"), "\n"), stderr
}

// state returns what inspect says of a ref.
func (b *bench) state(ref string) string {
	b.Helper()
	status, lines, stderr := b.run("inspect", ref)
	require.Equal(b, exitOK, status, stderr)
	require.Len(b, lines, 1)
	text, found := strings.CutPrefix(lines[0], ref+"  ")
	require.True(b, found)
	return text
}

const timePattern = `20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`

func TestInspect(t *testing.T) {
	b := newBench(t)
	id, ref := b.begin()
	require.Regexp(t, `^live, created at `+timePattern+`, expires in (1m0|59)s$`, b.state(ref))
	b.do("PERSIST", b.prefix+ref)
	require.Regexp(t, `^live, created at `+timePattern+`, never expires$`, b.state(ref))

	next := tombstore.NewID()
	_, err := b.Rotate(t.Context(), id, next)
	require.NoError(t, err)
	require.Regexp(t, `^ended \(rotated\) at `+timePattern+`, moved to `+tombstore.Ref(next)+
		`, tombstone expires in (24h0m0|23h59m59)s$`, b.state(ref))

	renewal, err := b.BeginRenewal(t.Context(), next, 0)
	require.NoError(t, err)
	require.Contains(t, b.state(renewal.Ref), "ended (rotated) at ")
	require.Contains(t, b.state(renewal.Ref), ", a renewal is under way, tombstone expires in ")
	require.NoError(t, b.CancelRenewal(t.Context(), renewal))
	require.NotContains(t, b.state(renewal.Ref), "renewal")
	b.do("PERSIST", b.prefix+ref)
	require.Contains(t, b.state(ref), ", tombstone never expires")

	require.NoError(t, b.Invalidate(t.Context(), id))
	require.Contains(t, b.state(renewal.Ref), "ended (logout) at ")

	require.Equal(t, "absent", b.state(tombstore.Ref("none")))
}

func TestInspect_Deadline(t *testing.T) {
	b := newBench(t, tombstore.WithAbsoluteTimeout(time.Hour))
	_, ref := b.begin()
	require.Regexp(t, `expires in (1m0|59)s, deadline `+timePattern+`$`, b.state(ref))
}

func TestInspect_Sealed(t *testing.T) {
	b := newBench(t, tombstore.WithSealedData())
	_, ref := b.begin()
	require.Regexp(t, `^live, created at `+timePattern+`, expires in (1m0|59)s$`, b.state(ref))
}

// Owner and label are shown, and nothing of the data behind them.
func TestInspect_Owner(t *testing.T) {
	b := newBench(t)
	for _, label := range []string{"", "phone\x1b[2J", strings.Repeat("x", 1024)} {
		id, ref := b.logIn(alice, label)
		_, err := b.Write(t.Context(), id, []byte("\x02\x00\x06secret"), time.Minute, tombstore.IfPresent()) // as a label
		require.NoError(t, err)
		want := `, owner ` + tombstore.Ref(alice)
		if label != "" {
			want += `, label ` + strconv.QuoteToASCII(label)
		}
		require.Regexp(t, `, deadline `+timePattern+regexp.QuoteMeta(want)+`$`, b.state(ref))
	}
}

// A foreign value is an error, as it is to list. The fields and flags of a later edition are no
// reason to call a value so.
func TestInspect_ForeignValues(t *testing.T) {
	b := newBench(t)
	ref := tombstore.Ref("x")
	key := b.prefix + ref
	end, rest := "\xC0\x00\x01\x00\x00\x00\x00\x00\x01", strings.Repeat("\x00", 20)
	for _, command := range [][]string{
		{"SET", key, "something"},
		{"SET", key, "\xC1\x80" + rest},
		{"LPUSH", key, "x"},
		{"HSET", key, "field", "x"},
		{"HSET", key, "t", end[:8]},
		{"HSET", key, "t", "\xC0\x80" + end[2:]},
		{"HSET", key, "t", end, "s", "\x1b[2J"},
	} {
		b.do("DEL", key)
		b.do(command...)
		status, lines, _ := b.run("inspect", ref)
		require.Equal(t, []string{ref + "  foreign value"}, lines, "%q", command)
		require.Equal(t, exitFailed, status, "%q", command)
	}
	for _, command := range [][]string{
		{"SET", key, "\xC1\x7F" + rest + "data"},
		{"HSET", key, "t", "\xC0\x7F" + end[2:] + "more", "z", "x"},
	} {
		b.do("DEL", key)
		b.do(command...)
		require.NotEqual(t, "foreign value", b.state(ref), "%q", command)
	}
}

func TestInspect_GoesOn(t *testing.T) {
	b := newBench(t)
	_, ref := b.begin()
	bad := "-" + ref[1:len(ref)-1] // the last character is missing
	status, lines, stderr := b.run("inspect", "no ref", tombstore.NewID(), ref, bad)
	require.Equal(t, exitFailed, status)
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], ref+"  live")
	require.Equal(t, "ref 1  is no ref of a session\nref 2  is no ref of a session\nref 4  is no ref of a session\n", stderr)
}

func TestInvalidate(t *testing.T) {
	b := newBench(t)
	one, ref := b.begin()
	_, other := b.begin()
	status, lines, _ := b.run("invalidate", ref, other)
	require.Equal(t, exitOK, status)
	require.Equal(t, []string{ref + "  ended", other + "  ended", "ended 2 of 2"}, lines)
	_, err := b.Read(t.Context(), one)
	var end *tombstore.InvalidatedError
	require.ErrorAs(t, err, &end)
	require.Equal(t, tombstore.Revoked, end.Reason)

	status, lines, _ = b.run("invalidate", ref)
	require.Equal(t, exitOK, status)
	require.Regexp(t, `^\S+  had been ended before \(revoked\) at `+timePattern+`$`, lines[0])
	require.Equal(t, "ended nothing", lines[1])
}

func TestInvalidate_Absent(t *testing.T) {
	b := newBench(t)
	id := tombstore.NewID()
	ref := tombstore.Ref(id)
	status, lines, _ := b.run("invalidate", ref)
	require.Equal(t, exitFailed, status)
	require.Equal(t, []string{ref + "  was absent, and is refused from now on", "ended nothing"}, lines)
	_, err := b.Write(t.Context(), id, nil, time.Minute)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
}

// An end by a ref reaches the session where it is.
func TestInvalidate_Follows(t *testing.T) {
	b := newBench(t)
	id, ref := b.begin()
	next := tombstore.NewID()
	_, err := b.Rotate(t.Context(), id, next)
	require.NoError(t, err)
	status, lines, _ := b.run("invalidate", ref)
	require.Equal(t, exitOK, status)
	require.Equal(t, []string{ref + "  ended", "ended 1 of 1"}, lines)
	_, err = b.Read(t.Context(), next)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
}

func TestInvalidate_GoesOn(t *testing.T) {
	b := newBench(t)
	_, ref := b.begin()
	foreign := tombstore.Ref("foreign")
	b.do("SET", b.prefix+foreign, "x")
	status, lines, stderr := b.run("invalidate", "no ref", "-no ref", foreign, ref)
	require.Equal(t, exitFailed, status)
	require.Equal(t, []string{ref + "  ended", "ended 1 of 4"}, lines)
	require.Contains(t, stderr, "ref 1  is no ref of a session\nref 2  is no ref of a session\n")
	require.Contains(t, stderr, foreign+"  tombstore: invalidate: "+tombstore.ErrCorrupt.Error()+"\n")
}

func TestList(t *testing.T) {
	b := newBench(t)
	_, ref := b.begin()
	between, _ := b.begin()
	renewal, err := b.BeginRenewal(t.Context(), between, 0)
	require.NoError(t, err)
	ended, _ := b.begin()
	require.NoError(t, b.Invalidate(t.Context(), ended))
	status, lines, _ := b.run("list")
	require.Equal(t, exitOK, status)
	require.Len(t, lines, 2)
	require.Regexp(t, `^`+ref+`  live, created at `+timePattern+`$`, lines[0])
	require.Equal(t, renewal.Ref+"  pending: between two ids", lines[1])

	b.do("SET", b.prefix+tombstore.Ref("foreign"), "x")
	status, lines, stderr := b.run("list")
	require.Equal(t, exitFailed, status)
	require.Len(t, lines, 2, "it goes on")
	require.Contains(t, stderr, tombstore.Ref("foreign")+"  tombstore: list: ")
}

// A session that is between two ids is live for whoever wants it ended.
func TestInvalidate_Pending(t *testing.T) {
	b := newBench(t)
	id, ref := b.begin()
	renewal, err := b.BeginRenewal(t.Context(), id, 0)
	require.NoError(t, err)
	status, lines, stderr := b.run("invalidate", ref)
	require.Equal(t, exitOK, status, stderr)
	require.Equal(t, []string{ref + "  ended between two ids", "ended 1 of 1"}, lines)
	_, err = b.FinishRenewal(t.Context(), renewal, tombstore.NewID(), nil, time.Minute)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
}

// A flag behind the URL would be lost, and the command would look at another store.
func TestFlagsBehindTheURL(t *testing.T) {
	b := newBench(t)
	_, ref := b.begin()
	for _, args := range [][]string{
		{"invalidate", b.url, ref, "-prefix", b.prefix}, {"list", b.url, "-prefix", b.prefix}, {"doctor", b.url, "-json"},
	} {
		status, _, _ := call(t, args...)
		require.Equal(t, exitUsage, status, args[0])
	}
	require.Contains(t, b.state(ref), "live")
}
