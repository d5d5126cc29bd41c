// Command table writes the rows that the fault tests have reported into a Markdown file, between
// two marks.
//
//	table ROWS FILE
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tombstore/tombstore/integration/faults"
)

const (
	begin = "<!-- faults: begin -->\n"
	end   = "<!-- faults: end -->\n"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: table ROWS FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(rows, file string) error {
	all, err := read(rows)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks", file)
	}
	return os.WriteFile(file, []byte(head+begin+render(all)+end+tail), 0o644)
}

func read(path string) (rows []faults.Row, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r faults.Row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func render(rows []faults.Row) string {
	var all []string
	for _, r := range rows {
		if r.Release != "" && !slices.Contains(all, r.Release) {
			all = append(all, r.Release)
		}
	}
	slices.Sort(all)
	var b strings.Builder
	fmt.Fprintf(&b, "\nReleases: %s. A row that names none is of all of them.\n", strings.Join(all, ", "))
	for _, part := range []struct {
		kind  faults.Kind
		title string
	}{
		{faults.Promised, "Promised: a violation fails the run."},
		{faults.Unpromised, "Not promised: what is lost without the setting or the condition that closes it."},
		{faults.Seeded, "Seeded: a bug put in on purpose, or a guard taken out. The run fails if it is not found."},
	} {
		merged, order := map[string]faults.Row{}, []string(nil)
		releases := map[string][]string{}
		for _, r := range rows {
			if r.Kind != part.kind {
				continue
			}
			m, seen := merged[r.Fault]
			if !seen {
				order = append(order, r.Fault)
			}
			m.Injected += r.Injected
			m.Checked += r.Checked
			m.Violations += r.Violations
			merged[r.Fault] = m
			if r.Release != "" && !slices.Contains(releases[r.Fault], r.Release) {
				releases[r.Fault] = append(releases[r.Fault], r.Release)
			}
		}
		slices.Sort(order)
		fmt.Fprintf(&b, "\n%s\n\n| fault | injected | checked | violations |\n|---|--:|--:|--:|\n", part.title)
		for _, fault := range order {
			m, name := merged[fault], fault
			if on := releases[fault]; len(on) < len(all) {
				slices.Sort(on)
				name += " (" + strings.Join(on, ", ") + ")"
			}
			fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", name, m.Injected, m.Checked, m.Violations)
		}
	}
	b.WriteString("\n")
	return b.String()
}
