package storetest

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

var rules = []rule{
	{"Read/absent", func(c *check) { c.absent(tombstore.NewID()) }},
	{"Read/what was written", func(c *check) {
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		for _, data := range []string{"", "x", string(every), strings.Repeat("large", 20_000)} {
			id := tombstore.NewID()
			written := c.write(id, data, hour)
			require.Equal(c, written, c.holds(id, data))
		}
	}},
	{"Read/data belongs to the caller", func(c *check) {
		id, data := tombstore.NewID(), []byte("mine")
		_, err := c.store.Write(c, id, data, hour)
		require.NoError(c, err)
		copy(data, "****")
		s := c.holds(id, "mine")
		copy(s.Data, "####")
		c.holds(id, "mine")
	}},
	{"Read/Slide restarts the idle timeout", func(c *check) {
		_, id := c.briefly(func(_ tombstore.Session, id string) error {
			s, err := c.store.Read(c, id, tombstore.Slide(hour))
			if err == nil {
				require.Equal(c, "x", string(s.Data))
			}
			return err
		})
		c.outlast()
		c.holds(id, "x")
	}},
	{"Read/Slide shortens too", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		_, err := c.store.Read(c, id, tombstore.Slide(instant))
		require.NoError(c, err)
		c.expires(id)
	}},
	{"Read/Slide does not revive", func(c *check) {
		id := tombstore.NewID()
		c.invalidate(id)
		_, err := c.store.Read(c, id, tombstore.Slide(instant))
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		c.outlast()
		c.ended(id, tombstore.Logout)
	}},
	{"Read/an error belongs to the caller", func(c *check) {
		id := tombstore.NewID()
		c.invalidate(id)
		c.ended(id, tombstore.Logout).Reason = tombstore.Revoked
		c.ended(id, tombstore.Logout)
	}},
	{"Read/WithExpiry and Slide tell when it expires", func(c *check) {
		id := tombstore.NewID()
		expires := func(ttl time.Duration, opts ...tombstore.ReadOption) {
			s, err := c.store.Read(c, id, opts...)
			require.NoError(c, err)
			require.Equal(c, "x", string(s.Data))
			require.WithinDuration(c, time.Now().Add(ttl), s.ExpiresAt, 10*time.Minute)
		}
		require.Zero(c, c.write(id, "x", hour/2).ExpiresAt)
		expires(hour/2, tombstore.WithExpiry())
		expires(hour, tombstore.Slide(hour))
		expires(hour, tombstore.WithExpiry())
		require.NoError(c, c.store.Touch(c, id, hour/2))
		expires(hour/2, tombstore.WithExpiry(), tombstore.Shared())
		require.Zero(c, c.holds(id, "x").ExpiresAt)
	}},
	{"Read/Shared reads the same", func(c *check) {
		id := tombstore.NewID()
		for _, data := range []string{"", "x", strings.Repeat("large", 20_000)} {
			written := c.write(id, data, hour)
			for range 2 {
				s, err := c.store.Read(c, id, tombstore.Shared())
				require.NoError(c, err)
				require.Equal(c, written, s)
			}
		}
		c.invalidate(id)
		_, err := c.store.Read(c, id, tombstore.Shared())
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
	}},
	{"Read/Fresh", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		s, err := c.store.Read(c, id, tombstore.Fresh())
		require.NoError(c, err)
		require.Equal(c, "x", string(s.Data))
	}},

	{"Write/replaces data and keeps the creation time", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", hour)
		c.outlast()
		second := c.write(id, "b", hour)
		require.NotEqual(c, first.Version, second.Version)
		require.True(c, first.CreatedAt.Equal(second.CreatedAt))
		require.WithinDuration(c, time.Now(), first.CreatedAt, hour)
		require.Equal(c, second, c.holds(id, "b"))
	}},
	{"Write/expires", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", instant)
		c.expires(id)
		c.absent(id)
		c.write(id, "again", hour)
		c.holds(id, "again")
	}},
	{"Write/restarts the idle timeout", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "a", instant)
		c.write(id, "b", hour)
		c.outlast()
		c.holds(id, "b")
		c.write(id, "c", instant)
		c.expires(id)
	}},
	{"Write/any positive TTL", func(c *check) {
		c.write(tombstore.NewID(), "x", 1)
		id := tombstore.NewID()
		c.write(id, "x", math.MaxInt64)
		c.holds(id, "x")
		c.invalidate(id)
		c.ended(id, tombstore.Logout)
	}},
	{"Write/conditions restart the idle timeout", func(c *check) {
		absent := tombstore.NewID()
		c.write(absent, "a", instant, tombstore.IfAbsent())
		_, present := c.briefly(func(_ tombstore.Session, id string) error {
			_, err := c.store.Write(c, id, []byte("b"), hour, tombstore.IfPresent())
			return err
		})
		_, version := c.briefly(func(s tombstore.Session, id string) error {
			_, err := c.store.Write(c, id, []byte("b"), hour, tombstore.IfVersion(s.Version))
			return err
		})
		_, replaced := c.briefly(func(s tombstore.Session, id string) error {
			_, err := c.store.Write(c, id, []byte("b"), hour, tombstore.Replacing(s))
			return err
		})
		c.expires(absent)
		c.holds(present, "b")
		c.holds(replaced, "b")
		c.holds(version, "b")
	}},
	{"Write/the same data is another version", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", hour)
		c.write(id, "b", hour)
		third := c.write(id, "a", hour)
		require.NotEqual(c, first.Version, third.Version)
		_, err := c.store.Write(c, id, []byte("c"), hour, tombstore.IfVersion(first.Version))
		require.ErrorIs(c, err, tombstore.ErrConflict)
		c.holds(id, "a")
	}},
	{"Write/refused, leaves the tombstone alone", func(c *check) {
		id := tombstore.NewID()
		read := c.write(id, "x", hour)
		c.invalidate(id)
		for _, opts := range [][]tombstore.WriteOption{
			nil, {tombstore.IfAbsent()}, {tombstore.IfPresent()}, {tombstore.IfVersion(read.Version)},
			{tombstore.Replacing(read)},
		} {
			_, err := c.store.Write(c, id, []byte("y"), instant, opts...)
			require.ErrorIs(c, err, tombstore.ErrInvalidated)
		}
		c.outlast()
		c.ended(id, tombstore.Logout)
	}},
	{"Write/IfAbsent", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "a", hour, tombstore.IfAbsent())
		_, err := c.store.Write(c, id, []byte("b"), hour, tombstore.IfAbsent())
		require.ErrorIs(c, err, tombstore.ErrConflict)
		c.holds(id, "a")
	}},
	{"Write/IfPresent", func(c *check) {
		id := tombstore.NewID()
		_, err := c.store.Write(c, id, []byte("a"), hour, tombstore.IfPresent())
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.absent(id)
		c.write(id, "b", hour)
		c.write(id, "c", hour, tombstore.IfPresent())
		c.holds(id, "c")
	}},
	{"Write/IfVersion", func(c *check) {
		id := tombstore.NewID()
		_, err := c.store.Write(c, id, []byte("a"), hour, tombstore.IfVersion(1))
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.absent(id)
		first := c.write(id, "b", hour)
		second := c.write(id, "c", hour, tombstore.IfVersion(first.Version))
		for _, stale := range []tombstore.Version{0, first.Version} {
			_, err = c.store.Write(c, id, []byte("d"), hour, tombstore.IfVersion(stale))
			require.ErrorIs(c, err, tombstore.ErrConflict)
		}
		require.Equal(c, second, c.holds(id, "c"))
	}},

	{"Write/Replacing keeps the creation time", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "a", hour)
		first := c.holds(id, "a")
		c.outlast()
		second := c.write(id, "b", hour, tombstore.Replacing(first))
		require.NotEqual(c, first.Version, second.Version)
		require.True(c, first.CreatedAt.Equal(second.CreatedAt))
		require.Equal(c, second, c.holds(id, "b"))
		third := c.write(id, "c", hour, tombstore.Replacing(second))
		require.True(c, first.CreatedAt.Equal(third.CreatedAt))
		require.Equal(c, third, c.holds(id, "c"))
	}},
	{"Write/Replacing an older version", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", hour)
		second := c.write(id, "b", hour)
		third := c.write(id, "c", hour, tombstore.Replacing(first))
		require.NotEqual(c, second.Version, third.Version)
		require.Equal(c, third, c.holds(id, "c"))
	}},
	{"Write/Replacing does not create", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", instant)
		c.expires(id)
		_, err := c.store.Write(c, id, []byte("b"), hour, tombstore.Replacing(first))
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.absent(id)
	}},
	{"Write/Replacing a session that no store gave out", func(c *check) {
		for _, s := range []tombstore.Session{{}, {Data: []byte("a"), Version: 1, CreatedAt: time.Now()}} {
			id := tombstore.NewID()
			_, err := c.store.Write(c, id, []byte("b"), hour, tombstore.Replacing(s))
			require.ErrorIs(c, err, tombstore.ErrNotFound)
			c.absent(id)
			first := c.write(id, "b", hour)
			c.outlast()
			second := c.write(id, "c", hour, tombstore.Replacing(s))
			require.True(c, first.CreatedAt.Equal(second.CreatedAt))
			require.Equal(c, second, c.holds(id, "c"))
		}
	}},
	{"Write/Replacing spares another life of the id", func(c *check) {
		id := tombstore.NewID()
		first := c.write(id, "a", instant)
		c.expires(id)
		second := c.write(id, "b", hour)
		_, err := c.store.Write(c, id, []byte("c"), hour, tombstore.Replacing(first))
		require.ErrorIs(c, err, tombstore.ErrConflict)
		require.Equal(c, second, c.holds(id, "b"))
		third := c.write(id, "d", hour, tombstore.Replacing(second))
		require.Equal(c, third, c.holds(id, "d"))
	}},

	{"Touch/restarts the idle timeout", func(c *check) {
		written, id := c.briefly(func(_ tombstore.Session, id string) error {
			return c.store.Touch(c, id, hour)
		})
		c.outlast()
		require.Equal(c, written, c.holds(id, "x"))
		require.NoError(c, c.store.Touch(c, id, instant))
		c.expires(id)
	}},
	{"Touch/leaves a tombstone alone", func(c *check) {
		id := tombstore.NewID()
		c.invalidate(id)
		require.ErrorIs(c, c.store.Touch(c, id, instant), tombstore.ErrInvalidated)
		c.outlast()
		c.ended(id, tombstore.Logout)
	}},
	{"Touch/absent", func(c *check) {
		id := tombstore.NewID()
		require.ErrorIs(c, c.store.Touch(c, id, hour), tombstore.ErrNotFound)
		c.absent(id)
	}},

	{"Rotate/moves the session", func(c *check) {
		old, id := tombstore.NewID(), tombstore.NewID()
		before := c.write(old, "x", hour)
		c.outlast()
		moved, err := c.store.Rotate(c, old, id)
		require.NoError(c, err)
		require.NotEqual(c, before.Version, moved.Version)
		require.True(c, before.CreatedAt.Equal(moved.CreatedAt))
		require.Equal(c, moved, c.holds(id, "x"))
		c.ended(old, tombstore.Rotated)
	}},
	{"Rotate/keeps the remaining TTL", func(c *check) {
		var id string
		_, old := c.briefly(func(_ tombstore.Session, old string) error {
			id = tombstore.NewID()
			_, err := c.store.Rotate(c, old, id)
			return err
		})
		c.expires(id)
		c.ended(old, tombstore.Rotated)
		old, id = tombstore.NewID(), tombstore.NewID()
		c.write(old, "y", hour)
		_, err := c.store.Rotate(c, old, id)
		require.NoError(c, err)
		c.outlast()
		c.holds(id, "y")
	}},
	{"Rotate/data belongs to the caller", func(c *check) {
		old, id, last := tombstore.NewID(), tombstore.NewID(), tombstore.NewID()
		c.write(old, "mine", hour)
		shared, err := c.store.Read(c, old, tombstore.Shared())
		require.NoError(c, err)
		moved, err := c.store.Rotate(c, old, id)
		require.NoError(c, err)
		copy(moved.Data, "****")
		c.holds(id, "mine")
		require.Equal(c, "mine", string(shared.Data))
		data := []byte("ours")
		_, err = c.store.Rotate(c, id, last, tombstore.WithData(data, hour))
		require.NoError(c, err)
		copy(data, "####")
		c.holds(last, "ours")
	}},
	{"Rotate/WithData", func(c *check) {
		var id string
		var moved tombstore.Session
		c.briefly(func(_ tombstore.Session, old string) (err error) {
			id = tombstore.NewID()
			moved, err = c.store.Rotate(c, old, id, tombstore.WithData([]byte("y"), hour))
			return err
		})
		require.Equal(c, "y", string(moved.Data))
		c.outlast()
		require.Equal(c, moved, c.holds(id, "y"))
		last := tombstore.NewID()
		_, err := c.store.Rotate(c, id, last, tombstore.WithData(nil, instant))
		require.NoError(c, err)
		c.expires(last)
	}},
	{"Rotate/what it returns can be replaced", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "a", hour)
		moved, id := c.rotate(old)
		written := c.write(id, "b", hour, tombstore.Replacing(moved))
		require.True(c, moved.CreatedAt.Equal(written.CreatedAt))
		require.Equal(c, written, c.holds(id, "b"))
		moved, id = c.rotate(id, tombstore.WithData([]byte("c"), hour))
		c.write(id, "d", hour, tombstore.Replacing(moved))
		c.holds(id, "d")
	}},
	{"Rotate/IfUnchanged", func(c *check) {
		old, id := tombstore.NewID(), tombstore.NewID()
		first := c.write(old, "a", hour)
		second := c.write(old, "b", hour)
		for _, opts := range [][]tombstore.RotateOption{
			{tombstore.IfUnchanged(first.Version)},
			{tombstore.WithData([]byte("c"), instant), tombstore.IfUnchanged(first.Version)},
		} {
			_, err := c.store.Rotate(c, old, id, opts...)
			require.ErrorIs(c, err, tombstore.ErrConflict)
			c.absent(id)
			require.Equal(c, second, c.holds(old, "b"))
		}
		moved, id := c.rotate(old, tombstore.IfUnchanged(second.Version))
		require.Equal(c, moved, c.holds(id, "b"))
		_, id = c.rotate(id, tombstore.WithData([]byte("c"), hour), tombstore.IfUnchanged(moved.Version))
		c.holds(id, "c")
		_, id = c.rotate(id, tombstore.IfUnchanged(0))
		c.holds(id, "c")
	}},
	{"Rotate/absent", func(c *check) {
		old, id := tombstore.NewID(), tombstore.NewID()
		_, err := c.store.Rotate(c, old, id)
		require.ErrorIs(c, err, tombstore.ErrNotFound)
		c.absent(old)
		c.absent(id)
	}},
	{"Rotate/onto itself", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		_, err := c.store.Rotate(c, id, id)
		require.ErrorIs(c, err, tombstore.ErrInvalidID)
		c.holds(id, "x")
	}},
	{"Rotate/new id in use", func(c *check) {
		live, dead := tombstore.NewID(), tombstore.NewID()
		c.write(live, "theirs", hour)
		c.invalidate(dead)
		for _, id := range []string{live, dead} {
			old := tombstore.NewID()
			c.write(old, "mine", hour)
			_, err := c.store.Rotate(c, old, id)
			require.ErrorIs(c, err, tombstore.ErrConflict)
			c.holds(old, "mine")
		}
		c.holds(live, "theirs")
		c.ended(dead, tombstore.Logout)
	}},

	{"Invalidate/live", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		c.invalidate(id)
		c.ended(id, tombstore.Logout)
	}},
	{"Invalidate/absent", func(c *check) {
		id := tombstore.NewID()
		c.invalidate(id, tombstore.WithReason(tombstore.Revoked))
		c.ended(id, tombstore.Revoked)
	}},
	{"Invalidate/again keeps reason and time", func(c *check) {
		id := tombstore.NewID()
		c.write(id, "x", hour)
		c.invalidate(id, tombstore.WithReason(tombstore.Revoked))
		first := c.ended(id, tombstore.Revoked)
		c.outlast()
		c.invalidate(id)
		require.Equal(c, first, c.ended(id, tombstore.Revoked))
	}},
	{"Invalidate/any reason", func(c *check) {
		for _, reason := range []tombstore.Reason{tombstore.Logout, tombstore.Rotated, tombstore.Revoked, 9} {
			id := tombstore.NewID()
			c.invalidate(id, tombstore.WithReason(reason))
			c.ended(id, reason)
		}
	}},
	{"Invalidate/another reason takes the place of Rotated", func(c *check) {
		old, id := tombstore.NewID(), tombstore.NewID()
		c.write(old, "x", hour)
		_, err := c.store.Rotate(c, old, id)
		require.NoError(c, err)
		c.invalidate(old, tombstore.WithReason(tombstore.Revoked))
		c.ended(old, tombstore.Revoked)
		c.invalidate(old, tombstore.WithReason(tombstore.Rotated))
		c.ended(old, tombstore.Revoked)
	}},
	{"Invalidate/outlives the session", func(c *check) {
		for _, ttl := range []time.Duration{instant, hour} {
			id := tombstore.NewID()
			c.write(id, "x", ttl)
			c.invalidate(id)
			c.outlast()
			c.ended(id, tombstore.Logout)
		}
	}},
	{"Invalidate/IfLive", func(c *check) {
		id := tombstore.NewID()
		require.ErrorIs(c, c.store.Invalidate(c, id, tombstore.IfLive()), tombstore.ErrNotFound)
		c.absent(id)
		c.write(id, "x", hour)
		c.invalidate(id, tombstore.IfLive(), tombstore.WithReason(tombstore.Revoked))
		c.ended(id, tombstore.Revoked)
		require.ErrorIs(c, c.store.Invalidate(c, id, tombstore.IfLive()), tombstore.ErrInvalidated)
		c.ended(id, tombstore.Revoked)
	}},
	{"Invalidate/follows a session that has moved", func(c *check) {
		for _, reason := range []tombstore.Reason{tombstore.Logout, tombstore.Revoked, 9} {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			_, id := c.rotate(old)
			c.invalidate(old, tombstore.WithReason(reason))
			c.ended(old, reason)
			c.ended(id, reason)
			c.invalidate(old)
			c.ended(id, reason)
		}
	}},
	{"Invalidate/follows through many moves", func(c *check) {
		for from := range 5 {
			ids := []string{tombstore.NewID()}
			c.write(ids[0], "x", hour)
			for i := range 6 {
				_, id := c.rotate(ids[i])
				ids = append(ids, id)
			}
			c.invalidate(ids[from])
			for _, id := range ids {
				c.out(id)
			}
			c.ended(ids[from], tombstore.Logout)
			c.ended(ids[6], tombstore.Logout)
		}
	}},
	{"Invalidate/goes on where an earlier one has been", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		_, middle := c.rotate(old)
		_, id := c.rotate(middle)
		c.invalidate(middle, tombstore.Alone(), tombstore.WithReason(tombstore.Revoked))
		c.invalidate(old)
		c.ended(middle, tombstore.Revoked)
		c.ended(id, tombstore.Logout)
	}},
	{"Invalidate/reaches a session that has moved and expired", func(c *check) {
		for _, live := range []bool{false, true} {
			old := tombstore.NewID()
			c.write(old, "x", hour)
			_, id := c.rotate(old, tombstore.WithData(nil, instant))
			c.expires(id)
			if live {
				require.ErrorIs(c, c.store.Invalidate(c, old, tombstore.IfLive()), tombstore.ErrNotFound)
			} else {
				c.invalidate(old)
			}
			c.ended(id, tombstore.Logout)
		}
	}},
	{"Invalidate/IfLive follows", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		_, id := c.rotate(old)
		c.invalidate(old, tombstore.IfLive(), tombstore.WithReason(tombstore.Revoked))
		c.ended(old, tombstore.Revoked)
		c.ended(id, tombstore.Revoked)
		for _, again := range []string{old, id} {
			require.ErrorIs(c, c.store.Invalidate(c, again, tombstore.IfLive()), tombstore.ErrInvalidated)
			c.ended(id, tombstore.Revoked)
		}
	}},
	{"Invalidate/Alone does not follow", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		moved, id := c.rotate(old)
		err := c.store.Invalidate(c, old, tombstore.Alone(), tombstore.IfLive())
		require.ErrorIs(c, err, tombstore.ErrInvalidated)
		c.invalidate(old, tombstore.Alone())
		c.ended(old, tombstore.Logout)
		require.Equal(c, moved, c.holds(id, "x"))
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
		id = tombstore.NewID()
		c.invalidate(id, tombstore.Alone())
		c.ended(id, tombstore.Logout)
	}},
	{"Invalidate/with the reason Rotated does not follow", func(c *check) {
		old := tombstore.NewID()
		c.write(old, "x", hour)
		moved, id := c.rotate(old)
		rotated := tombstore.WithReason(tombstore.Rotated)
		require.ErrorIs(c, c.store.Invalidate(c, old, rotated, tombstore.IfLive()), tombstore.ErrInvalidated)
		c.invalidate(old, rotated)
		c.ended(old, tombstore.Rotated)
		require.Equal(c, moved, c.holds(id, "x"))
		c.invalidate(old)
		c.ended(id, tombstore.Logout)
	}},

	{"Exists", func(c *check) {
		id := tombstore.NewID()
		c.absent(id)
		c.write(id, "", hour)
		c.holds(id, "")
		old := id
		_, id = c.rotate(old)
		c.ended(old, tombstore.Rotated)
		c.holds(id, "")
		c.invalidate(id)
		c.ended(id, tombstore.Logout)
	}},

	{"Ids/any bytes, none the same", func(c *check) {
		base := tombstore.NewID()
		ids := []string{
			base, base + " ", base + "\x00", "\x00" + base, base + "\r\nDEL x\r\n", "{" + base + "}",
			base + "*", strings.ToUpper(base) + "ü", base + "\xff\xfe", strings.Repeat("a", 1024-len(base)) + base,
		}
		for i, id := range ids {
			c.write(id, ids[i], hour)
		}
		for _, id := range ids {
			c.holds(id, id)
		}
		c.invalidate(base)
		for _, id := range ids[1:] {
			c.holds(id, id)
		}
	}},
	{"Ids/empty or too long", func(c *check) {
		for _, id := range []string{"", strings.Repeat("a", 1025), strings.Repeat("a", 2048)} {
			for verb, err := range c.all(id, hour) {
				require.ErrorIs(c, err, tombstore.ErrInvalidID, verb)
			}
			_, err := c.store.Rotate(c, tombstore.NewID(), id)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
			_, err = c.store.Exists(c, id)
			require.ErrorIs(c, err, tombstore.ErrInvalidID)
		}
	}},
	{"TTL/not positive", func(c *check) {
		id := tombstore.NewID()
		written := c.write(id, "x", hour)
		for _, ttl := range []time.Duration{0, -1, -hour, math.MinInt64} {
			for verb, err := range c.all(id, ttl) {
				if verb != "Invalidate" && verb != "Rotate" {
					require.ErrorIs(c, err, tombstore.ErrInvalidTTL, verb)
				}
			}
			_, err := c.store.Rotate(c, id, tombstore.NewID(), tombstore.WithData(nil, ttl))
			require.ErrorIs(c, err, tombstore.ErrInvalidTTL)
			id = tombstore.NewID() // c.all has ended the last one
			written = c.write(id, "x", hour)
		}
		require.Equal(c, written, c.holds(id, "x"))
	}},
	{"Errors/an ended context is not an absent session", func(c *check) {
		gone := c.canceled()
		for verb, err := range gone.all(tombstore.NewID(), hour) {
			require.ErrorIs(c, err, context.Canceled, verb)
			require.NotErrorIs(c, err, tombstore.ErrNotFound, verb)
			require.NotErrorIs(c, err, tombstore.ErrInvalidated, verb)
		}
		_, err := gone.store.Exists(gone, tombstore.NewID())
		require.ErrorIs(c, err, context.Canceled)
	}},
	{"Errors/carry no id and no data", func(c *check) {
		const data = "something private"
		ended, live := "the-id-of-"+tombstore.NewID(), "the-id-of-"+tombstore.NewID()
		c.invalidate(ended)
		c.write(live, data, hour)
		long := "the-id-of-" + strings.Repeat("a", 2000)
		_, conflict := c.store.Write(c, live, []byte(data), hour, tombstore.IfAbsent())
		_, moved := c.store.Rotate(c, live, ended, tombstore.WithData([]byte(data), hour))
		all := []error{conflict, moved}
		for _, id := range []string{ended, "the-id-of-" + tombstore.NewID(), long} {
			for _, err := range c.all(id, hour) {
				all = append(all, err)
			}
		}
		for _, err := range all {
			if err != nil {
				require.NotContains(c, err.Error(), "the-id-of-")
				require.NotContains(c, err.Error(), data)
			}
		}
	}},
}

