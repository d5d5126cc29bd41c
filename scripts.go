package tombstore

import (
	_ "embed"
)

// script is a Lua script with its SHA-1, the name under which EVALSHA knows it. The SHA-1 is
// written down and not computed, because crypto/sha1 refuses to work under GODEBUG=fips140=only; a
// test compares the two.
type script struct {
	source, sha1 string
}

var (
	//go:embed scripts/read.lua
	readSource string
	//go:embed scripts/write.lua
	writeSource string
	//go:embed scripts/restore.lua
	restoreSource string
	//go:embed scripts/touch.lua
	touchSource string
	//go:embed scripts/invalidate.lua
	invalidateSource string
	//go:embed scripts/rotate.lua
	rotateSource string
	//go:embed scripts/link.lua
	linkSource string
	//go:embed scripts/bind.lua
	bindSource string
	//go:embed scripts/revoke.lua
	revokeSource string

	readScript       = script{readSource, "0a0b4866eabc1514598863fe01fbe98a173377c5"}
	writeScript      = script{writeSource, "9da9e6b2b90fbb13c647814b3ddeeede0d85bba7"}
	restoreScript    = script{restoreSource, "352f3a4bedd24fe1066fe418e7d8936d0479ccb4"}
	touchScript      = script{touchSource, "fc49faad078072517e6fdcc593288dd072a13fbc"}
	invalidateScript = script{invalidateSource, "f31e2b04b9493e745292b68bd524a7cad9ac99ae"}
	rotateScript     = script{rotateSource, "0798b699b7cbde7f825e3ee33c9e9acd1811d2e1"}
	linkScript       = script{linkSource, "9187d9cfb99fb619a2d8ade883ef359f45f34f19"}
	bindScript       = script{bindSource, "adfa23a5736223349e74122ce7012f816529b527"}
	revokeScript     = script{revokeSource, "53f96b85dd86c25939b2b8a619648f2fe109c8a1"}
)

// A script's reply is one string: a code, then what the code's meaning in the script's header says.
// read.lua alone answers a live session by an array of the stored value and its TTL.
const (
	codeDone     = 'D'
	codeKept     = 'K'
	codeAbsent   = 'A'
	codeEnded    = 'E'
	codeConflict = 'C'
	codeForeign  = 'F'

	codeOwned      = 'O'
	codeStale      = 'S'
	codeNoDeadline = 'N'
	codeLimit      = 'L'
)
