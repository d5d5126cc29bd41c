package tombstore

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tombstore/tombstore/internal/redistest"
)

// TestStoresAgree gives both stores the same random operations and compares all answers.
func TestStoresAgree(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	redis, err := New(client, WithKeyPrefix(redistest.Prefix(t, client)), WithMaxDataSize(8))
	require.NoError(t, err)
	memory, err := NewMemory(WithMaxDataSize(8))
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		pair := &pair{stores: [2]Store{redis, memory}, prefix: NewID(), versions: map[Version]Version{}}
		t.Repeat(map[string]func(*rapid.T){
			"Read": func(t *rapid.T) {
				opts := []ReadOption{}
				if rapid.Bool().Draw(t, "slide") {
					opts = append(opts, Slide(drawTTL(t)))
				}
				id := pair.drawID(t)
				pair.session(t, func(s Store, _ func(Version) Version) (Session, error) { return s.Read(t.Context(), id, opts...) })
			},
			"Write": func(t *rapid.T) {
				id, data, ttl := pair.drawID(t), drawData(t), drawTTL(t)
				condition := rapid.SampledFrom([]string{"", "", "absent", "present", "version"}).Draw(t, "condition")
				version := rapid.SampledFrom(append([]Version{0, 1}, pair.known...)).Draw(t, "version")
				pair.session(t, func(s Store, own func(Version) Version) (Session, error) {
					opts := map[string][]WriteOption{
						"absent": {IfAbsent()}, "present": {IfPresent()}, "version": {IfPresent(), IfVersion(own(version))},
					}[condition]
					return s.Write(t.Context(), id, data, ttl, opts...)
				})
			},
			"Touch": func(t *rapid.T) {
				id, ttl := pair.drawID(t), drawTTL(t)
				pair.plain(t, func(s Store) (bool, error) { return false, s.Touch(t.Context(), id, ttl) })
			},
			"Rotate": func(t *rapid.T) {
				id, next, opts := pair.drawID(t), pair.drawID(t), []RotateOption{}
				if rapid.Bool().Draw(t, "replace") {
					opts = append(opts, WithData(drawData(t), drawTTL(t)))
				}
				pair.session(t, func(s Store, _ func(Version) Version) (Session, error) {
					return s.Rotate(t.Context(), id, next, opts...)
				})
			},
			"Invalidate": func(t *rapid.T) {
				id, reason := pair.drawID(t), Reason(rapid.IntRange(0, 4).Draw(t, "reason"))
				opts := []InvalidateOption{WithReason(reason)}
				if rapid.Bool().Draw(t, "live") {
					opts = append(opts, IfLive())
				}
				pair.plain(t, func(s Store) (bool, error) { return false, s.Invalidate(t.Context(), id, opts...) })
			},
			"Exists": func(t *rapid.T) {
				id := pair.drawID(t)
				pair.plain(t, func(s Store) (bool, error) { return s.Exists(t.Context(), id) })
			},
		})
	})
}

func drawTTL(t *rapid.T) time.Duration {
	return rapid.SampledFrom([]time.Duration{-1, 0, time.Hour, 2 * time.Hour, 30 * 24 * time.Hour}).Draw(t, "ttl")
}

func drawData(t *rapid.T) []byte { return rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "data") }

// pair is two stores that must give the same answers. Versions are random, so those of the first are known by a number and
// those of the second are looked up.
type pair struct {
	stores   [2]Store
	prefix   string
	known    []Version
	versions map[Version]Version
}

func (p *pair) drawID(t *rapid.T) string {
	if id := rapid.SampledFrom([]string{"a", "b", "c", "d", ""}).Draw(t, "id"); id != "" {
		return p.prefix + id
	}
	return ""
}

func (p *pair) session(t *rapid.T, do func(s Store, own func(Version) Version) (Session, error)) {
	one, err := do(p.stores[0], func(v Version) Version { return v })
	two, err2 := do(p.stores[1], func(v Version) Version {
		if mine, ok := p.versions[v]; ok {
			return mine
		}
		return v
	})
	p.same(t, err, err2)
	if err != nil {
		require.Zero(t, one)
		require.Zero(t, two)
		return
	}
	require.Equal(t, string(one.Data), string(two.Data))
	require.WithinDuration(t, one.CreatedAt, two.CreatedAt, time.Minute)
	if _, ok := p.versions[one.Version]; !ok {
		p.versions[one.Version] = two.Version
		p.known = append(p.known, one.Version)
	}
	require.Equal(t, p.versions[one.Version], two.Version, "both stored a new version, or both kept the same")
}

func (p *pair) plain(t *rapid.T, do func(s Store) (bool, error)) {
	one, err := do(p.stores[0])
	two, err2 := do(p.stores[1])
	p.same(t, err, err2)
	require.Equal(t, one, two)
}

func (p *pair) same(t *rapid.T, one, two error) {
	if one == nil || two == nil {
		require.Equal(t, one, two)
		return
	}
	require.Equal(t, one.Error(), two.Error())
	var e1, e2 *InvalidatedError
	if errors.As(one, &e1) {
		require.ErrorAs(t, two, &e2)
		require.Equal(t, e1.Reason, e2.Reason)
		require.WithinDuration(t, e1.At, e2.At, time.Minute)
	}
}
