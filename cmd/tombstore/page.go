package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// page is what top shows of an interval. Numbers of the nodes of a cluster are added up.
type page struct {
	Time     time.Time `json:"time"`
	Interval float64   `json:"interval_seconds,omitempty"`
	Error    string    `json:"error,omitempty"` // then it is all that is known
	*figures
}

type figures struct {
	Server  string `json:"server"`
	Nodes   int    `json:"nodes"`
	Keys    int64  `json:"keys"`
	Sampled int    `json:"sampled"`

	Sessions   estimate `json:"sessions"`
	Tombstones estimate `json:"tombstones"`
	Owners     estimate `json:"owners"`

	// A second. Those of messages are missing if it is not known that all have come.
	Ends         *float64 `json:"ends_per_second,omitempty"`
	Moves        *float64 `json:"moves_per_second,omitempty"`
	OwnersEnded  *float64 `json:"owners_ended_per_second,omitempty"`
	LateSaves    float64  `json:"late_saves_refused_per_second"`
	OtherRefused float64  `json:"others_refused_per_second"`
	Scripts      float64  `json:"scripts_per_second"`
	Commands     float64  `json:"commands_per_second"` // without the samples of top

	Memory         int64    `json:"memory_bytes"`
	Limit          int64    `json:"memory_limit_bytes"` // 0: none
	Policy         string   `json:"memory_policy"`
	Evicted        int64    `json:"evicted_keys"` // since the server has started
	EvictedNow     float64  `json:"evicted_per_second"`
	Clients        int64    `json:"clients"`
	ClientsRefused int64    `json:"clients_refused"` // since the server has started
	Replicas       int64    `json:"replicas"`
	Behind         int64    `json:"replica_behind_bytes"` // the one that is furthest behind
	Warnings       []string `json:"warnings,omitempty"`
}

// compare fills in what the nodes said at two times.
func (p *page) compare(last, now glance) {
	p.Interval = now.at.Sub(last.at).Round(time.Millisecond).Seconds()
	p.figures = &figures{
		Nodes:      len(now.nodes),
		Sessions:   estimateOf(now.samples, 0),
		Tombstones: estimateOf(now.samples, 1),
		Owners:     estimateOf(now.samples, 2),
	}
	for _, s := range now.samples {
		p.Keys += s.keys
		p.Sampled += s.taken
	}
	before := map[string]node{}
	for _, n := range last.nodes {
		before[n.address] = n
	}
	for _, n := range now.nodes {
		rate := func(of func(node) int64) float64 {
			count := of(n)
			if old, known := before[n.address]; !known {
				return 0
			} else if was := of(old); was <= count {
				count -= was
			} // else the server has begun to count anew
			return float64(count) / p.Interval
		}
		refused := func(commands ...string) float64 {
			return rate(func(n node) (sum int64) {
				for _, command := range commands {
					sum += n.calls(command, "failed_calls")
				}
				return sum
			})
		}
		p.LateSaves += refused("set")
		p.OtherRefused += refused("get", "getex", "getrange")
		p.Scripts += rate(func(n node) int64 { return n.calls("evalsha", "calls") + n.calls("eval", "calls") })
		p.Commands += rate(func(n node) int64 { return n.number("total_commands_processed") })
		p.EvictedNow += rate(func(n node) int64 { return n.number("evicted_keys") })
		p.add(n)
	}
	for _, s := range last.samples {
		p.Commands = max(0, p.Commands-float64(s.sent)/p.Interval)
	}
	for _, x := range []*float64{&p.LateSaves, &p.OtherRefused, &p.Scripts, &p.Commands, &p.EvictedNow} {
		*x = round(*x)
	}
	p.warn()
}

// add adds what a node says of itself.
func (p *page) add(n node) {
	p.Server, p.Policy = "Redis "+n.info["redis_version"], n.info["maxmemory_policy"]
	if version := n.info["valkey_version"]; version != "" {
		p.Server = "Valkey " + version
	}
	used, limit := n.number("used_memory"), n.number("maxmemory")
	p.Memory += used
	p.Limit += limit
	p.Evicted += n.number("evicted_keys")
	p.Clients += n.number("connected_clients")
	p.ClientsRefused += n.number("rejected_connections")
	p.Replicas += n.number("connected_slaves")
	for i := range n.number("connected_slaves") {
		_, offset, found := strings.Cut(n.info["slave"+strconv.FormatInt(i, 10)], "offset=")
		offset, _, _ = strings.Cut(offset, ",")
		if at, err := strconv.ParseInt(offset, 10, 64); found && err == nil {
			p.Behind = max(p.Behind, n.number("master_repl_offset")-at)
		}
	}
	if limit > 0 && used*10 >= limit*9 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s has used %d %% of its memory", n.address, used*100/limit))
	}
	if n.info["role"] == "slave" {
		p.Warnings = append(p.Warnings, n.address+" is a replica, whose link to its primary is "+n.info["master_link_status"])
	}
}

