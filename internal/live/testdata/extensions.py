"""Uses C extensions of the folder that it is told, again and again, and checks what
they do. It speaks the protocol of the testbed's report.h."""
import asyncio
import json
import os
import queue
import select
import sys

sys.path.insert(0, sys.argv[1])
for name in ("_json", "_queue", "_asyncio", "asyncio", "json", "json.decoder", "json.encoder", "json.scanner", "queue"):
    for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[loaded]
import _asyncio
import _json
import _queue
import asyncio
import json
import queue

errors, error, progress = 0, "", 0
for module in (_asyncio, _json, _queue):
    assert module.__file__.startswith(sys.argv[1]), module.__file__

kept = queue.SimpleQueue()  # an object of the first build
for n in range(1000):
    kept.put(n)


async def double(n):
    await asyncio.sleep(0)
    return 2 * n


def step(n):
    value = {"list": list(range(50)), "text": 'x"y\n\u00e9' * 20, "n": n}
    assert json.loads(json.dumps(value)) == value
    try:
        json.loads('{"a":')
        raise AssertionError("half an object was decoded")
    except json.JSONDecodeError:
        pass
    assert asyncio.run(double(n)) == 2 * n
    first = kept.get()
    assert first == n % 1000
    kept.put(first)
    fresh = queue.SimpleQueue()
    fresh.put(value)
    assert fresh.get() is value


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
            print(json.dumps({"fixture": "extensions", "errors": errors, "error": error, "progress": progress, "counts": {}}), flush=True)
    try:
        step(progress)
    except AssertionError as e:
        errors, error = errors + 1, error or repr(e)
    progress += 1
