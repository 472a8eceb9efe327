"""Scores as tables for the console; ``evaluation.json`` has the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.data.report import named
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS, PIECE
from midigenre.evaluation.scores import SOURCE_MAJORITY
from midigenre.wording import plural

LevelScores = Mapping[str, Any]
"""The scores of a label at one level."""

LEGEND = "[95 % interval over {what}]; * the interval of the difference excludes 0"

FEW = 20
"""Fewer songs, or pieces, have a warning: the bootstrap cannot draw what it has not seen."""


def print_scores(
    evaluation: Mapping[str, Mapping[str, LevelScores]],
    console: Console | None = None,
    details: bool = False,
) -> None:
    """Prints for each label one table, of songs and of the model's phrases, and a few lines.

    Where the console, standard error if None, is too narrow for the table, each metric has its own.
    With ``details`` there are tables of the baselines of phrases and of pieces, of the sources and
    of the classes.
    """
    console = console or Console(stderr=True)
    for label, levels in evaluation.items():
        shown = ("song", "phrase", PIECE) if details else ("song",)
        for level in (level for level in shown if level in levels):
            title = f"{label}: scores of {level}s"
            tables = [_score_table(levels, level, METRICS)]
            n = levels[level]["n_pieces"]
            legend = LEGEND.format(what="songs" if PIECE not in levels else f"{n:,} pieces")
            columns = zip(*tables[0], strict=True)
            # rich puts a space on each side of a cell, and lines between.
            if 1 + sum(3 + max(map(len, column)) for column in columns) > console.width:
                tables = [_score_table(levels, level, [metric]) for metric in METRICS]
            for i, table in enumerate(tables, 1):
                _print(console, title, table, legend if i == len(tables) else None)
        if details:
            if levels["song"].get("within_source"):
                _print(console, f"{label}: within a source", _source_table(levels["song"]))
            _print(console, f"{label}: classes of phrases", _class_table(levels["phrase"]))
        for line in _lines(levels):
            console.print(f"{escape(label)}: {escape(line)}", highlight=False)
        for line in _warnings(levels):
            console.print(f"[yellow]{escape(f'{label}: {line}')}[/]", highlight=False)


def _print(
    console: Console, title: str, table: Sequence[Sequence[str]], legend: str | None = None
) -> None:
    """Prints a table, whose first row is the header."""
    caption = None if legend is None else escape(legend)
    shown = Table(
        title=escape(title), title_justify="left", caption=caption, caption_justify="left"
    )
    for i, column in enumerate(table[0]):
        shown.add_column(escape(column), justify="right" if i else "left")
    for row in table[1:]:
        shown.add_row(*map(escape, row))
    console.print(shown)


def _score_table(
    levels: Mapping[str, LevelScores], level: str, metrics: Iterable[str]
) -> list[list[str]]:
    """The model and its rivals at one level: each metric and the model's lead."""
    scores = levels[level]
    kind = scores.get("song_model", {}).get("kind")
    rivals = {f"model ({kind})" if kind else "model": scores}
    for other in ("phrase", PIECE) if level == "song" else ():
        if other in levels:
            rivals[f"model, of {other}s"] = {**levels[other], "versus_model": {}}
    if kind:
        rivals["encoder alone"] = scores["components"]["encoder"]
    rivals |= {name: of for name, of in scores["baselines"].items() if of is not None}
    table = [[f"n = {scores['n']:,}"], *([name] for name in rivals)]
    for metric in metrics:
        cells = [(METRICS[metric].title, "model minus it")]
        for of in rivals.values():
            lead = of.get("versus_model", {}).get(metric)
            shown = ""
            if lead is not None and lead["difference"] is not None:
                shown = f"{lead['difference']:+.3f}{_interval(lead['ci95'], '+')}"
                shown += "" if lead["ci95"][0] is None else "*" if _is_clear(lead) else " "
            cells.append((f"{_number(of[metric])}{_interval(of['ci95'][metric])}", shown))
        for row, pair in zip(table, cells, strict=True):
            row += pair
    return table


def _interval(ends: Sequence[float | None], sign: str = "") -> str:
    low, high = ends
    return "" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"


