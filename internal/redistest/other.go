//go:build !unix

package redistest

import (
	"os"
	"time"
)

var stop, goOn os.Signal // there are none

// ProcessorTime returns 0: only Unix tells it in a way that is known here.
func ProcessorTime() time.Duration { return 0 }
