package tombstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// InvalidateOwner implements [Binder].
func (s *RedisStore) InvalidateOwner(
	ctx context.Context, owner string, opts ...InvalidateOption,
) (int, error) {
	ctx, op := s.begin(ctx, "invalidate owner", owner)
	n, err := s.invalidateOwner(ctx, owner, collect(opts))
	return n, op.end(err)
}

func (s *RedisStore) invalidateOwner(ctx context.Context, owner string, o InvalidateOptions) (int, error) {
	digest, err := ownerOf(owner)
	if err != nil {
		return 0, err
	}
	except := ""
	if o.Except != nil {
		if except, err = s.key(*o.Except); err != nil {
			return 0, err
		}
	}
	key := s.ownerKey(digest)
	generation, late, err := s.revoke(ctx, key, except, revocation(o).Reason)
	if err != nil {
		return 0, err
	}
	n, err := s.endOlder(ctx, key, generation, revocation(o).Reason)
	if o.Thorough {
		more, err2 := s.endUnlisted(ctx, digest, revocation(o).Reason)
		n, err = n+more, worse(err, err2)
	}
	return n, cmp.Or(err, late)
}

// endUnlisted ends the sessions of an owner that have no entry, after a revoke, and returns how
// many live ones it has ended. Those that move meanwhile need not be found: bind.lua refuses a move
// that comes after a revoke and has no entry, and one that came before it has made one.
func (s *RedisStore) endUnlisted(ctx context.Context, owner string, reason Reason) (n int, first error) {
	key := s.ownerKey(owner)
	var refs []string
	end := func() error {
		unlisted, err := s.unlisted(ctx, key, refs)
		if refs = nil; err != nil || len(unlisted) == 0 {
			return err
		}
		live, _, err := s.endAll(ctx, key, unlisted, reason)
		n += live
		return err
	}
	for e, err := range s.list(ctx) {
		if err != nil {
			first = worse(first, err)
			continue // the walk goes on only after an ErrCorrupt
		}
		if !slices.Contains(ownersIn(e.header), owner) {
			continue
		}
		if refs = append(refs, e.Ref); len(refs) == listChunk {
			first = worse(first, end())
		}
	}
	if len(refs) > 0 {
		first = worse(first, end())
	}
	return n, first
}

// unlisted returns which of refs have no entry in an owner's key.
func (s *RedisStore) unlisted(ctx context.Context, key string, refs []string) (without []string, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	members := make([]string, len(refs))
	for i, ref := range refs {
		members[i] = "l" + ref
	}
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZMSCORE").Keys(key).Args(members...).Build()
	})
	scores, err := partsOf(res, len(refs))
	if err != nil {
		return nil, explain(err)
	}
	for i, ref := range refs {
		if scores[i].IsNil() {
			without = append(without, ref)
		}
	}
	return without, nil
}

// revocation gives an end the reason Revoked if it has none. Rotated would not be an end: it does
// not follow a session, and leaves renewals under way alone.
func revocation(o InvalidateOptions) InvalidateOptions {
	if o.Reason == 0 || o.Reason == Rotated {
		o.Reason = Revoked
	}
	return o
}

// revoke opens the next generation, and returns it. The session at except, which may be on its way
// to another id, goes along.
func (s *RedisStore) revoke(
	ctx context.Context, key, except string, reason Reason,
) (generation int64, late, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	nonce, made, end := newVersion().bytes(), newGeneration(), decimal(-endScore(reason, time.Now()))
	for range maxHops {
		args := []string{
			nonce,
			s.ownerTTL(),
			made,
			end,
			s.ref(except),
		}
		if s.publish {
			args = append(args, s.channel())
		}
		reply, lost, err := s.ask(ctx, &revokeScript, []string{key}, args...)
		if err != nil {
			return 0, nil, err
		}
		switch reply[0] {
		case codeDone:
			again, late := s.acknowledged(ctx, &revokeScript, key, func() []string { return args })
			if again != "" && again[0] != codeDone { // a failover has taken the revoke, and the session that is to go on
				s.warn(ctx, warnFailover, nil)
				return 0, nil, unknown(nil)
			}
			reply = cmp.Or(again, reply)
			generation, err := generationOf(reply[1:])
			return generation, late, err
		case codeAbsent: // the script changes nothing then, so it can be asked again
			next, err := s.successor(ctx, except)
			if err != nil {
				return 0, nil, err
			}
			if except, err = s.refKey(next); err != nil {
				return 0, nil, ErrNotFound
			}
		default:
			return 0, nil, cmp.Or(outcome(reply, lost), errUnexpected)
		}
	}
	return 0, nil, errTooManyHops
}

