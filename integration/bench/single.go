package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

const (
	sessions = 10_000
	hour     = time.Hour
)

// sessionsOf returns how many sessions of a size are read: all must fit into the cache of a client, 128 MiB.
func sessionsOf(size int) int { return min(sessions, 64<<20/size) }

// contender is one way to do something to session i.
type contender struct {
	name string
	do   func(ctx context.Context, i int) error
}

// clients are the stores that are compared, on one server.
type clients struct {
	ids                    []string
	data                   []byte
	cached, missing, plain *tombstore.RedisStore
	caching                rueidis.Client // with the settings of Open
	peer                   *goredisstore.RedisStore
	theirs                 *goredis.Client
	record                 string
}

// option returns the settings that Open uses.
func option(url string) (rueidis.ClientOption, error) {
	o, err := rueidis.ParseURL(url)
	o.PipelineMultiplex, o.MaxFlushDelay, o.DisableRetry = -1, 20*time.Microsecond, true
	return o, err
}

func newClients(ctx context.Context, url string, size int) (c *clients, err error) {
	c = &clients{data: []byte(strings.Repeat("x", size))}
	c.record = strings.Repeat("h", 22) + string(c.data)
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
	o, err := option(url)
	if err != nil {
		return nil, err
	}
	if c.caching, err = rueidis.NewClient(o); err != nil {
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
	// Reading comes after all writing, since a Write makes this process forget other sessions of its group, too; and twice, since a
	// Read does not fill the cache while another one finds out whether messages arrive.
	read := reading(c.cached, c.ids)
	for _, do := range []func(context.Context, int) error{c.write, c.set, c.commit, c.doCache, read, read} {
		if err := each(ctx, 16, len(c.ids), do); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// hits makes sure that what is to be a cached Read or DoCache is one.
func (c *clients) hits(ctx context.Context, s server) error {
	for name, do := range map[string]func(context.Context, int) error{"DoCache": c.doCache, "cached Read": reading(c.cached, c.ids)} {
		before, err := s.load()
		if err != nil {
			return err
		}
		if err := each(ctx, 1, len(c.ids), do); err != nil {
			return err
		}
		after, err := s.load()
		if err != nil {
			return err
		}
		if asked := after.commands - before.commands; asked > float64(len(c.ids))/20 { // a canary and some PINGs may be among them
			return fmt.Errorf("%s has asked the server %.0f times for %d sessions", name, asked, len(c.ids))
		}
	}
	return nil
}

func (c *clients) close() {
	for _, s := range []*tombstore.RedisStore{c.cached, c.missing, c.plain} {
		s.Close()
	}
	c.caching.Close()
	c.theirs.Close()
}

func (c *clients) rawKey(i int) string { return "raw:" + c.ids[i][:32] }

func (c *clients) write(ctx context.Context, i int) error {
	_, err := c.plain.Write(ctx, c.ids[i], c.data, hour)
	return err
}

func (c *clients) set(ctx context.Context, i int) error {
	b := c.caching.B()
	return c.caching.Do(ctx, b.Set().Key(c.rawKey(i)).Value(c.record).Ex(hour).Build()).Error()
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

func reading(s *tombstore.RedisStore, ids []string) func(ctx context.Context, i int) error {
	return func(ctx context.Context, i int) error {
		_, err := s.Read(ctx, ids[i])
		return err
	}
}

// twoKeys is the workaround with a second key that marks an ended session.
func (c *clients) twoKeys(ctx context.Context, i int) error {
	key := c.rawKey(i)
	for _, res := range c.caching.DoMulti(ctx, c.caching.B().Get().Key(key).Build(), c.caching.B().Exists().Key("ended:"+key).Build()) {
		if err := res.Error(); err != nil {
			return err
		}
	}
	return nil
}

func (c *clients) twoKeysEnd(ctx context.Context, i int) error {
	key := c.rawKey(i)
	for _, res := range c.caching.DoMulti(ctx, c.caching.B().Set().Key("ended:"+key).Value("1").Ex(hour).Build(),
		c.caching.B().Del().Key(key).Build()) {
		if err := res.Error(); err != nil {
			return err
		}
	}
	return nil
}

func (c *clients) reads() []contender {
	return []contender{
		{"DoCache of GET", c.doCache},
		{"cached Read, hit", reading(c.cached, c.ids)},
		{"cached Read, miss", reading(c.missing, c.ids)},
		{"GET", c.get},
		{"Read", reading(c.plain, c.ids)},
		{"scs/goredisstore Find", func(ctx context.Context, i int) error {
			_, _, err := c.peer.FindCtx(ctx, c.ids[i])
			return err
		}},
		{"two keys: GET, EXISTS", c.twoKeys},
		{"gofiber's way: DoCache, SET", func(ctx context.Context, i int) error { // on keys of its own, since each SET empties the cache
			key := "fiber:" + c.rawKey(i)
			err := c.caching.DoCache(ctx, c.caching.B().Get().Key(key).Cache(), hour).Error()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			return c.caching.Do(ctx, c.caching.B().Set().Key(key).Value(c.record).Ex(hour).Build()).Error()
		}},
	}
}

func (c *clients) writes() []contender {
	return []contender{
		{"SET", c.set},
		{"Write", c.write},
		{"scs/goredisstore Commit", c.commit},
		{"two keys: EXISTS, SET", func(ctx context.Context, i int) error {
			key := c.rawKey(i)
			for _, res := range c.caching.DoMulti(ctx, c.caching.B().Exists().Key("ended:"+key).Build(),
				c.caching.B().Set().Key(key).Value(c.record).Ex(hour).Build()) {
				if err := res.Error(); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

func (c *clients) ends() []contender {
	return []contender{
		{"DEL", func(ctx context.Context, i int) error {
			return c.caching.Do(ctx, c.caching.B().Del().Key(c.rawKey(i)).Build()).Error()
		}},
		{"Invalidate", func(ctx context.Context, i int) error { return c.plain.Invalidate(ctx, c.ids[i]) }},
		{"scs/goredisstore Delete", func(ctx context.Context, i int) error { return c.peer.DeleteCtx(ctx, c.ids[i]) }},
		{"two keys: SET, DEL", c.twoKeysEnd},
	}
}

// race runs the contenders in turns, block by block, so that all meet the same machine, and returns the throughput of each.
func (b *bench) race(ctx context.Context, all []contender, goroutines, among int) ([]float64, error) {
	ops, took := make([]float64, len(all)), make([]time.Duration, len(all))
	rounds, block := 5, b.time(200*time.Millisecond)
	for round := range rounds + 1 {
		for n, c := range all {
			count, d, err := forTime(ctx, goroutines, among, block, c.do)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if round > 0 { // the first one warms up
				ops[n] += float64(count)
				took[n] += d
			}
		}
	}
	for n := range ops {
		ops[n] /= took[n].Seconds()
	}
	return ops, nil
}

// endAll ends live sessions in turns. An end of what is ended already would do less, so the sessions are made anew before each block.
func (b *bench) endAll(ctx context.Context, c *clients, all []contender, goroutines int) ([]float64, error) {
	n := min(len(c.ids), b.scaled(2000))
	took := make([]time.Duration, len(all))
	for round := range 4 {
		for k, one := range all {
			for i := range n {
				c.ids[i] = tombstore.NewID()
			}
			for _, create := range []func(context.Context, int) error{c.write, c.set, c.commit} {
				if err := each(ctx, 64, n, create); err != nil {
					return nil, err
				}
			}
			begun := time.Now()
			if err := each(ctx, goroutines, n, one.do); err != nil {
				return nil, fmt.Errorf("%s: %w", one.name, err)
			}
			if round > 0 { // the first one warms up
				took[k] += time.Since(begun)
			}
			if err := c.forget(ctx, n); err != nil {
				return nil, err
			}
		}
	}
	ops := make([]float64, len(all))
	for k := range ops {
		ops[k] = float64(3*n) / took[k].Seconds()
	}
	return ops, nil
}

// forget frees what endAll has created and not ended: at 64 KiB the blocks would add up.
func (c *clients) forget(ctx context.Context, n int) error {
	return each(ctx, 64, n, func(ctx context.Context, i int) error {
		if err := c.caching.Do(ctx, c.caching.B().Del().Key(c.rawKey(i)).Build()).Error(); err != nil {
			return err
		}
		if err := c.peer.DeleteCtx(ctx, c.ids[i]); err != nil {
			return err
		}
		return c.plain.Invalidate(ctx, c.ids[i])
	})
}

// forTime runs do in goroutines until the time is over.
func forTime(
	ctx context.Context, goroutines, among int, d time.Duration, do func(ctx context.Context, i int) error,
) (int64, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // as a request has one
	defer cancel()
	var total atomic.Int64
	var failed atomic.Pointer[error]
	var group sync.WaitGroup
	begun := time.Now()
	until := begun.Add(d)
	for g := range goroutines {
		group.Go(func() {
			n := 0
			for i := g * 7919; ; i++ {
				if n%16 == 0 && !time.Now().Before(until) {
					break
				}
				if err := do(ctx, i%among); err != nil {
					failed.Store(&err)
					break
				}
				n++
			}
			total.Add(int64(n))
		})
	}
	group.Wait()
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	return total.Load(), time.Since(begun), nil
}

func single(ctx context.Context, b *bench) (tables []table, err error) {
	shapes := []struct{ size, goroutines int }{{300, 1}, {300, 16}, {300, 128}, {4 << 10, 1}, {4 << 10, 16}, {4 << 10, 128}, {64 << 10, 1}, {64 << 10, 16}, {64 << 10, 128}}
	if b.part > 1 {
		shapes = []struct{ size, goroutines int }{{300, 1}, {300, 128}, {64 << 10, 128}}
	}
	kinds := []struct {
		title, base, note string
		of                func(*clients) []contender
	}{
		{"Reading, as a multiple of scs/goredisstore Find", "scs/goredisstore Find", "Columns are size × goroutines.", (*clients).reads},
		{"Writing, as a multiple of scs/goredisstore Commit", "scs/goredisstore Commit", "SET is gofiber's way, too.", (*clients).writes},
		{"Logging out, as a multiple of scs/goredisstore Delete", "scs/goredisstore Delete", "Of live sessions. DEL is gofiber's way, too.", (*clients).ends},
	}
	for _, k := range kinds {
		tables = append(tables, table{title: k.title, note: k.note, head: []string{"throughput"}})
	}
	costs := table{title: "Cached Read against DoCache of GET", head: []string{"size", "goroutines", "DoCache, ns", "cached Read, ns", "times"},
		note: "DoCache hands out its own memory; Read hashes the id, judges the record, and hands out a copy."}
	for _, shape := range shapes {
		c, err := newClients(ctx, b.server.URL, shape.size)
		if err != nil {
			return nil, err
		}
		if err := c.hits(ctx, b.server); err != nil {
			c.close()
			return nil, err
		}
		for n, k := range kinds {
			all := k.of(c)
			var ops []float64
			if n == len(kinds)-1 {
				ops, err = b.endAll(ctx, c, all, shape.goroutines)
			} else {
				ops, err = b.race(ctx, all, shape.goroutines, len(c.ids))
			}
			if err != nil {
				c.close()
				return nil, err
			}
			t := &tables[n]
			t.head = append(t.head, fmt.Sprintf("%s × %d", kib(shape.size), shape.goroutines))
			base := 0.0
			for i, one := range all {
				if one.name == k.base {
					base = ops[i]
				}
				if len(t.rows) < len(all) {
					t.add(one.name)
				}
			}
			for i, one := range all {
				t.rows[i] = append(t.rows[i], ratio(ops[i]/base))
				if shape.goroutines == 128 && shape.size == 300 {
					b.bars = append(b.bars, bar{one.name, ops[i] / base, k.title})
				}
			}
			if n == 0 {
				g := float64(min(shape.goroutines, 2)) * 1e9
				costs.add(kib(shape.size), fmt.Sprint(shape.goroutines), fmt.Sprintf("%.0f", g/ops[0]), fmt.Sprintf("%.0f", g/ops[1]),
					ratio(ops[0]/ops[1]))
			}
		}
		c.close()
	}
	costs.note += " Nanoseconds of a core: two work when there is more than one goroutine."
	return append(tables, costs), nil
}

func kib(size int) string {
	if size < 1024 {
		return "0.3 KiB"
	}
	return fmt.Sprintf("%d KiB", size>>10)
}
