package tombstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// Pauses between two attempts.
const (
	firstPause = time.Millisecond
	maxPause   = 100 * time.Millisecond
)

var (
	errUnexpected = errors.New("unexpected reply")
	errClosed     = fmt.Errorf("store is closed: %w", rueidis.ErrClosing)
)

// query runs a command that only reads and answers with a string. It is built without the read-only
// flag that the typed commands carry, so that a client with SendToReplicas does not read a session
// from a replica that has not heard of its end.
func (s *RedisStore) query(ctx context.Context, command, key string, args ...string) ([]byte, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary(command).Keys(key).Args(args...).Build()
	})
	return bytesOf(res)
}

func bytesOf(res rueidis.RedisResult) ([]byte, error) {
	m, err := res.ToMessage()
	if err != nil {
		return nil, err
	}
	if !m.IsString() {
		return nil, errUnexpected
	}
	return m.AsBytes()
}

func intOf(res rueidis.RedisResult) (int64, error) {
	m, err := res.ToMessage()
	if err != nil {
		return 0, err
	}
	if !m.IsInt64() { // an error of parsing it would show it
		return 0, errUnexpected
	}
	return m.AsInt64()
}

// partsOf returns the parts of a reply that is an array of n.
func partsOf(res rueidis.RedisResult, n int) ([]rueidis.RedisMessage, error) {
	m, err := res.ToMessage()
	if err != nil {
		return nil, err
	}
	if !m.IsArray() {
		return nil, errUnexpected
	}
	parts, err := m.ToArray()
	if err != nil || len(parts) != n {
		return nil, errUnexpected
	}
	return parts, nil
}

// ask runs a script that answers with a string. It reports lost as send does. After a failure that
// may have been applied err wraps ErrUnknownOutcome.
func (s *RedisStore) ask(
	ctx context.Context, sc *script, keys []string, args ...string,
) (reply string, lost bool, err error) {
	res, lost := s.run(ctx, sc, keys, args...)
	m, err := res.ToMessage()
	if err == nil && m.IsString() { // any other type is not a code
		reply, err = m.ToString()
	}
	if reply != string(codeKept) || lost {
		for _, key := range keys {
			moveEpoch(key)
		}
	}
	if err != nil {
		return "", lost, failed(err, lost)
	}
	if reply == "" {
		return "", lost, errUnexpected
	}
	return reply, lost, nil
}

// change is ask for a script whose reply is final: it returns what follows codeDone.
func (s *RedisStore) change(
	ctx context.Context, sc *script, keys []string, args ...string,
) (detail string, lost bool, err error) {
	reply, lost, err := s.ask(ctx, sc, keys, args...)
	if err != nil {
		return "", lost, err
	}
	return reply[1:], lost, outcome(reply, lost)
}

// failed reports a change that got no reply, or an error for one.
func failed(err error, lost bool) error {
	if lost || !unsent(err) {
		return unknown(explain(err))
	}
	return explain(err)
}

// outcome turns the reply of a script into an error. lost says that an earlier run of the script
// may have been applied without its reply arriving.
func outcome(reply string, lost bool) error {
	switch reply[0] {
	case codeDone, codeKept:
		return nil
	case codeAbsent:
		if lost { // the lost attempt may yet arrive, when somebody has created the session
			return unknown(nil)
		}
		return ErrNotFound
	case codeEnded:
		if err := parseEnd(reply[1:]); !errors.Is(err, ErrCorrupt) {
			return err
		}
	case codeConflict:
		if lost { // the other version may have replaced the one that the lost run stored
			return unknown(nil)
		}
		return ErrConflict
	case codeForeign:
		return ErrCorrupt
	}
	return errUnexpected
}

// run runs a script. It reports lost as send does.
func (s *RedisStore) run(
	ctx context.Context, sc *script, keys []string, args ...string,
) (res rueidis.RedisResult, lost bool) {
	res, lost = s.send(ctx, func() rueidis.Completed {
		return s.client.B().Evalsha().Sha1(sc.sha1).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
	})
	if !isNoScript(res.Error()) {
		return res, lost
	}
	// A server before 7.0 would run the scripts, but without checking ACLs and
	// min-replicas-to-write in them. It has no EVAL_RO, and a script reaches a server only by this
	// way.
	probe := s.client.Do(ctx, s.client.B().EvalRo().Script("return 1").Numkeys(1).Key(keys[0]).Build())
	if reply, ok := rueidis.IsRedisErr(probe.Error()); ok && isUnknownCommand(reply) {
		return probe, lost
	}
	res, lostToo := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Eval().Script(sc.source).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
	})
	return res, lost || lostToo
}

