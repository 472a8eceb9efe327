"""The table of predictions: everything that an evaluation is computed from.

A :class:`Predictions` holds one label at one level, ``phrase``, ``song`` or ``piece``; a row is one
of these. A piece is the songs of one ``group`` (the segments of a recording, the movements of a
work) together, a song without a group is a piece of its own; the level is there where a piece has
several songs. The tables of several runs, the folds of a cross-validation, are joined by
:func:`concat`.

A run keeps its tables twice: ``predictions.npz`` in full precision, and for people and other
programs ``predictions.csv``, ``predictions_songs.csv`` and ``predictions_pieces.csv``, rounded.
Columns of a label, for
instance ``genre``: ``genre`` (the truth; empty where it is not known), ``genre_model`` (the
prediction), ``genre_<baseline>`` of each baseline, and ``genre_log_prob_<class>``; a blend
(``task.song``) adds ``genre_encoder`` and ``genre_<component>_log_prob_<class>``. Use
:func:`~midigenre.evaluation.bootstrap.paired_bootstrap` on two of the columns.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.arrays import LOG_ZERO, Bools, Floats, Longs
from midigenre.errors import UserError
from midigenre.files import write_bytes, write_csv
from midigenre.spec import UNKNOWN

LEVELS = ("phrase", "song")
"""The levels that every evaluation has."""

PIECE = "piece"
"""The level that it has beside them where the corpus has groups."""

PREDICTIONS_FILE = "predictions.csv"
SONGS_FILE = "predictions_songs.csv"
TABLES_FILE = "predictions.npz"

DECIMALS = 5
_NORMALISED_WITHIN = 0.05  # slack for half precision; logits miss it by far

DAMAGED = (OSError, KeyError, ValueError, TypeError, RuntimeError)
"""What reading a damaged file, or converting its arrays, may raise."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one label at one level, songs or pieces in ascending order.

    Attributes:
        classes: Class names, length C.
        song_N: Song of each row, its place among the prepared songs, shape (N,); of a piece's row
            the piece.
        piece_N: Piece of each row, the first prepared song of its group, shape (N,).
        truth_N: True classes, shape (N,); UNKNOWN where there is none.
        log_probs_NC: The model's log-probabilities, shape (N, C).
        baselines: Classes that each baseline predicts, shape (N,), or why it is missing.
        components: Log-probabilities of each component of a song model, shape (N, C).
        where: Columns that say which phrase or song a row is, each of N values: ``song_id``,
            ``source`` where that is known, ``piece`` where there are groups, ``first_bar`` and
            ``end_bar`` of phrases, ``part`` where tables were joined.
        temperature_N: Temperature that calibrates each row, shape (N,); None without.
        flags: Which rows are out of the domain, by ``energy`` and by ``max_softmax`` (see
            :mod:`midigenre.evaluation.calibration`), shape (N,); empty where nothing was fitted.
        allowed_NC: Whether the row's source has songs of each class in training, shape (N, C); all
            False for a source without training songs.

    Raises:
        ValueError: Columns of different lengths, classes out of range, or rows that are not
            log-probabilities.
    """

    classes: tuple[str, ...]
    song_N: Longs
    piece_N: Longs
    truth_N: Longs
    log_probs_NC: Floats
    baselines: Mapping[str, Longs | str] = field(default_factory=dict)
    components: Mapping[str, Floats] = field(default_factory=dict)
    where: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    temperature_N: Floats | None = None
    flags: Mapping[str, Bools] = field(default_factory=dict)
    allowed_NC: Bools | None = None

    def __post_init__(self) -> None:
        n, n_classes = len(self.truth_N), len(self.classes)
        sizes = {name: len(column) for name, column in self._columns().items()}
        if set(sizes.values()) - {n} or self.log_probs_NC.shape[1:] != (n_classes,):
            raise ValueError(
                f"columns do not fit together: {sizes}, log-probabilities "
                f"{self.log_probs_NC.shape} of {n_classes} classes"
            )
        if not n:
            return
        for name, classes_N in {"truth": self.truth_N, **self.given}.items():
            lowest = UNKNOWN if name == "truth" else 0
            if not lowest <= classes_N.min() <= classes_N.max() < n_classes:
                raise ValueError(f"a class of {name} is outside [0, {n_classes})")
        # Written so that NaN fails too.
        if not (np.abs(_log_sum_exp(self.log_probs_NC)) < _NORMALISED_WITHIN).all():
            raise ValueError("rows are not log-probabilities: apply log_softmax to logits first")

    def __len__(self) -> int:
        return len(self.truth_N)

    @property
    def predicted_N(self) -> Longs:
        """Classes that the model predicts, shape (N,)."""
        found: Longs = self.log_probs_NC.argmax(1)
        return found

    @property
    def given(self) -> dict[str, Longs]:
        """The baselines that are not missing."""
        return {k: values for k, values in self.baselines.items() if not isinstance(values, str)}

    @property
    def missing(self) -> dict[str, str]:
        """Why each of the others is missing."""
        return {k: reason for k, reason in self.baselines.items() if isinstance(reason, str)}

    def select(self, rows: NDArray[Any]) -> Predictions:
        """Some of the rows, by their places or by a mask."""
        chosen = {name: column[rows] for name, column in self._columns().items()}
        return _table(self.classes, chosen, self.baselines)

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Every array of N rows, by ``attribute`` or ``attribute/key``."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            of = value.items() if isinstance(value, Mapping) else ()
            found |= {each.name: value} | {f"{each.name}/{key}": column for key, column in of}
        return {name: column for name, column in found.items() if isinstance(column, np.ndarray)}


Tables = Mapping[str, Mapping[str, Predictions]]
"""By label and level."""


def _table(
    classes: tuple[str, ...],
    columns: Mapping[str, NDArray[Any]],
    baselines: Mapping[str, Longs | str],
) -> Predictions:
    """The inverse of ``_columns``; ``baselines`` gives their order and why some are missing."""
    own: dict[str, Any] = {k: column for k, column in columns.items() if "/" not in k}
    own |= {name: below(columns, name) for name in ("baselines", "components", "where", "flags")}
    own["baselines"] = {name: own["baselines"].get(name, why) for name, why in baselines.items()}
    return Predictions(classes, **own)


def concat(tables: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """Joins tables of different songs, for instance those of the folds of a cross-validation.

    They have the same classes; their names go into the column ``part``. What one table lacks is
    left out; a baseline that is missing in one is missing, with the first reason.
    """
    columns = [table._columns() for table in tables]
    parts = [np.full(len(table), name) for table, name in zip(tables, names, strict=True)]
    joined = {"where/part": np.concatenate(parts)} | {
        key: np.concatenate([of[key] for of in columns])
        for key in columns[0]
        if all(key in of for of in columns)
    }
    reasons: dict[str, Longs | str] = {}
    for baseline in dict.fromkeys(name for table in tables for name in table.baselines):
        of_tables = (
            table.baselines.get(baseline, f"not fitted in {name}")
            for table, name in zip(tables, names, strict=True)
        )
        reasons[baseline] = next((why for why in of_tables if isinstance(why, str)), "")
    order = np.argsort(joined["song_N"], kind="stable")
    ordered = {key: column[order] for key, column in joined.items()}
    return _table(tables[0].classes, ordered, reasons)


def write_tables(path: Path, tables: Tables) -> None:
    """Writes tables in full precision, numbers and text alone."""
    arrays: dict[str, NDArray[Any]] = {}
    for label, levels in tables.items():
        for level, table in levels.items():
            place = f"{label}/{level}"
            arrays[f"{place}/classes"] = np.array(table.classes, str)
            for name, reason in table.missing.items():
                arrays[f"{place}/missing/{name}"] = np.array(reason, str)
            for name, column in table._columns().items():
                text = column.dtype == object
                arrays[f"{place}/of/{name}"] = column.astype(str) if text else column
    write_arrays(path, arrays)


def read_tables(path: Path, labels: Sequence[str]) -> Tables:
    """Reads what :func:`write_tables` wrote; no code in the file is run.

    Raises:
        UserError: It is missing or damaged.
    """
    found: dict[str, dict[str, Predictions]] = {label: {} for label in labels}
    try:
        arrays = read_arrays(path)
        for label in labels:
            for level in (*LEVELS, PIECE):
                own = below(arrays, f"{label}/{level}")
                if level == PIECE and not own:
                    continue
                columns = below(own, "of")
                missing = {name: str(why) for name, why in below(own, "missing").items()}
                baselines = below(columns, "baselines") | missing
                found[label][level] = _table(tuple(map(str, own["classes"])), columns, baselines)
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}); train that part again") from error
    return found


def write_predictions(path: Path, tables: Tables) -> None:
    """Writes the phrases of all labels as CSV, ``<name>_songs.csv``, ``<name>_pieces.csv``.

    The last one where there are groups.
    """
    for level in next(iter(tables.values())):
        place = path.with_stem(path.stem + ("" if level == "phrase" else f"_{level}s"))
        columns: dict[str, Sequence[Any]] = {}
        for label, levels in tables.items():
            table = levels[level]
            names = np.array([*table.classes, ""], object)  # UNKNOWN, -1, is the last one
            columns |= {name: column.tolist() for name, column in table.where.items()}
            classes = {"": table.truth_N, "_model": table.predicted_N}
            classes |= {f"_{name}": predicted_N for name, predicted_N in table.given.items()}
            columns |= {f"{label}{who}": names[of_N].tolist() for who, of_N in classes.items()}
            of = {"": table.log_probs_NC} | {f"{k}_": v for k, v in table.components.items()}
            for who, log_probs_NC in of.items():
                for name, column in zip(table.classes, log_probs_NC.T, strict=True):
                    columns[f"{label}_{who}log_prob_{name}"] = column.round(DECIMALS).tolist()
        rows = zip(*columns.values(), strict=True)
        write_csv(place, (dict(zip(columns, row, strict=True)) for row in rows), list(columns))


def song_log_probs(log_probs_NC: ArrayLike, song_N: ArrayLike) -> tuple[NDArray[Any], Floats]:
    """Song-level log-probabilities: the mean over a song's phrases, renormalised.

    The mean of logs (a geometric mean of the probabilities) lets a phrase that excludes a class
    count for more than one that merely prefers another.

    Returns:
        The songs (integers or text) in ascending order, shape (S,), and theirs, shape (S, C).
    """
    log_probs_NC = np.asarray(log_probs_NC, np.float64)
    songs_S, song_index_N = np.unique(np.asarray(song_N), return_inverse=True)
    sum_SC = np.zeros((len(songs_S), log_probs_NC.shape[1]))
    np.add.at(sum_SC, song_index_N, np.maximum(log_probs_NC, LOG_ZERO))
    mean_SC = sum_SC / np.bincount(song_index_N, minlength=len(songs_S))[:, None]
    return songs_S, mean_SC - _log_sum_exp(mean_SC)


def song_truth(truth_N: ArrayLike, song_N: ArrayLike) -> tuple[NDArray[Any], Longs]:
    """The songs in ascending order, and their classes from those of the phrases, each (S,).

    Raises:
        ValueError: Phrases of one song with different classes.
    """
    truth_N = np.asarray(truth_N, np.int64)
    songs_S, first_S, song_index_N = np.unique(
        np.asarray(song_N), return_index=True, return_inverse=True
    )
    truth_S = truth_N[first_S]
    if (differs := truth_S[song_index_N] != truth_N).any():
        raise ValueError(f"song {np.asarray(song_N)[differs][0]} has phrases of several classes")
    return songs_S, truth_S


def pieces_of(songs: Predictions, baselines: Mapping[str, Floats]) -> Predictions:
    """The pieces of a table of songs: a piece's log-probabilities are the mean over its songs.

    A piece whose songs have different classes is of none (UNKNOWN).

    Args:
        songs: The table.
        baselines: Log-probabilities of the songs for each baseline that is not missing, (N, C).
    """
    pieces_P, first_P, piece_S = np.unique(songs.piece_N, return_index=True, return_inverse=True)
    known_S = songs.truth_N != UNKNOWN
    lowest_P = np.full(len(pieces_P), len(songs.classes))
    highest_P = np.full(len(pieces_P), UNKNOWN)
    np.minimum.at(lowest_P, piece_S[known_S], songs.truth_N[known_S])
    np.maximum.at(highest_P, piece_S[known_S], songs.truth_N[known_S])

    def pooled(log_probs_SC: Floats) -> Floats:
        return song_log_probs(log_probs_SC, songs.piece_N)[1]

    return Predictions(
        songs.classes, pieces_P, pieces_P, np.where(lowest_P == highest_P, highest_P, UNKNOWN),
        pooled(songs.log_probs_NC),
        {name: pooled(of).argmax(1) for name, of in baselines.items()} | songs.missing,
        {name: pooled(of) for name, of in songs.components.items()},
        {PIECE: songs.where[PIECE][first_P]},
    )  # fmt: skip


def _log_sum_exp(values_NC: Floats) -> Floats:
    """Log of the sum of exponentials of each row, shape (N, 1), without overflow."""
    top_N1 = values_NC.max(1, keepdims=True, initial=LOG_ZERO)
    total: Floats = np.log(np.exp(values_NC - top_N1).sum(1, keepdims=True)) + top_N1
    return total


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes named arrays, compressed; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads what :func:`write_arrays` wrote; no code in the file is run.

    Raises:
        OSError: The file is not there, or cannot be read.
        ValueError: It is damaged, or holds NaN.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        for key, values in arrays.items():
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise ValueError(f"{key} holds NaN")
        return arrays
    except OSError:
        raise
    # Of zip, zlib, struct, tokenize, ...: what a wrong byte may raise is not documented.
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"damaged ({what})") from error


def below(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with ``part/``, under the rest of their names."""
    prefix = f"{part}/"
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
