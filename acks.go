package tombstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// confirm waits until enough replicas have the tombstone at key, which the primary has. It ends
// what is at key once more, and returns the reply of invalidate.lua to that: if the tombstone was
// lost meanwhile, and the session has moved, that reply alone names the successor. It is "" without
// WithReplicaAcks, and if there was no reply.
func (s *RedisStore) confirm(ctx context.Context, key string, reason Reason) (reply string, err error) {
	return s.acknowledged(ctx, &invalidateScript, key, func() []string { return s.endArgs(ctx, reason, "") })
}

// acknowledged runs a script again that has run before, and waits until enough replicas have what
// it has written. It returns the reply, or "" without WithReplicaAcks and if there was none. A
// script that answers codeDone must write, or the wait means nothing.
func (s *RedisStore) acknowledged(
	ctx context.Context, sc *script, key string, args func() []string,
) (reply string, err error) {
	if s.acks == 0 {
		return "", nil
	}
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		begun := time.Now()
		reply, acks, err := s.runAndWait(ctx, sc, key, args())
		switch _, answered := rueidis.IsRedisErr(err); {
		case err == nil && acks >= int64(s.acks):
			return reply, nil
		case err == nil:
			return reply, ErrUnacknowledged
		case answered && !isNoScript(err) && !isRedirection(err) && !s.again(ctx, err, begun): // it does not WAIT
			return reply, fmt.Errorf("%w: %w", ErrUnacknowledged, explain(err))
		}
		if !sleep(ctx, pause) {
			return reply, fmt.Errorf("%w: %w", ErrUnacknowledged, explain(err))
		}
		s.sends(ctx, true)
		// That connection follows no redirections and loads no scripts. The usual way does both.
		_, _, _ = s.ask(ctx, sc, []string{key}, args()...)
	}
}

func isRedirection(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	if !ok { // IsMoved panics without an address
		return false
	}
	return strings.HasPrefix(reply.Error(), "MOVED") || strings.HasPrefix(reply.Error(), "ASK")
}

// runAndWait runs a script and counts the replicas that have what it has written. Script and WAIT
// travel on one connection of their own, because WAIT answers for the writes of its connection and
// blocks it.
func (s *RedisStore) runAndWait(
	ctx context.Context, sc *script, key string, args []string,
) (reply string, acks int64, err error) {
	b := s.client.B()
	run := b.Evalsha().Sha1(sc.sha1).Numkeys(1).Key(key).Arg(args...).Build()
	patience := s.acksTimeout
	if deadline, ok := ctx.Deadline(); ok { // the number is of use only if it comes before that
		// In this order it cannot overflow.
		patience = max(time.Millisecond, min(patience, time.Until(deadline)/10*9))
	}
	wait := b.Wait().Numreplicas(int64(s.acks)).Timeout(patience.Milliseconds()).Build()
	defer moveEpoch(key)
	var results []rueidis.RedisResult
	if s.clustered() { // it would follow a redirection with the script alone
		err := s.client.Dedicated(func(c rueidis.DedicatedClient) error {
			results = c.DoMulti(ctx, run, wait.SetSlot(key))
			return nil
		})
		if err != nil {
			return "", 0, err
		}
	} else {
		results = s.client.DoMulti(ctx, run, wait)
	}
	first, err := bytesOf(results[0])
	if err != nil {
		return "", 0, err
	}
	if len(first) == 0 || !strings.ContainsRune("DAESNL", rune(first[0])) || first[0] == codeEnded && len(first) <= endSize {
		return "", 0, errUnexpected
	}
	acks, err = intOf(results[1])
	return string(first), acks, err
}
