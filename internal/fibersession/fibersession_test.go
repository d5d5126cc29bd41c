package fibersession

import (
	"bytes"
	"encoding/gob"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func encode(t *testing.T, values any) []byte {
	var b bytes.Buffer
	require.NoError(t, gob.NewEncoder(&b).Encode(values))
	return b.Bytes()
}

// Fiber v3 has keys of any type, and v2 has strings.
func TestSame(t *testing.T) {
	t.Parallel()
	gob.Register([]string{})
	t.Run("v3", func(t *testing.T) { testSame[any](t, func(key string) any { return key }) })
	t.Run("v2", func(t *testing.T) { testSame[string](t, func(key string) string { return key }) })
}

func testSame[K comparable](t *testing.T, key func(string) K) {
	data := func(keys []string, values ...any) []byte {
		all := map[K]any{}
		for i, k := range keys {
			all[key(k)] = values[i]
		}
		return encode(t, all)
	}
	one, two := []string{"n"}, []string{"n", "user"}
	a := data(two, 1, "alice")
	for range 10 { // gob's order is random
		require.True(t, Same[K](a, data(two, 1, "alice")))
		require.False(t, Same[K](a, data(two, 2, "alice")))
	}
	require.False(t, Same[K](a, data(one, 1)))
	slow := data(two, 1, []string{"admin"})
	require.True(t, Same[K](slow, data(two, 1, []string{"admin"})))
	require.False(t, Same[K](slow, data(two, 1, []string{"staff"})))
	require.False(t, Same[K](slow, data(one, 1)))
	require.False(t, Same[K](nil, a))
	require.False(t, Same[K]([]byte("not"), []byte("gob")))
	values, err := Decode[K](a)
	require.NoError(t, err)
	require.ElementsMatch(t, []K{key("n"), key("user")}, slices.Collect(maps.Keys(values)))
}
