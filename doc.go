// Package tombstore keeps HTTP sessions in Redis or Valkey so that a session that was ended stays
// ended.
//
// The usual session backend loads with GET, saves with SET and logs out with DEL. A request that
// loaded a session before the logout and saves it afterwards brings it back, and the user is logged
// in again. Here ending a session leaves a tombstone in its place, which outlives the data, and
// which the server refuses to overwrite:
//
//	store, err := tombstore.Open("redis://127.0.0.1:6379")
//	…
//	s, err := store.Read(ctx, id)           // request B loads
//	err = store.Invalidate(ctx, id)         // request A logs out
//	_, err = store.Write(ctx, id, s.Data, time.Hour, tombstore.Replacing(s)) // B saves:
//	                                        // errors.Is(err, tombstore.ErrInvalidated)
//
// Once Invalidate has returned nil, no read returns the ended session and nothing makes it live
// again: no write that began earlier or later, no retry of a lost command, no other process. A
// session that has moved to another id, by Rotate or by a Renewer, is ended by any id that it has
// had. Ids are stored as digests, and WithSealedData seals the data. A failure to reach the server
// is never reported as "no such session".
//
// A program that tells the store whose sessions are whose, with a [Binder], can end all sessions of
// a user at once, logins and renewals that are under way included, list them, and limit their
// number.
//
// # Limits
//
// A tombstone lives 24 hours longer than the session could have (WithTombstoneTTL). Whoever keeps a
// copy for longer than that and then writes it without a condition makes a new session of it. Save
// what was read before with Replacing, IfPresent or IfVersion, and this cannot happen, nor can it
// when a server loses tombstones. An old id reaches the session that it has become as long as the
// tombstones between them live.
//
// A server loses tombstones when it evicts keys (use maxmemory-policy noeviction), when it restarts
// without having persisted them, and when a replica is promoted that had not received them;
// WithReplicaAcks closes the last gap. A session that the same loss brings back to life is live:
// only a primary that keeps what it acknowledged keeps a logout.
package tombstore
