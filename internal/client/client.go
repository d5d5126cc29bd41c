// Package client holds the settings of the connections that the store, the demo and the benchmarks
// open.
package client

import (
	"errors"
	"time"

	"github.com/redis/rueidis"
)

// A connection whose server is silent is given up: rueidis sends a PING every KeepAlive and waits
// WriteTimeout for the answer. A broken connection drops what was cached over it.
const (
	KeepAlive    = 500 * time.Millisecond
	WriteTimeout = 1500 * time.Millisecond
)

// Option returns the settings for the server at url, whose forms are those of rueidis.ParseURL. The
// client caches nothing unless caching is set.
func Option(url string, caching bool) (rueidis.ClientOption, error) {
	o, err := rueidis.ParseURL(url)
	if err != nil { // the cause would show the password
		return o, errors.New("malformed URL, want redis://host:port")
	}
	o.DisableCache = !caching                            // what is not cached does not have to be tracked
	o.DisableRetry = true                                // the store tries again by itself
	o.ConnWriteTimeout = WriteTimeout                    // also how long others wait while one connects
	o.PipelineMultiplex = -1                             // one connection for all fills its batches best
	o.MaxFlushDelay = 20 * time.Microsecond              // larger batches: more throughput for less CPU
	o.Sentinel.TopologyRefreshInterval = 5 * time.Second // finds the primary if a message was missed
	if caching {
		o.Dialer.KeepAlive = KeepAlive
	}
	return o, nil
}

// Dial connects. A server that tells nobody what changes is used without a cache.
func Dial(o rueidis.ClientOption) (rueidis.Client, error) {
	c, err := rueidis.NewClient(o)
	if errors.Is(err, rueidis.ErrNoCache) {
		o.DisableCache = true
		c, err = rueidis.NewClient(o)
	}
	return c, err
}
