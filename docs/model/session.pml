/* One session and the ids that it has in succession: who may change it, and what "ended is never
 * live again" takes.
 *
 * A script or a command is atomic on the server, so each of the atomic blocks below is. Which cast
 * plays, and which guard is taken out, is chosen with -D:
 *
 *   UPSERT    writers without a condition; the tombstone is never lost
 *   PRESENT   writers with Replacing; the tombstone may be lost at any moment
 *   FAILOVER  the replica of id 0 may be promoted, the other ids are on other nodes; an end, a
 *             Rotate and a renewal wait for its acknowledgement
 *   CACHE     the reader is in the process that ends the session, and has a cache
 *   ROTATE    Rotate in a cluster, in two steps
 *   RENEWAL   a renewal in two halves
 *   RENEWALS  two renewals and a Rotate of one id, at once; a renewal that is given up may be taken over
 *   CHAIN     a renewal, a Rotate of the id that it gave, and a renewal of the next: four ids
 *
 * The guards are those of the table in README.md. NEVER_ENDS claims that the session is never
 * ended, which must be found to be wrong: or the rest would hold of nothing.
 */
#if defined(ROTATE) || defined(RENEWAL) || defined(RENEWALS) || defined(CHAIN)
#define SUCCESSION
#endif
#define IDS     4
#define NONE    255
#define REPLICA IDS
#define lives   ((key[0] == live) + (key[1] == live) + (key[2] == live) + (key[3] == live))

mtype = { absent, live, tombstone };

/* On the primaries, under each id, and what has reached the replica, of id 0. */
mtype key[IDS + 1] = absent;
byte successor[IDS + 1] = NONE; /* in a tombstone: the id to which the session moves */
byte claim[IDS + 1] = 0;        /* in a tombstone: the renewal that is between its halves */
bool header[IDS + 1] = false;   /* in a tombstone: what the new id is made from */

byte term = 0;                  /* counts promotions */
byte epoch = 0;                 /* of the process that ends the session */
bool cached = false;            /* its cache has the session, */
byte cachedAt = 0;              /* under this epoch */

bool ending = false;            /* somebody has begun to end the session */
bool ended = false;             /* an Invalidate has returned nil, or ErrInvalidated with IfLive */
bool gaveUp = false;            /* a renewal has given up its claim, and no other one has taken over */

/* write.lua without a condition (UPSERT), or SET XX GET, which the server refuses over a hash. */
inline save(id) {
	if
#if defined(NO_TOMBSTONE_CHECK) || defined(NO_GET) || defined(PLAIN_SET)
	:: key[id] == tombstone -> key[id] = live
#else
	:: key[id] == tombstone -> skip
#endif
#if defined(UPSERT) || defined(NO_XX) || defined(PLAIN_SET)
	:: key[id] == absent -> key[id] = live
#else
	:: key[id] == absent -> skip
#endif
	:: key[id] == live -> skip
	fi
}

/* write.lua with IfAbsent: the last step of every move. */
inline create(id) {
	if
	:: key[id] == absent -> key[id] = live
	:: else
	fi
}

/* Names the id to which the session is about to move. */
inline name(old, new) {
#ifdef NO_SUCCESSOR
	skip
#else
	successor[old] = new
#endif
}

/* WAIT, before the session is created on another node. */
inline acknowledged(new) {
#if defined(FAILOVER) && !defined(NO_ACK_BEFORE_CREATE)
	successor[REPLICA] == new
#else
	skip
#endif
}

/* Has loaded the session, takes its time, and saves it. */
proctype writer(byte id) {
	key[id] == live;
	atomic { save(id) }
}

/* Comes with an id that the session has or had, ends it, and follows the session from id to id.
 * IfLive makes no other difference: it would leave the first id alone if that were absent. */
proctype ender(bool ifLive) {
	byte at = 0;
	byte here, sent;
	bool followed = false;
	atomic { select (at : 0 .. IDS - 1); key[at] != absent -> ending = true }
hop:
	atomic {
		here = at;
		sent = term;
		if
		:: key[at] == live -> key[at] = tombstone; at = NONE
#ifdef NO_NEW_TOMBSTONE
		:: key[at] == absent -> at = NONE
#else
		:: key[at] == absent -> key[at] = tombstone; at = NONE
#endif
		:: key[at] == tombstone ->
#ifdef IFLIVE_KEEPS_CLAIM
			if :: ifLive :: else -> claim[at] = 0 fi;
#else
			claim[at] = 0;
#endif
#ifndef END_KEEPS_HEADER
			header[at] = false;
#endif
#ifdef STOP_AT_FIRST
			at = NONE
#else
			at = successor[at]
#endif
		fi
	}
#if defined(FAILOVER) && !defined(NO_ACKS)
	here != 0 || (key[REPLICA] == tombstone && claim[REPLICA] == 0 && !header[REPLICA]);    /* WAIT */
#ifndef NO_SECOND_LOOK
	here != 0 || sent == term;  /* who runs the script again after a promotion is another ender */
#endif
#endif
#if defined(CACHE) && !defined(NO_EPOCH)
	epoch = epoch + 1;
#endif
	if
#ifdef STOP_AT_SECOND
	:: at != NONE && !followed -> followed = true; goto hop
#else
	:: at != NONE -> goto hop
#endif
	:: else
	fi;
	ended = true
}

