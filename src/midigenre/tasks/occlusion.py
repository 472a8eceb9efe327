"""Occlusion: what a song's log-odds lose without the notes of a bar or of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.data.phrases import PhraseReader
from midigenre.data.shards import Songs
from midigenre.midi.song import DRUMS, Song
from midigenre.models import PhraseClassifier
from midigenre.spec import Batch
from midigenre.tasks.attribution import (
    LOG_ZERO,
    Attribution,
    Floats,
    Longs,
    Seen,
    Targets,
    batch_of,
    log_odds,
)
from midigenre.tasks.predict import predict_phrases

_NO_BAR, _NO_PROGRAM = -1, DRUMS - 1


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
    def whole(self) -> NDArray[np.bool_]:
        """Those of which nothing is left out."""
        mask: NDArray[np.bool_] = (self.bar == _NO_BAR) & (self.program == _NO_PROGRAM)
        return mask


class Occlusion:
    """Explains by leaving out; call it with songs.

    Args:
        model: The classifier.
        has_programs: Whether its vocabulary says programs.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, but for a longer phrase, which makes one alone.
        device: Where to compute.
    """

    def __init__(
        self,
        model: PhraseClassifier,
        has_programs: bool,
        batch_phrases: int,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        self._model, self._has_programs, self._device = model, has_programs, device
        self._batch_phrases, self._batch_tokens = batch_phrases, batch_tokens

    def __call__(
        self, songs: Songs, seen: Seen, reader: PhraseReader, targets: Targets
    ) -> list[dict[str, Attribution]]:
        """For each song the attribution of each label.

        Args:
            songs: The songs.
            seen: Their phrases.
            reader: What read them.
            targets: The classes.
        """
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
                for program in seen.programs(songs, song) if self._has_programs else []:
                    chosen = mine[variants.program[mine] == program]
                    programs[program] = without(chosen) if len(chosen) else np.nan
                explained[label] = Attribution(without.target, without.before, bars, programs)
            out.append(explained)
        return out

    def _batches(
        self,
        songs: Songs,
        seen: Seen,
        reader: PhraseReader,
        noted: list[tuple[int, int, int, int]],
    ) -> Iterator[Batch]:
        """Batches of all phrases, whole and with something left out, noting the variants.

        The whole ones are encoded from their notes as the others are, so that nothing but what is
        left out differs.
        """
        rows, n_tokens = 0, 0
        pending: list[NDArray[np.int64]] = []
        for i in range(len(seen.phrases)):
            song, first, stop = seen.where(i)
            music = songs.song(song).bars(first, stop)
            bar_n = np.searchsorted(music.bar_ticks, music.notes.onset, side="right") - 1
            cuts: list[tuple[int, int, NDArray[np.bool_]]] = [(_NO_BAR, _NO_PROGRAM, bar_n >= 0)]
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
                    yield batch_of(pending)
                    pending, n_tokens = [], 0
                pending.append(ids)
                n_tokens += len(ids)
                noted.append((i, rows, bar, program))
                rows += 1
        if pending:
            yield batch_of(pending)


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


def _keeping(kept_n: NDArray[np.bool_]) -> Callable[[Song], Song]:
    """Leaves the other notes of a phrase out."""
    return lambda phrase: replace(phrase, notes=phrase.notes.select(kept_n))
