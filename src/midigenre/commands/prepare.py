"""``midigenre prepare``: corpus to manifest to shards; or list them, or remove some.

Shards are never replaced: other settings, or a corpus that changed, make another folder. So they
pile up. Here they are listed with their state, and removed so that a stop in the middle leaves
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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from midigenre.build import make_corpus, make_tokenizer, prepare_settings, prepared
from midigenre.commands.console import console, progress_bars
from midigenre.data.phrases import phrase_length
from midigenre.data.prepare import estimate, refresh_report
from midigenre.data.report import label_file, print_report
from midigenre.data.shards import FORMAT, ShardSet, lock_file
from midigenre.errors import UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import label_figure
from midigenre.files import share_lock
from midigenre.storage import location, read_object
from midigenre.wording import plural

STATES = {"unfinished": "unfinished", "old": "other format", "damaged": "damaged"}
"""Words that select all shards of a state, in place of a name or a glob."""

BUSY = {"in work": "a process prepares or removes it", "in use": "a process reads it"}
"""States of shards that are left alone, and why."""

_STYLES = {"finished": "green", "damaged": "red"} | dict.fromkeys(BUSY, "cyan")
_REMOVING = ".removing-"
_NAME = re.compile(r"(.+?)-([^-]+)-[0-9a-f]{8}")


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prepares shards and prints their folder on stdout.

    Raises:
        UserError: The corpus cannot be used.
    """
    if paths:
        raise UserError(f"prepare takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    if cfg.list or cfg.clean is not None:
        folder = cfg.prepare.folder
        root = Path(cfg.home) / "shards" if folder is None else location(folder)
        if not isinstance(root, Path):
            raise UserError(
                f"prepare.folder={root}: list=true and clean=... look at folders here only"
            )
        if cfg.clean is not None:
            remove_matching(
                root, str(cfg.clean), console, lambda question: answer(question, console, cfg.yes)
            )
        if cfg.list:
            show(root, console)
        return
    if cfg.dry_run:
        corpus = make_corpus(cfg)
        settings = prepare_settings(cfg)
        about = estimate(corpus, make_tokenizer(cfg, corpus), Path(cfg.home), settings)
        console.print(
            f"{plural(about['songs'], 'song')}: about {about['seconds']:,} s with "
            f"{plural(settings.workers.n, 'process', 'processes')} and "
            f"{about['megabytes']:,} MB on disk ({about['free_megabytes']:,} MB are free); "
            f"{about['rejected_in_sample']} of {plural(about['sampled'], 'sampled song')} would be "
            "rejected"
        )
        return
    with progress_bars() as progress:
        shards = prepared(cfg, progress, any_tokenizer=True)
    if cfg.verify:
        shards.verify()
        console.print(f"all {len(shards.parts)} shards are whole", highlight=False)
    report = refresh_report(shards, phrase_length(cfg.data, shards.tokens), cfg.data.max_tokens)
    print_report(report, console)
    for i, table in enumerate(report["label_tables"]):
        path = shards.folder / f"{label_file(table, first=i == 0)}.png"
        if not path.is_file():
            title = f"{report['corpus']}: {' × '.join(table['labels'])}"
            save(label_figure(table["songs"], table["labels"], table["classes"], title), path)
        console.print(f"{path} and .csv hold this table", highlight=False, soft_wrap=True)
    print(shards.folder)


# --- list=true and clean= -------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """One folder of shards, whole or not, as the JSON object says it.

    ``corpus`` and ``tokenizer`` are "" and ``songs`` is None if nothing says so. ``state`` is
    ``finished``, one of :data:`BUSY`, or a value of :data:`STATES`; ``detail`` is where it comes
    from. ``modified`` is when a file last changed, in ISO format, ``age_days`` how long ago.
    """

    name: str
    corpus: str
    tokenizer: str
    songs: int | None
    bytes: int
    state: str
    detail: str
    path: str
    modified: str
    age_days: float

    def print_json(self) -> None:
        """One line on stdout."""
        print(json.dumps(asdict(self)), flush=True)


def prepared_folders(root: Path) -> list[Prepared]:
    """The shards below ``shards/`` of a home, by name; anything else is left out."""
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return [_looked_at(folder, _busy(folder)) for folder in folders if _is_ours(folder)]


def show(root: Path, console: Console) -> None:
    """Prints a table of the shards, the latest first, and a JSON object for each on stdout."""
    found = sorted(prepared_folders(root), key=lambda one: one.age_days)
    if not found:
        console.print(f"{root} holds no shards", highlight=False, markup=False)
        return
    console.print(_table(found, str(root)))
    for one in found:
        one.print_json()


def remove_matching(
    root: Path, pattern: str, console: Console, ask: Callable[[str], bool]
) -> list[Prepared]:
    """Removes shards after a yes; gives them, and prints a JSON object for each on stdout.

    ``pattern`` is a name, a glob, or a word of :data:`STATES`; ``ask`` as :func:`answer`.

    Raises:
        UserError: The pattern matches nothing, or all that it matches is in use; or one cannot
            be removed.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    free = []
    for one in _matching(prepared_folders(root), pattern, root):
        if one.state in BUSY:
            say(f"{one.name} stays: {one.detail}")
        else:
            free.append(one)
    if not free:
        raise UserError(f"clean={pattern}: all of them are in use; try later")
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


def answer(question: str, console: Console, yes: bool = False) -> bool:
    """Asks at the terminal: ``y`` or ``yes`` is yes, all else no; ``yes=true`` skips the question.

    Raises:
        UserError: There is no terminal to ask at.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UserError(f"{question} There is no terminal to ask at; add yes=true")
    console.print(f"{question} [y/N]", end=" ", highlight=False, markup=False)
    with suppress(EOFError):
        return input().strip().lower() in ("y", "yes")
    return False


def remove(one: Prepared) -> str:
    """Removes shards and their lock file; gives "", or why they were kept.

    The folder is renamed first, under its lock: whenever the process dies, what is left is whole
    under its own name, or unfinished under another one, and never half of a preparation.

    Raises:
        UserError: It is a link, or cannot be removed.
    """
    folder = Path(one.path)
    own = _own_name(folder)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {folder.resolve()}; remove it yourself")
    aside = own.with_name(_REMOVING + own.name)
    lock = lock_file(own)
    try:
        with FileLock(lock).acquire(timeout=0):
            now = _looked_at(folder).state
            if now != one.state and folder.exists():
                return f"it was {one.state} and is {now} now"
            with suppress(FileNotFoundError):
                if aside != folder:
                    if aside.exists():  # of an earlier removal that was stopped
                        shutil.rmtree(aside)
                    os.rename(folder, aside)
                shutil.rmtree(aside)
            # Still under the lock: a process waiting for it sees that the file is gone and makes
            # it.
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


def _matching(found: Sequence[Prepared], pattern: str, root: Path) -> list[Prepared]:
    """The shards that a name, a glob or a word of :data:`STATES` selects."""
    if not found:
        raise UserError(f"clean={pattern}: {root} holds no shards")
    if state := STATES.get(pattern):
        matching = [one for one in found if one.state == state]
        if not matching:
            raise UserError(f"clean={pattern}: no shards in {root} are in the state {state!r}")
        return matching
    matching = [one for one in found if fnmatch.fnmatchcase(one.name, pattern)]
    if not matching:
        names = [one.name for one in found]
        near = ", ".join(difflib.get_close_matches(pattern, names, 5, 0.4) or names[:5])
        raise UserError(f"clean={pattern}: no such shards in {root}; there is {near}")
    return matching


def _own_name(folder: Path) -> Path:
    """The folder under its own name, where a removal had renamed it."""
    return folder.with_name(folder.name.removeprefix(_REMOVING))


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds shards: by the lock beside it, or by its spec."""
    if folder.name.startswith(_REMOVING) or lock_file(folder).is_file():
        return True
    with suppress(OSError, UserError):
        return {"tokens", "parts", "format"} <= read_object(folder / "spec.json", "").keys()
    return False


def _looked_at(folder: Path, busy: str = "") -> Prepared:
    """A folder as its files say."""
    sizes, times = [], []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a process at work renames and removes files meanwhile
            if not path.is_dir():
                sizes.append(path.lstat().st_size)
                times.append(path.lstat().st_mtime)
    with suppress(FileNotFoundError):
        times = times or [folder.stat().st_mtime]
    modified = max(times, default=0.0)
    state, detail, spec = _state(folder)
    named = _NAME.fullmatch(_own_name(folder).name)
    corpus, tokenizer = named.groups() if named else ("", "")
    songs = None
    with suppress(KeyError, TypeError):
        corpus, tokenizer = str(spec["corpus"]), str(spec["tokens"]["name"])
        songs = sum(int(part["songs"]) for part in spec["parts"])
    return Prepared(
        name=folder.name,
        corpus=corpus,
        tokenizer=tokenizer,
        songs=songs,
        bytes=sum(sizes),
        state=busy or state,
        detail=BUSY.get(busy, detail),
        path=str(folder),
        modified=datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds"),
        age_days=round(max(0.0, time.time() - modified) / 86_400, 2),
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
        # The error that opening it gives, without the folder and the remedy.
        return "damaged", str(error).partition(";")[0].replace(f"{folder}{os.sep}", ""), spec
    return "finished", "", spec


def _busy(folder: Path) -> str:
    """One of :data:`BUSY`, "" if no process has the lock."""
    lock = lock_file(_own_name(folder))
    with suppress(OSError):  # on a read-only disk nobody prepares
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
