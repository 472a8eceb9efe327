"""Counts a prepared corpus: songs and phrases per class and split, phrase lengths, cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.corpora.folder import in_words
from midigenre.data.phrases import PhraseLength, PhraseReader, consecutive, length_settings
from midigenre.data.shards import ShardSet
from midigenre.files import write_csv
from midigenre.spec import SPLITS, UNKNOWN
from midigenre.storage import Location
from midigenre.wording import plural

PERCENTILES = (1, 25, 50, 75, 90, 99, 100)
NONE = "(none)"
"""Stands in tables for songs without a label."""

REPORTED = ("splits", "classes", "label_tables", "phrase_tokens", "cut_by_max_tokens")
"""What :func:`phrase_report` gives besides the settings."""

_BLOCK = 4096  # songs whose phrases are in memory at once

NAMED = 5  # classes that a warning names


def phrase_report(shards: ShardSet, length: PhraseLength, max_tokens: int) -> dict[str, Any]:
    """Songs and phrases of each class and split, and how long the phrases are.

    Lengths are counted before ``max_tokens`` cuts them. Where phrases are not slices of the song's
    tokens they are estimated from the number of notes (``exact`` is then false).
    """
    reader = PhraseReader(shards, shards.tokens)
    labels = shards.label_indices()
    classes: dict[str, dict[str, dict[str, dict[str, int]]]] = {
        label: {name: {} for name in names} for label, names in shards.labels.classes.items()
    }
    totals: dict[str, dict[str, int]] = {}
    lengths = [np.zeros(0, np.int32)]
    for split in SPLITS:
        rows = shards.rows(split)
        n_phrases = 0
        of_class = {k: np.zeros(len(names), np.int64) for k, names in shards.labels.classes.items()}
        for begin in range(0, len(rows), _BLOCK):
            phrases = consecutive(shards, rows[begin : begin + _BLOCK], length)
            lengths.append(reader.lengths(phrases).astype(np.int32))
            n_phrases += len(phrases)
            for label, counts in of_class.items():
                known = labels[label][phrases.song]
                counts += np.bincount(known[known != UNKNOWN], minlength=len(counts))
        totals[split] = {"songs": len(rows), "phrases": n_phrases}
        for label, names in shards.labels.classes.items():
            for i, name in enumerate(names):
                classes[label][name][split] = {
                    "songs": int((labels[label][rows] == i).sum()),
                    "phrases": int(of_class[label][i]),
                }
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

    def axis(label: str) -> tuple[list[str], NDArray[np.int64]]:
        names = list(shards.labels.classes[label])
        missing = indices[label] == UNKNOWN
        return names + [NONE] * bool(missing.any()), np.where(missing, len(names), indices[label])

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
    for i, table in enumerate(report["label_tables"]):
        (main, other), (rows, columns) = table["labels"], table["classes"]
        songs = np.array(table["songs"])
        total, by_row, by_column = songs.sum(), songs.sum(1), songs.sum(0)
        lines = [
            {main: rows[r], other: columns[c], "songs": n, "share": _share(n, total),
             f"share_of_{main}": _share(n, by_row[r]), f"share_of_{other}": _share(n, by_column[c])}
            for (r, c), n in np.ndenumerate(songs)
        ]  # fmt: skip
        write_csv(folder / f"{label_file(table, first=i == 0)}.csv", lines, list(lines[0]))


def _share(n: int, of: int) -> float | str:
    return round(float(n / of), 4) if of else ""


def warnings(report: Mapping[str, Any]) -> list[str]:
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
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more


def print_report(report: dict[str, Any], console: Console, tables: bool = True) -> None:
    """Shows a report, with the tables of its classes or a line for all of them."""
    if tables:
        for label, classes in report["classes"].items():
            _print_classes(label, classes, report["splits"], console)
        for table in report["label_tables"]:
            _print_label_table(table, console)
    else:
        console.print(
            "songs (phrases): "
            + ", ".join(f"{split} {_songs_and_phrases(n)}" for split, n in report["splits"].items())
        )
    tokens = report["phrase_tokens"]
    percentiles = "  ".join(f"p{p} {n}" for p, n in tokens["percentiles"].items())
    about = "" if tokens["exact"] else "about "
    console.print(
        f"{tokens['tokenizer']}: {about}{tokens['mean']} steps a phrase of {_length(report)} "
        f"({percentiles})"
    )
    cut = report["cut_by_max_tokens"]
    share = 0.0 if cut["share"] is None else cut["share"]
    console.print(
        f"{plural(cut['phrases'], 'phrase')} ({share:.1%}) of more than data.max_tokens="
        f"{report['max_tokens']} steps: cut at the last whole bar that fits"
    )
    if report["refused"]:
        most = Counter(report["refused"]).most_common()
        reasons = ", ".join(f"{n} {reason}" for reason, n in most)
        console.print(f"refused: {reasons} (see refused.csv)")
    if report["left_out"]:
        console.print(f"no MIDI files by their names: {escape(in_words(report['left_out']))}")
    _print_duplicates(report["duplicates"], console)
    by_miditok = sum(report["encoded_by_miditok"].values())
    if by_miditok:
        console.print(
            f"{plural(by_miditok, 'song')} encoded by MidiTok's own, slow encoder: "
            + escape("; ".join(f"{n:,} {why}" for why, n in report["encoded_by_miditok"].items()))
        )
    for text in report["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(text)}")


def _print_classes(
    label: str,
    classes: Mapping[str, Mapping[str, Mapping[str, int]]],
    totals: Mapping[str, Mapping[str, int]],
    console: Console,
) -> None:
    table = Table(title=f"{label}: songs (phrases)", title_justify="left")
    table.add_column(label)
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name, of in classes.items():
        if any(n["songs"] for n in of.values()):  # a warning names the others
            table.add_row(escape(name), *(_songs_and_phrases(of[split]) for split in SPLITS))
    table.add_section()
    table.add_row("all", *(_songs_and_phrases(totals[split]) for split in SPLITS))
    console.print(table)


def _songs_and_phrases(n: Mapping[str, int]) -> str:
    return f"{n['songs']:,} ({n['phrases']:,})"


def _print_duplicates(about: Mapping[str, Any], console: Console) -> None:
    if not about["songs"]:
        return
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in about["by_kind"].items() if n)
    leaks = about["naive_split_leaks"]
    console.print(
        f"duplicates: {plural(about['songs'], 'song')} in {plural(about['groups'], 'group')} "
        f"({kinds}), the largest of {about['largest'][0]['songs']:,}; each stays in one split. A "
        f"split by song would leak {plural(leaks['songs'], 'song')} of validation and test"
        + (f" ({leaks['share']:.1%})" if leaks["share"] else "")
        + " (see duplicates.csv)"
    )
    n = about["label_conflicts"]["groups"]
    if n:
        console.print(f"groups with more than one label: {n:,} (see report.json)")


def _print_label_table(label_table: Mapping[str, Any], console: Console) -> None:
    (main, other), (rows, columns) = label_table["labels"], label_table["classes"]
    songs = np.array(label_table["songs"])
    some_R, some_C = np.flatnonzero(songs.sum(1)), np.flatnonzero(songs.sum(0))
    rows, columns = [rows[r] for r in some_R], [columns[c] for c in some_C]
    songs = songs[np.ix_(some_R, some_C)]
    table = Table(
        title=escape(f"{main} × {other}: songs (share of the {main})"), title_justify="left"
    )
    table.add_column(escape(main))
    for name in (*columns, "all"):
        table.add_column(escape(name), justify="right")

    def cells(counts: NDArray[np.int64]) -> list[str]:
        total = counts.sum()
        return [f"{n:,} ({n / total:.0%})" if n else "·" for n in counts] + [f"{total:,}"]

    for name, counts in zip(rows, songs, strict=True):
        table.add_row(escape(name), *cells(counts))
    table.add_section()
    table.add_row("all", *cells(songs.sum(0)))
    console.print(table)


def _length(report: dict[str, Any]) -> str:
    if report["phrase_seconds"] is not None:
        return f"about {report['phrase_seconds']:g} seconds"
    return plural(report["phrase_bars"], "bar")
