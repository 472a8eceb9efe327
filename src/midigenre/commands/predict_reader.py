"""Reads the files of ``predict`` in a process of its own, so that a deadly one costs itself alone.

The child is :mod:`midigenre.data.guard`'s, with another answer: the song and its tokens instead of
a shard's row. It starts while the checkpoint is loaded.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from midigenre.data import guard
from midigenre.data.guard import Guard, Limits, file_bytes
from midigenre.errors import RefusedSongError
from midigenre.midi.clean import read_score
from midigenre.midi.song import Song
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import Encoded, Tokenizer, from_spec

STAGES = ("parse", "clean", "encode")
"""What is done to the bytes of a file."""


IDLE_SECONDS = 3600.0


@dataclass(frozen=True)
class ReadSong:
    """A song that was read.

    Attributes:
        song: The clean song.
        encoded: Its tokens.
        seconds: How long each of :data:`STAGES` took, and ``file`` (its bytes from the disk) and
            ``guard`` (to the child and back).
    """

    song: Song
    encoded: Encoded
    seconds: dict[str, float]


class FileReader:
    """Reads MIDI files; a context that ends its child.

    Args:
        limits: What one file may cost.
        guarded: False reads in this process, where a file that kills the parser kills it, too, and
            none is stopped after ``max_seconds``.
    """

    def __init__(self, limits: Limits, guarded: bool = True) -> None:
        self._limits = limits
        self._guard = Guard(__name__) if guarded else None

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
            self._guard.encode(b"", spec, self._limits)  # a file that it refuses

    def read(self, path: Path, spec: TokenSpec) -> ReadSong:
        """A song and its tokens.

        Args:
            path: The file.
            spec: The vocabulary.

        Raises:
            RefusedSongError: The file cannot be read or used.
        """
        began = time.perf_counter()
        try:
            data = file_bytes(path, self._limits)
        except RefusedSongError as error:
            raise _own_words(error.reason, error.detail) from error
        opened = time.perf_counter()
        if self._guard is None:
            found = read_song(data, from_spec(spec))
        else:
            found = self._guard.encode(data, spec, self._limits)
            if "reason" in found:
                raise _own_words(found["reason"], found["detail"])
        inside = sum(found["seconds"].values())
        outside = time.perf_counter() - opened - inside
        seconds = {"file": opened - began, **found["seconds"], "guard": max(0.0, outside)}
        return ReadSong(found["song"], found["encoded"], seconds)


def _own_words(reason: str, detail: str) -> RefusedSongError:
    return RefusedSongError(reason, detail.replace("prepare.max_", "max_"))


def read_song(data: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the child answers: ``song``, ``encoded`` and ``seconds`` of each of :data:`STAGES`.

    Raises:
        RefusedSongError: The file cannot be read or used.
    """
    times = [time.perf_counter()]
    repairs: dict[str, int] = {}
    score = read_score(data, repairs)
    times.append(time.perf_counter())
    song = tokenizer.clean(score)
    song = replace(song, repairs=repairs | song.repairs)
    times.append(time.perf_counter())
    encoded = tokenizer.encode(song)
    times.append(time.perf_counter())
    took = (after - before for before, after in itertools.pairwise(times))
    return {"song": song, "encoded": encoded, "seconds": dict(zip(STAGES, took, strict=True))}


def main() -> None:
    """The child: serves the pipe whose number is its argument, as the guard's own does."""
    import midigenre.tokenizers.miditok  # noqa: F401 (once, and not in every fork)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if os.path.exists("/proc/self/statm"):
        guard.limit_memory()
    # It ends with the command, which may compute for long before it reads on.
    guard.IDLE_SECONDS = IDLE_SECONDS
    guard.serve(Connection(int(sys.argv[1])), {"encode": read_song})


if __name__ == "__main__":
    main()
