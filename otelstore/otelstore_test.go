package otelstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// bed is an Observer, and all that it emits.
type bed struct {
	*Observer
	t        *testing.T
	spans    *tracetest.SpanRecorder
	tracer   trace.Tracer
	reader   *sdkmetric.ManualReader
	registry *prometheus.Registry
	log      lockedBuffer
	client   *shaky
	prefix   string
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func newBed(t *testing.T, opts ...Option) *bed {
	t.Helper()
	b := &bed{
		t: t, spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader(), registry: prometheus.NewRegistry(),
		client: &shaky{Client: redistest.Dial(t, redistest.URL(t), redistest.WithCache)},
	}
	exporter, err := promexporter.New(promexporter.WithRegisterer(b.registry),
		promexporter.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes))
	require.NoError(t, err)
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(b.spans))
	b.tracer = tracers.Tracer("test")
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(b.reader), sdkmetric.WithReader(exporter))
	b.Observer, err = New(append([]Option{WithTracerProvider(tracers), WithMeterProvider(meters)}, opts...)...)
	require.NoError(t, err)
	b.prefix = redistest.Prefix(t, b.client)
	return b
}

func (b *bed) store(opts ...tombstore.Option) *tombstore.RedisStore {
	b.t.Helper()
	s, err := tombstore.New(b.client, append([]tombstore.Option{
		tombstore.WithKeyPrefix(b.prefix), tombstore.WithObserver(b.Observer),
		tombstore.WithLogger(slog.New(slog.NewJSONHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))),
	}, opts...)...)
	require.NoError(b.t, err)
	return s
}

// closed returns a store that is closed.
func (b *bed) closed() *tombstore.RedisStore {
	b.t.Helper()
	s, err := tombstore.Open(redistest.URL(b.t), tombstore.WithObserver(b.Observer))
	require.NoError(b.t, err)
	s.Close()
	return s
}

// scrape returns what a Prometheus would be told.
func (b *bed) scrape() string {
	b.t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(b.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(b.t, 200, w.Code)
	return w.Body.String()
}

// points returns the points of a metric: their sum, or count, by attributes.
func (b *bed) points(name string) map[string]int {
	b.t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(b.t, b.reader.Collect(b.t.Context(), &all))
	points := map[string]int{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					points[values(p.Attributes)] = int(p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					points[values(p.Attributes)] = int(p.Count)
				}
			}
		}
	}
	return points
}

func values(set attribute.Set) string {
	var texts []string
	for _, kv := range set.ToSlice() {
		texts = append(texts, kv.Value.String())
	}
	return strings.Join(texts, ", ")
}

// span returns the only span of a name with an outcome, and its attributes.
func (b *bed) span(name string, outcome tombstore.Outcome) (sdktrace.ReadOnlySpan, map[attribute.Key]string) {
	b.t.Helper()
	var found sdktrace.ReadOnlySpan
	attributes := map[attribute.Key]string{}
	for _, s := range b.spans.Ended() {
		if s.Name() != name || !slices.Contains(s.Attributes(), outcomeKey.String(outcome.String())) {
			continue
		}
		require.Nil(b.t, found, "two of "+name)
		found = s
		for _, kv := range s.Attributes() {
			attributes[kv.Key] = kv.Value.String()
		}
	}
	require.NotNil(b.t, found, "none of "+name)
	return found, attributes
}

// shaky is a client that loses a reply when it is told to.
type shaky struct {
	rueidis.Client
	loses atomic.Bool // the next reply
}

func (c *shaky) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	res := c.Client.Do(ctx, cmd)
	if c.loses.Swap(false) {
		return rueidis.NewErrorResult(io.EOF)
	}
	return res
}

