"""``midigenre generate``: conditional pieces as MIDI files, piano rolls and audio.

``midigenre judge`` writes its pieces by the same functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from omegaconf import DictConfig
from symusic.core import ScoreTick

from midigenre.build import plain
from midigenre.commands.console import console, progress_bars
from midigenre.errors import UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.evaluation.music.descriptors import describe
from midigenre.files import write_bytes, write_json
from midigenre.generation.audio import (
    MAX_SECONDS,
    check_audio,
    decibels,
    length_seconds,
    render,
    unheard_notes,
    write_audio,
)
from midigenre.inference.generator import Generator, Piece, sampling_settings, with_rests
from midigenre.midi.song import Song
from midigenre.trained import Run, device_of, load_run
from midigenre.wording import plural


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Writes the pieces and ``samples.json`` and prints the folder on stdout.

    Raises:
        UserError: The run is not a generator, a class or the primer is unknown, or a setting makes
            no sense.
    """
    if paths:
        raise UserError(f"{' '.join(paths)}: generate takes no file; a primer is prime=FILE")
    for key in ("n", "batch"):
        if cfg[key] < 1:
            raise UserError(f"{key}={cfg[key]} must be 1 or more")
    settings = sampling_settings(cfg)
    check_audio(cfg.audio, cfg.soundfont)
    device_of(cfg.device)  # before the work
    trained = load_run(cfg.run, cfg.ckpt, "generator")
    generator = Generator(trained, cfg.device, cfg.quantize)
    # Two labels have a setting of their own.
    wanted = {label: cfg[label] for label in ("genre", "emotion") if cfg[label] is not None}
    wanted |= {
        str(label): None if name is None else str(name)
        for label, name in plain(cfg.conditions).items()
    }
    names = generator.named(wanted)
    primer = None if cfg.prime is None else generator.primer(cfg.prime, cfg.prime_bars, _warn)
    primer_bars = 0 if primer is None else primer.n_bars
    out = Path(cfg.out).expanduser() if cfg.out else _new_folder(trained)
    with _writing(out):  # before the work, as far as possible
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    listed: list[dict[str, Any]] = []
    with progress_bars() as progress:
        pieces = generator.pieces(cfg.n, settings, names, primer, cfg.batch, progress)
        for i, piece in enumerate(pieces):
            with _writing(out):
                listed.append(_write(cfg, out, i, piece, primer_bars, names))
            progress("pieces written", i + 1, cfg.n)
    kept = {k: v for k, v in plain(cfg).items() if k not in ("debug", "batch", "out")}
    about_all = {
        "checkpoint": str(trained.checkpoint),
        "conditions": names,
        "primer_bars": primer_bars,
        "settings": kept,
        "pieces": listed,
    }
    with _writing(out):
        write_json(out / "samples.json", about_all)
    for line in piece_warnings(listed):
        _warn(line)
    notes = sum(about["notes"] for about in listed)
    what = "MIDI, piano rolls" + (", audio" if cfg.audio else "")
    console.print(
        f"{plural(len(listed), 'piece')}, {plural(notes, 'note')}; {what} and "
        f"{out / 'samples.json'}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    print(out)


def _warn(line: str) -> None:
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _new_folder(trained: Run) -> Path:
    when = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    # Two commands may come within a second.
    names = chain([when], (f"{when}-{more}" for more in count(2)))
    parent = (trained.folder or Path()) / "samples"
    return next(parent / name for name in names if not (parent / name).exists())


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Says what to do about a folder that cannot be written or is full."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(
            f"{out}: {why}; what was written stays; make room there, or give out=FOLDER elsewhere "
            "(the same seed draws the same pieces)"
        ) from error


def _short(cfg: DictConfig, stop: str, seconds: float) -> str | None:
    """Why a piece is shorter than requested; None if it is not."""
    if stop == "tokens" and (cfg.bars or cfg.seconds):
        return f"ended at the token limit (tokens={cfg.tokens})"
    if stop == "context":
        return "ended where a bar passed the model's context"
    if stop == "end" and cfg.bars is None and (cfg.seconds or 0) > seconds:
        return f"ended by the end token before seconds={cfg.seconds:g}"
    return None


