package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"time"
)

// show is a run of the demonstration.
type show struct {
	screen
	contenders []contender
	json       *json.Encoder // of verdicts, which are then all that is shown; or nil
	failed     bool          // a safe store let an ended session live again
}

// verdict is what came of the races of a store.
type verdict struct {
	Store string `json:"store"`
	Race  string `json:"race"` // steps, random or forced
	Races int    `json:"races"`
	Alive int    `json:"live_again"` // sessions
	Saves *int   `json:"late_saves,omitempty"`
	Held  bool   `json:"held"`
}

func (s *show) timelines(ctx context.Context) error {
	for _, c := range s.contenders {
		s.heading("Step by step: sessions kept with " + c.name)
		revived, err := timeline(ctx, s.screen, c.late[0])
		if err != nil {
			return fmt.Errorf("with %s: %w", c.name, err)
		}
		outcome := "alice is logged out for good; the late request kept its answer and got no cookie"
		if revived {
			outcome = "alice logged out, and cookie A logs in again, her browser and a thief alike"
		}
		fmt.Fprintln(s)
		v := verdict{Race: "steps", Races: 1}
		if revived {
			v.Alive = 1
		}
		if err := s.verdict(c, v, outcome); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) rounds(ctx context.Context, n int) error {
	s.heading("Random timing over HTTP: does cookie A work when both the request and the logout are over?")
	for _, c := range s.contenders {
		revived, err := rounds(ctx, c.late[0], n)
		if err != nil {
			return fmt.Errorf("with %s: %w", c.name, err)
		}
		if err := s.verdict(c, verdict{Race: "random", Races: n, Alive: revived}, c.count(revived, n)); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) forced(ctx context.Context, n, workers int) error {
	s.heading(fmt.Sprintf("Forced races, %d at a time: load, end by another client, save, load again", workers))
	for _, c := range s.contenders {
		n, note := n, ""
		if !c.safe && n > maxForcedPlain {
			n, note = maxForcedPlain, " (no more run)"
		}
		start := time.Now()
		revived, accepted, err := forced(ctx, c.late, c.ender, n, workers)
		if err != nil {
			return fmt.Errorf("with %s: %w", c.name, err)
		}
		rate := int(float64(n) / time.Since(start).Seconds())
		v := verdict{Race: "forced", Races: n, Alive: revived, Saves: &accepted}
		if err := s.verdict(c, v, c.count(revived, n)+note); err != nil {
			return err
		}
		fmt.Fprintf(s, "%30s%9s late saves accepted; %s races/s, %s ops/s\n",
			"", thousands(accepted), thousands(rate), thousands(opsPerRace*rate))
	}
	return nil
}

func (c contender) count(revived, n int) string {
	return fmt.Sprintf("%-15s%9s of %s sessions live again after logout", c.name, thousands(revived), thousands(n))
}

// verdict shows how c did, and keeps in mind if it had to do better.
func (s *show) verdict(c contender, v verdict, text string) error {
	v.Store = c.name
	v.Held = v.Alive == 0 && (v.Saves == nil || *v.Saves == 0)
	s.failed = s.failed || c.safe && !v.Held
	if s.json != nil {
		return s.json.Encode(v)
	}
	word := s.paint(red, "RESURRECTED")
	if v.Held {
		word = s.paint(green, "HELD       ")
	}
	fmt.Fprintf(s, "  %s  %s\n", word, text)
	return nil
}

// Colours, as the terminal's SGR parameters.
const (
	bold  = "1"
	red   = "1;31"
	green = "32"
)

// screen is where something is shown.
type screen struct {
	io.Writer
	terminal, colours bool
}

// newScreen uses colours on a terminal, unless the user wants none (https://no-color.org).
func newScreen(w io.Writer) screen {
	terminal := isTerminal(w)
	return screen{w, terminal, terminal && os.Getenv("NO_COLOR") == ""}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Control sequences of terminals: the alternate screen, the cursor, and the wrapping of long lines.
const (
	enter     = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leave     = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home      = "\x1b[H"
	eraseLine = "\x1b[K"
	eraseRest = "\x1b[J"
)

func (s screen) paint(colour, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s screen) heading(text string) { fmt.Fprintf(s, "\n%s\n\n", s.paint(bold, text)) }

// round keeps two digits behind the point.
func round(x float64) float64 { return math.Round(100*x) / 100 }

// thousands writes n with separators.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
