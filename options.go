package tombstore

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Option configures a store. RedisStore and MemoryStore take the same ones; MemoryStore ignores
// what only a server can do.
type Option func(*config)

type config struct {
	prefix         string
	plainIDs       bool
	timeout        time.Duration
	tombstoneTTL   time.Duration
	absolute       time.Duration
	maxData        int
	touchThreshold float64
	acks           int
	acksTimeout    time.Duration
	maxAge         time.Duration
	strict         bool
	maxSessions    int
	whenFull       WhenFull
	publish        bool
	sealed         bool
	keys           [][]byte      // of WithKeys
	sealings       []*sealing    // of them, or the one without; nil unless sealed
	watchFloor     time.Duration // how often what is watched is looked at, at least
	observer       Observer
	hits           CacheObserver // the observer, if it is one
	warnings       *warnings     // or nil
}

func newConfig(opts []Option) (config, error) {
	c := config{
		prefix:         "tombstore:",
		timeout:        2 * time.Second,
		tombstoneTTL:   24 * time.Hour,
		maxData:        1 << 20,
		touchThreshold: 0.1,
		watchFloor:     time.Minute,
	}
	for _, opt := range opts {
		opt(&c)
	}
	var faults []string
	must := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	must(c.prefix != "", "key prefix is empty")
	must(c.timeout > 0, "timeout %v is not positive", c.timeout)
	must(c.tombstoneTTL >= time.Second, "tombstone TTL %v is below one second", c.tombstoneTTL)
	must(c.absolute == 0 || c.absolute >= time.Millisecond, "absolute timeout %v is below one millisecond", c.absolute)
	must(c.maxData > 0 && c.maxData <= 512<<20-headerSize-sealOverhead, "maximum data size %d is not within 1 byte and 512 MiB", c.maxData)
	must(c.touchThreshold >= 0 && c.touchThreshold < 1, "touch threshold %v is not within [0, 1)", c.touchThreshold)
	must(c.acks >= 0, "number of replica acknowledgements %d is negative", c.acks)
	must(c.acks == 0 || c.acksTimeout >= time.Millisecond, "timeout of replica acknowledgements %v is below one millisecond",
		c.acksTimeout)
	must(c.maxAge == 0 || c.maxAge >= time.Millisecond, "maximum age of cached sessions %v is below one millisecond", c.maxAge)
	must(c.maxSessions >= 0, "maximum number of sessions %d is negative", c.maxSessions)
	must(c.maxSessions == 0 || c.whenFull == Refuse || c.whenFull == EvictOldest, "WithMaxSessions needs Refuse or EvictOldest")
	must(c.maxAge == 0 || !c.strict, "a cache and strict reads exclude each other")
	must(!c.sealed || !c.plainIDs, "sealed data and plain ids exclude each other")
	must(c.sealed || c.keys == nil, "WithKeys needs WithSealedData")
	for _, key := range c.keys {
		must(len(key) >= minKey, "a key of the application has %d bytes, fewer than %d", len(key), minKey)
	}
	if len(faults) > 0 {
		return config{}, errors.New("tombstore: new: " + strings.Join(faults, "; "))
	}
	c.sealings = c.newSealings()
	return c, nil
}

// WithKeyPrefix sets what every key begins with. Stores with different prefixes do not see each
// other's sessions; with WithPlainIDs neither prefix may begin with the other. The default is
// "tombstore:".
func WithKeyPrefix(prefix string) Option { return func(c *config) { c.prefix = prefix } }

// WithPlainIDs puts ids into keys as they are, for those who must find a session by its id with
// other tools. Whoever can list keys, read a dump or see MONITOR can then take over every session.
// The default is to store a digest.
func WithPlainIDs() Option { return func(c *config) { c.plainIDs = true } }

// WithTimeout bounds an operation, retries included, whose context has no deadline. After d [Open]
// begins no new attempt, but waits for the one under way. It must be positive. The default is 2
// seconds.
func WithTimeout(d time.Duration) Option { return func(c *config) { c.timeout = d } }