// successor returns the ref to which the session at key has moved, or "".
func (s *RedisStore) successor(ctx context.Context, key string) (string, error) {
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("HMGET").Keys(key).Args("t", "s", "c").Build()
	})
	_, successor, _, err := tombstoneOf(res)
	if isWrongType(err) { // it is live
		return "", nil
	}
	return successor, explain(err)
}

// endOlder ends the sessions of the generations before this one, and returns how many live ones it
// has ended. It is what an InvalidateOwner does, and what is left to do of one that was broken off.
// What can be ended is ended, and what cannot stays entered until its deadline has passed; of
// several failures it returns the worst.
func (s *RedisStore) endOlder(
	ctx context.Context, key string, generation int64, reason Reason,
) (n int, first error) {
	below := "(" + decimal(generation<<32)
	failed := map[string]bool{}
	for skip, more := 0, false; ; {
		entries, err := s.entries(ctx, key, "1", below, skip)
		if err != nil {
			return n, worse(first, err)
		}
		if len(entries) == 0 {
			if !more {
				return n, first
			}
			skip, more = 0, false // what moves, or goes, shifts those that are passed over
			continue
		}
		var refs []string
		for _, e := range entries {
			if !failed[e.ref] {
				refs = append(refs, e.ref)
			}
		}
		live, ended, err := s.endAll(ctx, key, refs, reason)
		n += live
		first = worse(first, err)
		if len(ended) < len(refs) {
			now := time.Now()
			for _, e := range entries {
				switch {
				case failed[e.ref] || slices.Contains(ended, e.ref):
				case e.expired(now): // bind.lua prunes what is not closed
					ended = append(ended, e.ref)
				default:
					failed[e.ref], more = true, true
				}
			}
		}
		if len(ended) > 0 {
			if err := s.dropEntries(ctx, key, ended...); err != nil {
				return n, worse(first, err)
			}
		}
		skip += len(entries) - len(ended)
	}
}

// scored is an entry of an owner's key.
type scored struct {
	ref   string
	score int64
}

// expired reports whether the session's deadline has passed an hour ago.
func (e scored) expired(now time.Time) bool { return e.score&(1<<32-1) < now.Unix() }

// entries returns at most entryBatch sessions of an owner whose scores are between two, from the
// one of number skip on.
func (s *RedisStore) entries(
	ctx context.Context, key, from, to string, skip int,
) (entries []scored, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZRANGE").Keys(key).Args(from, to,
			"BYSCORE", "LIMIT", strconv.Itoa(skip), strconv.Itoa(entryBatch), "WITHSCORES").Build()
	})
	if err := res.NonRedisError(); err != nil || isReply(res.Error()) {
		return nil, explain(res.Error())
	}
	scores, err := res.AsZScores()
	if err != nil { // its text may quote the reply
		return nil, errUnexpected
	}
	for _, z := range scores {
		e, err := s.entryOf(z.Member, z.Score)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// entryOf returns the entry that a member of an owner's key and its score stand for.
func (s *RedisStore) entryOf(member string, score float64) (scored, error) {
	ref, ours := strings.CutPrefix(member, "l")
	if _, err := s.refKey(ref); err != nil || !ours {
		return scored{}, ErrCorrupt
	}
	return scored{ref, int64(score)}, nil
}

// endAll ends the sessions of refs. It returns how many of them were live, and for which there is a
// tombstone now that is confirmed. Of several failures it returns the worst. It does not follow a
// session to an id that has an entry of its own, which says whether that is to be ended: what leads
// there may be the entry of a late attempt.
func (s *RedisStore) endAll(
	ctx context.Context, ownerKey string, refs []string, reason Reason,
) (live int, ended []string, first error) {
	o := InvalidateOptions{Reason: reason, spares: func(key string) (bool, error) {
		_, entered, err := s.score(ctx, ownerKey, "l"+s.ref(key))
		return entered, err
	}}
	rest := refs
	if s.acks == 0 {
		live, ended, rest = s.endAtOnce(ctx, ownerKey, refs, reason)
	}
	for _, ref := range rest {
		met, err := s.endLive(ctx, s.prefix+ref, o)
		if met {
			live++
		}
		if first = worse(first, err); err == nil {
			ended = append(ended, ref)
		} else if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrUnacknowledged) {
			break // the others would wait as long for a server that is away
		}
	}
	return live, ended, first
}

