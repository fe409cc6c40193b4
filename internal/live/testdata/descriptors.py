"""A server that holds descriptors of many kinds: its answer says what is in them.

    descriptors.py FOLDER

A connection to FOLDER/sock that sends "state" is answered by one line; what was read
is put back. It says "ready" in FOLDER/log when it listens."""

import ctypes, fcntl, mmap, os, select, socket, sqlite3, struct, sys, tempfile

folder = sys.argv[1]
at = lambda name: os.path.join(folder, name)
libc = ctypes.CDLL(None, use_errno=True)


def made(fd):
    if fd < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return fd


log = open(at("log"), "a", buffering=1)
near, far = socket.socketpair()
near.send(b"queued")
reads, writes = os.pipe()
os.write(writes, b"piped")
unnamed = tempfile.TemporaryFile(dir=folder)
unnamed.write(b"unnamed" * 1000)
unnamed.flush()
db = sqlite3.connect(at("db"), isolation_level=None)
db.execute("create table t(x)")
db.execute("begin immediate")
pid = open(at("pid"), "w")
fcntl.flock(pid, fcntl.LOCK_EX)
memory = made(libc.memfd_create(b"memory", 0))
os.write(memory, b"in memory")
both = made(libc.memfd_create(b"mapped, too", 2))
os.ftruncate(both, 10000)
mapped = mmap.mmap(both, 10000)
mapped[9000:9006] = b"mapped"
count = made(libc.eventfd(7, os.O_NONBLOCK))
watch = made(libc.inotify_init1(os.O_NONBLOCK))
made(libc.inotify_add_watch(watch, folder.encode(), 0x100))  # IN_CREATE
ticks = made(libc.timerfd_create(1, os.O_NONBLOCK))
libc.timerfd_settime(ticks, 0, struct.pack("4Q", 0, 5_000_000, 0, 5_000_000), None)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
server = socket.socket(socket.AF_UNIX)
server.bind(at("sock.new"))
server.listen(5)
os.rename(at("sock.new"), at("sock"))
inner = select.epoll()
inner.register(ticks, select.EPOLLIN)
epoll = select.epoll()
epoll.register(server, select.EPOLLIN)
epoll.register(inner, select.EPOLLIN | select.EPOLLET)
os.dup2(near.fileno(), 100)
log.write("ready\n")

fired = asked = 0


def state():
    global asked
    asked += 1
    db.execute("insert into t values(?)", (asked,))
    rows = db.execute("select count(*) from t").fetchone()[0]
    queued, piped = far.recv(100), os.read(reads, 100)
    os.write(100, queued)
    os.write(writes, piped)
    unnamed.seek(0)
    n = struct.unpack("Q", os.read(count, 8))[0]
    os.write(count, struct.pack("Q", n))
    open(at("new%d" % asked), "w").close()
    _, mask, _, size = struct.unpack("iIII", os.read(watch, 4096)[:16])
    datagrams.sendto(b"datagram", datagrams.getsockname())
    before = os.pread(both, 6, 9000)
    mapped[0] = asked % 256
    words = [
        before == b"mapped", os.pread(both, 1, 0)[0] == asked % 256, os.fstat(both).st_size == 10000,
        asked == rows, queued == b"queued", piped == b"piped", unnamed.read() == b"unnamed" * 1000,
        os.pread(memory, 100, 0) == b"in memory", n == 7, mask == 0x100 and size > 0,
        datagrams.recv(100) == b"datagram", server.getsockname() == at("sock.new"),
    ]
    log.write("asked\n")
    return "%d %d %s\n" % (asked, fired, "right" if all(words) else words)


while True:
    for fd, _ in epoll.poll():
        if fd == inner.fileno():
            for _ in inner.poll(0):
                fired += struct.unpack("Q", os.read(ticks, 8))[0]
            continue
        client = server.accept()[0]
        if client.recv(100) == b"state":
            client.send(state().encode())
        client.close()
