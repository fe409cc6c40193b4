"""Counts for its clients: three processes accept at one socket and count in memory that
they share. The first one starts them, and others for those that end.

    prefork.py PORT LOCKFILE
"""
import fcntl
import mmap
import os
import socket
import struct
import sys

listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
shared = mmap.mmap(-1, mmap.PAGESIZE)
idle, alive = os.pipe()  # ends for the workers when the first one ends


def work():
    lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        client, _ = listening.accept()
        with client:
            if not client.recv(64):
                continue  # somebody who only looks whether it listens
            fcntl.flock(lock, fcntl.LOCK_EX)
            (n,) = struct.unpack_from("Q", shared)
            struct.pack_into("Q", shared, 0, n + 1)
            fcntl.flock(lock, fcntl.LOCK_UN)
            client.sendall(b"%d\n" % (n + 1))


def start():
    if os.fork() == 0:
        try:
            os.close(alive)
            work()
        finally:
            os._exit(1)


for _ in range(3):
    start()
while True:
    os.wait()
    start()
