package scsstore

import (
	"encoding/gob"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"
)

type address struct{ City string }

func init() {
	gob.Register(address{})
	gob.Register(time.Time{})
}

var sessions = []struct {
	name   string
	plain  bool
	values map[string]any
}{
	{"none", true, map[string]any{}},
	{"nil", false, nil},
	{"strings", true, map[string]any{"": "", "a": "x", "long": strings.Repeat("y", 70_000), "binary": "\x00\xff"}},
	{"bytes", true, map[string]any{"nil": []byte(nil), "long": make([]byte, 300), "a": []byte{0, 255}}},
	{"numbers", true, map[string]any{
		"0": 0, "1": -1, "63": 63, "64": 64, "-64": -64, "-65": -65, "max": math.MaxInt, "min": math.MinInt,
		"int64": int64(1 << 40), "min64": int64(math.MinInt64), "true": true, "false": false, "float": 1.5,
	}},
	{"others", false, map[string]any{"a": "x", "float": float32(1.5)}},
	{"struct", false, map[string]any{"a": address{"Rome"}, "b": time.Unix(1, 2).UTC()}},
}

// Each of the two codecs reads what the other has written.
func TestCodec(t *testing.T) {
	t.Parallel()
	ours, theirs := gobCodec{}, scs.GobCodec{}
	for _, zone := range []*time.Location{time.UTC, time.FixedZone("", 3600), time.FixedZone("", 1)} {
		for _, deadline := range []time.Time{{}, time.Unix(1, 2).In(zone)} {
			for _, tt := range sessions {
				t.Run(tt.name, func(t *testing.T) {
					t.Parallel()
					a, err := theirs.Encode(deadline, tt.values)
					require.NoError(t, err)
					b, err := ours.Encode(deadline, tt.values)
					require.NoError(t, err)
					wantDeadline, want, err := theirs.Decode(a)
					require.NoError(t, err)
					for _, stream := range [][]byte{a, b} {
						for _, codec := range []scs.Codec{ours, theirs} {
							gotDeadline, got, err := codec.Decode(stream)
							require.NoError(t, err)
							require.Equal(t, want, got)
							require.Equal(t, wantDeadline, gotDeadline)
						}
						_, _, plain := decodePlain(stream)
						require.Equal(t, tt.plain && !deadline.IsZero(), plain)
					}
					if tt.plain && !deadline.IsZero() {
						again, err := ours.Encode(wantDeadline, want)
						require.NoError(t, err)
						require.Equal(t, b, again)
					}
				})
			}
		}
	}
}

// What is the same session is known without decoding it, and whatever is not known is left to
// others.
func TestCodec_Same(t *testing.T) {
	t.Parallel()
	s := &Store{sm: &scs.SessionManager{Codec: gobCodec{}}}
	deadline := time.Unix(1, 2).UTC()
	encode := func(codec scs.Codec, deadline time.Time, values map[string]any) []byte {
		b, err := codec.Encode(deadline, values)
		require.NoError(t, err)
		return b
	}
	for i, x := range sessions {
		a := encode(scs.GobCodec{}, deadline, x.values)
		for j, y := range sessions {
			b := encode(gobCodec{}, deadline, y.values)
			same, known := gobCodec{}.same(a, b)
			require.True(t, known || !x.plain || !y.plain)
			require.Equal(t, known && i == j, same)
			require.Equal(t, i == j, s.equal(a, b), "%s, %s", x.name, y.name)
		}
		require.False(t, s.equal(a, encode(gobCodec{}, deadline.Add(1), x.values)))
		require.True(t, s.equal(a, encode(gobCodec{}, deadline.In(time.FixedZone("", 3600)), x.values)))
	}
}

func FuzzCodec(f *testing.F) {
	for _, tt := range sessions {
		b, err := gobCodec{}.Encode(time.Unix(1, 0).UTC(), tt.values)
		require.NoError(f, err)
		f.Add(b)
		for _, cut := range []int{0, 1, 2, len(b) / 2, len(b) - 1} {
			f.Add(b[:cut])
		}
	}
	types, _ := gobHead()
	f.Fuzz(func(t *testing.T, tail []byte) {
		for _, b := range [][]byte{tail, append(append([]byte{}, types...), tail...)} {
			wantDeadline, want, wantErr := scs.GobCodec{}.Decode(b)
			deadline, values, err := gobCodec{}.Decode(b)
			require.Equal(t, wantErr, err)
			require.Equal(t, wantDeadline, deadline)
			require.Equal(t, want, values)
		}
	})
}

// BenchmarkCodec encodes and decodes a session of 300 bytes in strings, and a number.
func BenchmarkCodec(b *testing.B) {
	deadline := time.Unix(1_800_000_000, 0).UTC()
	values := map[string]any{
		"user": "5f1d7a0e-8a52-4b6e-9a73-2f3d0c6b9e41", "name": "Alice Example", "email": "alice@example.com",
		"csrf": strings.Repeat("c", 43), "locale": "en-GB", "cart": strings.Repeat("sku-0123456789,", 10), "count": 7,
	}
	for name, codec := range map[string]scs.Codec{"ours": gobCodec{}, "scs": scs.GobCodec{}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				data, err := codec.Encode(deadline, values)
				require.NoError(b, err)
				_, _, err = codec.Decode(data)
				require.NoError(b, err)
			}
		})
	}
}
