package module

import "github.com/virtualizing-os/vos/internal/api"

// The codes of refusals of a replacement, beyond those of package match.
const (
	codeNotRegular   api.Code = "not_regular"
	codeUntrusted    api.Code = "file_untrusted"
	codeKind         api.Code = "not_replaceable"
	codeCorrupt      api.Code = "module_corrupt"
	codeNoSuccessor  api.Code = "no_other_build"
	codeNoRoom       api.Code = "no_room"
	codeImport       api.Code = "import_unresolved"
	codeEntryInUse   api.Code = "entry_in_use"
	codeEntryMoved   api.Code = "entry_not_movable"
	codeNoGeneration api.Code = "no_generation_before"
	codeGenerations  api.Code = "too_many_generations"
	codeAddedData    api.Code = "added_data"
	codeStaging      api.Code = "staging_failed"
	codeMerges       api.Code = "too_many_initial_values"
	codeVIN          api.Code = "vin_corrupt"
	codeUnwinding    api.Code = "unwinding_unknown"
)

const askRestart = "restart the program to use the new build"
