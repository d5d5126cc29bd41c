package tombstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// Every benchmark runs its verb and a plain command of the same client in turns, on the same keys
// with the same bytes, so that both meet the same machine. ns/op, B/op and allocs/op are the
// verb's. x-raw is the verb's throughput as a part of the plain command's; server-µs/op and
// raw-server-µs/op are what the server itself counts for a call, without reading it and writing the
// reply.

const (
	benchSessions = 10_000
	benchData     = 512 // bytes
)

type workload struct {
	*RedisStore
	ids, keys []string
	data      []byte
	record    string // what the store holds for data
}

// onEachClient runs a benchmark with the client of Open, and with one that has rueidis' own
// settings.
func onEachClient(b *testing.B, bench func(b *testing.B, w *workload)) {
	b.Run("client=Open", func(b *testing.B) {
		s, err := Open(redistest.URL(b), WithKeyPrefix(redistest.Prefix(b, redistest.Client(b))))
		require.NoError(b, err)
		b.Cleanup(s.Close)
		bench(b, newWorkload(b, s))
	})
	b.Run("client=default", func(b *testing.B) {
		client := redistest.Dial(b, redistest.URL(b), func(o *rueidis.ClientOption) {
			*o = rueidis.ClientOption{InitAddress: o.InitAddress}
		})
		s, err := New(client, WithKeyPrefix(redistest.Prefix(b, redistest.Client(b))))
		require.NoError(b, err)
		bench(b, newWorkload(b, s))
	})
}

func newWorkload(b *testing.B, s *RedisStore) *workload {
	b.Helper()
	w := &workload{RedisStore: s, data: []byte(strings.Repeat("0123456789abcdef", benchData/16))}
	w.record = string(recordOf(newHeader(0, time.Now().UnixMilli(), 0), newVersion(), w.data))
	for range benchSessions {
		id := NewID()
		key, err := s.key(id)
		require.NoError(b, err)
		w.ids, w.keys = append(w.ids, id), append(w.keys, key)
		require.NoError(b, w.set(b.Context(), len(w.keys)-1))
	}
	return w
}

func (w *workload) get(ctx context.Context, i int) error {
	_, err := w.client.Do(ctx, w.client.B().Get().Key(w.keys[i]).Build()).AsBytes()
	return err
}

func (w *workload) set(ctx context.Context, i int) error {
	set := w.client.B().Set().Key(w.keys[i]).Value(w.record).Px(time.Hour).Build()
	return w.client.Do(ctx, set).Error()
}

// compare runs raw and verb in turns, block by block, with 1 and with 128 goroutines. The server
// counts by command: those of the verb, one for each call, are joined by +.
func (w *workload) compare(
	b *testing.B, rawCommand, command string, raw, verb func(ctx context.Context, i int) error,
) {
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute) // as a request's with a time limit
	defer cancel()
	for _, goroutines := range []int{1, 128} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			b.ReportAllocs()
			var rawTime, verbTime time.Duration
			var rawServer, verbServer calls
			for left := b.N; left > 0; left -= benchSessions {
				n := min(left, benchSessions)
				b.StopTimer()
				before := w.calls(b, rawCommand)
				rawTime += run(b, ctx, goroutines, n, raw)
				rawServer = rawServer.plus(w.calls(b, rawCommand).minus(before))
				before = w.calls(b, command)
				b.StartTimer()
				verbTime += run(b, ctx, goroutines, n, verb)
				b.StopTimer()
				verbServer = verbServer.plus(w.calls(b, command).minus(before))
				b.StartTimer()
			}
			b.ReportMetric(rawTime.Seconds()/verbTime.Seconds(), "x-raw")
			b.ReportMetric(float64(rawTime.Nanoseconds())/float64(b.N), "raw-ns/op")
			b.ReportMetric(verbServer.mean(), "server-µs/op")
			b.ReportMetric(rawServer.mean(), "raw-server-µs/op")
		})
	}
}