func isNoScript(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && reply.IsNoScript()
}

// send sends the command that build returns until there is an answer or ctx ends. lost reports
// whether an attempt before the last may have been executed although no reply came.
func (s *RedisStore) send(
	ctx context.Context, build func() rueidis.Completed,
) (res rueidis.RedisResult, lost bool) {
	return s.sendTo(ctx, s.client, build)
}

func (s *RedisStore) sendTo(
	ctx context.Context, client rueidis.Client, build func() rueidis.Completed,
) (res rueidis.RedisResult, lost bool) {
	if err := s.sendable(ctx); err != nil {
		return rueidis.NewErrorResult(err), false
	}
	var refusal error
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		begun := time.Now()
		res = client.Do(ctx, build())
		err := res.Error()
		if !s.again(ctx, err, begun) {
			return res, lost
		}
		if !sleep(ctx, pause) {
			return rueidis.NewErrorResult(after(err, refusal)), lost
		}
		s.sends(ctx, true)
		if isReply(err) {
			refusal = err
		}
		lost = lost || !unsent(err)
	}
}

// pipeline is send for several commands that may be run again, in one trip.
func (s *RedisStore) pipeline(
	ctx context.Context, client rueidis.Client, build func() []rueidis.Completed,
) ([]rueidis.RedisResult, error) {
	if err := s.sendable(ctx); err != nil {
		return nil, err
	}
	var refusal error
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		begun := time.Now()
		results := client.DoMulti(ctx, build()...)
		var failure error
		for _, res := range results {
			if err := res.Error(); s.again(ctx, err, begun) {
				failure = err
				break
			}
		}
		if failure == nil {
			return results, nil
		}
		if !sleep(ctx, pause) {
			return nil, after(failure, refusal)
		}
		s.sends(ctx, true)
		if isReply(failure) {
			refusal = failure
		}
	}
}

// after adds to the error of an attempt that got no reply what the server has said to the ones
// before it, which tells more than that time is up.
func after(err, refusal error) error {
	if refusal == nil || isReply(err) {
		return err
	}
	return fmt.Errorf("%w; before that %w", err, explain(refusal))
}

func isReply(err error) bool {
	_, ok := rueidis.IsRedisErr(err)
	return ok
}

// again reports whether what was begun at a moment and has failed with err may succeed a moment
// later. A client of one address stays with a server that has become a replica, although its name
// may lead to another one by then: so a store that owns its connections drops those that were
// there. It waits for the last of them: what is sent on another one before may be older than what
// comes of this. With Sentinels, and in a cluster, rueidis finds the primary by itself.
func (s *RedisStore) again(ctx context.Context, err error, begun time.Time) bool {
	switch {
	case !fromReplica(err):
		return transient(err)
	case s.client.Mode() != rueidis.ClientModeStandalone:
		return true
	case s.conns == nil:
		return transient(err)
	}
	s.warn(ctx, warnReplica, nil)
	if wait := s.conns.Drop(begun); wait > 0 && sleep(ctx, wait) {
		s.conns.DropOverdue()
	}
	s.settle(ctx)
	return true
}

// settle waits until the client has noticed that its connections were dropped, and has dialled
// anew. A command that it would still send on one of them would look like one whose reply was lost.
// If there is no time for that, it is left to the next operation.
func (s *RedisStore) settle(ctx context.Context) {
	s.unsettled.Store(true)
	for range 3 {
		err := s.client.Do(ctx, s.client.B().Ping().Build()).Error()
		if err == nil || isReply(err) || unsent(err) && ctx.Err() == nil {
			s.unsettled.Store(false)
			return
		}
		if !sleep(ctx, firstPause) {
			return
		}
	}
}

// leaveReplica drops the connections to a server that has said it is a replica, if they were too
// young to be dropped then.
func (s *RedisStore) leaveReplica(ctx context.Context) {
	if s.conns != nil && (s.conns.DropOverdue() || s.unsettled.Load()) {
		s.settle(ctx)
	}
}

// sendable returns why nothing can be sent at all.
func (s *RedisStore) sendable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return notSent{err}
	}
	if s.closed.Load() {
		return notSent{errClosed}
	}
	s.leaveReplica(ctx)
	s.sends(ctx, false)
	return nil
}

// notSent is the error of a command that nobody has tried to send.
type notSent struct{ error }

func (e notSent) Unwrap() error { return e.error }

// sleep waits for d and reports whether ctx was still live then.
func sleep(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
