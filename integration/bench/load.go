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
		return pipeline(args[1], args[2], args[3], args[4])
	case "mixed":
		return mixedWorker(ctx, args[1], args[2], args[3], args[4])
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

const setScript = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"

func sha(source string) string {
	sum := sha1.Sum([]byte(source))
	return hex.EncodeToString(sum[:])
}

// saturate sends prepared commands in batches, so that the server and not a client is the limit. Read is a GET, and Write an EVALSHA
// of write.lua, as the store sends them.
func saturate(ctx context.Context, b *bench) ([]table, error) {
	source, err := os.ReadFile("../scripts/write.lua")
	if err != nil {
		return nil, err
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.server.addr}, DisableCache: true, ForceSingleClient: true})
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
		note: "Prepared commands in batches of 64, so that the server is the limit. Read sends a GET. A script that only does SET is the limit for write.lua."}
	for _, size := range []int{300, 4 << 10} {
		for _, processes := range []int{1, 2, 4} {
			ops := map[string]float64{}
			for range 4 {
				for _, kind := range []string{"get", "read", "set", "write", "setscript"} {
					n, err := workers(ctx, processes, "pipeline", b.server.addr, kind+","+sha(string(source)), strconv.Itoa(size))
					if err != nil {
						return nil, err
					}
					ops[kind] += n
				}
				if b.quick {
					break
				}
			}
			t.add(kib(size), strconv.Itoa(processes), ratio(ops["read"]/ops["get"]), ratio(ops["write"]/ops["set"]),
				ratio(ops["setscript"]/ops["set"]), ratio(ops["write"]/ops["setscript"]))
		}
	}
	return []table{t}, nil
}

