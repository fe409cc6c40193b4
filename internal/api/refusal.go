package api

import (
	"errors"
	"fmt"
	"strings"
)

// A Code names the reason of a refusal. Codes are stable: scripts compare them.
type Code string

// A Refusal says why vOS will not do something. Nothing was touched.
type Refusal struct {
	Code    Code   `json:"code"`
	Subject string `json:"subject"` // what it is about: a module, a thread, a file
	Detail  string `json:"detail"`  // what was found
	Remedy  string `json:"remedy"`  // what the user can do
}

func (r Refusal) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "refused (%s)", r.Code)
	if r.Subject != "" {
		b.WriteString(": " + r.Subject)
	}
	if r.Detail != "" {
		b.WriteString(": " + r.Detail)
	}
	if r.Remedy != "" {
		b.WriteString("; " + r.Remedy)
	}
	return b.String()
}

// Refusals returns every refusal in the tree of err, in order.
func Refusals(err error) []Refusal {
	if err == nil {
		return nil
	}
	if r, ok := err.(Refusal); ok {
		return []Refusal{r}
	}
	switch wrapped := err.(type) {
	case interface{ Unwrap() error }:
		return Refusals(wrapped.Unwrap())
	case interface{ Unwrap() []error }:
		var all []Refusal
		for _, e := range wrapped.Unwrap() {
			all = append(all, Refusals(e)...)
		}
		return all
	}
	return nil
}

// Errors that decide an exit code. They are wrapped with what they are about.
var (
	ErrGone         = errors.New("target gone")
	ErrNotPermitted = errors.New("not permitted")
	ErrNotSupported = errors.New("not supported here")
	ErrUsage        = errors.New("usage")
)
