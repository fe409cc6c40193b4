package rpm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// nobody is who runs rpm in root's place (Linux Standard Base; the id that
// kernels take for a user they can't name).
const nobody = 65534

// copyTo copies the database's files into a folder that the caller made.
func (d *Database) copyTo(folder string) error {
	before, err := d.state()
	if err != nil {
		return err
	}
	left := d.most
	for i, name := range d.files {
		if before[i] == (state{}) {
			continue
		}
		if left, err = d.copyFile(name, filepath.Join(folder, name), left); err != nil {
			return fmt.Errorf("copy rpm's database: %s: %w", name, err)
		}
	}
	after, err := d.state()
	if err != nil {
		return err
	}
	for i := range before {
		if before[i] != after[i] {
			return fmt.Errorf("copy rpm's database: %s: %w", d.files[i], ErrChanging)
		}
	}
	return nil
}

// A state is by what a file that was written to is known. That of a file that is
// not there is zero.
type state struct{ size, modified int64 }

func (d *Database) state() ([]state, error) {
	states := make([]state, len(d.files))
	for i, name := range d.files {
		info, err := fs.Stat(d.root, path.Join(d.folder, name))
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at rpm's database: %w", err)
		}
		states[i] = state{info.Size(), info.ModTime().UnixNano()}
	}
	return states, nil
}

// copyFile copies at most left bytes, and returns how many may follow.
func (d *Database) copyFile(name, to string, left int64) (int64, error) {
	from, err := d.root.Open(path.Join(d.folder, name))
	if err != nil {
		return left, err
	}
	defer from.Close()
	file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return left, err
	}
	n, err := io.Copy(file, io.LimitReader(from, left+1))
	if err == nil && n > left {
		err = ErrTooLarge
	}
	if err == nil && asNobody() {
		err = file.Chown(nobody, nobody)
	}
	return left - n, errors.Join(err, file.Close())
}

// asNobody reports whether rpm is to run with less than the rights of vos.
func asNobody() bool { return os.Geteuid() == 0 }
