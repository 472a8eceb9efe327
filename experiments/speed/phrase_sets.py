"""The fixed phrases of the benchmark: (a) full-band songs in REMI, (b) the twelve corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig
from symusic.core import ScoreTick

from midigenre import build
from midigenre.corpora.sequencer import (
    HAT,
    KICK,
    RIDE,
    SCALES,
    SNARE,
    Canvas,
    degree,
    in_register,
    triad,
)
from midigenre.data.phrases import MemorySongs, PhraseReader, Phrases, consecutive
from midigenre.data.shards import ShardSet
from midigenre.spec import Batch, LabelSpec, TokenSpec
from midigenre.tokenizers.base import Tokenizer

CONF = Path(__file__).resolve().parents[2] / "conf"
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PhraseSet:
    """Phrases in a fixed order.

    Attributes:
        name: Key in the results.
        about: What it holds, for the table.
        ids: Token ids of each phrase, (T, 1).
        labels: Class of each phrase, (phrases,).
        tokens: Vocabulary.
        classes: Class names.
        batch_phrases: Phrases in a batch, on every side.
    """

    name: str
    about: str
    ids: Sequence[Ids]
    labels: NDArray[np.int64]
    tokens: TokenSpec
    classes: LabelSpec
    batch_phrases: int

    @property
    def lengths(self) -> list[int]:
        return [len(i) for i in self.ids]

    def batches(self) -> list[Batch]:
        """Packed, in the given order."""
        made = []
        for begin in range(0, len(self.ids), self.batch_phrases):
            chosen = slice(begin, begin + self.batch_phrases)
            places = np.arange(len(self.ids))[chosen]
            made.append(
                Batch.from_phrases(self.ids[chosen], {"genre": self.labels[chosen]}, places, places)
            )
        return made


def composed(*overrides: str) -> DictConfig:
    """The config of ``midigenre train`` with overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def full_band(
    n_phrases: int, batch_phrases: int, scale: float = 1.0, n_songs: int = 80
) -> PhraseSet:
    """Set (a): phrases of synthesised bands whose lengths follow those of real songs.

    Real full-band songs: mean 687 tokens for 4 bars, median 607, p90 1,254, p99 2,109 (3,669 songs,
    DESIGN.md section 7). The set takes the ``n_phrases`` mid-quantiles of the lognormal with that
    median and mean (its p90 is 1,149, its p99 1,932: a lighter tail, so less padding), each from
    the synthesised phrase that comes nearest.

    Args:
        n_phrases: Number of phrases.
        batch_phrases: Phrases in a batch.
        scale: Factor on the lengths, for a quick try.
        n_songs: Songs to choose the phrases from, three of each.
    """
    cfg = composed("corpus=toy", "tokenizer=remi")
    tokenizer = build.make_tokenizer(cfg)
    pool = _band_phrases(tokenizer, n_songs)
    lengths = np.array([len(i) for i in pool])
    normal = NormalDist(np.log(607 * scale), (2 * np.log(687 / 607)) ** 0.5)
    wanted = np.exp([normal.inv_cdf((i + 0.5) / n_phrases) for i in range(n_phrases)])
    chosen = [pool[int(np.abs(lengths - w).argmin())] for w in wanted]
    order = np.random.default_rng(0).permutation(n_phrases)
    return PhraseSet(
        name="a",
        about="full band, REMI, max_tokens=2048",
        ids=[chosen[i] for i in order],
        labels=np.arange(n_phrases) % 12,
        tokens=tokenizer.spec,
        classes=LabelSpec({"genre": tuple(f"class {i}" for i in range(12))}),
        batch_phrases=batch_phrases,
    )


def _band_phrases(tokenizer: Tokenizer, n_songs: int) -> list[Ids]:
    """4-bar phrases of bands from a trio to a big, busy one."""
    encoded = []
    for i in range(n_songs):
        song = tokenizer.clean(_band(np.random.default_rng(i), busy=(i + 1) / n_songs))
        encoded.append((song, tokenizer.encode(song)))
    songs = MemorySongs(encoded)
    reader = PhraseReader(songs, tokenizer.spec, max_tokens=2048)
    phrases = consecutive(songs, np.arange(n_songs), 4)
    return read(reader, phrases)


def read(reader: PhraseReader, phrases: Phrases) -> list[Ids]:
    """Token ids of each phrase."""
    columns = (phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist())
    return [reader(*place)[0] for place in zip(*columns, strict=True)]


def _band(rng: np.random.Generator, busy: float) -> ScoreTick:
    """12 bars of drums, bass, chords of up to four players, and a melody.

    Args:
        rng: Draws the notes.
        busy: From 0 (sparse) to 1 (every sixteenth full).
    """
    canvas = Canvas([(0, (4, 4))], float(rng.integers(80, 140)), 12 * 16)
    players = {"keys": 4, "guitar": 27, "strings": 48, "brass": 61}
    for name, program in {"drums": -1, "bass": 33, "melody": 73, **players}.items():
        canvas.part(name, program)
    root, scale = int(rng.integers(12)), SCALES["major"]
    for step in range(12 * 16):
        beat, chord = step % 4 == 0, triad(root, scale, int(rng.integers(7)), 55)

        def chance(share: float, on_beat: bool = beat) -> bool:
            return bool(rng.random() < share * (1 if on_beat else 0.7) * (0.05 + busy))

        velocity = int(rng.integers(40, 120))
        for key, share in ((HAT, 1.0), (KICK, 0.7), (SNARE, 0.6), (RIDE, 0.5)):
            if chance(share):
                canvas.add("drums", step, 1, key, velocity)
        if chance(0.9):
            canvas.add("bass", step, 2, in_register(chord[0], 36), velocity)
        if chance(1.0):
            tone = degree(root + 72, scale, int(rng.integers(7)))
            canvas.add("melody", step, int(rng.integers(1, 5)), tone, velocity)
        for name in players:
            if chance(0.45):
                canvas.chord(name, step, int(rng.integers(1, 9)), chord, velocity)
    return canvas.score()


def prepared(corpus: str, home: Path, shards: Path | None) -> tuple[DictConfig, ShardSet]:
    """The shards of a corpus in REMI; prepared if need be."""
    overrides = [f"corpus={corpus}", "tokenizer=remi", "model=small", f"home='{home}'"]
    if shards is not None:
        overrides.append(f"shards='{shards}'")
    cfg = composed(*overrides)
    return cfg, build.prepared(cfg)


def of_shards(shards: ShardSet, data: Any, n_phrases: int, batch_phrases: int) -> PhraseSet:
    """Set (b): random phrases of the training songs."""
    phrases = data.phrases("train")
    chosen = np.random.default_rng(0).permutation(len(phrases))[:n_phrases]
    phrases = phrases.select(chosen)
    return PhraseSet(
        name="b",
        about=f"{shards.folder.name.split('-')[0]}, REMI, max_tokens={data.max_tokens}",
        ids=read(data.reader, phrases),
        labels=data.labels["genre"][phrases.song],
        tokens=shards.tokens,
        classes=LabelSpec({"genre": shards.labels.classes["genre"]}),
        batch_phrases=batch_phrases,
    )