// score returns the score of a member of an owner's key, if it is there.
func (s *RedisStore) score(ctx context.Context, key, member string) (score int64, found bool, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	res, _ := s.send(ctx, func() rueidis.Completed {
		return s.client.B().Arbitrary("ZSCORE").Keys(key).Args(member).Build()
	})
	score, found, err = scoreOf(res)
	return score, found, explain(err)
}

func scoreOf(res rueidis.RedisResult) (score int64, found bool, err error) {
	if err := res.Error(); rueidis.IsRedisNil(err) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, err
	}
	float, err := res.AsFloat64()
	if err != nil {
		return 0, false, errUnexpected
	}
	return int64(float), true, nil
}

// worse returns the first of two errors, unless that is ErrUnacknowledged, which says that
// something was ended.
func worse(first, second error) error {
	if first == nil || errors.Is(first, ErrUnacknowledged) && second != nil {
		return second
	}
	return first
}

// endAtOnce ends sessions in pipelines, and takes them out of the keys of their other owners, which
// is tried once. What is not done with one command each, because a session has moved, or something
// has failed, is left to others.
func (s *RedisStore) endAtOnce(
	ctx context.Context, ownerKey string, refs []string, reason Reason,
) (live int, ended, rest []string) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	args := s.endArgs(ctx, reason, "")
	if s.sendable(ctx) != nil {
		return 0, nil, refs
	}
	for chunk := range slices.Chunk(refs, listChunk) {
		var removals []rueidis.Completed
		for len(chunk) > 0 {
			commands := make([]rueidis.Completed, len(chunk))
			for i, ref := range chunk {
				commands[i] = s.client.B().Evalsha().Sha1(invalidateScript.sha1).Numkeys(1).
					Key(s.prefix + ref).Arg(args...).Build()
			}
			var unloaded []string // on nodes that do not know the script
			for i, res := range s.client.DoMulti(ctx, commands...) {
				ref := chunk[i]
				moveEpoch(s.prefix + ref)
				if isNoScript(res.Error()) {
					if unloaded = append(unloaded, ref); len(unloaded) > 1 {
						continue
					}
					res, _ = s.run(ctx, &invalidateScript, []string{s.prefix + ref}, args...) // loads it
				}
				reply, err := bytesOf(res)
				switch {
				case err != nil || len(reply) == 0:
					rest = append(rest, ref)
				case reply[0] == codeDone:
					live++
					ended = append(ended, ref)
					for _, owner := range ownersIn(reply[1:]) {
						if key := s.ownerKey(owner); key != ownerKey {
							removals = append(removals, s.removal(key, ref))
						}
					}
				case reply[0] == codeAbsent || reply[0] == codeEnded && len(reply) == 1+endSize:
					ended = append(ended, ref)
				default:
					rest = append(rest, ref)
				}
			}
			chunk = unloaded[min(1, len(unloaded)):]
		}
		if len(removals) > 0 {
			s.client.DoMulti(ctx, removals...)
		}
	}
	return live, ended, rest
}
