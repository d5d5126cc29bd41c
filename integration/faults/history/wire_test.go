package history

import (
	"fmt"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// wire is a toxiproxy. Each change of its toxics takes a new proxy on the same address, and breaks the connections: toxiproxy may hang
// if toxics change on a connection that ends.
type wire struct {
	api    *toxiproxy.ApiServer
	proxy  *toxiproxy.Proxy
	addr   string
	target string
}

// newWire returns a wire to the server at target that ends with the test.
func newWire(t *testing.T, target string) *wire {
	t.Helper()
	w := &wire{api: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), addr: "127.0.0.1:0", target: target}
	w.up(t)
	w.addr = w.proxy.Listen
	t.Cleanup(w.down)
	return w
}

// up breaks all connections and goes on with these toxics.
func (w *wire) up(t *testing.T, toxics ...string) {
	t.Helper()
	w.down()
	w.proxy = toxiproxy.NewProxy(w.api, "wire", w.addr, w.target)
	for _, text := range toxics {
		_, err := w.proxy.Toxics.AddToxicJson(strings.NewReader(text))
		require.NoError(t, err)
	}
	require.NoError(t, w.proxy.Start())
}

// down breaks all connections and takes no new ones.
func (w *wire) down() {
	if w.proxy != nil {
		w.proxy.Stop()
	}
}

// Directions of a toxic.
const (
	commands = "upstream"
	replies  = "downstream"
)

// toxic returns a toxic for one direction; attributes are those of toxiproxy's documentation.
func toxic(kind, direction, attributes string, args ...any) string {
	return fmt.Sprintf(`{"type":%q,"stream":%q,"attributes":{%s}}`, kind, direction, fmt.Sprintf(attributes, args...))
}
