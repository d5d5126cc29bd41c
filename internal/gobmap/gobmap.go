// Package gobmap reads and writes maps in the format of package gob, in a twentieth of its time:
// most of gob's work is to make an encoder and a decoder for each stream. It knows strings, numbers
// and the like, and keys that are strings; whatever else there is, its caller leaves to package
// gob. Keys are written in order, so that equal maps are equal bytes.
//
// A stream is messages: a length, and a body that begins with a type's number. The first message
// defines the type of the map, under a number of the stream's own, and the last one is its value. A
// value in an interface is the name of its type, the number of that type, a length, a zero and the
// value.
package gobmap

import (
	"bytes"
	"encoding/gob"
	"math"
	"math/bits"
	"reflect"
	"slices"
)

// Numbers of types, as they are written.
const (
	gobBool    = 1 << 1
	gobInt     = 2 << 1
	gobFloat   = 4 << 1
	gobBytes   = 5 << 1
	gobString  = 6 << 1
	gobComplex = 7 << 1 // the last one
)

// number is the first one that is free for types of a stream.
const number = 64

// appendHead appends the message that defines map[any]any as the type n, which is what gob writes:
// the fields of a wireType, each after its distance from the one before, then a zero.
func appendHead(b []byte, n uint64) []byte {
	var body [32]byte
	head := append(AppendUint(body[:0], 2*n-1), 4, 1, 2) // -n; a mapType, its CommonType, its id
	head = append(AppendUint(head, 2*n), 0)              // n
	return AppendString(b, append(head, 1, 8<<1, 1, 8<<1, 0, 0))
}

// Encode returns values as gob encodes them. It reports false if it does not know how.
func Encode(values map[any]any) ([]byte, bool) {
	keys := make([]string, 0, len(values))
	for key := range values {
		s, ok := key.(string)
		if !ok {
			return nil, false
		}
		keys = append(keys, s)
	}
	slices.Sort(keys)
	body := make([]byte, 0, 512)
	body = append(AppendUint(body, 2*number), 0)
	body = AppendUint(body, uint64(len(values)))
	for _, key := range keys {
		body = appendStringValue(body, key)
		var ok bool
		if body, ok = AppendValue(body, values[key]); !ok {
			return nil, false
		}
	}
	return AppendString(appendHead(make([]byte, 0, 32+len(body)), number), body), true
}

// Decode returns the map that gob or Encode has encoded. It reports false if it does not know how.
func Decode(b []byte) (values map[any]any, ok bool) {
	n, entries, ok := takeHead(b)
	if !ok {
		return nil, false
	}
	rest := string(entries) // once, for all strings
	values = make(map[any]any, n)
	for range n {
		var key, value any
		if key, rest, ok = TakeValue(rest); !ok {
			return nil, false
		}
		if _, ok = key.(string); !ok {
			return nil, false
		}
		if value, rest, ok = TakeValue(rest); !ok {
			return nil, false
		}
		values[key] = value
	}
	return values, rest == ""
}

// takeHead reads what is in front of the n entries of a map.
func takeHead(b []byte) (n uint64, entries []byte, ok bool) {
	head, b, ok := TakeString(b)
	if !ok {
		return 0, nil, false
	}
	minus, _, ok := TakeUint(head)
	if !ok || minus%2 == 0 || minus == math.MaxUint64 {
		return 0, nil, false
	}
	number := minus/2 + 1
	var want [48]byte
	if !bytes.Equal(appendHead(want[:0], number)[1:], head) { // its length is one byte
		return 0, nil, false
	}
	body, rest, ok := TakeString(b)
	if !ok || len(rest) != 0 {
		return 0, nil, false
	}
	typ, b, ok := TakeUint(body)
	if !ok || typ != 2*number || len(b) == 0 || b[0] != 0 {
		return 0, nil, false
	}
	n, b, ok = TakeUint(b[1:])
	return n, b, ok && n <= uint64(len(b))
}

