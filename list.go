package tombstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Lister is a Store that can show what it holds, for pages that list sessions and for logging a user out everywhere. Both
// stores of this package implement it. It is safe for concurrent use.
type Lister interface {
	Store

	// List returns the live sessions, in no order. One that is live from beginning to end is returned at least once; one that
	// comes or goes meanwhile may be missing. After an error it goes on only if that is an [ErrCorrupt]. On a server it walks
	// through all keys (SCAN), so it takes time in proportion to all that the server holds. In a cluster it fails while a node is
	// down, and may miss sessions whose slots move meanwhile.
	List(ctx context.Context) iter.Seq2[Entry, error]

	// InvalidateRef is Invalidate for the session that List returned with ref. It must return an error wrapping
	// [ErrInvalidID] if ref is none.
	InvalidateRef(ctx context.Context, ref string, opts ...InvalidateOption) error
}

var (
	_ Lister = (*RedisStore)(nil)
	_ Lister = (*MemoryStore)(nil)
)

// Entry is a live session in a list.
type Entry struct {
	// Ref stands for the session and is of no use as a cookie: it can be logged, and shown to an administrator. With
	// WithPlainIDs it is the id itself.
	Ref string
	Session
}

// Ref returns the digest of id that the session's key carries, unless WithPlainIDs is set. It can be logged.
func Ref(id string) string {
	digest := sha256.Sum256([]byte(id))
	return base64.RawURLEncoding.EncodeToString(digest[:refEntropy])
}

// refKey returns the key of the session with this ref.
func (c *config) refKey(ref string) (string, error) {
	valid := ref != "" && len(ref) <= maxIDLength
	if !c.plainIDs { // one spelling only, because the text becomes the key
		raw, err := base64.RawURLEncoding.Strict().DecodeString(ref)
		valid = err == nil && len(raw) == refEntropy && len(ref) == base64.RawURLEncoding.EncodedLen(refEntropy)
	}
	if !valid {
		return "", ErrInvalidID
	}
	return c.prefix + ref, nil
}

// List implements [Lister].
func (s *RedisStore) List(ctx context.Context) iter.Seq2[Entry, error] {
	const verb = "list"
	return func(yield func(Entry, error) bool) {
		nodes, err := s.primaries(ctx)
		if err != nil {
			yield(Entry{}, wrap(verb, explain(err)))
			return
		}
		for _, node := range nodes {
			for cursor := uint64(0); ; {
				page, err := s.scan(ctx, node, cursor)
				if err != nil {
					yield(Entry{}, wrap(verb, explain(err)))
					return
				}
				for _, key := range page.Elements {
					ref := strings.TrimPrefix(key, s.prefix)
					if _, err := s.refKey(ref); err != nil { // of a store whose prefix begins with this one
						continue
					}
					value, err := s.query(ctx, "GET", key)
					session, err := s.session(verb, value, err)
					if isGone(err) {
						continue
					}
					if !yield(Entry{Ref: ref, Session: session}, err) {
						return
					}
					if err != nil && !errors.Is(err, ErrCorrupt) {
						return
					}
				}
				if cursor = page.Cursor; cursor == 0 {
					break
				}
			}
		}
	}
}

var errSlots = errors.New("a part of the cluster's slots is served by no node that is known")

// primaries returns a client for each node that holds keys of its own. Each tells which slots it serves, and together they must serve all:
// rueidis forgets the nodes of a shard that is down, and a list without them would look complete.
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
			return nil, fmt.Errorf("a node of the cluster does not tell its slots: %w", err)
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

// ownSlots notes the slots that a node says to serve itself in CLUSTER NODES, and reports whether there are any. Addresses are not looked
// at: a node may know itself by another one than others do.
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

func (s *RedisStore) scan(ctx context.Context, node rueidis.Client, cursor uint64) (rueidis.ScanEntry, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	glob := strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`).Replace(s.prefix) + "*"
	res, _ := s.sendTo(ctx, node, func() rueidis.Completed { // not the typed command, which may be sent to a replica
		return node.B().Arbitrary("SCAN", strconv.FormatUint(cursor, 10), "MATCH", glob, "COUNT", "1000").Build()
	})
	page, err := res.AsScanEntry()
	if errors.As(err, new(*strconv.NumError)) { // its text quotes the reply
		err = errUnexpected
	}
	return page, err
}

// InvalidateRef implements [Lister].
func (s *RedisStore) InvalidateRef(ctx context.Context, ref string, opts ...InvalidateOption) error {
	const verb = "invalidate"
	key, err := s.refKey(ref)
	if err != nil {
		return wrap(verb, err)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.end(ctx, verb, key, collect(opts))
}

// List implements [Lister]. It returns what was live when the iteration began.
func (m *MemoryStore) List(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range m.snapshot(time.Now()) {
			if err := ctx.Err(); err != nil {
				yield(Entry{}, wrap("list", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m *MemoryStore) snapshot(now time.Time) (live []Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.entries {
		if e, err := m.live(key, now); err == nil {
			live = append(live, Entry{Ref: strings.TrimPrefix(key, m.prefix), Session: e.copied()})
		}
	}
	return live
}

// InvalidateRef implements [Lister].
func (m *MemoryStore) InvalidateRef(ctx context.Context, ref string, opts ...InvalidateOption) error {
	const verb = "invalidate"
	key, err := m.refKey(ref)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return wrap(verb, err)
	}
	return m.invalidate(verb, key, collect(opts))
}
