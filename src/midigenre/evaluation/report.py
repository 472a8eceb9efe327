"""Scores as tables: rich ones for the console, Markdown for a README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.data.report import named
from midigenre.evaluation.markdown import cell, markdown_table
from midigenre.evaluation.within import SOURCE_MAJORITY
from midigenre.wording import plural

Evaluation = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The content of ``evaluation.json``: scores by label and level."""

LEVELS = ("phrase", "song")
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
SCORE_COLUMNS = ("level", "by", "n", "accuracy", "95 %", "macro-F1", "95 %")
CONFIDENCE_COLUMNS = ("level", "ROC-AUC", "95 %", "ECE", "calibrated", "90 %", "70 %", "50 %")
SOURCE_COLUMNS = ("source", "songs", "accuracy", "macro-F1", "told", "majority", "best baseline")
CLASS_COLUMNS = ("class", "support", "precision", "recall", "F1")


def print_scores(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints tables for each label: the classes at phrase level, and the scores of both levels.

    Where there are any: probabilities (ROC-AUC, calibration, abstention), and the scores within
    sources.

    Args:
        evaluation: The content of ``evaluation.json``.
        console: Where to print; standard error if None, for people's output belongs there.
    """
    console = console or Console(stderr=True)
    for label, levels in evaluation.items():
        classes = Table(title=f"{escape(label)}: classes (phrases)", title_justify="left")
        for i, column in enumerate(CLASS_COLUMNS):
            classes.add_column(column, justify="right" if i else "left")
        for row in _class_rows(levels):
            classes.add_row(*map(escape, row))
        scores = Table(title=f"{escape(label)}: scores", title_justify="left")
        for i, column in enumerate(SCORE_COLUMNS):
            scores.add_column(column, justify="right" if i > 1 else "left")
        for row in _score_rows(levels):
            scores.add_row(*map(escape, row))
        console.print(classes)
        console.print(scores)
        for caption, columns, rows in _further(levels):
            table = Table(
                title=f"{escape(label)}: {caption[0]}", caption=caption[1], title_justify="left",
                caption_justify="left",
            )  # fmt: skip
            for i, column in enumerate(columns):
                table.add_column(column, justify="right" if i else "left")
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
        for line in _notes(label, levels):
            console.print(f"[yellow]{escape(line)}[/yellow]")


def scores_markdown(evaluation: Evaluation) -> str:
    """The tables of :func:`print_scores` as Markdown, ending in a newline.

    Args:
        evaluation: The content of ``evaluation.json``.
    """
    parts: list[str] = []
    for label, levels in evaluation.items():
        parts += [
            f"**{cell(label)}**, scores:",
            markdown_table(SCORE_COLUMNS, list(_score_rows(levels)), n_left=2),
        ]
        for caption, columns, rows in _further(levels):
            parts += [
                f"**{cell(label)}**, {caption[0]} ({caption[1]}):",
                markdown_table(columns, rows, n_left=1),
            ]
        if notes := list(_notes(label, levels)):
            parts.append("\n".join(f"- {cell(note)}" for note in notes))
        parts += [
            f"**{cell(label)}**, classes (phrases):",
            markdown_table(CLASS_COLUMNS, list(_class_rows(levels)), n_left=1),
        ]
    return "\n\n".join(parts) + "\n"


def _class_rows(levels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    left_out = _left_out(levels)
    for name, scores in levels["phrase"]["per_class"].items():
        if name in left_out:
            continue
        yield (
            name,
            f"{scores['support']:,}",
            *(_number(scores[key]) for key in ("precision", "recall", "f1")),
        )


def _left_out(levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Classes that no phrase has and none is taken for."""
    scores = levels["phrase"]
    seen = np.asarray(scores["confusion"], np.int64)
    rows = seen.sum(0) + seen.sum(1)
    return [name for name, n in zip(scores["labels"], rows, strict=True) if not n]


def _score_rows(levels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The model and the baselines that there are, for each level."""
    for level in LEVELS:
        scores = levels[level]
        baselines = {name: b for name, b in scores.get("baselines", {}).items() if b is not None}
        model = {"model": scores}
        if kind := scores.get("song_model", {}).get("kind"):
            model = {f"model ({kind})": scores, "encoder alone": scores["components"]["encoder"]}
        for name, row in (model | baselines).items():
            columns = [(_number(row[m]), _interval(row["ci95"][m])) for m in METRICS]
            yield (
                level,
                name,
                f"{scores['n']:,}",
                *(text for column in columns for text in column),
            )


def _further(
    levels: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[tuple[str, str], tuple[str, ...], list[tuple[str, ...]]]]:
    """Title and legend, columns and rows of the tables that older evaluations lack."""
    if "abstention" in levels["song"]:
        legend = (
            "ECE as trained, and at the temperature that the validation songs give; 90 %: accuracy "
            "of the 90 % most confident answers"
        )
        rows = [_confidence_row(level, levels[level]) for level in LEVELS]
        yield ("confidence", legend), CONFIDENCE_COLUMNS, rows
    if levels["song"].get("within_source"):
        legend = (
            "songs; told: macro-F1 if only the classes that the source has in training may be "
            "guessed; majority: macro-F1 of the source's most frequent class"
        )
        rows = list(_source_rows(levels["song"]))
        yield ("within a source", legend), SOURCE_COLUMNS, rows


def _confidence_row(level: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
    after = scores["calibrated"]
    curve = {row["wanted"]: row["accuracy"] for row in scores["abstention"]["curve"]}
    return (
        level,
        _number(scores["roc_auc"]),
        _interval(scores["ci95"]["roc_auc"]),
        _number(scores["ece"]),
        _number(None if after is None else after["ece"]),
        *(_number(curve.get(wanted)) for wanted in (0.9, 0.7, 0.5)),
    )


def _source_rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each source with several classes, then all of them."""
    for name, found in (*scores["by_source"].items(), ("all", scores["within_source"])):
        baselines = dict(found["baselines"])
        majority = baselines.pop(SOURCE_MAJORITY, None)
        best, score = max(
            ((b, of["macro_f1"]) for b, of in baselines.items() if of["macro_f1"] is not None),
            key=lambda item: item[1],
            default=("", None),
        )
        yield (
            name,
            f"{found['n']:,}",
            _number(found["accuracy"]),
            _number(found["macro_f1"]),
            _number(found["macro_f1_restricted"]),
            _number(None if majority is None else majority["macro_f1"]),
            f"{_number(score)} {best}".rstrip(),
        )


def _interval(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    return "–" if low is None else f"{_number(low)}–{_number(high)}"


def _notes(label: str, levels: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must not miss: baselines that are blended in, are not beaten, are missing."""
    if names := _left_out(levels):
        yield f"{label}: no song here has {named(names)}: left out of tables and figures"
    for level in LEVELS:
        yield from _unbeaten(f"{label}, {level} level", levels[level])
    if within := levels["song"].get("within_source"):
        yield from _unbeaten(f"{label}, songs within a source", within)
    if weights := (pool := levels["song"].get("song_model", {})).get("weights"):
        shares = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        how = pool["note"] or f"weighed on {plural(pool['n_validation'], 'validation song')}"
        yield f"{label}, song level: the model is a blend of {shares}; {how}"
    reasons: dict[str, list[str]] = {}
    for level in LEVELS:
        for name, reason in levels[level].get("baselines_missing", {}).items():
            if name not in reasons.setdefault(reason, []):
                reasons[reason].append(name)
    for reason, names in reasons.items():
        yield f"{label}: no {', '.join(names)} baseline: {reason}"


def _unbeaten(where: str, scores: Mapping[str, Any]) -> Iterator[str]:
    """Baselines that the model does not clearly beat."""
    for name, baseline in scores.get("baselines", {}).items():
        for metric, word in METRICS.items():
            ours, theirs = scores[metric], (baseline or {}).get(metric)
            if baseline is None or ours is None or theirs is None:
                continue
            low, high = baseline["versus_model"][metric]["ci95"]
            if ours > theirs and low is not None and low > 0:
                continue
            verb = (
                "beats"
                if theirs > ours
                else "equals"
                if theirs == ours
                else "is not clearly beaten by"
            )
            yield (
                f"{where}: the {name} baseline {verb} the model on {word} "
                f"({theirs:.3f} against {ours:.3f}; model minus baseline "
                f"{ours - theirs:+.3f}, 95 % interval {_signed(low)} to {_signed(high)})"
            )


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
