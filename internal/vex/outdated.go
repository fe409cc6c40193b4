package vex

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dpkg"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/rpm"
)

// Outdated implements api.Executive. Processes are looked at first, and only
// then, where a module is outdated, are the package lists of the roots that such
// processes have: each once, for all paths.
func (Machine) Outdated(ctx context.Context, r api.OutdatedRequest, emit func(api.Currency) error) (err error) {
	roots := &packageRoots{known: make(map[procfs.RootID]*packageRoot)}
	defer func() { err = errors.Join(err, roots.close()) }()
	var found []*currency
	err = eachProcess(ctx, r.Target, false, func(ctx context.Context, p *module.Process, modules []*module.Module) ([]*currency, error) {
		c, err := current(ctx, p, modules, roots)
		return []*currency{c}, err
	}, func(c *currency) error {
		if c != nil {
			found = append(found, c)
		}
		return nil
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	roots.name(ctx)
	if ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	for _, c := range found {
		if emitErr := emit(c.Currency); emitErr != nil {
			return errors.Join(err, emitErr)
		}
	}
	return err
}

// A currency is what is found out about one process. Its outdated modules do not
// move any more once they are handed to a packageRoot.
type currency struct{ api.Currency }

// current looks at the modules of one process. It is nil with an error: what is
// known of a process that ends is of no use.
func current(ctx context.Context, p *module.Process, modules []*module.Module, roots *packageRoots) (*currency, error) {
	c := &currency{api.Currency{PID: p.PID(), Program: p.Name, Modules: len(modules)}}
	var questions []question
	for _, m := range modules {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if m.Kind != module.VDSO && m.File.Change == procfs.FileUnknown && m.IsObject() {
			c.Unknown = append(c.Unknown, api.UncomparedModule{Module: m.Name, Path: m.Path, Refusal: module.RefusePath(m)})
		}
		if !m.Outdated() || !m.IsObject() {
			continue
		}
		inside := pathInRoot(p, m, m.Path)
		o := api.OutdatedModule{
			PID: p.PID(), Program: p.Name, Module: m.Name, Path: m.Path, RunningBuildID: m.BuildID(),
			Change: m.File.Change.String(), Verdict: api.VerdictRestart, Refusals: []api.Refusal{},
		}
		if m.Object == nil {
			o.Refusals = append(o.Refusals, m.Obstacles...)
		}
		next, err := p.Successor(m)
		switch {
		case errors.Is(err, procfs.ErrGone):
			return nil, err
		case err != nil:
			o.Refusals = append(o.Refusals, module.RefuseFile(m, err))
		case next == nil && isTemporary(inside):
			o.Verdict = api.VerdictNone
		}
		if next != nil {
			if next.Same || m.Generation > 0 && next.BuildID == p.RunningBuildID(m) {
				continue // installed again, or replaced: what runs is what is there
			}
			o.InstalledBuildID = next.BuildID
			inside = pathInRoot(p, m, next.Path)
			if o.Obstacles, err = cannotReplace(ctx, p, m); err != nil {
				return nil, err
			}
			if len(o.Obstacles) == 0 {
				o.Verdict = api.VerdictReplace
			}
		}
		c.Outdated = append(c.Outdated, o)
		questions = append(questions, question{path: inside, ownRoot: m.File.OwnRoot, born: m.File.Born, started: p.Started})
	}
	if len(c.Outdated) == 0 {
		return c, nil
	}
	if err := locate(p, c.Outdated); err != nil {
		return nil, err
	}
	for i, q := range questions {
		if c.Outdated[i].Verdict == api.VerdictNone {
			continue
		}
		root, err := roots.of(p, q.ownRoot)
		if errors.Is(err, procfs.ErrGone) {
			return nil, err
		}
		if err == nil { // who may not look into the root learns no packages
			root.ask(&c.Outdated[i], q)
		}
	}
	return c, nil
}

// cannotReplace returns why the build on disk can't take over in the running
// program; nothing where it can.
func cannotReplace(ctx context.Context, p *module.Process, m *module.Module) ([]api.Refusal, error) {
	build, err := p.SuccessorBuild(m)
	if err == nil {
		var plan *module.Replacement
		if plan, err = p.PlanReplace(ctx, m, build, match.Options{}); err == nil {
			return plan.Refusals, nil
		}
	}
	if refusals := api.Refusals(err); len(refusals) > 0 {
		return refusals, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return []api.Refusal{module.RefuseFile(m, err)}, nil
	}
	return nil, err
}

// pathInRoot returns a path as package lists have it, in the root directory that
// the module's file was looked up from.
func pathInRoot(p *module.Process, m *module.Module, path string) string {
	if !m.File.OwnRoot {
		if inside, err := p.PathInRoot(path); err == nil {
			return inside
		}
	}
	return path
}

// locate fills in what the process's control group tells about what to restart.
func locate(p *module.Process, modules []api.OutdatedModule) error {
	group, err := p.Cgroup()
	if errors.Is(err, procfs.ErrGone) {
		return err
	}
	if err != nil {
		return nil
	}
	unit, ofUser := serviceOf(group)
	for i := range modules {
		modules[i].Unit, modules[i].UserUnit, modules[i].Container = unit, ofUser, group.Container
	}
	return nil
}

// serviceOf returns the unit that can be restarted. A scope can't: others than
// systemd started its processes. The unit of a user's systemd holds all that the
// user runs, so that is not the one.
func serviceOf(group procfs.Cgroup) (unit string, ofUser bool) {
	unit = group.Unit
	if strings.HasPrefix(unit, "user@") {
		unit, ofUser = group.UserUnit, true
	}
	if !strings.HasSuffix(unit, ".service") {
		return "", false
	}
	return unit, ofUser
}

// temporary are the folders for files that need not outlive who made them
// (hier(7), file-hierarchy(7)). Java, Python and others unpack libraries there,
// load them, and delete them at once.
var temporary = [...]string{"/tmp/", "/var/tmp/", "/dev/shm/", "/run/", "/var/run/"}

func isTemporary(path string) bool {
	for _, folder := range temporary {
		if strings.HasPrefix(path, folder) {
			return true
		}
	}
	return false
}

// A question is what a package database is asked about an outdated module.
type question struct {
	path          string    // in the root directory
	ownRoot       bool      // which is that of vos
	born, started time.Time // of the mapped file, and of the process
}

// packageRoots are the root directories of processes with outdated modules.
type packageRoots struct {
	mu    sync.Mutex
	known map[procfs.RootID]*packageRoot
}

// A packageRoot gathers what is to be found out about one root directory.
type packageRoot struct {
	root *procfs.Root

	mu        sync.Mutex
	questions map[*api.OutdatedModule]question
}

// of returns the root directory of a process, or the own one.
func (r *packageRoots) of(p *module.Process, own bool) (*packageRoot, error) {
	process := p.Process
	if own {
		self, err := procfs.Open(os.Getpid())
		if err != nil {
			return nil, err
		}
		defer self.Close()
		process = self
	}
	root, err := process.OpenRoot()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.known[root.ID()]; known != nil {
		return known, root.Close()
	}
	opened := &packageRoot{root: root, questions: make(map[*api.OutdatedModule]question)}
	r.known[root.ID()] = opened
	return opened, nil
}

func (r *packageRoots) close() error {
	var errs []error
	for _, root := range r.known {
		errs = append(errs, root.root.Close())
	}
	return errors.Join(errs...)
}

// name fills in packages and versions. What a database does not tell, or can't,
// stays unknown: that a module is outdated is certain without it.
func (r *packageRoots) name(ctx context.Context) {
	for _, root := range r.known {
		root.name(ctx)
	}
}

func (r *packageRoot) ask(about *api.OutdatedModule, q question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.questions[about] = q
}

// name asks dpkg, and rpm about what dpkg does not know.
func (r *packageRoot) name(ctx context.Context) {
	if err := r.nameByDpkg(); err != nil {
		r.failed(err)
	}
	if err := r.nameByRPM(ctx); err != nil {
		r.failed(err)
	}
}

// nameless returns the questions to which there is no answer yet, by path.
func (r *packageRoot) nameless() map[string][]*api.OutdatedModule {
	byPath := make(map[string][]*api.OutdatedModule)
	for m, q := range r.questions {
		if m.Package == "" {
			byPath[q.path] = append(byPath[q.path], m)
		}
	}
	return byPath
}

// failed notes why there is no answer.
func (r *packageRoot) failed(err error) {
	for _, modules := range r.nameless() {
		for _, m := range modules {
			m.PackageProblem = err.Error()
		}
	}
}

func (r *packageRoot) nameByDpkg() error {
	nameless := r.nameless()
	if len(nameless) == 0 {
		return nil
	}
	database, err := dpkg.Open(r.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owners, err := database.Owners(slices.Collect(maps.Keys(nameless)))
	if err != nil || len(owners) == 0 {
		return err
	}
	log, err := database.Log()
	if err != nil {
		log = nil
	}
	for path, owner := range owners {
		for _, m := range nameless[path] {
			m.Package, m.InstalledVersion = owner.Name, owner.Version
			m.RunningVersion = versionThatRuns(log, owner, r.questions[m])
		}
	}
	return nil
}

func (r *packageRoot) nameByRPM(ctx context.Context) error {
	nameless := r.nameless()
	if len(nameless) == 0 {
		return nil
	}
	database, err := rpm.Open(r.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owners, err := database.Owners(ctx, slices.Collect(maps.Keys(nameless)))
	if err != nil || len(owners) == 0 {
		return err
	}
	log, logErr := database.Log()
	for path, owner := range owners {
		for _, m := range nameless[path] {
			m.Package, m.InstalledVersion, m.PackageProblem = owner.Name, owner.Version, ""
			if logErr == nil {
				moment, exact := r.questions[m].moment()
				m.RunningVersion = log.Version(owner, moment, exact)
			}
		}
	}
	return nil
}

// moment returns when the mapped file was made, or, where a file system does not
// keep that time, when the process started. That is not exact: it may have
// become another program since, or have opened a library later.
func (q question) moment() (at time.Time, exact bool) {
	if q.born.IsZero() {
		return q.started, false
	}
	return q.born, true
}

// versionThatRuns finds the version that a mapped file is from: what the first
// upgrade after it was made took away. Where that moment is not exact, several
// upgrades leave it open.
func versionThatRuns(log *dpkg.Log, owner dpkg.Package, q question) string {
	if log == nil {
		return ""
	}
	since, exact := q.moment()
	upgrades, known := log.Since(owner, since)
	if !known || len(upgrades) == 0 || len(upgrades) > 1 && !exact {
		return ""
	}
	return upgrades[0].Old
}
