package tombstore_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/storetest"
)

// texts holds the files that have been read: docs/guarantees.md names some a hundred times.
var texts sync.Map

func text(t *testing.T, file string) string {
	t.Helper()
	if s, ok := texts.Load(file); ok {
		return s.(string)
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	texts.Store(file, string(b))
	return string(b)
}

// README.md names every adapter, and otelstore, and the README of each says how it is installed.
// (Their programs are compiled in integration.)
func TestREADME_NamesAdapters(t *testing.T) {
	t.Parallel()
	modules := regexp.MustCompile(`(?m)^MODULES +:= (.*)$`).FindStringSubmatch(text(t, "Makefile"))
	require.NotNil(t, modules)
	named := 0
	for module := range strings.FieldsSeq(modules[1]) {
		if strings.Contains(module, "store") && !strings.HasPrefix(module, "cmd/") {
			require.Regexp(t, "(?m)`"+module+"`|tombstore/"+module+"$", text(t, "README.md"))
			require.Contains(t, text(t, module+"/README.md"), "\ngo get github.com/tombstore/tombstore/"+module+"\n")
			named++
		}
	}
	require.GreaterOrEqual(t, named, 8)
}

var (
	testName   = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`)
	testLink   = regexp.MustCompile(`\[((?:Test|Fuzz)\w+)\]\(\.\./([^)]+)\)`)
	ruleName   = regexp.MustCompile("`([A-Z][A-Za-z]*/[^`]+)`")
	mutantName = regexp.MustCompile(`"([^"]+)"`)
	bugName    = regexp.MustCompile(`\*([^*]+)\*`)
	mutantRule = regexp.MustCompile(`\n\t"([^"]+)":\s*\{\s*"([^"]+)"`)
)

// Every test that docs/guarantees.md names is in the file that it links. Every rule of storetest
// (in backquotes, with a slash) is there, every broken store (in double quotes) is given to a rule
// beside it, and every bug (in italics) is put in by tests of the same package.
func TestGuaranteesNameTests(t *testing.T) {
	t.Parallel()
	doc := text(t, "docs/guarantees.md")
	require.Empty(t, testName.FindAllString(testLink.ReplaceAllString(doc, ""), -1), "tests without their file")
	for _, link := range testLink.FindAllStringSubmatch(doc, -1) {
		require.Contains(t, text(t, link[2]), "\nfunc "+link[1]+"(")
	}

	rules, broken := ruleNames(t), map[string]string{}
	for _, file := range []string{"storetest/storetest_test.go", "storetest/mutants_test.go", "storetest/owners_test.go", "storetest/watches_test.go",
		"storetest/lifetimes_test.go", "storetest/graces_test.go"} {
		for _, m := range mutantRule.FindAllStringSubmatch(text(t, file), -1) {
			broken[m[1]] = m[2]
		}
	}
	sources := map[string]string{} // of the tests, by folder
	var tests, named, mutants, bugs int
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		var dirs []string
		for _, link := range testLink.FindAllStringSubmatch(line, -1) {
			dir := filepath.Dir(link[2])
			dirs = append(dirs, dir)
			if sources[dir] == "" {
				files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
				require.NoError(t, err)
				for _, file := range files {
					sources[dir] += text(t, file)
				}
			}
			tests++
		}
		var beside []string
		for _, rule := range ruleName.FindAllStringSubmatch(line, -1) {
			require.Contains(t, rules, strings.ReplaceAll(rule[1], " ", "_"))
			beside = append(beside, rule[1])
			named++
		}
		for _, m := range mutantName.FindAllStringSubmatch(line, -1) {
			require.Contains(t, broken, m[1])
			require.True(t, slices.ContainsFunc(beside, func(rule string) bool {
				return strings.HasPrefix(rule, broken[m[1]])
			}), "%q is for %s", m[1], broken[m[1]])
			mutants++
		}
		for _, bug := range bugName.FindAllStringSubmatch(line, -1) {
			require.True(t, slices.ContainsFunc(dirs, func(dir string) bool {
				return strings.Contains(sources[dir], bug[1])
			}), "nobody puts in: %s", bug[1])
			bugs++
		}
	}
	for _, n := range []int{tests, named, mutants, bugs} {
		require.NotZero(t, n)
	}
}

// ruleNames returns the names of the rules of storetest as go test prints them.
func ruleNames(t *testing.T) map[string]bool {
	t.Helper()
	var mu sync.Mutex
	names := map[string]bool{}
	t.Run("rules", func(t *testing.T) {
		parent := t.Name() + "/"
		storetest.Run(t, func(t *testing.T) tombstore.Store {
			if name, found := strings.CutPrefix(t.Name(), parent); found {
				mu.Lock()
				defer mu.Unlock()
				names[name] = true
				t.SkipNow() // TestMemoryStore plays it
			}
			return newMemory()
		})
	})
	return names
}
