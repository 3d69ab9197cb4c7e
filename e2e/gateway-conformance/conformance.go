//go:build conformance

// What the programs of this module are built from (`cargo xtask gateway-conformance`), so that go.mod keeps it. Nothing
// is built with this file.

package conformance

import (
	_ "sigs.k8s.io/gateway-api/conformance"
)
