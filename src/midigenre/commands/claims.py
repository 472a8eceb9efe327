"""Who may write into a run's folder: the process that made it, then the one that locks it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from midigenre.errors import UserError

FAILED = "failed.txt"
"""In the folder of a job that failed: the reason in its first line, then the traceback if any."""

LOCK = ".lock"
"""Locked by the process that trains in a folder; the kernel unlocks it when that process ends."""


@dataclass(frozen=True)
class Claim:
    """A folder that this process has made.

    Attributes:
        folder: The folder.
        above: The folders above it that were made with it, the nearest first.
    """

    folder: Path
    above: tuple[Path, ...]

    def discard_empty(self) -> None:
        """Removes it if no training began in it and no job failed."""
        began = ("config.yaml", FAILED)
        if self.folder.is_dir() and not any(p.name in began for p in self.folder.rglob("*")):
            shutil.rmtree(self.folder)
            with contextlib.suppress(OSError):  # other runs lie there by now
                for folder in self.above:
                    folder.rmdir()


def claim(folder: Path) -> Claim:
    """Makes a new folder: this one, or ``<name>-2``, ``<name>-3``, ... where that is taken.

    Of processes that ask for one name at the same time, each gets a folder of its own.

    Raises:
        OSError: It cannot be made.
    """
    for number in itertools.count(1):
        own = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        above = tuple(p for p in own.parents if not p.exists())
        try:
            own.mkdir(parents=True)
        except FileExistsError:
            if not own.is_dir():  # a file above it
                raise
        else:
            return Claim(own, above)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Keeps other processes from training in a folder.

    Args:
        folder: The folder.
        seconds: How long to wait for another process that is about to end.

    Raises:
        UserError: Another process trains there.
        OSError: The folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise UserError(
            f"{folder} is being trained by another process; wait until that ends, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()
