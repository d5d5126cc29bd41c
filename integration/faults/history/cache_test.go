package history

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// timeless is a client whose cached reads carry no epoch.
type timeless struct{ rueidis.Client }

func (c timeless) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	if words := cmd.Commands(); words[0] == "GETRANGE" {
		cmd = c.B().Getrange().Key(words[1]).Start(0).End(1 << 62).Cache()
	}
	return c.Client.DoCache(ctx, cmd, ttl)
}

// TestReadYourWrites changes sessions over one connection and reads them from a cache whose
// messages come late over another. A read that returns something older than the process' own last
// change is a violation (G4).
func TestReadYourWrites(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{faults.Promised, "cache, messages late: reads after own changes", same},
		{faults.Seeded, "cache, messages late: no epoch", func(c rueidis.Client) rueidis.Client { return timeless{c} }},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			server := redistest.Start(t)
			w := newWire(t, server.Addr)
			w.up(t, toxic("latency", replies, `"latency":10`))
			option, err := rueidis.ParseURL("redis://" + w.addr)
			require.NoError(t, err)
			option.DisableRetry = true
			client, err := rueidis.NewClient(option)
			require.NoError(t, err)
			t.Cleanup(client.Close)
			reader, err := tombstore.New(c.wrap(client), tombstore.WithClientCache(time.Hour), tombstore.WithTimeout(time.Minute))
			require.NoError(t, err)
			writer, err := tombstore.New(redistest.Dial(t, server.URL), tombstore.WithTimeout(time.Minute))
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				report, err := reader.Check(t.Context())
				return err == nil && report.Cached
			}, time.Minute, time.Millisecond)

			until := time.Now().Add(faults.Duration(t, time.Second))
			if c.kind == faults.Seeded {
				until = time.Now().Add(seedTime)
			}
			var lives, stale atomic.Int64
			var goroutines sync.WaitGroup
			for range 8 {
				goroutines.Go(func() {
					for time.Now().Before(until) && (c.kind != faults.Seeded || stale.Load() == 0) {
						old, err := changeAndRead(t.Context(), writer, reader)
						if err != nil {
							t.Error(err)
							return
						}
						lives.Add(1)
						stale.Add(old)
					}
				})
			}
			goroutines.Wait()
			faults.Report(t, faults.Row{
				Kind: c.kind, Fault: c.fault, Injected: 4 * lives.Load(), Checked: 7 * lives.Load(), Violations: stale.Load(),
			})
		})
	}
}

// changeAndRead leads a session through its life, reads it after each change, and counts the
// answers that are older than that.
func changeAndRead(ctx context.Context, writer, reader tombstore.Store) (stale int64, err error) {
	id := tombstore.NewID()
	for _, data := range []string{"a", "b", "c"} {
		if _, err := writer.Write(ctx, id, []byte(data), time.Hour); err != nil {
			return stale, err
		}
		for range 2 { // the second may be answered from memory
			s, err := reader.Read(ctx, id)
			if err != nil && !errors.Is(err, tombstore.ErrNotFound) {
				return stale, err
			}
			if string(s.Data) != data {
				stale++
			}
		}
	}
	if err := writer.Invalidate(ctx, id); err != nil {
		return stale, err
	}
	switch _, err := reader.Read(ctx, id); {
	case err == nil:
		stale++
	case !errors.Is(err, tombstore.ErrInvalidated):
		return stale, err
	}
	return stale, nil
}
