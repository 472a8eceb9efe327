"""Runs a trained classifier over phrases and over songs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.data.phrases import PhraseReader, Phrases, consecutive, phrase_length
from midigenre.data.sampler import collate, group_by_budget
from midigenre.data.shards import MemorySongs, SongSource
from midigenre.errors import RefusedSongError
from midigenre.evaluation.predictions import song_log_probs
from midigenre.midi.song import Song
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN, Batch, TokenSpec
from midigenre.tokenizers.base import Encoded, Tokenizer


@dataclass(frozen=True)
class PhraseOutputs:
    """What a classifier says of phrases, and where they come from.

    Attributes:
        log_probs: For each label, shape (phrases, C).
        truth: For each label that the data has, class indices of shape (phrases,).
        song: Index of each phrase's song, shape (phrases,).
        start: First bar of each phrase, shape (phrases,).
        vectors: What the heads see of each phrase, float32 of shape (phrases, D); None unless
            they were asked for.
        energy: For each label ``-logsumexp(logits)`` (Liu et al. 2020, arXiv 2010.03759), shape
            (phrases,): low where the model knows its input.
    """

    log_probs: dict[str, NDArray[np.float64]]
    truth: dict[str, NDArray[np.int64]]
    song: NDArray[np.int64]
    start: NDArray[np.int64]
    vectors: NDArray[np.float32] | None = None
    energy: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@torch.no_grad()
def predict_phrases(
    model: PhraseClassifier,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    vectors: bool = False,
) -> PhraseOutputs:
    """Predicts every phrase of ``batches``, in order.

    Args:
        model: The classifier; it is put into evaluation mode and on ``device``.
        batches: Packed phrases.
        device: Where to compute.
        autocast: Half precision to compute in, None for the weights' own.
        vectors: Whether to keep what the heads see of each phrase.
    """
    model.to(device).eval()
    log_probs: dict[str, list[Any]] = {label: [] for label in model.heads}
    energy: dict[str, list[Any]] = {label: [] for label in model.heads}
    truth: dict[str, list[Any]] = {}
    song, start, encoded = [], [], []
    kind = torch.device(device).type
    for batch in batches:
        moved = batch.to(device)
        with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
            h_BD, _ = model.encode(moved)
            logits = model.logits(h_BD)
        if vectors:
            encoded.append(h_BD.float().cpu().numpy())
        for label, values in logits.items():
            log_probs[label].append(values.float().log_softmax(-1).cpu().numpy())
            energy[label].append(-values.float().logsumexp(-1).cpu().numpy())
        for label, values in batch.labels.items():
            truth.setdefault(label, []).append(values.numpy())
        song.append(batch.song_B.numpy())
        start.append(batch.start_B.numpy())
    return PhraseOutputs(
        {k: np.concatenate(v).astype(np.float64) for k, v in log_probs.items()},
        {k: np.concatenate(v) for k, v in truth.items()},
        np.concatenate(song),
        np.concatenate(start),
        np.concatenate(encoded) if vectors else None,
        {k: np.concatenate(v).astype(np.float64) for k, v in energy.items()},
    )


def song_phrases(
    songs: SongSource, tokens: TokenSpec, data: Mapping[str, Any], batch_phrases: int
) -> tuple[Phrases, Iterator[Batch]]:
    """All phrases of songs as a classifier is fed them, and their batches without labels.

    Args:
        songs: The songs, encoded with its tokenizer.
        tokens: Its vocabulary.
        data: Its ``phrase_bars`` or ``phrase_seconds``, ``max_tokens`` and ``marks``.
        batch_phrases: Most phrases in a batch.
    """
    phrases = consecutive(songs, np.arange(len(songs)), phrase_length(data, tokens))
    # Checkpoints from before there were marks do not name them.
    reader = PhraseReader(songs, tokens, data["max_tokens"], data.get("marks", False))
    groups = group_by_budget(reader.lengths(phrases), batch_phrases, None)

    def batches() -> Iterator[Batch]:
        for group in groups:
            chosen = phrases.select(group)
            columns = zip(
                chosen.song.tolist(), chosen.first.tolist(), chosen.end.tolist(), strict=True
            )
            yield collate([reader(*column)[0] for column in columns], {}, chosen)

    return phrases, batches()


SONGS_AT_ONCE = 256  # bounds the memory; phrases of these songs share batches


@dataclass(frozen=True)
class SongScores:
    """What a classifier says of S songs.

    Attributes:
        log_probs: For each label, float64 of shape (S, C): the mean over a song's phrases, as in
            every evaluation; NaN where there was nothing to classify.
        vectors_SD: Mean over a song's phrases of what the heads see; NaN likewise.
        known_S: Whether there was anything to classify.
    """

    log_probs: dict[str, NDArray[np.float64]]
    vectors_SD: NDArray[np.float64]
    known_S: NDArray[np.bool_]

    def classes(self, label: str) -> NDArray[np.int64]:
        """Class of each song, shape (S,); ``UNKNOWN`` where there was nothing to classify."""
        filled = np.where(self.known_S[:, None], self.log_probs[label], 0.0)
        return np.where(self.known_S, filled.argmax(1), UNKNOWN)


def score_songs(
    model: PhraseClassifier,
    songs: Sequence[Song | None],
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    device: torch.device | str = "cpu",
    batch_phrases: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SongScores:
    """Classifies songs, from whatever grid they come.

    Args:
        model: The classifier.
        songs: The songs; None stands for silence.
        tokenizer: The classifier's own tokenizer.
        data: The classifier's ``phrase_bars`` or ``phrase_seconds`` and ``max_tokens``.
        device: Where to compute.
        batch_phrases: Most phrases in a batch.
        progress: Called with the songs that are done.
    """
    heads = model.label_heads()
    width: int = model.backbone.d_model  # type: ignore[assignment]
    log_probs = {k: np.full((len(songs), len(h.classes)), np.nan) for k, h in heads.items()}
    vectors = np.full((len(songs), width), np.nan)
    for begin in range(0, len(songs), SONGS_AT_ONCE):
        read: list[tuple[Song, Encoded]] = []
        index: list[int] = []
        for i, song in enumerate(songs[begin : begin + SONGS_AT_ONCE], begin):
            if song is None:
                continue
            try:
                own = tokenizer.clean(song.to_score())
            except RefusedSongError:  # nothing that this vocabulary can say
                continue
            read.append((own, tokenizer.encode(own)))
            index.append(i)
        if read:
            memory = MemorySongs(read)
            _, batches = song_phrases(memory, tokenizer.spec, data, batch_phrases)
            found = predict_phrases(model, batches, device, vectors=True)
            assert found.vectors is not None
            at = np.array(index)
            for label, values in found.log_probs.items():
                of, means = song_log_probs(values, found.song)
                log_probs[label][at[of]] = means
            sums = np.zeros((len(read), width))
            np.add.at(sums, found.song, found.vectors)
            counts = np.bincount(found.song, minlength=len(read))
            vectors[at] = sums / counts[:, None]
        progress(min(begin + SONGS_AT_ONCE, len(songs)), len(songs))
    return SongScores(log_probs, vectors, np.isfinite(vectors).all(1))
