package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore/doctor"
	"github.com/tombstore/tombstore/internal/client"
)

const doctorTimeout = 30 * time.Second

// command is a command on the server at the URL that is its first argument.
type command struct {
	flags  *flag.FlagSet
	prefix *string
	stderr io.Writer
	input  *input // what else it is about; nil: nothing
}

func newCommand(name, arguments, help string, stderr io.Writer) command {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "Usage: tombstore %s [flags] %s\n\n%s\n\n", name, arguments, help)
		flags.PrintDefaults()
	}
	prefix := flags.String("prefix", "tombstore:", "key `prefix` of the store")
	return command{flags: flags, prefix: prefix, stderr: stderr}
}

// run parses args and connects; use gets what the command is about.
func (c command) run(args []string, use func(conn rueidis.Client, about []target) int) int {
	if err := c.flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	rest := c.flags.Args()
	if len(rest) == 0 || c.input == nil && len(rest) > 1 {
		c.flags.Usage()
		return exitUsage
	}
	if slices.ContainsFunc(rest, c.isFlag) {
		fmt.Fprintln(c.stderr, "flags come before the URL")
		return exitUsage
	}
	option, err := client.Option(rest[0], true)
	var about []target
	if err == nil && c.input != nil {
		about, err = c.input.read(rest[1:])
	}
	if err != nil {
		fmt.Fprintln(c.stderr, "tombstore:", err)
		return exitUsage
	}
	if c.input != nil && c.input.from != "" && len(about) == 0 {
		return exitOK // as at the end of a pipe from an empty store
	}
	conn, err := client.Dial(option)
	if err != nil {
		fmt.Fprintln(c.stderr, "tombstore: no connection:", err)
		return exitUsage
	}
	defer conn.Close()
	return use(conn, about)
}

// isFlag reports whether arg is a flag of the command. A ref may begin with a dash, too.
func (c command) isFlag(arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return strings.HasPrefix(arg, "-") && c.flags.Lookup(name) != nil
}

// examine is the command doctor.
func examine(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := newCommand("doctor", "URL",
		"Looks at a server's settings for what would bring ended sessions back. Exits with 1 if a finding is\n"+
			"\"fail\", and with 0 if there are only others: ok, unknown (the server does not say), warning.", stderr)
	asJSON := c.flags.Bool("json", false, "print the findings as JSON")
	return c.run(args, func(conn rueidis.Client, _ []target) int {
		ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
		defer cancel()
		findings := doctor.Examine(ctx, conn, *c.prefix)
		if *asJSON {
			out := json.NewEncoder(stdout)
			out.SetIndent("", "  ")
			if err := out.Encode(findings); err != nil {
				fmt.Fprintln(stderr, "tombstore:", err)
				return exitFailed
			}
		} else {
			for _, f := range findings {
				fmt.Fprintf(stdout, "%-8s %-13s %s\n", f.Level, f.Name, f.Text)
				if f.Fix != "" && f.Level != doctor.OK {
					fmt.Fprintf(stdout, "%-22s fix: %s\n", "", f.Fix)
				}
			}
		}
		if doctor.Failed(findings) {
			return exitFailed
		}
		return exitOK
	})
}
