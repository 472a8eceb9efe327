"""A hashed share of the songs, so that two models can be trained on different ones.

A judge that saw the songs of a generator would praise it for repeating them: train the one with
``fold=1/2`` and the other with ``fold=2/2``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midigenre.data.duplicates import linked_groups
from midigenre.errors import UserError

_LINKS = ("song_id", "group", "duplicate_group")


@dataclass(frozen=True)
class Subset:
    """The ``i``-th of ``n`` shares of the songs.

    Songs that belong together (a group, duplicates) are always in the same share. It follows from
    the SHA-256 of ``group:NAME``, or of ``song:ID`` where a song stands alone: not from the split,
    a seed or how many songs there are, and not from the tokenizer, but for duplicates without a
    group. Those go by the first that was kept, which another tokenizer or ``limit`` may reject.

    Attributes:
        i: Number of the share, from 1.
        n: Number of shares.
    """

    i: int
    n: int

    @classmethod
    def from_config(cls, text: object) -> Subset:
        """The share that ``fold=i/n`` names.

        Raises:
            UserError: It is not written as ``i/n`` with i in 1 to n.
        """
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", str(text))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"fold={text}: give i/n with i in 1 to n, for instance fold=1/2")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.i}/{self.n}"

    def mask(self, manifest: Sequence[Mapping[str, str]]) -> NDArray[np.bool_]:
        """Which songs of a manifest are in this share, shape (songs,)."""
        columns = ([row[name] for row in manifest] for name in _LINKS)
        groups = linked_groups(*columns)
        return np.array([_hash(group) % self.n == self.i - 1 for group in groups], bool)


def _hash(group: str) -> int:
    # File names need not be UTF-8.
    return int(hashlib.sha256(group.encode(errors="surrogateescape")).hexdigest(), 16)
