package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"
)

// release is a repository as it would be tagged.
type release struct {
	version string
	tree    string // a clone
	proxy   string // the modules, as files of a module proxy
	cache   string // the module cache of a stranger
	visitor string // where a stranger works
	modules []mod  // those that are published, each after the ones that it requires
}

type mod struct {
	path string
	dir  string // in the tree, "." for the root
}

// prepare makes the commit that is tagged, its tags, and the proxy, all under work.
func prepare(root, work, version string) (*release, error) {
	r := &release{version: version}
	for name, dir := range map[string]*string{"tree": &r.tree, "proxy": &r.proxy, "cache": &r.cache, "visitor": &r.visitor} {
		*dir = filepath.Join(work, name)
	}
	if _, err := output(root, nil, "git", "clone", "-q", "--shared", ".", r.tree); err != nil {
		return nil, err
	}
	waiting, err := r.published()
	if err != nil {
		return nil, err
	}
	for len(waiting) > 0 {
		next := slices.IndexFunc(waiting, func(m mod) bool {
			file, err := r.readMod(m)
			return err != nil || !slices.ContainsFunc(file.Require, func(q *modfile.Require) bool {
				return slices.ContainsFunc(waiting, func(w mod) bool { return w.path == q.Mod.Path })
			})
		})
		if next < 0 {
			return nil, fmt.Errorf("modules that require each other: %v", waiting)
		}
		if err := r.add(waiting[next]); err != nil {
			return nil, fmt.Errorf("%s: %w", waiting[next].path, err)
		}
		waiting = slices.Delete(waiting, next, next+1)
	}
	for _, tag := range r.tags() {
		if _, err := output(r.tree, nil, "git", "tag", "-f", tag); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// published returns the modules that somebody else can import.
func (r *release) published() (modules []mod, err error) {
	files, err := output(r.tree, nil, "git", "ls-files", "go.mod", "*/go.mod")
	if err != nil {
		return nil, err
	}
	for file := range strings.Lines(files) {
		m := mod{dir: filepath.Dir(strings.TrimSpace(file))}
		if top, _, _ := strings.Cut(m.dir, "/"); slices.Contains([]string{"examples", "integration", "internal"}, top) {
			continue
		}
		content, err := r.readMod(m)
		if err != nil {
			return nil, err
		}
		m.path = content.Module.Mod.Path
		modules = append(modules, m)
	}
	return modules, nil
}

func (r *release) tags() (tags []string) {
	for _, m := range r.modules {
		tags = append(tags, strings.TrimPrefix(m.dir+"/"+r.version, "./"))
	}
	return tags
}

func (r *release) refs() (refs []string) {
	for _, tag := range r.tags() {
		refs = append(refs, "refs/tags/"+tag+":refs/tags/"+tag)
	}
	return refs
}

func (r *release) readMod(m mod) (*modfile.File, error) {
	name := filepath.Join(r.tree, m.dir, "go.mod")
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return modfile.Parse(name, content, nil)
}

// add commits a module as it is tagged, and puts it into the proxy.
func (r *release) add(m mod) error {
	if err := r.rewrite(m); err != nil {
		return err
	}
	commit := []string{"-c", "core.hooksPath=" + os.DevNull, "commit", "-q", "-a", "--allow-empty", "-m", "release: " + r.version}
	if len(r.modules) > 0 {
		commit = append(commit, "--amend")
	}
	identity, err := output(r.tree, nil, "git", "log", "-1",
		"--format=GIT_AUTHOR_NAME=%cn%nGIT_AUTHOR_EMAIL=%ce%nGIT_COMMITTER_NAME=%cn%nGIT_COMMITTER_EMAIL=%ce")
	if err != nil {
		return err
	}
	if _, err := output(r.tree, strings.Split(identity, "\n"), "git", commit...); err != nil {
		return err
	}
	versions, err := r.versions(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(versions, 0o777); err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := modzip.CreateFromVCS(&archive, module.Version{Path: m.path, Version: r.version}, r.tree, "HEAD", strings.TrimPrefix(m.dir, ".")); err != nil {
		return err
	}
	goMod, err := os.ReadFile(filepath.Join(r.tree, m.dir, "go.mod"))
	if err != nil {
		return err
	}
	r.modules = append(r.modules, m)
	info := fmt.Sprintf(`{"Version":%q,"Time":%q}`, r.version, time.Now().UTC().Format(time.RFC3339))
	return errors.Join(
		os.WriteFile(filepath.Join(versions, "list"), []byte(r.version+"\n"), 0o666),
		os.WriteFile(filepath.Join(versions, r.version+".info"), []byte(info), 0o666),
		os.WriteFile(filepath.Join(versions, r.version+".mod"), goMod, 0o666),
		os.WriteFile(filepath.Join(versions, r.version+".zip"), archive.Bytes(), 0o666),
	)
}

// versions returns the directory of the proxy that holds the versions of m.
func (r *release) versions(m mod) (string, error) {
	escaped, err := module.EscapePath(m.path)
	return filepath.Join(r.proxy, escaped, "@v"), err
}

// rewrite makes m require its siblings in the version of the release, with their checksums, and
// replace nothing.
func (r *release) rewrite(m mod) error {
	file, err := r.readMod(m)
	if err != nil {
		return err
	}
	var sums []string
	for _, sibling := range r.modules {
		if !slices.ContainsFunc(file.Require, func(q *modfile.Require) bool { return q.Mod.Path == sibling.path }) {
			continue
		}
		if err := file.AddRequire(sibling.path, r.version); err != nil {
			return err
		}
		lines, err := r.sums(sibling)
		if err != nil {
			return err
		}
		sums = append(sums, lines...)
	}
	for _, replace := range slices.Clone(file.Replace) {
		if err := file.DropReplace(replace.Old.Path, replace.Old.Version); err != nil {
			return err
		}
	}
	file.Cleanup()
	content, err := file.Format()
	if err != nil {
		return err
	}
	goSum := filepath.Join(r.tree, m.dir, "go.sum")
	known, err := os.ReadFile(goSum)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(os.WriteFile(file.Syntax.Name, content, 0o666), writeSums(goSum, string(known), sums))
}

func writeSums(name, known string, more []string) error {
	if len(more) == 0 {
		return nil
	}
	lines := append(strings.Split(strings.TrimSpace(known), "\n"), more...)
	slices.Sort(lines)
	return os.WriteFile(name, []byte(strings.TrimSpace(strings.Join(lines, "\n"))+"\n"), 0o666)
}

// sums returns the lines of go.sum for a module of the proxy.
func (r *release) sums(m mod) ([]string, error) {
	versions, err := r.versions(m)
	if err != nil {
		return nil, err
	}
	name := filepath.Join(versions, r.version)
	zipped, err := dirhash.HashZip(name+".zip", dirhash.Hash1)
	if err != nil {
		return nil, err
	}
	goMod, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return os.Open(name + ".mod") })
	return []string{
		fmt.Sprintf("%s %s %s", m.path, r.version, zipped),
		fmt.Sprintf("%s %s/go.mod %s", m.path, r.version, goMod),
	}, err
}

// output runs a command in dir and returns what it prints.
func output(dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, &failure)
	}
	return strings.TrimSpace(string(out)), nil
}
