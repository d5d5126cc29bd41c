package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// moment is where the renewal B stands when the logout A, of the same session, is answered.
type moment struct {
	first bool   // A loads the session before B does, and not at that moment
	point string // where B stands; "" if it has been answered, or random
}

func moments() (all []moment) {
	for _, point := range []string{loaded, acted, writing, answering, ""} {
		all = append(all, moment{true, point}, moment{false, point})
	}
	return append(all, moment{point: random})
}

func (m moment) String() string {
	if m.point == random {
		return random
	}
	begins := "then"
	if m.first {
		begins = "before B"
	}
	return "A begins " + begins + ", B " + map[string]string{
		loaded: "has loaded", begun: "has begun to log in", acted: "is between its halves", writing: "is about to write", answering: "has renewed", "": "is answered",
	}[m.point]
}

// race lets B renew the session that A logs out of, and returns the cookies that any answer has
// set.
func (m moment) race(t testing.TB, s *site, l logout) (cookies []string) {
	alice := &browser{TB: t, site: s}
	alice.do("login")
	require.NotEmpty(t, alice.cookie)
	cookies = []string{alice.cookie}
	a, b := alice.prepare(l.action, alice.cookie), alice.prepare("renew", alice.cookie)

	if m.point == random {
		atOnce((*request).hurry, a, b)
	} else {
		if m.first {
			require.True(t, a.to(loaded))
		}
		require.Equal(t, m.point != "", b.to(m.point))
		if l.leaves {
			require.True(t, a.stands || a.to(loaded))
			a.abandon()
		} else {
			a.finish()
		}
		b.finish()
	}

	require.NoError(t, b.failure)
	require.Equal(t, "200 renewed", fmt.Sprint(b.answer.status, " ", b.answer.body))
	if l.aborts || l.leaves {
		require.Error(t, a.failure)
	} else {
		require.NoError(t, a.failure)
		require.Equal(t, 200, a.answer.status)
		require.Contains(t, a.answer.body, "bye")
	}
	for _, answer := range []answer{a.answer, b.answer} {
		if answer.cookie != nil && answer.cookie.MaxAge >= 0 {
			cookies = append(cookies, answer.cookie.Value)
		}
	}
	return cookies
}

// count plays a moment n times. It returns how often a cookie opens alice's page afterwards, and
// how many sessions are stored, those of alice and others.
func (m moment) count(t testing.TB, s *site, l logout, n int) (loggedIn, alices, others int) {
	cookies := make([][]string, n)
	for i := range cookies {
		cookies[i] = m.race(t, s, l)
	}
	for _, data := range s.live() {
		if strings.Contains(data, "alice") {
			alices++
		} else {
			others++
		}
	}
	for _, round := range cookies {
		for _, cookie := range round {
			if who := (&browser{TB: t, site: s}).send("whoami", cookie, ""); who.body == "alice" {
				loggedIn++
				break
			}
		}
	}
	return loggedIn, alices, others
}

// usualFails are the frameworks whose usual backend now and then answers a request that meets a
// logout with a 500: it asks whether there is a session, and in another command for the session.
var usualFails = []string{"chi"}

// TestRenewals plays renewals against logouts. Whatever the order, nobody is logged in when the
// logout has been answered, and of the session nothing is stored. With -v it shows how often it was
// otherwise, and with the usual backends.
func TestRenewals(t *testing.T) {
	t.Parallel()
	table := newTable(t, moments())
	for _, s := range all() {
		for _, l := range s.logouts {
			for _, server := range serversFor(t, s) {
				table.row(t, s.name+": "+l.name+", "+server.name, func(t *testing.T, m moment) string {
					if m.point == acted && !s.halves || m.point == writing && (server.url == memory || !s.halves && server.name != "cluster") || m.point == random && l.leaves {
						return "-"
					}
					if testing.Short() && l.action != "logout" && rand.IntN(3) > 0 { // of the other logouts a third of the moments, drawn
						return "-"
					}
					n := rounds(t, 1)
					loggedIn, alices, others := m.count(t, ourSiteAt(t, server.url, s), l, n)
					assert.Zero(t, loggedIn, "cookies open alice's page")
					assert.Zero(t, alices, "sessions of alice are stored")
					if m.point != random && l.live >= 0 { // where B may come too late, and get a session of its own
						assert.Equal(t, n*l.live, others, "other sessions are stored")
					}
					return fmt.Sprint(loggedIn)
				})
			}
		}
		if s.usual == nil {
			continue
		}
		table.row(t, s.name+": "+s.logouts[0].name+", "+s.backend, func(t *testing.T, m moment) string {
			if m.point == acted && !s.halves || m.point == writing {
				return "-"
			}
			if m.point == random && slices.Contains(usualFails, s.name) {
				return "-"
			}
			loggedIn, _, _ := m.count(t, usualSite(t, s), s.logouts[0], rounds(t, 1))
			return fmt.Sprint(loggedIn)
		})
	}
}

// table is what a test shows with -v: rows of cells, a column for each C.
type table[C fmt.Stringer] struct {
	columns []C
	rows    []string
	cells   map[string][]string
}

func newTable[C fmt.Stringer](t *testing.T, columns []C) *table[C] {
	tb := &table[C]{columns: columns, cells: map[string][]string{}}
	t.Cleanup(func() { t.Log(tb) })
	return tb
}

// row fills a row by parallel subtests.
func (tb *table[C]) row(t *testing.T, name string, cell func(t *testing.T, c C) string) {
	cells := make([]string, len(tb.columns))
	tb.rows = append(tb.rows, name)
	tb.cells[name] = cells
	for i, c := range tb.columns {
		t.Run(name+"/"+c.String(), func(t *testing.T) {
			t.Parallel()
			cells[i] = cell(t, c)
		})
	}
}

func (tb *table[C]) String() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for i, c := range tb.columns {
		fmt.Fprintf(w, "\n%d\t%s", i+1, c)
	}
	fmt.Fprint(w, "\n\n")
	for i := range tb.columns {
		fmt.Fprintf(w, "\t%d", i+1)
	}
	for _, name := range tb.rows {
		if cells := strings.Join(tb.cells[name], "\t"); strings.TrimSpace(cells) != "" { // they were run
			fmt.Fprintf(w, "\n%s\t%s", name, cells)
		}
	}
	w.Flush()
	return out.String()
}
