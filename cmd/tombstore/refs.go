package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/urfave/cli/v3"

	"github.com/tombstore/tombstore"
)

const (
	inspectTimeout = 2 * time.Second // for each ref

	// Of a record, as package tombstore has it.
	itemOwner = 1
	itemLabel = 2
	headRead  = 22 + 2 + 4*(3+16) + 3 + 1024 // bytes, with four owners and the longest label
)

// query is a command on sessions that prints reports.
type query struct {
	serverCommand
	input
}

// command completes c. answer prints what it has found.
func (q *query) command(
	c *cli.Command, answer func(ctx context.Context, conn rueidis.Client, about []target, out *printer) error,
) *cli.Command {
	q.serverCommand.input = &q.input
	q.run = func(ctx context.Context, conn rueidis.Client, about []target, stdout, stderr io.Writer) error {
		out := &printer{asJSON: q.asJSON, stdout: stdout, stderr: stderr}
		if err := answer(ctx, conn, about, out); err != nil {
			return err
		}
		return out.err()
	}
	return q.serverCommand.command(c)
}

// store returns the store that the command works on. What it ends is told to those who watch.
func (q *query) store(conn rueidis.Client) (*tombstore.RedisStore, error) {
	s, err := tombstore.New(conn, tombstore.WithKeyPrefix(q.prefix), tombstore.WithPublish())
	if err != nil {
		err = usageError{err}
	}
	return s, err
}

// listCommand shows the refs of the sessions that are live, and of those that are between two ids.
func listCommand() *cli.Command {
	q := &query{}
	q.orAll = true
	q.ownerFlag("list the sessions of owners")
	return q.command(&cli.Command{
		Name:      "list",
		Usage:     "list live sessions, or those of an owner, by their refs",
		ArgsUsage: "URL [OWNER...]",
		Description: "Sessions of a store with plain ids have no refs, and are not listed. The exit status is 1 if not all\n" +
			"could be read.",
	}, func(ctx context.Context, conn rueidis.Client, about []target, out *printer) error {
		s, err := q.store(conn)
		if err != nil {
			return err
		}
		if q.owners {
			for _, t := range about {
				listOwned(ctx, s, t, out)
			}
			return nil
		}
		for e, err := range s.List(ctx) {
			r := report{Ref: e.Ref}
			switch {
			case err != nil:
				r.Error = err.Error()
			case e.Pending:
				r.State, r.text = pending, "pending: between two ids"
			default:
				r.Label, r.CreatedAt, r.Deadline = e.Label(), e.CreatedAt.UTC(), utc(e.Deadline())
				for _, owner := range e.Owners() {
					r.owned(owner)
				}
				r.sayLive("")
			}
			out.print(r)
		}
		return nil
	})
}

// inspectCommand shows the state of sessions, and never their data.
func inspectCommand() *cli.Command {
	q := &query{}
	q.idFlag()
	return q.command(&cli.Command{
		Name:        "inspect",
		Usage:       "show the state of sessions by their refs, without their data",
		ArgsUsage:   "URL [REF...]",
		Description: "The exit status is 1 if something is no ref, or its key cannot be read or holds a foreign value.",
	}, func(ctx context.Context, conn rueidis.Client, about []target, out *printer) error {
		for _, t := range about {
			r := t.report()
			if t.err == nil {
				r = look(ctx, conn, q.prefix, t.ref)
			}
			out.print(r)
			out.failed = out.failed || r.State == foreign
		}
		return nil
	})
}

// look describes what the server holds for ref. record.go in the package tombstore has its form.
func look(ctx context.Context, conn rueidis.Client, prefix, ref string) report {
	r := report{Ref: ref}
	if err := r.look(ctx, conn, prefix); err != nil {
		r = report{Ref: ref, Error: err.Error()}
	}
	return r
}

func (r *report) look(ctx context.Context, conn rueidis.Client, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	key := prefix + r.Ref
	results := conn.DoMulti(ctx, // not the typed commands, which may be sent to a replica
		conn.B().Arbitrary("GETRANGE").Keys(key).Args("0", strconv.Itoa(headRead-1)).Build(),
		conn.B().Arbitrary("HMGET").Keys(key).Args("t", "s", "c").Build(),
		conn.B().Arbitrary("PTTL").Keys(key).Build(),
	)
	ms, err := results[2].AsInt64()
	if err != nil {
		return err
	}
	expiry := "never expires"
	if left := time.Duration(ms) * time.Millisecond; left >= 0 {
		r.ExpiresAt, expiry = time.Now().UTC().Add(left).Truncate(time.Millisecond), expiresIn(left)
	}
	head, err := results[0].AsBytes()
	switch {
	case err == nil && len(head) == 0:
		r.State, r.text = absent, "absent"
		return nil
	case err == nil:
		r.live(head, expiry)
		return nil
	case !isWrongType(err):
		return err
	}
	fields, err := results[1].ToArray()
	switch {
	case isWrongType(err):
		r.foreign()
	case err != nil:
		return err
	case len(fields) != 3:
		return errors.New("unexpected reply")
	default:
		r.tombstone(fields, expiry)
	}
	return nil
}

func (r *report) foreign() { *r = report{Ref: r.Ref, State: foreign, text: "foreign value"} }

