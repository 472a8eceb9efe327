"""Did the condition have an effect? How a judge classifies conditioned music.

A *judge* is a classifier that never saw the generator's training songs. Its accuracy on generated
pieces means nothing alone: the *ceiling* is its accuracy on real held-out music of the same length,
*chance* is one over the classes, and pieces whose conditions were shuffled before they were
generated show what it predicts where the condition says nothing about the requested class.
*Control* is the share of the way from chance to the ceiling; the plain ratio is given too.

Accuracy here is the mean over classes (balanced accuracy; Brodersen et al. 2010), because real
music does not come in equal parts.
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
from midigenre.evaluation.metrics import confusion_matrix, plain_number, ratio
from midigenre.spec import UNKNOWN
from midigenre.storage import place


def main_label(classes: Mapping[str, int]) -> str:
    """The label that a plan is based on: the one with most classes."""
    return max(classes, key=lambda label: classes[label])


def plan_conditions(
    classes: Mapping[str, int], n: int, songs: Mapping[str, ArrayLike] | None = None
) -> dict[str, Longs]:
    """Which classes to ask for: n pieces of each class of the label that has most classes.

    The other labels take turns among the classes that occur together with it in the training songs,
    so that every requested combination occurs there.

    Args:
        classes: Number of classes of each label.
        n: Pieces per class.
        songs: Class index of every training song for each label; None or a combination that never
            occurs: all classes take turns.

    Returns:
        For each label the class index of each piece, shape (pieces,).

    Raises:
        ValueError: No label, or n below 1.
    """
    if not classes or n < 1:
        raise ValueError(f"nothing to plan: labels {list(classes)}, n={n}")
    main = main_label(classes)
    asked: dict[str, Longs] = {}
    for label, size in classes.items():
        asked[label] = np.repeat(np.arange(classes[main]), n)
        if label == main:
            continue
        for c in range(classes[main]):
            beside: Longs = np.arange(size)
            if songs is not None:
                met = np.unique(np.asarray(songs[label])[np.asarray(songs[main]) == c])
                met = met[met != UNKNOWN]
                beside = met if len(met) else beside
            asked[label][c * n : (c + 1) * n] = np.resize(beside, n)
    return asked


def shuffled(conditions: Mapping[str, Longs], seed: int) -> dict[str, Longs]:
    """The conditions of all pieces in another order; those of one piece stay together."""
    order = np.random.default_rng(seed).permutation(len(next(iter(conditions.values()))))
    return {label: values[order] for label, values in conditions.items()}


@dataclass(frozen=True)
class Verdicts:
    """How a judge classified pieces.

    Attributes:
        truth: Class that was asked for, or that the song has, shape (N,); -1 where unknown.
        predicted: Class that the judge predicted, shape (N,); -1 for silence, which counts as an
            error.
        groups: What belongs together (the excerpts of one song), shape (N,).
    """

    truth: Longs
    predicted: Longs
    groups: NDArray[Any]


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
        over: Look only at pieces of these classes; the judge may still predict any other.
        seed: Seed of the bootstrap.
        n_bootstrap: Number of resamples (of pieces, and of songs).

    Returns:
        ``generated``, ``real`` and ``shuffled`` (None without), each with ``n``, ``accuracy``,
        ``ci95``, ``recall`` (by class name, None without pieces) and ``confusion`` (rows are what
        was asked for, columns the judge's classes and, last, silence); ``chance``; ``of_ceiling``:
        generated over real accuracy with ``ci95``; ``above_chance``: the same after subtracting
        chance from both, over the classes that both sets have; ``without_real`` names those without
        a real excerpt. Both are None where there is none at all, or the ceiling's interval reaches
        down to chance: a judge that recognizes nothing in real music cannot say what is missing
        elsewhere.
    """
    chosen = range(len(names)) if over is None else [list(names).index(name) for name in over]
    found: dict[str, Any] = {}
    drawn: dict[str, tuple[Floats, Floats]] = {}
    sets = {"generated": generated, "real": real, "shuffled": shuffled}
    for i, (what, verdicts) in enumerate(sets.items()):
        found[what] = None
        if verdicts is not None:
            rows = np.isin(verdicts.truth, list(chosen))
            kept = (verdicts.truth[rows], verdicts.predicted[rows], verdicts.groups[rows])
            found[what], drawn[what] = _score(*kept, names, seed + i, n_bootstrap)
    chance = 1 / len(names)
    found |= {"chance": chance, "classes": [names[c] for c in chosen]}
    recall = [found[what]["recall"] for what in ("generated", "real")]
    both = [c for c in chosen if all(of[names[c]] is not None for of in recall)]
    found["without_real"] = [names[c] for c in chosen if recall[1][names[c]] is None]
    clear = bool(both) and found["real"]["ci95"][0] > chance
    for name, floor in (("of_ceiling", 0.0), ("above_chance", chance)):
        found[name] = None
        if clear:
            top, bottom = (float(np.mean([of[names[c]] for c in both])) - floor for of in recall)
            # Means over the same classes: one without a real excerpt has no ceiling.
            ours, theirs = (
                _balanced(hits[..., both], asked[..., both]) - floor
                for hits, asked in (drawn["generated"], drawn["real"])
            )
            quotients = ratio(ours, theirs)
            ci95 = interval(quotients[np.isfinite(quotients)])
            found[name] = {"value": top / bottom, "ci95": ci95}
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
    truth_N: Longs, predicted_N: Longs, groups_N: NDArray[Any], names: Sequence[str], seed: int,
    n_bootstrap: int,
) -> tuple[dict[str, Any], tuple[Floats, Floats]]:  # fmt: skip
    """Scores of a set; hits and pieces asked for of each class in resamples, each (R, C)."""
    n = len(names)
    # Silence is a class of its own, after the last.
    predicted_N = np.where(predicted_N == UNKNOWN, n, predicted_N)
    matrix = confusion_matrix(truth_N, predicted_N, n + 1)[:n]
    hits, asked = matrix.diagonal(), matrix.sum(1)
    drawn = resampled_counts(truth_N, (predicted_N,), groups_N, n + 1, seed, n_bootstrap)
    draws = drawn.hits[0], drawn.truth[0]
    return {
        "n": len(truth_N),
        "accuracy": plain_number(_balanced(hits, asked)),
        "ci95": interval(_balanced(*draws)),
        "recall": {
            name: plain_number(value) for name, value in zip(names, ratio(hits, asked), strict=True)
        },
        "confusion": matrix.tolist(),
    }, draws


