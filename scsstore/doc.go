// Package scsstore keeps the sessions of alexedwards/scs in a tombstore.Store, so that a session
// that was ended stays ended, in the browser too. Three lines of a program change, those with a
// comment:
//
//	package main
//
//	import (
//		"io"
//		"log"
//		"net/http"
//
//		"github.com/alexedwards/scs/v2"
//		"github.com/tombstore/tombstore"
//		"github.com/tombstore/tombstore/scsstore"
//	)
//
//	func main() {
//		store, err := tombstore.Open("redis://127.0.0.1:6379") // instead of a Redis client
//		if err != nil {
//			log.Fatal(err)
//		}
//		sm := scs.New()
//		loadAndSave := scsstore.Install(sm, store) // instead of sm.Store = …
//		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
//			io.WriteString(w, "Hello, "+sm.GetString(r.Context(), "user"))
//		})
//		handler := loadAndSave(http.DefaultServeMux) // instead of sm.LoadAndSave(…)
//		log.Fatal(http.ListenAndServe("127.0.0.1:8080", handler))
//	}
//
// When a session is ended while a request holds it, by a logout, a renewal or a revocation, that
// request saves nothing any more, neither under the old token nor under one that it renews it to.
// Its response goes out as the handler wrote it, without a session cookie. adapter.WithOnRefused
// reports it.
//
// A session that RenewToken gives another token is still the same session: a logout with the old
// token ends it, whenever it comes, and what tombstore.WithAbsoluteTimeout leaves of its time stays
// the same. sm.Destroy ends the session at once, whatever the handler and its client do afterwards.
// What is put after that is a new session, for a message to show.
//
// sm.MergeSession fails if the other session is ended between the moments when it is read and
// ended. Then the request saves nothing any more, and keeps the session that it came with.
//
// # However the request ends
//
// A save or an end is carried out when the client has gone away, or the time of http.TimeoutHandler
// is up. Only RenewToken fails then, since nobody would get the new token, and the request saves
// nothing after that. Nor does it if the client goes away after RenewToken, before the session is
// saved. So of two logins by a double click the second goes on when the browser has broken off the
// first, unless it is answered before that is noticed: then its user has to log in again.
//
// When scs comes to save the session of such a login that was broken off, ErrorFunc gets the error
// "no new id for a request that is over", which wraps context.Canceled or context.DeadlineExceeded.
// It is no fault of the server, and worth no alert.
//
// Put http.TimeoutHandler around the middleware. Inside of it, scs saves when the time is up, and
// what the handler changes later is not saved unless it calls sm.Commit.
//
// scs saves before the first byte of a response, or when the handler takes over the connection
// (http.Hijacker). A handler that does so sends no cookie of scs. What it changes later is saved
// when it returns. Informational responses (1xx) are not the first byte.
//
// # Requests that change nothing
//
// With an IdleTimeout scs saves every session that it has loaded. If a request has changed nothing,
// and its session has used up less than a tenth of the idle timeout, nothing is sent to the server,
// and the response has no session cookie: nobody has asked whether the session was ended or renewed
// meanwhile, and the cookie would take the place of the one that a login has set.
// adapter.WithOnRefused does not report such a request. From the tenth on, session and cookie are
// refreshed together. So a test that looks for a cookie must change something, and a cookie that
// persists may expire a tenth early, as the session may. adapter.WithTouchThreshold sets the part.
// sm.Commit asks the server every time.
//
// # Hooks
//
// The functions of adapter.WithOnRefused and adapter.WithOnUnacknowledged run in the goroutine of
// the request before the first byte of its response, or else at its end, and may read the session.
// What goes on in a goroutine of the program after that calls them in one of their own. Outside of
// HTTP requests they run while scs has the session locked, and must not use it.
//
// With tombstore.WithReplicaAcks, a login that replicas do not confirm in time is served, with its
// cookie, since scs would otherwise lose the session: only adapter.WithOnUnacknowledged reports it.
// sm.Destroy returns tombstore.ErrUnacknowledged.
//
// # Logging a user out everywhere
//
// Login instead of sm.RenewToken says whose session it is. Then LogoutEverywhere ends all others of
// the user's, also those that are about to begin, and store.Sessions lists them, for a page of
// devices:
//
//	login, err := store.BeginLogin(ctx, user)          // before the password is looked at
//	err = scsstore.Login(ctx, sm, login)               // when it was right
//	n, err := scsstore.LogoutEverywhere(ctx, sm, user) // when it is changed
//
// # Going through all sessions
//
// All sessions can be iterated over, to end those of a user that were begun otherwise: sm.Iterate
// with sm.Destroy. That takes time in proportion to all sessions, and misses logins that are under
// way. The store does not know their tokens, so sm.Token returns handles there that are good for
// sm.Destroy only, except for the session of the request itself.
//
// A session that this version of the program cannot decode, and one that is between two tokens at
// that moment, is there too, without values (sm.Keys is empty): whoever must miss none of a user's
// sessions destroys these as well, which may log out somebody else. An anonymous session may have
// no values either.
//
// HashTokenInStore is of no use, since the store keeps digests anyway, and makes each sm.Destroy
// within sm.Iterate walk through all sessions.
//
// # Limits
//
// A handler that must know whether its change was saved calls sm.Commit, and may get an
// adapter.ErrRefused, or with adapter.WithLostUpdates a tombstore.ErrConflict. An ErrConflict that
// it does not ask for goes to ErrorFunc, as all failures do that are not refusals, and scs then
// sends the handler's response after what ErrorFunc wrote.
//
// A logout that fails because the server is away takes sm.Destroy up to twice
// tombstore.WithTimeout, since an end whose outcome is unknown is tried once more. If scs then
// saves, as it always does with an IdleTimeout, and else if the handler has changed the session,
// ErrorFunc gets the same error again. What it writes, 500 by default, comes before what the
// handler writes: let it answer 503.
//
// In an HTTP request the manager works only within the middleware of Install or Protect: without it
// every request that has a session or begins one fails, with a reason that goes to ErrorFunc.
//
// A store of the program that wraps this one must pass on the context, and call this one in the
// goroutine in which scs has called it: whether a session is deleted to log out or to be renewed is
// known by the caller. Otherwise requests fail as well.
//
// scs does not tell its store that a request without a session renews its token, so
// adapter.WithLateRequests takes a late login by RenewToken for any other late request and refuses
// it.
package scsstore
