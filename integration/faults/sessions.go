package faults

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// Create stores n sessions for an hour and returns their ids.
func Create(t testing.TB, s tombstore.Store, n int) (ids []string) {
	t.Helper()
	for range n {
		id := tombstore.NewID()
		_, err := s.Write(t.Context(), id, []byte("x"), time.Hour, tombstore.IfAbsent())
		require.NoError(t, err)
		ids = append(ids, id)
	}
	return ids
}

// End ends sessions, which must succeed.
func End(t testing.TB, s tombstore.Store, ids []string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, s.Invalidate(t.Context(), id))
	}
}

// Live counts the ids that are live.
func Live(t testing.TB, s tombstore.Store, ids []string) (n int64) {
	t.Helper()
	for _, id := range ids {
		if _, err := s.Read(t.Context(), id); !Gone(t, err) {
			n++
		}
	}
	return n
}

// Revived counts the ids that a late writer makes live.
func Revived(t testing.TB, s tombstore.Store, ids []string, opts ...tombstore.WriteOption) (n int64) {
	t.Helper()
	for _, id := range ids {
		if _, err := s.Write(t.Context(), id, []byte("late"), time.Hour, opts...); !Gone(t, err) {
			n++
		}
	}
	return n
}

// Held reads sessions, as a request does that will save them later.
func Held(t testing.TB, s tombstore.Store, ids []string) map[string]tombstore.Session {
	t.Helper()
	held := make(map[string]tombstore.Session, len(ids))
	for _, id := range ids {
		session, err := s.Read(t.Context(), id)
		require.NoError(t, err)
		held[id] = session
	}
	return held
}

// Saved counts the sessions that late requests make live, which save what they hold.
func Saved(t testing.TB, s tombstore.Store, held map[string]tombstore.Session) (n int64) {
	t.Helper()
	for id, session := range held {
		if _, err := s.Write(t.Context(), id, session.Data, time.Hour, tombstore.Replacing(session)); !Gone(t, err) {
			n++
		}
	}
	return n
}

// Gone reports whether err says that there is no live session. Every other error fails the test.
func Gone(t testing.TB, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	require.True(t, tombstore.NoSession(err), "%v", err)
	return true
}

// Slot returns the slot of a key without braces: its CRC16 (Redis cluster specification).
func Slot(key string) int {
	crc := uint16(0)
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % redistest.Slots
}

// NewID returns a new id that is wanted.
func NewID(wanted func(id string) bool) string {
	start := tombstore.NewID()
	for n := 0; ; n++ {
		if id := start + strconv.Itoa(n); wanted(id) {
			return id
		}
	}
}
