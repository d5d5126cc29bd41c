package history

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/integration/faults"
	"github.com/tombstore/tombstore/internal/redistest"
)

// stepping is a client that lets others in ahead of each of its commands in turn.
type stepping struct {
	rueidis.Client
	at   int    // the command, from 1
	meet func() // called ahead of it
	step int
}

func (c *stepping) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if c.step++; c.step == c.at {
		c.meet()
	}
	return c.Client.Do(ctx, cmd)
}

// writingFirst is a client that links a renewal after the new id was written.
type writingFirst struct {
	rueidis.Client
	look rueidis.Client // runs link.lua without its effect
	link []string
}

func newWritingFirst(c rueidis.Client) rueidis.Client {
	return &writingFirst{Client: c, look: faults.Edit("link.lua",
		`  redis.call('PEXPIRE', KEYS[1], math.max(ARGV[3], redis.call('PTTL', KEYS[1])))
  redis.call('HSET', KEYS[1], 's', ARGV[2])
  redis.call('HDEL', KEYS[1], 'c')
`, "")(c)}
}

func (c *writingFirst) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := append([]string(nil), cmd.Commands()...)
	switch {
	case words[0] != "EVALSHA":
	case words[1] == faults.SHA("link.lua"):
		c.link = words
		return c.look.Do(ctx, cmd)
	case words[1] == faults.SHA("write.lua") && c.link != nil:
		res := c.Client.Do(ctx, cmd)
		late := c.Client.Do(ctx, c.B().Arbitrary(c.link...).Build())
		c.link = nil
		if late.Error() != nil {
			return late
		}
		return res
	}
	return c.Client.Do(ctx, cmd)
}

// TestEndBetweenSteps ends a session by the id that it leaves, ahead of each command of what moves
// it. Whatever the move returns, the session is live under no id.
func TestEndBetweenSteps(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	cluster := redistest.StartCluster(t)
	ends := map[string][]tombstore.InvalidateOption{
		"logout": nil, "revoked": {tombstore.WithReason(tombstore.Revoked)}, "IfLive": {tombstore.IfLive()},
	}
	type move struct {
		url string
		run func(ctx context.Context, s tombstore.Renewer, id, next string) error
	}
	renewal := func(ctx context.Context, s tombstore.Renewer, id, next string) error {
		r, err := s.BeginRenewal(ctx, id, 0)
		if err == nil {
			_, err = s.FinishRenewal(ctx, r, next, []byte("moved"), time.Hour)
		}
		return err
	}
	rotation := func(ctx context.Context, s tombstore.Renewer, id, next string) error {
		_, err := s.Rotate(ctx, id, next)
		return err
	}
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
		moves map[string]move
	}{
		{faults.Promised, "ends by the old id ahead of each command of a move", same, map[string]move{
			"renewal": {server.URL, renewal}, "rotation": {server.URL, rotation},
			"renewal in a cluster": {cluster.URL, renewal}, "rotation in a cluster": {cluster.URL, rotation},
		}},
		{faults.Seeded, "a renewal links after it has written", newWritingFirst,
			map[string]move{"renewal": {server.URL, renewal}}},
		{faults.Seeded, "link.lua does not write the successor, an end in between", faults.Edit("link.lua",
			"redis.call('HSET', KEYS[1], 's', ARGV[2])", ""), map[string]move{"renewal": {server.URL, renewal}}},
		{faults.Seeded, "rotate.lua does not write the successor, an end in between", faults.Edit("rotate.lua",
			", 's', ARGV[3] }", " }"),
			map[string]move{"rotation in a cluster": {cluster.URL, rotation}}},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			for name, m := range c.moves {
				client := redistest.Dial(t, m.url)
				usual, err := tombstore.New(client)
				require.NoError(t, err)
				for how, opts := range ends {
					for at := 1; ; at++ {
						id, next := faults.Create(t, usual, 1)[0], tombstore.NewID()
						// Outside of the bug, so that it comes between any two commands that are
						// sent.
						inner := &stepping{Client: client, at: at, meet: func() {
							err := usual.Invalidate(t.Context(), id, opts...)
							require.True(t, err == nil || tombstore.NoSession(err), "%v", err)
						}}
						s, err := tombstore.New(c.wrap(inner))
						require.NoError(t, err)
						err = m.run(t.Context(), s, id, next)
						if inner.step < at {
							require.NoError(t, err)
							break
						}
						if err != nil {
							require.True(t, tombstore.NoSession(err) || errors.Is(err, tombstore.ErrConflict), "%v", err)
						}
						row.Injected++
						row.Checked++
						if faults.Live(t, usual, []string{id, next}) > 0 {
							row.Violations++
							t.Logf("%s, %s ahead of command %d: live; the move returned %v", name, how, at, err)
						}
					}
				}
			}
			faults.Report(t, row)
		})
	}
}