/* Rotate in a cluster. The script that moves a session in one step is one of its orders. */
proctype rotation(byte old, new) {
	key[old] == live;
#ifdef NEW_FIRST
	atomic { create(new) }
#endif
	atomic { if :: key[old] == live -> key[old] = tombstone; name(old, new) :: else -> goto done fi }
	acknowledged(new);
	atomic { create(new) }
done:
	skip
}

/* A renewal in two halves. It goes on whatever the first half has met: the claim decides. */
proctype renewal(byte old, new, mine) {
	key[old] == live;
	atomic {                /* BeginRenewal: an end with the reason Rotated, or it takes over */
		if
		:: key[old] == live -> key[old] = tombstone; claim[old] = mine; header[old] = true
#ifdef LINKED_IS_GIVEN_UP
		:: key[old] == tombstone && header[old] && claim[old] == 0 ->
#else
		:: key[old] == tombstone && header[old] && claim[old] == 0 && successor[old] == NONE ->
#endif
			claim[old] = mine; gaveUp = false
#ifdef ROTATED_CLEARS_CLAIM
		:: else -> claim[old] = 0
#else
		:: else
#endif
		fi;
		assert(claim[old] == mine || !gaveUp || ending)
	}
	if
	:: goto finish
	:: goto cancel
	fi;
finish:
#ifdef WRITE_FIRST
	atomic { create(new) }
#endif
	atomic {                /* FinishRenewal: link.lua, then write.lua */
#ifdef NO_CLAIM_CHECK
		name(old, new)
#else
		if :: claim[old] == mine -> claim[old] = 0; name(old, new) :: else -> goto done fi
#endif
	}
	acknowledged(new);
	atomic { create(new) }
	goto done;
cancel:
	atomic {                /* CancelRenewal */
		if
#ifdef CANCEL_DROPS_HEADER
		:: claim[old] == mine -> claim[old] = 0; gaveUp = true; header[old] = false
#else
		:: claim[old] == mine -> claim[old] = 0; gaveUp = true
#endif
#ifdef CANCEL_CLEARS_ANY
		:: else -> claim[old] = 0
#else
		:: else
#endif
		fi
#ifdef CANCEL_FOLLOWS
		if :: successor[old] != NONE -> key[successor[old]] = tombstone :: else fi
#endif
	}
done:
	skip
}

proctype loser() {
	do
	:: atomic { key[0] == tombstone -> key[0] = absent }
	:: break
	od
}

inline copy(from, to) {
	key[to] = key[from];
	successor[to] = successor[from];
	claim[to] = claim[from];
	header[to] = header[from]
}

/* Replication is late, and a promotion takes what has arrived. */
proctype replication() {
	do
	:: atomic { copy(0, REPLICA) }
	:: break
	od
}

proctype promotion() {
	atomic { copy(REPLICA, 0); term++ }
}

proctype reader() {
	byte seen;
	bool before;
	do
	:: atomic { before = ended; seen = epoch }
	   if
	   :: atomic { cached && cachedAt == seen -> assert(!before) }           /* a hit */
	   :: atomic {
		!(cached && cachedAt == seen) && key[0] == live -> assert(!before); cached = true; cachedAt = seen
	      }
	   :: atomic { !(cached && cachedAt == seen) && key[0] != live -> skip }
	   fi
	:: break
	od
}

/* The server's message about the change comes at some time, or never. */
proctype push() {
	if
	:: atomic { key[0] != live -> cached = false }
	:: skip
	fi
}

/* Who was told that the session has ended does not find it live under any id, and nobody finds it
 * live under two. That holds at every moment, so also if somebody stops for ever between two steps.
 * When all have done what they can, a session that nobody has ended or given up is live, unless
 * somebody waits for an acknowledgement that does not come. What was given up can be taken over: each
 * renewal asserts that. */
proctype monitor() {
	do
	:: atomic { ended -> assert(lives == 0) }
	:: atomic { lives > 1 -> assert(lives <= 1) }
#ifndef FAILOVER
	:: atomic { timeout && !ending && !gaveUp -> assert(lives == 1) }
#endif
#ifdef NEVER_ENDS
	:: atomic { ended -> assert(!ended) }
#endif
	od
}

init {
	atomic {
		key[0] = live;
		key[REPLICA] = live;
		run monitor();
		if :: run ender(false) :: skip fi;
#ifndef CACHE
		run writer(0);
#endif
#if defined(UPSERT) || defined(PRESENT)
		run writer(0);
#endif
#ifdef PRESENT
		run loser();
#endif
#ifdef FAILOVER
		run replication();
		run promotion();
		run rotation(0, 1);
		run renewal(0, 2, 1);
#endif
#ifdef CACHE
		run reader();
		run push();
#endif
#ifdef SUCCESSION
		if :: run ender(true) :: skip fi;
		run writer(1);
#endif
#ifdef ROTATE
		run rotation(0, 1);
#endif
#if defined(RENEWAL) || defined(RENEWALS) || defined(CHAIN)
		run renewal(0, 1, 1);
#endif
#ifdef RENEWALS
		run renewal(0, 2, 2);
		run rotation(0, 3);
#endif
#ifdef CHAIN
		run rotation(1, 2);
		run renewal(2, 3, 2);
#endif
	}
}
