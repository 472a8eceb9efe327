"""Tables of predictions from a few arrays."""

from __future__ import annotations

import numpy as np

from midigenre.evaluation.predictions import Predictions, song_log_probs, song_truth
from midigenre.evaluation.scores import evaluate


def table(log_probs, truth, song, names, baselines=None, *, source=None, allowed=None,
          temperature=None, song_id=None, piece=None):  # fmt: skip
    """One level; ``source`` and ``allowed`` are those of each row."""
    where = {} if source is None else {"source": np.asarray(source, object)}
    if song_id is not None:
        where["song_id"] = np.asarray(song_id, object)
    if piece is not None:
        where["piece"] = np.asarray(piece, object)
    theirs = {k: v if isinstance(v, str) else np.asarray(v) for k, v in (baselines or {}).items()}
    if temperature is not None:
        temperature = np.broadcast_to(temperature, len(truth)).astype(float)
    return Predictions(
        tuple(names),
        np.unique(np.asarray(song), return_inverse=True)[1],
        np.unique(np.asarray(song if piece is None else piece), return_inverse=True)[1],
        np.asarray(truth, np.int64),
        np.asarray(log_probs, np.float64),
        theirs,
        where=where,
        temperature_N=temperature,
        allowed_NC=allowed,
    )


def levels_of(log_probs, truth, song, names, baselines=None, *, source=None, allowed=None,
              temperatures=None):  # fmt: skip
    """The tables of phrases and of their songs, whose source is that of their first phrase."""
    _, first = np.unique(np.asarray(song), return_index=True)
    temperatures, baselines = temperatures or {}, baselines or {}
    of_songs = song_log_probs(log_probs, song)[1], song_truth(truth, song)[1], np.unique(song)
    found = {}
    for level, rows, data in (("phrase", slice(None), (log_probs, truth, song)),
                              ("song", first, of_songs)):  # fmt: skip
        found[level] = table(
            *data, names, baselines.get(level),
            source=None if source is None else np.asarray(source, object)[rows],
            allowed=None if allowed is None else allowed[rows],
            temperature=temperatures.get(level),
        )  # fmt: skip
    return found


def evaluated(*args, seed=0, n_bootstrap=1000, **more):
    """Scores of both levels, as ``evaluation.json`` has them for a label."""
    levels = levels_of(*args, **more)
    return {level: evaluate(found, seed, n_bootstrap) for level, found in levels.items()}
