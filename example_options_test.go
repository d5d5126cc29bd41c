package tombstore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/tombstore/tombstore"
)

// Two programs on one server do not see each other's sessions.
func ExampleWithKeyPrefix() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithKeyPrefix("shop:"))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// With ids of their own a list names sessions as cookies do, and so is as good as the cookies.
func ExampleWithPlainIDs() {
	ctx := context.Background()
	store, err := tombstore.NewMemory(tombstore.WithPlainIDs())
	if err != nil {
		log.Fatal(err)
	}
	_, err = store.Write(ctx, "8c2f", []byte("alice"), time.Hour)
	fmt.Println(err)
	for entry, err := range store.List(ctx) {
		fmt.Println(entry.Ref, err)
	}
	// Output:
	// <nil>
	// 8c2f <nil>
}

// A page that must be fast fails after half a second, and not after two.
func ExampleWithTimeout() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithTimeout(500*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// An export that takes up to two days may hold a copy of its session for as long.
func ExampleWithTombstoneTTL() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithTombstoneTTL(48*time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// A session ends twelve hours after it was created, even if it is used all the time.
func ExampleWithAbsoluteTimeout() {
	store, err := tombstore.NewMemory(tombstore.WithAbsoluteTimeout(12 * time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	session, err := store.Write(context.Background(), "id", []byte("alice"), 24*time.Hour)
	fmt.Println(session.Deadline().Sub(session.CreatedAt), err)
	// Output:
	// 12h0m0s <nil>
}

func ExampleWithMaxDataSize() {
	store, err := tombstore.NewMemory(tombstore.WithMaxDataSize(4096))
	if err != nil {
		log.Fatal(err)
	}
	_, err = store.Write(context.Background(), "id", make([]byte, 5000), time.Hour)
	fmt.Println(errors.Is(err, tombstore.ErrTooLarge))
	// Output:
	// true
}

// With an idle timeout of an hour the TTL is set when it is off by three minutes, not by six.
func ExampleWithTouchThreshold() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithTouchThreshold(0.05))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// Both replicas could be promoted, so a logout waits for both.
func ExampleWithReplicaAcks() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithReplicaAcks(2, 100*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	err = store.Invalidate(context.Background(), "id")
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		log.Print("logged out, but a failover could bring the session back: trying again")
	}
}

func ExampleWithClientCache() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithClientCache(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	fmt.Println("a stale answer is at most this old:", store.Staleness())
}

// A primary that was replaced without noticing refuses to answer, if min-replicas-to-write says so.
func ExampleWithStrictReads() {
	store, err := tombstore.Open("redis://127.0.0.1:26379?master_set=primary", tombstore.WithStrictReads())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// A login on a second device logs the first one out.
func ExampleWithMaxSessions() {
	ctx := context.Background()
	store, err := tombstore.NewMemory(tombstore.WithMaxSessions(1, tombstore.EvictOldest))
	if err != nil {
		log.Fatal(err)
	}
	for _, id := range []string{"phone", "laptop"} {
		login, err := store.BeginLogin(ctx, "alice")
		if err != nil {
			log.Fatal(err)
		}
		binding, err := store.Reserve(ctx, id, login, tombstore.Until(time.Now().Add(time.Hour)))
		if err != nil {
			log.Fatal(err)
		}
		if _, err = store.Write(ctx, id, nil, time.Hour, tombstore.Bound(binding)); err != nil {
			log.Fatal(err)
		}
	}
	_, err = store.Read(ctx, "phone")
	fmt.Println(err)
	// Output:
	// tombstore: read: session was ended: revoked
}

// Every process that ends sessions publishes, so that every process that watches them knows at
// once.
func ExampleWithPublish() {
	store, err := tombstore.Open("redis://127.0.0.1:6379", tombstore.WithPublish())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// Each request restarts the idle timeout of the session that it reads.
func ExampleSlide() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice"), time.Minute)
	fmt.Println(err)
	session, err := store.Read(ctx, "id", tombstore.Slide(time.Hour))
	fmt.Println(time.Until(session.ExpiresAt) > time.Minute, err)
	// Output:
	// <nil>
	// true <nil>
}

func ExampleWithExpiry() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice"), time.Hour)
	fmt.Println(err)
	session, err := store.Read(ctx, "id", tombstore.WithExpiry())
	due := time.Until(session.ExpiresAt) < 50*time.Minute
	fmt.Println("a Touch is due:", due, err)
	// Output:
	// <nil>
	// a Touch is due: false <nil>
}

// Money is moved only for a session that is live at this moment, whatever the cache says.
func ExampleFresh() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice"), time.Hour)
	fmt.Println(err)
	session, err := store.Read(ctx, "id", tombstore.Fresh())
	fmt.Println(string(session.Data), err)
	// Output:
	// <nil>
	// alice <nil>
}

// A handler that only looks at the data needs no copy of it.
func ExampleShared() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice"), time.Hour)
	fmt.Println(err)
	session, err := store.Read(ctx, "id", tombstore.Shared())
	fmt.Println(string(session.Data), err) // decoded, and not changed
	// Output:
	// <nil>
	// alice <nil>
}

