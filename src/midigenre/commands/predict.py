"""``midigenre predict``: labels of MIDI files as JSON lines or as a table."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from midigenre.arrays import Floats
from midigenre.commands.console import console
from midigenre.corpora.folder import ENDINGS, LeftOut, in_words, midi_files
from midigenre.data.phrases import MemorySongs
from midigenre.data.sandbox import FileLimits, FileReader
from midigenre.errors import RejectedSongError, UserError
from midigenre.evaluation.calibration import Calibration, song_energy
from midigenre.files import csv_cell, safe_name
from midigenre.midi.song import Song
from midigenre.tasks.explain import METHOD, Attribution, Explainer
from midigenre.tasks.predict import SongPredictions, load_song_models, predict_songs, song_scores
from midigenre.tokenizers.base import Encoded
from midigenre.trained import Run, device_of, load_run
from midigenre.wording import plural, program_name

OUTPUT_FORMATS = ("json", "csv")
FILES_AT_ONCE = 64  # bounds the memory; phrases of these files share batches


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints a JSON object or CSV row per file on stdout; that of a bad file has ``error``.

    Raises:
        UserError: No path is given, no file could be read, or a setting is wrong.
    """
    if not paths:
        raise UserError("no file: midigenre predict run=RUN -- FILE_OR_DIR ...")
    files = list(_files(paths))
    if not files:
        raise UserError(f"{', '.join(paths)}: no MIDI file there (a name ends in {ENDINGS})")
    _check(cfg)
    failed: list[tuple[Path, RejectedSongError]] = []
    limits = FileLimits(float(cfg.max_file_mb), float(cfg.max_seconds))
    with FileReader(limits, guarded=bool(cfg.guard)) as reader:
        trained = load_run(cfg.run, cfg.ckpt)
        answerer = Answerer(cfg, trained)
        reader.wait(trained.tokens)
        say = answerer.table() if cfg.format == "csv" else _say_json
        for begin in range(0, len(files), FILES_AT_ONCE):
            some = files[begin : begin + FILES_AT_ONCE]
            songs: dict[Path, tuple[Song, Encoded]] = {}
            answers: dict[Path, dict[str, Any]] = {}
            for path in dict.fromkeys(some):
                try:
                    songs[path] = reader.read(path, trained.tokens)
                except RejectedSongError as error:
                    failed.append((path, error))
                    answers[path] = {"error": error.reason, "detail": error.detail}
                    if len(files) > 1:  # of a single one the last line says it
                        _note(f"{path}: {error}", "red")
            if songs:
                answers |= answerer(songs)
            for path in some:
                say({"path": str(path)} | answers[path])
    if len(failed) == len(files):
        path, refusal = failed[0]
        more = f" (and {plural(len(failed) - 1, 'more file')})" if len(failed) > 1 else ""
        hint = "" if refusal.reason == "missing" else "; a MIDI file starts with MThd"
        raise UserError(f"{path}: {refusal}{more}{hint}")


def _check(cfg: DictConfig) -> None:
    """Rejects wrong settings before the work."""
    device_of(cfg.device)
    for name in ("batch_phrases", "batch_tokens"):
        if cfg[name] < 1:
            raise UserError(f"{name} must be 1 or more, got {cfg[name]}")
    for name in ("max_file_mb", "max_seconds"):
        if not cfg[name] > 0:
            raise UserError(f"{name} must be above 0, got {cfg[name]}")
    if cfg.format not in OUTPUT_FORMATS:
        raise UserError(f"format={cfg.format}; choose {', '.join(OUTPUT_FORMATS)}")
    if cfg.out is not None and not cfg.explain:
        raise UserError(
            f"out={cfg.out} is for the figures of explain=true; predictions go to stdout, as in "
            f"midigenre predict ... > {cfg.out}"
        )


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for text in paths:
        path = Path(text)
        if not os.path.isdir(path):
            yield path  # one that does not exist is rejected when its turn comes
            continue
        left_out = LeftOut()
        yield from midi_files(path, left_out)
        if endings := left_out.total():
            _note(f"{path}: {in_words(endings)} passed over (a MIDI file's name ends in {ENDINGS})")


