package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/urfave/cli/v3"

	"github.com/tombstore/tombstore/internal/client"
)

const (
	mostSessions  = 2000 // of a block
	leastRounds   = 3
	plannedRounds = 15
	room          = 32 << 20 // bytes of memory that all keys take at most
)

// benchmark compares verbs of the store with plain commands, on a server of the user's.
type benchmark struct {
	redis         string
	limit         time.Duration
	rounds        int
	clients, size int
	yes, asJSON   bool
	stdout        io.Writer
	stderr        io.Writer
}

func benchCommand() *cli.Command {
	b := &benchmark{}
	return &cli.Command{
		Name:  "bench",
		Usage: "measure on your server what the store costs, against plain commands",
		Description: `Measures how long calls of the store take, as a multiple of the plain commands that a usual session
store sends. Both take turns in short blocks, so that they meet the same server. The number is the median
of the rounds, and half of the rounds were between the two numbers behind it.

A save is a Write of a session that was read (Replacing), and a renewal both halves of a new id, as scs
and fiber ask for it.

It works on keys of its own, with a random prefix, and deletes them at the end. If it cannot, they expire
by themselves, two minutes after the time of -for.

The server is as busy as the clients can make it, and others wait. Where it has keys already, -yes is
needed.

The exit status is 1 if something went wrong, or if the time was too short for three rounds.`,
		HideHelpCommand: true,
		OnUsageError:    wrongUsage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "redis", Usage: "`URL` of the Redis or Valkey server", Destination: &b.redis},
			&cli.DurationFlag{Name: "for", Value: 20 * time.Second, Usage: "`time` after which it stops", Destination: &b.limit},
			&cli.IntFlag{Name: "rounds", Usage: "`number` of rounds after which it stops earlier; 0 for none",
				Destination: &b.rounds},
			&cli.IntFlag{Name: "clients", Value: 16, Usage: "`number` of calls at a time", Destination: &b.clients},
			&cli.IntFlag{Name: "size", Value: 512, Usage: "`bytes` of a session's data", Destination: &b.size},
			&cli.BoolFlag{Name: "yes", Usage: "run on a server that holds keys of other programs", Destination: &b.yes},
			jsonFlag(&b.asJSON),
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := b.check(c.NArg()); err != nil {
				return wrongUsage(ctx, c, err, true)
			}
			b.stdout, b.stderr = c.Root().Writer, c.Root().ErrWriter
			return b.run(ctx)
		},
	}
}

func (b *benchmark) check(arguments int) error {
	switch {
	case b.redis == "":
		return errors.New("-redis URL is missing")
	case arguments > 0:
		return errors.New("there are no arguments")
	case b.limit < time.Second || b.limit > time.Hour:
		return errors.New("-for is from 1s to 1h")
	case b.rounds != 0 && b.rounds < leastRounds:
		return fmt.Errorf("-rounds is at least %d", leastRounds)
	case b.clients < 1 || b.clients > 1000:
		return errors.New("-clients is from 1 to 1000")
	case b.size < 0 || b.size > 64<<10:
		return errors.New("-size is from 0 to 65536")
	}
	_, err := client.Option(b.redis, true)
	return err
}

func (b *benchmark) run(ctx context.Context) error {
	option, err := client.Option(b.redis, true)
	if err != nil {
		return usageError{err}
	}
	conn, err := client.Dial(option)
	if err != nil {
		return usageError{fmt.Errorf("no connection: %w", err)}
	}
	defer conn.Close()
	if err := b.mayLoad(ctx, conn); err != nil {
		return err
	}
	measured, cancel := context.WithTimeoutCause(ctx, b.limit, errTimeIsUp)
	defer cancel()
	w, err := newWorkload(conn, "tombstore-bench:"+rand.Text()+":", b)
	if err != nil {
		return err
	}
	results, err := b.measure(measured, w)
	if context.Cause(measured) == errTimeIsUp {
		err = nil // whatever the call that was cut short has said
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err := errors.Join(err, w.clean(context.WithoutCancel(ctx))); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	return b.show(results)
}

var errTimeIsUp = errors.New("the time is up")

// mayLoad asks for the user's consent where it was not given, and the server may be in use.
func (b *benchmark) mayLoad(ctx context.Context, conn rueidis.Client) error {
	nodes, err := primaries(ctx, conn)
	if err != nil && !b.yes {
		return usageError{fmt.Errorf("INFO does not say whether others use the server: %w; -yes loads it nevertheless", err)}
	}
	for _, n := range nodes {
		if keys := n.allKeys(); keys > 0 && !b.yes {
			return usageError{fmt.Errorf("the server holds %s keys of other programs, which would have to wait; -yes runs it all the same",
				thousands(keys))}
		}
		if limit := n.number("maxmemory"); limit > 0 && n.number("used_memory")+room > limit {
			return usageError{fmt.Errorf("%s is nearly at its maxmemory: keys of others could be evicted, or refused", n.address)}
		}
	}
	return nil
}

// pairing is a call of the store and the plain commands that it is compared with.
type pairing struct {
	Call string `json:"call"`
	Base string `json:"base"`
	// prepare is called before each of the two, and is not measured.
	prepare    func(ctx context.Context, n int) error
	call, base func(ctx context.Context, i int) error
	ratios     []float64
	took       [2]time.Duration // by call and base in all rounds
	calls      int
}

// measure goes through all pairs in turns until ctx ends. An error leaves what was measured before.
func (b *benchmark) measure(ctx context.Context, w *workload) (pairs []*pairing, err error) {
	pairs = w.pairs()
	progress := b.progress()
	defer progress(0, 0)
	end := time.Now().Add(b.limit)
	most := min(mostSessions, room/4/(b.size+1<<10)) // each is there up to three times
	n := min(most, 4*b.clients)
	for round := 0; b.rounds == 0 || round <= b.rounds; round++ {
		begun := time.Now()
		for _, p := range pairs {
			if err := ctx.Err(); err != nil {
				return pairs, err
			}
			progress(round, time.Until(end))
			if err := p.measure(ctx, b.clients, n, round); err != nil {
				return pairs, fmt.Errorf("%s: %w", p.Call, err)
			}
		}
		if round == 0 { // as many calls as leave time for enough rounds
			share := float64(time.Until(end)) / float64(plannedRounds*time.Since(begun))
			n = max(1, min(most, int(share*float64(n))))
		}
	}
	return pairs, nil
}

// measure runs a block of each. The first round warms up, and who begins changes from round to
// round.
func (p *pairing) measure(ctx context.Context, clients, n, round int) error {
	var took [2]time.Duration
	for turn := range 2 {
		which := (round + turn) % 2
		if p.prepare != nil {
			if err := p.prepare(ctx, n); err != nil {
				return err
			}
		}
		start := time.Now()
		if err := each(ctx, n, clients, [2]func(context.Context, int) error{p.call, p.base}[which]); err != nil {
			return err
		}
		took[which] = time.Since(start)
	}
	if round == 0 {
		return nil
	}
	p.ratios = append(p.ratios, float64(took[0])/float64(took[1]))
	p.took[0] += took[0]
	p.took[1] += took[1]
	p.calls += n
	return nil
}

// progress returns a function that shows how far it is, on a terminal only.
func (b *benchmark) progress() func(round int, left time.Duration) {
	if !isTerminal(b.stderr) {
		return func(int, time.Duration) {}
	}
	return func(round int, left time.Duration) {
		fmt.Fprint(b.stderr, "\r", eraseLine)
		if left > 0 {
			fmt.Fprintf(b.stderr, "round %d, %d s left", round, int(math.Ceil(left.Seconds())))
		}
	}
}

// result is what came of a pair.
type result struct {
	*pairing
	Ratio  float64 `json:"ratio"` // the median
	Low    float64 `json:"low"`   // a quarter of the rounds was below
	High   float64 `json:"high"`  // a quarter of the rounds was above
	Rounds int     `json:"rounds"`
	Calls  int     `json:"calls_per_second"`
	Bases  int     `json:"base_per_second"`
}

func (p *pairing) result() result {
	slices.Sort(p.ratios)
	at := func(part float64) float64 { return round(p.ratios[int(part*float64(len(p.ratios)-1)+0.5)]) }
	return result{
		pairing: p, Ratio: at(0.5), Low: at(0.25), High: at(0.75), Rounds: len(p.ratios),
		Calls: int(float64(p.calls) / p.took[0].Seconds()),
		Bases: int(float64(p.calls) / p.took[1].Seconds()),
	}
}

// show prints what was measured.
func (b *benchmark) show(pairs []*pairing) error {
	var results []result
	for _, p := range pairs {
		if len(p.ratios) < leastRounds {
			return fmt.Errorf("bench: there was time for %d rounds only: give it more with -for, or use fewer -clients", len(p.ratios))
		}
		results = append(results, p.result())
	}
	if b.asJSON {
		out := json.NewEncoder(b.stdout)
		for _, r := range results {
			if err := out.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Fprintf(b.stdout, "Time of a call, as a multiple of that of the plain command: %d calls at a time, %d bytes of data.\n"+
		"In brackets where half of the rounds were. Each # is a tenth, and | is 1: as fast as the plain command.\n\n",
		b.clients, b.size)
	for _, r := range results {
		fmt.Fprintf(b.stdout, "%-26s %5.2f  (%.2f to %.2f)  %s\n", r.Call+" / "+r.Base, r.Ratio, r.Low, r.High, textBar(r.Ratio))
	}
	fewest := slices.MinFunc(results, func(x, y result) int { return cmp.Compare(x.Rounds, y.Rounds) })
	fmt.Fprintf(b.stdout, "\n%d rounds. GET: %s a second, SET: %s.\n", fewest.Rounds,
		thousands(results[0].Bases), thousands(results[1].Bases))
	return nil
}

// textBar draws a ratio on a linear scale.
func textBar(ratio float64) string {
	const one, most = 10, 40
	n := int(math.Round(ratio * one))
	bar := strings.Repeat("#", min(n, most))
	switch {
	case n > most:
		bar += "..."
	case n < one:
		bar += strings.Repeat(" ", one-n)
	}
	return bar[:one] + "|" + bar[one:]
}
