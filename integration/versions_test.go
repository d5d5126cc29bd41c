package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The versions that the documents name are those that are tested.
func TestVersions(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	tested := map[string][]string{} // module, without the major version of its path, to versions
	for _, line := range regexp.MustCompile(`(?m)^\tgithub\.com/(\S+?)(?:/v\d+)? (v\d+\.\d+)`).FindAllStringSubmatch(string(mod), -1) {
		tested[line[1]] = append(tested[line[1]], line[2])
	}
	for path, modules := range map[string][]string{
		document: {
			"alexedwards/scs", "gorilla/sessions", "labstack/echo", "labstack/echo-contrib", "gin-gonic/gin", "gin-contrib/sessions",
			"cloudwego/hertz", "hertz-contrib/sessions", "gofiber/fiber", "beego/beego",
		},
		"../gorillastore/README.md": {"gorilla/sessions", "labstack/echo", "labstack/echo-contrib"},
	} {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		_, named, found := strings.Cut(strings.Join(strings.Fields(string(text)), " "), "ested with ")
		require.True(t, found, path)
		for _, module := range modules {
			require.NotEmpty(t, tested[module], module)
			versions := regexp.MustCompile(module + ` (v\d+\.\d+)(?: and (v\d+\.\d+))?`).FindStringSubmatch(named)
			require.NotEmpty(t, versions, "%s: %s", path, module)
			require.ElementsMatch(t, tested[module], strings.Fields(versions[1]+" "+versions[2]), "%s: %s", path, module)
		}
	}
}
