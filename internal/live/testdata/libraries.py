"""Computes with numpy, or works on documents with lxml, as it is told, checks every
result, and speaks the protocol of the testbed's report.h."""
import json
import os
import select
import sys

task, errors, error, progress = sys.argv[1], 0, "", 0


def numeric():
    import numpy as np

    random = np.random.default_rng(7)
    a = random.standard_normal((60, 60)) + 60 * np.eye(60)
    whole = random.integers(-1000, 1000, (80, 80))
    square = [sum(int(x) * int(y) for x, y in zip(whole[0], whole[:, n])) for n in range(80)]
    signal = random.integers(-100, 100, 4096)
    text = "\n".join("%d %d" % (n, n * n) for n in range(500))

    def step(n):
        assert np.allclose(np.linalg.inv(a) @ a, np.eye(60)), "inverse"
        values, vectors = np.linalg.eigh(a + a.T)
        assert np.allclose(vectors * values @ vectors.T, a + a.T), "eigenvalues"
        assert (whole @ whole)[0].tolist() == square, "product"
        assert np.rint(np.fft.ifft(np.fft.fft(signal)).real).astype(int).tolist() == signal.tolist(), "transform"
        mixed = np.random.default_rng(n).permutation(20000)
        assert np.array_equal(np.sort(mixed), np.arange(20000)), "order"
        assert np.loadtxt(text.splitlines(), dtype=int)[n % 500].tolist() == [n % 500, (n % 500) ** 2], "text"
        assert int(np.concatenate([mixed, mixed]).sum()) == 20000 * 19999, "sum"

    return step


def documents():
    from lxml import etree

    style = etree.XSLT(etree.XML("""<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:output method="text"/><xsl:template match="/"><xsl:for-each select="//n[@odd]"><xsl:value-of select="."/>,</xsl:for-each></xsl:template>
</xsl:stylesheet>"""))
    odd = "".join("%d," % n for n in range(1, 300, 2))

    def step(n):
        root = etree.Element("all")
        for i in range(300):
            e = etree.SubElement(root, "n")
            e.text = str(i)
            if i % 2:
                e.set("odd", "yes")
        text = etree.tostring(root)
        again = etree.fromstring(text)
        assert etree.tostring(again) == text, "copy"
        assert str(style(again)) == odd, "style"
        assert again.xpath("sum(//n)") == 300 * 299 / 2, "sum"
        try:
            etree.fromstring(b"<a><b></a>")
            raise AssertionError("half a document was read")
        except etree.XMLSyntaxError:
            pass

    return step


step = {"numpy": numeric, "lxml": documents}[task]()
print("ready", flush=True)
line = b""
while True:
    if select.select([0], [], [], 0)[0]:
        got = os.read(0, 4096)
        if not got:
            sys.exit(3)
        line += got
        while b"\n" in line:
            command, line = line.split(b"\n", 1)
            if command == b"quit":
                sys.exit(1 if errors else 0)
            print(json.dumps({"fixture": task, "errors": errors, "error": error, "progress": progress, "counts": {}}), flush=True)
    try:
        step(progress)
    except Exception as e:
        errors, error = errors + 1, error or repr(e)
    progress += 1
