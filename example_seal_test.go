package tombstore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/tombstore/tombstore"
)

// Whoever reads a dump cannot read a session, for which it takes the cookie. Ids that can be
// guessed are refused.
func ExampleWithSealedData() {
	ctx := context.Background()
	store, err := tombstore.NewMemory(tombstore.WithSealedData())
	if err != nil {
		log.Fatal(err)
	}
	_, err = store.Write(ctx, tombstore.NewID(), []byte("alice"), time.Hour)
	fmt.Println(err)
	_, err = store.Write(ctx, "12345", []byte("alice"), time.Hour)
	fmt.Println(errors.Is(err, tombstore.ErrInvalidID))
	// Output:
	// <nil>
	// true
}

// Reading a session takes the key of the application, too. The one before is still good for
// reading.
func ExampleWithKeys() {
	var current, previous []byte // from where the program keeps its secrets
	store, err := tombstore.Open("redis://127.0.0.1:6379",
		tombstore.WithSealedData(), tombstore.WithKeys(current, previous))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}
