package tombstore

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func FuzzDecode(f *testing.F) {
	record := headOf(newVersion()) + strings.Repeat("\x00", 12) + "data"
	items := "\xc1\x41" + record[2:headerSize] + "\x00\x04" + "\x7f\x00\x01x" + "data"
	for _, seed := range []string{
		"", "x", record, record[:21], record[:22], items, items[:27], items[:23], "\xc1\x80" + record[2:], "\xc1\x90" + record[2:],
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := decode(value, time.Now())
		switch {
		case err == nil:
			require.EqualValues(t, kindLive, value[0])
			require.True(t, value[1]&flagStrict == 0 || value[1]>>4 == 9)
			require.Equal(t, value, append(slices.Clone(s.header), s.Data...))
			require.Equal(t, s.Version.bytes(), string(value[offsetVersion:offsetCreated]))
			require.Equal(t, value, recordOf(s.header, s.Version, s.Data))
			require.NoError(t, alive(value[:headerSize], time.Now()))
		case errors.Is(err, ErrNotFound):
			require.NotZero(t, milli48(value[offsetDeadline:]))
			require.ErrorIs(t, alive(value[:headerSize], time.Now()), ErrNotFound)
		default:
			require.ErrorIs(t, err, ErrCorrupt)
		}
	})
}

func FuzzParseEnd(f *testing.F) {
	end := canaryEnd(Logout)
	for _, seed := range []string{"", end, end[:8], end + "more", "\xc0\x80" + end[2:], "\xc1" + end[1:]} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, field []byte) {
		err := parseEnd(field)
		var ended *InvalidatedError
		if !errors.As(err, &ended) {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.EqualValues(t, field[2], ended.Reason)
		require.Equal(t, milli48(field[3:]), ended.At.UnixMilli())
	})
}

func FuzzKey(f *testing.F) {
	for _, seed := range []string{
		"", "x", NewID(), strings.Repeat("x", 1024), strings.Repeat("x", 1025), "a\r\nb\x00{c}*",
	} {
		f.Add(seed)
	}
	hashed, err := newConfig([]Option{WithKeyPrefix("p:")})
	require.NoError(f, err)
	plain, err := newConfig([]Option{WithKeyPrefix("p:"), WithPlainIDs()})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, id string) {
		key, err := hashed.key(id)
		inside, err2 := plain.key(id)
		require.Equal(t, err, err2)
		if id == "" || len(id) > maxIDLength {
			require.ErrorIs(t, err, ErrInvalidID)
			require.Empty(t, key+inside)
			return
		}
		require.NoError(t, err)
		require.Regexp(t, `^p:[A-Za-z0-9_-]{22}$`, key)
		require.Equal(t, "p:"+id, inside)
		other, err := hashed.key(id[1:] + "x")
		require.True(t, err != nil || id == id[1:]+"x" || other != key)
	})
}
