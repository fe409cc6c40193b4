package match

import (
	"github.com/virtualizing-os/vos/internal/x86"
)

// An instruction of a function that is being aligned.
type instruction struct {
	at    uint32
	token uint64 // its bytes without displacements and distances
	x86.Inst
}

// instructions decodes a function for alignment. Two have one token if they
// are the same but for displacements, branch distances, and the immediate of a
// move into a register.
func (b *Build) instructions(index int) []instruction {
	f := &b.Functions[index]
	if f.Opaque {
		return nil
	}
	raw := b.raw(f)
	all := make([]instruction, 0, f.count)
	for at := 0; at < len(raw); {
		i, err := x86.Decode(raw[at:])
		if err != nil {
			return nil
		}
		var bytes [16]byte
		copy(bytes[:], raw[at:at+i.Len])
		blank := func(field x86.Field) { clear(bytes[field.Offset:][:field.Size]) }
		if i.HasMem {
			blank(i.Mem.Disp)
		}
		if i.IsBranch() {
			blank(i.Rel)
		}
		if isMoveImmediate(&i) {
			blank(i.Imm)
		}
		bytes[15] = byte(i.Len)
		if i.HasMem && i.Mem.Disp.Size > 0 && i.ModRM>>6 != 0 {
			// A displacement may be written in 1 or 4 bytes.
			bytes[15] -= i.Mem.Disp.Size
			var short [16]byte
			n := copy(short[:], bytes[:i.Mem.Disp.Offset])
			copy(short[n:15], bytes[int(i.Mem.Disp.Offset)+int(i.Mem.Disp.Size):15])
			short[15] = bytes[15]
			short[modRMAt(&i)] &= 0x3f
			bytes = short
		}
		token := le.Uint64(bytes[:8])*0x9e3779b97f4a7c15 ^ le.Uint64(bytes[8:])*0xc2b2ae3d27d4eb4f
		all = append(all, instruction{uint32(at), token, i})
		at += i.Len
	}
	return all
}

// modRMAt is where the ModRM byte of an instruction with a displacement is.
func modRMAt(i *x86.Inst) int {
	at := int(i.Mem.Disp.Offset) - 1
	if i.ModRM&7 == 4 {
		at-- // SIB
	}
	return at
}

// isMoveImmediate tells mov r32, imm32 and its 64-bit forms.
func isMoveImmediate(i *x86.Inst) bool {
	return i.Encoding == x86.Legacy && i.Map == x86.MapOneByte && (i.Opcode >= 0xb8 && i.Opcode <= 0xbf || i.Opcode == 0xc7 && !i.HasMem)
}

// mostEdits bounds the work of aligning two functions: two that differ in more
// places have been rewritten, and their displacements tell nothing.
const mostEdits = 600

// align returns the indices of instructions that correspond (Myers' shortest
// edit script); nil where there are more than mostEdits differences.
func align(a, b []instruction) [][2]int32 {
	var out [][2]int32
	from := 0
	for from < len(a) && from < len(b) && a[from].token == b[from].token {
		out = append(out, [2]int32{int32(from), int32(from)})
		from++
	}
	n, m := len(a)-from, len(b)-from
	tail := 0
	for tail < n && tail < m && a[len(a)-1-tail].token == b[len(b)-1-tail].token {
		tail++
	}
	n, m = n-tail, m-tail
	middle, ok := shortestEdit(a[from:from+n], b[from:from+m])
	if !ok {
		return nil
	}
	for _, p := range middle {
		out = append(out, [2]int32{p[0] + int32(from), p[1] + int32(from)})
	}
	for k := tail; k > 0; k-- {
		out = append(out, [2]int32{int32(len(a) - k), int32(len(b) - k)})
	}
	return out
}

// shortestEdit is the greedy algorithm of Myers (1986), with the furthest
// reaching paths of each number of edits kept for the way back.
func shortestEdit(a, b []instruction) ([][2]int32, bool) {
	n, m := len(a), len(b)
	most := min(n+m, mostEdits)
	v := make([]int32, 2*most+3)
	var trace [][]int32
	for d := 0; d <= most; d++ {
		for k := -d; k <= d; k += 2 {
			var x int
			if k == -d || k != d && v[most+1+k-1] < v[most+1+k+1] {
				x = int(v[most+1+k+1])
			} else {
				x = int(v[most+1+k-1]) + 1
			}
			y := x - k
			for x < n && y < m && y >= 0 && a[x].token == b[y].token {
				x++
				y++
			}
			v[most+1+k] = int32(x)
			if x >= n && y >= m {
				return walkBack(trace, n, m, d), true
			}
		}
		trace = append(trace, append([]int32(nil), v[most+1-d:most+2+d]...))
	}
	return nil, false
}

// walkBack follows the furthest paths from the end to the begin; trace[d] has
// those of d edits, diagonals -d to d.
func walkBack(trace [][]int32, x, y, d int) [][2]int32 {
	var out [][2]int32
	for ; d > 0; d-- {
		k := x - y
		reach := func(k int) int {
			if k < -(d-1) || k > d-1 {
				return -1 << 30
			}
			return int(trace[d-1][k+d-1])
		}
		before := k - 1
		if k == -d || k != d && reach(k-1) < reach(k+1) {
			before = k + 1
		}
		px := reach(before)
		py := px - before
		// The matches behind the one edit of this step.
		begin := px
		if before == k-1 {
			begin++
		}
		for x > begin {
			x--
			y--
			out = append(out, [2]int32{int32(x), int32(y)})
		}
		x, y = px, py
	}
	for x > 0 && y > 0 {
		x--
		y--
		out = append(out, [2]int32{int32(x), int32(y)})
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
