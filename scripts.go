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

	readScript       = script{readSource, "82ce646f3404b75062d9e451f1891f075f974b3a"}
	writeScript      = script{writeSource, "9b4541d9ef55ca524d96f40a38be3eda1efe307d"}
	touchScript      = script{touchSource, "5006d74ebec5099aafe6c1e68afe56a8bc710942"}
	invalidateScript = script{invalidateSource, "a0cb3923bacc642357fc3206c8105439d2edff89"}
	rotateScript     = script{rotateSource, "39ab88431df221fb427e09b9e88fbd8ed4425123"}
)

// A script's reply is one string: a code, then what the code's meaning in the script's header says. read.lua alone returns
// the stored value, which has its own kinds.
const (
	codeDone     = 'D'
	codeAbsent   = 'A'
	codeEnded    = 'E'
	codeConflict = 'C'
	codeForeign  = 'F'
)
