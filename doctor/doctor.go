// Package doctor looks at a server's settings for what would break the promise of package
// tombstore: that a session that was ended stays ended.
package doctor

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// Level is how bad a finding is.
type Level string

// The levels, from good to bad. Unknown is what the server does not tell, for example where CONFIG
// and INFO are not permitted.
const (
	OK      Level = "ok"
	Unknown Level = "unknown"
	Warning Level = "warning"
	Fail    Level = "fail"
)

// Finding is what one check has found.
type Finding struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Text  string `json:"text"`          // what was found, and what it means for the promise
	Fix   string `json:"fix,omitempty"` // the command that mends it
}

// Failed reports whether a finding is a Fail.
func Failed(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Level == Fail })
}

const (
	pings       = 100
	checkedTTL  = 10 * time.Second
	lagRoom     = 2 * time.Second  // the server counts whole seconds of lag, once a second
	failover    = 30 * time.Second // Sentinel's usual down-after
	clockLimit  = time.Second
	oldestRedis = "7.0"
)

// Examine looks at the server of client, for a store with the given key prefix. It writes, moves,
// ends and removes a session of its own, and changes no setting. It needs a few seconds at most;
// whatever ctx or the server's rights do not allow is Unknown. Of a cluster it looks at one
// primary, whose settings stand for all.
func Examine(ctx context.Context, client rueidis.Client, prefix string) []Finding {
	e := &examination{ctx: ctx, client: client, node: client, prefix: prefix}
	e.readInfo()
	if client.Mode() == rueidis.ClientModeCluster { // each command would go to any of the nodes
		for _, e.node = range client.Nodes() {
			if e.readInfo(); e.info["role"] == "master" {
				break
			}
		}
	}
	e.version()
	e.operations()
	e.memory()
	e.persistence()
	e.replication()
	e.rights()
	e.clock()
	e.latency()
	return e.findings
}

type examination struct {
	ctx      context.Context
	client   rueidis.Client
	prefix   string
	node     rueidis.Client    // that tells its settings
	info     map[string]string // fields of INFO; empty if it is not permitted
	findings []Finding
}

func (e *examination) found(name string, level Level, fix, text string, args ...any) {
	e.findings = append(e.findings, Finding{Name: name, Level: level, Text: fmt.Sprintf(text, args...), Fix: fix})
}

func (e *examination) do(command ...string) rueidis.RedisResult {
	return e.node.Do(e.ctx, e.node.B().Arbitrary(command...).Build())
}

func (e *examination) readInfo() {
	e.info = map[string]string{}
	text, err := e.do("INFO").ToString()
	if err != nil {
		return
	}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			e.info[name] = value
		}
	}
}

func (e *examination) number(field string) int64 {
	n, _ := strconv.ParseInt(e.info[field], 10, 64)
	return n
}

// config returns a setting, and whether the server tells it.
func (e *examination) config(name string) (string, bool) {
	m, err := e.do("CONFIG", "GET", name).AsStrMap()
	value, ok := m[name]
	return value, err == nil && ok
}

func (e *examination) version() {
	const name = "server"
	product, version, oldest := "Redis", e.info["redis_version"], oldestRedis
	if v := e.info["valkey_version"]; v != "" {
		product, version, oldest = "Valkey", v, "7.2"
	}
	switch {
	case version == "":
		e.found(name, Unknown, "", "INFO is not permitted: the release is not known; the oldest supported are "+
			"Redis 7.0 and Valkey 7.2")
	case older(version, oldest):
		e.found(name, Fail, "", "%s %s is older than %s: its scripts do not check rights and min-replicas-to-write",
			product, version, oldest)
	default:
		e.found(name, OK, "", "%s %s", product, version)
	}
}

func older(version, oldest string) bool {
	have, want := strings.Split(version, "."), strings.Split(oldest, ".")
	for i := range want {
		h, err := strconv.Atoi(have[min(i, len(have)-1)])
		w, _ := strconv.Atoi(want[i])
		if err != nil || h != w {
			return err != nil || h < w
		}
	}
	return false
}