func (p *page) warn() {
	if p.Evicted > 0 {
		p.Warnings = append(p.Warnings, thousands(int(p.Evicted))+" keys were evicted, each of which may have been a tombstone")
	}
	if p.Policy != "noeviction" {
		p.Warnings = append(p.Warnings, "maxmemory-policy is "+p.Policy+": tombstones are evicted when memory is full")
	}
}

// hear fills in what the stores have told.
func (p *page) hear(ctx context.Context, conn rueidis.Client, said *messages) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	sessions, owners, moved, whole := said.take(ctx, conn)
	if !whole {
		return
	}
	second := func(n float64) *float64 {
		n = round(n / p.Interval)
		return &n
	}
	p.Moves = second(float64(sessions) * moved)
	p.Ends = second(float64(sessions) * (1 - moved))
	p.OwnersEnded = second(float64(owners))
}

// lines returns the page for people.
func (p *page) lines(out screen, prefix string) []string {
	at := p.Time.Format(time.DateTime) + " UTC"
	if p.figures == nil {
		return []string{at, "", out.paint(red, "no answer: "+p.Error)}
	}
	ends := "unknown: SUBSCRIBE is refused, or was interrupted"
	if p.Ends != nil {
		ends = fmt.Sprintf("%.1f   moves %.1f   owners logged out %.1f   (as told by WithPublish)",
			*p.Ends, *p.Moves, *p.OwnersEnded)
	}
	memory := mebibytes(p.Memory)
	if p.Limit > 0 {
		memory += fmt.Sprintf(" of %s (%d %%)", mebibytes(p.Limit), p.Memory*100/p.Limit)
	}
	replicas := thousands(int(p.Replicas))
	if p.Replicas > 0 {
		replicas += fmt.Sprintf("   behind by at most %s bytes", thousands(int(p.Behind)))
	}
	lines := []string{
		fmt.Sprintf("%s   nodes: %d   prefix %q   %s", p.Server, p.Nodes, prefix, at),
		"",
		out.paint(bold, "sessions    ") + p.Sessions.String(),
		out.paint(bold, "tombstones  ") + p.Tombstones.String(),
		out.paint(bold, "owners      ") + p.Owners.String(),
		fmt.Sprintf("            estimated from %s samples of %s keys", thousands(p.Sampled), thousands(int(p.Keys))),
		"",
		"A second, in the last " + strconv.FormatFloat(p.Interval, 'f', -1, 64) + " s:",
		out.paint(bold, "ends        ") + ends,
		out.paint(bold, "refused     ") + fmt.Sprintf("late saves %.1f   others %.1f", p.LateSaves, p.OtherRefused),
		out.paint(bold, "commands    ") + fmt.Sprintf("%.1f   scripts %.1f", p.Commands, p.Scripts),
		"",
		out.paint(bold, "memory      ") + memory + "   " + p.Policy,
		out.paint(bold, "evicted     ") + fmt.Sprintf("%s keys   %.1f a second", thousands(int(p.Evicted)), p.EvictedNow),
		out.paint(bold, "clients     ") + fmt.Sprintf("%s   refused %s", thousands(int(p.Clients)), thousands(int(p.ClientsRefused))),
		out.paint(bold, "replicas    ") + replicas,
	}
	for _, warning := range p.Warnings {
		lines = append(lines, out.paint(red, "warning     ")+warning)
	}
	return lines
}

func (e estimate) String() string {
	return fmt.Sprintf("%12s   (%s to %s)", thousands(int(e.Keys)), thousands(int(e.Low)), thousands(int(e.High)))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// drawing shows pages one after the other, on a terminal in the same place.
type drawing struct {
	screen
	last []string
	open bool
}

// newDrawing shows first until there is a page, on a terminal only.
func newDrawing(out screen, first string) *drawing {
	d := &drawing{screen: out, open: out.terminal}
	if d.open {
		fmt.Fprint(d, enter, first)
	}
	return d
}

// page shows a page.
func (d *drawing) page(lines []string) error {
	if !d.open {
		_, err := fmt.Fprint(d, strings.Join(lines, "\n"), "\n\n")
		return err
	}
	d.last = lines
	_, err := fmt.Fprint(d, home, strings.Join(lines, eraseLine+"\n"), eraseLine+eraseRest)
	return err
}

// close makes the terminal what it was, and leaves the last page there.
func (d *drawing) close() {
	if d.open {
		d.open = false
		fmt.Fprint(d, leave, strings.Join(d.last, "\n"), "\n")
	}
}
