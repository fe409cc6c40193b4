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

// mostVDSO bounds the code of a vDSO: real ones have two or three pages.
const mostVDSO = 64 * pageSize

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

// vdsoOf finds that of an image; whole is false where the program had moved or unmapped a
// part.
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
			whole = whole && v.code == 0
			v.code = m.Start
		}
	}
	return v, there, whole && (!there || v.code != 0)
}

// fitVDSO sees to it that the program finds this kernel's functions where it knows those of
// the kernel that the image was taken on: if these are the same, this kernel maps its own
// there; otherwise what the source holds of the process is changed, as transplant says.
func fitVDSO(fitted *fitted, i int) ([]api.Refusal, error) {
	img := fitted.Source.Image()
	p := &img.Processes[i]
	had, there, whole := vdsoOf(p.Mappings)
	if !there {
		return nil, nil
	}
	if !whole || had.end-had.code > mostVDSO {
		return []api.Refusal{notRestorable("the vDSO", "the program has moved or unmapped a part of it")}, nil
	}
	own, err := ownVDSO()
	if err != nil {
		return nil, err
	}
	if own.code == 0 {
		return []api.Refusal{vdsoDiffers(img, "this kernel has none")}, nil
	}
	was, err := codeOf(fitted.Source, p, had)
	if err != nil {
		return nil, err
	}
	alike := own.end-own.start == had.end-had.start && own.code-own.start == had.code-had.start
	if was == nil {
		here, err := thisMachine()
		if err != nil {
			return nil, err
		}
		if !alike || here.bootID != img.Machine.BootID && here.kernel != img.Machine.Kernel {
			return []api.Refusal{vdsoDiffers(img, "the image does not hold its code, and was taken on another kernel")}, nil
		}
		return nil, nil
	}
	now := make([]byte, own.end-own.code)
	if err := kernel.ReadMemory(os.Getpid(), now, []kernel.RemoteRange{{Address: own.code, Length: uint64(len(now))}}); err != nil {
		return nil, err
	}
	if alike && bytes.Equal(was, now) {
		return nil, nil
	}
	return fitted.transplant(i, had, own, was, now)
}

// codeOf reads the code of an image's vDSO, or returns nil if the image does not hold it.
func codeOf(source Source, p *image.Process, v vdso) ([]byte, error) {
	for i := range p.Mappings {
		m := &p.Mappings[i]
		if m.Kind != image.VDSO || m.Start != v.code || len(m.Pages) == 0 {
			continue
		}
		code := make([]byte, m.End-m.Start)
		for _, run := range m.Pages {
			at := run.Start - m.Start
			if err := source.ReadPages(run.Place, code[at:at+run.Count*pageSize]); err != nil {
				return nil, fmt.Errorf("read pages of the image: %w", err)
			}
		}
		return code, nil
	}
	return nil, nil
}

func vdsoDiffers(img *image.Image, detail string) api.Refusal {
	return api.Refusal{Code: codeKernel, Subject: "the vDSO", Detail: detail,
		Remedy: "boot the kernel that the image was taken on: " + img.Machine.Kernel}
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
