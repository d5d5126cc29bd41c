// Package otelstore shows in OpenTelemetry what a tombstore does: metrics, the first of which
// counts the writes that a tombstone has refused, and a span for each operation.
//
//	observer, err := otelstore.New()
//	…
//	store, err := tombstore.Open(url, tombstore.WithObserver(observer))
//
// # Metrics
//
//	tombstore.refused             counter    writes, touches and moves refused by a tombstone: verb, reason
//	tombstore.operation.duration  histogram  seconds of each operation: verb, outcome
//	tombstore.operation.retries   counter    how often something was sent again: verb
//	tombstore.cache.hits          counter    reads that memory has answered, which have no duration
//	tombstore.request.events      counter    what Request is told: verb, outcome, reason
//
// Attributes are tombstore.verb, tombstore.outcome and tombstore.reason, whose values are those of
// [tombstore.Event]. No metric has a ref: there are as many as sessions.
//
// # Spans
//
// The span of an operation is named tombstore and the verb, such as "tombstore read". It has the
// attributes above, tombstore.ref and tombstore.attempts. The spans of an instrumented client, as
// by rueidisotel, are its children; a Read that memory was to answer, and has not, has none. The
// status is an error where the operation has failed. That a session was ended, has expired or was
// changed is an answer, and so is a limit.
//
// No id, no data and no owner's name is in any of it, as [tombstore.Observer] has none.
package otelstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/semconv/v1.41.0/dbconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/tombstore/tombstore"
)

const scope = "github.com/tombstore/tombstore/otelstore"

const (
	verbKey     = attribute.Key("tombstore.verb")
	outcomeKey  = attribute.Key("tombstore.outcome")
	reasonKey   = attribute.Key("tombstore.reason")
	refKey      = attribute.Key("tombstore.ref")
	attemptsKey = attribute.Key("tombstore.attempts")
)

// Boundaries in seconds. An operation is a round trip or a few; those of a database would put
// nearly all into the first bucket.
var (
	boundaries   = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	dbBoundaries = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10} // of the conventions
)

// Option configures an Observer.
type Option func(*config)

type config struct {
	tracers trace.TracerProvider
	meters  metric.MeterProvider
	db      bool
}

// WithTracerProvider sets where spans go. The default is the global one. With that of
// go.opentelemetry.io/otel/trace/noop there are none.
func WithTracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.tracers = p } }

// WithMeterProvider sets where metrics go. The default is the global one. With that of
// go.opentelemetry.io/otel/metric/noop there are none.
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// WithDBClient adds what the semantic conventions for database clients ask for: the metric
// db.client.operation.duration, and on spans the kind CLIENT, db.system.name, db.operation.name,
// which is the verb, and error.type. It is for a client without an instrumentation of its own. With
// one, such as rueidisotel, each operation would be counted twice. The default is to leave them
// out.
func WithDBClient() Option { return func(c *config) { c.db = true } }

// Observer is a [tombstore.Observer]. One is enough for all stores of a program. It is safe for
// concurrent use.
type Observer struct {
	config
	tracer   trace.Tracer
	refused  metric.Int64Counter
	duration metric.Float64Histogram
	retries  metric.Int64Counter
	requests metric.Int64Counter
	dbTime   metric.Float64Histogram // or nil
	hits     atomic.Int64

	mu     sync.RWMutex
	series map[series]*options
}

var _ tombstore.CacheObserver = (*Observer)(nil)

// series is what tells the data points of a metric apart.
type series struct {
	verb    string
	outcome tombstore.Outcome
	reason  tombstore.Reason
}

// options are the attributes of a series, which take long to make.
type options struct {
	duration, db             []metric.RecordOption
	refused, retry, requests []metric.AddOption
}

// New returns an Observer.
func New(opts ...Option) (*Observer, error) {
	o := &Observer{
		config: config{tracers: otel.GetTracerProvider(), meters: otel.GetMeterProvider()},
		series: map[series]*options{},
	}
	for _, opt := range opts {
		opt(&o.config)
	}
	o.tracer = o.tracers.Tracer(scope)
	meter := o.meters.Meter(scope)
	var faults [6]error
	o.refused, faults[0] = meter.Int64Counter("tombstore.refused", metric.WithUnit("{operation}"),
		metric.WithDescription("Writes, touches and moves that the tombstone of an ended session has refused."))
	o.duration, faults[1] = meter.Float64Histogram("tombstore.operation.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of the operations of a store."),
		metric.WithExplicitBucketBoundaries(boundaries...))
	o.retries, faults[2] = meter.Int64Counter("tombstore.operation.retries", metric.WithUnit("{attempt}"),
		metric.WithDescription("How often something was sent again because there was no answer."))
	o.requests, faults[3] = meter.Int64Counter("tombstore.request.events", metric.WithUnit("{request}"),
		metric.WithDescription("Requests whose session was not saved, or was saved without the replicas' word."))
	_, faults[4] = meter.Int64ObservableCounter("tombstore.cache.hits", metric.WithUnit("{operation}"),
		metric.WithDescription("Reads that memory has answered."),
		metric.WithInt64Callback(func(_ context.Context, counter metric.Int64Observer) error {
			counter.Observe(o.hits.Load())
			return nil
		}))
	if o.db {
		var h dbconv.ClientOperationDuration
		h, faults[5] = dbconv.NewClientOperationDuration(meter, metric.WithExplicitBucketBoundaries(dbBoundaries...))
		o.dbTime = h.Inst()
	}
	for _, err := range faults {
		if err != nil {
			return nil, err
		}
	}
	return o, nil
}

