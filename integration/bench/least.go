package main

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

const plainCommands = "plain GET, SET"

// least is the least that a store can do through this client: plain commands, with which a late save
// brings an ended session back. What a framework reaches with it bounds what it can reach with a store
// that refuses.
type least struct{ client rueidis.Client }

func (l least) get(ctx context.Context, key string) ([]byte, error) {
	value, err := l.client.Do(ctx, l.client.B().Get().Key(key).Build()).AsBytes()
	if rueidis.IsRedisNil(err) {
		return nil, nil
	}
	return value, err
}

func (l least) set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return l.client.Do(ctx, l.client.B().Set().Key(key).Value(rueidis.BinaryString(value)).Px(ttl).Build()).Error()
}

func (l least) del(ctx context.Context, key string) error {
	return l.client.Do(ctx, l.client.B().Del().Key(key).Build()).Error()
}

// leastOfSCS is a store of scs.
type leastOfSCS struct{ least }

func (l leastOfSCS) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, err := l.get(ctx, token)
	return b, b != nil, err
}

func (l leastOfSCS) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return l.set(ctx, token, b, time.Until(expiry))
}

func (l leastOfSCS) DeleteCtx(ctx context.Context, token string) error { return l.del(ctx, token) }

func (l leastOfSCS) Find(token string) ([]byte, bool, error) {
	return l.FindCtx(context.Background(), token)
}

func (l leastOfSCS) Commit(token string, b []byte, expiry time.Time) error {
	return l.CommitCtx(context.Background(), token, b, expiry)
}

func (l leastOfSCS) Delete(token string) error { return l.DeleteCtx(context.Background(), token) }

// leastOfFiber is a storage of fiber.
type leastOfFiber struct{ least }

func (l leastOfFiber) GetWithContext(ctx context.Context, key string) ([]byte, error) {
	return l.get(ctx, key)
}

func (l leastOfFiber) SetWithContext(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return l.set(ctx, key, value, ttl)
}

func (l leastOfFiber) DeleteWithContext(ctx context.Context, key string) error {
	return l.del(ctx, key)
}

func (l leastOfFiber) Get(key string) ([]byte, error) { return l.get(context.Background(), key) }

func (l leastOfFiber) Set(key string, value []byte, ttl time.Duration) error {
	return l.set(context.Background(), key, value, ttl)
}

func (l leastOfFiber) Delete(key string) error { return l.del(context.Background(), key) }

func (leastOfFiber) ResetWithContext(context.Context) error { return nil }
func (leastOfFiber) Reset() error                           { return nil }
func (leastOfFiber) Close() error                           { return nil }
