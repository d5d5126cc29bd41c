package tombstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

const (
	// listMargin is how long before a walk begins a session may have left its old id and still be
	// on its way to the new one: the time of a long request, and by how much clocks differ.
	listMargin = 10 * time.Minute

	// takeOverFor is how long a renewal that was given up can be taken over (invalidate.lua has it
	// too): less than listMargin, so that no list misses one, even if clocks differ.
	takeOverFor = 5 * time.Minute
	listChunk   = 100 // sessions read in one pipeline
)

// List implements [Lister]. It walks twice: through the live sessions, and then through the
// tombstones. A session that moves during the first walk may be missed there, since SCAN promises
// nothing about a key that is made meanwhile; but then the second walk meets the tombstone of the
// id that the session has left, and follows it. It names again only what has moved between the two.
func (s *RedisStore) List(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		ctx, op := s.begin(ctx, "list", "")
		var last error
		defer func() { op.end(last) }() // whatever the caller does
		for e, err := range s.list(ctx) {
			last = cmp.Or(err, last)
			if !yield(e, wrap("list", err)) {
				return
			}
		}
	}
}

func (s *RedisStore) list(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		w := walk{RedisStore: s, young: time.Now().Add(-listMargin), yield: yield, named: map[uint64]bool{}}
		err := w.through(ctx, "string", w.records)
		if err == nil {
			err = w.through(ctx, "hash", w.tombstones)
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(Entry{}, explain(err))
		}
	}
}

var errStop = errors.New("the caller wants no more")

type walk struct {
	*RedisStore
	young time.Time // tombstones since then are followed
	yield func(Entry, error) bool
	named map[uint64]bool // hashes of the refs of live sessions that were named
}

// name hands an entry to the caller, or an ErrCorrupt.
func (w *walk) name(e Entry, err error) error {
	if !w.yield(e, err) {
		return errStop
	}
	return nil
}