// WithTombstoneTTL sets how much longer than the session could have its tombstone lives, at least
// one second. It must be longer than any request that may still hold a copy of the session. It is
// also how long, at least, an old id leads to the session that has moved on. The default is 24
// hours.
func WithTombstoneTTL(d time.Duration) Option { return func(c *config) { c.tombstoneTTL = d } }

// WithAbsoluteTimeout makes every session expire d after it was created, however often it is
// written or touched (OWASP Session Management Cheat Sheet, "Absolute Timeout"). A session that
// moves keeps its creation time. Like every expiry it leaves no tombstone: a Write that does not
// ask for a live session (IfPresent, IfVersion, Replacing) may begin a new one under the same id.
// It applies to sessions created from then on, and must be at least one millisecond. The default is
// 0, none.
func WithAbsoluteTimeout(d time.Duration) Option { return func(c *config) { c.absolute = d } }

// WithMaxDataSize sets the largest data that Write and Rotate accept, in bytes, up to 512 MiB. The
// default is 1 MiB.
func WithMaxDataSize(bytes int) Option { return func(c *config) { c.maxData = bytes } }

// WithTouchThreshold sets the part of the idle timeout, from 0 to below 1, by which a session's TTL
// must be off before Touch and Slide set it: each time costs a replication, and an invalidation in
// every process that caches the session. A session may expire early by up to that part of the idle
// timeout. The default is 0.1; 0 sets the TTL every time.
func WithTouchThreshold(part float64) Option { return func(c *config) { c.touchThreshold = part } }

// WithReplicaAcks makes Invalidate, Rotate and both halves of a renewal wait until n replicas have
// the tombstone, and Reserve and InvalidateOwner what they have entered and closed, for at most
// timeout each time, and return ErrUnacknowledged otherwise. Only with n as large as the number of
// replicas that could be promoted does an ended session survive the loss of the primary (Redis
// documentation, WAIT). It takes a connection for itself while it waits. If that breaks, or while a
// slot of a cluster is between two nodes, it waits again, until the context ends. The default is 0:
// replication is asynchronous, and a failover may bring back sessions ended in the moments before
// it.
func WithReplicaAcks(n int, timeout time.Duration) Option {
	return func(c *config) { c.acks, c.acksTimeout = n, timeout }
}

// WithClientCache makes Read answer from the memory of this process when it can, for at most maxAge
// after the server was asked, at least one millisecond. The server sends a message when a session
// changes (Redis documentation, Client-side caching), so a session ended by another process is
// served until that message arrives, and for at most [RedisStore.Staleness] when it cannot. In this
// process Read returns nothing older than the last change that has returned. Caching starts only
// after a test message has arrived; where none does, Read asks the server every time, and
// [RedisStore.Check] says why.
//
// A client given to New must send every read to the primary: in a cluster SendToReplicas sends
// cached reads to replicas, and nothing here notices. Several stores may share a client. The
// default is 0, no cache.
func WithClientCache(maxAge time.Duration) Option { return func(c *config) { c.maxAge = maxAge } }

// WithStrictReads makes Read and Exists ask by a command that counts as a write (GETEX), so that a
// primary with min-replicas-to-write that has lost its replicas refuses them: after a failover the
// old primary serves no session that was ended at the new one. It needs min-replicas-to-write of
// more than half of the replicas, and min-replicas-max-lag at least two seconds below Sentinel's
// down-after-milliseconds or the cluster's node timeout: the server counts whole seconds, once a
// second. Reads then fail while too few replicas are there. A read costs the same, except that a
// Slide that sets the TTL takes one more trip. It excludes WithClientCache. The default is to read
// by GET.
func WithStrictReads() Option { return func(c *config) { c.strict = true } }

