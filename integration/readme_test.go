package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// The programs in the READMEs of the adapters compile.
func TestReadmes(t *testing.T) {
	t.Parallel()
	for _, adapter := range []string{
		"scsstore", "gorillastore", "gorillastore/gin", "gorillastore/hertz", "fiberstore", "fiber2store", "chistore", "beegostore",
	} {
		t.Run(adapter, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join("..", adapter, "README.md"))
			require.NoError(t, err)
			_, rest, found := strings.Cut(string(text), "```go\n")
			require.True(t, found)
			program, _, found := strings.Cut(rest, "```\n")
			require.True(t, found)
			file := filepath.Join(t.TempDir(), "main.go")
			require.NoError(t, os.WriteFile(file, []byte(program), 0o644))
			output, err := redistest.Go(t, "list", "-export", file).CombinedOutput()
			require.NoError(t, err, string(output))
		})
	}
}