// everything calls every method, with every outcome, and returns what must be nowhere in what was
// emitted: ids, owners, data.
func (b *bed) everything(t *testing.T) (secrets []string) {
	t.Helper()
	ctx, parent := b.tracer.Start(t.Context(), "request")
	defer parent.End()
	secret := func() string {
		secrets = append(secrets, tombstore.NewID())
		return secrets[len(secrets)-1]
	}
	id, next, third, absent, owner, label := secret(), secret(), secret(), secret(), secret(), secret()
	data := []byte(secret())
	const hour = time.Hour
	var s interface {
		tombstore.Renewer
		tombstore.Lister
		tombstore.Binder
		tombstore.Watcher
	} = b.store(tombstore.WithMaxSessions(1, tombstore.Refuse))

	session, err := s.Write(ctx, id, data, hour, tombstore.IfAbsent())
	require.NoError(t, err)
	_, err = s.Write(ctx, id, data, hour, tombstore.IfAbsent())
	require.ErrorIs(t, err, tombstore.ErrConflict)
	_, err = s.Write(ctx, absent, data, hour, tombstore.Replacing(session))
	require.ErrorIs(t, err, tombstore.ErrNotFound)
	_, err = s.Write(ctx, id, data, 0)
	require.ErrorIs(t, err, tombstore.ErrInvalidTTL)
	_, err = s.Read(ctx, id, tombstore.Slide(hour))
	require.NoError(t, err)
	_, err = s.Exists(ctx, id)
	require.NoError(t, err)
	require.NoError(t, s.Touch(ctx, id, hour))
	_, err = s.Rotate(ctx, id, next)
	require.NoError(t, err)
	_, err = s.Write(ctx, id, data, hour, tombstore.Replacing(session))
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
	renewal, err := s.BeginRenewal(ctx, next, 0)
	require.NoError(t, err)
	require.NoError(t, s.CancelRenewal(ctx, renewal))
	renewal, err = s.BeginRenewal(ctx, next, 0)
	require.NoError(t, err)
	_, err = s.FinishRenewal(ctx, renewal, third, data, hour)
	require.NoError(t, err)
	require.NoError(t, s.Invalidate(ctx, id))
	require.NoError(t, s.InvalidateRef(ctx, tombstore.Ref(absent)))
	require.ErrorIs(t, s.InvalidateRef(ctx, absent), tombstore.ErrInvalidID)
	_, err = s.Read(ctx, third)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
	require.ErrorIs(t, s.Touch(ctx, third, hour), tombstore.ErrInvalidated)

	until, named := tombstore.Until(time.Now().Add(hour)), tombstore.Label(label)
	login, err := s.BeginLogin(ctx, owner)
	require.NoError(t, err)
	first, second := secret(), secret()
	binding, err := s.Reserve(ctx, first, login, until, named)
	require.NoError(t, err)
	_, err = s.Reserve(ctx, second, login, until, named)
	require.ErrorIs(t, err, tombstore.ErrTooManySessions)
	require.NoError(t, s.Release(ctx, binding))
	_, err = s.Write(ctx, second, data, hour)
	require.NoError(t, err)
	_, err = s.Adopt(ctx, second, login, until, named)
	require.NoError(t, err)
	_, err = s.Sessions(ctx, owner)
	require.NoError(t, err)
	watching, stop := context.WithCancel(ctx)
	_, err = s.Watch(watching, second)
	require.NoError(t, err)
	_, err = s.WatchOwner(watching, owner)
	require.NoError(t, err)
	stop()
	for _, err := range s.List(ctx) {
		require.NoError(t, err)
	}
	require.NoError(t, s.InvalidateOwned(ctx, owner, tombstore.Ref(second)))
	_, err = s.InvalidateOwner(ctx, owner)
	require.NoError(t, err)
	_, err = s.Reserve(ctx, secret(), login, until)
	require.ErrorIs(t, err, tombstore.ErrStaleLogin)

	// Faults.
	foreign := secret()
	require.NoError(t, b.client.Do(ctx, b.client.B().Set().Key(b.prefix+tombstore.Ref(foreign)).Value(string(data)).Build()).Error())
	_, err = s.Read(ctx, foreign)
	require.ErrorIs(t, err, tombstore.ErrCorrupt)
	require.NoError(t, b.client.Do(ctx, b.client.B().Del().Key(b.prefix+tombstore.Ref(foreign)).Build()).Error())
	late := b.store(tombstore.WithReplicaAcks(1, time.Millisecond))
	require.ErrorIs(t, late.Invalidate(ctx, secret()), tombstore.ErrUnacknowledged)
	lost := secret()
	_, err = s.Write(ctx, lost, data, hour)
	require.NoError(t, err)
	b.client.loses.Store(true)
	require.ErrorIs(t, s.Invalidate(ctx, lost, tombstore.IfLive()), tombstore.ErrUnknownOutcome)
	over, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Read(over, lost)
	require.ErrorIs(t, err, context.Canceled)
	_, err = b.closed().Read(ctx, lost)
	require.ErrorIs(t, err, rueidis.ErrClosing)
	refusing, err := tombstore.New(
		redistest.Dial(t, redistest.Start(t, "--min-replicas-to-write", "1").URL), tombstore.WithObserver(b.Observer))
	require.NoError(t, err)
	require.ErrorIs(t, refusing.Invalidate(ctx, secret()), tombstore.ErrNotInvalidated)

	// Warnings.
	uncached := b.store(tombstore.WithClientCache(hour))
	broken := &deaf{Client: b.client}
	deafStore, err := tombstore.New(broken, tombstore.WithKeyPrefix(b.prefix), tombstore.WithClientCache(hour),
		tombstore.WithLogger(slog.New(slog.NewJSONHandler(&b.log, nil))), tombstore.WithObserver(b.Observer))
	require.NoError(t, err)
	_, err = deafStore.Read(ctx, secret())
	require.ErrorIs(t, err, tombstore.ErrNotFound)

	// Memory answers.
	kept := secret()
	_, err = uncached.Write(ctx, kept, data, hour)
	require.NoError(t, err)
	for range 3 {
		_, err = uncached.Read(ctx, kept)
		require.NoError(t, err)
	}

	// Requests.
	a := adapter.New(s, adapter.WithOnRefused(b.Request), adapter.WithOnUnacknowledged(b.Request))
	r, mine := &adapter.Request{}, secret()
	require.NoError(t, a.Save(ctx, r, mine, data, hour))
	require.NoError(t, s.Invalidate(ctx, mine, tombstore.WithReason(tombstore.Revoked)))
	for range 2 { // the second one does not ask the store
		require.ErrorIs(t, a.Save(ctx, r, mine, append(data, 'x'), hour), adapter.ErrRefused)
	}
	return secrets
}

