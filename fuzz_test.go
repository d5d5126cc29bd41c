package tombstore

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzDecode(f *testing.F) {
	record := newVersion().head() + strings.Repeat("\x00", 12) + "data"
	tombstone := string([]byte{kindTombstone, 1, 0, 0, 0, 0, 0, 1})
	for _, seed := range []string{
		"", "x", record, record[:21], record[:22], tombstone, tombstone[:7], tombstone + "x", "\xc1\x01" + record[2:],
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := decode(value)
		var ended *InvalidatedError
		switch {
		case err == nil:
			require.Equal(t, "\xc1\x00", string(value[:2]))
			require.Equal(t, string(value[headerSize:]), string(s.Data))
			require.Equal(t, s.Version.head(), string(value[:offsetCreated]))
		case errors.As(err, &ended):
			require.Len(t, value, tombstoneSize)
			require.EqualValues(t, kindTombstone, value[0])
		case errors.Is(err, ErrNotFound):
			require.NotZero(t, milli48(value[offsetDeadline:]))
		default:
			require.ErrorIs(t, err, ErrCorrupt)
		}
	})
}

func FuzzKey(f *testing.F) {
	for _, seed := range []string{"", "x", NewID(), strings.Repeat("x", 1024), strings.Repeat("x", 1025), "a\r\nb\x00{c}*"} {
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