// A login begins a session, and must not meet another one.
func ExampleIfAbsent() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice"), time.Hour, tombstore.IfAbsent())
	fmt.Println(err)
	_, err = store.Write(ctx, "id", []byte("bob"), time.Hour, tombstore.IfAbsent())
	fmt.Println(errors.Is(err, tombstore.ErrConflict))
	// Output:
	// <nil>
	// true
}

// A session that has expired meanwhile is not begun again.
func ExampleIfPresent() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice, 1 item"), time.Hour, tombstore.IfPresent())
	fmt.Println(errors.Is(err, tombstore.ErrNotFound))
	// Output:
	// true
}

// Of two requests that change what they have read, the second one has to read again.
func ExampleIfVersion() {
	ctx, store := context.Background(), newMemory()
	session, err := store.Write(ctx, "id", []byte("10"), time.Hour)
	fmt.Println(err)
	_, err = store.Write(ctx, "id", []byte("11"), time.Hour, tombstore.IfVersion(session.Version))
	fmt.Println(err)
	_, err = store.Write(ctx, "id", []byte("12"), time.Hour, tombstore.IfVersion(session.Version))
	fmt.Println(errors.Is(err, tombstore.ErrConflict))
	// Output:
	// <nil>
	// <nil>
	// true
}

// The end of a request that has read the session: it is saved, unless it was ended meanwhile.
func ExampleReplacing() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", []byte("alice"), time.Hour)
	fmt.Println(err)
	session, err := store.Read(ctx, "id")
	fmt.Println(err)
	fmt.Println(store.Invalidate(ctx, "id")) // by another request

	data := append(session.Data, ", 1 item"...)
	_, err = store.Write(ctx, "id", data, time.Hour, tombstore.Replacing(session))
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// tombstore: write: session was ended: logout
}

// A login of a visitor who had no session.
func ExampleBound() {
	ctx, store := context.Background(), newMemory()
	login, err := store.BeginLogin(ctx, "alice") // then the password is compared
	fmt.Println(err)
	id := tombstore.NewID()
	binding, err := store.Reserve(ctx, id, login, tombstore.Until(time.Now().Add(8*time.Hour)))
	fmt.Println(err)
	session, err := store.Write(ctx, id, []byte("alice"), time.Hour, tombstore.Bound(binding))
	fmt.Println(len(session.Owners()), err)
	// Output:
	// <nil>
	// <nil>
	// 1 <nil>
}

