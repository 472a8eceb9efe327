"""How far several seeds of a configuration are from each baseline; intervals over songs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.evaluation.bootstrap import score
from midigenre.files import read_csv

Texts = NDArray[np.str_]
Interval = list[float | None]

MODEL, ENCODER = "model", "encoder"
"""Who is compared: what a run answers, and its encoder alone where it answers with a blend."""


def versus(runs: Sequence[Path]) -> dict[str, Any]:
    """Song macro-F1 minus each baseline's, mean over the runs, as 95 % intervals over songs.

    Songs are drawn, seeds are not: the intervals say how far other songs could move the mean of
    these trainings. Baselines do not depend on a run's seed but for the draws of their own fit: the
    first run's count.

    Args:
        runs: Run folders of one configuration with different seeds, which test the same songs.

    Returns:
        For each label, ``model`` and, where there is one, ``encoder``: for each baseline
        ``overall`` and ``within_source``, the latter None where no source has two classes, or the
        corpus names none.

    Raises:
        ValueError: The runs test other songs.
    """
    tables = [read_csv(run / "predictions_songs.csv") for run in runs]
    found: dict[str, Any] = {}
    for label in [c.removesuffix("_model") for c in tables[0][0] if c.endswith("_model")]:
        rows = [[row for row in of if row[label]] for of in tables]
        for run, of in zip(runs, rows, strict=True):
            if [row["song_id"] for row in of] != [row["song_id"] for row in rows[0]]:
                raise ValueError(f"{run} tests other songs than {runs[0]}: compare the same split")
        truth = np.array([row[label] for row in rows[0]])
        named = [row.get("source", "") for row in rows[0]]
        sources = np.array(named) if any(named) else None
        said = {
            column.removeprefix(f"{label}_"): [np.array([row[column] for row in of]) for of in rows]
            for column in rows[0][0]
            if column.startswith(f"{label}_") and "_log_prob_" not in column
        }
        baselines = [name for name in said if name not in (MODEL, ENCODER)]
        found[label] = {
            who: {
                name: {
                    "overall": _difference(truth, said[who], said[name][0], None),
                    "within_source": None
                    if sources is None
                    else _difference(truth, said[who], said[name][0], sources),
                }
                for name in baselines
            }
            for who in (MODEL, ENCODER)
            if who in said
        }
    return found


def _difference(
    truth_N: Texts, ours: Sequence[Texts], theirs_N: Texts, source_N: Texts | None
) -> Interval | None:
    """Interval of the mean of ours minus theirs; with sources as ``by_source`` scores them."""
    if source_N is not None:
        several = [s for s in np.unique(source_N) if len(set(truth_N[source_N == s])) > 1]
        if not several:
            return None
        keep = np.isin(source_N, several)
        truth_N, theirs_N, source_N = truth_N[keep], theirs_N[keep], source_N[keep]
        ours = [of[keep] for of in ours]
    group_N = None if source_N is None else np.unique(source_N, return_inverse=True)[1]
    classes, codes = np.unique(np.stack([truth_N, theirs_N, *ours]), return_inverse=True)
    truth, *predicted = codes.reshape(2 + len(ours), -1)
    scores = score(truth, predicted, np.arange(len(truth)), len(classes), group_N=group_N)
    found: Interval = scores.lead("macro_f1", slice(1, None), [0])["ci95"]
    return found