func (e *examination) operations() {
	s, err := tombstore.New(e.client, tombstore.WithKeyPrefix(e.prefix), tombstore.WithClientCache(checkedTTL))
	if err != nil {
		e.found("operations", Fail, "", "%v", err)
		return
	}
	report, err := s.Check(e.ctx)
	if err != nil {
		e.found("operations", Fail, "", "a session could not be written, saved, touched, moved, read and ended: %v", err)
		return
	}
	if !report.Cached { // a message may be late on a busy machine, but not twice
		if again, err := s.Check(e.ctx); err == nil {
			report = again
		}
	}
	e.found("operations", OK, "", "a session was written, saved, touched, moved, read and ended, and stayed ended")
	if report.Scripted == nil {
		e.found("saves", OK, "", "the server refuses to save a session that was ended: Replacing is one command")
	} else {
		e.found("saves", Warning, "", "Replacing runs a script, which holds as well and costs the server more: %v",
			report.Scripted)
	}
	if report.Cached {
		e.found("cache", OK, "", "the server's messages about changed keys arrive: WithClientCache works")
	} else {
		e.found("cache", Warning, "ACL SETUSER <user> +client|caching +client|tracking +multi +exec",
			"WithClientCache would not cache, and reads would go to the server: %v", report.Uncached)
	}
}

func (e *examination) memory() {
	const name = "memory"
	policy := e.info["maxmemory_policy"]
	switch {
	case policy == "":
		e.found(name, Unknown, "", "INFO is not permitted; maxmemory-policy must be noeviction")
	case policy == "noeviction" && e.number("maxmemory") == 0:
		e.found(name, OK, "", "noeviction, and no maxmemory: see to it that the machine has enough")
	case policy == "noeviction":
		e.found(name, OK, "", "noeviction: a full server refuses writes, and ends sessions all the same")
	case e.number("maxmemory") == 0:
		e.found(name, Warning, "CONFIG SET maxmemory-policy noeviction",
			"%s would drop tombstones if maxmemory were set", policy)
	case policy == "volatile-ttl":
		e.found(name, Warning, "CONFIG SET maxmemory-policy noeviction",
			"volatile-ttl drops tombstones once sessions with less time left are gone: late writes without "+
				"IfPresent or Replacing come through then")
	default:
		e.found(name, Fail, "CONFIG SET maxmemory-policy noeviction",
			"%s drops tombstones when memory is full: late writes without IfPresent or Replacing bring ended "+
				"sessions back, and an end by an old id does not reach the session", policy)
	}
	if n := e.number("evicted_keys"); n > 0 {
		e.found("evictions", Warning, "CONFIG SET maxmemory-policy noeviction",
			"keys evicted since the server started: %d; each may have been a tombstone", n)
	}
}

func (e *examination) persistence() {
	const name = "persistence"
	switch {
	case len(e.info) == 0:
		e.found(name, Unknown, "", "INFO is not permitted; only appendonly yes with appendfsync always keeps "+
			"every end over a restart")
	case e.info["aof_enabled"] == "1":
		// While a rewrite or a snapshot is under way, nothing is synced then, whatever appendfsync says.
		pauses, _ := e.config("no-appendfsync-on-rewrite")
		switch fsync, ok := e.config("appendfsync"); {
		case !ok:
			e.found(name, Unknown, "", "AOF is on, and CONFIG is not permitted; appendfsync must be always, and "+
				"no-appendfsync-on-rewrite no, to keep every end over a crash")
		case pauses == "yes":
			e.found(name, Warning, "CONFIG SET appendfsync always no-appendfsync-on-rewrite no",
				"AOF, appendfsync %s, but no-appendfsync-on-rewrite yes: a crash takes the ends that were acknowledged "+
					"during a rewrite or a snapshot, and those sessions are live again", fsync)
		case fsync == "always":
			e.found(name, OK, "", "AOF, appendfsync always: ended sessions stay ended over a restart")
		default:
			e.found(name, Warning, "CONFIG SET appendfsync always",
				"AOF, appendfsync %s: a crash takes the ends of about the last second, and those sessions are live again",
				fsync)
		}
	default:
		switch save, ok := e.config("save"); {
		case ok && save == "":
			e.found(name, Warning, "CONFIG SET appendonly yes",
				"nothing is persisted: a restart loses sessions and tombstones alike; late writes without IfPresent "+
					"or Replacing begin new sessions of ended ids")
		case ok:
			e.found(name, Fail, "CONFIG SET appendonly yes",
				"snapshots only: after a crash sessions that were ended since the last snapshot are live again")
		default:
			e.found(name, Unknown, "CONFIG SET appendonly yes",
				"AOF is off, and CONFIG is not permitted; with snapshots only, a crash brings back sessions that were "+
					"ended since the last one")
		}
	}
}

