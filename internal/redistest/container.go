package redistest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// container is a server that the program in ./docker runs in a container.
type container struct {
	program  *exec.Cmd
	commands io.WriteCloser
	answers  *bufio.Reader
}

// startContainer starts a container with a server at the port of s, and with its arguments.
func startContainer(s *Server) (*container, error) {
	// The program is built in its own module: that of the test lacks Docker's client.
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tombstore/tombstore").Output()
	if err != nil {
		return nil, err
	}
	c := &container{program: exec.Command("go", append([]string{
		"run", "-C", string(bytes.TrimSpace(dir)), "-tags", "container", "./internal/redistest/docker", strconv.Itoa(s.port),
	}, s.arguments("0.0.0.0", 6379)...)...)}
	var failure bytes.Buffer
	c.program.Stderr = &failure
	if c.commands, err = c.program.StdinPipe(); err != nil {
		return nil, err
	}
	answers, err := c.program.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.answers = bufio.NewReader(answers)
	if err = c.program.Start(); err != nil {
		return nil, err
	}
	if _, err = c.answer(); err != nil {
		return nil, errors.Join(err, c.remove(), errors.New(failure.String()))
	}
	return c, nil
}

func (c *container) kill() error         { _, err := c.ask("kill"); return err }
func (c *container) restart() error      { _, err := c.ask("restart"); return err }
func (c *container) ip() (string, error) { return c.ask("ip") }

func (c *container) remove() error {
	return errors.Join(c.commands.Close(), c.program.Wait())
}

func (c *container) ask(command string) (string, error) {
	if _, err := fmt.Fprintln(c.commands, command); err != nil {
		return "", err
	}
	return c.answer()
}

func (c *container) answer() (string, error) {
	line, err := c.answers.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("redistest: the program that runs the container: %w", err)
	}
	result, text, _ := strings.Cut(strings.TrimSpace(line), " ")
	if result != "ok" {
		return "", errors.New(text)
	}
	return text, nil
}