// live describes the first bytes of a record.
func (r *report) live(head []byte, expiry string) {
	if len(head) < 22 || head[0] != 0xC1 || head[1] > 0x7F && head[1]>>4 != 9 { // 9: its data is sealed
		r.foreign()
		return
	}
	r.CreatedAt = milliseconds(head[10:])
	if string(head[16:22]) != "\x00\x00\x00\x00\x00\x00" {
		r.Deadline = milliseconds(head[16:])
	}
	for _, digest := range itemsIn(head, itemOwner) {
		r.owned(base64.RawURLEncoding.EncodeToString([]byte(digest)))
	}
	for _, label := range itemsIn(head, itemLabel) {
		r.Label = label
	}
	r.sayLive(expiry)
}

// itemsIn returns the items of a kind in the record that begins with head. What follows the items
// is data.
func itemsIn(head []byte, kind byte) (found []string) {
	if head[1]&1 == 0 || len(head) < 24 {
		return nil
	}
	items := head[24:min(len(head), 24+int(binary.BigEndian.Uint16(head[22:])))]
	for len(items) >= 3 {
		size := 3 + int(binary.BigEndian.Uint16(items[1:]))
		if size > len(items) {
			return found
		}
		if items[0] == kind {
			found = append(found, string(items[3:size]))
		}
		items = items[size:]
	}
	return found
}

// tombstone describes a tombstone by its end, its successor and its claim.
func (r *report) tombstone(fields []rueidis.RedisMessage, expiry string) {
	end, err := fields[0].AsBytes()
	if err != nil || len(end) < 9 || end[0] != 0xC0 || end[1] > 0x7F {
		r.foreign()
		return
	}
	r.State, r.Reason, r.EndedAt = ended, tombstore.Reason(end[2]).String(), milliseconds(end[3:])
	r.text = fmt.Sprintf("ended (%s) at %s", r.Reason, stamp(r.EndedAt))
	switch successor, err := fields[1].ToString(); {
	case err == nil && !isRef(successor):
		r.foreign()
		return
	case err == nil:
		r.MovedTo = successor
		r.text += ", moved to " + successor
	}
	if !fields[2].IsNil() {
		r.Renewing = true
		r.text += ", a renewal is under way"
	}
	r.text += ", tombstone " + expiry
}

// milliseconds returns the time in six bytes.
func milliseconds(b []byte) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(append([]byte{0, 0}, b[:6]...)))).UTC()
}

func expiresIn(left time.Duration) string { return "expires in " + left.Round(time.Second).String() }

// utc leaves a zero time what it is.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

func isRef(ref string) bool {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(ref)
	return err == nil && base64.RawURLEncoding.EncodeToString(raw) == ref && len(raw) == 16
}

func isWrongType(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(reply.Error(), "WRONGTYPE")
}

// invalidateCommand ends sessions, or all sessions of owners.
func invalidateCommand() *cli.Command {
	q := &query{}
	q.idFlag()
	q.ownerFlag("end all sessions of owners")
	q.own = append(q.own, &cli.BoolFlag{
		Name:        "thorough",
		Usage:       "with -owner: look at all keys, for an owner's may have been lost",
		Destination: &q.thorough,
	})
	return q.command(&cli.Command{
		Name:      "invalidate",
		Usage:     "end sessions by their refs, or all those of an owner",
		ArgsUsage: "URL [REF... | OWNER...]",
		Description: "The exit status is 1 unless each session was live or had been ended before; of owners, unless each\n" +
			"was known and all their sessions were ended.",
	}, func(ctx context.Context, conn rueidis.Client, about []target, out *printer) error {
		s, err := q.store(conn)
		if err != nil {
			return err
		}
		count := 0
		for _, t := range about {
			r := t.report()
			switch {
			case t.err != nil:
			case t.owner != "":
				r.endOwned(ctx, s, t.owner, q.thorough)
			default:
				r.end(ctx, s, look(ctx, conn, q.prefix, t.ref))
			}
			if r.Ended != nil {
				count += *r.Ended
			}
			out.print(r)
			out.failed = out.failed || r.State == absent
		}
		switch {
		case count == 0:
			out.remark("ended nothing")
		case q.owners:
			out.remark(fmt.Sprintf("sessions ended in all: %d", count))
		default:
			out.remark(fmt.Sprintf("ended %d of %d", count, len(about)))
		}
		return nil
	})
}

// end ends a session and says what was there, which was looked at before.
func (r *report) end(ctx context.Context, s *tombstore.RedisStore, before report) {
	revoked := tombstore.WithReason(tombstore.Revoked)
	err := s.InvalidateRef(ctx, r.Ref, revoked, tombstore.IfLive())
	var end *tombstore.InvalidatedError
	n := 0
	switch {
	case err == nil:
		n, r.State, r.text = 1, live, "ended"
	case errors.As(err, &end):
		r.State, r.Reason, r.EndedAt = ended, end.Reason.String(), end.At.UTC()
		r.text, err = fmt.Sprintf("had been ended before (%s) at %s", r.Reason, stamp(r.EndedAt)), nil
	case errors.Is(err, tombstore.ErrNotFound):
		r.State, r.text = absent, "was absent, and is refused from now on"
		err = s.InvalidateRef(ctx, r.Ref, revoked)
	}
	switch {
	case err != nil:
		*r = report{Ref: r.Ref, Error: err.Error()}
		return
	case n == 0 && before.Renewing:
		n, *r = 1, report{Ref: r.Ref, State: pending, text: "ended between two ids"}
	}
	r.Ended = &n
}
