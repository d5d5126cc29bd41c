package otelstore

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

// BenchmarkRead compares a Read that the server answers, and one that memory does, with this
// Observer and without: with metrics alone, and with spans that are all recorded, too. They take
// turns in short rounds; what is reported is the median of the rounds' ratios.
func BenchmarkRead(b *testing.B) {
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute) // as a request's with a time limit
	defer cancel()
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(tracetest.NewNoopExporter()))
	for name, c := range map[string]struct {
		n    int // reads in a round
		opts []tombstore.Option
	}{
		"uncached": {50, nil},
		"cached":   {1000, []tombstore.Option{tombstore.WithClientCache(time.Hour)}},
	} {
		b.Run(name, func(b *testing.B) {
			client := redistest.Dial(b, redistest.URL(b), redistest.WithCache)
			prefix := tombstore.WithKeyPrefix(redistest.Prefix(b, client))
			id := tombstore.NewID()
			variants := map[string]*tombstore.RedisStore{}
			for name, opts := range map[string][]Option{
				"":          nil,
				"x-metrics": {WithMeterProvider(meters), WithTracerProvider(tracenoop.NewTracerProvider())},
				"x-spans":   {WithMeterProvider(metricnoop.NewMeterProvider()), WithTracerProvider(tracers)},
				"x-both":    {WithMeterProvider(meters), WithTracerProvider(tracers)},
			} {
				of := append(slices.Clone(c.opts), prefix)
				if opts != nil {
					observer, err := New(opts...)
					require.NoError(b, err)
					of = append(of, tombstore.WithObserver(observer))
				}
				s, err := tombstore.New(client, of...)
				require.NoError(b, err)
				_, err = s.Write(ctx, id, make([]byte, 512), time.Hour)
				require.NoError(b, err)
				variants[name] = s
			}
			ratios := map[string][]float64{}
			for range max(1, b.N/c.n) {
				took := map[string]time.Duration{}
				for name, s := range variants { // in any order
					_, _ = s.Read(ctx, id) // memory has it after that
					begun := time.Now()
					for range c.n {
						if _, err := s.Read(ctx, id); err != nil {
							b.Fatal(err)
						}
					}
					took[name] = time.Since(begun)
				}
				for name, t := range took {
					ratios[name] = append(ratios[name], t.Seconds()/took[""].Seconds())
				}
			}
			for name, of := range ratios {
				if slices.Sort(of); name != "" {
					b.ReportMetric(of[len(of)/2], name)
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
