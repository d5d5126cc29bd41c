package main

import (
	"context"
	"math"
	"strings"

	"github.com/redis/rueidis"
)

// kinds are the types of key that a store keeps.
var kinds = [...]string{"string", "hash", "zset"} // sessions, tombstones, owners

// sample counts random keys of a node by their types.
type sample struct {
	keys  int64 // of the node
	taken int
	sent  int // commands
	found [len(kinds)]int
}

// sampleOf looks at n random keys of a node. Which key RANDOMKEY returns is nearly uniform, and a
// key may come more than once.
func sampleOf(ctx context.Context, node rueidis.Client, prefix string, n int) (s sample, err error) {
	if s.keys, err = node.Do(ctx, node.B().Dbsize().Build()).AsInt64(); err != nil || s.keys == 0 {
		return s, err
	}
	for s.taken < n {
		random := make([]rueidis.Completed, min(batch, n-s.taken))
		for i := range random {
			random[i] = node.B().Randomkey().Build()
		}
		var types []rueidis.Completed
		for _, result := range node.DoMulti(ctx, random...) {
			key, err := result.ToString()
			switch {
			case rueidis.IsRedisNil(err): // all keys have gone since, or are about to expire
			case err != nil:
				return s, err
			case strings.HasPrefix(key, prefix):
				types = append(types, node.B().Type().Key(key).Build())
			}
			s.taken++
		}
		s.sent += len(random) + len(types)
		for _, result := range node.DoMulti(ctx, types...) {
			found, err := result.ToString()
			if err != nil {
				return s, err
			}
			for i, kind := range kinds {
				if found == kind {
					s.found[i]++
				}
			}
		}
	}
	return s, nil
}

// estimate is a number of keys, which is between Low and High with a probability of 95 %.
type estimate struct {
	Keys int64 `json:"keys"`
	Low  int64 `json:"low"`
	High int64 `json:"high"`
}

// estimateOf returns how many keys of a kind the nodes hold on which the samples were taken. Each
// node's interval is that of Wilson. That of the sum has the distances of all, as the sides of a
// right angle (MOVER, Zou and Donner).
func estimateOf(samples []sample, kind int) estimate {
	var sum, below, above float64
	var most int64
	for _, s := range samples {
		if s.taken == 0 {
			continue
		}
		keys, share := float64(s.keys), float64(s.found[kind])/float64(s.taken)
		low, high := wilson(s.found[kind], s.taken)
		sum += keys * share
		below += math.Pow(keys*(share-low), 2)
		above += math.Pow(keys*(high-share), 2)
		most += s.keys
	}
	return estimate{
		Keys: int64(math.Round(sum)),
		Low:  max(0, int64(math.Floor(sum-math.Sqrt(below)))),
		High: min(most, int64(math.Ceil(sum+math.Sqrt(above)))),
	}
}

// wilson returns the 95 % interval of a share that was found in so many of n.
func wilson(found, n int) (low, high float64) {
	const z = 1.96
	share, size := float64(found)/float64(n), float64(n)
	middle := (share + z*z/(2*size)) / (1 + z*z/size)
	distance := z / (1 + z*z/size) * math.Sqrt(share*(1-share)/size+z*z/(4*size*size))
	return max(0, middle-distance), min(1, middle+distance)
}
