package fiberstore

import (
	"reflect"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"

	"github.com/tombstore/tombstore/adapter"
)

// request is what one HTTP request knows of its sessions: those that it came with, by the cookies
// and headers of several session stores, and those that it has looked up by id. A Storage sees only
// ids, so it has to find out under which new id a session goes on. There are two ways to get one: a
// session that was not found is replaced by a new one, whose id fiber notes in the Locals; and
// Regenerate and Reset delete the session, whose new id is first seen when it is saved, and is in
// the cookie or header then that the old one came in.
type request struct {
	c       fiber.Ctx // nil in a context of NewContext
	held    map[string]*held
	missing *held   // the last that was not found, until the id of the new one is seen
	renewed []*held // by Regenerate or Reset, until the new id is seen
}

// held is one of them.
type held struct {
	adapter.Request
	id        string   // what fiber has it under, "" if that has not been seen yet
	live      bool     // it was loaded or saved, and the request has not ended it
	destroyed bool     // by Destroy, after which fiber's middleware saves nothing
	places    []string // the cookies and headers that it came in, if it was renewed or not found
}

func (r *request) hold(id string, h *held) { r.held[id], h.id = h, id }

// find returns what is held under id, if that is known without asking.
func (r *request) find(id string) *held {
	if h := r.held[id]; h != nil || !r.made(id) {
		return h
	}
	h := r.missing
	if r.missing = nil; h == nil { // it came with no id
		h = &held{}
	}
	r.hold(id, h)
	return h
}

// made reports whether fiber has made id for a new session, other than by Regenerate or Reset.
func (r *request) made(id string) (made bool) {
	if r.c == nil {
		return false
	}
	r.c.RequestCtx().VisitUserValuesAll(func(k, v any) {
		made = made || v == id && reflect.TypeOf(k).PkgPath() == sessionPath
	})
	return made
}

var sessionPath = reflect.TypeFor[session.Session]().PkgPath()

// notFound notes that fiber makes a new session instead of the one with id.
func (r *request) notFound(id string, h *held) {
	if r.missing = nil; r.made(id) || h.live && h.Gone() == nil { // the request has left it itself
		return
	}
	h.places = requestPlaces(r.c, id)
	r.held[id], r.missing = h, h
}

// renew notes that fiber has given h a new id in place of id.
func (r *request) renew(id string, h *held) {
	if h.id = ""; len(h.places) == 0 {
		h.places = append(requestPlaces(r.c, id), responsePlaces(r.c, id)...)
	}
	r.renewed = append(r.renewed, h)
}

// savedIn returns those of the renewed sessions that may be the one whose new id is in places now.
// Among them are, beside those that came in one of places, new ones that came in none: fiber saves
// those in the place of another session store's, if the request has no id for their own.
func (r *request) savedIn(places []string) (could []*held) {
	for _, h := range r.renewed {
		if slices.ContainsFunc(places, func(p string) bool { return slices.Contains(h.places, p) }) {
			could = append(could, h)
		}
	}
	if len(could) > 0 {
		for _, h := range r.renewed {
			if !h.live && len(h.places) == 0 {
				could = append(could, h)
			}
		}
	}
	return could
}

// savedElsewhere is savedIn where none came in any of places.
func (r *request) savedElsewhere(places []string) (could []*held) {
	for _, h := range r.renewed {
		if len(h.places) == 0 {
			could = append(could, h)
		}
	}
	if len(could) == 0 && len(places) == 0 {
		return r.renewed
	}
	return could
}

// take returns the one of could, and takes it from the renewed sessions. It returns nil if there
// are several, and it matters which it is.
func (r *request) take(could []*held) *held {
	for _, h := range could {
		if h != could[0] && (h.live || could[0].live) { // else both begin anew
			return nil
		}
	}
	if len(could) == 0 {
		return nil
	}
	h := could[0]
	i := slices.Index(r.renewed, h)
	r.renewed = slices.Delete(r.renewed, i, i+1)
	return h
}

// requestPlaces returns the cookies and headers of the request that hold id.
func requestPlaces(c fiber.Ctx, id string) (places []string) {
	if c == nil {
		return nil
	}
	header := &c.Request().Header
	for name, value := range header.All() {
		if string(value) == id {
			places = append(places, "header "+strings.ToLower(string(name)))
		}
	}
	for name, value := range header.Cookies() {
		if string(value) == id {
			places = append(places, "cookie "+string(name))
		}
	}
	return places
}

// responsePlaces returns the cookies and headers of the response that hold id.
func responsePlaces(c fiber.Ctx, id string) (places []string) {
	if c == nil {
		return nil
	}
	header := &c.Response().Header
	for name, value := range header.All() {
		if string(value) == id {
			places = append(places, "header "+strings.ToLower(string(name)))
		}
	}
	for name, cookie := range header.Cookies() {
		if value(cookie) == id {
			places = append(places, "cookie "+string(name))
		}
	}
	return places
}

// handsOut reports whether the response has id elsewhere than the request, which is where fiber puts
// that of a session which it has loaded: then the program has put it there.
func (r *request) handsOut(id string) bool {
	came := requestPlaces(r.c, id)
	return slices.ContainsFunc(responsePlaces(r.c, id), func(p string) bool { return !slices.Contains(came, p) })
}

// value returns the value of a Set-Cookie header.
func value(cookie []byte) string {
	pair, _, _ := strings.Cut(string(cookie), ";")
	_, value, _ := strings.Cut(pair, "=")
	return value
}

// withdraw takes every cookie and header with the value id out of the response.
func withdraw(c fiber.Ctx, id string) {
	header := &c.Response().Header
	var names, cookies []string
	for name, value := range header.All() {
		if string(value) == id {
			names = append(names, string(name))
		}
	}
	for _, cookie := range header.Cookies() {
		if value(cookie) != id {
			cookies = append(cookies, string(cookie))
		}
	}
	for _, name := range names {
		header.Del(name)
	}
	header.DelAllCookies() // by name would take those of other paths too
	for _, cookie := range cookies {
		header.Add(fiber.HeaderSetCookie, cookie)
	}
}
