// Command tombstore shows what package tombstore does, and helps to run it. "tombstore -h" lists
// its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const about = `Exit status: 0 if all is well; 1 if something was found, or went wrong, that the help of the command
names; 2 if nothing was done, since the command line is wrong or there is no connection.

Flags come before arguments, and take one dash or two. Sessions are named by their refs, and owners are
shown by their digests: no output has an id, an owner's name or a password.`

// errReported is why a command has failed that has said so itself.
var errReported = errors.New("reported")

// usageError is why nothing was done.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return runWith(ctx, openTombs, args, stdin, stdout, stderr)
}

// runWith runs a command line. The demo races the store that ours opens.
func runWith(
	ctx context.Context, ours opener, args []string, stdin io.Reader, stdout, stderr io.Writer,
) int {
	root := &cli.Command{
		Name:        "tombstore",
		Usage:       "a session that was ended stays ended",
		Description: about,
		Commands: []*cli.Command{
			demoCommand(ours), doctorCommand(), listCommand(), inspectCommand(), invalidateCommand(),
			topCommand(), benchCommand(),
		},
		Action:                          unknownCommand,
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: describeCompletion,
		Reader:                          stdin,
		Writer:                          stdout,
		ErrWriter:                       stderr,
		ExitErrHandler:                  func(context.Context, *cli.Command, error) {}, // it would end the program
		OnUsageError:                    wrongUsage,
	}
	err := root.Run(ctx, append([]string{root.Name}, args...))
	switch usage := (usageError{}); {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailed
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "tombstore:", strings.TrimPrefix(err.Error(), "tombstore: "))
		return exitUsage
	default:
		fmt.Fprintln(stderr, "tombstore:", strings.TrimPrefix(err.Error(), "tombstore: "))
		return exitFailed
	}
}

// unknownCommand runs where no command does.
func unknownCommand(_ context.Context, root *cli.Command) error {
	name := root.Args().First()
	switch {
	case name == "":
		return usageError{errors.New(`no command; "tombstore -h" lists them`)}
	case strings.Contains(name, "://"): // not quoted: it may have a password
		return usageError{errors.New("the command comes before the URL")}
	}
	return usageError{fmt.Errorf("unknown command %q\n%q lists the commands", name, "tombstore -h")}
}

func wrongUsage(_ context.Context, c *cli.Command, err error, _ bool) error {
	return usageError{fmt.Errorf(`%w; see "%s -h"`, err, c.FullName())}
}

func describeCompletion(completion *cli.Command) {
	completion.Hidden, completion.HideHelpCommand = false, true
	completion.Usage = "print a script by which a shell completes commands and flags"
	completion.OnUsageError = wrongUsage
	completion.Action = func(context.Context, *cli.Command) error {
		return usageError{errors.New("the shell is bash, zsh, fish or pwsh")}
	}
}
