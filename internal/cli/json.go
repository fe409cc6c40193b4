package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/virtualizing-os/vos/internal/api"
)

// printJSON writes one value as a line and hands it on at once, so that a
// reader of a long stream sees each result as it comes to be.
func (a *app) printJSON(v any) error {
	line, err := jsonLine(v)
	if err != nil {
		return err
	}
	if _, err := a.stdout.Write(line); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if err := a.stdout.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// jsonLine encodes v on one line. Runes on which a terminal acts are written as
// \uXXXX: encoding/json does so for C0 controls only, and C1 controls and
// direction marks do as much harm.
func jsonLine(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	line := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if !harmful(string(line)) {
		return append(line, '\n'), nil
	}
	// Such runes stand only within strings, where an escape means the same.
	out := make([]byte, 0, len(line)+16)
	for _, r := range string(line) {
		switch {
		case !harmfulRune(r, utf8.RuneLen(r)):
			out = utf8.AppendRune(out, r)
		case r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		default: // a surrogate pair
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return append(out, '\n'), nil
}

// An unverified module is the line that `vos verify --json` prints for a module
// that could not be compared with its file, among the differences, and `vos
// outdated --json` for one that could not be compared with its path: it is told
// apart by its key refusals there, and here by having no verdict.
type unverified struct {
	PID      int           `json:"pid"`
	Program  string        `json:"program"`
	Module   string        `json:"module"`
	Path     string        `json:"path"`
	Refusals []api.Refusal `json:"refusals"`
}

// A partlyVerified module is the line that `vos verify --json` prints for a module
// of which a part could not be compared.
type partlyVerified struct {
	PID       int           `json:"pid"`
	Program   string        `json:"program"`
	Module    string        `json:"module"`
	Path      string        `json:"path"`
	Unchecked []api.Refusal `json:"unchecked"`
}

// A refusedTarget is the line that any command prints with --json where the
// target was refused as a whole.
type refusedTarget struct {
	Target   string        `json:"target"`
	Refusals []api.Refusal `json:"refusals"`
}

// list makes an empty list of a nil one: a key that scripts iterate over is
// never null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
