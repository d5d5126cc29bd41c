package main

import (
	"fmt"
	"math"
)

// figure is a number that is to stay within a bound.
type figure struct {
	name, got, wanted string
	met               bool
}

// atMost notes a figure, which is judged as it is printed.
func (b *bench) atMost(name string, got, limit float64) {
	got = math.Round(got*100) / 100
	b.figures = append(b.figures, figure{name, fmt.Sprint(got), fmt.Sprint("at most ", limit), got <= limit})
}

func (b *bench) atLeast(name string, got, limit float64) {
	got = math.Round(got*100) / 100
	b.figures = append(b.figures, figure{name, fmt.Sprint(got), fmt.Sprint("at least ", limit), got >= limit})
}

// known notes a figure without a bound.
func (b *bench) known(name string, got float64) {
	b.figures = append(b.figures, figure{name: name, got: ratio(got)})
}

// none notes a count that is to be 0.
func (b *bench) none(name string, count, of int) {
	b.figures = append(b.figures, figure{name, fmt.Sprintf("%d of %d", count, of), "0", count == 0})
}

func figures(all []figure) table {
	t := table{
		title: "Figures",
		note: "Ratios, bytes and counts, of one run. What is wanted is an aim of the project, and met says whether " +
			"this run has reached it. Where nothing is wanted, the figure is for comparison.",
		head: []string{"figure", "measured", "wanted", "met"},
	}
	for _, f := range all {
		met := "yes"
		switch {
		case f.wanted == "":
			met = ""
		case !f.met:
			met = "**no**"
		}
		t.add(f.name, f.got, f.wanted, met)
	}
	return t
}
