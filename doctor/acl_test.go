package doctor

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/client"
	"github.com/tombstore/tombstore/internal/redistest"
)

// rights returns the blocks of docs/operations.md that give a user named app its rights: to begin
// with, and for a cluster.
func rights(t *testing.T) [][]string {
	t.Helper()
	doc, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	var blocks [][]string
	for _, block := range regexp.MustCompile(`(?m)(?:^    ACL SETUSER app .*\n)+`).FindAllString(string(doc), -1) {
		blocks = append(blocks, strings.Split(strings.TrimSpace(block), "\n"))
	}
	require.Len(t, blocks, 3, "the third is for Sentinels")
	return blocks[:2]
}

func give(t *testing.T, admin rueidis.Client, lines []string) {
	t.Helper()
	for _, line := range lines {
		do(t, admin, strings.Fields(line)...)
	}
}

func do(t *testing.T, client rueidis.Client, command ...string) rueidis.RedisResult {
	t.Helper()
	res := client.Do(t.Context(), client.B().Arbitrary(command...).Build())
	require.NoError(t, res.Error())
	return res
}

func asApp(o *rueidis.ClientOption) {
	o.Username, o.Password, o.DisableCache = "app", "password", false
}

// The documented rights are enough for every verb, and each of them is used.
func TestDocumentedRights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := redistest.Dial(t, server.URL)
	lines := rights(t)[0]
	give(t, admin, lines)
	useAll(t, redistest.Dial(t, server.URL, asApp), admin)
	requireNoDenial(t, admin)
	for _, right := range strings.Fields(strings.Join(lines, " ")) {
		name, found := strings.CutPrefix(right, "+")
		if found && name != "ping" { // which the client sends on an idle connection
			redistest.Info(t, admin, "cmdstat_"+name)
		}
	}
	findings := Examine(t.Context(), redistest.Dial(t, server.URL, asApp), prefix)
	requireNoDenial(t, admin, "info", "cluster|nodes")
	require.False(t, Failed(findings), "%v", findings)
	for _, f := range findings {
		if f.Name == "rights" || f.Name == "saves" {
			require.Equal(t, OK, f.Level, f.Text)
		}
	}
}

func TestDocumentedRights_Cluster(t *testing.T) {
	t.Parallel()
	server := redistest.StartCluster(t)
	admin := redistest.Dial(t, server.URL)
	for _, lines := range rights(t) {
		give(t, admin, lines)
	}
	useAll(t, redistest.Dial(t, server.URL, asApp), admin)
	requireNoDenial(t, admin)
	findings := Examine(t.Context(), redistest.Dial(t, server.URL, asApp), prefix)
	requireNoDenial(t, admin, "info")
	require.False(t, Failed(findings), "%v", findings)
	require.Contains(t, findings, Finding{"rights", OK, "every command that the store sends is permitted", ""})
}

// Each of the documented rights that is taken away is missed by name.
func TestExamine_EachRight(t *testing.T) {
	t.Parallel()
	eachRight(t, redistest.Start(t), rights(t)[:1])
}

func TestExamine_EachRight_Cluster(t *testing.T) {
	t.Parallel()
	eachRight(t, redistest.StartCluster(t), rights(t))
}

func eachRight(t *testing.T, server *redistest.Server, blocks [][]string) {
	t.Helper()
	admin := redistest.Dial(t, server.URL)
	lines := slices.Concat(blocks...)
	for _, word := range strings.Fields(strings.Join(lines, " ")) {
		right, found := strings.CutPrefix(word, "+")
		user, taken := "without-"+strings.ReplaceAll(right, "|", "-"), "-"+right
		if strings.HasPrefix(word, "&") {
			found, user, taken = true, "without-channel", "resetchannels"
		}
		if !found {
			continue
		}
		for _, line := range lines {
			do(t, admin, strings.Fields(strings.Replace(line, " app ", " "+user+" ", 1))...)
		}
		do(t, admin, "ACL", "SETUSER", user, taken)
		option, err := client.Option(strings.Replace(server.URL, "//", "//"+user+":password@", 1), true)
		require.NoError(t, err)
		conn, err := client.Dial(option)
		require.NoError(t, err, right)
		missed := false
		for _, f := range Examine(t.Context(), conn, prefix) {
			named := strings.Contains(strings.ToLower(f.Fix+" "), word+" ")
			missed = missed || f.Level != OK && named
		}
		conn.Close()
		require.True(t, missed, "%s is not missed", right)
	}
	require.Empty(t, redistest.Keys(t.Context(), admin, prefix+"doctor-"), "nothing is left behind")
}

// requireNoDenial looks at what the server has refused: the store goes on without some of it. The
// client itself may be refused its name for CLIENT LIST, and to ask a server that is no cluster
// whether it is one; the doctor is refused more, which docs/operations.md tells.
func requireNoDenial(t *testing.T, admin rueidis.Client, but ...string) {
	t.Helper()
	log, err := do(t, admin, "ACL", "LOG").ToArray()
	require.NoError(t, err)
	for i := range log {
		entry, err := log[i].AsMap()
		require.NoError(t, err)
		object := entry["object"]
		denied, err := object.ToString()
		require.NoError(t, err)
		require.Contains(t, append(but, "client|setinfo", "cluster|slots", "cluster|shards"), denied)
	}
}

