package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// bar is a bar of the plot, in a group.
type bar struct {
	name  string
	value float64
	group string
}

// plot draws bars on a logarithmic scale, for values differ by orders of magnitude.
func plot(bars []bar) string {
	const left, width, line = 230, 420, 22
	low, high := 0.1, 1.0
	for _, b := range bars {
		high = max(high, b.value)
		low = min(low, b.value)
	}
	x := func(v float64) float64 {
		return left + width*(math.Log(v)-math.Log(low))/(math.Log(high)-math.Log(low))
	}
	var s strings.Builder
	y, group := 10, ""
	for _, b := range bars {
		if b.group != group {
			group = b.group
			y += 16
			fmt.Fprintf(&s, "<text x=\"10\" y=\"%d\" font-weight=\"bold\">%s</text>\n", y+15, html.EscapeString(group))
			y += line
		}
		from, to := x(min(1, b.value)), x(max(1, b.value))
		colour := "#8a8f98"
		if strings.Contains(b.name, "Read") || strings.HasPrefix(b.name, "Write") || b.name == invalidate {
			colour = "#1f6feb"
		}
		fmt.Fprintf(&s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", left-8, y+15, html.EscapeString(b.name))
		fmt.Fprintf(&s, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"14\" fill=\"%s\"/>\n", from, y+4, max(1, to-from), colour)
		fmt.Fprintf(&s, "<text x=\"%.1f\" y=\"%d\">%.2f</text>\n", to+6, y+15, b.value)
		y += line
	}
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s</svg>\n", left+width+60, y+16, s.String())
}
