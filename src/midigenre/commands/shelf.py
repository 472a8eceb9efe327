"""``midigenre prepare list=true`` and ``clean=...``: what lies in a home's ``shards/``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from midigenre.data.shelf import (
    BUSY,
    DAMAGED,
    FINISHED,
    IN_USE,
    IN_WORK,
    Entry,
    chosen,
    entries,
    remove,
    remove_lock_files,
)
from midigenre.errors import UserError

Ask = Callable[[str], bool]
"""Puts a question and returns whether the answer is yes."""

_STYLES = {FINISHED: "green", IN_WORK: "cyan", IN_USE: "cyan", DAMAGED: "red"}


def show(shards_root: Path, console: Console) -> None:
    """Prints a table of the shards, the latest first, and a JSON object for each on stdout.

    Args:
        shards_root: ``shards/`` of a home; it need not be there.
        console: For people.
    """
    found = sorted(entries(shards_root), key=lambda entry: -entry.modified)
    if not found:
        console.print(f"{shards_root} holds no shards", highlight=False, markup=False)
        return
    console.print(_table(found, str(shards_root)))
    for entry in found:
        print(_json(entry))


def clean(
    shards_root: Path,
    patterns: str | Sequence[str],
    console: Console,
    ask: Ask,
) -> list[Entry]:
    """Removes shards, after it has said which and was told yes.

    A JSON object for each removed one goes to stdout. Lock files whose shards are gone go too.

    Args:
        shards_root: ``shards/`` of a home.
        patterns: Names, globs, or ``unfinished``, ``old`` (other formats) and ``damaged``.
        console: For people.
        ask: See :func:`asker`.

    Returns:
        The removed ones.

    Raises:
        UserError: A pattern stands for nothing or all that it stands for is in use; or one cannot
            be removed.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found = chosen(entries(shards_root), patterns, shards_root)
    free = [entry for entry in found if entry.state not in BUSY]
    for entry in found:
        if entry.state in BUSY:
            _say(console, f"{entry.name} stays: {entry.detail}")
    if not free:
        raise UserError(f"clean={','.join(patterns)}: all of them are in use; try later")
    console.print(_table(free, "to remove"))
    many = f"these {len(free):,} folders" if len(free) > 1 else free[0].name
    size = decimal(sum(entry.bytes for entry in free))
    if not ask(f"Remove {many} ({size}) from {shards_root}?"):
        _say(console, "nothing was removed")
        return []
    removed = []
    for entry in free:
        why_not = remove(entry)
        if why_not:
            _say(console, f"{entry.name} stays: {why_not}")
            continue
        removed.append(entry)
        print(_json(entry), flush=True)
    leftovers = remove_lock_files(shards_root)
    size = decimal(sum(entry.bytes for entry in removed))
    also = f" and {len(leftovers)} leftover lock files" if leftovers else ""
    _say(console, f"removed {len(removed):,} of {len(free):,} ({size}){also}")
    return removed


def asker(console: Console, yes: bool = False) -> Ask:
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
        try:
            return input().strip().lower() in ("y", "yes")
        except EOFError:
            return False

    return ask


def _table(found: Sequence[Entry], title: str) -> Table:
    total = decimal(sum(entry.bytes for entry in found))
    table = Table(title=Text(title), show_footer=True)
    # Names are what one types after clean=: they are never cut.
    table.add_column("name", f"{len(found):,} in all", no_wrap=True, overflow="fold")
    table.add_column("songs", justify="right")
    table.add_column("size", total, justify="right")
    table.add_column("changed", justify="right")
    table.add_column("state")
    for entry in found:
        state = Text(entry.state, _STYLES.get(entry.state, "yellow"))
        if entry.detail:
            state.append(f": {entry.detail}", "default")
        songs = "" if entry.songs is None else f"{entry.songs:,}"
        age = f"{entry.age_days:,.1f} days ago"
        table.add_row(Text(entry.name), songs, decimal(entry.bytes), age, state)
    return table


def _json(entry: Entry) -> str:
    return json.dumps(
        {
            "name": entry.name,
            "path": str(entry.folder),
            "corpus": entry.corpus,
            "tokenizer": entry.tokenizer,
            "songs": entry.songs,
            "bytes": entry.bytes,
            "modified": datetime.fromtimestamp(entry.modified, UTC).isoformat(timespec="seconds"),
            "age_days": round(entry.age_days, 2),
            "state": entry.state,
            "detail": entry.detail,
        }
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
