"""Runs a trained classifier over phrases and over songs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midigenre.arrays import Bools, Floats, Longs
from midigenre.data.phrases import (
    MemorySongs,
    PhraseReader,
    Phrases,
    SongSource,
    consecutive,
    phrase_length,
)
from midigenre.errors import RejectedSongError, UserError
from midigenre.evaluation.blend import SONG_MODELS_FOLDER, Blends, fingerprint
from midigenre.evaluation.exported_baselines import exported_log_probs
from midigenre.evaluation.predictions import song_log_probs
from midigenre.midi.song import Song
from midigenre.models import PhraseClassifier
from midigenre.run import folder_of
from midigenre.spec import UNKNOWN, Batch, TokenSpec
from midigenre.tokenizers.base import Encoded, Tokenizer

SONG_KINDS = ("mean", "blend")
"""Choices of ``task.song``: the mean log-probability over the phrases, without fitting,
or :mod:`~midigenre.evaluation.blend`."""

SONGS_AT_ONCE = 256  # bounds the memory; phrases of these songs share batches


@dataclass(frozen=True)
class PhraseOutputs:
    """A classifier's output for phrases, and where they come from.

    Attributes:
        log_probs: For each label, shape (phrases, C).
        truth: For each label that the data has, class indices of shape (phrases,).
        song: Index of each phrase's song, shape (phrases,).
        start: First bar of each phrase, shape (phrases,).
        vectors: The heads' input for each phrase, float32 of shape (phrases, D); None unless
            requested.
        energy: For each label ``-logsumexp(logits)`` (Liu et al. 2020, arXiv 2010.03759), shape
            (phrases,): low where the input is familiar.
    """

    log_probs: dict[str, Floats]
    truth: dict[str, Longs]
    song: Longs
    start: Longs
    vectors: NDArray[np.float32] | None = None
    energy: dict[str, Floats] = field(default_factory=dict)

    def select(self, rows: Longs) -> PhraseOutputs:
        """Some of the phrases, in another order."""
        return PhraseOutputs(
            {label: of[rows] for label, of in self.log_probs.items()},
            {label: of[rows] for label, of in self.truth.items()},
            self.song[rows],
            self.start[rows],
            None if self.vectors is None else self.vectors[rows],
            {label: of[rows] for label, of in self.energy.items()},
        )


@torch.no_grad()
def predict_phrases(
    model: PhraseClassifier, batches: Iterable[Batch], device: torch.device | str = "cpu",
    vectors: bool = False,
) -> PhraseOutputs:  # fmt: skip
    """Predicts every phrase of ``batches``, in order.

    Args:
        model: The classifier; it is put into evaluation mode and on ``device``.
        batches: Packed phrases.
        device: Where to compute.
        vectors: Whether to keep what the heads see of each phrase.
    """
    model.to(device).eval()
    on_cpu = torch.device(device).type == "cpu"
    logits: dict[str, list[Tensor]] = {}
    truth: dict[str, list[Tensor]] = {}
    song, start, encoded = [], [], []
    for batch in batches:
        h_BD, _ = model.encode(batch if on_cpu else batch.to(device))
        for label, logits_BC in model.logits(h_BD).items():
            logits.setdefault(label, []).append(logits_BC.float())
        for label, classes_B in batch.labels.items():
            truth.setdefault(label, []).append(classes_B)
        song.append(batch.song_B)
        start.append(batch.start_B)
        if vectors:
            encoded.append(h_BD.float().cpu())
    of_label = {label: torch.cat(values) for label, values in logits.items()}
    return PhraseOutputs(
        {k: v.log_softmax(-1).cpu().double().numpy() for k, v in of_label.items()},
        {k: torch.cat(v).numpy() for k, v in truth.items()},
        torch.cat(song).numpy(),
        torch.cat(start).numpy(),
        torch.cat(encoded).numpy() if vectors else None,
        {k: -v.logsumexp(-1).cpu().double().numpy() for k, v in of_label.items()},
    )


def group_by_budget(lengths: Longs, batch_phrases: int, batch_tokens: int | None) -> list[Longs]:
    """Consecutive runs of indices that make a batch.

    Args:
        lengths: Steps of each phrase, in the order in which they are to be batched.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch; a longer phrase is a batch of its own.
    """
    edges, tokens = [0], 0
    for i, length in enumerate(lengths.tolist()):
        too_long = batch_tokens is not None and i > edges[-1] and tokens + length > batch_tokens
        if too_long or i - edges[-1] >= batch_phrases:
            edges.append(i)
            tokens = 0
        tokens += length
    return np.split(np.arange(len(lengths)), edges[1:]) if len(lengths) else []


class SongPredictions(NamedTuple):
    """A classifier's output for all phrases of songs.

    Attributes:
        reader: Reads the songs.
        phrases: All their phrases, in order.
        found: The classifier's output for them, in the same order.
        cut: Which of them had more steps than the model accepts, shape (phrases,).
    """

    reader: PhraseReader
    phrases: Phrases
    found: PhraseOutputs
    cut: Bools


def predict_songs(
    model: PhraseClassifier, songs: SongSource, tokens: TokenSpec, data: Mapping[str, Any],
    device: torch.device | str = "cpu", *, batch_phrases: int = 64, batch_tokens: int | None = None,
    by_length: bool = False, vectors: bool = False,
) -> SongPredictions:  # fmt: skip
    """Predicts all phrases of songs, cut as in the classifier's training.

    Args:
        model: The classifier.
        songs: The songs, encoded with its tokenizer.
        tokens: Its vocabulary.
        data: Its ``phrase_bars`` or ``phrase_seconds``, ``max_tokens`` and ``marks``.
        device: Where to compute.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, but for a longer phrase, which makes one alone.
        by_length: Whether to sort phrases by length, so that equal lengths share attention calls.
        vectors: Whether to keep what the heads see of each phrase.
    """
    phrases = consecutive(songs, np.arange(len(songs)), phrase_length(data, tokens))
    reader = PhraseReader(songs, tokens, data["max_tokens"], data["marks"])
    lengths = reader.lengths(phrases)
    cut = np.zeros(len(lengths), bool)
    order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(lengths))

    def batches() -> Iterator[Batch]:
        for group in group_by_budget(lengths[order], batch_phrases, batch_tokens):
            rows = order[group]
            song_B, first_B, end_B = phrases.song[rows], phrases.first[rows], phrases.end[rows]
            places = zip(song_B.tolist(), first_B.tolist(), end_B.tolist(), strict=True)
            read = [reader(*place) for place in places]
            cut[rows] = [
                stop < end or len(ids) == reader.max_tokens  # within its only bar
                for (ids, stop), end in zip(read, end_B.tolist(), strict=True)
            ]
            yield Batch.from_phrases([ids for ids, _ in read], {}, song_B, first_B)

    found = predict_phrases(model, batches(), device, vectors)
    return SongPredictions(
        reader, phrases, found.select(np.argsort(order)) if by_length else found, cut
    )


# --- songs ----------------------------------------------------------------------------------------


def song_kind(task: Mapping[str, Any]) -> str:
    """``task.song`` of a task's settings.

    Raises:
        UserError: There is no such song model.
    """
    kind = str(task.get("song", "mean"))
    if kind not in SONG_KINDS:
        raise UserError(f"task.song={kind}; choose {', '.join(SONG_KINDS)}")
    return kind


def load_song_models(
    checkpoint: Path, model: PhraseClassifier, task: Mapping[str, Any]
) -> tuple[Blends | None, str | None]:
    """The blends that belong to a checkpoint, ``RUN/song`` of ``RUN/checkpoints/best.ckpt``.

    Args:
        checkpoint: Where the classifier was read from.
        model: The classifier.
        task: Its task's settings.

    Returns:
        The blends, None for the mean; and a warning if songs will be scored in another way than
        the run was trained with.

    Raises:
        UserError: They are damaged.
    """
    if song_kind(task) == "mean":
        return None, None
    folder = folder_of(checkpoint) / SONG_MODELS_FOLDER
    why = f"{folder} is not there"
    if (folder / "model.json").is_file():
        blends = Blends.load(folder)
        if blends.weights_of == fingerprint(model):
            return blends, None
        why = f"{folder} belongs to its best checkpoint, not to {checkpoint.name}"
    return None, (
        "songs are scored by the mean of their phrases: the run was trained with task.song=blend, "
        f"and {why}"
    )


def song_components(
    blends: Blends, found: PhraseOutputs, reader: PhraseReader, phrases: Phrases
) -> dict[str, dict[str, Floats]]:
    """For each label and component of the blends the songs' log-probabilities, shape (S, C).

    Args:
        blends: Of the run.
        found: The model's output for the phrases.
        reader: Reads the songs.
        phrases: All their phrases, in order.
    """
    theirs = exported_log_probs(blends.experts, reader, phrases)
    return {
        label: blends.blends[label].components(
            song_log_probs(log_probs, found.song)[1], theirs[label]
        )
        for label, log_probs in found.log_probs.items()
    }


def song_scores(
    blends: Blends | None, found: PhraseOutputs, reader: PhraseReader, phrases: Phrases
) -> dict[str, Floats]:
    """For each label the songs' log-probabilities, shape (S, C), songs in ascending order.

    The mean over the phrases without blends; arguments as of :func:`song_components`.
    """
    if blends is None:
        return {k: song_log_probs(of, found.song)[1] for k, of in found.log_probs.items()}
    components = song_components(blends, found, reader, phrases)
    return {label: blends.blends[label].pool.log_probs(of) for label, of in components.items()}


@dataclass(frozen=True)
class SongScores:
    """A classifier's output for S songs.

    Attributes:
        log_probs: For each label, float64 of shape (S, C): the mean over a song's phrases, as in
            every evaluation; NaN where there was nothing to classify.
        vectors_SD: Mean over a song's phrases of what the heads see; NaN likewise.
        known_S: Whether there was anything to classify.
    """

    log_probs: dict[str, Floats]
    vectors_SD: Floats
    known_S: Bools

    def classes(self, label: str) -> Longs:
        """Class of each song, shape (S,); ``UNKNOWN`` where there was nothing to classify."""
        filled = np.where(self.known_S[:, None], self.log_probs[label], 0.0)
        return np.where(self.known_S, filled.argmax(1), UNKNOWN)


def classify_songs(
    model: PhraseClassifier,
    songs: Sequence[Song | None],
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SongScores:
    """Classifies songs, from whatever grid they come.

    Args:
        model: The classifier.
        songs: The songs; None means silence.
        tokenizer: The classifier's own tokenizer.
        data: As of :func:`predict_songs`.
        device: Where to compute.
        progress: Called with the songs that are done.
    """
    width: int = model.backbone.d_model  # type: ignore[assignment]
    log_probs = {
        label: np.full((len(songs), len(head.classes)), np.nan)
        for label, head in model.label_heads().items()
    }
    vectors = np.full((len(songs), width), np.nan)
    for begin in range(0, len(songs), SONGS_AT_ONCE):
        read: dict[int, tuple[Song, Encoded]] = {}
        for i, song in enumerate(songs[begin : begin + SONGS_AT_ONCE], begin):
            if song is None:
                continue
            try:
                own = tokenizer.clean(song.to_score())
            except RejectedSongError:  # nothing that this vocabulary can encode
                continue
            read[i] = own, tokenizer.encode(own)
        if read:
            memory, at = MemorySongs(list(read.values())), np.array(list(read))
            found = predict_songs(model, memory, tokenizer.spec, data, device, vectors=True).found
            for label, values in found.log_probs.items():
                of, means = song_log_probs(values, found.song)
                log_probs[label][at[of]] = means
            assert found.vectors is not None
            sums = np.zeros((len(read), width))
            np.add.at(sums, found.song, found.vectors)
            vectors[at] = sums / np.bincount(found.song, minlength=len(read))[:, None]
        progress(min(begin + SONGS_AT_ONCE, len(songs)), len(songs))
    return SongScores(log_probs, vectors, np.isfinite(vectors).all(1))