// run runs do n times, shared out among goroutines, and returns how long it took.
func run(b *testing.B, ctx context.Context, goroutines, n int, do func(ctx context.Context, i int) error) time.Duration {
	var group sync.WaitGroup
	start := time.Now()
	for g := range goroutines {
		group.Go(func() {
			for i := g; i < n; i += goroutines {
				if err := do(ctx, i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return time.Since(start)
}

// calls is a line of INFO commandstats.
type calls struct{ number, micros float64 }

func (c calls) plus(d calls) calls  { return calls{c.number + d.number, c.micros + d.micros} }
func (c calls) minus(d calls) calls { return calls{c.number - d.number, c.micros - d.micros} }

func (c calls) mean() float64 {
	if c.number == 0 {
		return 0
	}
	return c.micros / c.number
}

func (w *workload) calls(b *testing.B, commands string) (c calls) {
	text, err := w.client.Do(b.Context(), w.client.B().Info().Section("commandstats").Build()).ToString()
	require.NoError(b, err)
	for command := range strings.SplitSeq(commands, "+") {
		_, line, _ := strings.Cut(text, "cmdstat_"+command+":")
		var micros float64
		_, _ = fmt.Sscanf(line, "calls=%f,usec=%f", &c.number, &micros)
		c.micros += micros
	}
	return c
}

func BenchmarkRead(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		w.compare(b, "get", "get", w.get, func(ctx context.Context, i int) error {
			_, err := w.Read(ctx, w.ids[i])
			return err
		})
	})
}

// Without a deadline Read makes one, which a plain GET does not: it would wait for ever.
func BenchmarkRead_NoDeadline(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		w.compare(b, "get", "get", w.get, func(_ context.Context, i int) error {
			_, err := w.Read(context.Background(), w.ids[i])
			return err
		})
	})
}

// BenchmarkRead_Cached compares a Read that memory answers with the same client's DoCache of a GET,
// which hands out its own memory, as Shared does.
func BenchmarkRead_Cached(b *testing.B) {
	prefix := redistest.Prefix(b, redistest.Client(b))
	s, err := Open(redistest.URL(b), WithKeyPrefix(prefix), WithClientCache(time.Hour))
	require.NoError(b, err)
	b.Cleanup(s.Close)
	w := newWorkload(b, s)
	get := func(ctx context.Context, i int) error {
		_, err := w.client.DoCache(ctx, w.client.B().Get().Key(w.keys[i]).Cache(), time.Hour).AsBytes()
		return err
	}
	read := func(ctx context.Context, i int) error {
		_, err := w.Read(ctx, w.ids[i])
		return err
	}
	shared := func(ctx context.Context, i int) error {
		_, err := w.Read(ctx, w.ids[i], Shared())
		return err
	}
	for i := range w.ids { // both answer from memory from then on
		require.NoError(b, get(b.Context(), i))
		require.NoError(b, read(b.Context(), i))
		require.NoError(b, read(b.Context(), i))
	}
	b.Run("deadline", func(b *testing.B) { w.compare(b, "get", "getrange", get, read) })
	b.Run("shared", func(b *testing.B) { w.compare(b, "get", "getrange", get, shared) })
	b.Run("no deadline", func(b *testing.B) {
		w.compare(b, "get", "getrange", get, func(_ context.Context, i int) error {
			return read(context.Background(), i)
		})
	})
}

func BenchmarkRead_Slide(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		w.compare(b, "get", "get+pttl", w.get, func(ctx context.Context, i int) error {
			_, err := w.Read(ctx, w.ids[i], Slide(time.Hour))
			return err
		})
	})
}

func BenchmarkWrite(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		w.compare(b, "set", "evalsha", w.set, func(ctx context.Context, i int) error {
			_, err := w.Write(ctx, w.ids[i], w.data, time.Hour)
			return err
		})
	})
}

func BenchmarkWrite_Replacing(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		loaded := make([]Session, len(w.ids))
		for i, id := range w.ids {
			var err error
			loaded[i], err = w.Read(b.Context(), id)
			require.NoError(b, err)
		}
		// The plain command is a SET of the same record, so that it is the same session afterwards.
		w.compare(b, "set", "set", w.set, func(ctx context.Context, i int) error {
			_, err := w.Write(ctx, w.ids[i], w.data, time.Hour, Replacing(loaded[i]))
			return err
		})
	})
}

// BenchmarkWrite_Limit is not a Write but a script that does nothing but SET: no script that writes
// can be faster.
func BenchmarkWrite_Limit(b *testing.B) {
	const onlySet = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"
	onEachClient(b, func(b *testing.B, w *workload) {
		limit := rueidis.NewLuaScript(onlySet)
		w.compare(b, "set", "evalsha", w.set, func(ctx context.Context, i int) error {
			return limit.Exec(ctx, w.client, []string{w.keys[i]}, []string{w.record, "3600000"}).Error()
		})
	})
}

