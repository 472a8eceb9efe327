"""``midigenre prepare list=true`` and ``clean=...``: what lies in a home's ``shards/``.

Preparations are never replaced: other settings, or a corpus that changed, make another folder. So
they pile up. Here they are listed with their state, and removed so that a stop in the middle leaves
nothing that could be taken for a whole one.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from midigenre.data.shards import FORMAT, ShardSet, lock_file
from midigenre.errors import UserError
from midigenre.files import share_lock
from midigenre.storage import read_object

STATES = {"unfinished": "unfinished", "old": "other format", "damaged": "damaged"}
"""Words that stand for all shards of a state, where else a name or a glob is given."""

BUSY = {"in work": "a process prepares or removes it", "in use": "a process reads it"}
"""States of shards that are left alone, and why."""

_STYLES = {"finished": "green", "damaged": "red"} | dict.fromkeys(BUSY, "cyan")
_REMOVING = ".removing-"
_NAME = re.compile(r"(?P<corpus>.+?)-(?P<tokenizer>[^-]+)-[0-9a-f]{8}")
_MARKS = ("spec.json", "report.json", "manifest.csv", "part-*")


@dataclass(frozen=True)
class Prepared:
    """One folder of shards, whole or not.

    Attributes:
        folder: The folder.
        corpus: Name of the corpus, "" if nothing says so.
        tokenizer: Name of the tokenizer, likewise.
        songs: Songs in it, None if nothing says so.
        bytes: Size of its files together.
        modified: When one of them last changed, in seconds since the epoch.
        state: ``finished``, one of :data:`BUSY`, or one of the values of :data:`STATES`.
        detail: What that state comes from, "" for a finished one.
    """

    folder: Path
    corpus: str
    tokenizer: str
    songs: int | None
    bytes: int
    modified: float
    state: str
    detail: str

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def age_days(self) -> float:
        """Days since one of its files last changed."""
        return max(0.0, time.time() - self.modified) / 86_400

    def print_json(self) -> None:
        """One line on stdout."""
        about = {key: getattr(self, key) for key in
                 ("name", "corpus", "tokenizer", "songs", "bytes", "state", "detail")}  # fmt: skip
        when = datetime.fromtimestamp(self.modified, UTC).isoformat(timespec="seconds")
        about |= {"path": str(self.folder), "modified": when, "age_days": round(self.age_days, 2)}
        print(json.dumps(about), flush=True)


def prepared_folders(root: Path) -> list[Prepared]:
    """The shards below a folder, by name; what is something else is left out.

    Args:
        root: ``shards/`` of a home; it need not be there.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return [_looked_at(folder, _busy(folder)) for folder in folders if _is_ours(folder)]


def show(root: Path, console: Console) -> None:
    """Prints a table of the shards, the latest first, and a JSON object for each on stdout."""
    found = sorted(prepared_folders(root), key=lambda one: -one.modified)
    if not found:
        console.print(f"{root} holds no shards", highlight=False, markup=False)
        return
    console.print(_table(found, str(root)))
    for one in found:
        one.print_json()


def clean(
    root: Path, patterns: str | Sequence[str], console: Console, ask: Callable[[str], bool]
) -> list[Prepared]:
    """Removes shards after a yes; a JSON object for each removed one goes to stdout.

    Args:
        root: ``shards/`` of a home.
        patterns: Names, globs, or words of :data:`STATES`.
        console: For people.
        ask: See :func:`asker`.

    Returns:
        The removed ones.

    Raises:
        UserError: A pattern stands for nothing or all that it stands for is in use; or one cannot
            be removed.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found = _chosen(prepared_folders(root), patterns, root)
    free = [one for one in found if one.state not in BUSY]
    for one in found:
        if one.state in BUSY:
            say(f"{one.name} stays: {one.detail}")
    if not free:
        raise UserError(f"clean={','.join(patterns)}: all of them are in use; try later")
    console.print(_table(free, "to remove"))
    many = f"these {len(free):,} folders" if len(free) > 1 else free[0].name
    if not ask(f"Remove {many} ({decimal(sum(one.bytes for one in free))}) from {root}?"):
        say("nothing was removed")
        return []
    removed = []
    for one in free:
        if why_not := remove(one):
            say(f"{one.name} stays: {why_not}")
            continue
        removed.append(one)
        one.print_json()
    size = decimal(sum(one.bytes for one in removed))
    say(f"removed {len(removed):,} of {len(free):,} ({size})")
    return removed


def asker(console: Console, yes: bool = False) -> Callable[[str], bool]:
    """Asks at the terminal: ``y`` or ``yes`` is yes, all else no.

    Args:
        console: Where the question stands.
        yes: The answer was given with the command (``yes=true``): nobody is asked.

    Returns:
        The function; without a terminal it raises a :class:`UserError` that names ``yes=true``.
    """

    def ask(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UserError(f"{question} There is no terminal to ask at; add yes=true")
        console.print(f"{question} [y/N]", end=" ", highlight=False, markup=False)
        with suppress(EOFError):
            return input().strip().lower() in ("y", "yes")
        return False

    return ask


def remove(one: Prepared) -> str:
    """Removes shards and their lock file.

    The folder is renamed first, under its lock: whenever the process dies, what is left is whole
    under its own name, or unfinished under another one, and never half of a preparation.

    Returns:
        Why it was left as it is: a process holds its lock, or it is no longer in the state in which
        it was listed. "" if it is gone.

    Raises:
        UserError: It is a link, or cannot be removed.
    """
    folder, own = one.folder, _own_name(one.folder)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {folder.resolve()}; remove it yourself")
    aside = own.with_name(_REMOVING + own.name)
    lock = lock_file(own)
    try:
        with FileLock(lock).acquire(timeout=0):
            now = _looked_at(folder).state
            if now != one.state and folder.exists():
                return f"it was {one.state} and is {now} now"
            if aside != folder:
                if aside.exists():  # of an earlier removal that was stopped
                    shutil.rmtree(aside)
                with suppress(FileNotFoundError):
                    os.rename(folder, aside)
            with suppress(FileNotFoundError):
                shutil.rmtree(aside)
            # Still under the lock: whoever waits for it sees that the file is gone and makes it.
            if not own.exists():
                lock.unlink(missing_ok=True)
    except Timeout:
        return BUSY[_busy(folder) or "in work"]
    except OSError as error:
        raise UserError(
            f"cannot remove {folder}: {error.strerror or error}; what is left of it is in "
            "`midigenre prepare list=true`"
        ) from error
    return ""


def _chosen(found: Sequence[Prepared], patterns: Sequence[str], root: Path) -> list[Prepared]:
    """Those that names, globs or words of :data:`STATES` stand for, each once."""
    if not patterns:
        raise UserError(f"clean= names nothing; give a name, a glob, or {', '.join(STATES)}")
    chosen: dict[str, Prepared] = {}
    for pattern in patterns:
        state = STATES.get(pattern)
        matching = [
            one for one in found
            if (one.state == state if state else fnmatch.fnmatchcase(one.name, pattern))
        ]  # fmt: skip
        if not matching:
            names = [one.name for one in found]
            near = ", ".join(difflib.get_close_matches(pattern, names, 5, 0.4) or names[:5])
            raise UserError(
                f"clean={pattern}: {root} holds no shards" if not found
                else f"clean={pattern}: no shards in {root} are in the state {state!r}" if state
                else f"clean={pattern}: no such shards in {root}; there is {near}"
            )  # fmt: skip
        chosen |= {one.name: one for one in matching}
    return list(chosen.values())


def _own_name(folder: Path) -> Path:
    """The folder under its own name, where a removal had renamed it."""
    return folder.with_name(folder.name.removeprefix(_REMOVING))


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds shards: by its name and content, or by its spec."""
    if folder.name.startswith(_REMOVING):
        return True
    if _NAME.fullmatch(folder.name):
        marked = any(True for mark in _MARKS for _ in folder.glob(mark))
        # A preparation that was stopped before its first file has nothing but its lock.
        return marked or lock_file(folder).is_file() or not any(folder.iterdir())
    with suppress(OSError, UserError):  # a person gave it another name
        return {"tokens", "parts", "format"} <= read_object(folder / "spec.json", "").keys()
    return False


