package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/redis/rueidis"
	"github.com/urfave/cli/v3"
)

const (
	roundTimeout = 10 * time.Second
	leastPause   = 100 * time.Millisecond
	mostSamples  = 10_000
)

// top shows pages of figures.
type top struct {
	serverCommand
	interval        time.Duration
	rounds, samples int
}

func topCommand() *cli.Command {
	t := &top{}
	t.run = func(ctx context.Context, conn rueidis.Client, _ []target, stdout, _ io.Writer) error {
		if t.interval < leastPause || t.rounds < 0 || t.samples < 1 || t.samples > mostSamples {
			return usageError{fmt.Errorf("-interval is at least %v, -n at least 0, and -samples from 1 to %d",
				leastPause, mostSamples)}
		}
		out := newScreen(stdout)
		out.terminal = out.terminal && !t.asJSON
		return t.watch(ctx, conn, out)
	}
	return t.command(&cli.Command{
		Name:      "top",
		Usage:     "watch sessions, tombstones, ends, refusals and memory",
		ArgsUsage: "URL",
		Description: `Shows page after page of figures, until Ctrl-C. It changes nothing on the server.

Sessions, tombstones and owners are estimated from random keys. The true number is between the two that
are shown with a probability of 95 %.

Ends and moves are told by the processes whose stores have WithPublish, and by no others. In an interval
with more than 200 of them, how many were moves is an estimate, too.

"Late saves" are SETs on a key that holds a hash. That is each save that was refused by the server
itself; it does not see what a script of the store refuses. "Others" are reads with GET, GETEX and
GETRANGE on such a key, also by scripts: an operation on a session that was ended makes one or two of
them. The server counts these for all its users.

The exit status is 1 if there is no answer in the last interval.`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Value: 2 * time.Second, Destination: &t.interval,
				Usage: "`time` between two pages"},
			&cli.IntFlag{Name: "n", Destination: &t.rounds, Usage: "`number` of pages; 0 for no end"},
			&cli.IntFlag{Name: "samples", Value: 1000, Destination: &t.samples,
				Usage: "`number` of random keys for each page"},
		},
	})
}

// watch shows pages until ctx ends, or all that were wanted have been shown.
func (t *top) watch(ctx context.Context, conn rueidis.Client, out screen) error {
	listening, stop := context.WithCancel(ctx)
	defer stop()
	said := listen(listening, conn, t.prefix)
	last, err := t.look(ctx, conn)
	if err != nil && ctx.Err() == nil {
		return err
	}
	draw := newDrawing(out, "the first page comes in "+t.interval.String())
	defer draw.close()
	for n := 1; t.rounds == 0 || n <= t.rounds; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(t.interval): // of rest for the server, however long a page takes
		}
		var now glance
		now, err = t.look(ctx, conn)
		if ctx.Err() != nil {
			return nil
		}
		p := page{Time: time.Now().UTC().Truncate(time.Millisecond)}
		if err == nil {
			p.compare(last, now)
			p.hear(ctx, conn, said)
			last = now
		} else {
			p.Error = err.Error()
		}
		show := func() error { return draw.page(p.lines(out, t.prefix)) }
		if t.asJSON {
			show = func() error { return json.NewEncoder(out).Encode(p) }
		}
		if err := show(); err != nil {
			return err
		}
	}
	if err != nil {
		return errReported
	}
	return nil
}

// glance is what the nodes say at one time.
type glance struct {
	at      time.Time
	nodes   []node
	samples []sample
}

func (t *top) look(ctx context.Context, conn rueidis.Client) (g glance, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	if g.nodes, err = primaries(ctx, conn); err != nil {
		return g, err
	}
	g.at = time.Now()
	for _, node := range g.nodes {
		s, err := sampleOf(ctx, node, t.prefix, max(1, t.samples/len(g.nodes)))
		if err != nil {
			return g, err
		}
		g.samples = append(g.samples, s)
	}
	return g, nil
}
