package goredis_test

import (
	"fmt"
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/tombstore/tombstore/goredis"
)

// What a program has set for go-redis, and the one line that changes.
func ExampleOpen() {
	options := &redis.UniversalOptions{Addrs: []string{"127.0.0.1:6379"}, Password: "secret"}
	store, err := goredis.Open(options) // instead of redis.NewUniversalClient(options)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
}

// An option that the store cannot have is an error.
func ExampleOption() {
	_, err := goredis.Option(&redis.UniversalOptions{Addrs: []string{"a:6379", "b:6379"}, RouteByLatency: true})
	fmt.Println(err)
	// Output: goredis: UniversalOptions.RouteByLatency must not be set: a replica may not have heard of the end of a session
}