// The new id comes with other data.
func ExampleWithData() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "old", []byte("1 item"), time.Hour)
	fmt.Println(err)
	session, err := store.Rotate(ctx, "old", "new", tombstore.WithData([]byte("alice, 1 item"), time.Hour))
	fmt.Println(string(session.Data), err)
	// Output:
	// <nil>
	// alice, 1 item <nil>
}

// The data under the new id was computed from what was read, so nobody may have changed that.
func ExampleIfUnchanged() {
	ctx, store := context.Background(), newMemory()
	read, err := store.Write(ctx, "old", []byte("1 item"), time.Hour)
	fmt.Println(err)
	_, err = store.Write(ctx, "old", []byte("2 items"), time.Hour) // by another request
	fmt.Println(err)
	_, err = store.Rotate(ctx, "old", "new", tombstore.IfUnchanged(read.Version),
		tombstore.WithData([]byte("alice, 1 item"), time.Hour))
	fmt.Println(errors.Is(err, tombstore.ErrConflict))
	// Output:
	// <nil>
	// <nil>
	// true
}

// A user ticks "remember me" after the login: the session gets a new id, and thirty days.
func ExampleWithLifetime() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "old", []byte("alice"), time.Hour)
	fmt.Println(err)
	session, err := store.Rotate(ctx, "old", "new", tombstore.WithLifetime(tombstore.Lifetime{Idle: 30 * 24 * time.Hour}))
	fmt.Println(session.Idle(), err)
	// Output:
	// <nil>
	// 720h0m0s <nil>
}

// A login of a visitor who had a session, which gets a new id and an owner.
func ExampleWithBinding() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "visitor's", []byte("1 item"), time.Hour)
	fmt.Println(err)
	login, err := store.BeginLogin(ctx, "alice") // then the password is compared
	fmt.Println(err)
	id := tombstore.NewID()
	binding, err := store.Reserve(ctx, id, login, tombstore.Until(time.Now().Add(8*time.Hour)))
	fmt.Println(err)
	session, err := store.Rotate(ctx, "visitor's", id, tombstore.WithBinding(binding))
	fmt.Println(string(session.Data), len(session.Owners()), err)
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// 1 item 1 <nil>
}

// reserve begins a session of alice's, as a login does.
func reserve(store tombstore.Binder, id string, opts ...tombstore.ReserveOption) (tombstore.Session, error) {
	ctx := context.Background()
	login, err := store.BeginLogin(ctx, "alice")
	if err != nil {
		return tombstore.Session{}, err
	}
	binding, err := store.Reserve(ctx, id, login, opts...)
	if err != nil {
		return tombstore.Session{}, err
	}
	return store.Write(ctx, id, []byte("alice"), time.Hour, tombstore.Bound(binding))
}

// The session ends in the evening, however often it is used.
func ExampleUntil() {
	ctx, store := context.Background(), newMemory()
	login, err := store.BeginLogin(ctx, "alice")
	fmt.Println(err)
	evening := time.Date(2099, 11, 30, 20, 0, 0, 0, time.UTC)
	binding, err := store.Reserve(ctx, "id", login, tombstore.Until(evening))
	fmt.Println(binding.Deadline.UTC(), err)
	// Output:
	// <nil>
	// 2099-11-30 20:00:00 +0000 UTC <nil>
}

// What a page with the user's devices shows.
func ExampleLabel() {
	ctx, store := context.Background(), newMemory()
	tomorrow := time.Now().Add(24 * time.Hour)
	_, err := reserve(store, "id", tombstore.Until(tomorrow), tombstore.Label("Firefox on Linux"))
	fmt.Println(err)
	devices, err := store.Sessions(ctx, "alice")
	fmt.Println(devices[0].Label, err)
	// Output:
	// <nil>
	// Firefox on Linux <nil>
}

