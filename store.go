package tombstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// Store keeps sessions so that a session that was ended stays ended. [RedisStore] and [MemoryStore] implement it; package
// storetest tests that an implementation keeps to what is said here.
//
// Implementations must be safe for concurrent use, and every operation must be atomic for the sessions it names. An id is
// 1 to 1024 bytes, otherwise every method must return an error wrapping [ErrInvalidID]. A failure to reach the sessions must
// never be reported as ErrNotFound. An operation that may or may not have been applied must return an error wrapping
// [ErrUnknownOutcome]. No error may contain an id or data.
type Store interface {
	// Read returns the live session of id. It must return an error wrapping [ErrNotFound] if there is none, an
	// [*InvalidatedError] if it was ended, and [ErrInvalidTTL] for a Slide that is not positive.
	Read(ctx context.Context, id string, opts ...ReadOption) (Session, error)

	// Write stores data under id, to expire ttl after it was last written or touched. It creates the session if there is
	// none; an existing one keeps its creation time and its absolute deadline, which no ttl goes past. It returns the
	// session as stored, with its new version.
	//
	// It must return an [*InvalidatedError] and store nothing if the session was ended. Conditions are [IfAbsent],
	// [IfPresent] and [IfVersion]. It must return [ErrInvalidTTL] if ttl is not positive, and [ErrTooLarge] if there is too
	// much data.
	//
	// A Write whose reply is lost may be sent again. Without a condition or with IfPresent it may then land on top of a
	// later write of somebody else, as a SET does that is retried; where that matters use IfVersion.
	Write(ctx context.Context, id string, data []byte, ttl time.Duration, opts ...WriteOption) (Session, error)

	// Touch restarts the idle timeout of a live session: it expires ttl from now, but never after its absolute deadline. It
	// may leave the TTL alone when that is nearly right. It must return an error wrapping [ErrNotFound] if there is no
	// session, an [*InvalidatedError] if it was ended, and [ErrInvalidTTL] if ttl is not positive.
	Touch(ctx context.Context, id string, ttl time.Duration) error

	// Rotate moves a live session to newID, which must be unused, and ends oldID with the reason [Rotated]: for a login or
	// another change of privilege (OWASP Session Management Cheat Sheet, "Renew the Session ID After Any Privilege Level
	// Change"). Data, creation time, deadline and remaining TTL go along unless [WithData] is given. Once it returns, oldID
	// is ended.
	//
	// It must return an error wrapping [ErrNotFound] if oldID has no session, an [*InvalidatedError] if it was ended,
	// [ErrConflict] if newID is in use or was ended, and [ErrInvalidID] if both are the same.
	Rotate(ctx context.Context, oldID, newID string, opts ...RotateOption) (Session, error)

	// Invalidate ends the session of id for good, whether it is live, absent or ended already. The first reason and time are
	// kept, except that any other reason replaces Rotated: so whoever has moved the session can see that it was meant to end.
	// With [IfLive] it must return an error wrapping [ErrNotFound] or an [*InvalidatedError] if the session is not live. After
	// it has returned nil no Read returns the session, and no Write, Touch or Rotate makes it live again.
	Invalidate(ctx context.Context, id string, opts ...InvalidateOption) error

	// Exists reports whether the session of id is live.
	Exists(ctx context.Context, id string) (bool, error)
}

// Session is a live session.
type Session struct {
	// Data belongs to the caller. Write and Rotate hand back the slice they were given, if they were given one.
	Data      []byte
	Version   Version
	CreatedAt time.Time // on the server's clock, in whole milliseconds
}

// RedisStore is a Store on Redis 7.0 or later, Valkey 7.2 or later, or a server that behaves like them. Each change is one
// Lua script, run by EVALSHA and loaded again by EVAL whenever the server does not know it.
//
// It is safe for concurrent use. It starts no goroutine, reads nothing but the primary, and prints nothing. When a connection
// breaks, or a server is loading its data or has no primary, operations are tried again until their context or WithTimeout ends them;
// then the last cause is returned, wrapped in ErrUnknownOutcome if the operation may have been applied.
type RedisStore struct {
	client rueidis.Client
	config
	owned bool // Close closes client

	// Arguments of scripts that are the same in every call.
	argAbsolute, argTombstoneTTL, argThreshold string

	cache *cache // nil without WithClientCache
}

var _ Store = (*RedisStore)(nil)

