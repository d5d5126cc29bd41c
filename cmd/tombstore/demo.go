package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/urfave/cli/v3"

	"github.com/tombstore/tombstore/internal/client"
)

const (
	cleanTimeout   = 30 * time.Second
	maxForcedPlain = 100_000 // enough for a store that loses every race
)

type demo struct {
	redis                   string
	rounds, forced, workers int
	asJSON                  bool
}

// demoCommand shows the race of a logout with a slow request. It fails if the store that ours opens
// let an ended session live again.
func demoCommand(ours opener) *cli.Command {
	d := &demo{}
	return &cli.Command{
		Name:            "demo",
		Usage:           "race a logout against a slow request, on a usual session store and on tombstore",
		Description:     "The exit status is 1 if tombstore let an ended session live again.",
		HideHelpCommand: true,
		OnUsageError:    wrongUsage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "redis", Destination: &d.redis,
				Usage: "`URL` of a Redis or Valkey server (default: one inside this program)"},
			&cli.IntFlag{Name: "rounds", Value: 200, Destination: &d.rounds,
				Usage: "`number` of races per store over HTTP with random timing"},
			&cli.IntFlag{Name: "forced", Destination: &d.forced,
				Usage: "`number` of races per store without HTTP, each in the order that loses"},
			&cli.IntFlag{Name: "workers", Value: 64, Destination: &d.workers,
				Usage: "`number` of forced races at a time"},
			jsonFlag(&d.asJSON),
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := d.check(c.NArg()); err != nil {
				return wrongUsage(ctx, c, err, true)
			}
			held, err := d.run(ctx, newScreen(c.Root().Writer), ours)
			switch {
			case err != nil:
				return fmt.Errorf("demo: %w", err)
			case !held:
				return errReported
			}
			return nil
		},
	}
}

func (d *demo) check(arguments int) error {
	if arguments > 0 {
		return errors.New("there are no arguments")
	}
	if d.rounds < 0 || d.forced < 0 || d.workers < 1 {
		return errors.New("-rounds and -forced must not be negative, and -workers must be positive")
	}
	if _, err := client.Option(d.redis, false); d.redis != "" && err != nil {
		return fmt.Errorf("-redis: %w", err)
	}
	return nil
}

// run shows everything on one server, and reports whether the store that ours opens kept ended
// sessions ended.
func (d *demo) run(ctx context.Context, out screen, ours opener) (held bool, err error) {
	url, inside, kind := d.redis, d.redis == "", "the one given by -redis"
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
			return false, usageError{fmt.Errorf("connect to the server: %w", err)}
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
	s := show{screen: out, contenders: []contender{usual, tested}}
	if d.asJSON {
		s.json, s.Writer = json.NewEncoder(out.Writer), io.Discard
	}
	fmt.Fprintf(s, "A logout races a slow request of the same session, over HTTP.\nRedis server: %s\n", kind)
	err = s.timelines(ctx)
	if err == nil && d.rounds > 0 {
		err = s.rounds(ctx, d.rounds)
	}
	if err == nil && d.forced > 0 {
		err = s.forced(ctx, d.forced, d.workers)
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