def _note(text: str, style: str = "yellow") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def thresholds_of(
    calibration: Calibration | None, labels: Sequence[str], threshold: float | None,
    coverage: float | None,
) -> dict[str, float]:  # fmt: skip
    """For each label the song probability below which there is no answer; empty to answer always.

    Args:
        calibration: The run's, None without one.
        labels: The model's labels.
        threshold: One for all labels; None for none.
        coverage: Share of songs to answer, which says the thresholds instead.

    Raises:
        UserError: Both are given, one is out of range, or ``coverage`` without a calibration.
    """
    if threshold is not None and coverage is not None:
        raise UserError(
            f"threshold={threshold} and coverage={coverage}: give one of them; a coverage "
            "finds its threshold on the run's validation songs"
        )
    if threshold is not None:
        if not 0 < threshold <= 1:
            raise UserError(f"threshold={threshold} must lie above 0 and be at most 1")
        return dict.fromkeys(labels, float(threshold))
    if coverage is None:
        return {}
    levels = {} if calibration is None else calibration.levels
    if missing := [label for label in labels if label not in levels]:
        raise UserError(
            f"coverage={coverage}: there is no calibration of {', '.join(missing)} "
            "(RUN/calibration.json, which `midigenre train` writes for ckpt=best); set "
            "threshold= instead"
        )
    return {label: levels[label]["song"].threshold_for(coverage) for label in labels}


class Answerer:
    """Answers for files whose phrases share batches, with the run and the command's settings."""

    def __init__(self, cfg: DictConfig, trained: Run) -> None:
        self._trained, self._device = trained, device_of(cfg.device)
        self._model = model = trained.classifier
        self._bounds: dict[str, Any] = {
            key: int(cfg[key]) for key in ("batch_phrases", "batch_tokens")
        }
        self._classes = {label: head.classes for label, head in model.label_heads().items()}
        self._blends, note = load_song_models(trained.checkpoint, model, trained.task)
        if note is not None:
            _note(note)
        self._calibration = (
            Calibration.of_run(trained.folder, trained.checkpoint, self._blends is not None)
            if cfg.calibrate
            else None
        )
        self._thresholds = thresholds_of(
            self._calibration, list(self._classes), cfg.threshold, cfg.coverage
        )
        self._explainer = None
        if cfg.explain:
            self._explainer = Explainer(
                model, trained.tokens, trained.data, device=self._device, **self._bounds
            )
        self._figures = None if cfg.out is None else Path(cfg.out)
        self._figure_names: set[str] = set()

    def __call__(self, read: Mapping[Path, tuple[Song, Encoded]]) -> dict[Path, dict[str, Any]]:
        """The answer for each file."""
        songs, trained = MemorySongs(list(read.values())), self._trained
        predicted = predict_songs(
            self._model, songs, trained.tokens, trained.data, self._device, by_length=True,
            **self._bounds,
        )  # fmt: skip
        scores = song_scores(self._blends, predicted.found, predicted.reader, predicted.phrases)
        answers = {
            path: self._describe(song, i, predicted, {label: of[i] for label, of in scores.items()})
            for i, (path, (song, _)) in enumerate(read.items())
        }
        if self._explainer is not None:
            targets = {label: of.argmax(1) for label, of in scores.items()}
            explained = self._explainer(songs, predicted.phrases, targets)
            for (path, (song, _)), attributions in zip(read.items(), explained, strict=True):
                answers[path]["explanation"] = self._explanation(attributions)
                if self._figures is not None:
                    answers[path]["figure"] = str(self._figure(path, song, attributions))
        return answers

    def _describe(
        self, song: Song, index: int, predicted: SongPredictions, scores: Mapping[str, Floats]
    ) -> dict[str, Any]:
        """One file's answer without its path: labels, probabilities, and those of each phrase.

        Args:
            song: The song.
            index: Its number among those of ``predicted``.
            predicted: The model's output for all phrases.
            scores: For each label the song's log-probabilities before any temperature, (C,).
        """
        found, first, end = predicted.found, predicted.phrases.first, predicted.phrases.end
        mine = np.flatnonzero(found.song == index)
        answers: dict[str, Any] = {}
        probabilities: dict[str, dict[str, float]] = {}
        doubts: dict[str, dict[str, Any]] = {}
        timeline: list[dict[str, Any]] = [
            {
                "bars": [int(first[i]), int(end[i])],
                "seconds": [round(float(song.file_seconds[bar]), 2) for bar in (first[i], end[i])],
            }
            for i in mine
        ]
        levels = {} if self._calibration is None else self._calibration.levels
        for label, names in self._classes.items():
            raw_1C, phrase_NC = scores[label][None], found.log_probs[label][mine]
            energy_1 = song_energy(found.energy[label][mine], found.song[mine])
            # How familiar the song is to the model, before the temperature; None without a limit.
            doubts[label] = {
                "energy": round(float(energy_1[0]), 4),
                "max_softmax": round(float(np.exp(raw_1C.max())), 4),
                "out_of_domain": None,
                "low_confidence": None,
            }
            log_probs_C = raw_1C[0]
            if label in levels:
                level = levels[label]["song"]
                log_probs_C = level.apply(raw_1C)[0]
                phrase_NC = levels[label]["phrase"].apply(phrase_NC)
                if level.max_energy is not None:
                    doubts[label]["out_of_domain"] = bool(level.out_of_domain(energy_1)[0])
                if level.min_confidence is not None:
                    doubts[label]["low_confidence"] = bool(level.low_confidence(raw_1C)[0])
            if label in self._thresholds:
                doubts[label]["threshold"] = round(self._thresholds[label], 4)
            best = int(log_probs_C.argmax())
            unsure = math.exp(log_probs_C[best]) < self._thresholds.get(label, 0.0)
            answers[label] = None if unsure else names[best]
            probabilities[label] = _named(log_probs_C, names)
            for row, of_phrase_C in zip(timeline, phrase_NC, strict=True):
                row[label] = names[int(of_phrase_C.argmax())]
                row.setdefault("probabilities", {})[label] = _named(of_phrase_C, names)
        flags = [about["out_of_domain"] for about in doubts.values()]
        return {
            **answers,
            **({"abstained": None in answers.values()} if self._thresholds else {}),
            "probabilities": probabilities,
            "calibrated": all(label in levels for label in self._classes),
            "out_of_domain": None if None in flags else any(flags),
            "doubts": doubts,
            "repairs": song.repairs,
            "phrases_cut": int(predicted.cut[mine].sum()),
            "phrases": timeline,
        }

    def _explanation(self, attributions: Mapping[str, Attribution]) -> dict[str, Any]:
        """Attributions for JSON: nats of the song's log-odds, null where undefined."""
        return {
            label: {
                "class": self._classes[label][found.target],
                "method": METHOD,
                "log_odds": _number(found.log_odds),
                "bars": [_number(value) for value in found.bars],
                "programs": {program_name(p): _number(v) for p, v in found.programs.items()},
            }
            for label, found in attributions.items()
        }

    def _figure(self, path: Path, song: Song, attributions: Mapping[str, Attribution]) -> Path:
        """Draws a file's explanation under its name; later files of the same name get a number."""
        # Matplotlib takes half a second to import.
        from midigenre.evaluation.figures import save
        from midigenre.evaluation.figures.piano_roll import LabelAttribution, attribution_figure

        assert self._figures is not None
        stem = name = safe_name(path.stem)
        number = 1
        # Some file systems ignore case.
        while name.casefold() in self._figure_names:
            number += 1
            name = f"{stem}-{number}"
        self._figure_names.add(name.casefold())
        labels = [
            LabelAttribution(
                label, self._classes[label][found.target], found.log_odds, found.bars,
                found.programs,
            )
            for label, found in attributions.items()
        ]  # fmt: skip
        figure = attribution_figure(
            song.notes, song.bar_ticks, song.tpq, path.name, labels, song.file_seconds
        )
        return save(figure, self._figures / f"{name}.png")

    def table(self) -> Callable[[Mapping[str, Any]], None]:
        """Prints the header of a CSV table; returns a function that prints the row of an answer."""
        columns = [
            "path",
            *(column for label in self._classes for column in (label, f"{label}_probability")),
            *(["abstained"] if self._thresholds else []),
            "out_of_domain", "calibrated", "phrases", "phrases_cut", "seconds", "repairs",
            *(["figure"] if self._figures is not None else []),
            "error", "detail",
            *(f"{label}_probability_{name}" for label, of in self._classes.items() for name in of),
        ]  # fmt: skip
        _print_csv(columns)

        def say(answer: Mapping[str, Any]) -> None:
            row = _table_row(answer)
            _print_csv([row.get(column) for column in columns])

        return say


