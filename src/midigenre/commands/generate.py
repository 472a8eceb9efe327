"""``midigenre generate``: conditional pieces as MIDI files, piano rolls and audio."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from midigenre.build import plain
from midigenre.commands.console import console, progress_bars
from midigenre.commands.pieces import check_audio, warnings, write_piece
from midigenre.commands.sampling import conditions_of, make_sampler, sampling_settings
from midigenre.corpora.base import Progress
from midigenre.data.sandbox import FileReader
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.music.descriptors import describe
from midigenre.files import write_json
from midigenre.generation.sampling import Sample, Sampler, SamplingSettings
from midigenre.spec import UNKNOWN
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.trained import Run, device_of, load_run
from midigenre.wording import plural

COMMON = ("genre", "emotion")
"""Labels that have a setting of their own."""


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Writes the pieces and ``samples.json`` and prints the folder on stdout.

    Raises:
        UserError: The run is no generator, a class or the primer is unknown, or a setting makes no
            sense.
    """
    if paths:
        raise UserError(f"{' '.join(paths)}: generate takes no file; a primer is prime=FILE")
    for key in ("n", "batch"):
        if cfg[key] < 1:
            raise UserError(f"{key}={cfg[key]} must be 1 or more")
    settings = sampling_settings(cfg)
    check_audio(cfg.audio, cfg.soundfont)
    device = device_of(cfg.device)
    trained = load_run(cfg.run, cfg.ckpt, "generator")
    told = _told(cfg, trained)
    tokenizer = from_spec(trained.tokens)
    primer, primer_bars = _primer(cfg, tokenizer)
    sampler = make_sampler(trained, device, cfg.quantize)
    names = {label: name for label, (name, _) in told.items()}
    out = Path(cfg.out).expanduser() if cfg.out else _new_folder(trained)
    with _writing(out):  # before the work, as far as one can know
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    with progress_bars() as progress:
        labels = {label: index for label, (_, index) in told.items()}
        pieces = _drawn(cfg, sampler, settings, labels, primer, primer_bars, progress)
        with _writing(out):
            listed = _write(cfg, out, tokenizer, pieces, primer_bars, names, progress)
            kept = {k: v for k, v in plain(cfg).items() if k not in ("debug", "batch", "out")}
            about_all = {
                "checkpoint": str(trained.checkpoint),
                "conditions": names,
                "primer_bars": primer_bars,
                "settings": kept,
                "pieces": listed,
            }
            write_json(out / "samples.json", about_all)
    for line in warnings(listed):
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    notes = sum(about["notes"] for about in listed)
    what = "MIDI, piano rolls" + (", audio" if cfg.audio else "")
    console.print(
        f"{plural(len(listed), 'piece')}, {plural(notes, 'note')}; {what} and "
        f"{out / 'samples.json'}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    print(out)


def class_index(label: str, name: str, classes: Sequence[str]) -> int:
    """Index of a class.

    Raises:
        UserError: There is no such class; the message lists them.
    """
    if name in classes:
        return list(classes).index(name)
    near = difflib.get_close_matches(name, classes, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"{label}={name}: {guess}this generator knows {', '.join(classes)} (and null, unknown)"
    )


def _told(cfg: DictConfig, trained: Run) -> dict[str, tuple[str | None, int]]:
    """Name and index of the class of each condition."""
    wanted: dict[str, Any] = {label: cfg[label] for label in COMMON if cfg[label] is not None}
    wanted |= {str(label): name for label, name in plain(cfg.conditions).items()}
    known = conditions_of(trained)
    for label, name in wanted.items():
        if label not in known:
            raise UserError(
                f"{label}={name}: this generator was not told of {label}; its conditions are "
                f"{', '.join(known) or 'none'} (task.conditions when it was trained)"
            )
    out: dict[str, tuple[str | None, int]] = {}
    for label in known:
        name = wanted.get(label)
        classes = trained.labels.classes[label]
        index = UNKNOWN if name is None else class_index(label, str(name), classes)
        out[label] = (None if name is None else str(name), index)
    return out


def _primer(cfg: DictConfig, tokenizer: Tokenizer) -> tuple[NDArray[np.int64] | None, int]:
    """Steps and number of bars of the primer."""
    if cfg.prime is None:
        return None, 0
    if cfg.prime_bars is not None and cfg.prime_bars < 1:
        raise UserError(f"prime_bars={cfg.prime_bars} must be 1 or more, or null for all")
    path = Path(cfg.prime).expanduser()
    try:
        with FileReader() as reader:
            song, _ = reader.read(path, tokenizer.spec)
    except RefusedSongError as error:
        raise UserError(f"prime={cfg.prime}: {error}; give a MIDI file with notes") from error
    first = int(np.flatnonzero(song.onsets_per_bar())[0])
    end = song.n_bars if cfg.prime_bars is None else min(song.n_bars, first + cfg.prime_bars)
    if cfg.prime_bars is not None and end < first + cfg.prime_bars:
        console.print(
            f"{path} has {plural(end - first, 'bar')} of music, not prime_bars={cfg.prime_bars}",
            style="yellow", markup=False, highlight=False,
        )  # fmt: skip
    phrase = song.bars(first, end)
    return tokenizer.encode(phrase).ids_TF.astype(np.int64), phrase.n_bars


def _drawn(
    cfg: DictConfig,
    sampler: Sampler,
    settings: SamplingSettings,
    labels: Mapping[str, int],
    primer: NDArray[np.int64] | None,
    primer_bars: int,
    progress: Progress,
) -> list[Sample]:
    """All pieces, batch by batch."""
    pieces: list[Sample] = []
    for first in range(0, cfg.n, cfg.batch):
        n = min(cfg.batch, cfg.n - first)
        what = f"pieces {first} to {first + n - 1}" if cfg.n > cfg.batch else "bars"

        def report(_: str, done: int, total: int, what: str = what) -> None:
            progress(what, done, total)

        try:
            pieces += sampler.sample(
                {label: [index] * n for label, index in labels.items()}, settings, n=n, first=first,
                primer=primer, primer_bars=primer_bars, report=report,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"prime={cfg.prime}: {error}") from error
    return pieces


def _new_folder(trained: Run) -> Path:
    parent = trained.folder if trained.folder is not None else Path()
    base = parent / "samples" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, more = base, 1
    while folder.exists():  # two commands within a second
        more += 1
        folder = base.with_name(f"{base.name}-{more}")
    return folder


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Says of a folder that cannot be written, or is full, what to do."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(
            f"{out}: {why}; what was written stays; make room there, or give out=FOLDER elsewhere "
            "(the same seed draws the same pieces)"
        ) from error


