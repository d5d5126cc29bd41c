package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// worker is what a client process does: one of the roles below, with its arguments.
func worker(ctx context.Context, args []string) error {
	switch args[0] {
	case "pipeline":
		return pipeline(args[1], args[2], args[3], args[4], args[5])
	case "mixed":
		return mixedWorker(ctx, args[1], args[2], args[3], args[4], args[5])
	case "other":
		return other(ctx, args[1])
	}
	return errors.New("unknown role")
}

// workers runs n client processes and returns the sum of the numbers that they print.
func workers(ctx context.Context, n int, args ...string) (sum float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		group.Go(func() {
			command := exec.CommandContext(ctx, self, append(append([]string{"worker"}, args...), strconv.Itoa(i))...)
			command.Stderr = os.Stderr
			out, failed := command.Output()
			var x float64
			if failed == nil {
				_, failed = fmt.Sscan(string(out), &x)
			}
			mu.Lock()
			defer mu.Unlock()
			sum += x
			err = errors.Join(err, failed)
		})
	}
	group.Wait()
	return sum, err
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

const setScript = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"

func sha(source string) string {
	sum := sha1.Sum([]byte(source))
	return hex.EncodeToString(sum[:])
}

// saturate sends prepared commands in batches, so that the server and not a client is the limit. Write is an EVALSHA of write.lua, as
// the store sends it. Read is a GET of what the store has stored, against a GET of the data alone.
func saturate(ctx context.Context, b *bench) ([]table, error) {
	source, err := os.ReadFile("../scripts/write.lua")
	if err != nil {
		return nil, err
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.server.Addr}, DisableCache: true, ForceSingleClient: true})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	for _, script := range []string{string(source), setScript} {
		if err := client.Do(ctx, client.B().ScriptLoad().Script(script).Build()).Error(); err != nil {
			return nil, err
		}
	}
	t := table{title: "With the server saturated", head: []string{"size", "client processes", "Read / GET", "Write / SET", "a script of SET / SET", "Write / that script"},
		note: "Prepared commands in batches of 64, so that the server is the limit. Read sends a GET, and its value has a header of 22 bytes. A script that only does SET is the limit for write.lua. " +
			"Each number is the median of rounds, in which the kinds take turns."}
	sizes := []int{300, 4 << 10}
	if b.part > 1 {
		sizes = sizes[:1]
	}
	for _, size := range sizes {
		for _, processes := range []int{1, 2, 4} {
			var read, write, limit, part []float64 // of each round
			for range min(7, b.scaled(20)) {
				ops := map[string]float64{}
				for _, kind := range []string{"set", "write", "setscript", "get", "read"} {
					ops[kind], err = workers(ctx, processes, "pipeline", b.server.Addr, kind+","+sha(string(source)), strconv.Itoa(size),
						strconv.FormatInt(time.Now().Add(100*time.Millisecond).UnixNano(), 10))
					if err != nil {
						return nil, err
					}
				}
				read = append(read, ops["read"]/ops["get"])
				write = append(write, ops["write"]/ops["set"])
				limit = append(limit, ops["setscript"]/ops["set"])
				part = append(part, ops["write"]/ops["setscript"])
			}
			t.add(kib(size), strconv.Itoa(processes), ratio(median(read)), ratio(median(write)), ratio(median(limit)), ratio(median(part)))
		}
	}
	return []table{t}, nil
}

