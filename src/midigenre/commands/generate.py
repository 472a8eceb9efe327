"""``midigenre generate``: conditional pieces as MIDI files, piano rolls and audio.

``midigenre judge`` draws and writes its pieces by the same functions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from symusic.core import ScoreTick, TextMetaTick

from midigenre.arrays import Longs
from midigenre.build import plain
from midigenre.commands.console import console, progress_bars
from midigenre.corpora.base import Progress
from midigenre.data.sandbox import FileReader
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.evaluation.music.descriptors import describe
from midigenre.files import write_bytes, write_json
from midigenre.generation.audio import (
    MAX_SECONDS,
    check_format,
    check_soundfont,
    decibels,
    length_seconds,
    render,
    unheard_notes,
    write_audio,
)
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Choice, Sample, Sampler, SamplingSettings
from midigenre.midi.song import Song
from midigenre.models import PhraseGenerator
from midigenre.models.kernels import quantize_int8
from midigenre.spec import UNKNOWN
from midigenre.tasks.samples import context_for
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.trained import Run, device_of, load_run
from midigenre.wording import plural

COMMON = ("genre", "emotion")
"""Labels that have a setting of their own."""

NUMBERS = (
    "temperature", "top_k", "top_p", "min_p", "guidance", "seed", "bars", "seconds", "tokens",
)  # fmt: skip
QUANTIZE = ("int8",)


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
    wanted = _conditions(cfg, trained)
    tokenizer = from_spec(trained.tokens)
    primer, primer_bars = _primer(cfg, tokenizer)
    sampler = make_sampler(trained, device, cfg.quantize)
    names = {label: name for label, (name, _) in wanted.items()}
    out = Path(cfg.out).expanduser() if cfg.out else _new_folder(trained)
    with _writing(out):  # before the work, as far as one can know
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    with progress_bars() as progress:
        labels = {label: index for label, (_, index) in wanted.items()}
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


def _conditions(cfg: DictConfig, trained: Run) -> dict[str, tuple[str | None, int]]:
    """Name and index of the class of each condition."""
    wanted: dict[str, Any] = {label: cfg[label] for label in COMMON if cfg[label] is not None}
    wanted |= {str(label): name for label, name in plain(cfg.conditions).items()}
    known = conditions_of(trained)
    for label, name in wanted.items():
        if label not in known:
            raise UserError(
                f"{label}={name}: this generator is not conditioned on {label}; its conditions are "
                f"{', '.join(known) or 'none'} (task.conditions when it was trained)"
            )
    out: dict[str, tuple[str | None, int]] = {}
    for label in known:
        name = wanted.get(label)
        classes = trained.labels.classes[label]
        index = UNKNOWN if name is None else class_index(label, str(name), classes)
        out[label] = (None if name is None else str(name), index)
    return out


def _primer(cfg: DictConfig, tokenizer: Tokenizer) -> tuple[Longs | None, int]:
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
    primer: Longs | None,
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
    names: Mapping[str, str | None],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Writes the pieces; what ``samples.json`` says about each."""
    named = [name for name in names.values() if name]
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


# --- what judge shares ----------------------------------------------------------------------------


