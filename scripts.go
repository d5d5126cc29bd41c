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

	readScript       = script{readSource, "b9478933042820d59558a05cc0803da6556a56e1"}
	writeScript      = script{writeSource, "883521d7ea3da0ae30aea7014131ee84a5c20ef0"}
	restoreScript    = script{restoreSource, "0e4280497b5b52ad6def2f8a0b3d209e4f357591"}
	touchScript      = script{touchSource, "f55c7dfb7e3570cd9db6faf35cf96fa01ace8746"}
	invalidateScript = script{invalidateSource, "3d90ae581e73cd1d1ccc589b364d4882a47dc0db"}
	rotateScript     = script{rotateSource, "75b569eaf57cc12fb5da0fdf341b3b3e169120b2"}
	linkScript       = script{linkSource, "9187d9cfb99fb619a2d8ade883ef359f45f34f19"}
	bindScript       = script{bindSource, "0cdac97ae3c64b4ae559732368ee9eb9b49ea322"}
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
	codeItems    = 'I'

	codeOwned      = 'O'
	codeStale      = 'S'
	codeNoDeadline = 'N'
	codeLimit      = 'L'
	codeGrace      = 'G'
)
