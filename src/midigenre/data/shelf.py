"""What lies in a home's ``shards/``: listing and removing prepared corpora.

Preparations are never replaced: other settings or a corpus that changed make another folder. So
they pile up. Here they are told apart by their state, and removed so that a stop in the middle
leaves nothing that could be taken for a whole one.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from midigenre.data.shards import FORMAT, ShardSet, lock_file
from midigenre.errors import UserError
from midigenre.files import read_json, share_lock
from midigenre.storage import read_object

FINISHED = "finished"
UNFINISHED = "unfinished"
IN_WORK = "in work"
IN_USE = "in use"
OTHER_FORMAT = "other format"
DAMAGED = "damaged"

BUSY = {IN_WORK: "a process prepares or removes it", IN_USE: "a process reads it"}
"""States of shards that are left alone, and why."""

STATES = {"unfinished": UNFINISHED, "old": OTHER_FORMAT, "damaged": DAMAGED}
"""Words that stand for every entry of a state, where else a name or a glob is given."""

_REMOVING = ".removing-"
_NAME = re.compile(r"(?P<corpus>.+?)-(?P<tokenizer>[^-]+)-[0-9a-f]{8}")
_MARKS = ("spec.json", "report.json", "manifest.csv", "part-*")
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Entry:
    """One folder of shards, whole or not.

    Attributes:
        folder: The folder.
        corpus: Name of the corpus, "" if nothing says so.
        tokenizer: Name of the tokenizer, likewise.
        songs: Songs in it, None if nothing says so.
        bytes: Size of its files together.
        modified: When one of them last changed, in seconds since the epoch.
        state: ``finished``, ``unfinished``, ``in work`` (a process has its lock alone), ``in use``
            (processes share it), ``other format`` or ``damaged``.
        detail: What that state comes from, "" for a finished one.
        lock: The file that a process locks while it prepares or removes the folder.
    """

    folder: Path
    corpus: str
    tokenizer: str
    songs: int | None
    bytes: int
    modified: float
    state: str
    detail: str
    lock: Path

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def age_days(self) -> float:
        """Days since one of its files last changed."""
        return max(0.0, time.time() - self.modified) / _SECONDS_PER_DAY


def entries(shards_root: Path) -> list[Entry]:
    """The shards below a folder, by name; what is something else is left out.

    Args:
        shards_root: ``shards/`` of a home; it need not be there.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        folders = sorted(p for p in shards_root.iterdir() if p.is_dir())
    except FileNotFoundError:
        return []
    found = []
    for folder in folders:
        lock = lock_file(_prepared_of(folder))
        if _is_shards(folder, lock):
            entry = _looked_at(folder, lock)
            if busy := _busy(lock):
                entry = replace(entry, state=busy, detail=BUSY[busy])
            found.append(entry)
    return found


def chosen(shards: Sequence[Entry], patterns: Sequence[str], shards_root: Path) -> list[Entry]:
    """The entries that names, globs or words of :data:`STATES` stand for, each once.

    Args:
        shards: Of :func:`entries`.
        patterns: ``xmidi-remi-3f2a1b0c``, ``xmidi-*``, ``unfinished`` ...
        shards_root: Named in the messages.

    Raises:
        UserError: One stands for nothing; the message lists names like it.
    """
    if not patterns:
        raise UserError(f"clean= names nothing; give a name, a glob, or {', '.join(STATES)}")
    found: dict[str, Entry] = {}
    for pattern in patterns:
        if pattern in STATES:
            matching = [e for e in shards if e.state == STATES[pattern]]
        else:
            matching = [e for e in shards if fnmatch.fnmatchcase(e.name, pattern)]
        if not matching:
            raise UserError(_no_match(shards, pattern, shards_root))
        found |= {entry.name: entry for entry in matching}
    return list(found.values())


def remove(entry: Entry) -> str:
    """Removes an entry and its lock file.

    The folder is renamed first, under its lock: whenever the process dies, what is left is whole
    under its own name, or an unfinished entry under another one, and never half of a preparation.

    Returns:
        Why it was left as it is: a process holds its lock, or it is no longer in the state in which
        it was listed. "" if it is gone.

    Raises:
        UserError: It is a link, or cannot be removed.
    """
    folder, aside = entry.folder, entry.folder
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {folder.resolve()}; remove it yourself")
    if not entry.name.startswith(_REMOVING):
        aside = folder.with_name(_REMOVING + entry.name)
    try:
        with _held(entry.lock) as held:
            if not held:
                return BUSY[_busy(entry.lock) or IN_WORK]
            now = _looked_at(folder, entry.lock).state
            if now != entry.state and folder.exists():
                return f"it was {entry.state} and is {now} now"
            if aside != folder:
                # An earlier removal that was stopped may be in the way.
                _remove_tree(aside)
                with suppress(FileNotFoundError):
                    os.rename(folder, aside)
            _remove_tree(aside)
            # Still under the lock: whoever waits for it sees that the file is gone and makes it.
            if not _prepared_of(folder).exists():
                entry.lock.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot remove {folder}: {error.strerror or error}; what is left of it is in "
            "`midigenre prepare list=true`"
        ) from error
    return ""


