"""Fréchet distance of two sets of embeddings, with the floor that sampling noise sets.

The distance of two normal distributions, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and
Landau 1982), fitted to the embeddings of real and of generated music: Heusel et al. 2017 ("GANs
Trained by a Two Time-Scale Update Rule", FID) for images, Kilgour et al. 2019 ("Fréchet Audio
Distance") for sound. Embeddings come as arrays; which encoder made them is the caller's affair, and
distances under different encoders do not compare.

Two samples of the same distribution have a distance above 0, which falls about as 1/n and grows
with the number of dimensions (Chong and Forsyth 2020, "Effectively Unbiased FID"). So a distance
comes with its *floor*, the distance between random parts of the real set, and with the *matched*
distance, that of generated music from parts of the same sizes: what matched exceeds floor by is the
difference, what floor itself shows is noise. It is refused where a
covariance cannot be estimated: with as many dimensions as samples or more it is singular. Nothing
is shrunk to hide that; ``components`` is the honest way to get along with few samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midigenre.arrays import Floats
from midigenre.errors import UserError
from midigenre.evaluation.music.distance import split_parts, summary

MIN_SAMPLES = 50
"""Fewer embeddings in a set are refused whatever their width."""

N_SPLITS = 20


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance and what it must be judged by.

    Attributes:
        distance: Between generated and real embeddings, 0 or more, in squared units of them.
        matched: ``mean``, ``low`` and ``high`` over splits of the distance between random parts of
            the generated and of the real set, to be held against ``floor``.
        floor: The same between disjoint random parts of the real set.
        n_parts: Sizes of the two parts of both. The first is that of the generated set, or half of
            the real one where that is less.
        n_generated: Generated embeddings.
        n_real: Real embeddings.
        dimensions: Dimensions in which the distance was taken.
        explained: Share of the real embeddings' variance that lies in them.
    """

    distance: float
    matched: dict[str, float | None]
    floor: dict[str, float | None]
    n_parts: tuple[int, int]
    n_generated: int
    n_real: int
    dimensions: int
    explained: float


def frechet(
    generated_ND: ArrayLike,
    real_ND: ArrayLike,
    *,
    components: int | None = None,
    n_splits: int = N_SPLITS,
    seed: int = 0,
) -> Frechet:
    """Fréchet distance of generated to real embeddings.

    Args:
        generated_ND: Embeddings of generated music, shape (N, D).
        real_ND: Embeddings of held-out real music, shape (M, D); the floor halves them, so M must
            be more than twice the dimensions.
        components: Take the distance within so many leading principal components of the real
            embeddings (fitted on these alone); None for all D dimensions. It is blind to what
            differs outside of them: ``explained`` says how much that could be.
        n_splits: Random splits of the real set for floor and matched distance.
        seed: Their seed.

    Raises:
        UserError: Fewer than :data:`MIN_SAMPLES` embeddings, or no more than dimensions, in the
            generated set or in half of the real one.
        ValueError: Widths that differ, numbers that are not finite, or ``components`` outside
            1 to D.
    """
    ours, theirs = (np.asarray(array, np.float64) for array in (generated_ND, real_ND))
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"embeddings of shapes {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("embeddings hold NaN or infinity")
    width = ours.shape[1]
    if components is not None and not 1 <= components <= width:
        raise ValueError(f"components={components}: give 1 to {width}")
    dimensions = components or width
    _refuse_few(len(ours), len(theirs), dimensions)
    explained = 1.0
    if components is not None:
        ours, theirs, explained = _principal(ours, theirs, components)
    floor, matched = [], []
    for first, rest, mine in split_parts(len(ours), len(theirs), n_splits, seed):
        base = moments(theirs[rest])
        floor.append(gaussian_distance(*moments(theirs[first]), *base))
        matched.append(gaussian_distance(*moments(ours[mine]), *base))
    part = min(len(ours), len(theirs) // 2)
    return Frechet(
        distance=gaussian_distance(*moments(ours), *moments(theirs)),
        matched=summary(np.array(matched)),
        floor=summary(np.array(floor)),
        n_parts=(part, len(theirs) - part),
        n_generated=len(ours),
        n_real=len(theirs),
        dimensions=dimensions,
        explained=explained,
    )


def moments(rows_ND: Floats) -> tuple[Floats, Floats]:
    """Mean, shape (D,), and unbiased covariance, shape (D, D), of 2 rows or more."""
    covariance: Any = np.cov(rows_ND, rowvar=False)
    return rows_ND.mean(0), np.atleast_2d(covariance)


def gaussian_distance(
    mean_a: Floats, covariance_a: Floats, mean_b: Floats, covariance_b: Floats
) -> float:
    """Fréchet distance of two normal distributions, 0 or more.

    tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2). Both roots are of symmetric
    matrices, so there is no complex part to drop and no jitter to add, as the root of A B itself
    needs where a covariance is nearly singular.

    Args:
        mean_a: Mean of the first, shape (D,).
        covariance_a: Its covariance, shape (D, D), symmetric and positive semidefinite.
        mean_b: Mean of the second.
        covariance_b: Its covariance.
    """
    root_a, root_b = _root(covariance_a), _root(covariance_b)
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    # Rounding can take equal distributions just below 0.
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + traces - 2 * cross))


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    scaled: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
    root: Floats = scaled @ vectors.T
    return root


def _principal(ours: Floats, theirs: Floats, components: int) -> tuple[Floats, Floats, float]:
    centre, covariance = moments(theirs)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    axes = vectors[:, ::-1][:, :components]
    total = float(values.sum())
    explained = float(values[::-1][:components].sum()) / total if total else 1.0
    return (ours - centre) @ axes, (theirs - centre) @ axes, min(1.0, explained)


def _refuse_few(n_generated: int, n_real: int, dimensions: int) -> None:
    """Refuses what has no covariance, in the comparison or in its floor."""
    needed = max(MIN_SAMPLES, dimensions + 1)
    for what, n, least in (
        ("generated", n_generated, needed),
        ("held-out", n_real, 2 * needed),
    ):
        if n < least:
            part = min(n_generated, n_real // 2)
            instead = (
                f", or compare fewer dimensions (components={part - 1} or less)"
                if part >= MIN_SAMPLES
                else ""
            )
            raise UserError(
                f"a Fréchet distance in {dimensions} dimensions needs {least} {what} samples or "
                f"more, there are {n}: give more samples{instead}"
            )
