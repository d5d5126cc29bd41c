package goredis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// open returns a store, and checks that go-redis takes the same options, and that the store keeps a
// session where go-redis finds it.
func open(t *testing.T, o *redis.UniversalOptions) *tombstore.RedisStore {
	t.Helper()
	prefix := redistest.Prefix(t, redistest.Client(t))
	store, err := Open(o, tombstore.WithKeyPrefix(prefix), tombstore.WithTimeout(20*time.Second))
	require.NoError(t, err)
	t.Cleanup(store.Close)
	id := tombstore.NewID()
	_, err = store.Write(t.Context(), id, []byte("x"), time.Hour)
	require.NoError(t, err)

	client := redis.NewUniversalClient(o)
	t.Cleanup(func() { _ = client.Close() })
	value, err := client.Get(t.Context(), prefix+tombstore.Ref(id)).Result()
	require.NoError(t, err)
	require.Equal(t, "x", value[len(value)-1:])
	require.NoError(t, store.Invalidate(t.Context(), id))
	require.NoError(t, client.Del(t.Context(), prefix+tombstore.Ref(id)).Err())
	return store
}

// user makes a user of the server, and lets nobody in without a password. It returns what sends commands.
func user(t *testing.T, server *redistest.Server, password string) (do func(words ...string)) {
	t.Helper()
	admin := redistest.Dial(t, server.URL)
	do = func(words ...string) {
		t.Helper()
		require.NoError(t, admin.Do(context.Background(), admin.B().Arbitrary(words...).Build()).Error())
	}
	do("ACL", "SETUSER", "app", "on", ">"+password, "~*", "&*", "+@all")
	do("CONFIG", "SET", "requirepass", "an administrator's")
	return do
}

func TestOpen(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	user(t, server, "secret")
	o := &redis.UniversalOptions{
		Addrs: []string{server.Addr}, DB: 3, ClientName: "app", Username: "app", Password: "secret",
	}
	open(t, o)

	o.Password = "wrong"
	_, err := Open(o)
	require.EqualError(t, err, "tombstore: open: server answered WRONGPASS")
	o.Username, o.Password = "", "an administrator's"
	open(t, o)
	o.OnConnect = func(context.Context, *redis.Conn) error { return nil }
	_, err = Open(o)
	require.ErrorContains(t, err, "goredis: UniversalOptions.OnConnect must not be set: ")
	_, err = Open(nil)
	require.ErrorContains(t, err, "UniversalOptions are nil")
}

// A socket, and the older protocol.
func TestOpen_Socket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	redistest.Start(t, "--unixsocket", path)
	open(t, &redis.UniversalOptions{Addrs: []string{path}, Protocol: 2})
}

// One address is used alone, unless it is said to be that of a cluster.
func TestOpen_Cluster(t *testing.T) {
	t.Parallel()
	option, err := rueidis.ParseURL(redistest.ClusterURL(t))
	require.NoError(t, err)
	open(t, &redis.UniversalOptions{Addrs: option.InitAddress, IsClusterMode: true, DB: 3})
	open(t, &redis.UniversalOptions{Addrs: option.InitAddress})
	open(t, &redis.UniversalOptions{Addrs: append(option.InitAddress, option.InitAddress...)})
	_, err = Open(&redis.UniversalOptions{Addrs: option.InitAddress, DB: 3})
	require.Error(t, err)
}

// A certificate that nobody else trusts, also by a dialer of the program's own.
func TestOpen_TLS(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	https := httptest.NewTLSServer(nil)
	t.Cleanup(https.Close)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: https.TLS.Certificates})
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go forward(listener, server.Addr)
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	trusting := &tls.Config{RootCAs: roots}

	o := &redis.UniversalOptions{Addrs: []string{listener.Addr().String()}, TLSConfig: trusting}
	open(t, o)
	o.TLSConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	_, err = Open(o, tombstore.WithTimeout(time.Millisecond))
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, err, &unknown)

	o.Dialer = (&tls.Dialer{Config: trusting}).DialContext
	open(t, o)
}

// forward passes what comes in on to the server at addr.
func forward(l net.Listener, addr string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", addr)
		if err != nil {
			in.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				defer pair[0].Close()
				_, _ = io.Copy(pair[0], pair[1])
			}()
		}
	}
}

