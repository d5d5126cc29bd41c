package tombstore

import (
	_ "embed"
)

// script is a Lua script with its SHA-1, the name under which EVALSHA knows it. The SHA-1 is written down and not computed,
// because crypto/sha1 refuses to work under GODEBUG=fips140=only; a test compares the two.
type script struct {
	source, sha1 string
}

var (
	//go:embed scripts/read.lua
	readSource string
	//go:embed scripts/write.lua
	writeSource string
	//go:embed scripts/touch.lua
	touchSource string
	//go:embed scripts/invalidate.lua
	invalidateSource string
	//go:embed scripts/rotate.lua
	rotateSource string

	readScript       = script{readSource, "f8cf51e0ec41e65aa05dc56e27946e81d4cac3a6"}
	writeScript      = script{writeSource, "0cdea9eeb372572fa9c453c4836f6605a66b8af9"}
	touchScript      = script{touchSource, "565aff069207cc59e68cc8a130b9403545b7351f"}
	invalidateScript = script{invalidateSource, "d385d9bf7baed89a5417472f1c4626278b74fcc6"}
	rotateScript     = script{rotateSource, "f453b9f99aeeede53d4fa9fbaca7648338262c71"}
)

// A script's reply is one string: a code, then what the code's meaning in the script's header says. read.lua alone returns
// the stored value, which has its own kinds, and its TTL.
const (
	codeDone     = 'D'
	codeKept     = 'K'
	codeAbsent   = 'A'
	codeEnded    = 'E'
	codeConflict = 'C'
	codeForeign  = 'F'
)
