package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/urfave/cli/v3"

	"github.com/tombstore/tombstore/doctor"
	"github.com/tombstore/tombstore/internal/client"
)

const doctorTimeout = 30 * time.Second

// serverCommand is a command on the server at the URL that is its first argument.
type serverCommand struct {
	prefix string
	asJSON bool
	input  *input // what else it is about; nil: nothing
	run    func(ctx context.Context, conn rueidis.Client, about []target, stdout, stderr io.Writer) error
}

// command completes c, which has name, help and the flags that are its own.
func (s *serverCommand) command(c *cli.Command) *cli.Command {
	one := 1
	c.StopOnNthArg = &one // what follows the URL is no flag: a ref may begin with a dash
	c.HideHelpCommand = true
	c.OnUsageError = wrongUsage
	c.Flags = append(c.Flags,
		&cli.StringFlag{Name: "prefix", Value: "tombstore:", Usage: "key `prefix` of the store", Destination: &s.prefix},
		jsonFlag(&s.asJSON),
	)
	if s.input != nil {
		c.Flags = append(c.Flags, s.input.flags()...)
	}
	c.Action = s.act
	return c
}

func jsonFlag(set *bool) cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON, one object a line", Destination: set}
}

func (s *serverCommand) act(ctx context.Context, c *cli.Command) error {
	args := c.Args().Slice()
	if len(args) == 0 || s.input == nil && len(args) > 1 {
		return wrongUsage(ctx, c, errors.New("one URL is wanted"), true)
	}
	isFlag := func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		return strings.HasPrefix(arg, "-") && slices.ContainsFunc(c.Flags, func(f cli.Flag) bool {
			return slices.Contains(f.Names(), name)
		})
	}
	if slices.ContainsFunc(args, isFlag) {
		return usageError{errors.New("flags come before the URL")}
	}
	option, err := client.Option(args[0], true)
	var about []target
	if err == nil && s.input != nil {
		about, err = s.input.read(c.Root().Reader, args[1:])
	}
	if err != nil {
		return usageError{err}
	}
	if s.input != nil && s.input.from != "" && len(about) == 0 {
		return nil // as at the end of a pipe from an empty store
	}
	conn, err := client.Dial(option)
	if err != nil {
		return usageError{fmt.Errorf("no connection: %w", err)}
	}
	defer conn.Close()
	return s.run(ctx, conn, about, c.Root().Writer, c.Root().ErrWriter)
}

func doctorCommand() *cli.Command {
	s := &serverCommand{}
	s.run = func(ctx context.Context, conn rueidis.Client, _ []target, stdout, _ io.Writer) error {
		return examine(ctx, conn, s.prefix, s.asJSON, stdout)
	}
	return s.command(&cli.Command{
		Name:      "doctor",
		Usage:     "look at a server's settings for what would bring ended sessions back",
		ArgsUsage: "URL",
		Description: "Each finding is ok, unknown (the server does not say), warning or fail. The exit status is 1 if\n" +
			"one is fail. With -json the findings are one list.",
	})
}

func examine(ctx context.Context, conn rueidis.Client, prefix string, asJSON bool, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	findings := doctor.Examine(ctx, conn, prefix)
	if asJSON {
		out := json.NewEncoder(stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(findings); err != nil {
			return err
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
		return errReported
	}
	return nil
}
