package tombstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore/internal/client"
)

// RedisStore is a Store on Redis 7.0 or later, Valkey 7.2 or later, or a server that behaves like
// them. A change is one Lua script, run by EVALSHA and loaded again by EVAL whenever the server
// does not know it, or one command that the server itself refuses for a session that was ended.
//
// It is safe for concurrent use. It starts no goroutine but for Watch, reads only from the primary,
// and prints nothing. When a connection breaks, or a server is loading its data or has no primary,
// operations are tried again until their context or WithTimeout ends them; then the last cause is
// returned, wrapped in ErrUnknownOutcome if the operation may have been applied. The same holds
// when the server has become a replica, if the client can come to another one: see Open and New.
type RedisStore struct {
	client rueidis.Client
	config
	owned  bool          // Close closes client
	conns  *client.Conns // of a client that is owned
	closed atomic.Bool
	timers timers

	unsettled atomic.Bool // the client may still send on connections that were dropped

	// Arguments of scripts that are the same in every call.
	argAbsolute, argTombstoneTTL, argThreshold string

	native   proof        // that the server refuses a SET for a session that was ended
	restores atomic.Int32 // what it was seen to do with RESTORE: 0, restoresWell or restoresBadly
	cache    *cache       // nil without WithClientCache
	watches  *watches
}

var (
	_ Store   = (*RedisStore)(nil)
	_ Renewer = (*RedisStore)(nil)
	_ Lister  = (*RedisStore)(nil)
	_ Binder  = (*RedisStore)(nil)
)

// New returns a store on client. It checks the options and does no I/O, and the store never closes
// client. Leave the client's ConnLifetime at zero: with it rueidis runs commands again that may
// have been applied, behind the store's back. Set its DisableRetry: the store tries again by
// itself, and a retry of rueidis shares memory with the attempt before it.
//
// A client of one address must not stay with a server that has become a replica, if another one has
// become primary behind the same name: rueidis keeps its connections as long as they work. Such a
// store fails at once with READONLY, and reads what the replica has. Then replace the client, or
// let Open make it. A client with Sentinels or of a cluster finds the primary by itself.
func New(client rueidis.Client, opts ...Option) (*RedisStore, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if client == nil {
		return nil, errors.New("tombstore: new: client is nil")
	}
	s := &RedisStore{
		client:          client,
		config:          c,
		argAbsolute:     decimal(c.absolute.Milliseconds()),
		argTombstoneTTL: decimal(c.tombstoneTTL.Milliseconds()),
		argThreshold:    strconv.FormatFloat(c.touchThreshold, 'f', -1, 64),
		native:          proof{final: true},
	}
	s.native.warn = func(ctx context.Context, cause error) { s.warn(ctx, warnScripted, cause) }
	s.watches = newWatches(c.watchFloor, s.sightsOf, s.subscribe)
	if c.maxAge > 0 {
		s.cache = newCache(c.maxAge)
		s.cache.proof.warn = func(ctx context.Context, cause error) { s.warn(ctx, warnUncached, cause) }
	}
	return s, nil
}

// Open connects to the server at url and returns a store that owns its connections; call Close when
// done. The forms of url are
//
//	redis://user:password@host:6379/0     a server; rediss:// with TLS
//	redis://host:6379?addr=host2:6379     several nodes of a cluster
//	redis://host:26379?master_set=name    Sentinels, more of them as addr
//	unix:///path/to/socket?db=0           a socket
//
// and valkey:// and valkeys:// mean the same as redis:// and rediss://. User and password are those
// of the servers; those of the Sentinels are the parameters sentinel_username and
// sentinel_password. With rediss:// Sentinels are asked by TLS, too. Further parameters are db,
// dial_timeout, write_timeout, client_name, protocol, client_cache, max_retries and skip_verify, as
// rueidis.ParseURL has them. An unknown one is an error. No error quotes what may be a password.
//
// Open tries again as operations do, and then returns the last cause: so it waits for a server that
// is loading its data or does not listen yet, but not after a refusal, for example of the password.
// WithTimeout bounds the retries, and not an attempt that has begun. That one is given up after
// dial_timeout (5 seconds by default) while it connects, TLS included, and after write_timeout (1.5
// seconds) when a server that has accepted the connection stays silent. So Open may take longer
// than WithTimeout, by an attempt.
//
// The name of a single server may come to mean another one (DNS, a proxy, a virtual address, a
// managed service). When the server says that it is a replica, the store drops the connections to
// it and connects anew, and operations are tried again.
func Open(url string, opts ...Option) (*RedisStore, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	o, err := client.Option(url, c.maxAge > 0)
	if err != nil {
		return nil, wrap("open", err)
	}
	return open(o, c, opts)
}

