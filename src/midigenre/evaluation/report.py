"""Scores as tables: rich ones for the console, Markdown for a README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.evaluation.baselines import NOT_BUILT

Evaluation = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The content of ``evaluation.json``: scores by label and level."""

LEVELS = ("phrase", "song")
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
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
        header = _score_header(levels)
        for i, column in enumerate(header):
            scores.add_column(escape(column), justify="right" if i > 1 else "left")
        for row in _score_rows(levels, header):
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
        header = _score_header(levels)
        parts += [
            f"**{_cell(label)}**, scores:",
            _markdown_table(header, list(_score_rows(levels, header)), n_left=2),
        ]
        if notes := list(_notes(label, levels)):
            parts.append("\n".join(f"- {_cell(note)}" for note in notes))
        parts += [
            f"**{_cell(label)}**, classes (phrases):",
            _markdown_table(CLASS_COLUMNS, list(_class_rows(levels)), n_left=1),
        ]
    return "\n\n".join(parts) + "\n"


def _class_rows(levels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, scores in levels["phrase"]["per_class"].items():
        yield (
            name,
            f"{scores['support']:,}",
            *(_number(scores[key]) for key in ("precision", "recall", "f1")),
        )


def _baseline_names(levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Baselines that have scores at some level, in the order of the file."""
    found = [
        name
        for level in LEVELS
        for name, scores in levels[level].get("baselines", {}).items()
        if scores
    ]
    return list(dict.fromkeys(found))


def _score_header(levels: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    return ("level", "metric", "n", "score", "95 % interval", *_baseline_names(levels))


def _score_rows(
    levels: Mapping[str, Mapping[str, Any]], header: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    for level in LEVELS:
        scores = levels[level]
        for metric, word in METRICS.items():
            low, high = scores["ci95"][metric]
            interval = "–" if low is None else f"{_number(low)} – {_number(high)}"
            baselines = scores.get("baselines", {})
            yield (
                level,
                word,
                f"{scores['n']:,}",
                _number(scores[metric]),
                interval,
                *(_number((baselines.get(name) or {}).get(metric)) for name in header[5:]),
            )


def _notes(label: str, levels: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must not miss: baselines that the model does not beat, and missing ones."""
    for level in LEVELS:
        for name, baseline in levels[level].get("baselines", {}).items():
            for metric, word in METRICS.items():
                ours, theirs = levels[level][metric], (baseline or {}).get(metric)
                if ours is None or theirs is None or ours > theirs:
                    continue
                verb = "equals" if ours == theirs else "beats"
                yield (
                    f"{label}, {level} level: the {name} baseline {verb} the model on {word} "
                    f"({theirs:.3f} against {ours:.3f})"
                )
    reasons: dict[str, list[str]] = {}
    for level in LEVELS:
        for name, reason in levels[level].get("baselines_missing", {}).items():
            # What no run can have is no news about this one.
            if reason != NOT_BUILT and name not in reasons.setdefault(reason, []):
                reasons[reason].append(name)
    for reason, names in reasons.items():
        yield f"{label}: no {', '.join(names)} baseline: {reason}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cell(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    for mark in "\\|*_`<[":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]], n_left: int) -> str:
    rule = ["---" if i < n_left else "---:" for i in range(len(header))]
    lines = [list(map(_cell, header)), rule, *(list(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
