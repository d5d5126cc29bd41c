package fiberstore

import (
	"reflect"
	"slices"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/session"

	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/internal/fibersession"
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
	h.places = r.came(id)
	r.held[id], r.missing = h, h
}

// renew notes that fiber has given h a new id in place of id.
func (r *request) renew(id string, h *held) {
	if h.id = ""; len(h.places) == 0 {
		h.places = append(r.came(id), r.sent(id)...)
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

// came returns the cookies and headers of the request that hold id, and sent those of the response.
func (r *request) came(id string) []string {
	if r.c == nil {
		return nil
	}
	return exchange(r.c).Came(id)
}

func (r *request) sent(id string) []string {
	if r.c == nil {
		return nil
	}
	return exchange(r.c).Sent(id)
}

func exchange(c fiber.Ctx) fibersession.Exchange {
	request, response := &c.Request().Header, &c.Response().Header
	return fibersession.Exchange{
		Headers: request.All(), Cookies: request.Cookies(),
		SetHeaders: response.All(), SetCookies: response.Cookies(), Response: response,
	}
}
