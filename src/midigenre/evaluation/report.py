"""Scores as tables for the console; whatever is left out stands in ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.data.report import named
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS
from midigenre.evaluation.scores import SOURCE_MAJORITY
from midigenre.wording import plural

Scores = Mapping[str, Any]
Evaluation = Mapping[str, Mapping[str, Scores]]
"""The content of ``evaluation.json``: scores by label and level."""

LEGEND = "[95 % interval over songs]; * the interval of the difference excludes 0"


def print_scores(
    evaluation: Evaluation, console: Console | None = None, details: bool = False
) -> None:
    """Prints for each label one table, of songs and of the model's phrases, and a few lines.

    Args:
        evaluation: The content of ``evaluation.json``.
        console: Where to print; standard error if None, for people's output belongs there.
        details: Whether to print tables of the phrases' baselines, of the sources and of the
            classes, too.
    """
    console = console or Console(stderr=True)
    for label, levels in evaluation.items():
        _print(console, f"{label}: scores of songs", *_score_table(levels, "song"), LEGEND)
        if details:
            _print(console, f"{label}: scores of phrases", *_score_table(levels, "phrase"), LEGEND)
            if levels["song"].get("within_source"):
                _print(console, f"{label}: within a source", *_source_table(levels["song"]))
            _print(console, f"{label}: classes of phrases", *_class_table(levels["phrase"]))
        for line in _lines(levels):
            console.print(f"{escape(label)}: {escape(line)}", highlight=False)
        for line in _warnings(levels):
            console.print(f"[yellow]{escape(f'{label}: {line}')}[/]", highlight=False)


def _print(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    legend: str | None = None,
) -> None:
    caption = None if legend is None else escape(legend)
    table = Table(
        title=escape(title), title_justify="left", caption=caption, caption_justify="left"
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _score_table(levels: Mapping[str, Scores], level: str) -> tuple[list[str], list[list[str]]]:
    """The model and its rivals at one level, each metric and the model's lead in it."""
    scores = levels[level]
    kind = scores.get("song_model", {}).get("kind")
    rows = {f"model ({kind})" if kind else "model": scores}
    if level == "song":
        rows["model, of phrases"] = {**levels["phrase"], "versus_model": {}}
    if kind:
        rows["encoder alone"] = scores["components"]["encoder"]
    rows |= {name: of for name, of in scores.get("baselines", {}).items() if of is not None}
    columns = [f"n = {scores['n']:,}"]
    for metric in METRICS.values():
        columns += [metric.title, "model minus it"]
    return columns, [
        [name, *(cell for metric in METRICS for cell in _cells(of, metric))]
        for name, of in rows.items()
    ]


def _cells(scores: Scores, metric: str) -> tuple[str, str]:
    """A score with its interval, and the model's lead over it."""
    low, high = scores["ci95"][metric]
    shown = _number(scores[metric])
    if low is not None:
        shown += f" [{low:.3f}, {high:.3f}]"
    versus = scores.get("versus_model", {}).get(metric)
    if versus is None or versus["difference"] is None:
        return shown, ""
    low, high = versus["ci95"]
    lead = f"{versus['difference']:+.3f}"
    if low is not None:
        lead += f" [{low:+.3f}, {high:+.3f}]" + ("*" if _is_clear(versus) else " ")
    return shown, lead


def _is_clear(versus: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference excludes 0."""
    low, high = versus["ci95"]
    return low is not None and (low > 0 or high < 0)


def _source_table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Each source with several classes, then all of them."""
    columns = ["source", "songs", *(metric.title for metric in METRICS.values()),
               "macro-F1, restricted", "majority", "best baseline"]  # fmt: skip
    rows = []
    for name, found in (*scores["by_source"].items(), ("all", scores["within_source"])):
        baselines = dict(found["baselines"])
        majority = baselines.pop(SOURCE_MAJORITY, None)
        best, score = max(
            ((b, of["macro_f1"]) for b, of in baselines.items() if of["macro_f1"] is not None),
            key=lambda item: item[1],
            default=("", None),
        )
        rows.append(
            [
                name,
                f"{found['n']:,}",
                *(_number(found[metric]) for metric in METRICS),
                _number(found["macro_f1_restricted"]),
                _number(None if majority is None else majority["macro_f1"]),
                f"{_number(score)} {best}".rstrip(),
            ]
        )
    return columns, rows


def _class_table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    left_out = _left_out(scores)
    keys = ("precision", "recall", "f1")
    return ["class", "support", "precision", "recall", "F1"], [
        [name, f"{of['support']:,}", *(_number(of[key]) for key in keys)]
        for name, of in scores["per_class"].items()
        if name not in left_out
    ]


def _left_out(scores: Scores) -> list[str]:
    """Classes that no row has and none is taken for."""
    seen = np.asarray(scores["confusion"], np.int64)
    rows = seen.sum(0) + seen.sum(1)
    return [name for name, n in zip(scores["labels"], rows, strict=True) if not n]


def _lines(levels: Mapping[str, Scores]) -> Iterator[str]:
    """What stands below the table: calibration, sources, the weights of a blend."""
    song = levels["song"]
    after, curve = song["calibrated"], song["abstention"]["curve"]
    ece = f"ECE {_number(song['ece'])}"
    if after is not None:
        ece += f", {_number(after['ece'])} at the temperature of the validation songs"
    answered = {row["wanted"]: row["accuracy"] for row in curve}
    yield (
        f"songs: {ece}; ROC-AUC {_number(song['roc_auc'])}; accuracy of the 70 % most confident "
        f"{_number(answered.get(0.7))}"
    )
    if within := song.get("within_source"):
        scores = ", ".join(f"{m.title} {_number(within[name])}" for name, m in METRICS.items())
        yield f"songs within a source ({plural(len(within['sources']), 'source')}): {scores}"
    if weights := (pool := song.get("song_model", {})).get("weights"):
        shares = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        how = pool["note"] or f"weighed on {plural(pool['n_validation'], 'validation song')}"
        yield f"songs: the model is a blend of {shares}; {how}"


def _warnings(levels: Mapping[str, Scores]) -> Iterator[str]:
    """What a reader must not miss: baselines that beat the model, or that are missing."""
    if names := _left_out(levels["phrase"]):
        yield f"no song here has {named(names)}: left out of tables and figures"
    song = levels["song"]
    for where, scores in (("songs", song), ("songs within a source", song.get("within_source"))):
        ahead = [
            f"{name} on {METRICS[metric].title}"
            for name, of in (scores or {}).get("baselines", {}).items()
            for metric in METRICS
            if of is not None and _beats(of["versus_model"][metric], metric)
        ]
        if ahead:
            yield f"{where}: a baseline beats the model: {', '.join(ahead)}"
    reasons: dict[str, dict[str, None]] = {}
    for level in LEVELS:
        for name, reason in levels[level].get("baselines_missing", {}).items():
            reasons.setdefault(reason, {})[name] = None
    for reason, of in reasons.items():
        yield f"no {', '.join(of)} baseline: {reason}"


def _beats(versus: Mapping[str, Any], metric: str) -> bool:
    """Whether a baseline is clearly better than the model."""
    worse = (versus["difference"] or 0) < 0
    return _is_clear(versus) and worse == METRICS[metric].higher_is_better


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
