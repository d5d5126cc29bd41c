package main

import (
	"cmp"
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// stringTombstone ends a session with a string in its place, where the store puts a hash.
//
//go:embed testdata/string_tombstone.lua
var stringTombstone string

// setScript does nothing but SET: no script that stores a session can cost less.
const setScript = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"

const (
	plainGet    = "GET"
	plainSet    = "SET"
	plainMiss   = "DoCache of GET, miss"
	storeMiss   = "cached Read, miss"
	slidingRead = "Read, Slide"
	invalidate  = "Invalidate"
	endByString = "Invalidate with a string as tombstone"
)

// cost measures what calls cost the server.
func cost(ctx context.Context, b *bench) ([]table, error) {
	t := table{
		title: "What a call costs the server",
		note: "The server's processor time (INFO cpu), as a multiple of that of the plain command, and in brackets in " +
			"microseconds. 128 goroutines; the contenders take turns in blocks of thousands of calls, each for another " +
			"session, and each number is the median of the rounds. A script of SET alone is the least that a script can " +
			"cost which stores a session. Ends are of live sessions.",
		head: []string{"call"},
	}
	for _, size := range []int{300, 4 << 10} {
		all, err := b.costs(ctx, size)
		if err != nil {
			return nil, err
		}
		t.head = append(t.head, kib(size))
		micros := map[string]float64{}
		for n, one := range all {
			if len(t.rows) < len(all) {
				t.add(one.name + " / " + one.base)
			}
			micros[one.name] = one.micros
			t.rows[n] = append(t.rows[n], fmt.Sprintf("%.2f (%.2f)", one.micros/micros[one.base], one.micros))
		}
		against := func(name, base string) (string, float64) {
			return fmt.Sprintf("server time, %s / %s, %s", name, base, kib(size)), micros[name] / micros[base]
		}
		slideLimit := 2.2
		if size > 300 {
			slideLimit = 1.9
		}
		for _, f := range []struct {
			name, base string
			limit      float64
		}{
			{save, plainSet, 1.7},
			{slidingRead, plainGet, slideLimit},
			{storeMiss, plainMiss, 1.3},
			{invalidate, endByString, 1.1},
		} {
			name, got := against(f.name, f.base)
			b.atMost(name, got, f.limit)
		}
		b.known(against(invalidate, plainSet))
	}
	return []table{t}, nil
}

// priced is a contender whose calls the server's processor pays for.
type priced struct {
	name, base string
	do         func(ctx context.Context, i int) error
	micros     float64 // a call
}

// costs measures all calls with sessions of a size.
func (b *bench) costs(ctx context.Context, size int) (all []priced, err error) {
	c, err := newClients(ctx, b.server.URL, size)
	if err != nil {
		return nil, err
	}
	defer c.close()
	cold := &cold{url: b.server.URL}
	defer cold.close()
	n := b.scaled(len(c.ids))
	c.ended = make([]string, n)
	err = each(ctx, 128, n, func(ctx context.Context, i int) error {
		c.ended[i] = tombstore.NewID()
		return c.plain.Invalidate(ctx, c.ended[i])
	})
	if err != nil {
		return nil, err
	}
	for _, group := range []struct {
		prepare func(ctx context.Context) error // before each block, unpaid
		all     []priced
	}{
		{nil, c.pricedReads()},
		{nil, c.pricedWrites()},
		{cold.renew, cold.misses(c)},
		{func(ctx context.Context) error { return c.renew(ctx, n) }, c.pricedEnds()},
	} {
		samples := make([][]float64, len(group.all))
		for round := range max(3, 9/b.part) + 1 {
			for k, one := range group.all {
				if group.prepare != nil {
					if err := group.prepare(ctx); err != nil {
						return nil, fmt.Errorf("%s: %w", one.name, err)
					}
				}
				used, err := b.used(ctx, n, one.do)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", one.name, err)
				}
				if round > 0 { // the first one warms up
					samples[k] = append(samples[k], used*1e6/float64(n))
				}
			}
		}
		for k, one := range group.all {
			one.micros = median(samples[k])
			all = append(all, one)
		}
	}
	return all, cold.cached(ctx, b.server, c, n)
}

// used returns the processor time, in seconds, that the server takes to do something n times.
func (b *bench) used(ctx context.Context, n int, do func(ctx context.Context, i int) error) (float64, error) {
	before, err := b.server.seconds()
	if err != nil {
		return 0, err
	}
	if err := each(ctx, 128, n, do); err != nil {
		return 0, err
	}
	after, err := b.server.seconds()
	return after - before, err
}

