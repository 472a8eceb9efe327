"""What noise in the music costs classifiers, baselines and a generator, by kind and strength.

    python experiments/09_noise/study.py                                # on twelve: 75 minutes
    python experiments/09_noise/study.py --name mine --kinds velocity tempo -- corpus=folder \\
        corpus.root=DIR
    python experiments/09_noise/study.py --table                        # from what is kept

For each tokenizer and seed a classifier is trained, and for each seed a generator over REMI (what
follows ``--`` goes to all of them). They are tested on their test songs without noise and with each
kind and strength. A run that has ended is not trained again, one that was stopped resumes, and what
was evaluated is kept: ``--out``. The scores are written to ``results/<name>.json`` (``--name``),
without names of songs, the curves to ``results/<name>.png``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from midigenre.commands.console import progress_bars
from midigenre.evaluation.compare import markdown_table
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, save, titles
from midigenre.evaluation.predictions import LEVELS
from midigenre.files import read_json, write_json

sys.path.append(str(Path(__file__).parents[1]))
from quietly import commit, midigenre, training

RESULTS = Path(__file__).parent / "results"
KINDS: dict[str, tuple[float, ...]] = {
    "jitter_ms": (10.0, 20.0, 40.0, 80.0),
    "wrong": (0.05, 0.1, 0.2, 0.4),
    "drop": (0.1, 0.2, 0.4, 0.6),
    "double": (0.1, 0.2, 0.4, 0.8),
    "transpose": (1, 3, 6),
    "velocity": (5.0, 10.0, 20.0, 40.0),
    "tempo": (0.5, 0.75, 1.5, 2.0),
    "program": (0.25, 0.5, 1.0),
}
NEUTRAL = ("jitter_ms", "wrong", "drop", "double", "transpose")
"""Kinds that are heard in music of one velocity, tempo and program, as that of ``twelve``."""

TITLES = {
    "jitter_ms": "Timing jitter, ms", "wrong": "Wrong notes, share", "drop": "Missing notes, share",
    "double": "Doubled notes, share", "transpose": "Transposed, semitones",
    "velocity": "Velocity, of 127", "tempo": "Tempo, factor", "program": "Other programs, share",
}  # fmt: skip
NONE = {"transpose": 0, "tempo": 1.0}
"""The strength without noise of a kind; 0.0 of the others."""

GENERATOR = "generator"
"""Name of the generator's runs."""

BASELINES = ("ngram_lr", "hist_gb")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizers", nargs="+", default=["remi", "cp", "octuple"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(NEUTRAL))
    parser.add_argument("--no-generator", action="store_true", help="classifiers alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/09_noise"))
    parser.add_argument("--name", default="twelve", help="of the results")
    parser.add_argument("--table", action="store_true", help="print what is kept")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, more = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    kept = RESULTS / f"{args.name}.json"
    if not args.table:
        runs = [(name, [f"tokenizer={name}"]) for name in args.tokenizers]
        if not args.no_generator:
            runs.append((GENERATOR, ["task=generate", "tokenizer=remi"]))
        found = study(runs, args.kinds, args.seeds, args.out, more)
        write_json(kept, found)
        save(curves(found), RESULTS / f"{args.name}.png")
    print(table(read_json(kept)))


def study(
    runs: Sequence[tuple[str, list[str]]],
    kinds: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    more: Sequence[str],
) -> dict[str, Any]:
    """Trains and tests what is missing; the scores and intervals of all of it.

    Args:
        runs: Names, and what ``midigenre train`` is told of each.
        kinds: Keys of :data:`KINDS`.
        seeds: Of the trainings.
        out: Where the runs lie.
        more: What every training is told.
    """
    cells = [("", None), *((kind, strength) for kind in kinds for strength in KINDS[kind])]
    rows: list[dict[str, Any]] = []
    total, done = len(seeds) * len(runs) * len(cells), 0
    with progress_bars() as progress:
        for seed in seeds:
            for name, overrides in runs:
                run = out / f"{name}-{seed}"
                _train(run, [*overrides, f"seed={seed}", *more])
                for kind, strength in cells:
                    row = {"run": name, "seed": seed, "kind": kind, "strength": strength}
                    for label, of in _evaluated(run, kind, strength).items():
                        if label == "tokens":
                            nats = [of["nats_per_note"], *of["ci95"]["nats_per_note"]]
                            rows.append(row | {"level": "note", "n": of["n_notes"], "nats": nats})
                            continue
                        row["label"] = label
                        rows += [row | {"level": level} | _scores(of[level]) for level in LEVELS]
                    done += 1
                    progress("tests", done, total)
    return {"commit": commit(), "settings": list(more), "rows": rows}


def _train(run: Path, overrides: Sequence[str]) -> None:
    if (given := training(run, overrides)) is not None:
        midigenre("train", *given)


