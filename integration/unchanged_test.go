package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// TestUnchanged counts on the server what a request sends that loads its session, changes nothing
// and saves it: one pipeline, or nothing where the session is in memory. It is given no cookie,
// until a tenth of the idle timeout has passed.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	for _, s := range setups {
		for name, opts := range map[string][]tombstore.Option{
			"uncached":         nil,
			"cached":           {tombstore.WithClientCache(time.Minute)},
			"absolute timeout": {tombstore.WithAbsoluteTimeout(10 * time.Minute)},
			"sealed":           {tombstore.WithSealedData()},
		} {
			t.Run(s.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				client := redistest.Dial(t, redistest.Start(t).URL, redistest.WithCache)
				store, err := tombstore.New(client, append(opts, tombstore.WithTimeout(time.Minute))...)
				require.NoError(t, err)
				alice := &browser{TB: t, site: &site{url: s.ours(t, store)}}
				require.NotNil(t, alice.do("login").cookie)

				action := "read" // scs, fiber, chi and beego save what was loaded
				if strings.Contains("gorilla gin hertz echo v4", s.name) {
					action = "save"
				}
				var got answer
				sent := func() map[string]int {
					return redistest.Commands(t, client, func() { got = alice.do(action) })
				}
				if name == "cached" {
					redistest.Until(t, "memory answers", func() bool { return len(sent()) == 0 })
				} else {
					require.Equal(t, map[string]int{"get": 1, "pttl": 1}, sent())
				}
				require.Equal(t, 200, got.status)
				require.Nil(t, got.cookie)

				keys := redistest.Keys(t.Context(), client, "tombstore:")
				require.Len(t, keys, 1)
				left := func() int64 {
					ms, err := client.Do(t.Context(), client.B().Pttl().Key(keys[0]).Build()).AsInt64()
					require.NoError(t, err)
					return ms
				}
				full := left()
				require.NoError(t, client.Do(t.Context(),
					client.B().Pexpire().Key(keys[0]).Milliseconds(full*85/100).Build()).Error())
				touched := func() bool {
					touched := sent()["evalsha"] > 0
					require.Equal(t, touched && !s.silent, got.cookie != nil)
					return touched
				}
				redistest.Until(t, "memory has heard of it", touched)
				require.InDelta(t, full, left(), float64(full)/20)
				redistest.Until(t, "the age is right again", func() bool { return !touched() })
				require.Equal(t, "alice", alice.do("whoami").body)
			})
		}
	}
}
