package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// worker is what a client process does: one of the roles below, with its arguments.
func worker(ctx context.Context, args []string) error {
	switch args[0] {
	case "mixed":
		return mixedWorker(ctx, args[1], args[2], args[3], args[4], args[5])
	case "other":
		return other(ctx, args[1])
	}
	return errors.New("unknown role")
}

// The ways to keep sessions under a mixed load.
const (
	twoKeysWay = "two keys"
	cachedWay  = "tombstore, cached"
	plainWay   = "tombstore"
	fiberWay   = "gofiber's way"
)

// mixed finds out what a load of requests costs the server.
func mixed(ctx context.Context, b *bench) ([]table, error) {
	requests, population := b.scaled(320_000), b.scaled(50_000)
	t := table{
		title: "A mixed load",
		note: fmt.Sprintf("The server's processor time for %d requests on %d sessions, Zipf (s = 1.1), after as many to "+
			"warm up, as a part of that of two keys; median of the rounds. A request reads its session; 4 %% save it "+
			"then, and 1 %% end it and begin another one.", requests, population),
		head: []string{"way", "1 process", "4 processes"},
	}
	ways, processes := []string{twoKeysWay, cachedWay, plainWay, fiberWay}, []int{1, 4}
	times := map[string][][]float64{} // by way, processes and round
	for range min(3, b.scaled(30)) {
		for i, count := range processes {
			for _, way := range ways { // in turns, so that all meet the same machine
				used, err := b.mixedCost(ctx, way, count, requests, population)
				if err != nil {
					return nil, err
				}
				if times[way] == nil {
					times[way] = make([][]float64, len(processes))
				}
				times[way][i] = append(times[way][i], used)
			}
		}
	}
	part := func(way string, i int) float64 { return median(times[way][i]) / median(times[twoKeysWay][i]) }
	for _, way := range ways {
		t.add(way, ratio(part(way, 0)), ratio(part(way, 1)))
	}
	for i, count := range processes {
		name := fmt.Sprintf("server time, mixed load, cached / two keys, processes: %d", count)
		b.atMost(name, part(cachedWay, i), 0.8)
	}
	return []table{t}, nil
}

