"""The child of a sandbox whose parser dies, hangs or asks for the world, as the bytes say."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from midigenre.data.sandbox import MEMORY_BYTES, encoded_song, n_bars, run_child


def encode(data: bytes, tokenizer: Any) -> Any:
    what, _, rest = data.partition(b" ")
    if what == b"segfault":
        ctypes.string_at(0)
    if what == b"killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == b"hang":  # in C, with the interpreter's lock: no Python code runs meanwhile
        re.match(r"(a+)+$", "a" * 60 + "b")
    if what == b"memory":
        return {"columns": bytearray(MEMORY_BYTES + (1 << 30))}
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
    run_child({"encode": encode, "bars": n_bars})
