"""How far generated music lies from real music: descriptor by descriptor, and in embeddings.

**Descriptors.** A song is one row of shares over cells, a set of songs is the mean of its rows, and
two sets are compared by

* the overlapping area, sum of min(p, q), 0 to 1 (Inman and Bradley 1989; Yang and Lerch 2020, "On
  the evaluation of generative models in music", section 3.3), and
* the Jensen-Shannon divergence in bits, 0 to 1 (Lin 1991), which counts cells that only one has.

The row of a histogram descriptor is the song's histogram. That of a number is a Gaussian kernel
around it, so that the set's mean is a kernel density. Yang and Lerch take the overlap not of the
descriptors but of the distances between songs within the real set and across the sets. Here it is
taken of the descriptors themselves: one can draw it and see to which side the generated music
differs, and songs are independent where pairs of songs are not, so songs can be resampled.

**Embeddings.** The Fréchet distance of two normal distributions, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1
S2)^(1/2)) (Dowson and Landau 1982), fitted to the embeddings of real and of generated music: Heusel
et al. 2017 ("GANs Trained by a Two Time-Scale Update Rule", FID) for images, Kilgour et al. 2019
("Fréchet Audio Distance") for sound. Distances under different encoders do not compare. There is
none where a covariance cannot be estimated: with as many dimensions as samples or more it is
singular. No shrinkage hides that; ``components`` reduces the dimensions.

**How to read a number.** Two samples of the same music have an overlap below 1 and a Fréchet
distance above 0, which falls about as 1/n and grows with the dimensions (Chong and Forsyth 2020,
"Effectively Unbiased FID"). So a value is judged by its *floor*: the same measure between two
random parts of the real set. Because noise depends on the number of songs, the *matched* value is
taken on random parts of just the floor's sizes: where matched and floor agree, generated and real
cannot be told apart. The 95 % interval of an overlap is a percentile bootstrap over the songs of
both sets. It says how different the sets are, the floor says whether they are: on normal samples of
50 against 50 to 600 against 300 the interval held the true overlap in 84 to 95 % of draws where
that was 0.3 to 0.8, but never where it was 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.special import ndtr

from midigenre.arrays import Floats, Longs
from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, interval
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, small_axes
from midigenre.evaluation.metrics import plain_number, ratio
from midigenre.evaluation.music.descriptors import HISTOGRAMS, SCALARS, DescriptorTable
from midigenre.wording import plural

MIN_SONGS = 10  # in a set; the distribution of fewer is hardly known
MIN_SAMPLES = 50  # embeddings in a set, whatever their width
N_SPLITS = 200
N_FRECHET_SPLITS = 20
CELLS = 256


def overlap(p: Floats, q: Floats) -> Floats:
    """Overlapping area of distributions over cells, shape (..., cells) to (...)."""
    return np.asarray(np.minimum(p, q).sum(-1))


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon divergence in bits, 0 to 1, shape (..., cells) to (...)."""
    middle = (p + q) / 2
    total = np.zeros(np.broadcast(p, q).shape[:-1])
    for one in (p, q):
        seen = np.log2(ratio(one, middle), out=np.zeros_like(middle), where=one > 0)
        total = total + (one * seen).sum(-1) / 2
    return np.clip(total, 0.0, 1.0)


MEASURES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "overlap": overlap,
    "jensen_shannon": jensen_shannon,
}