func (e *examination) replication() {
	const name = "replication"
	if e.info["cluster_enabled"] == "1" {
		e.found("topology", OK, "", "cluster: Rotate takes two steps")
	}
	if e.info["redis_mode"] == "sentinel" {
		e.found(name, Fail, "", "this is a Sentinel: name the set of the primary, as in redis://host:port?master_set=name")
		return
	}
	switch role := e.info["role"]; role {
	case "":
		e.found(name, Unknown, "", "INFO is not permitted; with replicas, use WithReplicaAcks with the number of all "+
			"that could be promoted")
		return
	case "master":
	default:
		e.found(name, Fail, "", "this server is a replica: connect to the primary")
		e.replicaMemory([]*examination{e})
		return
	}
	replicas := e.number("connected_slaves")
	if replicas == 0 {
		e.found(name, OK, "", "no replicas: nothing can be promoted with less than this server has")
		return
	}
	e.found(name, Warning, "", "replicas: %d; replication is asynchronous, so only WithReplicaAcks(%d, ...) makes an "+
		"end survive a failover", replicas, replicas)
	if stale, ok := e.config("replica-serve-stale-data"); ok && stale != "no" {
		e.found("stale replicas", Warning, "CONFIG SET replica-serve-stale-data no",
			"a primary that comes back as a replica answers from what it has kept until it is in step: "+
				"live sessions are not found, and ended ones may be live")
	}
	e.replicaMemory(e.replicas())
	e.strictReads(replicas)
}

// replicas returns the replicas that the client knows, which are those of a cluster.
func (e *examination) replicas() (known []*examination) {
	if e.client.Mode() != rueidis.ClientModeCluster {
		return nil
	}
	for _, node := range e.client.Nodes() {
		r := &examination{ctx: e.ctx, node: node}
		if r.readInfo(); r.info["role"] == "slave" {
			known = append(known, r)
		}
	}
	return known
}

// replicaMemory looks for replicas that drop keys which the primary has kept. One with the settings
// of the primary is told by the finding about memory.
func (e *examination) replicaMemory(replicas []*examination) {
	const name, fix = "replica memory", "CONFIG SET replica-ignore-maxmemory yes"
	unknown := int64(len(replicas)) < e.number("connected_slaves")
	for _, r := range replicas {
		switch ignores, ok := r.config("replica-ignore-maxmemory"); {
		case !ok:
			unknown = true
		case ignores == "no" && r.info["maxmemory_policy"] != "noeviction" && r.number("maxmemory") > 0:
			e.found(name, Warning, fix, "a replica evicts by itself (replica-ignore-maxmemory no, %s): when it is "+
				"promoted, tombstones are missing, also with WithReplicaAcks", r.info["maxmemory_policy"])
			return
		}
	}
	if unknown {
		e.found(name, Unknown, fix, "the settings of the replicas are not seen from here; with replica-ignore-maxmemory "+
			"no and another maxmemory-policy than noeviction they drop tombstones: run the doctor on each")
		return
	}
	e.found(name, OK, "", "replicas evict nothing that the primary has kept")
}

