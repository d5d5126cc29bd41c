// Package history records what concurrent clients see while things are broken, and checks with
// porcupine that one order of the operations explains it (G3).
package history

import (
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

type verb int

const (
	read verb = iota
	slide
	expiry // Read WithExpiry
	exists
	touch
	write
	ifAbsent
	ifPresent
	ifVersion
	replacing
	invalidate
	ifLive
	alone
	endRotated // Invalidate WithReason(Rotated)
	rotate
	rotateWith // new data
	begin
	verbs

	finish = verbs + iota // of a renewal that the client has begun
	cancel
)

// Steps of operations that are more than one, and the reasons why they stop.
const (
	link   = cancel + 1 + iota // a renewal names its successor
	leave                      // a rotation in a cluster ends the old id
	create                     // the new id is written
	taken                      // the new id was seen to be in use
)

func (v verb) changes() bool { return v > touch }
func (v verb) writes() bool  { return v >= write && v <= replacing }
func (v verb) ends() bool    { return v >= invalidate && v < verbs }

// operation is what a client did and saw.
type operation struct {
	Verb    verb
	ID, To  int    // To is the new id of a session that moves
	Data    string // what it writes, different each time, and the name of the claim of a renewal that begins
	Expect  string // the data that must be there; "" for any
	Claim   string // of the renewal that it ends
	Outcome string // an outcome, or the data that was returned
	Sent    sent
	Call    int64
	Return  int64
}

// sent says how far an operation of several steps has come: whether the script that leaves the old
// id was sent, whether write.lua was, and whether a GET was.
type sent struct{ Left, Written, Read bool }

// Outcomes. An operation that failed for good has none: it promises not to have been applied, and
// is left out.
const (
	done     = "done"
	gone     = "gone"
	conflict = "conflict"
	unknown  = "unknown" // may have been applied, or not, or may yet be
	ended    = "ended"   // by a logout
	rotated  = "rotated" // ended by a rotation or a renewal
	moved    = "moved"   // one of the two: the reason changes before the end that follows has its effect
	failed   = ""
)

// A session is moved only to ids of its own group, so that a history can be checked group by group.
const groupSize = 4

// group is the state of each of its ids.
type group [groupSize]state

// state is that of one id. The zero state is an absent one.
type state struct {
	end   string // ended or rotated; "" for a session that is live, or absent
	data  string // of a live session, that no other write has; and of one that is between two ids, or was left
	next  int    // successor, counted from 1; 0 for none
	claim string // of a renewal under way
}

func (s state) absent() bool { return s.end == "" && s.data == "" }
func (s state) live() bool   { return s.end == "" && s.data != "" }

// met returns what a call that needs a live session says of another.
func (s state) met() string {
	switch {
	case s.absent():
		return gone
	case s.next != 0:
		return moved
	}
	return s.end
}

// last follows a session to its last id.
func (g *group) last(id int) int {
	for g[id].next != 0 {
		id = g[id].next - 1
	}
	return id
}

// step returns the outcome of an operation on a group in this state, and the state after it.
func step(before group, op operation) (outcome string, after group) {
	id, to := op.ID%groupSize, op.To%groupSize
	s := before[id]
	after = before
	switch op.Verb {
	case write, ifAbsent:
		switch {
		case op.Verb == ifAbsent && s.live():
			return conflict, after
		case s.end == "":
			after[id].data = op.Data
			return done, after
		}
	case exists:
		if !s.live() {
			return gone, after
		}
	case invalidate, ifLive:
		last := before.last(id)
		s = before[last]
		if op.Verb == ifLive && last == id && s.absent() {
			return gone, after
		}
		after[last] = state{end: ended} // a logout takes the place of a rotation, and of a claim
		switch {
		case op.Verb == invalidate || s.live():
		default: // what the last id held: nothing, between two ids
			return s.met(), after
		}
		return done, after
	case alone:
		after[id] = state{end: ended, next: s.next, data: s.data}
		if s.next == 0 {
			after[id].data = ""
		}
		return done, after
	case endRotated:
		if s.end == "" {
			after[id] = state{end: rotated}
		}
		return done, after
	case cancel:
		if s.claim == op.Claim {
			after[id].claim = ""
		}
		return done, after
	case link:
		if s.claim != op.Claim {
			return s.met(), after
		}
		after[id] = state{end: rotated, data: op.Data, next: to + 1}
		return done, after
	case create:
		switch {
		case s.next != to+1: // not yet
			return failed, after
		case before[to].live():
			return conflict, after
		case before[to].absent():
			after[to].data = s.data
			return done, after
		}
		return before[to].met(), after
	case taken:
		if before[to].absent() {
			return failed, after
		}
		return conflict, after
	}
	switch {
	case op.Verb == begin && s.end == rotated && s.data != "" && s.claim == "" && s.next == 0: // given up
	case !s.live():
		return s.met(), after
	}
	switch {
	case op.Expect != "" && s.data != op.Expect:
		return conflict, after
	}
	switch op.Verb {
	case read, slide, expiry:
		return s.data, after
	case ifPresent, ifVersion, replacing:
		after[id].data = op.Data
	case begin:
		after[id] = state{end: rotated, data: s.data, claim: op.Data}
	case rotate, rotateWith, leave:
		data := s.data
		if op.Data != "" {
			data = op.Data
		}
		after[id] = state{end: rotated, next: to + 1}
		if op.Verb == leave {
			after[id].data = data
			return data, after
		}
		if !before[to].absent() {
			return conflict, before
		}
		after[to].data = data
		return data, after
	}
	return done, after
}

// explains reports whether the model's outcome is what a client saw.
func explains(outcome, saw string) bool {
	return outcome == saw || outcome == moved && (saw == ended || saw == rotated)
}

// moment is the state of a group, and whether all operations of known outcome are over.
type moment struct {
	group group
	over  bool
}

// over is the outcome of a mark that follows all operations of known outcome.
const over = "over"

// some is the outcome of a step that has succeeded, when the client does not know what it has
// returned.
const some = "some"

// An operation of unknown outcome takes effect at any time after its call, also after all others,
// where nobody sees it: that is never. Before that it is of interest only where it changes
// something, which keeps the search short.
var model = porcupine.Model{
	Init: func() any { return moment{} },
	Step: func(state, in, _ any) (bool, any) {
		now, op := state.(moment), in.(operation)
		if op.Outcome == over || now.over {
			return true, moment{over: true}
		}
		outcome, next := step(now.group, op)
		if op.Outcome == unknown || op.Outcome == some {
			return next != now.group, moment{group: next}
		}
		return explains(outcome, op.Outcome), moment{group: next}
	},
}

// steps returns what an operation consists of, each of which takes effect at a moment of its own.
// cluster says that a rotation does.
func (op operation) steps(cluster bool) []operation {
	as := func(v verb, outcome string) operation {
		part := op
		part.Verb, part.Outcome = v, outcome
		return part
	}
	first := leave
	switch {
	case op.Verb == finish:
		first = link
	case op.Verb == rotate && !cluster && op.Sent.Read: // it has moved, and the data were read afterwards
		follow := as(read, op.Outcome)
		follow.ID, follow.Expect = op.To, ""
		return []operation{as(rotate, some), follow}
	case !cluster || op.Verb != rotate && op.Verb != rotateWith:
		return []operation{op}
	}
	switch {
	case op.Sent.Written:
		before, last := some, op.Outcome
		if last != ended && last != rotated && last != conflict && last != unknown {
			before, last = op.Outcome, done
		}
		return []operation{as(first, before), as(create, last)}
	case op.Sent.Left: // refused
		return []operation{as(first, op.Outcome)}
	case op.Outcome == conflict:
		return []operation{as(taken, conflict)}
	}
	return []operation{as(read, op.Outcome)} // the new id is taken, and the old one has no session
}

// attempt returns what an operation may have done although its outcome tells otherwise, when
// replies are lost. A write that says that the session was ended may have been applied before that,
// and so may a step of a renewal. Replacing may count twice.
func (op operation) attempt() (tried, seen operation, possible bool) {
	refused := op.Outcome == ended || op.Outcome == rotated
	tried, seen = op, op
	tried.Outcome = unknown
	switch {
	case op.Verb == replacing && op.Outcome == done:
		return tried, seen, true
	case refused && (op.Verb.writes() || op.Verb == begin || op.Verb == link):
		seen.Verb, seen.Expect = read, ""
		return tried, seen, true
	case refused && op.Verb == create:
		seen.Verb, seen.ID, seen.Expect = read, op.To, ""
		return tried, seen, true
	}
	return tried, seen, false
}

// kind says what histories are of.
type kind struct{ lossy, cluster bool }

// histories returns the history of each group.
func histories(ops []operation, k kind) map[int][]porcupine.Operation {
	groups := map[int][]porcupine.Operation{}
	last := map[int]int64{}
	add := func(op operation) {
		group := op.ID / groupSize
		if op.Outcome == unknown {
			op.Return = math.MaxInt64
		} else {
			last[group] = max(last[group], op.Return)
		}
		groups[group] = append(groups[group], porcupine.Operation{Input: op, Call: op.Call, Return: op.Return})
	}
	for _, whole := range ops {
		for _, op := range whole.steps(k.cluster) {
			if tried, seen, possible := op.attempt(); k.lossy && possible {
				add(tried)
				op = seen
			}
			add(op)
		}
	}
	for group, history := range groups {
		mark := porcupine.Operation{Input: operation{Outcome: over}, Call: last[group] + 1, Return: math.MaxInt64 - 1}
		groups[group] = append(history, mark)
	}
	return groups
}

const checkTime = 30 * time.Second

// check returns how many operations were checked, and the histories that no order explains.
func check(ops []operation, k kind) (checked int64, wrong [][]porcupine.Operation, tooLong int) {
	for _, history := range histories(ops, k) {
		switch porcupine.CheckOperationsTimeout(model, history, checkTime) {
		case porcupine.Unknown:
			tooLong++
			continue
		case porcupine.Illegal:
			wrong = append(wrong, history)
		}
		checked += int64(len(history)) - 1 // the mark
	}
	return checked, wrong, tooLong
}
