package match

import "github.com/virtualizing-os/vos/internal/api"

// The codes of refusals of this package. Each says that the new build can't
// take over with the old one's data, as far as files tell.
const (
	CodeNotLibrary    api.Code = "not_a_library"
	CodeSoname        api.Code = "soname_differs"
	CodeNoBuildID     api.Code = "no_build_id"
	CodeCLibrary      api.Code = "c_library"
	CodeArchitecture  api.Code = "architecture_differs"
	CodeMalformed     api.Code = "object_malformed"
	CodeTextrel       api.Code = "text_relocations"
	CodeExportGone    api.Code = "export_gone"
	CodeExportKind    api.Code = "export_kind_changed"
	CodeExportSize    api.Code = "export_resized"
	CodeAliasSplit    api.Code = "aliases_split"
	CodeIFUNC         api.Code = "ifunc_export"
	CodeNeeded        api.Code = "needed_added"
	CodeTLSImage      api.Code = "tls_image_differs"
	CodeTLSStatic     api.Code = "tls_initial_exec"
	CodeTLSDesc       api.Code = "tls_descriptor"
	CodeDataIdentity  api.Code = "data_identity_unproved"
	CodeDataConflict  api.Code = "data_identity_conflict"
	CodeDataGrown     api.Code = "data_grown"
	CodeOpaque        api.Code = "code_not_decoded"
	CodePairing       api.Code = "pairing_unproved"
	CodeLayoutDrift   api.Code = "layout_drift"
	CodeLayoutChanged api.Code = "layout_changed"
	CodeAllocation    api.Code = "allocation_resized"
	CodeTableGrown    api.Code = "table_layout_changed"
	CodeLabelTable    api.Code = "label_table"
	CodeConstructor   api.Code = "constructor_changed"
	CodeDebugFile     api.Code = "debug_file_differs"
)

const (
	askRestart = "restart the program to use the new build"
	askDebug   = "give the debug files of both builds, or restart the program"
)

// remedies says what the user can do about each refusal.
var remedies = map[api.Code]string{
	CodeNotLibrary:    askRestart,
	CodeSoname:        "give a build of the same library",
	CodeNoBuildID:     "link the library with --build-id, or restart the program",
	CodeCLibrary:      askRestart,
	CodeArchitecture:  "give a build for this machine",
	CodeMalformed:     "give a file that is whole",
	CodeTextrel:       "build the library with -fPIC, or restart the program",
	CodeExportGone:    askRestart,
	CodeExportKind:    askRestart,
	CodeExportSize:    askRestart,
	CodeAliasSplit:    askRestart,
	CodeIFUNC:         askRestart,
	CodeNeeded:        "restart the program, unless it has the library loaded already",
	CodeTLSImage:      askRestart,
	CodeTLSStatic:     askRestart,
	CodeTLSDesc:       askRestart,
	CodeDataIdentity:  askDebug,
	CodeDataConflict:  askDebug,
	CodeDataGrown:     askDebug,
	CodeOpaque:        askRestart,
	CodePairing:       askDebug,
	CodeLayoutDrift:   askDebug,
	CodeLayoutChanged: askRestart,
	CodeAllocation:    askDebug,
	CodeTableGrown:    askRestart,
	CodeLabelTable:    askRestart,
	CodeConstructor:   askRestart,
	CodeDebugFile:     "give the debug file of this very build",
}

// Codes returns every code with its remedy, for the documentation.
func Codes() map[api.Code]string {
	all := make(map[api.Code]string, len(remedies))
	for code, remedy := range remedies {
		all[code] = remedy
	}
	return all
}