// deaf is a client whose cache hears no message.
type deaf struct{ rueidis.Client }

func (c *deaf) DoCache(context.Context, rueidis.Cacheable, time.Duration) rueidis.RedisResult {
	return rueidis.NewErrorResult(errors.New("no cache"))
}

// Nothing that was emitted has an id, an owner, a label or data. No metric has a ref.
func TestNoIDs(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{"own names": nil, "database": {WithDBClient()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, opts...)
			secrets := b.everything(t)
			require.Greater(t, len(secrets), 15)

			var spans strings.Builder
			for _, s := range tracetest.SpanStubsFromReadOnlySpans(b.spans.Ended()) {
				fmt.Fprintf(&spans, "%+v\n", s)
			}
			var all metricdata.ResourceMetrics
			require.NoError(t, b.reader.Collect(t.Context(), &all))
			metrics := fmt.Sprintf("%+v", all) + b.scrape()
			require.Contains(t, b.log.String(), "no cache", "a warning was logged")
			require.Contains(t, spans.String(), tombstore.Ref(secrets[0]), "refs are on spans")
			for _, secret := range secrets {
				for what, emitted := range map[string]string{"spans": spans.String(), "metrics": metrics, "log": b.log.String()} {
					require.False(t, strings.Contains(emitted, secret), "an id is in the "+what)
				}
				require.False(t, strings.Contains(metrics, tombstore.Ref(secret)), "a ref is in the metrics")
			}
		})
	}
}

