package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// sound is a repository of two modules, one of which imports the other.
var sound = map[string]string{
	"CHANGELOG.md":    "## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n- All.\n",
	"LICENSE":         "MIT License\n\nCopyright (c) 2026 nobody\n\n" + mit,
	"go.mod":          "module example.com/root\n\ngo 1.26.0\n",
	"root.go":         "package root\n\nconst Name = \"root\"\n",
	"b/go.mod":        "module example.com/root/b\n\ngo 1.26.0\n\nrequire example.com/root v0.0.0\n\nreplace example.com/root => ../\n",
	"b/b.go":          "package b\n\nimport \"example.com/root\"\n\nconst Name = root.Name\n",
	"b/cmd/b/main.go": "package main\n\nimport \"example.com/root/b\"\n\nfunc main() { println(b.Name) }\n",

	"integration/go.mod": "module example.com/root/integration\n\ngo 1.26.0\n",
	"integration/i.go":   "package integration\n",
}

const mit = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`

// repository commits files and returns where.
func repository(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o777))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o666))
	}
	identity := []string{"-c", "user.name=somebody", "-c", "user.email=somebody@example.com"}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, append(identity, "commit", "-q", "-m", "all")} {
		_, err := output(dir, nil, "git", args...)
		require.NoError(t, err)
	}
	return dir
}

func visit(t *testing.T, files map[string]string) (*release, error) {
	t.Helper()
	r, err := prepare(repository(t, files), t.TempDir(), "v0.2.0")
	if err != nil {
		return nil, err
	}
	for _, m := range r.modules {
		if err := r.get(m); err != nil {
			return r, err
		}
	}
	return r, nil
}

func TestRelease(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	r, err := visit(t, sound)
	require.NoError(t, err)
	require.Equal(t, []mod{{"example.com/root", "."}, {"example.com/root/b", "b"}}, r.modules)
	require.Equal(t, []string{"v0.2.0", "b/v0.2.0"}, r.tags())
	tagged, err := output(r.tree, nil, "git", "show", "b/v0.2.0:b/go.mod")
	require.NoError(t, err)
	require.Equal(t, "module example.com/root/b\n\ngo 1.26.0\n\nrequire example.com/root v0.2.0", tagged)
	require.FileExists(t, filepath.Join(r.visitor, "b", "bin", "b"))
}

// Each change to the repository makes a go get fail.
func TestRelease_Catches(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	for name, test := range map[string]struct{ file, content, want string }{
		"a sibling that is not required": {
			"b/go.mod", "module example.com/root/b\n\ngo 1.26.0\n\nreplace example.com/root => ../\n", "cannot find module providing package example.com/root:",
		},
		"a sibling that is not published": {
			"b/b.go", "package b\n\nimport _ \"example.com/root/integration\"\n", "example.com/root/integration",
		},
		"a package that is missing": {
			"b/b.go", "package b\n\nimport _ \"example.com/root/c\"\n", "example.com/root/c",
		},
		"a module with another name": {
			"b/go.mod", "module example.com/root/a\n\ngo 1.26.0\n\nrequire example.com/root v0.0.0\n", "example.com/root/b",
		},
		"modules that require each other": {
			"go.mod", "module example.com/root\n\ngo 1.26.0\n\nrequire example.com/root/b v0.0.0\n", "require each other",
		},
		"what does not compile": {"b/b.go", "package b\n\nconst Name = 1 + \"\"\n", "mismatched types"},
		"no licence":            {"LICENSE", "All rights reserved.\n", "not a known licence"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broken := maps.Clone(sound)
			broken[test.file] = test.content
			_, err := visit(t, broken)
			require.ErrorContains(t, err, test.want)
		})
	}
}

// What a release would publish if it left a go.mod as it is.
func TestRelease_CatchesAVersionThatIsLeft(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	r, err := prepare(repository(t, sound), t.TempDir(), "v0.2.0")
	require.NoError(t, err)
	b := r.modules[1]
	left := "module example.com/root/b\n\ngo 1.26.0\n\nrequire example.com/root v0.0.0\n"
	require.NoError(t, os.WriteFile(filepath.Join(r.tree, "b", "go.mod"), []byte(left), 0o666))
	require.ErrorContains(t, r.get(b), "missing go.sum entry")
}

// The tags lead to the commit that was checked, and the branch stays where it is.
func TestRun(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	dir := repository(t, sound)
	before, err := output(dir, nil, "git", "rev-parse", "HEAD")
	require.NoError(t, err)
	require.ErrorContains(t, run(dir, "v0.3.0", true), "no entry")
	require.ErrorContains(t, run(dir, "", false), "no entry")
	require.ErrorContains(t, run(dir, "0.2.0", true), "not a version")
	require.NoError(t, run(dir, "v0.2.0", true))
	tags, err := output(dir, nil, "git", "tag")
	require.NoError(t, err)
	require.Equal(t, "b/v0.2.0\nv0.2.0", tags)
	for commit, want := range map[string]string{"b/v0.2.0": "example.com/root v0.2.0", "HEAD": "replace example.com/root => ../"} {
		goMod, err := output(dir, nil, "git", "show", commit+":b/go.mod")
		require.NoError(t, err)
		require.Contains(t, goMod, want)
	}
	after, err := output(dir, nil, "git", "rev-parse", "HEAD")
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Error(t, run(dir, "v0.2.0", true), "a tag is never moved")
}

func TestCheckEntry(t *testing.T) {
	t.Parallel()
	changelog := "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n\n- All.\n"
	require.NoError(t, checkEntry(changelog, "v0.2.0"))
	require.Error(t, checkEntry(changelog, ""))
	require.Error(t, checkEntry(changelog, "v0.2.1"))
	require.NoError(t, checkEntry("## [Unreleased]\n\n- One.\n", ""))
}

func TestCheckLicence(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	dir := t.TempDir()
	require.Error(t, checkLicence(dir))
	for _, name := range []string{"LICENSE", "LICENCE.txt", "copying"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(mit), 0o666))
		require.NoError(t, checkLicence(dir))
	}
	gpl := "This program is free software: you can redistribute it and/or modify it under the terms of the GNU General " +
		"Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) " +
		"any later version.\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "LICENSE.gpl"), []byte(gpl), 0o666))
	require.ErrorContains(t, checkLicence(dir), "GPL")
	require.True(t, slices.IsSorted(allowed))
}
