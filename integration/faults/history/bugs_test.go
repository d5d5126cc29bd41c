package history

import (
	"context"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore/integration/faults"
)

// same leaves a client as it is.
func same(c rueidis.Client) rueidis.Client { return c }

// bug takes a guard out of a store by what it does to the store's client.
type bug struct {
	kind kind // of the histories in which it is found
	wrap func(rueidis.Client) rueidis.Client
}

const (
	endedCheck = "if type(head) == 'table' then return refusal(head) end"
	ownVersion = "return version == ARGV[1] and 'D' .. record or 'C'"
)

var bugs = map[string]bug{
	"write.lua without the tombstone check": {kind{}, faults.Edit("write.lua", endedCheck,
		"if type(head) == 'table' then redis.call('DEL', KEYS[1]) head = '' end")},
	"write.lua without the existence check": {kind{}, faults.Edit("write.lua",
		"if condition ~= '' and condition ~= 'absent' then return 'A' end", "")},
	"write.lua without comparing versions": {kind{}, faults.Edit("write.lua",
		"(#condition == 8 and condition ~= version)", "false")},
	"write.lua changes the header of a session": {kind{}, faults.Edit("write.lua",
		"redis.call('SET', KEYS[1], record ..",
		"if live then record = string.sub(record, 1, 10) .. bytes(clock() + 1) .. string.sub(record, 17) end\n"+
			"redis.call('SET', KEYS[1], record ..")},
	"a save by SET that is plain": {kind{}, rewrite("SET",
		"redis.call('SET', KEYS[1], ARGV[1], ARGV[4], ARGV[5]) return ARGV[1]")},
	"a save by SET XX without GET": {kind{}, rewrite("SET",
		"return redis.call('SET', KEYS[1], ARGV[1], 'XX', ARGV[4], ARGV[5]) and ARGV[1]")},
	"touch.lua takes absent for live": {kind{}, faults.Edit("touch.lua",
		"if head == '' then return 'A' end", "if head == '' then return 'D' end")},
	"invalidate.lua leaves an absent key": {kind{}, faults.Edit("invalidate.lua",
		"if condition ~= '' then\n",
		"if not live and condition == '' then return 'A' end\nif condition ~= '' then\n")},
	"invalidate.lua forgets the tombstone": {kind{}, faults.Edit("invalidate.lua",
		"  if put.err then return put end\nelse", "  redis.call('DEL', KEYS[1])\nelse")},
	"invalidate.lua ends whoever ended first": {kind{}, faults.Edit("invalidate.lua",
		"return string.sub(met, 1, 10)",
		"if ARGV[3] == 'live' and string.byte(met, 4) == 1 then return 'D' end\n  return string.sub(met, 1, 10)")},
	"invalidate.lua keeps the reason rotated": {kind{}, faults.Edit("invalidate.lua",
		"if string.byte(stands, 3) == 2 then", "if false then")},
	"rotate.lua leaves the old id live": {kind{}, faults.Edit("rotate.lua",
		"redis.call('RENAME', KEYS[1], new)",
		"redis.call('COPY', KEYS[1], new)\n  do return 'D' .. record end")},
	"rotate.lua takes a new id that is in use": {kind{}, faults.Edit("rotate.lua",
		"if new and redis.call('EXISTS', new) == 1 then return 'C' end", "")},
	"rotate.lua without comparing versions": {kind{}, faults.Edit("rotate.lua",
		"if ARGV[4] ~= '' and", "if false and")},
	"rotate.lua does not write the successor": {kind{}, faults.Edit("rotate.lua",
		", 's', ARGV[3] }", " }")},
	"rotate.lua does not write the successor, in a cluster": {kind{cluster: true}, faults.Edit("rotate.lua",
		", 's', ARGV[3] }", " }")},
	"link.lua does not write the successor": {kind{}, faults.Edit("link.lua",
		"redis.call('HSET', KEYS[1], 's', ARGV[2])", "")},
	"an end stops at the first tombstone": {kind{}, faults.Edit("invalidate.lua",
		"return string.sub(met, 1, 10) .. (redis.call('HGET', KEYS[1], 's') or '')",
		"return string.sub(met, 1, 10)")},
	"an end IfLive does not clear a claim": {kind{}, faults.Edit("invalidate.lua",
		"if reason ~= 2 then", "if reason ~= 2 and ARGV[3] ~= 'live' then")},
}

// rewritten is a client that runs a script in the place of a command.
type rewritten struct {
	rueidis.Client
	command, script string
}

func rewrite(command, script string) func(rueidis.Client) rueidis.Client {
	return func(c rueidis.Client) rueidis.Client { return &rewritten{c, command, script} }
}

func (r *rewritten) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := cmd.Commands()
	if words[0] != r.command {
		return r.Client.Do(ctx, cmd)
	}
	// Arguments: value, XX, GET, PX, ms
	return r.Client.Do(ctx, r.B().Eval().Script(r.script).Numkeys(1).Key(words[1]).Arg(words[2:]...).Build())
}

// seedTime is how long a bug may take to be found.
const seedTime = 6 * time.Minute

// retrying is a client that tries again by itself.
type retrying struct{ rueidis.Client }

func (r *retrying) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := append([]string(nil), cmd.Commands()...)
	for {
		res := r.Client.Do(ctx, r.B().Arbitrary(words...).Build())
		err := res.Error()
		if _, answered := rueidis.IsRedisErr(err); err == nil || answered || ctx.Err() != nil {
			return res
		}
		time.Sleep(between(0, 20*time.Millisecond)) // others come in between
	}
}

func TestHistory_SeededBugs(t *testing.T) {
	t.Parallel()
	for name, c := range bugs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, faults.Seeded)
			b := newBed(t, c.kind, name)
			until := time.Now().Add(seedTime)
			_, r := b.run(t, func() {}, func(wrong int64) bool { return wrong > 0 || time.Now().After(until) })
			faults.Report(t, faults.Row{Kind: faults.Seeded, Fault: name, Injected: 1, Checked: r.checked, Violations: r.wrong})
		})
	}
}
