package adapter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
)

func newAdapter(opts ...adapter.Option) *adapter.Adapter {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	return adapter.New(store, opts...)
}

// begin begins a session, and load is a request that comes with it.
func begin(a *adapter.Adapter, id, data string) {
	if err := a.Save(context.Background(), &adapter.Request{}, id, []byte(data), time.Hour); err != nil {
		log.Fatal(err)
	}
}

func load(a *adapter.Adapter, id string) *adapter.Request {
	r := &adapter.Request{}
	if _, _, err := a.Load(context.Background(), r, id); err != nil {
		log.Fatal(err)
	}
	return r
}

// What a session library does in the course of two requests, one of which logs out.
func Example() {
	ctx, a := context.Background(), newAdapter()
	begin(a, "id", "alice")
	slow, logout := load(a, "id"), load(a, "id")
	fmt.Println(a.End(ctx, logout, "id"))
	err := a.Save(ctx, slow, "id", []byte("alice, 1 item"), time.Hour)
	fmt.Println(errors.Is(err, adapter.ErrRefused)) // answer as if it had been saved, without a cookie
	// Output:
	// <nil>
	// true
}

// The later of two requests that change one session fails, and says so to its user.
func ExampleWithLostUpdates() {
	ctx, a := context.Background(), newAdapter(adapter.WithLostUpdates(adapter.Conflict))
	begin(a, "id", "10")
	first, second := load(a, "id"), load(a, "id")
	fmt.Println(a.Save(ctx, first, "id", []byte("11"), time.Hour))
	fmt.Println(errors.Is(a.Save(ctx, second, "id", []byte("9"), time.Hour), tombstore.ErrConflict))
	// Output:
	// <nil>
	// true
}

// Both requests have put something into the cart, and both stay in.
func ExampleMerge() {
	union := func(_, mine, theirs []byte) ([]byte, error) {
		items := append(strings.Fields(string(theirs)), strings.Fields(string(mine))...)
		slices.Sort(items)
		return []byte(strings.Join(slices.Compact(items), " ")), nil
	}
	ctx, a := context.Background(), newAdapter(adapter.WithLostUpdates(adapter.Merge(union)))
	begin(a, "id", "book")
	first, second := load(a, "id"), load(a, "id")
	fmt.Println(a.Save(ctx, first, "id", []byte("book lamp"), time.Hour))
	fmt.Println(a.Save(ctx, second, "id", []byte("book chair"), time.Hour))
	data, _, err := a.Load(ctx, &adapter.Request{}, "id")
	fmt.Println(string(data), err)
	// Output:
	// <nil>
	// <nil>
	// book chair lamp <nil>
}

// A refusal is worth a line in the log, by the ref of the session, which is of no use as a cookie.
func ExampleWithOnRefused() {
	ctx, a := context.Background(), newAdapter(adapter.WithOnRefused(func(_ context.Context, e tombstore.Event) {
		fmt.Println(e.Verb, "refused:", e.Reason)
	}))
	begin(a, "id", "alice")
	slow := load(a, "id")
	fmt.Println(a.End(ctx, load(a, "id"), "id"))
	_ = a.Save(ctx, slow, "id", []byte("alice, 1 item"), time.Hour)
	// Output:
	// <nil>
	// write refused: logout
}

// A login that has renewed the id, while a replica had not confirmed the end of the old one.
func ExampleWithOnUnacknowledged() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithReplicaAcks(1, 100*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	a := adapter.New(store, adapter.WithOnUnacknowledged(func(_ context.Context, e tombstore.Event) {
		log.Printf("a failover could bring back session %s", e.Ref)
	}))
	_ = a // given to the session library
}

// A request that comes with the cookie of a session that has just been logged out begins no new
// one.
func ExampleWithLateRequests() {
	ctx, a := context.Background(), newAdapter(adapter.WithLateRequests(5*time.Second))
	begin(a, "old", "alice")
	fmt.Println(a.End(ctx, load(a, "old"), "old"))
	late := load(a, "old")
	err := a.Save(ctx, late, "new", []byte("anonymous"), time.Hour)
	fmt.Println(errors.Is(err, adapter.ErrRefused))
	// Output:
	// <nil>
	// true
}

// Spaces in JSON are no change, so the session is not written.
func ExampleWithEqual() {
	equal := func(a, b []byte) bool {
		var x, y bytes.Buffer
		return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
	}
	ctx, a := context.Background(), newAdapter(adapter.WithEqual(equal))
	begin(a, "id", `{"user":"alice"}`)
	due, err := a.SaveIfDue(ctx, load(a, "id"), "id", []byte(`{"user": "alice"}`), time.Hour)
	fmt.Println(due, err)
	// Output:
	// false <nil>
}

// With 0 every response has a cookie, as session libraries do without this package.
func ExampleWithTouchThreshold() {
	ctx, a := context.Background(), newAdapter(adapter.WithTouchThreshold(0))
	begin(a, "id", "alice")
	due, err := a.SaveIfDue(ctx, load(a, "id"), "id", []byte("alice"), time.Hour)
	fmt.Println(due, err)
	// Output:
	// true <nil>
}

// Sessions that scs has kept in Redis are migrated when they are met.
func ExampleWithMigration() {
	client, err := rueidis.NewClient(rueidis.MustParseURL("redis://127.0.0.1:6379"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	a := newAdapter(adapter.WithMigration(adapter.NewOldKeys(client, "scs:session:")))
	_ = a // given to the session library
}

// old is where sessions were kept before.
type old map[string]string

func (o old) Read(_ context.Context, id string) ([]byte, time.Duration, error) {
	if data, ok := o[id]; ok {
		return []byte(data), time.Hour, nil
	}
	return nil, 0, tombstore.ErrNotFound
}

func (o old) Delete(_ context.Context, id string) (bool, error) {
	_, ok := o[id]
	delete(o, id)
	return ok, nil
}

// A value that is not JSON is not a session of this library, and stays where it is.
func ExampleWithDecode() {
	sessions := old{"a": `{"user":"alice"}`, "b": "something else"}
	decode := func(data []byte) error {
		var values map[string]any
		return json.Unmarshal(data, &values)
	}
	ctx, a := context.Background(), newAdapter(adapter.WithMigration(sessions), adapter.WithDecode(decode))
	data, found, err := a.Load(ctx, &adapter.Request{}, "a")
	fmt.Println(string(data), found, err)
	_, found, err = a.Load(ctx, &adapter.Request{}, "b")
	fmt.Println(found, err != nil, len(sessions))
	// Output:
	// {"user":"alice"} true <nil>
	// false true 1
}
