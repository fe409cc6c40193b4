package intercept

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/x86"
)

// maxSpan bounds the addresses that an interceptor takes.
const maxSpan = 1 << 36

// build makes code and table. The first pass is for the sizes alone: what code is
// made does not depend on where things lie.
func (i *Interceptor) build() error {
	names := 0
	for _, f := range i.functions {
		names += len(f.Name)
	}
	i.layout = i.lay(names, 0, 0)
	first, err := i.assemble()
	if err != nil {
		return err
	}
	i.layout = i.lay(names, len(first.sections), len(first.bytes))
	if i.layout.end > maxSpan || i.config.Base > addressEnd-i.layout.end {
		return fmt.Errorf("%#x bytes of addresses: %w", i.layout.end, ErrFull)
	}
	second, err := i.assemble()
	if err != nil {
		return err
	}
	if len(second.bytes) != len(first.bytes) {
		return fmt.Errorf("code of %d bytes became %d: %w", len(first.bytes), len(second.bytes), ErrInvalid)
	}
	i.code, i.stubs = second.bytes, second.stubs
	i.table = i.tableOf(second.sections)
	return nil
}

type assembled struct {
	bytes    []byte
	stubs    []span
	sections []section
}

func (i *Interceptor) assemble() (*assembled, error) {
	a := &assembler{Assembler: x86.NewAssembler(i.config.Base + i.layout.code), i: i}
	for range i.functions {
		a.stubs = append(a.stubs, a.NewLabel())
	}
	a.routines()
	result := &assembled{}
	for n := range i.functions {
		a.Align(16)
		start := a.Address()
		a.Bind(a.stubs[n])
		a.stub(n)
		result.stubs = append(result.stubs, span{start, a.Address() - start})
	}
	var err error
	if result.bytes, err = a.Code(); err != nil {
		return nil, err
	}
	result.sections = a.sections
	return result, nil
}
