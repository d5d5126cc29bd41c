// Package goredis opens a tombstore with the options that a program has set for go-redis:
//
//	store, err := goredis.Open(&redis.UniversalOptions{Addrs: []string{"127.0.0.1:6379"}})
//
// The store has connections of its own, by rueidis; go-redis makes none. So options about a pool of
// connections and about retries have no meaning: the store has one connection to each server, and tries
// again until the time of tombstore.WithTimeout is up. An option that has a meaning which the store cannot
// give it is an error that names the field. The README has a table of all fields.
//
// # Limits
//
//   - Options are those that redis.NewUniversalClient takes. Where that gives a client for one server, the
//     store uses the one address and no other, also if the server is part of a cluster.
//   - A CredentialsProvider is asked whenever the store connects, and again after each ConnMaxLifetime, and
//     one with a context has DialTimeout to answer. With a StreamingCredentialsProvider Option subscribes
//     once, for as long as the program runs, and connections learn of new credentials within a minute.
package goredis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/tombstore/tombstore"
)

// Open is tombstore.OpenOption with the options of go-redis.
func Open(o *redis.UniversalOptions, opts ...tombstore.Option) (*tombstore.RedisStore, error) {
	option, err := Option(o)
	if err != nil {
		return nil, err
	}
	return tombstore.OpenOption(option, opts...)
}

var errNil = errors.New("goredis: UniversalOptions are nil")

// Option returns what tombstore.OpenOption takes, for a program that has more to set. It returns an error
// that names the field if o sets one that cannot be carried over.
func Option(o *redis.UniversalOptions) (rueidis.ClientOption, error) {
	if o == nil {
		return rueidis.ClientOption{}, errNil
	}
	if err := refuse(o); err != nil {
		return rueidis.ClientOption{}, err
	}
	cluster := o.MasterName == "" && (len(o.Addrs) > 1 || o.IsClusterMode)
	option := rueidis.ClientOption{
		InitAddress:         addresses(o),
		ForceSingleClient:   o.MasterName == "" && !cluster,
		Username:            o.Username,
		Password:            o.Password,
		ClientName:          o.ClientName,
		ClientSetInfo:       identity(o),
		TLSConfig:           o.TLSConfig,
		AlwaysRESP2:         o.Protocol == 2,
		ConnWriteTimeout:    cmp.Or(max(o.ReadTimeout, 0), max(o.WriteTimeout, 0)),
		ReadBufferEachConn:  o.ReadBufferSize,
		WriteBufferEachConn: o.WriteBufferSize,
	}
	if !cluster { // which has one database
		option.SelectDB = o.DB
	}
	option.Dialer.Timeout = dialTimeout(o)
	if o.MasterName != "" {
		option.Sentinel = rueidis.SentinelOption{
			Dialer:     option.Dialer,
			TLSConfig:  o.TLSConfig,
			MasterSet:  o.MasterName,
			Username:   o.SentinelUsername,
			Password:   o.SentinelPassword,
			ClientName: o.ClientName,
		}
	}
	option.DialCtxFn = dialer(o)
	return option, authenticate(&option, o)
}

// refuse returns an error if o sets what cannot be carried over.
func refuse(o *redis.UniversalOptions) error {
	for _, field := range []struct {
		name, why string
		set       bool
	}{
		{"OnConnect", "the store has no connection of go-redis to call it with", o.OnConnect != nil},
		{"PushNotificationProcessor", "the store has no connection of go-redis to call it for", o.PushNotificationProcessor != nil},
		{"ReadOnly", replicas, o.ReadOnly},
		{"RouteByLatency", replicas, o.RouteByLatency},
		{"RouteRandomly", replicas, o.RouteRandomly},
	} {
		if field.set {
			return fmt.Errorf("goredis: UniversalOptions.%s must not be set: %s", field.name, field.why)
		}
	}
	return nil
}

const replicas = "a replica may not have heard of the end of a session"

// addresses returns Addrs, or where go-redis looks for a server without them.
func addresses(o *redis.UniversalOptions) []string {
	switch {
	case len(o.Addrs) > 0:
		return o.Addrs
	case o.MasterName != "":
		return []string{"127.0.0.1:26379"}
	}
	return []string{"127.0.0.1:6379"}
}

func dialTimeout(o *redis.UniversalOptions) time.Duration {
	if o.DialTimeout > 0 {
		return o.DialTimeout
	}
	return rueidis.DefaultDialTimeout // which is that of go-redis, too
}

// identity returns the name and version that connections give themselves.
func identity(o *redis.UniversalOptions) []string {
	//lint:ignore SA1019 a program may still set the field by its old name
	off := o.DisableIdentity || o.DisableIndentity
	switch {
	case off:
		return rueidis.DisableClientSetInfo
	case o.IdentitySuffix != "":
		return []string{rueidis.LibName + "(" + o.IdentitySuffix + ")", rueidis.LibVer}
	}
	return nil
}

// dialer returns how to connect. A Dialer of the program's own does that alone, without TLSConfig, as it
// does for go-redis.
func dialer(o *redis.UniversalOptions) func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
	return func(ctx context.Context, addr string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, d.Timeout)
		defer cancel()
		dial := d.DialContext
		switch {
		case o.Dialer != nil:
			dial = o.Dialer
		case t != nil:
			dial = (&tls.Dialer{NetDialer: d, Config: t}).DialContext
		}
		network := "tcp"
		if strings.HasPrefix(addr, "/") {
			network = "unix"
		}
		conn, err := dial(ctx, network, addr)
		if err == nil && d.Resolver == sentinels {
			conn = sentinelConn{conn}
		}
		return conn, err
	}
}