// Passwords that are replaced while the store is in use.
func TestOpen_CredentialsProviders(t *testing.T) {
	t.Parallel()
	password := "first"
	provider := &stream{first: "first"}
	for name, o := range map[string]*redis.UniversalOptions{
		"CredentialsProvider": {CredentialsProvider: func() (string, string) { return "app", password }},
		"CredentialsProviderContext": {CredentialsProviderContext: func(context.Context) (string, string, error) {
			return "app", password, nil
		}},
		"StreamingCredentialsProvider": {StreamingCredentialsProvider: provider},
	} {
		t.Run(name, func(t *testing.T) {
			password = "first"
			server := redistest.Start(t)
			do := user(t, server, "first")
			o.Addrs = []string{server.Addr}
			store := open(t, o)
			do("ACL", "SETUSER", "app", ">second", "<first")
			password = "second"
			for _, l := range provider.listeners {
				l.OnError(errors.New("no route"))
				l.OnNext(auth.NewBasicCredentials("app", "second"))
			}
			do("CLIENT", "KILL", "USER", "app")
			_, err := store.Write(t.Context(), tombstore.NewID(), nil, time.Hour)
			require.NoError(t, err)
		})
	}
}

// An error of a provider is not taken for no password.
func TestOpen_ProviderFails(t *testing.T) {
	t.Parallel()
	away := errors.New("no route")
	_, err := Open(&redis.UniversalOptions{StreamingCredentialsProvider: &stream{err: away}})
	require.ErrorIs(t, err, away)
	require.ErrorContains(t, err, "UniversalOptions.StreamingCredentialsProvider")
	_, err = Open(&redis.UniversalOptions{
		Addrs: []string{redistest.Start(t).Addr},
		CredentialsProviderContext: func(context.Context) (string, string, error) {
			return "", "", away
		},
	}, tombstore.WithTimeout(time.Millisecond))
	require.ErrorIs(t, err, away)
}

// Sentinels have a user and a password of their own, also if a provider says those of the servers.
func TestOpen_Sentinels(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("Sentinels in containers do not reach each other")
	}
	primary := redistest.Start(t)
	redistest.Dial(t, primary.URL) // before it asks for a password
	sentinels := redistest.StartSentinels(t, primary.Addr, 0, time.Minute)
	o := &redis.UniversalOptions{
		MasterName: "tombstore", SentinelUsername: "watcher", SentinelPassword: "seen",
		Username: "app", Password: "secret", DB: 3,
	}
	for _, sentinel := range sentinels.Servers {
		o.Addrs = append(o.Addrs, sentinel.Addr)
		admin, err := rueidis.NewClient(rueidis.ClientOption{
			InitAddress: []string{sentinel.Addr}, ForceSingleClient: true, DisableCache: true,
		})
		require.NoError(t, err)
		do := admin.B().Arbitrary("ACL", "SETUSER", "watcher", "on", ">seen", "~*", "&*", "+@all").Build()
		require.NoError(t, admin.Do(t.Context(), do).Error())
		admin.Close()
	}
	client := redistest.Dial(t, primary.URL)
	acl := client.B().Arbitrary("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all").Build()
	require.NoError(t, client.Do(t.Context(), acl).Error())

	open(t, o)
	o.Username, o.Password = "", ""
	o.CredentialsProvider = func() (string, string) { return "app", "secret" }
	open(t, o)
	o.Dialer = (&net.Dialer{}).DialContext
	open(t, o)
	o.SentinelPassword = "wrong"
	_, err := Open(o, tombstore.WithTimeout(time.Millisecond))
	require.Error(t, err)
}

// A provider is asked again for a connection that stays open.
func TestOpen_Reauthenticates(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	user(t, server, "secret")
	var asked atomic.Int64
	store, err := Open(&redis.UniversalOptions{
		Addrs: []string{server.Addr}, ConnMaxLifetime: time.Millisecond,
		CredentialsProvider: func() (string, string) {
			asked.Add(1)
			return "app", "secret"
		},
	})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	received := func() string {
		info := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "app", Password: "secret"})
		defer info.Close()
		text, err := info.InfoMap(t.Context(), "stats").Result()
		require.NoError(t, err)
		return text["Stats"]["total_connections_received"]
	}
	before, err := strconv.Atoi(received())
	require.NoError(t, err)
	redistest.Until(t, "it was asked again", func() bool { return asked.Load() > 100 })
	require.Equal(t, strconv.Itoa(before+1), received(), "it stays open")
}
