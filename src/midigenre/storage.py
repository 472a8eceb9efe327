"""Locations of data: local folders, and any URL that fsspec knows (``s3://``, ``gs://``).

A local place is a :class:`pathlib.Path`, a remote one a :class:`upath.UPath` with the same
methods. Single requests to stores are slow, listings fast: a listing includes sizes and versions.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec  # type: ignore[import-untyped]
from filelock import FileLock
from upath import UPath

from midigenre.errors import RejectedSongError, UserError
from midigenre.files import (
    WITHOUT_FOLDERS,
    NotRegularError,
    SlowReadError,
    check_regular,
    inside,
    parse_json,
    read_bytes,
    read_json,
    remove_parts,
    sha256,
    whole,
    write_json,
)
from midigenre.files import Location as Location

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(?!/)(.*)")

_CREDENTIALS: Mapping[str, str] = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE; AWS_ENDPOINT_URL for a "
    "store that is not Amazon's; FSSPEC_S3='{\"anon\": true}' for a public bucket)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN, or run `hf auth login`",
}
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}

# What stores call the version of a file's content; the first one there is taken. In turn: s3fs;
# gcsfs, adlfs; gcsfs; huggingface_hub; github; sftp, arrow; webdav, ftp; s3fs, adlfs; memory.
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "sha", "mtime", "modified", "modify",
             "LastModified", "last_modified", "created")  # fmt: skip

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of the disk here while something comes
_RECORD = ".copied.json"


MIDI_SUFFIXES = tuple(f"{name}{packed}" for packed in ("", ".gz")
                      for name in (".mid", ".midi", ".kar", ".rmi", ".smf"))  # fmt: skip
"""Endings, in lower case, of the files that are looked for in folders."""


class Entry(NamedTuple):
    """A file that a listing found, by its name below the folder, with ``/``.

    What cannot be read, a pipe or a link that leads nowhere, has ``refusal``, which says why, no
    ``stamp`` and a ``size`` of -1 bytes.
    """

    name: str
    stamp: str
    size: int
    refusal: RejectedSongError | None = None

    @property
    def is_midi(self) -> bool:
        """Whether it is named like a MIDI file."""
        return self.name.lower().endswith(MIDI_SUFFIXES)


def location(text: str | os.PathLike[str] | UPath) -> Location:
    """The place that a setting names: a path, in which ``~`` is the home folder, or a URL.

    Raises:
        UserError: fsspec knows no such protocol, or the package for it is missing, or the URL is
            written with one slash, joins several protocols or holds a NUL.
    """
    if isinstance(text, (Path, UPath)):
        return text
    text = os.fspath(text)
    if "\0" in text:
        raise UserError(f"{text!r} is not a path: it holds a NUL character")
    if "::" in text and "://" in text:
        raise UserError(f"{text}: one protocol only; unpack the archive first")
    found = _URL.match(text)
    if found is None:
        slip = _ONE_SLASH.match(text)
        if slip and slip[1].lower() in fsspec.available_protocols() and not os.path.lexists(text):
            raise UserError(f"{text} is neither a URL nor a path here; write {slip[1]}://{slip[2]}")
        return Path(text).expanduser()
    protocol, rest = found[1].lower(), text[found.end() :]
    if protocol in ("file", "local"):
        return Path("/" + rest.lstrip("/"))
    if protocol not in fsspec.available_protocols():
        near = difflib.get_close_matches(protocol, fsspec.available_protocols(), 1)
        hint = f"did you mean {near[0]}://?" if near else "s3://, gs:// and hf:// are known, say"
        raise UserError(f"{text}: no protocol {protocol!r}; {hint}")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        s3 = protocol in ("s3", "s3a")  # whose package fsspec names without our extra
        how = "run `pip install 'midigenre[s3]'`" if s3 else str(error)
        raise UserError(f"{text} needs a package that is not installed; {how}") from error
    if protocol in WITHOUT_FOLDERS and rest[:1] in ("", "/"):
        raise UserError(f"{text} names no bucket; write {protocol}://BUCKET/FOLDER")
    return UPath(f"{protocol}://{rest}")


def place(text: str) -> Location:
    """The place that ``str(location)`` came from; nothing is checked, ``~`` is a name."""
    # pathlib joins slashes, so that the text of a path never holds two.
    return UPath(text) if "://" in text else Path(text)


def is_remote(path: Location | str) -> bool:
    """Whether a place is remote, so that every access costs a request."""
    return isinstance(path, UPath) or (isinstance(path, str) and "://" in path)


@contextmanager
def naming(where: Location) -> Iterator[None]:
    """Turns an error of a store's client into one line with the URL and what to set.

    Errors of a place here pass as they are, and so do defects of the program.

    Raises:
        UserError: The store is out of reach or denies access.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SlowReadError) or getattr(error, "errno", None) in _DISK:
            raise
        cause = error.__cause__ if str(where).startswith("http") else None
        if isinstance(cause, Exception) and getattr(cause, "status", 0) != 404:
            error = cause  # whatever a web server says, fsspec says not found
        # Every client has exceptions of its own; those of Python itself are ours.
        outside = type(error).__module__.split(".")[0] not in ("builtins", "midigenre")
        if not isinstance(where, UPath) or not (outside or isinstance(error, OSError)):
            raise
        raise UserError(f"{str(where).rstrip('/')}: {_cause(where, error)}") from error


