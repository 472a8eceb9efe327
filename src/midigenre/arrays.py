"""Names for kinds of arrays, and the few functions on them that several layers need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Keys = NDArray[np.uint64]

LOG_ZERO = -1e4
"""Stands for log 0, which would turn a mean of log-probabilities into NaN."""

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The increment of SplitMix64's state."""


def scramble(x: NDArray[np.integer[Any]]) -> Keys:
    """A 64-bit bijection that spreads structured integers: the finalizer of SplitMix64.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014).
    """
    z: Keys = x.astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: Keys = z ^ (z >> np.uint64(31))
    return scrambled


def splitmix64(x: Keys) -> Keys:
    """The number that SplitMix64 gives in each of these states; see :func:`scramble`."""
    return scramble(x + GAMMA)


def song_keys(song_ids: Iterable[str]) -> Longs:
    """A number for each song by its id, shape (songs,)."""
    digests = (
        # File names need not be UTF-8.
        hashlib.blake2b(song_id.encode(errors="surrogateescape"), digest_size=8).digest()
        for song_id in song_ids
    )
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def components(n: int, pairs_P2: NDArray[np.integer[Any]]) -> Longs:
    """Number of the connected component of each of ``n`` nodes, shape (n,).

    Args:
        n: Number of nodes.
        pairs_P2: The nodes that each link joins, shape (links, 2).
    """
    from scipy.sparse import coo_array  # a fifth of a second, and few need it
    from scipy.sparse.csgraph import connected_components

    ends = (pairs_P2[:, 0], pairs_P2[:, 1])
    graph = coo_array((np.ones(len(pairs_P2), bool), ends), shape=(n, n))  # type: ignore[no-untyped-call]
    found: Longs = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