// pipeline sends batches for half a second and prints how many commands a second were answered.
func pipeline(addr, kindAndSHA, sizeText, seed string) error {
	kind, write, _ := strings.Cut(kindAndSHA, ",")
	size, err := strconv.Atoi(sizeText)
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
			return []string{"SET", key, head + strings.Repeat("t", 12) + data, "PX", "3600000"}
		case "write":
			return []string{"EVALSHA", write, "1", key, head, data, "3600000"}
		}
		return []string{"EVALSHA", sha(setScript), "1", key, head + strings.Repeat("t", 12) + data, "3600000"}
	}
	const batch, keys = 64, 10_000
	space := "record:"
	if kind == "set" || kind == "setscript" { // what they store is no record
		space = "plain:"
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 1<<20)
	random := rand.New(rand.NewPCG(1, uint64(len(seed))))
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
	n, begun := 0, time.Now()
	for ; time.Since(begun) < 500*time.Millisecond; n++ {
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

// mixed counts what reaches the server.
func mixed(ctx context.Context, b *bench) ([]table, error) {
	t := table{title: "Commands that reach the server", head: []string{"way", "1 process", "4 processes"},
		note: "Per request, of a load of 95 % reads, 4 % writes and 1 % logouts on 50,000 sessions, Zipf (s = 1.1). " +
			"A logout is followed by a login under a new id, which is a write more."}
	requests := b.scaled(400_000)
	for _, way := range []string{"tombstore, cached", "tombstore", "two keys", "gofiber's way"} {
		row := []string{way}
		for _, processes := range []int{1, 4} {
			before, err := b.server.info("total_commands_processed")
			if err != nil {
				return nil, err
			}
			done, err := workers(ctx, processes, "mixed", b.server.url, way, strconv.Itoa(requests/processes))
			if err != nil {
				return nil, err
			}
			after, err := b.server.info("total_commands_processed")
			if err != nil {
				return nil, err
			}
			row = append(row, ratio((after-before)/done))
			if _, err := b.server.ask("FLUSHALL"); err != nil {
				return nil, err
			}
		}
		t.add(row...)
	}
	return []table{t}, nil
}

func mixedWorker(ctx context.Context, url, way, count, seed string) error {
	requests, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var opts []tombstore.Option
	if way == "tombstore, cached" {
		opts = append(opts, tombstore.WithClientCache(hour))
	}
	s, err := tombstore.Open(url, opts...)
	if err != nil {
		return err
	}
	defer s.Close()
	o, err := option(url)
	if err != nil {
		return err
	}
	raw, err := rueidis.NewClient(o)
	if err != nil {
		return err
	}
	defer raw.Close()
	number, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	const population, goroutines = 50_000, 16
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
	id := fmt.Sprintf("session %d, life %d", n, lives[n])
	data := strings.Repeat("x", 300)
	set := func() error { return raw.Do(ctx, raw.B().Set().Key(id).Value(data).Ex(hour).Build()).Error() }
	switch way {
	case "two keys":
		if dice < 0.01 {
			lives[n]++
			for _, res := range raw.DoMulti(ctx, raw.B().Set().Key("ended:"+id).Value("1").Ex(hour).Build(), raw.B().Del().Key(id).Build()) {
				if err := res.Error(); err != nil {
					return err
				}
			}
			return nil
		}
		for _, res := range raw.DoMulti(ctx, raw.B().Get().Key(id).Build(), raw.B().Exists().Key("ended:"+id).Build()) {
			if err := res.Error(); err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
		}
		if dice < 0.05 {
			return set()
		}
		return nil
	case "gofiber's way":
		if dice < 0.01 {
			lives[n]++
			return raw.Do(ctx, raw.B().Del().Key(id).Build()).Error()
		}
		err := raw.DoCache(ctx, raw.B().Get().Key(id).Cache(), hour).Error()
		if err != nil && !rueidis.IsRedisNil(err) {
			return err
		}
		return set()
	}
	switch {
	case dice < 0.01:
		if err := s.Invalidate(ctx, id); err != nil {
			return err
		}
		lives[n]++
		id = fmt.Sprintf("session %d, life %d", n, lives[n])
		fallthrough
	case dice < 0.05:
		_, err := s.Write(ctx, id, []byte(data), hour)
		if errors.Is(err, tombstore.ErrInvalidated) {
			lives[n]++
			return nil
		}
		return err
	}
	_, err := s.Read(ctx, id)
	switch {
	case errors.Is(err, tombstore.ErrInvalidated):
		lives[n]++
	case err != nil && !errors.Is(err, tombstore.ErrNotFound):
		return err
	}
	return nil
}

// grow fills the server.
func grow(ctx context.Context, b *bench) ([]table, error) {
	s, err := tombstore.Open(b.server.url)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	t := table{title: "As sessions grow", head: []string{"sessions", "Read, throughput", "Write, throughput", "bytes a session"},
		note: "128 goroutines, 0.3 KiB; throughput as a part of that with 10,000 sessions. Bytes are used_memory of the server."}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	empty, err := b.server.info("used_memory")
	if err != nil {
		return nil, err
	}
	data := []byte(strings.Repeat("x", 300))
	var ids []string
	var first [2]float64
	for _, target := range []int{10_000, 100_000, b.scaled(1_000_000)} {
		have := len(ids)
		for range target - have {
			ids = append(ids, tombstore.NewID())
		}
		errs := make([]error, 128)
		var group sync.WaitGroup
		for g := range errs {
			group.Go(func() {
				for i := have + g; i < len(ids) && errs[g] == nil; i += len(errs) {
					_, errs[g] = s.Write(ctx, ids[i], data, hour)
				}
			})
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		used, err := b.server.info("used_memory")
		if err != nil {
			return nil, err
		}
		stride := len(ids) / sessions
		if stride == 0 {
			continue
		}
		ops, err := b.race(ctx, []contender{
			{"Read", func(ctx context.Context, i int) error { _, err := s.Read(ctx, ids[i*stride]); return err }},
			{"Write", func(ctx context.Context, i int) error { _, err := s.Write(ctx, ids[i*stride], data, hour); return err }},
		}, 128)
		if err != nil {
			return nil, err
		}
		if first[0] == 0 {
			first = [2]float64(ops)
		}
		t.add(strconv.Itoa(len(ids)), ratio(ops[0]/first[0]), ratio(ops[1]/first[1]), fmt.Sprintf("%.0f", (used-empty)/float64(len(ids))))
	}
	return []table{t}, nil
}
