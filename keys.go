package tombstore

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
)

const (
	maxIDLength = 1024 // bytes
	idEntropy   = 32   // bytes
	refEntropy  = 16   // bytes of the digest that a key carries
)

// NewID returns a new session id: 256 bits from crypto/rand as 43 characters that are safe in a
// cookie. OWASP asks for at least 64 bits (Session Management Cheat Sheet).
func NewID() string {
	var b [idEntropy]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// key returns the key of id. It carries a digest, so a dump, a replica, MONITOR or the slow log
// reveals no usable cookie. Half of SHA-256 is enough: to be let in takes a preimage, not a
// collision.
func (c *config) key(id string) (string, error) {
	var buf [64]byte
	key, err := c.appendKey(buf[:0], id)
	return string(key), err
}

func (c *config) appendKey(buf []byte, id string) ([]byte, error) {
	if id == "" || len(id) > maxIDLength {
		return nil, ErrInvalidID
	}
	buf = append(buf, c.prefix...)
	if c.plainIDs {
		if strings.HasPrefix(id, ownerMark) {
			return nil, ErrInvalidID
		}
		return append(buf, id...), nil
	}
	var plain [maxIDLength]byte
	digest := sha256.Sum256(plain[:copy(plain[:], id)])
	return base64.RawURLEncoding.AppendEncode(buf, digest[:refEntropy]), nil
}

// Ref returns the digest of id that the session's key carries, unless WithPlainIDs is set. It can
// be logged.
func Ref(id string) string {
	digest := sha256.Sum256([]byte(id))
	return base64.RawURLEncoding.EncodeToString(digest[:refEntropy])
}

// keyToStore is key for an id under which data is about to be stored.
func (c *config) keyToStore(id string) (string, error) {
	if c.sealed && weak(id) {
		return "", fmt.Errorf("%w: fewer than 128 bits", ErrInvalidID)
	}
	return c.key(id)
}

// digestOf returns the bytes of a digest in text, or nil.
func digestOf(text string) []byte {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != refEntropy || len(text) != base64.RawURLEncoding.EncodedLen(refEntropy) {
		return nil
	}
	return raw
}

// refKey returns the key of the session with this ref.
func (c *config) refKey(ref string) (string, error) {
	valid := ref != "" && len(ref) <= maxIDLength && !strings.HasPrefix(ref, ownerMark)
	if !c.plainIDs { // one spelling only, because the text becomes the key
		valid = digestOf(ref) != nil
	}
	if !valid {
		return "", ErrInvalidID
	}
	return c.prefix + ref, nil
}

// ref returns what follows the prefix in a key.
func (c *config) ref(key string) string { return strings.TrimPrefix(key, c.prefix) }

// keyPair returns the keys of the two ids of a Rotate.
func (c *config) keyPair(oldID, newID string) (oldKey, newKey string, err error) {
	oldKey, err = c.key(oldID)
	newKey, err2 := c.keyToStore(newID)
	if err = cmp.Or(err, err2); err == nil && oldKey == newKey {
		err = ErrInvalidID
	}
	return oldKey, newKey, err
}

// millis returns ttl in whole milliseconds, the unit of the server, rounded up so that no TTL
// becomes zero.
func millis(ttl time.Duration) (int64, error) {
	if ttl <= 0 {
		return 0, ErrInvalidTTL
	}
	return int64((ttl-1)/time.Millisecond) + 1, nil
}
