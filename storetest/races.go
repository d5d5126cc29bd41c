package storetest

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

const crowd = 64

// together runs do in n goroutines that start at the same moment.
func together(n int, do func(i int)) {
	var start, end sync.WaitGroup
	start.Add(1)
	for _, i := range rand.Perm(n) { // on few processors the last one is first, every time
		end.Go(func() {
			start.Wait()
			do(i)
		})
	}
	start.Done()
	end.Wait()
}

var races = []rule{
	{"Race/one version, many writers: one wins", func(c *check) {
		for range c.rounds(20) {
			id := tombstore.NewID()
			read := c.write(id, "x", hour)
			var won atomic.Int64
			together(8, func(int) {
				_, err := c.store.Write(c, id, []byte("y"), hour, tombstore.IfVersion(read.Version))
				if err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrConflict)
				}
			})
			require.EqualValues(c, 1, won.Load())
		}
	}},
	{"Race/one id, many creators: one wins", func(c *check) {
		for range c.rounds(20) {
			id := tombstore.NewID()
			var won atomic.Int64
			together(8, func(int) {
				_, err := c.store.Write(c, id, []byte("y"), hour, tombstore.IfAbsent())
				if err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrConflict)
				}
			})
			require.EqualValues(c, 1, won.Load())
		}
	}},
	{"Race/one session, many endings IfLive: one wins", func(c *check) {
		for range c.rounds(20) {
			id := tombstore.NewID()
			c.write(id, "x", hour)
			var won atomic.Int64
			together(8, func(int) {
				err := c.store.Invalidate(c, id, tombstore.IfLive())
				if err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			require.EqualValues(c, 1, won.Load())
		}
	}},
	{"Race/one session, many rotations: one wins", func(c *check) {
		for range c.rounds(20) {
			id := tombstore.NewID()
			c.write(id, "x", hour)
			next := make([]string, 8)
			var won atomic.Int64
			together(len(next), func(i int) {
				next[i] = tombstore.NewID()
				_, err := c.store.Rotate(c, id, next[i])
				if err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			require.EqualValues(c, 1, won.Load())
			live := 0
			for _, n := range next {
				exists, err := c.store.Exists(c, n)
				require.NoError(c, err)
				if exists {
					live++
				}
			}
			require.Equal(c, 1, live)
			c.ended(id, tombstore.Rotated)
		}
	}},
	{"Race/many sessions, one new id: one wins", func(c *check) {
		for range c.rounds(20) {
			id, old := tombstore.NewID(), make([]string, 8)
			for i := range old {
				old[i] = tombstore.NewID()
				c.write(old[i], old[i], hour)
			}
			var winner atomic.Pointer[string]
			together(len(old), func(i int) {
				_, err := c.store.Rotate(c, old[i], id)
				if err == nil {
					assert.True(c, winner.CompareAndSwap(nil, &old[i]), "a second one won")
				} else {
					assert.ErrorIs(c, err, tombstore.ErrConflict)
				}
			})
			require.NotNil(c, winner.Load())
			c.holds(id, *winner.Load())
		}
	}},
	{"Race/Rotate against writers: nothing accepted is lost", func(c *check) {
		for range c.rounds(20) {
			old, id := tombstore.NewID(), tombstore.NewID()
			read := c.write(old, "0", hour)
			last := "0"
			together(2, func(i int) {
				if i == 0 {
					_, err := c.store.Rotate(c, old, id)
					assert.NoError(c, err)
					return
				}
				for n := 1; ; n++ {
					data := strconv.Itoa(n)
					next, err := c.store.Write(c, old, []byte(data), hour, tombstore.IfVersion(read.Version))
					if err != nil {
						assert.ErrorIs(c, err, tombstore.ErrInvalidated)
						return
					}
					read, last = next, data
				}
			})
			c.holds(id, last)
		}
	}},
	{"Race/Rotate against writers IfUnchanged: one wins", func(c *check) {
		for round := range c.rounds(20) {
			old, id := tombstore.NewID(), tombstore.NewID()
			read := c.write(old, "x", hour)
			var won atomic.Int64
			together(2, func(i int) {
				var err error
				if i == round%2 {
					_, err = c.store.Rotate(c, old, id, tombstore.IfUnchanged(read.Version))
				} else {
					_, err = c.store.Write(c, old, []byte("y"), hour, tombstore.IfVersion(read.Version))
				}
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, tombstore.ErrInvalidated) {
					assert.ErrorIs(c, err, tombstore.ErrConflict)
				}
			})
			require.EqualValues(c, 1, won.Load())
		}
	}},
	{"Race/Rotate against Invalidate: the user is out", func(c *check) {
		for round := range c.rounds(50) {
			id, next := tombstore.NewID(), tombstore.NewID()
			c.write(id, "x", hour)
			together(2, func(i int) {
				if i == round%2 {
					if _, err := c.store.Rotate(c, id, next); err != nil {
						assert.ErrorIs(c, err, tombstore.ErrInvalidated)
					}
				} else {
					assert.NoError(c, c.store.Invalidate(c, id))
				}
			})
			c.out(next)
			c.ended(id, tombstore.Logout)
		}
	}},
	{"Race/many rotations in a row against Invalidate: the user is out", func(c *check) {
		for round := range c.rounds(20) {
			ids := make([]string, 10)
			for i := range ids {
				ids[i] = tombstore.NewID()
			}
			c.write(ids[0], "x", hour)
			together(2, func(i int) {
				if i != round%2 {
					assert.NoError(c, c.store.Invalidate(c, ids[0]))
					return
				}
				for next := 1; next < len(ids); next++ {
					if _, err := c.store.Rotate(c, ids[next-1], ids[next]); err != nil {
						assert.ErrorIs(c, err, tombstore.ErrInvalidated)
						return
					}
				}
			})
			require.Empty(c, c.live(ids))
		}
	}},
	{"Race/one session, many ids, many endings IfLive: one wins", func(c *check) {
		for range c.rounds(20) {
			ids := []string{tombstore.NewID()}
			c.write(ids[0], "x", hour)
			for i := range 3 {
				_, id := c.rotate(ids[i])
				ids = append(ids, id)
			}
			var won atomic.Int64
			together(8, func(i int) {
				err := c.store.Invalidate(c, ids[i%len(ids)], tombstore.IfLive())
				if err == nil {
					won.Add(1)
				} else {
					assert.ErrorIs(c, err, tombstore.ErrInvalidated)
				}
			})
			require.EqualValues(c, 1, won.Load())
			c.ended(ids[3], tombstore.Logout)
		}
	}},
	{"Race/Invalidate against a crowd of writers", func(c *check) {
		id := tombstore.NewID()
		read := c.write(id, "x", hour)
		var invalidated atomic.Bool
		together(crowd+1, func(i int) {
			if i == crowd {
				assert.NoError(c, c.store.Invalidate(c, id))
				invalidated.Store(true)
				return
			}
			for refused := 0; refused < 3; {
				after := invalidated.Load()
				err := c.late(i, id, read)
				switch {
				case errors.Is(err, tombstore.ErrInvalidated):
					refused++
				case !assert.NoError(c, err),
					!assert.False(c, after, "accepted after Invalidate had returned"):
					return
				}
			}
		})
		c.ended(id, tombstore.Logout)
	}},
}

// late is one of the operations that want a live session.
func (c *check) late(i int, id string, read tombstore.Session) error {
	var err error
	switch i % 6 {
	case 0:
		_, err = c.store.Write(c, id, []byte("y"), hour)
	case 1:
		_, err = c.store.Write(c, id, []byte("y"), hour, tombstore.IfPresent())
	case 2:
		err = c.store.Touch(c, id, hour)
	case 3:
		_, err = c.store.Read(c, id, tombstore.Slide(hour))
	case 4:
		_, err = c.store.Read(c, id)
	case 5:
		_, err = c.store.Write(c, id, []byte("y"), hour, tombstore.Replacing(read))
	}
	return err
}
