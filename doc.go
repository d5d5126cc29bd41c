// Package tombstore keeps HTTP sessions in Redis or Valkey so that a session that was ended stays ended.
//
// The usual session backend loads with GET, saves with SET and logs out with DEL. A request that loaded a session before the
// logout and saves it afterwards brings it back, and the user is logged in again. Here every change of a session is one Lua
// script on the server, and ending a session leaves a tombstone in its place, which outlives the data and refuses every later
// write:
//
//	store, err := tombstore.Open("redis://127.0.0.1:6379")
//	…
//	s, err := store.Read(ctx, id)                                       // request B loads
//	err = store.Invalidate(ctx, id)                                     // request A logs out
//	_, err = store.Write(ctx, id, s.Data, time.Hour, tombstore.IfPresent()) // B saves: errors.Is(err, tombstore.ErrInvalidated)
//
// Once Invalidate or Rotate has returned nil, no read returns the ended session and nothing makes it live again: no write that
// began earlier or later, no retry of a lost command, no other process. Ids are stored as digests. A failure to reach the
// server is never reported as "no such session".
//
// # Limits
//
// A tombstone lives 24 hours longer than the session could have (WithTombstoneTTL). Whoever keeps a copy for longer than that
// and then writes it without a condition makes a new session of it. Write with IfPresent or IfVersion what was read before, and
// this cannot happen, nor can it when a server loses tombstones.
//
// A server loses tombstones when it evicts keys (use maxmemory-policy noeviction), when it restarts without
// having persisted them, and when a replica is promoted that had not received them; WithReplicaAcks closes the last gap. A
// session that the same loss brings back to life is live: only a primary that keeps what it acknowledged keeps a logout.
package tombstore
