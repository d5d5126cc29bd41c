package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/tombstore/tombstore"
)

// timeline plays the race over HTTP, step by step and always in the same order. It reports whether
// the session was live after the logout.
func timeline(ctx context.Context, out screen, s sessions) (revived bool, err error) {
	loaded, goOn := make(chan struct{}), make(chan struct{})
	a := serve(s, func(ctx context.Context) {
		close(loaded)
		select {
		case <-goOn:
		case <-ctx.Done():
		}
	})
	defer a.Close()
	alice := a.browser("")
	id, ended := "", false

	const row = "  %-6s %-36s %-19s %s  %s\n"
	fmt.Fprintf(out, row, "who", "request", "answer", "Redis holds  ", "alice's cookie")
	// step prints a request and what came of it, unless something has failed.
	step := func(who, request string, r reply) {
		if err = errors.Join(err, r.err); err != nil {
			return
		}
		answer := "-"
		if r.status != 0 {
			answer = fmt.Sprintf("%d %s", r.status, r.body)
		}
		_, loadErr := s.load(ctx, id)
		if loadErr != nil && !tombstore.NoSession(loadErr) {
			err = loadErr
			return
		}
		revived = revived || ended && loadErr == nil
		cookie := map[string]string{"": "none", id: "A"}[alice.cookie()]
		fmt.Fprintf(out, row, who, request, answer, out.state(loadErr, ended), cookie)
	}

	r := alice.send(ctx, "POST", "/login")
	id = alice.cookie()
	step("tab 1", "POST /login", r)

	cart := make(chan reply, 1)
	go func() { cart <- alice.send(ctx, "POST", "/cart") }()
	select {
	case <-loaded:
	case r = <-cart:
		return false, errors.Join(err, r.err, errors.New("POST /cart found no session"))
	}
	step("tab 2", "POST /cart loads the session ...", reply{})

	r, ended = alice.send(ctx, "POST", "/logout"), true
	step("tab 1", "POST /logout", r)

	close(goOn)
	step("tab 2", "... POST /cart saves the session", <-cart)

	step("tab 1", "GET /whoami", alice.send(ctx, "GET", "/whoami"))

	r = a.browser(id).send(ctx, "GET", "/whoami")
	revived = revived || r.status == http.StatusOK
	step("thief", "GET /whoami with a copy of cookie A", r)
	return revived, err
}

// state says what a key holds, given the error of loading its session.
func (s screen) state(err error, ended bool) string {
	switch {
	case err == nil && ended:
		return s.paint(red, "LIVE AGAIN   ")
	case err == nil:
		return "live session "
	case errors.Is(err, tombstore.ErrInvalidated):
		return s.paint(green, "tombstone    ")
	}
	return "nothing      "
}
