package tombstore_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
	"github.com/tombstore/tombstore/storetest"
)

func text(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}

var (
	goBlock  = regexp.MustCompile("(?s)```go\n(.*?)```")
	mainBody = regexp.MustCompile(`(?s)\nfunc main\(\) \{\n(.*?)\n\}\n`)
)

// Every Go program of the README compiles, and what a main function does is the body of an Example.
func TestREADME_Programs(t *testing.T) {
	t.Parallel()
	blocks := goBlock.FindAllStringSubmatch(text(t, "README.md"), -1)
	require.NotEmpty(t, blocks)
	examples := text(t, "example_test.go")
	for i, block := range blocks {
		if body := mainBody.FindStringSubmatch(block[1]); body != nil {
			require.Contains(t, examples, body[1], "example_test.go lacks the program of README.md")
		}
		output, err := compile(t, fmt.Sprintf("readme%d", i), block[1])
		require.NoError(t, err, output)
	}
}

func TestREADME_CompileFails(t *testing.T) {
	t.Parallel()
	output, err := compile(t, "broken", "package main\n\nfunc main() { tombstore.Open() }\n")
	require.Error(t, err)
	require.Contains(t, output, "undefined: tombstore")
}

// compile compiles a file as a package of its own in this module, where the compiler sees it
// although it is not there. It needs no network. A package whose name ends in _test is compiled as
// a test.
func compile(t *testing.T, name, source string) (string, error) {
	t.Helper()
	file, command := name+".go", []string{"list", "-export"} // without a link
	if regexp.MustCompile(`(?m)^package \w+_test$`).MatchString(source) {
		file, command = name+"_test.go", []string{"test", "-c", "-vet=off", "-o", os.DevNull}
	}
	dir := t.TempDir()
	root, err := filepath.Abs(".")
	require.NoError(t, err)
	place := filepath.Join(dir, file)
	require.NoError(t, os.WriteFile(place, []byte(source), 0o600))
	overlay, err := json.Marshal(map[string]any{
		"Replace": map[string]string{filepath.Join(root, "testdata", name, file): place},
	})
	require.NoError(t, err)
	overlayFile := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(overlayFile, overlay, 0o600))
	command = append(command, "-overlay", overlayFile, "./testdata/"+name)
	cmd := redistest.Go(t, command...)
	cmd.Env = append(cmd.Env, "GOPROXY=off")
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// The README's tables have every option and every error.
func TestREADME_Tables(t *testing.T) {
	t.Parallel()
	readme := text(t, "README.md")
	for file, pattern := range map[string]string{
		"options.go": `(?m)^func ([A-Z]\w*)\(.*\) \w*Option \{`,
		"errors.go":  `(?m)^\t(Err\w+) += errors\.New`,
	} {
		names := regexp.MustCompile(pattern).FindAllStringSubmatch(text(t, file), -1)
		require.GreaterOrEqual(t, len(names), 10, file)
		for _, name := range names {
			require.Regexp(t, "(?m)^\\|.*`"+name[1]+"\\b", readme, "README.md lacks "+name[1])
		}
	}
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
	var tests, named, mutants, bugs int
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		var sources strings.Builder
		for _, link := range testLink.FindAllStringSubmatch(line, -1) {
			files, err := filepath.Glob(filepath.Join(filepath.Dir(link[2]), "*_test.go"))
			require.NoError(t, err)
			for _, file := range files {
				sources.WriteString(text(t, file))
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
			require.True(t, strings.Contains(sources.String(), bug[1]), "nobody puts in: %s", bug[1])
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
			mu.Lock()
			defer mu.Unlock()
			names[strings.TrimPrefix(t.Name(), parent)] = true
			return newMemory()
		})
	})
	return names
}