// Same reports whether a and b, which gob or Encode has encoded, are the same map, in whatever
// order. It makes no map of them. known is false if it does not know how to tell.
func Same(a, b []byte) (same, known bool) {
	n, a, ok := takeHead(a)
	m, b, ok2 := takeHead(b)
	if !ok || !ok2 {
		return false, false
	}
	if n != m {
		return false, true
	}
	return SameEntries(a, b, n, skipValue)
}

// SameEntries is Same for the n entries of a and of b, whose keys skipKey skips. A value of a type
// that gob knows without a definition is written in one way, so it is the same if the bytes are.
func SameEntries(a, b []byte, n uint64, skipKey func(b []byte) (rest []byte, ok bool)) (same, known bool) {
	var few [2][16][]byte
	x, ok := sorted(few[0][:0], a, n, skipKey)
	y, ok2 := sorted(few[1][:0], b, n, skipKey)
	return slices.EqualFunc(x, y, bytes.Equal), ok && ok2
}

// sorted appends n entries to entries, which is empty, in the order of their bytes.
func sorted(
	entries [][]byte, b []byte, n uint64, skipKey func(b []byte) (rest []byte, ok bool),
) (_ [][]byte, ok bool) {
	for range n {
		rest, ok := skipKey(b)
		if ok {
			rest, ok = skipValue(rest)
		}
		if !ok {
			return nil, false
		}
		entries, b = append(entries, b[:len(b)-len(rest)]), rest
	}
	slices.SortFunc(entries, bytes.Compare)
	return entries, len(b) == 0
}

// skipValue skips a value that is in an interface. It reports false if its type is not among those
// that gob knows without a definition.
func skipValue(b []byte) (rest []byte, ok bool) {
	_, b, ok = TakeString(b)
	if !ok || len(b) == 0 || b[0]%2 != 0 || b[0] < gobBool || b[0] > gobComplex {
		return nil, false
	}
	_, rest, ok = TakeString(b[1:])
	return rest, ok
}

// SkipString skips what AppendString has appended.
func SkipString(b []byte) (rest []byte, ok bool) {
	_, rest, ok = TakeString(b)
	return rest, ok
}

// EncodeString returns what gob encodes a string as.
func EncodeString(s string) []byte {
	body := make([]byte, 0, 16+len(s))
	return AppendString(make([]byte, 0, 24+len(s)), AppendString(append(body, gobString, 0), s))
}

// DecodeString is the inverse of EncodeString.
func DecodeString(b []byte) (string, bool) {
	body, rest, ok := TakeString(b)
	if !ok || len(rest) != 0 || len(body) < 2 || body[0] != gobString || body[1] != 0 {
		return "", false
	}
	s, rest, ok := TakeString(body[2:])
	return string(s), ok && len(rest) == 0
}

// AppendValue appends a value that is in an interface. It reports false if it does not know how.
func AppendValue(b []byte, value any) ([]byte, bool) {
	switch v := value.(type) {
	case string:
		return appendStringValue(b, v), true
	case []byte:
		b = append(AppendString(b, "[]uint8"), gobBytes)
		b = AppendUint(b, uint64(1+sizeOf(uint64(len(v)))+len(v)))
		return AppendString(append(b, 0), v), true
	case bool:
		n := uint64(0)
		if v {
			n = 1
		}
		return appendNumber(b, "bool", gobBool, n), true
	case int:
		return appendNumber(b, "int", gobInt, zigzag(int64(v))), true
	case int64:
		return appendNumber(b, "int64", gobInt, zigzag(v)), true
	case float64:
		return appendNumber(b, "float64", gobFloat, bits.ReverseBytes64(math.Float64bits(v))), true
	}
	return b, false
}

func appendStringValue(b []byte, s string) []byte {
	b = append(AppendString(b, "string"), gobString)
	b = AppendUint(b, uint64(1+sizeOf(uint64(len(s)))+len(s)))
	return AppendString(append(b, 0), s)
}

