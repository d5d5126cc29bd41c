// Command fips writes and reads a session, sealed too, on the server named by its argument. Its
// test runs it under GODEBUG=fips140=only.
package main

import (
	"context"
	"crypto/fips140"
	"log"
	"os"
	"time"

	"github.com/tombstore/tombstore"
)

func main() {
	if !fips140.Enabled() {
		log.Fatal("not in FIPS 140 mode")
	}
	for _, opts := range [][]tombstore.Option{
		nil,
		{tombstore.WithSealedData()},
		{tombstore.WithSealedData(), tombstore.WithKeys(make([]byte, 32))},
	} {
		play(append(opts, tombstore.WithKeyPrefix(os.Args[2])))
	}
}

func play(opts []tombstore.Option) {
	store, err := tombstore.Open(os.Args[1], opts...)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	ctx, id := context.Background(), tombstore.NewID()
	if _, err := store.Write(ctx, id, []byte("data"), time.Minute); err != nil {
		log.Fatal(err)
	}
	if s, err := store.Read(ctx, id); err != nil || string(s.Data) != "data" {
		log.Fatal("read something else: ", err)
	}
	if err := store.Invalidate(ctx, id); err != nil {
		log.Fatal(err)
	}
}
