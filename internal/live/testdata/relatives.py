"""Processes whose relations show how they came to be, and of whom some have ended.

    relatives.py PORT

Each connection to the port gives one command, and gets a line:

    zombies   three more children end, and are not waited for
    reap      how they ended, as waitid tells it: code status uid; they are waited for
    told      how often the end of a child was told since
"""
import ctypes
import os
import resource
import signal
import socket
import sys

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


waiting = []  # descriptors by which ancestors are told


def idle():
    while True:
        signal.pause()


def born(work):
    """Bears a child that does something, and waits until it has said that it is ready, or
    has ended."""
    global waiting
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in waiting + [r]:
            os.close(fd)
        waiting = [w]
        work(w)
        os._exit(0)
    os.close(w)
    os.read(r, 1)
    os.close(r)
    return pid


def ready(w):
    os.write(w, b".")
    os.close(w)


def stay(w):
    ready(w)
    idle()


def ended(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def daemon(w):  # a session whose leader has ended
    os.setsid()
    born(stay)


def leader_stays(w):  # a session with one that its parent has left
    os.setsid()
    between = born(lambda _: born(stay))
    os.waitpid(between, 0)
    stay(w)


def leaves(w):  # its child is in the session that it has left
    born(stay)
    os.setsid()
    stay(w)


os.waitpid(born(daemon), 0)
os.waitpid(born(lambda w: born(daemon)), 0)  # its parent, too, which has ended: not waited for
born(leader_stays)
born(leaves)
ended(born(daemon))  # and one whose leader was not waited for

gone = born(stay)  # a group whose leader has ended
os.setpgid(gone, gone)
os.setpgid(born(stay), gone)
os.kill(gone, signal.SIGKILL)
os.waitpid(gone, 0)

moved = born(stay)  # and one that its leader has left
os.setpgid(moved, moved)
os.setpgid(born(stay), moved)
os.setpgid(moved, os.getpgrp())

zombies, told = [], 0


def tell(*_):
    global told
    told += 1


def as_nobody(w):
    os.setresuid(65534, 65534, 65534)
    os.kill(os.getpid(), signal.SIGSEGV)
    idle()


listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
signal.signal(signal.SIGCHLD, tell)
while True:
    client, _ = listening.accept()
    with client:
        command, answer = client.recv(100).decode(), ""
        if command == "zombies":
            for work in (lambda w: os._exit(7), lambda w: os.kill(os.getpid(), signal.SIGKILL), as_nobody):
                pid = born(work)
                ended(pid)
                zombies.append(pid)
        if command == "reap":
            for pid in zombies:
                r = os.waitid(os.P_PID, pid, os.WEXITED)
                answer += f"{r.si_code} {r.si_status} {r.si_uid} "
            zombies = []
        if command == "told":
            answer = str(told)
        client.sendall((answer.strip() + "\n").encode())
        client.recv(1)  # until the client has ended the connection
