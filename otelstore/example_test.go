package otelstore_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/otelstore"
)

// use ends a session and saves it too late, in a store that an observer sees.
func use(opts ...otelstore.Option) {
	observer, err := otelstore.New(opts...)
	if err != nil {
		log.Fatal(err)
	}
	store, err := tombstore.NewMemory(tombstore.WithObserver(observer))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	if err := store.Invalidate(ctx, "id"); err != nil {
		log.Fatal(err)
	}
	_, _ = store.Write(ctx, "id", []byte("alice"), time.Hour)
}

func ExampleWithTracerProvider() {
	exporter := tracetest.NewInMemoryExporter()
	use(otelstore.WithTracerProvider(trace.NewTracerProvider(trace.WithSyncer(exporter))))
	for _, span := range exporter.GetSpans() {
		fmt.Println(span.Name)
	}
	// Output:
	// tombstore invalidate
	// tombstore write
}

func ExampleWithMeterProvider() {
	reader := metric.NewManualReader()
	use(otelstore.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		log.Fatal(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if refused, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "tombstore.refused" {
			fmt.Println(m.Name, refused.DataPoints[0].Value)
		}
	}
	// Output:
	// tombstore.refused 1
}

// The client has no instrumentation of its own, so the spans are those of a database client.
func ExampleWithDBClient() {
	exporter := tracetest.NewInMemoryExporter()
	use(otelstore.WithDBClient(),
		otelstore.WithTracerProvider(trace.NewTracerProvider(trace.WithSyncer(exporter))))
	for _, span := range exporter.GetSpans() {
		fmt.Println(span.Name, span.SpanKind)
	}
	// Output:
	// tombstore invalidate client
	// tombstore write client
}
