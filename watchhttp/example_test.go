package watchhttp_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/watchhttp"
)

// Server-sent events, which end with the session.
func ExampleHandler() {
	store, err := tombstore.NewMemory() // on a server: tombstore.Open, with tombstore.WithPublish
	if err != nil {
		log.Fatal(err)
	}
	news := make(chan string)
	events := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			if err := http.NewResponseController(w).Flush(); err != nil { // the headers first of all
				return
			}
			select {
			case text := <-news:
				fmt.Fprintf(w, "data: %s\n\n", text)
			case <-r.Context().Done(): // the session has ended, or the browser has gone
				if tombstore.NoSession(context.Cause(r.Context())) {
					fmt.Fprint(w, "event: end\ndata: you are logged out\n\n")
				}
				return
			}
		}
	})
	id := func(r *http.Request) string { // with a session library: its session's
		cookie, err := r.Cookie("session")
		if err != nil {
			return ""
		}
		return cookie.Value
	}
	server := httptest.NewServer(watchhttp.Handler(store, id, events))
	defer server.Close()

	ctx, alice := context.Background(), tombstore.NewID()
	if _, err := store.Write(ctx, alice, nil, time.Hour); err != nil {
		log.Fatal(err)
	}
	connect := func() *http.Response {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		if err != nil {
			log.Fatal(err)
		}
		r.AddCookie(&http.Cookie{Name: "session", Value: alice})
		res, err := server.Client().Do(r)
		if err != nil {
			log.Fatal(err)
		}
		return res
	}
	stream := connect()
	defer stream.Body.Close()
	news <- "hello"
	if err := store.Invalidate(ctx, alice); err != nil { // a logout in another tab
		log.Fatal(err)
	}
	text, err := io.ReadAll(stream.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(text))

	again := connect() // by the browser itself, which gives up then
	defer again.Body.Close()
	fmt.Println(again.Status)
	// Output:
	// data: hello
	//
	// event: end
	// data: you are logged out
	//
	// 401 Unauthorized
}
