package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// workload is the sessions that bench works on. Each is kept twice: by the store, and under a plain
// key, as a usual session store keeps it.
type workload struct {
	conn          rueidis.Client
	store, cached *tombstore.RedisStore
	prefix        string
	ttl           time.Duration
	clients       int
	data          []byte
	live          bool     // nothing has been ended or moved
	ids           []string // of the sessions
	next          []string // to which they move
	loaded        []tombstore.Session
}

func newWorkload(conn rueidis.Client, prefix string, b *benchmark) (*workload, error) {
	w := &workload{
		conn: conn, prefix: prefix, ttl: b.limit + 2*time.Minute, clients: b.clients,
		data: []byte(strings.Repeat("x", b.size)),
	}
	options := []tombstore.Option{tombstore.WithKeyPrefix(prefix), tombstore.WithTombstoneTTL(tombstoneTTL)}
	var err, err2 error
	w.store, err = tombstore.New(conn, options...)
	w.cached, err2 = tombstore.New(conn, append(options, tombstore.WithClientCache(time.Minute))...)
	return w, errors.Join(err, err2)
}

// pairs returns what is compared. The first two show how fast GET and SET are.
func (w *workload) pairs() []*pairing {
	one := func(store *tombstore.RedisStore, opts ...tombstore.ReadOption) func(context.Context, int) error {
		return func(ctx context.Context, i int) error {
			_, err := store.Read(ctx, w.ids[i], opts...)
			return err
		}
	}
	return []*pairing{
		{Call: "Read", Base: "GET", prepare: w.keep, call: one(w.store), base: w.get},
		{Call: "save", Base: "SET", prepare: w.keep, base: w.set, call: func(ctx context.Context, i int) error {
			_, err := w.store.Write(ctx, w.ids[i], w.data, w.ttl, tombstore.Replacing(w.loaded[i]))
			return err
		}},
		{Call: "Read with Slide", Base: "GET", prepare: w.keep, call: one(w.store, tombstore.Slide(w.ttl)), base: w.get},
		{Call: "cached Read", Base: "GET", prepare: w.remember, call: one(w.cached), base: w.get},
		{Call: "first Write", Base: "SET", prepare: w.absent, base: w.set, call: func(ctx context.Context, i int) error {
			_, err := w.store.Write(ctx, w.ids[i], w.data, w.ttl, tombstore.IfAbsent())
			return err
		}},
		{Call: "end", Base: "DEL", prepare: w.renew, base: w.del, call: func(ctx context.Context, i int) error {
			return w.store.Invalidate(ctx, w.ids[i])
		}},
		{Call: "Rotate", Base: "DEL, SET", prepare: w.renew, base: w.move, call: func(ctx context.Context, i int) error {
			_, err := w.store.Rotate(ctx, w.ids[i], w.next[i])
			return err
		}},
		{Call: "renewal", Base: "DEL, SET", prepare: w.renew, base: w.move, call: func(ctx context.Context, i int) error {
			renewal, err := w.store.BeginRenewal(ctx, w.ids[i], 0)
			if err != nil {
				return err
			}
			_, err = w.store.FinishRenewal(ctx, renewal, w.next[i], w.data, w.ttl)
			return err
		}},
	}
}

// renew begins n sessions in the place of those that are there.
func (w *workload) renew(ctx context.Context, n int) error {
	if err := w.absent(ctx, n); err != nil {
		return err
	}
	return each(ctx, n, w.clients, func(ctx context.Context, i int) (err error) {
		if err = w.set(ctx, i); err == nil {
			w.loaded[i], err = w.store.Write(ctx, w.ids[i], w.data, w.ttl)
		}
		return err
	})
}

// absent deletes what is there and draws n ids.
func (w *workload) absent(ctx context.Context, n int) error {
	if err := w.clean(ctx); err != nil {
		return err
	}
	w.live = false
	w.ids, w.next, w.loaded = make([]string, n), make([]string, n), make([]tombstore.Session, n)
	for i := range n {
		w.ids[i], w.next[i] = tombstore.NewID(), tombstore.NewID()
	}
	return nil
}

// keep begins n sessions unless those of the pair before, which has left them live, will do.
func (w *workload) keep(ctx context.Context, n int) (err error) {
	if !w.live || len(w.ids) != n {
		err = w.renew(ctx, n)
		w.live = err == nil
	}
	return err
}

// remember has the store cache the sessions.
func (w *workload) remember(ctx context.Context, n int) error {
	if err := w.keep(ctx, n); err != nil {
		return err
	}
	return each(ctx, n, w.clients, func(ctx context.Context, i int) error {
		_, err := w.cached.Read(ctx, w.ids[i])
		return err
	})
}

// clean deletes all keys that there may be. An operation that was interrupted comes before that:
// both are on the same connection.
func (w *workload) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	var keys []string
	for i := range w.ids {
		for _, id := range []string{w.ids[i], w.next[i]} {
			keys = append(keys, w.prefix+tombstore.Ref(id), w.plain(id))
		}
	}
	for some := range slices.Chunk(keys, batch) {
		for _, err := range rueidis.MDel(w.conn, ctx, some) {
			if err != nil {
				return fmt.Errorf("delete the keys %s* (they expire within %v): %w", w.prefix, w.ttl+tombstoneTTL, err)
			}
		}
	}
	return nil
}

func (w *workload) plain(id string) string { return w.prefix + "plain:" + id }

func (w *workload) get(ctx context.Context, i int) error {
	return w.conn.Do(ctx, w.conn.B().Get().Key(w.plain(w.ids[i])).Build()).Error()
}

func (w *workload) set(ctx context.Context, i int) error { return w.put(ctx, w.ids[i]) }

func (w *workload) put(ctx context.Context, id string) error {
	return w.conn.Do(ctx, w.conn.B().Set().Key(w.plain(id)).Value(string(w.data)).Px(w.ttl).Build()).Error()
}

func (w *workload) del(ctx context.Context, i int) error {
	return w.conn.Do(ctx, w.conn.B().Del().Key(w.plain(w.ids[i])).Build()).Error()
}

// move renews an id as the usual stores do.
func (w *workload) move(ctx context.Context, i int) error {
	if err := w.del(ctx, i); err != nil {
		return err
	}
	return w.put(ctx, w.next[i])
}
