// Package hostile sends what no honest browser and no honest server sends.
package hostile

import (
	"os"
	"testing"

	"github.com/tombstore/tombstore/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }
