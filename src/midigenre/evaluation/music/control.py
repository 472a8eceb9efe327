"""Did the condition do anything? What a judge finds in music that had one.

A *judge* is a classifier that never saw the generator's training songs. Its accuracy on generated
pieces means nothing alone: the *ceiling* is its accuracy on real held-out music of the same length,
*chance* is one over the classes, and pieces whose conditions were shuffled before they were
generated show what the judge finds where the condition says nothing about the class that is asked
for. *Control* is the share of the way from chance to the ceiling, and its plain ratio is given too.

Accuracy here is the mean over classes (balanced accuracy; Brodersen et al. 2010), because real
music does not come in equal parts.

A judge that was trained on the generator's songs would praise it for repeating them, and one that
reads the same tokens shares its blind spots: :func:`independence` looks for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.arrays import Floats, Longs
from midigenre.corpora.base import Progress, SongRef
from midigenre.data.chunks import file_digests
from midigenre.data.sandbox import Limits
from midigenre.data.shards import ShardSet
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, interval, resampled_counts
from midigenre.evaluation.metrics import confusion_matrix, plain, ratio
from midigenre.spec import UNKNOWN
from midigenre.storage import place


def main_label(classes: Mapping[str, int]) -> str:
    """The label that a plan goes by: the one with most classes."""
    return max(classes, key=lambda label: classes[label])


def plan(
    classes: Mapping[str, int],
    n: int,
    songs: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Longs]:
    """Which classes to ask for: n pieces of each class of the label that has most classes.

    The other labels go round among the classes that occur together with it in the training songs,
    so that nothing is asked for that the generator never met there.

    Args:
        classes: Number of classes of each label.
        n: Pieces a class.
        songs: Class index of every training song for each label; None or a combination that never
            occurs: all classes go round.

    Returns:
        For each label the class index of each piece, shape (pieces,).

    Raises:
        ValueError: No label, or n below 1.
    """
    if not classes or n < 1:
        raise ValueError(f"nothing to plan: labels {list(classes)}, n={n}")
    main = main_label(classes)
    asked: dict[str, Longs] = {main: np.repeat(np.arange(classes[main]), n)}
    for label, size in classes.items():
        if label == main:
            continue
        asked[label] = np.concatenate(
            [np.resize(_beside(songs, main, c, label, size), n) for c in range(classes[main])]
        )
    return {label: asked[label] for label in classes}


def _beside(
    songs: Mapping[str, ArrayLike] | None, main: str, c: int, label: str, size: int
) -> Longs:
    """Classes of a label in the songs of class ``c`` of the main one."""
    everything = np.arange(size)
    if songs is None:
        return everything
    found: Longs = np.unique(np.asarray(songs[label])[np.asarray(songs[main]) == c])
    found = found[found != UNKNOWN]
    return found if len(found) else everything


def shuffled(conditions: Mapping[str, Longs], seed: int) -> dict[str, Longs]:
    """The conditions of all pieces in another order; those of one piece stay together."""
    order = np.random.default_rng(seed).permutation(len(next(iter(conditions.values()))))
    return {label: values[order] for label, values in conditions.items()}


@dataclass(frozen=True)
class Verdicts:
    """What a judge made of pieces.

    Attributes:
        truth: Class that was asked for, or that the song has, shape (N,); -1 where unknown.
        predicted: Class that the judge heard, shape (N,); -1 where there was nothing to hear, which
            counts as an error.
        groups: What belongs together (the excerpts of one song), shape (N,).
    """

    truth: Longs
    predicted: Longs
    groups: NDArray[Any]

    def known(self) -> Verdicts:
        """Those with a class."""
        rows = self.truth != UNKNOWN
        return Verdicts(self.truth[rows], self.predicted[rows], self.groups[rows])


def control(
    generated: Verdicts,
    real: Verdicts,
    names: Sequence[str],
    shuffled: Verdicts | None = None,
    *,
    over: Sequence[str] | None = None,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict[str, Any]:
    """Scores of one label.

    Args:
        generated: The judge's verdicts on generated pieces.
        real: Those on real held-out excerpts.
        names: The judge's class names.
        shuffled: Those on pieces whose conditions were shuffled.
        over: Look only at pieces of these classes; the judge may still hear any other.
        seed: Seed of the bootstrap.
        n_bootstrap: Number of resamples (of pieces, and of songs).

    Returns:
        ``generated``, ``real`` and ``shuffled`` (None without), each with ``n``, ``accuracy``,
        ``ci95``, ``recall`` (by class name, None without pieces) and ``confusion`` (rows are what
        was asked for, columns the judge's classes and, last, nothing heard); ``chance``;
        ``of_ceiling``: generated over real accuracy with ``ci95``; ``above_chance``: the same
        after subtracting chance from both, over the classes that both sets have; ``without_real``
        names those without a real excerpt. Both are None where there is none at all, or the
        ceiling's interval reaches down to chance: a judge that hears nothing in real music cannot
        say what is missing elsewhere.
    """
    chosen = range(len(names)) if over is None else [list(names).index(name) for name in over]
    sets = {"generated": generated, "real": real, "shuffled": shuffled}
    scores: dict[str, Any] = {}
    drawn: dict[str, tuple[Floats, Floats]] = {}
    for i, (what, verdicts) in enumerate(sets.items()):
        if verdicts is None:
            scores[what] = None
            continue
        kept = verdicts.known()
        rows = np.isin(kept.truth, list(chosen))
        kept = Verdicts(kept.truth[rows], kept.predicted[rows], kept.groups[rows])
        scores[what], drawn[what] = _score(kept, names, seed + i, n_bootstrap)
    chance = 1 / len(names)
    found = {**scores, "chance": chance, "classes": [names[c] for c in chosen]}
    recall = [scores[what]["recall"] for what in ("generated", "real")]
    both = [c for c in chosen if all(of[names[c]] is not None for of in recall)]
    found["without_real"] = [names[c] for c in chosen if recall[1][names[c]] is None]
    clear = bool(both) and scores["real"]["ci95"][0] > chance
    for name, floor in (("of_ceiling", 0.0), ("above_chance", chance)):
        if not clear:
            found[name] = None
            continue
        top, bottom = (float(np.mean([of[names[c]] for c in both])) - floor for of in recall)
        # Means over the same classes: one without a real excerpt has no ceiling.
        ours, theirs = (
            _balanced(hits[..., both], asked[..., both]) - floor
            for hits, asked in (drawn["generated"], drawn["real"])
        )
        quotients = ratio(ours, theirs)
        found[name] = {
            "value": top / bottom,
            "ci95": interval(quotients[np.isfinite(quotients)]),
        }
    return found


def equal_mix(asked_N: Longs, real_M: Longs, seed: int = 0) -> tuple[Longs, Longs]:
    """Rows of two sets in which classes have equal shares, so that their music can be compared.

    A difference between generated and real music must not come from the number of pieces of each
    class. The generated set gives the shares; classes that only one of the sets has are left out.

    Args:
        asked_N: Class of each generated piece, shape (N,).
        real_M: Class of each real excerpt, shape (M,).
        seed: Chooses the excerpts.

    Returns:
        Rows of both sets, ascending. Each class has the largest number of real excerpts that all
        classes allow.
    """
    classes = np.intersect1d(asked_N, real_M[real_M != UNKNOWN])
    if not len(classes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    n_asked = np.array([(asked_N == c).sum() for c in classes])
    n_real = np.array([(real_M == c).sum() for c in classes])
    share = n_asked / n_asked.sum()
    take = np.maximum(1, np.floor(share * (n_real / share).min() + 1e-9).astype(np.int64))
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(real_M == c))[:k] for c, k in zip(classes, take, strict=True)
    ]
    return np.flatnonzero(np.isin(asked_N, classes)), np.sort(np.concatenate(rows))


def _score(
    verdicts: Verdicts, names: Sequence[str], seed: int, n_bootstrap: int
) -> tuple[dict[str, Any], tuple[Floats, Floats]]:
    """Scores of a set; hits and pieces asked for of each class in resamples, each (R, C)."""
    n = len(names)
    # Silence is a class of its own, after the last.
    predicted = np.where(verdicts.predicted == UNKNOWN, n, verdicts.predicted)
    matrix = confusion_matrix(verdicts.truth, predicted, n + 1)[:n]
    hits, asked = matrix.diagonal(), matrix.sum(1)
    recall = ratio(hits, asked)
    drawn_hits, drawn_asked, _ = resampled_counts(
        verdicts.truth, (predicted,), verdicts.groups, n + 1, seed, n_bootstrap
    )
    draws = drawn_hits[0], drawn_asked[0]
    return {
        "n": len(verdicts.truth),
        "accuracy": plain(_balanced(hits, asked)),
        "ci95": interval(_balanced(*draws)),
        "recall": {name: plain(value) for name, value in zip(names, recall, strict=True)},
        "confusion": matrix.tolist(),
    }, draws


def _balanced(hits: NDArray[Any], asked: NDArray[Any]) -> Any:
    """Mean recall of the classes that occur, shape (..., C) to (...)."""
    occurs = asked > 0
    return ratio(np.where(occurs, ratio(hits, asked), 0.0).sum(-1), occurs.sum(-1))


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
        progress: Called with the files that are read.
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
