"""Folds the listeners' answers into means with intervals, agreement and a figure.

    python experiments/10_listening/fold.py --key key.json --out results answers-*.json

Writes ``OUT/listening.json``, ``OUT/listening.png`` and a figure each for genre and emotion, and
prints the table. A listener who saved twice counts once, with the file that has more answers. A
file of another test, or with an answer that is none, is rejected by name, and nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from midigenre.errors import UserError
from midigenre.evaluation.compare import markdown_table
from midigenre.evaluation.figures import FAINT, INK, new_figure, save, titles
from midigenre.files import read_json, write_json

QUESTIONS = {
    "human": "Made by a human?", "genre": "Like the genre?", "emotion": "Like the emotion?",
}  # fmt: skip
N_BOOTSTRAP = 2000
COLORS = ("#D55E00", "#F0B58C", "#E2E2E2", "#8CBBD9", "#0072B2")
"""Of the answers 1 to 5: vermilion, grey in the middle, blue (Okabe and Ito 2008)."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        listener: Who gave it.
        piece: The piece's id.
        question: Key of :data:`QUESTIONS`.
        value: 1 to 5.
    """

    listener: str
    piece: str
    question: str
    value: int


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", type=Path, nargs="+")
    parser.add_argument("--key", type=Path, default=Path("key.json"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    try:
        key = _read(args.key, ("test", "pieces"))
        answers = read_answers(args.answers, key)
    except UserError as error:
        parser.error(str(error))
    if not answers:
        parser.error("these files hold no answer")
    found = summary(answers, key)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "listening.json", found)
    save(bars(answers, key, "model"), args.out / "listening.png")
    for label in ("genre", "emotion"):
        if any(label in piece for piece in key["pieces"].values()):
            save(bars(answers, key, label), args.out / f"listening-{label}.png")
    print(table(found))


def read_answers(paths: Iterable[Path], key: dict[str, Any]) -> list[Answer]:
    """The answers of all files, each listener's once.

    Raises:
        UserError: A file is of another test, or has an answer that is none.
    """
    of_listener: dict[str, list[Answer]] = {}
    for path in paths:
        about = _read(path, ("test", "listener", "answers"))
        if about.get("test") != key["test"]:
            raise UserError(f"{path}: of test {about.get('test')}, and the key is of {key['test']}")
        own = []
        for piece, given in about["answers"].items():
            if piece not in key["pieces"]:
                raise UserError(f"{path}: piece {piece} is not in the key")
            for question, value in given.items():
                if question not in QUESTIONS or value not in (1, 2, 3, 4, 5):
                    raise UserError(f"{path}: piece {piece}: {question}={value!r} is no answer")
                own.append(Answer(str(about["listener"]), piece, question, int(value)))
        before = of_listener.get(str(about["listener"]), [])
        of_listener[str(about["listener"])] = max(before, own, key=len)
    return [answer for own in of_listener.values() for answer in own]


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON file with these keys.

    Raises:
        UserError: It is not there, damaged, or another file.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(f"{path} is another file: it has no {' and '.join(missing)}")
    return found


def summary(answers: Sequence[Answer], key: dict[str, Any]) -> dict[str, Any]:
    """For each question the agreement, and for each model, genre and emotion mean and interval."""
    found: dict[str, Any] = {"listeners": len({a.listener for a in answers}), "questions": {}}
    for question in QUESTIONS:
        values_LP, pieces = _matrix(answers, question)
        if not pieces:
            continue
        groups: dict[str, dict[str, Any]] = {}
        for by in ("model", "genre", "emotion"):
            names = [key["pieces"][piece].get(by) for piece in pieces]
            for name in dict.fromkeys(filter(None, names)):
                columns = [i for i, of in enumerate(names) if of == name]
                groups.setdefault(by, {})[name] = _mean(values_LP[:, columns])
        found["questions"][question] = {"alpha": agreement(values_LP), "by": groups}
    return found


def _matrix(answers: Sequence[Answer], question: str) -> tuple[NDArray[np.float64], list[str]]:
    """The answers to a question, NaN where there is none: shape (listeners, pieces)."""
    own = [a for a in answers if a.question == question]
    listeners = sorted({a.listener for a in own})
    pieces = sorted({a.piece for a in own})
    values_LP = np.full((len(listeners), len(pieces)), np.nan)
    for a in own:
        values_LP[listeners.index(a.listener), pieces.index(a.piece)] = a.value
    return values_LP, pieces


def agreement(values_LP: NDArray[np.float64]) -> float | None:
    """Krippendorff's alpha of ordinal answers; None where no piece was answered differently twice.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    several = (~np.isnan(values_LP)).sum(0) > 1
    if len(np.unique(values_LP[:, several][~np.isnan(values_LP[:, several])])) < 2:
        return None
    return float(krippendorff.alpha(values_LP, level_of_measurement="ordinal"))


