package tombstore

import (
	"crypto/sha1"
	"encoding/hex"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

var scripts = map[string]script{
	"read": readScript, "write": writeScript, "restore": restoreScript, "touch": touchScript,
	"invalidate": invalidateScript, "rotate": rotateScript, "link": linkScript,
	"bind": bindScript, "revoke": revokeScript,
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

// The header of a script lists the KEYS and ARGV that the body reads, and the codes that it
// returns.
func TestScripts_Headers(t *testing.T) {
	t.Parallel()
	for name, s := range scripts {
		require.Empty(t, headerFaults(name, s.source), name)
	}
	for what, broken := range map[string]string{
		"undocumented argument":    writeSource + "\nreturn ARGV[9]",
		"undocumented code":        writeSource + "\nreturn 'Z'",
		"undocumented choice":      writeSource + "\nreturn live and 'Z' .. record or 'C'",
		"undocumented last choice": writeSource + "\nreturn live and 'C' or 'Z'",
		"documented only":          strings.ReplaceAll(writeSource, "return 'A'", "return nil"),
		"wrong name":               strings.Replace(writeSource, "-- write.lua:", "-- rite.lua:", 1),
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
	compare := func(what string, inHeader, inBody []string) {
		if !slices.Equal(inHeader, inBody) {
			faults = append(faults,
				what+": header has "+strings.Join(inHeader, " ")+", body "+strings.Join(inBody, " "))
		}
	}
	compare("arguments",
		matches(header, `(?m)^-- ((?:KEYS|ARGV)\[\d\])  `), matches(body, `((?:KEYS|ARGV)\[\d\])`))
	returned := strings.Join(matches(body, `(?m)\breturn (.*)$`), "\n")
	compare("codes", matches(header, `(?m)^-- (?:Returns|       )  ([A-Z])(?:  | \w)`),
		matches(returned, `(?m)(?:^|and |or )'([A-Z])'`))
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

// What several scripts need each of them spells out, because a server knows no other way that works
// everywhere. It is spelled the same in each.
func TestScripts_Fragments(t *testing.T) {
	t.Parallel()
	sources := map[string]string{}
	for name, s := range scripts {
		sources[name] = s.source
	}
	fragments, faults := fragmentsOf(sources)
	require.Empty(t, faults)
	for _, name := range []string{"clock", "number", "bytes", "wrongtype", "refusal", "header", "idle", "drop"} {
		require.Greater(t, fragments[name], 1, name)
	}

	for name, change := range map[string][2]string{
		"clock":     {"time[2] / 1000", "time[2] / 100"},
		"number":    {"at + 5", "at + 4"},
		"bytes":     {"2^40", "2^48"},
		"wrongtype": {"^%-?W", "W"},
		"refusal":   {"> 127", "> 255"},
		"header":    {"23 + high", "24 + high"},
		"idle":      {">= 9", ">= 8"},
	} {
		broken := maps.Clone(sources)
		broken["write"] = strings.Replace(writeSource, change[0], change[1], 1)
		require.NotEqual(t, writeSource, broken["write"], name)
		_, faults := fragmentsOf(broken)
		require.Equal(t, []string{name}, faults)
	}
}

// fragmentsOf returns in how many scripts each local function is, and those that differ.
func fragmentsOf(sources map[string]string) (count map[string]int, differ []string) {
	function := regexp.MustCompile(`(?m)^local function (\w+)(?:.*\bend$|(?s:.*?)^end$)`)
	count, text := map[string]int{}, map[string]string{}
	for _, source := range sources {
		for _, m := range function.FindAllStringSubmatch(source, -1) {
			if first, ok := text[m[1]]; ok && first != m[0] && !slices.Contains(differ, m[1]) {
				differ = append(differ, m[1])
			}
			text[m[1]] = m[0]
			count[m[1]]++
		}
	}
	return count, differ
}

// The package must load and work where SHA-1 is forbidden.
func TestFIPS(t *testing.T) {
	t.Parallel()
	client := redistest.Client(t)
	cmd := redistest.Go(t, "run", "./testdata/fips", redistest.URL(t), redistest.Prefix(t, client))
	cmd.Env = append(cmd.Env, "GODEBUG=fips140=only")
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
}