// pipeline sends batches for a fifth of a second and prints how many commands a second were answered.
//
// All processes begin at the same time: what one does before the others are there is not the throughput of all.
func pipeline(addr, kindAndSHA, sizeText, beginText, seed string) error {
	kind, write, _ := strings.Cut(kindAndSHA, ",")
	size, err := strconv.Atoi(sizeText)
	if err != nil {
		return err
	}
	beginAt, err := strconv.ParseInt(beginText, 10, 64)
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	data := strings.Repeat("x", size)
	head := "\xc1\x00" + "12345678"
	command := func(key string) []string {
		switch kind {
		case "get", "read":
			return []string{"GET", key}
		case "set":
			return []string{"SET", key, data, "PX", "3600000"}
		case "write":
			return []string{"EVALSHA", write, "1", key, head, data, "3600000"}
		}
		return []string{"EVALSHA", sha(setScript), "1", key, head + strings.Repeat("t", 12) + data, "3600000"}
	}
	const batch, keys = 64, 10_000
	space := "record:"
	switch kind {
	case "get", "set":
		space = "plain:"
	case "setscript":
		space = "script:"
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 1<<20)
	random := rand.New(rand.NewPCG(1, number))
	var batches [16][]byte
	for i := range batches {
		var buf bytes.Buffer
		for range batch {
			parts := command(space + strconv.Itoa(random.IntN(keys)))
			fmt.Fprintf(&buf, "*%d\r\n", len(parts))
			for _, p := range parts {
				fmt.Fprintf(&buf, "$%d\r\n%s\r\n", len(p), p)
			}
		}
		batches[i] = buf.Bytes()
	}
	time.Sleep(time.Until(time.Unix(0, beginAt)))
	n, begun := 0, time.Now()
	for ; time.Since(begun) < 200*time.Millisecond; n++ {
		if _, err := conn.Write(batches[n%len(batches)]); err != nil {
			return err
		}
		for range batch {
			text, err := reply(r)
			if err != nil {
				return err
			}
			if strings.HasPrefix(text, "-") {
				return errors.New(text)
			}
		}
	}
	fmt.Println(float64(n*batch) / time.Since(begun).Seconds())
	return nil
}

// mixed counts what reaches the server, and what it costs it.
func mixed(ctx context.Context, b *bench) ([]table, error) {
	t := table{title: "What reaches the server", head: []string{"way", "commands, 1 process", "4 processes", "server time, 1 process", "4 processes"},
		note: "Per request, of a load of 95 % reads, 4 % writes and 1 % logouts on 50,000 sessions (5,000 in a quick run), Zipf (s = 1.1). A logout is followed by a " +
			"login under a new id, which is a write more. Commands are those that clients send: DoCache of a GET takes five. " +
			"Server time is the processor time of the server, as a part of that of two keys."}
	requests, population := b.scaled(400_000), b.scaled(50_000)
	processes := []int{1, 4}
	ways := []string{"two keys", "tombstore, cached", "tombstore", "gofiber's way"}
	var base []float64
	for _, way := range ways {
		row, times := []string{way}, []float64{}
		for _, count := range processes {
			if err := fill(ctx, b, way, population); err != nil {
				return nil, err
			}
			before, err := b.server.load()
			if err != nil {
				return nil, err
			}
			done, err := workers(ctx, count, "mixed", b.server.URL, way, strconv.Itoa(requests/count), strconv.Itoa(population))
			if err != nil {
				return nil, err
			}
			after, err := b.server.load()
			if err != nil {
				return nil, err
			}
			commands := after.commands - before.commands
			if strings.HasPrefix(way, "tombstore") {
				commands -= after.inner - before.inner
			}
			row = append(row, ratio(commands/done))
			times = append(times, (after.seconds-before.seconds)/done)
			if _, err := b.server.ask("FLUSHALL"); err != nil {
				return nil, err
			}
		}
		if base == nil {
			base = times
		}
		for i, seconds := range times {
			row = append(row, ratio(seconds/base[i]))
		}
		t.add(row...)
	}
	return []table{t}, nil
}

func mixedID(n uint64, life int) string { return fmt.Sprintf("session %d, life %d", n, life) }

// openBoth returns a store and a client of the same server.
func openBoth(url string, opts ...tombstore.Option) (*tombstore.RedisStore, rueidis.Client, error) {
	s, err := tombstore.Open(url, opts...)
	if err != nil {
		return nil, nil, err
	}
	o, err := option(url)
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	raw, err := rueidis.NewClient(o)
	if err != nil {
		s.Close()
	}
	return s, raw, err
}

// fill stores the sessions that all have at first.
func fill(ctx context.Context, b *bench, way string, population int) error {
	s, raw, err := openBoth(b.server.URL)
	if err != nil {
		return err
	}
	defer s.Close()
	defer raw.Close()
	data := strings.Repeat("x", 300)
	return each(ctx, 128, population, func(ctx context.Context, i int) error {
		id := mixedID(uint64(i), 0)
		if strings.HasPrefix(way, "tombstore") {
			_, err := s.Write(ctx, id, []byte(data), hour)
			return err
		}
		return raw.Do(ctx, raw.B().Set().Key(id).Value(data).Ex(hour).Build()).Error()
	})
}

