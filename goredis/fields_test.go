package goredis

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/redis/go-redis/v9/push"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore/internal/redistest"
)

// carried is a field that changes what Option returns: what is set, and what comes of it.
type carried struct {
	set  func(o *redis.UniversalOptions)
	want any
	got  func(o rueidis.ClientOption) any
}

// What becomes of each field of UniversalOptions.
var (
	carriedOver = map[string]carried{
		"Addrs": {
			func(o *redis.UniversalOptions) { o.Addrs = []string{"a:1", "b:2"} },
			[]any{[]string{"a:1", "b:2"}, false},
			func(o rueidis.ClientOption) any { return []any{o.InitAddress, o.ForceSingleClient} },
		},
		"IsClusterMode": {
			func(o *redis.UniversalOptions) { o.IsClusterMode, o.DB = true, 3 },
			[]any{false, 0},
			func(o rueidis.ClientOption) any { return []any{o.ForceSingleClient, o.SelectDB} },
		},
		"MasterName": {
			func(o *redis.UniversalOptions) { o.MasterName, o.DB = "set", 3 },
			[]any{"set", false, 3, []string{"127.0.0.1:26379"}},
			func(o rueidis.ClientOption) any {
				return []any{o.Sentinel.MasterSet, o.ForceSingleClient, o.SelectDB, o.InitAddress}
			},
		},
		"ClientName": {
			func(o *redis.UniversalOptions) { o.ClientName, o.MasterName = "app", "set" },
			[]any{"app", "app"},
			func(o rueidis.ClientOption) any { return []any{o.ClientName, o.Sentinel.ClientName} },
		},
		"DB": {
			func(o *redis.UniversalOptions) { o.DB = 3 },
			[]any{3, true, []string{"127.0.0.1:6379"}},
			func(o rueidis.ClientOption) any { return []any{o.SelectDB, o.ForceSingleClient, o.InitAddress} },
		},
		"Dialer": {
			func(o *redis.UniversalOptions) {
				o.TLSConfig = &tls.Config{}
				o.Dialer = func(_ context.Context, network, addr string) (net.Conn, error) {
					return nil, errors.New(network + " " + addr)
				}
			},
			[]string{"tcp a:1", "unix /socket"},
			func(o rueidis.ClientOption) any {
				_, err := o.DialCtxFn(context.Background(), "a:1", &o.Dialer, o.TLSConfig)
				_, err2 := o.DialCtxFn(context.Background(), "/socket", &o.Dialer, o.TLSConfig)
				return []string{err.Error(), err2.Error()}
			},
		},
		"DialTimeout": {
			func(o *redis.UniversalOptions) {
				o.DialTimeout, o.MasterName = 7*time.Second, "set"
				o.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
					_, bounded := ctx.Deadline()
					return nil, errors.Join(map[bool]error{true: context.DeadlineExceeded}[bounded])
				}
			},
			[]any{7 * time.Second, 7 * time.Second, true},
			func(o rueidis.ClientOption) any {
				_, err := o.DialCtxFn(context.Background(), "a:1", &o.Dialer, nil)
				return []any{o.Dialer.Timeout, o.Sentinel.Dialer.Timeout, errors.Is(err, context.DeadlineExceeded)}
			},
		},
		"Protocol": {
			func(o *redis.UniversalOptions) { o.Protocol = 2 }, true,
			func(o rueidis.ClientOption) any { return o.AlwaysRESP2 },
		},
		"Username": {
			func(o *redis.UniversalOptions) { o.Username = "app" }, "app",
			func(o rueidis.ClientOption) any { return o.Username },
		},
		"Password": {
			func(o *redis.UniversalOptions) { o.Password = "secret" }, "secret",
			func(o rueidis.ClientOption) any { return o.Password },
		},
		"CredentialsProvider": {
			func(o *redis.UniversalOptions) {
				o.CredentialsProvider = func() (string, string) { return "app", "changing" }
			},
			rueidis.AuthCredentials{Username: "app", Password: "changing"}, credentialsOf,
		},
		"CredentialsProviderContext": {
			func(o *redis.UniversalOptions) {
				o.CredentialsProvider = func() (string, string) { return "app", "ignored" }
				o.CredentialsProviderContext = func(ctx context.Context) (string, string, error) {
					_, bounded := ctx.Deadline()
					return "app", map[bool]string{true: "bounded"}[bounded], nil
				}
			},
			rueidis.AuthCredentials{Username: "app", Password: "bounded"}, credentialsOf,
		},
		"StreamingCredentialsProvider": {
			func(o *redis.UniversalOptions) {
				o.CredentialsProvider = func() (string, string) { return "app", "ignored" }
				o.StreamingCredentialsProvider = &stream{first: "streamed"}
			},
			rueidis.AuthCredentials{Username: "app", Password: "streamed"},
			func(o rueidis.ClientOption) any {
				c := credentialsOf(o).(rueidis.AuthCredentials)
				c.RefreshAfter = time.Time{}
				return c
			},
		},
		"ConnMaxLifetime": {
			func(o *redis.UniversalOptions) {
				o.ConnMaxLifetime = time.Hour
				o.CredentialsProvider = func() (string, string) { return "app", "changing" }
			},
			true,
			func(o rueidis.ClientOption) any {
				again := time.Until(credentialsOf(o).(rueidis.AuthCredentials).RefreshAfter)
				return again > 59*time.Minute && again <= time.Hour
			},
		},
		"SentinelUsername": {
			func(o *redis.UniversalOptions) { o.MasterName, o.SentinelUsername = "set", "watcher" }, "watcher",
			func(o rueidis.ClientOption) any { return o.Sentinel.Username },
		},
		"SentinelPassword": {
			func(o *redis.UniversalOptions) { o.MasterName, o.SentinelPassword = "set", "secret" }, "secret",
			func(o rueidis.ClientOption) any { return o.Sentinel.Password },
		},
		"ReadTimeout": {
			func(o *redis.UniversalOptions) { o.ReadTimeout, o.WriteTimeout = 3*time.Second, 4*time.Second }, 3 * time.Second,
			func(o rueidis.ClientOption) any { return o.ConnWriteTimeout },
		},
		"WriteTimeout": {
			func(o *redis.UniversalOptions) { o.ReadTimeout, o.WriteTimeout = -1, 4*time.Second }, 4 * time.Second,
			func(o rueidis.ClientOption) any { return o.ConnWriteTimeout },
		},
		"ReadBufferSize": {
			func(o *redis.UniversalOptions) { o.ReadBufferSize = 1 << 16 }, 1 << 16,
			func(o rueidis.ClientOption) any { return o.ReadBufferEachConn },
		},
		"WriteBufferSize": {
			func(o *redis.UniversalOptions) { o.WriteBufferSize = 1 << 16 }, 1 << 16,
			func(o rueidis.ClientOption) any { return o.WriteBufferEachConn },
		},
		"TLSConfig": {
			func(o *redis.UniversalOptions) { o.MasterName, o.TLSConfig = "set", &tls.Config{ServerName: "a"} },
			[]string{"a", "a"},
			func(o rueidis.ClientOption) any {
				return []string{o.TLSConfig.ServerName, o.Sentinel.TLSConfig.ServerName}
			},
		},
		"DisableIdentity": {
			func(o *redis.UniversalOptions) { o.DisableIdentity = true }, rueidis.DisableClientSetInfo,
			func(o rueidis.ClientOption) any { return o.ClientSetInfo },
		},
		"DisableIndentity": {
			func(o *redis.UniversalOptions) {
				reflect.ValueOf(o).Elem().FieldByName("DisableIndentity").SetBool(true)
			},
			rueidis.DisableClientSetInfo,
			func(o rueidis.ClientOption) any { return o.ClientSetInfo },
		},
		"IdentitySuffix": {
			func(o *redis.UniversalOptions) { o.IdentitySuffix = "app" }, []string{"rueidis(app)", rueidis.LibVer},
			func(o rueidis.ClientOption) any { return o.ClientSetInfo },
		},
	}
	refused     = words("OnConnect PushNotificationProcessor ReadOnly RouteByLatency RouteRandomly")
	meaningless = words(`MaxRetries MinRetryBackoff MaxRetryBackoff DialerRetries DialerRetryTimeout ContextTimeoutEnabled
		PipelineReadBufferSize PipelineWriteBufferSize PipelinePoolSize AutoPipelineOptions
		PoolFIFO PoolSize MaxConcurrentDials PoolTimeout MinIdleConns MaxIdleConns MaxActiveConns ConnMaxIdleTime ConnMaxLifetimeJitter
		MaxRedirects RouteByLatencyTolerance FailingTimeoutSeconds UnstableResp3 MaintNotificationsConfig
		ClientSideCacheConfig ClientSideCache ClientSideCacheStrategy ClientSideCacheRefreshOnInvalidate
		ClientSideCacheCoalesceMisses ClientSideCacheInvalidationBatchWindow`)
)

