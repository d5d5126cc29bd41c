package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// speed is how fast a contender is.
type speed struct {
	ops    float64 // a second
	caller float64 // processor time of this process, in seconds an operation
}

// compare runs the contenders in turns, block by block, so that all meet the same machine, and
// returns the speed of each.
func (b *bench) compare(ctx context.Context, all []contender, goroutines, among int) ([]speed, error) {
	ops, took, used := make([]float64, len(all)), make([]float64, len(all)), make([]float64, len(all))
	rounds, block := 5, b.time(200*time.Millisecond)
	for round := range rounds + 1 {
		for n, c := range all {
			before := redistest.ProcessorTime().Seconds()
			count, d, err := forTime(ctx, goroutines, among, block, c.do)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if round > 0 { // the first one warms up
				ops[n] += float64(count)
				took[n] += d.Seconds()
				used[n] += redistest.ProcessorTime().Seconds() - before
			}
		}
	}
	speeds := make([]speed, len(all))
	for n := range all {
		speeds[n] = speed{ops[n] / took[n], used[n] / ops[n]}
	}
	return speeds, nil
}

// begin makes n sessions under ids of their own: an end of what is ended already would do less.
func (c *clients) begin(ctx context.Context, n int) error {
	for i := range n {
		c.ids[i] = tombstore.NewID()
	}
	for _, create := range []func(context.Context, int) error{c.write, c.set, c.commit} {
		if err := each(ctx, 64, n, create); err != nil {
			return err
		}
	}
	return nil
}

// endAll ends live sessions in turns.
func (b *bench) endAll(ctx context.Context, c *clients, all []contender, goroutines int) ([]speed, error) {
	n := min(len(c.ids), b.scaled(2000))
	took := make([]time.Duration, len(all))
	for round := range 4 {
		for k, one := range all {
			if err := c.begin(ctx, n); err != nil {
				return nil, err
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
	speeds := make([]speed, len(all))
	for k := range all {
		speeds[k].ops = float64(3*n) / took[k].Seconds()
	}
	return speeds, nil
}

// forget deletes what begin has made, and what has become of it.
func (c *clients) forget(ctx context.Context, n int) error {
	return each(ctx, 64, n, func(ctx context.Context, i int) error {
		b := c.caching.B()
		return firstError(c.caching.DoMulti(ctx,
			b.Del().Key(c.rawKey(i)).Build(),
			b.Del().Key("ended:"+c.rawKey(i)).Build(),
			b.Del().Key(storeKey(c.ids[i])).Build(),
			b.Del().Key("scs:session:"+c.ids[i]).Build()))
	})
}

// storeKey returns the key under which a store with the default prefix keeps a session.
func storeKey(id string) string { return "tombstore:" + tombstore.Ref(id) }

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

// shape is what single varies.
type shape struct{ size, goroutines int }

func (s shape) String() string { return fmt.Sprintf("%s × %d", kib(s.size), s.goroutines) }

func single(ctx context.Context, b *bench) (tables []table, err error) {
	shapes := []shape{
		{300, 1}, {300, 16}, {300, 128},
		{4 << 10, 1}, {4 << 10, 16}, {4 << 10, 128},
		{64 << 10, 1}, {64 << 10, 16}, {64 << 10, 128},
	}
	if b.part > 1 {
		shapes = []shape{{300, 1}, {300, 128}, {4 << 10, 128}, {64 << 10, 128}}
	}
	kinds := []struct {
		title, base, note string
		of                func(*clients) []contender
	}{
		{"Reading, as a multiple of " + peerFind, peerFind, "Columns are size × goroutines.", (*clients).reads},
		{"Writing, as a multiple of " + peerCommit, peerCommit,
			"Write, Replacing saves a session that was read; Write alone may begin one. SET is gofiber's way, too.",
			(*clients).writes},
		{"Logging out, as a multiple of " + peerDelete, peerDelete,
			"Of live sessions. DEL is gofiber's way, too.", (*clients).ends},
	}
	for _, k := range kinds {
		tables = append(tables, table{title: k.title, note: k.note, head: []string{throughput}})
	}
	speeds := map[shape]map[string]speed{}
	for _, shape := range shapes {
		found := map[string]speed{}
		speeds[shape] = found
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
			var measured []speed
			if n == len(kinds)-1 {
				measured, err = b.endAll(ctx, c, all, shape.goroutines)
			} else {
				measured, err = b.compare(ctx, all, shape.goroutines, len(c.ids))
			}
			if err != nil {
				c.close()
				return nil, err
			}
			t := &tables[n]
			t.head = append(t.head, shape.String())
			for i, one := range all {
				found[one.name] = measured[i]
				if len(t.rows) < len(all) {
					t.add(one.name)
				}
			}
			for i := range all {
				times := measured[i].ops / found[k.base].ops
				t.rows[i] = append(t.rows[i], ratio(times))
			}
		}
		c.close()
	}
	b.speedFigures(speeds)
	return append(tables, cachedTable(shapes, speeds)), nil
}

func (b *bench) speedFigures(speeds map[shape]map[string]speed) {
	for _, f := range []struct {
		shape
		limit float64
	}{{shape{300, 128}, 2.5}, {shape{4 << 10, 128}, 1.5}, {shape{64 << 10, 128}, 0.9}} {
		if found := speeds[f.shape]; found != nil {
			name := fmt.Sprintf("throughput, %s / %s, %s", save, peerCommit, f.shape)
			b.atLeast(name, found[save].ops/found[peerCommit].ops, f.limit)
		}
	}
	for _, f := range []struct {
		read string
		shape
		limit float64
	}{
		{sharedHit, shape{300, 128}, 2.2}, {sharedHit, shape{300, 1}, 2.2},
		{sharedHit, shape{4 << 10, 128}, 2.2}, {sharedHit, shape{4 << 10, 1}, 2.2},
		{copiedHit, shape{300, 128}, 2.5}, {copiedHit, shape{300, 1}, 2.5},
	} {
		if found := speeds[f.shape]; found != nil {
			name := fmt.Sprintf("caller's time, %s / %s, %s", f.read, doCacheHit, f.shape)
			b.atMost(name, found[f.read].caller/found[doCacheHit].caller, f.limit)
		}
	}
}

// cachedTable shows what a read from memory takes.
func cachedTable(shapes []shape, speeds map[shape]map[string]speed) table {
	t := table{
		title: "A cached Read against DoCache of GET",
		note: "Processor time of the calling process, garbage collection included. DoCache hands out its own memory; Read " +
			"hashes the id, judges the record, and hands out a copy unless it is Shared.",
		head: []string{"size × goroutines", "DoCache, ns", "Shared, ns", "times", "with a copy, ns", "times"},
	}
	for _, shape := range shapes {
		found := speeds[shape]
		row := []string{shape.String(), fmt.Sprintf("%.0f", found[doCacheHit].caller*1e9)}
		for _, name := range []string{sharedHit, copiedHit} {
			caller := found[name].caller
			row = append(row, fmt.Sprintf("%.0f", caller*1e9), ratio(caller/found[doCacheHit].caller))
		}
		t.add(row...)
	}
	return t
}

func kib(size int) string {
	if size < 1024 {
		return "0.3 KiB"
	}
	return fmt.Sprintf("%d KiB", size>>10)
}
