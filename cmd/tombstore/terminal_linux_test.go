package main

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tombstore/tombstore/internal/redistest"
)

// openTerminal returns both ends of a pseudo-terminal: who types and reads has the first.
func openTerminal(t *testing.T) (user, tty *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { user.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	return user, tty
}

// On a terminal the page is drawn in the same place, and Ctrl-C gives the terminal back as it was.
func TestTop_Terminal(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for _, end := range []string{"Ctrl-C", "SIGTERM"} {
		user, tty := openTerminal(t)
		cmd := command(t, "top", "-interval=100ms", server.URL)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		require.NoError(t, cmd.Start())
		tty.Close()
		var shown bytes.Buffer
		read := func() bool { // the terminal has gone when the program has
			chunk := make([]byte, 4096)
			n, err := user.Read(chunk)
			shown.Write(chunk[:n])
			return err == nil
		}
		for bytes.Count(shown.Bytes(), []byte("sessions")) < 3 {
			require.True(t, read(), "%q", &shown)
		}
		require.True(t, bytes.HasPrefix(shown.Bytes(), []byte(enter)), "%q", &shown)
		require.NotContains(t, shown.String(), "\x1b[?1049l")
		if end == "Ctrl-C" {
			_, err := user.WriteString("\x03")
			require.NoError(t, err)
		} else {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		}
		for read() {
		}
		require.NoError(t, cmd.Wait(), end)
		_, left, found := bytes.Cut(shown.Bytes(), []byte(leave))
		require.True(t, found, "%q", &shown)
		require.Contains(t, string(left), "sessions", "the last page stays")
		require.Equal(t, 1, bytes.Count(shown.Bytes(), []byte("\x1b[?25h")), "the cursor is shown again")
	}
}
