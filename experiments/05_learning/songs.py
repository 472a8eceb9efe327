"""From phrases to a song: the mean, or the blend.

    python experiments/05_learning/songs.py runs/05_learning/recipe/genre_best/*/1

Fits each way again for encoders that are trained already, on the songs that their run may use for
that, and scores the same test songs; beside them the blend of the baselines alone, to which the
encoder adds nothing. ``results/songs.json`` (``--results``) keeps the scores, without names of
songs, and how far the blend and the encoder are from each baseline.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study import spread
from versus import ENCODER, MODEL, versus

from midigenre.build import class_of, plain
from midigenre.corpora.base import no_progress
from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.blend import WITHOUT_ENCODER
from midigenre.evaluation.compare import markdown_table
from midigenre.files import read_json, write_json
from midigenre.tasks.predict import SONG_KINDS
from midigenre.trained import load_run, own_shards

RESULTS = Path(__file__).parent / "results"
SCORES = ("macro_f1", "accuracy", "nll, calibrated", "macro_f1 within a source")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run folders of classifiers of one label")
    parser.add_argument("--home", default=".", help="where shards/ lies")
    parser.add_argument("--results", default="songs", help="name of the results file")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept")
    args = parser.parse_args()
    results = RESULTS / f"{args.results}.json"
    if not args.runs and not args.table:
        parser.error("give run folders (runs/05_learning/recipe/genre_best/*/1), or --table")
    if not args.table:
        ways: dict[str, list[dict[str, float | None]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(i) for i in range(len(args.runs))]
            for run, place in zip(args.runs, places, strict=True):
                place.mkdir()
                for way, scores in scored(run, args.home, place).items():
                    ways.setdefault(way, []).append(scores)
                    print(f"{run}: {way}: {scores}", file=sys.stderr)
            (differences,) = versus(places).values()
        write_json(results, {"ways": ways, "versus": differences})
    kept = read_json(results)
    print(table(kept["ways"]))
    for who in (MODEL, ENCODER):
        found = kept["versus"][who]
        print(f"\nmacro-F1, {'blend' if who == MODEL else who} minus {WITHOUT_ENCODER}: "
              f"{found[WITHOUT_ENCODER]}")  # fmt: skip


def scored(run: str, home: str, folder: Path) -> dict[str, dict[str, float | None]]:
    """Scores of the test songs for each way from phrases to songs.

    Args:
        run: The run's folder.
        home: Where its shards lie.
        folder: Where the predictions of the blend go.

    Returns:
        For each way :data:`SCORES`: macro-F1 and accuracy from 0 to 1, NLL in nats a song; None
        where there is no such score (no source has two classes).
    """
    trained = load_run(run)
    assert trained.config is not None, f"{run} has no config.yaml"
    data = PhraseDataModule(own_shards(trained, home, None, no_progress).folder, **trained.data)
    task = plain(trained.config.task)
    found = {}
    for kind in SONG_KINDS:
        there = folder if kind == "blend" else None
        outcome = class_of(task).test(trained.model, data, there, task | {"song": kind})
        (levels,) = outcome.evaluation.values()
        found[kind] = _scores(levels["song"])
        if kind == "blend":
            found[WITHOUT_ENCODER] = _scores(levels["song"], WITHOUT_ENCODER)
    return found


def _scores(song: Mapping[str, Any], baseline: str | None = None) -> dict[str, float | None]:
    """The scores of a way, or of a baseline, of which only the answers are kept."""
    within = song["within_source"]
    if baseline is None:
        nll: float | None = song["calibrated"]["nll"]
    else:
        song, nll = song["baselines"][baseline], None
        within = within and within["baselines"][baseline]
    values = (song["macro_f1"], song["accuracy"], nll, within and within["macro_f1"])
    return dict(zip(SCORES, values, strict=True))


def table(ways: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """The scores as Markdown: their mean over the runs with its 95 % t interval, and each."""
    rows = []
    for way, runs in ways.items():
        cells = [_cell([run[name] for run in runs]) for name in SCORES]
        rows.append([way, *cells])
    return markdown_table(["", *SCORES], rows, 1)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    each = ", ".join(f"{value:.3f}" for value in known)
    return f"{spread(known)} ({each})" if known else ""


if __name__ == "__main__":
    main()
