package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

func TestFrom(t *testing.T) {
	b := newBench(t)
	first, ref := b.begin()
	second, other := b.begin()
	file := filepath.Join(t.TempDir(), "ids")
	require.NoError(t, os.WriteFile(file, []byte(first+"\r\n"+second), 0o600)) // as from Windows, without a last line break

	status, lines, stderr := b.runWith(ref+"\n"+other+"\n", "inspect", "-from", "-", b.url)
	require.Equal(t, exitOK, status, stderr)
	require.Len(t, lines, 2)
	require.Contains(t, lines[0], ref+"  live")

	status, ofIDs, _ := b.runWith("", "inspect", "-id", "-from", file, b.url)
	require.Equal(t, exitOK, status)
	require.Len(t, ofIDs, 2)
	require.Contains(t, ofIDs[0], ref+"  live")
	require.Contains(t, ofIDs[1], other+"  live")

	status, lines, stderr = b.runWith("", "invalidate", "-id", "-from", file, b.url)
	require.Equal(t, exitOK, status)
	require.Equal(t, []string{ref + "  ended", other + "  ended", "ended 2 of 2"}, lines)
	for _, id := range []string{first, second} {
		require.NotContains(t, strings.Join(append(ofIDs, lines...), "\n")+stderr, id)
		_, err := b.Read(t.Context(), id)
		require.ErrorIs(t, err, tombstore.ErrInvalidated)
	}
}

// The mark with which a file may begin is no part of an owner's name. A line that looks like a comment
// is a name.
func TestFrom_Names(t *testing.T) {
	b := newBench(t)
	b.logIn(alice, "")
	b.logIn("# "+bob, "")
	status, lines, stderr := b.runWith("\uFEFF"+alice+"\r\n# "+bob+"\n", "invalidate", "-owner", "-from=-", b.url)
	require.Equal(t, exitOK, status, stderr)
	require.Equal(t, []string{
		"owner " + tombstore.Ref(alice) + "  sessions ended: 1",
		"owner " + tombstore.Ref("# "+bob) + "  sessions ended: 1",
		"sessions ended in all: 2",
	}, lines)
}

// What a line does not name is told by its number, and the others are carried out.
func TestFrom_BadLines(t *testing.T) {
	b := newBench(t)
	id, ref := b.begin()
	long := strings.Repeat("secret", 1025/6+1)
	status, lines, stderr := b.runWith("\n"+long+"\n"+id+"\n", "invalidate", "-id", "-from=-", b.url)
	require.Equal(t, exitFailed, status)
	require.Equal(t, []string{ref + "  ended", "ended 1 of 3"}, lines)
	require.Equal(t, "line 1  is empty\nline 2  is longer than 1024 bytes\n", stderr)

	_, ref = b.logIn(alice, "")
	status, lines, stderr = b.runWith("\n"+long+"\n"+alice+"\n", "invalidate", "-owner", "-from=-", b.url)
	require.Equal(t, exitFailed, status)
	require.Equal(t, []string{"owner " + tombstore.Ref(alice) + "  sessions ended: 1", "sessions ended in all: 1"}, lines)
	require.Equal(t, "line 1  is empty\nline 2  is longer than 1024 bytes\n", stderr)
	require.Contains(t, b.state(ref), "ended (revoked)")

	// The longest name that there may be.
	_, _ = b.logIn(long[:1024], "")
	status, _, stderr = b.runWith(long[:1024], "invalidate", "-owner", "-from=-", b.url)
	require.Equal(t, exitOK, status, stderr)

	// Ids that were meant to be refs.
	status, _, stderr = b.runWith(tombstore.NewID()+"\n", "inspect", "-from=-", b.url)
	require.Equal(t, exitFailed, status)
	require.Equal(t, "line 1  is no ref of a session\n", stderr)
}

