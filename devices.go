package tombstore

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// InvalidateOwned implements [Binder].
func (s *RedisStore) InvalidateOwned(
	ctx context.Context, owner, ref string, opts ...InvalidateOption,
) error {
	ctx, op := s.beginRef(ctx, "invalidate owned", ref)
	return op.end(s.invalidateOwned(ctx, owner, ref, revocation(collect(opts))))
}

// invalidateOwned looks for ref among the owner's, and for what it has become if it is not there.
// An id has its owners for life, so what it finds there still belongs to that owner when it is
// ended.
func (s *RedisStore) invalidateOwned(ctx context.Context, owner, ref string, o InvalidateOptions) error {
	digest, err := ownerOf(owner)
	if err != nil {
		return err
	}
	key, err := s.refKey(ref)
	if err != nil {
		return ErrNotFound
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	for range maxHops {
		_, entered, err := s.score(ctx, s.ownerKey(digest), "l"+s.ref(key))
		if err != nil {
			return err
		}
		if entered {
			return s.end(ctx, key, o)
		}
		next, err := s.successor(ctx, key)
		if err != nil {
			return err
		}
		if key, err = s.refKey(next); err != nil {
			_, _, err = s.generation(ctx, s.ownerKey(digest)) // foreign, perhaps
			return cmp.Or(err, ErrNotFound)
		}
	}
	return errTooManyHops
}

// Sessions implements [Binder].
func (s *RedisStore) Sessions(ctx context.Context, owner string) ([]OwnedSession, error) {
	ctx, op := s.begin(ctx, "sessions", owner)
	all, err := s.sessions(ctx, owner)
	return all, op.end(err)
}

func (s *RedisStore) sessions(ctx context.Context, owner string) (all []OwnedSession, err error) {
	digest, err := ownerOf(owner)
	if err != nil {
		return nil, err
	}
	key := s.ownerKey(digest)
	generation, _, err := s.generation(ctx, key)
	if err != nil || generation < 0 {
		return nil, err
	}
	_, corrupt := s.endOlder(ctx, key, generation, Revoked)
	if corrupt != nil && !errors.Is(corrupt, ErrCorrupt) {
		return nil, corrupt
	}
	err = s.eachEntry(ctx, key, generation<<32, func(refs []string) error {
		found, err := s.look(ctx, refs)
		for _, l := range found {
			switch l.state {
			case stateLive:
				if slices.Contains(l.owners, digest) { // or it was kept from this owner by another one
					all = append(all, l.OwnedSession)
				}
			case stateForeign, stateFuture:
				corrupt = ErrCorrupt
			}
		}
		return err
	})
	return all, cmp.Or(err, corrupt)
}

// eachEntry calls visit with the refs of all entries with at least a score, in chunks.
func (s *RedisStore) eachEntry(
	ctx context.Context, key string, least int64, visit func(refs []string) error,
) error {
	named := map[string]bool{}
	var refs []string
	for cursor := uint64(0); ; {
		entries, next, err := s.scanEntries(ctx, key, cursor)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.score >= least && !named[e.ref] {
				named[e.ref] = true
				refs = append(refs, e.ref)
			}
		}
		cursor = next
		for len(refs) >= listChunk || cursor == 0 && len(refs) > 0 {
			chunk := refs[:min(listChunk, len(refs))]
			refs = refs[len(chunk):]
			if err := visit(chunk); err != nil {
				return err
			}
		}
		if cursor == 0 {
			return nil
		}
	}
}

// scanEntries returns some of an owner's entries. It does not go in the order of their scores: many
// may have the same one, and skipping those would take the server long.
func (s *RedisStore) scanEntries(
	ctx context.Context, key string, cursor uint64,
) (entries []scored, next uint64, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZSCAN").Keys(key).Args(strconv.FormatUint(cursor, 10),
			"MATCH", "l*", "COUNT", strconv.Itoa(entryBatch)).Build()
	})
	if isReply(res.Error()) {
		return nil, 0, explain(res.Error())
	}
	page, err := res.AsScanEntry()
	if _, ok := errors.AsType[*strconv.NumError](err); ok { // its text quotes the reply
		err = errUnexpected
	}
	if err != nil {
		return nil, 0, err
	}
	for pair := range slices.Chunk(page.Elements, 2) {
		if len(pair) != 2 {
			return nil, 0, errUnexpected
		}
		score, err := strconv.ParseFloat(pair[1], 64)
		if err != nil {
			return nil, 0, errUnexpected
		}
		e, err := s.entryOf(pair[0], score)
		if err != nil {
			return nil, 0, err
		}
		entries = append(entries, e)
	}
	return entries, page.Cursor, nil
}

// looked is what was found under the ref of an entry.
type looked struct {
	OwnedSession
	owners []string
	state
}

type state byte

const (
	stateAbsent  state = iota
	stateEnded         // or a foreign value that is not a string
	stateForeign       // no version reads it
	stateFuture        // a later version may
	stateLive
)

// look looks at what is under refs.
func (s *RedisStore) look(ctx context.Context, refs []string) (found []looked, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	results, err := s.pipeline(ctx, s.client, func() []rueidis.Completed {
		commands := make([]rueidis.Completed, 0, 2*len(refs))
		for _, ref := range refs {
			commands = append(commands,
				s.client.B().Arbitrary("GETRANGE").Keys(s.prefix+ref).Args("0", strconv.Itoa(headRead-1)).Build(),
				s.client.B().Arbitrary("PTTL").Keys(s.prefix+ref).Build())
		}
		return commands
	})
	if err != nil {
		return nil, explain(err)
	}
	now := time.Now()
	for i, ref := range refs {
		head, err := bytesOf(results[2*i])
		left, err2 := intOf(results[2*i+1])
		if len(head) == headRead && headerOf(head) == nil { // a later version has added something long
			head, err = s.query(ctx, "GETRANGE", s.prefix+ref, "0", strconv.Itoa(headRead+math.MaxUint16))
		}
		l := looked{OwnedSession: OwnedSession{Ref: ref}}
		switch err := cmp.Or(err, err2); {
		case isWrongType(err):
			l.state = stateEnded
		case err != nil:
			return nil, explain(err)
		case len(head) > 0:
			session, err := decode(head, now)
			switch {
			case err == nil:
				session.expireIn(left, now)
				l = looked{session.owned(ref), session.Owners(), stateLive}
			case NoSession(err):
			case len(head) >= headerSize && head[0] == kindLive && head[1]&flagStrict != 0:
				l.state = stateFuture
			default:
				l.state = stateForeign
			}
		}
		found = append(found, l)
	}
	return found, nil
}

// owned returns what the list of its owner's sessions says of a session.
func (s *Session) owned(ref string) OwnedSession {
	return OwnedSession{
		Ref:       ref,
		Label:     s.Label(),
		CreatedAt: s.CreatedAt,
		ExpiresAt: s.ExpiresAt,
		Deadline:  time.UnixMilli(s.deadline()),
	}
}
