package gorillastore

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"

	"github.com/gorilla/sessions"
)

// Serializer turns the values of a session into bytes and back. It is the interface of boj/redistore, whose implementations
// can be used. Implementations must be safe for concurrent use and leave everything but Values alone.
type Serializer interface {
	Serialize(session *sessions.Session) ([]byte, error)
	Deserialize(data []byte, session *sessions.Session) error
}

// GobSerializer stores values of any type; types that are not predeclared must be registered with gob.Register.
type GobSerializer struct{}

// Serialize implements [Serializer].
func (GobSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	var buf bytes.Buffer
	err := gob.NewEncoder(&buf).Encode(session.Values)
	return buf.Bytes(), err
}

// Deserialize implements [Serializer].
func (GobSerializer) Deserialize(data []byte, session *sessions.Session) error {
	return gob.NewDecoder(bytes.NewReader(data)).Decode(&session.Values)
}

// JSONSerializer stores values under keys that are strings. Numbers come back as float64, and structs as maps.
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
