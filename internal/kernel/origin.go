package kernel

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An Origin is what statx(2) tells of a file beyond stat(2).
type Origin struct {
	Born  time.Time // when it was made; the zero time where the file system does not keep it
	Mount uint64    // the id of the mount that it was found on, as in mountinfo; 0 before Linux 5.8
}

// FileOrigin looks at an open file, also one opened with O_PATH.
func FileOrigin(file *os.File) (Origin, error) {
	var st unix.Statx_t
	err := unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME|unix.STATX_MNT_ID, &st)
	if err != nil {
		return Origin{}, fmt.Errorf("statx %s: %w", file.Name(), err)
	}
	var o Origin
	if st.Mask&unix.STATX_BTIME != 0 {
		o.Born = time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
	}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		o.Mount = st.Mnt_id
	}
	return o, nil
}