def _is_clear(lead: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference excludes 0."""
    low, high = lead["ci95"]
    return low is not None and (low > 0 or high < 0)


def _source_table(scores: LevelScores) -> list[list[str]]:
    """Each source with several classes, then all of them."""
    table = [["source", "songs", *(metric.title for metric in METRICS.values()),
              "macro-F1, restricted", "majority", "best baseline"]]  # fmt: skip
    for name, found in (*scores["by_source"].items(), ("all", scores["within_source"])):
        f1 = {base: of["macro_f1"] for base, of in found["baselines"].items()}
        majority = f1.pop(SOURCE_MAJORITY, None)
        known = {base: score for base, score in f1.items() if score is not None}
        best = max(known, key=lambda base: known[base], default="")
        table.append(
            [
                name,
                f"{found['n']:,}",
                *(_number(found[metric]) for metric in METRICS),
                _number(found["macro_f1_restricted"]),
                _number(majority),
                f"{_number(known.get(best))} {best}".rstrip(),
            ]
        )
    return table


def _class_table(scores: LevelScores) -> list[list[str]]:
    left_out, keys = _left_out(scores), ("precision", "recall", "f1")
    return [
        ["class", "support", "precision", "recall", "F1"],
        *(
            [name, f"{of['support']:,}", *(_number(of[key]) for key in keys)]
            for name, of in scores["per_class"].items()
            if name not in left_out
        ),
    ]


def _left_out(scores: LevelScores) -> list[str]:
    """Classes that are neither true nor predicted in any row."""
    seen = np.asarray(scores["confusion"], np.int64)
    rows = seen.sum(0) + seen.sum(1)
    return [name for name, n in zip(scores["labels"], rows, strict=True) if not n]


def _lines(levels: Mapping[str, LevelScores]) -> Iterator[str]:
    """The lines below the table: calibration, sources, the weights of a blend."""
    song = levels["song"]
    ece = f"ECE {_number(song['ece'])}"
    if (after := song["calibrated"]) is not None:
        ece += f", {_number(after['ece'])} at the temperature of the validation songs"
    answered = {row["wanted"]: row["accuracy"] for row in song["abstention"]["curve"]}
    yield (
        f"songs: {ece}; ROC-AUC {_number(song['roc_auc'])}; accuracy of the 70 % most confident "
        f"{_number(answered.get(0.7))}"
    )
    if within := song.get("within_source"):
        scores = ", ".join(f"{m.title} {_number(within[name])}" for name, m in METRICS.items())
        yield f"songs within a source ({plural(len(within['sources']), 'source')}): {scores}"
    pool = song.get("song_model", {})
    if pool.get("weights"):
        shares = ", ".join(f"{name} {weight:.2f}" for name, weight in pool["weights"].items())
        how = pool["note"] or f"weights fitted on {plural(pool['n_validation'], 'validation song')}"
        yield f"songs: the model is a blend of {shares}; {how}"


def _warnings(levels: Mapping[str, LevelScores]) -> Iterator[str]:
    """Warnings: too few songs, baselines that beat the model, or that are missing."""
    pieces = PIECE if PIECE in levels else "song"
    if 0 < (n := levels["song"]["n_pieces"]) < FEW:
        yield (
            f"only {plural(n, f'test {pieces}')}: intervals over so few are too narrow, and every "
            "score may be luck; protocol=crossval tests each song once and pools them"
        )
    if names := _left_out(levels["phrase"]):
        yield f"no song here has {named(names)}: left out of tables and figures"
    song = levels["song"]
    for where, scores in (("songs", song), ("songs within a source", song.get("within_source"))):
        ahead = [
            f"{name} on {metric.title}"
            for name, of in (scores or {}).get("baselines", {}).items()
            for key, metric in METRICS.items()
            if of is not None
            and _is_clear(lead := of["versus_model"][key])
            and (lead["difference"] < 0) == metric.higher_is_better
        ]
        if ahead:
            yield f"{where}: a baseline beats the model: {', '.join(ahead)}"
    reasons: dict[str, dict[str, None]] = {}
    for level in LEVELS:
        for name, reason in levels[level].get("baselines_missing", {}).items():
            reasons.setdefault(reason, {})[name] = None
    for reason, of in reasons.items():
        yield f"no {', '.join(of)} baseline: {reason}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
