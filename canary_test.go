package tombstore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// The proof runs on a key of its own, on any shard. Where that shard does not answer, an end on a healthy
// one must not fail for it.
func TestInvalidate_ProofMeetsAShardThatHangs(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("containers do not reach each other")
	}
	nodes := redistest.StartNodes(t, 30*time.Second)
	setup, err := Open(nodes.Primaries[0].URL)
	require.NoError(t, err)
	t.Cleanup(setup.Close)
	var ids []string // on shards that answer
	for len(ids) < 16 {
		id := NewID()
		key, err := setup.key(id)
		require.NoError(t, err)
		slot, err := nodes.Primaries[0].Client.Do(t.Context(),
			nodes.Primaries[0].Client.B().ClusterKeyslot().Key(key).Build()).AsInt64()
		require.NoError(t, err)
		if slot < 2*redistest.Slots/3-1 {
			_, err = setup.Write(t.Context(), id, nil, time.Hour)
			require.NoError(t, err)
			ids = append(ids, id)
		}
	}
	stores := make([]*RedisStore, len(ids)) // processes that have just begun
	for i := range stores {
		stores[i], err = Open(nodes.Primaries[0].URL)
		require.NoError(t, err)
		t.Cleanup(stores[i].Close)
		_, err = stores[i].Read(t.Context(), ids[i]) // connected to that node
		require.NoError(t, err)
	}
	nodes.Primaries[2].Pause(t)
	t.Cleanup(func() { nodes.Primaries[2].Resume(t) })
	failed := 0
	for i, s := range stores {
		began := time.Now()
		if err := s.Invalidate(t.Context(), ids[i]); err != nil {
			failed++
			t.Logf("%v after %v", err, time.Since(began))
		}
	}
	require.Zero(t, failed)
}
