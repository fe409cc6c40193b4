package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// hugeFolder is where the kernel tells of its huge pages of 2 MiB.
const hugeFolder = "/sys/kernel/mm/hugepages/hugepages-2048kB"

// refuseHuge refuses an image whose memory takes more huge pages than are free.
func refuseHuge(img *image.Image) ([]api.Refusal, error) {
	needed := hugePages(img)
	if needed == 0 {
		return nil, nil
	}
	free, err := freeHugePages()
	if err != nil || free >= needed {
		return nil, err
	}
	return []api.Refusal{{Code: codeHuge, Subject: "huge pages", Detail: fmt.Sprintf("%d of 2 MiB are free, and it takes %d", free, needed),
		Remedy: "raise vm.nr_hugepages"}}, nil
}

// hugePages counts those that an image takes: of a mapping all, as they are reserved, or
// where it reserves none those that it has.
func hugePages(img *image.Image) (n uint64) {
	for i := range img.Processes {
		for j := range img.Processes[i].Mappings {
			m := &img.Processes[i].Mappings[j]
			switch {
			case !slices.Contains(m.VMFlags, image.HugePages):
			case m.Flags&mapNoReserve == 0:
				n += (m.End - m.Start) / image.HugePage
			default:
				next := m.Start // the first that is not counted
				for _, run := range m.Pages {
					start, end := max(next, run.Start&^(image.HugePage-1)), run.Start+run.Count*pageSize
					if end > start {
						pages := (end - start + image.HugePage - 1) / image.HugePage
						n, next = n+pages, start+pages*image.HugePage
					}
				}
			}
		}
	}
	return n
}

// freeHugePages counts the huge pages that nobody has or has reserved, with those that the
// kernel may make.
func freeHugePages() (uint64, error) {
	values := make(map[string]uint64)
	for _, name := range []string{"free_hugepages", "resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages"} {
		text, err := os.ReadFile(filepath.Join(hugeFolder, name))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil // this kernel has none
		}
		if err != nil {
			return 0, err
		}
		if values[name], err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
	}
	free := values["free_hugepages"] + values["nr_overcommit_hugepages"]
	return free - min(free, values["resv_hugepages"]+values["surplus_hugepages"]), nil
}
