package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

const inspectTimeout = 2 * time.Second // for each ref

// list shows the refs of the sessions that are live, and of those that are between two ids.
func list(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := newCommand("list", "URL",
		"Lists live sessions by their refs; those of a store with plain ids have none. Exits with 1 if not all "+
			"could be read.", stderr)
	return c.run(args, 0, func(conn rueidis.Client, _ []string) int {
		s, err := tombstore.New(conn, tombstore.WithKeyPrefix(*c.prefix))
		if err != nil {
			fmt.Fprintln(stderr, err)
			return exitUsage
		}
		status := exitOK
		for e, err := range s.List(ctx) {
			switch {
			case err != nil:
				fmt.Fprintln(stderr, strings.TrimSpace(e.Ref+"  "+err.Error()))
				status = exitFailed
			case e.Pending:
				fmt.Fprintf(stdout, "%s  pending: between two ids\n", e.Ref)
			default:
				fmt.Fprintf(stdout, "%s  live, created at %s\n", e.Ref, stamp(e.CreatedAt))
			}
		}
		return status
	})
}

// inspect shows the state of sessions by their refs, and never their data.
func inspect(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := newCommand("inspect", "URL REF...",
		"Shows the state of sessions, without their data. Exits with 1 if an argument is not a ref, or its\n"+
			"key cannot be read or holds a foreign value.", stderr)
	return c.run(args, 1, func(conn rueidis.Client, refs []string) int {
		status := exitOK
		for _, ref := range refs {
			text, err := look(ctx, conn, *c.prefix, ref)
			if err != nil {
				fmt.Fprintf(stderr, "%s  %v\n", ref, err)
				status = exitFailed
				continue
			}
			fmt.Fprintf(stdout, "%s  %s\n", ref, text)
			if text == foreign {
				status = exitFailed
			}
		}
		return status
	})
}

// look describes what the server holds for ref. record.go in the package tombstore has its form.
func look(ctx context.Context, conn rueidis.Client, prefix, ref string) (string, error) {
	if !isRef(ref) {
		return "", errors.New("is no ref of a session")
	}
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	results := conn.DoMulti(ctx, // not the typed commands, which may be sent to a replica
		conn.B().Arbitrary("GETRANGE").Keys(prefix+ref).Args("0", "21").Build(),
		conn.B().Arbitrary("HMGET").Keys(prefix+ref).Args("t", "s", "c").Build(),
		conn.B().Arbitrary("PTTL").Keys(prefix+ref).Build(),
	)
	ms, err := results[2].AsInt64()
	if err != nil {
		return "", err
	}
	ttl := "never expires"
	if ms >= 0 {
		ttl = "expires in " + (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
	}
	header, err := results[0].AsBytes()
	switch {
	case err == nil && len(header) == 0:
		return "absent", nil
	case err == nil:
		return live(header, ttl), nil
	case !isWrongType(err):
		return "", err
	}
	fields, err := results[1].ToArray()
	switch {
	case isWrongType(err):
		return foreign, nil
	case err != nil:
		return "", err
	case len(fields) != 3:
		return "", errors.New("unexpected reply")
	}
	return tombstone(fields, ttl), nil
}

const (
	foreign  = "foreign value"
	underWay = ", a renewal is under way"
)

// live describes the first bytes of a record.
func live(header []byte, ttl string) string {
	if len(header) < 22 || header[0] != 0xC1 || header[1] > 0x7F {
		return foreign
	}
	text := fmt.Sprintf("live, created at %s, %s", milliseconds(header[10:]), ttl)
	if string(header[16:22]) != "\x00\x00\x00\x00\x00\x00" {
		text += ", at the latest at " + milliseconds(header[16:])
	}
	return text
}

// tombstone describes a tombstone by its end, its successor and its claim.
func tombstone(fields []rueidis.RedisMessage, ttl string) string {
	end, err := fields[0].AsBytes()
	if err != nil || len(end) < 9 || end[0] != 0xC0 || end[1] > 0x7F {
		return foreign
	}
	text := fmt.Sprintf("ended (%s) at %s", tombstore.Reason(end[2]), milliseconds(end[3:]))
	switch successor, err := fields[1].ToString(); {
	case err == nil && !isRef(successor):
		return foreign
	case err == nil:
		text += ", moved to " + successor
	}
	if !fields[2].IsNil() {
		text += underWay
	}
	return text + ", tombstone " + ttl
}

// milliseconds writes the time in six bytes.
func milliseconds(b []byte) string {
	return stamp(time.UnixMilli(int64(binary.BigEndian.Uint64(append([]byte{0, 0}, b[:6]...)))))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func isRef(ref string) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(ref)
	return err == nil && base64.RawURLEncoding.EncodeToString(raw) == ref && len(raw) == 16
}

func isWrongType(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(reply.Error(), "WRONGTYPE")
}

const (
	ended  = "ended"
	halted = "ended between two ids"
	absent = "was absent, and is refused from now on"
)

// invalidate ends sessions by their refs.
func invalidate(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := newCommand("invalidate", "URL REF...",
		"Ends sessions. Exits with 1 unless each of them was live or had been ended before.", stderr)
	return c.run(args, 1, func(conn rueidis.Client, refs []string) int {
		s, err := tombstore.New(conn, tombstore.WithKeyPrefix(*c.prefix), tombstore.WithPublish())
		if err != nil {
			fmt.Fprintln(stderr, err)
			return exitUsage
		}
		count, status := 0, exitOK
		for _, ref := range refs {
			before, _ := look(ctx, conn, *c.prefix, ref)
			text, err := end(ctx, s, ref)
			if err == nil && text != ended && strings.Contains(before, underWay) {
				text = halted
			}
			if err != nil {
				fmt.Fprintf(stderr, "%s  %v\n", ref, err)
				status = exitFailed
				continue
			}
			fmt.Fprintf(stdout, "%s  %s\n", ref, text)
			switch text {
			case ended, halted:
				count++
			case absent:
				status = exitFailed
			}
		}
		if count == 0 {
			fmt.Fprintln(stdout, "ended nothing")
		} else {
			fmt.Fprintf(stdout, "ended %d of %d\n", count, len(refs))
		}
		return status
	})
}

// end ends a session and says what was there.
func end(ctx context.Context, s *tombstore.RedisStore, ref string) (string, error) {
	revoked := tombstore.WithReason(tombstore.Revoked)
	err := s.InvalidateRef(ctx, ref, revoked, tombstore.IfLive())
	var before *tombstore.InvalidatedError
	switch {
	case errors.As(err, &before):
		return fmt.Sprintf("had been ended before (%s) at %s", before.Reason, stamp(before.At)), nil
	case errors.Is(err, tombstore.ErrNotFound):
		return absent, s.InvalidateRef(ctx, ref, revoked)
	}
	return ended, err
}
