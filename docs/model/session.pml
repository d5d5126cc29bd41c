/* One session, as scripts see it: who may change it, and what "ended is never live again" takes.
 *
 * A script is atomic, so each of the blocks below is. Which cast plays, and which guard is taken out, is chosen with -D:
 *
 *   UPSERT   writers without a condition; the tombstone is never lost
 *   PRESENT  writers with IfPresent; the tombstone may be lost at any moment
 *   FAILOVER the replica may be promoted; the end waits for its acknowledgement
 *   CACHE    the reader is in the process that ends the session, and has a cache
 *   ROTATE   the session is moved to a new id in two steps, as in a cluster
 *
 *   NO_TOMBSTONE_CHECK, NO_EXISTENCE_CHECK, NO_ACKS, NO_EPOCH, NEW_FIRST: the guards
 *   NEVER_ENDS claims that the session is never ended, which must be found to be wrong: or the rest would hold of nothing
 */
mtype = { absent, live, tombstone };

mtype key = live;       /* on the primary */
mtype moved = absent;   /* the new id of a rotation */
mtype replica = live;   /* what has reached the replica */
bool ended = false;     /* an Invalidate has returned nil */
byte epoch = 0;         /* of the process that ends the session */
bool cached = false;    /* its cache has the session, */
byte cachedAt = 0;      /* under this epoch */

inline write() {
	if
#ifndef NO_TOMBSTONE_CHECK
	:: key == tombstone -> skip
#else
	:: key == tombstone -> key = live
#endif
#if defined(PRESENT) && !defined(NO_EXISTENCE_CHECK)
	:: key == absent -> skip
#else
	:: key == absent -> key = live
#endif
	:: key == live -> skip
	fi
}

/* Has loaded the session, takes its time, and saves it. */
proctype writer() {
	bool holds = false;
	atomic { key == live -> holds = true }
	atomic { holds -> write() }
}

proctype invalidator() {
	atomic { key = tombstone }
#ifdef FAILOVER
#ifndef NO_ACKS
	replica == tombstone;   /* WAIT */
#endif
#endif
#ifdef CACHE
#ifndef NO_EPOCH
	epoch = epoch + 1;
#endif
#endif
	ended = true;
}

proctype loser() {
	do
	:: atomic { key == tombstone -> key = absent }
	:: break
	od
}

/* Replication is late, and a promotion takes what has arrived. */
proctype replication() {
	do
	:: atomic { replica != key -> replica = key }
	:: break
	od
}

proctype promotion() {
	atomic { key = replica }
}

proctype reader() {
	byte seen;
	bool before;
	do
	:: atomic { before = ended; seen = epoch }
	   if
	   :: atomic { cached && cachedAt == seen -> assert(!before) }           /* a hit */
	   :: atomic { !(cached && cachedAt == seen) && key == live -> assert(!before); cached = true; cachedAt = seen }
	   :: atomic { !(cached && cachedAt == seen) && key != live -> skip }
	   fi
	:: break
	od
}

/* The server's message about the change comes at some time, or never. */
proctype push() {
	if
	:: atomic { key != live -> cached = false }
	:: skip
	fi
}

proctype rotator() {
	bool had = false;
#ifdef NEW_FIRST
	atomic { if :: key == live -> had = true :: else -> skip fi }
	atomic { if :: had && moved == absent -> moved = live :: else -> skip fi }
	atomic { if :: had && key == live -> key = tombstone :: else -> skip fi }
#else
	atomic { if :: key == live -> key = tombstone; had = true :: else -> skip fi }
	atomic { if :: had && moved == absent -> moved = live :: else -> skip fi }
#endif
}

/* Who was told that the session had ended must not find it live, under any number of further steps. */
active proctype monitor() {
	do
	:: atomic { ended -> assert(key != live) }
	:: atomic { key == live && moved == live -> assert(false) }   /* two ids of one session */
#ifdef NEVER_ENDS
	:: atomic { ended -> assert(false) }
#endif
	:: break
	od
}

init {
	atomic {
		run invalidator();
#ifndef CACHE
		run writer();
		run writer();
#endif
#ifdef PRESENT
		run loser();
#endif
#ifdef FAILOVER
		run replication();
		run promotion();
#endif
#ifdef CACHE
		run reader();
		run push();
#endif
#ifdef ROTATE
		run rotator();
#endif
	}
}