def _evaluated(run: Path, kind: str, strength: float | None) -> dict[str, Any]:
    """The evaluation of a run's test songs with a noise; of earlier calls too."""
    if not kind:
        found: dict[str, Any] = read_json(run / "evaluation.json")
        return found
    there = list((run / "evaluation").glob(f"*-test-{kind}={strength:g}.json"))
    path = (
        there[0] if there else Path(midigenre("evaluate", f"run={run}", f"noise.{kind}={strength}"))
    )
    return read_json(path)  # type: ignore[no-any-return]


def _scores(of: dict[str, Any]) -> dict[str, Any]:
    """Macro-F1 of the model and the baselines, with its interval over the songs."""
    found = {"n": of["n"], "model": [of["macro_f1"], *of["ci95"]["macro_f1"]]}
    for name in BASELINES:
        if theirs := of["baselines"].get(name):
            found[name] = [theirs["macro_f1"], *theirs["ci95"]["macro_f1"]]
    return found


def _value(
    found: dict[str, Any], run: str, name: str, kind: str, strength: float | None
) -> list[float] | None:
    """A score of phrases (or notes) and its interval, mean over the seeds; None without one."""
    values = [
        row[name]
        for row in found["rows"]
        if (row["run"], row["kind"], row["strength"]) == (run, kind, strength)
        and row["level"] != "song"
        and name in row
    ]
    return np.mean(values, axis=0).tolist() if values else None


def _columns(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What has scores: run and classifier, or the generator and its nats."""
    names = list(dict.fromkeys(row["run"] for row in found["rows"]))
    classifiers = [name for name in names if name != GENERATOR]
    columns = [(run, name) for run in classifiers for name in ("model", *BASELINES)]
    return [*columns, *((GENERATOR, "nats") for _ in range(GENERATOR in names))]


def table(found: dict[str, Any]) -> str:
    """Macro-F1 of phrases, and nats per note, without noise (with intervals) and with each."""
    cells = list(dict.fromkeys((row["kind"], row["strength"]) for row in found["rows"]))
    columns = _columns(found)
    lines = []
    for kind, strength in cells:
        line = [f"{kind} {strength:g}" if kind else "none"]
        for run, name in columns:
            value = _value(found, run, name, kind, strength)
            line.append("–" if value is None else f"{value[0]:.3f}")
            if value is not None and not kind:
                line[-1] += f" [{value[1]:.3f}, {value[2]:.3f}]"
        lines.append(line)
    return markdown_table(["noise", *(f"{run}, {name}" for run, name in columns)], lines, 1)


def curves(found: dict[str, Any]) -> Figure:
    """Scores by the strength of each kind of noise: a row of models, of baselines, of nats."""
    kinds = [k for k in dict.fromkeys(row["kind"] for row in found["rows"]) if k]
    columns = _columns(found)
    runs = list(dict.fromkeys(run for run, _ in columns if run != GENERATOR))
    colors = dict(zip(runs, (BLUE, RED, "#009E73", FAINT), strict=False)) | {GENERATOR: INK}
    groups = {
        "models, macro-F1": [c for c in columns if c[1] == "model"],
        "baselines, macro-F1": [c for c in columns if c[1] in BASELINES],
        "generator, nats per note": [c for c in columns if c[1] == "nats"],
    }
    groups = {title: group for title, group in groups.items() if group}
    figure = new_figure(3.1 * len(kinds), 3.1 * len(groups))
    grid = figure.subplots(len(groups), len(kinds), sharex="col", sharey="row", squeeze=False)
    for row, (title, group) in enumerate(groups.items()):
        for axes, kind in zip(grid[row], kinds, strict=True):
            for run, name in group:
                _curve(axes, found, run, name, kind, colors[run])
            axes.tick_params(length=0, colors=INK, labelsize=9)
            axes.spines[:].set_visible(False)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            if not row:
                titles(axes, TITLES[kind], "")
        grid[row, 0].set_ylabel(title, color=INK)
        if len(group) > 1:
            grid[row, 0].legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower left")
    return figure


def _curve(axes: Axes, found: dict[str, Any], run: str, name: str, kind: str, color: str) -> None:
    """One curve, with its interval as a band."""
    points = [(NONE.get(kind, 0.0), _value(found, run, name, "", None))]
    points += [(strength, _value(found, run, name, kind, strength)) for strength in KINDS[kind]]
    there = sorted((x, value) for x, value in points if value is not None)
    if not there:
        return
    x = [place for place, _ in there]
    mean, low, high = np.array([value for _, value in there]).T
    label = run if name == "model" else f"{run}, {name}"
    dash = "--" if name == BASELINES[1] else "-"
    axes.plot(x, mean, dash, color=color, label=label, linewidth=1.6, marker="o", markersize=3.5)
    axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


if __name__ == "__main__":
    main()
