"""``midigenre predict``: labels of MIDI files as JSON lines or as a table."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from midigenre.commands.console import console
from midigenre.corpora.folder import ENDINGS, LeftOut, in_words, midi_files
from midigenre.data.sandbox import FileLimits, FileReader
from midigenre.errors import UserError
from midigenre.files import csv_cell, safe_name
from midigenre.inference.classifier import Answer, Classifier, Rejected, none_readable
from midigenre.trained import device_of, load_run

OUTPUT_FORMATS = ("json", "csv")


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints a JSON object or CSV row per file on stdout; that of a bad file has ``error``.

    Raises:
        UserError: No path is given, no file could be read, or a setting is wrong.
    """
    files = given_files(paths, "predict run=RUN")
    limits = limits_of(cfg)
    _check(cfg)
    rejected: list[Rejected] = []
    with FileReader(limits, guarded=bool(cfg.guard)) as reader:
        trained = load_run(cfg.run, cfg.ckpt)
        model = Classifier(
            trained, reader, device=cfg.device, batch_phrases=int(cfg.batch_phrases),
            batch_tokens=int(cfg.batch_tokens), calibrate=cfg.calibrate, threshold=cfg.threshold,
            coverage=cfg.coverage, explain=cfg.explain,
        )  # fmt: skip
        if model.warning is not None:
            note(model.warning)
        reader.wait(trained.tokens)
        figures = None if cfg.out is None else Figures(Path(cfg.out), model.classes)
        say = _table(model, figures is not None) if cfg.format == "csv" else _say_json
        for answer in model.answers(files):
            shown = answer.with_path
            if isinstance(answer, Rejected):
                rejected.append(answer)
                if len(files) > 1:  # of a single one the last line says it
                    note(f"{answer.path}: {answer.error}", "red")
            elif figures is not None:
                shown["figure"] = str(figures.draw(answer))
            say(shown)
    if len(rejected) == len(files):
        raise none_readable(rejected)


def _check(cfg: DictConfig) -> None:
    """Rejects wrong settings before the work."""
    device_of(cfg.device)
    for name in ("batch_phrases", "batch_tokens"):
        if cfg[name] < 1:
            raise UserError(f"{name} must be 1 or more, got {cfg[name]}")
    if cfg.format not in OUTPUT_FORMATS:
        raise UserError(f"format={cfg.format}; choose {', '.join(OUTPUT_FORMATS)}")
    if cfg.out is not None and not cfg.explain:
        raise UserError(
            f"out={cfg.out} is for the figures of explain=true; predictions go to stdout, as in "
            f"midigenre predict ... > {cfg.out}"
        )


class Figures:
    """Draws explanations into a folder.

    Args:
        folder: The folder.
        classes: Class names of each label.
    """

    def __init__(self, folder: Path, classes: Mapping[str, Sequence[str]]) -> None:
        self._folder, self._classes = folder, classes
        self._names: set[str] = set()

    def draw(self, answer: Answer) -> Path:
        """Draws a file's explanation under its name; later files of the same name get a number."""
        # Matplotlib takes half a second to import.
        from midigenre.evaluation.figures import save
        from midigenre.evaluation.figures.piano_roll import LabelAttribution, attribution_figure

        song = answer.song
        stem = name = safe_name(answer.path.stem)
        number = 1
        # Some file systems ignore case.
        while name.casefold() in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.casefold())
        labels = [
            LabelAttribution(
                label, self._classes[label][found.target], found.log_odds, found.bars,
                found.programs,
            )
            for label, found in answer.attributions.items()
        ]  # fmt: skip
        figure = attribution_figure(
            song.notes, song.bar_ticks, song.tpq, answer.path.name, labels, song.file_seconds
        )
        return save(figure, self._folder / f"{name}.png")


def _table(model: Classifier, figures: bool) -> Callable[[Mapping[str, Any]], None]:
    """Prints the header of a CSV table; returns a function that prints the row of an answer."""
    columns = [
        "path",
        *(column for label in model.classes for column in (label, f"{label}_probability")),
        *(["abstained"] if model.thresholds else []),
        "out_of_domain", "calibrated", "phrases", "phrases_cut", "seconds", "repairs",
        *(["figure"] if figures else []),
        "error", "detail",
        *(f"{label}_probability_{name}" for label, of in model.classes.items() for name in of),
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


# --- what embed shares ----------------------------------------------------------------------------


def given_files(paths: Sequence[str], call: str) -> list[Path]:
    """The files that a user names, by themselves or by a folder.

    Args:
        paths: What follows ``--``.
        call: The command with what it needs, for the error.

    Raises:
        UserError: There is none.
    """
    if not paths:
        raise UserError(f"no file: midigenre {call} -- FILE_OR_DIR ...")
    if files := list(_files(paths)):
        return files
    raise UserError(f"{', '.join(paths)}: no MIDI file there (a name ends in {ENDINGS})")


def limits_of(cfg: DictConfig) -> FileLimits:
    """``max_file_mb`` and ``max_seconds``.

    Raises:
        UserError: One is not above 0.
    """
    for name in ("max_file_mb", "max_seconds"):
        if not cfg[name] > 0:
            raise UserError(f"{name} must be above 0, got {cfg[name]}")
    return FileLimits(float(cfg.max_file_mb), float(cfg.max_seconds))


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for text in paths:
        path = Path(text)
        if not os.path.isdir(path):
            yield path  # one that does not exist is rejected when its turn comes
            continue
        left_out = LeftOut()
        yield from midi_files(path, left_out)
        if endings := left_out.total():
            note(f"{path}: {in_words(endings)} passed over (a MIDI file's name ends in {ENDINGS})")


def note(text: str, style: str = "yellow") -> None:
    """Shows a line to the user."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
