package procfs

import (
	"encoding/binary"
	"fmt"
)

// An AuxType is the type of an entry of the auxiliary vector, getauxval(3).
type AuxType uint64

// Types of the auxiliary vector, linux/auxvec.h.
const (
	AuxPHDR        AuxType = 3  // address of the executable's program headers
	AuxPHENT       AuxType = 4  // bytes of one
	AuxPHNUM       AuxType = 5  // how many
	AuxPageSize    AuxType = 6  //
	AuxBase        AuxType = 7  // load address of the dynamic loader; 0 is none
	AuxEntry       AuxType = 9  // address of the executable's entry point
	AuxHWCAP       AuxType = 16 //
	AuxClockTicks  AuxType = 17 //
	AuxSecure      AuxType = 23 // set-user-id and the like
	AuxHWCAP2      AuxType = 26 //
	AuxRseqSize    AuxType = 27 // bytes of the rseq area that the kernel fills
	AuxSysinfoEHDR AuxType = 33 // address of the vDSO
)

// An Auxv is the auxiliary vector that the kernel gave the process at execve.
type Auxv map[AuxType]uint64

// Auxv reads /proc/PID/auxv, proc_pid_auxv(5). It needs the right to read the
// process.
func (p *Process) Auxv() (a Auxv, err error) {
	err = p.readMemoryFile("auxv", func(text []byte) (err error) {
		a, err = ParseAuxv(text)
		return err
	})
	return a, err
}

// ParseAuxv reads the pairs of words of an auxiliary vector, up to AT_NULL.
func ParseAuxv(data []byte) (Auxv, error) {
	a := make(Auxv)
	for len(data) >= 16 {
		kind, value := AuxType(binary.LittleEndian.Uint64(data)), binary.LittleEndian.Uint64(data[8:])
		if kind == 0 {
			return a, nil
		}
		a[kind] = value
		data = data[16:]
	}
	return nil, fmt.Errorf("parse auxv: it does not end in AT_NULL")
}
