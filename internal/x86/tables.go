package x86

// Each map is a grid of 16 rows by 16 columns, the row being the high half of
// the opcode, as in the SDM's appendix A. A letter is the shape of what follows
// the opcode:
//
//	.  not defined (or a prefix, read before)
//	n  nothing
//	m  ModRM
//	r  ModRM that names two registers whatever its mod says
//	g  ModRM with a vector index (VSIB): memory with SIB
//	B  ModRM, imm8
//	Z  ModRM, imm16 or imm32 by operand size
//	L  ModRM, imm32
//	T  ModRM, imm8 for /0 and /1 (TEST)
//	U  ModRM, imm16 or imm32 for /0 and /1 (TEST)
//	X  ModRM; with 66 or F2 also two imm8 (VMREAD, EXTRQ, INSERTQ)
//	b  imm8
//	w  imm16
//	e  imm16, imm8
//	z  imm16 or imm32 by operand size
//	v  imm16, imm32 or imm64 by operand size
//	o  address, 4 or 8 bytes by address size
//	j  rel8
//	J  rel32
//	a  defined by APX
//	u  UD0: with ModRM for Intel, without for AMD
var shapes = [...][11]string{
	Legacy: {MapOneByte: oneByte, Map0F: legacy0F, Map0F38: legacy0F38, Map0F3A: legacy0F3A},
	VEX:    {Map0F: vex0F, Map0F38: vex0F38, Map0F3A: vex0F3A},
	EVEX:   {Map0F: evex0F, Map0F38: evex0F38, Map0F3A: evex0F3A, Map5: evex5, Map6: evex6},
	XOP:    {Map8: xop8, Map9: xop9, MapA: xopA},
}

// SDM table A-2.
const oneByte = "" +
	"mmmmbz..mmmmbz.." + // 0
	"mmmmbz..mmmmbz.." + // 1
	"mmmmbz..mmmmbz.." + // 2
	"mmmmbz..mmmmbz.." + // 3
	"................" + // 4 REX
	"nnnnnnnnnnnnnnnn" + // 5
	"...m....zZbBnnnn" + // 6
	"jjjjjjjjjjjjjjjj" + // 7
	"BZ.Bmmmmmmmmmmmm" + // 8
	"nnnnnnnnnn.nnnnn" + // 9
	"oooonnnnbznnnnnn" + // a
	"bbbbbbbbvvvvvvvv" + // b
	"BBwn..BZenwnnb.n" + // c
	"mmmm...nmmmmmmmm" + // d
	"jjjjbbbbJJ.jnnnn" + // e
	".n..nnTUnnnnnnmm" //   f

// SDM table A-3; AMD APM 3 table A-3 for FEMMS, 3DNow! and SSE4A (78, 79);
// VIA PadLock (A6, A7).
const legacy0F = "" +
	"mmmm.nnnnn.n.mnB" + // 0
	"mmmmmmmmmmmmmmmm" + // 1
	"rrrr....mmmmmmmm" + // 2
	"nnnnnn.n........" + // 3
	"mmmmmmmmmmmmmmmm" + // 4
	"mmmmmmmmmmmmmmmm" + // 5
	"mmmmmmmmmmmmmmmm" + // 6
	"BBBBmmmnXm..mmmm" + // 7
	"JJJJJJJJJJJJJJJJ" + // 8
	"mmmmmmmmmmmmmmmm" + // 9
	"nnnmBmmmnnnmBmmm" + // a
	"mmmmmmmmmmBmmmmm" + // b
	"mmBmBBBmnnnnnnnn" + // c
	"mmmmmmmmmmmmmmmm" + // d
	"mmmmmmmmmmmmmmmm" + // e
	"mmmmmmmmmmmmmmmu" //   f

