package gorillastore

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/tombstore/tombstore/internal/gobmap"
)

// Serializer turns the values of a session into bytes and back. It is the interface of
// boj/redistore, whose implementations can be used. Implementations must be safe for concurrent use
// and leave everything but Values alone.
type Serializer interface {
	Serialize(session *sessions.Session) ([]byte, error)
	Deserialize(data []byte, session *sessions.Session) error
}

// GobSerializer stores values of any type; types that are not predeclared must be registered with
// gob.Register. It takes a tenth of the time if all keys and values are strings, []byte, bool, int,
// int64 and float64.
type GobSerializer struct{}

// Serialize implements [Serializer].
func (GobSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	if data, ok := gobmap.Encode(session.Values); ok {
		return data, nil
	}
	var buf bytes.Buffer
	err := gob.NewEncoder(&buf).Encode(session.Values)
	return buf.Bytes(), err
}

// Deserialize implements [Serializer].
func (GobSerializer) Deserialize(data []byte, session *sessions.Session) error {
	values, ok := gobmap.Decode(data)
	switch {
	case !ok:
		return gob.NewDecoder(bytes.NewReader(data)).Decode(&session.Values)
	case len(session.Values) == 0:
		session.Values = values
	default:
		maps.Copy(session.Values, values)
	}
	return nil
}

// JSONSerializer stores values under keys that are strings. Numbers come back as float64, and
// structs as maps.
type JSONSerializer struct{}

// Serialize implements [Serializer].
func (JSONSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	values := make(map[string]any, len(session.Values))
	for key, value := range session.Values {
		name, ok := key.(string)
		if !ok {
			return nil, fmt.Errorf("gorillastore: JSON needs keys that are strings, not %T", key)
		}
		values[name] = value
	}
	return json.Marshal(values)
}

// Deserialize implements [Serializer].
func (JSONSerializer) Deserialize(data []byte, session *sessions.Session) error {
	var values map[string]any
	if err := json.Unmarshal(data, &values); err != nil {
		return err
	}
	for name, value := range values {
		session.Values[name] = value
	}
	return nil
}

// cookieSerializer is what securecookie uses otherwise, in less time.
type cookieSerializer struct{ securecookie.GobEncoder }

// Serialize implements securecookie.Serializer.
func (c cookieSerializer) Serialize(src any) ([]byte, error) {
	if id, ok := src.(string); ok {
		return gobmap.EncodeString(id), nil
	}
	return c.GobEncoder.Serialize(src)
}

// Deserialize implements securecookie.Serializer.
func (c cookieSerializer) Deserialize(src []byte, dst any) error {
	if id, ok := dst.(*string); ok {
		if s, ok := gobmap.DecodeString(src); ok {
			*id = s
			return nil
		}
	}
	return c.GobEncoder.Deserialize(src, dst)
}