// A refusal is counted once, by verb and reason, whatever asks for it.
func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.everything(t)
	require.Equal(t, map[string]int{
		"rotated, write": 1, "logout, touch": 1, "revoked, write": 1,
	}, b.points("tombstore.refused"))
	require.Equal(t, map[string]int{"refused, revoked, write": 2}, b.points("tombstore.request.events"))
	require.Equal(t, map[string]int{"": 2}, b.points("tombstore.cache.hits"))
	require.Equal(t, map[string]int{"invalidate": 1}, b.points("tombstore.operation.retries"))

	// What was refused has taken as long as it is said to.
	require.Equal(t, 3, b.points("tombstore.operation.duration")["refused, write"]+
		b.points("tombstore.operation.duration")["refused, touch"])
	for _, outcome := range []string{
		"ok, read", "ended, read", "corrupt, read", "failed, read", "canceled, read", "not found, write", "conflict, write", "invalid, write",
		"too many sessions, reserve", "stale login, reserve", "unacknowledged, invalidate", "unknown, invalidate",
		"not invalidated, invalidate",
	} {
		require.Positive(t, b.points("tombstore.operation.duration")[outcome], outcome)
	}
	require.Empty(t, b.points("db.client.operation.duration"))
}

func TestSpans(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ctx, parent := b.tracer.Start(t.Context(), "request")
	s := b.store()
	id := tombstore.NewID()
	_, err := s.Write(ctx, id, nil, time.Hour)
	require.NoError(t, err)
	require.NoError(t, s.Invalidate(ctx, id, tombstore.WithReason(tombstore.Revoked)))
	_, err = s.Write(ctx, id, nil, time.Hour)
	require.ErrorIs(t, err, tombstore.ErrInvalidated)
	_, err = b.closed().Read(ctx, id)
	require.ErrorIs(t, err, rueidis.ErrClosing)
	b.Request(ctx, tombstore.Event{Verb: "create", Outcome: tombstore.OutcomeRefused, Reason: tombstore.Logout, Ref: "ref"})
	parent.End()

	span, attributes := b.span("tombstore write", tombstore.OutcomeRefused)
	require.Equal(t, map[attribute.Key]string{
		verbKey: "write", outcomeKey: "refused", reasonKey: "revoked", refKey: tombstore.Ref(id), attemptsKey: "1",
	}, attributes)
	require.Equal(t, codes.Unset, span.Status().Code, "an answer is no error")
	require.Equal(t, trace.SpanKindInternal, span.SpanKind())
	require.Equal(t, parent.SpanContext().SpanID(), span.Parent().SpanID())
	require.False(t, span.EndTime().Before(span.StartTime()))

	span, attributes = b.span("tombstore read", tombstore.OutcomeFailed)
	require.Equal(t, map[attribute.Key]string{verbKey: "read", outcomeKey: "failed", refKey: tombstore.Ref(id)}, attributes)
	require.Equal(t, codes.Error, span.Status().Code)
	require.Equal(t, err.Error(), span.Status().Description)

	for _, s := range b.spans.Ended() {
		if s.Name() == "request" {
			require.Len(t, s.Events(), 1)
			require.Equal(t, "tombstore.request", s.Events()[0].Name)
			require.Contains(t, s.Events()[0].Attributes, reasonKey.String("logout"))
		}
	}
}

func TestWithDBClient(t *testing.T) {
	t.Parallel()
	b := newBed(t, WithDBClient())
	s := b.store()
	id := tombstore.NewID()
	_, err := s.Write(t.Context(), id, nil, time.Hour)
	require.NoError(t, err)
	_, err = b.closed().Read(t.Context(), id)
	require.ErrorIs(t, err, rueidis.ErrClosing)
	require.Equal(t, map[string]int{"write, redis": 1, "read, redis, failed": 1}, b.points("db.client.operation.duration"))
	span, attributes := b.span("tombstore read", tombstore.OutcomeFailed)
	require.Equal(t, trace.SpanKindClient, span.SpanKind())
	require.Equal(t, "redis", attributes["db.system.name"])
	require.Equal(t, "read", attributes["db.operation.name"])
	require.Equal(t, "failed", attributes["error.type"])
}

