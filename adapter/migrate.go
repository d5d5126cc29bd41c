package adapter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombstore/tombstore"
)

// OldStore is where a session library kept its sessions before, under the same ids and in the
// encoding that it still has. [OldKeys] is one. Implementations must be safe for concurrent use.
type OldStore interface {
	// Read returns the data of a session and how long it would live on. It must return an error
	// wrapping tombstore.ErrNotFound if there is none, but never because the sessions cannot be
	// reached.
	Read(ctx context.Context, id string) (data []byte, ttl time.Duration, err error)
	// Delete deletes a session, and reports whether there was one.
	Delete(ctx context.Context, id string) (deleted bool, err error)
}

// WithMigration makes Load migrate a session that the store knows nothing of from old: it writes it
// to the store, unless it was ended there, with the time that it has left, and deletes it from old.
// What ends a session ends it in both. The creation time, and so tombstore.WithAbsoluteTimeout,
// begins at the migration, and the session has no owner. The default is nil: what is not in the
// store is not a session.
func WithMigration(old OldStore) Option { return func(a *Adapter) { a.old = old } }

// WithDecode sets what tells whether data is a session of the library, so that nothing else is
// migrated and deleted; the adapters set it. The default is nil: all data is.
func WithDecode(decode func(data []byte) error) Option {
	return func(a *Adapter) { a.decode = decode }
}

// read reads a session, and migrates it if only the old store has it.
func (a *Adapter) read(
	ctx context.Context, id string, opts ...tombstore.ReadOption,
) (tombstore.Session, error) {
	s, err := a.store.Read(ctx, id, opts...)
	if a.old == nil || !errors.Is(err, tombstore.ErrNotFound) {
		return s, err
	}
	s, err = a.migrate(ctx, id)
	if errors.Is(err, tombstore.ErrNotFound) || errors.Is(err, tombstore.ErrConflict) {
		return a.store.Read(ctx, id, append(opts, tombstore.Fresh())...) // another request may have migrated it
	}
	return s, err
}

// migrate moves a session from the old store to the store. What it writes there is refused if the
// session was ended there, and if another request has migrated it. If it is gone from the old store
// when it comes to be deleted, and nobody has migrated it, it has expired, or a process that knows
// the old store alone has ended it.
func (a *Adapter) migrate(ctx context.Context, id string) (tombstore.Session, error) {
	data, ttl, err := a.readOld(ctx, id)
	if err != nil {
		return tombstore.Session{}, err
	}
	ctx = context.WithoutCancel(ctx)
	s, err := a.store.Write(ctx, id, data, ttl, tombstore.IfAbsent())
	if err != nil {
		return s, err
	}
	deleted, err := a.deleteOld(ctx, id)
	if err == nil && !deleted {
		err = a.store.Invalidate(ctx, id)
		if err == nil {
			err = tombstore.ErrNotFound
		}
	}
	return s, err
}

// invalidate ends a session in the store, and in the old one. The tombstone comes first: it refuses
// what another request, which has read the old store, is about to write.
func (a *Adapter) invalidate(ctx context.Context, id string, opts ...tombstore.InvalidateOption) error {
	if a.old == nil {
		return a.store.Invalidate(ctx, id, opts...)
	}
	_, _, old := a.readOld(ctx, id)
	err := a.store.Invalidate(ctx, id, opts...)
	if errors.Is(err, tombstore.ErrNotFound) && (old == nil || errors.Is(old, tombstore.ErrCorrupt)) {
		err = a.store.Invalidate(ctx, id, append(opts, whateverThereIs)...)
	}
	if ended(err) != nil && !errors.Is(err, tombstore.ErrUnacknowledged) {
		return err
	}
	switch {
	case old == nil:
		_, old = a.deleteOld(ctx, id)
	case errors.Is(old, tombstore.ErrNotFound), errors.Is(old, tombstore.ErrCorrupt):
		old = nil
	}
	return cmp.Or(old, err)
}

// whateverThereIs takes back tombstore.IfLive.
func whateverThereIs(o *tombstore.InvalidateOptions) { o.Live = false }

func (a *Adapter) readOld(ctx context.Context, id string) (data []byte, ttl time.Duration, err error) {
	data, ttl, err = a.old.Read(ctx, id)
	if err == nil && a.decode != nil {
		if err = a.decode(data); err != nil {
			err = fmt.Errorf("%w: %w", tombstore.ErrCorrupt, err)
		}
	}
	return data, ttl, migrating(err)
}

func (a *Adapter) deleteOld(ctx context.Context, id string) (deleted bool, err error) {
	deleted, err = a.old.Delete(ctx, id)
	return deleted, migrating(err)
}

func migrating(err error) error {
	if err != nil {
		err = fmt.Errorf("tombstore: migrate: %w", err)
	}
	return err
}
