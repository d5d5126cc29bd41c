package tombstore

import (
	"fmt"
	"io/fs"
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

// Links between the documents lead to a file that is there, and to a heading in it.
func TestDocuments_Links(t *testing.T) {
	t.Parallel()
	links := 0
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != ".":
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(link[1], "://") || strings.HasPrefix(link[1], "mailto:") {
				continue
			}
			file, heading, _ := strings.Cut(link[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			_, err := os.Stat(target)
			require.NoError(t, err, "%s: %s", path, link[1])
			if heading != "" {
				require.Contains(t, anchors(t, target), heading, "%s: %s", path, link[1])
			}
			links++
		}
		return nil
	}))
	require.Greater(t, links, 100)
}

// anchors returns the names by which the headings of a document can be linked.
func anchors(t *testing.T, path string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		name := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// docs/standards.md goes through all of ASVS V7, once each, and what it says that there is, is
// there.
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
