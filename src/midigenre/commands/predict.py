"""``midigenre predict``: labels of MIDI files as JSON lines or as a table."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from midigenre.commands.console import console
from midigenre.commands.predict_answer import (
    Doubt,
    SongScores,
    describe,
    describe_attribution,
    mean_scores,
    table_columns,
    table_row,
)
from midigenre.commands.predict_figures import FigureFolder
from midigenre.commands.predict_reader import FileReader, ReadSong
from midigenre.commands.predict_timing import Stopwatch
from midigenre.corpora.folder import ENDINGS, LeftOut, in_words, midi_files
from midigenre.data.batches import collate, group_by_budget
from midigenre.data.guard import Limits
from midigenre.data.phrases import PhraseReader, Phrases, consecutive, phrase_length
from midigenre.data.shards import MemorySongs
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.calibration import Calibration
from midigenre.files import csv_cell
from midigenre.spec import Batch
from midigenre.tasks.explain import Explainer, check_method
from midigenre.tasks.predict import Predictions, predict_phrases
from midigenre.tasks.songs import load_song_models, score_songs
from midigenre.trained import Run, device_of, load_run
from midigenre.wording import plural

FORMATS = ("json", "csv")
FILES_AT_ONCE = 64  # bounds the memory; phrases of these files share batches


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints one JSON object, or row of a CSV table, a file on stdout; a bad file's has ``error``.

    Raises:
        UserError: No path is given, no file could be read, or a setting is wrong.
    """
    watch = Stopwatch()
    n_read = answer_files(cfg, paths, watch)
    if cfg.timing:
        console.print(watch.table(n_read))


def answer_files(cfg: DictConfig, paths: Sequence[str], watch: Stopwatch) -> int:
    """As :func:`run`, timed by ``watch``; the number of files that could be read."""
    if not paths:
        raise UserError("no file: midigenre predict run=RUN -- FILE_OR_DIR ...")
    files = list(_files(paths))
    if not files:
        raise UserError(f"{', '.join(paths)}: no MIDI file in there (a name ends in {ENDINGS})")
    device = device_of(cfg.device)
    _check(cfg)
    failed: list[tuple[Path, RefusedSongError]] = []
    limits = Limits(float(cfg.max_file_mb), float(cfg.max_seconds))
    with FileReader(limits, guarded=bool(cfg.guard)) as reader:
        with watch("load"):
            answerer = _Answerer(cfg, load_run(cfg.run, cfg.ckpt), device, watch)
            reader.wait(answerer.trained.tokens)
        say = answerer.table(bool(cfg.out)) if cfg.format == "csv" else _say_json
        for begin in range(0, len(files), FILES_AT_ONCE):
            read: list[tuple[Path, ReadSong]] = []
            answers: dict[Path, dict[str, Any]] = {}
            for path in dict.fromkeys(files[begin : begin + FILES_AT_ONCE]):
                try:
                    found = reader.read(path, answerer.trained.tokens)
                except RefusedSongError as error:
                    failed.append((path, error))
                    answers[path] = {"error": error.reason, "detail": error.detail}
                    if len(files) > 1:  # of a single one the last line says it
                        console.print(
                            f"{path}: {error}", style="red", markup=False, highlight=False
                        )
                else:
                    read.append((path, found))
                    for stage, seconds in found.seconds.items():
                        watch.add(stage, seconds)
            if read:
                answers |= answerer(read)
            with watch("answer"):
                for path in files[begin : begin + FILES_AT_ONCE]:
                    say({"path": str(path)} | answers[path])
    if len(failed) == len(files):
        path, refusal = failed[0]
        more = f" (and {plural(len(failed) - 1, 'more file')})" if len(failed) > 1 else ""
        hint = "" if refusal.reason == "missing" else "; a MIDI file starts with MThd"
        raise UserError(f"{path}: {refusal}{more}{hint}")
    return len(files) - len(failed)


def _check(cfg: DictConfig) -> None:
    """Refuses wrong settings before the work."""
    for name in ("batch_phrases", "batch_tokens"):
        if cfg[name] < 1:
            raise UserError(f"{name} must be 1 or more, got {cfg[name]}")
    for name in ("max_file_mb", "max_seconds"):
        if not cfg[name] > 0:
            raise UserError(f"{name} must be above 0, got {cfg[name]}")
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}; choose {', '.join(FORMATS)}")
    check_method(cfg.explain_method)
    if cfg.out is not None and not cfg.explain:
        raise UserError(f"out={cfg.out}: figures are of explanations; set explain=true, too")


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for text in paths:
        path = Path(text)
        if os.path.isdir(path):
            left_out = LeftOut()
            yield from midi_files(path, left_out)
            if endings := left_out.total():
                console.print(
                    f"{path}: {in_words(endings)} passed over (a MIDI file's name ends in "
                    f"{ENDINGS})",
                    style="yellow", markup=False, highlight=False, soft_wrap=True,
                )  # fmt: skip
        else:
            yield path  # one that does not exist is refused when its turn comes


