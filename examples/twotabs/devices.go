package main

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/adapter"
	"github.com/tombstore/tombstore/scsstore"
)

const maxDevices = 2 // on which a user may be logged in

var devicePage = template.Must(template.ParseFS(files, "page/device.html"))

// device is a web application that shows its users on which devices they are logged in, and lets them
// log out there. A program has one session manager for all devices, since each has a browser of its
// own. Here they are frames of one page, so each has a manager, whose cookie goes to its path alone.
type device struct {
	name, path string
	store      *tombstore.RedisStore
	sessions   *scs.SessionManager
}

// mountDevices serves the same devices twice, which differ in what a login too many does.
func mountDevices(mux *http.ServeMux, client rueidis.Client, prefix string) error {
	for full, whenFull := range map[string]tombstore.WhenFull{
		"refuse": tombstore.Refuse, "evict": tombstore.EvictOldest,
	} {
		store, err := tombstore.New(client,
			tombstore.WithKeyPrefix(prefix+full+":"),
			tombstore.WithMaxSessions(maxDevices, whenFull),
			tombstore.WithPublish(), // or events would tell up to a minute later
		)
		if err != nil {
			return err
		}
		for _, name := range []string{"phone", "laptop", "tablet"} {
			d := &device{name: name, path: "/devices/" + full + "/" + name + "/", store: store, sessions: scs.New()}
			d.sessions.Lifetime = lifetime
			d.sessions.Cookie.Name = "device"
			d.sessions.Cookie.Path = d.path
			d.sessions.Cookie.SameSite = http.SameSiteStrictMode
			d.mount(mux, scsstore.Install(d.sessions, store))
		}
	}
	return nil
}

func (d *device) mount(mux *http.ServeMux, withSession func(http.Handler) http.Handler) {
	handle := func(method, path string, handler http.HandlerFunc) {
		mux.Handle(method+" "+d.path+path, withSession(handler))
	}
	handle("GET", "{$}", d.index)
	handle("POST", "login", d.login)
	handle("POST", "logout", d.logout)
	handle("POST", "end", d.end)
	handle("POST", "others", d.endOthers)
	handle("GET", "events", d.events)
}

func (d *device) index(w http.ResponseWriter, r *http.Request) { d.show(w, r, http.StatusOK, "") }

func (d *device) login(w http.ResponseWriter, r *http.Request) {
	login, err := d.store.BeginLogin(r.Context(), "alice") // before her password is checked
	if err == nil {
		label := d.name + ", " + browserName(r.UserAgent())
		err = scsstore.Login(r.Context(), d.sessions, login, tombstore.Label(label))
	}
	switch {
	case errors.Is(err, tombstore.ErrTooManySessions):
		d.show(w, r, http.StatusForbidden, fmt.Sprintf("At most %d devices: log out on another one first.", maxDevices))
	case errors.Is(err, tombstore.ErrStaleLogin): // all were ended since BeginLogin
		d.show(w, r, http.StatusForbidden, "Log in again.")
	default:
		if err == nil {
			d.sessions.Put(r.Context(), "user", "alice")
		}
		d.done(w, r, err)
	}
}

func (d *device) logout(w http.ResponseWriter, r *http.Request) {
	d.done(w, r, d.sessions.Destroy(r.Context()))
}

// end logs the user out on another device. The owner comes from the session and not from the form, so
// the ref of somebody else's session ends nothing.
func (d *device) end(w http.ResponseWriter, r *http.Request) {
	var err error
	if user := d.sessions.GetString(r.Context(), "user"); user != "" {
		err = d.store.InvalidateOwned(r.Context(), user, r.PostFormValue("ref"))
	}
	if errors.Is(err, tombstore.ErrNotFound) { // or it is not there any more, and the list says so
		err = nil
	}
	d.done(w, r, err)
}

// endOthers logs the user out on all other devices, one that logs in at this moment included.
func (d *device) endOthers(w http.ResponseWriter, r *http.Request) {
	var err error
	if user := d.sessions.GetString(r.Context(), "user"); user != "" {
		_, err = scsstore.LogoutEverywhere(r.Context(), d.sessions, user)
	}
	d.done(w, r, err)
}

// done answers a form with a redirect to the page, because the list has this session only when this
// request has saved it. A refusal says that the session has been ended meanwhile, as the page does.
func (d *device) done(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil && !errors.Is(err, adapter.ErrRefused) {
		http.Error(w, "no session store", http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, d.path, http.StatusSeeOther)
}

func (d *device) show(w http.ResponseWriter, r *http.Request, status int, message string) {
	var sessions []tombstore.OwnedSession
	user := d.sessions.GetString(r.Context(), "user")
	if user != "" {
		var err error
		if sessions, err = d.store.Sessions(r.Context(), user); err != nil {
			http.Error(w, "no session store", http.StatusServiceUnavailable)
			return
		}
	}
	slices.SortFunc(sessions, func(a, b tombstore.OwnedSession) int { return a.CreatedAt.Compare(b.CreatedAt) })
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = devicePage.Execute(w, map[string]any{
		"Name": d.name, "User": user, "Message": message,
		"Sessions": sessions, "This": tombstore.Ref(d.sessions.Token(r.Context())),
	})
}

// events sends one event, when the session has ended, wherever that was done.
func (d *device) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	session, err := d.store.Watch(r.Context(), d.sessions.Token(r.Context()))
	if err == nil && http.NewResponseController(w).Flush() == nil {
		<-session.Done()
		err = context.Cause(session)
	}
	if tombstore.NoSession(err) || errors.Is(err, tombstore.ErrInvalidID) { // no token: it had ended before
		fmt.Fprint(w, "data: ended\n\n")
	} // else the browser asks again
}

// browserName returns the name of a browser.
func browserName(userAgent string) string {
	for _, name := range []string{"Firefox", "Chrome", "Safari"} { // Chrome says that it is Safari, too
		if strings.Contains(userAgent, name+"/") {
			return name
		}
	}
	return "another browser"
}