// through calls visit with the refs of all keys of one type, in chunks.
func (w *walk) through(
	ctx context.Context, kind string, visit func(ctx context.Context, refs []string) error,
) error {
	nodes, err := w.primaries(ctx)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		for cursor := uint64(0); ; {
			page, err := w.scan(ctx, node, kind, cursor)
			if err != nil {
				return err
			}
			var refs []string
			for _, key := range page.Elements {
				ref := strings.TrimPrefix(key, w.prefix)
				if _, err := w.refKey(ref); err == nil { // not of a store whose prefix begins with this one
					refs = append(refs, ref)
				}
			}
			for chunk := range slices.Chunk(refs, listChunk) {
				if err := visit(ctx, chunk); err != nil {
					return err
				}
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
	}
	return nil
}

// each runs a command that reads on each ref, in one pipeline.
func (w *walk) each(ctx context.Context, refs []string, command string, args ...string) ([]rueidis.RedisResult, error) {
	ctx, cancel := w.bounded(ctx)
	defer cancel()
	return w.pipeline(ctx, w.client, func() []rueidis.Completed {
		commands := make([]rueidis.Completed, len(refs))
		for i, ref := range refs {
			commands[i] = w.client.B().Arbitrary(command).Keys(w.prefix + ref).Args(args...).Build()
		}
		return commands
	})
}

// records names the live sessions among refs.
func (w *walk) records(ctx context.Context, refs []string) error {
	_, _, err := w.live(ctx, refs)
	return err
}

// live names the live sessions among refs, and returns the indices of those that are absent and of
// those whose key is not a string.
func (w *walk) live(ctx context.Context, refs []string) (absent, other []int, err error) {
	results, err := w.each(ctx, refs, "GET")
	if err != nil {
		return nil, nil, err
	}
	for i, res := range results {
		value, err := bytesOf(res)
		switch {
		case rueidis.IsRedisNil(err):
			absent = append(absent, i)
			continue
		case isWrongType(err):
			other = append(other, i)
			continue
		case err != nil:
			return nil, nil, err
		}
		session, err := decode(value, time.Now())
		if err == nil && (w.sealed || isSealed(session.header)) {
			session.Data = nil
		}
		hash := maphash.String(epochSeed, refs[i])
		if NoSession(err) || w.named[hash] {
			continue
		}
		w.named[hash] = true
		if err := w.name(Entry{Ref: refs[i], Session: session}, err); err != nil {
			return nil, nil, err
		}
	}
	return absent, other, nil
}

// tombstones names the sessions that have lately left the ids of refs, where they are, or as
// pending if they are between two ids.
func (w *walk) tombstones(ctx context.Context, refs []string) error {
	for hop := 0; len(refs) > 0 && hop < maxHops; hop++ {
		results, err := w.each(ctx, refs, "HMGET", "t", "s", "h")
		if err != nil {
			return err
		}
		var from, to []string
		for i, res := range results {
			end, successor, renewable, err := tombstoneOf(res)
			switch {
			case isWrongType(err): // a session has begun under the id
				continue
			case errors.Is(err, ErrCorrupt):
				err = w.name(Entry{Ref: refs[i]}, err)
			case err != nil || end == nil || hop == 0 && end.At.Before(w.young):
			case successor != "":
				from, to = append(from, refs[i]), append(to, successor)
			case renewable:
				err = w.name(Entry{Ref: refs[i], Pending: true}, nil)
			}
			if err != nil {
				return err
			}
		}
		if refs = nil; len(to) == 0 {
			break
		}
		absent, other, err := w.live(ctx, to)
		if err != nil {
			return err
		}
		for _, i := range absent {
			if err := w.name(Entry{Ref: from[i], Pending: true}, nil); err != nil {
				return err
			}
		}
		for _, i := range other {
			refs = append(refs, to[i])
		}
	}
	return nil
}

// tombstoneOf takes the reply to HMGET t s h apart. end is nil if the key is absent. A tombstone
// that has the header of its session is that of a renewal.
func tombstoneOf(
	res rueidis.RedisResult,
) (end *InvalidatedError, successor string, renewable bool, err error) {
	parts, err := partsOf(res, 3)
	if err != nil {
		return nil, "", false, err
	}
	if parts[0].IsNil() {
		return nil, "", false, nil
	}
	t, err := parts[0].ToString()
	if err != nil {
		return nil, "", false, errUnexpected
	}
	err = parseEnd(t)
	end, ok := errors.AsType[*InvalidatedError](err)
	if !ok {
		return nil, "", false, err
	}
	if !parts[1].IsNil() {
		if successor, err = parts[1].ToString(); err != nil {
			return nil, "", false, errUnexpected
		}
	}
	return end, successor, !parts[2].IsNil(), nil
}

var errSlots = errors.New("no known node serves some of the cluster's slots")

// primaries returns a client for each node that holds keys of its own. Each tells which slots it
// serves, and together they must serve all: rueidis forgets the nodes of a shard that is down, and
// a list without them would look complete.
func (s *RedisStore) primaries(ctx context.Context) ([]rueidis.Client, error) {
	if s.client.Mode() != rueidis.ClientModeCluster {
		return []rueidis.Client{s.client}, nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var primaries []rueidis.Client
	var served [clusterSlots]bool
	for _, node := range s.client.Nodes() {
		res, _ := s.sendTo(ctx, node, func() rueidis.Completed { return node.B().ClusterNodes().Build() })
		view, err := res.ToString()
		if err != nil {
			return nil, fmt.Errorf("cluster node did not report its slots: %w", err)
		}
		if ownSlots(view, &served) {
			primaries = append(primaries, node)
		}
	}
	if slices.Contains(served[:], false) {
		return nil, errSlots
	}
	return primaries, nil
}

const clusterSlots = 16384

// ownSlots notes the slots that a node says it serves in CLUSTER NODES, and reports whether there
// are any. Addresses are not looked at: a node may know itself by an address that others do not
// use.
func ownSlots(view string, served *[clusterSlots]bool) (own bool) {
	for line := range strings.Lines(view) {
		words := strings.Fields(line)
		if len(words) < 9 || !slices.Contains(strings.Split(words[2], ","), "myself") {
			continue
		}
		for _, slots := range words[8:] { // one in brackets is on its way
			low, high, isRange := strings.Cut(slots, "-")
			if !isRange {
				high = low
			}
			first, err := strconv.Atoi(low)
			last, err2 := strconv.Atoi(high)
			if err != nil || err2 != nil || first < 0 || last >= clusterSlots {
				continue
			}
			for ; first <= last; first++ {
				served[first], own = true, true
			}
		}
	}
	return own
}

// scan returns a page of the keys of one type on one node.
func (s *RedisStore) scan(
	ctx context.Context, node rueidis.Client, kind string, cursor uint64,
) (rueidis.ScanEntry, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	glob := strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`).Replace(s.prefix) + "*"
	res, _ := s.sendTo(ctx, node, func() rueidis.Completed { // not the typed command, which may be sent to a replica
		return node.B().Arbitrary("SCAN", strconv.FormatUint(cursor, 10)).
			Args("MATCH", glob, "COUNT", "1000", "TYPE", kind).Build()
	})
	page, err := res.AsScanEntry()
	if _, ok := errors.AsType[*strconv.NumError](err); ok { // its text quotes the reply
		err = errUnexpected
	}
	return page, err
}
