"""Reads each file in a subprocess, so that a crash rejects that file only.

A parser in C++ may crash on a file, or never return. The sandbox gives each file's bytes to a
child process: when that dies, or takes so long that the kernel's timer ends it, the file is
rejected with the reason and another child is started. It ends by itself when it is idle
for a while, or when its parent is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any, ClassVar

import numpy as np
from upath import UPath

from midigenre.corpora.base import SongRef
from midigenre.data.duplicates import sketch
from midigenre.data.shards import song_columns
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import SlowReadError, check_regular, read_bytes
from midigenre.midi.clean import clean
from midigenre.midi.read import read_score
from midigenre.midi.song import Grid, Song
from midigenre.spec import TokenSpec
from midigenre.storage import Location, read, unopened
from midigenre.tokenizers.base import Encoded, Tokenizer, from_spec

IDLE_SECONDS = 20.0
"""Seconds after which an idle child ends: training should not pay for its memory."""

START_SECONDS = 120.0
"""Seconds without an answer after which a child has failed; importing takes two on a free core."""

MEMORY_BYTES = 4 << 30
"""Address space that one file may take beyond what the child has when it starts."""

DIGEST_BYTES = 16

# One for all tokenizers, fine enough for ticks that were stretched; merged tracks and coarse grids
# would hide similarities.
_SKETCH_GRID = Grid(24, max_song_bars=1 << 24)

# There are as many children as cores already.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_GONE = (EOFError, OSError, pickle.UnpicklingError)  # errors of a pipe to a child that died


@dataclass(frozen=True)
class Limits:
    """Limits for one file: megabytes (10^6 bytes), and seconds to read and encode it."""

    max_file_mb: float = 16.0
    max_seconds: float = 60.0
    group: ClassVar[str] = "prepare."  # of these settings, as messages name them

    def too_slow(self) -> RejectedSongError:
        """The reason for a file that took longer."""
        seconds = f"more than {self.max_seconds:g} s ({self.group}max_seconds)"
        return RejectedSongError("timed_out", seconds)


class FileLimits(Limits):
    """The limits of a command whose settings are in no group."""

    group = ""


def file_bytes(path: Location, limits: Limits, listed: int | None = None) -> bytes:
    """Bytes of a user's file; everything that reads music reads them through this function.

    The limits hold while it is read, so that a file that grows, or whose reported size is false,
    ends there. ``listed`` is its size where a listing told it: a request for each file of a bucket
    is slow.

    Raises:
        RejectedSongError: ``missing``, ``not_regular``, ``too_large`` or ``timed_out``.
        UserError: The store that holds it is out of reach.
    """
    most = int(limits.max_file_mb * 1e6)
    try:
        size = listed or 0
        get = read
        if not isinstance(path, UPath):
            about = path.stat()
            check_regular(about.st_mode, str(path))
            size, get = about.st_size, read_bytes  # here no store can be out of reach
        data = b"" if size > most else get(path, most + 1, limits.max_seconds)
    except SlowReadError as error:
        raise limits.too_slow() from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise unopened(error) from error
    size = max(size, len(data))
    if size > most:
        bound = f"{limits.group}max_file_mb={limits.max_file_mb:g}"
        raise RejectedSongError("too_large", f"{size / 1e6:,.1f} MB, more than {bound}")
    return data


def song_bytes(ref: SongRef, limits: Limits) -> bytes:
    """Bytes of a song's file, see :func:`file_bytes`."""
    listed = ref.stamp.partition(":")[0]
    return file_bytes(ref.path, limits, int(listed) if listed.isdigit() else None)


