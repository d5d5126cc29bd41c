package tombstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

func Example() {
	ctx := context.Background()
	store, err := tombstore.NewMemory() // on a server: tombstore.Open("redis://127.0.0.1:6379")
	if err != nil {
		log.Fatal(err)
	}

	// Login: a new session under a new id, which goes into the cookie.
	id := tombstore.NewID()
	if _, err = store.Write(ctx, id, []byte("alice"), time.Hour, tombstore.IfAbsent()); err != nil {
		log.Fatal(err)
	}

	// Request B loads the session and takes its time.
	session, err := store.Read(ctx, id)
	if err != nil {
		log.Fatal(err)
	}

	// Request A logs out meanwhile.
	if err = store.Invalidate(ctx, id); err != nil {
		log.Fatal(err)
	}

	// Request B saves what it loaded, too late.
	data := append(session.Data, ", 1 item"...)
	_, err = store.Write(ctx, id, data, time.Hour, tombstore.Replacing(session))
	fmt.Println(errors.Is(err, tombstore.ErrInvalidated), err)

	_, err = store.Read(ctx, id)
	fmt.Println(errors.Is(err, tombstore.ErrInvalidated), err)
	// Output:
	// true tombstore: write: session was ended: logout
	// true tombstore: read: session was ended: logout
}

