"""What a command leaves of a piece of generated music: MIDI, piano roll, audio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from symusic.core import ScoreTick, TextMetaTick

from midigenre.evaluation.figures import piano_roll_figure, save
from midigenre.files import write_bytes
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
from midigenre.midi.song import Song
from midigenre.wording import plural


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
