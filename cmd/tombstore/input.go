package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/tombstore/tombstore"
)

const (
	maxName       = 1024     // bytes of an id or an owner, as package tombstore has it
	byteOrderMark = "\uFEFF" // with which editors of Windows begin a file
)

// input is what a command is about: sessions, by their refs or ids, or owners. They are the
// arguments behind the URL or the lines of a file.
type input struct {
	from        string
	ids, owners bool
	orAll       bool // without owners the command is about all sessions
	thorough    bool
	own         []cli.Flag // of the command
}

// target is a session or an owner.
type target struct {
	ref   string // of the session, or the digest of the owner
	owner string // "": it is a session
	place string // where it is in the input, for what is neither
	err   error  // why it is neither
}

func (in *input) flags() []cli.Flag {
	return append(in.own, &cli.StringFlag{
		Name:        "from",
		Usage:       "take the lines of a `file` in the place of arguments; - is the standard input",
		TakesFile:   true,
		Destination: &in.from,
	})
}

func (in *input) idFlag() {
	in.own = append(in.own, &cli.BoolFlag{
		Name:        "id",
		Usage:       "the lines are ids, as in cookies, and not refs; needs -from",
		Destination: &in.ids,
	})
}

func (in *input) ownerFlag(usage string) {
	in.own = append(in.own, &cli.BoolFlag{Name: "owner", Usage: usage, Destination: &in.owners})
}

// read returns what the input names: nothing only with -from. No error quotes it.
func (in *input) read(stdin io.Reader, args []string) ([]target, error) {
	switch {
	case in.ids && in.owners:
		return nil, errors.New("-id and -owner exclude each other")
	case in.ids && in.from == "":
		return nil, errors.New("ids are taken with -from only: arguments are seen by whoever lists processes")
	case in.from != "" && len(args) > 0:
		return nil, errors.New("-from takes the place of arguments behind the URL")
	case in.thorough && !in.owners:
		return nil, errors.New("-thorough is for owners: give -owner")
	case in.orAll && !in.owners:
		if in.from != "" || len(args) > 0 {
			return nil, errors.New("only owners can be named: give -owner")
		}
		return nil, nil
	}
	place := "ref"
	switch {
	case in.from != "":
		place = "line"
		var err error
		if args, err = in.lines(stdin); err != nil {
			return nil, err
		}
	case in.owners:
		place = "owner"
	}
	if len(args) == 0 && in.from == "" {
		return nil, errors.New("nothing is named, neither behind the URL nor with -from")
	}
	about := make([]target, len(args))
	for i, text := range args {
		about[i] = in.target(text)
		about[i].place = fmt.Sprintf("%s %d", place, i+1)
	}
	return about, nil
}

func (in *input) lines(stdin io.Reader) ([]string, error) {
	file := stdin
	if in.from != "-" {
		opened, err := os.Open(in.from)
		if err != nil {
			return nil, fmt.Errorf("-from: %w", err)
		}
		defer opened.Close()
		file = opened
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("-from: %w", err)
	}
	var lines []string
	for line := range strings.Lines(strings.TrimPrefix(string(text), byteOrderMark)) {
		lines = append(lines, strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"))
	}
	return lines, nil
}

func (in *input) target(text string) target {
	named := in.ids || in.owners
	switch {
	case text == "":
		return target{err: errors.New("is empty")}
	case named && len(text) > maxName:
		return target{err: fmt.Errorf("is longer than %d bytes", maxName)}
	case in.owners:
		return target{ref: tombstore.Ref(text), owner: text}
	case in.ids:
		return target{ref: tombstore.Ref(text)}
	case !isRef(text):
		return target{err: errors.New("is no ref of a session")}
	}
	return target{ref: text}
}