class _Answerer:
    """Answers for files whose phrases share batches.

    Args:
        cfg: The command's settings.
        trained: The run.
        device: Where to compute.
        watch: Is told how long each step takes.
    """

    def __init__(
        self, cfg: DictConfig, trained: Run, device: torch.device, watch: Stopwatch
    ) -> None:
        self.trained, self._device, self._watch = trained, device, watch
        self._batch_phrases, self._batch_tokens = int(cfg.batch_phrases), int(cfg.batch_tokens)
        self._classes = {
            label: head.classes for label, head in trained.classifier.label_heads().items()
        }
        self._songs, note = load_song_models(trained.checkpoint, trained.classifier, trained.task)
        if note is not None:
            console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        calibration = (
            Calibration.of_run(trained.folder, trained.checkpoint, self._songs is not None)
            if cfg.calibrate
            else None
        )
        self._doubt = Doubt.of(calibration, list(self._classes), cfg.threshold, cfg.coverage)
        self._method = str(cfg.explain_method)
        self._explainer = None
        if cfg.explain:
            self._explainer = Explainer(
                trained.classifier,
                trained.tokens,
                trained.data,
                self._method,
                batch_phrases=self._batch_phrases,
                batch_tokens=self._batch_tokens,
                device=device,
            )
        self._figures = None if cfg.out is None else FigureFolder(Path(cfg.out), self._classes)

    def __call__(self, read: Sequence[tuple[Path, ReadSong]]) -> dict[Path, dict[str, Any]]:
        """The answer for each file."""
        songs = MemorySongs([(found.song, found.encoded) for _, found in read])
        phrases, found, cut = self._predict(songs)
        scores = self._scores(found, songs, phrases)
        with self._watch("answer"):
            answers = {
                path: describe(
                    read_song.song, i, found, phrases.end, scores, self._classes, self._doubt, cut
                )
                for i, (path, read_song) in enumerate(read)
            }
        if self._explainer is not None:
            with self._watch("explain"):
                targets = {k: of.log_probs_SC.argmax(1) for k, of in scores.items()}
                explained = self._explainer(songs, phrases, found, targets)
            for (path, read_song), attributions in zip(read, explained, strict=True):
                answers[path]["explanation"] = describe_attribution(
                    attributions, self._classes, self._method
                )
                if self._figures is not None:
                    with self._watch("figures"):
                        figure = self._figures.write(path, read_song.song, attributions)
                    answers[path]["figure"] = str(figure)
        return answers

    def _scores(
        self, found: Predictions, songs: MemorySongs, phrases: Phrases
    ) -> dict[str, SongScores]:
        """What the run's song model says; by default the mean over a song's phrases."""
        with self._watch("songs"):
            scores = {label: mean_scores(found, label) for label in self._classes}
            if self._songs is not None:
                theirs = score_songs(self._songs, found, self._reader(songs), phrases)
                for label, (_, log_probs_SC) in theirs.items():
                    scores[label] = replace(scores[label], log_probs_SC=log_probs_SC)
        return scores

    def _reader(self, songs: MemorySongs) -> PhraseReader:
        data = self.trained.data
        # Checkpoints from before there were marks do not name them.
        return PhraseReader(
            songs, self.trained.tokens, data["max_tokens"], data.get("marks", False)
        )

    def table(self, figures: bool) -> Callable[[Mapping[str, Any]], None]:
        """Prints the head of a CSV table; what it returns prints a row for an answer."""
        columns = table_columns(self._classes, bool(self._doubt.thresholds), figures)
        _print_csv(columns)

        def say(answer: Mapping[str, Any]) -> None:
            row = table_row(answer)
            _print_csv([row.get(column) for column in columns])

        return say

    def _predict(self, songs: MemorySongs) -> tuple[Phrases, Predictions, NDArray[np.bool_]]:
        """All phrases of the songs, in order, what the model says of them, and which were cut."""
        data, tokens = self.trained.data, self.trained.tokens
        with self._watch("cut"):
            phrases = consecutive(songs, np.arange(len(songs)), phrase_length(data, tokens))
            reader = self._reader(songs)
            lengths = reader.lengths(phrases)
            # Neighbours of one length share a call of attention.
            order = np.argsort(lengths, kind="stable")
            groups = group_by_budget(lengths[order], self._batch_phrases, self._batch_tokens)
        cut = np.zeros(len(phrases), bool)

        def batches() -> Iterator[Batch]:
            for group in groups:
                with self._watch("cut", within="model"):
                    chosen = phrases.select(order[group])
                    columns = zip(
                        chosen.song.tolist(), chosen.first.tolist(), chosen.end.tolist(),
                        strict=True,
                    )  # fmt: skip
                    read = [reader(*column) for column in columns]
                    batch = collate([ids for ids, _ in read], {}, chosen)
                    cut[order[group]] = [
                        stop < end or len(ids) == data["max_tokens"]  # within its only bar
                        for (ids, stop), end in zip(read, chosen.end, strict=True)
                    ]
                self._watch.tokens += batch.n_tokens
                yield batch

        with self._watch("model"):
            found = predict_phrases(
                self.trained.classifier,
                batches(),
                self._device,
                vectors=self._songs is not None and self._songs.needs_vectors,
            )
        return phrases, _reordered(found, np.argsort(order)), cut


def _reordered(found: Predictions, order: NDArray[np.int64]) -> Predictions:
    """The phrases in another order."""
    return replace(
        found,
        log_probs={label: rows[order] for label, rows in found.log_probs.items()},
        song=found.song[order],
        start=found.start[order],
        vectors=None if found.vectors is None else found.vectors[order],
        energy={label: rows[order] for label, rows in found.energy.items()},
    )


def _say_json(answer: Mapping[str, Any]) -> None:
    # Paths may hold bytes that are no UTF-8; JSON escapes the surrogates that stand for them.
    sys.stdout.write(json.dumps(answer, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def _print_csv(cells: Sequence[Any]) -> None:
    line = io.StringIO()
    csv.writer(line).writerow([csv_cell(cell) for cell in cells])
    # A path may hold bytes that are no UTF-8: they stay what they are.
    sys.stdout.flush()
    sys.stdout.buffer.write(line.getvalue().encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
