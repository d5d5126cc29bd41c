package main

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// Owners whose names no output may contain: bench.runWith looks for the word.
const (
	alice = "alice (secret)"
	bob   = "bob (secret)"
)

// logIn returns a live session's id and ref.
func (b *bench) logIn(owner, label string, opts ...tombstore.ReserveOption) (id, ref string) {
	b.Helper()
	id = tombstore.NewID()
	login, err := b.BeginLogin(b.Context(), owner)
	require.NoError(b, err)
	opts = append(opts, tombstore.Until(time.Now().Add(time.Hour)), tombstore.Label(label))
	binding, err := b.Reserve(b.Context(), id, login, opts...)
	require.NoError(b, err)
	_, err = b.Write(b.Context(), id, []byte("secret"), time.Minute, tombstore.Bound(binding))
	require.NoError(b, err)
	return id, binding.Ref
}

func TestList_Owner(t *testing.T) {
	b := newBench(t)
	_, phone := b.logIn(alice, "phone\x1b[2J")
	_, laptop := b.logIn(alice, "")
	_, other := b.logIn(bob, "")
	ended, _ := b.logIn(alice, "")
	require.NoError(t, b.Invalidate(t.Context(), ended))

	shown := func(ref, expiry, owner string) string {
		return `(?m)^` + ref + `  live, created at ` + timePattern + expiry + `, deadline ` + timePattern +
			`, owner ` + tombstore.Ref(owner)
	}
	const expiry = `, expires in (1m0|59)s`
	status, lines, stderr := b.runWith("", "list", "-owner", b.url, alice, bob)
	require.Equal(t, exitOK, status, stderr)
	require.Len(t, lines, 3)
	text := strings.Join(lines, "\n")
	require.Regexp(t, shown(phone, expiry, alice)+`, label "phone\\x1b\[2J"$`, text)
	require.Regexp(t, shown(laptop, expiry, alice)+`$`, text)
	require.Regexp(t, shown(other, expiry, bob)+`$`, lines[2])

	status, lines, _ = b.run("list")
	require.Equal(t, exitOK, status)
	require.Regexp(t, shown(other, "", bob)+`$`, strings.Join(lines, "\n"))
}

func TestList_OwnerInOrder(t *testing.T) {
	b := newBench(t)
	for range 20 {
		b.logIn(alice, "")
	}
	status, lines, _ := b.runWith("", "list", "-owner", "-json", b.url, alice)
	require.Equal(t, exitOK, status)
	require.Len(t, lines, 20)
	var last time.Time
	for _, line := range lines {
		created := parse(t, line)["created_at"]
		at, err := time.Parse(time.RFC3339, created.(string))
		require.NoError(t, err)
		require.False(t, at.Before(last))
		last = at
	}
}

func TestList_OwnerWithoutSessions(t *testing.T) {
	b := newBench(t)
	status, lines, _ := b.runWith(bob+"\n", "list", "-owner", "-from=-", b.url)
	require.Equal(t, exitOK, status)
	require.Equal(t, []string{"owner " + tombstore.Ref(bob) + "  no live session"}, lines)
}

func TestOwner_GoesOn(t *testing.T) {
	b := newBench(t)
	_, ref := b.logIn(alice, "")
	_, damaged := b.logIn(alice, "")
	b.do("SET", b.prefix+damaged, "x")
	b.do("SET", b.prefix+"o:"+tombstore.Ref(bob), "x")
	corrupt := tombstore.ErrCorrupt.Error() + "\n"

	status, lines, stderr := b.runWith("", "list", "-owner", b.url, "", bob, alice)
	require.Equal(t, exitFailed, status)
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], ref+"  live")
	require.Equal(t, "owner 1  is empty\n"+
		"owner "+tombstore.Ref(bob)+"  tombstore: sessions: "+corrupt+
		"owner "+tombstore.Ref(alice)+"  tombstore: sessions: "+corrupt, stderr)

	status, lines, stderr = b.runWith("", "invalidate", "-owner", b.url, "", bob, alice)
	require.Equal(t, exitFailed, status)
	require.Equal(t, []string{"sessions ended in all: 1"}, lines)
	require.Equal(t, "owner 1  is empty\n"+
		"owner "+tombstore.Ref(bob)+"  tombstore: invalidate owner: "+corrupt+
		"owner "+tombstore.Ref(alice)+"  sessions ended: 1: tombstore: invalidate owner: "+corrupt, stderr)
	require.Contains(t, b.state(ref), "ended (revoked)")
}

