package tombstore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// A failover takes what a move has written under the old id, after that was answered and before the
// replicas have it. The move asks the replicas next, and they confirm whatever the new primary has.
// The move must see that this is not what it has written: otherwise the session goes on under the
// new id, and an end by the old one does not reach it although it returns nil.
func TestMove_LostBeforeItIsConfirmed(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	redistest.Start(t, primary.Replicaof(t)...)
	admin := redistest.Dial(t, primary.URL)
	redistest.Until(t, "replica", func() bool { return redistest.Info(t, admin, "connected_slaves") == "1" })
	for name, c := range map[string]struct {
		script  string
		move    move
		cluster bool
	}{
		"Rotate in steps":          {"rotate", moves["Rotate"], true},
		"Rotate WithData in steps": {"rotate", moves["Rotate WithData"], true},
		"Rotate WithData":          {"rotate", moves["Rotate WithData"], false},
		"renewal":                  {"link", moves["renewal"], false},
		"renewal in a cluster":     {"link", moves["renewal"], true},
	} {
		t.Run(name, func(t *testing.T) {
			client := newTap(redistest.Dial(t, primary.URL))
			logger, logged := newLog()
			opts := []Option{WithReplicaAcks(1, 5*time.Second), WithLogger(logger)}
			b := bedOn(t, client, opts...)
			if c.cluster {
				b = bedOn(t, inSteps{client}, opts...)
			}
			loadScripts(t, b)
			id, next := NewID(), NewID()
			b.write(id, "data", time.Hour)
			var before string
			client.before = func(words []string) error {
				if nameOf(words) == c.script && before == "" {
					before = b.value(id)
				}
				return nil
			}
			done := false
			client.after = func(words []string) error {
				if nameOf(words) == c.script && !done { // the new primary has not heard of it
					done = true
					b.do("RESTORE", b.keyOf(id), "3600000", before, "REPLACE")
					b.do("DEL", b.keyOf(next))
				}
				return nil
			}
			_, err := c.move(t.Context(), b.RedisStore, id, next)
			client.before, client.after = nil, nil
			require.True(t, done)
			require.Len(t, logged.lines(), 1)
			require.Contains(t, logged.lines()[0], warnFailover)
			t.Logf("the move: %v; the new id is live: %v", err, b.live(next))
			if err == nil {
				require.True(t, b.live(next), "it was moved, says the move")
			}
			require.NoError(t, b.Invalidate(t.Context(), id))
			require.False(t, b.live(next), "an end by the old id has returned nil")
		})
	}
}
