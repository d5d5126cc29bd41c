package client

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

var errMalformed = errors.New("malformed URL: want redis://user:password@host:port/db, with special characters of " +
	"user, password and parameters as %XX")

// parse is rueidis.ParseURL for a URL that was checked, and knows the user and password of
// Sentinels.
func parse(text string) (rueidis.ClientOption, error) {
	u, query, err := check(text)
	if err != nil {
		return rueidis.ClientOption{}, err
	}
	o, err := rueidis.ParseURL(u.String())
	if err != nil {
		return o, errMalformed
	}
	if o.Sentinel.MasterSet != "" {
		o.Sentinel.Username = query.Get("sentinel_username")
		o.Sentinel.Password = query.Get("sentinel_password")
		o.Sentinel.TLSConfig = o.TLSConfig
	}
	return o, nil
}

// check says what is wrong with a URL. No error quotes more of it than the name of a parameter: any
// part may be a piece of a password whose special characters were not escaped.
func check(text string) (*url.URL, url.Values, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	switch scheme = strings.ToLower(scheme); scheme {
	case "redis", "rediss", "valkey", "valkeys", "unix":
	default:
		return nil, nil, errors.New("the URL does not begin with redis://, rediss://, valkey://, valkeys:// or unix://")
	}
	u, err := url.Parse(text)
	if err != nil && strings.Contains(err.Error(), "invalid port") {
		return nil, nil, errPort
	}
	if err != nil || strings.Contains(rest, "#") {
		return nil, nil, errMalformed
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || strings.Contains(u.RawQuery, "@") {
		return nil, nil, errMalformed
	}
	if scheme == "unix" {
		if u.Host != "" || len(u.Path) < 2 {
			return nil, nil, errors.New("malformed URL: want unix:///path/to/socket")
		}
		return u, query, checkParameters(query)
	}
	switch {
	case strings.Contains(u.Path, "@"), strings.Contains(u.Hostname(), ":") && !strings.HasPrefix(u.Host, "["):
		return nil, nil, errMalformed
	case u.Port() != "" && !isPort(u.Port()):
		return nil, nil, errPort
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	if db := strings.TrimPrefix(u.Path, "/"); db != "" && !isNumber(db) {
		return nil, nil, errors.New("the database behind the host is not a number")
	}
	return u, query, checkParameters(query)
}

var errPort = errors.New("the port is not a number from 1 to 65535 (special characters of a password are written as %XX)")

// parameters are what may follow the question mark, and what their values must be.
var parameters = map[string]struct {
	valid func(string) bool
	want  string
}{
	"addr":              {isAddr, "host:port"},
	"client_cache":      {isNumber, "a number from 0 on"},
	"client_name":       {isAny, ""},
	"db":                {isNumber, "a number from 0 on"},
	"dial_timeout":      {isDuration, "a duration like 5s"},
	"master_set":        {isSome, "a name"},
	"max_retries":       {isNumber, "a number from 0 on"},
	"protocol":          {func(s string) bool { return s == "2" || s == "3" }, "2 or 3"},
	"sentinel_password": {isAny, ""},
	"sentinel_username": {isAny, ""},
	"skip_verify":       {func(s string) bool { _, err := strconv.ParseBool(s); return s == "" || err == nil }, "true or false"},
	"write_timeout":     {isDuration, "a duration like 5s"},
}

func checkParameters(query url.Values) error {
	for _, name := range slices.Sorted(maps.Keys(query)) {
		p, known := parameters[name]
		if !known && query.Has("sentinel_password") { // it may be a piece of it
			return errors.New("unknown parameter; an & in sentinel_password is written as %26")
		}
		if !known {
			return fmt.Errorf("unknown parameter %q", name)
		}
		if slices.ContainsFunc(query[name], func(s string) bool { return !p.valid(s) }) {
			return fmt.Errorf("parameter %s is not %s", name, p.want)
		}
		if strings.HasPrefix(name, "sentinel_") && !query.Has("master_set") {
			return fmt.Errorf("parameter %s needs master_set", name)
		}
	}
	return nil
}

func isAny(string) bool { return true }

func isSome(s string) bool { return s != "" }

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 31)
	return err == nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func isAddr(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && isPort(port)
}

func isDuration(s string) bool {
	d, err := time.ParseDuration(s)
	return err == nil && d > 0
}
