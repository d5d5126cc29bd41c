package history

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
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
	"write.lua without the tombstone check": {false, edit("write.lua",
		"if kind == 192 and #head == 8 then return 'E' .. head end", "if kind == 192 and #head == 8 then kind, head = nil, '' end")},
	"write.lua without the existence check": {false, edit("write.lua", "then return 'A' end", "then end")},
	"write.lua without comparing versions": {false, edit("write.lua",
		"if string.sub(head, 1, 10) ~= ARGV[1] then return 'C' end\n  return 'D' .. stamps", "")},
	"touch.lua takes absent for live": {false, edit("touch.lua", "then return 'A' end", "then return 'D' end")},
	"invalidate.lua leaves an absent key": {false, edit("invalidate.lua",
		"if ARGV[3] and not kind then return 'A' end", "if not kind then return 'D' end")},
	"invalidate.lua forgets the tombstone": {false, edit("invalidate.lua",
		"local set = redis.pcall('SET', KEYS[1], tombstone, 'PX', keep)", "local set = { redis.call('DEL', KEYS[1]) }")},
	"invalidate.lua ends whoever ended first": {false, edit("invalidate.lua", "if ARGV[3] and ended then return 'E' .. head end", "")},
	"invalidate.lua keeps the reason rotated": {false, edit("invalidate.lua",
		"if not ended or (string.byte(head, 2) == 2 and ARGV[1] ~= '\\2') then", "if not ended then")},
	"rotate.lua leaves the old id live": {false, edit("rotate.lua",
		"redis.call('SET', KEYS[1], '\\192\\2' .. ms48(now), 'PX', left + ARGV[2])", "")},
	"rotate.lua takes a new id that is in use": {false, edit("rotate.lua", "if new then return 'C' end", "new = false")},
	"the store does not know that an attempt was lost": {true, func(c rueidis.Client) rueidis.Client {
		return &retrying{c}
	}},
}

// seedTime is how long a bug may take to be found.
const seedTime = 3 * time.Minute

// edited is a client that runs another script in the place of one.
type edited struct {
	rueidis.Client
	sha, source string
}

// edit returns what makes a client run a script with a text replaced.
func edit(file, old, new string) func(rueidis.Client) rueidis.Client {
	return func(c rueidis.Client) rueidis.Client {
		source, err := os.ReadFile(filepath.Join("../../../scripts", file))
		if err != nil {
			panic(err)
		}
		if !strings.Contains(string(source), old) {
			panic("bug does not fit " + file)
		}
		sum := sha1.Sum(source)
		return &edited{c, hex.EncodeToString(sum[:]), strings.Replace(string(source), old, new, 1)}
	}
}

func (e *edited) edit(cmd rueidis.Completed) rueidis.Completed {
	words := cmd.Commands()
	if words[0] != "EVALSHA" || words[1] != e.sha {
		return cmd
	}
	return e.B().Arbitrary("EVAL", e.source).Args(words[2:]...).Build()
}

func (e *edited) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return e.Client.Do(ctx, e.edit(cmd))
}

func (e *edited) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	for i, cmd := range multi {
		multi[i] = e.edit(cmd)
	}
	return e.Client.DoMulti(ctx, multi...)
}

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
