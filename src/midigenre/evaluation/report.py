"""Scores as tables: rich ones for the console, Markdown for a README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.evaluation.markdown import cell, markdown_table

Evaluation = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The content of ``evaluation.json``: scores by label and level."""

LEVELS = ("phrase", "song")
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
SCORE_COLUMNS = ("level", "by", "n", "accuracy", "95 %", "macro-F1", "95 %")
CLASS_COLUMNS = ("class", "support", "precision", "recall", "F1")


def print_scores(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints two tables for each label: the classes at phrase level, and the scores of both levels.

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
        if notes := list(_notes(label, levels)):
            parts.append("\n".join(f"- {cell(note)}" for note in notes))
        parts += [
            f"**{cell(label)}**, classes (phrases):",
            markdown_table(CLASS_COLUMNS, list(_class_rows(levels)), n_left=1),
        ]
    return "\n\n".join(parts) + "\n"


def _class_rows(levels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, scores in levels["phrase"]["per_class"].items():
        yield (
            name,
            f"{scores['support']:,}",
            *(_number(scores[key]) for key in ("precision", "recall", "f1")),
        )


def _score_rows(levels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The model and the baselines that there are, for each level."""
    for level in LEVELS:
        scores = levels[level]
        baselines = {name: b for name, b in scores.get("baselines", {}).items() if b is not None}
        for name, row in ({"model": scores} | baselines).items():
            columns = [(_number(row[m]), _interval(row["ci95"][m])) for m in METRICS]
            yield (
                level,
                name,
                f"{scores['n']:,}",
                *(text for column in columns for text in column),
            )


def _interval(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    return "–" if low is None else f"{_number(low)}–{_number(high)}"


def _notes(label: str, levels: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must not miss: baselines that the model does not beat, and missing ones."""
    for level in LEVELS:
        for name, baseline in levels[level].get("baselines", {}).items():
            for metric, word in METRICS.items():
                ours, theirs = levels[level][metric], (baseline or {}).get(metric)
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
                    f"{label}, {level} level: the {name} baseline {verb} the model on {word} "
                    f"({theirs:.3f} against {ours:.3f}; model minus baseline "
                    f"{ours - theirs:+.3f}, 95 % interval {_signed(low)} to {_signed(high)})"
                )
    reasons: dict[str, list[str]] = {}
    for level in LEVELS:
        for name, reason in levels[level].get("baselines_missing", {}).items():
            if name not in reasons.setdefault(reason, []):
                reasons[reason].append(name)
    for reason, names in reasons.items():
        yield f"{label}: no {', '.join(names)} baseline: {reason}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
