// Package firstbyte has something done before the first byte of a response: what a session library must
// know by then is which cookies go out.
package firstbyte

import (
	"bufio"
	"errors"
	"net"
	"net/http"
)

// Informational reports whether a status is that of a response which another one follows.
func Informational(code int) bool {
	return code >= 100 && code < 200 && code != http.StatusSwitchingProtocols
}

// Writer is the http.ResponseWriter of a handler.
type Writer struct {
	http.ResponseWriter
	// Begin is called before anything is written, flushed or hijacked, each time, with the status if that is
	// known. If it returns false it has answered itself, and what the handler writes is dropped.
	Begin func(code int) bool
}

// WriteHeader implements http.ResponseWriter. An informational response does not begin the response, and
// has no cookies, since it is not known yet which of them go out.
func (w *Writer) WriteHeader(code int) {
	if Informational(code) {
		h := w.Header()
		if cookies, ok := h["Set-Cookie"]; ok {
			delete(h, "Set-Cookie")
			defer func() { h["Set-Cookie"] = cookies }()
		}
	} else if !w.Begin(code) {
		return
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(b []byte) (int, error) {
	if !w.Begin(http.StatusOK) {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Flush implements http.Flusher.
func (w *Writer) Flush() { _ = w.FlushError() }

// FlushError is for http.ResponseController.
func (w *Writer) FlushError() error {
	w.Begin(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

var errAnswered = errors.New("tombstore: hijack: the session could not be saved, or not ended, and the request is answered")

// Hijack implements http.Hijacker.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.Begin(http.StatusOK) {
		return nil, nil, errAnswered
	}
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Unwrap is for http.ResponseController.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
