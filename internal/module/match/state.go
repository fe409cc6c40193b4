package match

// judge tells of each pair whether the functions are the same: the third step's
// result, which the fourth one's map and the constants decide.
func judge(p *pairing, data *DataMap) {
	c := newConstants(p, data)
	for k := range p.pairs {
		q := &p.pairs[k]
		switch {
		case !q.equal:
			q.State = Changed
		case c.sameReferences(q):
			q.State = Identical
		default:
			q.State = Referring
		}
	}
}

func (c *constants) sameReferences(q *Pair) bool {
	old, new := c.p.old, c.p.new
	f, g := &old.Functions[q.Old], &new.Functions[q.New]
	rf, rg := old.referencesOf(f), new.referencesOf(g)
	for i := range rf {
		if !c.same(q, &rf[i], &rg[i]) {
			return false
		}
	}
	return c.equalExceptions(f, g)
}

// same tells whether references at the same place of equal code are the same.
func (c *constants) same(q *Pair, r, s *Reference) bool {
	old, new := c.p.old, c.p.new
	if r.Region != s.Region || r.Mode != s.Mode || (r.To < 0) != (s.To < 0) {
		return false
	}
	switch r.Region {
	case Text:
		return r.To >= 0 && c.p.newOf(int(r.To)) == int(s.To) && r.Target-old.Functions[r.To].Addr == s.Target-new.Functions[s.To].Addr
	case Slot, TLS:
		if r.To >= 0 {
			return old.names[r.To] == new.names[s.To]
		}
		// The loader's own tables, and the image of thread-local storage, which
		// must be equal as a whole.
		at, name := old.sectionOf(r.Target)
		to, other := new.sectionOf(s.Target)
		return name == other && r.Target-at.Addr == s.Target-to.Addr
	case Data:
		if f := &old.Functions[q.Old]; f.Startup {
			return true // it doesn't run, so nobody asked for a proof
		}
		at, _, ok := c.data.Old(s.Target)
		return ok && at == r.Target
	case Const, Relro:
		return c.equal(q.Old, q.New, r, s)
	}
	return r.Target == s.Target
}