func BenchmarkTouch(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		w.compare(b, "get", "evalsha", w.get, func(ctx context.Context, i int) error {
			return w.Touch(ctx, w.ids[i], time.Hour)
		})
	})
}

// Each Invalidate finds a live session, which the SET before has put there.
func BenchmarkInvalidate(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		w.compare(b, "set", "evalsha", w.set, func(ctx context.Context, i int) error {
			return w.Invalidate(ctx, w.ids[i])
		})
	})
}

// BenchmarkBind compares a login of an owner, step by step, with a first write of nobody's: what
// the server counts for each. With known=true the owner has a session already.
func BenchmarkBind(b *testing.B) {
	onEachClient(b, func(b *testing.B, w *workload) {
		owners, ids := make([]string, benchSessions), make([]string, benchSessions)
		logins, bindings := make([]Login, benchSessions), make([]Binding, benchSessions)
		first := func(ctx context.Context, _ int) error {
			_, err := w.Write(ctx, NewID(), w.data, time.Hour)
			return err
		}
		beginLogin := func(ctx context.Context, i int) (err error) {
			logins[i], err = w.BeginLogin(ctx, owners[i])
			return err
		}
		reserve := func(ctx context.Context, i int) (err error) {
			ids[i] = NewID()
			bindings[i], err = w.Reserve(ctx, ids[i], logins[i], until())
			return err
		}
		write := func(ctx context.Context, i int) error {
			_, err := w.Write(ctx, ids[i], w.data, time.Hour, Bound(bindings[i]))
			return err
		}
		measure := func(b *testing.B, commands string, do func(ctx context.Context, i int) error) float64 {
			before := w.calls(b, commands)
			run(b, b.Context(), 16, benchSessions, do)
			return w.calls(b, commands).minus(before).micros / benchSessions
		}
		for _, known := range []bool{false, true} {
			b.Run(fmt.Sprint("known=", known), func(b *testing.B) {
				var unbound, login, bind, bound float64
				for b.Loop() {
					for i := range owners {
						owners[i] = NewID()
					}
					if known {
						run(b, b.Context(), 16, benchSessions, beginLogin)
						run(b, b.Context(), 16, benchSessions, reserve)
					}
					unbound += measure(b, "evalsha", first)
					login += measure(b, "exists+zscore+time", beginLogin)
					bind += measure(b, "evalsha", reserve)
					bound += measure(b, "evalsha", write)
				}
				for name, micros := range map[string]float64{
					"unbound": unbound, "BeginLogin": login, "Reserve": bind, "Write": bound,
				} {
					b.ReportMetric(micros/float64(b.N), name+"-µs")
				}
				b.ReportMetric(login/unbound, "x-BeginLogin")
				b.ReportMetric(bind/unbound, "x-Reserve")
				b.ReportMetric((login+bind+bound)/unbound, "x-all")
				b.ReportMetric(0, "ns/op")
			})
		}
	})
}