func (c *clients) pricedReads() []priced {
	return []priced{
		{name: plainGet, base: plainGet, do: c.get},
		{name: "Read", base: plainGet, do: reading(c.plain, c.ids)},
		{name: slidingRead, base: plainGet, do: reading(c.plain, c.ids, tombstore.Slide(hour))},
		{name: "Read of an ended session", base: plainGet, do: func(ctx context.Context, i int) error {
			_, err := c.plain.Read(ctx, c.ended[i])
			if errors.Is(err, tombstore.ErrInvalidated) {
				return nil
			}
			return cmp.Or(err, errors.New("it is live"))
		}},
		{name: "Exists", base: plainGet, do: func(ctx context.Context, i int) error {
			_, err := c.plain.Exists(ctx, c.ids[i])
			return err
		}},
		{name: "Touch, not due", base: plainGet, do: func(ctx context.Context, i int) error {
			return c.plain.Touch(ctx, c.ids[i], hour)
		}},
		{name: "two keys: GET, EXISTS", base: plainGet, do: c.twoKeys},
	}
}

func (c *clients) pricedWrites() []priced {
	return []priced{
		{name: plainSet, base: plainSet, do: c.set},
		{name: save, base: plainSet, do: c.save},
		{name: "Write", base: plainSet, do: c.write},
		{name: "a script of SET alone", base: plainSet, do: func(ctx context.Context, i int) error {
			return c.run(ctx, setScript, c.rawKey(i), c.record, fmt.Sprint(hour.Milliseconds()))
		}},
		{name: "two keys: EXISTS, SET", base: plainSet, do: c.twoKeysSave},
	}
}

func (c *clients) pricedEnds() []priced {
	reason, keep := string(rune(tombstore.Logout)), fmt.Sprint((24 * time.Hour).Milliseconds())
	return []priced{
		{name: endByString, base: plainSet, do: func(ctx context.Context, i int) error {
			return c.run(ctx, stringTombstone, storeKey(c.ids[i]), reason, keep)
		}},
		{name: invalidate, base: plainSet, do: c.invalidate},
		{name: "Rotate", base: plainSet, do: func(ctx context.Context, i int) error {
			id := tombstore.NewID()
			_, err := c.plain.Rotate(ctx, c.ids[i], id)
			c.ids[i] = id
			return err
		}},
		{name: "two keys: SET, DEL", base: plainSet, do: c.twoKeysEnd},
	}
}

// renew takes n live sessions in the place of those that are there.
func (c *clients) renew(ctx context.Context, n int) error {
	return each(ctx, 64, n, func(ctx context.Context, i int) error {
		b := c.caching.B()
		err := c.caching.Do(ctx, b.Del().Key(storeKey(c.ids[i]), c.rawKey(i), "ended:"+c.rawKey(i)).Build()).Error()
		if err != nil {
			return err
		}
		c.ids[i] = tombstore.NewID()
		if err := c.set(ctx, i); err != nil {
			return err
		}
		return c.write(ctx, i)
	})
}

// run runs a script by EVALSHA.
func (c *clients) run(ctx context.Context, source, key string, args ...string) error {
	sum := sha1.Sum([]byte(source))
	b := c.caching.B()
	res := c.caching.Do(ctx, b.Evalsha().Sha1(hex.EncodeToString(sum[:])).Numkeys(1).Key(key).Arg(args...).Build())
	if reply, ok := rueidis.IsRedisErr(res.Error()); ok && reply.IsNoScript() {
		res = c.caching.Do(ctx, b.Eval().Script(source).Numkeys(1).Key(key).Arg(args...).Build())
	}
	return res.Error()
}

// cold are clients that cache and know no session.
type cold struct {
	url   string
	store *tombstore.RedisStore
	raw   rueidis.Client
}

func (c *cold) close() {
	if c.store != nil {
		c.store.Close()
		c.store = nil
	}
	if c.raw != nil {
		c.raw.Close()
		c.raw = nil
	}
}

func (c *cold) renew(ctx context.Context) (err error) {
	c.close()
	if c.store, err = openCaching(ctx, c.url, hour); err != nil {
		return err
	}
	c.raw, err = dial(c.url)
	return err
}

func (c *cold) misses(known *clients) []priced {
	return []priced{
		{name: plainMiss, base: plainMiss, do: func(ctx context.Context, i int) error {
			return c.raw.DoCache(ctx, c.raw.B().Get().Key(known.rawKey(i)).Cache(), hour).Error()
		}},
		{name: storeMiss, base: plainMiss, do: func(ctx context.Context, i int) error {
			_, err := c.store.Read(ctx, known.ids[i])
			return err
		}},
	}
}

// cached makes sure that the store has kept what it had missed: reads that cache nothing cost less.
// The first read of a session that this process has changed since may be one of them.
func (c *cold) cached(ctx context.Context, s server, known *clients, n int) error {
	read := c.misses(known)[1].do
	for range 2 {
		if err := each(ctx, 128, n, read); err != nil {
			return err
		}
	}
	return s.unasked(ctx, storeMiss, n, read)
}
