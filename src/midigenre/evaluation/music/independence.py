"""Did the judge learn from what the generator learned from?

A judge that was trained on the generator's songs would praise it for repeating them, and one that
reads the same tokens shares its blind spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.corpora.base import Progress, SongRef
from midigenre.data.duplicates import file_digests
from midigenre.data.sandbox import Limits
from midigenre.data.shards import ShardSet
from midigenre.storage import place

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Independence:
    """How a judge and a generator relate.

    Attributes:
        shared: Training songs of the generator that the judge was trained on or chosen by.
        of: Training songs of the generator.
        tokenizers: That of the generator and that of the judge.
        known_to_judge: Songs of the generator's corpus (rows of its manifest) that the judge was
            trained on or chosen by.
        started_from: Runs whose weights the judge or the generator started from: what these had
            seen is not looked into.
    """

    shared: int
    of: int
    tokenizers: tuple[str, str]
    known_to_judge: frozenset[int]
    started_from: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a reader of the judgement must know; nothing if the judge is independent."""
        notes = []
        if self.shared:
            notes.append(
                f"the judge was trained on {self.shared:,} of the generator's {self.of:,} training "
                "songs, so it may reward copies; train them with fold=1/2 and fold=2/2"
            )
        if self.tokenizers[0] == self.tokenizers[1]:
            notes.append(
                f"judge and generator both read {self.tokenizers[0]} tokens, so they may share "
                "blind spots; train the judge with another tokenizer"
            )
        notes += [
            f"one of the two started from {source} (init_from), whose songs are not counted here: "
            "it may have seen the held-out ones"
            for source in self.started_from
        ]
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "shared_songs": self.shared,
            "generator_songs": self.of,
            "tokenizers": {"generator": self.tokenizers[0], "judge": self.tokenizers[1]},
            "independent": not self.notes,
            "notes": self.notes,
        }


def independence(
    generator: ShardSet,
    generator_rows: Longs,
    judge: ShardSet,
    judge_rows: Longs,
    progress: Progress,
    started_from: Sequence[str] = (),
) -> Independence:
    """Compares the songs of two runs by the bytes of their files.

    Args:
        generator: The generator's songs.
        generator_rows: Those that it was trained on.
        judge: The judge's songs.
        judge_rows: Those that it was trained on or chosen by.
        progress: Told about the files that are read.
        started_from: ``init_from`` of the two runs, where it was set.
    """
    theirs = set(_digests(judge, judge_rows, progress))
    every_row = np.arange(len(generator))
    known = {
        int(row)
        for row, digest in zip(every_row, _digests(generator, every_row, progress), strict=True)
        if digest in theirs
    }
    rows = set(generator_rows.tolist())
    return Independence(
        len(rows & known), len(rows), (generator.tokens.name, judge.tokens.name), frozenset(known),
        tuple(started_from),
    )  # fmt: skip


def _digests(shards: ShardSet, rows: Longs, progress: Progress) -> list[bytes]:
    """Digest of each song's file; of one that is gone its id stands for it."""
    refs = [
        SongRef(row["song_id"], place(row["path"]), {})
        for row in (shards.manifest[int(i)] for i in rows)
    ]
    found = file_digests(refs, Limits(), 2, progress)
    return [found[ref.song_id] or ref.song_id.encode(errors="surrogateescape") for ref in refs]
