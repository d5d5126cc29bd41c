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

// primaries returns the nodes that keys are on, with what each says of itself. A server that is no
// cluster is one, even as a replica.
func primaries(ctx context.Context, conn rueidis.Client) (nodes []node, err error) {
	for address, client := range conn.Nodes() {
		n := node{address: address, Client: client}
		if n.info, err = infoOf(ctx, client); err != nil {
			return nil, err
		}
		if conn.Mode() != rueidis.ClientModeCluster || n.info["role"] == "master" {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return nil, errors.New("no primary is known")
	}
	return nodes, nil
}

func infoOf(ctx context.Context, client rueidis.Client) (map[string]string, error) {
	sections := []string{"server", "clients", "memory", "stats", "replication", "commandstats", "keyspace"}
	text, err := client.Do(ctx, client.B().Info().Section(sections...).Build()).ToString()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info, nil
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
