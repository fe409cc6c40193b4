package handle

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"github.com/virtualizing-os/vos/internal/procfs"
)

// readInfo reads the fdinfo of a descriptor.
func readInfo(p *procfs.Process, fd int) (in *info, err error) {
	err = p.DescriptorInfo(fd, func(text []byte) error {
		in, err = parseInfo(text)
		return err
	})
	return in, err
}

// A numbered registration is the nth of those that an epoll has under its number.
type numbered struct {
	Registration
	nth int
}

// registrationsOf reads those registrations of an epoll that are of files with this
// inode. A server's epoll has thousands of others, and the program may be stopped:
// their lines are not read further than their number.
func registrationsOf(p *procfs.Process, epoll int, inode uint64) (all []numbered, err error) {
	err = p.DescriptorInfo(epoll, func(text []byte) error {
		all, err = parseRegistrationsOf(text, inode)
		return err
	})
	return all, err
}

func parseRegistrationsOf(text []byte, inode uint64) (all []numbered, err error) {
	mark := []byte(" ino:" + strconv.FormatUint(inode, 16) + " ")
	var found []int // numbers with a registration of the inode
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("tfd:")) || !bytes.Contains(line, mark) {
			continue
		}
		var in info
		if err := in.addRegistration(string(bytes.TrimSuffix(line, []byte("\n")))); err != nil {
			return nil, fmt.Errorf("parse fdinfo %.80q: %w", line, err)
		}
		if len(all) == maxEntries {
			return nil, errEntries
		}
		all = append(all, numbered{Registration: in.epoll[0]})
		found = append(found, in.epoll[0].FD)
	}
	if len(all) == 0 {
		return nil, nil
	}
	seen := make(map[int]int, len(found))
	next := 0
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("tfd:"))
		if !ok {
			continue
		}
		number, _, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
		fd, err := strconv.Atoi(string(number))
		if err != nil || !slices.Contains(found, fd) {
			continue
		}
		if next < len(all) && bytes.Contains(line, mark) {
			all[next].nth = seen[fd]
			next++
		}
		seen[fd]++
	}
	return all, nil
}