func TestNew_Fails(t *testing.T) {
	t.Parallel()
	_, err := New(WithMeterProvider(brokenMeters{}))
	require.ErrorContains(t, err, "broken")
}

type brokenMeters struct{ noop.MeterProvider }

func (brokenMeters) Meter(string, ...metric.MeterOption) metric.Meter { return brokenMeter{} }

type brokenMeter struct{ noop.Meter }

func (brokenMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errors.New("broken")
}

// The dashboard asks for every metric, and for nothing that is not emitted; nor do the alerts of
// docs/operations.md.
func TestDashboard(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.everything(t)
	emitted, labels := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(b.scrape()) {
		name := regexp.MustCompile(`^(tombstore_\w+)\{(.*)\}`).FindStringSubmatch(line)
		if name == nil {
			continue
		}
		emitted[name[1]] = true
		for _, label := range regexp.MustCompile(`(\w+)=`).FindAllStringSubmatch(name[2], -1) {
			labels[label[1]] = true
		}
	}
	require.Greater(t, len(emitted), 5)

	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var dashboard struct {
		Title, UID string
		Panels     []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	require.NotEmpty(t, dashboard.Title)
	require.Contains(t, dashboard.Panels[0].Title, "Refused", "the count of refused writes comes first")
	asked, ids := map[string]bool{}, map[int]bool{}
	look := func(where, text string) {
		names := regexp.MustCompile(`\b(?:tombstore|db)_\w+`).FindAllString(text, -1)
		require.NotEmpty(t, names, where)
		for _, name := range names {
			if labels[name] {
				continue
			}
			require.True(t, emitted[name], "%s has %s, which is not emitted", where, name)
			asked[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] = true
		}
		for _, matcher := range regexp.MustCompile(`tombstore_outcome=~?"([^"]*)"`).FindAllStringSubmatch(text, -1) {
			for _, outcome := range strings.Split(strings.ReplaceAll(matcher[1], `\`, ""), "|") {
				require.Contains(t, outcomes(), outcome, where)
			}
		}
	}
	for _, panel := range dashboard.Panels {
		require.False(t, ids[panel.ID], panel.ID)
		ids[panel.ID] = true
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			look(panel.Title, target.Expr)
		}
	}
	for name := range emitted {
		name = regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		require.True(t, asked[name], "no panel shows %s", name)
	}
	operations, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	_, alerts, found := strings.Cut(string(operations), "\n## Alerts\n")
	require.True(t, found)
	look("operations.md", alerts)
}

func outcomes() (all []string) {
	for o := tombstore.OutcomeOK; o <= tombstore.OutcomeFailed; o++ {
		all = append(all, o.String())
	}
	return all
}

// The program in the README compiles, and it has every metric and every outcome.
func TestREADME(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "```go\n")
	require.True(t, found)
	program, _, found := strings.Cut(rest, "```\n")
	require.True(t, found)
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program), 0o644))
	output, err := redistest.Go(t, "list", "-export", file).CombinedOutput()
	require.NoError(t, err, string(output))

	b := newBed(t, WithDBClient())
	b.everything(t)
	var all metricdata.ResourceMetrics
	require.NoError(t, b.reader.Collect(t.Context(), &all))
	require.Len(t, all.ScopeMetrics, 1)
	require.Len(t, all.ScopeMetrics[0].Metrics, 6)
	for _, m := range all.ScopeMetrics[0].Metrics {
		require.Contains(t, string(text), "| `"+m.Name+"` |")
		require.NotEmpty(t, m.Description)
	}
	for _, outcome := range outcomes() {
		require.Contains(t, string(text), "`"+outcome+"`")
	}
}