def _balanced(hits: NDArray[Any], asked: NDArray[Any]) -> Any:
    """Mean recall of the classes that occur, shape (..., C) to (...)."""
    occurs = asked > 0
    return ratio(np.where(occurs, ratio(hits, asked), 0.0).sum(-1), occurs.sum(-1))


def independence(
    generator: ShardSet,
    generator_rows: Longs,
    judge: ShardSet,
    judge_rows: Longs,
    progress: Progress,
    started_from: Sequence[str] = (),
) -> tuple[dict[str, Any], Longs]:
    """Whether a judge is independent, by the bytes of the songs' files and by the tokenizers.

    A judge trained on the generator's songs would reward copies, and one that
    reads the same tokens shares its blind spots.

    Args:
        generator: The generator's songs.
        generator_rows: Those that it was trained on.
        judge: The judge's songs.
        judge_rows: Those that it was trained on or chosen by.
        progress: Called with the files that are read.
        started_from: ``init_from`` of the two runs, where it was set: what these had seen is not
            looked into.

    Returns:
        ``shared_songs`` (of the generator's ``generator_songs`` those that the judge was trained
        on), ``tokenizers``, ``independent`` and ``notes``, what a reader of the judgement must
        know; and all rows of the generator's manifest that the judge was trained on, ascending.
    """
    theirs = set(_digests(judge, judge_rows, progress))
    every = _digests(generator, np.arange(len(generator)), progress)
    met = np.flatnonzero([digest in theirs for digest in every])
    shared, of = len(np.intersect1d(generator_rows, met)), len(np.unique(generator_rows))
    notes = []
    if shared:
        notes.append(
            f"the judge was trained on {shared:,} of the generator's {of:,} training songs, so it "
            "may reward copies; train them with fold=1/2 and fold=2/2"
        )
    if generator.tokens.name == judge.tokens.name:
        notes.append(
            f"judge and generator both read {judge.tokens.name} tokens, so they may share blind "
            "spots; train the judge with another tokenizer"
        )
    notes += [
        f"one of the two started from {source} (init_from), whose songs are not counted here: it "
        "may have seen the held-out ones"
        for source in started_from
    ]
    return {
        "shared_songs": shared,
        "generator_songs": of,
        "tokenizers": {"generator": generator.tokens.name, "judge": judge.tokens.name},
        "independent": not notes,
        "notes": notes,
    }, met


def _digests(shards: ShardSet, rows: Longs, progress: Progress) -> list[bytes]:
    """Digest of each song's file; of a missing file its id."""
    refs = [
        SongRef(row["song_id"], place(row["path"]), {})
        for row in (shards.manifest[int(i)] for i in rows)
    ]
    found = file_digests(refs, Limits(), 2, progress)
    return [found[ref.song_id] or ref.song_id.encode(errors="surrogateescape") for ref in refs]
