package vex

import (
	"os"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.RunTests(m)) }
