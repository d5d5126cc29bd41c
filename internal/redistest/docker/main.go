//go:build container

// Command docker runs a server in a container at a port of this machine: docker PORT ARG... It is a
// program, and not a part of package redistest, so that only this module needs Docker's client and
// no test has to be built with it.
//
// It writes a line when the server has been started, and one for each command that it reads: "ok",
// perhaps with a value, or "error" with a text. The commands are kill, restart, and ip. The
// container is removed when the standard input ends.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
)

const defaultImage = "redis:8-alpine"

func main() {
	ctx := context.Background()
	c, err := start(ctx, os.Args[1], os.Args[2:])
	answer("", err)
	for commands := bufio.NewScanner(os.Stdin); err == nil && commands.Scan(); {
		switch now := time.Duration(0); commands.Text() {
		case "kill":
			answer("", c.Stop(ctx, &now))
		case "restart":
			answer("", c.Start(ctx))
		case "ip":
			answer(c.ContainerIP(ctx))
		}
	}
	if err := testcontainers.TerminateContainer(c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answer(value string, err error) {
	if err != nil {
		fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		return
	}
	fmt.Println("ok", value)
}

func start(ctx context.Context, hostPort string, args []string) (testcontainers.Container, error) {
	image := os.Getenv("TOMBSTORE_TEST_IMAGE")
	if image == "" {
		image = defaultImage
	}
	program := "redis-server"
	if strings.Contains(image, "valkey") {
		program = "valkey-server"
	}
	const port = "6379/tcp"
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // the image may have to be pulled
	defer cancel()
	return testcontainers.Run(ctx, image,
		testcontainers.WithExposedPorts(port),
		testcontainers.WithCmd(append([]string{program}, args...)...),
		testcontainers.WithHostConfigModifier(func(c *dockertypes.HostConfig) { // a restart must not change the port
			c.PortBindings = network.PortMap{network.MustParsePort(port): []network.PortBinding{{HostPort: hostPort}}}
		}),
	)
}