func words(text string) map[string]bool {
	all := map[string]bool{}
	for _, word := range strings.Fields(text) {
		all[word] = true
	}
	return all
}

func credentialsOf(o rueidis.ClientOption) any {
	c, err := o.AuthCredentialsFn(rueidis.AuthCredentialsContext{Address: &net.TCPAddr{}})
	if err != nil {
		return err
	}
	return c
}

// stream is a StreamingCredentialsProvider.
type stream struct {
	first     string
	err       error
	listeners []auth.CredentialsListener
}

func (s *stream) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	s.listeners = append(s.listeners, l)
	return auth.NewBasicCredentials("app", s.first), func() error { return nil }, s.err
}

// The field of no version of go-redis is forgotten, and the table of the README has them all.
func TestOption_EveryField(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(readme), "\n| field | ")
	require.True(t, found)
	table, _, found = strings.Cut(table, "\n\n")
	require.True(t, found)
	described := map[string]string{} // field to what the README says
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*) \\| (.*) \\|$").FindAllStringSubmatch(table, -1) {
		for name := range strings.SplitSeq(row[1], ", ") {
			described[strings.Trim(name, "`")] = row[2]
		}
	}

	fields := reflect.TypeFor[redis.UniversalOptions]()
	require.Len(t, described, fields.NumField())
	require.Equal(t, fields.NumField(), len(carriedOver)+len(refused)+len(meaningless))
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		says, found := described[name]
		require.True(t, found, "README.md has no row for %s", name)
		carries, isCarried := carriedOver[name]
		require.Equal(t, refused[name], strings.HasPrefix(says, "an error"), name)
		require.Equal(t, meaningless[name], strings.HasPrefix(says, "no meaning"), name)

		var o redis.UniversalOptions
		if isCarried {
			carries.set(&o)
			option, err := Option(&o)
			require.NoError(t, err)
			require.Equal(t, carries.want, carries.got(option), name)
			continue
		}
		plain, err := Option(&o)
		require.NoError(t, err)
		set(t, reflect.ValueOf(&o).Elem().Field(i))
		option, err := Option(&o)
		if refused[name] {
			require.ErrorContains(t, err, "goredis: UniversalOptions."+name+" must not be set: ")
			continue
		}
		require.True(t, meaningless[name], "go-redis has a new field, %s", name)
		require.NoError(t, err, name)
		plain.DialCtxFn, option.DialCtxFn = nil, nil
		require.Equal(t, plain, option, name)
	}
}

// The program in the README compiles.
func TestReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, program, found := strings.Cut(string(readme), "```go\n")
	require.True(t, found)
	program, _, _ = strings.Cut(program, "```\n")
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program), 0o644))
	output, err := redistest.Go(t, "list", "-export", file).CombinedOutput()
	require.NoError(t, err, string(output))
}

// set gives a field a value other than zero.
func set(t *testing.T, field reflect.Value) {
	switch field.Kind() {
	case reflect.Bool:
		field.SetBool(true)
	case reflect.Func:
		field.Set(reflect.MakeFunc(field.Type(), nil))
	case reflect.Pointer:
		field.Set(reflect.New(field.Type().Elem()))
	case reflect.Interface:
		field.Set(reflect.ValueOf(some{}).Convert(field.Type()))
	case reflect.Int, reflect.Int64, reflect.Uint8:
		field.Set(reflect.ValueOf(1).Convert(field.Type()))
	default:
		t.Fatalf("no value for a %s", field.Type())
	}
}

// some is a value for a field that is an interface.
type some struct {
	redis.Cache
	push.NotificationProcessor
}
