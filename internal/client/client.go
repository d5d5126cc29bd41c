// Package client holds the settings of the connections that the store, the demo and the benchmarks
// open.
package client

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// A connection whose server is silent is given up: rueidis sends a PING every KeepAlive and waits
// WriteTimeout for the answer. A broken connection drops what was cached over it.
const (
	KeepAlive    = 500 * time.Millisecond
	WriteTimeout = 1500 * time.Millisecond
)

// Option returns the settings for the server at url, whose forms are those of tombstore.Open. The
// client caches nothing unless caching is set.
func Option(url string, caching bool) (rueidis.ClientOption, error) {
	o, err := parse(url)
	if err != nil {
		return o, err
	}
	return Complete(o, caching)
}

// Complete sets what o leaves unset. It returns an error if o sets a field with which the store
// cannot keep its promise. Functions that choose among replicas are used with SendToReplicas only.
func Complete(o rueidis.ClientOption, caching bool) (rueidis.ClientOption, error) {
	if len(o.InitAddress) == 0 {
		return o, errors.New("ClientOption.InitAddress is empty")
	}
	for _, field := range []struct {
		name, why string
		set       bool
	}{
		{"SendToReplicas", replicas, o.SendToReplicas != nil},
		{"ReplicaOnly", replicas, o.ReplicaOnly},
		{"Standalone.ReplicaAddress", replicas, len(o.Standalone.ReplicaAddress) > 0},
		{"Standalone.EnableRedirect", again, o.Standalone.EnableRedirect},
		{"ConnLifetime", again, o.ConnLifetime != 0},
		{"ClientTrackingOptions", cached, o.ClientTrackingOptions != nil},
		{"NewCacheStoreFn", cached, o.NewCacheStoreFn != nil},
	} {
		if field.set {
			return o, fmt.Errorf("ClientOption.%s must not be set: %s", field.name, field.why)
		}
	}
	o.DisableRetry = true                       // the store tries again by itself
	o.DisableCache = o.DisableCache || !caching // what is not cached does not have to be tracked
	if caching {
		unset(&o.Dialer.KeepAlive, KeepAlive)
	}
	unset(&o.ConnWriteTimeout, WriteTimeout)     // also how long others wait while one connects
	unset(&o.PipelineMultiplex, -1)              // one connection for all fills its batches best
	unset(&o.MaxFlushDelay, 20*time.Microsecond) // larger batches: more throughput for less CPU
	sentinel := &o.Sentinel
	unset(&sentinel.TopologyRefreshInterval, 5*time.Second) // finds the primary if a message was missed
	unset(&sentinel.Dialer.Timeout, o.Dialer.Timeout)
	unset(&sentinel.Dialer.Timeout, rueidis.DefaultDialTimeout) // it has none of its own
	return o, nil
}

// unset sets a field that is zero.
func unset[T comparable](field *T, value T) { *field = cmp.Or(*field, value) }

// Why a field must not be set.
const (
	replicas = "a replica may not have heard of the end of a session"
	again    = "commands could be run twice without the store knowing"
	cached   = "changes could be missed, and ended sessions answered from memory"
)

// Dial connects. A server that tells nobody what changes is used without a cache.
func Dial(o rueidis.ClientOption) (rueidis.Client, error) {
	c, err := dial(o)
	if errors.Is(err, rueidis.ErrNoCache) {
		o.DisableCache = true
		c, err = dial(o)
	}
	if errors.Is(err, rueidis.ErrNoCache) { // its text has the server's reply, and not what is wrong
		err = errors.New("server refuses CLIENT NO-TOUCH or NO-EVICT")
	}
	return c, err
}

// dial returns no client with an error, as rueidis does where ForceSingleClient is set.
func dial(o rueidis.ClientOption) (rueidis.Client, error) {
	c, err := rueidis.NewClient(o)
	if err != nil && c != nil {
		c.Close()
		c = nil
	}
	return c, err
}
