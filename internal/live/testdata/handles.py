# Opens a handle of each kind and writes what they are, as vos should tell it, to
# FOLDER/truth.json: a list of descriptors, each with the keys that are certain. A
# child shares some; a process that is no relative gets one by a unix socket.
import array, ctypes, fcntl, json, os, select, signal, socket, struct, subprocess, sys

folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
truth = []


def tell(fd, kind, **more):
    truth.append(dict(pid=os.getpid(), program="python3", fd=fd, kind=kind, mine=False, inode=os.fstat(fd).st_ino, **more))
    return fd


def ref(fd, pid=None, program="python3"):
    return dict(pid=pid or os.getpid(), program=program, fd=fd)


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def path(name):
    return os.path.join(folder, name)


CX = "O_CLOEXEC"

# Files
log = os.open(path("log\nwith newline"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_SYNC)
os.write(log, b"x" * 4711)
tell(log, "file", path=path("log\nwith newline"), access="write", flags=["O_APPEND", CX, "O_SYNC"], offset=4711, size=4711, peers=[])
gone = os.open(path("gone (deleted)"), os.O_RDWR | os.O_CREAT)
os.unlink(path("gone (deleted)"))
tell(gone, "file", path=path("gone (deleted)"), deleted=True, access="read_write", flags=[CX], offset=0, size=0, shared=[])
locked = os.open(path("locked"), os.O_RDWR | os.O_CREAT)
fcntl.flock(locked, fcntl.LOCK_EX)
fcntl.lockf(locked, fcntl.LOCK_EX, 10, 5)
tell(locked, "file", path=path("locked"), locks=[
    dict(type="FLOCK", mode="WRITE", pid=os.getpid(), start=0, end=-1), dict(type="POSIX", mode="WRITE", pid=os.getpid(), start=5, end=14)])
tell(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), "directory", path=folder, access="read")
tell(os.open(path("locked"), os.O_PATH), "path", path=path("locked"), access="none", flags=[CX, "O_PATH"])
memory = os.memfd_create("a memfd (deleted)\n")
os.ftruncate(memory, 8192)
tell(memory, "memfd", name="/memfd:a memfd (deleted)\n (deleted)", size=8192)
made_up = os.memfd_create("vos-redirect")  # only the name is vOS's
os.write(made_up, b"VOSREDIR\1\0\0\0" + b"\xff" * 500)
tell(made_up, "memfd", size=512, own="left")
truth[-1]["mine"] = True

# Devices and terminals
tell(os.open("/dev/zero", os.O_RDWR), "device", path="/dev/zero", special="1:5", shared=[])
master, slave = os.openpty()
number = int(os.ttyname(slave).rsplit("/", 1)[1])
tell(master, "terminal", pty=number)
tell(slave, "terminal", pty=number, path=os.ttyname(slave))

# Pipes; a FIFO whose two ends are here
r, w = os.pipe()
fcntl.fcntl(r, fcntl.F_SETFL, os.O_NONBLOCK)
os.mkfifo(path("fifo"))
fr = os.open(path("fifo"), os.O_RDONLY | os.O_NONBLOCK)
fw = os.open(path("fifo"), os.O_WRONLY)
tell(fr, "fifo", path=path("fifo"), access="read", peers=[ref(fw)], shared=[])
tell(fw, "fifo", path=path("fifo"), access="write", peers=[ref(fr)], shared=[])

# Sockets. A queue holds what nobody read.
listener = socket.create_server(("127.0.0.1", 0), backlog=17)
address = "127.0.0.1:%d" % listener.getsockname()[1]
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b"y" * 1000)
waiting = socket.create_connection(listener.getsockname())
local = "127.0.0.1:%d" % client.getsockname()[1]
tcp = dict(family="inet", type="stream", protocol="tcp")
tell(listener.fileno(), "socket", socket=dict(tcp, state="listen", local=address, receive_queue=1, send_queue=17), peers=[])
tell(server.fileno(), "socket", socket=dict(tcp, state="established", local=address, remote=local, receive_queue=1000, send_queue=0), peers=[ref(client.fileno())])
tell(client.fileno(), "socket", socket=dict(tcp, state="established", local=local, remote=address), peers=[ref(server.fileno())])
unbound = socket.socket()
tell(unbound.fileno(), "socket", socket=dict(tcp, receive_queue=0, send_queue=0), peers=[])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
tell(udp.fileno(), "socket", socket=dict(family="inet", type="dgram", protocol="udp", state="unconnected",
                                        local="127.0.0.1:%d" % udp.getsockname()[1], receive_queue=0, send_queue=0))
if socket.has_ipv6:
    try:
        six = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=100)
        tell(six.fileno(), "socket", socket=dict(family="inet6", type="stream", protocol="tcp", state="listen",
                                                local="[::1]:%d" % six.getsockname()[1], receive_queue=0, send_queue=100))
    except OSError:
        pass
unix = socket.socket(socket.AF_UNIX)
unix.bind(path("unix"))
unix.listen(9)
tell(unix.fileno(), "socket", socket=dict(family="unix", type="stream", state="listen", local=path("unix"), receive_queue=0, send_queue=9))
abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
abstract.bind(b"\0vos\0%d" % os.getpid())
tell(abstract.fileno(), "socket", socket=dict(family="unix", type="dgram", state="unconnected", abstract=True,
                                             local="@vos\0%d" % os.getpid(), receive_queue=0, send_queue=0))
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pair = dict(family="unix", type="seqpacket", state="established")
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
netlink.bind((0, 0))
tell(netlink.fileno(), "socket", socket=dict(family="netlink", protocol="route", state="unconnected", receive_queue=0, send_queue=0))