// useAll uses every verb in every way that sends other commands.
func useAll(t *testing.T, client, admin rueidis.Client) {
	t.Helper()
	ctx := t.Context()
	for _, opt := range []tombstore.Option{
		tombstore.WithAbsoluteTimeout(time.Hour),
		tombstore.WithClientCache(time.Minute),
		tombstore.WithStrictReads(),
	} {
		s, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix), opt,
			tombstore.WithMaxSessions(3, tombstore.Refuse), tombstore.WithPublish())
		require.NoError(t, err)
		report, err := s.Check(ctx)
		require.NoError(t, err)
		if report.Uncached != nil { // a message may be late on a busy machine
			report, err = s.Check(ctx)
			require.NoError(t, err)
		}
		require.NoError(t, report.Uncached)
		require.NoError(t, report.Scripted)
		useVerbs(t, s)
		watch(t, s)
	}
	putBack(t, client, admin)

	waiting, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix),
		tombstore.WithReplicaAcks(1, 10*time.Millisecond))
	require.NoError(t, err)
	require.EqualError(t, waiting.Invalidate(ctx, tombstore.NewID()),
		"tombstore: invalidate: "+tombstore.ErrUnacknowledged.Error(), "WAIT was permitted, and there is no replica")
}

func useVerbs(t *testing.T, s *tombstore.RedisStore) {
	t.Helper()
	ctx := t.Context()
	ids := make([]string, 4)
	for i := range ids {
		ids[i] = tombstore.NewID()
	}
	session, err := s.Write(ctx, ids[0], []byte("x"), time.Minute, tombstore.IfAbsent())
	require.NoError(t, err)
	_, err = s.Write(ctx, ids[0], []byte("y"), time.Minute, tombstore.Replacing(session))
	require.NoError(t, err)
	for range 2 { // from the server, and from memory
		_, err = s.Read(ctx, ids[0])
		require.NoError(t, err)
	}
	_, err = s.Read(ctx, ids[0], tombstore.Slide(30*time.Minute))
	require.NoError(t, err)
	require.NoError(t, s.Touch(ctx, ids[0], time.Minute))
	_, err = s.Rotate(ctx, ids[0], ids[1])
	require.NoError(t, err)
	session, err = s.Rotate(ctx, ids[1], ids[2], tombstore.WithData([]byte("z"), time.Hour))
	require.NoError(t, err)
	live, err := s.Exists(ctx, ids[2])
	require.NoError(t, err)
	require.True(t, live)
	for _, err := range s.List(ctx) {
		require.NoError(t, err)
	}
	renewal, err := s.BeginRenewal(ctx, ids[2], session.Version)
	require.NoError(t, err)
	session, err = s.FinishRenewal(ctx, renewal, ids[3], []byte("z"), time.Minute)
	require.NoError(t, err)
	renewal, err = s.BeginRenewal(ctx, ids[3], 0)
	require.NoError(t, err)
	require.NoError(t, s.CancelRenewal(ctx, renewal))
	require.NoError(t, s.Invalidate(ctx, ids[0]))
	for range 2 {
		_, err = s.Read(ctx, ids[3])
		require.ErrorIs(t, err, tombstore.ErrInvalidated)
	}
	_, err = s.Write(ctx, ids[3], nil, time.Minute, tombstore.Replacing(session))
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
	useOwners(t, s)
}

// watch has a session end that somebody watches, who is told at once.
func watch(t *testing.T, s *tombstore.RedisStore) {
	t.Helper()
	id := tombstore.NewID()
	_, err := s.Write(t.Context(), id, nil, time.Hour)
	require.NoError(t, err)
	watched, err := s.Watch(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, s.Invalidate(t.Context(), id))
	select {
	case <-watched.Done():
	case <-time.After(20 * time.Second):
		require.Fail(t, "the end is not told")
	}
	require.ErrorIs(t, context.Cause(watched), tombstore.ErrInvalidated)
}

// useOwners has a session of an owner move, and ends it with all others.
func useOwners(t *testing.T, s *tombstore.RedisStore) {
	t.Helper()
	ctx, owner, id, next := t.Context(), tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
	login, err := s.BeginLogin(ctx, owner)
	require.NoError(t, err)
	b, err := s.Reserve(ctx, id, login, tombstore.Until(time.Now().Add(time.Hour)))
	require.NoError(t, err)
	_, err = s.Write(ctx, id, nil, time.Minute, tombstore.Bound(b))
	require.NoError(t, err)
	_, err = s.Rotate(ctx, id, next)
	require.NoError(t, err)
	all, err := s.Sessions(ctx, owner)
	require.NoError(t, err)
	require.Len(t, all, 1)
	n, err := s.InvalidateOwner(ctx, owner)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.ErrorIs(t, s.InvalidateOwned(ctx, owner, all[0].Ref), tombstore.ErrNotFound)
}

// putBack has a save replace another session, which has a deadline, so that it is put back.
func putBack(t *testing.T, client, admin rueidis.Client) {
	t.Helper()
	ctx, id := t.Context(), tombstore.NewID()
	s, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix))
	require.NoError(t, err)
	brief, err := tombstore.New(client, tombstore.WithKeyPrefix(prefix), tombstore.WithAbsoluteTimeout(time.Minute))
	require.NoError(t, err)
	old, err := s.Write(ctx, id, nil, time.Minute)
	require.NoError(t, err)
	do(t, admin, "DEL", prefix+tombstore.Ref(id))
	begun, err := brief.Write(ctx, id, nil, time.Minute)
	require.NoError(t, err)
	_, err = s.Write(ctx, id, nil, time.Hour, tombstore.Replacing(old))
	require.ErrorIs(t, err, tombstore.ErrConflict)
	found, err := s.Read(ctx, id, tombstore.WithExpiry())
	require.NoError(t, err)
	require.Equal(t, begun.Version, found.Version)
	require.Less(t, time.Until(found.ExpiresAt), 2*time.Minute)
}
