package tombstore

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"time"
)

// A key holds one string. All integers are big-endian, all times milliseconds since 1970 on the server's clock.
//
//	live session                      tombstone
//	 0   1  kind, 0xC1                0  1  kind, 0xC0
//	 1   1  flags, 0                  1  1  reason
//	 2   8  version                   2  6  time
//	10   6  created
//	16   6  absolute deadline, 0: none
//	22   n  data
//
// The kind names the format too; another format takes another kind. 0xC0 and 0xC1 occur in no UTF-8 text and begin no gob
// stream, so values of other programs are told apart. Other kinds and flags are ErrCorrupt and are never overwritten.
const (
	kindLive      = 0xC1
	kindTombstone = 0xC0

	offsetVersion  = 2
	offsetCreated  = 10
	offsetDeadline = 16
	headerSize     = 22
	tombstoneSize  = 8
)

// Version tells the states of one session apart: every write stores a new one, drawn at random. It has no order. The zero
// Version is never stored.
type Version uint64

// Reason tells why a session was ended.
type Reason byte

// The reasons in use. Other values are kept as they are.
const (
	Logout  Reason = 1 // the user logged out
	Rotated Reason = 2 // the session goes on under a new id
	Revoked Reason = 3 // somebody else ended the session: an administrator, a password change
)

// String returns the reason in lower case.
func (r Reason) String() string {
	switch r {
	case Logout:
		return "logout"
	case Rotated:
		return "rotated"
	case Revoked:
		return "revoked"
	}
	return "reason " + strconv.Itoa(int(r))
}

func newVersion() Version {
	for {
		if v := Version(rand.Uint64()); v != 0 {
			return v
		}
	}
}

// bytes returns v as a record holds it.
func (v Version) bytes() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(v))
	return string(b[:])
}

// head returns the start of a live record, up to and including the version.
func (v Version) head() string {
	b := [offsetCreated]byte{kindLive}
	binary.BigEndian.PutUint64(b[offsetVersion:], uint64(v))
	return string(b[:])
}

// parse returns the live session that value holds and its absolute deadline in milliseconds, 0 for none. It returns ErrCorrupt
// or an *InvalidatedError. Session.Data is a part of value.
func parse(value []byte) (s Session, deadline int64, err error) {
	switch {
	case len(value) == tombstoneSize && value[0] == kindTombstone:
		return s, 0, &InvalidatedError{Reason: Reason(value[1]), At: time.UnixMilli(milli48(value[2:]))}
	case len(value) < headerSize || value[0] != kindLive || value[1] != 0:
		return s, 0, ErrCorrupt
	}
	return Session{
		Data:      value[headerSize:],
		Version:   Version(binary.BigEndian.Uint64(value[offsetVersion:])),
		CreatedAt: time.UnixMilli(milli48(value[offsetCreated:])),
	}, milli48(value[offsetDeadline:]), nil
}

// decode is parse for a reader: it returns ErrNotFound for a session that is past its deadline. The reader checks that although
// the server expires the key, because the clock of a server that was promoted may be behind.
func decode(value []byte) (Session, error) {
	s, deadline, err := parse(value)
	if err == nil && deadline != 0 && deadline <= time.Now().UnixMilli() {
		return Session{}, ErrNotFound
	}
	return s, err
}

// milli48 reads six bytes.
func milli48[bytes []byte | string](b bytes) int64 {
	var n int64
	for i := range 6 {
		n = n<<8 | int64(b[i])
	}
	return n
}