def encoded_song(data: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    """Reads, cleans and encodes a song from the bytes of its file.

    Returns:
        ``columns`` (of the shard's row), ``tokens`` (steps of the stream), ``repairs``,
        ``fallback`` (why MidiTok encoded it, "" if the vectorised encoder did), ``notes_digest``
        (hash of notes and meters; songs with equal ones sound alike but for the tempo), ``sketch``.

    Raises:
        RejectedSongError: The file cannot be read or used.
    """
    repairs: dict[str, int] = {}
    score = read_score(data, repairs)
    song = tokenizer.clean(score)
    encoded = tokenizer.encode(song)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for column in (*song.notes.columns().values(), song.meters):
        digest.update(np.ascontiguousarray(column, np.int32).tobytes())
    return {
        "columns": song_columns(song, encoded),
        "tokens": len(encoded.ids_TF),
        "repairs": repairs | song.repairs,
        "fallback": encoded.fallback,
        "notes_digest": digest.digest(),
        "sketch": sketch(clean(score, _SKETCH_GRID)),
    }


def read_song(data: bytes, tokenizer: Tokenizer) -> tuple[Song, Encoded]:
    """The song of a MIDI file's bytes, whose repairs hold those of the file, too; and its tokens.

    Raises:
        RejectedSongError: The file cannot be read or used.
    """
    repairs: dict[str, int] = {}
    song = tokenizer.clean(read_score(data, repairs))
    song = replace(song, repairs=repairs | song.repairs)
    return song, tokenizer.encode(song)


class Sandbox:
    """A child process that reads songs for this one; it is started when first needed.

    A file on which the child dies is tried a second time in a fresh one: the cause may have
    been elsewhere (the machine was short of memory, say). One that takes too long is not.

    Args:
        main: Module that the child runs; the tests put parsers there that die.
        idle_seconds: An idle child ends after this time.
    """

    def __init__(
        self, main: str = "midigenre.data.sandbox", idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._main, self._idle_seconds = main, idle_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._knows: TokenSpec | None = None

    def read(self, how: str, data: bytes, spec: TokenSpec, limits: Limits) -> Any:
        """The result of :func:`encoded_song` (``encode``), :func:`read_song` (``song``), ...

        Raises:
            RejectedSongError: What the function raises; or ``crashed`` or ``timed_out``.
        """
        status = ""
        for _ in range(2):
            pipe = self.ready(spec)
            try:
                pipe.send((how, data, limits.max_seconds))
                # The timer in the child comes first; this is for a child that does not end.
                if not pipe.poll(limits.max_seconds + START_SECONDS):
                    self.close()
                    raise limits.too_slow()
                found, error = pipe.recv()
            except _GONE:
                code = self._end()
                if code == -signal.SIGALRM:
                    raise limits.too_slow() from None
                status = _in_words(code)
                continue
            if error is not None:
                raise error
            return found
        raise RejectedSongError("crashed", f"the process that read it ended twice: {status}")

    def start(self) -> None:
        """Starts the child without waiting for it."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        self._pipe, theirs = Pipe()
        fd = theirs.fileno()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", self._main, str(fd), str(self._idle_seconds)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = self._knows = None

    def ready(self, spec: TokenSpec) -> Connection:
        """The pipe to a running child that knows the tokenizer.

        Raises:
            UserError: No child can be started, whatever the file; or the tokenizer is of another
                version.
        """
        status = ""
        for _ in range(2):  # one that was idle may be about to end
            self.start()
            assert self._pipe is not None
            if self._knows is spec:
                return self._pipe
            try:
                self._pipe.send(("tokenizer", spec, 0.0))
                if not self._pipe.poll(START_SECONDS):
                    self.close()
                    status = f"no answer for {START_SECONDS:g} s; is the machine too busy?"
                    continue
                _, error = self._pipe.recv()
            except _GONE:
                status = _in_words(self._end())
                continue
            if error is not None:
                raise error
            self._knows = spec
            return self._pipe
        raise UserError(f"the process that reads songs ({self._main}) cannot be started: {status}")

    def _end(self) -> int | None:
        """Its exit code as :mod:`subprocess` gives it; None if only its connection broke."""
        assert self._child is not None
        try:
            return self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.close()


def _in_words(code: int | None) -> str:
    if code is None:
        return "its connection broke"
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


_shared = threading.local()


def shared_sandbox() -> Sandbox:
    """The sandbox of this thread; a cluster worker may have several threads."""
    if not hasattr(_shared, "sandbox"):
        _shared.sandbox = Sandbox()
        atexit.register(_shared.sandbox.close)
    sandbox: Sandbox = _shared.sandbox
    return sandbox


class FileReader(AbstractContextManager["FileReader"]):
    """Reads the few files that a user names; a context manager, whose child ends with it.

    ``guarded=False`` reads in this process, where a file that kills the parser kills it, too, and
    none is stopped after ``max_seconds``.
    """

    def __init__(self, limits: FileLimits | None = None, guarded: bool = True) -> None:
        self._limits = limits or FileLimits()
        # Its child ends with the command, which may compute for long between reads.
        self._sandbox = Sandbox(idle_seconds=3600.0) if guarded else None

    def __enter__(self) -> FileReader:
        """Starts the child without waiting for it."""
        if self._sandbox is not None:
            self._sandbox.start()
        return self

    def __exit__(self, *_: object) -> None:
        """See :meth:`close`."""
        self.close()

    def close(self) -> None:
        """Ends the child; the next read would start another one."""
        if self._sandbox is not None:
            self._sandbox.close()

    def wait(self, spec: TokenSpec) -> None:
        """Returns when the child runs and has the vocabulary."""
        if self._sandbox is not None:
            self._sandbox.ready(spec)

    def read(self, path: Location, spec: TokenSpec) -> tuple[Song, Encoded]:
        """A song and its tokens.

        Raises:
            RejectedSongError: The file cannot be read or used.
        """
        data = file_bytes(path, self._limits)
        if self._sandbox is None:
            return read_song(data, from_spec(spec))
        found: tuple[Song, Encoded] = self._sandbox.read("song", data, spec, self._limits)
        return found


def run_child(functions: Mapping[str, Callable[[bytes, Tokenizer], Any]]) -> None:
    """The child: answers until the other side is gone, or idle for too long.

    Its arguments are the file descriptor of the pipe, and how many seconds it waits for a request:
    the name of one of the functions, its arguments, and how long it may take. The answer is its
    result, and the error that it raised if any.
    """
    import midigenre.tokenizers.miditok  # noqa: F401 (before the first request)

    # Ctrl-C is for the parent to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory()
    pipe, idle_seconds = Connection(int(sys.argv[1])), float(sys.argv[2])
    tokenizer: Any = None
    answer: tuple[Any, Exception | None]
    while pipe.poll(idle_seconds):
        try:
            how, asked, max_seconds = pipe.recv()
        except EOFError:
            return
        # The default action of its signal ends the process, whatever C code is running.
        signal.setitimer(signal.ITIMER_REAL, max_seconds)
        try:
            if how == "tokenizer":
                tokenizer, answer = from_spec(asked), (None, None)
            else:
                answer = (functions[how](asked, tokenizer), None)
        except MemoryError:
            detail = f"more than {MEMORY_BYTES >> 30} GiB of memory"
            answer = (None, RejectedSongError("crashed", detail))
        except Exception as error:
            if how != "tokenizer" and not isinstance(error, RejectedSongError):
                raise
            answer = (None, error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(answer)


def _limit_memory() -> None:
    """A file that asks for more than :data:`MEMORY_BYTES` gets an error, not the machine's swap."""
    # No /proc, or a lower limit holds already.
    with (
        contextlib.suppress(ValueError, OSError),
        open("/proc/self/statm", encoding="ascii") as file,
    ):
        used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))


def n_bars(data: bytes, tokenizer: Tokenizer) -> int:
    """Bars of a song; a few milliseconds, as nothing is encoded."""
    return tokenizer.clean(read_score(data)).n_bars


if __name__ == "__main__":
    run_child({"encode": encoded_song, "song": read_song, "bars": n_bars})
