package scsstore

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
)

// gobCodec reads and writes the same format as scs.GobCodec. Most of the work of package gob is to make an encoder and a
// decoder for each session, so sessions of strings, numbers and the like are read and written here, with their keys in
// order, so that the same session is the same bytes. All others are left to scs.GobCodec, and so is what is not exactly as
// expected.
//
// A stream is messages: a length, and a body that begins with the type's number. The first messages define the types of the
// session, the last one is its value: the fields of a struct, each after its distance from the one before, then a zero. A
// value in an interface is the name of its type, the number of that type, a length, a zero and the value.
type gobCodec struct{ scs.GobCodec }

// Numbers of types, as package gob writes them.
const (
	gobBool   = 1 << 1
	gobInt    = 2 << 1
	gobBytes  = 5 << 1
	gobString = 6 << 1
)

// gobHead returns the messages that a session begins with, and the number of its type, which differ between programs.
var gobHead = sync.OnceValues(func() (types, number []byte) {
	const tail = 5 + 15 // two distances, the length of a deadline in UTC and the deadline, the number of values, a zero
	b, err := scs.GobCodec{}.Encode(time.Unix(0, 0).UTC(), map[string]any{})
	if err != nil {
		panic(err) // package gob cannot encode a time
	}
	for types = b; ; {
		size, body, ok := takeUint(types)
		if !ok || size >= uint64(len(body)) {
			break
		}
		types = body[size:]
	}
	_, number, _ = takeUint(types)
	return b[:len(b)-len(types)], number[:len(number)-tail]
})

// Encode implements scs.Codec.
func (c gobCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	when, err := deadline.MarshalBinary()
	if err != nil || values == nil || deadline.IsZero() { // zero fields are left out
		return c.GobCodec.Encode(deadline, values)
	}
	types, number := gobHead()
	body := make([]byte, 0, 512)
	body = append(append(body, number...), 1)
	body = append(appendString(body, when), 1)
	body = appendUint(body, uint64(len(values)))
	var value [16]byte
	for _, key := range slices.Sorted(maps.Keys(values)) {
		body = appendString(body, key)
		switch v := values[key].(type) {
		case string:
			body = append(appendString(body, "string"), gobString)
			body = appendUint(body, uint64(1+len(appendUint(value[:0], uint64(len(v))))+len(v)))
			body = appendString(append(body, 0), v)
		case []byte:
			body = append(appendString(body, "[]uint8"), gobBytes)
			body = appendUint(body, uint64(1+len(appendUint(value[:0], uint64(len(v))))+len(v)))
			body = appendString(append(body, 0), v)
		case bool:
			n := uint64(0)
			if v {
				n = 1
			}
			body = append(appendString(body, "bool"), gobBool)
			body = appendString(body, appendUint(append(value[:0], 0), n))
		case int:
			body = append(appendString(body, "int"), gobInt)
			body = appendString(body, appendUint(append(value[:0], 0), zigzag(int64(v))))
		case int64:
			body = append(appendString(body, "int64"), gobInt)
			body = appendString(body, appendUint(append(value[:0], 0), zigzag(v)))
		default:
			return c.GobCodec.Encode(deadline, values)
		}
	}
	body = append(body, 0)
	b := make([]byte, 0, len(types)+9+len(body))
	return appendString(append(b, types...), body), nil
}

// Decode implements scs.Codec.
func (c gobCodec) Decode(b []byte) (time.Time, map[string]any, error) {
	if deadline, values, ok := decodePlain(b); ok {
		return deadline, values, nil
	}
	return c.GobCodec.Decode(b)
}

func decodePlain(b []byte) (deadline time.Time, values map[string]any, ok bool) {
	types, number := gobHead()
	b, ok = bytes.CutPrefix(b, types)
	if !ok {
		return
	}
	body, rest, ok := takeString(b)
	if !ok || len(rest) != 0 {
		return deadline, nil, false
	}
	if b, ok = bytes.CutPrefix(body, append(slices.Clip(number), 1)); !ok {
		return
	}
	when, b, ok := takeString(b)
	if !ok || deadline.UnmarshalBinary(when) != nil || len(b) == 0 || b[0] != 1 {
		return deadline, nil, false
	}
	n, b, ok := takeUint(b[1:])
	if !ok || n > uint64(len(b)) {
		return deadline, nil, false
	}
	values = make(map[string]any, n)
	for range n {
		var key []byte
		if key, b, ok = takeString(b); !ok {
			return
		}
		if values[string(key)], b, ok = takeValue(b); !ok {
			return
		}
	}
	return deadline, values, len(b) == 1 && b[0] == 0
}

// takeValue reads a value in an interface.
func takeValue(b []byte) (value any, rest []byte, ok bool) {
	name, b, ok := takeString(b)
	if !ok || len(b) == 0 {
		return nil, nil, false
	}
	number := b[0]
	v, rest, ok := takeString(b[1:])
	if !ok || len(v) == 0 || v[0] != 0 {
		return nil, nil, false
	}
	n, tail, ok := takeUint(v[1:])
	if !ok {
		return nil, nil, false
	}
	plain := len(tail) == 0
	long := uint64(len(tail)) == n
	signed := int64(n>>1) ^ -int64(n&1)
	switch {
	case number == gobString && string(name) == "string" && long:
		return string(tail), rest, true
	case number == gobBytes && string(name) == "[]uint8" && long:
		return append([]byte(nil), tail...), rest, true
	case number == gobBool && string(name) == "bool" && plain && n <= 1:
		return n == 1, rest, true
	case number == gobInt && string(name) == "int64" && plain:
		return signed, rest, true
	case number == gobInt && string(name) == "int" && plain && int64(int(signed)) == signed:
		return int(signed), rest, true
	}
	return nil, nil, false
}

func zigzag(x int64) uint64 { return uint64(x<<1) ^ uint64(x>>63) }

// appendUint appends x: one byte below 128, or the negated number of bytes that follow, highest first.
func appendUint(b []byte, x uint64) []byte {
	if x < 128 {
		return append(b, byte(x))
	}
	n := 1
	for x>>(8*n) != 0 && n < 8 {
		n++
	}
	b = append(b, byte(-n))
	for n--; n >= 0; n-- {
		b = append(b, byte(x>>(8*n)))
	}
	return b
}

func takeUint(b []byte) (x uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	first, b := b[0], b[1:]
	if first < 128 {
		return uint64(first), b, true
	}
	n := -int(int8(first))
	if n > 8 || n > len(b) {
		return 0, nil, false
	}
	for _, d := range b[:n] {
		x = x<<8 | uint64(d)
	}
	return x, b[n:], true
}

func appendString[S string | []byte](b []byte, s S) []byte {
	return append(appendUint(b, uint64(len(s))), s...)
}

func takeString(b []byte) (s, rest []byte, ok bool) {
	n, b, ok := takeUint(b)
	if !ok || n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
