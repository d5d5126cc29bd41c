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
		pair := &pair{
			stores:   [2]both{redis, memory},
			prefix:   NewID(),
			versions: map[Version]Version{},
			sessions: map[string][][2]Session{},
		}
		t.Repeat(map[string]func(*rapid.T){
			"Read": func(t *rapid.T) {
				opts := []ReadOption{}
				if rapid.Bool().Draw(t, "slide") {
					opts = append(opts, Slide(drawTTL(t)))
				}
				if rapid.Bool().Draw(t, "expiry") {
					opts = append(opts, WithExpiry())
				}
				id := pair.drawID(t)
				pair.session(t, id, func(i int) (Session, error) {
					return pair.stores[i].Read(t.Context(), id, opts...)
				})
			},
			"Write": func(t *rapid.T) {
				id, data, ttl := pair.drawID(t), drawData(t), drawTTL(t)
				condition := rapid.SampledFrom([]string{
					"", "", "absent", "present", "version", "replacing", "replacing",
				}).Draw(t, "condition")
				version, lifetime := pair.drawVersion(t), drawLifetime(t)
				old := rapid.SampledFrom(append([][2]Session{{}}, pair.sessions[id]...)).Draw(t, "session")
				pair.session(t, id, func(i int) (Session, error) {
					opts := map[string][]WriteOption{
						"absent":    {IfAbsent()},
						"present":   {IfPresent()},
						"version":   {IfPresent(), IfVersion(version[i])},
						"replacing": {IfAbsent(), Replacing(old[i])},
					}[condition]
					if lifetime != nil {
						opts = append([]WriteOption{Lasting(*lifetime)}, opts...)
					}
					return pair.stores[i].Write(t.Context(), id, data, ttl, opts...)
				})
			},
			"Touch": func(t *rapid.T) {
				id, ttl := pair.drawID(t), drawTTL(t)
				pair.plain(t, func(i int) (bool, error) { return false, pair.stores[i].Touch(t.Context(), id, ttl) })
			},
			"Rotate": func(t *rapid.T) {
				id, next, version := pair.drawID(t), pair.drawID(t), [2]Version{}
				opts := []RotateOption{}
				if rapid.Bool().Draw(t, "replace") {
					opts = append(opts, WithData(drawData(t), drawTTL(t)))
				}
				if l := drawLifetime(t); l != nil {
					opts = append(opts, WithLifetime(*l))
				}
				opts = append(opts, Grace(rapid.SampledFrom([]time.Duration{
					0, 0, time.Minute, time.Minute, -1,
				}).Draw(t, "grace")))
				if rapid.Bool().Draw(t, "unchanged") {
					version = pair.drawVersion(t)
				}
				pair.session(t, next, func(i int) (Session, error) {
					return pair.stores[i].Rotate(t.Context(), id, next, append(opts, IfUnchanged(version[i]))...)
				})
			},
			"BeginRenewal": func(t *rapid.T) {
				id, version := pair.drawID(t), [2]Version{}
				if rapid.Bool().Draw(t, "unchanged") {
					version = pair.drawVersion(t)
				}
				var r [2]Renewal
				pair.plain(t, func(i int) (began bool, err error) {
					r[i], err = pair.stores[i].BeginRenewal(t.Context(), id, version[i])
					return err == nil, err
				})
				require.Equal(t, r[0].Ref, r[1].Ref)
				if r[0] != (Renewal{}) {
					pair.renewals = append(pair.renewals, r)
				}
			},
			"FinishRenewal": func(t *rapid.T) {
				r := pair.drawRenewal(t)
				id, data, ttl := pair.drawID(t), drawData(t), drawTTL(t)
				r[0].Lifetime = drawLifetime(t)
				r[1].Lifetime = r[0].Lifetime
				pair.session(t, id, func(i int) (Session, error) {
					return pair.stores[i].FinishRenewal(t.Context(), r[i], id, data, ttl)
				})
			},
			"CancelRenewal": func(t *rapid.T) {
				r := pair.drawRenewal(t)
				pair.plain(t, func(i int) (bool, error) {
					return false, pair.stores[i].CancelRenewal(t.Context(), r[i])
				})
			},
			"Invalidate": func(t *rapid.T) {
				id, reason := pair.drawID(t), Reason(rapid.IntRange(0, 4).Draw(t, "reason"))
				opts := []InvalidateOption{WithReason(reason)}
				if rapid.Bool().Draw(t, "live") {
					opts = append(opts, IfLive())
				}
				if rapid.Bool().Draw(t, "alone") {
					opts = append(opts, Alone())
				}
				byRef := rapid.Bool().Draw(t, "by ref")
				pair.plain(t, func(i int) (bool, error) {
					if byRef && id != "" {
						return false, pair.stores[i].InvalidateRef(t.Context(), Ref(id), opts...)
					}
					return false, pair.stores[i].Invalidate(t.Context(), id, opts...)
				})
			},
			"Exists": func(t *rapid.T) {
				id := pair.drawID(t)
				pair.plain(t, func(i int) (bool, error) { return pair.stores[i].Exists(t.Context(), id) })
			},
		})
	})
}

