package scsstore

import (
	"encoding/gob"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/caller"
)

func init() { gob.Register([]any{}) }

// Each of the names by which the store tells who calls it must be found, or Install panics.
func TestRequireCallers(t *testing.T) {
	t.Parallel()
	require.NotPanics(t, func() { requireCallers(newProbe(caller.Method, caller.Closure)) })
	for _, lost := range []string{destroy, renewToken, mergeSession} {
		method := func(names ...string) string {
			if name := caller.Method(names...); name != lost {
				return name
			}
			return ""
		}
		require.Panics(t, func() { requireCallers(newProbe(method, caller.Closure)) }, lost)
	}
	for _, always := range []bool{false, true} {
		closure := func(string) bool { return always }
		require.Panics(t, func() { requireCallers(newProbe(caller.Method, closure)) }, "LoadAndSave")
	}
}

// What the data of a session is decoded to is a copy, since the data may be that of a cache.
func TestCodec_Copies(t *testing.T) {
	t.Parallel()
	want := func() map[string]any {
		return map[string]any{"bytes": []byte("abc"), "string": "def", "nested": []any{[]byte("ghi")}}
	}
	plain := map[string]any{"bytes": []byte("abc"), "string": "def"}
	for _, values := range []map[string]any{want(), plain} {
		for _, codec := range []scs.Codec{gobCodec{}, scs.GobCodec{}} {
			b, err := codec.Encode(time.Unix(1, 0).UTC(), values)
			require.NoError(t, err)
			before := string(b)
			_, got, err := codec.Decode(b)
			require.NoError(t, err)
			require.Equal(t, values, got)
			copy(got["bytes"].([]byte), "xyz")
			_ = append(got["bytes"].([]byte), "xyz"...)
			if nested, ok := got["nested"].([]any); ok {
				copy(nested[0].([]byte), "xyz")
			}
			require.Equal(t, before, string(b))
			_, got, err = codec.Decode(b)
			require.NoError(t, err)
			clear(b)
			require.Equal(t, values, got)
		}
	}
}
