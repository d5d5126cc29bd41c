package tombstore_test

import (
	"context"
	"log"
	"log/slog"
	"time"

	"github.com/tombstore/tombstore"
)

// refusals logs writes that came too late.
type refusals struct{}

func (refusals) Start(ctx context.Context, _ string, _ time.Time) context.Context { return ctx }

func (refusals) End(_ context.Context, e tombstore.Event) {
	if e.Outcome == tombstore.OutcomeRefused {
		log.Printf("%s of session %s refused after %v: %v", e.Verb, e.Ref, e.Duration, e.Reason)
	}
}

// For OpenTelemetry see module otelstore.
func ExampleWithObserver() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithObserver(refusals{}))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

func ExampleWithLogger() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithLogger(slog.Default()))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}
