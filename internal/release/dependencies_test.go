package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const ours = "github.com/tombstore/tombstore"

// needs holds, for each module, what a program that imports it builds beyond this repository and
// the standard library: these packages and what they need themselves, nothing else.
var needs = map[string][]string{
	".":                  {"github.com/redis/rueidis"},
	"scsstore":           {"github.com/redis/rueidis", "github.com/alexedwards/scs/v2"},
	"gorillastore":       {"github.com/redis/rueidis", "github.com/gorilla/sessions"},
	"gorillastore/gin":   {"github.com/redis/rueidis", "github.com/gin-contrib/sessions"},
	"gorillastore/hertz": {"github.com/redis/rueidis", "github.com/hertz-contrib/sessions"},
	"fiberstore":         {"github.com/redis/rueidis", "github.com/gofiber/fiber/v3/middleware/session"},
	"fiber2store":        {"github.com/redis/rueidis", "github.com/gofiber/fiber/v2/middleware/session"},
	"chistore":           {"github.com/redis/rueidis", "gitea.com/go-chi/session"},
	"beegostore":         {"github.com/redis/rueidis", "github.com/beego/beego/v2/server/web"},
	"goredis":            {"github.com/redis/rueidis", "github.com/redis/go-redis/v9"},
	"otelstore":          {"github.com/redis/rueidis", "go.opentelemetry.io/otel", "go.opentelemetry.io/otel/semconv/v1.41.0/dbconv"},
}

func TestDependencies(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	for dir, allowed := range needs {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			require.Empty(t, extra(t, dir, allowed))
		})
	}
	for _, dir := range directories(t) {
		switch top, _, _ := strings.Cut(dir, "/"); top {
		case "cmd", "examples", "integration", "internal": // programs, and what nobody imports
		default:
			require.Contains(t, needs, dir)
		}
	}
}

func TestDependencies_Catches(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	another := "import _ \"github.com/stretchr/testify/assert\"\n"
	require.Contains(t, extra(t, ".", needs["."], overlay(t, "another.go", "package tombstore\n\n"+another)), "github.com/stretchr/testify/assert")
	require.Contains(t, extra(t, "scsstore", needs["scsstore"], overlay(t, "scsstore/another.go", "package scsstore\n\n"+another)),
		"github.com/stretchr/testify/assert")
}

// extra returns the packages that a module builds although they are not needed by those allowed.
func extra(t *testing.T, dir string, allowed []string, flags ...string) (packages []string) {
	t.Helper()
	imported := []string{}
	for _, line := range list(t, dir, flags, "{{.Name}} {{.ImportPath}}", "./...") {
		name, path, _ := strings.Cut(line, " ")
		if name != "main" && !strings.Contains(path, "/internal/") && path != ours+"/storetest" { // which is for tests
			imported = append(imported, path)
		}
	}
	known := map[string]bool{}
	const format = "{{if not .Standard}}{{.ImportPath}}{{end}}"
	for _, path := range list(t, dir, []string{"-deps"}, format, allowed...) {
		known[path] = true
	}
	for _, path := range list(t, dir, append(flags, "-deps"), format, imported...) {
		if !known[path] && path != ours && !strings.HasPrefix(path, ours+"/") {
			packages = append(packages, path)
		}
	}
	return packages
}

func list(t *testing.T, dir string, flags []string, format string, packages ...string) []string {
	t.Helper()
	args := append(append([]string{"list", "-f", format}, flags...), packages...)
	out, err := output(filepath.Join(root, dir), nil, "go", args...)
	require.NoError(t, err)
	return strings.Split(out, "\n")
}

// overlay returns the flag with which the go tool sees a file that is not there.
func overlay(t *testing.T, name, content string) string {
	t.Helper()
	dir := t.TempDir()
	place, err := filepath.Abs(filepath.Join(root, name))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file.go"), []byte(content), 0o666))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{place: filepath.Join(dir, "file.go")}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), replace, 0o666))
	return "-overlay=" + filepath.Join(dir, "overlay.json")
}

const hello = `package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"
	IMPORT
)

func main() {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"127.0.0.1:6379"}})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	fmt.Println(client.DoCache(ctx, client.B().Get().Key("hello").Cache(), time.Minute).ToString())
	for _, result := range client.DoMulti(ctx, client.B().Set().Key("hello").Value("world").Px(time.Hour).Build()) {
		fmt.Println(result.Error())
	}
	fmt.Println(client.Dedicated(func(c rueidis.DedicatedClient) error {
		return c.Do(ctx, c.B().Get().Key("hello").Build()).Error()
	}))
	fmt.Println(rueidis.NewLuaScript("return 1").Exec(ctx, client, nil, nil).ToString())
	USE
}
`

const use = `redis, err := tombstore.New(client)
	if err != nil {
		panic(err)
	}
	var store tombstore.Store = redis
	old, id := tombstore.NewID(), tombstore.NewID()
	fmt.Println(store.Write(ctx, old, []byte("world"), time.Hour, tombstore.IfAbsent()))
	fmt.Println(store.Rotate(ctx, old, id))
	fmt.Println(store.Read(ctx, id))
	fmt.Println(store.Touch(ctx, id, time.Hour))
	fmt.Println(store.Exists(ctx, id))
	fmt.Println(store.Invalidate(ctx, id))`

// A program that has rueidis already, and uses its pipelines, cache, transactions and scripts,
// grows by less than 400 KiB of code and data; debug information is not counted.
func TestBinarySize(t *testing.T) {
	skipIfShort(t)
	t.Parallel()
	before := size(t, "hello", strings.NewReplacer("IMPORT", "", "USE", "").Replace(hello))
	after := size(t, "hellotombstore", strings.NewReplacer("IMPORT", `"`+ours+`"`, "USE", use).Replace(hello))
	t.Logf("%d KiB with rueidis, %d KiB more with tombstore", before>>10, (after-before)>>10)
	require.Less(t, after-before, int64(400<<10))
	require.Greater(t, after-before, int64(50<<10), "the program uses none of it")
}

func size(t *testing.T, name, source string) int64 {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name)
	_, err := output(root, nil, "go", "build", "-ldflags=-s -w", overlay(t, "testdata/"+name+"/main.go", source), "-o", binary, "./testdata/"+name)
	require.NoError(t, err)
	info, err := os.Stat(binary)
	require.NoError(t, err)
	return info.Size()
}
