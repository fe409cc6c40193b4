package restore

import (
	"bytes"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A vdso is where the kernel maps its code and data for programs: the data first, the
// code behind it. All processes of one kernel have the same, at different places.
type vdso struct{ start, code, end uint64 }

// ownVDSO finds that of this process; there may be none.
func ownVDSO() (v vdso, err error) {
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return v, err
	}
	defer self.Close()
	maps, err := self.Maps()
	if err != nil {
		return v, err
	}
	for i := range maps {
		switch m := &maps[i]; m.Kind {
		case procfs.KindVVar:
			if v.start == 0 {
				v.start = m.Start
			}
		case procfs.KindVDSO:
			v.code, v.end = m.Start, m.End
			if v.start == 0 {
				v.start = m.Start
			}
		}
	}
	return v, nil
}

// vdsoOf finds that of an image; ok is false where the program had unmapped a part.
func vdsoOf(mappings []image.Mapping) (v vdso, there, whole bool) {
	whole = true
	for i := range mappings {
		m := &mappings[i]
		if m.Kind != image.VDSO {
			continue
		}
		if there && m.Start != v.end {
			whole = false
		}
		if !there {
			v.start = m.Start
		}
		there = true
		v.end = m.End
		if m.Protection&syscall.PROT_EXEC != 0 {
			v.code = m.Start
		}
	}
	return v, there, whole && (!there || v.code != 0)
}

// refuseVDSO returns what speaks against mapping this kernel's vDSO where the image has
// the one of its kernel: the program knows addresses within it.
func refuseVDSO(img *image.Image, p *image.Process, source Source) ([]api.Refusal, error) {
	had, there, whole := vdsoOf(p.Mappings)
	if !there {
		return nil, nil
	}
	if !whole {
		return []api.Refusal{notRestorable("the vDSO", "the program has moved or unmapped a part of it")}, nil
	}
	own, err := ownVDSO()
	if err != nil {
		return nil, err
	}
	differs := func(detail string) []api.Refusal {
		return []api.Refusal{{Code: codeKernel, Subject: "the vDSO", Detail: detail,
			Remedy: "boot the kernel that the image was taken on: " + img.Machine.Kernel}}
	}
	if own.end-own.start != had.end-had.start || own.code-own.start != had.code-had.start {
		return differs("that of this kernel has another size"), nil
	}
	for i := range p.Mappings {
		m := &p.Mappings[i]
		if m.Kind != image.VDSO || m.Start != had.code || len(m.Pages) == 0 {
			continue
		}
		for _, run := range m.Pages {
			size := run.Count * pageSize
			if run.Start < had.code || run.Start+size > had.end {
				return differs("the image has pages of it that are not its code"), nil
			}
			was, now := make([]byte, size), make([]byte, size)
			if err := source.ReadPages(run.Place, was); err != nil {
				return nil, fmt.Errorf("read pages of the image: %w", err)
			}
			from := kernel.RemoteRange{Address: run.Start - had.start + own.start, Length: size}
			if err := kernel.ReadMemory(os.Getpid(), now, []kernel.RemoteRange{from}); err != nil {
				return nil, err
			}
			if !bytes.Equal(was, now) {
				return differs("that of this kernel is of another build"), nil
			}
		}
		return nil, nil
	}
	here, err := thisMachine()
	if err != nil {
		return nil, err
	}
	if here.bootID != img.Machine.BootID && here.kernel != img.Machine.Kernel {
		return differs("the image does not hold its code, and was taken on another kernel"), nil
	}
	return nil, nil
}

// mapVDSO lets the kernel map its own where the image had one.
func (p *process) mapVDSO(mappings []image.Mapping) error {
	v, there, _ := vdsoOf(mappings)
	if !there {
		return nil
	}
	b := p.batch()
	b.addAt("map the vDSO at", v.start, syscall.SYS_ARCH_PRCTL, archMapVDSO64, v.start)
	_, err := b.run()
	return err
}
