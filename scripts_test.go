package tombstore

import (
	"crypto/sha1"
	"encoding/hex"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

var scripts = map[string]script{
	"read": readScript, "write": writeScript, "touch": touchScript, "invalidate": invalidateScript, "rotate": rotateScript,
}

func TestScripts_SHA1(t *testing.T) {
	t.Parallel()
	files, err := os.ReadDir("scripts")
	require.NoError(t, err)
	require.Len(t, files, len(scripts))
	for name, s := range scripts {
		sum := sha1.Sum([]byte(s.source))
		require.Equal(t, hex.EncodeToString(sum[:]), s.sha1, "scripts.go must carry the SHA-1 of %s.lua", name)
	}
}

// The header of a script lists the KEYS and ARGV that the body reads, and the codes that it returns.
func TestScripts_Headers(t *testing.T) {
	t.Parallel()
	for name, s := range scripts {
		require.Empty(t, headerFaults(name, s.source), name)
	}
	for what, broken := range map[string]string{
		"undocumented argument": writeSource + "\nreturn ARGV[6]",
		"undocumented code":     writeSource + "\nreturn 'Z'",
		"documented only":       strings.ReplaceAll(writeSource, "return 'F'", "return nil"),
		"wrong name":            strings.Replace(writeSource, "-- write.lua:", "-- rite.lua:", 1),
	} {
		require.NotEmpty(t, headerFaults("write", broken), what)
	}
}

func headerFaults(name, source string) (faults []string) {
	header, body := source, ""
	for line := range strings.Lines(source) {
		if !strings.HasPrefix(line, "--") {
			header, body, _ = strings.Cut(source, line)
			body = line + body
			break
		}
	}
	if !strings.HasPrefix(header, "-- "+name+".lua: ") {
		faults = append(faults, "name")
	}
	compare := func(what, inHeader, inBody string) {
		if h, b := matches(header, inHeader), matches(body, inBody); !slices.Equal(h, b) {
			faults = append(faults, what+": header has "+strings.Join(h, " ")+", body "+strings.Join(b, " "))
		}
	}
	compare("arguments", `(?m)^-- ((?:KEYS|ARGV)\[\d\])  `, `((?:KEYS|ARGV)\[\d\])`)
	if name != "read" {
		compare("codes", `(?m)^-- (?:Returns|       )  ([A-Z])\b`, `(?:return|then return) '([A-Z])'`)
	}
	return faults
}

// matches returns the different texts that the group of pattern matched.
func matches(text, pattern string) []string {
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found[m[1]] = true
	}
	return slices.Sorted(maps.Keys(found))
}

func TestScripts_AreShort(t *testing.T) {
	t.Parallel()
	for name, s := range scripts {
		require.LessOrEqual(t, strings.Count(s.source, "\n"), 45, name)
	}
}

// The package must load and work where SHA-1 is forbidden.
func TestFIPS(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	cmd := exec.CommandContext(t.Context(), "go", "run", "./testdata/fips", redistest.URL(t), redistest.Prefix(t, client))
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
}
