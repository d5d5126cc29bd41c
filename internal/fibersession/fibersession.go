// Package fibersession is what the adapters to the sessions of fiber v2 and v3 have in common. It
// imports neither of them, nor fasthttp, of which each has a version of its own.
package fibersession

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/cookieage"
)

// Exchange is a request and its response, with the headers and cookies of both. A cookie of the
// response is the whole of its Set-Cookie header.
type Exchange struct {
	Headers, Cookies       iter.Seq2[[]byte, []byte] // of the request
	SetHeaders, SetCookies iter.Seq2[[]byte, []byte] // of the response
	Response               Response
}

// Response changes the header of a response, as fasthttp's does.
type Response interface {
	Add(name, value string)
	Del(name string)
	DelAllCookies()
}

// Came returns the cookies and headers of the request that hold id.
func (x Exchange) Came(id string) []string {
	return places(x.Headers, x.Cookies, id, func(cookie []byte) string { return string(cookie) })
}

// Sent returns the cookies and headers of the response that hold id.
func (x Exchange) Sent(id string) []string {
	return places(x.SetHeaders, x.SetCookies, id, cookieValue)
}

func places(
	headers, cookies iter.Seq2[[]byte, []byte], id string, value func(cookie []byte) string,
) (places []string) {
	for name, header := range headers {
		if string(header) == id {
			places = append(places, "header "+strings.ToLower(string(name)))
		}
	}
	for name, cookie := range cookies {
		if value(cookie) == id {
			places = append(places, "cookie "+string(name))
		}
	}
	return places
}

// cookieValue returns the value of a Set-Cookie header.
func cookieValue(cookie []byte) string {
	pair, _, _ := strings.Cut(string(cookie), ";")
	_, value, _ := strings.Cut(pair, "=")
	return value
}

// handsOut reports whether the response has id elsewhere than the request, which is where fiber
// puts that of a session which it has loaded: then the program has put it there.
func (x Exchange) handsOut(id string) bool {
	came := x.Came(id)
	return slices.ContainsFunc(x.Sent(id), func(p string) bool { return !slices.Contains(came, p) })
}

// Withdraw takes every cookie and header with the value id out of the response.
func (x Exchange) Withdraw(id string) {
	var names, cookies []string
	for name, value := range x.SetHeaders {
		if string(value) == id {
			names = append(names, string(name))
		}
	}
	for _, cookie := range x.SetCookies {
		if cookieValue(cookie) != id {
			cookies = append(cookies, string(cookie))
		}
	}
	for _, name := range names {
		x.Response.Del(name)
	}
	x.Response.DelAllCookies() // by name would take those of other paths too
	for _, cookie := range cookies {
		x.Response.Add("Set-Cookie", cookie)
	}
}

// Save saves a session whose cookie fiber has set already. If there was nothing to save, or if it was
// not saved, the cookie is taken out of the response. A refusal is not an error, which would be a
// 500. saved reports whether the session is live now.
func (x Exchange) Save(
	ctx context.Context, a *adapter.Adapter, r *adapter.Request, id string, data []byte, ttl time.Duration,
) (saved bool, err error) {
	due, err := a.SaveIfDue(ctx, r, id, data, ttl)
	switch {
	case due:
	case x.handsOut(id):
		err = a.Save(ctx, r, id, data, ttl)
	default:
		x.Withdraw(id)
	}
	if err = Acknowledged(err); err == nil {
		x.age(id, r.CookieAge())
		return true, nil
	}
	x.Withdraw(id)
	if errors.Is(err, adapter.ErrRefused) {
		err = nil
	}
	return false, err
}

// age gives the cookie of a session the age of one with an idle timeout of its own; 0 is none.
func (x Exchange) age(id string, age time.Duration) {
	if age == 0 {
		return
	}
	var cookies []string
	for _, cookie := range x.SetCookies {
		line := string(cookie)
		if cookieValue(cookie) == id {
			line = cookieage.Set(line, age)
		}
		cookies = append(cookies, line)
	}
	x.Response.DelAllCookies()
	for _, cookie := range cookies {
		x.Response.Add("Set-Cookie", cookie)
	}
}

// Acknowledged drops the error that a renewal was not confirmed by enough replicas: the user would
// lose the session that was stored.
func Acknowledged(err error) error {
	if errors.Is(err, tombstore.ErrUnacknowledged) {
		return nil
	}
	return err
}

// EndAll ends all live sessions of the store with the reason Revoked, one by one.
func EndAll(ctx context.Context, store tombstore.Renewer) error {
	lister, ok := store.(tombstore.Lister)
	if !ok {
		return fmt.Errorf("tombstore: reset: a %T is not a tombstore.Lister", store)
	}
	var unacknowledged error
	for entry, err := range lister.List(ctx) {
		if errors.Is(err, tombstore.ErrCorrupt) { // no session
			continue
		}
		if err == nil {
			err = lister.InvalidateRef(ctx, entry.Ref, tombstore.WithReason(tombstore.Revoked))
		}
		if errors.Is(err, tombstore.ErrUnacknowledged) { // it was ended, and so must be the others
			unacknowledged, err = err, nil
		}
		if err != nil {
			return err
		}
	}
	return unacknowledged
}
