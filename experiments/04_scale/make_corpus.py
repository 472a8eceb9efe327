"""A corpus of XMIDI's size and shape, from bars of other songs; see README.md.

Full-band songs are cut into bars by track. A file is a random sequence of segments of one or two
bars, each track of a segment from a track of another song, transposed, with a share of its notes
moved by a scale degree, under one random tempo and random programs. So the files have the size and
the notes of full-band music, but no two share a passage, except those that are planted as copies.

File ``i`` depends on the seed, ``i`` and the source alone: a smaller corpus is the beginning of a
larger one, and a stopped run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from symusic.core import (
    NoteTickList,
    ScoreSecond,
    ScoreTick,
    TempoTick,
    TimeSignatureTick,
    TrackTick,
)

from midigenre.commands.console import progress_bars
from midigenre.corpora.xmidi import XMIDI_EMOTIONS, XMIDI_GENRES
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import read_json, write_csv, write_json
from midigenre.midi.read import read_score

XMIDI_FILES, XMIDI_SECONDS = 108_023, 176.0  # Tian et al. 2025: 5,278 hours
TPQ = 480
BAR = 4 * TPQ
TRACKS = (5, 10)
MOVED = (0.2, 0.4)  # share of a file's notes that move by a scale degree
PER_FOLDER = 1000
FORMAT = 1  # of the files that a seed stands for
# Uneven, as real classes are; XMIDI's own table is not reproduced.
GENRE_SHARES = (0.12, 0.11, 0.1, 0.3, 0.27, 0.1)
EMOTION_SHARES = (0.05, 0.17, 0.06, 0.06, 0.15, 0.06, 0.08, 0.09, 0.13, 0.09, 0.06)
COPIES = ("bytes", "transposed", "tempo", "trimmed")
SCALE = np.array([0, 2, 4, 5, 7, 9, 11])

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Bars:
    """Bars of single tracks, none of them empty.

    Attributes:
        notes: Onset within the bar, duration, pitch and velocity of each note, shape (notes, 4).
        starts: First note of each bar and, last, the number of notes, shape (bars + 1,).
        follows: Whether the next row is the next bar of the same track, shape (bars,).
    """

    notes: Ints
    starts: Ints
    follows: NDArray[np.bool_]

    @classmethod
    def of(cls, tracks: Sequence[Ints]) -> Bars:
        """Cuts tracks (onset, duration, pitch, velocity; shape (n, 4), by onset) into bars."""
        notes = np.concatenate(tracks)
        bar, track = notes[:, 0] // BAR, np.repeat(np.arange(len(tracks)), [*map(len, tracks)])
        first = np.flatnonzero(np.r_[True, (np.diff(bar) != 0) | (np.diff(track) != 0)])
        follows = (np.diff(bar[first]) == 1) & (np.diff(track[first]) == 0)
        notes[:, 0] %= BAR
        notes[:, 1] = np.clip(notes[:, 1], TPQ // 24, BAR)
        return cls(notes, np.r_[first, len(notes)], np.r_[follows, False])

    def __len__(self) -> int:
        return len(self.follows)

    def gather(self, rows: Ints) -> tuple[Ints, Ints]:
        """Notes of these bars, one bar after the other, and how many each has."""
        n = self.starts[rows + 1] - self.starts[rows]
        shift = self.starts[rows] - np.r_[0, np.cumsum(n)[:-1]]
        return self.notes[np.repeat(shift, n) + np.arange(n.sum())], n


@dataclass(frozen=True)
class Source:
    """What the files are made of: bars of pitched tracks, of drums, and how dense they should be.

    Attributes:
        digest: Hash of the songs that were taken.
        notes_per_second: Mean over these songs.
    """

    pitched: Bars
    drums: Bars
    n_songs: int
    digest: str
    notes_per_second: float
    bytes_per_song: float

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Source:
        """Takes the full-band songs in 4/4 (drums and three more tracks) below these folders.

        Raises:
            UserError: There is none.
        """
        pitched: list[Ints] = []
        drums: list[Ints] = []
        rates, sizes, seen = [], [], hashlib.sha256()
        for path in (path for folder in folders for path in _midi_files(folder)):
            data = path.read_bytes()
            try:
                score = read_score(data)
            except RejectedSongError:
                continue
            tracks = [t for t in score.tracks if len(t.notes) > 0]
            meters = {(m.numerator, m.denominator) for m in score.time_signatures}
            if meters - {(4, 4)} or len(tracks) < 4 or not any(t.is_drum for t in tracks):
                continue
            score.tracks = type(score.tracks)(tracks)
            played = cast(ScoreSecond, score.to("second"))
            rates.append(score.note_num() / max(1.0, played.end()))
            sizes.append(len(data))
            seen.update(hashlib.sha256(data).digest())
            for track in tracks:
                (drums if track.is_drum else pitched).append(_columns(track, TPQ / score.tpq))
        if not rates:
            named = ", ".join(map(str, folders))
            raise UserError(f"--source {named} has no song in 4/4 with drums and three more tracks")
        return cls(
            Bars.of(pitched), Bars.of(drums), len(rates), seen.hexdigest(),
            float(np.mean(rates)), float(np.mean(sizes)),
        )  # fmt: skip


def _midi_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.mid*") if p.suffix.lower() in (".mid", ".midi"))


def _columns(track: TrackTick, scale: float) -> Ints:
    soa = track.notes.numpy()
    columns = [soa["time"] * scale, soa["duration"] * scale, soa["pitch"], soa["velocity"]]
    notes: Ints = np.stack(columns, axis=1).round().astype(np.int64)
    notes = notes[(notes[:, 0] >= 0) & (notes[:, 2] >= 0)]
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def compose(source: Source, seconds: float, seed: int, index: int) -> ScoreTick:
    """File ``index`` of a seed, ``seconds`` long on average."""
    random = np.random.default_rng((seed, index))
    qpm = random.uniform(70, 160)
    n_bars = max(4, round(seconds * np.clip(random.normal(1, 0.25), 0.4, 1.6) * qpm / 240))
    n_tracks = int(random.integers(TRACKS[0], TRACKS[1] + 1))
    # A slow file has fewer bars: for the same notes a second more of its tracks play at once.
    wanted = source.notes_per_second * random.uniform(0.6, 1.4) * 240 / qpm
    full = (n_tracks - 1) * _notes_per_bar(source.pitched) + _notes_per_bar(source.drums)
    playing = random.random((n_tracks, n_bars)) < wanted / full
    playing[:, 0] = True  # no track is empty, no bar before the first note

    first = random.random(n_bars) < 2 / 3  # of a segment; the others are its second bar
    first[0] = True
    first[1:] |= ~first[:-1]
    shift = random.integers(-6, 6, n_bars)
    shift[~first] = shift[np.flatnonzero(~first) - 1]
    key, moved = int(random.integers(12)), random.uniform(*MOVED)

    score = ScoreTick(TPQ)
    score.time_signatures.append(TimeSignatureTick(0, 4, 4))
    score.tempos.append(TempoTick(0, round(qpm, 2)))
    for t in range(n_tracks):
        is_drum = t == 0
        bars = source.drums if is_drum else source.pitched
        rows = random.integers(len(bars), size=n_bars)
        on = np.flatnonzero(~first)
        on = on[bars.follows[rows[on - 1]]]
        rows[on] = rows[on - 1] + 1
        at = np.flatnonzero(playing[t])
        notes, n = bars.gather(rows[at])
        notes[:, 0] += np.repeat(at * BAR, n)
        if is_drum:
            notes = notes[(random.random(len(notes)) > moved / 2) | (notes[:, 0] < BAR)]
        else:
            notes[:, 2] = _moved(notes[:, 2] + np.repeat(shift[at], n), key, moved, random)
        track = TrackTick("", 0 if is_drum else int(random.integers(120)), is_drum)
        _set_notes(track, notes)
        score.tracks.append(track)
    return score


def _notes_per_bar(bars: Bars) -> float:
    return len(bars.notes) / len(bars)


def _moved(pitch: Ints, key: int, share: float, random: np.random.Generator) -> Ints:
    """Moves a share of the pitches by one to three degrees of the key's major scale."""
    chosen = random.random(len(pitch)) < share
    from_key = pitch[chosen] - key
    degree = 7 * (from_key // 12) + np.searchsorted(SCALE, from_key % 12, side="right") - 1
    degree += random.choice([-3, -2, -1, 1, 2, 3], len(degree))
    pitch[chosen] = 12 * (degree // 7) + SCALE[degree % 7] + key
    return _in_range(pitch)


def _in_range(pitch: Ints) -> Ints:
    """Pitches outside 24..107 fold in by octaves."""
    pitch = np.where(pitch < 24, 24 + (pitch - 24) % 12, pitch)
    return np.where(pitch > 107, 96 + pitch % 12, pitch)


def _set_notes(track: TrackTick, notes: Ints) -> None:
    time, duration, pitch, velocity = notes.T
    track.notes = NoteTickList.from_numpy(
        time.astype(np.int32),
        duration.astype(np.int32),
        pitch.astype(np.int8),
        velocity.astype(np.int8),
    )


@dataclass(frozen=True)
class Planned:
    """One file of the corpus.

    Attributes:
        path: Its name below the corpus.
        index: Of the file whose music it has: its own, or that of the original.
        copy: How it was copied, "" if it was not.
        amount: Semitones, factor of the tempo, or share of the bars that is left.
    """

    path: str
    index: int
    copy: str = ""
    amount: float = 0.0


def plan(n: int, seed: int, duplicates: float) -> list[Planned]:
    """Names of ``n`` files, a share of them copies of earlier ones with the same labels."""
    # A column each, so that the first files are the same whatever n is.
    u = [np.random.default_rng((seed, n_, 2**32)).random(n) for n_ in range(6)]
    genres = np.searchsorted(np.cumsum(GENRE_SHARES)[:-1], u[0], side="right")
    emotions = np.searchsorted(np.cumsum(EMOTION_SHARES)[:-1], u[1], side="right")
    is_copy = u[2] < duplicates
    is_copy[:1] = False
    made: list[Planned] = []
    for i in range(n):
        of = int(u[3][i] * i) if is_copy[i] else i
        while is_copy[of]:
            of -= 1
        name = hashlib.sha256(f"{seed} {i}".encode()).hexdigest()[:10].upper()
        file = f"XMIDI_{XMIDI_EMOTIONS[emotions[of]]}_{XMIDI_GENRES[genres[of]]}_{name}.midi"
        path = f"{i // PER_FOLDER:03d}/{file}"
        if of == i:
            made.append(Planned(path, i))
            continue
        kind, x = COPIES[int(u[4][i] * len(COPIES))], float(u[5][i])
        amounts = {
            "bytes": 0.0,
            "transposed": [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6][int(x * 11)],
            "tempo": round(0.8 + 0.15 * x if x < 0.5 else 1.05 + 0.3 * (x - 0.5), 3),
            "trimmed": round(0.6 + 0.35 * x, 3),
        }
        made.append(Planned(path, of, kind, amounts[kind]))
    return made


def copied(score: ScoreTick, copy: str, amount: float) -> ScoreTick:
    """Changes a score as a near copy is changed; see :class:`Planned`."""
    if copy == "tempo":
        qpm = round(score.tempos[0].qpm * amount, 2)
        score.tempos = type(score.tempos)([TempoTick(0, qpm)])
    if copy == "trimmed":
        # From both ends, by whole bars.
        last = score.end() // BAR * BAR
        cut = round((1 - amount) / 2 * last / BAR) * BAR
        score = score.clip(cut, last - cut).shift_time(-cut)
        score.time_signatures = type(score.time_signatures)([TimeSignatureTick(0, 4, 4)])
        score.tempos = type(score.tempos)([TempoTick(0, score.tempos[0].qpm)])
    if copy == "transposed":
        for track in score.tracks:
            if not track.is_drum:
                notes = _columns(track, 1.0)
                notes[:, 2] += int(amount)  # 19..113: none has to fold in
                _set_notes(track, notes)
    return score


_STATE: dict[str, Any] = {}


def _start(source: Source, out: Path, seconds: float, seed: int) -> None:
    _STATE.update(source=source, out=out, seconds=seconds, seed=seed)


def _make(planned: Planned) -> tuple[int, int]:
    """Writes a file; its bytes and its notes."""
    score = compose(_STATE["source"], _STATE["seconds"], _STATE["seed"], planned.index)
    score = copied(score, planned.copy, planned.amount)
    data = bytes(score.dumps_midi())
    path: Path = _STATE["out"] / planned.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not there, but never synced to the disk: a corpus is made again in minutes.
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)
    return len(data), score.note_num()


def make(
    source: Source, out: Path, n: int, seconds: float, seed: int, duplicates: float, workers: int
) -> dict[str, Any]:
    """Makes the files that are not there yet, and ``truth.csv`` of the planted copies.

    Raises:
        UserError: ``out`` holds files of other settings.
    """
    settings = {"format": FORMAT, "seed": seed, "seconds": seconds, "duplicates": duplicates,
                "source": source.digest}  # fmt: skip
    about = out / "settings.json"
    if about.is_file() and read_json(about) != settings:
        raise UserError(
            f"{out} was made with other settings or songs ({about}); give another --out"
        )
    write_json(about, settings)
    files = plan(n, seed, duplicates)
    rows = [{"path": f.path, "original": files[f.index].path, "copy": f.copy, "amount": f.amount}
            for f in files if f.copy]  # fmt: skip
    write_csv(out / "truth.csv", rows, ["path", "original", "copy", "amount"])
    there = {str(path.relative_to(out)) for path in _midi_files(out)}
    todo = [f for f in files if f.path not in there]
    begin, sizes, notes = time.perf_counter(), 0, 0
    # Forked, so that every process has the bars without a copy of them; and before the progress
    # bar, whose thread may hold a lock just then.
    fork = multiprocessing.get_context("fork")
    with (
        fork.Pool(workers, _start, (source, out, seconds, seed)) as pool,
        progress_bars() as progress,
    ):
        made: Iterator[tuple[int, int]] = pool.imap_unordered(_make, todo, chunksize=16)
        for i, (n_bytes, n_notes) in enumerate(made):
            sizes, notes = sizes + n_bytes, notes + n_notes
            progress("writing", i + 1, len(todo))
    wall, per = time.perf_counter() - begin, max(1, len(todo))
    return {
        "files": n,
        "made": len(todo),
        "planted": len(rows),
        "wall_s": round(wall, 1),
        "files_per_s": round(len(todo) / wall, 1),
        "mean_bytes": round(sizes / per),
        "mean_notes": round(notes / per),
        "source_songs": source.n_songs,
        "source_bars": len(source.pitched) + len(source.drums),
        "source_mean_bytes": round(source.bytes_per_song),
        "source_notes_per_s": round(source.notes_per_second, 1),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="folders of songs")
    parser.add_argument("--out", type=Path, required=True, help="the corpus")
    parser.add_argument("--n", type=int, default=XMIDI_FILES, help="files (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=XMIDI_SECONDS, help="mean length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--duplicates", type=float, default=0.0, help="share of byte copies and near copies"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: all cores")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        source = Source.read(args.source)
        about = make(
            source, args.out, args.n, args.seconds, args.seed, args.duplicates, args.workers
        )
    except UserError as error:
        sys.exit(f"make_corpus: {error}")
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