// There is nothing to do at the end of a pipe from an empty store.
func TestFrom_Empty(t *testing.T) {
	b := newBench(t)
	for _, args := range [][]string{
		{"list", "-owner"}, {"inspect"}, {"inspect", "-json"}, {"invalidate"}, {"invalidate", "-owner"},
	} {
		for _, from := range []string{"-", os.DevNull} {
			status, lines, stderr := b.runWith("", append(args, "-from", from, b.url)...)
			require.Equal(t, exitOK, status, args)
			require.Equal(t, []string{""}, lines, args)
			require.Empty(t, stderr, args)
		}
	}
}

// Nothing is done where it is not clear what is meant.
func TestInput_Usage(t *testing.T) {
	b := newBench(t)
	id, ref := b.logIn(alice, "")
	missing := filepath.Join(t.TempDir(), "missing")
	for _, of := range []struct {
		want string
		args []string
	}{
		{"-id and -owner exclude each other", []string{"invalidate", "-id", "-owner", "-from=-", b.url}},
		{"ids are taken with -from only", []string{"invalidate", "-id", b.url, id}},
		{"-from takes the place of arguments", []string{"invalidate", "-owner", "-from=-", b.url, alice}},
		{"-thorough is for owners", []string{"invalidate", "-thorough", b.url, ref}},
		{"give -owner", []string{"list", b.url, alice}},
		{"give -owner", []string{"list", "-from=-", b.url}},
		{"nothing is named", []string{"list", "-owner", b.url}},
		{"nothing is named", []string{"inspect", b.url}},
		{"nothing is named", []string{"invalidate", "-from", "", b.url}},
		{"no such file", []string{"invalidate", "-owner", "-from", missing, b.url}},
		{"is a directory", []string{"invalidate", "-owner", "-from", t.TempDir(), b.url}},
		{"the URL does not begin with", []string{"invalidate", "-owner", alice, b.url}},
		{"flags come before the URL", []string{"invalidate", b.url, "-owner", alice}},
		{"not defined: -id", []string{"list", "-id", b.url}},
	} {
		status, lines, stderr := b.runWith(alice+"\n", of.args...)
		require.Equal(t, exitUsage, status, of.want)
		require.Equal(t, []string{""}, lines, of.want)
		require.Contains(t, stderr, of.want)
		require.NotContains(t, stderr, id)
	}
	require.Contains(t, b.state(ref), "live")
}

func parse(t *testing.T, line string) map[string]any {
	t.Helper()
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(line), &fields), line)
	return fields
}

// now stands for any time that is near, or an hour from here.
const now = "now"

// requireJSON compares lines with what they should be.
func requireJSON(t *testing.T, lines []string, want ...map[string]any) {
	t.Helper()
	require.Len(t, lines, len(want))
	for i, line := range lines {
		fields := parse(t, line)
		for name, value := range fields {
			if !strings.HasSuffix(name, "_at") && name != "deadline" {
				continue
			}
			at, err := time.Parse(time.RFC3339, value.(string))
			require.NoError(t, err)
			require.WithinDuration(t, time.Now(), at, 26*time.Hour)
			fields[name] = now
		}
		require.Equal(t, want[i], fields)
	}
}

