"""Asks a redis server who it is, over one connection, again and again, and speaks the
protocol of the testbed's report.h. A reply that is late, or not of the server's, is an
error."""
import json
import socket
import sys
import threading
import time

s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
errors, error, progress, counts = 0, "", 0, {"client.fd": s.fileno()}


def wrong(text):
    global errors, error
    errors, error = errors + 1, error or text.replace('"', "'")


def ask():
    global progress
    request = b"*2\r\n$3\r\nGET\r\n$3\r\nwho\r\n"
    while True:
        s.sendall(request)
        reply = b""
        while not reply.endswith(b"\r\n") or reply.count(b"\r\n") < 2:
            part = s.recv(4096)
            if not part:
                wrong("the connection has ended")
                return
            reply += part
        name = reply.split(b"\r\n")[1].decode()
        if reply != b"$1\r\n%s\r\n" % name.encode():
            wrong("reply %r" % reply)
        counts["client." + name] = counts.get("client." + name, 0) + 1
        progress += 1
        time.sleep(0.04)


threading.Thread(target=ask, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    if line == "quit\n":
        sys.exit(0)
    print(json.dumps({"fixture": "redis_client.py", "errors": errors, "error": error, "progress": progress, "counts": dict(counts)}), flush=True)
sys.exit(3)