// Alice's session is one of her company's, too, which can be logged out as a whole.
func ExampleAlso() {
	ctx, store := context.Background(), newMemory()
	company, err := store.BeginLogin(ctx, "company") // before the password is compared, as for alice
	fmt.Println(err)
	_, err = reserve(store, "id", tombstore.Until(time.Now().Add(time.Hour)), tombstore.Also(company))
	fmt.Println(err)
	n, err := store.InvalidateOwner(ctx, "company")
	fmt.Println(n, err)
	_, err = store.Read(ctx, "id")
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// 1 <nil>
	// tombstore: read: session was ended: revoked
}

// The logout of a session at an identity provider wins even if it overtakes its login.
func ExampleAlsoFinal() {
	ctx, store := context.Background(), newMemory()
	_, err := store.InvalidateOwner(ctx, "sid 42")
	fmt.Println(err)
	_, err = reserve(store, "id", tombstore.Until(time.Now().Add(time.Hour)), tombstore.AlsoFinal("sid 42"))
	fmt.Println(errors.Is(err, tombstore.ErrStaleLogin))
	// Output:
	// <nil>
	// true
}

// Alice may have one session, and logs in again with that one.
func ExampleInPlaceOf() {
	ctx := context.Background()
	store, err := tombstore.NewMemory(tombstore.WithMaxSessions(1, tombstore.Refuse))
	if err != nil {
		log.Fatal(err)
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	_, err = reserve(store, "old", tombstore.Until(tomorrow))
	fmt.Println(err)
	_, err = reserve(store, "another", tombstore.Until(tomorrow))
	fmt.Println(errors.Is(err, tombstore.ErrTooManySessions))

	login, err := store.BeginLogin(ctx, "alice")
	fmt.Println(err)
	binding, err := store.Reserve(ctx, "new", login, tombstore.Until(tomorrow), tombstore.InPlaceOf("old"))
	fmt.Println(err)
	_, err = store.Rotate(ctx, "old", "new", tombstore.WithBinding(binding))
	fmt.Println(err)
	// Output:
	// <nil>
	// true
	// <nil>
	// <nil>
	// <nil>
}

// The tombstone says that an administrator has ended the session.
func ExampleWithReason() {
	ctx, store := context.Background(), newMemory()
	fmt.Println(store.Invalidate(ctx, "id", tombstore.WithReason(tombstore.Revoked)))
	_, err := store.Read(ctx, "id")
	fmt.Println(err)
	// Output:
	// <nil>
	// tombstore: read: session was ended: revoked
}

// The old id is ended once more, and the session that it has become goes on.
func ExampleAlone() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "old", []byte("alice"), time.Hour)
	fmt.Println(err)
	_, err = store.Rotate(ctx, "old", "new")
	fmt.Println(err)
	fmt.Println(store.Invalidate(ctx, "old", tombstore.Alone()))
	fmt.Println(store.Exists(ctx, "new"))
	fmt.Println(store.Invalidate(ctx, "old"))
	fmt.Println(store.Exists(ctx, "new"))
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// true <nil>
	// <nil>
	// false <nil>
}

// A button "log out my other devices".
func ExampleExcept() {
	ctx, store := context.Background(), newMemory()
	tomorrow := time.Now().Add(24 * time.Hour)
	for _, id := range []string{"phone", "laptop", "tablet"} {
		if _, err := reserve(store, id, tombstore.Until(tomorrow)); err != nil {
			log.Fatal(err)
		}
	}
	n, err := store.InvalidateOwner(ctx, "alice", tombstore.Except("phone"))
	fmt.Println(n, err)
	fmt.Println(store.Exists(ctx, "phone"))
	// Output:
	// 2 <nil>
	// true <nil>
}

// After the server may have lost keys, alice's sessions are found by their records as well.
func ExampleThorough() {
	ctx, store := context.Background(), newMemory()
	_, err := reserve(store, "id", tombstore.Until(time.Now().Add(time.Hour)))
	fmt.Println(err)
	n, err := store.InvalidateOwner(ctx, "alice", tombstore.Thorough())
	fmt.Println(n, err)
	// Output:
	// <nil>
	// 1 <nil>
}
