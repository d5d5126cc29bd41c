package tombstore

import (
	"bytes"
	"encoding/binary"
	"hash/crc64"
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

// A key holds a live session as a string, or the tombstone of an ended one as a hash: the commands
// that read and write strings refuse a hash, so the server itself refuses the late write. All
// integers are big-endian, all times milliseconds since 1970: those of a session on the server's
// clock, that of an end on the clock of the process that has ended it.
//
//	live session, a string                     tombstone, a hash
//	 0   1  kind, 0xC1                         t  the end: kind 0xC0, flags 1, reason 1, time 6;
//	                                              and if flagged, until when the id may read, 6
//	 1   1  flags                              s  successor: what follows the prefix in its key
//	 2   8  version                            c  claim of a renewal under way, 8
//	10   6  created                            h  header of the session, for a renewal
//	16   6  absolute deadline, 0: none
//	22   2  length of the items, if flagged
//	     i  items: type 1, length 2, value
//	     n  data
//
// All but version and data is the session's header, which never changes under one id. Items, flags
// and fields that are not known are carried over; bit 7 of the flags says that whoever does not
// know what bits 4 to 6 mean then must leave the session alone (ErrCorrupt): bit 4 alone that its
// data is sealed. 0xC0 and 0xC1 occur in no UTF-8 text and begin no gob stream, so values of other
// programs are told apart, and never overwritten.
const (
	kindLive      = 0xC1
	kindTombstone = 0xC0

	flagItems  = 1 << 0
	flagGrace  = 1 << 0 // of an end
	flagSealed = 1 << 4 // with flagStrict
	flagStrict = 1 << 7 // must be understood
	mustKnow   = 0xF0   // what must be known if flagStrict is set

	offsetVersion  = 2
	offsetCreated  = 10
	offsetDeadline = 16
	headerSize     = 22 // without items
	endSize        = 9  // of field t, at least
	dumpHead       = 5  // before field t in a dump
)

// dumpOf returns the tombstone of an end as DUMP would give it, in a format that all servers that
// are supported can read: type 4, the hash, of one field, version 9 of the format, and CRC-64 of
// all that.
func dumpOf(reason Reason, at time.Time) string {
	var b [24]byte
	copy(b[:], "\x04\x01\x01t\x09")
	t := b[dumpHead:]
	t[0], t[2] = kindTombstone, byte(reason)
	putMilli48(t[3:], at.UnixMilli())
	b[14] = 9
	binary.LittleEndian.PutUint64(b[16:], ^crc64.Update(math.MaxUint64, crcTable, b[:16]))
	return string(b[:])
}

var crcTable = crc64.MakeTable(0x95ac9329ac4bc9b5) // Jones, as in Redis' crc64.c

// Version tells the states of one session apart: every write stores a new one, drawn at random. It
// has no order. The zero Version is never stored.
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

// headerOf returns the header of a live record, with the version: all that comes before the data.
// It is nil if value is not a record that this package may read. It is a part of value.
func headerOf(value []byte) []byte {
	if !readable(value) {
		return nil
	}
	size := headerSize
	if value[1]&flagItems != 0 {
		if len(value) < headerSize+2 {
			return nil
		}
		size += 2 + int(binary.BigEndian.Uint16(value[headerSize:]))
	}
	if len(value) < size {
		return nil
	}
	return value[:size:size]
}

// readable reports whether the first bytes of a record are those of one that this package may read.
func readable(head []byte) bool {
	return len(head) >= headerSize && head[0] == kindLive && (head[1]&flagStrict == 0 || isSealed(head))
}

// isSealed reports whether the data that follows a header is sealed.
func isSealed(header []byte) bool { return header[1]&mustKnow == flagStrict|flagSealed }

// newHeader returns the header of a session without items. A deadline of 0 is none.
func newHeader(v Version, created, deadline int64) []byte {
	h := make([]byte, headerSize)
	h[0] = kindLive
	setVersion(h, v)
	putMilli48(h[offsetCreated:], created)
	putMilli48(h[offsetDeadline:], deadline)
	return h
}

func setVersion(header []byte, v Version) {
	binary.BigEndian.PutUint64(header[offsetVersion:], uint64(v))
}

// sameHeader reports whether two headers are of the same session: equal but for the version.
func sameHeader(a, b []byte) bool {
	return a[1] == b[1] && bytes.Equal(a[offsetCreated:], b[offsetCreated:])
}

// recordOf returns the record of a session: header, under version v, and data.
func recordOf(header []byte, v Version, data []byte) []byte {
	record := make([]byte, 0, len(header)+len(data))
	record = append(record, header...)
	setVersion(record, v)
	return append(record, data...)
}

// parse returns the live session that value holds, or ErrCorrupt. It is a part of value.
func parse(value []byte) (Session, error) {
	header := headerOf(value)
	if header == nil {
		return Session{}, ErrCorrupt
	}
	return Session{
		Data:      value[len(header):],
		Version:   Version(binary.BigEndian.Uint64(header[offsetVersion:])),
		CreatedAt: time.UnixMilli(milli48(header[offsetCreated:])),
		header:    header,
	}, nil
}

// decode is parse for a reader: it returns ErrNotFound for a session that is past its deadline. The
// reader checks that although the server expires the key, because the clock of a server that was
// promoted may be behind.
func decode(value []byte, now time.Time) (Session, error) {
	s, err := parse(value)
	if err != nil {
		return Session{}, err
	}
	if deadline := s.deadline(); deadline != 0 && deadline <= now.UnixMilli() {
		return Session{}, ErrNotFound
	}
	return s, nil
}

// alive is decode for the first bytes of a record.
func alive(head []byte, now time.Time) error {
	if !readable(head) {
		return ErrCorrupt
	}
	if deadline := milli48(head[offsetDeadline:]); deadline != 0 && deadline <= now.UnixMilli() {
		return ErrNotFound
	}
	return nil
}

// Deadline returns when the session expires at the latest, on the server's clock: see
// WithAbsoluteTimeout. It is zero if the session has no such deadline, or comes from no store of
// this package.
func (s Session) Deadline() time.Time {
	if ms := s.deadline(); ms != 0 {
		return time.UnixMilli(ms)
	}
	return time.Time{}
}

// Owners returns the digests of the session's owners, as Ref gives them, the one of its login
// first: see [Binder].
func (s Session) Owners() []string { return ownersIn(s.header) }

// Label returns what Label has set for the session of an owner, or "".
func (s Session) Label() string {
	for _, label := range itemsIn(s.header, itemLabel) {
		return string(label)
	}
	return ""
}

// deadline returns the absolute deadline in milliseconds, or 0.
func (s *Session) deadline() int64 {
	if s.header == nil {
		return 0
	}
	return milli48(s.header[offsetDeadline:])
}

// parseEnd returns the *InvalidatedError that field t of a tombstone stands for, or ErrCorrupt.
func parseEnd[bytes []byte | string](t bytes) error {
	if len(t) < endSize || t[0] != kindTombstone || t[1]&flagStrict != 0 {
		return ErrCorrupt
	}
	e := &InvalidatedError{Reason: Reason(t[2]), At: time.UnixMilli(milli48(t[3:]))}
	if t[1]&flagGrace != 0 && len(t) >= endSize+6 && e.Reason == Rotated {
		e.grace = milli48(t[endSize:])
	}
	return e
}

// milli48 reads six bytes.
func milli48[bytes []byte | string](b bytes) int64 {
	var n int64
	for i := range 6 {
		n = n<<8 | int64(b[i])
	}
	return n
}

func putMilli48(b []byte, n int64) {
	for i := 5; i >= 0; i-- {
		b[i] = byte(n)
		n >>= 8
	}
}
