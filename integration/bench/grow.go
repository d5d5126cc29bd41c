package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tombstore/tombstore"
)

// memory finds out what a session takes on the server, all in.
func memory(ctx context.Context, b *bench) ([]table, error) {
	s, err := tombstore.Open(b.server.URL)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	raw, err := dial(b.server.URL)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	const n, size = 100_000, 300 // of few sessions each would bear a larger part of what all take
	data := []byte(strings.Repeat("x", size))
	write := func(ctx context.Context, id string) error {
		_, err := s.Write(ctx, id, data, hour)
		return err
	}
	t := table{
		title: "Bytes of a session",
		note: fmt.Sprintf("Of used_memory, without what clients take, with %d sessions of %d bytes. The plain value has a "+
			"key as scs has it; a tombstone stands where no session was, too.", n, size),
		head: []string{"what", "bytes"},
	}
	bytes := map[string]float64{}
	for _, kind := range []struct {
		name  string
		store func(ctx context.Context, id string) error
	}{
		{"a plain value", func(ctx context.Context, id string) error {
			set := raw.B().Set().Key("scs:session:" + id).Value(string(data)).Px(hour).Build()
			return raw.Do(ctx, set).Error()
		}},
		{"a live session", write},
		{"a tombstone", func(ctx context.Context, id string) error { return s.Invalidate(ctx, id) }},
		{"the tombstone of a session that was rotated", func(ctx context.Context, id string) error {
			if err := write(ctx, id); err != nil {
				return err
			}
			next := tombstore.NewID()
			if _, err := s.Rotate(ctx, id, next); err != nil {
				return err
			}
			return raw.Do(ctx, raw.B().Del().Key(storeKey(next)).Build()).Error()
		}},
	} {
		keep := func(ctx context.Context, _ int) error { return kind.store(ctx, tombstore.NewID()) }
		if err := each(ctx, 64, 64, keep); err != nil { // what the first commands take is not the sessions'
			return nil, err
		}
		if _, err := b.server.ask("FLUSHALL"); err != nil {
			return nil, err
		}
		before, err := b.server.stored()
		if err != nil {
			return nil, err
		}
		if err := each(ctx, 64, n, keep); err != nil {
			return nil, err
		}
		after, err := b.server.stored()
		if err != nil {
			return nil, err
		}
		bytes[kind.name] = (after - before) / float64(n)
		t.add(kind.name, fmt.Sprintf("%.0f", bytes[kind.name]))
	}
	b.atMost("bytes, a live session / a plain value", bytes["a live session"]/bytes["a plain value"], 1.1)
	b.atMost("bytes, a tombstone", bytes["a tombstone"], 190)
	return []table{t}, nil
}

// grow fills the server.
func grow(ctx context.Context, b *bench) ([]table, error) {
	s, err := tombstore.Open(b.server.URL)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	t := table{
		title: "As sessions grow",
		note: "0.3 KiB. Throughput of 128 goroutines and latency with one, as multiples of those with the fewest sessions. " +
			"Bytes are used_memory of the server.",
		head: []string{"sessions", "Read, throughput", "Write, throughput", "Read, p50", "p99", "Write, p50", "p99",
			"bytes a session"},
	}
	empty, err := b.server.info("used_memory")
	if err != nil {
		return nil, err
	}
	data := []byte(strings.Repeat("x", 300))
	var ids []string
	var first []float64
	targets := []int{sessions, 100_000, 1_000_000}
	if b.part > 1 {
		targets = []int{sessions, 100_000}
	}
	for _, target := range targets {
		have := len(ids)
		for range target - have {
			ids = append(ids, tombstore.NewID())
		}
		write := func(ctx context.Context, i int) error {
			_, err := s.Write(ctx, ids[i], data, hour)
			return err
		}
		err := each(ctx, 128, target-have, func(ctx context.Context, i int) error { return write(ctx, have+i) })
		if err != nil {
			return nil, err
		}
		used, err := b.server.info("used_memory")
		if err != nil {
			return nil, err
		}
		stride := len(ids) / sessions
		all := []contender{
			{"Read", func(ctx context.Context, i int) error {
				_, err := s.Read(ctx, ids[i*stride])
				return err
			}},
			{"Write", func(ctx context.Context, i int) error { return write(ctx, i*stride) }},
		}
		speeds, err := b.compare(ctx, all, 128, sessions)
		if err != nil {
			return nil, err
		}
		found := []float64{speeds[0].ops, speeds[1].ops}
		for _, one := range all {
			p50, p99, err := latency(ctx, b.scaled(sessions), one.do)
			if err != nil {
				return nil, err
			}
			found = append(found, p50, p99)
		}
		if first == nil {
			first = found
		}
		row := []string{strconv.Itoa(len(ids))}
		for i, x := range found {
			row = append(row, ratio(x/first[i]))
		}
		t.add(append(row, fmt.Sprintf("%.0f", (used-empty)/float64(len(ids))))...)
	}
	return []table{t}, nil
}

// latency does do n times, one after the other.
func latency(
	ctx context.Context, n int, do func(ctx context.Context, i int) error,
) (p50, p99 float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	took := make([]time.Duration, n)
	for i := range took {
		begun := time.Now()
		if err := do(ctx, i); err != nil {
			return 0, 0, err
		}
		took[i] = time.Since(begun)
	}
	slices.Sort(took)
	return took[n/2].Seconds(), took[n*99/100].Seconds(), nil
}
