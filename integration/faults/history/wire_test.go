package history

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// wire is a toxiproxy. Each change of its toxics takes a new proxy on the same address, and breaks
// the connections: toxiproxy may hang if toxics change on a connection that ends.
type wire struct {
	api    *toxiproxy.ApiServer
	proxy  *toxiproxy.Proxy
	addr   string
	target string
}

// newWire returns a wire to the server at target that ends with the test.
func newWire(t *testing.T, target string) *wire {
	t.Helper()
	w := &wire{api: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), target: target}
	w.listen(t, func() error {
		// Below the ports that systems give out: while the wire is down, nobody gets this one.
		w.addr = fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		return w.start()
	})
	t.Cleanup(w.down)
	return w
}

// up breaks all connections and goes on with these toxics.
func (w *wire) up(t *testing.T, toxics ...string) {
	t.Helper()
	w.down()
	w.listen(t, func() error { return w.start(toxics...) })
}

// listen calls start until it succeeds. The port is taken for as long as a process that was just
// forked has not closed what it inherits.
func (w *wire) listen(t *testing.T, start func() error) {
	t.Helper()
	err := start()
	for until := time.Now().Add(20 * time.Second); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(until); err = start() {
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, err)
}

func (w *wire) start(toxics ...string) error {
	w.proxy = toxiproxy.NewProxy(w.api, "wire", w.addr, w.target)
	for _, text := range toxics {
		if _, err := w.proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
			return err
		}
	}
	return w.proxy.Start()
}

// down breaks all connections and takes no new ones.
func (w *wire) down() { w.proxy.Stop() }

// Directions of a toxic.
const (
	commands = "upstream"
	replies  = "downstream"
)

// toxic returns a toxic for one direction; attributes are those of toxiproxy's documentation.
func toxic(kind, direction, attributes string, args ...any) string {
	return fmt.Sprintf(`{"type":%q,"stream":%q,"attributes":{%s}}`, kind, direction, fmt.Sprintf(attributes, args...))
}
