package history

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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

// redrawn is a client that draws a new version for each attempt of a change but the first.
type redrawn struct {
	rueidis.Client
	seen sync.Map // starts of records that were sent
}

func (r *redrawn) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := append([]string(nil), cmd.Commands()...)
	if words[0] == "EVALSHA" {
		for i, word := range words[3:] {
			if len(word) != 10 || word[0] != 0xC1 {
				continue
			}
			if _, again := r.seen.LoadOrStore(word, true); again {
				words[3+i] = word[:2] + rand.Text()[:8]
			}
		}
	}
	return r.Client.Do(ctx, r.B().Arbitrary(words...).Build())
}

// life creates a session, counts up in it, moves it, and ends it.
func life(ctx context.Context, s tombstore.Store) error {
	id, next := tombstore.NewID(), tombstore.NewID()
	held, err := s.Write(ctx, id, []byte("0"), time.Hour, tombstore.IfAbsent())
	for i := 1; i <= 3 && err == nil; i++ {
		held, err = s.Write(ctx, id, []byte(fmt.Sprint(i)), time.Hour, tombstore.IfVersion(held.Version))
	}
	if err == nil {
		held, err = s.Rotate(ctx, id, next)
	}
	if err == nil {
		held, err = s.Write(ctx, next, append(held.Data, '!'), time.Hour, tombstore.IfVersion(held.Version))
	}
	if err == nil {
		held, err = s.Read(ctx, next)
	}
	if err == nil && string(held.Data) != "3!" {
		err = errors.New("a change is missing")
	}
	if err == nil {
		err = s.Invalidate(ctx, next)
	}
	return err
}

// TestRetries loses replies of clients that are alone with their sessions. Nobody else changes a session in between, so each change must
// succeed: a script that is run again knows its own version.
func TestRetries(t *testing.T) {
	t.Parallel()
	same := func(c rueidis.Client) rueidis.Client { return c }
	for name, c := range map[string]struct {
		kind faults.Kind
		wrap func(rueidis.Client) rueidis.Client
	}{
		"replies lost: changes of a client that is alone": {faults.Promised, same},
		"a new version for each attempt":                  {faults.Seeded, func(c rueidis.Client) rueidis.Client { return &redrawn{Client: c} }},
		"write.lua does not know its own version": {faults.Seeded, faults.Edit("write.lua",
			"if string.sub(head, 1, 10) ~= ARGV[1] then return 'C' end\n  return 'D' .. stamps", "return 'C'")},
		"rotate.lua does not know its own version": {faults.Seeded, faults.Edit("rotate.lua", "string.sub(new, 1, 10) == ARGV[1]", "false")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := redistest.NewProxy(t, redistest.Start(t).Addr)
			option, err := rueidis.ParseURL(proxy.URL)
			require.NoError(t, err)
			option.DisableRetry, option.DisableCache = true, true
			client, err := rueidis.NewClient(option)
			require.NoError(t, err)
			t.Cleanup(client.Close)
			s, err := tombstore.New(c.wrap(client), tombstore.WithTimeout(time.Minute))
			require.NoError(t, err)

			until := time.Now().Add(faults.Duration(t, time.Second))
			if c.kind == faults.Seeded {
				until = time.Now().Add(seedTime)
			}
			var lives, wrong atomic.Int64
			enough := func() bool { return time.Now().After(until) || c.kind == faults.Seeded && wrong.Load() > 0 }
			var clients sync.WaitGroup
			for range 4 {
				clients.Go(func() {
					for !enough() {
						err := life(t.Context(), s)
						lives.Add(1)
						if err != nil {
							wrong.Add(1)
						}
						var refusal *rueidis.RedisError
						if errors.As(err, &refusal) { // of a script that does not run
							t.Error(err)
						}
					}
				})
			}
			for last := int64(-1); !enough(); time.Sleep(time.Millisecond) {
				if n := lives.Load(); n != last { // somebody gets on
					last = n
					proxy.LoseReply()
				}
			}
			clients.Wait()
			faults.Report(t, faults.Row{
				Kind: c.kind, Fault: name, Injected: proxy.Lost(), Checked: lives.Load(), Violations: wrong.Load(),
			})
		})
	}
}