def _mean(values_LP: NDArray[np.float64]) -> dict[str, Any]:
    """Mean and 95 % interval, by drawing listeners and pieces again, both (Owen 2007).

    Answers of one listener are alike, and those to one piece: neither alone is independent.
    """
    there_LP = ~np.isnan(values_LP)
    random = np.random.default_rng(0)
    n_listeners, n_pieces = values_LP.shape
    weights_RL = random.multinomial(n_listeners, [1 / n_listeners] * n_listeners, N_BOOTSTRAP)
    weights_RP = random.multinomial(n_pieces, [1 / n_pieces] * n_pieces, N_BOOTSTRAP)
    sums_R = np.einsum("rl,lp,rp->r", weights_RL, np.nan_to_num(values_LP), weights_RP)
    counts_R = np.einsum("rl,lp,rp->r", weights_RL, there_LP.astype(float), weights_RP)
    low, high = np.percentile((sums_R / np.maximum(counts_R, 1e-9))[counts_R > 0], (2.5, 97.5))
    return {
        "mean": float(np.nanmean(values_LP)),
        "ci95": [float(low), float(high)],
        "answers": int(there_LP.sum()),
        "pieces": int(there_LP.any(0).sum()),
        "counts": [int((values_LP == value).sum()) for value in range(1, 6)],
    }


def table(found: dict[str, Any]) -> str:
    """Means with intervals: a row for each model, genre and emotion, a column for each question."""
    questions = found["questions"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for question, of in questions.items():
        for by, groups in of["by"].items():
            for name, one in groups.items():
                low, high = one["ci95"]
                shown = f"{one['mean']:.2f} [{low:.2f}, {high:.2f}]"
                rows.setdefault((by, name), {})[question] = shown
    header = ["", *(f"{QUESTIONS[question]} (1–5)" for question in questions)]
    lines = [
        [f"{by}: {name}", *(cells.get(question, "–") for question in questions)]
        for (by, name), cells in sorted(rows.items(), key=lambda item: item[0][0] != "model")
    ]
    alphas = [questions[question]["alpha"] for question in questions]
    lines.append(["Krippendorff's alpha", *("–" if a is None else f"{a:.2f}" for a in alphas)])
    return f"{found['listeners']} listeners\n\n{markdown_table(header, lines, 1)}"


def bars(answers: Sequence[Answer], key: dict[str, Any], by: str) -> Figure:
    """Shares of the answers as diverging bars, the middle of answer 3 at 0: models by question."""
    of_model: dict[str, dict[str, list[int]]] = {}
    for a in answers:
        piece = key["pieces"][a.piece]
        if by in piece:
            name = piece["model"] if by == "model" else f"{piece[by]}, {piece['model']}"
            counts = of_model.setdefault(a.question, {}).setdefault(name, [0] * 5)
            counts[a.value - 1] += 1
    questions = [q for q in QUESTIONS if q in of_model]
    names = sorted({name for of in of_model.values() for name in of})
    figure = new_figure(4.6 * len(questions) + 1, 1.7 + 0.42 * len(names))
    for place, question in enumerate(questions):
        axes = figure.add_subplot(1, len(questions), place + 1)
        for row, name in enumerate(names):
            counts = np.array(of_model[question].get(name, [0] * 5), float)
            if not counts.sum():
                continue
            shares = counts / counts.sum()
            left = -(shares[0] + shares[1] + shares[2] / 2)
            for value, share in enumerate(shares):
                label = str(value + 1) if not (row or place) else None
                axes.barh(row, share, left=left, color=COLORS[value], height=0.7, label=label)
                if share >= 0.08:
                    color = "white" if value in (0, 4) else INK
                    axes.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center",
                              fontsize=8, color=color)  # fmt: skip
                left += share
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.set_xlim(-1, 1)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xticks([])
        axes.set_yticks(range(len(names)), names if not place else [""] * len(names))
        axes.tick_params(length=0, colors=INK, labelsize=9)
        axes.spines[:].set_visible(False)
        titles(axes, QUESTIONS[question], "1 not at all, 5 surely")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9, labelcolor=INK)
    return figure


if __name__ == "__main__":
    main()