def _cause(where: UPath, error: Exception) -> str:
    """The message of a store's client, and what to set."""
    said = " ".join(str(error).split()) or type(error).__name__
    protocol = str(where.protocol)
    known = _CREDENTIALS.get(_SAME.get(protocol, protocol))
    setting = f"set {known}" if known else f"set FSSPEC_{protocol.upper()}='{{\"OPTION\": ...}}'"
    if isinstance(error, FileNotFoundError):
        return f"not there ({said}); look at the bucket's and the folder's name"
    if isinstance(error, PermissionError):
        return f"no permission ({said}); {setting}"
    if "credential" in f"{type(error).__name__} {said}".lower():
        return f"no credentials ({said}); {setting}"
    return f"{said}; run the command again if the network failed, else {setting}"


def unopened(error: OSError | ValueError) -> RejectedSongError:
    """Why a file cannot be opened, as a reason of :data:`midigenre.midi.clean.REJECTIONS`."""
    detail = (getattr(error, "strerror", None) or str(error)).lower()
    if isinstance(error, NotRegularError):
        return RejectedSongError("not_regular", detail)
    return RejectedSongError("missing", detail)


def stamp(path: Location) -> str:
    """Size and version of a file as text: the same as long as its content is.

    The version is the time of the last change in nanoseconds here, the ETag or the like elsewhere.

    Raises:
        OSError: There is no such regular file here.
        ValueError: The name holds a NUL.
        UserError: There is none in the store, or it is out of reach.
    """
    if isinstance(path, UPath):
        with naming(path):
            return _store_stamp(path.fs.info(path.path))
    return _local_entry("", path).stamp


def _local_entry(name: str, path: str | os.PathLike[str]) -> Entry:
    about = os.stat(path)
    check_regular(about.st_mode, path)
    return Entry(name, f"{about.st_size}:{about.st_mtime_ns}", about.st_size)


def _store_stamp(info: Mapping[str, Any]) -> str:
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), None)
    if version is None:  # as fsspec's ukey has it: all that the store tells
        version = hashlib.sha256(str(dict(info)).encode()).hexdigest()[:32]
    if isinstance(version, datetime):  # one file system may report a time in both ways
        version = version.timestamp()
    text = str(version).strip('"')
    return f"{info.get('size')}:{text}"


def entries(root: Location, hidden: bool = False) -> Iterator[Entry]:
    """Files below a folder, in one order for all kinds of places, with sizes and versions.

    Files of a folder come before its subfolders, in the order of their names; hidden names (``.x``)
    are passed over, but those of a store are kept with ``hidden``. Here links to folders are
    followed once, and what cannot be read (a folder, too) is an entry with the reason; a store is
    listed in one request.

    Raises:
        UserError: The folder cannot be read, or the store denies access.
    """
    return _store_entries(root, hidden) if isinstance(root, UPath) else _local_entries(root)