// SDM table A-4; the extensions reference for Key Locker (D8, DC to DF, FA,
// FB), CET (F5, F6), ENQCMD, MOVDIRI (F8, F9) and RAO-INT (FC).
const legacy0F38 = "" +
	"mmmmmmmmmmmm...." + // 0
	"m...mm.m....mmm." + // 1
	"mmmmmm..mmmm...." + // 2
	"mmmmmm.mmmmmmmmm" + // 3
	"mm.............." + // 4
	"................" + // 5
	"................" + // 6
	"................" + // 7
	"mmm............." + // 8
	"................" + // 9
	"................" + // a
	"................" + // b
	"........mmmmmm.m" + // c
	"........m..mmmmm" + // d
	"................" + // e
	"mm...mm.mmmmm..." //   f

// SDM table A-5; F0 is HRESET.
const legacy0F3A = "" +
	"........BBBBBBBB" + // 0
	"....BBBB........" + // 1
	"BBB............." + // 2
	"................" + // 3
	"BBB.B..........." + // 4
	"................" + // 5
	"BBBB............" + // 6
	"................" + // 7
	"................" + // 8
	"................" + // 9
	"................" + // a
	"................" + // b
	"............B.BB" + // c
	"...............B" + // d
	"................" + // e
	"B..............." //   f

// SDM tables, the entries with a v.
const vex0F = "" +
	"................" + // 0
	"mmmmmmmm........" + // 1
	"........mmmmmmmm" + // 2
	"................" + // 3
	".mm.mmmm..mm...." + // 4 opmasks
	"mmmmmmmmmmmmmmmm" + // 5
	"mmmmmmmmmmmmmmmm" + // 6
	"BBBBmmmn....mmmm" + // 7
	"................" + // 8
	"mmmm....mm......" + // 9 opmasks
	"..............m." + // a
	"................" + // b
	"..B.BBB........." + // c
	"mmmmmmmmmmmmmmmm" + // d
	"mmmmmmmmmmmmmmmm" + // e
	"mmmmmmmmmmmmmmm." //   f

// Among them AMX (49, 4B, 5C, 5E, 6C), SHA512 (CB to CD), AVX-VNNI-INT16 (D2,
// D3), SM3 and SM4 (DA), CMPccXADD (E0 to EF), BMI (F2 to F7).
const vex0F38 = "" +
	"mmmmmmmmmmmmmmmm" + // 0
	"...m..mmmmm.mmm." + // 1
	"mmmmmm..mmmmmmmm" + // 2
	"mmmmmmmmmmmmmmmm" + // 3
	"mm...mmm.m.m...." + // 4
	"mmmm....mmm.m.m." + // 5
	"............m..." + // 6
	"..m.....mm......" + // 7
	"............m.m." + // 8
	"gggg..mmmmmmmmmm" + // 9
	"......mmmmmmmmmm" + // a
	"mm..mmmmmmmmmmmm" + // b
	"...........mmm.m" + // c
	"..mm......mmmmmm" + // d
	"mmmmmmmmmmmmmmmm" + // e
	"..mm.mmm........" //   f

// FMA4 and VPERMIL2 (48, 49, 5C to 7F) are AMD's: their fourth register is in
// an imm8 (is4).
const vex0F3A = "" +
	"BBB.BBB.BBBBBBBB" + // 0
	"....BBBBBB...B.." + // 1
	"BBB............." + // 2
	"BBBB....BB......" + // 3
	"BBB.B.B.BBBBB..." + // 4
	"............BBBB" + // 5
	"BBBB....BBBBBBBB" + // 6
	"........BBBBBBBB" + // 7
	"................" + // 8
	"................" + // 9
	"................" + // a
	"................" + // b
	"..............BB" + // c
	"..............BB" + // d
	"................" + // e
	"B..............." //   f

// SDM tables, the entries with evex; APX's promoted KMOV, tiles,
// CMPccXADD and BMI are marked.
const evex0F = "" +
	"................" + // 0
	"mmmmmmmm........" + // 1
	"........mmmmmmmm" + // 2
	"................" + // 3
	"................" + // 4
	".m..mmmmmmmmmmmm" + // 5
	"mmmmmmmmmmmmmmmm" + // 6
	"BBBBmmm.mmmm..mm" + // 7
	"................" + // 8
	"aaaa............" + // 9
	"................" + // a
	"................" + // b
	"..B.BBB........." + // c
	".mmmmmm.mmmmmmmm" + // d
	"mmmmmmmmmmmmmmmm" + // e
	".mmmmmm.mmmmmmm." //   f

