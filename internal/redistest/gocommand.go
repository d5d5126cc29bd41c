package redistest

import (
	"os"
	"os/exec"
	"runtime/debug"
	"testing"
)

// Go returns a command of the go tool that ends with the test. It builds with the flags that the
// test was built with, so that what both need is built once.
func Go(t testing.TB, args ...string) *exec.Cmd {
	flags := os.Getenv("GOFLAGS")
	info, _ := debug.ReadBuildInfo()
	for _, setting := range info.Settings {
		switch setting.Key {
		case "-race", "-tags", "-gcflags", "-ldflags":
			flags += " " + setting.Key + "=" + setting.Value
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "GOFLAGS="+flags)
	return cmd
}
