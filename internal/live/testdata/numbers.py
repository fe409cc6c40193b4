"""Answers each connection by the next number, which it keeps in an open transaction
and checks against what it computes."""
import os, socket, sqlite3, sys

db = sqlite3.connect(sys.argv[2], isolation_level=None)
db.execute("create table numbers (n integer, text text)")
db.execute("begin immediate")
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
held = {}
n = 0
while True:
    client, _ = server.accept()
    n += 1
    held[n] = str(n) * 1000
    db.execute("insert into numbers values (?, ?)", (n, held[n]))
    count, = db.execute("select count(*) from numbers").fetchone()
    if count != n or any(text != str(k) * 1000 for k, text in held.items()):
        os._exit(3)
    client.recv(100)
    client.sendall(b"%d\n" % n)
    client.close()
