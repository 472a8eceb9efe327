"""An archive from its URL to a folder of files: resumable, checked, unpacked safely."""

from __future__ import annotations

import lzma
import os
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from fsspec.callbacks import Callback  # type: ignore[import-untyped]
from upath import UPath

from midigenre.corpora.base import Progress, no_progress
from midigenre.corpora.folder import midi_files
from midigenre.errors import UserError
from midigenre.files import inside, read_json, write_json
from midigenre.storage import location, naming, room, stamp

ATTEMPTS = 5  # consecutive broken transfers without a byte after which we stop
WAIT = 1.0  # seconds before a broken transfer is tried again; each further time twice as long
MAX_RATIO = 200  # most that an archive may unpack to, times its size; MIDI archives have 3 to 10
SMALL = 2**26  # bytes that any archive may unpack to
MAX_HEADER = 2**20  # bytes of a member's name and attributes in a tar archive
_BLOCK = 8 * 2**20  # bytes asked for at a time: what a broken transfer costs
_DRIVE = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


class _DamagedError(UserError):
    """A file is not the archive that it should be."""


def fetched(
    url: str, root: Path, expected_files: int | None, progress: Progress = no_progress
) -> None:
    """Downloads an archive and unpacks it, once.

    A stopped call resumes where it stopped. The archive lies beside ``root`` until it is
    unpacked; then it is deleted, and a file in ``root`` says that all is there. Parallel jobs
    download once.

    Args:
        url: Address of a zip or tar archive: of a file on Google Drive, or any URL of fsspec
            (``https://``, ``s3://``, ``hf://``), or a path here.
        root: Folder to unpack into.
        expected_files: Number of MIDI files that there must be afterwards; None for any number.
        progress: Called with megabytes, then with files.

    Raises:
        UserError: The address is out of reach, the archive is damaged or holds another number of
            files, or there is no room, or the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            _fetch(url, root, expected_files, progress)
    except OSError as error:
        raise UserError(
            f"cannot write {root}: {error.strerror or error}; free some space or give another "
            "corpus.root, then run the command again: it continues where it stopped"
        ) from error


def _fetch(url: str, root: Path, expected_files: int | None, progress: Progress) -> None:
    marker, target = root / ".download.json", root.with_name(f".{root.name}.archive")
    about = target.with_name(f"{target.name}.json")
    held = read_json(marker)["url"] if marker.is_file() else None
    # From another address, or unpacked by hand; with `about` unpacking was stopped.
    if held == url or (not about.is_file() and sum(1 for _ in midi_files(root)) == expected_files):
        return
    if held is not None:
        raise UserError(
            f"{root} holds what came from {held}, not from {url}; give another corpus.root, "
            "or delete that folder"
        )
    if not about.is_file() or read_json(about)["url"] != url:
        _forget(target)  # of another address
        write_json(about, {"url": url, "version": None})
    archive = target if target.is_file() else _archive(url, target, about, progress)
    try:
        unpack(archive, root, progress)
    except _DamagedError as error:
        if archive != target:
            raise UserError(f"{error}; give another corpus.url") from error
        _forget(target)
        raise UserError(f"{error}; run the command again to download it again") from error
    found = sum(1 for _ in midi_files(root))
    if expected_files not in (None, found):
        raise UserError(
            f"{root} has {found:,} MIDI files after unpacking {url}, but corpus.expected_files="
            f"{expected_files}; delete {archive} if the download is damaged, or set "
            f"corpus.expected_files={found} if this archive is meant to be another one"
        )
    os.sync()  # the files were not synced one by one
    write_json(marker, {"url": url, "files": found})
    _forget(target)


def _forget(target: Path) -> None:
    """Deletes a downloaded archive, parts of it and what is known of it."""
    for path in target.parent.iterdir():
        if path.name.startswith(target.name):
            path.unlink()


def _archive(url: str, target: Path, about: Path, progress: Progress) -> Path:
    """The archive as a file here, downloaded block by block unless it lies here already."""
    if urlsplit(url).hostname in _DRIVE:
        _from_drive(url, target, progress)
        return target
    source = location(url)
    if isinstance(source, Path):
        if not source.is_file():
            raise UserError(f"corpus.url={url}: no such file")
        return source
    with naming(source):
        size = source.fs.info(source.path).get("size")
        version = stamp(source)
    part = target.with_name(f"{target.name}.part")
    if read_json(about)["version"] != version:
        part.unlink(missing_ok=True)  # the beginning of another file
        write_json(about, {"url": url, "version": version})
    part.touch()
    room(target.parent, (size or 0) - part.stat().st_size, f"the download of {source}")

    def show(_: int | None, done: int, **__: object) -> None:
        progress("downloading (MB)", done // 10**6, (size or 0) // 10**6)

    shown = Callback(hooks={"progress": show})
    failed, in_blocks = 0, size is not None
    while True:
        before = part.stat().st_size
        try:
            with naming(source):
                if in_blocks:
                    in_blocks = _append_blocks(source, part, size, progress)
                if not in_blocks:  # streamed to the disk, from its beginning
                    source.fs.get_file(source.path, str(part), callback=shown)
                done = part.stat().st_size
                if size is not None and done < size:
                    raise ConnectionError(f"the server sent {done:,} of {size:,} bytes")
            break
        except UserError as error:
            done = part.stat().st_size
            failed = 1 if in_blocks and done > before else failed + 1
            if failed == ATTEMPTS:
                again = "it continues there" if in_blocks else "this server gives whole files only"
                raise UserError(
                    f"{error} (the download broke off at {done:,} of {size or 0:,} bytes; run the "
                    f"command again: {again})"
                ) from error
            time.sleep(WAIT * 2 ** (failed - 1))
    os.replace(part, target)
    return target


def _append_blocks(source: UPath, part: Path, size: int, progress: Progress) -> bool:
    """Adds the blocks that are missing; False where the server gives whole files alone."""
    options = {"block_size": _BLOCK, "cache_type": "none"}
    with source.fs.open(source.path, "rb", **options) as file, part.open("ab") as out:
        while (done := out.tell()) < size:
            try:
                file.seek(done)
                block = file.read(min(_BLOCK, size - done))
            except ValueError:  # so fsspec says that a web server does not know ranges
                return False
            if not block:
                break
            out.write(block)
            out.flush()
            progress("downloading (MB)", out.tell() // 10**6, size // 10**6)
    return True


def _from_drive(url: str, target: Path, progress: Progress) -> None:
    """Downloads a file of Google Drive, where large files are preceded by a warning page."""
    found = re.search(r"/d/([\w-]+)|[?&]id=([\w-]+)", url)
    if found is None:
        raise UserError(f"corpus.url={url} names no file of Google Drive (.../file/d/ID/view)")
    try:
        import gdown
    except ImportError as error:
        raise UserError(
            f"{url} is on Google Drive: run `pip install 'midigenre[xmidi]'`, or download it in a "
            "browser and give corpus.url=FILE"
        ) from error

    def shown(done: int, total: int | None) -> None:
        room(target.parent, (total or 0) - done, f"the download of {url}")
        progress("downloading (MB)", done // 10**6, (total or 0) // 10**6)

    try:
        gdown.download(
            id=found[1] or found[2], output=str(target), quiet=True, resume=True, progress=shown
        )
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("gdown", "requests", "urllib3"):
            raise
        raise UserError(
            f"Google Drive did not deliver {url}: {' '.join(str(error).split())}; run the command "
            "again (it continues), or download it in a browser and give corpus.url=FILE"
        ) from error


class _Info(tarfile.TarInfo):
    """A member of a tar archive; the long names and attributes before it are read into memory."""

    def _proc_member(self, tarred: tarfile.TarFile) -> tarfile.TarInfo:
        if not (self.isreg() or self.isdir() or self.issym()) and self.size > MAX_HEADER:
            # Not a TarError, which would mean damage or another way of packing.
            raise UserError(
                f"the archive has a header of {self.size:,} bytes: a bomb; give another corpus.url"
            )
        found: tarfile.TarInfo = super()._proc_member(tarred)  # type: ignore[misc]
        return found


def unpack(archive: Path, root: Path, progress: Progress = no_progress) -> int:
    """Unpacks the files of a zip or tar archive; links, devices and hidden names are left out.

    Returns:
        The number of files.

    Raises:
        UserError: The file is not an archive, is damaged or encrypted, a name leads out of
            ``root``, it would unpack to more than ``MAX_RATIO`` times its size, or there is no
            room. Nothing is written then, except before damage in the middle.
    """
    try:
        with _opened(archive) as packed:
            if isinstance(packed, zipfile.ZipFile):
                infos = ((i.filename, i.file_size, not i.is_dir(), i) for i in packed.infolist())
                return _unpack(archive, root, infos, packed.extract, progress)
            members = ((i.name, i.size, i.isreg(), i) for i in packed)
            return _unpack(archive, root, members, partial(packed.extract, filter="data"), progress)
    except _DAMAGE as error:
        raise _DamagedError(f"{archive} is damaged ({error})") from error
    except RuntimeError as error:  # encrypted, or packed in a way that Python does not know
        raise UserError(f"{archive}: {error}; unpack it and give corpus.root") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _DamagedError(f"{archive} is damaged ({error})") from error


def _opened(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    try:
        return tarfile.open(archive, tarinfo=_Info)
    except _DAMAGE as error:
        page = "is not a zip or tar archive (a server's page, perhaps)"
        raise _DamagedError(f"{archive} {page}") from error


def _unpack(
    archive: Path,
    root: Path,
    members: Iterable[tuple[str, int, bool, Any]],
    extract: Callable[[Any, Path], object],
    progress: Progress,
) -> int:
    """Unpacks members (name, size, whether a regular file, itself) if they are credible."""
    wanted: list[Any] = []
    size, total, needed = archive.stat().st_size, 0, 0
    for name, n_bytes, is_file, member in members:
        total += n_bytes
        if total > max(MAX_RATIO * size, SMALL):
            raise UserError(
                f"{archive} has {size:,} bytes and would unpack to more than {total:,}: a bomb, "
                "not a music collection; if it is one, unpack it and give corpus.root"
            )
        hidden = any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
        if is_file and not hidden:
            if not inside(name):
                raise UserError(f"{archive}: {name!r} leads out of {root}; not unpacked")
            wanted.append(member)
            needed += n_bytes + 4096  # a file takes whole blocks of the disk
    room(root, needed, f"what {archive} holds")
    for i, member in enumerate(wanted):
        extract(member, root)
        progress("unpacking", i + 1, len(wanted))
    return len(wanted)
