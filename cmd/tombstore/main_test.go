package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// program is the environment variable that makes the test's binary the program.
const program = "TOMBSTORE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(program) != "" {
		main()
	}
	os.Exit(redistest.Main(m))
}

// command returns the program with arguments, as a process of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), program+"=1")
	return cmd
}

var commands = []string{"demo", "doctor", "list", "inspect", "invalidate", "top", "bench"}

// Each command says in its help when it exits with 1.
func TestHelp(t *testing.T) {
	t.Parallel()
	status, all, stderr := call(t, "-h")
	require.Equal(t, exitOK, status)
	require.Empty(t, stderr)
	require.Contains(t, all, "Exit status: 0 ")
	for _, name := range commands {
		require.Contains(t, all, "\n   "+name+" ")
		for _, args := range [][]string{{name, "-h"}, {name, "--help"}, {"help", name}} {
			status, out, stderr := call(t, args...)
			require.Equal(t, exitOK, status)
			require.Empty(t, stderr)
			require.Contains(t, out, "xit status is 1 ", name)
			require.Contains(t, out, "--json ", name)
			for line := range strings.Lines(out) {
				require.LessOrEqual(t, len(line), 120, line)
			}
		}
	}
}

func complete(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := command(t, append(args, "--generate-shell-completion")...).Output()
	require.NoError(t, err)
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		names = append(names, name)
	}
	return names
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	require.Equal(t, append(commands, "help", "completion"), complete(t))
	require.Equal(t, []string{"--prefix"}, complete(t, "top", "--p"))
	require.Equal(t, []string{"--json"}, complete(t, "doctor", "-j"))
	require.Equal(t, []string{"bash", "zsh", "fish", "pwsh"}, complete(t, "completion"))
	for _, shell := range []string{"bash", "zsh", "fish"} {
		status, script, stderr := call(t, "completion", shell)
		require.Equal(t, exitOK, status, stderr)
		require.Contains(t, script, "tombstore")
		if path, err := exec.LookPath(shell); err == nil {
			check := exec.CommandContext(t.Context(), path, "-n")
			check.Stdin = strings.NewReader(script)
			output, err := check.CombinedOutput()
			require.NoError(t, err, "%s", output)
		}
	}
	for _, args := range [][]string{{"completion"}, {"completion", "tcsh"}} {
		status, out, _ := call(t, args...)
		require.Equal(t, exitUsage, status)
		require.Empty(t, out)
	}
}

// bash completes by the script: with two candidates it knows both, and none behind a URL.
func TestCompletion_Bash(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	_, script, _ := call(t, "completion", "bash")
	binary, err := os.Executable()
	require.NoError(t, err)
	for line, want := range map[string]string{"in": "inspect invalidate ", "top --s": "--samples ", "top redis://x ": ""} {
		// In the place of the functions of bash-completion, which take a line apart.
		play := exec.CommandContext(t.Context(), bash, "-c", script+`
			_comp_initialize() { :; }
			tombstore() { "$BINARY" "$@"; }
			COMP_WORDS=(tombstore $LINE); [ "${LINE% }" = "$LINE" ] || COMP_WORDS+=("")
			COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
			__tombstore_bash_autocomplete
			printf '%s ' "${COMPREPLY[@]}"`)
		play.Env = append(os.Environ(), program+"=1", "BINARY="+binary, "LINE="+line)
		output, err := play.CombinedOutput()
		require.NoError(t, err, "%s", output)
		require.Equal(t, strings.TrimSpace(want), strings.TrimSpace(string(output)), line)
	}
}

// The shell runs the line that is to be completed: that must not carry it out.
func TestCompletion_EndsNothing(t *testing.T) {
	b := newBench(t)
	_, ref := b.begin()
	for _, args := range [][]string{
		{b.url, ref}, {"--", b.url, ref}, {b.url, "--", ref}, {b.url, ref, "--"}, {"-json", b.url, ref, "-"}, {b.url, ref, "-x"},
	} {
		args = append([]string{"invalidate", "-prefix", b.prefix}, args...)
		complete(t, args...)
		require.Contains(t, b.state(ref), "live", args)
		_, _, _ = b.runWith("", append([]string{"invalidate"}, append(args[3:], "--generate-shell-completion")...)...)
		require.Contains(t, b.state(ref), "live", args)
	}
	status, _, _ := b.run("invalidate", ref)
	require.Equal(t, exitOK, status)
}
