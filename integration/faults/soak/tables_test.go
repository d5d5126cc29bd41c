package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// classes of outcomes, in the order of the table.
var classes = []string{"ok", "ended", "absent", "conflict", "outcome unknown", "timeout", "transport", errorReply}

const errorReply = "error reply"

func class(err error) string {
	var reply *rueidis.RedisError
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, tombstore.ErrInvalidated):
		return "ended"
	case errors.Is(err, tombstore.ErrNotFound):
		return "absent"
	case errors.Is(err, tombstore.ErrConflict):
		return "conflict"
	case errors.Is(err, tombstore.ErrUnknownOutcome):
		return "outcome unknown"
	case errors.As(err, &reply):
		return errorReply
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "transport"
}

// tally counts the calls of one verb.
type tally struct {
	times    *hdrhistogram.Histogram // µs
	outcomes map[string]int64
}

func newTally() *tally {
	return &tally{hdrhistogram.New(1, time.Minute.Microseconds(), 2), map[string]int64{}}
}

func (t *tally) record(d time.Duration, err error) {
	_ = t.times.RecordValue(min(max(d, time.Microsecond), time.Minute).Microseconds())
	t.outcomes[class(err)]++
}

func (t *tally) add(other *tally) {
	t.times.Merge(other.times)
	for class, n := range other.outcomes {
		t.outcomes[class] += n
	}
}

func verbTable(tallies map[string]*tally) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| call | calls | %s | p50 | p99 | p99.9 | max |\n|---|%s\n",
		strings.Join(classes, " | "), strings.Repeat("--:|", len(classes)+5))
	for _, verb := range slices.Sorted(maps.Keys(tallies)) {
		t := tallies[verb]
		fmt.Fprintf(&b, "| %s | %d |", verb, t.times.TotalCount())
		for _, class := range classes {
			fmt.Fprintf(&b, " %d |", t.outcomes[class])
		}
		for _, us := range []int64{t.times.ValueAtQuantile(50), t.times.ValueAtQuantile(99), t.times.ValueAtQuantile(99.9), t.times.Max()} {
			fmt.Fprintf(&b, " %.2f ms |", float64(us)/1000)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// sample is a look at both sides at one moment.
type sample struct {
	at                               time.Duration
	calls, goroutines                int64
	heapAlloc, heapInuse, used, keys int64
}

func median(samples []sample, of func(sample) int64) int64 {
	values := make([]int64, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func memoryTable(samples []sample) string {
	var b strings.Builder
	b.WriteString("| until | calls/s | goroutines | client HeapAlloc | client HeapInuse | server used_memory | server keys |\n" +
		"|--:|--:|--:|--:|--:|--:|--:|\n")
	mib := func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
	var last sample
	for i := range intervals {
		part := samples[i*len(samples)/intervals : (i+1)*len(samples)/intervals]
		if len(part) == 0 {
			continue
		}
		end := part[len(part)-1]
		fmt.Fprintf(&b, "| %v | %.0f | %d | %s | %s | %s | %d |\n", end.at.Round(time.Second),
			float64(end.calls-last.calls)/(end.at-last.at).Seconds(),
			median(part, func(s sample) int64 { return s.goroutines }),
			mib(median(part, func(s sample) int64 { return s.heapAlloc })),
			mib(median(part, func(s sample) int64 { return s.heapInuse })),
			mib(median(part, func(s sample) int64 { return s.used })),
			median(part, func(s sample) int64 { return s.keys }))
		last = end
	}
	return b.String()
}

// requireFlat compares the last third of a run with the one before it: the first is warming up.
func requireFlat(t *testing.T, what string, samples []sample, of func(sample) int64) {
	t.Helper()
	third := len(samples) / 3
	require.Positive(t, third)
	before, after := median(samples[third:2*third], of), median(samples[2*third:], of)
	require.Less(t, float64(after), growth*float64(before)+noise, "%s grows", what)
}

func list(counts map[string]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