def sampling_settings(cfg: DictConfig) -> SamplingSettings:
    """How pieces are drawn, from ``conf/sampling``.

    Raises:
        UserError: A value that makes no sense.
    """
    for key in NUMBERS:
        if isinstance(cfg[key], (bool, str)):
            raise UserError(f"{key}={cfg[key]} is no number")
    try:
        choice = Choice(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
        return SamplingSettings(choice, cfg.guidance, cfg.seed, cfg.bars, cfg.seconds, cfg.tokens)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def make_sampler(trained: Run, device: torch.device, quantize: str | None = None) -> Sampler:
    """A sampler of a trained generator, on a device.

    Args:
        trained: The generator.
        device: Where to compute.
        quantize: ``int8`` for eight-bit weights, None for the model as it is.

    Raises:
        UserError: Its tokenizer has no grammar, or it cannot be quantised.
    """
    model = trained.model.to(device)
    assert isinstance(model, PhraseGenerator)
    if quantize is not None:
        if quantize not in QUANTIZE:
            raise UserError(f"quantize={quantize}; choose {', '.join(QUANTIZE)} or null")
        try:
            model = quantize_int8(model)
        except ValueError as error:
            raise UserError(f"quantize={quantize}: {error}") from error
    grammar = Grammar(from_spec(trained.tokens))
    return Sampler(model, grammar, context_for(trained.data, trained.tokens))


def conditions_of(generator: Run) -> tuple[str, ...]:
    """Labels that a generator is conditioned on."""
    model = generator.model
    assert isinstance(model, PhraseGenerator)
    return tuple(model.conditions.classes) if model.conditions else ()


def check_audio(audio: str | None, soundfont: str | None) -> None:
    """Refuses before the work what :func:`write_piece` could not do after it.

    Raises:
        UserError: There is no such format, or the soundfont cannot be played.
    """
    check_format(audio)
    if audio is not None:
        check_soundfont(soundfont)


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
        song: It, cleaned, for the piano roll; None for a piece without notes.
        title: Title of the piano roll.
        audio: ``wav``, ``mp3`` or None for no audio.
        soundfont: An SF2 file; None for the one that is installed.
        n_bars: Bars of the piece, of which those behind its last note are empty.
        primer_bars: Bars of it that were given.

    Returns:
        What ``samples.json`` says about it: ``midi`` and ``notes``; with notes also ``piano_roll``,
        ``bars``, ``rest_bars`` (how many of these are empty, at the end), ``seconds`` (to the last
        barline) and ``programs``; with audio ``audio`` (None where the piece is too long for it),
        ``peak_db`` and ``loudness_db`` (loudest sample and RMS of the file, dB of full scale),
        ``unheard_notes`` and ``silent``.

    Raises:
        UserError: The soundfont cannot be played.
    """
    n_notes = int(score.note_num())
    n_sounding = 0 if song is None else song.n_bars
    if song is not None and n_bars > n_sounding:
        song = song.with_rests(n_bars)
        # A file ends with its last event (symusic writes the end one tick behind it): without one
        # in its last bar it would lose the rests.
        score.markers.append(TextMetaTick(int(song.bar_ticks[-1]) - 1, "end"))
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


def warnings(pieces: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each thing that is wrong with some of the pieces, which it names.

    Args:
        pieces: What :func:`write_piece` returned.
    """
    kinds: dict[str, list[str]] = {}
    for about in pieces:
        name = str(about["midi"]).removesuffix(".mid")
        if not about["notes"]:
            kinds.setdefault("without a note", []).append(name)
        if about.get("short"):
            kinds.setdefault(f"shorter than asked, {about['short']}", []).append(
                f"{name} ({about.get('bars', 0)} of {about['bars_asked']} bars)"
                if about["bars_asked"] else f"{name} ({about.get('seconds', 0):g} s)"
            )  # fmt: skip
        if about["notes"] and not about.get("drawn_steps", 1):
            kinds.setdefault("with nothing but rests after the primer", []).append(name)
        elif about.get("rest_bars"):
            rests = plural(about["rest_bars"], "bar")
            kinds.setdefault("with rests at the end", []).append(f"{name} ({rests})")
        if about.get("silent"):
            kinds.setdefault("silent as audio, the soundfont lacks its pitches", []).append(name)
        elif "audio" in about and about["audio"] is None:
            long = f"longer than {MAX_SECONDS:,.0f} s, too long for audio"
            kinds.setdefault(long, []).append(name)
    return [f"{len(names)} {what}: {', '.join(names)}" for what, names in kinds.items()]


def _rounded(level_db: Any) -> float | None:
    """For JSON, which has no infinity."""
    level = float(level_db)
    return round(level, 1) if level > -1e9 else None