func TestInvalidate_Owner(t *testing.T) {
	b := newBench(t)
	first, ref := b.logIn(alice, "")
	second, _ := b.logIn(alice, "")
	other, _ := b.logIn(bob, "")
	login, err := b.BeginLogin(t.Context(), alice)
	require.NoError(t, err)

	status, lines, stderr := b.runWith("", "invalidate", "-owner", b.url, alice)
	require.Equal(t, exitOK, status, stderr)
	require.Equal(t, []string{"owner " + tombstore.Ref(alice) + "  sessions ended: 2", "sessions ended in all: 2"}, lines)
	for _, id := range []string{first, second} {
		_, err := b.Read(t.Context(), id)
		require.ErrorIs(t, err, tombstore.ErrInvalidated)
	}
	require.Contains(t, b.state(ref), "ended (revoked)")
	_, err = b.Read(t.Context(), other)
	require.NoError(t, err)
	_, err = b.Reserve(t.Context(), tombstore.NewID(), login, tombstore.Until(time.Now().Add(time.Hour)))
	require.ErrorIs(t, err, tombstore.ErrStaleLogin)

	status, lines, _ = b.runWith("", "invalidate", "-owner", b.url, alice)
	require.Equal(t, exitOK, status)
	require.Equal(t, []string{"owner " + tombstore.Ref(alice) + "  had no live session", "ended nothing"}, lines)
}

// Nobody has logged in by this name, or the store has another prefix.
func TestInvalidate_UnknownOwner(t *testing.T) {
	b := newBench(t)
	status, lines, _ := b.runWith("", "invalidate", "-owner", b.url, bob)
	require.Equal(t, exitFailed, status)
	require.Equal(t, []string{"owner " + tombstore.Ref(bob) + "  was not known", "ended nothing"}, lines)
}

func TestInvalidate_OwnerThorough(t *testing.T) {
	b := newBench(t)
	id, _ := b.logIn(alice, "")
	b.do("DEL", b.prefix+"o:"+tombstore.Ref(alice))
	status, _, _ := b.runWith("", "invalidate", "-owner", b.url, alice)
	require.Equal(t, exitFailed, status)
	_, err := b.Read(t.Context(), id)
	require.NoError(t, err)

	status, lines, _ := b.runWith("", "invalidate", "-owner", "-thorough", b.url, alice)
	require.Equal(t, exitOK, status)
	require.Equal(t, "owner "+tombstore.Ref(alice)+"  sessions ended: 1", lines[0])
	_, err = b.Read(t.Context(), id)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
}

// Those who watch are told, and do not have to look.
func TestInvalidate_Published(t *testing.T) {
	for _, flag := range []string{"-owner", "-id"} {
		t.Run(flag, func(t *testing.T) {
			b := newBench(t)
			id, ref := b.logIn(alice, "")
			messages := make(chan string, 1)
			go func() {
				_ = b.client.Receive(t.Context(), b.client.B().Subscribe().Channel(b.prefix+"ended").Build(),
					func(m rueidis.PubSubMessage) { messages <- m.Message })
			}()
			redistest.Until(t, "the subscription", func() bool {
				reply, err := b.client.Do(t.Context(), b.client.B().PubsubNumsub().Channel(b.prefix+"ended").Build()).AsIntMap()
				return err == nil && reply[b.prefix+"ended"] == 1
			})
			name := map[string]string{"-owner": alice, "-id": id}[flag]
			status, _, stderr := b.runWith(name, "invalidate", flag, "-from=-", b.url)
			require.Equal(t, exitOK, status, stderr)
			redistest.Until(t, "the message", func() bool {
				select {
				case key := <-messages:
					return key == b.prefix+ref
				default:
					return false
				}
			})
		})
	}
}