// OpenOption is Open for what a URL cannot say: certificates, credentials that change
// (AuthCredentialsFn, which is asked for Sentinels too, and which nothing interrupts), a dialer of
// the program's own. It leaves alone what o sets, and sets the rest as Open does:
// PipelineMultiplex, MaxFlushDelay, ConnWriteTimeout, Sentinel.TopologyRefreshInterval,
// Sentinel.Dialer.Timeout, and Dialer.KeepAlive with WithClientCache, whose Staleness follows from
// KeepAlive and ConnWriteTimeout.
//
// DisableRetry is always set, since the store tries again by itself, and without WithClientCache so
// is DisableCache. It returns an error that names the field if o sets one with which ended sessions
// could be read, or commands be run twice: SendToReplicas, ReplicaOnly, Standalone, ConnLifetime,
// ClientTrackingOptions or NewCacheStoreFn.
func OpenOption(o rueidis.ClientOption, opts ...Option) (*RedisStore, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	o, err = client.Complete(o, c.maxAge > 0)
	if err != nil {
		return nil, wrap("open", err)
	}
	return open(o, c, opts)
}

func open(o rueidis.ClientOption, c config, opts []Option) (*RedisStore, error) {
	conns := client.Track(&o)
	conn, err := dial(o, c.timeout)
	if err != nil {
		return nil, wrap("open", explain(err))
	}
	s, err := New(conn, opts...)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.owned, s.conns = true, conns
	if s.cache != nil {
		s.cache.limit(o.Dialer.KeepAlive, o.ConnWriteTimeout)
	}
	return s, nil
}

// dial connects, and tries again as send does.
func dial(o rueidis.ClientOption, timeout time.Duration) (rueidis.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		conn, err := client.Dial(o)
		if !transient(err) || !sleep(ctx, pause) {
			return conn, err
		}
	}
}

// Close closes the connections of a store that Open or OpenOption returned; operations then fail
// with an error that wraps rueidis.ErrClosing, and watches end with one. It does nothing to a store
// that New returned.
func (s *RedisStore) Close() {
	if s.owned {
		s.closed.Store(true)
		s.watches.close()
		s.client.Close()
		s.conns.Close()
	}
}

// Read implements [Store]. It is a plain GET: a key holds the whole state of a session. Slide and
// WithExpiry add PTTL to the same trip; a script follows if the TTL is to be set, or to tell why
// there is no session. With WithClientCache Read answers from memory if it can.
func (s *RedisStore) Read(ctx context.Context, id string, opts ...ReadOption) (Session, error) {
	o := collect(opts)
	var buf [128]byte
	key, err := s.appendKey(buf[:0], id)
	var slide int64
	if err == nil && o.Slide {
		slide, err = millis(o.TTL)
	}
	if err != nil {
		_, op := s.begin(ctx, "read", id)
		return Session{}, op.end(err)
	}
	if key := string(key); s.cache != nil && !o.Fresh && pays(key) {
		return s.readCached(ctx, id, key, slide, o)
	}
	return s.readServer(ctx, id, string(key), slide, o.Expiry, time.Time{})
}

// readServer is a Read that the server answers. begun is when it has begun, if that is not now.
func (s *RedisStore) readServer(
	ctx context.Context, id, key string, slide int64, expiry bool, begun time.Time,
) (Session, error) {
	ctx, op := s.beginKey(ctx, "read", key, begun)
	session, err := s.readThrough(ctx, key, slide, expiry)
	if left, ok := errors.AsType[*movedError](err); ok {
		session, err = s.readOn(ctx, left, expiry || slide != 0)
	}
	session, err = s.opened(id, key, session, err)
	return session, op.end(err)
}

