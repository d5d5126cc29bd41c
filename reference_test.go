package tombstore_test

import (
	"go/ast"
	"go/doc"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// offered returns the documentation of the packages that a program imports, by folder: those of
// other modules of the repository among them.
var offered = sync.OnceValues(func() (map[string]*doc.Package, *token.FileSet) {
	fset, files := token.NewFileSet(), map[string][]*ast.File{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") ||
			slices.Contains([]string{"cmd", "docs", "examples", "integration", "internal", "testdata"}, d.Name())):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		files[filepath.Dir(path)] = append(files[filepath.Dir(path)], file)
		return err
	})
	packages := map[string]*doc.Package{}
	for dir := range files {
		if err == nil {
			packages[dir], err = doc.NewFromFiles(fset, files[dir], dir)
		}
	}
	if err != nil {
		panic(err)
	}
	return packages, fset
})

// options returns the functions that return an option of a package: a type whose name ends in
// Option.
func options(p *doc.Package) (all []*doc.Func) {
	for _, t := range p.Types {
		if strings.HasSuffix(t.Name, "Option") {
			all = append(all, t.Funcs...)
		}
	}
	return all
}

// errorsOf returns the names of the errors of a package.
func errorsOf(p *doc.Package) (names []string) {
	for _, v := range p.Vars {
		for _, name := range v.Names {
			if strings.HasPrefix(name, "Err") {
				names = append(names, name)
			}
		}
	}
	return names
}

// settings returns the names of the fields by which an adapter is configured.
func settings(p *doc.Package) (names []string) {
	for _, t := range p.Types {
		structure, ok := t.Decl.Specs[0].(*ast.TypeSpec).Type.(*ast.StructType)
		if !ok || t.Name != "Store" && t.Name != "Provider" {
			continue
		}
		for _, field := range structure.Fields.List {
			for _, name := range field.Names {
				names = append(names, name.Name)
			}
		}
	}
	return names
}

// Every option has an example, which pkg.go.dev shows beside it, and whose output go test compares
// unless it needs a server.
func TestOptions_HaveExamples(t *testing.T) {
	t.Parallel()
	packages, fset := offered()
	checked := 0
	for dir, p := range packages {
		for _, option := range options(p) {
			require.NotEmpty(t, option.Examples, "%s has no Example%s", dir, option.Name)
			for _, example := range option.Examples {
				var body strings.Builder
				require.NoError(t, format.Node(&body, fset, example.Code))
				if !strings.Contains(body.String(), "tombstore.Open(") && !strings.Contains(body.String(), "NewClient(") {
					require.NotEmpty(t, example.Output, "%s: Example%s has no output", dir, option.Name)
				}
			}
			checked++
		}
	}
	require.GreaterOrEqual(t, checked, 40)
}

// docs/reference.md has a row for each option, error and setting, and for nothing else.
func TestReference_HasAll(t *testing.T) {
	t.Parallel()
	described := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*)\\|").FindAllStringSubmatch(text(t, "docs/reference.md"), -1) {
		for _, name := range regexp.MustCompile("`([\\w.]+)[^`]*`").FindAllStringSubmatch(row[1], -1) {
			described[name[1]] = true
		}
	}
	packages, _ := offered()
	for dir, p := range packages {
		names := append(errorsOf(p), settings(p)...)
		for _, option := range options(p) {
			names = append(names, option.Name)
		}
		for _, name := range names {
			if dir != "." {
				name = filepath.Base(dir) + "." + name
			}
			require.True(t, described[name], "docs/reference.md has no row for %s", name)
			delete(described, name)
		}
	}
	require.Empty(t, slices.Sorted(maps.Keys(described)), "docs/reference.md describes what does not exist")
}
