"""The child of a guard whose parser dies, hangs or asks for the world, as the bytes say."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from midigenre.data import guard
from midigenre.data.read import encoded_song


def encode(data: bytes, tokenizer: Any) -> Any:
    what, _, rest = data.partition(b" ")
    if what == b"segfault":
        ctypes.string_at(0)
    if what == b"killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == b"hang":  # in C, with the interpreter's lock: no Python code runs meanwhile
        re.match(r"(a+)+$", "a" * 60 + "b")
    if what == b"memory":
        return {"columns": bytearray(guard.MEMORY_BYTES + (1 << 30))}
    if what == b"once":
        if not Path(rest.decode()).exists():
            Path(rest.decode()).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"pid": os.getpid()}
    if what == b"pid":
        return {"pid": os.getpid()}
    if what == b"sleep":
        time.sleep(float(rest))
        return {}
    return encoded_song(data, tokenizer)


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    guard.limit_memory()
    guard.serve(Connection(int(sys.argv[1])), {"encode": encode, "read": encode}, 3.0)
