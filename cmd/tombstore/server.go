package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/doctor"
)

const commandTimeout = 30 * time.Second

// onServer parses flags and connects to the URL that is the first argument; use gets the rest.
func onServer(
	ctx context.Context, flags *flag.FlagSet, usage string, args []string, stderr io.Writer,
	use func(ctx context.Context, client rueidis.Client, rest []string) (int, error),
) int {
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "Usage: tombstore %s [flags] %s\n", flags.Name(), usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	option, err := rueidis.ParseURL(flags.Arg(0))
	if err != nil { // its text may show the password
		fmt.Fprintln(stderr, "tombstore: malformed URL, want redis://host:port")
		return exitUsage
	}
	option.DisableRetry = true
	client, err := rueidis.NewClient(option)
	if errors.Is(err, rueidis.ErrNoCache) { // the doctor will say so
		option.DisableCache = true
		client, err = rueidis.NewClient(option)
	}
	if err != nil {
		fmt.Fprintln(stderr, "tombstore: no connection:", err)
		return exitUsage
	}
	defer client.Close()
	status, err := use(ctx, client, flags.Args()[1:])
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return status
}

// examine is the command doctor.
func examine(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	asJSON := flags.Bool("json", false, "print the findings as JSON")
	return onServer(ctx, flags, "URL", args, stderr, func(ctx context.Context, client rueidis.Client, _ []string) (int, error) {
		findings := doctor.Examine(ctx, client)
		if *asJSON {
			out := json.NewEncoder(stdout)
			out.SetIndent("", "  ")
			if err := out.Encode(findings); err != nil {
				return exitFailed, err
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
			return exitFailed, nil
		}
		return exitOK, nil
	})
}

// inspect shows the state of sessions, by their refs, and never their data.
func inspect(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("inspect", flag.ContinueOnError)
	prefix := flags.String("prefix", "tombstore:", "key prefix of the store")
	return onServer(ctx, flags, "URL REF...", args, stderr, func(ctx context.Context, client rueidis.Client, refs []string) (int, error) {
		for _, ref := range refs {
			key := *prefix + ref
			header, err := client.Do(ctx, client.B().Arbitrary("GETRANGE").Keys(key).Args("0", "21").Build()).AsBytes()
			if err != nil {
				return exitFailed, fmt.Errorf("tombstore: inspect: %w", err)
			}
			ttl, err := client.Do(ctx, client.B().Arbitrary("PTTL").Keys(key).Build()).AsInt64()
			if err != nil {
				return exitFailed, fmt.Errorf("tombstore: inspect: %w", err)
			}
			fmt.Fprintf(stdout, "%s  %s\n", ref, state(header, time.Duration(ttl)*time.Millisecond))
		}
		return exitOK, nil
	})
}

// state describes the start of a stored value; docs/design.md has its form.
func state(header []byte, ttl time.Duration) string {
	at := func(offset int) string {
		ms := binary.BigEndian.Uint64(append([]byte{0, 0}, header[offset:offset+6]...))
		return time.UnixMilli(int64(ms)).UTC().Format(time.RFC3339)
	}
	switch {
	case len(header) == 0:
		return "absent"
	case len(header) == 8 && header[0] == 0xC0:
		return fmt.Sprintf("ended (%s) at %s, tombstone expires in %v", tombstore.Reason(header[1]), at(2), ttl.Round(time.Second))
	case len(header) == 22 && header[0] == 0xC1 && header[1] == 0:
		text := fmt.Sprintf("live, created at %s, expires in %v", at(10), ttl.Round(time.Second))
		if binary.BigEndian.Uint32(header[18:]) != 0 || header[16] != 0 || header[17] != 0 {
			text += ", at the latest at " + at(16)
		}
		return text
	}
	return "foreign value"
}

// invalidate ends sessions by their refs.
func invalidate(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("invalidate", flag.ContinueOnError)
	prefix := flags.String("prefix", "tombstore:", "key prefix of the store")
	return onServer(ctx, flags, "URL REF...", args, stderr, func(ctx context.Context, client rueidis.Client, refs []string) (int, error) {
		s, err := tombstore.New(client, tombstore.WithKeyPrefix(*prefix))
		if err != nil {
			return exitUsage, err
		}
		for _, ref := range refs {
			if err := s.InvalidateRef(ctx, ref, tombstore.WithReason(tombstore.Revoked)); err != nil {
				return exitFailed, err
			}
			fmt.Fprintf(stdout, "%s  ended\n", ref)
		}
		return exitOK, nil
	})
}