const evex0F38 = "" +
	"m...m......mmm.." + // 0
	"mmmmmmm.mmmmmmmm" + // 1
	"mmmmmmmmmmmmmm.." + // 2
	"mmmmmmmmmmmmmmmm" + // 3
	"m.mmmmmm.a.ammmm" + // 4
	"mmmmmm..mmmm...." + // 5
	"..mmmmm.m......." + // 6
	"mmmm.mmmmmmmmmmm" + // 7
	"...m....mmmm.m.m" + // 8
	"gggg..mmmmmmmmmm" + // 9
	"gggg..mmmmmmmmmm" + // a
	"....mmmmmmmmmmmm" + // b
	"....m.ggm.mmmm.m" + // c
	"............mmmm" + // d
	"aaaaaaaaaaaaaaaa" + // e
	"..aa.aaa........" //   f

const evex0F3A = "" +
	"BB.BBB..BBBB...B" + // 0
	"....BBBBBBBB.BBB" + // 1
	"BBBB.BBB........" + // 2
	"........BBBB..BB" + // 3
	"..BBB..........." + // 4
	"BB..BBBB........" + // 5
	"......BB........" + // 6
	"BBBB............" + // 7
	"................" + // 8
	"................" + // 9
	"................" + // a
	"................" + // b
	"..B...........BB" + // c
	"................" + // d
	"................" + // e
	"a..............." //   f

// AVX512-FP16: SDM volume 2, the instructions with MAP5 and MAP6.
const evex5 = "" +
	"................" + // 0
	"mm...........m.." + // 1
	"..........m.mmmm" + // 2
	"................" + // 3
	"................" + // 4
	".m......mmmmmmmm" + // 5
	"..............m." + // 6
	"........mmmmmmm." + // 7
	"................" + // 8
	"................" + // 9
	"................" + // a
	"................" + // b
	"................" + // c
	"................" + // d
	"................" + // e
	"................" //   f

const evex6 = "" +
	"................" + // 0
	"...m............" + // 1
	"............mm.." + // 2
	"................" + // 3
	"..mm........mmmm" + // 4
	"......mm........" + // 5
	"................" + // 6
	"................" + // 7
	"................" + // 8
	"......mmmmmmmmmm" + // 9
	"......mmmmmmmmmm" + // a
	"......mmmmmmmmmm" + // b
	"................" + // c
	"......mm........" + // d
	"................" + // e
	"................" //   f

// AMD APM 6 and APM 3 tables A-11 to A-13 (XOP, TBM, LWP). Map 8 has an imm8
// throughout, map A an imm32.
const xop8 = "" +
	"................" + // 0
	"................" + // 1
	"................" + // 2
	"................" + // 3
	"................" + // 4
	"................" + // 5
	"................" + // 6
	"................" + // 7
	".....BBB......BB" + // 8
	".....BBB......BB" + // 9
	"..BB..B........." + // a
	"......B........." + // b
	"BBBB........BBBB" + // c
	"................" + // d
	"............BBBB" + // e
	"................" //   f

const xop9 = "" +
	".mm............." + // 0
	"..m............." + // 1
	"................" + // 2
	"................" + // 3
	"................" + // 4
	"................" + // 5
	"................" + // 6
	"................" + // 7
	"mmmm............" + // 8
	"mmmmmmmmmmmm...." + // 9
	"................" + // a
	"................" + // b
	".mmm..mm...m...." + // c
	".mmm..mm...m...." + // d
	".mmm..mm...m...." + // e
	"................" //   f

const xopA = "" +
	"................" + // 0
	"L.L............." + // 1
	"................" + // 2
	"................" + // 3
	"................" + // 4
	"................" + // 5
	"................" + // 6
	"................" + // 7
	"................" + // 8
	"................" + // 9
	"................" + // a
	"................" + // b
	"................" + // c
	"................" + // d
	"................" + // e
	"................" //   f

