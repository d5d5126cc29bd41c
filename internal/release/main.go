// Command release checks the modules of HEAD as they would be tagged, and with -tag tags them, all
// in step:
//
//	release [-tag] [VERSION]
//
// In a clone it makes the commit that is tagged: each module requires its siblings in that version
// and replaces nothing. From that commit it makes a module proxy of files. Then it does what a
// stranger does: go get of each module in an empty one, a program that imports its packages, go
// install of its commands. Every licence that comes in must be one of allowed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/semver"
)

func main() {
	tag := flag.Bool("tag", false, "make the tags in this repository")
	flag.Parse()
	if err := run(".", flag.Arg(0), *tag); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// run checks the repository that dir is in.
func run(dir, version string, tag bool) error {
	root, err := output(dir, nil, "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	changelog, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	if err := checkEntry(string(changelog), version); err != nil {
		return err
	}
	if changes, err := output(root, nil, "git", "status", "--porcelain"); err != nil {
		return err
	} else if changes != "" {
		fmt.Println("release: only HEAD is looked at, and there are changes that are not committed")
	}
	switch {
	case version == "" && tag:
		return errors.New("-tag needs a version")
	case version == "":
		version = "v0.0.1-unreleased"
	case semver.Canonical(version) != version:
		return fmt.Errorf("%q is not a version such as v0.2.0", version)
	}

	work, err := os.MkdirTemp("", "release")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	r, err := prepare(root, work, version)
	if err != nil {
		return err
	}
	for _, m := range r.modules {
		if err := r.get(m); err != nil {
			return fmt.Errorf("%s: %w", m.path, err)
		}
		fmt.Println("release: go get", m.path)
	}
	if !tag {
		return nil
	}
	if _, err := output(root, nil, "git", append([]string{"fetch", "-q", r.tree}, r.refs()...)...); err != nil {
		return err
	}
	fmt.Println("tagged; to publish:\ngit push origin", strings.Join(r.tags(), " "))
	return nil
}

// checkEntry looks for what the changelog says of version, or of what is not released yet.
func checkEntry(changelog, version string) error {
	heading := "## [Unreleased]"
	if version != "" {
		heading = "## [" + strings.TrimPrefix(version, "v") + "]"
	}
	_, after, found := strings.Cut("\n"+changelog, "\n"+heading)
	entry, _, _ := strings.Cut(after, "\n## [")
	if !found || !strings.Contains(entry, "\n- ") {
		return fmt.Errorf("CHANGELOG.md has no entry under %q", heading)
	}
	return nil
}