func (e *examination) strictReads(replicas int64) {
	const name = "strict reads"
	min, ok := e.config("min-replicas-to-write")
	lag, ok2 := e.config("min-replicas-max-lag")
	least, _ := strconv.ParseInt(min, 10, 64)
	seconds, _ := strconv.ParseInt(lag, 10, 64)
	want := replicas/2 + 1
	switch {
	case !ok || !ok2:
		e.found(name, Unknown, "", "CONFIG is not permitted; WithStrictReads needs min-replicas-to-write of %d or more", want)
		return
	case seconds == 0:
		e.found(name, Warning, "CONFIG SET min-replicas-max-lag 3",
			"min-replicas-max-lag is 0: after a failover the old primary goes on answering, also with WithStrictReads")
		return
	case least < want:
		e.found(name, Warning, fmt.Sprintf("CONFIG SET min-replicas-to-write %d", want),
			"min-replicas-to-write is %d of %d: after a failover the old primary goes on answering, also with "+
				"WithStrictReads", least, replicas)
		return
	}
	quick, known := failover, false
	if text, ok := e.config("cluster-node-timeout"); ok && e.info["cluster_enabled"] == "1" {
		ms, err := strconv.ParseInt(text, 10, 64)
		quick, known = time.Duration(ms)*time.Millisecond, err == nil
	}
	needs := time.Duration(seconds)*time.Second + lagRoom
	switch {
	case needs > quick:
		fix := "CONFIG SET min-replicas-max-lag 3"
		if quick < 3*time.Second+lagRoom {
			fix = "CONFIG SET cluster-node-timeout 5000 and " + fix
		}
		e.found(name, Warning, fix,
			"min-replicas-max-lag is %d s, and a failover may begin after %v: until then the old primary goes on "+
				"answering", seconds, quick)
	case known:
		e.found(name, OK, "", "min-replicas-to-write is %d of %d: WithStrictReads keeps an old primary from answering",
			least, replicas)
	default:
		e.found(name, Unknown, "", "min-replicas-to-write is %d of %d: WithStrictReads keeps an old primary from "+
			"answering if Sentinel's down-after-milliseconds is %d or more", least, replicas, needs.Milliseconds())
	}
}

// rights tries every command that the store sends or its scripts run. Together they store nothing,
// whichever of them are permitted.
func (e *examination) rights() {
	const name = "rights"
	key := e.prefix + "doctor-" + rand.Text()
	var missing, reasons []string
	level := OK
	// try sends a command that the store needs for something, or at all.
	note := func(reason string, err error, command ...string) {
		reply, ok := rueidis.IsRedisErr(err)
		if !ok || !strings.HasPrefix(reply.Error(), "NOPERM") {
			return
		}
		right := "~" + e.prefix + "*"
		switch text := reply.Error(); {
		case strings.Contains(text, "permissions to run"):
			right = "+" + strings.ToLower(command[0])
			if command[0] == "CLUSTER" {
				right += "|" + strings.ToLower(command[1])
			}
		case strings.Contains(text, "channel"):
			right = "&" + e.prefix + "ended"
		}
		if slices.Contains(missing, right) {
			return
		}
		missing = append(missing, right)
		switch {
		case reason == "":
			level = Fail
		case level == OK:
			level = Warning
		}
		if reason != "" {
			reasons = append(reasons, right+" is for "+reason)
		}
	}
	try := func(reason string, command ...string) { note(reason, e.do(command...).Error(), command...) }
	for _, command := range [][]string{
		{"TIME"},
		{"EXISTS", key},
		{"GET", key},
		{"GETRANGE", key, "0", "0"},
		{"SETRANGE", key, "0", ""},
		{"SET", key, "", "XX", "GET"},
		{"PTTL", key},
		{"RENAME", key, key},
		{"EVAL", "return 1", "1", key},
		{"EVALSHA", strings.Repeat("0", 40), "1", key},
		{"HSET", key, "t", ""}, // any of those that follow takes it away
		{"HGET", key, "t"},
		{"HMGET", key, "t"},
		{"HDEL", key, "t"},
		{"PEXPIRE", key, "1"},
		{"PEXPIREAT", key, "1"},
		{"DEL", key},
	} {
		try("", command...)
	}
	try("WithStrictReads", "GETEX", key)
	try("List", "SCAN", "0", "MATCH", key, "COUNT", "1")
	try("WithReplicaAcks", "WAIT", "0", "1")
	try("noticing that the server of an idle connection is gone", "PING")
	for _, command := range [][]string{
		{"ZADD", key, "XX", "0", "x"},
		{"ZREM", key, "x"},
		{"ZRANGE", key, "0", "0"},
		{"ZSCORE", key, "x"},
		{"ZMSCORE", key, "x"},
		{"ZCOUNT", key, "0", "0"},
		{"ZSCAN", key, "0"},
	} {
		try("owners", command...)
	}
	try("telling at once who watches a session", "PUBLISH", e.prefix+"ended", "")
	note("hearing at once of the end of a session that is watched", e.subscribe(e.prefix+"ended"), "SUBSCRIBE")
	try("telling a server that is too old", "EVAL_RO", "return 1", "1", key)
	if e.isCluster() {
		topology := "" // without it the client takes a node for a single server
		if e.client.Mode() == rueidis.ClientModeCluster {
			topology = "clients and servers of another release" // this one has what it asks for
		}
		try(topology, "CLUSTER", "SLOTS")
		try(topology, "CLUSTER", "SHARDS")
		try("List", "CLUSTER", "NODES")
		try("", "ASKING")
		try("", "RESTORE", key, "0", "")
	} else {
		try("an end in one step", "RESTORE", key, "0", "")
	}
	if level == OK {
		e.found(name, OK, "", "every command that the store sends is permitted")
		return
	}
	list := strings.Join(missing, " ")
	text := "not permitted: " + list
	if level == Fail {
		text += "; the store cannot work"
	}
	if len(reasons) > 0 {
		text += "; " + strings.Join(reasons, ", ")
	}
	e.found(name, level, "ACL SETUSER <user> "+list, "%s", text)
}

