"""Songs, tokenizers and corpora that are small enough for the tests of ``data``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from midigenre.corpora.base import Corpus, Listing, Progress, SongRef, Unusable, no_progress
from midigenre.data.chunks import Workers
from midigenre.data.phrases import MemorySongs
from midigenre.data.prepare import Settings, prepare
from midigenre.data.sandbox import read_song
from midigenre.data.shards import ShardSet
from midigenre.tokenizers.base import Tokenizer
from midigenre.tokenizers.miditok import MidiTokTokenizer

CLASSES = {
    "remi": "REMI", "cp": "CPWord", "octuple": "Octuple", "midilike": "MIDILike", "tsd": "TSD",
}  # fmt: skip
TPQ = 480


@cache
def tokenizer(kind: str = "remi", **settings: Any) -> Tokenizer:
    """A tokenizer with every attribute, as in ``conf/tokenizer``, but few meters."""
    return MidiTokTokenizer(
        name=kind,
        cls=CLASSES[kind],
        params={
            "use_programs": True,
            "use_pitchdrum_tokens": True,
            "use_velocities": True,
            "num_velocities": 8,
            "use_tempos": True,
            "num_tempos": 16,
            "tempo_range": [40, 250],
            "use_time_signatures": True,
        },
        time_signatures=("2/4", "3/4", "4/4", "6/4"),
        **settings,
    )


def midi(
    onsets: Sequence[int],
    seed: int = 0,
    meters: Iterable[tuple[int, int, int]] = ((0, 4, 4),),
    tempi: Iterable[tuple[int, float]] = ((0, 120.0),),
) -> bytes:
    """A file of 4/4 bars with so many notes each; meters and tempi start at a quarter note."""
    rng = np.random.default_rng(seed)
    score = ScoreTick(TPQ)
    score.time_signatures.extend([TimeSignatureTick(q * TPQ, n, d) for q, n, d in meters])
    score.tempos.extend([TempoTick(q * TPQ, qpm) for q, qpm in tempi])
    track = TrackTick("", 0, False)
    for bar, n in enumerate(onsets):
        for i in range(n):
            at = bar * 4 * TPQ + i * 4 * TPQ // n
            track.notes.append(NoteTick(at, TPQ // 4, int(rng.integers(40, 80)), 80))
    score.tracks.append(track)
    return bytes(score.dumps_midi())


def write(path: Path, data: bytes) -> Path:
    """The file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


class Listed(Corpus):
    """A corpus of the songs that it is given."""

    name = "listed"

    def __init__(
        self,
        songs: Sequence[SongRef],
        unusable: Sequence[Unusable] = (),
        labels: tuple[str, ...] = ("genre",),
        classes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.listing = Listing(list(songs), list(unusable))
        self.labels = labels
        self._classes = classes

    def classes(self) -> Mapping[str, tuple[str, ...]] | None:
        return self._classes

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        return self.listing


def songs_in(folder: Path, n: int, genres: Sequence[str] = ("a", "b"), bars: int = 3) -> Listed:
    """``n`` different songs over the genres."""
    return Listed(
        [
            SongRef(
                f"s{i:03d}",
                write(folder / f"{i:03d}.mid", midi([2] * (bars + i % 4), seed=i)),
                {"genre": genres[i % len(genres)]},
            )
            for i in range(n)
        ]
    )


def prepared(
    corpus: Corpus,
    home: Path,
    kind: str = "remi",
    progress: Progress = no_progress,
    **settings: Any,
) -> ShardSet:
    """The shards of a corpus."""
    if "n_workers" in settings:
        settings["workers"] = Workers(settings.pop("n_workers"))
    return prepare(
        corpus, {"name": corpus.name}, tokenizer(kind), home, Settings(**settings), progress
    )


def in_memory(files: Iterable[bytes], kind: str = "remi") -> MemorySongs:
    """Songs of these files, encoded."""
    tok = tokenizer(kind)
    return MemorySongs([read_song(data, tok) for data in files])


class Stopped(Exception):
    """What :func:`stop_at` raises."""


def stop_at(what: str, done: int) -> Progress:
    """A progress that raises when so many songs are done."""

    def progress(now: str, n: int, total: int) -> None:
        if now == what and n >= done:
            raise Stopped

    return progress
