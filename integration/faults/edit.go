package faults

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/redis/rueidis"
)

// edited is a client that runs another script in the place of one.
type edited struct {
	rueidis.Client
	sha, source string
}

// Source returns the text of a script.
func Source(file string) string {
	_, here, _, _ := runtime.Caller(0)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../../scripts", file))
	if err != nil {
		panic(err)
	}
	return string(text)
}

var shas sync.Map // by the name of the file

// SHA returns the name under which a server knows a script.
func SHA(file string) string {
	if sha, ok := shas.Load(file); ok {
		return sha.(string)
	}
	sum := sha1.Sum([]byte(Source(file)))
	sha := hex.EncodeToString(sum[:])
	shas.Store(file, sha)
	return sha
}

// Edit returns what makes a client run a script with a text replaced. It panics if the script has
// no such text, or has it twice.
func Edit(file, old, new string) func(rueidis.Client) rueidis.Client {
	return func(c rueidis.Client) rueidis.Client {
		text := Source(file)
		if strings.Count(text, old) != 1 {
			panic("bug does not fit " + file)
		}
		return &edited{c, SHA(file), strings.Replace(text, old, new, 1)}
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
