// Package match compares two builds of one shared library, on their files
// alone, and says whether the new one can take over from the old one inside a
// running program: new code loaded beside the old, working on the old data.
//
// # Steps
//
// Each is a value that the next one takes.
//
//  1. Functions (function.go): executable segments are split by unwind tables
//     (.eh_frame); in the gaps between, by following control flow from calls,
//     symbols and pointers. What nothing leads to there is data or padding.
//  2. Content (content.go, resolve.go): each function is decoded;
//     displacements relative to RIP and branches that leave the function are
//     zeroed, the rest is kept and hashed. What was zeroed is the ordered list
//     of its references.
//  3. Pairing (pair.go, propagate.go, similar.go): exported name and version,
//     name in .symtab, content found once, the same place in paired functions
//     or in relocated tables, equal runs beside pairs, similar neighbours.
//  4. Data (data.go, sandwich.go, pointer.go): addresses of writable data, new → old.
//  5. State (state.go, constant.go, exception.go): are pairs of equal text also
//     equal in what they refer to: strings, tables, jump tables, pointers,
//     exception tables.
//  6. Redirection (redirect.go, retarget.go): the fewest entries by which all
//     changes take effect, and the places of the new code that are to lead to
//     old data and old entries.
//  7. Drift (drift.go, debug.go): have structures another layout.
//  8. Refusals (hazard.go, code.go): all that speaks against it.
//
// # Trust
//
// A wrong pair of functions may redirect calls into the wrong function, a wrong
// pair of addresses corrupts the program's data. So each pair has a Trust and
// each mapped address a Proof. Data is mapped by
//
//   - symbols of both builds (.dynsym, .symtab, debug file) of one name and size;
//   - the i-th reference in pairs of equal text that are Strong or Certain;
//   - a pointer at the same place of a table that paired code leads to, where
//     the objects are as long and have the same initial contents;
//   - a sandwich: known addresses on both sides in one section with one
//     displacement, nothing in between that only the new build refers to, and
//     the same function or pointer referring to both.
//
// They are listed by falling strength, sandwiches before pointers where both
// would do. Nothing else is proof: not the order of references in changed code, not
// names of one file only. Where proofs contradict each other, none counts, and
// that is a refusal, as is every writable address that the new code uses and
// that has no proof.
//
// An equal text proves less than it seems: twins, functions that differ in
// their references only, are told apart by the names and strings that they
// refer to, by their place in tables and between paired neighbours, or stay
// below Strong.
//
// # What may fail
//
// Errors come from package dso: a file that can't be read. Everything that
// makes a replacement unsafe is a refusal with a code, never an error. Loops
// are bounded by the size of the files; code that can't be decoded is Opaque
// and compared by its raw bytes.
//
// What files can't tell is left to the plan: which libraries the process has,
// where copy relocations moved exported objects (Match.Objects), what initial
// values the program has changed (Match.Initial).
package match
