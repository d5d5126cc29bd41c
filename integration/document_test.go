package integration

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the tables of docs/adapters.md")

const (
	document  = "../docs/adapters.md"
	beginning = "<!-- The tables are written by: cd integration && go test -run TestDocument -update -->\n"
	end       = "<!-- end of the tables -->"
)

// TestDocument compares the tables of the document with what happens.
func TestDocument(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: TestMatrix plays the same, and asks what must be")
	}
	t.Parallel()
	b, err := os.ReadFile(document)
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(b), beginning)
	require.True(t, found)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found)
	text := before + beginning + tables(t) + end + after
	if *update {
		require.NoError(t, os.WriteFile(document, []byte(text), 0o644))
		return
	}
	require.Equal(t, text, string(b), "run the command in the document")
}

func tables(t *testing.T) string {
	var out strings.Builder
	for _, ending := range endings {
		fmt.Fprintf(&out, "\nA: %s.\n\n| B |", ending)
		for _, s := range setups {
			fmt.Fprintf(&out, " %s: %s | with tombstore |", s.name, s.backend)
		}
		out.WriteString("\n|---|" + strings.Repeat("---|---|", len(setups)) + "\n")
		for _, request := range requests {
			fmt.Fprintf(&out, "| %s |", request)
			for _, s := range setups {
				want := s.wanted(ending, request, false)
				usual, ours := play(t, usualSite(t, s), ending, request), play(t, ourSite(t, s), ending, request)
				fmt.Fprintf(&out, " %s | %s |", verdict(want, usual), verdict(want, ours))
			}
			out.WriteString("\n")
		}
	}
	out.WriteString("\n")
	return out.String()
}

// verdict says in a few words how an outcome differs from the one wanted.
func verdict(want, got outcome) string {
	var faults []string
	fault := func(is bool, text string) {
		if is {
			faults = append(faults, text)
		}
	}
	fault(got.B != want.B, "B fails")
	fault(got.Next != want.Next && got.Next == "alice", "**logged in again**")
	fault(got.Next != want.Next && got.Next != "alice", "**login lost**")
	fault(got.Thief != want.Thief, "**old cookie works**")
	fault(want.Cookie == "new" && got.Cookie == "old", "dead id adopted")
	fault(len(faults) == 0 && got.Cookie != want.Cookie, "dead cookie set")
	fault(len(faults) == 0 && got.Live > want.Live, "old session lives on")
	if len(faults) == 0 {
		return "✓"
	}
	return strings.Join(faults, ", ")
}
