// Package scsstore keeps the sessions of alexedwards/scs in a tombstore.Store, so that a session that was ended stays ended,
// in the browser too. Three lines of a program change, those with a comment:
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
//		log.Fatal(http.ListenAndServe("127.0.0.1:8080", loadAndSave(http.DefaultServeMux))) // instead of sm.LoadAndSave(…)
//	}
//
// When a session is ended while a request holds it, by a logout, a renewal or a revocation, that request saves nothing any
// more, neither under the old token nor under one that it renews it to. Its response goes out as the handler wrote it,
// without a session cookie. adapter.WithOnRefused tells of it.
//
// # Limits
//
// scs saves before the first byte of a response. A handler that must know whether its change was saved calls sm.Commit, and
// may get an adapter.ErrRefused, or with adapter.WithLostUpdates a tombstore.ErrConflict. An ErrConflict that it does not
// ask for goes to ErrorFunc, as all failures do that are not refusals, and scs then sends the handler's response after what
// ErrorFunc wrote.
//
// All sessions can be iterated over, to log out a user everywhere: sm.Iterate with sm.Destroy. The store does not know their
// tokens, so sm.Token returns handles there that are good for sm.Destroy only, except for the session of the request itself.
// HashTokenInStore is of no use, since the store keeps digests anyway, and makes each of these sm.Destroy walk through all
// sessions.
//
// scs does not tell its store that a request without a session renews its token, so adapter.WithLateRequests takes a late
// login for any other late request and refuses it.
package scsstore
