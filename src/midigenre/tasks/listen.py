"""What a trained classifier hears in songs that it is given as notes.

S songs   C classes of a label   D width of what the heads see
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.data.shards import MemorySongs
from midigenre.errors import RefusedSongError
from midigenre.evaluation.predictions import song_log_probs
from midigenre.midi.song import Song
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import predict_phrases, song_phrases
from midigenre.tokenizers.base import Encoded, Tokenizer

SONGS_AT_ONCE = 256  # bounds the memory; phrases of these songs share batches


@dataclass(frozen=True)
class Heard:
    """What was heard in S songs.

    Attributes:
        log_probs: For each label, float64 of shape (S, C): the mean over a song's phrases, as in
            every evaluation; NaN where there was nothing to hear.
        vectors_SD: Mean over a song's phrases of what the heads see; NaN likewise.
        heard_S: Whether there was anything to hear.
    """

    log_probs: dict[str, NDArray[np.float64]]
    vectors_SD: NDArray[np.float64]
    heard_S: NDArray[np.bool_]

    def classes(self, label: str) -> NDArray[np.int64]:
        """Class of each song, shape (S,); ``UNKNOWN`` where there was nothing to hear."""
        filled = np.where(self.heard_S[:, None], self.log_probs[label], 0.0)
        return np.where(self.heard_S, filled.argmax(1), UNKNOWN)


def listen(
    model: PhraseClassifier,
    songs: Sequence[Song | None],
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    device: torch.device | str = "cpu",
    batch_phrases: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Heard:
    """Classifies songs, from whatever grid they come.

    Args:
        model: The classifier.
        songs: The songs; None stands for silence.
        tokenizer: The classifier's own tokenizer.
        data: The classifier's ``phrase_bars`` or ``phrase_seconds`` and ``max_tokens``.
        device: Where to compute.
        batch_phrases: Most phrases in a batch.
        progress: Told about the songs that are done.
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
    return Heard(log_probs, vectors, np.isfinite(vectors).all(1))
