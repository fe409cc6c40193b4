package testbed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// LoadOptions says how hard a load presses. The zero value is a gentle load
// that leaves most of a two-core machine to others.
type LoadOptions struct {
	Conns   int           // clients that keep their connection; 4 if 0
	Fresh   int           // clients that connect anew for each request; 1 if 0, none if < 0
	Rate    float64       // requests a second, of all clients together; 400 if 0, unbounded if < 0
	Timeout time.Duration // after which an answer counts as lost; 10 s if 0
	For     time.Duration // after which the load ends by itself; 10 min if 0
}

func (o LoadOptions) withDefaults() LoadOptions {
	if o.Conns == 0 {
		o.Conns = 4
	}
	if o.Fresh == 0 {
		o.Fresh = 1
	}
	o.Fresh = max(o.Fresh, 0)
	if o.Rate == 0 {
		o.Rate = 400
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.For == 0 {
		o.For = 10 * time.Minute
	}
	return o
}

// Totals are what a load has seen.
type Totals struct {
	Served      int64    `json:"served"`      // right answers
	Failed      int64    `json:"failed"`      // requests without a right answer
	Wrong       int64    `json:"wrong"`       // of the failed ones, those with a wrong answer
	Connections int64    `json:"connections"` // made
	Reconnects  int64    `json:"reconnects"`  // made by clients that should have kept theirs
	Bytes       int64    `json:"bytes"`       // of verified content
	Errors      []string `json:"errors"`      // the first few
	// Marks counts right answers by what they show of the build that made them:
	// those that were compressed, by the byte for the operating system in the
	// gzip header (see Zlib), others by a header (see File).
	Marks    map[string]int64 `json:"marks,omitempty"`
	P50      time.Duration    `json:"p50_ns"` // of the time from request to verified answer
	P99      time.Duration    `json:"p99_ns"`
	P999     time.Duration    `json:"p999_ns"`
	Max      time.Duration    `json:"max_ns"`
	WorstGap time.Duration    `json:"worst_gap_ns"` // longest time in which no client got an answer
	Elapsed  time.Duration    `json:"elapsed_ns"`
}

// String is one line for people.
func (t Totals) String() string {
	s := fmt.Sprintf("%d served, %d failed in %.1f s; p50 %v, p99 %v, p99.9 %v, max %v, worst gap %v",
		t.Served, t.Failed, t.Elapsed.Seconds(), t.P50, t.P99, t.P999, t.Max, t.WorstGap.Round(time.Microsecond))
	if len(t.Errors) > 0 {
		s += ": " + t.Errors[0]
	}
	return s
}

// errWrong marks an answer that came and was not what it should have been.
var errWrong = errors.New("wrong answer")

// An answer is what is known of one that was right.
type answer struct {
	bytes int    // of verified content
	mark  string // what it shows of the build of the library that made it; "" if nothing
}

// An asker is one client. It is used by one goroutine.
type asker interface {
	// ask connects if need be, makes one request and verifies the answer.
	ask(random *rand.Rand, deadline time.Time) (answer, error)
	// connected tells whether the connection stands.
	connected() bool
	// disconnect gives the connection up; the next ask makes a new one.
	disconnect()
}

// A Load runs clients against a server until it is stopped. Each request ends
// in exactly one of Served and Failed; a request under way when the load is
// stopped is finished first.
type Load struct {
	options LoadOptions
	began   time.Time
	stop    chan struct{}
	once    sync.Once
	clients sync.WaitGroup
	tallies []*tally

	lastAnswer atomic.Int64 // nanoseconds since began
	worstGap   atomic.Int64
	ended      atomic.Int64 // when the last client ended; 0 before
	epoch      atomic.Int64 // counts calls of NextMarks
}

// A tally is what one client has seen. The lock is almost never contended.
type tally struct {
	mu        sync.Mutex
	served    int64
	failed    int64
	wrong     int64
	connected int64
	again     int64
	bytes     int64
	errors    []string
	marks     map[string]int64
	latency   histogram

	epoch  int64            // what follows is of requests that began in it
	recent map[string]int64 // marks; "" for answers without one
}

const errorsKept = 5

// startLoad starts one goroutine a client; newAsker makes its client.
func startLoad(ctx context.Context, o LoadOptions, newAsker func(client int) asker) *Load {
	o = o.withDefaults()
	l := &Load{options: o, began: time.Now(), stop: make(chan struct{})}
	all := o.Conns + o.Fresh
	for i := range all {
		t := &tally{}
		l.tallies = append(l.tallies, t)
		l.clients.Go(func() { l.run(i, newAsker(i), t, all, i >= o.Conns) })
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-time.After(o.For):
		case <-l.stop:
		}
		l.once.Do(func() { close(l.stop) })
		l.clients.Wait()
		l.ended.CompareAndSwap(0, int64(time.Since(l.began)))
	}()
	return l
}