def split_parts(
    n_generated: int, n_real: int, n_splits: int, seed: int
) -> Iterator[tuple[Longs, Longs, Longs]]:
    """Random parts of both sets, for a floor and for the value to judge by it.

    Yields:
        Rows of the real set, all its other rows, and rows of the generated set: the floor compares
        the first with the second, the matched value the third with the second. The first and the
        third have the size of the generated set, but at most half that of the real one.
    """
    rng = np.random.default_rng(seed)
    ours = np.random.default_rng((seed, 1))  # a floor is the same whatever it is the floor of
    size = min(n_generated, n_real // 2)
    for _ in range(n_splits):
        order = rng.permutation(n_real)
        yield order[:size], order[size:], ours.permutation(n_generated)[:size]


def summary(values: Floats) -> dict[str, float | None]:
    """Mean and central 95 % of repeated splits."""
    low, high = interval(values)
    return {"mean": plain_number(values.mean()) if len(values) else None, "low": low, "high": high}


def bandwidth(values: Floats) -> float:
    """Silverman's rule, 0.9 min(sd, IQR / 1.34) n^(-1/5) (1986, equation 3.31).

    Where half of the values are equal the quartiles are useless and only the standard deviation is
    used; 0 for equal values, which then stay points.
    """
    if len(values) < 2:
        return 0.0
    deviation = float(values.std(ddof=1))
    quartiles = float(np.subtract(*np.percentile(values, [75, 25]))) / 1.34
    return 0.9 * min(deviation, quartiles or deviation) * float(len(values) ** -0.2)


def kernel_rows(values_S: Floats, low: float, high: float, width: float) -> Floats:
    """Mass of a Gaussian around each value in each cell, shape (S, cells); rows add up to 1.

    The line is cut into :data:`CELLS` cells between ``low`` and ``high``, the ends of all sets that
    are compared; the outer cells also hold what lies beyond. ``width`` is the kernel's standard
    deviation; 0 puts each value into its cell.
    """
    edges = np.linspace(low, high, CELLS + 1)[1:-1]
    if width > 0:
        below = ndtr((edges - values_S[:, None]) / width)
    else:
        below = (values_S[:, None] < edges).astype(np.float64)
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def compare_sets(
    generated: DescriptorTable,
    real: DescriptorTable,
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
    n_splits: int = N_SPLITS,
) -> dict[str, dict[str, Any]]:
    """Compares every descriptor of generated songs with that of real ones.

    Args:
        generated: Those of the generated songs.
        real: Those of held-out real songs, best cut to the length of the generated ones.
        seed: Seed of resamples and splits.
        n_bootstrap: Number of resamples.
        n_splits: Number of random splits of the real songs.

    Returns:
        For each descriptor: ``n_generated`` and ``n_real`` (songs in which it is defined),
        ``unit`` and ``mean_generated`` and ``mean_real`` (of numbers) or ``bins``,
        ``share_generated`` and ``share_real`` (of histograms), and for ``overlap`` and
        ``jensen_shannon`` a dictionary of ``value``, ``ci95``, and ``floor`` and ``matched``
        (``mean``, ``low``, ``high`` over the splits, :func:`split_parts`). Instead of those two,
        ``reason`` where the descriptor is defined in fewer than :data:`MIN_SONGS` songs of a set.

    Raises:
        UserError: Fewer than :data:`MIN_SONGS` songs in a set.
    """
    for what, table in (("generated", generated), ("held-out", real)):
        if len(table) < MIN_SONGS:
            raise UserError(
                f"{plural(len(table), f'{what} song')}: too few to compare distributions; "
                f"give {MIN_SONGS} or more (n={MIN_SONGS})"
            )
    found: dict[str, dict[str, Any]] = {}
    for name in (*SCALARS, *HISTOGRAMS):
        number = name in SCALARS
        tables = [t.scalars if number else t.histograms for t in (generated, real)]
        ours, theirs = (
            rows[np.isfinite(rows).reshape(len(rows), -1).all(1)]
            for rows in (table[name] for table in tables)
        )
        found[name] = {"n_generated": len(ours), "n_real": len(theirs)}
        found[name] |= {"unit": SCALARS[name]} if number else {"bins": list(HISTOGRAMS[name])}
        if min(len(ours), len(theirs)) < MIN_SONGS:
            found[name]["reason"] = (
                f"defined in {len(ours)} generated and {plural(len(theirs), 'real song')}; "
                f"{MIN_SONGS} of each needed"
            )
            continue
        means = {"generated": ours.mean(0).tolist(), "real": theirs.mean(0).tolist()}
        found[name] |= {f"{'mean' if number else 'share'}_{k}": mean for k, mean in means.items()}
        if number:
            both = np.concatenate([ours, theirs])
            # From the real songs alone: generated music must not affect the scale.
            width = bandwidth(theirs)
            low, high = float(both.min()), float(both.max())
            ours, theirs = (kernel_rows(values, low, high, width) for values in (ours, theirs))
        found[name] |= _compare(ours, theirs, seed, n_bootstrap, n_splits)
    return found


def _compare(
    ours_SG: Floats, theirs_SG: Floats, seed: int, n_bootstrap: int, n_splits: int
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    resampled = []
    for rows in (ours_SG, theirs_SG):
        n = len(rows)
        # A resample of songs is how often each is drawn; its distribution is one matrix product.
        drawn = rng.multinomial(n, np.full(n, 1 / n), n_bootstrap)
        resampled.append(drawn @ rows / n)
    parts = list(split_parts(len(ours_SG), len(theirs_SG), n_splits, seed))
    shape = (len(parts), ours_SG.shape[1])
    first, rest, mine = (
        np.array([rows[part[i]].mean(0) for part in parts]).reshape(shape)
        for i, rows in enumerate((theirs_SG, theirs_SG, ours_SG))
    )
    found: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        found[name] = {
            "value": float(measure(ours_SG.mean(0), theirs_SG.mean(0))),
            "ci95": interval(measure(*resampled)),
            "matched": summary(measure(mine, rest)),
            "floor": summary(measure(first, rest)),
        }
    return found


def frechet(
    generated_ND: ArrayLike,
    real_ND: ArrayLike,
    *,
    components: int | None = None,
    n_splits: int = N_FRECHET_SPLITS,
    seed: int = 0,
) -> dict[str, Any]:
    """Fréchet distance of generated to real embeddings.

    Args:
        generated_ND: Embeddings of generated music, shape (N, D).
        real_ND: Embeddings of held-out real music, shape (M, D); the floor halves them, so M must
            be more than twice the dimensions.
        components: Take the distance within so many leading principal components of the real
            embeddings (fitted on these alone); None for all D dimensions. It ignores
            differences outside them: ``explained`` says how much that could be.
        n_splits: Random splits of the real set for floor and matched distance.
        seed: Their seed.

    Returns:
        ``distance``, 0 or more, in squared units of the embeddings; ``matched`` and ``floor``
        (``mean``, ``low``, ``high`` over the splits, :func:`split_parts`) and ``n_parts``, the
        sizes of the two parts of both; ``n_generated``, ``n_real``; ``dimensions``, and
        ``explained``, the share of the real embeddings' variance that lies in them.

    Raises:
        UserError: Fewer than :data:`MIN_SAMPLES` embeddings, or no more than dimensions, in the
            generated set or in half of the real one.
    """
    ours, theirs = (np.asarray(array, np.float64) for array in (generated_ND, real_ND))
    dimensions = components or ours.shape[1]
    part = min(len(ours), len(theirs) // 2)
    needed = max(MIN_SAMPLES, dimensions + 1)
    for what, n, least in (
        ("generated", len(ours), needed), ("held-out", len(theirs), 2 * needed),
    ):  # fmt: skip
        if n < least:
            fewer = f", or compare fewer dimensions (components={part - 1} or less)"
            raise UserError(
                f"a Fréchet distance in {dimensions} dimensions needs {least} {what} samples or "
                f"more, there are {n}: give more samples{fewer if part >= MIN_SAMPLES else ''}"
            )
    explained = 1.0
    if components is not None:
        centre, covariance = moments(theirs)
        values, vectors = np.linalg.eigh(covariance)
        values, axes = np.maximum(values, 0.0)[::-1], vectors[:, ::-1][:, :components]
        if total := float(values[::-1].sum()):
            explained = min(1.0, float(values[:components].sum()) / total)
        ours, theirs = (ours - centre) @ axes, (theirs - centre) @ axes
    floor, matched = [], []
    for first, rest, mine in split_parts(len(ours), len(theirs), n_splits, seed):
        base = moments(theirs[rest])
        floor.append(gaussian_distance(*moments(theirs[first]), *base))
        matched.append(gaussian_distance(*moments(ours[mine]), *base))
    return {
        "distance": gaussian_distance(*moments(ours), *moments(theirs)),
        "matched": summary(np.array(matched)),
        "floor": summary(np.array(floor)),
        "n_parts": [part, len(theirs) - part],
        "n_generated": len(ours),
        "n_real": len(theirs),
        "dimensions": dimensions,
        "explained": explained,
    }


def moments(rows_ND: Floats) -> tuple[Floats, Floats]:
    """Mean, shape (D,), and unbiased covariance, shape (D, D), of 2 rows or more."""
    return rows_ND.mean(0), np.atleast_2d(np.asarray(np.cov(rows_ND, rowvar=False)))


def gaussian_distance(
    mean_a: Floats, covariance_a: Floats, mean_b: Floats, covariance_b: Floats
) -> float:
    """Fréchet distance of two normal distributions, 0 or more.

    tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2). Both roots are of symmetric
    matrices, so there is no complex part to drop and no jitter to add, as the root of A B itself
    needs where a covariance is nearly singular. Means have shape (D,), covariances (D, D).
    """
    root_a, root_b = _root(covariance_a), _root(covariance_b)
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    # Rounding can take equal distributions just below 0.
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + traces - 2 * cross))


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T)


