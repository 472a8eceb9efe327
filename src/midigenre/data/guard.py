"""Songs are read in a process of their own, so that a bad file costs itself and not the run.

A parser in C++ may die on a file, or never come back. The guard gives each file's bytes to a child
process, which gives them to a fork of itself: when that dies, or takes so long that the kernel's
timer ends it, the child says so and forks again, and the file is refused with the reason. The child
ends by itself when nothing is asked of it for a while, or when its parent is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, ClassVar

from midigenre.data.read import encoded_song, read_song, refusal
from midigenre.errors import RefusedSongError, UserError
from midigenre.files import SlowReadError, check_regular
from midigenre.midi.song import Song
from midigenre.spec import TokenSpec
from midigenre.storage import Location, is_remote, read, unopened
from midigenre.tokenizers.base import Encoded, from_spec

IDLE_SECONDS = 20.0
"""A child without work ends after so long: training should not pay for its memory."""

START_SECONDS = 120.0
"""A child that says nothing for so long never will; importing takes two seconds on a free core."""

MEMORY_BYTES = 4 << 30
"""Address space that one file may take beyond what the child has when it starts."""


# There are as many children as cores already.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        max_file_mb: Largest file, in megabytes (10^6 bytes).
        max_seconds: Longest time to read and encode it.
    """

    max_file_mb: float = 16.0
    max_seconds: float = 60.0
    group: ClassVar[str] = "prepare."  # of these settings, as messages name them

    @property
    def max_bytes(self) -> int:
        """Size of the largest file."""
        return int(self.max_file_mb * 1e6)


class FileLimits(Limits):
    """Those of a command whose settings lie in no group."""

    group = ""


