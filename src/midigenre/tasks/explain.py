"""Which bars and which instruments decided a classifier's answer for a song.

What is explained is the song's *log-odds* of a class c, ``log p(c) - log(1 - p(c))`` in nats, where
p is the mean of the phrases' log-probabilities, renormalised
(:func:`~midigenre.evaluation.predictions.song_log_probs`), before any temperature.

The method is *occlusion* (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2): what the log-odds
lose when the notes of a bar, or of a program, are taken out of the music and each phrase that held
them is encoded again. Notes are left out, not hidden behind MASK: a classifier has seen music
without an instrument, and never a MASK. It works for every tokenizer.

Values are in nats, not normalised; above 0 spoke for the class, below 0 against it. They are
measured one by one and do not add up to the log-odds: what two bars say both is missing only when
both are.

S songs   B phrases   V variants of phrases   C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from midigenre.arrays import LOG_ZERO, Bools, Floats, Longs
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.data.sampler import collate
from midigenre.data.shards import SongSource
from midigenre.midi.song import DRUMS, Song
from midigenre.models import PhraseClassifier
from midigenre.spec import Batch, TokenSpec
from midigenre.tasks.predict import predict_phrases

Targets = Mapping[str, Sequence[int] | Longs]
"""For each label the class to explain of each song, shape (S,)."""

METHOD = "occlusion"
_NO_BAR, _NO_PROGRAM = -1, DRUMS - 1


@dataclass(frozen=True)
class Attribution:
    """What decided one label of one song, in nats of the song's log-odds.

    Attributes:
        target: Class that is explained, an index.
        log_odds: The song's log-odds of it.
        bars: Of each bar of the song, shape (bars,). 0 for bars without an onset; NaN where nothing
            can be said: ``max_tokens`` kept the bar from the model, or no music is left without it.
        programs: Of each program that plays, :data:`~midigenre.song.DRUMS` first; NaN likewise.
            Empty where the vocabulary has no programs.
    """

    target: int
    log_odds: float
    bars: Floats
    programs: dict[int, float]


def log_odds(log_probs_C: Floats, target: int) -> float:
    """Log-odds of a class from log-probabilities up to a constant, shape (C,); 0 if C is 1."""
    others = np.delete(log_probs_C, target)
    return float(log_probs_C[target] - np.logaddexp.reduce(others)) if len(others) else 0.0


@dataclass(frozen=True)
class ReadPhrases:
    """Phrases as the model sees them.

    Attributes:
        phrases: The phrases.
        stop: The bar at which the tokens of each end, shape (B,): ``max_tokens`` may cut it.
    """

    phrases: Phrases
    stop: Longs

    @classmethod
    def read(cls, phrases: Phrases, reader: PhraseReader) -> ReadPhrases:
        """Reads the phrases."""
        columns = phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist()
        stop = [reader(*column)[1] for column in zip(*columns, strict=True)]
        return cls(phrases, np.array(stop, np.int64))

    def where(self, i: int) -> tuple[int, int, int]:
        """Song, first bar and the bar after the last of a phrase."""
        return int(self.phrases.song[i]), int(self.phrases.first[i]), int(self.stop[i])

    def zero_bars(self, songs: SongSource, song: int) -> Floats:
        """Of each bar of a song 0 where it was seen or has no onset, else NaN, shape (bars,)."""
        bars = np.where(songs.bar_onsets(song) > 0, np.nan, 0.0)
        for i in np.flatnonzero(self.phrases.song == song):
            _, first, stop = self.where(int(i))
            bars[first:stop] = 0.0
        return bars


def _batch_of(ids: Sequence[Longs]) -> Batch:
    """Phrases as a batch that does not say where they are from."""
    nowhere = np.zeros(len(ids), np.int64)
    return collate(ids, {}, Phrases(nowhere, nowhere, nowhere))


@dataclass(frozen=True)
class _Variants:
    """Phrases, whole or with something left out, columns of shape (V,).

    Attributes:
        phrase: Which phrase.
        row: Its place among all that the model sees, -1 where no note is left.
        bar: The song's bar that is left out, -1 for none.
        program: The program that is left out, -2 for none.
    """

    phrase: Longs
    row: Longs
    bar: Longs
    program: Longs

    @property
    def whole(self) -> Bools:
        """Those of which nothing is left out."""
        mask: Bools = (self.bar == _NO_BAR) & (self.program == _NO_PROGRAM)
        return mask


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
        self,
        model: PhraseClassifier,
        tokens: TokenSpec,
        data: Mapping[str, Any],
        *,
        batch_phrases: int = 64,
        batch_tokens: int = 32768,
        device: torch.device | str = "cpu",
    ) -> None:
        self._model, self._tokens, self._data, self._device = model, tokens, data, device
        self._has_programs = any(f.is_type("Program").any() for f in tokens.fields)
        self._batch_phrases, self._batch_tokens = batch_phrases, batch_tokens

    def __call__(
        self, songs: SongSource, phrases: Phrases, targets: Targets
    ) -> list[dict[str, Attribution]]:
        """For each song the attribution of each label.

        Args:
            songs: The songs, S.
            phrases: All their phrases.
            targets: For each label the class to explain of each song, shape (S,).
        """
        marks = self._data.get("marks", False)
        reader = PhraseReader(songs, self._tokens, self._data["max_tokens"], marks)
        seen = ReadPhrases.read(phrases, reader)
        noted: list[tuple[int, int, int, int]] = []
        batches = self._batches(songs, seen, reader, noted)
        found = predict_phrases(self._model, batches, self._device)
        variants = _Variants(*np.array(noted, np.int64).reshape(-1, 4).T)
        song_V = seen.phrases.song[variants.phrase]
        out: list[dict[str, Attribution]] = []
        for song in range(len(songs)):
            mine = np.flatnonzero(song_V == song)
            explained: dict[str, Attribution] = {}
            for label in self._model.heads:
                log_probs = np.maximum(found.log_probs[label], LOG_ZERO)
                without = _Without(log_probs, variants, mine, int(targets[label][song]))
                bars = seen.zero_bars(songs, song)
                for v in mine[variants.bar[mine] != _NO_BAR]:
                    bars[variants.bar[v]] = without(np.array([v]))
                programs: dict[int, float] = {}
                if self._has_programs:
                    for program in np.unique(songs.song(song).notes.program).tolist():
                        chosen = mine[variants.program[mine] == program]
                        programs[program] = without(chosen) if len(chosen) else np.nan
                explained[label] = Attribution(without.target, without.before, bars, programs)
            out.append(explained)
        return out

    def _batches(
        self,
        songs: SongSource,
        seen: ReadPhrases,
        reader: PhraseReader,
        noted: list[tuple[int, int, int, int]],
    ) -> Iterator[Batch]:
        """Batches of all phrases, whole and with something left out, noting the variants.

        The whole ones are encoded from their notes as the others are, so that nothing but what is
        left out differs.
        """
        rows, n_tokens = 0, 0
        pending: list[Longs] = []
        for i in range(len(seen.phrases)):
            song, first, stop = seen.where(i)
            music = songs.song(song).bars(first, stop)
            bar_n = np.searchsorted(music.bar_ticks, music.notes.onset, side="right") - 1
            cuts: list[tuple[int, int, Bools]] = [(_NO_BAR, _NO_PROGRAM, bar_n >= 0)]
            cuts += [(first + int(b), _NO_PROGRAM, bar_n != b) for b in np.unique(bar_n)]
            if self._has_programs:
                program_n = music.notes.program
                cuts += [(_NO_BAR, int(p), program_n != p) for p in np.unique(program_n)]
            for bar, program, kept_n in cuts:
                if not kept_n.any():
                    noted.append((i, -1, bar, program))
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


class _Without:
    """What the log-odds of a song lose when variants stand for their phrases.

    A phrase in which no music is left is no phrase any more: the mean is over the others.

    Attributes:
        target: The class.
        before: The log-odds with nothing left out.
    """

    def __init__(self, log_probs_VC: Floats, variants: _Variants, mine: Longs, target: int) -> None:
        self._log_probs_VC, self._variants = log_probs_VC, variants
        whole = mine[variants.whole[mine]]
        self._whole = {int(variants.phrase[v]): log_probs_VC[variants.row[v]] for v in whole}
        self._sum_C: Floats = np.sum(list(self._whole.values()), axis=0)
        self.target = target
        self.before = log_odds(self._sum_C / len(self._whole), target)

    def __call__(self, chosen: Longs) -> float:
        """NaN where no music is left in the song."""
        sum_C, n = self._sum_C.copy(), len(self._whole)
        for v in chosen:
            sum_C -= self._whole[int(self._variants.phrase[v])]
            if self._variants.row[v] < 0:
                n -= 1
            else:
                sum_C += self._log_probs_VC[self._variants.row[v]]
        return self.before - log_odds(sum_C / n, self.target) if n else np.nan


def _keeping(kept_n: Bools) -> Callable[[Song], Song]:
    """Leaves the other notes of a phrase out."""
    return lambda phrase: replace(phrase, notes=phrase.notes.select(kept_n))