def remove_lock_files(shards_root: Path) -> list[Path]:
    """Removes lock files that no process holds and whose shards are gone.

    Args:
        shards_root: As for :func:`entries`.

    Returns:
        Those that were removed.
    """
    removed: list[Path] = []
    for path in sorted(shards_root.glob("*.lock")):
        name = path.name.removesuffix(".lock")
        if _NAME.fullmatch(name) is None or (shards_root / (_REMOVING + name)).exists():
            continue
        with suppress(OSError), _held(path) as held:
            if held and not (shards_root / name).exists():
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _looked_at(folder: Path, lock: Path) -> Entry:
    """A folder as its files say, whoever works on it."""
    size, modified = _size_and_time(folder)
    spec, problem = _spec(folder)
    named = _NAME.fullmatch(_prepared_of(folder).name)
    corpus, tokenizer = (named["corpus"], named["tokenizer"]) if named else ("", "")
    parts: list[Any] = []
    with suppress(KeyError, TypeError):
        corpus, tokenizer = str(spec["corpus"]), str(spec["tokens"]["name"])
        parts = list(spec["parts"])
    state, detail = _state(folder, spec, problem)
    songs = _songs(folder, parts)
    return Entry(folder, corpus, tokenizer, songs, size, modified, state, detail, lock)


def _state(folder: Path, spec: Mapping[str, Any], problem: str) -> tuple[str, str]:
    """State of a folder but for its lock, and what it comes from."""
    if folder.name.startswith(_REMOVING):
        return UNFINISHED, "its removal was stopped"
    if problem:
        return DAMAGED, problem
    if spec and spec.get("format") != FORMAT:
        return OTHER_FORMAT, f"format {spec.get('format')}, this version reads {FORMAT}"
    if not (folder / "report.json").is_file():
        return UNFINISHED, "no report.json"
    try:
        ShardSet(folder, locked=True)
        read_object(folder / "report.json", "")
    except (UserError, OSError) as error:
        return DAMAGED, _problem(folder, error)
    return FINISHED, ""


def _spec(folder: Path) -> tuple[dict[str, Any], str]:
    """Content of ``spec.json`` ({} for none), and why it cannot be read ("" if it can)."""
    try:
        return read_object(folder / "spec.json", ""), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, UserError) as error:
        return {}, _problem(folder, error)


def _problem(folder: Path, error: Exception) -> str:
    """What whoever opens it is told, without the folder and the remedy."""
    return str(error).partition(";")[0].replace(f"{folder}{os.sep}", "")


def _songs(folder: Path, parts: Sequence[Any]) -> int | None:
    """Songs of the parts in a spec, or of those that a preparation has finished so far."""
    try:
        if not parts:
            parts = [read_json(path)["part"] for path in folder.glob("*.done.json")]
        return sum(int(part["songs"]) for part in parts) if parts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_shards(folder: Path, lock: Path) -> bool:
    """Whether a folder is one of ours: by its name and content, or by its spec."""
    if folder.name.startswith(_REMOVING):
        return True
    if _NAME.fullmatch(folder.name):
        marked = any(True for mark in _MARKS for _ in folder.glob(mark))
        # A preparation that was stopped before its first part has nothing but its lock.
        return marked or lock.is_file() or not any(folder.glob("*"))
    spec, _ = _spec(folder)  # a person gave it another name
    return "tokens" in spec and "parts" in spec and "format" in spec


def _size_and_time(folder: Path) -> tuple[int, float]:
    size, modified = 0, 0.0
    for where, _, files in os.walk(folder):
        for name in files:
            # A process at work renames and removes files meanwhile.
            with suppress(FileNotFoundError):
                stat = os.lstat(os.path.join(where, name))
                size, modified = size + stat.st_size, max(modified, stat.st_mtime)
    if not modified:
        with suppress(FileNotFoundError):
            modified = folder.stat().st_mtime
    return size, modified


def _prepared_of(folder: Path) -> Path:
    """The folder under its own name, where a removal had renamed it."""
    return folder.with_name(folder.name.removeprefix(_REMOVING))


def _busy(lock: Path) -> str:
    """:data:`IN_WORK` or :data:`IN_USE`, "" if no process has the lock."""
    if not lock.is_file():
        return ""
    try:
        with _held(lock) as held:
            if held:
                return ""
        handle = share_lock(lock)
    except OSError:  # on a disk that cannot be written nobody prepares
        return ""
    if handle is None:
        return IN_WORK
    os.close(handle)
    return IN_USE


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Holds a lock; yields False if another process does."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _remove_tree(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _no_match(shards: Sequence[Entry], pattern: str, shards_root: Path) -> str:
    if not shards:
        return f"clean={pattern}: {shards_root} holds no shards"
    if pattern in STATES:
        return f"clean={pattern}: no shards in {shards_root} are in the state {STATES[pattern]!r}"
    names = [entry.name for entry in shards]
    near = difflib.get_close_matches(pattern, names, 5, 0.4) or names[:5]
    more = ", ..." if len(near) < len(names) else ""
    return f"clean={pattern}: no such shards in {shards_root}; there is {', '.join(near)}{more}"
