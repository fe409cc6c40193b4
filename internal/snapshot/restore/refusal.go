package restore

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// Refusals of this package.
const (
	codePIDTaken    api.Code = "pid_taken"
	codeFileChanged api.Code = "file_changed"
	codeFileMissing api.Code = "file_missing"
	codeCPU         api.Code = "cpu_differs"
	codeKernel      api.Code = "kernel_differs"
	codeClock       api.Code = "clock_behind"
	codeNotRestored api.Code = "not_restorable"
	codeSegment     api.Code = "segment_taken"
	codeHuge        api.Code = "huge_pages_missing"
	codeFrozen      api.Code = "cgroup_frozen"
)

func pidTaken(id int, detail string) api.Refusal {
	return api.Refusal{Code: codePIDTaken, Subject: fmt.Sprintf("id %d", id), Detail: detail,
		Remedy: "end what has it; what has ended keeps it until its parent has waited: try again then, or end the parent; --pid-any restores it where its ids are free"}
}

func fileChanged(path, detail string) api.Refusal {
	return api.Refusal{Code: codeFileChanged, Subject: path, Detail: detail,
		Remedy: "put the file back, name another one by --map, or take it as it is by --force-files"}
}

func fileMissing(path, detail string) api.Refusal {
	return api.Refusal{Code: codeFileMissing, Subject: path, Detail: detail,
		Remedy: "put the file back, or name another one by --map"}
}

func notRestorable(subject, detail string) api.Refusal {
	return api.Refusal{Code: codeNotRestored, Subject: subject, Detail: detail, Remedy: "none is known"}
}
