package integration

import (
	"encoding/json"
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
	programs := map[string]string{}
	for _, adapter := range []string{
		"scsstore", "gorillastore", "gorillastore/gin", "gorillastore/hertz", "fiberstore", "fiber2store", "chistore", "beegostore",
	} {
		text, err := os.ReadFile(filepath.Join("..", adapter, "README.md"))
		require.NoError(t, err)
		_, rest, found := strings.Cut(string(text), "```go\n")
		require.True(t, found, adapter)
		programs[adapter], _, found = strings.Cut(rest, "```\n")
		require.True(t, found, adapter)
	}
	output, err := compile(t, programs)
	require.NoError(t, err, output)
}

// The program in the README of the project compiles before the change that it shows, and after it.
func TestReadme_Diff(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	diff := regexp.MustCompile("(?s)\n```diff\n(.*?)```\n").FindStringSubmatch(string(text))
	require.NotNil(t, diff)
	programs := map[string]string{}
	for name, sign := range map[string]string{"before": "-", "after": "+"} {
		changes := 0
		for line := range strings.Lines(diff[1]) {
			switch line[:1] {
			case sign:
				changes++
				programs[name] += line[1:]
			case " ":
				programs[name] += line[1:]
			case "\n":
				programs[name] += line
			}
		}
		require.NotZero(t, changes, name)
	}
	output, err := compile(t, programs)
	require.NoError(t, err, output)
	for name, program := range programs {
		programs[name] = strings.ReplaceAll(program, "scs.New()", "scs.New(1)")
	}
	output, err = compile(t, programs)
	require.Error(t, err)
	require.Equal(t, len(programs), strings.Count(output, "too many arguments"), output)
}

// compile compiles programs, given by name, with the modules of this one: with one command, since
// most of its time it looks at what they import.
func compile(t *testing.T, programs map[string]string) (string, error) {
	t.Helper()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	args := []string{"list", "-export", "-overlay", filepath.Join(t.TempDir(), "overlay.json")}
	for name, program := range programs {
		file := filepath.Join(t.TempDir(), "main.go")
		require.NoError(t, os.WriteFile(file, []byte(program), 0o600))
		dir, err := filepath.Abs("testdata/readme/" + name)
		require.NoError(t, err)
		overlay.Replace[filepath.Join(dir, "main.go")] = file
		args = append(args, "./testdata/readme/"+name)
	}
	content, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(args[3], content, 0o600))
	output, err := redistest.Go(t, args...).CombinedOutput()
	return string(output), err
}