// Start implements [tombstore.Observer].
func (o *Observer) Start(ctx context.Context, verb string, begun time.Time) context.Context {
	if o.db {
		ctx, _ = o.tracer.Start(ctx, "tombstore "+verb, trace.WithTimestamp(begun),
			trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(verbKey.String(verb), semconv.DBSystemNameRedis, semconv.DBOperationName(verb)))
		return ctx
	}
	ctx, _ = o.tracer.Start(ctx, "tombstore "+verb, trace.WithTimestamp(begun),
		trace.WithAttributes(verbKey.String(verb)))
	return ctx
}

// End implements [tombstore.Observer].
func (o *Observer) End(ctx context.Context, e tombstore.Event) {
	opts := o.optionsOf(series{e.Verb, e.Outcome, e.Reason})
	o.duration.Record(ctx, e.Duration.Seconds(), opts.duration...)
	if o.dbTime != nil {
		o.dbTime.Record(ctx, e.Duration.Seconds(), opts.db...)
	}
	if e.Outcome == tombstore.OutcomeRefused {
		o.refused.Add(ctx, 1, opts.refused...)
	}
	if e.Attempts > 1 {
		o.retries.Add(ctx, int64(e.Attempts-1), opts.retry...)
	}
	span := trace.SpanFromContext(ctx)
	if span.IsRecording() {
		span.SetAttributes(attributes(e)...)
		if failed(e.Outcome) {
			span.SetStatus(codes.Error, e.Err.Error())
			if o.db {
				span.SetAttributes(semconv.ErrorTypeKey.String(e.Outcome.String()))
			}
		}
	}
	span.End()
}

// CacheHit implements [tombstore.CacheObserver].
func (o *Observer) CacheHit(context.Context) { o.hits.Add(1) }

// Request counts what has become of a request, and notes it in the span of ctx, as an event: for
// adapter.WithOnRefused and adapter.WithOnUnacknowledged, which says what they count and why it is
// not to be added to tombstore.refused.
//
//	withSession := scsstore.Install(sm, store, adapter.WithOnRefused(observer.Request))
func (o *Observer) Request(ctx context.Context, e tombstore.Event) {
	o.requests.Add(ctx, 1, o.optionsOf(series{e.Verb, e.Outcome, e.Reason}).requests...)
	trace.SpanFromContext(ctx).AddEvent("tombstore.request", trace.WithAttributes(attributes(e)...))
}

// attributes returns what a span says of an event.
func attributes(e tombstore.Event) []attribute.KeyValue {
	all := []attribute.KeyValue{verbKey.String(e.Verb), outcomeKey.String(e.Outcome.String())}
	if e.Reason != 0 {
		all = append(all, reasonKey.String(e.Reason.String()))
	}
	if e.Ref != "" {
		all = append(all, refKey.String(e.Ref))
	}
	if e.Attempts > 0 {
		all = append(all, attemptsKey.Int(e.Attempts))
	}
	return all
}

// failed reports whether an operation has failed, and not just found something.
func failed(o tombstore.Outcome) bool {
	switch o {
	case tombstore.OutcomeFailed, tombstore.OutcomeUnknown, tombstore.OutcomeCorrupt,
		tombstore.OutcomeNotInvalidated, tombstore.OutcomeUnacknowledged:
		return true
	}
	return false
}

func (o *Observer) optionsOf(s series) *options {
	o.mu.RLock()
	opts := o.series[s]
	o.mu.RUnlock()
	if opts != nil {
		return opts
	}
	opts = newOptions(s)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.series[s] = opts
	return opts
}

func newOptions(s series) *options {
	set := func(kvs ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(kvs...))
	}
	verb, outcome := verbKey.String(s.verb), outcomeKey.String(s.outcome.String())
	db := []attribute.KeyValue{semconv.DBSystemNameRedis, semconv.DBOperationName(s.verb)}
	if failed(s.outcome) {
		db = append(db, semconv.ErrorTypeKey.String(s.outcome.String()))
	}
	refused, request := []attribute.KeyValue{verb}, []attribute.KeyValue{verb, outcome}
	if s.reason != 0 {
		reason := reasonKey.String(s.reason.String())
		refused, request = append(refused, reason), append(request, reason)
	}
	return &options{
		duration: []metric.RecordOption{set(verb, outcome)},
		db:       []metric.RecordOption{set(db...)},
		refused:  []metric.AddOption{set(refused...)},
		retry:    []metric.AddOption{set(verb)},
		requests: []metric.AddOption{set(request...)},
	}
}