func TestJSON(t *testing.T) {
	b := newBench(t)
	id, ref := b.logIn(alice, "phone")
	owner := tombstore.Ref(alice)
	json := func(stdin, command string, flags ...string) (status int, lines []string) {
		t.Helper()
		status, lines, stderr := b.runWith(stdin, append(append([]string{command, "-json"}, flags...), b.url)...)
		require.Empty(t, stderr)
		return status, lines
	}
	session := map[string]any{
		"ref": ref, "owner": owner, "label": "phone", "state": "live", "created_at": now, "deadline": now,
	}
	status, lines := json("", "list")
	require.Equal(t, exitOK, status)
	requireJSON(t, lines, session)
	session["expires_at"] = now
	status, lines = json(alice, "list", "-owner", "-from=-")
	require.Equal(t, exitOK, status)
	requireJSON(t, lines, session)

	status, lines = json(bob, "list", "-owner", "-from=-")
	require.Equal(t, exitOK, status)
	requireJSON(t, lines, map[string]any{"owner": tombstore.Ref(bob), "state": "absent"})

	absent := tombstore.Ref("none")
	status, lines = json(ref+"\nno ref\n"+absent, "inspect", "-from=-")
	require.Equal(t, exitFailed, status)
	requireJSON(t, lines, session,
		map[string]any{"input": "line 2", "error": "is no ref of a session"},
		map[string]any{"ref": absent, "state": "absent"})

	moved := tombstore.NewID()
	_, err := b.Rotate(t.Context(), id, moved)
	require.NoError(t, err)
	renewal, err := b.BeginRenewal(t.Context(), moved, 0)
	require.NoError(t, err)
	status, lines = json("", "list")
	require.Equal(t, exitOK, status)
	requireJSON(t, slices.Compact(lines), map[string]any{"ref": renewal.Ref, "state": "pending"})
	status, lines = json(ref+"\n"+renewal.Ref, "inspect", "-from=-")
	require.Equal(t, exitOK, status)
	rotated := map[string]any{"state": "ended", "reason": "rotated", "ended_at": now, "expires_at": now}
	first, second := maps.Clone(rotated), maps.Clone(rotated)
	first["ref"], first["moved_to"] = ref, renewal.Ref
	second["ref"], second["renewing"] = renewal.Ref, true
	requireJSON(t, lines, first, second)

	status, lines = json(renewal.Ref+"\n"+renewal.Ref+"\n"+absent, "invalidate", "-from=-")
	require.Equal(t, exitFailed, status)
	requireJSON(t, lines,
		map[string]any{"ref": renewal.Ref, "state": "pending", "ended": 1.0},
		map[string]any{"ref": renewal.Ref, "state": "ended", "reason": "revoked", "ended_at": now, "ended": 0.0},
		map[string]any{"ref": absent, "state": "absent", "ended": 0.0})

	several := tombstore.NewID()
	_, others := b.logIn(several, strings.Repeat("x", 1024), tombstore.AlsoFinal("a"), tombstore.AlsoFinal("b"), tombstore.AlsoFinal("c"))
	session = map[string]any{
		"ref": others, "owner": tombstore.Ref(several), "label": strings.Repeat("x", 1024), "state": "live",
		"also":       []any{tombstore.Ref("a"), tombstore.Ref("b"), tombstore.Ref("c")},
		"created_at": now, "deadline": now,
	}
	status, lines = json("", "list")
	require.Equal(t, exitOK, status)
	requireJSON(t, lines, session)
	session["expires_at"] = now
	status, lines = json(others, "inspect", "-from=-")
	require.Equal(t, exitOK, status)
	requireJSON(t, lines, session)
	status, lines = json("c", "invalidate", "-owner", "-from=-")
	require.Equal(t, exitOK, status)
	requireJSON(t, lines, map[string]any{"owner": tombstore.Ref("c"), "state": "live", "ended": 1.0})

	b.logIn(alice, "")
	status, lines = json(alice+"\n"+alice+"\n"+bob, "invalidate", "-owner", "-from=-")
	require.Equal(t, exitFailed, status)
	requireJSON(t, lines,
		map[string]any{"owner": owner, "state": "live", "ended": 1.0},
		map[string]any{"owner": owner, "state": "ended", "ended": 0.0},
		map[string]any{"owner": tombstore.Ref(bob), "state": "absent", "ended": 0.0})

	b.do("SET", b.prefix+ref, "x")
	status, lines = json(ref, "inspect", "-from=-")
	require.Equal(t, exitFailed, status)
	requireJSON(t, lines, map[string]any{"ref": ref, "state": "foreign"})
	b.do("SET", b.prefix+"o:"+owner, "x")
	status, lines = json(alice, "list", "-owner", "-from=-")
	require.Equal(t, exitFailed, status)
	requireJSON(t, lines, map[string]any{"owner": owner, "error": "tombstore: sessions: " + tombstore.ErrCorrupt.Error()})
}
