package index

import (
	"os"
	"testing"

	"github.com/backupfs/backupfs/internal/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.Tests(m)) }