// New returns a store on client. It checks the options and does no I/O, and the store never closes client. Leave the client's
// ConnLifetime at zero: with it rueidis runs commands again that may have been applied, behind the store's back. Set its DisableRetry:
// the store tries again by itself, and a retry of rueidis shares memory with the attempt before it.
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
		argAbsolute:     strconv.FormatInt(c.absolute.Milliseconds(), 10),
		argTombstoneTTL: strconv.FormatInt(c.tombstoneTTL.Milliseconds(), 10),
		argThreshold:    strconv.FormatFloat(c.touchThreshold, 'f', -1, 64),
	}
	if c.maxAge > 0 {
		s.cache = newCache(c.maxAge)
	}
	return s, nil
}

// Open connects to the server at url and returns a store that owns its connections; call Close when done. The forms of url
// are those of rueidis.ParseURL, for example redis://user:password@host:6379/0, rediss:// for TLS, unix:///path/to/socket,
// several nodes of a cluster as ?addr=host:port, and ?master_set=name for Sentinels.
func Open(url string, opts ...Option) (*RedisStore, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	o, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, errors.New("tombstore: open: malformed URL, want redis://host:port") // the cause would show the password
	}
	o.DisableCache = c.maxAge == 0                       // what is not cached does not have to be tracked
	o.DisableRetry = true                                // the store tries again by itself
	o.ConnWriteTimeout = writeTimeout                    // also how long others wait for one who sets up a connection
	o.PipelineMultiplex = -1                             // one connection for all goroutines fills its batches best
	o.MaxFlushDelay = 20 * time.Microsecond              // larger batches: more throughput for less CPU on both sides
	o.Sentinel.TopologyRefreshInterval = 5 * time.Second // finds the primary even if a switch message was missed
	if c.maxAge > 0 {
		o.Dialer.KeepAlive = keepAlive
	}
	client, err := rueidis.NewClient(o)
	if errors.Is(err, rueidis.ErrNoCache) { // the server tells nobody what changes; Check will say that nothing is cached
		o.DisableCache = true
		client, err = rueidis.NewClient(o)
	}
	if err != nil {
		return nil, wrap("open", explain(err))
	}
	s, err := New(client, opts...)
	if err != nil {
		client.Close()
		return nil, err
	}
	s.owned = true
	if s.cache != nil {
		s.cache.bound = min(c.maxAge, 2*keepAlive+writeTimeout+lateTimers)
	}
	return s, nil
}

// Close closes the connections of a store that Open returned. It does nothing to a store that New returned.
func (s *RedisStore) Close() {
	if s.owned {
		s.client.Close()
	}
}

// Read implements [Store]. Without Slide it is a plain GET: a key holds the whole state of a session. With WithClientCache it
// answers from memory if it can; a Slide then asks the server only when the TTL is to be set.
func (s *RedisStore) Read(ctx context.Context, id string, opts ...ReadOption) (Session, error) {
	const verb = "read"
	o := collect(opts)
	var buf [128]byte
	key, err := s.appendKey(buf[:0], id)
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	var slide int64
	if o.Slide {
		if slide, err = millis(o.TTL); err != nil {
			return Session{}, wrap(verb, err)
		}
	}
	if s.cache != nil && !o.Fresh {
		return s.readCached(ctx, key, slide)
	}
	return s.readThrough(ctx, string(key), slide)
}