def _short(cfg: DictConfig, piece: Sample, seconds: float) -> str | None:
    """Why a piece is shorter than was asked, None for one that is not."""
    if piece.stop == "tokens" and (cfg.bars or cfg.seconds):
        return f"ended at the most tokens (tokens={cfg.tokens})"
    if piece.stop == "context":
        return "ended where a bar passed the model's context"
    if piece.stop == "end" and cfg.bars is None and (cfg.seconds or 0) > seconds:
        return f"ended by the end token before seconds={cfg.seconds:g}"
    return None


def _write(
    cfg: DictConfig,
    out: Path,
    tokenizer: Tokenizer,
    pieces: Sequence[Sample],
    primer_bars: int,
    told: Mapping[str, str | None],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Writes the pieces; what ``samples.json`` says about each."""
    named = [name for name in told.values() if name]
    stem = "-".join(name.replace("/", "_") for name in named) or "piece"
    listed: list[dict[str, Any]] = []
    for i, piece in enumerate(pieces):
        score = tokenizer.decode(piece.ids_TF)
        song = tokenizer.clean(score) if score.note_num() else None
        title = f"{' '.join(named) or 'unconditioned'}, seed {cfg.seed}, piece {i}"
        about = write_piece(
            out, f"{stem}-seed{cfg.seed}-{i:03d}", score, song, title, cfg.audio, cfg.soundfont,
            piece.n_bars, primer_bars,
        )  # fmt: skip
        about |= {
            "index": i,
            "bars_asked": None if cfg.bars is None else cfg.bars + primer_bars,
            "stop": piece.stop,
            "short": _short(cfg, piece, about.get("seconds", 0.0)),
            "steps": len(piece.ids_TF),
            "drawn_steps": piece.n_drawn,
            "scores": {} if song is None else describe(song).scalars,
        }
        listed.append(about)
        progress("pieces written", i + 1, len(pieces))
    return listed