// BenchmarkInvalidateOwner ends all sessions of an owner, and lists them before: in how many trips
// and in what time, and how long the longest command has kept the server.
func BenchmarkInvalidateOwner(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint("sessions=", n), func(b *testing.B) {
			client := newTap(redistest.Dial(b, redistest.Start(b, "--slowlog-log-slower-than", "50", "--slowlog-max-len", "10000").URL))
			s, err := New(client, WithTimeout(time.Minute))
			require.NoError(b, err)
			ctx := b.Context()
			slowlog := func(args ...string) rueidis.RedisResult {
				return client.Client.Do(ctx, client.B().Arbitrary("SLOWLOG").Args(args...).Build())
			}
			// keep notes the trips, the time, and the longest command in µs: the least of all runs,
			// since a server that has to wait for a processor counts that, too.
			keep := func(least *[3]float64, do func()) {
				client.forget()
				require.NoError(b, slowlog("RESET").Error())
				begun := time.Now()
				text := client.tripsOf(do)
				millis, longest := float64(time.Since(begun).Microseconds())/1000, 0.0
				entries, err := slowlog("GET", "-1").ToArray()
				require.NoError(b, err)
				for _, entry := range entries {
					parts, err := entry.ToArray()
					require.NoError(b, err)
					micros, err := parts[2].AsInt64()
					require.NoError(b, err)
					words, err := parts[3].AsStrSlice()
					require.NoError(b, err)
					if words[0] != "SLOWLOG" { // to forget ten thousand entries takes long
						longest = max(longest, float64(micros))
					}
				}
				for i, value := range []float64{float64(len(strings.Fields(text))), millis, longest} {
					if least[i] == 0 || value < least[i] {
						least[i] = value
					}
				}
			}
			var listed, ended [3]float64
			for b.Loop() {
				owner := NewID()
				run(b, ctx, 64, n, func(ctx context.Context, _ int) error {
					id := NewID()
					login, err := s.BeginLogin(ctx, owner)
					if err != nil {
						return err
					}
					binding, err := s.Reserve(ctx, id, login, until())
					if err == nil {
						_, err = s.Write(ctx, id, nil, time.Hour, Bound(binding))
					}
					return err
				})
				keep(&listed, func() {
					all, err := s.Sessions(ctx, owner)
					require.NoError(b, err)
					require.Len(b, all, n)
				})
				keep(&ended, func() {
					live, err := s.InvalidateOwner(ctx, owner)
					require.NoError(b, err)
					require.Equal(b, n, live)
				})
			}
			b.ReportMetric(listed[0], "list-trips")
			b.ReportMetric(listed[1], "list-ms")
			b.ReportMetric(listed[2], "list-longest-µs")
			b.ReportMetric(ended[0], "trips")
			b.ReportMetric(ended[1], "ms")
			b.ReportMetric(ended[2], "longest-µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkMemory measures what a session of 300 bytes takes on the server, all in, what it would
// take as the plain value of a key that ends in its id, and what its tombstone takes: of an end, of
// an id that has moved, and of one whose renewal is finished.
func BenchmarkMemory(b *testing.B) {
	data := []byte(strings.Repeat("0123456789", 30))
	memory := func(client rueidis.Client) float64 {
		bytes, err := strconv.ParseFloat(redistest.Info(b, client, "used_memory"), 64)
		require.NoError(b, err)
		return bytes
	}
	perKey := func(store func(s *RedisStore, id string) error) float64 {
		const keys = 100_000
		client := redistest.Dial(b, redistest.Start(b).URL)
		s, err := New(client)
		require.NoError(b, err)
		_, err = s.Check(b.Context()) // what the first commands take is not the session's
		require.NoError(b, err)
		before := memory(client)
		run(b, b.Context(), 64, keys, func(context.Context, int) error { return store(s, NewID()) })
		return (memory(client) - before) / keys
	}
	for b.Loop() {
		live := perKey(func(s *RedisStore, id string) error {
			_, err := s.Write(b.Context(), id, data, time.Hour)
			return err
		})
		plain := perKey(func(s *RedisStore, id string) error {
			set := s.client.B().Set().Key("scs:session:" + id).Value(string(data)).PxMilliseconds(3_600_000).Build()
			return s.client.Do(b.Context(), set).Error()
		})
		tombstone := perKey(func(s *RedisStore, id string) error { return s.Invalidate(b.Context(), id) })
		// Next to each of these there is the session that goes on.
		moved := perKey(func(s *RedisStore, id string) error {
			if _, err := s.Write(b.Context(), id, data, time.Hour); err != nil {
				return err
			}
			_, err := s.Rotate(b.Context(), id, NewID())
			return err
		})
		renewed := perKey(func(s *RedisStore, id string) error {
			if _, err := s.Write(b.Context(), id, data, time.Hour); err != nil {
				return err
			}
			r, err := s.BeginRenewal(b.Context(), id, 0)
			if err != nil {
				return err
			}
			_, err = s.FinishRenewal(b.Context(), r, NewID(), data, time.Hour)
			return err
		})
		b.ReportMetric(live, "B/live")
		b.ReportMetric(plain, "B/plain")
		b.ReportMetric(live/plain, "x-plain")
		b.ReportMetric(tombstone, "B/tombstone")
		b.ReportMetric(moved-live, "B/moved")
		b.ReportMetric(renewed-live, "B/renewed")
	}
	b.ReportMetric(0, "ns/op")
}
