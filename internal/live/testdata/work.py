# Computes with OpenSSL and SQLite all the time, checks every result, and speaks
# the protocol of testbed/fixtures/report.h.
import hashlib
import json
import os
import sqlite3
import ssl
import sys
import threading
import time

errors, first, progress = 0, "", 0


def wrong(text):
    global errors, first
    errors += 1
    first = first or text


def work():
    global progress
    data = bytes(range(256)) * 64
    digest, ciphers = hashlib.sha256(data).hexdigest(), len(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ciphers())
    db = sqlite3.connect(":memory:")
    db.execute("create table t(n integer, s text)")
    while True:
        if hashlib.sha256(data).hexdigest() != digest:
            wrong("a digest changed")
        if len(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ciphers()) != ciphers:
            wrong("the list of ciphers changed")
        db.execute("delete from t")
        db.executemany("insert into t values(?, ?)", ((n, str(n)) for n in range(100)))
        if db.execute("select sum(n), sum(length(s)) from t where n >= 50").fetchone() != (3725, 100):
            wrong("a sum changed")
        progress += 1
        time.sleep(0.001)


threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    if line == "quit\n":
        os._exit(0)
    print(json.dumps({"fixture": "python", "errors": errors, "error": first, "progress": progress}), flush=True)
os._exit(3)