def _write(
    cfg: DictConfig,
    out: Path,
    i: int,
    piece: Piece,
    primer_bars: int,
    names: Mapping[str, str | None],
) -> dict[str, Any]:
    """Writes a piece; what ``samples.json`` says about it."""
    named = [name for name in names.values() if name]
    stem = "-".join(name.replace("/", "_") for name in named) or "piece"
    sample, song = piece.sample, piece.song
    title = f"{' '.join(named) or 'unconditioned'}, seed {cfg.seed}, piece {i}"
    about = write_piece(
        out, f"{stem}-seed{cfg.seed}-{i:03d}", piece.score, song, title, cfg.audio, cfg.soundfont,
        sample.n_bars, primer_bars,
    )  # fmt: skip
    return about | {
        "index": i,
        "bars_asked": None if cfg.bars is None else cfg.bars + primer_bars,
        "stop": sample.stop,
        "short": _short(cfg, sample.stop, about.get("seconds", 0.0)),
        "steps": len(sample.ids_TF),
        "drawn_steps": sample.n_drawn,
        "scores": {} if song is None else describe(song).scalars,
    }


# --- what judge shares ----------------------------------------------------------------------------


def write_piece(
    folder: Path,
    name: str,
    score: ScoreTick,
    song: Song | None,
    title: str,
    audio: str | None,
    soundfont: str | None,
    n_bars: int = 0,
    primer_bars: int = 0,
) -> dict[str, Any]:
    """Writes ``name.mid`` and, of a piece with notes, ``name.png`` and ``name.wav``.

    Args:
        folder: Where to.
        name: The files' name without suffix.
        score: The music; a marker is added where its last bar ends.
        song: The cleaned music, for the piano roll; None for a piece without notes.
        title: Title of the piano roll.
        audio: ``wav``, ``mp3`` or None for no audio.
        soundfont: An SF2 file; None for the one that is installed.
        n_bars: Bars of the piece, of which those after its last note are empty.
        primer_bars: Bars of it that were given.

    Returns:
        ``midi`` and ``notes``; with notes also ``piano_roll``, ``bars``, ``rest_bars`` (how many of
        these are empty, at the end), ``seconds`` (to the last barline) and ``programs``; with audio
        ``audio`` (None where the piece is too long for it), ``peak_db`` and ``loudness_db``
        (loudest sample and RMS of the file, dB of full scale), ``unheard_notes`` and ``silent``.

    Raises:
        UserError: The soundfont cannot be played.
    """
    n_notes = int(score.note_num())
    n_sounding = 0 if song is None else song.n_bars
    if song is not None:
        song = with_rests(score, song, n_bars)
    write_bytes(folder / f"{name}.mid", score.dumps_midi())
    about: dict[str, Any] = {"midi": f"{name}.mid", "notes": n_notes}
    if song is None:
        return about
    figure = piano_roll_figure(
        song.notes, song.bar_ticks, song.tpq, title, song.file_seconds, primer_bars
    )
    save(figure, folder / f"{name}.png")
    about |= {
        "piano_roll": f"{name}.png",
        "bars": song.n_bars,
        "rest_bars": song.n_bars - n_sounding,
        "seconds": round(float(song.file_seconds[-1]), 2),
        "programs": sorted({int(p) for p in song.notes.program}),
    }
    if audio is None:
        return about
    if length_seconds(score) > MAX_SECONDS:
        return about | {"audio": None}
    played = render(score, soundfont)
    file = f"{name}.{audio}"
    write_audio(folder / file, played.samples, played.rate)
    return about | {
        "audio": file,
        "peak_db": _rounded(decibels(np.abs(played.samples).max(initial=0))),
        "loudness_db": _rounded(decibels((played.samples**2).mean() ** 0.5)),
        "unheard_notes": unheard_notes(score, played),
        "silent": played.silent,
    }


def piece_warnings(pieces: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each kind of problem, naming the pieces that have it.

    Args:
        pieces: What :func:`write_piece` returned.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for about in pieces:
        name = str(about["midi"]).removesuffix(".mid")
        if not about["notes"]:
            kinds["without a note"].append(name)
        if about.get("short"):
            length = (
                f"{about.get('bars', 0)} of {about['bars_asked']} bars"
                if about["bars_asked"] else f"{about.get('seconds', 0):g} s"
            )  # fmt: skip
            kinds[f"shorter than asked, {about['short']}"].append(f"{name} ({length})")
        if about["notes"] and not about.get("drawn_steps", 1):
            kinds["with nothing but rests after the primer"].append(name)
        elif about.get("rest_bars"):
            rests = plural(about["rest_bars"], "bar")
            kinds["with rests at the end"].append(f"{name} ({rests})")
        if about.get("silent"):
            kinds["silent as audio, the soundfont lacks its pitches"].append(name)
        elif "audio" in about and about["audio"] is None:
            kinds[f"longer than {MAX_SECONDS:,.0f} s, too long for audio"].append(name)
    return [f"{len(names)} {what}: {', '.join(names)}" for what, names in kinds.items()]


def _rounded(level_db: Any) -> float | None:
    """For JSON, which has no infinity."""
    return round(float(level_db), 1) if np.isfinite(level_db) else None
