package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are licences that ask nothing of a program that imports a module, but to name them.
// MPL-2.0 asks for the changes that are made to its own files.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0"}

// get does what somebody does who has nothing but Go and a module proxy.
func (r *release) get(m mod) error {
	env, err := r.env()
	if err != nil {
		return err
	}
	// What go get would mend in the stranger's go.mod must not be missing in the module's own.
	packages, err := output(filepath.Join(r.tree, m.dir), append(env, "GOFLAGS=-mod=readonly -modcacherw"),
		"go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.Name}} {{.ImportPath}}{{end}}{{end}}", "./...")
	if err != nil {
		return err
	}
	dir := filepath.Join(r.visitor, strings.ReplaceAll(m.dir, "/", "-"))
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if _, err := output(dir, env, "go", "mod", "init", "example.com/stranger"); err != nil {
		return err
	}
	get, source, programs := []string{"get", m.path + "@" + r.version}, "package main\n\nimport (\n", []string{"."}
	for line := range strings.Lines(packages) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if slices.Contains(strings.Split(path, "/"), "internal") {
			continue
		}
		get = append(get, path+"@"+r.version)
		if name != "main" {
			source += fmt.Sprintf("\t_ %q\n", path)
			continue
		}
		programs = append(programs, path)
		if _, err := output(dir, append(env, "GOBIN="+filepath.Join(dir, "bin")), "go", "install", path+"@"+r.version); err != nil {
			return err
		}
	}
	if _, err := output(dir, env, "go", get...); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source+")\n\nfunc main() {}\n"), 0o666); err != nil {
		return err
	}
	if _, err := output(dir, env, "go", "build", "-o", os.DevNull, "."); err != nil {
		return err
	}
	return checkLicences(dir, env, programs)
}

// checkLicences looks at every module from which the programs are built.
func checkLicences(dir string, env, programs []string) error {
	built, err := output(dir, env, "go",
		append([]string{"list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}"}, programs...)...)
	if err != nil {
		return err
	}
	modules := strings.Split(built, "\n")
	slices.Sort(modules)
	for _, line := range slices.Compact(modules) {
		path, at, _ := strings.Cut(line, " ")
		if err := checkLicence(at); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// env returns the environment of a stranger. Modules that this machine has come from its cache.
func (r *release) env() ([]string, error) {
	known, err := output("", nil, "go", "env", "GOMODCACHE", "GOPROXY")
	if err != nil {
		return nil, err
	}
	cache, proxy, _ := strings.Cut(known, "\n")
	return []string{
		"GOPROXY=file://" + r.proxy + ",file://" + filepath.Join(cache, "cache", "download") + "," + proxy,
		"GOMODCACHE=" + r.cache, "GOSUMDB=off", "GOPRIVATE=", "GONOPROXY=", "GOWORK=off",
		"GOFLAGS=-mod=mod -modcacherw -trimpath", // paths that differ would be built again each time
	}, nil
}

func checkLicence(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		matches := licensecheck.Scan(text).Match
		if len(matches) == 0 {
			return fmt.Errorf("%s is not a known licence", e.Name())
		}
		for _, match := range matches {
			if !slices.Contains(allowed, match.ID) {
				return fmt.Errorf("licence %s in %s", match.ID, e.Name())
			}
		}
		found = true
	}
	if !found {
		return errors.New("there is no known licence")
	}
	return nil
}
