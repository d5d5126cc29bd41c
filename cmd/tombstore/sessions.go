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

// sessions is what a web application needs of a session store. Errors are those of package
// tombstore.
type sessions interface {
	create(ctx context.Context, id, data string) error
	load(ctx context.Context, id string) (tombstore.Session, error)
	save(ctx context.Context, id string, loaded tombstore.Session, data string) error
	delete(ctx context.Context, id string) error
}

// plain keeps sessions as the usual Redis session stores do.
type plain struct {
	client rueidis.Client
	prefix string
}

func (p plain) create(ctx context.Context, id, data string) error {
	return p.save(ctx, id, tombstore.Session{}, data)
}

func (p plain) load(ctx context.Context, id string) (tombstore.Session, error) {
	data, err := p.do(ctx, p.client.B().Get().Key(p.prefix+id).Build()).AsBytes()
	if rueidis.IsRedisNil(err) {
		err = tombstore.ErrNotFound
	}
	return tombstore.Session{Data: data}, err
}

func (p plain) save(ctx context.Context, id string, _ tombstore.Session, data string) error {
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
	store  tombstore.Store
	always bool // save without a condition, so that only the tombstone refuses
}

func (t tombs) create(ctx context.Context, id, data string) error {
	_, err := t.store.Write(ctx, id, []byte(data), sessionTTL, tombstore.IfAbsent())
	return err
}

func (t tombs) load(ctx context.Context, id string) (tombstore.Session, error) {
	return t.store.Read(ctx, id)
}

func (t tombs) save(ctx context.Context, id string, loaded tombstore.Session, data string) error {
	var condition []tombstore.WriteOption
	if !t.always {
		condition = append(condition, tombstore.Replacing(loaded))
	}
	_, err := t.store.Write(ctx, id, []byte(data), sessionTTL, condition...)
	return err
}

func (t tombs) delete(ctx context.Context, id string) error { return t.store.Invalidate(ctx, id) }

// contender is a store that runs races.
type contender struct {
	name string
	safe bool // it has to keep ended sessions ended
	// late is on one client, once for each way of saving that is worth a race. The web application
	// uses the first.
	late  []sessions
	ender sessions // on another client
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
	options := []tombstore.Option{
		tombstore.WithKeyPrefix(prefix),
		tombstore.WithTombstoneTTL(tombstoneTTL),
	}
	late, err := tombstore.New(clients[0], options...)
	ender, err2 := tombstore.New(clients[1], options...)
	return contender{
		name:  "tombstore",
		late:  []sessions{tombs{store: late}, tombs{store: late, always: true}},
		ender: tombs{store: ender},
	}, errors.Join(err, err2)
}
