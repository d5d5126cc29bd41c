package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

const batch = 100 // commands of a pipeline, so that nobody waits long for the server

// node is a server, or one of a cluster, with what it says of itself.
type node struct {
	rueidis.Client
	address string
	info    map[string]string // fields of INFO
}

// primaries returns the nodes that keys are on. A server that is no cluster is one, even as a
// replica.
func primaries(ctx context.Context, conn rueidis.Client) (nodes []node, err error) {
	var silent error
	for address, client := range conn.Nodes() {
		n := node{address: address, Client: client}
		if n.info, err = fieldsOf(client.Do(ctx, client.B().Info().Section(sections...).Build())); err != nil {
			silent = err
		} else if conn.Mode() != rueidis.ClientModeCluster || n.info["role"] == "master" {
			nodes = append(nodes, n)
		}
	}
	if silent != nil && !serveAll(ctx, nodes) {
		return nil, silent
	}
	if len(nodes) == 0 {
		return nil, errors.New("no primary is known")
	}
	return nodes, nil
}

// sections are those of INFO.
var sections = []string{"server", "clients", "memory", "stats", "replication", "commandstats", "keyspace"}

// serveAll reports whether nodes are all primaries of a cluster, so that one that does not answer
// is a replica.
func serveAll(ctx context.Context, nodes []node) bool {
	if len(nodes) == 0 {
		return false
	}
	info, err := fieldsOf(nodes[0].Do(ctx, nodes[0].B().Arbitrary("CLUSTER", "INFO").Build()))
	return err == nil && info["cluster_size"] == strconv.Itoa(len(nodes))
}

// fieldsOf returns the fields of a reply in the form of INFO.
func fieldsOf(reply rueidis.RedisResult) (map[string]string, error) {
	text, err := reply.ToString()
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields, nil
}

// number returns a field of INFO.
func (n node) number(field string) int64 {
	x, _ := strconv.ParseInt(n.info[field], 10, 64)
	return x
}

// calls returns a number of a command from INFO commandstats.
func (n node) calls(command, name string) int64 {
	for pair := range strings.SplitSeq(n.info["cmdstat_"+command], ",") {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			x, _ := strconv.ParseInt(value, 10, 64)
			return x
		}
	}
	return 0
}

// allKeys returns how many keys there are in all databases.
func (n node) allKeys() (sum int) {
	for db := range n.info {
		var number, keys int
		if _, err := fmt.Sscanf(db+":"+n.info[db], "db%d:keys=%d,", &number, &keys); err == nil {
			sum += keys
		}
	}
	return sum
}
