"""``midigenre predict``: labels of MIDI files as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from midigenre.commands.console import console
from midigenre.corpora.folder import midi_files
from midigenre.data.shards import MemorySongs
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.scores import song_log_probs
from midigenre.song import Song
from midigenre.tasks.predict import Predictions, predict_phrases, song_phrases
from midigenre.tokenizers.base import Encoded, Tokenizer, from_spec
from midigenre.trained import Run, device_of, load_run

FILES_AT_ONCE = 64  # bounds the memory; phrases of these files share batches


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints one JSON object a file on stdout; a bad file gives one with ``error``.

    Raises:
        UserError: No path is given, or no file could be read.
    """
    if not paths:
        raise UserError("no file: midigenre predict run=RUN -- FILE_OR_DIR ...")
    files = list(_files(paths))
    if not files:
        raise UserError(f"{', '.join(paths)}: no MIDI file (.mid, .midi) in there")
    device = device_of(cfg.device)
    if cfg.batch_phrases < 1:
        raise UserError(f"batch_phrases must be 1 or more, got {cfg.batch_phrases}")
    trained = load_run(cfg.run, cfg.ckpt)
    tokenizer = from_spec(trained.tokens)
    failed: list[tuple[Path, RefusedSongError]] = []
    for begin in range(0, len(files), FILES_AT_ONCE):
        read: list[tuple[Path, Song, Encoded]] = []
        answers: dict[Path, dict[str, Any]] = {}
        for path in files[begin : begin + FILES_AT_ONCE]:
            try:
                read.append((path, *_read(path, tokenizer)))
            except RefusedSongError as error:
                failed.append((path, error))
                answers[path] = {"path": str(path), "error": error.reason, "detail": error.detail}
                if len(files) > 1:  # of a single one the last line says it
                    console.print(f"{path}: {error}", style="red", markup=False, highlight=False)
        if read:
            answers |= _predict(read, trained, device, cfg.batch_phrases)
        for path in files[begin : begin + FILES_AT_ONCE]:
            if path in answers:
                _say(answers[path])
    if len(failed) == len(files):
        path, refusal = failed[0]
        more = f" (and {len(failed) - 1} more files)" if len(failed) > 1 else ""
        hint = "" if refusal.reason == "missing" else "; a MIDI file starts with MThd"
        raise UserError(f"{path}: {refusal}{more}{hint}")


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for text in paths:
        path = Path(text)
        if path.is_dir():
            yield from midi_files(path)
        else:
            yield path  # one that does not exist is refused when its turn comes


def _read(path: Path, tokenizer: Tokenizer) -> tuple[Song, Encoded]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RefusedSongError("missing", (error.strerror or str(error)).lower()) from error
    song = tokenizer.read(data)
    return song, tokenizer.encode(song)


def _predict(
    read: Sequence[tuple[Path, Song, Encoded]],
    trained: Run,
    device: torch.device,
    batch_phrases: int,
) -> dict[Path, dict[str, Any]]:
    """The answer for each file."""
    songs = MemorySongs([(song, encoded) for _, song, encoded in read])
    phrases, batches = song_phrases(songs, trained.tokens, trained.data, batch_phrases)
    found = predict_phrases(trained.classifier, batches, device)
    return {
        path: _describe(path, song, found, i, phrases.end, trained)
        for i, (path, song, _) in enumerate(read)
    }


def _describe(
    path: Path,
    song: Song,
    found: Predictions,
    index: int,
    ends: NDArray[np.int64],
    trained: Run,
) -> dict[str, Any]:
    """One file's answer: labels, probabilities, and the same for each phrase over time."""
    mine = np.flatnonzero(found.song == index)
    out: dict[str, Any] = {"path": str(path)}
    probabilities: dict[str, dict[str, float]] = {}
    seconds = song.bar_seconds()
    timeline: list[dict[str, Any]] = [
        {
            "bars": [int(found.start[i]), int(ends[i])],
            "seconds": [round(float(seconds[bar]), 2) for bar in (found.start[i], ends[i])],
        }
        for i in mine
    ]
    for label, head in trained.classifier.label_heads().items():
        _, (of_song,) = song_log_probs(found.log_probs[label][mine], found.song[mine])
        out[label] = head.classes[int(of_song.argmax())]
        probabilities[label] = _named(of_song, head.classes)
        for row, i in zip(timeline, mine, strict=True):
            log_probs = found.log_probs[label][i]
            row[label] = head.classes[int(log_probs.argmax())]
            row.setdefault("probabilities", {})[label] = _named(log_probs, head.classes)
    return out | {"probabilities": probabilities, "phrases": timeline}


def _named(log_probs: NDArray[np.float64], classes: Sequence[str]) -> dict[str, float]:
    return {name: round(float(np.exp(p)), 4) for name, p in zip(classes, log_probs, strict=True)}


def _say(answer: dict[str, Any]) -> None:
    # Paths may hold bytes that are no UTF-8; JSON escapes the surrogates that stand for them.
    sys.stdout.write(json.dumps(answer, ensure_ascii=True) + "\n")
    sys.stdout.flush()
