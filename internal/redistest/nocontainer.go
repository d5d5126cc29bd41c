//go:build !container

package redistest

import "errors"

// Docker's client takes longer to build than everything else that the tests need.

func dockerAnswers() bool { return false }

func startContainer(*Server) (container, error) {
	return nil, errors.New("the tests were built without -tags container")
}