// TestClaims puts something between the halves of a renewal. A renewal that should be finished and
// is refused is a violation, and so is one that should be refused.
func TestClaims(t *testing.T) {
	t.Parallel()
	type between func(s tombstore.Renewer, id string, r *tombstore.Renewal) error
	end := func(opts ...tombstore.InvalidateOption) between {
		return func(s tombstore.Renewer, id string, _ *tombstore.Renewal) error {
			return s.Invalidate(t.Context(), id, opts...)
		}
	}
	stands := map[string]between{
		"nothing": func(tombstore.Renewer, string, *tombstore.Renewal) error { return nil },
		"the same": func(s tombstore.Renewer, id string, _ *tombstore.Renewal) error {
			_, err := s.BeginRenewal(t.Context(), id, 0)
			return err
		},
		"rotated":         end(tombstore.WithReason(tombstore.Rotated)),
		"rotated, alone":  end(tombstore.WithReason(tombstore.Rotated), tombstore.Alone()),
		"rotated, IfLive": end(tombstore.WithReason(tombstore.Rotated), tombstore.IfLive()),
		"it is given up and begun again": func(s tombstore.Renewer, id string, r *tombstore.Renewal) error {
			return again(t, s, id, r)
		},
		"a foreign claim is given up": func(s tombstore.Renewer, _ string, r *tombstore.Renewal) error {
			return s.CancelRenewal(t.Context(), tombstore.Renewal{Ref: r.Ref, Claim: r.Claim + 1})
		},
	}
	falls := map[string]between{
		"logout":         end(),
		"logout, IfLive": end(tombstore.IfLive()),
		"logout, alone":  end(tombstore.Alone()),
		"it is given up": func(s tombstore.Renewer, _ string, r *tombstore.Renewal) error {
			return s.CancelRenewal(t.Context(), *r)
		},
		"it is given up, logout, and begun again": func(s tombstore.Renewer, id string, r *tombstore.Renewal) error {
			return again(t, s, id, r, func() error { return s.Invalidate(t.Context(), id) })
		},
		"a foreign claim": func(_ tombstore.Renewer, _ string, r *tombstore.Renewal) error { r.Claim++; return nil },
	}
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{faults.Promised, "between the halves of a renewal", same},
		{faults.Seeded, "link.lua does not compare the claim", faults.Edit("link.lua",
			"end\nif claim == ARGV[1] then", "end\nif true then")},
		{faults.Seeded, "link.lua gives up any claim", faults.Edit("link.lua",
			"  if claim == ARGV[1] then redis", "  if true then redis")},
		{faults.Seeded, "an end leaves what was given up", faults.Edit("invalidate.lua",
			"'c', 'h')", "'c')")},
		{faults.Seeded, "an end with the reason rotated clears a claim", faults.Edit("invalidate.lua",
			"if reason ~= 2 then", "if true then")},
		{faults.Seeded, "an end IfLive does not clear a claim, between the halves",
			faults.Edit("invalidate.lua",
				"if reason ~= 2 then", "if reason ~= 2 and ARGV[3] ~= 'live' then")},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			client := redistest.Client(t)
			s, err := tombstore.New(c.wrap(client), tombstore.WithKeyPrefix(redistest.Prefix(t, client)))
			require.NoError(t, err)
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			for _, all := range []struct {
				ways  map[string]between
				works bool
			}{{stands, true}, {falls, false}} {
				for what, meet := range all.ways {
					id, next := faults.Create(t, s, 1)[0], tombstore.NewID()
					r, err := s.BeginRenewal(t.Context(), id, 0)
					require.NoError(t, err)
					if err := meet(s, id, &r); err != nil {
						require.True(t, tombstore.NoSession(err), "%v", err)
					}
					_, err = s.FinishRenewal(t.Context(), r, next, []byte("moved"), time.Hour)
					if err != nil {
						require.ErrorIs(t, err, tombstore.ErrInvalidated)
					}
					row.Injected++
					row.Checked++
					if live := faults.Live(t, s, []string{next}) == 1; live != all.works || live != (err == nil) {
						row.Violations++
						t.Logf("%s: live %v, %v", what, live, err)
					}
				}
			}
			faults.Report(t, row)
		})
	}
}