// subscribe subscribes to a channel, and leaves it.
func (e *examination) subscribe(channel string) error {
	c, release := e.client.Dedicate()
	defer release()
	defer c.Close()
	ctx, leave := context.WithCancel(e.ctx)
	defer leave()
	ctx = rueidis.WithOnSubscriptionHook(ctx, func(rueidis.PubSubSubscription) { leave() })
	return c.Receive(ctx, c.B().Subscribe().Channel(channel).Build(), func(rueidis.PubSubMessage) {})
}

// isCluster reports whether the server is a part of a cluster, also for a client that was not
// permitted to ask.
func (e *examination) isCluster() bool {
	return e.client.Mode() == rueidis.ClientModeCluster || e.info["cluster_enabled"] == "1" ||
		slices.ContainsFunc([]string{"SLOTS", "SHARDS", "NODES"}, func(what string) bool {
			return e.do("CLUSTER", what).Error() == nil
		})
}

func (e *examination) clock() {
	const name = "clock"
	before := time.Now()
	now, err := e.do("TIME").AsStrSlice()
	if err != nil || len(now) != 2 {
		e.found(name, Unknown, "", "TIME is not permitted")
		return
	}
	seconds, _ := strconv.ParseInt(now[0], 10, 64)
	micros, _ := strconv.ParseInt(now[1], 10, 64)
	off := max(before.Sub(time.Unix(seconds, micros*1000)), time.Until(time.Unix(seconds, micros*1000)))
	if off > clockLimit {
		e.found(name, Warning, "timedatectl set-ntp true",
			"the server's clock and this one differ by %v: absolute deadlines are early or late by as much",
			off.Round(time.Millisecond))
		return
	}
	e.found(name, OK, "", "the server's clock agrees with this one")
}

func (e *examination) latency() {
	const name = "latency"
	var took []time.Duration
	for range pings {
		begun := time.Now()
		if err := e.do("PING").Error(); err != nil {
			e.found(name, Unknown, "", "PING failed: %v", err)
			return
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	e.found(name, OK, "", "PING takes %v, and %v at the 99th percentile",
		took[pings/2].Round(time.Microsecond), took[pings-1].Round(time.Microsecond))
}
