package main

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

const (
	keptKeys      = 200 // of sessions that have ended or moved, in an interval
	subscribePace = time.Second
)

// messages are those that a store with WithPublish sends. Each is the key of a session that has
// ended or moved, or of an owner who was logged out everywhere.
type messages struct {
	prefix string

	mu       sync.Mutex
	whole    bool // none has been missed since they were taken
	sessions int
	owners   int
	keys     []string // of the first sessions
}

// listen subscribes until ctx ends. It returns when that has worked, or failed for the first time.
func listen(ctx context.Context, conn rueidis.Client, prefix string) *messages {
	m := &messages{prefix: prefix}
	tried := make(chan struct{})
	go func() {
		once := sync.OnceFunc(func() { close(tried) })
		defer once()
		for ctx.Err() == nil {
			m.receive(ctx, conn, once)
			once()
			select {
			case <-ctx.Done():
			case <-time.After(subscribePace):
			}
		}
	}()
	<-tried
	return m
}

func (m *messages) receive(ctx context.Context, conn rueidis.Client, begun func()) {
	c, release := conn.Dedicate()
	defer release()
	defer c.Close() // or the subscription would stay with a connection that others use
	ctx = rueidis.WithOnSubscriptionHook(ctx, func(rueidis.PubSubSubscription) {
		m.reset()
		begun()
	})
	_ = c.Receive(ctx, c.B().Subscribe().Channel(m.prefix+"ended").Build(), m.count)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.whole = false
}

func (m *messages) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.whole, m.sessions, m.owners, m.keys = true, 0, 0, nil
}

func (m *messages) count(message rueidis.PubSubMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if strings.HasPrefix(message.Message, m.prefix+"o:") {
		m.owners++
		return
	}
	m.sessions++
	if len(m.keys) < keptKeys {
		m.keys = append(m.keys, message.Message)
	}
}

// take returns what has come since it was taken before, and whether that is all. Of the ends and
// moves of sessions it returns which part were moves, by the tombstones of those whose keys were
// kept.
func (m *messages) take(ctx context.Context, conn rueidis.Client) (sessions, owners int, moved float64, whole bool) {
	m.mu.Lock()
	keys := m.keys
	sessions, owners, whole = m.sessions, m.owners, m.whole
	m.sessions, m.owners, m.keys = 0, 0, nil
	m.mu.Unlock()
	if len(keys) == 0 {
		return sessions, owners, 0, whole
	}
	reads := make([]rueidis.Completed, len(keys))
	for i, key := range keys {
		reads[i] = conn.B().Arbitrary("HGET").Keys(key).Args("t").Build()
	}
	for _, result := range conn.DoMulti(ctx, reads...) {
		end, err := result.ToString()
		if err == nil && len(end) > 2 && tombstore.Reason(end[2]) == tombstore.Rotated {
			moved++
		}
	}
	return sessions, owners, moved / float64(len(keys)), whole
}
