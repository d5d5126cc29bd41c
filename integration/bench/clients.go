package main

import (
	"context"
	"strings"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/client"
)

const (
	sessions = 10_000
	hour     = time.Hour
)

// sessionsOf returns how many sessions of a size are read: all must fit into the cache of a client.
func sessionsOf(size int) int { return min(sessions, rueidis.DefaultCacheBytes/2/size) }

// contender is one way to do something to session i.
type contender struct {
	name string
	do   func(ctx context.Context, i int) error
}

// clients are the stores that are compared, on one server.
type clients struct {
	ids, ended             []string
	data                   []byte
	cached, missing, plain *tombstore.RedisStore
	caching                rueidis.Client // with the settings of Open
	peer                   *goredisstore.RedisStore
	theirs                 *goredis.Client
	record                 string              // of the length of what a store holds
	loaded                 []tombstore.Session // as the plain store has read them
}

// dial returns a client with the settings of Open, which caches.
func dial(url string) (rueidis.Client, error) {
	o, err := client.Option(url, true)
	if err != nil {
		return nil, err
	}
	return client.Dial(o)
}

func newClients(ctx context.Context, url string, size int) (_ *clients, err error) {
	c := &clients{data: []byte(strings.Repeat("x", size))}
	c.record = strings.Repeat("h", 22) + string(c.data)
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	for _, s := range []struct {
		to  **tombstore.RedisStore
		opt []tombstore.Option
	}{
		{&c.cached, []tombstore.Option{tombstore.WithClientCache(hour)}},
		{&c.missing, []tombstore.Option{tombstore.WithClientCache(time.Millisecond)}}, // every answer is too old
		{&c.plain, nil},
	} {
		if *s.to, err = tombstore.Open(url, s.opt...); err != nil {
			return nil, err
		}
	}
	if c.caching, err = dial(url); err != nil {
		return nil, err
	}
	theirOption, err := goredis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	theirOption.PoolSize = 128
	c.theirs = goredis.NewClient(theirOption)
	c.peer = goredisstore.New(c.theirs)
	for range sessionsOf(size) {
		c.ids = append(c.ids, tombstore.NewID())
	}
	c.loaded = make([]tombstore.Session, len(c.ids))
	// Reading comes after all writing, since a Write makes this process forget other sessions of
	// its group, too; and thrice, since the first Read after a change may be a GET, and since a Read
	// does not fill the cache while another one finds out
	// whether messages arrive.
	read := reading(c.cached, c.ids)
	for _, do := range []func(context.Context, int) error{c.write, c.set, c.commit, c.load, c.doCache, read, read, read} {
		if err := each(ctx, 16, len(c.ids), do); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// hits makes sure that what is to be a cached Read or DoCache is one.
func (c *clients) hits(ctx context.Context, s server) error {
	if err := s.unasked(ctx, doCacheHit, len(c.ids), c.doCache); err != nil {
		return err
	}
	return s.unasked(ctx, copiedHit, len(c.ids), reading(c.cached, c.ids))
}

func (c *clients) close() {
	for _, s := range []*tombstore.RedisStore{c.cached, c.missing, c.plain} {
		if s != nil {
			s.Close()
		}
	}
	if c.caching != nil {
		c.caching.Close()
	}
	if c.theirs != nil {
		c.theirs.Close()
	}
}

func (c *clients) rawKey(i int) string { return "raw:" + c.ids[i][:32] }

func (c *clients) write(ctx context.Context, i int) error {
	_, err := c.plain.Write(ctx, c.ids[i], c.data, hour)
	return err
}

func (c *clients) load(ctx context.Context, i int) (err error) {
	c.loaded[i], err = c.plain.Read(ctx, c.ids[i])
	return err
}

// save is what a request does at its end to the session that it has loaded at its beginning.
func (c *clients) save(ctx context.Context, i int) error {
	_, err := c.plain.Write(ctx, c.ids[i], c.data, hour, tombstore.Replacing(c.loaded[i]))
	return err
}

func (c *clients) set(ctx context.Context, i int) error {
	b := c.caching.B()
	return c.caching.Do(ctx, b.Set().Key(c.rawKey(i)).Value(c.record).Px(hour).Build()).Error()
}

func (c *clients) get(ctx context.Context, i int) error {
	_, err := c.caching.Do(ctx, c.caching.B().Get().Key(c.rawKey(i)).Build()).AsBytes()
	return err
}

func (c *clients) doCache(ctx context.Context, i int) error {
	_, err := c.caching.DoCache(ctx, c.caching.B().Get().Key(c.rawKey(i)).Cache(), hour).AsBytes()
	return err
}

func (c *clients) commit(ctx context.Context, i int) error {
	return c.peer.CommitCtx(ctx, c.ids[i], c.data, time.Now().Add(hour))
}

func reading(
	s *tombstore.RedisStore, ids []string, opts ...tombstore.ReadOption,
) func(ctx context.Context, i int) error {
	return func(ctx context.Context, i int) error {
		_, err := s.Read(ctx, ids[i], opts...)
		return err
	}
}

// firstError returns the first error of several replies.
func firstError(results []rueidis.RedisResult) error {
	for _, res := range results {
		if err := res.Error(); err != nil {
			return err
		}
	}
	return nil
}

// twoKeys is the workaround with a second key that marks an ended session.
func (c *clients) twoKeys(ctx context.Context, i int) error {
	b, key := c.caching.B(), c.rawKey(i)
	return firstError(c.caching.DoMulti(ctx, b.Get().Key(key).Build(), b.Exists().Key("ended:"+key).Build()))
}

func (c *clients) twoKeysSave(ctx context.Context, i int) error {
	b, key := c.caching.B(), c.rawKey(i)
	return firstError(c.caching.DoMulti(ctx, b.Exists().Key("ended:"+key).Build(),
		b.Set().Key(key).Value(c.record).Px(hour).Build()))
}

func (c *clients) twoKeysEnd(ctx context.Context, i int) error {
	b, key := c.caching.B(), c.rawKey(i)
	return firstError(c.caching.DoMulti(ctx, b.Set().Key("ended:"+key).Value("1").Px(hour).Build(),
		b.Del().Key(key).Build()))
}

// The names of contenders that a figure compares.
const (
	doCacheHit = "DoCache of GET"
	sharedHit  = "cached Read, Shared, hit"
	copiedHit  = "cached Read, hit"
	peerFind   = "scs/goredisstore Find"
	peerCommit = "scs/goredisstore Commit"
	peerDelete = "scs/goredisstore Delete"
	save       = "Write, Replacing"
)

func (c *clients) reads() []contender {
	return []contender{
		{doCacheHit, c.doCache},
		{sharedHit, reading(c.cached, c.ids, tombstore.Shared())},
		{copiedHit, reading(c.cached, c.ids)},
		{storeMiss, reading(c.missing, c.ids)},
		{plainGet, c.get},
		{"Read", reading(c.plain, c.ids)},
		{slidingRead, reading(c.plain, c.ids, tombstore.Slide(hour))},
		{peerFind, func(ctx context.Context, i int) error {
			_, _, err := c.peer.FindCtx(ctx, c.ids[i])
			return err
		}},
		{"two keys: GET, EXISTS", c.twoKeys},
		{"gofiber's way: DoCache, SET", func(ctx context.Context, i int) error {
			key := "fiber:" + c.rawKey(i) // of its own, since each SET empties the cache
			err := c.caching.DoCache(ctx, c.caching.B().Get().Key(key).Cache(), hour).Error()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			return c.caching.Do(ctx, c.caching.B().Set().Key(key).Value(c.record).Px(hour).Build()).Error()
		}},
	}
}

func (c *clients) writes() []contender {
	return []contender{
		{plainSet, c.set},
		{save, c.save},
		{"Write", c.write},
		{peerCommit, c.commit},
		{"two keys: EXISTS, SET", c.twoKeysSave},
	}
}

func (c *clients) ends() []contender {
	return []contender{
		{"DEL", func(ctx context.Context, i int) error {
			return c.caching.Do(ctx, c.caching.B().Del().Key(c.rawKey(i)).Build()).Error()
		}},
		{invalidate, c.invalidate},
		{peerDelete, func(ctx context.Context, i int) error { return c.peer.DeleteCtx(ctx, c.ids[i]) }},
		{"two keys: SET, DEL", c.twoKeysEnd},
	}
}

func (c *clients) invalidate(ctx context.Context, i int) error {
	return c.plain.Invalidate(ctx, c.ids[i])
}
