package doctor

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// The rights that docs/operations.md tells to give are enough for every verb.
func TestDocumentedRights(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^    (ACL SETUSER app .*)$`).FindSubmatch(doc)
	require.NotNil(t, line)
	server := redistest.Start(t)
	admin := redistest.Dial(t, server.URL)
	require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary(strings.Fields(string(line[1]))...).Build()).Error())

	client := redistest.Dial(t, server.URL, redistest.WithCache, func(o *rueidis.ClientOption) { o.Username, o.Password = "app", "password" })
	ctx := t.Context()
	for _, opt := range []tombstore.Option{tombstore.WithClientCache(time.Minute), tombstore.WithStrictReads()} {
		s, err := tombstore.New(client, opt)
		require.NoError(t, err)
		report, err := s.Check(ctx)
		require.NoError(t, err)
		if report.Uncached != nil { // a message may be late on a busy machine
			report, err = s.Check(ctx)
			require.NoError(t, err)
		}
		require.NoError(t, report.Uncached)
		one, two := tombstore.NewID(), tombstore.NewID()
		_, err = s.Write(ctx, one, []byte("x"), time.Minute)
		require.NoError(t, err)
		_, err = s.Read(ctx, one, tombstore.Slide(time.Hour))
		require.NoError(t, err)
		_, err = s.Rotate(ctx, one, two)
		require.NoError(t, err)
		_, err = s.Exists(ctx, two)
		require.NoError(t, err)
		for _, err := range s.List(ctx) {
			require.NoError(t, err)
		}
	}
	waiting, err := tombstore.New(client, tombstore.WithReplicaAcks(1, 10*time.Millisecond))
	require.NoError(t, err)
	require.EqualError(t, waiting.Invalidate(ctx, tombstore.NewID()),
		"tombstore: invalidate: "+tombstore.ErrUnacknowledged.Error(), "WAIT was permitted, and there is no replica")
}