func ExampleOpen() {
	store, err := tombstore.Open("redis://127.0.0.1:6379",
		tombstore.WithAbsoluteTimeout(12*time.Hour),
		tombstore.WithReplicaAcks(1, 100*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// Credentials that expire, as those of IAM do, are asked for at each connection and renewed on it.
func ExampleOpenOption() {
	token := func() (string, time.Time) { return "from your provider", time.Now().Add(15 * time.Minute) }
	store, err := tombstore.OpenOption(rueidis.ClientOption{
		InitAddress: []string{"sessions.example.com:6379"},
		TLSConfig:   &tls.Config{MinVersion: tls.VersionTLS12},
		AuthCredentialsFn: func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			password, expires := token()
			return rueidis.AuthCredentials{
				Username: "app", Password: password, RefreshAfter: expires.Add(-time.Minute),
			}, nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

func newMemory() *tombstore.MemoryStore {
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	return store
}

func ExampleMemoryStore_Read() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Read(ctx, "nobody's")
	fmt.Println(errors.Is(err, tombstore.ErrNotFound))

	_, err = store.Write(ctx, "alice's", []byte("alice"), time.Minute)
	fmt.Println(err)

	// Each request restarts the idle timeout of the session that it reads.
	session, err := store.Read(ctx, "alice's", tombstore.Slide(time.Hour))
	fmt.Println(string(session.Data), err)
	// Output:
	// true
	// <nil>
	// alice <nil>
}

// Write has a condition for a session that is new, one for a session that was read before, and one
// for a session that must not have changed since it was read.
func ExampleMemoryStore_Write() {
	ctx, store := context.Background(), newMemory()
	first, err := store.Write(ctx, "id", []byte("1 item"), time.Hour, tombstore.IfAbsent())
	fmt.Println(err)
	_, err = store.Write(ctx, "id", []byte("2 items"), time.Hour, tombstore.IfPresent())
	fmt.Println(err)

	// Somebody has changed the session since: read it again.
	_, err = store.Write(ctx, "id", []byte("1 item, paid"), time.Hour, tombstore.IfVersion(first.Version))
	fmt.Println(errors.Is(err, tombstore.ErrConflict))
	// Output:
	// <nil>
	// <nil>
	// true
}

func ExampleMemoryStore_Touch() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", nil, time.Minute)
	fmt.Println(err)
	fmt.Println(store.Touch(ctx, "id", time.Hour))
	fmt.Println(errors.Is(store.Touch(ctx, "another", time.Hour), tombstore.ErrNotFound))
	// Output:
	// <nil>
	// <nil>
	// true
}

// A login gives the session a new id, so that an id from before it is of no use.
func ExampleMemoryStore_Rotate() {
	ctx, store := context.Background(), newMemory()
	oldID, newID := tombstore.NewID(), tombstore.NewID()
	_, err := store.Write(ctx, oldID, []byte("anonymous, 1 item"), time.Hour)
	fmt.Println(err)
	session, err := store.Rotate(ctx, oldID, newID, tombstore.WithData([]byte("alice, 1 item"), time.Hour))
	fmt.Println(string(session.Data), err)

	_, err = store.Read(ctx, oldID)
	fmt.Println(err)
	// Output:
	// <nil>
	// alice, 1 item <nil>
	// tombstore: read: session was ended: rotated
}

// An id can be ended whether it has a session or not, and more than once. The first reason stays.
func ExampleMemoryStore_Invalidate() {
	ctx, store := context.Background(), newMemory()
	fmt.Println(store.Invalidate(ctx, "id", tombstore.WithReason(tombstore.Revoked)))
	fmt.Println(store.Invalidate(ctx, "id"))

	_, err := store.Write(ctx, "id", []byte("alice"), time.Hour)
	var ended *tombstore.InvalidatedError
	if errors.As(err, &ended) {
		fmt.Println(ended.Reason, time.Since(ended.At) < time.Minute)
	}
	// Output:
	// <nil>
	// <nil>
	// revoked true
}

func ExampleMemoryStore_Exists() {
	ctx, store := context.Background(), newMemory()
	_, err := store.Write(ctx, "id", nil, time.Hour)
	fmt.Println(err)
	fmt.Println(store.Exists(ctx, "id"))
	fmt.Println(store.Invalidate(ctx, "id"))
	fmt.Println(store.Exists(ctx, "id"))
	// Output:
	// <nil>
	// true <nil>
	// <nil>
	// false <nil>
}

// A login begins before the password is looked at, so that a logout everywhere that comes
// meanwhile, because that password has been changed, keeps it out.
func ExampleMemoryStore_InvalidateOwner() {
	ctx, store := context.Background(), newMemory()
	logIn := func(oldID, device string, passwordIsRight func() bool) (string, error) {
		login, err := store.BeginLogin(ctx, "alice")
		if err != nil {
			return "", err
		}
		if !passwordIsRight() {
			return "", errors.New("wrong password")
		}
		newID, tomorrow := tombstore.NewID(), time.Now().Add(24*time.Hour)
		b, err := store.Reserve(ctx, newID, login, tombstore.Until(tomorrow), tombstore.Label(device))
		if err != nil {
			return "", err
		}
		_, err = store.Rotate(ctx, oldID, newID, tombstore.WithBinding(b), tombstore.WithData([]byte("alice"), time.Hour))
		if err != nil {
			return "", errors.Join(err, store.Release(ctx, b))
		}
		return newID, nil
	}
	anonymous := func() string {
		id := tombstore.NewID()
		if _, err := store.Write(ctx, id, nil, time.Hour, tombstore.IfAbsent()); err != nil {
			log.Fatal(err)
		}
		return id
	}
	right := func() bool { return true }
	phone, err := logIn(anonymous(), "phone", right)
	fmt.Println(err)
	laptop, err := logIn(anonymous(), "laptop", right)
	fmt.Println(err)
	devices, err := store.Sessions(ctx, "alice")
	fmt.Println(len(devices), err)

	// Alice logs out everywhere but on the phone, while somebody logs in.
	_, err = logIn(anonymous(), "somebody's", func() bool {
		n, err := store.InvalidateOwner(ctx, "alice", tombstore.Except(phone))
		fmt.Println(n, err)
		return true
	})
	fmt.Println(errors.Is(err, tombstore.ErrStaleLogin), err)
	_, err = store.Read(ctx, laptop)
	fmt.Println(err)
	_, err = store.Read(ctx, phone)
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// 2 <nil>
	// 1 <nil>
	// true tombstore: reserve: login is stale, or was not begun
	// tombstore: read: session was ended: revoked
	// <nil>
}

// A login in two steps keeps what it knows of the first one on the server, for example in the
// anonymous session, and never in a cookie.
func ExampleLogin() {
	ctx, store := context.Background(), newMemory()
	login, err := store.BeginLogin(ctx, "alice") // then the password is compared
	if err != nil {
		log.Fatal(err)
	}
	text, err := login.MarshalText()
	if err != nil {
		log.Fatal(err)
	}

	// The next request, which proves the second factor.
	var kept tombstore.Login
	if err := kept.UnmarshalText(text); err != nil {
		log.Fatal(err)
	}
	id, evening := tombstore.NewID(), time.Now().Add(8*time.Hour)
	b, err := store.Reserve(ctx, id, kept, tombstore.Until(evening))
	fmt.Println(err)
	_, err = store.Write(ctx, id, []byte("alice"), time.Hour, tombstore.Bound(b))
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
}

// A login with the limits that NIST SP 800-63B-4 has for AAL2: a session ends after an hour without
// activity, and after a day in any case. docs/standards.md has the settings of session libraries.
func Example_aal2() {
	const inactivity, overall = time.Hour, 24 * time.Hour
	store, err := tombstore.NewMemory(tombstore.WithAbsoluteTimeout(overall))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	login, err := store.BeginLogin(ctx, "alice") // then both factors are looked at
	if err != nil {
		log.Fatal(err)
	}
	id := tombstore.NewID()
	binding, err := store.Reserve(ctx, id, login)
	if err != nil {
		log.Fatal(err)
	}
	if _, err = store.Write(ctx, id, []byte("alice"), inactivity, tombstore.Bound(binding)); err != nil {
		log.Fatal(err)
	}
	cookie := http.Cookie{ // without an age: the server knows when the session ends
		Name: "__Host-session", Value: id, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}

	// Each request of the user.
	session, err := store.Read(ctx, cookie.Value, tombstore.Slide(inactivity))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(session.Deadline().Sub(session.CreatedAt))
	fmt.Println(time.Until(session.ExpiresAt) <= inactivity)
	// Output:
	// 24h0m0s
	// true
}

// A token that may be used once, such as that of a link by which a password is reset, is a session
// of its own: whoever ends it has used it, and of several who try only one does. A login with
// "remember me": whoever touches the session for half an hour leaves it its thirty days.
func ExampleLoginLifetime() {
	ctx := context.Background()
	store, err := tombstore.NewMemory(tombstore.WithAbsoluteTimeout(12 * time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	const day = 24 * time.Hour
	id := tombstore.NewID()
	login, err := store.BeginLogin(ctx, "alice")
	if err != nil {
		log.Fatal(err)
	}
	b, err := store.Reserve(ctx, id, login,
		tombstore.LoginLifetime(tombstore.Lifetime{Idle: 30 * day, Absolute: 180 * day}))
	if err != nil {
		log.Fatal(err)
	}
	if _, err = store.Write(ctx, id, []byte("alice"), 30*time.Minute, tombstore.Bound(b)); err != nil {
		log.Fatal(err)
	}

	s, err := store.Read(ctx, id, tombstore.Slide(30*time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Idle(), time.Until(s.ExpiresAt).Round(time.Hour), time.Until(s.Deadline()).Round(time.Hour))
	// Output: 720h0m0s 720h0m0s 4320h0m0s
}

// A session without owners that gets its lifetime with its first write, and another one as an
// administrator's.
func ExampleLasting() {
	ctx := context.Background()
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	id, next := tombstore.NewID(), tombstore.NewID()
	s, err := store.Write(ctx, id, []byte("alice"), time.Hour,
		tombstore.IfAbsent(), tombstore.Lasting(tombstore.Lifetime{Idle: 30 * 24 * time.Hour}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Idle())

	s, err = store.Rotate(ctx, id, next, tombstore.WithData([]byte("alice, administrator"), time.Hour),
		tombstore.WithLifetime(tombstore.Lifetime{Idle: 15 * time.Minute, Absolute: 8 * time.Hour}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Idle(), time.Until(s.Deadline()).Round(time.Minute))
	// Output:
	// 720h0m0s
	// 15m0s 8h0m0s
}

// A renewal every quarter of an hour, whose other requests are still under way.
func ExampleGrace() {
	ctx := context.Background()
	store, err := tombstore.NewMemory()
	if err != nil {
		log.Fatal(err)
	}
	id, next := tombstore.NewID(), tombstore.NewID()
	s, err := store.Write(ctx, id, []byte("alice"), time.Hour)
	if err != nil {
		log.Fatal(err)
	}
	if _, err = store.Rotate(ctx, id, next, tombstore.Grace(10*time.Second)); err != nil {
		log.Fatal(err)
	}

	late, err := store.Read(ctx, id)
	fmt.Println(string(late.Data), err)
	_, err = store.Write(ctx, id, []byte("bob"), time.Hour, tombstore.Replacing(s))
	fmt.Println(err)

	if err = store.Invalidate(ctx, next); err != nil { // a logout
		log.Fatal(err)
	}
	_, err = store.Read(ctx, id)
	fmt.Println(errors.Is(err, tombstore.ErrInvalidated))
	// Output:
	// alice <nil>
	// tombstore: write: session was ended: rotated
	// true
}

func ExampleIfLive() {
	ctx, store := context.Background(), newMemory()
	token := tombstore.NewID() // goes into the link
	_, err := store.Write(ctx, token, []byte("alice"), 15*time.Minute, tombstore.IfAbsent())
	fmt.Println(err)

	use := func() error {
		link, err := store.Read(ctx, token) // whose it is
		if err != nil {
			return err
		}
		if err := store.Invalidate(ctx, token, tombstore.IfLive()); err != nil {
			return err
		}
		fmt.Println("new password for", string(link.Data))
		_, err = store.InvalidateOwner(ctx, string(link.Data))
		return err
	}
	fmt.Println(use())
	fmt.Println(tombstore.NoSession(use()))
	// Output:
	// <nil>
	// new password for alice
	// <nil>
	// true
}

// An export of all that a user has, which takes hours: a logout does not stop it, and whoever logs
// the user out everywhere, because the account was closed or its password was stolen, does.
func ExampleMemoryStore_WatchOwner() {
	ctx, store := context.Background(), newMemory()
	id := tombstore.NewID()
	login, err := store.BeginLogin(ctx, "alice")
	if err != nil {
		log.Fatal(err)
	}
	b, err := store.Reserve(ctx, id, login, tombstore.Until(time.Now().Add(8*time.Hour)))
	if err != nil {
		log.Fatal(err)
	}
	if _, err = store.Write(ctx, id, []byte("alice"), time.Hour, tombstore.Bound(b)); err != nil {
		log.Fatal(err)
	}

	// First watch, then look: an InvalidateOwner that comes in between is told.
	job, err := store.WatchOwner(ctx, "alice")
	if err != nil {
		log.Fatal(err)
	}
	if _, err = store.Read(ctx, id, tombstore.Fresh()); err != nil {
		log.Fatal(err)
	}

	if err = store.Invalidate(ctx, id); err != nil {
		log.Fatal(err)
	}
	fmt.Println(context.Cause(job))
	if _, err = store.InvalidateOwner(ctx, "alice"); err != nil {
		log.Fatal(err)
	}
	<-job.Done()
	fmt.Println(context.Cause(job))
	// Output:
	// <nil>
	// tombstore: watch: session was ended: revoked
}

// OpenID Connect Back-Channel Logout names a user (sub), a session of the provider (sid), or both:
// two owners of the session here. The sid is known when the ID token has come, and it never comes
// back, so it is a final one: a logout that overtakes its login wins.
func Example_backChannelLogout() {
	ctx, store := context.Background(), newMemory()
	const issuer = "https://op.example.com/"
	user := func(sub string) string { return "sub " + issuer + sub }
	provider := func(sid string) string { return "sid " + issuer + sid }

	// The callback of the provider, when the ID token has been checked.
	callback := func(sub, sid string) (id string, err error) {
		login, err := store.BeginLogin(ctx, user(sub)) // from here on the user may be logged out
		if err != nil {
			return "", err
		}
		id = tombstore.NewID()
		b, err := store.Reserve(ctx, id, login,
			tombstore.Until(time.Now().Add(8*time.Hour)), tombstore.AlsoFinal(provider(sid)))
		if err != nil {
			return "", err
		}
		_, err = store.Write(ctx, id, []byte(sub), time.Hour, tombstore.Bound(b))
		return id, err
	}

	// What a logout token asks for, when it has been checked. sid or sub may be empty.
	logout := func(sub, sid string) error {
		owner := provider(sid)
		if sid == "" {
			owner = user(sub)
		}
		_, err := store.InvalidateOwner(ctx, owner)
		return err
	}

	id, err := callback("alice", "s1")
	fmt.Println(err)
	fmt.Println(logout("", "s1"))
	_, err = store.Read(ctx, id)
	fmt.Println(err)

	fmt.Println(logout("alice", "s2")) // overtakes the login that it is for
	_, err = callback("alice", "s2")
	fmt.Println(errors.Is(err, tombstore.ErrStaleLogin))

	id, err = callback("alice", "s3")
	fmt.Println(err)
	fmt.Println(logout("alice", ""))
	_, err = store.Read(ctx, id)
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// tombstore: read: session was ended: revoked
	// <nil>
	// true
	// <nil>
	// <nil>
	// tombstore: read: session was ended: revoked
}
