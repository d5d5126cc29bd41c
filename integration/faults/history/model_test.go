// Package history records what concurrent clients see while things are broken, and checks with porcupine that one order of the operations
// explains it (G3).
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
	exists
	touch
	write
	ifAbsent
	ifPresent
	ifVersion
	invalidate
	ifLive
	rotate
	rotateWith // new data
	verbs
)

func (v verb) changes() bool { return v > touch }
func (v verb) writes() bool  { return v >= write && v <= ifVersion }
func (v verb) ends() bool    { return v >= invalidate }

// operation is what a client did and saw.
type operation struct {
	Verb    verb
	ID, To  int    // To is the new id of a rotation
	Data    string // what it writes, different each time
	Expect  string // what IfVersion wants to be there
	Outcome string // an outcome, or the data that was returned
	Call    int64
	Return  int64
}

// Outcomes. An operation that failed for good has none: it promises not to have been applied, and is left out.
const (
	done     = "done"
	gone     = "gone"
	conflict = "conflict"
	unknown  = "unknown" // may have been applied, or not, or may yet be
	ended    = "ended"   // by a logout
	rotated  = "rotated" // ended by a rotation
	failed   = ""
)

// A session is moved only to ids of its own group, so that a history can be checked group by group.
const groupSize = 3

// group is the state of each of its sessions: absent, ended, rotated, or live with data that no other write has.
type group [groupSize]string

const absent = ""

func live(state string) bool { return state != absent && state != ended && state != rotated }

// step returns the outcome of an operation on a group in this state, and the state after it.
func step(state group, op operation) (outcome string, next group) {
	id := op.ID % groupSize
	before := state[id]
	next = state
	switch op.Verb {
	case write, ifAbsent:
		switch {
		case op.Verb == ifAbsent && live(before):
			return conflict, next
		case live(before), before == absent:
			next[id] = op.Data
			return done, next
		}
	case invalidate: // a logout takes the place of a rotation
		next[id] = ended
		return done, next
	}
	switch {
	case before == absent, op.Verb == exists && !live(before):
		return gone, next
	case !live(before):
		return before, next
	}
	switch op.Verb {
	case read, slide:
		return before, next
	case ifPresent:
		next[id] = op.Data
	case ifVersion:
		if before != op.Expect {
			return conflict, next
		}
		next[id] = op.Data
	case ifLive:
		next[id] = ended
	case rotate, rotateWith:
		to := op.To % groupSize
		if next[to] != absent {
			return conflict, next
		}
		next[id], next[to] = rotated, before
		if op.Verb == rotateWith {
			next[to] = op.Data
		}
		return next[to], next
	}
	return done, next
}

// moment is the state of a group, and whether all operations of known outcome are over.
type moment struct {
	group group
	over  bool
}

// over is the outcome of a mark that follows all operations of known outcome.
const over = "over"

// An operation of unknown outcome takes effect at any time after its call, also after all others, where nobody sees it: that is never.
// Before that it is of interest only where it changes something, which keeps the search short.
var model = porcupine.Model{
	Init: func() any { return moment{} },
	Step: func(state, in, _ any) (bool, any) {
		now, op := state.(moment), in.(operation)
		if op.Outcome == over || now.over {
			return true, moment{over: true}
		}
		outcome, next := step(now.group, op)
		if op.Outcome == unknown {
			return next != now.group, moment{group: next}
		}
		return op.Outcome == outcome, moment{group: next}
	},
}

// histories returns the history of each group. If replies were lost, a write that says that the session was ended may have been applied
// before that.
func histories(ops []operation, lossy bool) map[int][]porcupine.Operation {
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
	for _, op := range ops {
		if lossy && op.Verb.writes() && (op.Outcome == ended || op.Outcome == rotated) {
			attempt := op
			attempt.Outcome = unknown
			add(attempt)
			op.Verb = read
		}
		add(op)
	}
	for group, history := range groups {
		mark := porcupine.Operation{Input: operation{Outcome: over}, Call: last[group] + 1, Return: math.MaxInt64 - 1}
		groups[group] = append(history, mark)
	}
	return groups
}

const checkTime = 30 * time.Second

// check returns how many operations were checked, and the histories that no order explains.
func check(ops []operation, lossy bool) (checked int64, wrong [][]porcupine.Operation, tooLong int) {
	for _, history := range histories(ops, lossy) {
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
