"""Octuple to music.

MidiTok's own decoder places the first note after a change of meter with the old meter's grid.
Here every note is placed by its bar and position in the meter that its own step states. What the
tokens do not say cannot be known: a bar without a note takes the meter of the last bar that has
one (or, at the start of the phrase, of the first one).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from miditok.constants import DEFAULT_VELOCITY
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre.midi.song import DEFAULT_METER, DEFAULT_TEMPO, DRUMS, Grid, NoteTable, Song
from midigenre.spec import TokenSpec


def decode(ids_TF: NDArray[np.integer[Any]], spec: TokenSpec, grid: Grid) -> ScoreTick:
    """Decodes Octuple steps, in any order, into a score that starts at tick 0.

    Bars may be numbered beyond the vocabulary, as those of an encoded song are.
    """
    columns = {f.name: (f, ids_TF[:, i]) for i, f in enumerate(spec.fields)}

    def values(name: str) -> list[str] | None:
        if name not in columns:
            return None
        field, ids = columns[name]
        return [field.values[i] for i in ids]

    n = len(ids_TF)
    # By distance, not by name: a long piece numbers more bars than the vocabulary has.
    bars, ids = columns["Bar"]
    bar = ids.astype(np.int64) - bars.index["Bar_0"]
    position = np.array([int(v) for v in values("Position") or []], np.int64)
    meters = [
        (int(v.split("/")[0]), int(v.split("/")[1])) for v in values("TimeSig") or ["4/4"] * n
    ]
    n_bars = int(bar.max()) + 1 if n else 0
    stated: dict[int, tuple[int, int]] = dict(zip(bar.tolist(), meters, strict=True))
    meter = stated[min(stated)] if stated else DEFAULT_METER
    of_bar = [meter := stated.get(b, meter) for b in range(n_bars)]
    bar_ticks = np.r_[0, np.cumsum([grid.bar_ticks(m) for m in of_bar])].astype(np.int64)

    step = np.array([grid.step_ticks(of_bar[b]) for b in bar], np.int64)
    onset = bar_ticks[bar] + position * step
    durations = values("Duration")
    beats = grid.beat_resolution
    duration = (
        np.array([_steps(v, beats) for v in durations], np.int64) * step
        if durations
        else np.full(n, max(1, beats // 2)) * step
    )
    field, ids = columns["Pitch"]
    is_drum = np.array([field.types[i] == "PitchDrum" for i in ids], bool)
    programs = values("Program")
    program = np.array([int(v) for v in programs], np.int64) if programs else np.zeros(n, np.int64)
    velocities = values("Velocity")
    tempi = [float(v) for v in values("Tempo") or [str(DEFAULT_TEMPO)] * n]
    order = np.argsort(onset, kind="stable")
    qpm = np.array(tempi)[order]
    changed = np.r_[True, np.diff(qpm) != 0] if n else np.zeros(0, bool)
    tempo_ticks = onset[order][changed]
    if n:
        tempo_ticks[0] = 0
    return Song(
        notes=NoteTable.of(
            onset,
            duration,
            [int(v) for v in values("Pitch") or []],
            [int(v) for v in velocities] if velocities else [DEFAULT_VELOCITY] * n,
            np.where(is_drum, DRUMS, program),
        ),
        tpq=grid.tpq,
        bar_ticks=bar_ticks.astype(np.int32),
        meters=np.array(of_bar, np.int32).reshape(-1, 2),
        tempo_ticks=tempo_ticks.astype(np.int32),
        tempo_qpm=qpm[changed],
    ).to_score()


def _steps(duration: str, beat_resolution: int) -> int:
    """Grid steps of MidiTok's ``beats.positions.resolution``."""
    beats, positions, resolution = (int(part) for part in duration.split("."))
    return (beats * resolution + positions) * beat_resolution // resolution
