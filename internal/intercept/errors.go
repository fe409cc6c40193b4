package intercept

import "errors"

// What making or reading an interceptor fails for.
var (
	ErrInvalid = errors.New("not valid")
	ErrFull    = errors.New("beyond what an interceptor has room for")
	ErrCorrupt = errors.New("corrupt interceptor")
	ErrVersion = errors.New("interceptor of another version")
)
