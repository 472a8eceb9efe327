"""Writing files so that a reader, or a run after a crash, sees all of one or nothing."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from upath import UPath

Location: TypeAlias = Path | UPath
"""A file or a folder: a path here, or a URL in a store (see :mod:`midigenre.storage`)."""

WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss")
"""Object stores: none is made there, as s3fs would make the bucket, that of a slip too."""

# What a path may name other than a file, by the type in its mode.
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
          stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}  # fmt: skip

_BLOCK = 2**20  # bytes that are read at a time

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk: no space left, or the quota is used up."""

# Errors of file systems that cannot sync a folder (NFS, FUSE, CIFS).
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)

# A spreadsheet runs a cell that starts with one of these as a formula; file names are untrusted.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


@contextmanager
def whole(path: Location | str) -> Iterator[Path]:
    """A temporary file that replaces ``path`` at the end, or is removed on an error.

    Here it lies beside ``path``, and its bytes are on the disk before it gets the name, so that
    all or nothing is there after a power cut too. For a store it is a temporary file, which is
    uploaded at the end: whole or not there, as far as the store's own PUT is (those of object
    stores are).

    Yields:
        The path to write to; the folder is made if needed.

    Raises:
        OSError: The folder cannot be written, or the disk is full; it names ``path``, and nothing
            is left.
    """
    if isinstance(path, UPath):
        with tempfile.TemporaryDirectory(prefix="midigenre-") as folder:
            part = Path(folder) / path.name
            yield part
            make_folder(path.parent)
            path.fs.put_file(str(part), path.path)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    except OSError as error:
        # Python's `write` does not name the file.
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Removes temporary files that killed processes have left in and below a folder."""
    for path in folder.rglob(".*.part"):
        found = re.fullmatch(r"\..*\.(\d+)\.part", path.name)
        if found is None:
            continue
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:  # another user's process writes it
            continue
        else:
            if int(found[1]) == os.getpid():  # in a container all processes have the same one
                path.unlink(missing_ok=True)


def share_lock(path: Path, wait: bool = False) -> int | None:
    """Shares a lock file with other readers, for as long as what it returns is open.

    The lock is the system's ``flock``, as that of filelock's ``FileLock``, which excludes it and
    which it excludes. It ends with its process however that ends; forked processes share it.

    Args:
        path: The file; it is made where it is missing.
        wait: Whether to wait while a process holds it exclusively.

    Returns:
        A descriptor, for ``os.close``; None if a process holds it exclusively.

    Raises:
        OSError: It is missing and cannot be made, or the file system has no locks.
    """
    while True:
        with ExitStack() as unless_shared:
            handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
            unless_shared.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return None
            if os.fstat(handle).st_nlink:  # else its holder removed the file
                unless_shared.pop_all()
                return handle


def make_folder(path: Location) -> None:
    """Makes a folder and its parents where storage has folders.

    Raises:
        OSError: It cannot be made.
    """
    if not isinstance(path, UPath) or path.protocol not in WITHOUT_FOLDERS:
        path.mkdir(parents=True, exist_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(handle)


class NotRegularError(OSError):
    """A path names a pipe, a device, a socket or a folder; ``strerror`` says which."""


class SlowReadError(OSError):
    """Reading a file took longer than the caller would wait."""


def check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    """Rejects anything whose reading might block or never end.

    Args:
        mode: ``st_mode`` of what ``path`` names, links followed.
        path: For the error.

    Raises:
        NotRegularError: It is not a regular file.
    """
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise NotRegularError(number, f"{kind}, not a regular file", os.fspath(path))


def read_bytes(
    path: Location, at_most: int | None = None, max_seconds: float | None = None
) -> bytes:
    """Content of a regular file; one request where it is elsewhere.

    Args:
        path: The file.
        at_most: Bytes after which reading stops, whatever the file's size is said to be: a file
            may grow meanwhile, and those of ``/proc`` have a size of 0.
        max_seconds: How long reading may take.

    Raises:
        NotRegularError: It is a pipe, a device, a socket or a folder.
        SlowReadError: It took longer.
        OSError: It is not there, or cannot be read.
    """
    data, began = bytearray(), time.monotonic()
    with closing(
        _store_blocks(path, at_most) if isinstance(path, UPath) else _blocks(path)
    ) as all_:
        for block in all_:
            data += block
            if at_most is not None and len(data) >= at_most:
                return bytes(data[:at_most])
            if max_seconds is not None and time.monotonic() - began > max_seconds:
                raise SlowReadError(errno.ETIMEDOUT, "reading it took too long", str(path))
    return bytes(data)


def _blocks(path: Path) -> Generator[bytes, None, None]:
    # Before opening: opening alone affects a tape or a terminal. After it: the name may have
    # gone to another file. A pipe in between does not wait for its other end (O_NONBLOCK).
    check_regular(os.stat(path).st_mode, path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_regular(os.fstat(handle).st_mode, path)
        while block := os.read(handle, _BLOCK):
            yield block
    finally:
        os.close(handle)


def _store_blocks(path: UPath, at_most: int | None) -> Generator[bytes, None, None]:
    if path.protocol in ("http", "https") and at_most is not None:
        # Its server may ignore a range and send what it likes. A given size avoids a request for
        # it.
        with path.fs.open(path.path, "rb", block_size=0, size=1) as file:
            while block := file.read(_BLOCK):
                yield block
        return
    # s3fs asks for the size first where it may read in pieces.
    options = {"max_concurrency": 1} if path.protocol in ("s3", "s3a") else {}
    if at_most is not None:
        options |= {"start": 0, "end": at_most}
    try:
        yield path.fs.cat_file(path.path, **options)
    except OSError:
        if at_most is None or path.fs.size(path.path) != 0:  # S3 has no range of an empty file
            raise


def write_bytes(path: Location, data: bytes | memoryview) -> None:
    """Writes bytes."""
    with whole(path) as part:
        part.write_bytes(data)


def write_json(path: Location, data: Any) -> None:
    """Writes plain data as JSON."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with whole(path) as part:
        # Paths may hold bytes that are not UTF-8; Python replaces them by surrogates.
        part.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def read_json(path: Location) -> Any:
    """Content of a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: See :func:`parse_json`.
    """
    return parse_json(read_bytes(path))


