"""How well a masked model predicts hidden tokens, and hidden notes.

The loss a token depends on the vocabulary, on the strategy and on the share that is hidden. *Nats a
note* depend on none of them: the same notes are hidden in every vocabulary, with all that it says
of them, so runs with different tokenizers compare (:func:`evaluate_masked`).

N packed tokens   F fields   B phrases   A attributes
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.metrics import plain
from midigenre.evaluation.tokens import nats_per_note_interval
from midigenre.models.masking import MaskedModel, Masking, splitmix64
from midigenre.spec import Batch
from midigenre.tokenizers.notes import ATTRIBUTES, FoundNotes, NoteFinder

EVAL_SHARE = 0.15
"""Share of the tokens that are hidden in evaluation (BERT's; ModernBERT evaluates so too)."""

NOTE_SHARE = 0.15
"""Share of the notes that are hidden for nats a note."""

_SALT = 0x6D69646967656E72  # "midigenr": which notes these are must never change
_BITS = 24


class MaskedMetrics(Metric):
    """Loss, perplexity and accuracy of hidden tokens; only sums live on the device.

    ``compute()`` gives ``loss`` (nats a hidden token), ``perplexity`` (its exponential) and
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
            nats_NF: Cross-entropy of each token, 0 where it is not hidden, shape (N, F).
            hits_NF: Which were foretold, bool, shape (N, F).
            hidden_NF: Which are hidden, bool, shape (N, F).
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
    return splitmix64(batch.song_B) + batch.start_B


def song_keys(song_ids: Iterable[str]) -> NDArray[np.int64]:
    """A number for each song by its id."""
    digests = (
        # File names need not be UTF-8.
        hashlib.blake2b(song_id.encode(errors="surrogateescape"), digest_size=8).digest()
        for song_id in song_ids
    )
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def chosen_notes(
    found: FoundNotes,
    song_keys_B: NDArray[np.int64],
    start_B: NDArray[np.int64],
    share: float = NOTE_SHARE,
) -> NDArray[np.bool_]:
    """Which notes are hidden: a hash of song, bar in the song, position, pitch and program decides.

    Nothing of the tokens goes into it, so it chooses the same notes in every vocabulary that knows
    these five, however the song is cut into phrases.

    Args:
        found: The notes of B phrases.
        song_keys_B: :func:`song_keys` of each phrase's song.
        start_B: First bar of each phrase in its song.
        share: Expected share of the notes.

    Returns:
        bool, shape (n,).
    """
    bar = found.bar + start_B[found.phrase]
    key = splitmix64(torch.from_numpy(song_keys_B[found.phrase]) + _SALT)
    for column in (bar, found.position, found.pitch, found.program):
        key = splitmix64(key + torch.from_numpy(column))
    low_bits = (key & ((1 << _BITS) - 1)).numpy()
    hidden: NDArray[np.bool_] = low_bits < share * (1 << _BITS)
    return hidden


class _HiddenNotes:
    """The notes of a batch that are hidden, and what a model made of them.

    Args:
        finder: Finds the notes in the tokens.
        keys_S: :func:`song_keys` of all songs.
    """

    def __init__(self, finder: NoteFinder, keys_S: NDArray[np.int64]) -> None:
        self.finder, self.keys_S = finder, keys_S
        A = len(ATTRIBUTES)
        self.tokens_A, self.nats_A, self.hits_A = np.zeros(A), np.zeros(A), np.zeros(A)
        self._nats: list[NDArray[np.float64]] = []
        self._notes: list[NDArray[np.int64]] = []

    def tokens_of(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Step and column of every hidden token, for each of the attributes; counts the notes."""
        starts = batch.cu_seqlens[:-1].numpy().astype(np.int64)
        found = self.finder(batch.ids_NF.numpy(), starts)
        hidden = chosen_notes(found, self.keys_S[batch.song_B.numpy()], batch.start_B.numpy())
        self._notes.append(np.bincount(found.phrase[hidden], minlength=batch.n_phrases))
        out = []
        for a, column in enumerate(found.columns_A.tolist()):
            steps = found.steps_nA[hidden, a]
            # Several notes may share a program's token.
            steps_n = torch.from_numpy(np.unique(steps[steps >= 0]))
            out.append((steps_n, torch.full_like(steps_n, max(column, 0))))
        return out

    def add(
        self, batch: Batch, tokens: Sequence[tuple[Tensor, Tensor]], nats: Tensor, hits: Tensor
    ) -> None:
        """Adds what was made of a batch's hidden tokens; all on the CPU."""
        self._nats.append(_by_phrase(batch, nats))
        for a, where in enumerate(tokens):
            self.tokens_A[a] += len(where[0])
            self.nats_A[a] += float(nats[where].double().sum())
            self.hits_A[a] += float(hits[where].sum())

    def scores(self, song_B: NDArray[np.int64]) -> dict[str, Any]:
        """Part of ``evaluation.json``."""
        nats_B, notes_B = np.concatenate(self._nats), np.concatenate(self._notes)
        n_notes = int(notes_B.sum())
        if not n_notes:
            return _no_notes("no note of these songs is hidden: there are too few")
        return {
            "n_notes": n_notes,
            "nats_per_note": plain(nats_B.sum() / n_notes),
            "ci95": {"nats_per_note": nats_per_note_interval(nats_B, notes_B, song_B)},
            "attributes": {
                name: {
                    "n": int(self.tokens_A[a]),
                    "nats_per_note": float(self.nats_A[a] / n_notes),
                    "accuracy": float(self.hits_A[a] / self.tokens_A[a]),
                }
                for a, name in enumerate(ATTRIBUTES)
                if self.tokens_A[a]
            },
        }


@torch.no_grad()
def evaluate_masked(
    model: MaskedModel, data: PhraseDataModule, split: str, share: float = EVAL_SHARE
) -> dict[str, Any]:
    """What a masked model makes of hidden tokens and hidden notes.

    *Nats a note*: :data:`NOTE_SHARE` of the notes (:func:`chosen_notes`) are hidden at once, and of
    each all that the vocabulary says but its onset: pitch, velocity, duration and program, every
    one of these tokens seen as MASK. The figure is the nats of these tokens over the number of
    these notes; the tokens of a note are foretold independently of each other. It compares
    vocabularies that say the same attributes (``attributes`` lists them) on the same notes
    (``n_notes`` tells; a phrase that passes ``data.max_tokens`` lacks its last bars' notes). What a
    MASK still tells is the same in REMI, CP and Octuple: where the note begins, how many notes
    begin there, and, since notes of an onset are sorted by program and pitch, between which
    neighbours the hidden one lies. In REMI a MASK does not say which attribute it hides; the order
    of a note's tokens does.

    Args:
        model: The model, on the device to compute on; it is put into evaluation mode.
        data: The songs.
        split: Which of them.
        share: Share of the tokens that are hidden for loss, perplexity and accuracy.

    Returns:
        ``{"n", "n_notes", "nats_per_note", "ci95", "attributes", "share", "loss", "perplexity",
        "accuracy", "fields"}``; ``nats_per_note`` is None, with the reason under ``why``, where
        notes cannot be found in the vocabulary.
    """
    model.eval()
    spec, masking = data.shards.tokens, model.masking
    device = masking.mask_F.device
    metrics = MaskedMetrics(masking).to(device)
    notes: _HiddenNotes | None = None
    why = ""
    keys = song_keys(data.shards.manifest.column("song_id"))
    try:
        notes = _HiddenNotes(NoteFinder(spec), keys)
    except ValueError as error:
        why = str(error)
    song = []
    for loaded in data.eval_dataloader(split):
        batch = loaded.to(device)
        nats_NF, hits_NF, hidden_NF = model.loss(batch, share, phrase_keys(batch))
        metrics.update(nats_NF, hits_NF, hidden_NF, masking.attributes_NF(batch.ids_NF))
        song.append(loaded.song_B.numpy())
        if notes is not None:
            tokens = notes.tokens_of(loaded)
            hidden_NF = torch.zeros(loaded.ids_NF.shape, dtype=torch.bool)
            for where in tokens:
                hidden_NF[where] = True
            nats_NF, hits_NF = model.predict(batch, hidden_NF.to(device))
            notes.add(loaded, tokens, nats_NF.cpu(), hits_NF.cpu())
    song_B = np.concatenate(song)
    scores = _no_notes(why) if notes is None else notes.scores(song_B)
    overall = {k: float(v) for k, v in _scores(metrics.sums_A3.sum(0)).items()}
    return {"n": len(song_B), **scores, "share": share, **overall, "fields": metrics.fields()}


def _no_notes(why: str) -> dict[str, Any]:
    return {
        "n_notes": 0, "nats_per_note": None, "ci95": {"nats_per_note": [None, None]},
        "attributes": {}, "why": why,
    }  # fmt: skip


def _by_phrase(batch: Batch, values_NF: Tensor) -> NDArray[np.float64]:
    """Sums over each phrase's tokens, shape (B,)."""
    of_N = np.repeat(np.arange(batch.n_phrases), batch.lengths)
    sums: NDArray[np.float64] = np.bincount(
        of_N, values_NF.sum(1).double().numpy(), batch.n_phrases
    ).astype(np.float64)
    return sums
