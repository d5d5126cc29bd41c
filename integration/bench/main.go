// Command bench compares tombstore with plain commands and with the usual Redis backends, on a
// server that it starts and stops itself. It prints ratios from one run as Markdown tables; with
// -write it puts them, a plot, and the machine into the documents. From integration/:
//
//	go run ./bench [-only sections] [-quick] [-write ../docs]
//	go run ./bench -plot ../docs
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/tombstore/tombstore/internal/redistest"
)

// bench is one run.
type bench struct {
	server  server
	version string // of the server
	part    int    // of the work is done: 1 is all of it, 10 a tenth
	figures []figure
}

// table is what a section has found.
type table struct {
	title, note string
	head        []string
	rows        [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

var sections = []struct {
	name string
	run  func(ctx context.Context, b *bench) ([]table, error)
}{
	{"cost", cost}, {"single", single}, {"mixed", mixed}, {"memory", memory}, {"races", races}, {"push", push},
	{"cut", cut}, {"grow", grow}, {"handlers", handlers},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		exit(worker(ctx, os.Args[2:]))
	}
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	only := flag.String("only", "",
		"`sections` to run, separated by commas, of "+strings.Join(names, ", ")+"; all if empty")
	quick := flag.Bool("quick", false, "run a tenth of it")
	write := flag.String("write", "", "`folder` of the documents: write performance.md and performance.svg there")
	plotted := flag.String("plot", "",
		"`folder` of the documents: draw performance.svg there from the tables of performance.md, and run nothing")
	flag.Parse()
	if *plotted != "" {
		exit(draw(*plotted))
	}
	part := 1
	if *quick {
		part = 10
	}
	exit(run(ctx, *only, part, *write))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, only string, part int, write string) error {
	b := &bench{part: part}
	var tables []table
	for _, s := range sections {
		if only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
			continue
		}
		found, err := b.section(ctx, s.run)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for _, t := range found {
			fmt.Print(t)
		}
		tables = append(tables, found...)
	}
	if len(b.figures) > 0 {
		t := figures(b.figures)
		fmt.Print(t)
		tables = slices.Insert(tables, 0, t)
	}
	if write == "" {
		return nil
	}
	if err := publish(filepath.Join(write, "performance.md"), b.version, tables); err != nil {
		return err
	}
	return draw(write)
}

// section gives each section a server of its own.
func (b *bench) section(
	ctx context.Context, run func(context.Context, *bench) ([]table, error),
) (found []table, err error) {
	if b.server.Server, err = redistest.New(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.server.Stop()) }()
	if b.version, err = b.server.version(); err != nil {
		return nil, err
	}
	return run(ctx, b)
}

// scaled returns the part of n that this run does.
func (b *bench) scaled(n int) int { return max(1, n/b.part) }

func (b *bench) time(d time.Duration) time.Duration { return d / time.Duration(b.part) }

func (t table) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "\n### %s\n\n", t.title)
	if t.note != "" {
		fmt.Fprintf(&s, "%s\n\n", wrapped(t.note))
	}
	fmt.Fprintf(&s, "| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, row := range t.rows {
		fmt.Fprintf(&s, "| %s |\n", strings.Join(row, " | "))
	}
	return s.String()
}

// wrapped breaks text into lines.
func wrapped(text string) string {
	var s strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
		case column+1+len(word) > 100:
			s.WriteByte('\n')
			column = 0
		default:
			s.WriteByte(' ')
			column++
		}
		s.WriteString(word)
		column += len(word)
	}
	return s.String()
}

const (
	begin = "<!-- bench: begin -->\n"
	end   = "<!-- bench: end -->\n"
)

// publish puts the tables between the marks of a file.
func publish(path, version string, tables []table) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks", path)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "\nMeasured on %s, %d cores, %s, %s.\n", cpu(), runtime.NumCPU(), runtime.Version(), version)
	for _, t := range tables {
		s.WriteString(t.String())
	}
	s.WriteString("\n")
	return os.WriteFile(path, []byte(head+begin+s.String()+end+tail), 0o644)
}

func cpu() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func ratio(x float64) string { return fmt.Sprintf("%.2f", x) }

func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// median sorts x.
func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}
