"""Token scores against numbers computed apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from midigenre.evaluation.tokens import TokenMetrics, by_class, nats_per_note_interval
from midigenre.spec import Field, TokenSpec

SPEC = TokenSpec(
    "two",
    (
        Field("Pitch", ("PAD_None", "Ignore_None", "Pitch_60", "PitchDrum_36")),
        Field("Position", ("PAD_None", "Ignore_None", "Position_0", "Bar_None")),
    ),
    "token",
    4,
)


def test_scores_are_sums_over_all_steps() -> None:
    random = np.random.default_rng(0)
    metrics = TokenMetrics(SPEC)
    nats, hits, ids = [], [], []
    for n in (3, 40, 11):
        nats.append(random.random((n, 2)))
        hits.append(random.random((n, 2)) < 0.5)
        ids.append(random.integers(1, 4, (n, 2)))
        metrics.update(*(torch.from_numpy(x[-1]) for x in (nats, hits, ids)))
    found = {name: float(value) for name, value in metrics.compute().items()}
    said = [i != 1 for i in ids]
    all_nats, all_hits, all_ids, all_said = map(np.concatenate, (nats, hits, ids, said))
    n_notes = int((all_ids[:, 0] >= 2).sum())
    expected = {
        "loss": all_nats.sum() / 54,
        "nats_per_note": all_nats.sum() / n_notes,
        "accuracy": (all_hits & all_said).sum() / all_said.sum(),
        "step_accuracy": all_hits.all(1).mean(),
        "batch_mean_loss": np.mean([x.sum(1).mean() for x in nats]),
        "batch_mean_accuracy": np.mean(
            [(h & s).sum() / s.sum() for h, s in zip(hits, said, strict=True)]
        ),
        "Pitch/loss": all_nats[:, 0].mean(),
        "Pitch/accuracy": all_hits[all_said[:, 0], 0].mean(),
        "Position/loss": all_nats[:, 1].mean(),
        "Position/accuracy": all_hits[all_said[:, 1], 1].mean(),
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_interval_draws_songs() -> None:
    random = np.random.default_rng(1)
    notes, song = random.integers(5, 50, 60), np.repeat(np.arange(20), 3)
    nats = notes * random.normal(2.0, 0.3, 20)[song]
    low, high = nats_per_note_interval(nats, notes, song)
    assert low < nats.sum() / notes.sum() < high
    # As many songs with the same windows again and again: the songs' spread stays in it.
    many = nats_per_note_interval(np.tile(nats, 9), np.tile(notes, 9), np.tile(song, 9))
    assert many == pytest.approx([low, high], rel=1e-9)
    assert nats_per_note_interval(2.0 * notes, notes, song) == [2.0, 2.0]


def test_classes_without_windows_are_left_out() -> None:
    found = by_class(
        np.array([6.0, 2.0, 1.0]), np.array([3, 1, 0]), {"genre": ("a", "b", "c")},
        {"genre": np.array([0, 0, -1])},
    )  # fmt: skip
    assert found == {"genre": {"a": {"n": 2, "n_notes": 4, "nats_per_note": 2.0}}}