def overlap_figure(
    distances: Mapping[str, Mapping[str, Any]], title: str, measure: str = "overlap"
) -> Figure:
    """Overlap of every descriptor with real music: value, interval, matched value on its floor.

    The dot with its interval is the estimate; the ring lies within the floor's band where nothing
    tells generated from real.

    Args:
        distances: What :func:`compare_sets` returned.
        title: Title; taken literally.
        measure: One of :data:`MEASURES`.
    """
    rows = list(distances)
    figure = new_figure(7.2, 0.32 * len(rows) + 1.5)
    axes = figure.add_subplot()
    for y, name in enumerate(rows):
        found = distances[name].get(measure)
        if found is None:
            axes.text(0.01, y, "not enough songs", va="center", color=FAINT, fontsize=8.5)
            continue
        floor = found["floor"]
        if floor["low"] is not None:
            axes.barh(y, floor["high"] - floor["low"], left=floor["low"], height=0.55,
                      color=(BLUE, 0.25), ec=(BLUE, 0.4), lw=0.8,
                      label="real against real")  # fmt: skip
            axes.plot(found["matched"]["mean"], y, "o", mfc="none", color=RED, ms=7,
                      label="generated, as many songs as the band")  # fmt: skip
        low, high = found["ci95"]
        if low is not None:
            axes.plot([low, high], [y, y], color=RED, lw=1.4, label="95 % interval")
        axes.plot(found["value"], y, "o", color=RED, ms=5, label="generated against real")
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(measure.replace("_", "-").capitalize(), color=INK)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    keys = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if keys:
        figure.legend(
            keys.values(), keys.keys(), loc="outside lower center", ncols=2, frameon=False,
            fontsize=9, labelcolor=INK,
        )  # fmt: skip
    small_axes(axes, title)
    return figure