func appendNumber(b []byte, name string, typ byte, n uint64) []byte {
	b = append(AppendString(b, name), typ, byte(1+sizeOf(n)), 0)
	return AppendUint(b, n)
}

// TakeValue reads what AppendValue has appended. A string is a part of b.
func TakeValue(b string) (value any, rest string, ok bool) {
	name, b, ok := TakeString(b)
	if !ok || b == "" {
		return nil, "", false
	}
	typ := b[0]
	v, rest, ok := TakeString(b[1:])
	if !ok || v == "" || v[0] != 0 {
		return nil, "", false
	}
	n, tail, ok := TakeUint(v[1:])
	if !ok {
		return nil, "", false
	}
	plain := tail == ""
	long := uint64(len(tail)) == n
	signed := int64(n>>1) ^ -int64(n&1)
	switch {
	case typ == gobString && name == "string" && long:
		return tail, rest, true
	case typ == gobBytes && name == "[]uint8" && long:
		return append([]byte(nil), tail...), rest, true // none is nil, as gob reads it
	case typ == gobBool && name == "bool" && plain && n <= 1:
		return n == 1, rest, true
	case typ == gobInt && name == "int64" && plain:
		return signed, rest, true
	case typ == gobInt && name == "int" && plain && int64(int(signed)) == signed:
		return int(signed), rest, true
	case typ == gobFloat && name == "float64" && plain:
		return math.Float64frombits(bits.ReverseBytes64(n)), rest, true
	}
	return nil, "", false
}

func zigzag(x int64) uint64 { return uint64(x<<1) ^ uint64(x>>63) }

// sizeOf returns how many bytes AppendUint appends.
func sizeOf(x uint64) int {
	if x < 128 {
		return 1
	}
	return 1 + (bits.Len64(x)+7)/8
}

// AppendUint appends x: one byte below 128, or the negated number of bytes that follow, highest
// first.
func AppendUint(b []byte, x uint64) []byte {
	if x < 128 {
		return append(b, byte(x))
	}
	n := sizeOf(x) - 1
	b = append(b, byte(-n))
	for n--; n >= 0; n-- {
		b = append(b, byte(x>>(8*n)))
	}
	return b
}

// TakeUint reads what AppendUint has appended.
func TakeUint[B string | []byte](b B) (x uint64, rest B, ok bool) {
	if len(b) == 0 {
		return 0, b, false
	}
	first, b := b[0], b[1:]
	if first < 128 {
		return uint64(first), b, true
	}
	n := -int(int8(first))
	if n > 8 || n > len(b) {
		return 0, b, false
	}
	for i := range n {
		x = x<<8 | uint64(b[i])
	}
	return x, b[n:], true
}

// AppendString appends a length and s.
func AppendString[S string | []byte](b []byte, s S) []byte {
	return append(AppendUint(b, uint64(len(s))), s...)
}

// TakeString reads what AppendString has appended. It is a part of b.
func TakeString[B string | []byte](b B) (s, rest B, ok bool) {
	n, b, ok := TakeUint(b)
	if !ok || n > uint64(len(b)) {
		return b, b, false
	}
	return b[:n], b[n:], true
}

// Equal reports whether a and b are the same map with keys of type K, in whatever order. What Same
// does not know is decoded by package gob.
func Equal[K comparable](a, b []byte) bool {
	switch same, known := Same(a, b); {
	case known:
		return same
	case len(a) != len(b) || bytes.Equal(a, b):
		return len(a) == len(b)
	}
	x, err := decodeGob[K](a)
	y, err2 := decodeGob[K](b)
	return err == nil && err2 == nil && reflect.DeepEqual(x, y)
}

// Check returns an error if data is not a map with keys of type K.
func Check[K comparable](data []byte) error {
	_, err := decodeGob[K](data)
	return err
}

func decodeGob[K comparable](data []byte) (values map[K]any, err error) {
	err = gob.NewDecoder(bytes.NewReader(data)).Decode(&values)
	return values, err
}