# What programs wait on
event = libc.eventfd(31, 1)
tell(event, "eventfd", eventfd=dict(count=31, semaphore=True), flags=[])
timer = libc.timerfd_create(1, 0)
call(libc.timerfd_settime(timer, 0, struct.pack("qqqq", 5, 7, 100000, 0), None))
tell(timer, "timerfd")  # what is left of the time is checked apart
signals = struct.pack("Q", 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGRTMAX - 1)
signalfd = call(libc.signalfd(-1, signals, 0))
tell(signalfd, "signalfd", signals=[int(signal.SIGUSR1), int(signal.SIGRTMAX)])
watcher = call(libc.inotify_init())
watch = call(libc.inotify_add_watch(watcher, path("locked").encode(), 0x2 | 0x400))
stat = os.stat(path("locked"))
tell(watcher, "inotify", watches=[dict(wd=watch, inode=stat.st_ino, device="%d:%d" % (os.major(stat.st_dev), os.minor(stat.st_dev)),
                                      events=["IN_MODIFY", "IN_DELETE_SELF"])])
tell(os.pidfd_open(os.getppid()), "pidfd", pidfd=dict(pid=os.getppid()))
dead = os.fork()
if dead == 0:
    os._exit(0)
deadfd = os.pidfd_open(dead)
os.waitpid(dead, 0)
tell(deadfd, "pidfd", pidfd=dict(pid=-1))
network = os.open("/proc/self/ns/net", os.O_RDONLY)
tell(network, "namespace", name="net:[%d]" % os.fstat(network).st_ino)
ring = libc.syscall(425, 8, ctypes.create_string_buffer(120))
if ring >= 0:  # it can be forbidden on a machine
    tell(ring, "io_uring", io_uring=dict(submission_entries=8, completion_entries=16, files=0, buffers=0))

# An epoll instance with a pipe, an eventfd, and a number that now has another file
epoll = select.epoll()
closed = os.dup(r)
kept = os.dup(closed)
call(libc.epoll_ctl(epoll.fileno(), 1, closed, struct.pack("<IQ", select.EPOLLIN | select.EPOLLET, 1 << 63 | 5)))
os.dup2(event, closed, inheritable=False)
tell(closed, "eventfd", eventfd=dict(count=31, semaphore=True), shared=[ref(event)])
call(libc.epoll_ctl(epoll.fileno(), 1, event, struct.pack("<IQ", select.EPOLLIN | select.EPOLLONESHOT, event)))
tell(epoll.fileno(), "epoll", epoll=sorted([
    dict(fd=closed, events=["EPOLLIN", "EPOLLET"], data="0x8000000000000005", open=False),
    dict(fd=event, events=["EPOLLIN", "EPOLLONESHOT"], data="0x%x" % event, open=True, kind="eventfd")], key=lambda r: r["fd"]))

# Sharing: by dup, by fork, by a unix socket
other = subprocess.Popen([sys.executable, "-I", "-c", """if True:
    import array, os, socket, sys
    s = socket.socket(fileno=0)
    _, ancillary, _, _ = s.recvmsg(1, 64)
    print(array.array("i", ancillary[0][2])[0], flush=True)
    s.recv(1)
"""], stdin=right, stdout=subprocess.PIPE)
left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
passed = int(other.stdout.readline())
name = open("/proc/%d/comm" % other.pid).read().strip()
right.close()
tell(left.fileno(), "socket", socket=dict(pair, receive_queue=0, send_queue=0), peers=[ref(0, other.pid, name)])
duplicate = os.dup(log)
up, down = os.pipe()
child = os.fork()
if child == 0:
    keep = {log, w, up}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass
    os.read(up, 1)
    os._exit(0)
os.close(up)
while len(os.listdir("/proc/%d/fd" % child)) > 3:
    pass
tell(duplicate, "file", path=path("log\nwith newline"), offset=4711, shared=[ref(log), ref(log, child)])
by_fd = {h["fd"]: h for h in truth}
by_fd[log]["shared"] = [ref(duplicate), ref(log, child)]
by_fd[memory]["shared"] = [ref(passed, other.pid, name)]
by_fd[event]["shared"] = [ref(closed)]
tell(r, "pipe", name="pipe:[%d]" % os.fstat(r).st_ino, access="read", flags=[CX, "O_NONBLOCK"], peers=[ref(w), ref(w, child)], shared=[ref(kept)])
tell(w, "pipe", access="write", peers=[ref(r), ref(kept)], shared=[ref(w, child)])
tell(kept, "pipe", shared=[ref(r)])
tell(down, "pipe", access="write", peers=[ref(up, child)])

json.dump(dict(handles=truth, child=child, other=other.pid, timer=timer, all=sorted(map(int, os.listdir("/proc/self/fd")))), open(path("truth.json"), "w"))
print("ready", flush=True)
sys.stdin.read()
other.kill()
os.close(down)
os.waitpid(child, 0)
other.wait()
