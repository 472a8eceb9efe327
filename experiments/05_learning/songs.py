"""From phrases to a song: the mean, attention over the phrases' vectors, or the blend.

    python experiments/05_learning/songs.py runs/05_learning/recipe/genre_best/*/1

Fits each way anew for encoders that are trained already, on the songs that their run may use for
that, and scores the same test songs. ``results/songs.json`` keeps the scores, without song names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import sem, t

from midigenre.build import class_of, plain
from midigenre.commands.run_songs import own_shards
from midigenre.corpora.base import no_progress
from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.markdown import markdown_table
from midigenre.evaluation.songs import KINDS
from midigenre.files import read_json, write_json
from midigenre.trained import load_run

KEPT = Path(__file__).parent / "results" / "songs.json"
SCORES = {
    "song macro-F1": lambda song: song["macro_f1"],
    "accuracy": lambda song: song["accuracy"],
    "NLL, calibrated": lambda song: song["calibrated"]["nll"],
    "macro-F1 within a source": lambda song: song["within_source"]["macro_f1"],
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run folders of classifiers of one label")
    parser.add_argument("--home", default=".", help="where shards/ lies")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept")
    args = parser.parse_args()
    if not args.table:
        found: dict[str, list[dict[str, float]]] = {}
        for run in args.runs:
            for kind, scores in scored(run, args.home).items():
                found.setdefault(kind, []).append(scores)
                print(f"{run}: {kind}: {scores}", file=sys.stderr)
        write_json(KEPT, found)
    print(table(read_json(KEPT)))


def scored(run: str, home: str) -> dict[str, dict[str, float]]:
    """Scores of the test songs for each way from phrases to songs.

    Args:
        run: The run's folder.
        home: Where its shards lie.
    """
    trained = load_run(run)
    assert trained.config is not None, f"{run} has no config.yaml"
    data = PhraseDataModule(own_shards(trained, home, None, no_progress).folder, **trained.data)
    task = plain(trained.config.task)
    found = {}
    for kind in KINDS:
        outcome = class_of(task).test(trained.model, data, None, task | {"song": kind})
        (levels,) = outcome.evaluation.values()
        found[kind] = {name: float(score(levels["song"])) for name, score in SCORES.items()}
    return found


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The scores as Markdown: each run's, and their mean with its 95 % t interval."""
    rows = []
    for kind, runs in found.items():
        cells = []
        for name in SCORES:
            values = [run[name] for run in runs]
            spread = ""
            if len(values) > 1:
                spread = f" ± {float(sem(values) * t.ppf(0.975, len(values) - 1)):.3f}"
            each = ", ".join(f"{value:.3f}" for value in values)
            cells.append(f"{np.mean(values):.3f}{spread} ({each})")
        rows.append([kind, *cells])
    return markdown_table(["", *SCORES], rows, 1)


if __name__ == "__main__":
    main()
