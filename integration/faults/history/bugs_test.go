package history

import (
	"context"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore/integration/faults"
)

// bug takes a guard out of a store by what it does to the store's client.
type bug struct {
	lossy bool // found when replies are lost
	wrap  func(rueidis.Client) rueidis.Client
}

var bugs = map[string]bug{
	"write.lua without the tombstone check": {false, faults.Edit("write.lua",
		"if kind == 192 and #head == 8 then return 'E' .. head end", "if kind == 192 and #head == 8 then kind, head = nil, '' end")},
	"write.lua without the existence check": {false, faults.Edit("write.lua", "then return 'A' end", "then end")},
	"write.lua without comparing versions": {false, faults.Edit("write.lua",
		"if string.sub(head, 1, 10) ~= ARGV[1] then return 'C' end\n  return 'D' .. stamps", "")},
	"touch.lua takes absent for live": {false, faults.Edit("touch.lua", "then return 'A' end", "then return 'D' end")},
	"invalidate.lua leaves an absent key": {false, faults.Edit("invalidate.lua",
		"if ARGV[3] and not kind then return 'A' end", "if not kind then return 'D' end")},
	"invalidate.lua forgets the tombstone": {false, faults.Edit("invalidate.lua",
		"local set = redis.pcall('SET', KEYS[1], tombstone, 'PX', keep)", "local set = { redis.call('DEL', KEYS[1]) }")},
	"invalidate.lua ends whoever ended first": {false, faults.Edit("invalidate.lua", "if ARGV[3] and ended then return 'E' .. head end", "")},
	"invalidate.lua keeps the reason rotated": {false, faults.Edit("invalidate.lua",
		"if not ended or (string.byte(head, 2) == 2 and ARGV[1] ~= '\\2') then", "if not ended then")},
	"rotate.lua leaves the old id live": {false, faults.Edit("rotate.lua",
		"redis.call('SET', KEYS[1], '\\192\\2' .. ms48(now), 'PX', left + ARGV[2])", "")},
	"rotate.lua takes a new id that is in use": {false, faults.Edit("rotate.lua", "if new then return 'C' end", "new = false")},
	"the store does not know that an attempt was lost": {true, func(c rueidis.Client) rueidis.Client {
		return &retrying{c}
	}},
}

// seedTime is how long a bug may take to be found.
const seedTime = 3 * time.Minute

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
			b := newBed(t, c.lossy, name)
			inject := func() {}
			if c.lossy {
				b.ids = 2 * groupSize // so that others come in between
				inject = func() { b.lose(t) }
			}
			until := time.Now().Add(seedTime)
			_, r := b.run(t, inject, func(wrong int64) bool { return wrong > 0 || time.Now().After(until) })
			faults.Report(t, faults.Row{Kind: faults.Seeded, Fault: name, Injected: 1, Checked: r.checked, Violations: r.wrong})
		})
	}
}
