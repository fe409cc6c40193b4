package match

// A Drift says that structures seem to have another layout.
type Drift struct{}

func detectDrift(p *pairing) Drift { return Drift{} }

func (m *Match) refuseDrift(all *refusals) {}