// run is the life of one client.
func (l *Load) run(number int, a asker, t *tally, all int, fresh bool) {
	defer a.disconnect()
	random := rand.New(rand.NewPCG(uint64(number), 1))
	var interval time.Duration
	if l.options.Rate > 0 {
		interval = time.Duration(float64(all) / l.options.Rate * float64(time.Second))
	}
	pace := time.NewTimer(interval * time.Duration(number) / time.Duration(all)) // clients out of step
	defer pace.Stop()
	next := time.Now()
	for first := true; ; first = false {
		select {
		case <-l.stop:
			return
		case <-pace.C:
		}
		if !a.connected() {
			t.mu.Lock()
			t.connected++
			if !first && !fresh {
				t.again++
			}
			t.mu.Unlock()
		}
		epoch := l.epoch.Load()
		asked := time.Now()
		got, err := a.ask(random, asked.Add(l.options.Timeout))
		answered := time.Now()
		t.note(got, err, epoch, answered.Sub(asked), time.Since(l.began))
		switch {
		case err != nil:
			a.disconnect()
			next = answered.Add(20 * time.Millisecond) // a dead server is not hammered
		default:
			l.noteAnswer(answered)
			if fresh {
				a.disconnect()
			}
			next = next.Add(interval)
			if now := time.Now(); next.Before(now) {
				next = now // what was missed is not made up for in a burst
			}
		}
		pace.Reset(time.Until(next))
	}
}

func (t *tally) note(got answer, err error, epoch int64, took, since time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.served++
		t.bytes += int64(got.bytes)
		if t.recent == nil || t.epoch != epoch {
			t.epoch, t.recent = epoch, make(map[string]int64)
		}
		t.recent[got.mark]++
		if got.mark != "" {
			if t.marks == nil {
				t.marks = make(map[string]int64)
			}
			t.marks[got.mark]++
		}
		t.latency.add(took)
		return
	}
	t.failed++
	if errors.Is(err, errWrong) {
		t.wrong++
	}
	if len(t.errors) < errorsKept {
		t.errors = append(t.errors, fmt.Sprintf("at %.3f s, after %v: %v", since.Seconds(), took, err))
	}
}

// noteAnswer keeps the longest time between two answers of any client.
func (l *Load) noteAnswer(at time.Time) {
	now := int64(at.Sub(l.began))
	last := l.lastAnswer.Swap(now)
	raise(&l.worstGap, now-last)
}

func raise(a *atomic.Int64, to int64) {
	for {
		old := a.Load()
		if to <= old || a.CompareAndSwap(old, to) {
			return
		}
	}
}

// Totals returns what was seen so far. A gap that has not ended yet counts.
func (l *Load) Totals() Totals {
	end := l.ended.Load()
	if end == 0 {
		end = int64(time.Since(l.began))
	}
	t := Totals{
		Elapsed:  time.Duration(end),
		WorstGap: time.Duration(max(l.worstGap.Load(), end-l.lastAnswer.Load())),
	}
	var latency histogram
	for _, c := range l.tallies {
		c.mu.Lock()
		t.Served += c.served
		t.Failed += c.failed
		t.Wrong += c.wrong
		t.Connections += c.connected
		t.Reconnects += c.again
		t.Bytes += c.bytes
		t.Errors = append(t.Errors, c.errors...)
		for mark, n := range c.marks {
			if t.Marks == nil {
				t.Marks = make(map[string]int64)
			}
			t.Marks[mark] += n
		}
		latency.merge(&c.latency)
		c.mu.Unlock()
	}
	t.Errors = t.Errors[:min(len(t.Errors), errorsKept)]
	t.P50, t.P99, t.P999 = latency.quantile(.5), latency.quantile(.99), latency.quantile(.999)
	t.Max = latency.max
	return t
}

// Stop lets each client finish its request, then returns the totals. It may be
// called again.
func (l *Load) Stop() Totals {
	l.once.Do(func() { close(l.stop) })
	l.clients.Wait()
	l.ended.CompareAndSwap(0, int64(time.Since(l.began)))
	return l.Totals()
}

// NextMarks waits for n right answers to requests that begin after this call, and
// counts them by their marks, those without one under "". One call at a
// time.
func (l *Load) NextMarks(ctx context.Context, n int64) (map[string]int64, error) {
	epoch := l.epoch.Add(1)
	for {
		var sum int64
		marks := make(map[string]int64)
		for _, t := range l.tallies {
			t.mu.Lock()
			if t.epoch == epoch {
				for mark, n := range t.recent {
					marks[mark] += n
					sum += n
				}
			}
			t.mu.Unlock()
		}
		if sum >= n {
			return marks, nil
		}
		select {
		case <-ctx.Done():
			return marks, fmt.Errorf("await %d answers: %w; %v", n, ctx.Err(), l.Totals())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Await waits until at least n more requests were served or failed, or ctx
// ends. It is for a demo or test that wants to see the load go on.
func (l *Load) Await(ctx context.Context, n int64) error {
	before := l.Totals()
	for {
		now := l.Totals()
		if now.Served+now.Failed-before.Served-before.Failed >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await %d requests: %w; %v", n, ctx.Err(), now)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