def _table_row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A file's answer as cells; of its phrases only their number and the span in seconds."""
    if "error" in answer:
        return dict(answer)
    phrases = answer["phrases"]
    row = dict(answer) | {
        "phrases": len(phrases),
        "seconds": round(phrases[-1]["seconds"][1] - phrases[0]["seconds"][0], 2),
        "repairs": json.dumps(answer["repairs"]) if answer["repairs"] else "",
    }
    for label, probabilities in answer["probabilities"].items():
        row[f"{label}_probability"] = max(probabilities.values())
        row |= {f"{label}_probability_{name}": p for name, p in probabilities.items()}
    return row


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6) + 0.0  # no minus zero


def _named(log_probs_C: Floats, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(np.exp(p)), 4) for name, p in zip(names, log_probs_C, strict=True)}


def _say_json(answer: Mapping[str, Any]) -> None:
    # Paths may hold bytes that are not UTF-8; JSON escapes the surrogates that stand for them.
    sys.stdout.write(json.dumps(answer, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def _print_csv(cells: Sequence[Any]) -> None:
    line = io.StringIO()
    csv.writer(line).writerow([csv_cell(cell) for cell in cells])
    # A path may hold bytes that are not UTF-8: they stay as they are.
    sys.stdout.flush()
    sys.stdout.buffer.write(line.getvalue().encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
