package adapter

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// OldKeys is an OldStore of plain keys on a Redis server: a prefix and the id, as usual session stores have
// them. It is safe for concurrent use.
type OldKeys struct {
	client rueidis.Client
	prefix string
}

var _ OldStore = (*OldKeys)(nil)

// NewOldKeys returns the sessions in keys with a prefix: "scs:session:" is that of scs' goredisstore and
// redisstore, "session_" that of boj/redistore and of sessions/redis of gin-contrib and hertz-contrib, and ""
// that of gofiber/storage/redis and of session/redis of go-chi and beego. The client is the caller's, and must
// ask the primary.
func NewOldKeys(client rueidis.Client, prefix string) *OldKeys { return &OldKeys{client, prefix} }

// oldTimeout bounds what is asked of the old keys.
const oldTimeout = 2 * time.Second

// Read implements OldStore. A session has a TTL, so a key without one is something else.
func (k *OldKeys) Read(ctx context.Context, id string) (data []byte, ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, oldTimeout)
	defer cancel()
	key := k.prefix + id
	replies := k.client.DoMulti(ctx,
		k.client.B().Get().Key(key).Build(),
		k.client.B().Pttl().Key(key).Build(),
	)
	data, err = replies[0].AsBytes()
	if err != nil {
		return nil, 0, explain(err)
	}
	ms, err := replies[1].AsInt64()
	switch {
	case err != nil:
		return nil, 0, explain(err)
	case len(data) == 0: // go-chi/session keeps that for a visitor of whom it has nothing to save
		return nil, 0, tombstore.ErrNotFound
	case ms == -1:
		return nil, 0, tombstore.ErrCorrupt
	case ms <= 0:
		return nil, 0, tombstore.ErrNotFound
	}
	return data, time.Duration(ms) * time.Millisecond, nil
}

// Delete implements OldStore.
func (k *OldKeys) Delete(ctx context.Context, id string) (deleted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, oldTimeout)
	defer cancel()
	n, err := k.client.Do(ctx, k.client.B().Del().Key(k.prefix+id).Build()).AsInt64()
	return n > 0, explain(err)
}

// explain gives an error of the client its place in the contract. The text of an error reply may quote the
// key, so only its code word is left of it; the whole is there for errors.As.
func explain(err error) error {
	reply, answered := rueidis.IsRedisErr(err)
	switch {
	case rueidis.IsRedisNil(err):
		return tombstore.ErrNotFound
	case !answered:
		return err
	case strings.HasPrefix(reply.Error(), "WRONGTYPE"):
		return tombstore.ErrCorrupt
	}
	return &replyError{reply}
}

type replyError struct{ cause *rueidis.RedisError }

// replyCodes are the code words that are shown. What begins in another way may begin with what it quotes.
var replyCodes = strings.Fields("CLUSTERDOWN LOADING MASTERDOWN MISCONF NOAUTH NOPERM OOM READONLY TRYAGAIN")

func (e *replyError) Error() string {
	code, _, _ := strings.Cut(e.cause.Error(), " ")
	if !slices.Contains(replyCodes, code) {
		code = "an error"
	}
	return "server answered " + code
}

func (e *replyError) Unwrap() error { return e.cause }
