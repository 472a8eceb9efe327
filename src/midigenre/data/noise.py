"""Noise in songs, to see what a trained model bears: its settings, and prepared songs with it.

A song of the shards is perturbed before it is tokenized again, so that every tokenizer, and every
baseline, reads the same noisy music. Each draw is a hash of the seed, the song's id and the note
(:func:`midigenre.data.augment.uniform`), whatever songs are beside it. More of one kind of noise
changes the notes that less of it has changed, and others.

n notes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from midigenre.arrays import Floats, Longs, song_keys
from midigenre.corpora.base import Progress, no_progress
from midigenre.data.augment import integers, uniform
from midigenre.data.shards import ShardSet, schema, song_columns, write_part, write_spec
from midigenre.errors import UserError
from midigenre.files import write_csv
from midigenre.midi.song import DRUMS, NoteTable, Song, seconds_at
from midigenre.tokenizers.base import from_spec

_FINE = 60  # ticks of the perturbed song in one of the cleaned song's
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "jitter_ms": (0, 10_000), "velocity": (0, 1000), "wrong": (0, 1), "drop": (0, 1),
    "double": (0, 1), "transpose": (-12, 12), "tempo": (0.01, 100), "program": (0, 1),
    "seed": (0, 2**32 - 1),
}  # fmt: skip
_WRONG = (-2, -1, 1, 2)  # semitones
_OCTAVE = 12

# One number for each purpose; a new purpose takes a new number, so that old draws stay.
_JITTER, _VELOCITY, _WRONGED, _BY, _DROP, _DOUBLE, _PROGRAM, _OTHER = range(1, 9)


@dataclass(frozen=True)
class NoiseSettings:
    """How songs are perturbed, ``noise.*`` of ``midigenre evaluate``; 0 and 1.0 leave them alone.

    Attributes:
        jitter_ms: Standard deviation of each onset, in milliseconds at the song's tempo; notes keep
            their length. The tokenizer's grid then rounds it.
        velocity: Standard deviation of each note's velocity, of 1 to 127.
        wrong: Share of the pitched notes that are one or two semitones off.
        drop: Share of the notes that are missing; at least one of a song stays.
        double: Share of the pitched notes that sound an octave above, too (below, where there is
            no pitch above).
        transpose: Semitones by which all pitched notes move, an octave less for those that would
            leave MIDI's range.
        tempo: Factor of the tempo.
        program: Share of the programs of a song that are replaced by another one, drums excepted.
        seed: Of the draws.

    Raises:
        UserError: A value is out of range.
    """

    jitter_ms: float = 0.0
    velocity: float = 0.0
    wrong: float = 0.0
    drop: float = 0.0
    double: float = 0.0
    transpose: int = 0
    tempo: float = 1.0
    program: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            kinds = int if name in ("transpose", "seed") else (int, float)
            if not isinstance(value, kinds) or not least <= value <= most:
                what = "a whole number" if kinds is int else "a number"
                raise UserError(f"noise.{name}={value} must be {what} of {least:g} to {most:g}")

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that change songs, by name; the seed where there is one."""
        found = {k: v for k, v in asdict(self).items() if v != getattr(NoiseSettings, k)}
        return {} if found.keys() <= {"seed"} else found


