//go:build container

package redistest

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
)

const defaultImage = "redis:8-alpine"

func dockerAnswers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err == nil {
		docker.Close()
	}
	return err == nil
}

type dockerContainer struct{ testcontainers.Container }

// startContainer starts a container with a server at the port of s, and with its arguments.
func startContainer(s *Server) (container, error) {
	image := os.Getenv("TOMBSTORE_TEST_IMAGE")
	if image == "" {
		image = defaultImage
	}
	program := "redis-server"
	if strings.Contains(image, "valkey") {
		program = "valkey-server"
	}
	const port = "6379/tcp"
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // the image may have to be pulled
	defer cancel()
	c, err := testcontainers.Run(ctx, image,
		testcontainers.WithExposedPorts(port),
		testcontainers.WithCmd(append([]string{program}, s.arguments("0.0.0.0", 6379)...)...),
		testcontainers.WithHostConfigModifier(func(c *dockertypes.HostConfig) { // a restart must not change the port
			c.PortBindings = network.PortMap{network.MustParsePort(port): []network.PortBinding{{HostPort: strconv.Itoa(s.port)}}}
		}),
	)
	if err != nil {
		return nil, errors.Join(err, testcontainers.TerminateContainer(c))
	}
	return dockerContainer{c}, nil
}

func (c dockerContainer) kill() error {
	now := time.Duration(0)
	return c.Stop(context.Background(), &now)
}

func (c dockerContainer) restart() error      { return c.Start(context.Background()) }
func (c dockerContainer) remove() error       { return testcontainers.TerminateContainer(c.Container) }
func (c dockerContainer) ip() (string, error) { return c.ContainerIP(context.Background()) }