// all calls every method with id, Invalidate last, and returns the errors by verb.
func (c *check) all(id string, ttl time.Duration) map[string]error {
	errs := map[string]error{}
	_, errs["Read"] = c.store.Read(c, id, tombstore.Slide(ttl))
	_, errs["Write"] = c.store.Write(c, id, []byte("something private"), ttl, tombstore.IfPresent())
	errs["Touch"] = c.store.Touch(c, id, ttl)
	_, errs["Rotate"] = c.store.Rotate(c, id, tombstore.NewID())
	errs["Invalidate"] = c.store.Invalidate(c, id)
	return errs
}

// revivals are all the ways to write to a session.
var revivals = map[string]func(c *check, id string, read tombstore.Session) error{
	"Write": func(c *check, id string, read tombstore.Session) error {
		_, err := c.store.Write(c, id, read.Data, hour)
		return err
	},
	"Write IfAbsent": func(c *check, id string, read tombstore.Session) error {
		_, err := c.store.Write(c, id, read.Data, hour, tombstore.IfAbsent())
		return err
	},
	"Write IfPresent": func(c *check, id string, read tombstore.Session) error {
		_, err := c.store.Write(c, id, read.Data, hour, tombstore.IfPresent())
		return err
	},
	"Write IfVersion": func(c *check, id string, read tombstore.Session) error {
		_, err := c.store.Write(c, id, read.Data, hour, tombstore.IfVersion(read.Version))
		return err
	},
	"Write Replacing": func(c *check, id string, read tombstore.Session) error {
		_, err := c.store.Write(c, id, read.Data, hour, tombstore.Replacing(read))
		return err
	},
	"Touch": func(c *check, id string, _ tombstore.Session) error { return c.store.Touch(c, id, hour) },
	"Read Slide": func(c *check, id string, _ tombstore.Session) error {
		_, err := c.store.Read(c, id, tombstore.Slide(hour))
		return err
	},
	"Rotate": func(c *check, id string, _ tombstore.Session) error {
		next := tombstore.NewID()
		_, err := c.store.Rotate(c, id, next)
		c.absent(next)
		return err
	},
	"Rotate WithData": func(c *check, id string, read tombstore.Session) error {
		next := tombstore.NewID()
		_, err := c.store.Rotate(c, id, next, tombstore.WithData(read.Data, hour))
		c.absent(next)
		return err
	},
}

