package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// bar is a bar of the plot, in a group.
type bar struct {
	name  string
	value float64 // as a multiple of the usual way
	group string
}

// plotted is the shape whose throughput is in the plot.
var plotted = shape{300, 128}

const (
	throughput   = "throughput" // heads the tables of throughput
	wholeRequest = "A whole request"
)

// barsOf returns what the plot shows of some tables.
func barsOf(tables []table) (bars []bar) {
	for _, t := range tables {
		switch column := slices.Index(t.head, plotted.String()); {
		case t.head[0] == throughput && column > 0:
			for _, row := range t.rows {
				bars = appendBar(bars, row[0], row[column], t.title+" (throughput, "+plotted.String()+")")
			}
		case t.title == wholeRequest:
			last := len(t.head) - 1 // processor time
			for _, row := range t.rows {
				if strings.HasPrefix(row[2], "tombstore") || row[2] == plainCommands {
					bars = appendBar(bars, row[0]+", "+row[1]+": "+row[2], row[last],
						"A whole request: how much less processor time it takes than on the usual backend")
				}
			}
		}
	}
	return bars
}

func appendBar(bars []bar, name, value, group string) []bar {
	x, err := strconv.ParseFloat(value, 64)
	if err != nil || x <= 0 {
		return bars
	}
	return append(bars, bar{name, x, group})
}

// isOurs reports whether a bar is of this store.
func isOurs(b bar) bool {
	return strings.Contains(b.name, "Read") || strings.HasPrefix(b.name, "Write") || b.name == invalidate ||
		strings.Contains(b.name, "tombstore")
}

// tablesIn reads the tables of a document.
func tablesIn(text string) (tables []table) {
	for section := range strings.SplitSeq(text, "\n### ") {
		title, rest, _ := strings.Cut(section, "\n")
		t := table{title: title}
		for line := range strings.Lines(rest) {
			cells := strings.Split(strings.Trim(line, "|\n "), " | ")
			switch {
			case !strings.HasPrefix(line, "|"), strings.HasPrefix(line, "|---"):
			case t.head == nil:
				t.head = cells
			case len(cells) == len(t.head):
				t.add(cells...)
			}
		}
		if t.head != nil {
			tables = append(tables, t)
		}
	}
	return tables
}

// draw draws performance.svg from the tables of performance.md, which is in the same folder.
func draw(folder string) error {
	text, err := os.ReadFile(filepath.Join(folder, "performance.md"))
	if err != nil {
		return err
	}
	bars := barsOf(tablesIn(string(text)))
	if len(bars) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(folder, "performance.svg"), []byte(plot(bars)), 0o644)
}

// plot draws bars that begin at 1, the usual way: to the right what is faster, to the left what is
// slower. Their values differ by orders of magnitude, so the scale is logarithmic, and says so. A
// value of 1 has a bar of the width of its line.
func plot(bars []bar) string {
	const left, width, line, top, ours, others = 300, 430, 22, 70, "#1f6feb", "#8a8f98"
	const bold, toTheLeft, centred = ` font-weight="bold"`, ` text-anchor="end"`, ` text-anchor="middle"`
	low, high := 0.5, 2.0 // powers of two, with room for the values beside the bars
	for _, b := range bars {
		for low > b.value {
			low /= 2
		}
		for high < b.value*1.2 {
			high *= 2
		}
	}
	x := func(v float64) float64 { return left + width*math.Log(v/low)/math.Log(high/low) }
	text := func(s *strings.Builder, x float64, y int, attributes, text string) {
		fmt.Fprintf(s, "<text x=\"%.1f\" y=\"%d\"%s>%s</text>\n", x, y, attributes, html.EscapeString(text))
	}

	var rows strings.Builder
	y, group := top, ""
	for _, b := range bars {
		if b.group != group {
			group = b.group
			text(&rows, 10, y+27, bold, group)
			y += 12 + line
		}
		from, to := x(min(1, b.value)), x(max(1, b.value))
		colour := others
		if isOurs(b) {
			colour = ours
		}
		text(&rows, left-8, y+15, toTheLeft, b.name)
		fmt.Fprintf(&rows, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"14\" fill=\"%s\"/>\n",
			from, y+4, max(2, to-from), colour)
		text(&rows, to+6, y+15, "", fmt.Sprintf("%.2f", b.value))
		y += line
	}

	var scale strings.Builder
	text(&scale, 10, 22, bold, "As a multiple of the usual way. The scale is logarithmic: each line is twice the one before.")
	for i, name := range []string{"tombstore", "others"} {
		fmt.Fprintf(&scale, "<rect x=\"%d\" y=\"34\" width=\"14\" height=\"14\" fill=\"%s\"/>\n",
			10+100*i, []string{ours, others}[i])
		text(&scale, float64(30+100*i), 45, "", name)
	}
	text(&scale, x(1)-8, 45, toTheLeft, "← slower")
	text(&scale, x(1)+8, 45, "", "faster →")
	for tick := low; tick <= high; tick *= 2 {
		colour := "#d0d7de"
		if tick == 1 {
			colour = "#24292f"
		}
		fmt.Fprintf(&scale, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"%s\"/>\n",
			x(tick), top, x(tick), y+6, colour)
		text(&scale, x(tick), top-6, centred, strconv.FormatFloat(tick, 'f', -1, 64))
	}
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s%s</svg>\n", left+width+60, y+16, scale.String(), rows.String())
}
