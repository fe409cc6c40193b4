"""Whenever it is asked to work, keeps documents, compressors and other objects, and lets
some go. It has the C library trace what is allocated (mtrace, muntrace)."""
import ctypes
import gc
import json
import sys
import zlib

from lxml import etree

kept = []


def work():
    for n in range(150):
        root = etree.Element("all")
        for i in range(40):
            e = etree.SubElement(root, "item%d" % (i % 7))
            e.text = "text %d of %d" % (i, n)
            e.set("n", str(i))
        text = etree.tostring(root)
        kept.append(etree.fromstring(text))
        kept.append(json.loads(json.dumps({"a": list(range(n)), "b": "x" * n})))
        kept.append(zlib.compressobj())
        kept.append(zlib.compress(text * 20))
    del kept[::3]
    gc.collect()


def call(function):
    """Calls a function that has no default version, as these of libc_malloc_debug."""
    find = ctypes.CDLL(None).dlvsym
    find.restype, find.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    ctypes.CFUNCTYPE(None)(find(None, function.encode(), b"GLIBC_2.2.5"))()


gc.collect()
print("ready", flush=True)
for line in sys.stdin:
    if line == "work\n":
        work()
    else:
        call(line.strip())
    print("done", flush=True)