// refusals returns the race that this package is about, once for every way to end a session and
// every late request: one request reads, another ends the session, the first one writes.
func refusals() (all []rule) {
	endings := map[string]func(c *check, id string) tombstore.Reason{
		"Invalidate": func(c *check, id string) tombstore.Reason {
			c.invalidate(id, tombstore.WithReason(tombstore.Revoked))
			return tombstore.Revoked
		},
		"Rotate": func(c *check, id string) tombstore.Reason {
			_, err := c.store.Rotate(c, id, tombstore.NewID())
			require.NoError(c, err)
			return tombstore.Rotated
		},
	}
	for ending, end := range endings {
		for late, revive := range revivals {
			all = append(all, rule{"Race/read, " + ending + ", " + late, func(c *check) {
				id := tombstore.NewID()
				c.write(id, "x", hour)
				read := c.holds(id, "x")
				reason := end(c, id)
				err := revive(c, id, read)
				var ended *tombstore.InvalidatedError
				require.True(c, errors.As(err, &ended), "late request got %v", err)
				require.Equal(c, reason, ended.Reason)
				c.ended(id, reason)
			}})
		}
	}
	for late, revive := range revivals {
		all = append(all, rule{"Race/Invalidate of an id never written, " + late, func(c *check) {
			id := tombstore.NewID()
			c.invalidate(id)
			require.ErrorIs(c, revive(c, id, tombstore.Session{Version: 1}), tombstore.ErrInvalidated)
			c.ended(id, tombstore.Logout)
		}})
	}
	return all
}
