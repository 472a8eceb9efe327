"""Counts a prepared corpus: songs and phrases per class and split, phrase lengths, cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.arrays import Longs
from midigenre.corpora.folder import in_words
from midigenre.data.phrases import PhraseLength, PhraseReader, consecutive, length_settings
from midigenre.data.shards import ShardSet
from midigenre.files import write_csv
from midigenre.spec import SPLITS, UNKNOWN
from midigenre.storage import Location
from midigenre.wording import first_few, plural

PERCENTILES = (1, 25, 50, 75, 90, 99, 100)
NONE = "(none)"
"""Name in tables for songs without a label."""

REPORTED = ("splits", "classes", "label_tables", "phrase_tokens", "cut_by_max_tokens")
"""What :func:`phrase_report` gives besides the settings."""

_BLOCK = 4096  # songs whose phrases are in memory at once


def phrase_report(shards: ShardSet, length: PhraseLength, max_tokens: int) -> dict[str, Any]:
    """Songs and phrases of each class and split, and how long the phrases are.

    Lengths are counted before ``max_tokens`` cuts them. Where phrases are not slices of the song's
    tokens they are estimated from the number of notes (``exact`` is then false).
    """
    reader = PhraseReader(shards, shards.tokens)
    labels, names = shards.label_indices(), shards.labels.classes
    classes: dict[str, dict[str, Any]] = {k: {name: {} for name in of} for k, of in names.items()}
    totals = {}
    lengths = [np.zeros(0, np.int32)]
    for split in SPLITS:
        rows = shards.rows(split)
        phrases_S = np.zeros(len(shards), np.int64)
        for begin in range(0, len(rows), _BLOCK):
            phrases = consecutive(shards, rows[begin : begin + _BLOCK], length)
            lengths.append(reader.lengths(phrases).astype(np.int32))
            phrases_S += np.bincount(phrases.song, minlength=len(shards))
        totals[split] = {"songs": len(rows), "phrases": int(phrases_S.sum())}
        for label, of in names.items():
            for i, name in enumerate(of):
                here = rows[labels[label][rows] == i]
                n_phrases = int(phrases_S[here].sum())
                classes[label][name][split] = {"songs": len(here), "phrases": n_phrases}
    steps = np.concatenate(lengths)
    cut = int((steps > max_tokens).sum())
    return {
        **length_settings(length),
        "max_tokens": max_tokens,
        "splits": totals,
        "classes": classes,
        "label_tables": label_tables(shards),
        "phrase_tokens": {
            "tokenizer": shards.tokens.name,
            "exact": shards.tokens.bars != "none",
            "mean": round(float(steps.mean()), 1) if len(steps) else None,
            "percentiles": {
                str(p): int(np.percentile(steps, p)) for p in PERCENTILES if len(steps)
            },
        },
        "cut_by_max_tokens": {
            "phrases": cut,
            "share": round(cut / len(steps), 4) if len(steps) else None,
        },
    }


def label_tables(shards: ShardSet) -> list[dict[str, Any]]:
    """Songs of each class of the main label and each class of another one.

    Returns:
        For each further label ``labels`` (the two), ``classes`` (the names of each; :data:`NONE`
        comes last where songs lack the label) and ``songs`` (counts, a row for each class of the
        main label). Empty for a corpus with one label.
    """
    indices = shards.label_indices()
    labels = [label for label, names in shards.labels.classes.items() if names]

    def axis(label: str) -> tuple[list[str], Longs]:
        names = list(shards.labels.classes[label])
        missing = indices[label] == UNKNOWN
        more = [NONE] if missing.any() else []
        return names + more, np.where(missing, len(names), indices[label])

    tables = []
    for other in labels[1:]:
        (rows, row), (columns, column) = axis(labels[0]), axis(other)
        songs = np.zeros((len(rows), len(columns)), np.int64)
        np.add.at(songs, (row, column), 1)
        tables.append(
            {"labels": [labels[0], other], "classes": [rows, columns], "songs": songs.tolist()}
        )
    return tables


def label_file(table: Mapping[str, Any], first: bool) -> str:
    """Name, without its ending, of the files that hold a table of :func:`label_tables`."""
    return "labels" if first else f"labels-{table['labels'][1]}"


def write_label_tables(report: Mapping[str, Any], folder: Location) -> None:
    """Writes ``labels.csv`` where there are two labels, and one more for each further label.

    A row is a class of each label, with the number of songs and their share of all songs and of the
    songs of either class.
    """

    def share(n: int, of: int) -> float | str:
        return round(float(n / of), 4) if of else ""

    for i, table in enumerate(report["label_tables"]):
        (main, other), (rows, columns) = table["labels"], table["classes"]
        songs = np.array(table["songs"])
        total, by_row, by_column = songs.sum(), songs.sum(1), songs.sum(0)
        lines = [
            {main: rows[r], other: columns[c], "songs": n, "share": share(n, total),
             f"share_of_{main}": share(n, by_row[r]), f"share_of_{other}": share(n, by_column[c])}
            for (r, c), n in np.ndenumerate(songs)
        ]  # fmt: skip
        write_csv(folder / f"{label_file(table, first=i == 0)}.csv", lines, list(lines[0]))


def report_warnings(report: Mapping[str, Any]) -> list[str]:
    """Splits without a song, and classes that some split lacks."""
    empty = [split for split, n in report["splits"].items() if n["songs"] == 0]
    found = [f"no song is in {' or '.join(empty)}"] if empty else []
    for label, classes in report["classes"].items():
        if not classes:
            found.append(f"no song has {label}")
        lacking: dict[str, list[str]] = {}
        for name, splits in classes.items():
            where = [s for s, n in splits.items() if n["songs"] == 0 and s not in empty]
            if all(n["songs"] == 0 for n in splits.values()):
                lacking.setdefault("at all", []).append(name)
            elif where:
                lacking.setdefault(f"in {' and '.join(where)}", []).append(name)
        for place, names in lacking.items():
            has = "has" if len(names) == 1 else "have"
            found.append(f"{label} {named(names)} {has} no song {place}")
    return found


def named(names: Sequence[str]) -> str:
    """The first few of some classes, and how many more there are."""
    return first_few([repr(name) for name in names])


def print_report(report: dict[str, Any], console: Console, tables: bool = True) -> None:
    """Shows a report, with the tables of its classes or a line for all of them."""
    if tables:
        _print_class_tables(report, console)
    else:
        counts = [f"{split} {_songs_and_phrases(n)}" for split, n in report["splits"].items()]
        console.print(f"songs (phrases): {', '.join(counts)}")
    tokens, bars, seconds = (report[k] for k in ("phrase_tokens", "phrase_bars", "phrase_seconds"))
    length = f"about {seconds:g} seconds" if seconds is not None else plural(bars, "bar")
    percentiles = "  ".join(f"p{p} {n}" for p, n in tokens["percentiles"].items())
    console.print(
        f"{tokens['tokenizer']}: {'' if tokens['exact'] else 'about '}{tokens['mean']} steps per "
        f"phrase of {length} ({percentiles})"
    )
    cut = report["cut_by_max_tokens"]
    console.print(
        f"{plural(cut['phrases'], 'phrase')} ({cut['share'] or 0:.1%}) of more than "
        f"data.max_tokens={report['max_tokens']} steps: cut at the last whole bar that fits"
    )
    if report["refused"]:
        most = Counter(report["refused"]).most_common()
        reasons = ", ".join(f"{n} {reason}" for reason, n in most)
        console.print(f"rejected: {reasons} (see refused.csv)")
    if report["left_out"]:
        console.print(f"no MIDI files by their names: {escape(in_words(report['left_out']))}")
    if report["duplicates"]["songs"]:
        _print_duplicates(report["duplicates"], console)
    if by_miditok := report["encoded_by_miditok"]:
        reasons = escape("; ".join(f"{n:,} {why}" for why, n in by_miditok.items()))
        songs = plural(sum(by_miditok.values()), "song")
        console.print(f"{songs} encoded by MidiTok's own, slow encoder: {reasons}")
    for text in report["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(text)}")


def _print_duplicates(about: Mapping[str, Any], console: Console) -> None:
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in about["by_kind"].items() if n)
    leaks = about["leaks"]
    leak = (
        f"; each stays in one split. A split by song would leak {plural(leaks['songs'], 'song')} "
        "of validation and test" + (f" ({leaks['share']:.1%})" if leaks["share"] else "")
    )
    console.print(
        f"duplicates: {plural(about['songs'], 'song')} in {plural(about['groups'], 'group')} "
        f"({kinds}), the largest of {about['largest'][0]['songs']:,}"
        # A warning says what given splits leak.
        f"{'' if about['given_splits'] else leak} (see duplicates.csv)"
    )
    if n := about["label_conflicts"]["groups"]:
        console.print(f"groups with more than one label: {n:,} (see report.json)")


def _print_class_tables(report: Mapping[str, Any], console: Console) -> None:
    """Songs and phrases of each class and split, then the classes of two labels."""
    for label, classes in report["classes"].items():
        lines = {
            name: [_songs_and_phrases(of[split]) for split in SPLITS]
            for name, of in classes.items()
            if any(n["songs"] for n in of.values())  # a warning names the others
        }
        everything = [_songs_and_phrases(report["splits"][split]) for split in SPLITS]
        _print_table(f"{label}: songs (phrases)", label, SPLITS, lines, everything, console)
    for table in report["label_tables"]:
        (main, other), (rows, columns) = table["labels"], table["classes"]
        songs = np.array(table["songs"])
        some_R, some_C = np.flatnonzero(songs.sum(1)), np.flatnonzero(songs.sum(0))
        lines = {rows[r]: _shares(songs[r, some_C]) for r in some_R}
        title = f"{main} × {other}: songs (share of the {main})"
        header = [*(columns[c] for c in some_C), "all"]
        _print_table(title, main, header, lines, _shares(songs[:, some_C].sum(0)), console)


def _songs_and_phrases(n: Mapping[str, int]) -> str:
    return f"{n['songs']:,} ({n['phrases']:,})"


def _shares(counts: Longs) -> list[str]:
    total = counts.sum()
    return [f"{n:,} ({n / total:.0%})" if n else "·" for n in counts] + [f"{total:,}"]


def _print_table(
    title: str,
    corner: str,
    header: Iterable[str],
    lines: Mapping[str, Sequence[str]],
    everything: Sequence[str],
    console: Console,
) -> None:
    table = Table(title=escape(title), title_justify="left")
    table.add_column(escape(corner))
    for name in header:
        table.add_column(escape(name), justify="right")
    for name, cells in lines.items():
        table.add_row(escape(name), *cells)
    table.add_section()
    table.add_row("all", *everything)
    console.print(table)
