package tombstore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"
	"sync"
)

// WithSealedData encrypts the data of each session under a key that is derived from its id. The
// server holds only a digest of the id, so whoever reads a dump, a replica or MONITOR cannot read a
// session, the operator included who has every other secret: it takes the cookie. There is no key
// to manage. Data that was changed, or that belongs to another session, is ErrCorrupt, and so is
// data that is not sealed; a store without the option takes sealed data for ErrCorrupt. So the
// option needs an empty key prefix, which logs everybody out once, or adapter.WithMigration from
// the old one.
//
// What is not data stays readable: times, owners, labels, and how long the data is. List returns no
// data, since it does not know ids. An id must have 128 bits that nobody can guess, as those of
// [NewID] do, or the key can be guessed from the digest. What certainly has fewer is refused with
// ErrInvalidID where a session would begin: fewer than 20 characters, fewer than 32 hexadecimal
// digits, and UUIDs. An id that is longer, and guessed all the same, cannot be told. It excludes
// WithPlainIDs.
//
// Whoever can write to the server can still delete a session, or put back what was stored under its
// id before, and can make up data for an id of their own, unless there is a key (WithKeys). A
// MemoryStore has the ids and the data in one memory, so it seals nothing; it refuses the same ids,
// and its lists have no data either. The default is not to seal.
func WithSealedData() Option { return func(c *config) { c.sealed = true } }

// WithKeys derives the key of a session from its id and from a key of the application, of at least
// 32 random bytes, that is not kept on the server: so reading a session takes both, and whoever can
// write to the server cannot make up data. What is sealed under previous is still read, and is
// sealed under current when it is written next. To change the key, first give every process the new
// one as previous, then as current with the old one as previous, and leave out the old one when the
// sessions from before have been written, or have expired. It needs WithSealedData. The default is
// none.
func WithKeys(current []byte, previous ...[]byte) Option {
	return func(c *config) {
		c.keys = nil
		for _, key := range append([][]byte{current}, previous...) {
			c.keys = append(c.keys, bytes.Clone(key))
		}
	}
}

// The data of a sealed session is
//
//	 0   4  name of the application's key
//	 4  12  nonce, at random
//	16   n  data, by AES-256-GCM
//	     16  tag
//
// under HMAC-SHA-256 of the application's key, or of a label if there is none, over a label and the
// id. The key of the session is authenticated too, and so are the items of its header, but not what
// the server adds: the creation time, and with it the deadline.
const (
	sealName     = 4
	sealOverhead = sealName + 12 + 16
	minKey       = 32 // bytes

	labelNone = "tombstore: no key of the application" // at least 112 bits, for FIPS 140
	labelName = "tombstore: name of a key"
	labelData = "tombstore: key of a session\x00"
)

// sealing is one key of the application.
type sealing struct {
	name [sealName]byte
	macs sync.Pool // of *mac: to begin one costs more than to use it
}

// mac is HMAC-SHA-256 under one key, and room for what goes in and comes out.
type mac struct {
	hash.Hash
	in, out []byte
}

func newSealing(key []byte) *sealing {
	k := &sealing{}
	k.macs.New = func() any { return &mac{Hash: hmac.New(sha256.New, key)} }
	name := k.derive(labelName, "")
	copy(k.name[:], name[:])
	return k
}

// newSealings returns what WithSealedData and WithKeys ask for, or nil.
func (c *config) newSealings() (all []*sealing) {
	if !c.sealed {
		return nil
	}
	for _, key := range c.keys {
		all = append(all, newSealing(key))
	}
	if all == nil {
		all = append(all, newSealing([]byte(labelNone)))
	}
	return all
}

func (k *sealing) derive(label, id string) (key [sha256.Size]byte) {
	m := k.macs.Get().(*mac)
	m.Reset()
	m.in = append(append(m.in[:0], label...), id...)
	m.Write(m.in)
	m.out = m.Sum(m.out[:0])
	copy(key[:], m.out)
	clear(m.in) // nobody finds ids there
	clear(m.out)
	k.macs.Put(m)
	return key
}

// cipher returns the cipher of the session of id.
func (k *sealing) cipher(id string) cipher.AEAD {
	key := k.derive(labelData, id)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the length is right
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // the block cipher is AES
	}
	return aead
}

// authenticated returns what is authenticated with the data. No two pairs of arguments have the
// same.
func authenticated[text []byte | string](key string, items text) []byte {
	b := make([]byte, 0, 2+len(key)+len(items))
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = append(b, key...)
	return append(b, items...)
}

// seal returns data as it is stored at key for a session of id. items is what follows the deadline
// in the header.
func (c *config) seal(id, key, items string, data []byte) []byte {
	k := c.sealings[0]
	sealed := append(make([]byte, 0, sealOverhead+len(data)), k.name[:]...)
	return k.cipher(id).Seal(sealed, nil, data, authenticated(key, items))
}

// open opens the data of a session of id that was read at key. It never writes where that was.
func (c *config) open(id, key string, s *Session) error {
	err := c.understands(s.header)
	if err != nil || !c.sealed {
		return err
	}
	sealed := s.Data
	s.Data = nil
	if len(sealed) < sealOverhead {
		return ErrCorrupt
	}
	also := authenticated(key, s.header[headerSize:])
	for _, k := range c.sealings {
		if !bytes.Equal(k.name[:], sealed[:sealName]) {
			continue
		}
		data := make([]byte, 0, len(sealed)-sealOverhead)
		if data, err = k.cipher(id).Open(data, nil, sealed[sealName:], also); err == nil {
			s.Data = data
			return nil
		}
	}
	return ErrCorrupt
}

var (
	errSealed    = fmt.Errorf("%w: the data is sealed, and this store has no WithSealedData", ErrCorrupt)
	errNotSealed = fmt.Errorf("%w: the data is not sealed, as WithSealedData wants it", ErrCorrupt)
)

// understands returns an ErrCorrupt if the data after a header is sealed and this store does not
// seal, or the other way round.
func (c *config) understands(header []byte) error {
	switch sealed := isSealed(header); {
	case sealed == c.sealed:
		return nil
	case sealed:
		return errSealed
	}
	return errNotSealed
}

// begun returns the header of a session that begins in this store.
func (c *config) begun(header []byte) []byte {
	if c.sealed {
		header[1] |= flagStrict | flagSealed
	}
	return header
}

// weak reports whether an id certainly has fewer than 128 bits: nobody has seen its alphabet, but
// 19 printable characters have not got them, and hexadecimal digits have four bits each. A random
// UUID has 122.
func weak(id string) bool {
	if len(id) < 20 {
		return true
	}
	if strings.Trim(id, "0123456789abcdefABCDEF-") != "" {
		return false
	}
	uuid := len(id) == 36 && id[8] == '-' && id[13] == '-' && id[18] == '-' && id[23] == '-'
	return uuid || len(id)-strings.Count(id, "-") < 32
}