// WithMaxSessions sets how many sessions an owner may have, ids that are reserved and sessions that
// are between two ids among them, and what Reserve does with one more. At no moment does an owner
// have more, except after the limit was lowered. All processes must have the same. Of several
// owners the one of the login is limited: sessions that have it as a further one (Also) count, but
// are not refused.
//
// A user who logs in again with one of the owner's sessions gives that up by InPlaceOf, as the
// adapters do. Otherwise there are two until Rotate has moved it: with Refuse that may be one too
// many, and with EvictOldest the old session may be the one that is ended. Rotate then fails with
// ErrInvalidated, and Write with Bound stores the new session. The default is 0, any number.
func WithMaxSessions(n int, whenFull WhenFull) Option {
	return func(c *config) { c.maxSessions, c.whenFull = n, whenFull }
}

// WithPublish makes every end and every move of a session, and every InvalidateOwner, send a
// message (PUBLISH), so that those who watch it (see Watcher) are told at once. Set it in every
// process that ends sessions: without it an end is noticed within a minute, also by the process
// that has ended the session. A MemoryStore needs no messages. The message is the key of the
// session or of the owner, on the channel whose name is the key prefix and "ended"; with
// WithPlainIDs the key shows the id to whoever may subscribe. A message that is not permitted is
// not sent, and the session is ended all the same. The default is to send none.
func WithPublish() Option { return func(c *config) { c.publish = true } }

// WhenFull says what Reserve does for an owner who has reached the limit of sessions.
type WhenFull byte

const (
	// Refuse makes Reserve fail with ErrTooManySessions. A session that has expired within ten
	// minutes of its login keeps its place until then, since it cannot be told from one that is
	// reserved.
	Refuse WhenFull = iota + 1
	// EvictOldest ends the session whose login is the longest ago, with the reason Revoked. It
	// spares sessions that are between two ids, and ids that were reserved within the last minute
	// and are not written yet; if there is nothing else, Reserve fails with ErrTooManySessions.
	EvictOldest
)

// ReadOption is an option of Read: Slide, WithExpiry, Fresh or Shared.
type ReadOption func(*ReadOptions)

// ReadOptions is what the options of one Read add up to. Only implementations of Store need it:
// they apply each option to the zero value. The same holds for WriteOptions, RotateOptions and
// InvalidateOptions.
type ReadOptions struct {
	Slide  bool          // restart the idle timeout
	TTL    time.Duration // the idle timeout, if Slide is set
	Expiry bool          // set Session.ExpiresAt; Slide does so too
	Fresh  bool          // do not answer from a cache
	Shared bool          // the caller does not change Session.Data
}

// Slide makes Read restart the idle timeout of the session, as Touch does, in the same trip or, if
// the TTL has to be set, in a second one.
func Slide(ttl time.Duration) ReadOption {
	return func(o *ReadOptions) { o.Slide, o.TTL = true, ttl }
}

// WithExpiry makes Read tell when the session expires (Session.ExpiresAt), so that the caller can
// tell when a Touch is due.
func WithExpiry() ReadOption { return func(o *ReadOptions) { o.Expiry = true } }

// Fresh makes Read ask the server even if the answer could be had from a cache in this process.
func Fresh() ReadOption { return func(o *ReadOptions) { o.Fresh = true } }

// Shared lets Session.Data be memory that others read too, which saves Read a copy. The caller must
// not change it, nor append to it.
func Shared() ReadOption { return func(o *ReadOptions) { o.Shared = true } }

// WriteOption is a condition of Write, IfAbsent, IfPresent, IfVersion or Replacing, or Bound or
// Lasting. Of several conditions the last one counts. For a session that was ended Write fails with
// ErrInvalidated, whatever its condition.
type WriteOption func(*WriteOptions)

// WriteOptions is what the options of one Write add up to; at most one of Absent, Present and Match
// is set.
type WriteOptions struct {
	Absent   bool
	Present  bool
	Match    bool
	Version  Version // to be stored, if Match is set
	Replaced Session // of Replacing, if Present is set; zero without

	Binding  *Binding  // of Bound, which is IfAbsent whatever the condition says; or nil
	Lifetime *Lifetime // of Lasting; or nil
}

// IfAbsent makes Write fail with ErrConflict if the session is live: for a session that is new.
func IfAbsent() WriteOption {
	return func(o *WriteOptions) { *o = WriteOptions{Absent: true, Binding: o.Binding, Lifetime: o.Lifetime} }
}