// readAt asks the server for the session of id, whose key is known.
func (s *RedisStore) readAt(ctx context.Context, id, key string) (Session, error) {
	session, err := s.readThrough(ctx, key, 0, false)
	return s.opened(id, key, session, err)
}

// opened opens the data of what was read, if there was no error.
func (s *RedisStore) opened(id, key string, session Session, err error) (Session, error) {
	if err == nil {
		err = s.open(id, key, &session)
	}
	if err != nil {
		return Session{}, err
	}
	return session, nil
}

// readThrough asks the server. A slide of zero leaves the idle timeout alone. The data is as it is
// stored.
func (s *RedisStore) readThrough(ctx context.Context, key string, slide int64, expiry bool) (Session, error) {
	if slide == 0 && !expiry {
		value, err := s.query(ctx, s.readCommand(), key)
		return s.found(ctx, key, value, err)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	results, err := s.pipeline(ctx, s.client, func() []rueidis.Completed {
		return []rueidis.Completed{
			s.client.B().Arbitrary(s.readCommand()).Keys(key).Build(),
			s.client.B().Arbitrary("PTTL").Keys(key).Build(),
		}
	})
	if err != nil {
		return Session{}, explain(err)
	}
	value, err := bytesOf(results[0])
	session, err := s.found(ctx, key, value, err)
	if err != nil {
		return Session{}, err
	}
	left, err := intOf(results[1])
	if err != nil {
		return Session{}, explain(err)
	}
	now := time.Now()
	if slide != 0 && !s.nearly(slide, left, &session, now) {
		return s.lookUp(ctx, key, slide)
	}
	session.expireIn(left, now)
	return session, nil
}

// nearly reports whether a TTL of left is so near to ttl that it is not set, as the scripts decide
// it.
func (s *RedisStore) nearly(ttl, left int64, session *Session, now time.Time) bool {
	ttl = cmp.Or(idleIn(session.header), ttl)
	if deadline := session.deadline(); deadline != 0 {
		ttl = min(ttl, deadline-now.UnixMilli())
	}
	return left >= 0 && float64(max(ttl-left, left-ttl)) < float64(ttl)*s.touchThreshold
}

// expireIn sets ExpiresAt from a TTL in milliseconds, unless that is none.
func (s *Session) expireIn(left int64, now time.Time) {
	if left < 0 {
		return
	}
	s.ExpiresAt = now.Add(time.Duration(min(left, maxMillis)) * time.Millisecond)
	if deadline := s.deadline(); deadline != 0 && deadline < s.ExpiresAt.UnixMilli() {
		s.ExpiresAt = time.UnixMilli(deadline)
	}
}

// readCommand returns the command that reads a key.
func (s *RedisStore) readCommand() string {
	if s.strict {
		return "GETEX"
	}
	return "GET"
}

// found turns the reply to a command that reads a record into a session. A key of another type may
// be a tombstone: read.lua tells, in one step.
func (s *RedisStore) found(ctx context.Context, key string, value []byte, err error) (Session, error) {
	switch {
	case rueidis.IsRedisNil(err):
		return Session{}, ErrNotFound
	case isWrongType(err):
		return s.lookUp(ctx, key, 0)
	case err != nil:
		return Session{}, explain(err)
	}
	return decode(value, time.Now())
}

// lookUp reads by read.lua, and restarts the idle timeout unless slide is zero.
func (s *RedisStore) lookUp(ctx context.Context, key string, slide int64) (Session, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var args []string
	if slide != 0 {
		args = []string{decimal(slide), s.argThreshold}
		defer moveEpoch(key)
	}
	res, _ := s.run(ctx, &readScript, []string{key}, args...)
	value, left, err := valueAndTTL(res)
	if s.strict && (err == nil || errors.Is(err, ErrNotFound)) { // a script that writes nothing is not refused
		again, refusal := s.query(ctx, s.readCommand(), key)
		switch {
		case refusal == nil:
			value, err = again, nil
		case rueidis.IsRedisNil(refusal):
			err = ErrNotFound
		case !isWrongType(refusal): // it has been ended between the two
			return Session{}, explain(refusal)
		}
	}
	if err != nil {
		return Session{}, explain(err)
	}
	now := time.Now()
	session, err := decode(value, now)
	if err == nil && slide != 0 {
		session.expireIn(left, now)
	}
	return session, err
}

// valueAndTTL takes the reply of read.lua apart.
func valueAndTTL(res rueidis.RedisResult) (value []byte, ttl int64, err error) {
	reply, err := res.ToMessage()
	if err != nil {
		return nil, 0, err
	}
	if reply.IsString() {
		code, err := reply.ToString()
		if err == nil {
			err = errUnexpected
			switch {
			case code == "" || code[0] == codeDone || code[0] == codeKept:
			case code[0] == codeGrace:
				err = movedIn(code)
			default:
				err = outcome(code, false)
			}
		}
		return nil, 0, err
	}
	if !reply.IsArray() {
		return nil, 0, errUnexpected
	}
	parts, err := reply.ToArray()
	if err != nil {
		return nil, 0, err
	}
	if len(parts) != 2 || !parts[0].IsString() || !parts[1].IsInt64() {
		return nil, 0, errUnexpected
	}
	if value, err = parts[0].AsBytes(); err != nil {
		return nil, 0, err
	}
	ttl, err = parts[1].AsInt64()
	return value, ttl, err
}

// Exists implements [Store]. It reads the first bytes of the record.
func (s *RedisStore) Exists(ctx context.Context, id string) (bool, error) {
	ctx, op := s.begin(ctx, "exists", id)
	exists, err := s.exists(ctx, id)
	return exists, op.end(err)
}

func (s *RedisStore) exists(ctx context.Context, id string) (bool, error) {
	key, err := s.key(id)
	if err != nil {
		return false, err
	}
	var head []byte
	if s.strict {
		var session Session
		session, err = s.readThrough(ctx, key, 0, false)
		head = session.header
	} else {
		head, err = s.query(ctx, "GETRANGE", key, "0", strconv.Itoa(headerSize-1))
		switch {
		case isWrongType(err):
			_, err = s.lookUp(ctx, key, 0)
		case err != nil:
			err = explain(err)
		case len(head) == 0:
			err = ErrNotFound
		default:
			err = alive(head, time.Now())
		}
	}
	if err == nil && head != nil {
		err = s.understands(head)
	}
	if NoSession(err) {
		return false, nil
	}
	return err == nil, err
}

// Write implements [Store]. With Replacing it is one SET that replaces a live session and nothing
// else, and otherwise a script.
func (s *RedisStore) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...WriteOption,
) (Session, error) {
	ctx, op := s.begin(ctx, "write", id)
	session, err := s.write(ctx, id, data, ttl, collect(opts))
	return session, op.end(err)
}

