package tombstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Pauses between two attempts.
const (
	firstPause = time.Millisecond
	maxPause   = 100 * time.Millisecond
)

// bounded gives ctx a deadline if it has none: rueidis would try for ever.
func (s *RedisStore) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, max(s.timeout, s.timeout+s.acksTimeout)) // the sum may overflow
}

// query runs a command that only reads. It is built without the read-only flag that the typed commands carry, so that a
// client with SendToReplicas does not read a session from a replica that has not heard of its end.
func (s *RedisStore) query(ctx context.Context, command, key string, args ...string) ([]byte, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary(command).Keys(key).Args(args...).Build()
	})
	m, err := res.ToMessage()
	if err != nil {
		return nil, err
	}
	if !m.IsString() {
		return nil, errUnexpected
	}
	return m.AsBytes()
}

// run runs a script. lost is that of send.
func (s *RedisStore) run(ctx context.Context, sc *script, keys []string, args ...string) (res rueidis.RedisResult, lost bool) {
	res, lost = s.send(ctx, func() rueidis.Completed {
		return s.client.B().Evalsha().Sha1(sc.sha1).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
	})
	if !isNoScript(res.Error()) {
		return res, lost
	}
	// A server before 7.0 would run the scripts, but without checking ACLs and min-replicas-to-write in them. It has no
	// EVAL_RO, and a script reaches a server only by this way.
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

// send sends the command that build returns until there is an answer or ctx ends. lost reports whether an attempt before the
// last may have been executed although no reply came.
func (s *RedisStore) send(ctx context.Context, build func() rueidis.Completed) (res rueidis.RedisResult, lost bool) {
	return s.sendTo(ctx, s.client, build)
}

func (s *RedisStore) sendTo(
	ctx context.Context, client rueidis.Client, build func() rueidis.Completed,
) (res rueidis.RedisResult, lost bool) {
	if err := ctx.Err(); err != nil {
		return rueidis.NewErrorResult(notSent{err}), false
	}
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		res = client.Do(ctx, build())
		err := res.Error()
		if !transient(err) || !sleep(ctx, pause) {
			return res, lost
		}
		lost = lost || !unsent(err)
	}
}

// notSent is the error of a context that had ended before anything was sent.
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

// confirm waits until enough replicas have the tombstone at key, which the primary has.
func (s *RedisStore) confirm(ctx context.Context, verb, key string, reason Reason) error {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		acks, err := s.invalidateAndWait(ctx, key, reason)
		switch _, answered := rueidis.IsRedisErr(err); {
		case err == nil && acks >= int64(s.acks):
			return nil
		case err == nil:
			return wrap(verb, ErrUnacknowledged)
		case answered && !isNoScript(err) && !isRedirection(err) && !transient(err): // the server does not WAIT
			return fmt.Errorf("tombstore: %s: %w: %w", verb, ErrUnacknowledged, explain(err))
		}
		if !sleep(ctx, pause) {
			return fmt.Errorf("tombstore: %s: %w: %w", verb, ErrUnacknowledged, explain(err))
		}
		// That connection follows no redirections and loads no scripts. The usual way does both.
		_ = s.invalidate(ctx, verb, key, InvalidateOptions{Reason: reason})
	}
}

func isRedirection(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	if !ok {
		return false
	}
	return strings.HasPrefix(reply.Error(), "MOVED") || strings.HasPrefix(reply.Error(), "ASK") // IsMoved panics without an address
}

// invalidateAndWait writes the tombstone again and counts the replicas that have it. Script and WAIT travel on one connection of their
// own, because WAIT answers for the writes of its connection and blocks it.
func (s *RedisStore) invalidateAndWait(ctx context.Context, key string, reason Reason) (acks int64, err error) {
	b := s.client.B()
	end := b.Evalsha().Sha1(invalidateScript.sha1).Numkeys(1).Key(key).Arg(string([]byte{byte(reason)}), s.argTombstoneTTL).Build()
	patience := s.acksTimeout
	if deadline, ok := ctx.Deadline(); ok { // the number is of use only if it comes before that
		patience = max(time.Millisecond, min(patience, time.Until(deadline)/10*9)) // in this order it cannot overflow
	}
	wait := b.Wait().Numreplicas(int64(s.acks)).Timeout(patience.Milliseconds()).Build()
	defer moveEpoch(key)
	var results []rueidis.RedisResult
	if s.client.Mode() == rueidis.ClientModeCluster { // which would follow a redirection with the script alone
		err = s.client.Dedicated(func(c rueidis.DedicatedClient) error {
			results = c.DoMulti(ctx, end, wait.SetSlot(key))
			return nil
		})
	} else {
		results = s.client.DoMulti(ctx, end, wait)
	}
	if err != nil {
		return 0, err
	}
	reply, err := results[0].ToString()
	if err != nil {
		return 0, err
	}
	if reply != string(codeDone) {
		return 0, errUnexpected
	}
	count, err := results[1].ToMessage()
	if err == nil && !count.IsInt64() { // an error of parsing it would show it
		err = errUnexpected
	}
	if err != nil {
		return 0, err
	}
	return count.AsInt64()
}
