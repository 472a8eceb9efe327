"""Baselines are fitted once: they follow from the songs, their split and the tokens alone.

What was fitted is kept beside the shards as arrays of numbers (:mod:`midigenre.evaluation.arrays`),
so that each further run on the same songs reads in a moment what took minutes to fit.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray

from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.evaluation import baselines
from midigenre.evaluation.baselines import BASELINES, FittedLabel, fit_baselines
from midigenre.evaluation.experts import Expert
from midigenre.evaluation.npz import DAMAGED, below, read_arrays, write_arrays
from midigenre.evaluation.predictions import LEVELS
from midigenre.files import read_bytes
from midigenre.spec import UNKNOWN

log = getLogger(__name__)

FOLDER = "baselines"
"""Where they lie in the folder of the shards."""

KEPT = 24
"""Files of one preparation; of more the one that was read longest ago goes (a few MB each)."""

_VERSION = 1  # raise it when a baseline's counts or settings change


def kept_baselines(
    folder: Path,
    reader: PhraseReader,
    phrases: Phrases,
    class_of_song: NDArray[np.int64],
    seed: int = 0,
) -> FittedLabel:
    """:func:`~midigenre.evaluation.baselines.fit_baselines`, or what an earlier run has kept of it.

    A file that is damaged, or a folder that cannot be written, costs the time of a fit and a line
    in the log.

    Args:
        folder: Of the shards that the reader reads.
        reader: Reads the training songs.
        phrases: Their phrases.
        class_of_song: Class index of every song of the reader.
        seed: Seed of the fit.
    """
    key = _key(folder, reader, phrases, class_of_song, seed)
    path = folder / FOLDER / f"{key}.npz"
    if path.is_file():
        try:
            found = _read(read_arrays(path))
        except DAMAGED as error:
            log.warning("%s is not readable (%s): baselines are fitted anew", path, error)
        else:
            with contextlib.suppress(OSError):  # another's shards: they are read all the same
                path.touch()
            log.info("baselines read from %s", path)
            return found
    fitted = fit_baselines(reader, phrases, class_of_song, seed)
    models = [model for models in fitted.models.values() for model in models.values()]
    if all(isinstance(model, Expert) for model in models):
        try:
            write_arrays(path, _arrays(fitted))
            _drop_old(path.parent)
        except OSError as error:
            log.warning("baselines are not kept, %s cannot be written: %s", path, error)
    return fitted


def _key(
    folder: Path,
    reader: PhraseReader,
    phrases: Phrases,
    class_of_song: NDArray[np.int64],
    seed: int,
) -> str:
    """Hash of all that a fit depends on."""
    labelled = phrases.select(class_of_song[phrases.song] != UNKNOWN)
    found = hashlib.sha256(read_bytes(folder / "spec.json"))  # it has the checksums of the songs
    settings = (_VERSION, sklearn.__version__, seed, baselines.MAX_TRAIN, reader.max_tokens,
                reader.marks, tuple(BASELINES))  # fmt: skip
    found.update(repr(settings).encode())
    songs = np.unique(labelled.song)
    for values in (labelled.song, labelled.first, labelled.end, class_of_song[songs]):
        found.update(np.ascontiguousarray(values, np.int64).tobytes())
    return found.hexdigest()[:16]


def _arrays(fitted: FittedLabel) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for level in LEVELS:
        arrays[f"{level}/n"] = np.array([fitted.n_train[level], fitted.n_available[level]])
        for name, expert in fitted.models[level].items():
            assert isinstance(expert, Expert)
            arrays[f"{level}/{name}/n_classes"] = np.array(expert.n_classes)
            arrays |= {f"{level}/{name}/of/{key}": value for key, value in expert.arrays.items()}
    return arrays


def _read(arrays: Mapping[str, NDArray[Any]]) -> FittedLabel:
    models = {
        level: {
            name: Expert(
                name,
                int(arrays[f"{level}/{name}/n_classes"]),
                below(arrays, f"{level}/{name}/of"),
            )
            for name in BASELINES
        }
        for level in LEVELS
    }
    n = {level: arrays[f"{level}/n"].tolist() for level in LEVELS}
    return FittedLabel(
        models, {level: n[level][0] for level in LEVELS}, {level: n[level][1] for level in LEVELS}
    )


def _drop_old(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT]:
        path.unlink(missing_ok=True)