def perturbed(song: Song, noise: NoiseSettings, song_id: str) -> Song:
    """The song with noise, in finer ticks than a tokenizer's grid has.

    Args:
        song: A cleaned song.
        noise: What is done.
        song_id: Its draws depend on it.
    """
    notes = song.notes
    n = len(notes)
    with np.errstate(over="ignore"):  # of 64 bits, on purpose
        key = song_keys([song_id]).view(np.uint64)[0] + np.uint64(noise.seed)
    keys_n = np.full(n, key, np.uint64)
    # The place in canonical order: dropping some notes does not move the draws of the others.
    places_n = np.arange(n)

    def drawn(purpose: int) -> Floats:
        return uniform(keys_n, purpose, places_n)

    def normal(purpose: int) -> Floats:
        return np.asarray(ndtri(drawn(purpose) + 2.0**-54))  # never 0, which would be -infinity

    pitched_n = notes.program != DRUMS
    pitch_n = notes.pitch.astype(np.int64)
    off_n = np.array(_WRONG)[integers(drawn(_BY), 0, len(_WRONG) - 1)]
    pitch_n = np.where(pitched_n & (drawn(_WRONGED) < noise.wrong), pitch_n + off_n, pitch_n)
    pitch_n = _in_range(np.where(pitched_n, pitch_n + noise.transpose, pitch_n))
    velocity_n = np.rint(notes.velocity + noise.velocity * normal(_VELOCITY))

    programs = np.unique(notes.program)
    others = programs.astype(np.int64)
    for place, program in enumerate(programs):
        own = np.array([key], np.uint64)
        if program != DRUMS and uniform(own, _PROGRAM, int(program))[0] < noise.program:
            # One of the 127 others.
            by = integers(uniform(own, _OTHER, int(program)), 1, 127)[0]
            others[place] = (int(program) + by) % 128
    program_n = others[np.searchsorted(programs, notes.program)]

    onset_n = notes.onset.astype(np.int64) * _FINE
    if noise.jitter_ms:
        # The length of a tick where the note begins, by the song's own tempo.
        begin = seconds_at(notes.onset, song.tempo_ticks, song.tempo_qpm, song.tpq)
        after = seconds_at(notes.onset + 1, song.tempo_ticks, song.tempo_qpm, song.tpq)
        ticks_n = noise.jitter_ms / 1000 * normal(_JITTER) / (after - begin) * _FINE
        onset_n = np.maximum(0, onset_n + np.rint(ticks_n).astype(np.int64))

    kept_n = drawn(_DROP) >= noise.drop
    if not kept_n.any():
        kept_n[drawn(_DROP).argmax()] = True
    columns = [onset_n, notes.duration.astype(np.int64) * _FINE, pitch_n,
               np.clip(velocity_n, 1, 127), program_n]  # fmt: skip
    again_n = kept_n & pitched_n & (drawn(_DOUBLE) < noise.double)
    doubles = [column[again_n] for column in columns]
    doubles[2] = _in_range(doubles[2] + _OCTAVE)
    both = [np.r_[column[kept_n], more] for column, more in zip(columns, doubles, strict=True)]
    return replace(
        song,
        notes=NoteTable.of(*both),
        tpq=song.tpq * _FINE,
        bar_ticks=song.bar_ticks * _FINE,
        tempo_ticks=song.tempo_ticks * _FINE,
        tempo_qpm=song.tempo_qpm * noise.tempo,
    )


def _in_range(pitch: Longs) -> Longs:
    """Pitches of 0 to 127: an octave is taken off those above, and added to those below."""
    pitch = np.where(pitch > 127, pitch - _OCTAVE * -(-(pitch - 127) // _OCTAVE), pitch)
    return np.where(pitch < 0, pitch + _OCTAVE * -(pitch // _OCTAVE), pitch)


def noisy_songs(
    shards: ShardSet,
    rows: Sequence[int] | Longs,
    noise: NoiseSettings,
    folder: Path,
    progress: Progress = no_progress,
) -> ShardSet:
    """Some songs of the shards with noise, as shards of their own.

    Args:
        shards: The songs.
        rows: Which of them, R indices.
        noise: What is done to them.
        folder: An empty folder to write to.
        progress: Called as songs are encoded.

    Returns:
        The R songs in the order of ``rows``, with their rows of the manifest.
    """
    tokenizer = from_spec(shards.tokens)
    labels = {label: index[rows] for label, index in shards.label_indices().items()}
    manifest, songs = [], []
    for place, row in enumerate(rows):
        about = shards.manifest[int(row)]
        song = tokenizer.clean(perturbed(shards.song(int(row)), noise, about["song_id"]).to_score())
        encoded = tokenizer.encode(song)
        classes = {label: int(index[place]) for label, index in labels.items()}
        songs.append({"song_id": about["song_id"], **classes, **song_columns(song, encoded)})
        counts = {"bars": song.n_bars, "notes": len(song.notes), "tokens": len(encoded.ids_TF)}
        manifest.append(about | {key: str(count) for key, count in counts.items()})
        progress("adding noise", place + 1, len(rows))
    part = write_part(folder / "part-00000.arrow", songs, schema(shards.tokens, shards.labels))
    tables: Mapping[str, list[dict[str, str]]] = {
        "manifest.csv": manifest, "refused.csv": [], "duplicates.csv": [],
    }  # fmt: skip
    for name, of in tables.items():
        write_csv(folder / name, of, shards.manifest.columns)
    write_spec(folder, shards.folder.name, shards.tokens, shards.labels, [part])
    return ShardSet(folder)
