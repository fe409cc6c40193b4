package menu

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Startable returns the path of this vos, which the program has to see as well,
// and its user to be allowed to run: the entries of a menu are to start it.
func Startable(p *module.Process) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	refused := func(format string, args ...any) error {
		return api.Refusal{Code: codeUnstartable, Subject: fmt.Sprintf("process %d", p.PID()),
			Detail: "the menu's entries are to start " + own + ", but " + fmt.Sprintf(format, args...),
			Remedy: "install vos where the program's user can run it: /usr/local/bin"}
	}
	running, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	status, err := p.Status()
	if err != nil {
		return "", err
	}
	root, err := p.OpenRoot()
	if err != nil {
		return "", err
	}
	defer root.Close()
	look := func(name string) (fs.FileInfo, error) {
		file, err := root.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return file.Stat()
	}
	for name := strings.TrimPrefix(own, "/"); ; name = path.Dir(name) {
		info, err := look(name)
		switch {
		case err != nil:
			return "", refused("the program does not see it: %v", err)
		case name == own[1:] && !os.SameFile(info, running):
			return "", refused("the program sees another file there")
		case !mayExecute(info, status):
			return "", refused("its user may not use /%s", name)
		case name == ".":
			return own, nil
		}
	}
}

// mayExecute reports whether a user may run a file, or go through a folder. Of a
// file's group any user may be.
func mayExecute(info fs.FileInfo, user procfs.Status) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case user.UIDs.Effective == 0 || !ok:
		return true
	case int(stat.Uid) == user.UIDs.Effective:
		return mode&0o100 != 0
	default:
		return mode&0o011 != 0
	}
}
