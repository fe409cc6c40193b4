package testbed

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
)

// A File is served by a program under test and known to the load.
type File struct {
	Path    string // as in a request: "/64k.txt"
	Content []byte
	SHA256  [sha256.Size]byte
	Other   []byte // an answer that is as right, and of another length; nil if there is none
	Header  string // of answers, whose value is their mark: "Content-Type"; "" for another mark
}

var words = [...]string{"the", "program", "module", "runs", "and", "is", "refreshed", "while", "it", "serves",
	"page", "table", "text", "of", "a", "library", "never", "stops", "thread", "handle", "virtual", "old", "new", "byte"}

// textFile makes a file of about the given size in bytes: lines of common
// words, which gzip compresses some four times. The same name gives the same
// content, always.
func textFile(name string, size int) File {
	var seed [32]byte
	copy(seed[:], name)
	random := rand.New(rand.NewChaCha8(seed))
	text := make([]byte, 0, size+16)
	for line := 1; len(text) < size; line++ {
		text = fmt.Appendf(text, "%06d", line)
		for range 10 {
			text = append(append(text, ' '), words[random.IntN(len(words))]...)
		}
		text = append(text, '\n')
	}
	text = text[:size]
	return File{Path: "/" + name, Content: text, SHA256: sha256.Sum256(text)}
}

// textFiles are what [Nginx] serves.
func textFiles() []File {
	return []File{
		textFile("1k.txt", 1<<10),
		textFile("4k.txt", 4<<10),
		textFile("16k.txt", 16<<10),
		textFile("64k.txt", 64<<10),
		textFile("256k.txt", 256<<10),
		textFile("1m.txt", 1<<20),
	}
}
