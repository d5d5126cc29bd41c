package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// States of a session. An owner is live or ended if the server knows it; a list of an owner's
// sessions does not tell ended and absent apart.
const (
	live    = "live"
	pending = "pending" // between two ids
	ended   = "ended"
	absent  = "absent"
	foreign = "foreign"
)

// report is what a command says of a session or an owner: a line of text, or of JSON. It names
// neither an id nor an owner.
type report struct {
	Input     string    `json:"input,omitempty"` // where something is that is neither
	Ref       string    `json:"ref,omitempty"`
	Owner     string    `json:"owner,omitempty"` // digest
	Also      []string  `json:"also,omitempty"`  // further owners
	State     string    `json:"state,omitempty"` // as it was found
	Label     string    `json:"label,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // of a tombstone, too
	Deadline  time.Time `json:"deadline,omitzero"`
	Reason    string    `json:"reason,omitempty"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	MovedTo   string    `json:"moved_to,omitempty"` // a ref
	Renewing  bool      `json:"renewing,omitempty"`
	Ended     *int      `json:"ended,omitempty"` // live sessions that the command has ended
	Error     string    `json:"error,omitempty"`

	text string // all that in words
}

// report returns what can be said of a target before it was looked at.
func (t *target) report() report {
	switch {
	case t.err != nil:
		return report{Input: t.place, Error: t.err.Error()}
	case t.owner != "":
		return report{Owner: t.ref}
	}
	return report{Ref: t.ref}
}

// owned notes an owner of a session.
func (r *report) owned(digest string) {
	if r.Owner == "" {
		r.Owner = digest
		return
	}
	r.Also = append(r.Also, digest)
}

// sayLive puts what is known of a live session into words.
func (r *report) sayLive(expiry string) {
	r.State, r.text = live, "live, created at "+stamp(r.CreatedAt)
	if expiry != "" {
		r.text += ", " + expiry
	}
	if !r.Deadline.IsZero() {
		r.text += ", deadline " + stamp(r.Deadline)
	}
	if r.Owner != "" {
		r.text += ", owner " + strings.Join(append([]string{r.Owner}, r.Also...), " ")
	}
	if r.Label != "" {
		r.text += ", label " + strconv.QuoteToASCII(r.Label) // it may come from a browser
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// printer prints reports.
type printer struct {
	asJSON         bool
	stdout, stderr io.Writer
	failed         bool // there was an error
}

func (p *printer) print(r report) {
	p.failed = p.failed || r.Error != ""
	if p.asJSON {
		if err := json.NewEncoder(p.stdout).Encode(r); err != nil {
			fmt.Fprintln(p.stderr, "tombstore:", err)
			p.failed = true
		}
		return
	}
	out, text := p.stdout, r.text
	if r.Error != "" {
		out, text = p.stderr, strings.TrimPrefix(r.text+": "+r.Error, ": ")
	}
	name := r.Input + r.Ref
	if name == "" && r.Owner != "" {
		name = "owner " + r.Owner
	}
	fmt.Fprintln(out, strings.TrimSpace(name+"  "+text))
}

// remark prints what is for people only.
func (p *printer) remark(text string) {
	if !p.asJSON {
		fmt.Fprintln(p.stdout, text)
	}
}

// err returns errReported if a report has an error.
func (p *printer) err() error {
	if p.failed {
		return errReported
	}
	return nil
}