def _local_entries(root: Path) -> Iterator[Entry]:
    seen: set[tuple[int, int]] = set()
    folders = [("", os.fspath(root))]
    while folders:
        below, folder = folders.pop()
        try:
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as scan:
                inside = sorted((e for e in scan if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            if not below:
                raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
            yield Entry(below.rstrip("/"), "", -1, unopened(error))
            continue
        deeper = []
        for item in inside:
            try:
                if item.is_dir():
                    deeper.append((f"{below}{item.name}/", item.path))
                    continue
                yield _local_entry(below + item.name, item.path)
            except OSError as error:
                yield Entry(below + item.name, "", -1, unopened(error))
        folders += reversed(deeper)


def _store_entries(root: UPath, hidden: bool) -> Iterator[Entry]:
    protocol = str(root.protocol)
    if protocol in ("http", "https"):
        raise UserError(f"{root}: a web server has no listing; download it, or name a store")
    with naming(root):
        fs = root.fs
        fs.invalidate_cache()  # another process may have written since
        base = fs._strip_protocol(root.path).rstrip("/")
        listing: Mapping[str, Mapping[str, Any]] = fs.find(base, detail=True)
        fs.invalidate_cache()  # s3fs keeps a kilobyte for each file
    if set(listing) == {base}:
        raise UserError(f"{root} is a file, not a folder")
    rows = []
    for path, info in listing.items():
        parts = path.removeprefix(base).lstrip("/").split("/")
        # Folders made in a web console are empty objects whose names end in a slash.
        if not parts[-1] or info.get("type") == "directory":
            continue
        if hidden or not any(part.startswith(".") for part in parts):
            # As the walk through a folder has it: files first, then folders.
            key = (*((1, part) for part in parts[:-1]), (0, parts[-1]))
            rows.append((key, Entry("/".join(parts), _store_stamp(info), info.get("size") or 0)))
    rows.sort(key=lambda row: row[0])
    yield from (entry for _, entry in rows)


def read(path: Location, at_most: int | None = None, max_seconds: float | None = None) -> bytes:
    """Content of a file, see :func:`midigenre.files.read_bytes`.

    Raises:
        OSError: It is not there, is not a regular file or takes too long; or, here, it cannot be
            read.
        UserError: The store is out of reach or denies access: not the file's fault.
    """
    try:
        with naming(path):
            return read_bytes(path, at_most, max_seconds)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def read_object(path: Location, remedy: str, data: bytes | None = None) -> dict[str, Any]:
    """Content of a JSON file that holds an object; ``data`` are its bytes if they have been read.

    Raises:
        OSError: It cannot be read.
        UserError: It is damaged; one line names the file, and the remedy that is given.
    """
    try:
        found = parse_json(read_bytes(path) if data is None else data)
    except ValueError as error:
        raise UserError(f"{path} is damaged (no JSON: {error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no JSON object); {remedy}")
    return found


def exists(path: Location) -> bool:
    """Whether a file or a folder is there.

    Raises:
        UserError: The store is out of reach or denies access.
    """
    if isinstance(path, UPath):
        with naming(path):
            return bool(path.fs.exists(path.path))
    return path.exists()


def local_copy(
    folder: Location,
    cache: Path,
    files: Mapping[str, str | None],
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Path:
    """Files of a folder in a store, copied here on first use; a folder here stays where it is.

    A file is copied again if it is gone, if its checksum differs from the requested one, or,
    without a checksum, if the store has another version; a local change to a file without checksum
    is kept. Parallel jobs copy once.

    Args:
        folder: The folder.
        cache: Folder of all copies; this one gets ``<name>-<hash of the URL>`` in it.
        files: Names below ``folder`` and SHA-256, None where it is not known; the file that
            guarantees the others (``spec.json``) comes last.
        progress: ``progress(what, done, total)`` with the number of files.

    Raises:
        UserError: The store is out of reach or lacks a file, a file is not what it should be, or
            there is no room.
    """
    if not isinstance(folder, UPath):
        return folder
    url = str(folder).rstrip("/")
    readable = re.sub(r"[^\w.-]+", "_", url.rpartition("/")[2]).strip("._") or "root"
    copy = cache / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    copy.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy}.copying.lock"):  # not that of its readers
        remove_parts(copy)  # of a copy that was killed: a part may have gigabytes
        there = {entry.name: entry for entry in entries(folder)}
        record = copy / _RECORD
        known: dict[str, dict[str, str]] = read_json(record) if record.is_file() else {}
        wanted = []
        for name, checksum in files.items():
            if not inside(name):
                raise UserError(f"{url}: {name!r} leads out of the folder")
            if name not in there:
                raise UserError(f"{url} has no {name}; it was not uploaded whole")
            if not _same(copy / name, checksum, there[name], known.get(name, {})):
                wanted.append(name)
        room(copy, sum(there[name].size for name in wanted), f"the copy of {url}")
        for done, name in enumerate(wanted):
            progress(f"copying {readable}", done, len(wanted))
            found = _copy_file(folder / name, copy / name, files[name])
            version, here = there[name].stamp, stamp(copy / name)
            known[name] = {"store": version, "sha256": found, "here": here}
            write_json(record, known)
        if wanted:
            progress(f"copying {readable}", len(wanted), len(wanted))
    return copy


def _same(path: Path, checksum: str | None, there: Entry, known: Mapping[str, str]) -> bool:
    """Whether a copied file is the requested one."""
    if not path.is_file():
        return False
    if checksum is None:
        return known.get("store") == there.stamp
    # Gigabytes are not hashed at every start: a file that has not changed has its checksum.
    return checksum == (known.get("sha256") if known.get("here") == stamp(path) else sha256(path))


def _copy_file(source: UPath, target: Path, checksum: str | None) -> str:
    """Copies a file whole and returns its checksum."""
    with whole(target) as part:
        for _ in range(2):  # a transfer error is unlikely to happen twice
            with naming(source):
                source.fs.get_file(source.path, str(part))
            found = sha256(part)
            if checksum in (None, found):
                return found
        raise UserError(
            f"{source} is not the file that its folder's spec.json names (the checksum differs); "
            "upload the folder again"
        )


def check_writable(folder: Path, remedy: str) -> None:
    """Rejects a folder that cannot be made or written, before anything is computed for it.

    Raises:
        UserError: It cannot; the message names the folder, and the remedy that is given.
    """
    there = _nearest(folder)
    if not (there.is_dir() and os.access(there, os.W_OK)):
        why = "not writable" if there.is_dir() else "not a folder"
        raise UserError(f"cannot write {folder}: {there} is {why}; {remedy}")


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(f for f in (folder, *folder.absolute().parents) if f.exists())


def room(folder: Path, needed: int, what: str) -> None:
    """Rejects ``needed`` bytes in ``folder`` that would fill the disk.

    Raises:
        UserError: There is less room than that and a hundredth more; it names ``what``.
    """
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    if needed and free < needed * 1.01:
        raise UserError(
            f"{what} takes {needed / 1e9:.2f} GB, and {there} has {free / 1e9:.2f} GB free; free "
            "some space or set MIDIGENRE_HOME to a larger disk"
        )