def parse_json(data: bytes) -> Any:
    """Content of JSON.

    Raises:
        ValueError: It is not JSON; ``NaN``, ``Infinity`` and ``1e999``, which Python would read,
            are none.
    """
    try:
        text = data.decode("utf-8", "surrogateescape")
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a number")
    return number


def csv_cell(value: Any) -> Any:
    """A cell of a table: text that a spreadsheet would take for a formula gets a ``'`` before it.

    Numbers stay as they are. :func:`csv_value` undoes it.
    """
    if isinstance(value, str) and _FORMULA.match(value):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value


def csv_value(cell: str) -> str:
    """What :func:`csv_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_csv(path: Location, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Writes a table of :func:`csv_cell`; a row may lack columns, and may have no others."""
    with (
        whole(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writerow({name: csv_cell(name) for name in columns})
        writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)


def read_csv(path: Location) -> list[dict[str, str]]:
    """Rows of a table that :func:`write_csv` wrote."""
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    return [
        {csv_value(k): csv_value(v or "") for k, v in row.items() if k is not None}
        for row in reader
    ]


def sha256(path: Location) -> str:
    """SHA-256 of a file, as hexadecimal text; a file that is elsewhere is read into memory.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(path, UPath):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(name: str) -> bool:
    """Whether a relative name with ``/`` stays below the folder that it is put in."""
    parts = name.replace("\\", "/").split("/")
    return bool(any(parts) and parts[0] and ".." not in parts and "\0" not in name)


def safe_name(text: str) -> str:
    """A file name for a song id or any other text."""
    return re.sub(r"[^\w.+-]+", "_", text, flags=re.UNICODE).strip("._") or "_"
