"""Holds a pseudo terminal with a program in it, as an emulator of terminals does, and shows
it to one client at a time: what the client sends is typed, what is written comes back.

    holder.py PORT COMMAND ...
"""
import fcntl
import os
import pty
import select
import socket
import struct
import sys
import termios

listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
pid, master = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execvp(sys.argv[2], sys.argv[2:])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
client, shown = None, b""
while True:
    ready, _, _ = select.select([master, client or listening], [], [])
    if master in ready:
        try:
            shown += os.read(master, 65536)
        except OSError:
            os.waitpid(pid, 0)  # the program has ended
            sys.exit(0)
    if client in ready:
        try:
            typed = client.recv(65536)
        except OSError:
            typed = b""  # it has left with something unread
        if typed:
            os.write(master, typed)
        else:
            client.close()
            client = None
    if listening in ready:
        client, _ = listening.accept()
    if client and shown:
        try:
            client.sendall(shown)
        except OSError:
            pass  # it has just left
        shown = b""
