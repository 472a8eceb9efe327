"""``midigenre generate``: conditional pieces as MIDI files and piano rolls."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from midigenre.commands.console import console, progress_bars
from midigenre.data.phrases import Seconds, phrase_length
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.figures import piano_roll_figure, save
from midigenre.files import write_bytes, write_json
from midigenre.generation.choose import Choice
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Sample, Sampler, SamplingSettings
from midigenre.generation.windows import Context
from midigenre.models import PhraseGenerator
from midigenre.spec import UNKNOWN
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.trained import Run, device_of, load_run

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
    try:
        choice = Choice(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
        settings = SamplingSettings(
            choice, cfg.guidance, cfg.seed, cfg.bars, cfg.seconds, cfg.tokens
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    device = device_of(cfg.device)
    trained = load_run(cfg.run, cfg.ckpt, "generator")
    model = trained.model.to(device)
    assert isinstance(model, PhraseGenerator)
    told = _told(cfg, trained, model)
    tokenizer = from_spec(trained.tokens)
    primer, primer_bars = _primer(cfg, tokenizer)
    sampler = Sampler(model, Grammar.of(tokenizer), context_of(trained))
    pieces: list[Sample] = []
    with progress_bars() as progress:
        for first in range(0, cfg.n, cfg.batch):
            n = min(cfg.batch, cfg.n - first)
            what = f"pieces {first} to {first + n - 1}" if cfg.n > cfg.batch else "bars"

            def report(_: str, done: int, total: int, what: str = what) -> None:
                progress(what, done, total)

            labels = {label: [index] * n for label, (_, index) in told.items()}
            try:
                pieces += sampler.sample(
                    labels, settings, n=n, first=first, primer=primer, primer_bars=primer_bars,
                    report=report,
                )  # fmt: skip
            except ValueError as error:
                raise UserError(f"prime={cfg.prime}: {error}") from error
    names = {label: name for label, (name, _) in told.items()}
    out = Path(cfg.out).expanduser() if cfg.out else _new_folder(trained)
    _write(cfg, out, trained, tokenizer, pieces, names, primer_bars)
    print(out)


def context_of(trained: Run) -> Context:
    """What a generator was trained to see."""
    length = phrase_length(trained.data, trained.tokens)
    bars = length.max_bars if isinstance(length, Seconds) else length
    return Context(trained.data["max_tokens"], bars)


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


def _told(
    cfg: DictConfig, trained: Run, model: PhraseGenerator
) -> dict[str, tuple[str | None, int]]:
    """Name and index of the class of each condition."""
    wanted: dict[str, Any] = {label: cfg[label] for label in COMMON if cfg[label] is not None}
    more = OmegaConf.to_container(cfg.conditions)
    assert isinstance(more, dict)
    wanted |= {str(label): name for label, name in more.items()}
    known = tuple(model.conditions.classes) if model.conditions else ()
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
        song = tokenizer.read(path.read_bytes())
    except OSError as error:
        raise UserError(f"prime={cfg.prime}: {(error.strerror or str(error)).lower()}") from error
    except RefusedSongError as error:
        raise UserError(f"prime={cfg.prime}: {error}; give a MIDI file with notes") from error
    first = int(np.flatnonzero(song.onsets_per_bar())[0])
    end = song.n_bars if cfg.prime_bars is None else min(song.n_bars, first + cfg.prime_bars)
    if cfg.prime_bars is not None and end < first + cfg.prime_bars:
        console.print(
            f"{path} has {end - first} bars of music, not prime_bars={cfg.prime_bars}",
            style="yellow", markup=False, highlight=False,
        )  # fmt: skip
    phrase = song.bars(first, end)
    return tokenizer.encode(phrase).ids_TF.astype(np.int64), phrase.n_bars


def _new_folder(trained: Run) -> Path:
    parent = trained.folder if trained.folder is not None else Path()
    base = parent / "samples" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, more = base, 1
    while folder.exists():  # two commands within a second
        more += 1
        folder = base.with_name(f"{base.name}-{more}")
    return folder


def _write(
    cfg: DictConfig,
    out: Path,
    trained: Run,
    tokenizer: Tokenizer,
    pieces: Sequence[Sample],
    told: Mapping[str, str | None],
    primer_bars: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stem = "-".join(name.replace("/", "_") for name in told.values() if name) or "piece"
    listed: list[dict[str, Any]] = []
    for i, piece in enumerate(pieces):
        name = f"{stem}-seed{cfg.seed}-{i:03d}"
        score = tokenizer.decode(piece.ids_TF)
        write_bytes(out / f"{name}.mid", score.dumps_midi())
        about: dict[str, Any] = {
            "midi": f"{name}.mid",
            "index": i,
            "stop": piece.stop,
            "steps": len(piece.ids_TF),
            "drawn_steps": piece.n_drawn,
            "notes": int(score.note_num()),
        }
        if score.note_num():
            song = tokenizer.clean(score)
            title = " ".join(n for n in told.values() if n) or "unconditioned"
            figure = piano_roll_figure(
                song.notes, song.bar_ticks, song.tpq, f"{title}, seed {cfg.seed}, piece {i}"
            )
            save(figure, out / f"{name}.png")
            about |= {
                "piano_roll": f"{name}.png",
                "bars": song.n_bars,
                "seconds": round(float(song.bar_seconds()[-1]), 2),
                "programs": sorted({int(p) for p in song.notes.program}),
            }
        else:
            console.print(f"{name}: silent, not a note was drawn", style="yellow", markup=False)
        listed.append(about)
    kept = {k: v for k, v in plain_settings(cfg).items() if k not in ("debug", "batch", "out")}
    about_all = {
        "checkpoint": str(trained.checkpoint),
        "conditions": dict(told),
        "primer_bars": primer_bars,
        "settings": kept,
        "pieces": listed,
    }
    write_json(out / "samples.json", about_all)
    notes = sum(about["notes"] for about in listed)
    console.print(
        f"{len(listed)} pieces, {notes:,} notes; MIDI, piano rolls and samples.json in {out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def plain_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of a command as plain data."""
    found = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
