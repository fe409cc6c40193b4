// Package x86 reads and writes x86-64 machine code: a decoder that tells how
// long an instruction is and what it refers to, and an assembler for the few
// instructions that vOS generates.
//
// # Decoding
//
// Decode reads one instruction of 64-bit mode. It doesn't name instructions:
// what the rest of vOS needs is where the next one begins, where control goes,
// and which bytes hold a displacement, an immediate or a branch distance.
// These follow from the encoding alone:
//
//  1. legacy prefixes in any order, then at most one REX;
//  2. the opcode map: one byte, 0F, 0F 38, 0F 3A, or the map that a VEX, EVEX
//     or XOP prefix names;
//  3. the opcode's shape, one letter of a grid of 256 a map (tables.go): is
//     there a ModRM byte, and what follows it;
//  4. ModRM, SIB, displacement, immediate.
//
// Groups, opcodes whose ModRM.reg selects the instruction, have masks of what
// is defined. Mandatory prefixes, LOCK and vector lengths are not checked
// beyond what length and references need: an instruction that decodes may
// still raise #UD.
//
// # What may fail
//
// A wrong length is worse than none, so Decode fails closed. Errors wrap one of
// ErrTruncated, ErrInvalid, ErrUnsupported, ErrAPX and ErrAmbiguous. The last
// is what processors disagree on: a near branch with 66 and without REX.W (a
// 16-bit distance for AMD, a 32-bit one for Intel) and UD0 (0F FF: Intel reads
// a ModRM byte, AMD none). The sequences of the TLS ABI, 66 66 48 E8 and
// 66 48 E8, have REX.W, which outranks 66 for both, and decode.
//
// # Assembling
//
// An Assembler appends instructions to a buffer for a known address; labels
// stand for places in it and for addresses elsewhere, and are resolved at the
// end. The first error sticks and is returned by Code.
//
// Sources: Intel SDM volume 2, chapters 2 to 5 and appendix A; Intel
// Architecture Instruction Set Extensions reference; AMD APM volume 3, chapter
// 1 and appendix A, volume 6 (XOP, FMA4); psABI x86-64 on TLS. Lengths, targets
// and RIP-relative operands are compared with objdump by the tests.
package x86
