// Command twotabs is a small shop to try a logout race in, with two tabs of one browser: while a
// slow request of one tab is under way, log out, or log in, in the other. A switch changes the
// session store: scs on plain GET, SET and DEL, or scs on tombstore. A second page, devices.html, has
// "your devices": users see where they are logged in, end their other sessions, whose pages say so at
// once, and meet a limit. It serves http://127.0.0.1:8080 and brings its own Redis, unless -redis names
// one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	redis := flag.String("redis", "", "`URL` of a Redis or Valkey server (default: one inside this program)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *redis); err != nil {
		log.Fatal("twotabs: ", err)
	}
}

func run(ctx context.Context, addr, redis string) error {
	client, closeAll, err := connect(redis)
	if err != nil {
		return err
	}
	defer closeAll()
	handler, err := newSite(client, "twotabs-")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Printf("open http://%s\n", l.Addr())
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// connect returns a client of the server at url, or of one inside this program if url is empty.
func connect(url string) (client rueidis.Client, closeAll func(), err error) {
	closeServer := func() {}
	if url == "" {
		server, err := miniredis.Run()
		if err != nil {
			return nil, nil, err
		}
		url, closeServer = "redis://"+server.Addr(), server.Close
	}
	option, err := rueidis.ParseURL(url)
	if err == nil {
		option.DisableCache, option.ForceSingleClient = true, true
		client, err = rueidis.NewClient(option)
	}
	if err != nil {
		closeServer()
		return nil, nil, err
	}
	return client, func() { client.Close(); closeServer() }, nil
}
