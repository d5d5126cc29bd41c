package tombstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math"
	"net"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// opened is a bed on client's server whose store was opened with o.
func opened(t *testing.T, client rueidis.Client, o rueidis.ClientOption, opts ...Option) *bed {
	t.Helper()
	b := bedOn(t, client)
	s, err := OpenOption(o, append(opts, WithKeyPrefix(b.prefix))...)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return &bed{s, t, client}
}

// A certificate that nobody else trusts.
func TestOpenOption_TLS(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	https := httptest.NewTLSServer(nil)
	defer https.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: https.TLS.Certificates})
	require.NoError(t, err)
	defer listener.Close()
	go forward(listener, server.Addr)

	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	option := rueidis.ClientOption{
		InitAddress: []string{listener.Addr().String()},
		TLSConfig:   &tls.Config{RootCAs: roots},
	}
	b := opened(t, redistest.Dial(t, server.URL), option)
	id := NewID()
	b.write(id, "x", time.Minute)
	value, _ := b.raw(id)
	require.Equal(t, "x", value[headerSize:])

	option.TLSConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	_, err = OpenOption(option, WithTimeout(time.Millisecond))
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, err, &unknown)

	url := "rediss://" + listener.Addr().String()
	_, err = Open(url, WithTimeout(time.Millisecond))
	require.ErrorAs(t, err, &unknown)
	s, err := Open(url + "?skip_verify=true")
	require.NoError(t, err)
	s.Close()
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

// A password that is replaced while the store is in use, as those of IAM are.
func TestOpenOption_AuthCredentialsFn(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := bedOn(t, redistest.Dial(t, server.URL))
	var password atomic.Value
	password.Store("first")
	admin.do("ACL", "SETUSER", "app", "on", ">first", "~*", "&*", "+@all")
	b := opened(t, admin.client, rueidis.ClientOption{
		InitAddress: []string{server.Addr},
		AuthCredentialsFn: func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			return rueidis.AuthCredentials{Username: "app", Password: password.Load().(string)}, nil
		},
	})
	id := NewID()
	b.write(id, "x", time.Minute)
	password.Store("second")
	admin.do("ACL", "SETUSER", "app", ">second", "<first")
	killed, err := admin.do("CLIENT", "KILL", "USER", "app").AsInt64()
	require.NoError(t, err)
	require.Positive(t, killed)
	b.reads(id, "x")

	admin.do("ACL", "SETUSER", "app", "resetpass", ">third")
	_, err = OpenOption(rueidis.ClientOption{InitAddress: []string{server.Addr}, Username: "app", Password: "second"})
	require.EqualError(t, err, "tombstore: open: server answered WRONGPASS")
}

// The dialer that a function of the program's own is handed has the settings of Open where the
// program has set none, for Sentinels too.
func TestOpenOption_DialCtxFn(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	dialers := make(chan net.Dialer, 10)
	option := rueidis.ClientOption{
		InitAddress: []string{"a name that only the program knows"},
		DialCtxFn: func(ctx context.Context, _ string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			dialers <- *d
			return d.DialContext(ctx, "tcp", server.Addr)
		},
	}
	b := opened(t, redistest.Dial(t, server.URL), option, WithClientCache(time.Hour))
	id := NewID()
	b.write(id, "x", time.Minute)
	b.reads(id, "x")
	dialer := <-dialers
	require.Equal(t, 500*time.Millisecond, dialer.KeepAlive)
	require.Equal(t, 3*time.Second, b.Staleness())

	option.Dialer = net.Dialer{KeepAlive: 200 * time.Millisecond, Timeout: 7 * time.Second}
	option.ConnWriteTimeout = 100 * time.Millisecond
	for len(dialers) > 0 {
		<-dialers
	}
	b = opened(t, b.client, option, WithClientCache(time.Hour))
	dialer = <-dialers
	require.Equal(t, 200*time.Millisecond, dialer.KeepAlive)
	require.Equal(t, 7*time.Second, dialer.Timeout)
	require.Equal(t, time.Second, b.Staleness())
}

func TestCache_Limit(t *testing.T) {
	t.Parallel()
	const hour, never = time.Hour, time.Duration(math.MaxInt64)
	for _, c := range []struct{ maxAge, keepAlive, timeout, want time.Duration }{
		{hour, time.Second, 2 * time.Second, 4500 * time.Millisecond},
		{time.Second, time.Second, 2 * time.Second, time.Second},
		{hour, -1, time.Second, hour},
		{hour, time.Second, -1, hour},
		{hour, never, time.Second, hour},
		{hour, time.Second, never, hour},
		{never, never, never, never},
	} {
		cache := newCache(c.maxAge)
		cache.limit(c.keepAlive, c.timeout)
		require.Equal(t, c.want, cache.bound, "%v", c)
	}
}

