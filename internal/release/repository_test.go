package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const root = "../.."

func text(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(b)
}

// skipIfShort is for what lists or builds programs without the race detector, from nothing or for a
// cache of its own: a release needs it, a change to the library does not.
func skipIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
}

// directories returns where the modules of the repository are, "." for the root.
func directories(t *testing.T) []string {
	t.Helper()
	var dirs []string
	require.NoError(t, fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if d.Name() == "go.mod" {
			dirs = append(dirs, path.Dir(name))
		}
		return err
	}))
	require.Greater(t, len(dirs), 10)
	return dirs
}

func TestMakefile_HasAllModules(t *testing.T) {
	t.Parallel()
	modules := regexp.MustCompile(`(?m)^MODULES +:= (.*)$`).FindStringSubmatch(text(t, "Makefile"))
	require.NotNil(t, modules)
	require.ElementsMatch(t, directories(t), strings.Fields(modules[1]))
}

func TestDependabot_HasAllModules(t *testing.T) {
	t.Parallel()
	var config struct {
		Updates []struct {
			Ecosystem   string `yaml:"package-ecosystem"`
			Directories []string
			Groups      map[string]any
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(text(t, ".github/dependabot.yml")), &config))
	var got []string
	for _, update := range config.Updates {
		require.NotEmpty(t, update.Groups, update.Ecosystem)
		if update.Ecosystem == "gomod" {
			for _, dir := range update.Directories {
				got = append(got, filepath.Join(".", dir))
			}
		}
	}
	require.ElementsMatch(t, directories(t), got)
}

// workflow holds the parts of a workflow that the test looks at.
type workflow struct {
	Permissions map[string]string
	Jobs        map[string]struct {
		Strategy struct {
			Matrix map[string][]string
		}
		Steps []struct {
			Uses, Run string
			Env       map[string]string
		}
	}
}

var (
	target = regexp.MustCompile(`\bmake ([a-z0-9-]+)`)
	pinned = regexp.MustCompile(`^[\w-]+/[\w-]+@[0-9a-f]{40}$`)
)

// The workflows call only targets that exist, cover every server and system that is promised, and
// pin each action to a commit. A step runs nothing that a developer could not run: it is a make
// target, or makes the machine ready for one.
func TestWorkflows(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, ".github/workflows/*.yml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	makefile := text(t, "Makefile")
	var called, images, systems []string
	for _, file := range files {
		var w workflow
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(content, &w))
		require.Equal(t, map[string]string{"contents": "read"}, w.Permissions, file)
		for name, job := range w.Jobs {
			images = append(images, job.Strategy.Matrix["image"]...)
			systems = append(systems, job.Strategy.Matrix["system"]...)
			for _, step := range job.Steps {
				if step.Uses != "" {
					require.Regexp(t, pinned, step.Uses, name)
				}
				for line := range strings.Lines(step.Run) {
					if m := target.FindStringSubmatch(line); m != nil {
						require.Regexp(t, "(?m)^"+m[1]+":", makefile, name)
						called = append(called, m[1])
					} else {
						require.Regexp(t, "^sudo apt-get ", line, name)
					}
				}
			}
		}
	}
	require.Subset(t, called, []string{"lint", "test", "cover", "demo", "races", "matrix", "release-check", "build", "vet"})
	require.ElementsMatch(t, []string{"redis:7", "redis:8", "valkey/valkey:8", "valkey/valkey:9"}, images)
	require.ElementsMatch(t, []string{"macos-latest", "windows-latest"}, systems)
}

// Every target that CONTRIBUTING.md names exists.
func TestContributing_NamesTargets(t *testing.T) {
	t.Parallel()
	makefile := text(t, "Makefile")
	named := regexp.MustCompile("`[^`]*\\bmake ([a-z0-9-]+)").FindAllStringSubmatch(text(t, "CONTRIBUTING.md"), -1)
	require.Greater(t, len(named), 10)
	for _, m := range named {
		require.Regexp(t, "(?m)^"+m[1]+":", makefile)
	}
}
