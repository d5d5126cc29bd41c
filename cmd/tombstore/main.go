// Command tombstore shows what package tombstore does. "tombstore -h" lists its commands.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `Usage: tombstore <command> [flags]

  demo        race a logout against a slow request, on a usual session store and on tombstore
  doctor      look at a server's settings for what would bring ended sessions back
  list        list live sessions, or those of an owner, by their refs
  inspect     show the state of sessions by their refs, without their data
  invalidate  end sessions by their refs, or all those of an owner

"tombstore <command> -h" lists the flags of a command.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "demo":
		return demo(ctx, args[1:], stdout, stderr)
	case "doctor":
		return examine(ctx, args[1:], stdout, stderr)
	case "list":
		return list(ctx, args[1:], stdin, stdout, stderr)
	case "inspect":
		return inspect(ctx, args[1:], stdin, stdout, stderr)
	case "invalidate":
		return invalidate(ctx, args[1:], stdin, stdout, stderr)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	if command != "" {
		fmt.Fprintf(stderr, "tombstore: unknown command %q\n\n", command)
	}
	fmt.Fprint(stderr, usage)
	return exitUsage
}
