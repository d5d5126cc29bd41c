// Package cookieage changes how long a browser keeps a cookie.
package cookieage

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Seconds returns age as a cookie has it, never too short.
func Seconds(age time.Duration) int { return int((age + time.Second - 1) / time.Second) }

// Set returns the line of a Set-Cookie header with another age. A cookie that ends with the
// browser, and one that is deleted, stay as they are.
func Set(line string, age time.Duration) string {
	cookie, err := http.ParseSetCookie(line)
	if err != nil || cookie.MaxAge < 0 || cookie.MaxAge == 0 && !cookie.Expires.After(time.Now()) {
		return line
	}
	kept := strings.Split(line, ";")[:0:0]
	for _, part := range strings.Split(line, ";") {
		name, _, _ := strings.Cut(strings.TrimSpace(part), "=")
		if !strings.EqualFold(name, "Max-Age") && !strings.EqualFold(name, "Expires") {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ";") +
		"; Expires=" + time.Now().Add(age).UTC().Format(http.TimeFormat) + "; Max-Age=" + strconv.Itoa(Seconds(age))
}