def file_bytes(path: Location, limits: Limits, listed: int | None = None) -> bytes:
    """Bytes of a person's file: the one way to them for whatever reads music.

    The limits hold while it is read, so that a file that grows, or whose size is a lie, ends there.

    Args:
        path: The file.
        limits: What it may cost.
        listed: Its size where a listing told it: a request for each file of a bucket is slow.

    Raises:
        RefusedSongError: ``missing``, ``not_regular``, ``too_large`` or ``timed_out``.
        UserError: The store that holds it is out of reach.
    """
    most = limits.max_bytes
    try:
        size = listed or 0
        if not is_remote(path):
            about = path.stat()
            check_regular(about.st_mode, str(path))
            size = about.st_size
        data = b"" if size > most else read(path, most + 1, limits.max_seconds)
    except SlowReadError as error:
        raise RefusedSongError("timed_out", _too_long(limits)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise unopened(error) from error
    size = max(size, len(data))
    if size > most:
        raise RefusedSongError(
            "too_large",
            f"{size / 1e6:,.1f} MB, more than {limits.group}max_file_mb={limits.max_file_mb:g}",
        )
    return data


class Guard:
    """A child process that reads songs for this one; it is started when first needed.

    Args:
        main: Module that the child runs; the tests put parsers there that die.
        idle_seconds: A child that nothing is asked of ends after so long.
    """

    def __init__(
        self, main: str = "midigenre.data.guard", idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._main, self._idle_seconds = main, idle_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._told: TokenSpec | None = None

    def encode(self, data: bytes, spec: TokenSpec, limits: Limits) -> dict[str, Any]:
        """What :func:`midigenre.data.read.encoded_song` gives, or ``reason`` and ``detail``.

        A file on which the child dies is tried a second time in a fresh one: it may have been
        somebody else's fault (the machine was short of memory, say). One that takes too long is
        not.
        """
        return self._ask("encode", data, spec, limits)

    def song(self, data: bytes, spec: TokenSpec, limits: Limits) -> dict[str, Any]:
        """What :func:`midigenre.data.read.read_song` gives, or ``reason`` and ``detail``."""
        return self._ask("song", data, spec, limits)

    def usable(self, data: bytes, spec: TokenSpec, limits: Limits) -> bool:
        """Whether a song can be read and cleaned; nothing is encoded."""
        return "reason" not in self._ask("read", data, spec, limits)

    def start(self) -> None:
        """Starts the child without waiting for it."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        ours, theirs = Pipe()
        fd = theirs.fileno()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", self._main, str(fd), str(self._idle_seconds)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_stderr() else subprocess.DEVNULL,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        self._pipe = ours

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = self._told = None

    def _ask(self, what: str, data: bytes, spec: TokenSpec, limits: Limits) -> dict[str, Any]:
        for _ in range(2):
            pipe = self.ready(spec)
            try:
                pipe.send((what, data, limits))
                # The timer in the child comes first; this is for one that cannot even die.
                if not pipe.poll(limits.max_seconds + START_SECONDS):
                    self.close()
                    return refusal("timed_out", _too_long(limits))
                answer: dict[str, Any] = pipe.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                status = self._status()
                self.close()
                continue
            if "died" not in answer:
                return answer
            self._told = None
            if answer["died"] == -signal.SIGALRM:
                return refusal("timed_out", _too_long(limits))
            status = _in_words(answer["died"])
        return refusal("crashed", f"the process that read it ended twice: {status}")

    def ready(self, spec: TokenSpec) -> Connection:
        """The pipe to a running child that knows the tokenizer.

        Raises:
            UserError: No child can be started, whatever the file; or the tokenizer is of another
                version.
        """
        for last in (False, True):  # one that was idle may be about to end
            self.start()
            assert self._pipe is not None
            if self._told is spec:
                return self._pipe
            try:
                self._pipe.send(("tokenizer", spec))
                if not self._pipe.poll(START_SECONDS):
                    raise EOFError
                error = self._pipe.recv()
            except (EOFError, OSError) as cause:
                status = self._status()
                self.close()
                if last:
                    raise UserError(
                        f"the process that reads songs ({self._main}) cannot be started: {status}"
                    ) from cause
            else:
                if error is not None:
                    raise error
                self._told = spec
        assert self._pipe is not None
        return self._pipe

    def _status(self) -> str:
        """How the child ended, in words."""
        assert self._child is not None
        try:
            return _in_words(self._child.wait(timeout=5))
        except subprocess.TimeoutExpired:
            return "its connection broke"


def _in_words(code: int) -> str:
    """A process's exit code as :mod:`subprocess` gives it."""
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _too_long(limits: Limits) -> str:
    return f"more than {limits.max_seconds:g} s ({limits.group}max_seconds)"


def _has_stderr() -> bool:
    """Whether standard error is a file that a child can be given (under a notebook it is not)."""
    try:
        return sys.stderr.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


class FileReader:
    """Reads the few files that a person names; a context, at whose end its child ends.

    Args:
        limits: What one file may cost.
        guarded: False reads in this process, where a file that kills the parser kills it, too, and
            none is stopped after ``max_seconds``.
    """

    def __init__(self, limits: FileLimits | None = None, guarded: bool = True) -> None:
        self._limits = limits or FileLimits()
        # Its child ends with the command, which may compute for long before it reads on.
        self._guard = Guard(idle_seconds=3600.0) if guarded else None

    def __enter__(self) -> FileReader:
        """Starts the child without waiting for it."""
        if self._guard is not None:
            self._guard.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends it."""
        if self._guard is not None:
            self._guard.close()

    def wait(self, spec: TokenSpec) -> None:
        """Comes back when the child is there and knows the vocabulary."""
        if self._guard is not None:
            self._guard.ready(spec)

    def read(self, path: Location, spec: TokenSpec) -> tuple[Song, Encoded]:
        """A song and its tokens.

        Args:
            path: The file.
            spec: The vocabulary.

        Raises:
            RefusedSongError: The file cannot be read or used.
        """
        data = file_bytes(path, self._limits)
        if self._guard is None:
            found = read_song(data, from_spec(spec))
        else:
            found = self._guard.song(data, spec, self._limits)
            if "reason" in found:
                raise RefusedSongError(found["reason"], found["detail"])
        return found["song"], found["encoded"]


_shared = threading.local()


def shared_guard() -> Guard:
    """The guard of this thread, whichever part asks for it; a cluster's worker may have several."""
    if not hasattr(_shared, "guard"):
        _shared.guard = Guard()
        atexit.register(_shared.guard.close)
    guard: Guard = _shared.guard
    return guard


def serve(pipe: Connection, read: Mapping[str, Any], idle_seconds: float = IDLE_SECONDS) -> None:
    """Answers in forks of this process, one after the other, until nothing more is asked.

    Args:
        pipe: The child's end.
        read: The functions that answer, by name: ``f(data, tokenizer)``.
        idle_seconds: How long to wait for a question.
    """
    sending = mmap.mmap(-1, 1)  # shared with the forks: 1 while one writes to the pipe
    while True:
        fork = os.fork()
        if fork == 0:
            _serve(pipe, read, sending, idle_seconds)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        if code == 0:
            return
        if sending[0]:  # half an answer: only the end of the pipe can say so
            sys.exit(1)
        pipe.send({"died": code})


def _serve(
    pipe: Connection, read: Mapping[str, Any], sending: mmap.mmap, idle_seconds: float
) -> None:
    """Answers until the other side is gone or silent for so long."""

    def say(answer: Any) -> None:
        sending[0] = 1
        pipe.send(answer)
        sending[0] = 0

    tokenizer = None
    while pipe.poll(idle_seconds):
        try:
            what, *rest = pipe.recv()
        except EOFError:
            return
        if what == "tokenizer":
            try:
                tokenizer = from_spec(rest[0])
            except Exception as error:
                say(error)
            else:
                say(None)
            continue
        data, limits = rest
        # The default action of its signal ends the process, whatever C code is running.
        signal.setitimer(signal.ITIMER_REAL, limits.max_seconds)
        try:
            answer = read[what](data, tokenizer)
        except RefusedSongError as error:
            answer = refusal(error.reason, error.detail)
        except MemoryError:
            answer = refusal("crashed", f"more than {MEMORY_BYTES >> 30} GiB of memory")
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(answer)


def limit_memory() -> None:
    """A file that asks for more than :data:`MEMORY_BYTES` gets an error, not the machine's swap."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))


def main() -> None:
    """The child: serves the pipe whose number is its first argument."""
    import midigenre.tokenizers.miditok  # noqa: F401 (once, and not in every fork)

    # Ctrl-C is the parent's: it decides what becomes of the part.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if os.path.exists("/proc/self/statm"):
        limit_memory()
    serve(
        Connection(int(sys.argv[1])),
        {
            "encode": encoded_song,
            "song": read_song,
            "read": lambda data, tok: {"bars": tok.read(data).n_bars},
        },
        float(sys.argv[2]),
    )


if __name__ == "__main__":
    main()
