package main

import (
	"context"
	"errors"
	"time"

	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// Short, so that a million races do not fill the server.
const (
	sessionTTL   = time.Minute
	tombstoneTTL = time.Minute
)

const opTimeout = 2 * time.Second // the default of tombstore

// sessions is what a web application needs of a session store. Errors are those of package tombstore.
type sessions interface {
	create(ctx context.Context, id, data string) error
	load(ctx context.Context, id string) (data string, err error)
	save(ctx context.Context, id, data string) error
	delete(ctx context.Context, id string) error
}

// gone reports whether err says that there is no live session.
func gone(err error) bool {
	return errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrInvalidated)
}

// plain keeps sessions as the usual Redis session stores do.
type plain struct {
	client rueidis.Client
	prefix string
}

func (p plain) create(ctx context.Context, id, data string) error { return p.save(ctx, id, data) }

func (p plain) load(ctx context.Context, id string) (string, error) {
	data, err := p.do(ctx, p.client.B().Get().Key(p.prefix+id).Build()).ToString()
	if rueidis.IsRedisNil(err) {
		err = tombstore.ErrNotFound
	}
	return data, err
}

func (p plain) save(ctx context.Context, id, data string) error {
	return p.do(ctx, p.client.B().Set().Key(p.prefix+id).Value(data).Px(sessionTTL).Build()).Error()
}

func (p plain) delete(ctx context.Context, id string) error {
	return p.do(ctx, p.client.B().Del().Key(p.prefix+id).Build()).Error()
}

func (p plain) do(ctx context.Context, command rueidis.Completed) rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return p.client.Do(ctx, command)
}

// tombs keeps sessions in a tombstore.
type tombs struct {
	store     tombstore.Store
	condition []tombstore.WriteOption // of save
}

func (t tombs) create(ctx context.Context, id, data string) error {
	_, err := t.store.Write(ctx, id, []byte(data), sessionTTL, tombstore.IfAbsent())
	return err
}

func (t tombs) load(ctx context.Context, id string) (string, error) {
	s, err := t.store.Read(ctx, id)
	return string(s.Data), err
}

func (t tombs) save(ctx context.Context, id, data string) error {
	_, err := t.store.Write(ctx, id, []byte(data), sessionTTL, t.condition...)
	return err
}

func (t tombs) delete(ctx context.Context, id string) error { return t.store.Invalidate(ctx, id) }

// contender is a store that runs races.
type contender struct {
	name  string
	safe  bool       // it has to keep ended sessions ended
	late  []sessions // by one client; one for each way of saving that is worth a race. The web application uses the first
	ender sessions   // by another client
}

type opener func(clients [2]rueidis.Client, prefix string) (contender, error)

func openPlain(clients [2]rueidis.Client, prefix string) (contender, error) {
	return contender{
		name:  "GET, SET, DEL",
		late:  []sessions{plain{clients[0], prefix + "plain:"}},
		ender: plain{clients[1], prefix + "plain:"},
	}, nil
}

func openTombs(clients [2]rueidis.Client, prefix string) (contender, error) {
	options := []tombstore.Option{tombstore.WithKeyPrefix(prefix), tombstore.WithTombstoneTTL(tombstoneTTL)}
	late, err := tombstore.New(clients[0], options...)
	ender, err2 := tombstore.New(clients[1], options...)
	return contender{
		name:  "tombstore",
		late:  []sessions{tombs{late, []tombstore.WriteOption{tombstore.IfPresent()}}, tombs{late, nil}},
		ender: tombs{ender, nil},
	}, errors.Join(err, err2)
}
