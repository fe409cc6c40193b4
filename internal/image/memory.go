package image

// A Layout is what the kernel knows of the address space beside its mappings, as in
// struct prctl_mm_map.
type Layout struct {
	StartCode  uint64   `cbor:"start_code"`
	EndCode    uint64   `cbor:"end_code"`
	StartData  uint64   `cbor:"start_data"`
	EndData    uint64   `cbor:"end_data"`
	StartBreak uint64   `cbor:"start_break"`
	Break      uint64   `cbor:"break"`
	StartStack uint64   `cbor:"start_stack"`
	ArgStart   uint64   `cbor:"arg_start"`
	ArgEnd     uint64   `cbor:"arg_end"`
	EnvStart   uint64   `cbor:"env_start"`
	EnvEnd     uint64   `cbor:"env_end"`
	Auxv       []uint64 `cbor:"auxv"` // pairs, with the ending AT_NULL
}

// A Kind is what a mapping's memory is.
type Kind string

// Kinds of mappings.
const (
	Anonymous Kind = "anonymous" // private, of no file
	Private   Kind = "private"   // of a file, with private copies of pages
	SharedMap Kind = "shared"    // of a file; its pages are the file's
	InObject  Kind = "object"    // of an Object: shared anonymous memory, memfd, System V
	VDSO      Kind = "vdso"      // code and data that the kernel provides
)

// HugePages is the flag of mappings whose memory is huge pages (hugetlb) of HugePage bytes:
// private anonymous ones only.
const (
	HugePages = "ht"
	HugePage  = 2 << 20
)

// A Mapping is one area of the address space.
type Mapping struct {
	Start      uint64   `cbor:"start"`
	End        uint64   `cbor:"end"`
	Kind       Kind     `cbor:"kind"`
	Protection uint32   `cbor:"protection"`       // PROT_…
	Flags      uint32   `cbor:"flags"`            // MAP_PRIVATE or MAP_SHARED, and MAP_GROWSDOWN, MAP_NORESERVE, MAP_LOCKED …
	VMFlags    []string `cbor:"vm_flags"`         // of smaps: "rd", "wr", "dc", "wf", "lo" …
	Name       string   `cbor:"name,omitempty"`   // PR_SET_VMA_ANON_NAME, or [heap], [stack], [vdso], [vvar]
	File       *FileRef `cbor:"file,omitempty"`   // of Private and SharedMap
	OpenedFor  uint32   `cbor:"opened,omitempty"` // O_RDONLY or O_RDWR: what the file must be opened for
	Object     int      `cbor:"object,omitempty"` // of InObject
	Offset     uint64   `cbor:"offset,omitempty"` // in the file or object
	Pages      []Run    `cbor:"pages,omitempty"`  // what differs from zeroes, or from the file; of VDSO its code
	Guards     []Span   `cbor:"guards,omitempty"` // MADV_GUARD_INSTALL
}

// A Span is addresses, or offsets, from Start up to End.
type Span struct {
	Start uint64 `cbor:"s"`
	End   uint64 `cbor:"e"`
}

// A Run is pages in sequence that the image holds, or one of its parents.
type Run struct {
	_     struct{} `cbor:",toarray"`
	Start uint64   // address, or offset in an Object
	Count uint64   // pages of 4,096 bytes
	Place Place    // of the first
}

// A Place is where a page is kept: a byte offset in the uncompressed page file of the
// image, or of the parent that is so many generations up.
type Place struct {
	_      struct{} `cbor:",toarray"`
	Up     int
	Offset uint64
}

// An Object is memory that mappings or descriptors share: shared anonymous memory, a
// memfd, a System V segment, or a file that was mapped and is deleted.
type Object struct {
	Kind  string `cbor:"kind"` // "shared", "memfd", "sysv", "file"
	Name  string `cbor:"name,omitempty"`
	Size  uint64 `cbor:"size"`
	Flags uint32 `cbor:"flags,omitempty"` // of memfd_create: MFD_…; of a file O_RDONLY or O_RDWR
	Seals uint32 `cbor:"seals,omitempty"`
	Mode  uint32 `cbor:"mode,omitempty"` // permissions; System V: SHM_DEST and SHM_LOCKED, too
	Key   int32  `cbor:"key,omitempty"`  // System V
	ID    int32  `cbor:"id,omitempty"`
	Pages []Run  `cbor:"pages,omitempty"`

	File *FileRef `cbor:"file,omitempty"` // of a file: what it was
	UID  uint32   `cbor:"uid,omitempty"`  // of a file, or System V
	GID  uint32   `cbor:"gid,omitempty"`

	Outside bool `cbor:"outside,omitempty"` // System V: others have it attached, and its content
}