// readThrough asks the server. A slide of zero leaves the idle timeout alone.
func (s *RedisStore) readThrough(ctx context.Context, key string, slide int64) (Session, error) {
	const verb = "read"
	if slide == 0 {
		value, err := s.query(ctx, s.readCommand(), key)
		return s.session(verb, value, err)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.run(ctx, &readScript, []string{key}, strconv.FormatInt(slide, 10), s.argThreshold)
	moveEpoch(key)
	value, _, err := valueAndTTL(res)
	if s.strict && (err == nil || rueidis.IsRedisNil(err)) { // a script that happens to write nothing is not refused
		value, err = s.query(ctx, s.readCommand(), key)
	}
	return s.session(verb, value, err)
}

// readCommand returns the command that reads a key.
func (s *RedisStore) readCommand() string {
	if s.strict {
		return "GETEX"
	}
	return "GET"
}

// valueAndTTL takes the reply of read.lua apart. The value may belong to a cache.
func valueAndTTL(res rueidis.RedisResult) (value []byte, ttl int64, err error) {
	reply, err := res.ToMessage()
	if err != nil {
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

// Exists implements [Store].
func (s *RedisStore) Exists(ctx context.Context, id string) (bool, error) {
	const verb = "exists"
	key, err := s.key(id)
	if err != nil {
		return false, wrap(verb, err)
	}
	var header []byte
	if s.strict {
		header, err = s.query(ctx, s.readCommand(), key)
	} else {
		header, err = s.query(ctx, "GETRANGE", key, "0", strconv.Itoa(headerSize-1))
	}
	if err == nil && len(header) == 0 {
		return false, nil
	}
	if _, err = s.session(verb, header, err); isGone(err) {
		return false, nil
	}
	return err == nil, err
}

// session turns the reply of a read into what Read returns.
func (s *RedisStore) session(verb string, value []byte, err error) (Session, error) {
	var session Session
	switch {
	case rueidis.IsRedisNil(err):
		err = ErrNotFound
	case err != nil:
		err = explain(err)
	default:
		session, err = decode(value)
	}
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	return session, nil
}

// Write implements [Store].
func (s *RedisStore) Write(
	ctx context.Context, id string, data []byte, ttl time.Duration, opts ...WriteOption,
) (Session, error) {
	const verb = "write"
	o := collect(opts)
	key, err := s.key(id)
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	ms, err := s.check(data, ttl)
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	condition := ""
	switch {
	case o.Absent:
		condition = "absent"
	case o.Present:
		condition = "present"
	case o.Match:
		condition = o.Version.bytes()
	}
	version := newVersion()
	args := []string{
		version.head(),
		string(data),
		strconv.FormatInt(ms, 10),
		condition,
		s.argAbsolute,
	}
	if s.absolute == 0 { // each argument costs the server a third of a microsecond
		args = args[:4]
		if condition == "" {
			args = args[:3]
		}
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	stamps, _, err := s.change(ctx, verb, &writeScript, []string{key}, args...)
	if err != nil {
		return Session{}, err
	}
	if len(stamps) != headerSize-offsetCreated {
		return Session{}, unexpected(verb)
	}
	return Session{Data: data, Version: version, CreatedAt: time.UnixMilli(milli48(stamps))}, nil
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
	const verb = "touch"
	key, err := s.key(id)
	if err != nil {
		return wrap(verb, err)
	}
	ms, err := millis(ttl)
	if err != nil {
		return wrap(verb, err)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	_, _, err = s.change(ctx, verb, &touchScript, []string{key}, strconv.FormatInt(ms, 10), s.argThreshold)
	return err
}

// Invalidate implements [Store]. It works on a server that is at maxmemory too. An error wraps ErrNotInvalidated if the
// server refused, ErrUnknownOutcome if it did not answer, and ErrUnacknowledged if replicas are late (WithReplicaAcks).
func (s *RedisStore) Invalidate(ctx context.Context, id string, opts ...InvalidateOption) error {
	const verb = "invalidate"
	o := collect(opts)
	key, err := s.key(id)
	if err != nil {
		return wrap(verb, err)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.end(ctx, verb, key, o)
}

// end ends the session at key as o says, and waits for replicas if it has to.
func (s *RedisStore) end(ctx context.Context, verb, key string, o InvalidateOptions) error {
	if o.Reason == 0 {
		o.Reason = Logout
	}
	if err := s.invalidate(ctx, verb, key, o); err != nil || s.acks == 0 {
		return err
	}
	return s.confirm(ctx, verb, key, o.Reason)
}

func (s *RedisStore) invalidate(ctx context.Context, verb, key string, o InvalidateOptions) error {
	args := []string{string([]byte{byte(o.Reason)}), s.argTombstoneTTL}
	if o.Live {
		args = append(args, "live")
	}
	_, lost, err := s.change(ctx, verb, &invalidateScript, []string{key}, args...)
	if lost && errors.Is(err, ErrInvalidated) { // the lost run may be who has ended it
		return unknown(verb, nil)
	}
	var refusal *replyError
	if errors.As(err, &refusal) && !errors.Is(err, ErrUnknownOutcome) {
		return fmt.Errorf("tombstore: %s: %w: %w", verb, ErrNotInvalidated, refusal)
	}
	return err
}

// Rotate implements [Store]. In a cluster, where the two keys may be on two nodes, it ends the old id first: whatever goes
// wrong in between logs the user out, and the two ids are never live together. With ErrUnacknowledged the session is
// returned too: it was rotated, but replicas are late (WithReplicaAcks).
func (s *RedisStore) Rotate(ctx context.Context, oldID, newID string, opts ...RotateOption) (Session, error) {
	const verb = "rotate"
	o := collect(opts)
	oldKey, newKey, err := s.keyPair(oldID, newID)
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	version := newVersion()
	args := []string{version.head(), s.argTombstoneTTL}
	if o.Replace {
		ms, err := s.check(o.Data, o.TTL)
		if err != nil {
			return Session{}, wrap(verb, err)
		}
		args = append(args, strconv.FormatInt(ms, 10), string(o.Data))
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	keys := []string{oldKey, newKey}
	cluster := s.client.Mode() == rueidis.ClientModeCluster
	if cluster {
		keys = keys[:1]
		if err := s.rotatable(ctx, verb, oldKey, newKey); err != nil {
			return Session{}, err
		}
	}
	reply, lost, err := s.change(ctx, verb, &rotateScript, keys, args...)
	if lost && errors.Is(err, ErrInvalidated) { // the lost run may be who has ended it
		return Session{}, unknown(verb, nil)
	}
	if err != nil {
		return Session{}, err
	}
	if len(reply) < 6+headerSize {
		return Session{}, unexpected(verb)
	}
	ttl, record := milli48(reply), reply[6:]
	if cluster {
		if err := s.create(ctx, verb, newKey, record, ttl); err != nil {
			return Session{}, err
		}
	}
	session, _, err := parse([]byte(record)) // whatever the clock here says, it has been moved
	if err != nil {
		return Session{}, wrap(verb, err)
	}
	session.Version = version
	if o.Replace {
		session.Data = o.Data
	}
	if s.acks > 0 {
		return session, s.confirm(ctx, verb, oldKey, Rotated)
	}
	return session, nil
}

// rotatable looks, before the old id is ended, whether the new one is taken. What is found can change at once; it saves a
// mistaken caller from losing the session.
func (s *RedisStore) rotatable(ctx context.Context, verb, oldKey, newKey string) error {
	taken, err := s.query(ctx, "GETRANGE", newKey, "0", "0")
	if err != nil {
		return wrap(verb, explain(err))
	}
	if len(taken) == 0 {
		return nil
	}
	value, err := s.query(ctx, "GET", oldKey)
	if _, err = s.session(verb, value, err); err != nil {
		return err
	}
	return wrap(verb, ErrConflict)
}

// create stores record under key, which must be unused. With GET the reply is what was there before, so that a second run
// after a lost reply finds its own record. Any failure but ErrConflict is ErrUnknownOutcome, also one that proves that nothing was
// stored: the old id has been ended by then, and no caller may think that nothing was done.
func (s *RedisStore) create(ctx context.Context, verb, key, record string, ttl int64) error {
	res, lost := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Set().Key(key).Value(record).Nx().Get().PxMilliseconds(ttl).Build()
	})
	moveEpoch(key)
	before, err := res.ToString()
	switch {
	case rueidis.IsRedisNil(err), err == nil && before == record:
		return nil
	case err == nil && lost: // what is there may have replaced the record that the lost attempt stored
		return unknown(verb, nil)
	case err == nil:
		return wrap(verb, ErrConflict)
	}
	return unknown(verb, explain(err))
}

// change runs a script that changes a session, and returns what follows codeDone in its reply. lost is that of send.
func (s *RedisStore) change(
	ctx context.Context, verb string, sc *script, keys []string, args ...string,
) (detail string, lost bool, err error) {
	res, lost := s.run(ctx, sc, keys, args...)
	var reply string
	m, err := res.ToMessage()
	if err == nil && m.IsString() { // any other type is no code
		reply, err = m.ToString()
	}
	if reply != string(codeKept) || lost {
		for _, key := range keys {
			moveEpoch(key)
		}
	}
	if err != nil {
		return "", lost, failed(verb, err, lost)
	}
	detail, err = outcome(verb, reply, lost)
	return detail, lost, err
}

// failed reports a change that got no reply, or an error for one.
func failed(verb string, err error, lost bool) error {
	if lost || !unsent(err) {
		return unknown(verb, explain(err))
	}
	return wrap(verb, explain(err))
}

// outcome turns the reply of a script into what follows codeDone, or an error. lost says that an earlier run of the script
// may have been applied without its reply arriving.
func outcome(verb, reply string, lost bool) (string, error) {
	if reply == "" {
		return "", unexpected(verb)
	}
	detail := reply[1:]
	switch reply[0] {
	case codeDone, codeKept:
		return detail, nil
	case codeAbsent:
		if lost { // the lost attempt may yet arrive, when somebody has created the session
			return "", unknown(verb, nil)
		}
		return "", wrap(verb, ErrNotFound)
	case codeEnded:
		if _, _, err := parse([]byte(detail)); err != nil {
			return "", wrap(verb, err)
		}
	case codeConflict:
		if lost { // the other version may have replaced the one that the lost run stored
			return "", unknown(verb, nil)
		}
		return "", wrap(verb, ErrConflict)
	case codeForeign:
		return "", wrap(verb, ErrCorrupt)
	}
	return "", unexpected(verb)
}

var errUnexpected = errors.New("unexpected reply")

func unexpected(verb string) error { return wrap(verb, errUnexpected) }
