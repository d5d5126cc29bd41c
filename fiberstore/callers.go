package fiberstore

import (
	"context"
	"slices"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/extractors"
	"github.com/gofiber/fiber/v3/middleware/session"
	"github.com/valyala/fasthttp"

	"github.com/tombstore/tombstore/internal/caller"
)

// The functions of fiber's sessions that call a storage, and must be told apart.
const (
	getSession  = "session.(*Store).getSession"
	saveSession = "session.(*Session).saveSessionWithContext"
	destroy     = "session.(*Session).DestroyWithContext"
	regenerate  = "session.(*Session).RegenerateWithContext"
	reset       = "session.(*Session).ResetWithContext"
)

var callers = []string{getSession, saveSession, regenerate, reset, destroy}

// callersAreKnown uses a session of its own, and reports whether its storage could tell the
// callers.
func callersAreKnown(callers []string) bool {
	p := &probe{names: callers}
	app := fiber.New()
	c := app.AcquireCtx(&fasthttp.RequestCtx{})
	defer app.ReleaseCtx(c)
	id := extractors.FromCustom("probe", func(fiber.Ctx) (string, error) { return "probe", nil })
	s, err := session.NewStore(session.Config{Storage: p, Extractor: id}).Get(c)
	if err != nil {
		return false
	}
	defer s.Release()
	made := (&request{c: c}).made(s.ID())
	for _, call := range []func() error{s.Save, s.Regenerate, s.Reset, s.Destroy} {
		if call() != nil {
			return false
		}
	}
	return made && slices.Equal(p.seen, callers)
}

// probe is a storage that notes who calls.
type probe struct {
	fiber.Storage
	names, seen []string
}

func (p *probe) note() { p.seen = append(p.seen, caller.Method(p.names...)) }

func (p *probe) GetWithContext(context.Context, string) ([]byte, error) {
	p.note()
	return nil, nil
}

func (p *probe) SetWithContext(context.Context, string, []byte, time.Duration) error {
	p.note()
	return nil
}

func (p *probe) DeleteWithContext(context.Context, string) error {
	p.note()
	return nil
}