// IfPresent makes Write fail with ErrNotFound unless the session is live: for a session that was
// read before. It keeps an ended session from coming back even when the tombstone is lost.
func IfPresent() WriteOption {
	return func(o *WriteOptions) { *o = WriteOptions{Present: true, Binding: o.Binding, Lifetime: o.Lifetime} }
}

// IfVersion makes Write fail with ErrNotFound unless the session is live, and with ErrConflict
// unless its version is v: for a session that was read before and must not have changed since. The
// zero Version is never stored, and so never met.
func IfVersion(v Version) WriteOption {
	return func(o *WriteOptions) {
		*o = WriteOptions{Match: true, Version: v, Binding: o.Binding, Lifetime: o.Lifetime}
	}
}

// Replacing is IfPresent for a caller who has the session as Read, Write, Rotate or FinishRenewal
// returned it, and it costs the server a third as much. s need not be the latest version: of two
// who save the same session the later one wins. If another session has begun under the id since,
// Write fails with ErrConflict. With a Session that did not come from a store it is IfPresent.
func Replacing(s Session) WriteOption {
	return func(o *WriteOptions) {
		*o = WriteOptions{Present: true, Replaced: s, Binding: o.Binding, Lifetime: o.Lifetime}
	}
}

// RotateOption is an option of Rotate: WithData, IfUnchanged, WithBinding, WithLifetime or Grace.
type RotateOption func(*RotateOptions)

// RotateOptions is what the options of one Rotate add up to.
type RotateOptions struct {
	Replace bool
	Data    []byte        // if Replace is set
	TTL     time.Duration // if Replace is set
	Version Version       // that the old id must have; 0 for any
	Binding *Binding      // of WithBinding, or nil

	Lifetime *Lifetime // of WithLifetime, or nil to keep it; with a Binding, whose own counts, it has no effect

	Grace time.Duration // of Grace; 0 for none
}

// WithData makes Rotate store data under the new id with the idle timeout ttl, instead of the data
// and the remaining TTL of the old id.
func WithData(data []byte, ttl time.Duration) RotateOption {
	return func(o *RotateOptions) { o.Replace, o.Data, o.TTL = true, data, ttl }
}

// IfUnchanged makes Rotate fail with ErrConflict, and change nothing, unless the version of the
// session is v. The zero Version is any.
func IfUnchanged(v Version) RotateOption { return func(o *RotateOptions) { o.Version = v } }

// InvalidateOption is an option of Invalidate: WithReason, IfLive or Alone; or of InvalidateOwner:
// WithReason, Except or Thorough.
type InvalidateOption func(*InvalidateOptions)

// InvalidateOptions is what the options of one Invalidate add up to.
type InvalidateOptions struct {
	Reason Reason  // zero: Logout
	Live   bool    // fail unless a live session was ended
	Alone  bool    // do not follow the session to another id
	Except *string // id of the session that InvalidateOwner lets live; or nil

	Thorough bool // InvalidateOwner looks at the owner in each record, too

	spares func(key string) (bool, error) // whether an end does not follow to a key; or nil
}

// WithReason sets the reason that the tombstone keeps. The default is Logout. Rotated is for a step
// of a renewal: see Invalidate.
func WithReason(r Reason) InvalidateOption { return func(o *InvalidateOptions) { o.Reason = r } }

// IfLive makes Invalidate fail with ErrNotFound or ErrInvalidated unless it has ended a live
// session, so that of several who end a session exactly one is told that it did: for single-use
// tokens. An id without a session gets no tombstone.
func IfLive() InvalidateOption { return func(o *InvalidateOptions) { o.Live = true } }

// Alone makes Invalidate end one id, and not the one to which the session has moved.
func Alone() InvalidateOption { return func(o *InvalidateOptions) { o.Alone = true } }

// collect applies opts to the zero value of O.
func collect[O any, F ~func(*O)](opts []F) O {
	if len(opts) == 0 { // o is on the heap, since an option may keep it
		var none O
		return none
	}
	var o O
	for _, opt := range opts {
		opt(&o)
	}
	return o
}