// suffixes3DNow are the defined values of the imm8 that ends a 3DNow!
// instruction (AMD APM 3 table A-10).
const suffixes3DNow = "\x0c\x0d\x1c\x1d\x8a\x8e\x90\x94\x96\x97\x9a\x9e\xa0\xa4\xa6\xa7\xaa\xae\xb0\xb4\xb6\xb7\xbb\xbf"

// opcode identifies an opcode across encodings and maps.
type opcode uint32

func opcodeOf(e Encoding, m Map, op byte) opcode { return opcode(e)<<16 | opcode(m)<<8 | opcode(op) }

// The opcodes of groups and of control flow are written as these plus a byte.
const (
	op1     = opcode(Legacy)<<16 | opcode(MapOneByte)<<8
	op0F    = opcode(Legacy)<<16 | opcode(Map0F)<<8
	opVEX1  = opcode(VEX)<<16 | opcode(Map0F)<<8
	opVEX2  = opcode(VEX)<<16 | opcode(Map0F38)<<8
	opEVEX1 = opcode(EVEX)<<16 | opcode(Map0F)<<8
	opEVEX2 = opcode(EVEX)<<16 | opcode(Map0F38)<<8
	opXOP9  = opcode(XOP)<<16 | opcode(Map9)<<8
	opXOPA  = opcode(XOP)<<16 | opcode(MapA)<<8
)

// group returns which values of ModRM.reg are defined with a memory operand
// and with a register (a bit each), for the opcodes where not all are. SDM
// table A-6, AMD APM 3 tables.
func group(op opcode) (mem, reg uint8) {
	switch op {
	case op1 + 0x8c: // mov from a segment register
		return 0x3f, 0x3f
	case op1 + 0x8d: // lea
		return 0xff, 0
	case op1 + 0x8e: // mov to a segment register, not to cs
		return 0x3d, 0x3d
	case op1 + 0x8f: // pop
		return 0x01, 0x01
	case op1 + 0xc6, op1 + 0xc7: // mov; xabort, xbegin
		return 0x01, 0x81
	case op1 + 0xfe: // inc, dec
		return 0x03, 0x03
	case op1 + 0xff: // inc, dec, call, call far, jmp, jmp far, push
		return 0x7f, 0x57
	case op0F + 0x00: // sldt … verw
		return 0x3f, 0x3f
	case op0F + 0x71, op0F + 0x72, opVEX1 + 0x71, opVEX1 + 0x72, opEVEX1 + 0x71: // shifts
		if op == opEVEX1+0x71 {
			return 0x54, 0x54
		}
		return 0, 0x54
	case opEVEX1 + 0x72: // shifts, rotations
		return 0x57, 0x57
	case op0F + 0x73, opVEX1 + 0x73:
		return 0, 0xcc
	case opEVEX1 + 0x73:
		return 0xcc, 0xcc
	case op0F + 0xa6: // montmul, xsha1, xsha256
		return 0, 0x07
	case op0F + 0xa7: // xstore, xcrypt
		return 0, 0x3f
	case op0F + 0xba: // bt, bts, btr, btc
		return 0xf0, 0xf0
	case op0F + 0xc7: // cmpxchg16b, xrstors, xsavec, xsaves, vmptrld, vmptrst; rdrand, rdseed, rdpid
		return 0xfa, 0xc0
	case opVEX1 + 0xae: // vldmxcsr, vstmxcsr
		return 0x0c, 0
	case opVEX2 + 0xf3: // blsr, blsmsk, blsi
		return 0x0e, 0x0e
	case opEVEX2 + 0xc6, opEVEX2 + 0xc7: // prefetch of gathers and scatters
		return 0x66, 0
	case opXOP9 + 0x01: // TBM
		return 0xfe, 0xfe
	case opXOP9 + 0x02:
		return 0x42, 0x42
	case opXOP9 + 0x12: // llwpcb, slwpcb
		return 0, 0x03
	case opXOPA + 0x12: // lwpins, lwpval
		return 0x03, 0x03
	}
	return 0xff, 0xff
}
