package tombstore

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where a document gives a number that the code holds, it is that of the code.
func TestDocuments_GiveTheNumbersOfTheCode(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for what, want := range map[string]int{"groups": epochGroups, "hops": maxHops} {
		number := regexp.MustCompile(`\b([0-9][0-9,]*)\s+` + what + `\b`)
		for _, path := range append(paths, "README.md") {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, found := range number.FindAllStringSubmatch(string(text), -1) {
				got, err := strconv.Atoi(strings.ReplaceAll(found[1], ",", ""))
				require.NoError(t, err)
				require.Equal(t, want, got, "%s: %s", path, found[0])
			}
		}
	}
}

// docs/standards.md goes through all of ASVS V7, once each, and what it says that there is, is there.
func TestStandards_NameWhatThereIs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/standards.md")
	require.NoError(t, err)
	var got []string
	for _, row := range regexp.MustCompile(`(?m)^\| (7\.\d\.\d) \|`).FindAllStringSubmatch(string(text), -1) {
		got = append(got, row[1])
	}
	var want []string
	for section, last := range []int{3, 4, 2, 5, 3, 2} {
		for i := range last {
			want = append(want, fmt.Sprintf("7.%d.%d", section+1, i+1))
		}
	}
	require.Equal(t, want, got)

	var sources strings.Builder
	paths, err := filepath.Glob("*.go")
	require.NoError(t, err)
	more, err := filepath.Glob("*store/login.go")
	require.NoError(t, err)
	for _, path := range append(paths, more...) {
		source, err := os.ReadFile(path)
		require.NoError(t, err)
		sources.Write(source)
	}
	others := []string{"HttpOnly", "KeyGenerator", "MaxAge", "RenewToken", "SameSite", "Save"} // of session libraries
	named := regexp.MustCompile("`([A-Z][a-z]\\w+)`|\\[(Example\\w*)\\]").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(named), 50)
	declared := map[string]bool{}
	for _, name := range regexp.MustCompile(`(?m)^(?:func (?:\(\w+ \*?\w+\) )?|type |\t)(\w+)`).FindAllStringSubmatch(sources.String(), -1) {
		declared[name[1]] = true
	}
	for _, name := range named {
		if !slices.Contains(others, name[1]) {
			require.True(t, declared[name[1]+name[2]], name[0])
		}
	}
}
