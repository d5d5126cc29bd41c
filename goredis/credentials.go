package goredis

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/redis/rueidis"
)

// reauthenticate is how often connections are told the credentials of a StreamingCredentialsProvider.
const reauthenticate = time.Minute

// authenticate sets who says user and password, as go-redis chooses among the providers. rueidis asks one
// for connections to Sentinels too, which have a user and a password of their own.
func authenticate(option *rueidis.ClientOption, o *redis.UniversalOptions) error {
	provide, again, err := provider(o)
	if provide == nil || err != nil {
		return err
	}
	if o.MasterName != "" {
		option.Sentinel.Dialer.Resolver = sentinels
	}
	option.AuthCredentialsFn = func(c rueidis.AuthCredentialsContext) (credentials rueidis.AuthCredentials, err error) {
		if _, ok := c.Address.(sentinelAddr); ok {
			return rueidis.AuthCredentials{Username: o.SentinelUsername, Password: o.SentinelPassword}, nil
		}
		if again > 0 {
			credentials.RefreshAfter = time.Now().Add(again)
		}
		credentials.Username, credentials.Password, err = provide()
		return credentials, err
	}
	return nil
}

// provider returns what says user and password, nil if they do not change, and how often a connection is
// to be told them again, 0 for never.
func provider(o *redis.UniversalOptions) (
	provide func() (username, password string, err error), again time.Duration, err error,
) {
	switch {
	case o.StreamingCredentialsProvider != nil:
		provide, err = subscribe(o.StreamingCredentialsProvider)
		return provide, reauthenticate, err
	case o.CredentialsProviderContext != nil:
		return func() (string, string, error) {
			ctx, cancel := context.WithTimeout(context.Background(), dialTimeout(o))
			defer cancel()
			return o.CredentialsProviderContext(ctx)
		}, o.ConnMaxLifetime, nil
	case o.CredentialsProvider != nil:
		return func() (string, string, error) {
			username, password := o.CredentialsProvider()
			return username, password, nil
		}, o.ConnMaxLifetime, nil
	}
	return nil, 0, nil
}

// subscribe returns the latest credentials that p has sent.
func subscribe(p auth.StreamingCredentialsProvider) (func() (string, string, error), error) {
	var l listener
	first, _, err := p.Subscribe(&l)
	if err != nil {
		return nil, fmt.Errorf("goredis: UniversalOptions.StreamingCredentialsProvider: %w", err)
	}
	l.latest.CompareAndSwap(nil, &first) // OnNext may have been called already
	return func() (string, string, error) {
		username, password := (*l.latest.Load()).BasicAuth()
		return username, password, nil
	}, nil
}

// listener is an auth.CredentialsListener. When no new credentials come the last ones stay, and it is the
// server that says when they are not valid any more.
type listener struct {
	latest atomic.Pointer[auth.Credentials]
}

func (l *listener) OnNext(c auth.Credentials) { l.latest.Store(&c) }
func (l *listener) OnError(error)             {}

// sentinels marks the dialer of connections to Sentinels. It resolves names as the default does.
var sentinels = &net.Resolver{}

// sentinelConn is a connection to a Sentinel. Its address says so.
type sentinelConn struct{ net.Conn }

func (c sentinelConn) RemoteAddr() net.Addr { return sentinelAddr{c.Conn.RemoteAddr()} }

type sentinelAddr struct{ net.Addr }
