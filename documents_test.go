package tombstore

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where a document gives a number that the code holds, it is that of the code.
func TestDocuments_GiveTheNumbersOfTheCode(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for what, want := range map[string]int{"groups": epochGroups, "hops": maxHops} {
		number := regexp.MustCompile(`\b([0-9][0-9,]*)\s+` + what + `\b`)
		for _, path := range append(paths, "README.md") {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, found := range number.FindAllStringSubmatch(string(text), -1) {
				got, err := strconv.Atoi(strings.ReplaceAll(found[1], ",", ""))
				require.NoError(t, err)
				require.Equal(t, want, got, "%s: %s", path, found[0])
			}
		}
	}
}
