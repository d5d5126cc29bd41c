package tombstore

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Lifetime is how long one session lives, where that is not as long as the others: thirty days for
// "remember me", fifteen minutes for an administrator. It is given when an id begins ([Lasting],
// [WithLifetime], [LoginLifetime], Renewal.Lifetime), stays with the session whoever touches or
// saves it, and goes along when it moves. A session gets another one only together with another id.
// The zero Lifetime is as long as the others.
type Lifetime struct {
	// Idle takes the place of the ttl that a Write, a Touch, a Slide or a move of the session is
	// given. 0 leaves that as it is.
	Idle time.Duration
	// Absolute is how long after the Lifetime was given the session expires at the latest, in the
	// place of WithAbsoluteTimeout: also if that is shorter, since this one was chosen for the
	// session. 0 leaves that as it is.
	Absolute time.Duration
}

// Lasting gives the session that a Write begins a lifetime of its own. One that is live keeps what
// it has, and one that is written with Bound has that of its Binding.
func Lasting(l Lifetime) WriteOption { return func(o *WriteOptions) { o.Lifetime = &l } }

// WithLifetime gives a session that moves another lifetime, which begins with the move: for a login
// without a Binding. The zero Lifetime is as long as the others, from then on. Without WithData the
// remaining TTL goes along if Idle is 0. The deadline of a session that has owners comes no later:
// that takes a login, whose Binding has a lifetime of its own. On one server Rotate goes in steps
// then, as it does in a cluster.
func WithLifetime(l Lifetime) RotateOption { return func(o *RotateOptions) { o.Lifetime = &l } }

// LoginLifetime gives the session of a login a lifetime of its own. Of its deadline and that of
// [Until] the sooner one counts. Adopt, which is no login, ignores it.
func LoginLifetime(l Lifetime) ReserveOption { return func(o *ReserveOptions) { o.Lifetime = l } }

// Idle returns the idle timeout that the session has of its own, or 0: see Lifetime.
func (s Session) Idle() time.Duration { return ownIdle(s.header, 0) }

// valid returns ErrInvalidTTL if l has a time that is negative. A nil one is valid.
func (l *Lifetime) valid() error {
	if l != nil && (l.Idle < 0 || l.Absolute < 0) {
		return ErrInvalidTTL
	}
	return nil
}

// absoluteOf returns the absolute timeout of a session in ms, or 0.
func (c *config) absoluteOf(l *Lifetime) int64 {
	if l != nil && l.Absolute > 0 {
		ms, _ := millis(l.Absolute)
		return ms
	}
	return c.absolute.Milliseconds()
}

// appendIdle appends the item of an idle time of the session's own, if there is one. It must be the
// first item: the scripts look for it nowhere else.
func appendIdle(items []byte, idle time.Duration) []byte {
	ms, err := millis(idle)
	if err != nil {
		return items
	}
	var value [6]byte
	putMilli48(value[:], ms)
	return appendItem(items, itemIdle, value[:])
}

// items returns what follows the deadline in the header of a session that begins with l.
func (l *Lifetime) items() string {
	return string(withItems(make([]byte, headerSize), appendIdle(nil, l.Idle))[headerSize:])
}

// idleIn returns the idle time that a header has of its own, in ms, or 0.
func idleIn(header []byte) int64 {
	const at = headerSize + 2
	if len(header) < at+3+6 || string(header[at:at+3]) != "\x03\x00\x06" {
		return 0
	}
	return milli48(header[at+3:])
}

// ownIdle returns the idle time that a header has of its own, or ttl.
func ownIdle(header []byte, ttl time.Duration) time.Duration {
	if ms := min(idleIn(header), maxMillis); ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return ttl
}

// withItems returns a header with other items.
func withItems(header, items []byte) []byte {
	header = bytes.Clone(header[:headerSize])
	if len(items) == 0 {
		header[1] &^= flagItems
		return header
	}
	header[1] |= flagItems
	header = binary.BigEndian.AppendUint16(header, uint16(len(items)))
	return append(header, items...)
}

// relived returns the header of a session that moves with another lifetime, without a deadline.
// That of a session that has owners stays, since it can only be brought forward: their keys know of
// it, and forget the session some time after it.
func relived(header []byte, l *Lifetime) []byte {
	if l == nil || len(header) < headerSize {
		return header
	}
	items := appendIdle(nil, l.Idle)
	if len(header) > headerSize {
		others := header[headerSize+2:]
		if idleIn(header) != 0 {
			others = others[3+6:]
		}
		items = append(items, others...)
	}
	owned := len(ownersIn(header)) > 0
	header = withItems(header, items)
	if !owned {
		putMilli48(header[offsetDeadline:], 0)
	}
	return header
}

// relive gives a session that moves another lifetime.
func (s *RedisStore) relive(w *writing, l *Lifetime) {
	if l != nil {
		w.beginsAs(relived([]byte(w.begins), l))
		w.absolute = s.absoluteOf(l)
	}
}

// bound returns a deadline that is no later than what l allows from now on; 0 is none.
func (c *config) bound(l *Lifetime, deadline, now int64) int64 {
	if absolute := c.absoluteOf(l); absolute > 0 && (deadline == 0 || now+absolute < deadline) {
		return now + absolute
	}
	return deadline
}
