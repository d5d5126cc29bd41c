package gobmap

import (
	"bytes"
	"encoding/gob"
	"fmt"
	gomaps "maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// other makes the number of map[any]any in this program another one than the first.
type other struct{ A, B int }

var maps = []map[any]any{
	{},
	{"user": "alice"},
	{"": "", "b": true, "c": false, "bytes": []byte{0, 1, 255}, "none": []byte(nil)},
	{"long": strings.Repeat("x", 127), "longer": strings.Repeat("x", 300)},
	{strings.Repeat("k", 200): strings.Repeat("x", 70000)},
	{
		"0": 0, "1": 1, "-1": -1, "63": 63, "64": 64, "-64": -64, "-65": -65,
		"big": math.MaxInt, "small": math.MinInt, "int64": int64(-1 << 40),
	},
	{"0.": 0.0, "1.": 1.0, "pi": math.Pi, "-inf": math.Inf(-1), "tiny": 5e-324},
}

func encode(t testing.TB, value any) []byte {
	t.Helper()
	var buf bytes.Buffer
	require.NoError(t, gob.NewEncoder(&buf).Encode(value))
	return buf.Bytes()
}

// What either side writes, the other one reads.
func TestMaps(t *testing.T) {
	t.Parallel()
	encode(t, other{})
	for _, values := range maps {
		got, ok := Decode(encode(t, values))
		require.True(t, ok)
		require.Equal(t, values, got)

		data, ok := Encode(values)
		require.True(t, ok)
		var read map[any]any
		require.NoError(t, gob.NewDecoder(bytes.NewReader(data)).Decode(&read))
		require.Equal(t, values, read)
		got, ok = Decode(data)
		require.True(t, ok)
		require.Equal(t, values, got)
		again, _ := Encode(got)
		require.Equal(t, data, again)
	}
}

func TestMaps_Unknown(t *testing.T) {
	t.Parallel()
	gob.Register([]any{})
	gob.Register(other{})
	for _, value := range []any{[]any{1}, other{1, 2}, uint8(1), float32(1), int32(1), uint(1)} {
		_, ok := Encode(map[any]any{"x": value})
		require.False(t, ok)
		_, ok = Decode(encode(t, map[any]any{"x": value}))
		require.False(t, ok)
	}
	_, ok := Encode(map[any]any{1: "x"})
	require.False(t, ok)
	_, ok = Decode(encode(t, map[any]any{1: "x"}))
	require.False(t, ok)
	_, ok = Encode(map[any]any{"x": nil})
	require.False(t, ok)
	_, ok = Decode(encode(t, map[string]any{"x": 1}))
	require.False(t, ok)
	_, ok = Decode(encode(t, map[any]string{"x": "y"}))
	require.False(t, ok)
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "x", strings.Repeat("x", 126), strings.Repeat("x", 400)} {
		require.Equal(t, encode(t, s), EncodeString(s))
		got, ok := DecodeString(encode(t, s))
		require.True(t, ok)
		require.Equal(t, s, got)
	}
	for _, value := range []any{1, []byte("x"), maps[1]} {
		_, ok := DecodeString(encode(t, value))
		require.False(t, ok)
	}
}

func TestSame(t *testing.T) {
	t.Parallel()
	for i, a := range maps {
		for j, b := range maps {
			same, known := Same(encode(t, a), encode(t, b))
			require.True(t, known)
			require.Equal(t, i == j, same, "%v, %v", a, b)
		}
	}
	a := map[any]any{"a": 1, "b": "x", 3: true, "d": int64(1), "e": complex(1, 2), "f": float32(0.5), "g": uint8(9)}
	for key, other := range map[any]any{
		"a": 2, "b": "y", 3: false, "d": 1, "e": complex(1, 3), "f": float32(0.25), "g": uint8(8), "h": 1,
	} {
		b := gomaps.Clone(a)
		b[key] = other
		for range 20 { // in random order
			same, known := Same(encode(t, a), encode(t, gomaps.Clone(a)))
			require.True(t, known)
			require.True(t, same)
			same, known = Same(encode(t, a), encode(t, b))
			require.True(t, known)
			require.False(t, same, key)
		}
	}
}

