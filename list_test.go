package tombstore

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// listed returns the data of what is live, by ref.
func listed(t *testing.T, s Lister) map[string]string {
	t.Helper()
	found := map[string]string{}
	for e, err := range s.List(t.Context()) {
		require.NoError(t, err)
		found[e.Ref] = string(e.Data)
	}
	return found
}

func TestList(t *testing.T) {
	t.Parallel()
	memory, err := NewMemory()
	require.NoError(t, err)
	client := redistest.Client(t)
	for name, s := range map[string]Lister{
		"memory":     memory,
		"standalone": bedOn(t, client).RedisStore,
		"glob":       bedOn(t, client, WithKeyPrefix(redistest.Prefix(t, client)+`[a-z]*?\:`)).RedisStore,
		"cluster":    bedOn(t, redistest.Dial(t, redistest.StartCluster(t).URL)).RedisStore,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, want := t.Context(), map[string]string{}
			require.Empty(t, listed(t, s))
			ids := []string{NewID(), NewID(), NewID()}
			for _, id := range ids {
				_, err := s.Write(ctx, id, []byte(id[:5]), time.Hour)
				require.NoError(t, err)
				want[Ref(id)] = id[:5]
			}
			require.NoError(t, s.Invalidate(ctx, NewID()))
			require.Equal(t, want, listed(t, s))

			require.NoError(t, s.InvalidateRef(ctx, Ref(ids[0]), WithReason(Revoked)))
			delete(want, Ref(ids[0]))
			require.Equal(t, want, listed(t, s))
			_, err := s.Read(ctx, ids[0])
			var ended *InvalidatedError
			require.ErrorAs(t, err, &ended)
			require.Equal(t, Revoked, ended.Reason)

			for _, bad := range []string{
				"", "x", ids[1], Ref(ids[1]) + "x", "../" + Ref(ids[1]), Ref(ids[1]) + "\n", Ref(ids[1])[:3] + "\r\n" + Ref(ids[1])[3:],
				Ref(ids[1])[:21] + "_",
			} {
				require.ErrorIs(t, s.InvalidateRef(ctx, bad), ErrInvalidID)
			}
			_, err = s.Read(ctx, Ref(ids[1]))
			require.ErrorIs(t, err, ErrNotFound, "a ref opens nothing")

			for range s.List(ctx) {
				break
			}
			ended2, cancel := context.WithCancel(ctx)
			cancel()
			for _, err := range s.List(ended2) {
				require.ErrorIs(t, err, context.Canceled)
			}
			require.ErrorIs(t, s.InvalidateRef(ended2, Ref(ids[1])), context.Canceled)
		})
	}
}

// A cluster that has lost a part of its slots must not look like one that holds less.
func TestList_ClusterIncomplete(t *testing.T) {
	t.Parallel()
	b := bedOn(t, redistest.Dial(t, redistest.StartCluster(t, "--cluster-require-full-coverage", "no").URL))
	require.Empty(t, listed(t, b))
	b.do("CLUSTER", "DELSLOTS", "0")
	entries, failures := 0, 0
	for _, err := range b.List(t.Context()) {
		if err == nil {
			entries++
			continue
		}
		require.ErrorIs(t, err, errSlots)
		failures++
	}
	require.Zero(t, entries)
	require.Equal(t, 1, failures)
}

func TestList_PlainIDs(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithPlainIDs())
	b.write("an id", "x", time.Hour)
	require.Equal(t, map[string]string{"an id": "x"}, listed(t, b))
	require.NoError(t, b.InvalidateRef(t.Context(), "an id"))
	require.Empty(t, listed(t, b))
}

func TestList_ForeignValue(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ref := Ref("x")
	b.do("SET", b.prefix+ref, "foreign")
	b.do("SET", b.prefix+"other:"+ref, "of a store with a longer prefix")
	b.write(NewID(), "mine", time.Hour)
	found, faults := 0, 0
	for e, err := range b.List(t.Context()) {
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			require.Equal(t, ref, e.Ref)
			faults++
			continue
		}
		require.Equal(t, "mine", string(e.Data))
		found++
	}
	require.Equal(t, 1, found)
	require.Equal(t, 1, faults)
}

// A node that was started again at another address may keep the old one for itself, while the others know the new one.
func TestList_ClusterNodeMoved(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("containers do not reach each other")
	}
	n := redistest.StartNodes(t, time.Minute, "--cluster-announce-ip", "")
	node := n.Primaries[0]
	dir, err := node.Client.Do(t.Context(), node.Client.B().Arbitrary("CONFIG", "GET", "dir").Build()).AsStrMap()
	require.NoError(t, err)
	node.Kill(t)
	path := dir["dir"] + "/nodes.conf"
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "myself") {
			line = strings.Replace(line, "127.0.0.1", "10.9.9.9", 1)
		}
		lines = append(lines, line)
	}
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600))
	node.Restart(t)
	n.AwaitReady(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{n.Primaries[1].Addr, n.Primaries[2].Addr}, DisableCache: true, DisableRetry: true,
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	s, err := New(client)
	require.NoError(t, err)
	for range 30 {
		_, err = s.Write(t.Context(), NewID(), nil, time.Hour)
		require.NoError(t, err)
	}
	require.Len(t, listed(t, s), 30)
}

// A connection that the server has closed is no reason to fail.
func TestList_ClusterConnectionBroken(t *testing.T) {
	t.Parallel()
	server := redistest.StartCluster(t)
	s := bedOn(t, redistest.Dial(t, server.URL)).RedisStore
	admin := redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) { o.ForceSingleClient = true })
	for range 10 {
		require.Empty(t, listed(t, s))
		require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()).Error())
	}
	require.Empty(t, listed(t, s))
}
