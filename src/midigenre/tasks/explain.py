"""Which bars and which instruments decided a classifier's answer for a song.

What is explained is the song's *log-odds* of a class c, ``log p(c) - log(1 - p(c))`` in nats, where
p is the mean of the phrases' log-probabilities, renormalised
(:func:`~midigenre.evaluation.predictions.song_log_probs`), before any temperature.

The method is *occlusion* (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2): what the log-odds
lose when the notes of a bar, or of a program, are taken out of the music and each phrase that held
them is encoded again. Notes are left out, not hidden behind MASK: a classifier has seen music
without an instrument in training, but never a MASK. It works for every tokenizer.

Values are in nats, not normalised; above 0 is evidence for the class, below 0 against it. They are
measured one by one and do not add up to the log-odds: evidence that two bars share is lost only
when both are left out.

S songs   B phrases   V variants of phrases   C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from midigenre.arrays import LOG_ZERO, Bools, Floats, Longs
from midigenre.data.phrases import PhraseReader, Phrases, SongSource
from midigenre.midi.song import DRUMS, Song
from midigenre.models import PhraseClassifier
from midigenre.spec import Batch, TokenSpec
from midigenre.tasks.predict import predict_phrases

METHOD = "occlusion"
_NO_BAR, _NO_PROGRAM, _NO_ROW = -1, DRUMS - 1, -1


@dataclass(frozen=True)
class Attribution:
    """What decided one label of one song, in nats of the song's log-odds.

    Attributes:
        target: Class that is explained, an index.
        log_odds: The song's log-odds of it.
        bars: Of each bar of the song, shape (bars,). 0 for bars without an onset; NaN where
            undefined: ``max_tokens`` kept the bar from the model, or no music is left without it.
        programs: Of each program that plays, :data:`~midigenre.midi.song.DRUMS` first; NaN
            likewise. Empty where the vocabulary has no programs.
    """

    target: int
    log_odds: float
    bars: Floats
    programs: dict[int, float]


def log_odds(log_probs_C: Floats, target: int) -> float:
    """Log-odds of a class from log-probabilities up to a constant, shape (C,); 0 if C is 1."""
    others = np.delete(log_probs_C, target)
    return float(log_probs_C[target] - np.logaddexp.reduce(others)) if len(others) else 0.0


class Explainer:
    """Explains answers of a classifier; call it with songs.

    Args:
        model: The classifier.
        tokens: Its vocabulary.
        data: Its ``max_tokens`` and ``marks``.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, but for a longer phrase, which makes one alone.
        device: Where to compute.
    """

    def __init__(
        self, model: PhraseClassifier, tokens: TokenSpec, data: Mapping[str, Any], *,
        batch_phrases: int = 64, batch_tokens: int = 32768, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self._model, self._tokens, self._data, self._device = model, tokens, data, device
        self._has_programs = any(f.is_type("Program").any() for f in tokens.fields)
        self._batch_phrases, self._batch_tokens = batch_phrases, batch_tokens

    def __call__(
        self, songs: SongSource, phrases: Phrases, targets: Mapping[str, Longs]
    ) -> list[dict[str, Attribution]]:
        """For each song the attribution of each label.

        Args:
            songs: The songs, S.
            phrases: All their phrases.
            targets: For each label the class to explain of each song, shape (S,).
        """
        reader = PhraseReader(songs, self._tokens, self._data["max_tokens"], self._data["marks"])
        # The bar at which the tokens of each phrase end: ``max_tokens`` may cut it.
        seen = replace(phrases, end=np.array([reader(*place)[1] for place in phrases.places()]))
        noted: list[tuple[int, int, int, int]] = []
        found = predict_phrases(
            self._model, self._batches(songs, seen, reader, noted), self._device
        )
        # For each variant its phrase, its row in `found`, and the bar or program that it lacks.
        phrase_V, row_V, bar_V, program_V = np.array(noted, np.int64).reshape(-1, 4).T
        song_V = seen.song[phrase_V]
        out: list[dict[str, Attribution]] = []
        for song in range(len(songs)):
            mine = np.flatnonzero(song_V == song)
            unseen = np.where(songs.bar_onsets(song) > 0, np.nan, 0.0)
            for i in np.flatnonzero(seen.song == song):
                unseen[seen.first[i] : seen.end[i]] = 0.0
            explained: dict[str, Attribution] = {}
            for label in self._model.label_heads():
                target = int(targets[label][song])
                log_probs_VC = np.maximum(found.log_probs[label], LOG_ZERO)
                is_whole = (bar_V[mine] == _NO_BAR) & (program_V[mine] == _NO_PROGRAM)
                whole = {int(phrase_V[v]): log_probs_VC[row_V[v]] for v in mine[is_whole]}
                before = log_odds(np.sum(list(whole.values()), axis=0) / len(whole), target)
                lost = partial(
                    _lost, target=target, before=before, whole=whole, log_probs_VC=log_probs_VC,
                    phrase_V=phrase_V, row_V=row_V,
                )  # fmt: skip
                bars = unseen.copy()
                for v in mine[bar_V[mine] != _NO_BAR]:
                    bars[bar_V[v]] = lost(np.array([v]))
                programs: dict[int, float] = {}
                if self._has_programs:
                    for program in np.unique(songs.song(song).notes.program).tolist():
                        chosen = mine[program_V[mine] == program]
                        programs[program] = lost(chosen) if len(chosen) else np.nan
                explained[label] = Attribution(target, before, bars, programs)
            out.append(explained)
        return out

    def _batches(
        self, songs: SongSource, seen: Phrases, reader: PhraseReader,
        noted: list[tuple[int, int, int, int]],
    ) -> Iterator[Batch]:  # fmt: skip
        """Batches of all phrases, whole and with something left out, noting the variants.

        The whole ones are encoded from their notes as the others are, so that only the omission
        differs.
        """
        rows, n_tokens = 0, 0
        pending: list[Longs] = []
        for i in range(len(seen)):
            song, first, stop = int(seen.song[i]), int(seen.first[i]), int(seen.end[i])
            music = songs.song(song).bars(first, stop)
            bar_n = np.searchsorted(music.bar_ticks, music.notes.onset, side="right") - 1
            cuts: list[tuple[int, int, Bools]] = [(_NO_BAR, _NO_PROGRAM, bar_n >= 0)]
            cuts += [(first + int(b), _NO_PROGRAM, bar_n != b) for b in np.unique(bar_n)]
            if self._has_programs:
                program_n = music.notes.program
                cuts += [(_NO_BAR, int(p), program_n != p) for p in np.unique(program_n)]
            for bar, program, kept_n in cuts:
                if not kept_n.any():
                    noted.append((i, _NO_ROW, bar, program))
                    continue
                ids = reader(song, first, stop, _keeping(kept_n))[0]
                full = len(pending) >= self._batch_phrases
                if pending and (full or n_tokens + len(ids) > self._batch_tokens):
                    yield _batch_of(pending)
                    pending, n_tokens = [], 0
                pending.append(ids)
                n_tokens += len(ids)
                noted.append((i, rows, bar, program))
                rows += 1
        if pending:
            yield _batch_of(pending)


def _lost(
    chosen: Longs, *, target: int, before: float, whole: Mapping[int, Floats], log_probs_VC: Floats,
    phrase_V: Longs, row_V: Longs,
) -> float:  # fmt: skip
    """The drop in log-odds when variants replace their phrases; NaN without music."""
    sum_C, n = np.sum(list(whole.values()), axis=0), len(whole)
    for v in chosen:
        sum_C -= whole[int(phrase_V[v])]
        if row_V[v] == _NO_ROW:
            n -= 1  # a phrase without music is none: the mean is over the others
        else:
            sum_C += log_probs_VC[row_V[v]]
    return before - log_odds(sum_C / n, target) if n else np.nan


def _batch_of(ids: Sequence[Longs]) -> Batch:
    """Phrases as a batch that does not say where they are from."""
    nowhere = np.zeros(len(ids), np.int64)
    return Batch.from_phrases(ids, {}, nowhere, nowhere)


def _keeping(kept_n: Bools) -> Callable[[Song], Song]:
    """Leaves the other notes of a phrase out."""
    return lambda phrase: replace(phrase, notes=phrase.notes.select(kept_n))
