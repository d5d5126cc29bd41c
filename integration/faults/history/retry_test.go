package history

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
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
	seen sync.Map // versions that were sent
}

func (r *redrawn) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := append([]string(nil), cmd.Commands()...)
	switch {
	case words[0] == "EVALSHA" && (words[1] == faults.SHA("write.lua") || words[1] == faults.SHA("rotate.lua")):
		r.redraw(&words[3+keys(words)])
	case words[0] == "SET":
		version := words[2][2:10]
		r.redraw(&version)
		words[2] = words[2][:2] + version + words[2][10:]
	}
	return r.Client.Do(ctx, r.B().Arbitrary(words...).Build())
}

// keys returns how many keys a script is run on.
func keys(words []string) int {
	n, err := strconv.Atoi(words[2])
	if err != nil {
		panic(err)
	}
	return n
}

func (r *redrawn) redraw(version *string) {
	if _, again := r.seen.LoadOrStore(*version, true); again {
		*version = rand.Text()[:8]
	}
}

// life creates a session, counts up in it, moves it in one step and in two, and ends it.
func life(ctx context.Context, s tombstore.Renewer) error {
	id, next, last := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
	held, err := s.Write(ctx, id, []byte("0"), time.Hour, tombstore.IfAbsent())
	for i := 1; i <= 4 && err == nil; i++ {
		condition := tombstore.IfVersion(held.Version)
		if i%2 == 0 {
			condition = tombstore.Replacing(held)
		}
		held, err = s.Write(ctx, id, []byte(fmt.Sprint(i)), time.Hour, condition)
	}
	if err == nil {
		held, err = s.Rotate(ctx, id, next)
	}
	if err == nil {
		held, err = s.Write(ctx, next, append(held.Data, '!'), time.Hour, tombstore.IfVersion(held.Version))
	}
	var r tombstore.Renewal
	if err == nil {
		r, err = s.BeginRenewal(ctx, next, held.Version)
	}
	if err == nil {
		_, err = s.FinishRenewal(ctx, r, last, append(held.Data, '!'), time.Hour)
	}
	if err == nil {
		held, err = s.Read(ctx, last)
	}
	if err == nil && string(held.Data) != "4!!" {
		err = errors.New("a change is missing")
	}
	if err == nil {
		err = s.Invalidate(ctx, id) // which it has left twice
	}
	if err == nil {
		if live, readErr := s.Exists(ctx, last); live || readErr != nil {
			err = cmp.Or(readErr, errors.New("it is live"))
		}
	}
	return err
}

// TestRetries loses replies of clients that are alone with their sessions. Nobody else changes a
// session in between, so each change must succeed: a script that is run again knows its own
// version.
func TestRetries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind faults.Kind
		wrap func(rueidis.Client) rueidis.Client
	}{
		"replies lost: changes of a client that is alone": {faults.Promised, same},
		"a new version for each attempt":                  {faults.Seeded, func(c rueidis.Client) rueidis.Client { return &redrawn{Client: c} }},
		"write.lua does not know its own version": {faults.Seeded, faults.Edit("write.lua",
			ownVersion, "return 'C'")},
		"rotate.lua does not know its own version": {faults.Seeded, faults.Edit("rotate.lua",
			"string.sub(moved, 3, 10) == ARGV[1]", "false")},
		"invalidate.lua does not know its own claim": {faults.Seeded, faults.Edit("invalidate.lua",
			"if claim and redis.call('HGET', KEYS[1], 'c') == claim then return 'D' end", "")},
		"link.lua does not know its own successor": {faults.Seeded, faults.Edit("link.lua",
			"elseif successor ~= ARGV[2] then", "else")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
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
