package faults

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"

	"github.com/redis/rueidis"
)

// edited is a client that runs another script in the place of one.
type edited struct {
	rueidis.Client
	sha, source string
}

// Edit returns what makes a client run a script with a text replaced. It panics if the script has no such text.
func Edit(file, old, new string) func(rueidis.Client) rueidis.Client {
	return func(c rueidis.Client) rueidis.Client {
		source, err := os.ReadFile(filepath.Join("../../../scripts", file))
		if err != nil {
			panic(err)
		}
		if !strings.Contains(string(source), old) {
			panic("bug does not fit " + file)
		}
		sum := sha1.Sum(source)
		return &edited{c, hex.EncodeToString(sum[:]), strings.Replace(string(source), old, new, 1)}
	}
}

func (e *edited) edit(cmd rueidis.Completed) rueidis.Completed {
	words := cmd.Commands()
	if words[0] != "EVALSHA" || words[1] != e.sha {
		return cmd
	}
	return e.B().Arbitrary("EVAL", e.source).Args(words[2:]...).Build()
}

func (e *edited) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return e.Client.Do(ctx, e.edit(cmd))
}

func (e *edited) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	for i, cmd := range multi {
		multi[i] = e.edit(cmd)
	}
	return e.Client.DoMulti(ctx, multi...)
}
