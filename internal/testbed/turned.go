package testbed

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

// turnStyle makes an HTML page of the names of a document, one after the other.
const turnStyle = `<?xml version="1.0"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:output method="html" indent="no" encoding="utf-8"/>
<xsl:template match="/all"><ul><xsl:for-each select="entry[@kind=1]"><li><xsl:value-of select="concat(name, ', ', ../entry[2]/name)"/></li></xsl:for-each></ul></xsl:template>
</xsl:stylesheet>
`

// turnedFiles are pages that turnStyle makes; see [turnedDocument].
func turnedFiles() (all []File) {
	for i := range 12 {
		page := []byte("<ul>")
		for n := range 20 * i {
			if n%2 == 1 {
				page = fmt.Appendf(page, "<li>n%x &amp; co, n1 &amp; co</li>", n*n)
			}
		}
		page = append(page, "</ul>\n"...)
		if i == 0 {
			page = []byte("<ul></ul>\n")
		}
		all = append(all, File{Path: fmt.Sprintf("/%d.xml", i), Content: page, SHA256: sha256.Sum256(page)})
	}
	return all
}

// turnedDocument is what a page is made of.
func turnedDocument(page File) []byte {
	names := 2 * bytes.Count(page.Content, []byte("<li>"))
	document := []byte("<all>")
	for n := range names {
		document = fmt.Appendf(document, "<entry kind=\"%d\"><name>n%x &amp; co</name><skip>%x</skip></entry>", n%2, n*n, n)
	}
	return append(document, "</all>\n"...)
}