// What would break the promise is refused before anything is dialled.
func TestOpenOption_Refuses(t *testing.T) {
	t.Parallel()
	for field, set := range map[string]func(*rueidis.ClientOption){
		"SendToReplicas":            func(o *rueidis.ClientOption) { o.SendToReplicas = func(rueidis.Completed) bool { return false } },
		"ReplicaOnly":               func(o *rueidis.ClientOption) { o.ReplicaOnly = true },
		"Standalone.ReplicaAddress": func(o *rueidis.ClientOption) { o.Standalone.ReplicaAddress = []string{"x:1"} },
		"Standalone.EnableRedirect": func(o *rueidis.ClientOption) { o.Standalone.EnableRedirect = true },
		"ConnLifetime":              func(o *rueidis.ClientOption) { o.ConnLifetime = time.Hour },
		"ClientTrackingOptions":     func(o *rueidis.ClientOption) { o.ClientTrackingOptions = []string{"OPTIN", "NOLOOP"} },
		"NewCacheStoreFn": func(o *rueidis.ClientOption) {
			o.NewCacheStoreFn = func(rueidis.CacheStoreOption) rueidis.CacheStore { return nil }
		},
		"InitAddress": func(o *rueidis.ClientOption) { o.InitAddress = nil },
	} {
		option := rueidis.ClientOption{
			InitAddress: []string{"x:1"},
			DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
				t.Error(field, "was dialled")
				return nil, io.EOF
			},
		}
		set(&option)
		_, err := OpenOption(option, WithTimeout(time.Millisecond))
		require.ErrorContains(t, err, "tombstore: open: ClientOption."+field+" ")
	}
}

// It is no reason to wait.
func TestOpen_NoSuchDatabase(t *testing.T) {
	t.Parallel()
	_, err := Open(redistest.Start(t).URL+"/4711", WithTimeout(time.Hour))
	require.EqualError(t, err, "tombstore: open: server answered ERR DB index is out of range")
}

// Open waits, as operations do, for a server that does not listen yet.
func TestOpen_Waits(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var attempts atomic.Int64
	option := rueidis.ClientOption{
		InitAddress: []string{server.Addr},
		DialCtxFn: func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			if attempts.Add(1) <= 3 {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return d.DialContext(ctx, "tcp", addr)
		},
	}
	s, err := OpenOption(option, WithTimeout(time.Minute))
	require.NoError(t, err)
	s.Close()
	require.Greater(t, attempts.Load(), int64(3))

	attempts.Store(math.MinInt64)
	_, err = OpenOption(option, WithTimeout(5*time.Millisecond))
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.ErrorContains(t, err, "tombstore: open: ")
}

// A server that is loading its data answers, but not what was asked. Some refuse what a client asks
// when it connects, and some the first operation.
func TestOpen_Loading(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--rdbcompression", "no",
		"--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
	setup := redistest.Dial(t, server.URL)
	var commands []rueidis.Completed
	for i := range 20_000 { // they would take 100 seconds
		commands = append(commands, setup.B().Set().Key(strconv.Itoa(i)).Value(strings.Repeat("x", 1024)).Build())
	}
	for _, res := range setup.DoMulti(t.Context(), append(commands, setup.B().Arbitrary("SAVE").Build())...) {
		require.NoError(t, res.Error())
	}
	server.Kill(t)
	server.Relaunch(t)

	use := func(timeout time.Duration) error {
		s, err := Open(server.URL, WithTimeout(timeout))
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.Exists(t.Context(), NewID())
		return err
	}
	redistest.Until(t, "it is loading", func() bool { // before that it does not listen
		err := use(100 * time.Millisecond)
		require.Error(t, err)
		return strings.Contains(err.Error(), "server answered LOADING")
	})

	admin := redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) { o.ForceSingleClient = true })
	refused := func() int {
		n, err := strconv.Atoi(redistest.Info(t, admin, "total_error_replies"))
		require.NoError(t, err)
		return n
	}
	before := refused()
	done := make(chan error, 1)
	go func() { done <- use(5 * time.Minute) }()
	redistest.Until(t, "it was refused", func() bool { return refused() > before })
	require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary("CONFIG", "SET", "key-load-delay", "0").Build()).Error())
	require.NoError(t, <-done)
}

// Sentinels have users of their own.
func TestOpen_Sentinels(t *testing.T) {
	t.Parallel()
	if redistest.InContainer() {
		t.Skip("Sentinels in containers do not reach each other")
	}
	primary := redistest.Start(t)
	sentinels := redistest.StartSentinels(t, primary.Addr, 0, time.Minute)
	for _, server := range sentinels.Servers {
		admin := redistest.Dial(t, server.URL, func(o *rueidis.ClientOption) { o.ForceSingleClient = true })
		rights := strings.Fields("ACL SETUSER asker on >one allchannels +@all")
		require.NoError(t, admin.Do(t.Context(), admin.B().Arbitrary(rights...).Build()).Error())
	}
	bedOn(t, redistest.Dial(t, primary.URL)).do("ACL", "SETUSER", "app", "on", ">two", "~*", "&*", "+@all")
	url := strings.Replace(sentinels.URL, "redis://", "redis://app:two@", 1)
	s, err := Open(url + "&sentinel_username=asker&sentinel_password=one")
	require.NoError(t, err)
	defer s.Close()
	_, err = s.Write(t.Context(), NewID(), nil, time.Minute)
	require.NoError(t, err)
	_, err = Open(url + "&sentinel_username=asker&sentinel_password=two")
	require.EqualError(t, err, "tombstore: open: server answered WRONGPASS")
	_, err = Open(strings.Replace(url, "master_set=", "master_set=no", 1))
	require.EqualError(t, err, "tombstore: open: server answered ERR No such master with that name")
}
