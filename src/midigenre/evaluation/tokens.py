"""How well a generator predicts music: nats and hits of its tokens.

Losses a token cannot be compared between tokenizers, which need different numbers of tokens for the
same music; nats *a note* can: all tokenizers write the same notes.

N packed steps   F fields
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from midigenre.evaluation.bootstrap import N_BOOTSTRAP, interval
from midigenre.evaluation.metrics import plain
from midigenre.spec import TokenSpec

NOTE_TYPES = ("Pitch", "PitchDrum", "NoteOn", "DrumOn")
"""Token types that stand for one note each, in any vocabulary."""


class TokenCounts(nn.Module):
    """Which tokens are notes, and which say nothing.

    Args:
        spec: The vocabulary.
    """

    def __init__(self, spec: TokenSpec) -> None:
        super().__init__()
        self.n_fields = len(spec.fields)
        for i, field in enumerate(spec.fields):
            note_V = torch.from_numpy(field.is_type(*NOTE_TYPES))
            said_V = torch.from_numpy(~field.is_type("Ignore"))
            self.register_buffer(f"note_{i}", note_V, persistent=False)
            self.register_buffer(f"said_{i}", said_V, persistent=False)

    def notes_N(self, ids_NF: Tensor) -> Tensor:
        """Which steps are notes, bool, shape (N,)."""
        return self._look(ids_NF, "note").any(1)

    def said_NF(self, ids_NF: Tensor) -> Tensor:
        """Which tokens are more than the filling of a compound step, bool, shape (N, F)."""
        return self._look(ids_NF, "said")

    def _look(self, ids_NF: Tensor, what: str) -> Tensor:
        columns = [getattr(self, f"{what}_{i}")[ids_NF[:, i]] for i in range(self.n_fields)]
        return torch.stack(columns, 1)


class TokenMetrics(Metric):
    """Loss and accuracy over all tokens; only sums live on the device.

    ``compute()`` gives ``loss`` (nats a step, summed over its fields), ``nats_per_note``,
    ``accuracy`` (share of the tokens foretold; the ``Ignore`` that fills compound steps does not
    count), ``step_accuracy`` (all fields of a step right), ``batch_mean_loss`` and
    ``batch_mean_accuracy`` (means over the batches, whatever they hold, as the slides' system has
    them) and, with several fields, ``<field>/loss`` and ``<field>/accuracy``.

    Args:
        spec: The vocabulary.
    """

    nats_F: Tensor
    hits_F: Tensor
    said_F: Tensor
    counts: Tensor  # steps, notes, steps all right
    batches: Tensor  # sum of losses, of accuracies, number

    def __init__(self, spec: TokenSpec) -> None:
        super().__init__()
        self.names = tuple(field.name for field in spec.fields)
        self.tokens = TokenCounts(spec)
        F = len(self.names)
        for name, size in (("nats_F", F), ("hits_F", F), ("said_F", F), ("counts", 3),
                           ("batches", 3)):  # fmt: skip
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats_NF: Tensor, hits_NF: Tensor, ids_NF: Tensor) -> None:
        """Adds a batch.

        Args:
            nats_NF: Cross-entropy of each token, shape (N, F).
            hits_NF: Which were foretold, bool, shape (N, F).
            ids_NF: The tokens, int64, shape (N, F).
        """
        said_NF = self.tokens.said_NF(ids_NF)
        hits_NF = hits_NF.bool()
        self.nats_F += nats_NF.double().sum(0)
        self.hits_F += (hits_NF & said_NF).double().sum(0)
        self.said_F += said_NF.double().sum(0)
        notes, right = self.tokens.notes_N(ids_NF).sum(), hits_NF.all(1).sum()
        steps = torch.tensor(len(ids_NF), device=notes.device)
        self.counts += torch.stack([steps, notes, right]).double()
        accuracy = (hits_NF & said_NF).sum() / said_NF.sum()
        one = torch.ones((), device=notes.device)
        loss = nats_NF.sum(1).mean()
        self.batches += torch.stack([loss, accuracy, one]).double()

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        steps, notes, right = self.counts.unbind()
        loss, accuracy, n_batches = self.batches.unbind()
        found = {
            "loss": self.nats_F.sum() / steps,
            "nats_per_note": self.nats_F.sum() / notes,
            "accuracy": self.hits_F.sum() / self.said_F.sum(),
            "step_accuracy": right / steps,
            "batch_mean_loss": loss / n_batches,
            "batch_mean_accuracy": accuracy / n_batches,
        }
        if len(self.names) > 1:
            for i, name in enumerate(self.names):
                found[f"{name}/loss"] = self.nats_F[i] / steps
                found[f"{name}/accuracy"] = self.hits_F[i] / self.said_F[i]
        return found


def nats_per_note_interval(
    nats_N: NDArray[np.float64],
    notes_N: NDArray[np.int64],
    song_N: NDArray[np.int64],
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> list[float | None]:
    """Percentile interval of nats a note, drawing whole songs.

    Args:
        nats_N: Nats of each window, shape (windows,).
        notes_N: Notes of each window.
        song_N: Song of each window.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.
    """
    songs_S, of_N = np.unique(song_N, return_inverse=True)
    nats_S = np.bincount(of_N, nats_N, len(songs_S))
    notes_S = np.bincount(of_N, notes_N, len(songs_S))
    drawn = np.random.default_rng(seed).integers(len(songs_S), size=(n_bootstrap, len(songs_S)))
    return interval(nats_S[drawn].sum(1) / np.maximum(notes_S[drawn].sum(1), 1))


def by_class(
    nats_N: NDArray[np.float64],
    notes_N: NDArray[np.int64],
    classes: Mapping[str, Sequence[str]],
    truth: Mapping[str, NDArray[np.int64]],
) -> dict[str, dict[str, Any]]:
    """Nats a note of each class of each label, with its windows and notes.

    Args:
        nats_N: Nats of each window, shape (windows,).
        notes_N: Notes of each window.
        classes: Names of the classes of each label.
        truth: Class index of each window for each label.
    """
    return {
        label: {
            name: {
                "n": int((truth[label] == i).sum()),
                "n_notes": int(notes_N[truth[label] == i].sum()),
                "nats_per_note": plain(
                    np.float64(nats_N[truth[label] == i].sum())
                    / max(1, int(notes_N[truth[label] == i].sum()))
                ),
            }
            for i, name in enumerate(names)
            if (truth[label] == i).any()
        }
        for label, names in classes.items()
    }
