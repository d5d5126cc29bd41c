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
	if s.acks == 0 {
		return "", nil
	}
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		begun := time.Now()
		reply, acks, err := s.invalidateAndWait(ctx, key, reason)
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
		// That connection follows no redirections and loads no scripts. The usual way does both.
		_, _, _ = s.ask(ctx, &invalidateScript, []string{key}, s.endArgs(ctx, reason, "")...)
	}
}

func isRedirection(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	if !ok { // IsMoved panics without an address
		return false
	}
	return strings.HasPrefix(reply.Error(), "MOVED") || strings.HasPrefix(reply.Error(), "ASK")
}

// invalidateAndWait writes the tombstone again and counts the replicas that have it. Script and
// WAIT travel on one connection of their own, because WAIT answers for the writes of its connection
// and blocks it.
func (s *RedisStore) invalidateAndWait(
	ctx context.Context, key string, reason Reason,
) (reply string, acks int64, err error) {
	b := s.client.B()
	end := b.Evalsha().Sha1(invalidateScript.sha1).Numkeys(1).Key(key).Arg(s.endArgs(ctx, reason, "")...).Build()
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
			results = c.DoMulti(ctx, end, wait.SetSlot(key))
			return nil
		})
		if err != nil {
			return "", 0, err
		}
	} else {
		results = s.client.DoMulti(ctx, end, wait)
	}
	first, err := bytesOf(results[0])
	if err != nil {
		return "", 0, err
	}
	if len(first) == 0 || !strings.ContainsRune("DAE", rune(first[0])) || first[0] == codeEnded && len(first) <= endSize {
		return "", 0, errUnexpected
	}
	acks, err = intOf(results[1])
	return string(first), acks, err
}
