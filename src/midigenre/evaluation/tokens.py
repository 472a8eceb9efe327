"""How well generators and masked models predict music: nats and hits of tokens, nats per note.

Losses per token cannot be compared between tokenizers, which need different numbers of tokens for
the same music; *nats per note* can. All vocabularies encode the same notes (:class:`TokenMetrics`),
and for a masked model the same notes are hidden in every vocabulary, with all their attributes
(:func:`evaluate_masked`).

N packed tokens or steps   F fields   B phrases   A attributes of a note
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from midigenre.arrays import Bools, Floats, Longs, song_keys
from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, interval
from midigenre.evaluation.metrics import plain_number
from midigenre.models.masking import MaskedModel, Masking, splitmix64_torch
from midigenre.spec import Batch, TokenSpec
from midigenre.tokenizers.notes import ATTRIBUTES, FoundNotes, NoteFinder

NOTE_ON_TYPES = ("Pitch", "PitchDrum", "NoteOn", "DrumOn")
"""Token types of which each note has exactly one, in any vocabulary."""

EVAL_SHARE = 0.15
"""Share of the tokens that are hidden in evaluation (BERT's; ModernBERT evaluates so too)."""

NOTE_SHARE = 0.15
"""Share of the notes that are hidden for nats per note."""

_SALT = 0x6D69646967656E72  # "midigenr": which notes these are must never change
_BITS = 24


class TokenMetrics(Metric):
    """Loss and accuracy of a generator over all tokens; only sums live on the device.

    ``compute()`` gives ``loss`` (nats per step, summed over its fields), ``nats_per_note``,
    ``accuracy`` (share of tokens predicted correctly; the ``Ignore`` that fills compound steps does
    not count), ``step_accuracy`` (all fields of a step right), ``batch_mean_loss`` and
    ``batch_mean_accuracy`` (means over the batches, whatever their sizes, as in the slides'
    system) and, with several fields, ``<field>/loss`` and ``<field>/accuracy``.

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
        for i, field in enumerate(spec.fields):
            for what, is_it_V in (("note", field.is_type(*NOTE_ON_TYPES)),
                                  ("said", ~field.is_type("Ignore"))):  # fmt: skip
                self.register_buffer(f"{what}_{i}", torch.from_numpy(is_it_V), persistent=False)
        F = len(self.names)
        for name, size in (("nats_F", F), ("hits_F", F), ("said_F", F), ("counts", 3),
                           ("batches", 3)):  # fmt: skip
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def notes_N(self, ids_NF: Tensor) -> Tensor:
        """Which steps are notes, bool, shape (N,)."""
        return self._look(ids_NF, "note").any(1)

    def _look(self, ids_NF: Tensor, what: str) -> Tensor:
        columns = [getattr(self, f"{what}_{i}")[ids_N] for i, ids_N in enumerate(ids_NF.unbind(1))]
        return torch.stack(columns, 1)

    def update(self, nats_NF: Tensor, hits_NF: Tensor, ids_NF: Tensor) -> None:
        """Adds a batch: cross-entropy of each token, which were predicted, and the tokens."""
        said_NF = self._look(ids_NF, "said")
        hits_NF = hits_NF.bool()
        self.nats_F += nats_NF.double().sum(0)
        self.hits_F += (hits_NF & said_NF).double().sum(0)
        self.said_F += said_NF.double().sum(0)
        notes, right = self.notes_N(ids_NF).sum(), hits_NF.all(1).sum()
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
    nats_N: Floats, notes_N: Longs, song_N: Longs, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP
) -> list[float | None]:
    """Percentile interval of nats per note, drawing whole songs; a row is a window or phrase."""
    songs_S, of_N = np.unique(song_N, return_inverse=True)
    nats_S = np.bincount(of_N, nats_N, len(songs_S))
    notes_S = np.bincount(of_N, notes_N, len(songs_S))
    drawn = np.random.default_rng(seed).integers(len(songs_S), size=(n_bootstrap, len(songs_S)))
    return interval(nats_S[drawn].sum(1) / np.maximum(notes_S[drawn].sum(1), 1))


def by_class(
    nats_N: Floats,
    notes_N: Longs,
    classes: Mapping[str, Sequence[str]],
    truth: Mapping[str, Longs],
) -> dict[str, dict[str, Any]]:
    """Nats per note of each class of each label that has windows, with their number and notes.

    ``classes`` are the names of each label's, ``truth`` the class index of each window, (N,).
    """
    found: dict[str, dict[str, Any]] = {label: {} for label in classes}
    for label, names in classes.items():
        for i, name in enumerate(names):
            mine_N = truth[label] == i
            if mine_N.any():
                n_notes = int(notes_N[mine_N].sum())
                nats = plain_number(nats_N[mine_N].sum() / max(1, n_notes))
                found[label][name] = {
                    "n": int(mine_N.sum()), "n_notes": n_notes, "nats_per_note": nats
                }  # fmt: skip
    return found


class MaskedMetrics(Metric):
    """Loss, perplexity and accuracy of hidden tokens; only sums live on the device.

    ``compute()`` gives ``loss`` (nats per hidden token), ``perplexity`` (its exponential) and
    ``accuracy``, and for each attribute ``<attribute>/perplexity`` and ``<attribute>/accuracy``; an
    attribute of which no token was hidden is left out.

    Args:
        masking: Knows the attributes; its tables are on the device that the tokens are on.
    """

    sums_A3: Tensor  # hidden tokens, nats, hits

    def __init__(self, masking: Masking) -> None:
        super().__init__()
        self.names = masking.attributes
        sums_A3 = torch.zeros(len(self.names), 3, dtype=torch.float64)
        self.add_state("sums_A3", sums_A3, dist_reduce_fx="sum")

    def update(
        self, nats_NF: Tensor, hits_NF: Tensor, hidden_NF: Tensor, attribute_NF: Tensor
    ) -> None:
        """Adds a batch.

        Args:
            nats_NF: Cross-entropy of each token, 0 where it is not hidden.
            hits_NF: Which were predicted, bool.
            hidden_NF: Which are hidden, bool.
            attribute_NF: :meth:`Masking.attributes_NF`.
        """
        values_NF3 = torch.stack([hidden_NF.double(), nats_NF.double(), hits_NF.double()], -1)
        where_NF = attribute_NF.clamp(min=0)  # what is not hidden adds zeros
        self.sums_A3 += torch.zeros_like(self.sums_A3).index_add_(
            0, where_NF.flatten(), values_NF3.flatten(0, 1)
        )

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        found = _scores(self.sums_A3.sum(0))
        for name, sums_3 in zip(self.names, self.sums_A3, strict=True):
            if sums_3[0] > 0:
                scores = _scores(sums_3)
                found |= {f"{name}/{key}": scores[key] for key in ("perplexity", "accuracy")}
        return found

    def fields(self) -> dict[str, dict[str, Any]]:
        """For each attribute its hidden tokens ``n`` and its scores as plain numbers."""
        return {
            name: {"n": int(sums_3[0]), **{k: float(v) for k, v in _scores(sums_3).items()}}
            for name, sums_3 in zip(self.names, self.sums_A3.cpu(), strict=True)
            if sums_3[0] > 0
        }


def _scores(sums_3: Tensor) -> dict[str, Tensor]:
    n, nats, hits = sums_3.unbind()
    n = n.clamp(min=1)
    return {"loss": nats / n, "perplexity": (nats / n).exp(), "accuracy": hits / n}


def phrase_keys(batch: Batch) -> Tensor:
    """A number for each phrase by its song and its first bar, int64 (B,).

    What is hidden of it is then the same in every epoch, in batches of any size, and for every seed
    of a run.
    """
    return splitmix64_torch(batch.song_B) + batch.start_B


def chosen_notes(
    found: FoundNotes, song_keys_B: Longs, start_B: Longs, share: float = NOTE_SHARE
) -> Bools:
    """Which notes are hidden: a hash of song, bar in the song, position, pitch and program decides.

    Nothing of the tokens goes into it, so it chooses the same notes in every vocabulary that knows
    these five, however the song is cut into phrases. A phrase is known by the :func:`song_keys` of
    its song and by its first bar there.
    """
    bar = found.bar + start_B[found.phrase]
    key = splitmix64_torch(torch.from_numpy(song_keys_B[found.phrase]) + _SALT)
    for column in (bar, found.position, found.pitch, found.program):
        key = splitmix64_torch(key + torch.from_numpy(column))
    hidden: Bools = (key & ((1 << _BITS) - 1)).numpy() < share * (1 << _BITS)
    return hidden


@torch.no_grad()
def evaluate_masked(
    model: MaskedModel, data: PhraseDataModule, split: str, share: float = EVAL_SHARE
) -> dict[str, Any]:
    """How well a masked model predicts hidden tokens and hidden notes.

    *Nats per note*: :data:`NOTE_SHARE` of the notes (:func:`chosen_notes`) are hidden at once, and
    of each all attributes but the onset: pitch, velocity, duration and program, every
    one of these tokens seen as MASK. The figure is the nats of these tokens over the number of
    these notes; the tokens of a note are predicted independently of each other. It compares
    vocabularies that say the same attributes (``attributes`` lists them) on the same notes
    (see ``n_notes``; a phrase that passes ``data.max_tokens`` lacks its last bars' notes). What a
    MASK still reveals is the same in REMI, CP and Octuple: where the note begins, how many notes
    begin there, and, since notes of an onset are sorted by program and pitch, between which
    neighbours the hidden one lies. In REMI a MASK does not say which attribute it hides; the order
    of a note's tokens does.

    The model is on the device to compute on, and is put into evaluation mode; ``share`` of the
    tokens are hidden for loss, perplexity and accuracy.

    Returns:
        ``{"n", "n_notes", "nats_per_note", "ci95", "attributes", "share", "loss", "perplexity",
        "accuracy", "fields"}``; ``nats_per_note`` is None, with the reason under ``why``, where
        notes cannot be found in the vocabulary.
    """
    model.eval()
    device = model.masking.mask_F.device
    metrics = MaskedMetrics(model.masking).to(device)
    keys = song_keys(data.shards.manifest.column("song_id"))
    finder, why = None, "no note of these songs is hidden: there are too few"
    try:
        finder = NoteFinder(data.shards.tokens)
    except ValueError as error:
        why = str(error)
    songs: list[Longs] = []
    nats, notes = [np.zeros(0)], [np.zeros(0, np.int64)]
    sums_A3 = np.zeros((len(ATTRIBUTES), 3))  # as those of the metrics
    for loaded in data.eval_dataloader(split):
        batch = loaded.to(device)
        nats_NF, hits_NF, hidden_NF = model.loss(batch, share, phrase_keys(batch))
        metrics.update(nats_NF, hits_NF, hidden_NF, model.masking.attributes_NF(batch.ids_NF))
        song_B = loaded.song_B.numpy()
        songs.append(song_B)
        if finder is None:
            continue
        found = finder(loaded.ids_NF.numpy(), loaded.cu_seqlens[:-1].numpy().astype(np.int64))
        hidden_n = chosen_notes(found, keys[song_B], loaded.start_B.numpy())
        attribute_NF = torch.full(loaded.ids_NF.shape, -1)
        for a, column in enumerate(found.columns_A.tolist()):
            steps_n = found.steps_nA[hidden_n, a]
            attribute_NF[torch.from_numpy(steps_n[steps_n >= 0]), column] = a
        nats_NF, hits_NF = (x.cpu() for x in model.predict(batch, (attribute_NF >= 0).to(device)))
        of_N = np.repeat(np.arange(batch.n_phrases), batch.lengths)
        nats_N = nats_NF.sum(1).double().numpy()
        nats.append(np.bincount(of_N, nats_N, batch.n_phrases).astype(np.float64))
        notes.append(np.bincount(found.phrase[hidden_n], minlength=batch.n_phrases))
        for a, sums_3 in enumerate(sums_A3):
            where_NF = attribute_NF == a
            sums_3 += [where_NF.sum(), nats_NF[where_NF].double().sum(), hits_NF[where_NF].sum()]
    song_B, nats_B, notes_B = np.concatenate(songs), np.concatenate(nats), np.concatenate(notes)
    n_notes = int(notes_B.sum())
    return {
        "n": len(song_B),
        "n_notes": n_notes,
        "nats_per_note": plain_number(nats_B.sum() / n_notes) if n_notes else None,
        "ci95": {
            "nats_per_note": nats_per_note_interval(nats_B, notes_B, song_B)
            if n_notes else [None, None]
        },
        "attributes": {
            name: {"n": int(n), "nats_per_note": nats / n_notes, "accuracy": hits / n}
            for name, (n, nats, hits) in zip(ATTRIBUTES, sums_A3.tolist(), strict=True)
            if n
        },
        **({} if n_notes else {"why": why}),
        "share": share,
        **{k: float(v) for k, v in _scores(metrics.sums_A3.sum(0)).items()},
        "fields": metrics.fields(),
    }  # fmt: skip
