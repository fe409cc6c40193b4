package vin

import (
	"errors"

	"github.com/virtualizing-os/vos/internal/x86"
)

// What adding to a vIN fails for.
var (
	ErrCannotMove = errors.New("instruction can't run elsewhere")
	ErrRange      = x86.ErrRange
	ErrOverlap    = errors.New("overlaps another veneer")
	ErrFull       = errors.New("beyond what the vIN has room for")
	ErrInvalid    = errors.New("not valid")
	ErrExists     = errors.New("exists already")
)

// What reading a vIN fails for.
var (
	ErrCorrupt = errors.New("corrupt vIN")
	ErrVersion = errors.New("vIN of another version")
)