// again gives a renewal up and, after what comes in between, begins another one of the session.
func again(t *testing.T, s tombstore.Renewer, id string, r *tombstore.Renewal, between ...func() error) error {
	if err := s.CancelRenewal(t.Context(), *r); err != nil {
		return err
	}
	for _, f := range between {
		if err := f(); err != nil {
			return err
		}
	}
	begun, err := s.BeginRenewal(t.Context(), id, 0)
	if err == nil {
		*r = begun
	}
	return err
}

// TestPutBack lets a save replace a session that began after the saver had read the id's old one,
// and puts an end, or a write, between the SET and the script that puts the session back.
func TestPutBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind  faults.Kind
		fault string
		wrap  func(rueidis.Client) rueidis.Client
	}{
		{faults.Promised, "a session is put back: changes that came in between", same},
		{faults.Seeded, "restore.lua does not compare", faults.Edit("restore.lua",
			"if version ~= ARGV[1] then return type(version) == 'string' and 'C' or version end", "")},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			faults.SkipShort(t, c.kind)
			client := redistest.Client(t)
			prefix := redistest.Prefix(t, client)
			named := tombstore.WithKeyPrefix(prefix)
			usual, err := tombstore.New(client, named)
			require.NoError(t, err)
			row := faults.Row{Kind: c.kind, Fault: c.fault}
			for _, kept := range []string{"", "another's", "later"} { // what is there at the end; "": nothing live
				id := tombstore.NewID()
				in := &ahead{Client: c.wrap(client), sha: faults.SHA("restore.lua"), meet: func() {
					switch kept {
					case "":
						require.NoError(t, usual.Invalidate(t.Context(), id))
					case "later":
						_, err := usual.Write(t.Context(), id, []byte(kept), time.Hour)
						require.NoError(t, err)
					}
				}}
				s, err := tombstore.New(in, named)
				require.NoError(t, err)
				old, err := s.Write(t.Context(), id, []byte("old"), time.Hour)
				require.NoError(t, err)
				var begun tombstore.Session
				redistest.Until(t, "another millisecond", func() bool {
					evict := client.B().Del().Key(prefix + tombstore.Ref(id)).Build()
					require.NoError(t, client.Do(t.Context(), evict).Error())
					begun, err = usual.Write(t.Context(), id, []byte("another's"), time.Hour)
					require.NoError(t, err)
					return begun.CreatedAt.After(old.CreatedAt)
				})
				_, err = s.Write(t.Context(), id, []byte("mine"), time.Hour, tombstore.Replacing(old))
				require.Error(t, err)
				require.True(t, in.met)
				got, err := usual.Read(t.Context(), id)
				row.Injected++
				row.Checked++
				if string(got.Data) != kept || faults.Gone(t, err) != (kept == "") {
					row.Violations++
				}
			}
			faults.Report(t, row)
		})
	}
}

// ahead is a client that lets others in ahead of a script.
type ahead struct {
	rueidis.Client
	sha  string
	meet func()
	met  bool
}

func (c *ahead) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	words := cmd.Commands()
	if !c.met && words[0] == "EVALSHA" && words[1] == c.sha {
		c.met = true
		c.meet()
	}
	return c.Client.Do(ctx, cmd)
}
