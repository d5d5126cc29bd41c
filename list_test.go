package tombstore

import (
	"context"
	"testing"
	"time"

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
