package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore/internal/client"
)

const (
	cleanTimeout   = 30 * time.Second
	maxForcedPlain = 100_000 // enough for a store that loses every race
)

type demoOptions struct {
	redis                   string
	rounds, forced, workers int
}

// demo shows the race of a logout with a slow request. It fails if tombstore let an ended session
// live again.
func demo(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return demoOf(ctx, openTombs, args, stdout, stderr)
}

func demoOf(ctx context.Context, ours opener, args []string, stdout, stderr io.Writer) int {
	var o demoOptions
	flags := flag.NewFlagSet("tombstore demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Usage: tombstore demo [flags]\n\n",
			"Exits with 1 if tombstore let an ended session live again.\n\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.redis, "redis", "", "`URL` of a Redis or Valkey server (default: one inside this program)")
	flags.IntVar(&o.rounds, "rounds", 200, "`number` of races per store over HTTP with random timing")
	flags.IntVar(&o.forced, "forced", 0, "`number` of races per store without HTTP, each in the order that loses")
	flags.IntVar(&o.workers, "workers", 64, "`number` of forced races at a time")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	if err := o.check(flags.Args()); err != nil {
		fmt.Fprintln(stderr, "tombstore demo:", err)
		return exitUsage
	}
	held, err := o.run(ctx, newScreen(stdout), ours)
	if err != nil {
		fmt.Fprintln(stderr, "tombstore demo:", err)
	}
	if err != nil || !held {
		return exitFailed
	}
	return exitOK
}

func (o *demoOptions) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q", rest[0])
	}
	if o.rounds < 0 || o.forced < 0 || o.workers < 1 {
		return errors.New("-rounds and -forced must not be negative, and -workers must be positive")
	}
	if _, err := client.Option(o.redis, false); o.redis != "" && err != nil {
		return fmt.Errorf("-redis: %w", err)
	}
	return nil
}

// run shows everything on one server, and reports whether the store that ours opens kept ended
// sessions ended.
func (o *demoOptions) run(ctx context.Context, out screen, ours opener) (held bool, err error) {
	url, inside, kind := o.redis, o.redis == "", "the one given by -redis"
	if inside {
		server, err := miniredis.Run()
		if err != nil {
			return false, fmt.Errorf("start a Redis inside this program: %w", err)
		}
		defer server.Close()
		url, kind = "redis://"+server.Addr(), "inside this program (miniredis); -redis URL takes a real one"
	}
	var clients [2]rueidis.Client
	for i := range clients {
		if clients[i], err = connect(url, inside); err != nil {
			return false, fmt.Errorf("connect to the server: %w", err)
		}
		defer clients[i].Close()
	}
	prefix := "tombstore-demo:" + rand.Text()[:13] + ":"
	if !inside {
		defer func() { err = errors.Join(err, clean(context.WithoutCancel(ctx), clients[0], prefix)) }()
	}
	usual, err := openPlain(clients, prefix)
	if err != nil {
		return false, err
	}
	tested, err := ours(clients, prefix)
	if err != nil {
		return false, err
	}
	tested.safe = true
	fmt.Fprintf(out, "A logout races a slow request of the same session, over HTTP.\nRedis server: %s\n", kind)
	s := show{screen: out, contenders: []contender{usual, tested}}
	err = s.timelines(ctx)
	if err == nil && o.rounds > 0 {
		err = s.rounds(ctx, o.rounds)
	}
	if err == nil && o.forced > 0 {
		err = s.forced(ctx, o.forced, o.workers)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx) // says more than the request that was cut short
	}
	return !s.failed, err
}

// connect returns a client with the settings of tombstore.Open.
func connect(url string, inside bool) (rueidis.Client, error) {
	o, err := client.Option(url, false)
	if err != nil {
		return nil, err
	}
	o.ForceSingleClient = inside // miniredis takes itself for a cluster
	return client.Dial(o)
}

// clean deletes every key with the prefix, which only this run has used.
func clean(ctx context.Context, c rueidis.Client, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	for _, node := range c.Nodes() {
		for cursor, more := uint64(0), true; more; more = cursor != 0 {
			scan := node.B().Scan().Cursor(cursor).Match(prefix + "*").Count(1000).Build()
			found, err := node.Do(ctx, scan).AsScanEntry()
			for _, e := range rueidis.MDel(c, ctx, found.Elements) {
				err = cmp.Or(err, e) // one is enough
			}
			if err != nil {
				return fmt.Errorf("delete the keys %s* (they expire within %v): %w",
					prefix, sessionTTL+tombstoneTTL, err)
			}
			cursor = found.Cursor
		}
	}
	return nil
}