// each does do once for each of n sessions.
func each(ctx context.Context, goroutines, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	errs := make([]error, goroutines)
	var group sync.WaitGroup
	for g := range goroutines {
		group.Go(func() {
			for i := g; i < n && errs[g] == nil; i += goroutines {
				errs[g] = do(ctx, i)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func mixedWorker(ctx context.Context, url, way, count, among, seed string) error {
	requests, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	population, err := strconv.ParseUint(among, 10, 64)
	if err != nil {
		return err
	}
	var opts []tombstore.Option
	if way == "tombstore, cached" {
		opts = append(opts, tombstore.WithClientCache(hour))
	}
	s, raw, err := openBoth(url, opts...)
	if err != nil {
		return err
	}
	defer s.Close()
	defer raw.Close()
	number, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	const goroutines = 16
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, goroutines)
	for g := range goroutines {
		group.Go(func() {
			random := rand.New(rand.NewPCG(number, uint64(g)))
			zipf := rand.NewZipf(random, 1.1, 1, population-1)
			lives := map[uint64]int{}
			for range requests / goroutines {
				n := zipf.Uint64()
				if errs[g] = request(ctx, s, raw, way, n, lives, random.Float64()); errs[g] != nil {
					return
				}
			}
		})
	}
	group.Wait()
	fmt.Println(requests / goroutines * goroutines)
	return errors.Join(errs...)
}

// request is one request for session n. Every process learns from an ended session that the user has a new one.
func request(
	ctx context.Context, s *tombstore.RedisStore, raw rueidis.Client, way string, n uint64, lives map[uint64]int, dice float64,
) error {
	id := mixedID(n, lives[n])
	data := strings.Repeat("x", 300)
	do := func(command rueidis.Completed) error { return raw.Do(ctx, command).Error() }
	set := func(id string) error { return do(raw.B().Set().Key(id).Value(data).Ex(hour).Build()) }
	logout, write := dice < 0.01, dice < 0.05
	if logout {
		lives[n]++
	}
	next := mixedID(n, lives[n])
	switch way {
	case "two keys":
		if logout {
			mark := raw.B().Set().Key("ended:" + id).Value("1").Ex(hour).Build()
			for _, res := range raw.DoMulti(ctx, mark, raw.B().Del().Key(id).Build()) {
				if err := res.Error(); err != nil {
					return err
				}
			}
			return set(next)
		}
		if write {
			return set(id)
		}
		replies := raw.DoMulti(ctx, raw.B().Get().Key(id).Build(), raw.B().Exists().Key("ended:"+id).Build())
		if err := replies[0].Error(); err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
		ended, err := replies[1].AsBool()
		if ended {
			lives[n]++
		}
		return err
	case "gofiber's way":
		if logout {
			if err := do(raw.B().Del().Key(id).Build()); err != nil {
				return err
			}
			return set(next)
		}
		err := raw.DoCache(ctx, raw.B().Get().Key(id).Cache(), hour).Error()
		if err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
		return set(id)
	}
	var err error
	switch {
	case logout:
		if err = s.Invalidate(ctx, id); err == nil {
			_, err = s.Write(ctx, next, []byte(data), hour)
		}
	case write:
		_, err = s.Write(ctx, id, []byte(data), hour)
	default:
		_, err = s.Read(ctx, id)
	}
	switch {
	case errors.Is(err, tombstore.ErrInvalidated):
		lives[n]++
		return nil
	case errors.Is(err, tombstore.ErrNotFound):
		return nil
	}
	return err
}

// grow fills the server.
func grow(ctx context.Context, b *bench) ([]table, error) {
	s, err := tombstore.Open(b.server.URL)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	t := table{title: "As sessions grow", head: []string{"sessions", "Read, throughput", "Write, throughput",
		"Read, p50", "p99", "Write, p50", "p99", "bytes a session"},
		note: "0.3 KiB. Throughput of 128 goroutines and latency with one, as multiples of those with 10,000 sessions. Bytes are used_memory of the server."}
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
			{"Read", func(ctx context.Context, i int) error { _, err := s.Read(ctx, ids[i*stride]); return err }},
			{"Write", func(ctx context.Context, i int) error { return write(ctx, i*stride) }},
		}
		found, err := b.race(ctx, all, 128, sessions)
		if err != nil {
			return nil, err
		}
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
func latency(ctx context.Context, n int, do func(ctx context.Context, i int) error) (p50, p99 float64, err error) {
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