func (s *RedisStore) write(
	ctx context.Context, id string, data []byte, ttl time.Duration, o WriteOptions,
) (Session, error) {
	key, err := s.keyToStore(id)
	if err != nil {
		return Session{}, err
	}
	ms, err := s.check(data, ttl)
	if err = cmp.Or(err, o.Lifetime.valid()); err != nil {
		return Session{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	w := writing{id: id, key: key, version: newVersion(), data: data, ttl: ms, begins: s.argAbsolute}
	if l := o.Lifetime; l != nil {
		w.begins, w.items = decimal(s.absoluteOf(l)), l.items()
	}
	switch {
	case o.Binding != nil:
		if err := o.Binding.usable("", s.ref(key)); err != nil {
			return Session{}, err
		}
		w.condition = "absent"
		w.beginsAs(s.begun(o.Binding.header()))
		w.ttl = cmp.Or(idleIn([]byte(w.begins)), ms)
	case o.Present && o.Replaced.header != nil && s.understands(o.Replaced.header) == nil:
		return s.replace(ctx, w, &o.Replaced)
	case o.Absent:
		w.condition = "absent"
	case o.Present:
		w.condition = "present"
	case o.Match:
		w.condition = o.Version.bytes()
	}
	session, _, err := s.writeScript(ctx, w)
	return session, err
}

// writing is what write.lua is told.
type writing struct {
	id, key   string
	version   Version
	data      []byte
	ttl       int64 // ms
	condition string
	begins    string // the absolute timeout in ms, or the header, of a session that begins
	items     string // what follows the deadline in the header, where it is known
	absolute  int64  // of one that moves with another lifetime: its absolute timeout from now on, ms; 0: none
}

// beginsAs sets the header of a session that begins.
func (w *writing) beginsAs(header []byte) {
	w.begins = string(header)
	w.items = w.begins[headerSize:]
}

// writeScript runs write.lua. It reports lost as send does.
func (s *RedisStore) writeScript(ctx context.Context, w writing) (session Session, lost bool, err error) {
	args := []string{
		w.version.bytes(),
		string(w.data),
		decimal(w.ttl),
		w.condition,
		w.begins,
		w.items,
		"",
		"",
	}
	if s.sealed {
		args[6] = "sealed"
	}
	switch { // each argument costs the server a third of a microsecond
	case w.absolute > 0:
		args[7] = decimal(w.absolute)
	case s.sealed:
		args = args[:7]
	case w.items != "" && len(w.begins) < headerSize:
		args = args[:6]
	case w.begins != "0":
		args = args[:5]
	case w.condition != "":
		args = args[:4]
	default:
		args = args[:3]
	}
	var detail string
	if s.sealed {
		detail, lost, err = s.writeSealed(ctx, w, args)
	} else {
		detail, lost, err = s.change(ctx, &writeScript, []string{w.key}, args...)
	}
	if err != nil {
		return Session{}, lost, err
	}
	session, err = parse([]byte(detail))
	if err != nil || len(session.Data) > 0 {
		return Session{}, lost, errUnexpected
	}
	session.Version, session.Data = w.version, w.data
	return session, lost, nil
}

// maxItems bounds how often the items of one session are found to be others while it is written:
// Adopt adds at most four owners, and the session may expire.
const maxItems = 8

// writeSealed runs write.lua with data that is sealed together with the items of the session. Where
// the caller does not know them, it is taken to have none, and if it has the server says so. A
// session that begins in its place, when it has expired meanwhile, must not get them: its owners do
// not know of it.
func (s *RedisStore) writeSealed(
	ctx context.Context, w writing, args []string,
) (detail string, lost bool, err error) {
	for range maxItems {
		args[1] = rueidis.BinaryString(s.seal(w.id, w.key, args[5], w.data))
		reply, again, err := s.ask(ctx, &writeScript, []string{w.key}, args...)
		lost = lost || again
		if err != nil {
			return "", lost, err
		}
		switch {
		case reply[0] == codeItems:
			args[3], args[5] = cmp.Or(w.condition, "present"), reply[1:]
		case reply[0] == codeAbsent && args[3] != w.condition:
			args[3], args[5] = w.condition, w.items
		default:
			return reply[1:], lost, outcome(reply, lost)
		}
	}
	return "", lost, unknown(nil)
}

// check returns the TTL in milliseconds if both arguments are acceptable.
func (c *config) check(data []byte, ttl time.Duration) (int64, error) {
	if len(data) > c.maxData {
		return 0, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), c.maxData)
	}
	return millis(ttl)
}

// Touch implements [Store].
func (s *RedisStore) Touch(ctx context.Context, id string, ttl time.Duration) error {
	ctx, op := s.begin(ctx, "touch", id)
	return op.end(s.touch(ctx, id, ttl))
}

func (s *RedisStore) touch(ctx context.Context, id string, ttl time.Duration) error {
	key, err := s.key(id)
	if err != nil {
		return err
	}
	ms, err := millis(ttl)
	if err != nil {
		return err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	_, _, err = s.change(ctx, &touchScript, []string{key}, decimal(ms), s.argThreshold)
	return err
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }
