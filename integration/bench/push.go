package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tombstore/tombstore"
)

// other is the other process: for each line "w ID" it writes a session, for "i ID" it ends it, and
// answers with the time at which that had returned.
func other(ctx context.Context, url string) error {
	s, err := tombstore.Open(url)
	if err != nil {
		return err
	}
	defer s.Close()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verb, id, _ := strings.Cut(lines.Text(), " ")
		if verb == "w" {
			_, err = s.Write(ctx, id, []byte("x"), hour)
		} else {
			err = s.Invalidate(ctx, id)
		}
		if err != nil {
			return err
		}
		fmt.Println(time.Now().UnixNano())
	}
	return nil
}

// child is a process that runs a worker.
type child struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
}

func startChild(ctx context.Context, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{command: exec.CommandContext(ctx, self, append([]string{"worker"}, args...)...)}
	c.command.Stderr = os.Stderr
	if c.in, err = c.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewScanner(out)
	return c, c.command.Start()
}

// tell writes a line.
func (c *child) tell(line string) error {
	_, err := fmt.Fprintln(c.in, line)
	return err
}

// hear reads a line.
func (c *child) hear() (string, error) {
	if !c.out.Scan() {
		return "", fmt.Errorf("a worker has ended: %w", cmp.Or(c.out.Err(), io.EOF))
	}
	return c.out.Text(), nil
}

// do asks the worker of other for something.
func (c *child) do(verb, id string) (returned time.Time, err error) {
	if err := c.tell(verb + " " + id); err != nil {
		return returned, err
	}
	text, err := c.hear()
	if err != nil {
		return returned, err
	}
	ns, err := strconv.ParseInt(text, 10, 64)
	return time.Unix(0, ns), err
}

func (c *child) stop() {
	c.in.Close()
	_ = c.command.Wait()
}

// openCaching returns a store that is seen to cache: the figures of one that asks the server every
// time would be too good.
func openCaching(
	ctx context.Context, url string, maxAge time.Duration, opts ...tombstore.Option,
) (*tombstore.RedisStore, error) {
	s, err := tombstore.Open(url, append(opts, tombstore.WithClientCache(maxAge))...)
	if err != nil {
		return nil, err
	}
	for range 10 { // a message may be late on a busy machine
		var report tombstore.Report
		if report, err = s.Check(ctx); err == nil && report.Cached {
			return s, nil
		}
		err = cmp.Or(err, report.Uncached)
	}
	s.Close()
	return nil, err
}

// warm reads a session until memory answers.
func warm(ctx context.Context, s *tombstore.RedisStore, id string) error {
	for range 3 {
		if _, err := s.Read(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// push measures how long this process takes a session for live that another one has ended.
func push(ctx context.Context, b *bench) ([]table, error) {
	t := table{
		title: "Ended by another process: the last answer that was still live",
		note: "From the return of Invalidate there to the start of the last Read here that was answered live; 0 if there " +
			"was none.",
		head: []string{"wire", "trials", "p50", "p99", "longest"},
	}
	for _, wire := range []struct {
		name   string
		delay  time.Duration
		trials int
	}{{"loopback", 0, b.scaled(2000)}, {"20 ms each way", 20 * time.Millisecond, b.scaled(200)}} {
		ages, err := b.push(ctx, wire.delay, wire.trials)
		if err != nil {
			return nil, err
		}
		slices.Sort(ages)
		t.add(wire.name, fmt.Sprint(len(ages)),
			millis(ages[len(ages)/2]), millis(ages[len(ages)*99/100]), millis(ages[len(ages)-1]))
	}
	return []table{t}, nil
}

func (b *bench) push(ctx context.Context, delay time.Duration, trials int) (ages []time.Duration, err error) {
	r, err := newRelay(b.server.Addr, delay)
	if err != nil {
		return nil, err
	}
	defer r.close()
	url := b.server.URL
	if delay > 0 {
		url = r.url()
	}
	s, err := openCaching(ctx, url, hour)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	o, err := startChild(ctx, "other", b.server.URL)
	if err != nil {
		return nil, err
	}
	defer o.stop()
	for range trials {
		id := tombstore.NewID()
		if _, err := o.do("w", id); err != nil {
			return nil, err
		}
		if err := warm(ctx, s, id); err != nil {
			return nil, err
		}
		last := make(chan time.Time)
		go func() {
			var live time.Time
			for {
				begun := time.Now()
				if _, err := s.Read(ctx, id); err != nil {
					break
				}
				live = begun
			}
			last <- live
		}()
		returned, err := o.do("i", id)
		if err != nil {
			return nil, err
		}
		ages = append(ages, max(0, (<-last).Sub(returned)))
	}
	return ages, nil
}

// cut measures the longest stale answer when messages cannot arrive.
func cut(ctx context.Context, b *bench) ([]table, error) {
	t := table{
		title: "When messages cannot arrive: the longest stale answer",
		head:  []string{"fault", "maxAge", "longest", "Staleness"},
	}
	ages := []time.Duration{hour, time.Second}
	if b.part > 1 {
		ages = ages[1:]
	}
	for _, maxAge := range ages {
		for _, fault := range []string{"the wire is silent", "the server is stopped (SIGSTOP)"} {
			longest, bound, err := b.cut(ctx, fault, maxAge)
			if err != nil {
				return nil, err
			}
			if longest > bound {
				return nil, fmt.Errorf("%s: stale for %v, more than %v", fault, longest, bound)
			}
			t.add(fault, maxAge.String(), fmt.Sprintf("%.3f s", longest.Seconds()), bound.String())
		}
	}
	return []table{t}, nil
}

func (b *bench) cut(
	ctx context.Context, fault string, maxAge time.Duration,
) (longest, bound time.Duration, err error) {
	r, err := newRelay(b.server.Addr, 0)
	if err != nil {
		return 0, 0, err
	}
	defer r.close()
	s, err := openCaching(ctx, r.url(), maxAge)
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	o, err := startChild(ctx, "other", b.server.URL)
	if err != nil {
		return 0, 0, err
	}
	defer o.stop()
	id := tombstore.NewID()
	if _, err := o.do("w", id); err != nil {
		return 0, 0, err
	}
	if err := warm(ctx, s, id); err != nil {
		return 0, 0, err
	}
	cutAt := time.Now()
	if strings.HasPrefix(fault, "the wire") {
		r.silent.Store(true)
		if _, err := o.do("i", id); err != nil {
			return 0, 0, err
		}
	} else {
		if err := b.server.Suspend(); err != nil {
			return 0, 0, err
		}
		defer func() { _ = b.server.Wake() }()
	}
	for time.Since(cutAt) < s.Staleness()+2*time.Second {
		begun := time.Now()
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, err := s.Read(short, id)
		cancel()
		if err == nil {
			longest = begun.Sub(cutAt)
		}
		time.Sleep(time.Millisecond)
	}
	return longest, s.Staleness(), nil
}
