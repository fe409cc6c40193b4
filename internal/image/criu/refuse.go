package criu

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

const codeNotExpressed api.Code = "not_in_criu"

const noRemedy = "none is known: vos restore builds it from the image itself"

// refuse notes what CRIU's format can't express.
func (x *export) refuse(subject, detail, remedy string) {
	x.refusals = append(x.refusals, api.Refusal{Code: codeNotExpressed, Subject: subject, Detail: detail + ", which CRIU's format has no place for", Remedy: remedy})
}

func processSubject(p *image.Process) string { return fmt.Sprintf("process %d", p.PID) }

// fileSubject names file i by the first descriptor that leads to it.
func (x *export) fileSubject(i int) string {
	for p := range x.img.Processes {
		for _, d := range x.img.Processes[p].Descriptors {
			if d.File == i {
				return fmt.Sprintf("descriptor %d of process %d", d.Number, x.img.Processes[p].PID)
			}
		}
	}
	return fmt.Sprintf("file %d of the image", i)
}

func (x *export) refuseFile(i int, detail string) { x.refuse(x.fileSubject(i), detail, noRemedy) }
