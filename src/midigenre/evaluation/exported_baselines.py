"""What the baselines count in songs, and fitted baselines as plain arrays.

Counts give one row a phrase, of numbers that may be added: the row of a song is the sum of its
phrases' rows. So a baseline sees at both levels exactly the phrases that the model sees, with
bar numbers that start again in each, and nothing of a song's length beyond its phrases.

A pickled scikit-learn model executes what its file says. An :class:`ExportedBaseline` is the same
classifier as arrays of numbers (``numpy`` reads them with ``allow_pickle=False``), with the few
lines that evaluate it; tests compare it with scikit-learn's ``predict_proba``. There are three
forms:

``prior``: the share of each class, whatever the song.
``linear``: TF-IDF with sublinear frequencies and L2 norm, then logistic regression.
``trees``: features, then histogram gradient boosting: the sum of one leaf of each tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax

from midigenre.arrays import LOG_ZERO, Floats, Keys, Longs, splitmix64
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.midi.song import Song
from midigenre.spec import TokenSpec

PhraseCounts = Any
"""Rows that may be added: a float array, or a scipy matrix compressed by row."""

NGRAM_MAX = 3
NGRAM_BITS = 16
"""N-grams fall into 2 ** NGRAM_BITS buckets by their hash (Weinberger et al. 2009, "Feature Hashing
for Large Scale Multitask Learning"): no vocabulary to fit or to hold."""

PHRASES_AT_ONCE = 2048
"""Phrases whose counts are in memory together, but for the rest of the last one's song."""

_CELLS_AT_ONCE = 1 << 22  # rows times trees whose place is in memory together


@dataclass(frozen=True)
class ReadPhrase:
    """A phrase as the model sees it.

    Attributes:
        ids_TF: Its tokens, int64 of shape (T, F).
        music: The notes, meters and tempi of the bars that the tokens cover.
    """

    ids_TF: Longs
    music: Song


def read_phrases(reader: PhraseReader, phrases: Phrases) -> Iterator[ReadPhrase]:
    """Reads phrases in order; quickest where those of a song follow each other."""
    last, music = -1, None
    columns = phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist()
    for song, first, end in zip(*columns, strict=True):
        if music is None or song != last:
            last, music = song, reader.songs.song(song)
        ids_TF, stop = reader(song, first, end)
        yield ReadPhrase(ids_TF, music.bars(first, stop))


def no_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> PhraseCounts:
    """Nothing: one column of zeros."""
    return np.zeros((len(phrases), 1), np.float32)


def token_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> PhraseCounts:
    """Histogram of the tokens of every field, and how many phrases it counts.

    Returns:
        float32 of shape (phrases, sum of the vocabulary sizes + 1); the last column is 1.
    """
    starts_F = np.r_[0, np.cumsum(spec.sizes)]
    counts = np.ones((len(phrases), starts_F[-1] + 1), np.float32)
    for row, phrase in zip(counts, phrases, strict=True):
        flat = (phrase.ids_TF + starts_F[:-1]).ravel()
        row[:-1] = np.bincount(flat, minlength=starts_F[-1])
    return counts


def token_shares(counts: PhraseCounts) -> PhraseCounts:
    """Tokens per phrase: :func:`token_counts` of a phrase or a song on the same scale."""
    return counts[:, :-1] / counts[:, -1:]


def ngram_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> PhraseCounts:
    """Counts of the 1-, 2- and 3-grams of tokens.

    Where a step has several fields (CP, Octuple), n-grams run along each field by itself: a whole
    step taken as one word is nearly unique.

    Returns:
        float32 of shape (phrases, 2 ** NGRAM_BITS), compressed by row.
    """
    buckets = [np.zeros(0, np.int32)]
    for phrase in phrases:
        hashes = [ngram_hashes(ids_T, field) for field, ids_T in enumerate(phrase.ids_TF.T)]
        bits = np.concatenate(hashes) >> np.uint64(64 - NGRAM_BITS)
        buckets.append(bits.astype(np.int32))
    columns, edges = np.concatenate(buckets), np.cumsum([len(of) for of in buckets])
    counts = sparse.csr_matrix(  # type: ignore[no-untyped-call]
        (np.ones(len(columns), np.float32), columns, edges), shape=(len(phrases), 1 << NGRAM_BITS)
    )
    counts.sum_duplicates()  # type: ignore[no-untyped-call]
    return counts


def ngram_hashes(ids_T: Longs, field: int) -> Keys:
    """A 64-bit hash of every n-gram, unigrams first, in the order of their starts.

    An n-gram's hash mixes its last id into the hash of the n-gram before it; fields start apart.
    """
    ids = ids_T.astype(np.uint64)
    found = [splitmix64(splitmix64(np.array([field], np.uint64)) + ids)]
    for n in range(2, NGRAM_MAX + 1):
        found.append(splitmix64(found[-1][:-1] + ids[n - 1 :]))
    return np.concatenate(found)


_WIDTHS = {
    "programs": 129,  # notes of drums, then of each General MIDI program
    "velocities": 128,  # notes of each velocity
    "numerators": 17,  # bars; larger ones count as 16
    "denominators": 6,  # bars with 1, 2, 4, 8, 16, 32
    "bars": 1,
    "quarters": 1,
    "seconds": 1,
    "tempo": 1,  # qpm times quarters
    "tempo_squared": 1,
    "tempo_changes": 1,
}
_EDGES = np.cumsum([0, *_WIDTHS.values()])
_COLUMNS = {name: slice(*ends) for name, ends in zip(_WIDTHS, pairwise(_EDGES), strict=True)}


def metadata_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> PhraseCounts:
    """Programs, velocities, tempo, meter and number of notes; neither pitch nor rhythm.

    They are those of the cleaned song, also where the tokenizer does not write them.

    Returns:
        float64 of shape (phrases, sums); :func:`metadata_features` turns sums into features.
    """
    counts = np.zeros((len(phrases), _EDGES[-1]))
    for row, phrase in zip(counts, phrases, strict=True):
        music = phrase.music
        quarters = np.diff(np.r_[music.tempo_ticks, music.bar_ticks[-1]]) / music.tpq
        numerators, denominators = music.meters.T
        for name, values in {
            "programs": np.bincount(music.notes.program + 1, minlength=129),
            "velocities": np.bincount(music.notes.velocity, minlength=128),
            "numerators": np.bincount(np.minimum(numerators, 16), minlength=17),
            "denominators": np.bincount(np.log2(denominators).astype(np.int64), minlength=6),
            "bars": music.n_bars,
            "quarters": quarters.sum(),
            "seconds": (quarters * 60 / music.tempo_qpm).sum(),
            "tempo": (quarters * music.tempo_qpm).sum(),
            "tempo_squared": (quarters * music.tempo_qpm**2).sum(),
            "tempo_changes": len(music.tempo_qpm) - 1,
        }.items():
            row[_COLUMNS[name]] = values
    return counts


def metadata_features(counts: PhraseCounts) -> Floats:
    """Shares, means and densities of :func:`metadata_counts`, the same for phrases and songs.

    Returns:
        Shares of the programs (129), of 16 ranges of velocity, of the meters' numerators (17) and
        denominators (6); mean and standard deviation of the velocity and number of different ones;
        mean and standard deviation of the tempo in quarters per minute, its changes per bar; notes
        per bar, per quarter and per second. float64, shape (rows, 177), rounded to four decimals: a
        tree would otherwise split constants on their rounding errors.
    """
    of = {name: np.asarray(counts[:, where], np.float64) for name, where in _COLUMNS.items()}
    notes, bars, quarters = of["programs"].sum(1, keepdims=True), of["bars"], of["quarters"]
    velocities, levels = of["velocities"] / notes, np.arange(128)[:, None]
    velocity = velocities @ levels
    velocity_variance = velocities @ levels**2 - velocity**2
    tempo = of["tempo"] / quarters
    tempo_variance = of["tempo_squared"] / quarters - tempo**2
    features = [
        of["programs"] / notes,
        velocities.reshape(len(velocities), 16, 8).sum(2),
        of["numerators"] / bars,
        of["denominators"] / bars,
        velocity,
        np.sqrt(np.maximum(velocity_variance, 0)),
        (velocities > 0).sum(1, keepdims=True),
        tempo,
        np.sqrt(np.maximum(tempo_variance, 0)),
        of["tempo_changes"] / bars,
        notes / bars,
        notes / quarters,
        notes / of["seconds"],
    ]
    return np.round(np.concatenate(features, 1), 4)


COUNTS: dict[str, Callable[[Sequence[ReadPhrase], TokenSpec], PhraseCounts]] = {
    "majority": no_counts,
    "metadata": metadata_counts,
    "ngram_lr": ngram_counts,
    "hist_gb": token_counts,
}
"""What each baseline counts in a phrase."""

FEATURES: dict[str, Callable[[PhraseCounts], Any]] = {
    "metadata": metadata_features,
    "hist_gb": token_shares,
}
"""The features that the trees of a baseline get from its counts."""


def count_songs(
    reader: PhraseReader, phrases: Phrases, names: Sequence[str]
) -> Iterator[tuple[Phrases, dict[str, PhraseCounts]]]:
    """Pieces of about :data:`PHRASES_AT_ONCE` phrases that end where a song ends.

    The phrases of a song lie one after the other; no phrases are one empty piece.

    Yields:
        The phrases of a piece, and for each baseline their :data:`COUNTS`.
    """
    ends, cuts = np.flatnonzero(np.diff(phrases.song, append=-1)) + 1, [0]
    while cuts[-1] < len(phrases):
        at = np.searchsorted(ends, min(cuts[-1] + PHRASES_AT_ONCE, len(phrases)))
        cuts.append(int(ends[at]))
    for begin, end in pairwise(cuts if len(cuts) > 1 else (0, 0)):
        piece = phrases.select(slice(begin, end))
        read = list(read_phrases(reader, piece))
        yield piece, {name: COUNTS[name](read, reader.spec) for name in names}


def songs_of(counts: PhraseCounts, phrases: Phrases) -> PhraseCounts:
    """Sums over the phrases of each song, in ascending order of the songs."""
    songs, song_N = np.unique(phrases.song, return_inverse=True)
    where = (np.ones(len(song_N), np.float32), (song_N, np.arange(len(song_N))))
    shape = (len(songs), len(song_N))
    return sparse.csr_matrix(where, shape=shape) @ counts  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ExportedBaseline:
    """A classifier of phrases or songs by their counts.

    Attributes:
        name: Key of :data:`COUNTS`.
        n_classes: Number of classes of the label, C; it may know fewer.
        arrays: What it is made of, see :func:`export`.
    """

    name: str
    n_classes: int
    arrays: Mapping[str, NDArray[Any]]

    def log_probs(self, counts: PhraseCounts) -> Floats:
        """Log-probabilities of the classes, shape (S, C), from the counts of phrases or songs.

        Those of classes that it has not seen are :data:`~midigenre.arrays.LOG_ZERO`.
        """
        if "prior" in self.arrays:
            raw_SK = np.tile(np.log(self.arrays["prior"]), (counts.shape[0], 1))
        else:
            raw_SK = self._linear(counts) if "coef" in self.arrays else self._trees(counts)
        raw_SK, classes = raw_SK.astype(np.float64), self.arrays["classes"]
        if raw_SK.shape[1] < len(classes):  # for two classes only the log-odds of the second
            raw_SK = np.concatenate([np.zeros_like(raw_SK), raw_SK], 1)
        found_SC: Floats = np.full((len(raw_SK), self.n_classes), LOG_ZERO)
        found_SC[:, classes] = log_softmax(raw_SK, axis=1)
        return found_SC

    def _linear(self, counts: PhraseCounts) -> NDArray[Any]:
        x = sparse.csr_matrix(counts, copy=True)  # type: ignore[no-untyped-call]
        x.data = (np.log(x.data) + 1) * self.arrays["idf"][x.indices]
        row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        norm_S = np.sqrt(np.bincount(row, x.data**2, minlength=x.shape[0]))
        raw = x @ self.arrays["coef"].T / np.where(norm_S > 0, norm_S, 1)[:, None]
        return np.asarray(raw + self.arrays["intercept"])

    def _trees(self, counts: PhraseCounts) -> NDArray[Any]:
        a = self.arrays
        x = np.asarray(FEATURES[self.name](counts)[:, a["columns"]], np.float64)
        step = max(1, _CELLS_AT_ONCE // max(1, a["roots"].size))
        parts = [self._walk(x[i : i + step]) for i in range(0, len(x), step)]
        leaves = np.concatenate([np.zeros((0, a["roots"].shape[1])), *parts])
        return np.asarray(leaves + a["baseline"])

    def _walk(self, x: Floats) -> Floats:
        """Sum of the leaves that rows end in, shape (rows, K): all trees go down together."""
        a = self.arrays
        row = np.arange(len(x))[:, None]
        at = np.broadcast_to(a["roots"].ravel(), (len(x), a["roots"].size))
        while True:  # a leaf is its own child
            left = x[row, a["feature"][at]] <= a["threshold"][at]
            after = np.where(left, a["left"][at], a["right"][at])
            if np.array_equal(after, at):
                break
            at = after
        values: Floats = a["value"][at].reshape(len(x), *a["roots"].shape).sum(1)
        return values


def export(name: str, estimator: Any, n_classes: int) -> ExportedBaseline:
    """A fitted scikit-learn classifier of :mod:`midigenre.evaluation.baselines` as arrays."""
    arrays: dict[str, Any] = {"classes": np.asarray(estimator.classes_, np.int64)}
    if name == "majority":
        arrays["prior"] = estimator.class_prior_
    elif name == "ngram_lr":
        last = estimator[-1]
        arrays |= {"idf": estimator[0].idf_, "coef": last.coef_, "intercept": last.intercept_}
    else:
        arrays["columns"] = np.asarray(estimator[1].kept_, np.int64)
        # One tree for each iteration and class (one for two classes); its nodes are a plain table.
        trees = [[tree.nodes for tree in trees_K] for trees_K in estimator[-1]._predictors]
        sizes = [len(nodes) for nodes_K in trees for nodes in nodes_K]
        nodes = np.concatenate([nodes for nodes_K in trees for nodes in nodes_K])
        starts = np.cumsum([0, *sizes])[:-1]
        first, here = np.repeat(starts, sizes), np.arange(len(nodes))
        leaf = nodes["is_leaf"].astype(bool)
        arrays |= {
            "feature": np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32),
            "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
            "left": np.where(leaf, here, first + nodes["left"]).astype(np.int32),
            "right": np.where(leaf, here, first + nodes["right"]).astype(np.int32),
            "value": nodes["value"].astype(np.float64),
            "roots": starts.reshape(len(trees), -1).astype(np.int32),
            "baseline": np.asarray(estimator[-1]._baseline_prediction, np.float64).ravel(),
        }
    return ExportedBaseline(name, n_classes, arrays)


Key = tuple[str, str, str]
"""Label, level and name of a baseline."""


def apply_baselines(
    models: Mapping[Key, ExportedBaseline],
    reader: PhraseReader,
    phrases: Phrases,
) -> dict[Key, Floats]:
    """Log-probabilities of fitted baselines; each phrase is read once.

    Args:
        models: The baselines.
        reader: Reads the songs.
        phrases: Their phrases, those of a song one after the other, songs in ascending order.

    Returns:
        For each model those of every phrase, or of every song in ascending order, shape (N, C).
    """
    names = list(dict.fromkeys(model.name for model in models.values()))
    found: dict[Key, list[Floats]] = {key: [] for key in models}
    for piece, of_phrases in count_songs(reader, phrases, names) if names else ():
        rows = {
            "phrase": of_phrases,
            "song": {name: songs_of(counts, piece) for name, counts in of_phrases.items()},
        }
        for (label, level, name), model in models.items():
            found[label, level, name].append(model.log_probs(rows[level][model.name]))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def exported_log_probs(
    experts: Mapping[str, Mapping[str, ExportedBaseline]], reader: PhraseReader, phrases: Phrases
) -> dict[str, dict[str, Floats]]:
    """For each label and expert the log-probabilities of the songs in ascending order, (S, C)."""
    models = {
        (label, "song", name): expert
        for label, named in experts.items()
        for name, expert in named.items()
    }
    found = apply_baselines(models, reader, phrases)
    return {k: {name: found[k, "song", name] for name in named} for k, named in experts.items()}