// stream is a map of the type n.
func stream(n, count uint64, entries []byte) []byte {
	body := append(AppendUint(nil, 2*n), 0)
	body = append(AppendUint(body, count), entries...)
	return AppendString(appendHead(nil, n), body)
}

// The same map has another number in another program.
func TestSame_OtherProgram(t *testing.T) {
	t.Parallel()
	data, ok := Encode(map[any]any{"user": "alice", "n": 1})
	require.True(t, ok)
	count, entries, ok := takeHead(data)
	require.True(t, ok)
	theirs := stream(number+7, count, entries)
	got, ok := Decode(theirs)
	require.True(t, ok)
	require.Equal(t, map[any]any{"user": "alice", "n": 1}, got)
	same, known := Same(data, theirs)
	require.True(t, known)
	require.True(t, same)
}

func TestSame_Unknown(t *testing.T) {
	t.Parallel()
	gob.Register([]any{})
	gob.Register(other{})
	gob.Register(map[any]any{})
	plain := encode(t, map[any]any{"x": 1})
	for _, value := range []any{
		map[any]any{"x": map[any]any{"y": 1}}, map[any]any{"x": []any{1}}, map[any]any{"x": other{1, 2}}, map[any]any{other{1, 2}: 1}, map[any]any{"x": nil},
		map[string]any{"x": 1}, "x",
	} {
		data := encode(t, value)
		_, known := Same(data, data)
		require.False(t, known, value)
		_, known = Same(plain, data)
		require.False(t, known, value)
		_, known = Same(data, plain)
		require.False(t, known, value)
	}
	for cut := range len(plain) {
		_, known := Same(plain, plain[:cut])
		require.False(t, known)
	}
	_, entries, _ := takeHead(plain)
	_, known := Same(plain, stream(number, 1, append(slices.Clone(entries), 0)))
	require.False(t, known)
}

// What Same takes for the same map, gob takes for the same one.
func FuzzSame(f *testing.F) {
	for _, values := range maps {
		data, _ := Encode(values)
		f.Add(encode(f, values), data)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if same, known := Same(a, b); !same || !known {
			return
		}
		var x, y map[any]any
		err := gob.NewDecoder(bytes.NewReader(a)).Decode(&x)
		err2 := gob.NewDecoder(bytes.NewReader(b)).Decode(&y)
		require.Equal(t, err == nil, err2 == nil)
		if n, _, _ := takeHead(a); n != uint64(len(x)) { // gob writes no key twice
			return
		}
		require.Equal(t, fmt.Sprint(x), fmt.Sprint(y)) // which has NaN equal to itself
	})
}

func TestEqual(t *testing.T) {
	testEqual(t, func(key string) any { return key })
	testEqual(t, func(key string) string { return key })
}

func testEqual[K comparable](t *testing.T, key func(string) K) {
	data := func(n int, name string, more any) []byte {
		return encode(t, map[K]any{key("n"): n, key("user"): name, key("roles"): more})
	}
	a := data(1, "alice", "admin")
	slow := data(1, "alice", []string{"admin"})
	for range 10 { // gob's order is random
		require.True(t, Equal[K](a, data(1, "alice", "admin")))
		require.False(t, Equal[K](a, data(2, "alice", "admin")))
		require.True(t, Equal[K](slow, data(1, "alice", []string{"admin"})))
		require.False(t, Equal[K](slow, data(1, "alice", []string{"staff"})))
	}
	require.False(t, Equal[K](slow, encode(t, map[K]any{key("n"): 1})))
	require.False(t, Equal[K](nil, a))
	require.False(t, Equal[K]([]byte("not"), []byte("gob")))
	require.NoError(t, Check[K](slow))
	require.Error(t, Check[K]([]byte("not gob")))
}

// What Decode takes for a map, gob takes for the same one.
func FuzzDecode(f *testing.F) {
	for _, values := range maps {
		f.Add(encode(f, values))
		data, _ := Encode(values)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := Decode(data)
		if !ok {
			return
		}
		var want map[any]any
		require.NoError(t, gob.NewDecoder(bytes.NewReader(data)).Decode(&want))
		for key, value := range got {
			if x, ok := value.(float64); ok && math.IsNaN(x) {
				delete(got, key)
				delete(want, key)
			}
		}
		require.Equal(t, want, got)
	})
}