def _looked_at(folder: Path, busy: str = "") -> Prepared:
    """A folder as its files say."""
    stats = []
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):  # a process at work renames and removes files meanwhile
            stats.append((path.is_dir(), path.lstat()))
    files = [stat for is_folder, stat in stats if not is_folder]
    state, detail, spec = _state(folder)
    named = _NAME.fullmatch(_own_name(folder).name)
    about: dict[str, Any] = named.groupdict() if named else {"corpus": "", "tokenizer": ""}
    about["songs"] = None
    with suppress(KeyError, TypeError):
        about |= {"corpus": str(spec["corpus"]), "tokenizer": str(spec["tokens"]["name"]),
                  "songs": sum(int(part["songs"]) for part in spec["parts"])}  # fmt: skip
    return Prepared(
        folder,
        bytes=sum(stat.st_size for stat in files),
        modified=max((stat.st_mtime for stat in files or [s for _, s in stats]), default=0.0),
        state=busy or state,
        detail=BUSY.get(busy, detail),
        **about,
    )


def _state(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """State of a folder but for its lock, what it comes from, and its spec ({} for none)."""
    spec: dict[str, Any] = {}
    if folder.name.startswith(_REMOVING):
        return "unfinished", "its removal was stopped", spec
    try:
        with suppress(FileNotFoundError):
            spec = read_object(folder / "spec.json", "")
        if spec and spec.get("format") != FORMAT:
            return "other format", f"format {spec.get('format')}, this version reads {FORMAT}", spec
        if not (folder / "report.json").is_file():
            return "unfinished", "no report.json", spec
        ShardSet(folder, locked=True)
        read_object(folder / "report.json", "")
    except (UserError, OSError) as error:
        # What whoever opens it is told, without the folder and the remedy.
        return "damaged", str(error).partition(";")[0].replace(f"{folder}{os.sep}", ""), spec
    return "finished", "", spec


def _busy(folder: Path) -> str:
    """One of :data:`BUSY`, "" if no process has the lock."""
    lock = lock_file(_own_name(folder))
    with suppress(OSError):  # on a disk that cannot be written nobody prepares
        if not lock.is_file():
            return ""
        try:
            FileLock(lock).acquire(timeout=0).lock.release()
        except Timeout:
            handle = share_lock(lock)
            if handle is None:
                return "in work"
            os.close(handle)
            return "in use"
    return ""


def _table(found: Sequence[Prepared], title: str) -> Table:
    table = Table(title=Text(title), show_footer=True)
    # Names are what one types after clean=: they are never cut.
    table.add_column("name", f"{len(found):,} in all", no_wrap=True, overflow="fold")
    table.add_column("songs", justify="right")
    table.add_column("size", decimal(sum(one.bytes for one in found)), justify="right")
    table.add_column("changed", justify="right")
    table.add_column("state")
    for one in found:
        state = Text(one.state, _STYLES.get(one.state, "yellow"))
        if one.detail:
            state.append(f": {one.detail}", "default")
        songs = "" if one.songs is None else f"{one.songs:,}"
        age = f"{one.age_days:,.1f} days ago"
        table.add_row(Text(one.name), songs, decimal(one.bytes), age, state)
    return table
