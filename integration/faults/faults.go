// Package faults holds what the fault tests share: how long they run, and the rows of the table
// that they fill.
package faults

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Kind says what a row is held to.
type Kind string

const (
	Promised   Kind = "promised"   // there must be no violation
	Unpromised Kind = "unpromised" // violations are counted and published
	Seeded     Kind = "seeded"     // a bug was put in; there must be violations
)

// Row is one line of the table of docs/faults.md.
type Row struct {
	Kind       Kind
	Fault      string // what was broken, or which bug was put in
	Injected   int64  // how often
	Checked    int64  // operations, or sessions, that were checked
	Violations int64
	Release    string // filled in by Report
}

// check counts one thing that was checked.
func (r *Row) check(wrong bool) {
	if r.Checked++; wrong {
		r.Violations++
	}
}

// Duration returns how long a test breaks things: FAULTS_DURATION, or a short time that suits every
// run of the tests.
func Duration(t testing.TB, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("FAULTS_DURATION")
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

// Count returns how often a test does what it counts: FAULTS_COUNT, or a number that suits every
// run of the tests.
func Count(t testing.TB, short int) int {
	t.Helper()
	text := os.Getenv("FAULTS_COUNT")
	if text == "" {
		return short
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

// Repeat calls round for factor times as long as FAULTS_DURATION says, and least times at least.
func Repeat(t testing.TB, least, factor int, round func()) {
	t.Helper()
	until := time.Now().Add(time.Duration(factor) * Duration(t, 0))
	for n := 0; n < least || time.Now().Before(until); n++ {
		round()
	}
}

// Long is for tests that start many servers, or take long. Under -short they are skipped.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
}

// SkipShort skips a bug that was put in, under -short.
func SkipShort(t testing.TB, k Kind) {
	t.Helper()
	if k == Seeded {
		Long(t)
	}
}

// Report checks the row against its kind, and appends it to the file that FAULTS_REPORT names, if
// it is set.
func Report(t testing.TB, r Row) {
	t.Helper()
	t.Logf("%s: %s: injected %d, checked %d, violations %d", r.Kind, r.Fault, r.Injected, r.Checked, r.Violations)
	require.Positive(t, r.Injected, "%s: nothing was injected", r.Fault)
	require.Positive(t, r.Checked, "%s: nothing was checked", r.Fault)
	switch r.Kind {
	case Promised:
		require.Zero(t, r.Violations, r.Fault)
	case Seeded:
		require.Positive(t, r.Violations, "%s: the check does not find the bug", r.Fault)
	}
	path := os.Getenv("FAULTS_REPORT")
	if path == "" {
		return
	}
	r.Release = os.Getenv("FAULTS_RELEASE")
	line, err := json.Marshal(r)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = f.Write(append(line, '\n')) // one write: several packages append at once
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
