package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// The programs in the READMEs of the adapters compile.
func TestReadmes(t *testing.T) {
	t.Parallel()
	for _, adapter := range []string{
		"scsstore", "gorillastore", "gorillastore/gin", "gorillastore/hertz", "fiberstore", "fiber2store", "chistore", "beegostore",
	} {
		t.Run(adapter, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join("..", adapter, "README.md"))
			require.NoError(t, err)
			_, rest, found := strings.Cut(string(text), "```go\n")
			require.True(t, found)
			program, _, found := strings.Cut(rest, "```\n")
			require.True(t, found)
			output, err := compile(t, program)
			require.NoError(t, err, output)
		})
	}
}

// The program in the README of the project compiles before the change that it shows, and after it.
func TestReadme_Diff(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	diff := regexp.MustCompile("(?s)\n```diff\n(.*?)```\n").FindStringSubmatch(string(text))
	require.NotNil(t, diff)
	for name, sign := range map[string]string{"before": "-", "after": "+"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var program strings.Builder
			changes := 0
			for line := range strings.Lines(diff[1]) {
				switch line[:1] {
				case sign:
					changes++
					program.WriteString(line[1:])
				case " ":
					program.WriteString(line[1:])
				case "\n":
					program.WriteString(line)
				}
			}
			require.NotZero(t, changes)
			output, err := compile(t, program.String())
			require.NoError(t, err, output)
			output, err = compile(t, strings.ReplaceAll(program.String(), "scs.New()", "scs.New(1)"))
			require.Error(t, err)
			require.Contains(t, output, "too many arguments")
		})
	}
}

// compile compiles a program with the modules of this one.
func compile(t *testing.T, program string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program), 0o600))
	output, err := redistest.Go(t, "list", "-export", file).CombinedOutput()
	return string(output), err
}