// mixedCost returns the server's processor time, in seconds, of a request, when the processes have
// made as many to warm up.
func (b *bench) mixedCost(
	ctx context.Context, way string, processes, requests, population int,
) (float64, error) {
	if err := fill(ctx, b.server.URL, way, population); err != nil {
		return 0, err
	}
	var children []*child
	for i := range processes {
		c, err := startChild(ctx, "mixed", b.server.URL, way,
			strconv.Itoa(requests/processes), strconv.Itoa(population), strconv.Itoa(i))
		if err != nil {
			return 0, err
		}
		defer c.stop()
		children = append(children, c)
	}
	// Each says when it is done, and waits to be told before it goes on.
	round := func() error {
		for _, c := range children {
			if err := c.tell("go"); err != nil {
				return err
			}
		}
		for _, c := range children {
			if _, err := c.hear(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := round(); err != nil {
		return 0, err
	}
	before, err := b.server.seconds()
	if err != nil {
		return 0, err
	}
	if err := round(); err != nil {
		return 0, err
	}
	after, err := b.server.seconds()
	if err != nil {
		return 0, err
	}
	_, err = b.server.ask("FLUSHALL")
	return (after - before) / float64(requests), err
}

func mixedID(n uint64, life int64) string { return fmt.Sprintf("session %d, life %d", n, life) }

// mixedData is what each session holds.
var mixedData = []byte(strings.Repeat("x", 300))

// keeper keeps sessions in one of the ways.
type keeper struct {
	way   string
	store *tombstore.RedisStore
	raw   rueidis.Client
	lives []atomic.Int64 // of each session
}

func openKeeper(url, way string, population int) (k *keeper, err error) {
	k = &keeper{way: way, lives: make([]atomic.Int64, population)}
	var opts []tombstore.Option
	if way == cachedWay {
		opts = append(opts, tombstore.WithClientCache(hour))
	}
	if k.store, err = tombstore.Open(url, opts...); err != nil {
		return nil, err
	}
	if k.raw, err = dial(url); err != nil {
		k.store.Close()
		return nil, err
	}
	return k, nil
}

func (k *keeper) close() {
	k.store.Close()
	k.raw.Close()
}

func (k *keeper) inStore() bool { return k.way == cachedWay || k.way == plainWay }

// begin stores a session that is new.
func (k *keeper) begin(ctx context.Context, id string) error {
	if k.inStore() {
		_, err := k.store.Write(ctx, id, mixedData, hour)
		if errors.Is(err, tombstore.ErrInvalidated) { // by another request, already
			return nil
		}
		return err
	}
	return k.raw.Do(ctx, k.raw.B().Set().Key(id).Value(string(mixedData)).Px(hour).Build()).Error()
}

// load reads a session. It reports whether it has been ended; then, and when there is none, the
// session is nil.
func (k *keeper) load(ctx context.Context, id string) (session *tombstore.Session, ended bool, err error) {
	b := k.raw.B()
	switch k.way {
	case twoKeysWay:
		replies := k.raw.DoMulti(ctx, b.Get().Key(id).Build(), b.Exists().Key("ended:"+id).Build())
		if ended, err = replies[1].AsBool(); err != nil || ended {
			return nil, ended, err
		}
		err = replies[0].Error()
	case fiberWay:
		err = k.raw.DoCache(ctx, b.Get().Key(id).Cache(), hour).Error()
	default:
		s, err := k.store.Read(ctx, id)
		if tombstore.NoSession(err) {
			return nil, errors.Is(err, tombstore.ErrInvalidated), nil
		}
		return &s, false, err
	}
	if rueidis.IsRedisNil(err) {
		return nil, false, nil
	}
	return new(tombstore.Session), false, err
}

// save stores a session that was loaded.
func (k *keeper) save(ctx context.Context, id string, session *tombstore.Session) error {
	if !k.inStore() {
		return k.begin(ctx, id)
	}
	_, err := k.store.Write(ctx, id, mixedData, hour, tombstore.Replacing(*session))
	if tombstore.NoSession(err) { // ended meanwhile
		return nil
	}
	return err
}

func (k *keeper) end(ctx context.Context, id string) error {
	b := k.raw.B()
	switch k.way {
	case twoKeysWay:
		return firstError(k.raw.DoMulti(ctx,
			b.Set().Key("ended:"+id).Value("1").Px(hour).Build(),
			b.Del().Key(id).Build()))
	case fiberWay:
		return k.raw.Do(ctx, b.Del().Key(id).Build()).Error()
	}
	return k.store.Invalidate(ctx, id)
}

// request is one request for session n. From a session that was ended the process learns that the
// user has another one.
func (k *keeper) request(ctx context.Context, n uint64, dice float64) error {
	life := k.lives[n].Load()
	id := mixedID(n, life)
	session, ended, err := k.load(ctx, id)
	if ended {
		k.lives[n].CompareAndSwap(life, life+1)
	}
	if session == nil || err != nil {
		return err
	}
	switch {
	case dice < 0.01:
		if err := k.end(ctx, id); err != nil {
			return err
		}
		k.lives[n].CompareAndSwap(life, life+1)
		return k.begin(ctx, mixedID(n, life+1))
	case dice < 0.05 || k.way == fiberWay: // which saves in every request
		return k.save(ctx, id, session)
	}
	return nil
}

// fill stores the sessions that all have at first.
func fill(ctx context.Context, url, way string, population int) error {
	k, err := openKeeper(url, way, population)
	if err != nil {
		return err
	}
	defer k.close()
	return each(ctx, 128, population, func(ctx context.Context, i int) error {
		return k.begin(ctx, mixedID(uint64(i), 0))
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
	population, err := strconv.Atoi(among)
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	k, err := openKeeper(url, way, population)
	if err != nil {
		return err
	}
	defer k.close()
	const goroutines = 16
	for lines, round := bufio.NewScanner(os.Stdin), uint64(0); lines.Scan(); round++ {
		err := each(ctx, goroutines, goroutines, func(ctx context.Context, g int) error {
			random := rand.New(rand.NewPCG(number, uint64(g)<<32|round))
			zipf := rand.NewZipf(random, 1.1, 1, uint64(population-1))
			for range requests / goroutines {
				if err := k.request(ctx, zipf.Uint64(), random.Float64()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		fmt.Println("done")
	}
	return nil
}
