package criu

import (
	"bufio"
	"encoding/binary"
	"io"
)

// Magic numbers. All files but the inventory, and the pages, which have none, begin with
// the common one.
const (
	magicCommon    = 0x54564319
	magicInventory = 0x58313116
	magicPstree    = 0x50273030
	magicCore      = 0x55053847
	magicIDs       = 0x54432030
	magicFS        = 0x51403912
	magicMM        = 0x57492820
	magicPagemap   = 0x56084025
	magicFdinfo    = 0x56213732
	magicFiles     = 0x56303138
	magicPipesData = 0x56453709
	magicFIFOData  = 0x59333054
	magicQueues    = 0x56264026
	magicGhost     = 0x52583605
	magicRemap     = 0x59133954
	magicMemfd     = 0x48453499
	magicLocks     = 0x54323616
	magicStream    = 0x51465506
	magicSeccomp   = 0x64413049
)

// writeTo writes a part: each message behind its length.
func (p *part) writeTo(to io.Writer) error {
	b := bufio.NewWriter(to)
	if err := p.begin(b); err != nil {
		return err
	}
	for _, e := range p.entries {
		if err := writeEntry(b, e); err != nil {
			return err
		}
	}
	return b.Flush()
}

func (p *part) begin(b io.Writer) error {
	var head []byte
	if p.magic != magicInventory {
		head = binary.LittleEndian.AppendUint32(head, magicCommon)
	}
	_, err := b.Write(binary.LittleEndian.AppendUint32(head, p.magic))
	return err
}

func writeEntry(b io.Writer, e any) error {
	if raw, ok := e.(rawBytes); ok {
		_, err := b.Write(raw)
		return err
	}
	message := marshal(e)
	if _, err := b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(message)))); err != nil {
		return err
	}
	_, err := b.Write(message)
	return err
}