func drawTTL(t *rapid.T) time.Duration {
	return rapid.SampledFrom([]time.Duration{-1, 0, time.Hour, 2 * time.Hour, 30 * 24 * time.Hour}).Draw(t, "ttl")
}

func drawLifetime(t *rapid.T) *Lifetime {
	return rapid.SampledFrom([]*Lifetime{
		nil, nil, nil, {}, {Idle: -1}, {Idle: 10 * time.Minute}, {Absolute: 20 * time.Minute},
		{Idle: 30 * 24 * time.Hour, Absolute: 60 * 24 * time.Hour},
	}).Draw(t, "lifetime")
}

func drawData(t *rapid.T) []byte { return rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "data") }

// both is what the two stores implement.
type both interface {
	Renewer
	Lister
}

// pair is two stores that must give the same answers. Versions and claims are random, so what the
// two have given out for the same is kept together.
type pair struct {
	stores   [2]both
	prefix   string
	versions map[Version]Version // of the second store, by that of the first
	known    [][2]Version
	sessions map[string][][2]Session // that were under an id
	renewals [][2]Renewal
}

func (p *pair) drawID(t *rapid.T) string {
	if id := rapid.SampledFrom([]string{"a", "b", "c", "d", ""}).Draw(t, "id"); id != "" {
		return p.prefix + id
	}
	return ""
}

func (p *pair) drawVersion(t *rapid.T) [2]Version {
	return rapid.SampledFrom(append([][2]Version{{0, 0}, {1, 1}}, p.known...)).Draw(t, "version")
}

func (p *pair) drawRenewal(t *rapid.T) [2]Renewal {
	nobodys := Renewal{Ref: Ref(p.prefix + "a"), Claim: 1}
	return rapid.SampledFrom(append([][2]Renewal{{nobodys, nobodys}, {}}, p.renewals...)).Draw(t, "renewal")
}

func (p *pair) session(t *rapid.T, id string, do func(i int) (Session, error)) {
	one, err := do(0)
	two, err2 := do(1)
	p.same(t, err, err2)
	if err != nil {
		require.Zero(t, one)
		require.Zero(t, two)
		return
	}
	require.Equal(t, string(one.Data), string(two.Data))
	require.WithinDuration(t, one.CreatedAt, two.CreatedAt, time.Minute)
	require.Equal(t, one.Idle(), two.Idle())
	require.WithinDuration(t, one.Deadline(), two.Deadline(), time.Minute)
	require.Equal(t, one.ExpiresAt.IsZero(), two.ExpiresAt.IsZero())
	require.WithinDuration(t, one.ExpiresAt, two.ExpiresAt, time.Minute)
	if _, ok := p.versions[one.Version]; !ok {
		p.versions[one.Version] = two.Version
		p.known = append(p.known, [2]Version{one.Version, two.Version})
	}
	require.Equal(t, p.versions[one.Version], two.Version, "both stored a new version, or both kept the same")
	p.sessions[id] = append(p.sessions[id], [2]Session{one, two})
}

func (p *pair) plain(t *rapid.T, do func(i int) (bool, error)) {
	one, err := do(0)
	two, err2 := do(1)
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
