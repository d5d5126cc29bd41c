package client

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

func TestComplete(t *testing.T) {
	t.Parallel()
	o, err := Complete(rueidis.ClientOption{InitAddress: []string{"host:6379"}}, true)
	require.NoError(t, err)
	want := rueidis.ClientOption{
		InitAddress: []string{"host:6379"}, DisableRetry: true, PipelineMultiplex: -1,
		ConnWriteTimeout: 1500 * time.Millisecond, MaxFlushDelay: 20 * time.Microsecond,
	}
	want.Dialer.KeepAlive = 500 * time.Millisecond
	want.Sentinel.TopologyRefreshInterval = 5 * time.Second
	want.Sentinel.Dialer.Timeout = 5 * time.Second
	require.Equal(t, want, o)

	want.DisableCache, want.Dialer.KeepAlive = true, 0
	o, err = Complete(rueidis.ClientOption{InitAddress: []string{"host:6379"}}, false)
	require.NoError(t, err)
	require.Equal(t, want, o)
}

// Every field that a caller sets is refused or stays as it is.
func TestComplete_EveryField(t *testing.T) {
	t.Parallel()
	var refused []string
	eachField(t, "", nil, func(name string, at []int) {
		o := rueidis.ClientOption{InitAddress: []string{"host:6379"}}
		field := reflect.ValueOf(&o).Elem().FieldByIndex(at)
		set(field)
		before := describe(field)
		completed, err := Complete(o, true)
		if err != nil {
			require.ErrorContains(t, err, "ClientOption."+name+" must not be set: ")
			refused = append(refused, name)
			return
		}
		require.Equal(t, before, describe(reflect.ValueOf(&completed).Elem().FieldByIndex(at)), name)
	})
	slices.Sort(refused)
	require.Equal(t, []string{
		"ClientTrackingOptions", "ConnLifetime", "NewCacheStoreFn", "ReplicaOnly", "SendToReplicas",
		"Standalone.EnableRedirect", "Standalone.ReplicaAddress",
	}, refused)
}

// eachField calls f with every field of ClientOption and its place, and with those of its structs.
func eachField(t *testing.T, prefix string, at []int, f func(name string, at []int)) {
	of := reflect.TypeFor[rueidis.ClientOption]()
	if at != nil {
		of = of.FieldByIndex(at).Type
	}
	for i := range of.NumField() {
		field := of.Field(i)
		place := append(slices.Clone(at), i)
		switch {
		case !field.IsExported():
		case field.Type.Kind() == reflect.Struct:
			eachField(t, prefix+field.Name+".", place, f)
		default:
			f(prefix+field.Name, place)
		}
	}
}

// set gives a field a value other than zero.
func set(field reflect.Value) {
	switch field.Kind() {
	case reflect.Bool:
		field.SetBool(true)
	case reflect.String:
		field.SetString("set")
	case reflect.Func:
		field.Set(reflect.MakeFunc(field.Type(), nil))
	case reflect.Pointer:
		field.Set(reflect.New(field.Type().Elem()))
	case reflect.Slice:
		field.Set(reflect.MakeSlice(field.Type(), 1, 1))
	case reflect.Interface, reflect.Chan: // of the dialer
	default:
		field.SetInt(12345)
	}
}

// describe returns what two fields are compared by.
func describe(field reflect.Value) any {
	switch field.Kind() {
	case reflect.Func, reflect.Pointer:
		return field.Pointer()
	}
	return field.Interface()
}
